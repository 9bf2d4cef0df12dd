//! TLS of a Gateway's port: which listener a client's server name leads to, and what that one shows.

use std::sync::{Arc, OnceLock};

use rustls::ServerConfig;
use rustls::server::danger::ClientCertVerifier;

use super::GatewayListener;
use crate::model::{HostPattern, ListenerTls};
use crate::route::HostTable;

/// The listeners that share a port, by the server name that leads to each: exact before wildcard, the longest wildcard first,
/// then the listener for any host, which also takes clients that name none.
#[derive(Debug)]
pub struct TlsPort {
    /// The listeners.
    pub servers: HostTable<Arc<TlsServer>>,
}

/// What one listener shows.
#[derive(Debug)]
pub struct TlsServer {
    /// The listener, `namespace/gateway/listener`.
    pub listener: Arc<str>,
    /// How it ends TLS; `None`: it passes TLS on as it is.
    pub terms: Option<ListenerTls>,
    /// Whether what comes out of TLS that ends here is bytes of which nothing is known, and not HTTP.
    pub is_opaque: bool,
    /// The same for the TLS library: made when the first client comes, and kept for as long as the terms stay, with the keys
    /// of the session tickets that were given out. `None`: nothing can be shown.
    made: OnceLock<Option<MadeTls>>,
}

/// What a listener shows and believes, for the TLS library.
#[derive(Debug)]
pub struct MadeTls {
    /// How handshakes are answered.
    pub server: Arc<ServerConfig>,
    /// What finds clients' certificates valid, where they are asked for.
    pub clients: Option<Arc<dyn ClientCertVerifier>>,
    /// Whether the handshake has asked it: clients without a valid certificate don't come further.
    pub only_valid: bool,
}

impl TlsServer {
    /// For the TLS library; `make` makes it where that has not been done.
    pub fn config(&self, make: impl FnOnce(&ListenerTls) -> Option<MadeTls>) -> Option<&MadeTls> {
        self.made.get_or_init(|| self.terms.as_ref().and_then(make)).as_ref()
    }
}

/// A listener on which TLS is spoken.
#[derive(Debug, Clone)]
pub(super) struct InTls {
    /// The listener, `namespace/gateway/listener`.
    pub name: Arc<str>,
    /// The host that it is for.
    pub hostname: HostPattern,
    /// How it ends TLS, where it does.
    pub terms: Option<ListenerTls>,
    /// Whether it is no HTTP that is within.
    pub is_opaque: bool,
}

/// Compiles the listeners of a port on which TLS is spoken; those whose terms stay what they were are kept.
pub(super) fn compile(listeners: &[InTls], before: Option<&GatewayListener>) -> Option<Arc<TlsPort>> {
    if listeners.is_empty() {
        return None;
    }
    let before = before.and_then(|gateway| gateway.tls.as_ref());
    let servers = listeners.iter().map(|one| {
        let InTls { name, hostname, terms, is_opaque } = one;
        let is_same = |server: &Arc<TlsServer>| {
            server.listener == *name && server.terms == *terms && server.is_opaque == *is_opaque
        };
        let kept = before.and_then(|port| port.servers.get(hostname)).filter(|server| is_same(server));
        let server = kept.cloned().unwrap_or_else(|| {
            let (listener, terms, made) = (Arc::clone(name), terms.clone(), OnceLock::new());
            Arc::new(TlsServer { listener, terms, is_opaque: *is_opaque, made })
        });
        (hostname.clone(), server)
    });
    let port = TlsPort { servers: HostTable::new(servers) };
    match before {
        Some(before) if same(before, &port) => Some(Arc::clone(before)),
        _ => Some(Arc::new(port)),
    }
}

fn same(before: &TlsPort, after: &TlsPort) -> bool {
    before.servers.iter().count() == after.servers.iter().count()
        && before.servers.iter().zip(after.servers.iter()).all(|(a, b)| a.0 == b.0 && Arc::ptr_eq(a.1, b.1))
}

/// Whether two ports end TLS in the same way.
pub(super) fn is_same(before: Option<&Arc<TlsPort>>, after: Option<&Arc<TlsPort>>) -> bool {
    match (before, after) {
        (None, None) => true,
        (Some(before), Some(after)) => Arc::ptr_eq(before, after),
        _ => false,
    }
}
