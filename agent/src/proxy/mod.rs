//! The request's phases in one readable place: what happens to an accepted connection.

mod access;
mod admission;
mod answer;
mod captured;
mod carrier;
mod crowded;
mod detect;
mod handshakes;
pub mod http;
mod http2;
mod limits;
mod open;
mod passthrough;
pub(crate) mod random;
mod refusals;
mod settings;
mod tcp;
mod tls;
mod tunnels;
mod upstream_tls;
mod worker;

pub use admission::{Admission, AdmissionSettings};
pub use handshakes::{HandshakeSettings, Handshakes};
pub use open::{OpenConnection, OpenConnections, Protocol, Shown};
pub use random::Random;
pub use refusals::{PushDownSettings, Refusals};
pub use settings::{InvalidSetting, ProxySettings, Setting};
pub use tls::Handshaken;
pub use worker::{Captured, Command, WorkerHandle, WorkerSettings, start_worker};

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};

use crate::balance::Pick;
use crate::compile::RoutingTable;
use crate::limit::counters::Counters;
use crate::net::{Bridges, Connector, Stream};
use crate::telemetry::{Origin, Recorder};

use http::HttpWorker;

/// What lets bytes of opaque connections go past the agent, once it is there.
pub type SharedBridges = Arc<OnceLock<Arc<dyn Bridges>>>;

/// What one worker's connections share. Lives on one thread.
#[derive(Clone)]
pub struct Context {
    /// The table in force; load it once per request or connection and keep that `Arc`.
    pub tables: Arc<ArcSwap<RoutingTable>>,
    /// Tells of every new table.
    pub table_changed: Rc<Notify>,
    /// Opens upstream connections.
    pub connector: Rc<dyn Connector>,
    /// Takes the records.
    pub recorder: Rc<dyn Recorder>,
    /// True once the agent drains: finish what is in flight, then close.
    pub drain: watch::Receiver<bool>,
    /// The worker's open client connections; what a drain waits for.
    pub open: Arc<OpenConnections>,
    /// For choices among endpoints, and for request ids.
    pub random: Rc<Random>,
    /// Lets bytes of opaque connections go past the agent.
    pub bridges: SharedBridges,
    /// What limits of the cluster are counted by; `None`: this agent is alone.
    pub counters: Option<Arc<dyn Counters>>,
    /// What the worker's HTTP connections share.
    pub http: Rc<HttpWorker>,
}

/// An accepted client connection.
#[derive(Debug)]
pub struct Downstream<Io = TcpStream> {
    /// The socket, with what is spoken on it; `TCP_NODELAY` is set.
    pub io: Io,
    /// Bytes already read from it while its protocol was being told.
    pub read: BytesMut,
    /// The client.
    pub peer: SocketAddr,
    /// What the client dialled.
    pub original_destination: SocketAddr,
    /// Where it entered.
    pub origin: Origin,
    /// An upstream connection that was opened while the protocol was being told; used if the route picks that endpoint,
    /// else closed.
    pub early: Option<Early>,
    /// Shows it to those who ask what is open.
    pub shown: Shown,
    /// What its TLS handshake told, where it had one.
    pub tls: Option<Rc<Handshaken>>,
}

impl<Io: Into<Stream>> Downstream<Io> {
    /// The same, whatever it is on.
    fn into_stream(self) -> Downstream<Stream> {
        let Self { io, read, peer, original_destination, origin, early, shown, tls } = self;
        Downstream { io: io.into(), read, peer, original_destination, origin, early, shown, tls }
    }
}

/// A connection to an endpoint that was opened before there was a request for it.
#[derive(Debug)]
pub struct Early {
    /// The socket.
    pub io: TcpStream,
    /// The endpoint's load; `None`: it leads where the client dialled, an endpoint of a headless service.
    pub pick: Option<Pick>,
}
