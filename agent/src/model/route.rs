//! Routes as both VirtualService and HTTPRoute mean them.

mod specificity;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use regex_automata::meta::Regex;
use serde::{Deserialize, Serialize};

pub use specificity::Specificity;

use super::serial::{body, redirect_status, status, whole_regex};
use super::{Labels, ListenerTls, ObjectName, expression};

/// Which kind of document a route table came from; it decides precedence and how a miss is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RouteKind {
    /// Istio VirtualService: rules in written order.
    VirtualService,
    /// Gateway API HTTPRoute: rules in the order of specificity that the standard gives, already sorted.
    HttpRoute,
    /// Gateway API TLSRoute: one rule, for connections that are passed on as they are.
    TlsRoute,
}

impl RouteKind {
    /// The document's kind, as it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::VirtualService => "VirtualService",
            Self::HttpRoute => "HTTPRoute",
            Self::TlsRoute => "TLSRoute",
        }
    }
}

/// The ordered rules that one document gives to the hosts it names.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteTable {
    /// The document.
    pub source: ObjectName,
    /// Its kind.
    pub kind: RouteKind,
    /// Services whose traffic these rules take: the parent services of an HTTPRoute, or the services that a
    /// VirtualService's hosts name. The port is set where the parent reference gives one.
    pub services: Vec<(ObjectName, Option<u16>)>,
    /// Host names that the `Host` of a request must match; empty: any. For a VirtualService, hosts that name no service.
    pub hosts: Vec<HostPattern>,
    /// Rules in order of precedence.
    pub rules: Vec<HttpRule>,
}

/// A host name, exact or by wildcard label; always lower case, without port or trailing dot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostPattern {
    /// This name alone.
    Exact(Arc<str>),
    /// Any name that ends in this suffix, which starts with a dot: `*.example.com` is `.example.com`.
    Suffix(Arc<str>),
    /// Any name.
    Any,
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Suffix(suffix) => write!(f, "*{suffix}"),
            Self::Any => f.write_str("*"),
        }
    }
}

/// One rule: a request that fits any of `matches` gets `action`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HttpRule {
    /// What logs and metrics call it: the rule's own name, else `rule-N` counted from zero.
    pub name: Arc<str>,
    /// Alternatives; empty: every request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<RequestMatch>,
    /// What is done.
    pub action: RouteAction,
    /// The whole request's time, body included; `None`: unlimited.
    /// Zero: the document says that there is none.
    #[serde(
        default,
        rename = "timeout_ns",
        with = "super::serial::nanoseconds",
        skip_serializing_if = "Option::is_none"
    )]
    pub timeout: Option<Duration>,
    /// One try's time (`backendRequest` of the Gateway API); `None`: only `timeout` binds.
    /// Zero as above.
    #[serde(
        default,
        rename = "try_timeout_ns",
        with = "super::serial::nanoseconds",
        skip_serializing_if = "Option::is_none"
    )]
    pub try_timeout: Option<Duration>,
    /// Changes to the request's header fields, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub request_headers: Vec<HeaderOp>,
    /// Changes to the response's header fields, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub response_headers: Vec<HeaderOp>,
}

/// Conditions that must all hold.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RequestMatch {
    /// On the path, without the query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<MatchPath>,
    /// On the method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<MatchValue>,
    /// On the authority (`Host`) without its port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<MatchValue>,
    /// On the scheme.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<MatchValue>,
    /// On header fields, by lower-case name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(Arc<str>, MatchValue)>,
    /// Header fields that must *not* match (VirtualService `withoutHeaders`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without_headers: Vec<(Arc<str>, MatchValue)>,
    /// On query parameters, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub query: Vec<(Arc<str>, MatchValue)>,
    /// Labels that the calling pod must have.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub source_labels: Labels,
    /// The namespace that the calling pod must be in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_namespace: Option<Arc<str>>,
    /// The port that the client dialled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// A condition on the path.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MatchPath {
    /// The whole path.
    Exact(Arc<str>),
    /// A plain string prefix, as a VirtualService means it: `/a` fits `/ab`.
    Prefix(Arc<str>),
    /// A prefix by path elements, as an HTTPRoute means it: `/a` fits `/a` and `/a/b`, never `/ab`. No trailing slash
    /// unless it is `/` itself.
    PathPrefix(Arc<str>),
    /// The whole path matches the expression (RE2 syntax, linear time).
    #[serde(with = "whole_regex")]
    Regex(Regex, Arc<str>),
    /// The whole path, without regard to ASCII case (VirtualService `ignoreUriCase`); lower case.
    ExactIgnoreCase(Arc<str>),
    /// A plain string prefix, without regard to ASCII case; lower case.
    PrefixIgnoreCase(Arc<str>),
}

/// A condition on a value.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MatchValue {
    /// The whole value.
    Exact(Arc<str>),
    /// The value's start.
    Prefix(Arc<str>),
    /// The whole value matches the expression.
    #[serde(with = "whole_regex")]
    Regex(Regex, Arc<str>),
    /// There is a value, whatever it is.
    Present,
}

// Two expressions are the same when their texts are.
impl PartialEq for MatchPath {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(a), Self::Exact(b))
            | (Self::Prefix(a), Self::Prefix(b))
            | (Self::PathPrefix(a), Self::PathPrefix(b))
            | (Self::ExactIgnoreCase(a), Self::ExactIgnoreCase(b))
            | (Self::PrefixIgnoreCase(a), Self::PrefixIgnoreCase(b))
            | (Self::Regex(_, a), Self::Regex(_, b)) => a == b,
            _ => false,
        }
    }
}

