//! What connections to a port's endpoints are kept within, by who makes them.

use std::sync::{Arc, OnceLock};

use rustls::ClientConfig;

use crate::model::{BackendTls, ClientTls};

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
