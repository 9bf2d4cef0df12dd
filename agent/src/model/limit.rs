//! How many requests are let through.

mod target;
mod template;

use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{DirectResponse, ObjectName, TextPattern};
pub use target::{LimitTarget, LimitedPods, LimitedRoute};
pub use template::{PathTemplate, PathTemplates};

/// A RateLimit document, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimit {
    /// The document.
    pub name: ObjectName,
    /// Which requests it is about; never empty.
    pub targets: Vec<LimitTarget>,
    /// Whether it only counts what it would refuse.
    pub shadow: bool,
    /// The limits of requests; one must be within all of them.
    pub limits: Vec<Limit>,
    /// Likewise of opaque connections.
    pub connections: Vec<Limit>,
    /// The limits that the kernel holds to; nothing of what they are about is let through beyond any of them.
    pub kernel: Vec<KernelLimit>,
    /// What a refused request gets, besides the fields that tell of the limit.
    pub answer: DirectResponse,
    /// Fields that are added to it.
    pub headers: Arc<[AnswerHeader]>,
    /// Whether requests that are let through are told as well what is left.
    pub tells: bool,
}

/// A field of an answer; never one that belongs to the connection, the framing or the limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerHeader {
    /// Its name, in lower case.
    pub name: Arc<str>,
    /// Its value.
    pub value: Arc<str>,
}

/// One limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Its name within the document.
    pub name: Arc<str>,
    /// What is counted apart; empty: all requests are counted together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key: Vec<KeyPart>,
    /// What holds for a request without one of the key's values.
    #[serde(default)]
    pub missing: Missing,
    /// How much is let through.
    pub quota: Quota,
    /// What a request costs of it.
    #[serde(default, skip_serializing_if = "Cost::is_one")]
    pub cost: Cost,
    /// Other numbers for some keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<Override>,
    /// Sources that the limit does not hold for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exempt: Vec<IpNet>,
    /// Proven senders that it does not hold for, as policies name them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exempt_principals: Vec<TextPattern>,
    /// How many keys are remembered.
    pub max_keys: u32,
    /// How all nodes count together; `None`: each counts for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterCount>,
    /// When the guard at the edge keeps a source out that goes on being refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push_down: Option<PushDown>,
}

/// One limit that the kernel holds to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KernelLimit {
    /// Its name within the document.
    pub name: Arc<str>,
    /// What is counted.
    pub count: KernelCount,
    /// What is counted apart.
    pub key: KernelKey,
    /// What holds for a source whose identity is not known.
    #[serde(default)]
    pub missing: Missing,
    /// So many are let through
    pub amount: u32,
    /// in so many nanoseconds,
    pub window_ns: u64,
    /// and so many at once after a pause.
    pub burst: u32,
    /// Sources that the limit does not hold for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exempt: Vec<IpNet>,
}

impl KernelLimit {
    /// Nanoseconds in which one token comes, and in which a whole bucket does; `None` where the kernel can't compute with them.
    pub fn intervals(&self) -> Option<(u64, u64)> {
        // Rounded up: what is let through is never more than was asked for.
        let interval = self.window_ns.div_ceil(u64::from(self.amount).max(1));
        let whole = interval.checked_mul(self.burst.into()).filter(|whole| *whole <= Self::WHOLE_MAX_NS)?;
        (interval >= Self::INTERVAL_MIN_NS && self.burst > 0).then_some((interval, whole))
    }

    /// The shortest time between two: 10 million in a second, of which rounding costs a hundredth.
    pub const INTERVAL_MIN_NS: u64 = 100;
    /// The longest time in which a used up burst comes back: a year.
    pub const WHOLE_MAX_NS: u64 = 365 * 24 * 3_600_000_000_000;
}

/// What a limit of the kernel counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KernelCount {
    /// Requests for TCP connections.
    Connections,
    /// Packets of TCP and UDP.
    Packets,
}

/// What a limit of the kernel counts apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KernelKey {
    /// Nothing: all are counted together.
    Together,
    /// As [`KeyPart::SourceAddress`].
    SourceAddress {
        /// At most 32.
        v4: u8,
        /// At most 128.
        v6: u8,
    },
    /// As [`KeyPart::SourceIdentity`].
    SourceIdentity,
}