impl PartialEq for MatchValue {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(a), Self::Exact(b))
            | (Self::Prefix(a), Self::Prefix(b))
            | (Self::Regex(_, a), Self::Regex(_, b)) => a == b,
            (Self::Present, Self::Present) => true,
            _ => false,
        }
    }
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteAction {
    /// Sends the request on.
    Forward {
        /// Where to, by weight. Never empty; a weight of zero gets nothing.
        destinations: Vec<WeightedDestination>,
        /// What the upstream sees as path and host.
        #[serde(default, skip_serializing_if = "PathRewrite::is_empty")]
        rewrite: PathRewrite,
    },
    /// Answers with a redirect.
    Redirect(Redirect),
    /// Answers by itself.
    Respond(DirectResponse),
}

/// A destination with its share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WeightedDestination {
    /// Where to.
    pub destination: Destination,
    /// Its share of the sum of weights.
    pub weight: u32,
    /// Changes to the request's header fields on this share alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub request_headers: Vec<HeaderOp>,
    /// Changes to the response's header fields on this share alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub response_headers: Vec<HeaderOp>,
}

/// Where a request is sent.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Destination {
    /// A port of a service, or of one subset of it. Without a port, the port that the client dialled, or the
    /// service's only port.
    Service {
        /// The service.
        service: ObjectName,
        /// The service's port.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
        /// A subset's name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        subset: Option<Arc<str>>,
    },
    /// The reference can't be resolved: requests of this share are answered with this status (500 for the Gateway API,
    /// 503 for Istio), and the document's status says why.
    Invalid {
        /// The status.
        #[serde(with = "status")]
        status: u16,
    },
}

/// A change of path and host on the way up.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PathRewrite {
    /// The new authority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<Arc<str>>,
    /// The new path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<RedirectPath>,
}

impl PathRewrite {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.authority.is_none() && self.path.is_none()
    }
}

/// How a path is replaced; the query stays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RedirectPath {
    /// The whole path becomes this.
    Full(Arc<str>),
    /// The matched prefix (of `Prefix`, `PathPrefix`) becomes this; the rest stays.
    Prefix(Arc<str>),
    /// What the expression matches becomes the substitution (`\1` is the first group).
    Regex(RewriteRegex, Arc<str>),
}

/// An expression that compares by its text.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "Arc<str>", into = "Arc<str>")]
pub struct RewriteRegex(pub Regex, pub Arc<str>);

impl TryFrom<Arc<str>> for RewriteRegex {
    type Error = String;

    fn try_from(text: Arc<str>) -> Result<Self, Self::Error> {
        expression::part(&text).map(|(regex, text)| Self(regex, text))
    }
}

impl From<RewriteRegex> for Arc<str> {
    fn from(regex: RewriteRegex) -> Self {
        regex.1
    }
}

impl PartialEq for RewriteRegex {
    fn eq(&self, other: &Self) -> bool {
        self.1 == other.1
    }
}

/// The port that a redirect names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RedirectPort {
    /// This one.
    Number(u16),
    /// The one that the request came to, whatever the scheme or host becomes.
    Request,
}

impl From<u16> for RedirectPort {
    fn from(port: u16) -> Self {
        Self::Number(port)
    }
}

/// A redirect answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    #[serde(with = "redirect_status")]
    pub status: u16,
    /// The scheme; `None`: the request's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<Arc<str>>,
    /// The host; `None`: the request's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<Arc<str>>,
    /// The port; `None`: left out where it is the scheme's own, else the listener's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<RedirectPort>,
    /// The path; `None`: the request's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<RedirectPath>,
}

/// A fixed answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectResponse {
    /// The status, 200 to 599.
    #[serde(with = "status")]
    pub status: u16,
    /// The body, which may be empty.
    #[serde(default, with = "body", skip_serializing_if = "body::is_empty")]
    pub body: Arc<[u8]>,
}

/// One change of a header field; names are lower case and never hop-by-hop or framing fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderOp {
    /// The field's name.
    pub name: Arc<str>,
    /// What is done to it.
    pub change: HeaderChange,
}

/// What is done to a header field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeaderChange {
    /// Replaces every value by this one.
    Set(Arc<str>),
    /// Adds a value after those that are there.
    Add(Arc<str>),
    /// Takes every value away.
    Remove,
}

/// What is spoken on a Gateway listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ListenerProtocol {
    /// Plain HTTP.
    Http,
    /// HTTP in TLS that ends here.
    Https,
    /// Bytes in TLS, by the server name that clients ask for: passed on as they are, or without the TLS, which ends here then.
    Tls,
}

/// One listener of a Gateway.
#[derive(Debug, Clone, PartialEq)]
pub struct Listener {
    /// The Gateway.
    pub gateway: ObjectName,
    /// The listener's name within it.
    pub name: Arc<str>,
    /// Addresses to bind; empty: all of the node's.
    pub addresses: Vec<IpAddr>,
    /// The port to bind.
    pub port: u16,
    /// What is spoken.
    pub protocol: ListenerProtocol,
    /// The host that the listener is for.
    pub hostname: HostPattern,
    /// How TLS ends here, where it does.
    pub tls: Option<ListenerTls>,
    /// The routes that are attached, each with hosts already intersected with `hostname`.
    pub routes: Vec<RouteTable>,
}
