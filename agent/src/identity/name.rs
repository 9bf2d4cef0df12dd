//! Names: trust domains and ids as the SPIFFE standard has them, nodes as Kubernetes has them.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;

/// Longest trust domain, in bytes (SPIFFE-ID, section 2.1: the host part of RFC 3986, at most 255).
const TRUST_DOMAIN_MAX_BYTES: usize = 255;
/// Longest name of a node, in bytes: a DNS subdomain.
const NODE_MAX_BYTES: usize = 253;
/// Longest id, in bytes (SPIFFE-ID, section 2.3).
const ID_MAX_BYTES: usize = 2048;
const SCHEME: &str = "spiffe://";
/// What the path of a node's id begins with.
const NODE_PATH: &str = "/node/";
/// What the path of an operator's id begins with.
const OPERATOR_PATH: &str = "/operator/";

/// Why something is not a name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages say what each variant is")]
pub enum NameError {
    #[error("it is empty")]
    Empty,
    #[error("it has {bytes} bytes, at most {max} are allowed")]
    TooLong { bytes: usize, max: usize },
    #[error("{character:?} is not allowed at byte {at}: only {allowed}")]
    Character { character: char, at: usize, allowed: &'static str },
    #[error("the part {label:?} must begin and end with a lower-case letter or a digit")]
    Label { label: String },
    #[error("it does not begin with spiffe://")]
    Scheme,
    #[error("its path has an empty, '.' or '..' segment")]
    Segment,
}

/// The name of a trust domain: `mesh.example`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Arc<str>);

impl FromStr for TrustDomain {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        length(text, TRUST_DOMAIN_MAX_BYTES)?;
        let allowed = |byte: u8| lower(byte) || matches!(byte, b'.' | b'-' | b'_');
        characters(text, allowed, "lower-case letters, digits, '.', '-' and '_'")?;
        Ok(Self(text.into()))
    }
}

/// The name of a node, as Kubernetes has it: a DNS subdomain in lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(Arc<str>);

impl NodeName {
    /// The name, shared.
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }
}

impl FromStr for NodeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        length(text, NODE_MAX_BYTES)?;
        let allowed = |byte: u8| lower(byte) || matches!(byte, b'.' | b'-');
        characters(text, allowed, "lower-case letters, digits, '.' and '-'")?;
        let edge = |byte: Option<&u8>| byte.copied().is_some_and(lower);
        let bad = |label: &&str| !edge(label.as_bytes().first()) || !edge(label.as_bytes().last());
        match text.split('.').find(bad) {
            Some(label) => Err(NameError::Label { label: label.to_owned() }),
            None => Ok(Self(text.into())),
        }
    }
}

/// The name of an operator, who seals documents: it follows the rules of a node's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperatorName(Arc<str>);

impl OperatorName {
    /// The name, shared.
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }
}

impl FromStr for OperatorName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        text.parse().map(|NodeName(name)| Self(name))
    }
}

/// Gives a name its text.
macro_rules! text {
    ($name:ty) => {
        impl Deref for $name {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    };
}

text!(TrustDomain);
text!(NodeName);
text!(OperatorName);

/// A SPIFFE id: `spiffe://TRUST-DOMAIN/PATH`, or that of the trust domain itself, without a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    /// Empty, or begins with a slash.
    path: Box<str>,
}

impl SpiffeId {
    /// The id of a trust domain, which its root certificates have.
    pub fn of_trust_domain(trust_domain: TrustDomain) -> Self {
        Self { trust_domain, path: "".into() }
    }

    /// The id of a node.
    pub fn of_node(trust_domain: TrustDomain, node: &NodeName) -> Self {
        Self { trust_domain, path: format!("{NODE_PATH}{node}").into() }
    }

    /// The id of an operator.
    pub fn of_operator(trust_domain: TrustDomain, operator: &OperatorName) -> Self {
        Self { trust_domain, path: format!("{OPERATOR_PATH}{operator}").into() }
    }

    /// The id of the pods of a service account, in the form that Istio gave it.
    pub fn of_workload(
        trust_domain: &TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, NameError> {
        let id: Self = format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}").parse()?;
        // A slash in a name would make it another one's id.
        if id.path.split('/').count() == 5 { Ok(id) } else { Err(NameError::Segment) }
    }

    /// Whose id it is.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Empty, or what follows the trust domain from the slash on.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The node that this names; `None` where it names anything else.
    pub fn node(&self) -> Option<NodeName> {
        self.path.strip_prefix(NODE_PATH)?.parse().ok()
    }

    /// The operator that this names; `None` where it names anything else.
    pub fn operator(&self) -> Option<OperatorName> {
        self.path.strip_prefix(OPERATOR_PATH)?.parse().ok()
    }
}

impl FromStr for SpiffeId {
    type Err = NameError;

    /// Takes the one spelling that an id has: it is compared byte by byte, so nothing is normalised.
    fn from_str(text: &str) -> Result<Self, NameError> {
        length(text, ID_MAX_BYTES)?;
        let rest = text.strip_prefix(SCHEME).ok_or(NameError::Scheme)?;
        let (trust_domain, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let trust_domain = trust_domain.parse()?;
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'/');
        characters(path, allowed, "letters, digits, '.', '-', '_' and '/'")?;
        let bad = |segment: &str| matches!(segment, "" | "." | "..");
        if path.split('/').skip(1).any(bad) {
            return Err(NameError::Segment);
        }
        Ok(Self { trust_domain, path: path.into() })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{SCHEME}{}{}", self.trust_domain, self.path)
    }
}

