//! What a lab consists of, as a plain value: nodes, pods, the programs in them, services.
//!
//! Owns the description and its checks; makes nothing.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// The name of the underlay's namespace, which no node or pod may take.
pub const UNDERLAY: &str = "underlay";
/// Addresses are one byte per node and per pod on it.
const COUNT_MAX: usize = 200;

/// The whole lab.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// Node names, in the order of their addresses.
    pub nodes: Vec<String>,
    /// The pods of all nodes; those of one node take its addresses in this order.
    pub pods: Vec<Pod>,
    /// The services, in the order of their ClusterIPs.
    pub services: Vec<Service>,
}

/// One pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Its name, unique in the lab.
    pub name: String,
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// The node it runs on.
    pub node: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What runs in it.
    pub programs: Vec<Program>,
    /// Whether services give it new work.
    pub ready: bool,
}

/// A program that a pod runs from the start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Program {
    /// nginx answering every path with one line that names the version, the pod, the peer and the path.
    Http {
        /// The port, on IPv4 and IPv6.
        port: u16,
    },
    /// A Redis server.
    Redis {
        /// The port, on IPv4 and IPv6.
        port: u16,
    },
    /// A NATS server, whose protocol lets the server speak first.
    Nats {
        /// The port, on IPv4 and IPv6.
        port: u16,
    },
    /// Any other server.
    Server {
        /// Its command line.
        argv: Vec<String>,
        /// The port that tells when it is ready, on IPv4.
        port: u16,
    },
}

impl Program {
    /// The port that the program listens on.
    pub fn port(&self) -> u16 {
        match self {
            Self::Http { port } | Self::Redis { port } | Self::Nats { port } | Self::Server { port, .. } => {
                *port
            }
        }
    }

    /// A short name, unique among the programs of one pod.
    pub fn name(&self) -> String {
        let kind = match self {
            Self::Http { .. } => "nginx",
            Self::Redis { .. } => "redis",
            Self::Nats { .. } => "nats",
            Self::Server { .. } => "server",
        };
        format!("{kind}-{}", self.port())
    }
}

/// A service with a ClusterIP of either family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its name, unique in the lab.
    pub name: String,
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// Labels of the pods behind it.
    pub selector: BTreeMap<String, String>,
    /// Its TCP ports.
    pub ports: Vec<ServicePort>,
}

/// A TCP port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// Its name, unique in the service.
    pub name: String,
    /// The port that clients dial.
    pub port: u16,
    /// The port of the pods.
    pub target_port: u16,
    /// What is declared to be spoken on it (`appProtocol`), if anything.
    pub app_protocol: Option<String>,
}

impl Topology {
    /// A topology of `count` nodes named `node1`, `node2`, ...
    pub fn with_nodes(count: usize) -> Self {
        Self { nodes: (1..=count).map(|n| format!("node{n}")).collect(), ..Self::default() }
    }

    /// Adds a pod.
    #[must_use]
    pub fn pod(mut self, pod: Pod) -> Self {
        self.pods.push(pod);
        self
    }

    /// Adds a service.
    #[must_use]
    pub fn service(mut self, service: Service) -> Self {
        self.services.push(service);
        self
    }

    /// The ready pods behind a service.
    pub fn endpoints<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = &'a Pod> {
        self.pods.iter().filter(|pod| pod.ready && service.selects(pod))
    }

    /// Checks names and references; everything that makes kernel objects relies on it.
    pub fn check(&self) -> Result<()> {
        ensure!(!self.nodes.is_empty(), "a lab needs a node");
        ensure!(self.nodes.len() <= COUNT_MAX, "{} nodes, at most {COUNT_MAX}", self.nodes.len());
        ensure!(self.services.len() <= COUNT_MAX, "{} services, at most {COUNT_MAX}", self.services.len());
        let mut names = BTreeSet::from([UNDERLAY]);
        for name in self.nodes.iter().chain(self.pods.iter().map(|pod| &pod.name)) {
            check_name(name)?;
            ensure!(names.insert(name), "two nodes or pods are named {name}, or the name is reserved");
        }
        for pod in &self.pods {
            self.check_pod(pod)?;
        }
        let mut services = BTreeSet::new();
        for service in &self.services {
            check_name(&service.name)?;
            check_name(&service.namespace)?;
            ensure!(services.insert(&service.name), "two services are named {}", service.name);
            ensure!(!service.ports.is_empty(), "service {} has no port", service.name);
        }
        Ok(())
    }

    fn check_pod(&self, pod: &Pod) -> Result<()> {
        check_name(&pod.namespace)?;
        ensure!(self.nodes.contains(&pod.node), "pod {} is on {}, which is no node", pod.name, pod.node);
        let neighbours = self.pods.iter().filter(|other| other.node == pod.node).count();
        ensure!(neighbours <= COUNT_MAX, "{neighbours} pods on {}, at most {COUNT_MAX}", pod.node);
        let mut ports = BTreeSet::new();
        for program in &pod.programs {
            ensure!(ports.insert(program.port()), "two programs of pod {} want one port", pod.name);
            if let Program::Server { argv, .. } = program {
                ensure!(!argv.is_empty(), "a server of pod {} has no command line", pod.name);
            }
        }
        Ok(())
    }
}

