//! The end of a tunnel that dials: a connector that goes through tunnels where both pods are in the mesh, and as ever where
//! not. It never goes without a tunnel because one failed.

mod shared_stream;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Method, Request, StatusCode};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::spawn_local;
use tokio_rustls::client::TlsStream;

use super::fields::{self, TraceIds};
use super::heard::{Heard, Verdict};
use super::{
    CONNECTION_WINDOW_BYTES, Ends, FRAME_MAX_BYTES, HANDSHAKE, HEAD_MAX_BYTES, Mesh, PORT, Role,
    STREAM_WINDOW_BYTES, STREAMS_MAX, Standing,
};
use crate::identity::tls::{self, Terms};
use crate::identity::{Binding, PeerRefusal, RefusedPeer, SpiffeId};
use crate::net::{ConnectSource, ConnectTarget, Connector, Line, ReadAhead};
use shared_stream::Shared;

/// A connection that had no stream for one to two of these is closed.
const IDLE: Duration = Duration::from_secs(150);
/// How often a stream is tried on another connection, where the first one went away before the peer knew of it.
const TRIES: usize = 3;

/// Connects through tunnels. One for each worker, which lives on its thread.
#[derive(Debug)]
pub struct TunnelConnector {
    inner: Rc<dyn Connector>,
    mesh: Arc<Mesh>,
    shelves: RefCell<HashMap<Key, Rc<Shelf>>>,
}

/// What two streams must have in common to share a connection: a pod's address may become another's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    source: ConnectSource,
    source_uid: Arc<str>,
    own: SpiffeId,
    destination: IpAddr,
    destination_uid: Arc<str>,
    peer: Option<SpiffeId>,
}

/// The connections of one key.
#[derive(Debug, Default)]
struct Shelf {
    /// Held while somebody dials, so that many at once share what comes of it.
    dialling: Mutex<()>,
    open: RefCell<Vec<Rc<Open>>>,
}

/// A connection.
#[derive(Debug)]
struct Open {
    /// `None` once it takes no more streams.
    requests: RefCell<Option<SendRequest<Bytes>>>,
    /// The same for what is asked beside streams; `None` once there are none and there will be none.
    asking: RefCell<Option<SendRequest<Bytes>>>,
    streams: Cell<u32>,
    used: Cell<bool>,
    /// Certificates of both ends hold for some time after that; new streams get a new connection from then on.
    until: SystemTime,
    refused: Verdict,
}

impl Open {
    fn takes_more(&self, now: SystemTime) -> bool {
        let room = self.streams.get() < STREAMS_MAX;
        room && now <= self.until && self.requests.borrow().is_some()
    }

    fn close(&self) {
        self.requests.take();
        if self.streams.get() == 0 {
            self.asking.take();
        }
    }
}

/// A place on a connection.
struct Place(Rc<Open>);

impl Place {
    fn on(open: &Rc<Open>) -> Self {
        open.streams.set(open.streams.get() + 1);
        open.used.set(true);
        Self(Rc::clone(open))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let streams = self.0.streams.get() - 1;
        self.0.streams.set(streams);
        if streams == 0 && self.0.requests.borrow().is_none() {
            self.0.asking.take();
        }
    }
}

/// Why there is no stream.
enum NoStream {
    /// The connection is gone, and the peer has seen nothing of it.
    Gone,
    Failed(io::Error),
}

impl TunnelConnector {
    /// `inner` opens the connections that are none of tunnels, and those that tunnels go through.
    pub fn new(inner: Rc<dyn Connector>, mesh: Arc<Mesh>) -> Self {
        Self { inner, mesh, shelves: RefCell::default() }
    }

    async fn tunnel(&self, source: ConnectSource, to: SocketAddr, ends: &Ends) -> io::Result<Shared> {
        let address = match source {
            ConnectSource::Pod(pod) => Some(pod),
            _ => None,
        };
        let terms = self.mesh.terms(&ends.source, &ends.destination).map_err(|why| {
            let dialled = SocketAddr::new(to.ip(), PORT);
            self.mesh.refused(Role::Client, (from(source), dialled), None, &why.into());
            io::Error::other(why)
        })?;
        let key = Key {
            source,
            source_uid: Arc::clone(&ends.source.uid),
            own: terms.own.id().clone(),
            destination: to.ip(),
            destination_uid: Arc::clone(&ends.destination.uid),
            peer: terms.peer.id().cloned(),
        };
        for _ in 0..TRIES {
            let place = self.place(&key, terms.clone()).await?;
            let said = fields::fields(&ends.source, address, &self.mesh.cluster, &trace_ids());
            match stream(&place, to, said).await {
                Ok(halves) => return Ok(Shared { halves, place }),
                Err(NoStream::Gone) => {
                    place.0.close();
                    // It would be no other the next time.
                    if let Some(why @ PeerRefusal::Refused) = place.0.refused.get() {
                        return Err(io::Error::other(why));
                    }
                }
                Err(NoStream::Failed(error)) => return Err(error),
            }
        }
        Err(io::ErrorKind::ConnectionReset.into())
    }

