//! A model that takes changes.

mod after;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::WireError;
use super::chain::Chain;
use super::change::Change;
use super::edit::{Edit, Edits};
use super::index::{Claims, Footprint, PlannedGateway, RouteIndex, distinct, pod_at, pod_named};
use super::interned::Interned;
use super::key::{EndpointKey, Key, ListenerKey, NameKey, Place, RouteKey};
use super::touched::{Touched, Whole};
use crate::compile::gateways::{Plan, plan};
use crate::compile::source::Source;
use crate::model::{
    AuthorizationPolicy, EdgeGuard, Endpoint, Listener, Model, ObjectName, PeerAuthentication, RateLimit,
    RouteTable, Service, TrafficPolicy, Workload,
};

/// Endpoints by service.
pub(super) type Endpoints = BTreeMap<ObjectName, BTreeMap<Place, Endpoint>>;

/// Routes in their order of precedence.
type Routes = Chain<RouteKey, Arc<RouteTable>>;

/// A model that takes changes: values by key, as changes name them.
#[derive(Debug, Clone, Default)]
pub struct Parts {
    pub(super) services: BTreeMap<NameKey, Service>,
    pub(super) endpoints: Endpoints,
    pub(super) datagrams: Endpoints,
    pub(super) workloads: BTreeMap<NameKey, Arc<Workload>>,
    pub(super) policies: BTreeMap<NameKey, TrafficPolicy>,
    pub(super) authorization: BTreeMap<NameKey, AuthorizationPolicy>,
    pub(super) peers: BTreeMap<NameKey, PeerAuthentication>,
    pub(super) guards: BTreeMap<NameKey, EdgeGuard>,
    pub(super) limits: BTreeMap<NameKey, RateLimit>,
    routes: Routes,
    /// Without their routes.
    listeners: Chain<ListenerKey, Listener>,
    attached: BTreeMap<ListenerKey, Routes>,
    pub(super) index: Index,
    interned: Interned,
    /// Whether two services or two pods have one name.
    pub(super) doubled: bool,
    /// Endpoints of TCP and UDP ports, and those that are ready.
    held: (usize, usize),
}

/// What follows from the parts.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    pub(super) streams: Claims<SocketAddr>,
    pub(super) datagrams: Claims<SocketAddr>,
    pub(super) pods: Claims<IpAddr>,
    /// The services that depend on a pod.
    pub(super) behind: Claims<u64>,
    pub(super) routes: RouteIndex,
    pub(super) gateways: Vec<PlannedGateway>,
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

impl Counts {
    /// How much a model holds.
    pub fn of(model: &Model) -> Self {
        Self {
            services: model.services.len(),
            endpoints: model.endpoints.len() + model.datagram_endpoints.len(),
            ready: model.endpoints.ready() + model.datagram_endpoints.ready(),
            routes: model.mesh_routes.len()
                + model.listeners.iter().map(|listener| listener.routes.len()).sum::<usize>(),
        }
    }
}

impl Parts {
    /// Makes a change: all of it, or, with an error, nothing.
    pub fn apply(&mut self, change: &Change) -> Result<Touched, WireError> {
        let mut edit = Edit::of(change)?;
        self.check_removals(&edit)?;
        let ordered = self.ordered(&mut edit)?;
        // From here on nothing can fail.
        let mut touched = edited(&edit);
        let numbered = |key: &NameKey| key.nth > 0;
        let doubles = edit.services.iter().any(|(key, _)| numbered(key))
            || edit.workloads.iter().any(|(key, _)| numbered(key));
        self.set_ordered(ordered, &mut touched);
        let before: Vec<Footprint> = touched.services.iter().map(|name| self.footprint(name)).collect();
        let pods = self.set_pods(edit.workloads, &mut touched);
        set(&mut self.services, edit.services);
        self.held = self.held_after(&edit.endpoints, &edit.datagrams);
        set_endpoints(&mut self.endpoints, edit.endpoints, &mut self.interned);
        set_endpoints(&mut self.datagrams, edit.datagrams, &mut self.interned);
        set(&mut self.policies, edit.policies);
        set(&mut self.authorization, edit.authorization);
        set(&mut self.peers, edit.peers);
        set(&mut self.guards, edit.guards);
        set(&mut self.limits, edit.limits);
        self.reclaim(before, &mut touched);
        let pods = pods.iter().map(pod_named).chain(touched.pods.iter().map(|address| pod_at(*address)));
        let behind: Vec<ObjectName> = pods.flat_map(|pod| self.index.behind.of(pod)).cloned().collect();
        touched.services.extend(behind);
        if self.doubled {
            touched.wholes.insert(Whole::Everything);
        }
        if doubles {
            self.doubled = self.services.keys().any(numbered) || self.workloads.keys().any(numbered);
        }
        if self.doubled {
            touched.wholes.insert(Whole::Everything);
        }
        Ok(touched)
    }

    /// Says that everything is to be compiled.
    pub(in crate::compile) fn everything(&self) -> Touched {
        Touched {
            services: self.services.keys().map(|key| key.name.clone()).collect(),
            pods: self.index.pods.keys().collect(),
            wholes: [Whole::Listeners, Whole::Authorization, Whole::Guards, Whole::Limits].into(),
            ..Touched::default()
        }
    }

