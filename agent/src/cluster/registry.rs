//! What nodes say of themselves, and what follows for the table.
//!
//! A node's record is not signed: whoever can write to the store can write one. So it can take endpoints out of the table and
//! bring back what the documents have, and nothing more; and no token that it names is believed without bound.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::store::{Member, RECORD_MAX};
use crate::compile::{TableVersion, Token};
use crate::health::{PodHealth, take_out};
use crate::model::{Endpoint, Model};

/// Pods of one node that are told as failing; further ones are not.
pub const UNHEALTHY_MAX: usize = 4096;
/// Of these are told with their reason.
pub const REASONS_MAX: usize = 256;

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// It serves.
    Serving,
    /// Its agent ends. Its pods are as they were, and reached without it.
    Draining,
    /// A state of a later version.
    #[serde(other)]
    Unknown,
}

/// Why a pod gets no work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailingPod {
    /// The pod's uid.
    pub uid: Arc<str>,
    /// Its name, `namespace/name`.
    pub pod: String,
    /// Why.
    pub why: String,
    /// Since when, in milliseconds since 1970.
    pub since: u64,
}

/// A refusal, as a node tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The table that was refused, where it said which it was.
    pub epoch: u64,
    /// Likewise.
    pub nonce: u64,
    /// The stable name of the reason.
    pub reason: String,
    /// The whole reason.
    pub detail: String,
}

/// What a node says of itself. Fields that this version does not know are ignored; those that an earlier one does not write
/// have defaults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Drawn at random when its process began.
    pub nonce: u64,
    /// The version of the agent.
    pub version: String,
    /// The highest schema of tables that it reads.
    #[serde(default)]
    pub schema: u32,
    /// What it does.
    pub state: NodeState,
    /// For how long the leader's lease and a heartbeat hold, in milliseconds; 0: it does not say.
    #[serde(default)]
    pub ttl: u64,
    /// When its process began, in seconds since 1970.
    #[serde(default)]
    pub started: u64,
    /// The epoch of the table in force.
    #[serde(default)]
    pub epoch: u64,
    /// The nonce of the table in force.
    #[serde(default)]
    pub token_nonce: u64,
    /// The version of the table in force; 0: none is.
    #[serde(default)]
    pub table: u64,
    /// The highest epoch that it ever applied.
    #[serde(default)]
    pub highest_epoch: u64,
    /// The nonce of that.
    #[serde(default)]
    pub highest_nonce: u64,
    /// Milliseconds since 1970 at which the table in force was put there.
    #[serde(default)]
    pub applied_at: u64,
    /// Which store's documents it knows; empty: none.
    #[serde(default)]
    pub store: Arc<str>,
    /// The revision up to which it knows them.
    #[serde(default)]
    pub revision: u64,
    /// How many pods run on it.
    #[serde(default)]
    pub workloads: usize,
    /// Pods on it that fail their health checks, by uid.
    #[serde(default)]
    pub unhealthy: BTreeSet<Arc<str>>,
    /// Why some of them do, for those who ask.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failing: Vec<FailingPod>,
    /// The last table that it refused, as long as it has not applied a later one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refused>,
    /// What it thinks of the documents' seal.
    #[serde(default)]
    pub sealing: Sealing,
    /// What became of the documents, where it leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<DocumentsOutcome>,
}

/// What whoever leads has made of the documents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentsOutcome {
    /// The revision up to which it has looked at them.
    pub revision: u64,
    /// Why what they say is not published; `None`: it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_back: Option<String>,
}

/// What a node says of the seal of documents.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealing {
    /// It takes no documents that are not sealed.
    #[serde(default)]
    pub demanded: bool,
    /// The generation that it has; 0: none.
    #[serde(default)]
    pub generation: u64,
    /// Why it refuses what the store holds now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// The seal that it refused last, whatever the store holds now: who made it waits to hear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_seal: Option<RefusedSeal>,
}

/// A seal that a node refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedSeal {
    /// Its generation.
    pub generation: u64,
    /// Why.
    pub why: String,
}

impl NodeRecord {
    /// The table in force.
    pub fn in_force(&self) -> Option<TableVersion> {
        let token = Token { epoch: self.epoch, nonce: self.token_nonce };
        (self.table > 0).then_some(TableVersion { token, version: self.table })
    }

    /// Says of its pods what is known of them, as far as there is room.
    pub fn set_health(&mut self, health: &PodHealth) {
        self.workloads = health.pods;
        self.unhealthy = health.failing.keys().take(UNHEALTHY_MAX).cloned().collect();
        let told = health.failing.iter().take(REASONS_MAX).map(|(uid, failing)| FailingPod {
            uid: Arc::clone(uid),
            pod: failing.pod.to_string(),
            why: failing.why.clone(),
            since: super::milliseconds(failing.since),
        });
        self.failing = told.collect();
    }

