//! Objects -> model: references between them are looked up, endpoints are found, routes meet their parents. What can't
//! be resolved is said on the object that refers, and answers with an error where traffic meets it; the rest stands.

mod addresses;
mod authorization;
mod backend_tls;
mod bundle;
mod certificate;
mod client_tls;
mod edge_guard;
mod endpoints;
mod gateway;
mod host;
mod http_route;
mod mesh;
mod opaque;
mod peers;
mod policy;
mod rate_limit;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::field::Field;
use super::kinds::{ConfigMap, EndpointSlice, ReferenceGrant, Secret, Service, Spec};
use super::object::Object;
use super::report::{Code, Message, Severity};
use crate::model::{Endpoint, Labels, Model, ObjectName};

/// What linking has to say on an object.
#[derive(Debug, Default)]
pub(super) struct LinkedObject {
    /// Messages.
    pub messages: Vec<Message>,
    /// Further fields that are not enforced yet.
    pub not_enforced: Vec<String>,
    /// Whether nothing of the object is enforced.
    pub as_whole: bool,
}

/// Builds the model of all objects; what there is to say is in the order of the objects.
pub(super) fn link(objects: &[Arc<Object>]) -> (Model, Vec<LinkedObject>) {
    let world = World::new(objects);
    let mut notes = LinkNotes { objects, linked: objects.iter().map(|_| LinkedObject::default()).collect() };
    notes.mark_kinds();
    let workloads = endpoints::workloads(&world);
    let endpoints::Endpoints { streams: endpoints, datagrams } =
        endpoints::endpoints(&world, &workloads, &mut notes);
    let authorization = authorization::policies(&world);
    let peers = peers::peers(&world, workloads.values().map(|(workload, _)| workload), &mut notes);
    let surroundings = client_tls::Surroundings { workloads: &workloads, peers: &peers };
    let policies = policy::policies(&world, &endpoints, &surroundings, &mut notes);
    let mut mesh_routes = mesh::routes(&world, &policies, &mut notes);
    mesh_routes.extend(http_route::mesh_routes(&world, &mut notes));
    let listeners = gateway::listeners(&world, &mut notes);
    let guards = edge_guard::guards(&world);
    let limits = rate_limit::limits(&world, &workloads.values().map(|(workload, _)| workload), &mut notes);
    addresses::report_shared(&world, &mut notes);
    let mut services = endpoints::services(&world);
    backend_tls::apply(&world, &mut services, &mut notes);
    policy::report_backend_policies(&world, &services, &policies, &mut notes);
    let mut workloads: Vec<_> = workloads.into_values().map(|(workload, _)| workload).collect();
    workloads.sort_by(|a, b| a.name.cmp(&b.name));
    let model = Model {
        services: services.into(),
        endpoints: endpoints.into(),
        datagram_endpoints: datagrams.into(),
        workloads: workloads.into(),
        policies: policies.into(),
        authorization: authorization.into(),
        peers: peers.into(),
        mesh_routes: mesh_routes.into(),
        listeners: listeners.into(),
        guards: guards.into(),
        limits: limits.into(),
    };
    (model, notes.linked)
}

/// The endpoints of TCP and of UDP ports of one service that has EndpointSlices, as [`link`] makes them; `pods` has all objects
/// that the slices name.
pub(super) fn endpoints_of(
    service: (&ObjectName, &Service),
    slices: &[&EndpointSlice],
    pods: &[Arc<Object>],
) -> [Vec<Endpoint>; 2] {
    let workloads = endpoints::workloads(&World::new(pods));
    let slices: Vec<_> = slices.iter().copied().enumerate().collect();
    let endpoints::Endpoints { streams, datagrams } = endpoints::of_service(service, &slices, &workloads);
    [streams, datagrams]
}

/// All objects, by what others refer to them with.
struct World<'a> {
    objects: &'a [Arc<Object>],
    /// Services that are no names for something outside.
    services: BTreeMap<&'a ObjectName, &'a Service>,
    /// Services that are such names.
    external: BTreeSet<&'a ObjectName>,
    namespaces: BTreeMap<&'a str, &'a Labels>,
    grants: Vec<(&'a str, &'a ReferenceGrant)>,
    secrets: BTreeMap<&'a ObjectName, &'a Secret>,
    config_maps: BTreeMap<&'a ObjectName, &'a ConfigMap>,
}