impl Pod {
    /// A ready pod in the namespace `default` with no labels and no program.
    pub fn new(name: &str, node: &str) -> Self {
        Self {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            node: node.to_owned(),
            labels: BTreeMap::new(),
            programs: Vec::new(),
            ready: true,
        }
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Adds a program.
    #[must_use]
    pub fn runs(mut self, program: Program) -> Self {
        self.programs.push(program);
        self
    }

    /// What the pod's `version` label says; empty without one.
    pub fn version(&self) -> &str {
        self.labels.get("version").map_or("", String::as_str)
    }
}

impl Service {
    /// A service in the namespace `default` of the pods with the label `app: NAME`.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            selector: BTreeMap::from([("app".to_owned(), name.to_owned())]),
            ports: Vec::new(),
        }
    }

    /// Adds a port whose protocol is declared.
    #[must_use]
    pub fn port(mut self, app_protocol: &str, port: u16, target_port: u16) -> Self {
        let name = format!("{app_protocol}-{port}");
        let app_protocol = Some(app_protocol.to_owned());
        self.ports.push(ServicePort { name, port, target_port, app_protocol });
        self
    }

    /// Adds a port of which nothing is said but its number.
    #[must_use]
    pub fn undeclared_port(mut self, port: u16, target_port: u16) -> Self {
        self.ports.push(ServicePort { name: format!("p{port}"), port, target_port, app_protocol: None });
        self
    }

    /// Whether the service's selector picks the pod.
    pub fn selects(&self, pod: &Pod) -> bool {
        pod.namespace == self.namespace
            && self.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
    }
}

/// Checks an id of a lab: lower-case letters, digits and `_`. The dash is left out because it separates the id
/// from the rest of a namespace's name, so that no id is the prefix of another's names.
pub fn check_id(id: &str) -> Result<()> {
    let well_formed = id.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if id.is_empty() || id.len() > 60 || !well_formed {
        bail!("'{id}' is no lab id: 1 to 60 lower-case letters, digits or '_'");
    }
    Ok(())
}

/// Checks a Kubernetes name (RFC 1123 label).
fn check_name(name: &str) -> Result<()> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let edges = [name.chars().next(), name.chars().last()];
    if name.is_empty() || name.len() > 63 || !name.chars().all(inner) || edges.contains(&Some('-')) {
        bail!("'{name}' is no Kubernetes name: 1 to 63 lower-case letters, digits or '-', not at the ends");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Topology {
        Topology::with_nodes(2)
            .pod(Pod::new("a", "node1").label("app", "web").runs(Program::Http { port: 80 }))
            .pod(Pod::new("b", "node2").label("app", "web"))
            .pod(Pod::new("c", "node2").label("app", "other"))
            .service(Service::new("web").port("http", 80, 8080))
    }

    #[test]
    fn selects_by_label_namespace_and_readiness() {
        let mut topology = good();
        let names = |t: &Topology| -> Vec<String> {
            t.endpoints(&t.services[0]).map(|pod| pod.name.clone()).collect()
        };
        assert_eq!(names(&topology), ["a", "b"]);
        topology.pods[0].ready = false;
        topology.pods[1].namespace = "elsewhere".to_owned();
        assert_eq!(names(&topology), Vec::<String>::new());
    }

    #[test]
    fn checks_name_the_fault() {
        type Spoil = fn(&mut Topology);
        let cases: &[(&str, Spoil)] = &[
            ("needs a node", |t| t.nodes.clear()),
            ("two nodes or pods are named a", |t| t.pods[1].name = "a".into()),
            ("two nodes or pods are named node1", |t| t.pods[1].name = "node1".into()),
            ("reserved", |t| t.pods[1].name = UNDERLAY.into()),
            ("no node", |t| t.pods[1].node = "node9".into()),
            ("no Kubernetes name", |t| t.pods[1].name = "../etc".into()),
            ("no Kubernetes name", |t| t.pods[1].name = "-a".into()),
            ("no Kubernetes name", |t| t.pods[1].namespace = "A".into()),
            ("want one port", |t| t.pods[0].programs.push(Program::Redis { port: 80 })),
            ("no command line", |t| t.pods[1].programs.push(Program::Server { argv: vec![], port: 1 })),
            ("has no port", |t| t.services[0].ports.clear()),
            ("two services are named web", |t| t.services.push(t.services[0].clone())),
        ];
        good().check().expect("the base case is good");
        for (fault, spoil) in cases {
            let mut topology = good();
            spoil(&mut topology);
            let error = topology.check().expect_err(fault).to_string();
            assert!(error.contains(fault), "{error:?} does not say {fault:?}");
        }
    }

    #[test]
    fn ids_cannot_hide_in_one_another() {
        for good in ["a", "demo", "canary_1234"] {
            check_id(good).expect(good);
        }
        for bad in ["", "a-b", "A", "a/b", "a b", "..", &"x".repeat(61)] {
            check_id(bad).expect_err(bad);
        }
    }
}
