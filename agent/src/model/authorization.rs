//! Who may reach which pods: AuthorizationPolicy as far as addresses, proven identities, ports and HTTP requests decide it.

mod principal;
mod request;

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use principal::{Account, Identity};
pub use request::{Asked, Doubt, FieldTerm, PathPart, PathPattern, PolicyRequest, RequestTerms, TextPattern};

use super::{Labels, ObjectName};

/// A range of addresses of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "IpNet", into = "IpNet")]
pub struct Cidr {
    /// The range's first address.
    network: IpAddr,
    /// How many of its leading bits are common to the range.
    prefix: u8,
}

impl Cidr {
    /// The range that an address and the length of its prefix name; bits after the prefix are cleared. `None` where the
    /// prefix is longer than the address.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let network = match address {
            IpAddr::V4(v4) if prefix <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V4((v4.to_bits() & mask).into())
            }
            IpAddr::V6(v6) if prefix <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V6((v6.to_bits() & mask).into())
            }
            _ => return None,
        };
        Some(Self { network, prefix })
    }

    /// One address alone.
    pub fn host(address: IpAddr) -> Self {
        Self { network: address, prefix: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// The range's first address.
    pub fn network(&self) -> IpAddr {
        self.network
    }

    /// The length of the prefix in bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether all of `other` lies within this range.
    pub fn contains(&self, other: &Self) -> bool {
        self.prefix <= other.prefix && Self::new(other.network, self.prefix) == Some(*self)
    }
}

impl TryFrom<IpNet> for Cidr {
    type Error = &'static str;

    fn try_from(net: IpNet) -> Result<Self, Self::Error> {
        Self::new(net.addr(), net.prefix_len()).ok_or("the prefix is longer than the address")
    }
}

impl From<Cidr> for IpNet {
    fn from(cidr: Cidr) -> Self {
        // A range is made with a prefix that fits its address.
        Self::new(cidr.network, cidr.prefix).unwrap_or_else(|_| Self::from(cidr.network))
    }
}

/// A namespace, or several: `*` at either end stands for anything, alone for any namespace at all.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NamespacePattern {
    /// Any namespace; not an address without one.
    Any,
    /// That one.
    Exact(Arc<str>),
    /// Those that begin so.
    Prefix(Arc<str>),
    /// Those that end so.
    Suffix(Arc<str>),
}

impl NamespacePattern {
    /// Whether it takes this namespace.
    pub fn matches(&self, namespace: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(name) => **name == *namespace,
            Self::Prefix(start) => namespace.starts_with(&**start),
            Self::Suffix(end) => namespace.ends_with(&**end),
        }
    }
}

/// What policies can tell of who sends: addresses and, where a pod is known to have them, its namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicySource<'a> {
    /// One address, or a range of which all addresses are treated alike.
    pub addresses: Cidr,
    /// The namespace of the pod with the address; `None`: no pod of the cluster has it.
    pub namespace: Option<&'a str>,
    /// As whom the sender is proven; `None`: nobody has proven anything.
    pub identity: Option<Identity<'a>>,
}

/// Alternatives within a rule's clause; every field that is given must match, and one of its values is enough.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyMatch {
    /// The sender is in one of these ranges.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cidrs: Vec<Cidr>,
    /// The sender is in none of these ranges.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_cidrs: Vec<Cidr>,
    /// The sender is a pod of one of these namespaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<NamespacePattern>,
    /// The sender is no pod of these namespaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_namespaces: Vec<NamespacePattern>,
    /// The sender is proven to be one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub principals: Vec<TextPattern>,
    /// The sender is proven to be none of these, or nobody.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_principals: Vec<TextPattern>,
    /// The sender is proven to be of one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accounts: Vec<Account>,
    /// The sender is proven to be of none of these, or nobody.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_accounts: Vec<Account>,
    /// The client, as a Gateway knows it, is in one of these ranges.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remote_cidrs: Vec<Cidr>,
    /// The pod's own address is in one of these ranges. Settled before anything is asked: [`AuthorizationPolicy::at`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub destinations: Vec<Cidr>,
    /// The pod's own address is in none of these ranges.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_destinations: Vec<Cidr>,
    /// The pod's port is one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
    /// The pod's port is none of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_ports: Vec<u16>,
    /// What is asked of the request.
    #[serde(default, skip_serializing_if = "RequestTerms::is_empty")]
    pub request: RequestTerms,
}