fn lower(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn length(text: &str, max: usize) -> Result<(), NameError> {
    match text.len() {
        0 => Err(NameError::Empty),
        bytes if bytes > max => Err(NameError::TooLong { bytes, max }),
        _ => Ok(()),
    }
}

fn characters(text: &str, allowed: impl Fn(u8) -> bool, names: &'static str) -> Result<(), NameError> {
    let bad = |(_, character): &(usize, char)| !u8::try_from(*character).is_ok_and(&allowed);
    match text.char_indices().find(bad) {
        Some((index, character)) => Err(NameError::Character { character, at: index + 1, allowed: names }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says<T: FromStr<Err = NameError> + fmt::Display>(text: &str, expected: Result<(), &str>) {
        match (text.parse::<T>(), expected) {
            (Ok(name), Ok(())) => assert_eq!(name.to_string(), text),
            (Err(error), Err(expected)) => {
                assert!(error.to_string().contains(expected), "{text:?}: {error}");
            }
            (parsed, _) => panic!("{text:?}: {:?}", parsed.map(|name| name.to_string())),
        }
    }

    #[test]
    fn trust_domains() {
        for good in ["mesh.example", "cluster.local", "a", "a_b-c.9", "-", &"a".repeat(255)] {
            says::<TrustDomain>(good, Ok(()));
        }
        says::<TrustDomain>("", Err("empty"));
        says::<TrustDomain>(&"a".repeat(256), Err("256 bytes, at most 255"));
        says::<TrustDomain>("Mesh", Err("'M' is not allowed at byte 1"));
        for bad in ["a b", "a/b", "a:8080", "u@a", "a%2eb", "spiffe://a", "ä", "a?b", "a#b", "a\n", "a\0"] {
            says::<TrustDomain>(bad, Err("is not allowed at byte"));
        }
    }

    #[test]
    fn nodes() {
        for good in ["node1", "ip-10-0-0-1.eu.compute.internal", "9", "a-b", &"a".repeat(253)] {
            says::<NodeName>(good, Ok(()));
        }
        says::<NodeName>("", Err("empty"));
        says::<NodeName>(&"a".repeat(254), Err("254 bytes, at most 253"));
        for bad in ["-a", "a-", "a.-b", "a..b", ".a", "a."] {
            says::<NodeName>(bad, Err("must begin and end with"));
        }
        for bad in ["Node1", "a_b", "a/b", "../a", "a b", "nöde", "a\0"] {
            says::<NodeName>(bad, Err("is not allowed at byte"));
        }
    }

    #[test]
    fn ids() {
        for good in ["spiffe://td", "spiffe://td/node/a", "spiffe://td/ns/x/sa/Y_z", "spiffe://td/..."] {
            says::<SpiffeId>(good, Ok(()));
        }
        for bad in ["http://td/node/a", "SPIFFE://td", "Spiffe://td", "spiffe:/td", "td/node/a", "spiffe:td"]
        {
            says::<SpiffeId>(bad, Err("does not begin with spiffe://"));
        }
        for bad in ["spiffe://", "spiffe:///node/a"] {
            says::<SpiffeId>(bad, Err("empty"));
        }
        for bad in
            ["spiffe://td/", "spiffe://td/node/", "spiffe://td//a", "spiffe://td/./a", "spiffe://td/../a"]
        {
            says::<SpiffeId>(bad, Err("segment"));
        }
        for bad in
            ["spiffe://td/a?b", "spiffe://td/a#b", "spiffe://td/a%20", "spiffe://TD/a", "spiffe://u@td/a"]
        {
            says::<SpiffeId>(bad, Err("is not allowed at byte"));
        }
        says::<SpiffeId>(&format!("spiffe://td/{}", "a".repeat(2048)), Err("at most 2048"));
    }

    #[test]
    fn workloads() {
        let td: TrustDomain = "mesh.example".parse().expect("a trust domain");
        let of = |namespace, account| SpiffeId::of_workload(&td, namespace, account);
        let id = of("shop", "cart.v2").expect("an id");
        assert_eq!(id.to_string(), "spiffe://mesh.example/ns/shop/sa/cart.v2");
        assert_eq!(id.node(), None);
        for (namespace, account) in
            [("a/b", "c"), ("a", "b/c"), ("", "b"), ("a", ""), ("..", "b"), ("a", "b c")]
        {
            assert!(of(namespace, account).is_err(), "{namespace:?} {account:?}");
        }
    }

    #[test]
    fn only_a_node_is_a_node() {
        let check = |text: &str, expected: Option<&str>| {
            let id: SpiffeId = text.parse().expect("an id");
            assert_eq!(id.node().as_deref(), expected, "{text}");
        };
        check("spiffe://td/node/node1", Some("node1"));
        check("spiffe://td/node/a.b", Some("a.b"));
        for other in [
            "spiffe://td",
            "spiffe://td/node",
            "spiffe://td/node/a/b",
            "spiffe://td/node/A",
            "spiffe://td/Node/a",
        ] {
            check(other, None);
        }
        check("spiffe://td/ns/node/sa/node", None);
    }

    #[test]
    fn only_an_operator_is_an_operator() {
        let check = |text: &str, expected: Option<&str>| {
            let id: SpiffeId = text.parse().expect("an id");
            assert_eq!(id.operator().as_deref(), expected, "{text}");
        };
        check("spiffe://td/operator/alice", Some("alice"));
        for other in ["spiffe://td/node/alice", "spiffe://td/operator", "spiffe://td/operator/a/b"] {
            check(other, None);
        }
        check("spiffe://td/operator/Alice", None);
        assert_eq!("spiffe://td/operator/a".parse::<SpiffeId>().expect("an id").node(), None);
    }
}