    /// A place on a connection that is there, or on a new one.
    async fn place(&self, key: &Key, terms: Terms) -> io::Result<Place> {
        let kept = Rc::clone(self.shelves.borrow_mut().entry(key.clone()).or_default());
        let _dialling = kept.dialling.lock().await;
        let now = self.mesh.now();
        let found = kept.open.borrow().iter().find(|open| open.takes_more(now)).map(Place::on);
        if let Some(place) = found {
            return Ok(place);
        }
        kept.open.borrow_mut().retain(|open| open.requests.borrow().is_some());
        self.forget_empty();
        let open = self.dial(key, terms).await?;
        let place = Place::on(&open);
        kept.open.borrow_mut().push(open);
        Ok(place)
    }

    /// Forgets keys without a connection.
    fn forget_empty(&self) {
        self.shelves.borrow_mut().retain(|_, shelf| {
            let open = shelf.open.borrow();
            Rc::strong_count(shelf) > 1 || open.iter().any(|open| open.requests.borrow().is_some())
        });
    }

    async fn dial(&self, key: &Key, terms: Terms) -> io::Result<Rc<Open>> {
        let address = SocketAddr::new(key.destination, PORT);
        let io = self.inner.connect(ConnectTarget { address, source: key.source }).await?;
        let (mesh, peer, ends) = (Arc::clone(&self.mesh), terms.peer.clone(), (from(key.source), address));
        let told = Rc::new(Cell::new(false));
        let telling = Rc::clone(&told);
        let tell = move |first: Result<(), PeerRefusal>| match first {
            Ok(()) => mesh.counts().handshakes.done(Role::Client),
            Err(why) => {
                telling.set(true);
                mesh.refused(Role::Client, ends, Some(&peer), &why.into());
            }
        };
        let peer = terms.peer.clone();
        let shaken = tokio::time::timeout(HANDSHAKE, shake(&self.mesh, io, terms, tell)).await;
        let (requests, connection, standing, refused) =
            shaken.unwrap_or(Err(PeerRefusal::Timeout.into())).map_err(|refused| {
                if !told.get() {
                    self.mesh.refused(Role::Client, ends, Some(&peer), &refused);
                }
                io::Error::other(refused.why)
            })?;
        let open = Rc::new(Open {
            requests: RefCell::new(Some(requests.clone())),
            asking: RefCell::new(Some(requests)),
            streams: Cell::new(0),
            used: Cell::new(true),
            until: standing.takes_streams_until(&self.mesh),
            refused,
        });
        spawn_local(drive(Arc::clone(&self.mesh), (connection, standing), Rc::clone(&open)));
        Ok(open)
    }
}

impl Connector for TunnelConnector {
    fn connect(&self, target: ConnectTarget) -> Pin<Box<dyn Future<Output = io::Result<TcpStream>> + '_>> {
        match self.mesh.ends(target.source, target.address.ip()) {
            Some(ends) => Box::pin(async move {
                let stream = self.tunnel(target.source, target.address, &ends).await?;
                stream.join().await
            }),
            None => self.inner.connect(target),
        }
    }

    fn open(&self, target: ConnectTarget) -> Pin<Box<dyn Future<Output = io::Result<Line>> + '_>> {
        match self.mesh.ends(target.source, target.address.ip()) {
            Some(ends) => Box::pin(async move {
                let stream = self.tunnel(target.source, target.address, &ends).await?;
                Ok(Line::Stream(Box::new(stream)))
            }),
            None => self.inner.open(target),
        }
    }
}

type Dialled = Connection<Heard<TlsStream<ReadAhead>>, Bytes>;

