//! How many requests are let through.

use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{DirectResponse, ObjectName};

/// A RateLimit document, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimit {
    /// The document.
    pub name: ObjectName,
    /// Which requests it is about; never empty.
    pub targets: Vec<LimitTarget>,
    /// Whether it only counts what it would refuse.
    pub shadow: bool,
    /// The limits; a request must be within all of them.
    pub limits: Vec<Limit>,
    /// What a refused request gets, besides the fields that tell of the limit.
    pub answer: DirectResponse,
    /// Whether requests that are let through are told as well what is left.
    pub tells: bool,
}

/// Which requests a document is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitTarget {
    /// Those on their way to a service, by whatever route.
    Service(ObjectName),
    /// Those that came in by a Gateway; by one listener of it where that is named.
    Gateway(ObjectName, Option<Arc<str>>),
    /// Those that a route of this kind took; one rule of it where that is named.
    Route(LimitedRoute, ObjectName, Option<Arc<str>>),
}

/// Kinds of routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LimitedRoute {
    /// Gateway API HTTPRoute
    HttpRoute,
    /// Istio VirtualService
    VirtualService,
}

impl LimitedRoute {
    /// The kind as documents and routes of the table write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HttpRoute => "HTTPRoute",
            Self::VirtualService => "VirtualService",
        }
    }
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
    /// Sources that the limit does not hold for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exempt: Vec<IpNet>,
    /// How many keys are remembered.
    pub max_keys: u32,
    /// How all nodes count together; `None`: each counts for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterCount>,
    /// When the guard at the edge keeps a source out that goes on being refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push_down: Option<PushDown>,
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
    /// The method.
    Method,
    /// The host, in lower case and without port.
    Host,
    /// The rule that took the request.
    Route,
}

/// What holds for a request without one of the key's values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quota {
    /// A rate with a burst.
    Rate {
        /// So many requests
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
