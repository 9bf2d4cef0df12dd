//! What upstream connections are kept within: TLS to the endpoint itself, or the mesh's.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::ClientConnection;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;

use crate::compile::{NO_CA, RoutingTable, UpstreamTls, Within};
use crate::hbone::pair;
use crate::identity::edge_backends;
use crate::net::{ConnectSource, PeerAlert, Stream, TlsIo, relay_stream};

/// Speaks TLS on a connection to an endpoint that is asked for `name`, where its terms name none; else why that can't be.
pub(super) async fn shake(
    io: TcpStream,
    tls: &UpstreamTls,
    (within, name): (Within, &str),
) -> Result<Stream, &'static str> {
    let config = tls.config(within, |terms| edge_backends::client_config(terms, within.alpn()));
    let config = config.ok_or(NO_CA)?;
    let name = if tls.terms.hostname.is_empty() { name } else { &tls.terms.hostname };
    let name = name.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(name).map_err(|_| "upstream_tls_wrong_name")?;
    let session = ClientConnection::new(Arc::clone(config), name).map_err(|_| "upstream_tls_incompatible")?;
    let io = TlsIo::new(io, session);
    io.shake().await.map_err(|error| edge_backends::refusal(&error))?;
    let spoken = io.session(|session| session.alpn_protocol().map(<[u8]>::to_vec));
    // HTTP/1.1 is what a server speaks that does not say; HTTP/2 it has to say.
    if within == Within::Http2 && spoken.as_deref() != within.alpn() {
        return Err("upstream_tls_incompatible");
    }
    Ok(Stream::Tls(Box::new(io)))
}

/// The same for bytes that nobody looks at: what comes back is a socket like any other, whose bytes are plaintext within the agent.
/// An alert that comes in the place of the endpoint's first byte is told by `refused` before that socket ends.
pub(super) async fn shake_opaque(
    io: TcpStream,
    tls: &UpstreamTls,
    (name, refused): (&str, PeerAlert),
) -> Result<TcpStream, &'static str> {
    let mut stream = shake(io, tls, (Within::Opaque, name)).await?;
    let (near, far) = pair().await.map_err(|_| "connect_failed")?;
    tokio::task::spawn_local(async move {
        // It ends with either end, and whoever relays the other end says how it went.
        let mut far = Stream::Plain(far);
        let relayed = relay_stream(&mut far, &mut stream, std::future::pending()).await;
        if relayed.received == 0 && stream.peer_alert().is_heard() {
            refused.hear();
        }
    });
    Ok(near)
}

/// Whether the mesh proves both ends of a connection to an endpoint: by a tunnel, or as both are on this node.
pub(super) fn is_in_mesh(table: &RoutingTable, source: ConnectSource, endpoint: IpAddr) -> bool {
    let is_known = match source {
        ConnectSource::Pod(pod) => {
            table.workloads.get(&pod.to_canonical()).is_some_and(|pod| table.realm.runs(pod))
        }
        ConnectSource::Gateway(_) => true,
        ConnectSource::Node | ConnectSource::Translated => false,
    };
    is_known && table.reaches_in_mesh(endpoint)
}
