//! Changed EndpointSlices -> the endpoints of their services, and nothing else. In a large cluster nearly all changes are of
//! that kind, and they come all the time; whatever else changes is for [`load`](super::load).

use std::collections::BTreeSet;
use std::sync::Arc;

use super::kinds::{EndpointSlice, Service, Spec};
use super::link::endpoints_of;
use super::load::{Content, FileState, State};
use super::node;
use super::object::{Object, ObjectId, read_objects};
use super::read::InputFile;
use crate::model::{Endpoint, ObjectName};

/// An EndpointSlice of which nothing but its endpoints changed.
struct Changed {
    content: Content,
    object: Arc<Object>,
    service: ObjectName,
}

impl State {
    /// Takes in files that changed, where each of them held one EndpointSlice and holds it still, and nothing follows from the
    /// changes but endpoints: model and report are then those that [`load`](super::load) would make of all files. Gives the
    /// services whose endpoints may differ. `None`: more follows, and the state is as it was.
    pub fn update(&mut self, files: &[InputFile]) -> Option<BTreeSet<ObjectName>> {
        let changes: Vec<Changed> = files.iter().map(|file| self.changed(file)).collect::<Option<_>>()?;
        let services: BTreeSet<ObjectName> = changes.iter().map(|change| change.service.clone()).collect();
        for (file, Changed { content, object, .. }) in files.iter().zip(changes) {
            self.in_force.insert(object.header.id.clone(), Arc::clone(&object));
            let state = FileState { objects: vec![object], ..FileState::empty(content) };
            self.files.insert(Arc::clone(&file.path), state);
        }
        let made: Vec<_> = services.iter().filter_map(|name| Some((name, self.linked(name)?))).collect();
        let model = Arc::make_mut(&mut self.model);
        for (name, [streams, datagrams]) in made {
            model.endpoints.replace(name, streams);
            model.datagram_endpoints.replace(name, datagrams);
        }
        Some(services)
    }

    fn changed(&self, file: &InputFile) -> Option<Changed> {
        let before = self.files.get(&file.path)?;
        let [old] = &before.objects[..] else { return None };
        let spotless = before.messages.is_empty() && before.kept.is_empty() && before.rejected.is_empty();
        let in_force = self.in_force.get(&old.header.id)?;
        if !spotless || !Arc::ptr_eq(in_force, old) {
            return None;
        }
        let new = only_object(file)?;
        let quiet = |object: &Object| object.messages.is_empty() && object.not_enforced.is_empty();
        let new = Arc::new(new);
        let (was, is) = (slice(old)?, slice(&new)?);
        // What there is to say of a slice depends on its ports alone, and where it says so on its place.
        let alike = was.service == is.service
            && was.ports == is.ports
            && was.datagram_ports == is.datagram_ports
            && old.header == new.header;
        let service = is.service.clone()?;
        if !(alike && quiet(old) && quiet(&new) && names_pods(is) && self.is_plain(&service)) {
            return None;
        }
        Some(Changed { content: Content::of(&file.text), object: new, service })
    }

    /// Whether of a service's endpoints nothing else depends, and they depend on what slices and pods' names say alone.
    fn is_plain(&self, name: &ObjectName) -> bool {
        // Whether a subset has any endpoint is said of its DestinationRule, and which endpoints its TLS does not go with.
        let policies = &self.model.policies;
        let policy = policies.binary_search_by(|policy| policy.service.cmp(name));
        let has_more =
            policy.is_ok_and(|at| !policies[at].subsets.is_empty() || !policies[at].tls.is_silent());
        self.service(name).is_some() && !has_more && self.slices_of(name).all(names_pods)
    }

    fn linked(&self, name: &ObjectName) -> Option<[Vec<Endpoint>; 2]> {
        let slices: Vec<&EndpointSlice> = self.slices_of(name).collect();
        let named: BTreeSet<&ObjectName> =
            slices.iter().flat_map(|slice| &slice.endpoints).filter_map(|one| one.pod.as_ref()).collect();
        let pods: Vec<Arc<Object>> =
            named.into_iter().filter_map(|pod| self.in_force.get(&core("Pod", pod))).cloned().collect();
        Some(endpoints_of((name, self.service(name)?), &slices, &pods))
    }

    fn service(&self, name: &ObjectName) -> Option<&Service> {
        match &self.in_force.get(&core("Service", name))?.spec {
            Spec::Service(service) if !service.external => Some(service),
            _ => None,
        }
    }

    fn slices_of(&self, name: &ObjectName) -> impl Iterator<Item = &EndpointSlice> {
        let ids = self.slices.get(name).into_iter().flatten();
        ids.filter_map(|id| slice(self.in_force.get(id)?))
    }
}

/// The one valid object of a file; `None`: it holds anything else.
fn only_object(file: &InputFile) -> Option<Object> {
    let mut nodes = node::parse(file.text.as_ref().ok()?).ok()?;
    let node = nodes.pop().filter(|_| nodes.is_empty())?;
    let mut elsewhere = BTreeSet::new();
    let mut objects = read_objects(&file.path, node, &mut elsewhere);
    let object = objects.pop().filter(|_| objects.is_empty() && elsewhere.is_empty())?;
    object.ok()
}

fn slice(object: &Arc<Object>) -> Option<&EndpointSlice> {
    match &object.spec {
        Spec::EndpointSlice(slice) => Some(slice),
        _ => None,
    }
}

/// Whether each endpoint says which pod it is: no other pod can then be meant by its address.
fn names_pods(slice: &EndpointSlice) -> bool {
    slice.endpoints.iter().all(|endpoint| endpoint.pod.is_some())
}

fn core(kind: &str, name: &ObjectName) -> ObjectId {
    ObjectId { group: "".into(), kind: kind.into(), name: name.clone() }
}
