//! TLS of clients of Gateways: the handshake, before which nothing of a request is read.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;
use rustls::server::Accepted;
use rustls::server::danger::ClientCertVerifier;
use rustls::{HandshakeKind, ProtocolVersion, ServerConnection};
use rustls_pki_types::UnixTime;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::Context;
use super::handshakes::{Shaken, Unshaken};
use super::http::plan;
use crate::compile::{GatewayListener, RoutingTable, TlsPort};
use crate::identity::edge_clients::{self, ClientCertificate};
use crate::identity::{PeerRefusal, edge};
use crate::net::{Stream, TlsIo, linger_refused, read_hello};
use crate::telemetry::{Flag, Origin, RequestRecord, TlsRecord};

/// What a handshake told of a client's connection.
#[derive(Debug)]
pub struct Handshaken {
    /// The listener that it led to, `namespace/gateway/listener`.
    pub listener: Arc<str>,
    /// The server name that the client asked for, in lower case.
    pub server_name: Option<Box<str>>,
    /// The version that is spoken, as Envoy writes it.
    pub version: &'static str,
    /// Whether the listener checks its clients' certificates.
    pub asks_clients: bool,
    /// Whether it carries bytes of which nothing is known, and not HTTP.
    pub is_opaque: bool,
    /// The client's certificate, where it showed a valid one.
    pub client: Option<ClientCertificate>,
}

impl Handshaken {
    /// What records say of it.
    pub(super) fn record(&self) -> TlsRecord<'_> {
        TlsRecord {
            listener: Some(&self.listener),
            version: Some(self.version),
            server_name: self.server_name.as_deref(),
            subject: self.client.as_ref().map(|client| &*client.subject),
        }
    }

    /// Whether a request for a host may come by this connection. Clients keep to the names of the certificate that they were
    /// shown; one listener's policies hold for requests that come by it, and not by another.
    pub fn takes(&self, gateway: &GatewayListener, host: &str) -> bool {
        // Nearly all ask for what they named.
        if self.server_name.as_deref() == Some(host) {
            return true;
        }
        let owner = gateway.tls.as_ref().and_then(|port| port.servers.find(host));
        // A host that no listener has is for routing to refuse.
        owner.is_none_or(|owner| owner.listener == self.listener)
    }
}

/// The alert that no name here is the one asked for, as a record: fatal, `unrecognized_name` (RFC 6066 section 3).
const UNRECOGNISED_NAME: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 112];
/// The alert that this end can't go on: fatal, `internal_error`.
const INTERNAL_ERROR: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 80];

/// How TLS ends where a connection came in; `None`: plain HTTP is spoken there.
pub(super) fn wanted(context: &Context, origin: &Origin, dialled: SocketAddr) -> Option<Arc<TlsPort>> {
    let Origin::Gateway(name) = origin else { return None };
    let table = context.tables.load();
    plan::gateway(&table, name, dialled)?.tls.clone()
}

/// Ends TLS on a connection, or finds that it is to be passed on as it is; `None`: it did not come to either, which has been counted
/// and recorded, and the connection is closed.
pub(super) async fn accept(
    context: &Context,
    io: TcpStream,
    (peer, dialled): (SocketAddr, SocketAddr),
    origin: &Origin,
    port: &TlsPort,
) -> Option<Begun> {
    let start = Instant::now();
    let handshakes = context.http.admission().handshakes();
    let mut asked = Asked::default();
    let under_way = handshakes.begin();
    let shaken = match under_way {
        Err(why) => {
            let _ = io.set_zero_linger();
            Err((why, None))
        }
        Ok(_) => timeout(handshakes.timeout(), shake(io, port, &mut asked))
            .await
            .unwrap_or(Err((Unshaken::Peer(PeerRefusal::Timeout), None))),
    };
    match shaken {
        Ok(Shook::Ended(io, told, how)) => {
            handshakes.done(how);
            Some(Begun::Ended(Stream::Tls(io), Rc::new(told)))
        }
        Ok(Shook::PassedOn(io, read, server_name)) => {
            handshakes.passed_on();
            Some(Begun::PassedOn(io, read, server_name))
        }
        Err((why, told)) => {
            handshakes.refused(why);
            tracing::debug!(%peer, reason = why.name(), "no TLS with a client");
            record(context, ((peer, dialled), origin), (why, start), &asked);
            // It counts as under way until the client has left: refusals are not to be had without bound.
            if let Some(mut io) = told {
                Box::pin(linger_refused(&mut io)).await;
            }
            None
        }
    }
}

/// One who only looks whether somebody listens leaves no record.
fn record(
    context: &Context,
    ((peer, original_destination), origin): ((SocketAddr, SocketAddr), &Origin),
    (why, start): (Unshaken, Instant),
    asked: &Asked,
) {
    let flag = match why {
        Unshaken::Peer(PeerRefusal::Closed) => return,
        Unshaken::Peer(PeerRefusal::Timeout) => Flag::IdleTimeout,
        Unshaken::TooMany => Flag::Overload,
        Unshaken::UnknownServerName | Unshaken::Peer(_) => Flag::DownstreamProtocol,
    };
    let table = context.tables.load();
    let listener = asked.listener.as_deref().or_else(|| only_listener(&table, origin, original_destination));
    let server_name = asked.server_name.as_deref();
    context.recorder.request(&RequestRecord {
        duration: start.elapsed(),
        origin,
        peer,
        original_destination,
        tls: Some(TlsRecord { listener, version: None, server_name, subject: None }),
        source: table.workloads.get(&peer.ip().to_canonical()),
        cluster: None,
        upstream: None,
        destination: None,
        route: None,
        method: "-",
        authority: "",
        path: "",
        protocol: "-",
        status: 0,
        grpc: false,
        grpc_status: None,
        flags: flag.into(),
        details: why.details(),
        denied: None,
        limited: None,
        request_bytes: 0,
        response_bytes: 0,
        request_id: "",
        user_agent: b"",
    });
}

