//! A large cluster that is made up: the same every time.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use agent::model::{
    AppProtocol, Destination, Endpoint, HeaderChange, HeaderOp, HostPattern, HttpRule, Labels, Listener,
    ListenerProtocol, MatchPath, Model, ObjectName, PathRewrite, RequestMatch, RouteAction, RouteKind,
    RouteTable, Service, ServicePort, WeightedDestination, Workload,
};

/// Every tenth route is one of a Gateway, the others are of the mesh.
const GATEWAY_EVERY: u32 = 10;

/// The first ClusterIP.
pub const CLUSTER_IPS: u32 = 0x0a70_0001;
/// The first address of a pod.
const PODS: u32 = 0x0a80_0000;

/// How large it is.
#[derive(Debug, Clone, Copy)]
pub struct World {
    /// Services; each has a route.
    pub services: u32,
    /// Endpoints of each service, each a pod.
    pub endpoints: u32,
}

impl World {
    /// All of it.
    pub fn model(self) -> Model {
        let mut model = Model { services: (0..self.services).map(service).collect(), ..Model::default() };
        let mut endpoints = Vec::new();
        for index in 0..self.services {
            let labels = Arc::new(labels(index));
            for nth in 0..self.endpoints {
                let pod = self.pod(index, nth, &labels);
                endpoints.push(endpoint(index, &pod));
                model.workloads.push(pod);
            }
        }
        let (on_gateway, mesh): (Vec<u32>, Vec<u32>) =
            (0..self.services).partition(|index| index % GATEWAY_EVERY == 0);
        model.mesh_routes =
            mesh.into_iter().map(|index| route(index, vec![(name(index), None)], vec![])).collect();
        let host = |index: u32| vec![HostPattern::Exact(format!("shop-{index}.example.com").into())];
        model.listeners = vec![Listener {
            gateway: ObjectName::new("edge", "gateway"),
            name: "http".into(),
            addresses: Vec::new(),
            port: 80,
            protocol: ListenerProtocol::Http,
            hostname: HostPattern::Any,
            routes: on_gateway.into_iter().map(|index| route(index, vec![], host(index))).collect(),
            tls: None,
        }]
        .into();
        model.services.sort_by(|a, b| a.name.cmp(&b.name));
        endpoints.sort();
        model.endpoints = endpoints.into();
        model.workloads.sort_by(|a, b| a.name.cmp(&b.name));
        model
    }

    /// Makes an endpoint ready that is not, or the other way round.
    pub fn flip(self, model: &mut Model, service: u32, nth: u32) {
        let (service, address) = (name(service), SocketAddr::new(self.address(service, nth), 8080));
        let mut endpoints = model.endpoints.of(&service).to_vec();
        for endpoint in endpoints.iter_mut().filter(|endpoint| endpoint.address == address) {
            endpoint.ready ^= true;
        }
        model.endpoints.replace(&service, endpoints);
    }

    /// The address of a service.
    pub fn cluster_ip(service: u32) -> IpAddr {
        Ipv4Addr::from_bits(CLUSTER_IPS + service).into()
    }

    /// The address of an endpoint.
    pub fn address(self, service: u32, nth: u32) -> IpAddr {
        Ipv4Addr::from_bits(PODS + service * self.endpoints + nth).into()
    }

    fn pod(self, service: u32, nth: u32, labels: &Arc<Labels>) -> Workload {
        let name = pod_name(service, nth);
        Workload {
            uid: format!("00000000-0000-4000-8000-{service:06}{nth:06}").into(),
            workload: format!("shop-{service}").into(),
            node: Some(format!("node-{}", (service + nth * 7) % 100).into()),
            service_account: format!("shop-{service}").into(),
            addresses: vec![self.address(service, nth)],
            labels: Arc::clone(labels),
            accelerated: true,
            ready: true,
            probes: Vec::new(),
            name,
        }
    }
}

/// Makes a pod ready that is not, or the other way round.
pub fn flip_pod(model: &mut Model, service: u32, nth: u32) {
    let name = pod_name(service, nth);
    if let Ok(index) = model.workloads.binary_search_by(|one| one.name.cmp(&name)) {
        model.workloads[index].ready ^= true;
    }
}

fn name(service: u32) -> ObjectName {
    ObjectName::new(&format!("team-{}", service % 100), &format!("shop-{service}"))
}

fn pod_name(service: u32, nth: u32) -> ObjectName {
    let ObjectName { namespace, name } = name(service);
    ObjectName { namespace, name: format!("{name}-5d8f7c9b4-{nth:05}").into() }
}

fn labels(service: u32) -> Labels {
    let pairs = [
        ("app.kubernetes.io/name", format!("shop-{service}")),
        ("app.kubernetes.io/version", "1.2.3".to_owned()),
        ("pod-template-hash", "5d8f7c9b4".to_owned()),
    ];
    pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect()
}

fn service(index: u32) -> Service {
    Service {
        name: name(index),
        cluster_ips: vec![Ipv4Addr::from_bits(CLUSTER_IPS + index).into()],
        headless: false,
        ports: vec![ServicePort { name: "http".into(), port: 80, protocol: AppProtocol::Http, tls: None }],
        datagram_ports: Vec::new(),
        affinity: None,
    }
}

fn endpoint(service: u32, pod: &Workload) -> Endpoint {
    Endpoint {
        service: name(service),
        service_port: 80,
        address: SocketAddr::new(pod.addresses[0], 8080),
        ready: true,
        pod: Some(pod.name.clone()),
        uid: Arc::clone(&pod.uid),
        node: pod.node.clone(),
        labels: Arc::clone(&pod.labels),
    }
}

fn route(index: u32, services: Vec<(ObjectName, Option<u16>)>, hosts: Vec<HostPattern>) -> RouteTable {
    let rule = |name: &str, path: &str| HttpRule {
        name: name.into(),
        matches: vec![RequestMatch {
            path: Some(MatchPath::PathPrefix(path.into())),
            ..RequestMatch::default()
        }],
        action: RouteAction::Forward {
            destinations: vec![WeightedDestination {
                destination: Destination::Service {
                    service: self::name(index),
                    port: Some(80),
                    subset: None,
                },
                weight: 1,
                request_headers: Vec::new(),
                response_headers: Vec::new(),
            }],
            rewrite: PathRewrite::default(),
        },
        timeout: None,
        try_timeout: None,
        request_headers: vec![HeaderOp { name: "x-shop".into(), change: HeaderChange::Set("yes".into()) }],
        response_headers: Vec::new(),
    };
    RouteTable {
        source: name(index),
        kind: RouteKind::HttpRoute,
        services,
        hosts,
        rules: vec![rule("cart", "/cart"), rule("rest", "/")],
    }
}
