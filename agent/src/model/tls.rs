//! TLS at Gateways: what a listener shows its clients.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use super::ObjectName;

/// How a listener ends TLS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerTls {
    /// What it may show, in order of preference. Empty: what is referred to can't be used, and handshakes are refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<Arc<ServerCertificate>>,
    /// The oldest version that is spoken.
    #[serde(default, skip_serializing_if = "TlsVersion::is_default")]
    pub min_version: TlsVersion,
    /// Whom it believes of its clients; `None`: it asks for no certificates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<ClientValidation>,
}

/// How a listener checks its clients' certificates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientValidation {
    /// Bundles of CA certificates, in PEM. Empty: what is referred to can't be used, and every client is refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roots: Vec<Arc<str>>,
    /// What becomes of clients without a valid certificate.
    pub mode: ClientMode,
}

/// What becomes of clients without a valid certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientMode {
    /// They are refused.
    Required,
    /// They are served; upstreams are told nothing of them.
    Optional,
}

/// How Gateways, or pods, speak TLS with the endpoints of a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendTls {
    /// The name that they are asked for. They have to prove it, unless `names` has any. Empty: the host that the client asks for,
    /// or the Service where it asks for none.
    pub hostname: Arc<str>,
    /// The names of which they have to prove one instead.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<BackendName>,
    /// Whom to believe.
    pub roots: BackendRoots,
    /// What is shown to them where they ask for a certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<Arc<ServerCertificate>>,
}

/// A name in a backend's certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendName {
    /// A DNS name, which a wildcard in the certificate covers too.
    Dns(Arc<str>),
    /// A URI, byte for byte.
    Uri(Arc<str>),
}

/// Whom to believe of backends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendRoots {
    /// The CAs that the machine believes.
    System,
    /// Bundles of CA certificates, in PEM. None: what is referred to can't be used, and the backends can't be reached.
    Bundles(Vec<Arc<str>>),
    /// Anybody, whatever they show.
    Anybody,
}

impl BackendRoots {
    /// Whether nobody is believed.
    pub fn are_none(&self) -> bool {
        matches!(self, Self::Bundles(bundles) if bundles.is_empty())
    }
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TlsVersion {
    /// 1.2, with forward secrecy and authenticated ciphers alone.
    #[default]
    #[serde(rename = "1.2")]
    Tls12,
    /// 1.3
    #[serde(rename = "1.3")]
    Tls13,
}

impl TlsVersion {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over references")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A certificate with its key, as a Secret holds them; both were read once, and fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerCertificate {
    /// The Secret.
    pub secret: ObjectName,
    /// The certificate and those behind it, in PEM.
    pub chain: Arc<str>,
    /// The key, in PEM.
    pub key: PrivateKey,
}

/// A private key in PEM. It is shown nowhere but on the wire to other agents, and wiped when nobody has it any more.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey(Arc<Zeroizing<String>>);

impl PrivateKey {
    /// Takes over a key.
    pub fn new(pem: Zeroizing<String>) -> Self {
        Self(Arc::new(pem))
    }

    /// The key itself.
    pub fn pem(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(not shown)")
    }
}

impl Serialize for PrivateKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for PrivateKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|pem| Self::new(Zeroizing::new(pem)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tls() -> ListenerTls {
        let key = PrivateKey::new(Zeroizing::new("the key itself".to_owned()));
        let secret = ObjectName::new("infra", "shop");
        ListenerTls {
            certificates: vec![Arc::new(ServerCertificate { secret, chain: "a chain".into(), key })],
            min_version: TlsVersion::Tls13,
            clients: Some(ClientValidation { roots: vec!["roots".into()], mode: ClientMode::Optional }),
        }
    }

    #[test]
    fn a_key_is_never_shown() {
        let shown = format!("{:?} {:#?}", tls(), tls());
        assert!(shown.contains("a chain") && !shown.contains("the key itself"), "{shown}");
    }

    #[test]
    fn what_other_agents_get_reads_back() {
        let written = serde_json::to_string(&tls()).expect("writes");
        assert!(
            written.contains("the key itself") && written.contains(r#""min_version":"1.3""#),
            "{written}"
        );
        assert_eq!(serde_json::from_str::<ListenerTls>(&written).expect("reads"), tls());
        let plain = ListenerTls { certificates: vec![], min_version: TlsVersion::Tls12, clients: None };
        assert_eq!(serde_json::to_string(&plain).expect("writes"), "{}");
        assert!(serde_json::from_str::<ListenerTls>(r#"{"min_version":"1.1"}"#).is_err());
    }
}
