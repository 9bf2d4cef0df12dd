//! What upstream connections are kept within: TLS to the endpoint itself, or the mesh's.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::ClientConnection;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;

use crate::compile::{RoutingTable, UpstreamTls, Within};
use crate::hbone::pair;
use crate::identity::edge_backends;
use crate::net::{ConnectSource, Stream, TlsIo, relay_stream};

/// Why nothing is sent to an endpoint that only the mesh's mutual TLS may lead to.
pub(super) const OUTSIDE_MESH: &str = "upstream_outside_mesh";

/// Speaks TLS on a connection to an endpoint that is asked for `name`, where its terms name none; else why that can't be.
pub(super) async fn shake(
    io: TcpStream,
    tls: &UpstreamTls,
    (within, name): (Within, &str),
) -> Result<Stream, &'static str> {
    let config = tls.config(within, |terms| edge_backends::client_config(terms, within.alpn()));
    let config = config.ok_or("upstream_tls_no_ca")?;
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
pub(super) async fn shake_opaque(
    io: TcpStream,
    tls: &UpstreamTls,
    name: &str,
) -> Result<TcpStream, &'static str> {
    let mut stream = shake(io, tls, (Within::Opaque, name)).await?;
    let (near, far) = pair().await.map_err(|_| "connect_failed")?;
    tokio::task::spawn_local(async move {
        // It ends with either end, and whoever relays the other end says how it went.
        relay_stream(&mut Stream::Plain(far), &mut stream, std::future::pending()).await;
    });
    Ok(near)
}

/// Whether the mesh proves both ends of a connection to an endpoint: by a tunnel, or as both are on this node.
pub(super) fn is_in_mesh(table: &RoutingTable, source: ConnectSource, endpoint: IpAddr) -> bool {
    let realm = &table.realm;
    let is_known = match source {
        ConnectSource::Pod(pod) => {
            table.workloads.get(&pod.to_canonical()).is_some_and(|pod| realm.runs(pod))
        }
        ConnectSource::Gateway(_) => true,
        ConnectSource::Node | ConnectSource::Translated => false,
    };
    let is_reached = |pod: &crate::model::Workload| {
        realm.runs(pod) || (realm.tunnels && pod.node.is_some() && pod.is_tunnelled())
    };
    is_known && table.workloads.get(&endpoint.to_canonical()).is_some_and(|pod| is_reached(pod))
}