/// The listener of a port that no other shares.
fn only_listener<'t>(table: &'t RoutingTable, origin: &Origin, dialled: SocketAddr) -> Option<&'t str> {
    let Origin::Gateway(name) = origin else { return None };
    match &plan::gateway(table, name, dialled)?.listeners[..] {
        [(listener, _)] => Some(listener),
        _ => None,
    }
}

/// What a client asked for, as far as it came to that.
#[derive(Debug, Default)]
struct Asked {
    server_name: Option<Box<str>>,
    /// The listener that it led to.
    listener: Option<Arc<str>>,
}

/// What came of a connection.
pub(super) enum Begun {
    /// TLS ends here.
    Ended(Stream, Rc<Handshaken>),
    /// It is passed on: what has been read of it, and the server name that it asks for.
    PassedOn(TcpStream, BytesMut, Option<Box<str>>),
}

enum Shook {
    Ended(Box<TlsIo>, Handshaken, Shaken),
    PassedOn(TcpStream, BytesMut, Option<Box<str>>),
}

/// Why there is no TLS, and the socket where the client has been told so.
type Refused = (Unshaken, Option<TcpStream>);

async fn shake(io: TcpStream, port: &TlsPort, asked: &mut Asked) -> Result<Shook, Refused> {
    let peer = |error: &io::Error| Unshaken::Peer(edge_clients::refusal(error));
    let (hello, read) = match read_hello(&io).await {
        Ok(hello) => hello,
        Err(error) => return Err((peer(&error), Some(io))),
    };
    let server_name = server_name(&hello);
    asked.server_name.clone_from(&server_name);
    let Some(server) = port.servers.find(server_name.as_deref().unwrap_or_default()) else {
        say(&io, &UNRECOGNISED_NAME);
        return Err((Unshaken::UnknownServerName, Some(io)));
    };
    asked.listener = Some(Arc::clone(&server.listener));
    if server.terms.is_none() {
        return Ok(Shook::PassedOn(io, read, server_name));
    }
    drop(read);
    let Some(config) = server.config(|terms| edge::server_config(terms, server.is_opaque)) else {
        say(&io, &INTERNAL_ERROR);
        return Err((Unshaken::Peer(PeerRefusal::NoOwnCertificate), Some(io)));
    };
    let session = match begin(hello, &config.server, &io) {
        Ok(session) => session,
        Err(error) => return Err((peer(&error), Some(io))),
    };
    let io = Box::new(TlsIo::new(io, session));
    if let Err(error) = io.shake().await {
        return Err((peer(&error), Some(io.into_socket())));
    }
    let (version, resumed) = io.session(|session| (session.protocol_version(), session.handshake_kind()));
    let is_13 = version == Some(ProtocolVersion::TLSv1_3);
    let how = Shaken { is_13, resumed: resumed == Some(HandshakeKind::Resumed) };
    let version = if is_13 { "TLSv1.3" } else { "TLSv1.2" };
    let told = Handshaken {
        listener: Arc::clone(&server.listener),
        server_name,
        version,
        asks_clients: config.clients.is_some(),
        is_opaque: server.is_opaque,
        client: config.clients.as_deref().and_then(|clients| client(&io, clients, config.only_valid)),
    };
    Ok(Shook::Ended(io, told, how))
}

/// The client's certificate, if it is valid. One that had to be has been found so in the handshake; a listener that takes others
/// too has looked at none.
fn client(io: &TlsIo, clients: &dyn ClientCertVerifier, only_valid: bool) -> Option<ClientCertificate> {
    io.session(|session| {
        let (leaf, intermediates) = session.peer_certificates()?.split_first()?;
        if !only_valid {
            clients.verify_client_cert(leaf, intermediates, UnixTime::now()).ok()?;
        }
        ClientCertificate::read(leaf)
    })
}

/// The name in the form in which hosts are matched.
fn server_name(hello: &Accepted) -> Option<Box<str>> {
    let hello = hello.client_hello();
    hello.server_name().map(|name| name.trim_end_matches('.').to_ascii_lowercase().into())
}

fn begin(
    hello: Accepted,
    config: &Arc<rustls::ServerConfig>,
    io: &TcpStream,
) -> io::Result<ServerConnection> {
    hello.into_connection(Arc::clone(config)).map_err(|(error, mut alert)| {
        let mut said = Vec::new();
        if alert.write(&mut said).is_ok() {
            say(io, &said);
        }
        io::Error::new(io::ErrorKind::InvalidData, error)
    })
}

/// An alert, to a peer whose socket has taken nothing yet. One that misses it learns from the end of the connection.
fn say(io: &TcpStream, alert: &[u8]) {
    let _ = io.try_write(alert);
}
