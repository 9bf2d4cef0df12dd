//! Services, the endpoints behind them, and the pods behind those.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::super::field::Field;
use super::super::kinds::{EndpointSlice, Pod, Service, SliceEndpoint, Spec, TargetPort};
use super::super::report::{Code, Severity};
use super::{LinkNotes, World};
use crate::model::{self, Endpoint, Labels, ObjectName, ServicePort, Workload};

/// Pods by name.
pub(super) type Workloads<'a> = BTreeMap<&'a ObjectName, (Workload, &'a Pod)>;

/// The services that have addresses or endpoints here.
pub(super) fn services(world: &World<'_>) -> Vec<model::Service> {
    let services = world.services.iter().map(|(name, service)| model::Service {
        name: (*name).clone(),
        cluster_ips: service.cluster_ips.clone(),
        headless: service.headless,
        ports: service.ports.iter().map(|(port, _)| port.clone()).collect(),
        datagram_ports: service.datagram_ports.iter().map(|(port, _)| port.clone()).collect(),
        affinity: service.affinity,
    });
    services.collect()
}

/// The pods that run. Those on their node's own network have no address of their own.
pub(super) fn workloads<'a>(world: &World<'a>) -> Workloads<'a> {
    let mut workloads = Workloads::new();
    for object in world.objects {
        if let Spec::Pod(pod) = &object.spec
            && !pod.ended
        {
            let mut workload = pod.workload.clone();
            if pod.host_network {
                workload.addresses.clear();
            }
            workloads.insert(object.name(), (workload, pod));
        }
    }
    workloads
}

/// Endpoints of TCP ports, and of UDP ports.
#[derive(Debug, Default)]
pub(super) struct Endpoints {
    pub streams: Vec<Endpoint>,
    pub datagrams: Vec<Endpoint>,
}

/// Ports by name.
type NamedPorts = [(Arc<str>, u16)];

/// The ports of one protocol, in each of the kinds.
struct Protocol {
    service: fn(&Service) -> &[(ServicePort, TargetPort)],
    slice: fn(&EndpointSlice) -> &NamedPorts,
    pod: fn(&Pod) -> &NamedPorts,
}

const STREAMS: Protocol =
    Protocol { service: |service| &service.ports, slice: |slice| &slice.ports, pod: |pod| &pod.ports };

const DATAGRAMS: Protocol = Protocol {
    service: |service| &service.datagram_ports,
    slice: |slice| &slice.datagram_ports,
    pod: |pod| &pod.datagram_ports,
};

/// All endpoints, sorted: from EndpointSlices where a service has any, else from the pods that it selects.
pub(super) fn endpoints(
    world: &World<'_>,
    workloads: &Workloads<'_>,
    notes: &mut LinkNotes<'_>,
) -> Endpoints {
    let mut slices: HashMap<&ObjectName, Vec<(usize, &EndpointSlice)>> = HashMap::new();
    for (position, object) in world.objects.iter().enumerate() {
        if let Spec::EndpointSlice(slice) = &object.spec
            && let Some(service) = &slice.service
        {
            slices.entry(service).or_default().push((position, slice));
            if !world.services.contains_key(service) {
                let level = (Severity::Warning, Code::ReferencedResourceNotFound);
                notes.say(position, level, &Field::root(), format!("there is no Service {service}"));
            }
        }
    }
    let pods = Pods::new(workloads);
    let mut endpoints = Endpoints::default();
    for (name, service) in &world.services {
        let slices = slices.get(name);
        if let Some(slices) = slices {
            check_ports(service, slices, notes);
        }
        let of = |protocol| match slices {
            Some(slices) => from_slices((name, service), protocol, slices, &pods),
            None if service.selector.is_empty() => Vec::new(),
            None => from_pods((name, service), protocol, &pods),
        };
        endpoints.streams.extend(of(&STREAMS));
        endpoints.datagrams.extend(of(&DATAGRAMS));
    }
    put_in_order(&mut endpoints.streams);
    put_in_order(&mut endpoints.datagrams);
    endpoints
}

/// The endpoints of one service that has EndpointSlices, sorted.
pub(super) fn of_service(
    service: (&ObjectName, &Service),
    slices: &[(usize, &EndpointSlice)],
    workloads: &Workloads<'_>,
) -> Endpoints {
    let pods = Pods::new(workloads);
    let of = |protocol| from_slices(service, protocol, slices, &pods);
    let mut endpoints = Endpoints { streams: of(&STREAMS), datagrams: of(&DATAGRAMS) };
    put_in_order(&mut endpoints.streams);
    put_in_order(&mut endpoints.datagrams);
    endpoints
}

fn put_in_order(endpoints: &mut Vec<Endpoint>) {
    // One address may be in two slices while it moves; the one that is ready counts.
    endpoints.sort_by(|a, b| {
        let key = |one: &Endpoint| (one.service_port, one.address, !one.ready);
        a.service.cmp(&b.service).then_with(|| key(a).cmp(&key(b))).then_with(|| a.cmp(b))
    });
    endpoints
        .dedup_by(|a, b| (&a.service, a.service_port, a.address) == (&b.service, b.service_port, b.address));
}