impl PolicyMatch {
    /// Whether it holds of a connection, whatever is asked of its requests. `port`: the pod's; `None`: any that no policy names, or a protocol without ports.
    pub fn matches(&self, source: PolicySource<'_>, port: Option<u16>) -> bool {
        let within = |cidrs: &[Cidr]| cidrs.iter().any(|cidr| cidr.contains(&source.addresses));
        let named = |patterns: &[NamespacePattern]| {
            source.namespace.is_some_and(|name| patterns.iter().any(|pattern| pattern.matches(name)))
        };
        let proven = |patterns: &[TextPattern]| {
            source.identity.is_some_and(|identity| patterns.iter().any(|pattern| identity.is(pattern)))
        };
        let of = |accounts: &[Account]| {
            source.identity.is_some_and(|identity| accounts.iter().any(|account| account.has(&identity)))
        };
        let on = |ports: &[u16]| port.is_some_and(|port| ports.contains(&port));
        (self.cidrs.is_empty() || within(&self.cidrs))
            && !within(&self.not_cidrs)
            && (self.namespaces.is_empty() || named(&self.namespaces))
            && !named(&self.not_namespaces)
            && (self.principals.is_empty() || proven(&self.principals))
            && !proven(&self.not_principals)
            && (self.accounts.is_empty() || of(&self.accounts))
            && !of(&self.not_accounts)
            && (self.remote_cidrs.is_empty() || within(&self.remote_cidrs))
            && (self.ports.is_empty() || on(&self.ports))
            && !on(&self.not_ports)
    }
}

/// One rule: all its clauses must hold, each by one of its alternatives. Without clauses it takes everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRule {
    /// Its position in the document.
    pub index: usize,
    /// The clauses: `from`, `to` and each of `when`.
    pub clauses: Vec<Vec<PolicyMatch>>,
}

impl PolicyRule {
    /// Whether it asks something of requests.
    pub fn asks_of_requests(&self) -> bool {
        self.clauses.iter().flatten().any(|alternative| !alternative.request.is_empty())
    }

    /// Whether it takes what this source sends to this port of the pod.
    fn matches(&self, source: PolicySource<'_>, port: Option<u16>, reading: Reading<'_>) -> bool {
        let asked = |alternative: &PolicyMatch| match reading {
            Reading::Of(request, doubt) => alternative.request.hold(request, doubt),
            Reading::AsIfAbsent | Reading::Unmet => true,
        };
        let unmet = matches!(reading, Reading::Unmet) && self.asks_of_requests();
        let holds = |alternative: &PolicyMatch| alternative.matches(source, port) && asked(alternative);
        !unmet && self.clauses.iter().all(|clause| clause.iter().any(holds))
    }
}

/// How a rule takes what it asks of a request.
#[derive(Clone, Copy)]
enum Reading<'a> {
    /// It is asked.
    Of(&'a dyn PolicyRequest, Doubt),
    /// As if it asked nothing.
    AsIfAbsent,
    /// As if the request were another.
    Unmet,
}

/// What a policy does with what its rules take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyAction {
    /// Lets it through; what no rule of any such policy takes is refused.
    Allow,
    /// Refuses it, whatever other policies say.
    Deny,
    /// Tells of it.
    Audit,
}

/// Which pods a policy is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyScope {
    /// All of the cluster (a policy of the root namespace).
    Mesh,
    /// Those of the policy's own namespace.
    Namespace,
}

/// A checked AuthorizationPolicy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    /// The document.
    pub name: ObjectName,
    /// Where the pods are that it is about.
    pub scope: PolicyScope,
    /// Labels that the pods have; empty: all pods of the scope.
    pub selector: Labels,
    /// What it does.
    pub action: PolicyAction,
    /// Whether it only says what it would do.
    pub dry_run: bool,
    /// The rules that can be decided, in the document's order.
    pub rules: Vec<PolicyRule>,
}

impl AuthorizationPolicy {
    /// Whether it is about a pod of this namespace with these labels.
    pub fn selects(&self, namespace: &str, labels: &Labels) -> bool {
        (self.scope == PolicyScope::Mesh || *self.name.namespace == *namespace)
            && self.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    }

    /// Whether it refuses anybody, or could.
    pub fn is_enforced(&self) -> bool {
        !self.dry_run && self.action != PolicyAction::Audit
    }