/// Who dials, as far as it has an address of its own.
fn from(source: ConnectSource) -> SocketAddr {
    let nobody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    SocketAddr::new(if let ConnectSource::Pod(pod) = source { pod } else { nobody }, 0)
}

/// Answers the connection, and what it rests on. `tell` hears whether the peer takes this end, which shows later.
async fn shake(
    mesh: &Mesh,
    io: TcpStream,
    terms: Terms,
    tell: impl FnOnce(Result<(), PeerRefusal>) + 'static,
) -> Result<(SendRequest<Bytes>, Dialled, Standing, Verdict), RefusedPeer> {
    let (own, peer) = (Arc::clone(&terms.own), terms.peer.clone());
    let io = tls::connect(ReadAhead::new(io), terms, mesh.clock()).await?;
    let connection = io.get_ref().1;
    let binding = Binding::of(connection).ok_or(PeerRefusal::Incompatible)?;
    let shown = connection.peer_certificates().ok_or(PeerRefusal::NoCertificate)?.to_vec();
    let (leaf, intermediates) = shown.split_first().ok_or(PeerRefusal::NoCertificate)?;
    let peer = peer.expected(leaf, intermediates)?;
    let standing = Standing::new(Role::Client, binding, (own, peer), shown);
    let (io, verdict) = Heard::new(io, tell);
    let (requests, connection) = Builder::new()
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_MAX_BYTES)
        .max_header_list_size(HEAD_MAX_BYTES)
        .enable_push(false)
        .handshake(io)
        .await
        .map_err(|_| verdict.get().unwrap_or(PeerRefusal::Closed))?;
    Ok((requests, connection, standing, verdict))
}

/// Runs a connection to its end. One that nobody uses takes no more streams, and ends by that; one whose certificates no
/// longer hold is dropped, which resets what goes through it.
async fn drive(mesh: Arc<Mesh>, (connection, standing): (Dialled, Standing), open: Rc<Open>) {
    let mut connection = pin!(connection);
    let mut lost = pin!(standing.kept(&mesh, || open.asking.borrow().clone()));
    loop {
        tokio::select! {
            ended = &mut connection => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a tunnel broke");
                }
                return open.close();
            }
            why = &mut lost => {
                if open.streams.get() > 0 {
                    mesh.counts().ended.refused(Role::Client, why);
                    tracing::warn!(peer = %standing.peer().id, reason = why.name(), "an open tunnel was ended");
                }
                return open.close();
            }
            () = tokio::time::sleep(IDLE) => {
                if open.streams.get() == 0 && !open.used.replace(false) {
                    open.close();
                }
            }
        }
    }
}

/// Asks the peer for a stream to an address of its pod.
async fn stream(
    place: &Place,
    to: SocketAddr,
    said: HeaderMap,
) -> Result<(SendStream<Bytes>, RecvStream), NoStream> {
    let Some(requests) = place.0.requests.borrow().clone() else { return Err(NoStream::Gone) };
    let mut requests = requests.ready().await.map_err(|_| NoStream::Gone)?;
    let request = Request::builder().method(Method::CONNECT).uri(to.to_string()).body(());
    let mut request = request.map_err(|error| NoStream::Failed(io::Error::other(error)))?;
    *request.headers_mut() = said;
    let (answer, send) = requests.send_request(request, false).map_err(|_| NoStream::Gone)?;
    drop(requests);
    let answer = answer.await.map_err(|error| {
        let unseen =
            error.reason() == Some(Reason::REFUSED_STREAM) || (error.is_go_away() && error.is_remote());
        match place.0.refused.get() {
            Some(why) => NoStream::Failed(io::Error::other(why)),
            None if unseen => NoStream::Gone,
            None => NoStream::Failed(io::Error::other(error)),
        }
    })?;
    let failed = |kind: io::ErrorKind| Err(NoStream::Failed(kind.into()));
    match answer.status() {
        StatusCode::OK => Ok((send, answer.into_body())),
        StatusCode::UNAUTHORIZED => failed(io::ErrorKind::PermissionDenied),
        StatusCode::SERVICE_UNAVAILABLE => failed(io::ErrorKind::ConnectionRefused),
        _ => failed(io::ErrorKind::InvalidData),
    }
}

/// A new trace. Without chance it is one that tells nothing.
fn trace_ids() -> TraceIds {
    let mut ids = [0; size_of::<TraceIds>()];
    let _ = SystemRandom::new().fill(&mut ids);
    ids
}
