//! The endpoints of all services, in which a change of one service's is cheap: copies share those of all others.

use std::collections::{BTreeMap, HashMap};
use std::ops::Index;
use std::sync::Arc;

use super::{Endpoint, ObjectName, SharedMap};

/// Endpoints by their services, and in each of them in the order in which they were given.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Endpoints {
    by_service: SharedMap<ObjectName, Arc<[Endpoint]>>,
    len: usize,
    ready: usize,
}

impl Endpoints {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many of them are ready.
    pub fn ready(&self) -> usize {
        self.ready
    }

    /// All of them, sorted by service.
    pub fn iter(&self) -> impl Iterator<Item = &Endpoint> + Clone {
        self.by_service.values().flat_map(|endpoints| endpoints.iter())
    }

    /// Those of a service.
    pub fn of(&self, service: &ObjectName) -> &[Endpoint] {
        self.by_service.get(service).map_or(&[], |endpoints| endpoints)
    }

    /// Puts these in the place of a service's own. All of them name that service.
    pub fn replace(&mut self, service: &ObjectName, endpoints: Vec<Endpoint>) {
        let ready = |endpoints: &[Endpoint]| endpoints.iter().filter(|endpoint| endpoint.ready).count();
        self.len += endpoints.len();
        self.ready += ready(&endpoints);
        let before = if endpoints.is_empty() {
            self.by_service.remove(service)
        } else {
            self.by_service.insert(service.clone(), endpoints.into())
        };
        if let Some(before) = before {
            self.len -= before.len();
            self.ready -= ready(&before);
        }
    }

    /// Takes those that are ready and for which this holds out of the work.
    pub fn take_out(&mut self, is_out: impl Fn(&Endpoint) -> bool) {
        let is_out = |endpoint: &Endpoint| endpoint.ready && is_out(endpoint);
        let touched = |(service, endpoints): (&ObjectName, &Arc<[Endpoint]>)| {
            endpoints.iter().any(&is_out).then(|| (service.clone(), endpoints.to_vec()))
        };
        for (service, mut endpoints) in self.by_service.iter().filter_map(touched).collect::<Vec<_>>() {
            for endpoint in &mut endpoints {
                endpoint.ready &= !is_out(endpoint);
            }
            self.replace(&service, endpoints);
        }
    }

    /// Gives work to those that are not ready and are among these others as such that are.
    pub fn bring_back(&mut self, others: &Self) {
        let out = |(service, endpoints): (&ObjectName, &Arc<[Endpoint]>)| {
            endpoints.iter().any(|endpoint| !endpoint.ready).then(|| (service.clone(), endpoints.to_vec()))
        };
        for (service, mut endpoints) in self.by_service.iter().filter_map(out).collect::<Vec<_>>() {
            let key = |endpoint: &Endpoint| (endpoint.service_port, endpoint.address);
            let ready = others.of(&service).iter().filter(|other| other.ready);
            let ready: HashMap<_, _> = ready.map(|other| (key(other), (&other.uid, &other.node))).collect();
            for endpoint in &mut endpoints {
                endpoint.ready |= ready.get(&key(endpoint)) == Some(&(&endpoint.uid, &endpoint.node));
            }
            self.replace(&service, endpoints);
        }
    }

    /// Changes them as one list, which costs as much as there are.
    pub fn edit(&mut self, change: impl FnOnce(&mut Vec<Endpoint>)) {
        let mut all: Vec<Endpoint> = self.iter().cloned().collect();
        change(&mut all);
        *self = all.into();
    }

    /// Tells of each service whose endpoints are others `after`, with both.
    pub fn differences<'m>(&'m self, after: &'m Self, mut found: impl FnMut(&'m [Endpoint], &'m [Endpoint])) {
        let of = |endpoints: Option<&'m Arc<[Endpoint]>>| endpoints.map_or(&[][..], |endpoints| endpoints);
        self.by_service.differences(&after.by_service, Arc::ptr_eq, |_, was, is| found(of(was), of(is)));
    }
}

impl From<Vec<Endpoint>> for Endpoints {
    fn from(endpoints: Vec<Endpoint>) -> Self {
        let (len, ready) = (endpoints.len(), endpoints.iter().filter(|endpoint| endpoint.ready).count());
        let mut by_service: BTreeMap<ObjectName, Vec<Endpoint>> = BTreeMap::new();
        for endpoint in endpoints {
            match by_service.get_mut(&endpoint.service) {
                Some(others) => others.push(endpoint),
                None => drop(by_service.insert(endpoint.service.clone(), vec![endpoint])),
            }
        }
        let by_service =
            by_service.into_iter().map(|(service, endpoints)| (service, endpoints.into())).collect();
        Self { by_service, len, ready }
    }
}

impl FromIterator<Endpoint> for Endpoints {
    fn from_iter<I: IntoIterator<Item = Endpoint>>(endpoints: I) -> Self {
        Vec::from_iter(endpoints).into()
    }
}

impl Index<usize> for Endpoints {
    type Output = Endpoint;

    fn index(&self, at: usize) -> &Endpoint {
        self.iter().nth(at).expect("whoever indexes knows how many there are")
    }
}
