//! TLS to backends of Gateways.

use std::sync::Arc;

use rustls::ClientConnection;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;

use crate::compile::UpstreamTls;
use crate::identity::edge_backends;
use crate::model::AppProtocol;
use crate::net::{Stream, TlsIo};

/// Speaks TLS on a connection to a backend whose port declares `protocol`; else why that can't be.
pub(super) async fn shake(
    io: TcpStream,
    tls: &UpstreamTls,
    protocol: AppProtocol,
) -> Result<Stream, &'static str> {
    let alpn: &[u8] = match protocol {
        AppProtocol::Http2 | AppProtocol::Grpc => b"h2",
        AppProtocol::Http | AppProtocol::Tcp | AppProtocol::Undeclared => b"http/1.1",
    };
    let config = tls.config(|terms| edge_backends::client_config(terms, alpn));
    let config = config.ok_or("upstream_tls_no_ca")?;
    let name = ServerName::try_from(tls.terms.hostname.to_string()).map_err(|_| "upstream_tls_wrong_name")?;
    let session = ClientConnection::new(Arc::clone(config), name).map_err(|_| "upstream_tls_incompatible")?;
    let io = TlsIo::new(io, session);
    io.shake().await.map_err(|error| edge_backends::refusal(&error))?;
    let spoken = io.session(|session| session.alpn_protocol().map(<[u8]>::to_vec));
    // HTTP/1.1 is what a server speaks that does not say; HTTP/2 it has to say.
    if alpn == b"h2" && spoken.as_deref() != Some(alpn) {
        return Err("upstream_tls_incompatible");
    }
    Ok(Stream::Tls(Box::new(io)))
}