    /// The highest token that it ever applied.
    pub fn highest(&self) -> Token {
        Token { epoch: self.highest_epoch, nonce: self.highest_nonce }
    }
}

/// A member whose record was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// Whether its heartbeat is in time.
    pub alive: bool,
    /// What it says; or why that can't be read.
    pub record: Result<NodeRecord, String>,
}

/// Reads the records of members.
pub fn read(members: Vec<Member>) -> Vec<Node> {
    members.into_iter().map(node).collect()
}

fn node(member: Member) -> Node {
    let record = match &member.record {
        None => Err("it has no record any more".to_owned()),
        Some(bytes) if bytes.len() > RECORD_MAX => Err(format!("its record has {} bytes", bytes.len())),
        Some(bytes) => serde_json::from_slice(bytes).map_err(|error| format!("its record: {error}")),
    };
    Node { name: member.node, alive: member.alive, record }
}

/// What is known of nodes as it concerns endpoints. Of nodes that never were members nothing is known, and nothing follows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Nodes that died.
    withdrawn: BTreeSet<Arc<str>>,
    /// Pods that fail their checks, by the node that says so.
    unhealthy: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
}

impl Health {
    /// What follows from these records.
    pub fn of(nodes: &[Node]) -> Self {
        let mut health = Self::default();
        for node in nodes {
            if !node.alive {
                health.withdrawn.insert(Arc::clone(&node.name));
            }
            if let Ok(record) = &node.record
                && !record.unhealthy.is_empty()
            {
                health.unhealthy.insert(Arc::clone(&node.name), record.unhealthy.clone());
            }
        }
        health
    }

    /// Whether nothing is taken out.
    pub fn is_quiet(&self) -> bool {
        self.withdrawn.is_empty() && self.unhealthy.is_empty()
    }