    fn set_ordered(&mut self, ordered: Ordered, touched: &mut Touched) {
        if let Some(routes) = ordered.routes {
            let index = RouteIndex::new(&routes);
            touched.routed.extend(index.changed(&self.index.routes).cloned());
            self.index.routes = index;
            self.routes = routes;
        }
        if ordered.listeners.is_none() && ordered.attached.is_empty() {
            return;
        }
        self.listeners = ordered.listeners.unwrap_or_else(|| std::mem::take(&mut self.listeners));
        for (listener, routes) in ordered.attached {
            if routes.is_empty() {
                self.attached.remove(&listener);
            } else {
                self.attached.insert(listener, routes);
            }
        }
        touched.wholes.insert(Whole::Listeners);
        self.index.gateways = self.planned();
    }

    fn planned(&self) -> Vec<PlannedGateway> {
        let of = |routes: &Routes| routes.iter().map(|(_, table)| Arc::clone(table)).collect();
        let with_routes = |(key, listener)| (listener, self.attached.get(key).map(of).unwrap_or_default());
        let listeners: Vec<(&Listener, Vec<Arc<RouteTable>>)> =
            self.listeners.iter().map(with_routes).collect();
        let planned = |plan: Plan<_>| PlannedGateway { towards: plan.towards(), plan };
        plan(&listeners).into_iter().map(planned).collect()
    }

    /// Sets pods; one that is as it was stays the same value. Gives the names of the others.
    fn set_pods(&mut self, edits: Edits<NameKey, Workload>, touched: &mut Touched) -> Vec<ObjectName> {
        let mut names = Vec::new();
        for (key, mut pod) in edits {
            if let Some(pod) = &mut pod {
                if self.workloads.get(&key).is_some_and(|before| **before == *pod) {
                    continue;
                }
                self.interned.workload(pod);
            }
            let (name, first) = (key.name.clone(), key.nth == 0);
            let after = pod.as_ref().map(|pod| distinct(pod.addresses.clone())).unwrap_or_default();
            let before = match pod {
                Some(pod) => self.workloads.insert(key, Arc::new(pod)),
                None => self.workloads.remove(&key),
            };
            let before = before.map(|pod| distinct(pod.addresses.clone())).unwrap_or_default();
            touched.pods.extend(before.iter().chain(&after));
            if first {
                self.index.pods.replace(&name, &before, &after);
            }
            names.push(name);
        }
        names
    }

    /// What a service claims and depends on as things are.
    fn footprint(&self, name: &ObjectName) -> Footprint {
        let Some(service) = self.service(name) else { return Footprint::default() };
        let endpoints = self.endpoints.get(name).into_iter().flat_map(BTreeMap::values);
        Footprint::new(service, endpoints, self)
    }

    /// Brings claims in line with the services that changed, of which `before` has what they claimed.
    fn reclaim(&mut self, before: Vec<Footprint>, touched: &mut Touched) {
        let Touched { services, streams, datagrams, .. } = touched;
        for (name, before) in services.iter().zip(before) {
            let after = self.footprint(name);
            self.index.streams.replace(name, &before.streams, &after.streams);
            self.index.datagrams.replace(name, &before.datagrams, &after.datagrams);
            self.index.behind.replace(name, &before.pods, &after.pods);
            streams.extend(before.streams.iter().chain(&after.streams));
            datagrams.extend(before.datagrams.iter().chain(&after.datagrams));
        }
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
            peers: self.peers.values().cloned().collect(),
            mesh_routes: tables(&self.routes).into(),
            listeners: self.listeners.iter().map(with_routes).collect(),
            guards: self.guards.values().cloned().collect(),
            limits: self.limits.values().cloned().collect(),
        }
    }

    /// How much it holds.
    pub fn counts(&self) -> Counts {
        let (endpoints, ready) = self.held;
        Counts {
            services: self.services.len(),
            endpoints,
            ready,
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
        removable(&edit.peers, |key| self.peers.contains_key(key), Key::Peer)?;
        removable(&edit.guards, |key| self.guards.contains_key(key), Key::Guard)?;
        removable(&edit.limits, |key| self.limits.contains_key(key), Key::Limit)
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

/// What a change is about by itself.
fn edited(edit: &Edit) -> Touched {
    let endpoints = edit.endpoints.iter().chain(&edit.datagrams).map(|(key, _)| key.service.clone());
    let services = edit.services.iter().map(|(key, _)| key.name.clone());
    let policies = edit.policies.iter().map(|(key, _)| key.name.clone());
    let judged = !edit.authorization.is_empty() || !edit.peers.is_empty();
    let authorization = judged.then_some(Whole::Authorization);
    let guards = (!edit.guards.is_empty()).then_some(Whole::Guards);
    let limits = (!edit.limits.is_empty()).then_some(Whole::Limits);
    Touched {
        services: services.chain(policies).chain(endpoints).collect(),
        wholes: authorization.into_iter().chain(guards).chain(limits).collect(),
        ..Touched::default()
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

fn set_endpoints(endpoints: &mut Endpoints, edits: Edits<EndpointKey, Endpoint>, interned: &mut Interned) {
    for (EndpointKey { service, place }, endpoint) in edits {
        match endpoint {
            Some(mut endpoint) => {
                let known = endpoints.get_key_value(&service).map(|(known, _)| known.clone());
                let service = known.unwrap_or(service);
                interned.endpoint(&mut endpoint, &service);
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
