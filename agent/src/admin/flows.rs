//! Connections that the kernel programs have judged, as `/flows` serves them and `sluice observe` reads them.

use serde::{Deserialize, Serialize};

/// The last flows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowsDump {
    /// What to ask for to see only later ones.
    pub next: u64,
    /// Events that the programs could not tell, since they were loaded.
    pub lost: u64,
    /// The flows, oldest first.
    pub flows: Vec<FlowDump>,
}

/// One connection that was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowDump {
    /// Its number; they rise by one.
    pub number: u64,
    /// When the agent heard of it, in RFC 3339.
    pub time: String,
    /// Who dialled.
    pub source: String,
    /// The pod that dialled, `namespace/name`, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_pod: Option<String>,
    /// What was dialled.
    pub destination: String,
    /// The service or pod that was dialled, `namespace/name`, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_name: Option<String>,
    /// `agent` or `direct`.
    pub verdict: String,
    /// The kernel's reason, as metrics name it.
    pub reason: String,
    /// The index of the interface by which it came.
    pub interface: u32,
}