/// What a request costs, in units of the quota.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// So many, at least 1, where the request does not say another number.
    pub units: u32,
    /// Where it says one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said: Option<SaidCost>,
}

/// Where a request says what it costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaidCost {
    /// The value.
    pub by: CostSource,
    /// What it costs at most, whatever it says; `None`: what its key may have at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
}

/// The value that says what a request costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CostSource {
    /// The largest value of a header field, by lower-case name.
    Header(Arc<str>),
    /// A parameter of the query.
    Query(Arc<str>),
}

impl Default for Cost {
    fn default() -> Self {
        Self { units: 1, said: None }
    }
}

impl Cost {
    /// Whether every request costs one unit.
    pub fn is_one(&self) -> bool {
        *self == Self::default()
    }
}

/// Other numbers for a key, or for all that have addresses of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Override {
    /// The values of the key's parts, in their order.
    pub values: Vec<OverrideValue>,
    /// The numbers, of the limit's own kind.
    pub quota: Quota,
}

/// The value of a key's part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OverrideValue {
    /// As the request has it; names are joined by `/`.
    Text(Arc<str>),
    /// Of a client's address.
    Network(IpNet),
}

impl fmt::Display for OverrideValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Network(net) if net.prefix_len() == net.max_prefix_len() => net.addr().fmt(f),
            Self::Network(net) => net.fmt(f),
        }
    }
}

/// When a source is kept out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushDown {
    /// After so many refusals
    pub after: u32,
    /// within so many nanoseconds of the first,
    pub within_ns: u64,
    /// and for so many nanoseconds.
    pub lasts_ns: u64,
}

/// How all nodes count together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterCount {
    /// How a node comes by what it lets through.
    pub mode: ClusterMode,
    /// What holds while the store is away.
    pub fail: FailMode,
}

/// How a node comes by what it lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClusterMode {
    /// The store decides each request.
    Exact,
    /// It leases portions from the store.
    Leased,
}

/// What holds while the store is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailMode {
    /// Requests are let through.
    Open,
    /// They are refused.
    Closed,
    /// Each node lets its share through.
    Share,
}

/// A part of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyPart {
    /// The client's address, or the networks of these lengths that it is in, for IPv4 and IPv6.
    SourceAddress {
        /// At most 32.
        v4: u8,
        /// At most 128.
        v6: u8,
    },
    /// The client pod's namespace and service account.
    SourceIdentity,
    /// All values of a header field, by lower-case name.
    Header(Arc<str>),
    /// A cookie.
    Cookie(Arc<str>),
    /// A parameter of the query.
    Query(Arc<str>),
    /// The path without the query.
    Path,
    /// Which of these templates takes it, or what stands there for a name.
    PathTemplate(PathTemplates),
    /// The method.
    Method,
    /// The host, in lower case and without port.
    Host,
    /// The rule that took the request.
    Route,
}

/// What holds for a request without one of the key's values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// It is counted by its client's address, apart from all that have a value.
    #[default]
    SourceAddress,
    /// All such requests are counted together.
    Shared,
    /// The limit does not hold for it.
    Exempt,
    /// It is refused.
    Refuse,
}

/// How much is let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quota {
    /// A rate with a burst.
    Rate {
        /// So many requests, or units of what they cost,
        requests: u32,
        /// in so many nanoseconds,
        window_ns: u64,
        /// and so many at once after a pause.
        burst: u32,
    },
    /// So many requests in any span of so many nanoseconds, exactly.
    Window {
        /// How many.
        requests: u32,
        /// Nanoseconds.
        window_ns: u64,
    },
    /// So many requests at the same time.
    InFlight {
        /// How many.
        requests: u32,
    },
}

impl Quota {
    /// The most units that one request may cost of a window, which keeps the time of each.
    pub const WINDOW_COST_MAX: u32 = 100;

    /// How many units one request may cost.
    pub fn most_of_one(self) -> u32 {
        match self {
            Self::Window { requests, .. } => requests.min(Self::WINDOW_COST_MAX),
            Self::Rate { .. } | Self::InFlight { .. } => self.at_once(),
        }
    }

    /// How many units may come at once after a pause.
    pub fn at_once(self) -> u32 {
        match self {
            Self::Rate { burst, .. } => burst,
            Self::Window { requests, .. } | Self::InFlight { requests } => requests,
        }
    }
}
