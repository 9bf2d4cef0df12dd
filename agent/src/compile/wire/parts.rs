//! A model that takes changes.

mod after;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::WireError;
use super::chain::Chain;
use super::change::Change;
use super::edit::{Edit, Edits};
use super::key::{EndpointKey, Key, ListenerKey, NameKey, Place, RouteKey};
use crate::model::{
    AuthorizationPolicy, EdgeGuard, Endpoint, Listener, Model, ObjectName, RouteTable, Service,
    TrafficPolicy, Workload,
};

/// Endpoints by service.
type Endpoints = BTreeMap<ObjectName, BTreeMap<Place, Endpoint>>;

/// Routes in their order of precedence.
type Routes = Chain<RouteKey, Arc<RouteTable>>;

/// A model that takes changes: values by key, as changes name them.
#[derive(Debug, Clone, Default)]
pub struct Parts {
    services: BTreeMap<NameKey, Service>,
    endpoints: Endpoints,
    datagrams: Endpoints,
    workloads: BTreeMap<NameKey, Arc<Workload>>,
    policies: BTreeMap<NameKey, TrafficPolicy>,
    authorization: BTreeMap<NameKey, AuthorizationPolicy>,
    guards: BTreeMap<NameKey, EdgeGuard>,
    routes: Routes,
    /// Without their routes.
    listeners: Chain<ListenerKey, Listener>,
    attached: BTreeMap<ListenerKey, Routes>,
}

/// How much a model holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Services.
    pub services: usize,
    /// Endpoints of TCP and UDP ports.
    pub endpoints: usize,
    /// Those that are ready.
    pub ready: usize,
    /// Route tables of the mesh, and of listeners: once for each listener.
    pub routes: usize,
}

/// What applied changes were about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Touched {
    /// Services which changed, themselves or by their endpoints or their traffic policy.
    pub(crate) services: BTreeSet<ObjectName>,
    /// Pods which changed.
    pub(crate) workloads: BTreeSet<ObjectName>,
    /// Whether mesh routes changed.
    pub(crate) routes: bool,
    /// Whether listeners or their routes changed.
    pub(crate) listeners: bool,
    /// Whether authorization policies changed.
    pub(crate) authorization: bool,
    /// Whether guards changed.
    pub(crate) guards: bool,
}

impl Touched {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds what a later change was about.
    pub fn extend(&mut self, later: Self) {
        self.services.extend(later.services);
        self.workloads.extend(later.workloads);
        self.routes |= later.routes;
        self.listeners |= later.listeners;
        self.authorization |= later.authorization;
        self.guards |= later.guards;
    }
}

impl Parts {
    /// Makes a change: all of it, or, with an error, nothing.
    pub fn apply(&mut self, change: &Change) -> Result<Touched, WireError> {
        let mut edit = Edit::of(change)?;
        self.check_removals(&edit)?;
        let touched = touched(&edit);
        let ordered = self.ordered(&mut edit)?;
        // From here on nothing can fail.
        self.routes = ordered.routes.unwrap_or_else(|| std::mem::take(&mut self.routes));
        self.listeners = ordered.listeners.unwrap_or_else(|| std::mem::take(&mut self.listeners));
        for (listener, routes) in ordered.attached {
            if routes.is_empty() {
                self.attached.remove(&listener);
            } else {
                self.attached.insert(listener, routes);
            }
        }
        set(&mut self.services, edit.services);
        set_endpoints(&mut self.endpoints, edit.endpoints);
        set_endpoints(&mut self.datagrams, edit.datagrams);
        set(&mut self.workloads, edit.workloads);
        set(&mut self.policies, edit.policies);
        set(&mut self.authorization, edit.authorization);
        set(&mut self.guards, edit.guards);
        Ok(touched)
    }

    /// The model as a whole.
    pub fn model(&self) -> Model {
        let tables = |routes: &Routes| routes.iter().map(|(_, table)| RouteTable::clone(table)).collect();
        let with_routes = |(key, listener): (&ListenerKey, &Listener)| Listener {
            routes: self.attached.get(key).map(tables).unwrap_or_default(),
            ..listener.clone()
        };
        Model {
            services: self.services.values().cloned().collect(),
            endpoints: self.endpoints.values().flat_map(BTreeMap::values).cloned().collect(),
            datagram_endpoints: self.datagrams.values().flat_map(BTreeMap::values).cloned().collect(),
            workloads: self.workloads.values().map(|workload| Workload::clone(workload)).collect(),
            policies: self.policies.values().cloned().collect(),
            authorization: self.authorization.values().cloned().collect(),
            mesh_routes: tables(&self.routes),
            listeners: self.listeners.iter().map(with_routes).collect(),
            guards: self.guards.values().cloned().collect(),
        }
    }

    /// How much it holds.
    pub fn counts(&self) -> Counts {
        let endpoints = || self.endpoints.values().chain(self.datagrams.values()).flat_map(BTreeMap::values);
        Counts {
            services: self.services.len(),
            endpoints: endpoints().count(),
            ready: endpoints().filter(|endpoint| endpoint.ready).count(),
            routes: self.routes.len() + self.attached.values().map(Chain::len).sum::<usize>(),
        }
    }

