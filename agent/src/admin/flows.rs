//! What was told of connections, as `/flows` serves it and `sluice observe` reads it.

use serde::{Deserialize, Serialize};

/// What an IP protocol's number is called here.
pub fn protocol_name(number: u8) -> String {
    match number {
        1 | 58 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        other => other.to_string(),
    }
}

/// [`FlowDump::reason`] of what a limit refuses.
pub const RATE_LIMITED: &str = "rate_limited";

/// The last flows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowsDump {
    /// Who tells: when the agent began to, in RFC 3339. Another agent's numbers have nothing to do with these.
    #[serde(default)]
    pub agent: String,
    /// What to ask for to see only later ones.
    pub next: u64,
    /// Events that the kernel programs could not tell, since they were loaded.
    pub lost: u64,
    /// The flows, oldest first.
    pub flows: Vec<FlowDump>,
}

/// One event.
///
/// What is not known is left out.
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
    /// `verdict`: a pod's first packet; `drop`; `connect`: a socket is led to an endpoint; `open`; `close`.
    #[serde(default)]
    pub kind: String,
    /// Whose the connection is by a verdict, else who tells: `guard`, `kernel`, `agent`, `agent L4`, `agent L7`.
    #[serde(default)]
    pub tier: String,
    /// What becomes of it: `agent`, `direct`, `balanced`, `accelerated`, `plain`; `dropped`, `refused`.
    pub verdict: String,
    /// The reason, as metrics and access logs name it.
    pub reason: String,
    /// `tcp`, `udp`, `icmp`, or the IP protocol's number.
    #[serde(default)]
    pub protocol: String,
    /// The AuthorizationPolicy that refuses, `namespace/name`; `-` where a pod is closed for lack of room. Or the EdgeGuard. Of
    /// what a limit refuses (`rate_limited`), the RateLimit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Its rule, or its limit, as metrics name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The endpoint that it leads to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The endpoint's pod, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint_pod: Option<String>,
    /// Bytes from the dialling end to the other one, where somebody has counted them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_bytes: Option<u64>,
    /// Bytes back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received_bytes: Option<u64>,
    /// TCP's smoothed round-trip time in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u64>,
    /// How long the connection lasted, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lasted_us: Option<u64>,
    /// Whether the dialled end tells.
    #[serde(default)]
    pub by_server: bool,
    /// The process that dialled, where its socket has no address yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<u32>,
    /// The index of the interface by which a packet came or went; 0 where there was none.
    pub interface: u32,
}
