//! The cluster as this agent knows it, as `/cluster` serves it and `sluice leader` and `status` read it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What an agent knows of its cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterDump {
    /// `standalone`: there is nobody else. `leader` or `follower`.
    pub role: String,
    /// The cluster's name.
    pub cluster: String,
    /// This node.
    pub node: String,
    /// Who leads; `None`: nobody, or nobody knows.
    #[serde(default)]
    pub leader: Option<LeaderDump>,
    /// The members, this node among them.
    #[serde(default)]
    pub nodes: Vec<NodeDump>,
    /// The documents that the cluster is configured by.
    #[serde(default)]
    pub documents: DocumentsDump,
    /// The table that this agent has in force; `None`: none of the cluster's.
    #[serde(default)]
    pub in_force: Option<InForceDump>,
    /// Whether tables are signed.
    #[serde(default)]
    pub signed: bool,
    /// The last published table that this agent refused.
    #[serde(default)]
    pub refused: Option<RefusedDump>,
    /// Published tables that were refused, by the reason's stable name.
    #[serde(default)]
    pub refusals: BTreeMap<String, u64>,
    /// The seal over the documents that this agent has.
    #[serde(default)]
    pub seal: Option<SealDump>,
    /// Why the documents of the store are not taken over; those before are what counts.
    #[serde(default)]
    pub documents_refused: Option<RefusedDocumentsDump>,
    /// Documents about which the store contradicts itself, as somebody has written past all that writes documents; where this
    /// agent leads. It writes them anew.
    #[serde(default)]
    pub at_odds: Option<String>,
    /// Documents that were refused, by the reason's stable name.
    #[serde(default)]
    pub document_refusals: BTreeMap<String, u64>,
    /// Why what the documents say is not published, where this agent leads.
    #[serde(default)]
    pub unpublished: Option<String>,
    /// Why this agent cannot lead; `None`: it can.
    #[serde(default)]
    pub cannot_lead: Option<String>,
    /// Publications of this agent that were refused because it led no more.
    #[serde(default)]
    pub fenced: u64,
    /// Why this agent last stopped leading.
    #[serde(default)]
    pub yielded: Option<String>,
    /// The fault by which the tasks of the cluster ended last; they have begun anew since.
    #[serde(default)]
    pub fault: Option<String>,
    /// What is wrong with the store; `None`: nothing.
    #[serde(default)]
    pub store_error: Option<String>,
    /// What is wrong with the state directory; `None`: nothing.
    #[serde(default)]
    pub disk_error: Option<String>,
}

/// A table in force.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForceDump {
    /// The term in which it was published.
    pub epoch: u64,
    /// Its number in that term.
    pub version: u64,
    /// The revision of the documents that it was made of.
    pub revision: u64,
}

/// Who leads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderDump {
    /// The node.
    pub node: String,
    /// Its term.
    pub epoch: u64,
    /// Distinguishes terms of one epoch: sixteen hexadecimal digits.
    pub nonce: String,
    /// For how long its lease was still good when this agent looked, in milliseconds.
    pub expires_in_ms: u64,
}

/// A member.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDump {
    /// Its name.
    pub node: String,
    /// Whether its heartbeat is in time.
    pub alive: bool,
    /// `serving`, `draining`, or why nothing is known of it.
    pub state: String,
    /// The version of its agent.
    pub version: String,
    /// The table that it has in force, `EPOCH.VERSION`; empty: none.
    pub table: String,
    /// When that came into force, in RFC 3339.
    #[serde(default)]
    pub applied_at: Option<String>,
    /// Pods on it that fail their health checks, with the reason.
    #[serde(default)]
    pub unhealthy: Vec<String>,
    /// The table that it refuses, with the reason.
    #[serde(default)]
    pub refused: Option<String>,
    /// Why it refuses the documents of the store.
    #[serde(default)]
    pub documents_refused: Option<String>,
}

/// The seal over documents.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealDump {
    /// Rises with each set of documents.
    pub generation: u64,
    /// Who sealed.
    pub operator: String,
    /// When, as the seal says, in RFC 3339.
    pub sealed_at: String,
}

/// Documents that were refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedDocumentsDump {
    /// The stable name of the reason.
    pub reason: String,
    /// The whole reason.
    pub detail: String,
}

/// The documents.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentsDump {
    /// How many this agent has.
    pub count: usize,
    /// The revision that it knows.
    pub revision: u64,
}

/// A table that was refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedDump {
    /// Which it was, `EPOCH.VERSION`; empty where it does not say.
    pub table: String,
    /// The reason's stable name.
    pub reason: String,
    /// The whole reason.
    pub detail: String,
}