    fn check_removals(&self, edit: &Edit) -> Result<(), WireError> {
        removable(&edit.services, |key| self.services.contains_key(key), Key::Service)?;
        removable(&edit.endpoints, |key| has(&self.endpoints, key), Key::Endpoint)?;
        removable(&edit.datagrams, |key| has(&self.datagrams, key), Key::Datagram)?;
        removable(&edit.workloads, |key| self.workloads.contains_key(key), Key::Workload)?;
        removable(&edit.policies, |key| self.policies.contains_key(key), Key::Policy)?;
        removable(&edit.authorization, |key| self.authorization.contains_key(key), Key::Authorization)?;
        removable(&edit.guards, |key| self.guards.contains_key(key), Key::Guard)
    }

    /// What has an order of precedence, as it is after a change.
    fn ordered(&self, edit: &mut Edit) -> Result<Ordered, WireError> {
        let mut ordered = Ordered::default();
        let routes = std::mem::take(&mut edit.routes);
        if !routes.is_empty() {
            ordered.routes = Some(self.routes.changed(routes, |key| Key::Route(key.clone()).to_string())?);
        }
        let listeners = std::mem::take(&mut edit.listeners);
        if !listeners.is_empty() {
            let named = |key: &ListenerKey| Key::Listener(key.clone()).to_string();
            ordered.listeners = Some(self.listeners.changed(listeners, named)?);
        }
        for (listener, routes) in std::mem::take(&mut edit.attached) {
            let named = |key: &RouteKey| Key::Attached(listener.clone(), key.clone()).to_string();
            let routes = match self.attached.get(&listener) {
                Some(before) => before.changed(routes, named),
                None => Routes::default().changed(routes, named),
            };
            ordered.attached.insert(listener.clone(), routes?);
        }
        self.check_listeners(&ordered)?;
        Ok(ordered)
    }

    /// Every listener that has routes is there.
    fn check_listeners(&self, ordered: &Ordered) -> Result<(), WireError> {
        let listeners = ordered.listeners.as_ref().unwrap_or(&self.listeners);
        let untouched = self.attached.iter().filter(|(key, _)| !ordered.attached.contains_key(key));
        for (listener, routes) in untouched.chain(&ordered.attached) {
            if let Some((route, _)) = routes.iter().next()
                && listeners.get(listener).is_none()
            {
                let key = Key::Attached(listener.clone(), route.clone()).to_string();
                return Err(WireError::Precedence { key });
            }
        }
        Ok(())
    }
}

/// What has an order of precedence, where it changed.
#[derive(Default)]
struct Ordered {
    routes: Option<Routes>,
    listeners: Option<Chain<ListenerKey, Listener>>,
    attached: BTreeMap<ListenerKey, Routes>,
}

fn touched(edit: &Edit) -> Touched {
    let endpoints = edit.endpoints.iter().chain(&edit.datagrams).map(|(key, _)| key.service.clone());
    let services = edit.services.iter().map(|(key, _)| key.name.clone());
    let policies = edit.policies.iter().map(|(key, _)| key.name.clone());
    Touched {
        services: services.chain(policies).chain(endpoints).collect(),
        workloads: edit.workloads.iter().map(|(key, _)| key.name.clone()).collect(),
        routes: !edit.routes.is_empty(),
        listeners: !edit.listeners.is_empty() || !edit.attached.is_empty(),
        authorization: !edit.authorization.is_empty(),
        guards: !edit.guards.is_empty(),
    }
}

fn removable<K: Clone, V>(
    edits: &Edits<K, V>,
    has: impl Fn(&K) -> bool,
    key: fn(K) -> Key,
) -> Result<(), WireError> {
    let missing = edits.iter().find(|(key, value)| value.is_none() && !has(key));
    missing.map_or(Ok(()), |(missing, _)| Err(WireError::Missing { key: key(missing.clone()).to_string() }))
}

fn has(endpoints: &Endpoints, key: &EndpointKey) -> bool {
    endpoints.get(&key.service).is_some_and(|places| places.contains_key(&key.place))
}

fn set<K: Ord, V>(values: &mut BTreeMap<K, V>, edits: Edits<K, V>) {
    for (key, value) in edits {
        match value {
            Some(value) => values.insert(key, value),
            None => values.remove(&key),
        };
    }
}

fn set_endpoints(endpoints: &mut Endpoints, edits: Edits<EndpointKey, Endpoint>) {
    for (EndpointKey { service, place }, endpoint) in edits {
        match endpoint {
            Some(endpoint) => {
                endpoints.entry(service).or_default().insert(place, endpoint);
            }
            None => {
                if let Some(places) = endpoints.get_mut(&service) {
                    places.remove(&place);
                    if places.is_empty() {
                        endpoints.remove(&service);
                    }
                }
            }
        }
    }
}
