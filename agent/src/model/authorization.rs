//! Who may reach which pods: AuthorizationPolicy as far as addresses, namespaces and ports decide it.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Labels, ObjectName};

/// A range of addresses of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
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

/// A namespace, or several: `*` at either end stands for anything, alone for any namespace at all.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
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
}

/// Alternatives within a rule's clause; every field that is given must match, and one of its values is enough.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicyMatch {
    /// The sender is in one of these ranges.
    pub cidrs: Vec<Cidr>,
    /// The sender is in none of these ranges.
    pub not_cidrs: Vec<Cidr>,
    /// The sender is a pod of one of these namespaces.
    pub namespaces: Vec<NamespacePattern>,
    /// The sender is no pod of these namespaces.
    pub not_namespaces: Vec<NamespacePattern>,
    /// The pod's port is one of these.
    pub ports: Vec<u16>,
    /// The pod's port is none of these.
    pub not_ports: Vec<u16>,
}

impl PolicyMatch {
    /// Whether it holds. `port`: the pod's; `None`: any that no policy names, or a protocol without ports.
    pub fn matches(&self, source: PolicySource<'_>, port: Option<u16>) -> bool {
        let within = |cidrs: &[Cidr]| cidrs.iter().any(|cidr| cidr.contains(&source.addresses));
        let named = |patterns: &[NamespacePattern]| {
            source.namespace.is_some_and(|name| patterns.iter().any(|pattern| pattern.matches(name)))
        };
        let on = |ports: &[u16]| port.is_some_and(|port| ports.contains(&port));
        (self.cidrs.is_empty() || within(&self.cidrs))
            && !within(&self.not_cidrs)
            && (self.namespaces.is_empty() || named(&self.namespaces))
            && !named(&self.not_namespaces)
            && (self.ports.is_empty() || on(&self.ports))
            && !on(&self.not_ports)
    }
}

/// One rule: all its clauses must hold, each by one of its alternatives. Without clauses it takes everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRule {
    /// Its position in the document.
    pub index: usize,
    /// The clauses: `from`, `to` and each of `when`.
    pub clauses: Vec<Vec<PolicyMatch>>,
}

impl PolicyRule {
    /// Whether it takes what this source sends to this port of the pod.
    pub fn matches(&self, source: PolicySource<'_>, port: Option<u16>) -> bool {
        self.clauses.iter().all(|clause| clause.iter().any(|alternative| alternative.matches(source, port)))
    }
}

/// What a policy does with what its rules take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PolicyAction {
    /// Lets it through; what no rule of any such policy takes is refused.
    Allow,
    /// Refuses it, whatever other policies say.
    Deny,
}

/// Which pods a policy is about.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// The rules that addresses, namespaces and ports can decide, in the document's order.
    pub rules: Vec<PolicyRule>,
}

impl AuthorizationPolicy {
    /// Whether it is about a pod of this namespace with these labels.
    pub fn selects(&self, namespace: &str, labels: &Labels) -> bool {
        (self.scope == PolicyScope::Mesh || *self.name.namespace == *namespace)
            && self.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    }

    /// The position of the first rule that takes it.
    pub fn rule_of(&self, source: PolicySource<'_>, port: Option<u16>) -> Option<usize> {
        self.rules.iter().find(|rule| rule.matches(source, port)).map(|rule| rule.index)
    }
}

#[cfg(test)]
mod tests {
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
}