    /// Whether it asks for the pod's own address.
    pub fn asks_of_destinations(&self) -> bool {
        let asks = |one: &PolicyMatch| !one.destinations.is_empty() || !one.not_destinations.is_empty();
        self.rules.iter().flat_map(|rule| rule.clauses.iter().flatten()).any(asks)
    }

    /// What it says to a pod with this address, in which nothing asks for that any more.
    #[must_use]
    pub fn at(&self, pod: IpAddr) -> Self {
        let pod = Cidr::host(pod);
        let within = |cidrs: &[Cidr]| cidrs.iter().any(|cidr| cidr.contains(&pod));
        let here = |one: &&PolicyMatch| {
            (one.destinations.is_empty() || within(&one.destinations)) && !within(&one.not_destinations)
        };
        let settled = |one: &PolicyMatch| PolicyMatch {
            destinations: Vec::new(),
            not_destinations: Vec::new(),
            ..one.clone()
        };
        let rule = |rule: &PolicyRule| {
            let clause = |clause: &Vec<PolicyMatch>| clause.iter().filter(here).map(settled).collect();
            let clauses: Vec<Vec<PolicyMatch>> = rule.clauses.iter().map(clause).collect();
            // A clause of which nothing is left can't hold.
            (!clauses.iter().any(Vec::is_empty)).then_some(PolicyRule { index: rule.index, clauses })
        };
        Self { rules: self.rules.iter().filter_map(rule).collect(), ..self.clone() }
    }

    /// The positions of the rules that ask of requests, and of those that this source may send to this port.
    pub fn rules_of_requests(&self, source: PolicySource<'_>, port: u16) -> Vec<usize> {
        let about = |rule: &&PolicyRule| {
            rule.asks_of_requests() && rule.matches(source, Some(port), Reading::AsIfAbsent)
        };
        self.rules.iter().filter(about).map(|rule| rule.index).collect()
    }

    /// The position of the first rule that takes it.
    pub fn rule_of(&self, source: PolicySource<'_>, port: Option<u16>, asked: Asked<'_>) -> Option<usize> {
        let reading = match (asked, self.action) {
            (Asked::Request(request), PolicyAction::Deny | PolicyAction::Audit) => {
                Reading::Of(request, Doubt::Holds)
            }
            (Asked::Request(request), PolicyAction::Allow) => Reading::Of(request, Doubt::Fails),
            (Asked::Opaque, PolicyAction::Deny) | (Asked::Unread, PolicyAction::Allow) => Reading::AsIfAbsent,
            (Asked::Opaque, PolicyAction::Allow | PolicyAction::Audit)
            | (Asked::Unread, PolicyAction::Deny | PolicyAction::Audit) => Reading::Unmet,
        };
        self.rules.iter().find(|rule| rule.matches(source, port, reading)).map(|rule| rule.index)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    pub(crate) use super::request::tests::{Made, text};
    use super::*;

    fn cidr(text: &str) -> Cidr {
        let (address, prefix) = text.split_once('/').expect("a prefix");
        Cidr::new(address.parse().expect("an address"), prefix.parse().expect("a length")).expect("a range")
    }

    #[test]
    fn ranges_hold_ranges_of_their_family() {
        let cases = [
            ("10.0.0.0/8", "10.1.2.3/32", true),
            ("10.0.0.0/8", "10.1.0.0/16", true),
            ("10.1.0.0/16", "10.0.0.0/8", false),
            ("10.1.2.3/16", "10.1.9.9/32", true),
            ("0.0.0.0/0", "1.2.3.4/32", true),
            ("0.0.0.0/0", "::/0", false),
            ("::/0", "0.0.0.0/0", false),
            ("::/0", "fd00::1/128", true),
            ("fd00::/64", "fd00::1:0:0:0:1/128", false),
            ("fd00::1/128", "fd00::1/128", true),
        ];
        for (outer, inner, expected) in cases {
            assert_eq!(cidr(outer).contains(&cidr(inner)), expected, "{inner} in {outer}");
        }
        assert_eq!(Cidr::new("10.0.0.1".parse().expect("an address"), 33), None);
        assert_eq!(Cidr::new("::1".parse().expect("an address"), 129), None);
    }

    #[test]
    fn fields_are_all_asked_and_one_value_of_each_is_enough() {
        let from = |address: &str, namespace: Option<&'static str>| PolicySource {
            addresses: Cidr::host(address.parse().expect("an address")),
            namespace,
            identity: None,
        };
        let exact = |name: &str| NamespacePattern::Exact(name.into());
        let empty = PolicyMatch::default();
        let by_namespace = PolicyMatch { namespaces: vec![exact("a"), exact("b")], ..empty.clone() };
        let not_there = PolicyMatch { not_namespaces: vec![exact("a")], ..empty.clone() };
        let any = PolicyMatch { namespaces: vec![NamespacePattern::Any], ..empty.clone() };
        let both = PolicyMatch { cidrs: vec![cidr("10.0.0.0/8")], ports: vec![80], ..empty.clone() };
        let but = PolicyMatch { not_cidrs: vec![cidr("10.1.0.0/16")], not_ports: vec![22], ..empty.clone() };
        let cases = [
            (&empty, from("::1", None), None, true),
            (&by_namespace, from("10.0.0.1", Some("b")), Some(80), true),
            (&by_namespace, from("10.0.0.1", Some("c")), Some(80), false),
            (&by_namespace, from("10.0.0.1", None), Some(80), false),
            (&not_there, from("10.0.0.1", Some("a")), None, false),
            (&not_there, from("10.0.0.1", None), None, true),
            (&any, from("10.0.0.1", Some("x")), None, true),
            (&any, from("10.0.0.1", None), None, false),
            (&both, from("10.0.0.1", None), Some(80), true),
            (&both, from("10.0.0.1", None), Some(81), false),
            (&both, from("11.0.0.1", None), Some(80), false),
            (&both, from("10.0.0.1", None), None, false),
            (&but, from("10.0.0.1", None), Some(80), true),
            (&but, from("10.1.0.1", None), Some(80), false),
            (&but, from("10.0.0.1", None), Some(22), false),
            (&but, from("10.0.0.1", None), None, true),
        ];
        for (condition, source, port, expected) in cases {
            assert_eq!(condition.matches(source, port), expected, "{condition:?} {source:?} {port:?}");
        }
    }

