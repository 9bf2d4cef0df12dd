//! What connections to a port's endpoints are kept within, by who makes them.

use std::sync::{Arc, OnceLock};

use rustls::ClientConfig;

use crate::model::{BackendTls, ClientTls, ObjectName};

/// Why nothing is sent to an endpoint that only the mesh's mutual TLS may lead to.
pub const OUTSIDE_MESH: &str = "upstream_outside_mesh";
/// Why nothing is sent to an endpoint of which there is nobody to believe who it is, or nothing to show it.
pub const NO_CA: &str = "upstream_tls_no_ca";

/// A DestinationRule that speaks of TLS to the endpoints of a cluster, be it that there shall be none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecuredBy {
    /// The document.
    pub rule: ObjectName,
    /// What it asks for, in Istio's words; `none`: it names the port, and asks for nothing.
    pub mode: &'static str,
}

impl SecuredBy {
    /// What a rule says of a port.
    pub(super) fn new(rule: &ObjectName, said: Option<&ClientTls>) -> Self {
        let mode = match said {
            None => "none",
            Some(ClientTls::Disable) => "DISABLE",
            Some(ClientTls::Mesh) => "ISTIO_MUTUAL",
            Some(ClientTls::Own(terms)) if terms.client.is_some() => "MUTUAL",
            // One that can't show what it should is not told from one that has nothing to show.
            Some(ClientTls::Own(terms)) if terms.roots.are_none() => "SIMPLE or MUTUAL",
            Some(ClientTls::Own(_)) => "SIMPLE",
        };
        Self { rule: rule.clone(), mode }
    }
}

/// What connections to the endpoints of a cluster are kept within.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Security {
    /// What the way has of itself: a tunnel where the endpoint is reached by one, else nothing.
    #[default]
    Way,
    /// The mesh's mutual TLS, or the node that both ends are on; where there is neither, nothing is sent.
    Mesh,
    /// TLS to the endpoint itself, whatever the way.
    Tls(Arc<UpstreamTls>),
}

impl Security {
    /// What a rule asks for; what was there before is kept where it is the same.
    pub(super) fn keep(tls: Option<&ClientTls>, before: Option<&Self>) -> Self {
        match tls {
            None | Some(ClientTls::Disable) => Self::Way,
            Some(ClientTls::Mesh) => Self::Mesh,
            Some(ClientTls::Own(terms)) => Self::Tls(UpstreamTls::keep(terms, before)),
        }
    }

    /// The TLS to the endpoint itself.
    pub fn tls(&self) -> Option<&Arc<UpstreamTls>> {
        match self {
            Self::Tls(tls) => Some(tls),
            Self::Way | Self::Mesh => None,
        }
    }
}

/// What is spoken within TLS, as it is offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Within {
    /// HTTP/1.1
    Http1,
    /// HTTP/2
    Http2,
    /// Anything, and nothing is offered.
    Opaque,
}

impl Within {
    /// The name in ALPN.
    pub fn alpn(self) -> Option<&'static [u8]> {
        match self {
            Self::Http1 => Some(b"http/1.1"),
            Self::Http2 => Some(b"h2"),
            Self::Opaque => None,
        }
    }
}

/// How the endpoints of a port are dialled.
#[derive(Debug)]
pub struct UpstreamTls {
    /// What its documents say.
    pub terms: Arc<BackendTls>,
    /// The same for the TLS library, with the sessions that can be resumed, by what is offered; `None`: nobody is believed.
    made: [OnceLock<Option<Arc<ClientConfig>>>; 3],
}

/// Two are the same when they believe the same.
impl PartialEq for UpstreamTls {
    fn eq(&self, other: &Self) -> bool {
        self.terms == other.terms
    }
}

impl Eq for UpstreamTls {}

impl UpstreamTls {
    /// That of the table before, where it says the same.
    pub(super) fn keep(terms: &Arc<BackendTls>, before: Option<&Security>) -> Arc<Self> {
        match before.and_then(Security::tls) {
            Some(before) if before.terms == *terms => Arc::clone(before),
            _ => Arc::new(Self { terms: Arc::clone(terms), made: Default::default() }),
        }
    }

    /// For the TLS library; `make` makes it where that has not been done.
    pub fn config(
        &self,
        within: Within,
        make: impl FnOnce(&BackendTls) -> Option<Arc<ClientConfig>>,
    ) -> Option<&Arc<ClientConfig>> {
        self.made[within as usize].get_or_init(|| make(&self.terms)).as_ref()
    }
}