/// Pods by what refers to them.
struct Pods<'w> {
    named: &'w Workloads<'w>,
    at: HashMap<IpAddr, &'w Workload>,
    namedspace: HashMap<&'w str, Vec<(&'w Workload, &'w Pod)>>,
}

impl<'w> Pods<'w> {
    fn new(workloads: &'w Workloads<'w>) -> Self {
        let mut pods = Self { named: workloads, at: HashMap::new(), namedspace: HashMap::new() };
        for (name, (workload, pod)) in workloads {
            pods.at.extend(workload.addresses.iter().map(|address| (*address, workload)));
            pods.namedspace.entry(&name.namespace).or_default().push((workload, pod));
        }
        pods
    }

    fn of(&self, endpoint: &SliceEndpoint) -> Option<&'w Workload> {
        match &endpoint.pod {
            Some(pod) => self.named.get(pod).map(|(workload, _)| workload),
            None => self.at.get(&endpoint.address).copied(),
        }
    }
}

fn from_slices(
    (name, service): (&ObjectName, &Service),
    protocol: &Protocol,
    slices: &[(usize, &EndpointSlice)],
    pods: &Pods<'_>,
) -> Vec<Endpoint> {
    let ports = (protocol.service)(service).iter();
    ports.flat_map(|(port, _)| of_port(name, port, protocol, slices, pods)).collect()
}

fn of_port(
    service: &ObjectName,
    port: &ServicePort,
    protocol: &Protocol,
    slices: &[(usize, &EndpointSlice)],
    pods: &Pods<'_>,
) -> Vec<Endpoint> {
    let mut found: Vec<(&SliceEndpoint, u16)> = Vec::new();
    for (_, slice) in slices {
        let numbers = (protocol.slice)(slice).iter().filter(|(name, _)| *name == port.name);
        for (_, number) in numbers {
            found.extend(slice.endpoints.iter().map(|endpoint| (endpoint, *number)));
        }
    }
    // With no endpoint left that is ready, one that shuts down but still answers is better than none (KEP-1669).
    let none_ready = !found.iter().any(|(endpoint, _)| endpoint.ready);
    let endpoints = found.into_iter().map(|(endpoint, number)| {
        let address = SocketAddr::new(endpoint.address, number);
        let workload = pods.of(endpoint);
        let uid = endpoint.uid.clone().or_else(|| workload.map(|workload| Arc::clone(&workload.uid)));
        Endpoint {
            service: service.clone(),
            service_port: port.port,
            address,
            ready: endpoint.ready || (none_ready && endpoint.serving_last),
            pod: endpoint.pod.clone().or_else(|| workload.map(|workload| workload.name.clone())),
            uid: uid.unwrap_or_else(|| address.to_string().into()),
            node: endpoint.node.clone().or_else(|| workload.and_then(|workload| workload.node.clone())),
            labels: workload.map(|workload| Arc::clone(&workload.labels)).unwrap_or_default(),
        }
    });
    endpoints.collect()
}

/// Says which ports of slices no port of their service has the name of.
fn check_ports(service: &Service, slices: &[(usize, &EndpointSlice)], notes: &mut LinkNotes<'_>) {
    for (position, slice) in slices {
        for (name, number) in &slice.ports {
            if !service.ports.iter().any(|(port, _)| port.name == *name) {
                let text =
                    format!("the Service has no port called `{name}`, so that {number} gets no traffic");
                let field = Field::root().key("ports");
                notes.say(*position, (Severity::Warning, Code::ReferencedResourceNotFound), &field, text);
            }
        }
    }
}

fn from_pods(
    (name, service): (&ObjectName, &Service),
    protocol: &Protocol,
    pods: &Pods<'_>,
) -> Vec<Endpoint> {
    let mut endpoints = Vec::new();
    let candidates = pods.namedspace.get(&*name.namespace).into_iter().flatten();
    for (workload, pod) in candidates.filter(|(workload, _)| selects(&service.selector, &workload.labels)) {
        // The pod's own record has the address even where it is its node's.
        let addresses = pod.workload.addresses.iter().filter(|address| is_family_of(service, **address));
        for address in addresses {
            for (port, target) in (protocol.service)(service) {
                let Some(number) = container_port(target, (protocol.pod)(pod)) else { continue };
                endpoints.push(Endpoint {
                    service: name.clone(),
                    service_port: port.port,
                    address: SocketAddr::new(*address, number),
                    ready: service.publish_not_ready || (workload.ready && !pod.deleted),
                    pod: Some(workload.name.clone()),
                    uid: Arc::clone(&workload.uid),
                    node: workload.node.clone(),
                    labels: Arc::clone(&workload.labels),
                });
            }
        }
    }
    endpoints
}

/// Whether a service serves addresses of this family: those of its own addresses, or both where it has none.
fn is_family_of(service: &Service, address: IpAddr) -> bool {
    service.cluster_ips.is_empty() || service.cluster_ips.iter().any(|ip| ip.is_ipv4() == address.is_ipv4())
}

fn container_port(target: &TargetPort, named: &[(Arc<str>, u16)]) -> Option<u16> {
    match target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => named.iter().find(|(known, _)| known == name).map(|(_, number)| *number),
    }
}

/// Whether labels hold everything that a selector asks for.
pub(super) fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}
