//! The connections that are open, as `/connections` serves them and `sluice connections` reads them.

use serde::{Deserialize, Serialize};

/// All of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionsDump {
    /// The connections, the oldest first; those of which nobody knows the age come last.
    pub connections: Vec<ConnectionDump>,
}

/// One connection. What is not known is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionDump {
    /// Who dialled.
    pub source: String,
    /// The pod that dialled, `namespace/name`, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_pod: Option<String>,
    /// What was dialled.
    pub destination: String,
    /// The service or pod that was dialled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_name: Option<String>,
    /// Where its bytes go, where all of them go to one place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// That endpoint's pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint_pod: Option<String>,
    /// Who serves it: `kernel`, `agent` (not known what it is yet), `agent L4`, `agent L7`.
    pub tier: String,
    /// How it goes: `agent`, `balanced` (led to an endpoint at `connect()`), `direct`.
    pub verdict: String,
    /// Why there: `gateway`; the reason of its port's tier, as `status` counts them; `balanced` or `affinity`; `joined`.
    pub reason: String,
    /// `http/1`, `http/2`, `opaque`, `tunnel`, `undecided`; `tcp` and `udp` where nobody looks.
    pub protocol: String,
    /// Whether its bytes go from socket to socket past TCP, at one end of the agent at least.
    #[serde(default)]
    pub accelerated: bool,
    /// The Gateway's listener that took it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// When it came, in RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Bytes from the dialling end, as TCP counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_bytes: Option<u64>,
    /// Bytes back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received_bytes: Option<u64>,
    /// TCP's smoothed round-trip time in microseconds, to the dialling end where the agent serves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u64>,
}
