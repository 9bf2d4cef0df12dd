//! Probes: how the node that hosts a pod finds out whether it can take work.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What is asked of a pod, at its first address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum ProbeCheck {
    /// A GET that is answered with 200 to 399.
    Http {
        /// The port.
        port: u16,
        /// Path and query.
        path: Arc<str>,
        /// Header fields that the request has, in the document's order; `host` among them takes the place of the address.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        headers: Vec<(Arc<str>, Arc<str>)>,
    },
    /// A connection.
    Tcp {
        /// The port.
        port: u16,
    },
    /// `grpc.health.v1.Health/Check` over HTTP/2 without TLS, answered with `SERVING`.
    Grpc {
        /// The port.
        port: u16,
        /// The service that is asked for; empty: the server as a whole.
        #[serde(default, skip_serializing_if = "str::is_empty")]
        service: Arc<str>,
    },
}

impl ProbeCheck {
    /// The port that is asked.
    pub fn port(&self) -> u16 {
        match self {
            Self::Http { port, .. } | Self::Tcp { port } | Self::Grpc { port, .. } => *port,
        }
    }
}

/// A check with how often it is made and how many outcomes decide.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Probe {
    /// What is asked.
    pub check: ProbeCheck,
    /// From the beginning of one to the beginning of the next, at most.
    #[serde(rename = "period_s", with = "seconds")]
    pub period: Duration,
    /// How long the answer may take.
    #[serde(rename = "timeout_s", with = "seconds")]
    pub timeout: Duration,
    /// Before the first one, counted from when the agent first hears of the pod.
    #[serde(rename = "initial_delay_s", with = "seconds")]
    pub initial_delay: Duration,
    /// So many passes in a row and the pod takes work.
    pub success_threshold: NonZeroU32,
    /// So many failures in a row and it takes none.
    pub failure_threshold: NonZeroU32,
}

impl Probe {
    /// How often a pod is asked whose document does not say.
    pub const PERIOD: Duration = Duration::from_secs(10);
    /// How long it may take to answer where its document does not say.
    pub const TIMEOUT: Duration = Duration::from_secs(5);

    /// A check as it is made where a document says no more: one failure is enough, so that a pod that has died is out within
    /// [`Self::PERIOD`] and [`Self::TIMEOUT`].
    pub fn new(check: ProbeCheck) -> Self {
        Self {
            check,
            period: Self::PERIOD,
            timeout: Self::TIMEOUT,
            initial_delay: Duration::ZERO,
            success_threshold: NonZeroU32::MIN,
            failure_threshold: NonZeroU32::MIN,
        }
    }
}

/// Whole seconds, as documents have them.
mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        time.as_secs().serialize(serializer)
    }

    /// Bounded as documents are: whoever adds such a time to a clock need not fear its end.
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u32::deserialize(deserializer).map(|seconds| Duration::from_secs(seconds.into()))
    }
}