    /// Takes endpoints of dead nodes and failing pods out of the work. Where dead nodes would leave no endpoint that the documents
    /// call ready in the whole model, they take none along: then it is more likely that the nodes can't reach the store. A pod
    /// that fails goes in any case: its node has asked it.
    pub fn overlay(&self, model: &mut Model) {
        if self.is_quiet() {
            return;
        }
        let dead = |node: Option<&Arc<str>>| node.is_some_and(|node| self.withdrawn.contains(node));
        for endpoints in [&mut model.endpoints, &mut model.datagram_endpoints] {
            let stays = |endpoint: &Endpoint| endpoint.ready && !dead(endpoint.node.as_ref());
            if endpoints.iter().any(stays) {
                endpoints.take_out(|endpoint| dead(endpoint.node.as_ref()));
            }
        }
        if !self.unhealthy.is_empty() {
            // A node speaks of its own pods alone.
            take_out(model, |node, uid| {
                node.and_then(|node| self.unhealthy.get(node)).is_some_and(|pods| pods.contains(uid))
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Endpoint, ObjectName};

    fn record() -> NodeRecord {
        serde_json::from_str(r#"{"nonce": 1, "version": "0.1.0", "state": "serving"}"#).expect("is a record")
    }

    fn node(name: &str, alive: bool, change: impl FnOnce(&mut NodeRecord)) -> Node {
        let mut record = record();
        change(&mut record);
        Node { name: name.into(), alive, record: Ok(record) }
    }

    fn endpoint(node: Option<&str>, last: u8, ready: bool) -> Endpoint {
        Endpoint {
            service: ObjectName::new("default", "web"),
            service_port: 80,
            address: ([10, 0, 0, last], 8080).into(),
            ready,
            pod: None,
            uid: format!("uid-{last}").into(),
            node: node.map(Into::into),
            labels: Arc::default(),
        }
    }

    /// The last bytes of the addresses that are ready.
    fn ready(nodes: &[Node], endpoints: Vec<Endpoint>) -> Vec<u8> {
        let mut model = Model { endpoints: endpoints.into(), ..Model::default() };
        Health::of(nodes).overlay(&mut model);
        let last = |endpoint: &Endpoint| match endpoint.address.ip() {
            std::net::IpAddr::V4(ip) => ip.octets()[3],
            std::net::IpAddr::V6(_) => 0,
        };
        model.endpoints.iter().filter(|endpoint| endpoint.ready).map(last).collect()
    }

    #[test]
    fn endpoints_go_with_their_node() {
        let all =
            || vec![endpoint(Some("a"), 1, true), endpoint(Some("b"), 2, true), endpoint(None, 3, true)];
        let draining = |record: &mut NodeRecord| record.state = NodeState::Draining;
        let failing = |record: &mut NodeRecord| record.unhealthy = BTreeSet::from(["uid-1".into()]);
        let theirs = |record: &mut NodeRecord| record.unhealthy = BTreeSet::from(["uid-2".into()]);
        let cases: [(&str, Vec<Node>, &[u8]); 7] = [
            ("nobody is known", vec![], &[1, 2, 3]),
            ("all are well", vec![node("a", true, |_| ()), node("b", true, |_| ())], &[1, 2, 3]),
            ("one died", vec![node("a", false, |_| ()), node("b", true, |_| ())], &[2, 3]),
            ("one whose agent ends takes nothing along", vec![node("a", true, draining)], &[1, 2, 3]),
            ("one says that its pod fails", vec![node("a", true, failing)], &[2, 3]),
            ("one says so of another's pod", vec![node("a", true, theirs)], &[1, 2, 3]),
            ("one that is not concerned died", vec![node("c", false, |_| ())], &[1, 2, 3]),
        ];
        for (what, nodes, expected) in cases {
            assert_eq!(ready(&nodes, all()), expected, "{what}");
        }
    }

    #[test]
    fn the_last_endpoints_stay() {
        let nodes = [node("a", false, |_| ()), node("b", false, |_| ())];
        let endpoints =
            vec![endpoint(Some("a"), 1, true), endpoint(Some("b"), 2, true), endpoint(Some("b"), 3, false)];
        assert_eq!(ready(&nodes, endpoints), [1, 2]);
    }

    #[test]
    fn the_last_pods_go_where_their_node_says_so() {
        let failing = |record: &mut NodeRecord| record.unhealthy = BTreeSet::from(["uid-1".into()]);
        let nodes = [node("a", true, failing), node("b", false, |_| ())];
        let endpoints = || vec![endpoint(Some("a"), 1, true), endpoint(Some("b"), 2, false)];
        assert_eq!(ready(&nodes, endpoints()), [0_u8; 0]);
        // A slice that names the pod by another uid, or none.
        let name = ObjectName::new("default", "web-1");
        let pod = crate::model::Workload {
            name: name.clone(),
            uid: "uid-1".into(),
            workload: "web".into(),
            node: Some("a".into()),
            service_account: "default".into(),
            addresses: vec![[10, 0, 0, 1].into()],
            labels: Arc::default(),
            accelerated: true,
            ready: true,
            probes: Vec::new(),
        };
        let named = Endpoint { pod: Some(name), node: None, ..endpoint(None, 7, true) };
        let mut model =
            Model { endpoints: vec![named].into(), workloads: vec![pod].into(), ..Model::default() };
        Health::of(&nodes).overlay(&mut model);
        assert!(!model.endpoints[0].ready);
    }

    #[test]
    fn what_a_node_says_of_its_pods_is_bounded() {
        let failing = |number: usize| {
            let pod = ObjectName::new("default", &number.to_string());
            let since = std::time::UNIX_EPOCH + std::time::Duration::from_secs(3);
            (format!("{number:05}").into(), crate::health::Failing { pod, why: "HTTP 503".to_owned(), since })
        };
        let mut record = record();
        record.set_health(&PodHealth { pods: 9000, failing: (0..5000).map(failing).collect() });
        assert_eq!((record.workloads, record.unhealthy.len()), (9000, UNHEALTHY_MAX));
        assert_eq!((record.failing.len(), record.failing[0].since), (REASONS_MAX, 3000));
        let bytes = serde_json::to_vec(&record).expect("JSON");
        assert!(bytes.len() < 200_000, "{}", bytes.len());
        assert_eq!(serde_json::from_slice::<NodeRecord>(&bytes).expect("is read"), record);
    }

    #[test]
    fn records_of_other_versions_are_read() {
        let text =
            br#"{"nonce": 1, "version": "9", "state": "dreaming", "colour": "red", "table": 3, "epoch": 2}"#;
        let members = |record: Option<&[u8]>| {
            vec![Member { node: "a".into(), alive: true, record: record.map(<[u8]>::to_vec) }]
        };
        let nodes = read(members(Some(text)));
        let read_record = nodes[0].record.as_ref().expect("is read");
        assert_eq!(read_record.state, NodeState::Unknown);
        let version = TableVersion { token: Token { epoch: 2, nonce: 0 }, version: 3 };
        assert_eq!(read_record.in_force(), Some(version));
        assert!(read(members(Some(b"{}")))[0].record.is_err() && read(members(None))[0].record.is_err());
    }
}