    #[test]
    fn what_is_not_read_errs_on_the_side_that_is_asked_for() {
        use PolicyAction::{Allow, Deny};
        let get = PolicyMatch {
            request: RequestTerms { methods: vec![text("GET")], ..RequestTerms::default() },
            ..PolicyMatch::default()
        };
        let port = PolicyMatch { ports: vec![80], ..PolicyMatch::default() };
        let policy = |action, clauses: Vec<Vec<PolicyMatch>>| AuthorizationPolicy {
            name: ObjectName::new("a", "p"),
            scope: PolicyScope::Namespace,
            selector: Labels::default(),
            action,
            dry_run: false,
            rules: vec![PolicyRule { index: 3, clauses }],
        };
        let made = |method: &str| Made { method: method.to_owned(), ..Made::default() };
        let (read, write) = (made("GET"), made("POST"));
        let source = PolicySource {
            addresses: Cidr::host("1.1.1.1".parse().expect("an address")),
            namespace: None,
            identity: None,
        };
        // (action, clauses, port) -> whether the rule takes a GET, a POST, what is opaque, and what is not read yet.
        let cases = [
            (Allow, vec![vec![get.clone()]], 80, [true, false, false, true]),
            (Deny, vec![vec![get.clone()]], 80, [true, false, true, false]),
            (Allow, vec![vec![get.clone()], vec![port.clone()]], 80, [true, false, false, true]),
            (Deny, vec![vec![get.clone()], vec![port.clone()]], 81, [false, false, false, false]),
            // As in Istio a rule is nothing for opaque connections where any part of it asks of requests.
            (Allow, vec![vec![get.clone(), port.clone()]], 80, [true, true, false, true]),
            (Deny, vec![vec![get, port.clone()]], 80, [true, true, true, false]),
            (Allow, vec![vec![port]], 80, [true; 4]),
        ];
        for (action, clauses, port, expected) in cases {
            let policy = policy(action, clauses);
            let asked = [Asked::Request(&read), Asked::Request(&write), Asked::Opaque, Asked::Unread];
            let taken = asked.map(|asked| policy.rule_of(source, Some(port), asked) == Some(3));
            assert_eq!(taken, expected, "{policy:?} {port}");
        }
    }
}