impl<'a> World<'a> {
    fn new(objects: &'a [Arc<Object>]) -> Self {
        let mut world = Self {
            objects,
            services: BTreeMap::new(),
            external: BTreeSet::new(),
            namespaces: BTreeMap::new(),
            grants: Vec::new(),
            secrets: BTreeMap::new(),
            config_maps: BTreeMap::new(),
        };
        for object in objects {
            match &object.spec {
                Spec::Service(service) if service.external => {
                    world.external.insert(object.name());
                }
                Spec::Service(service) => {
                    world.services.insert(object.name(), service);
                }
                Spec::Namespace(labels) => {
                    world.namespaces.insert(&object.name().name, labels);
                }
                Spec::ConfigMap(found) => {
                    world.config_maps.insert(object.name(), found);
                }
                Spec::Secret(secret) => {
                    world.secrets.insert(object.name(), secret);
                }
                Spec::ReferenceGrant(grant) => world.grants.push((&object.name().namespace, grant)),
                _ => {}
            }
        }
        world
    }

    /// Objects of a kind with their positions, oldest first and then by name: the order of precedence among equals.
    fn by_age<T>(&self, kind: impl Fn(&'a Spec) -> Option<&'a T>) -> Vec<(usize, &'a Object, &'a T)> {
        let objects = self.objects.iter().enumerate();
        let mut found: Vec<_> = objects
            .filter_map(|(position, object)| Some((position, &**object, kind(&object.spec)?)))
            .collect();
        found.sort_by_key(|(_, object, _)| (&object.created, object.name()));
        found
    }

    /// Why a service can't be sent to; `None` where it can. Without any Service among the documents a missing one
    /// proves little: the files may be a part of a larger set.
    fn service_problem(&self, service: &ObjectName, port: Option<u16>) -> Option<(Severity, String)> {
        if self.external.contains(service) {
            return Some((
                Severity::Error,
                format!("the Service {service} is an ExternalName, which is not served yet"),
            ));
        }
        let Some(found) = self.services.get(service) else {
            let severity = if self.services.is_empty() { Severity::Warning } else { Severity::Error };
            return Some((severity, format!("there is no Service {service}")));
        };
        let port = port?;
        let has_port = found.ports.iter().any(|(known, _)| known.port == port);
        (!has_port).then(|| (Severity::Error, format!("the Service {service} has no TCP port {port}")))
    }
}

/// Collects what there is to say, by position of the object.
struct LinkNotes<'a> {
    objects: &'a [Arc<Object>],
    linked: Vec<LinkedObject>,
}

impl LinkNotes<'_> {
    /// Says something on a field of an object, once.
    fn say(
        &mut self,
        position: usize,
        (severity, code): (Severity, Code),
        field: &Field,
        text: impl Into<String>,
    ) {
        let message = self.objects[position].message(severity, code, field, text.into());
        let messages = &mut self.linked[position].messages;
        if !messages.contains(&message) {
            messages.push(message);
        }
    }

    /// Whether anything is said on a field of an object.
    fn tells_of(&self, position: usize, field: &Field) -> bool {
        let path = field.to_string();
        self.linked[position].messages.iter().any(|message| *message.field == *path)
    }

    /// Lists a field of an object as not enforced.
    fn later(&mut self, position: usize, field: &Field) {
        let path = field.to_string();
        let fields = &mut self.linked[position].not_enforced;
        if !fields.contains(&path) {
            fields.push(path);
        }
    }

    /// Lists an object as not enforced.
    fn not_enforced(&mut self, position: usize) {
        self.linked[position].as_whole = true;
    }

    fn mark_kinds(&mut self) {
        for (object, linked) in self.objects.iter().zip(&mut self.linked) {
            linked.as_whole = match &object.spec {
                Spec::Later => true,
                Spec::Service(service) => service.external,
                Spec::Secret(secret) => secret.certificate.is_none() && secret.roots.is_none(),
                Spec::AuthorizationPolicy(policy) => policy.action.is_none(),
                Spec::VirtualService(route) => !route.mesh || route.hosts.is_empty(),
                _ => false,
            };
        }
    }
}
