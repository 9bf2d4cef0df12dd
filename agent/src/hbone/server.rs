//! The end of a tunnel that is dialled.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use h2::server::{Builder, Connection};
use http::{Method, Request};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::{
    CONNECTION_WINDOW_BYTES, FRAME_MAX_BYTES, HANDSHAKE, HEAD_MAX_BYTES, Mesh, Role, STREAM_WINDOW_BYTES,
    STREAMS_MAX, STREAMS_SPARE, Standing,
};
use crate::identity::tls::{self, Terms};
use crate::identity::{Binding, PeerRefusal, RefusedPeer};
use crate::net::ReadAhead;

/// A connection whose streams are tunnels.
pub type Tunnel = Connection<TlsStream<ReadAhead>, Bytes>;

/// A connection that became no tunnel.
#[derive(Debug)]
pub struct Unmade {
    /// Why not.
    pub refused: RefusedPeer,
    /// The connection, where the peer has just been told in TLS; it has to linger for the peer to read it.
    pub told: Option<ReadAhead>,
}

impl From<PeerRefusal> for Unmade {
    fn from(why: PeerRefusal) -> Self {
        Self { refused: why.into(), told: None }
    }
}

/// Answers a connection; counts one that goes well. Answers what the tunnel rests on as well.
pub async fn accept(mesh: &Mesh, io: TcpStream, terms: Terms) -> Result<(Tunnel, Standing), Unmade> {
    let shaken = tokio::time::timeout(HANDSHAKE, shake(mesh, io, terms)).await;
    let shaken = shaken.unwrap_or(Err(PeerRefusal::Timeout.into()))?;
    mesh.counts().handshakes.done(Role::Server);
    Ok(shaken)
}

/// Refuses a connection to a pod that has no certificate, in TLS.
pub async fn refuse(mesh: &Mesh, io: TcpStream) -> Unmade {
    let refusing = tokio::time::timeout(HANDSHAKE, tls::refuse(ReadAhead::new(io), mesh.clock())).await;
    Unmade { refused: PeerRefusal::NoOwnCertificate.into(), told: refusing.ok().flatten() }
}

async fn shake(mesh: &Mesh, io: TcpStream, terms: Terms) -> Result<(Tunnel, Standing), Unmade> {
    let (own, peer) = (Arc::clone(&terms.own), terms.peer.clone());
    let accepted = tls::accept(ReadAhead::new(io), terms, mesh.clock()).await;
    let io = accepted.map_err(|(refused, io)| Unmade { refused, told: Some(io) })?;
    let connection = io.get_ref().1;
    let binding = Binding::of(connection).ok_or(PeerRefusal::Incompatible)?;
    let shown = connection.peer_certificates().ok_or(PeerRefusal::NoCertificate)?.to_vec();
    let (leaf, intermediates) = shown.split_first().ok_or(PeerRefusal::NoCertificate)?;
    let peer = peer.expected(leaf, intermediates)?;
    let standing = Standing::new(Role::Server, binding, (own, peer), shown);
    let tunnel = Builder::new()
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_MAX + STREAMS_SPARE)
        .max_frame_size(FRAME_MAX_BYTES)
        .max_header_list_size(HEAD_MAX_BYTES)
        .handshake(io)
        .await
        .map_err(|_| PeerRefusal::Closed)?;
    Ok((tunnel, standing))
}

/// Where a stream leads, which must be the pod that the tunnel was dialled at; else why it is refused.
pub fn destination<Body>(request: &Request<Body>, pod: IpAddr) -> Result<SocketAddr, PeerRefusal> {
    if request.method() != Method::CONNECT || request.uri().path_and_query().is_some() {
        return Err(PeerRefusal::NotConnect);
    }
    let bad = PeerRefusal::OtherDestination;
    let authority = request.uri().authority().ok_or(bad)?;
    let to: SocketAddr = authority.as_str().parse().map_err(|_| bad)?;
    // A tunnel within a tunnel would lead back here.
    if to.ip() == pod && to.port() != 0 && to.port() != super::PORT { Ok(to) } else { Err(bad) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_leads_to_the_pod_that_was_dialled_and_nowhere_else() {
        let pod = "10.0.0.9".parse().expect("an address");
        let cases = [
            (Method::CONNECT, "10.0.0.9:80", Some("10.0.0.9:80")),
            (Method::CONNECT, "10.0.0.9:65535", Some("10.0.0.9:65535")),
            (Method::CONNECT, "10.0.0.8:80", None),
            (Method::CONNECT, "10.0.0.9:0", None),
            (Method::CONNECT, "10.0.0.9:15008", None),
            (Method::CONNECT, "10.0.0.9", None),
            (Method::CONNECT, "user@10.0.0.9:80", None),
            (Method::CONNECT, "shop.test:80", None),
            (Method::CONNECT, "[::ffff:10.0.0.9]:80", None),
            (Method::CONNECT, "http://10.0.0.9:80/", None),
            (Method::GET, "10.0.0.9:80", None),
            (Method::GET, "http://10.0.0.9:80/", None),
            (Method::GET, "/", None),
        ];
        for (method, uri, expected) in cases {
            let request = Request::builder().method(&method).uri(uri).body(()).expect("a request");
            let expected = expected.map(|to| to.parse().expect("an address"));
            let said = destination(&request, pod);
            assert_eq!(said.ok(), expected, "{method} {uri}");
            let is_other = method == Method::CONNECT && !uri.ends_with('/');
            let why = if is_other { PeerRefusal::OtherDestination } else { PeerRefusal::NotConnect };
            assert!(said.is_ok() || said == Err(why), "{method} {uri}: {said:?}");
        }
        let request = Request::builder().method(Method::CONNECT).uri("[fd00::1]:80").body(()).expect("one");
        let pod = "fd00::1".parse().expect("an address");
        assert_eq!(destination(&request, pod), Ok("[fd00::1]:80".parse().expect("an address")));
    }
}
