//! HTTP/2 connections of one worker to upstreams: many requests at once on each, a further connection once all streams of
//! those there are taken.
//!
//! A connection is given out for one request at a time, as a [`Lease`]. It leaves the pool when it is closed, when its
//! peer says GOAWAY (requests under way end in peace), or when it has carried nothing for the idle time.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Ping, PingPong};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{PoolKey, PoolLimits};
use crate::net::{PeerAlert, Stream};

/// Connections for one key. With 100 streams each that is more than one endpoint serves.
const MAX_PER_KEY: usize = 64;

/// How a peer is asked whether it still lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// Time between two PINGs.
    pub every: Duration,
    /// How long the answer may take.
    pub patience: Duration,
}

impl Keepalive {
    /// Pings until an answer stays out; for ever where nothing is to be asked.
    pub async fn dead(keepalive: Option<Self>, ping: Option<PingPong>) {
        let (Some(this), Some(mut ping)) = (keepalive, ping) else { return std::future::pending().await };
        loop {
            tokio::time::sleep(this.every).await;
            match tokio::time::timeout(this.patience, ping.ping(Ping::opaque())).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }
}

/// HTTP/2 connections; clones share them.
#[derive(Debug, Clone)]
pub struct Http2Pool(Rc<RefCell<Shelves>>);

#[derive(Debug)]
struct Shelves {
    limits: PoolLimits,
    by_key: HashMap<PoolKey, Shelf, foldhash::fast::RandomState>,
    /// Connections on all shelves.
    total: usize,
    sweeping: bool,
}

#[derive(Debug, Default)]
struct Shelf {
    connections: Vec<Rc<Shared>>,
    dialling: bool,
    dialled: Rc<Notify>,
}

#[derive(Debug)]
struct Shared {
    /// Where it lies while it takes requests.
    pool: Weak<RefCell<Shelves>>,
    key: PoolKey,
    /// What requests are sent by is a clone of it.
    send: RefCell<SendRequest<Bytes>>,
    streams: Cell<usize>,
    since: Cell<Instant>,
    served: Cell<bool>,
    closed: Rc<Cell<bool>>,
    /// Of the HTTP/2 library's errors none tells of it.
    alert: PeerAlert,
}

impl Shelves {
    /// A connection has become idle: lets the one go that has been for longest, where there are too many now. Only idle ones
    /// count, of which the walk over all is spared while there are few connections at all.
    fn settle(&mut self, key: &PoolKey) {
        let PoolLimits { per_key, total, .. } = self.limits;
        if let Some(shelf) = self.by_key.get_mut(key)
            && shelf.connections.len() > per_key
            && shelf.idle().count() > per_key
            && let Some((_, at)) = shelf.idle().min()
        {
            shelf.connections.swap_remove(at);
            self.total -= 1;
        }
        if self.total <= total
            || self.by_key.values().map(|shelf| shelf.idle().count()).sum::<usize>() <= total
        {
            return;
        }
        let oldest = self.by_key.values_mut().filter_map(|shelf| Some((shelf.idle().min()?, shelf)));
        if let Some(((_, at), of_it)) = oldest.min_by_key(|(idle, _)| *idle) {
            of_it.connections.swap_remove(at);
            self.total -= 1;
        }
    }

    fn count(&mut self) {
        self.total = self.by_key.values().map(|shelf| shelf.connections.len()).sum();
    }
}

impl Shelf {
    /// The connections without streams: since when, and where they are.
    fn idle(&self) -> impl Iterator<Item = (Instant, usize)> {
        let idle = self.connections.iter().enumerate().filter(|(_, shared)| shared.streams.get() == 0);
        idle.map(|(at, shared)| (shared.since.get(), at))
    }

    /// The connection with the fewest streams of those that have room.
    fn least_busy(&self) -> Option<usize> {
        let free = self.connections.iter().enumerate().filter(|(_, shared)| shared.has_room());
        free.min_by_key(|(_, shared)| shared.streams.get()).map(|(at, _)| at)
    }
}

impl Shared {
    /// Whether it takes further requests, once streams are free.
    fn is_open(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        !self.closed.get() && !matches!(self.send.borrow_mut().poll_ready(&mut cx), Poll::Ready(Err(_)))
    }

    fn has_room(&self) -> bool {
        self.streams.get() < self.send.borrow().current_max_send_streams()
    }
}

/// What is to be done to get a stream.
#[derive(Debug)]
pub enum Turn {
    /// Nothing: here it is.
    Stream(Lease),
    /// Connect, then [`DialTurn::add`] the connection. Dropped, it is another one's turn.
    Dial(DialTurn),
    /// Wait until whoever is connecting is done, then ask again.
    Wait(Rc<Notify>),
    /// Give up: there are as many connections for the key as there may be, and all are full.
    Full,
}

/// The right and the duty to connect.
#[derive(Debug)]
pub struct DialTurn {
    pool: Http2Pool,
    key: PoolKey,
}

/// A stream's place on a connection, until dropped.
#[derive(Debug)]
pub struct Lease {
    shared: Rc<Shared>,
    /// Whether the connection has carried a request before, so that its peer may have closed it meanwhile.
    pub reused: bool,
}

impl Lease {
    fn new(shared: &Rc<Shared>) -> Self {
        shared.streams.set(shared.streams.get() + 1);
        Self { reused: shared.served.replace(true), shared: Rc::clone(shared) }
    }

    /// Whether the peer has ended the connection with a TLS alert.
    pub fn is_alerted(&self) -> bool {
        self.shared.alert.is_heard()
    }

    /// Sends requests; good for one.
    pub fn sender(&self) -> SendRequest<Bytes> {
        self.shared.send.borrow().clone()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Shared { pool, key, streams, since, .. } = &*self.shared;
        streams.set(streams.get() - 1);
        if streams.get() > 0 {
            return;
        }
        since.set(Instant::now());
        if let Some(pool) = pool.upgrade() {
            pool.borrow_mut().settle(key);
        }
    }
}

impl Http2Pool {
    /// An empty pool.
    pub fn new(limits: PoolLimits) -> Self {
        Self(Rc::new(RefCell::new(Shelves { limits, by_key: HashMap::default(), total: 0, sweeping: false })))
    }

    /// A place on the least busy connection, or what is to be done to get one.
    pub fn take(&self, key: &PoolKey) -> Turn {
        let mut borrowed = self.0.borrow_mut();
        let shelves = &mut *borrowed;
        if let Some(shelf) = shelves.by_key.get_mut(key) {
            while let Some(at) = shelf.least_busy() {
                if shelf.connections[at].is_open() {
                    return Turn::Stream(Lease::new(&shelf.connections[at]));
                }
                shelf.connections.swap_remove(at);
                shelves.total -= 1;
            }
            if shelf.dialling {
                return Turn::Wait(Rc::clone(&shelf.dialled));
            }
            if shelf.connections.len() >= MAX_PER_KEY {
                return Turn::Full;
            }
        }
        shelves.by_key.entry(key.clone()).or_default().dialling = true;
        Turn::Dial(DialTurn { pool: self.clone(), key: key.clone() })
    }

    /// Gives no more requests to the connections whose keys are not to be kept. They close once those that they carry
    /// have ended.
    pub fn retain(&self, keep: impl Fn(&PoolKey) -> bool) {
        let mut shelves = self.0.borrow_mut();
        shelves.by_key.retain(|key, shelf| {
            let keeps = keep(key);
            if !keeps {
                shelf.connections.clear();
            }
            keeps || shelf.dialling
        });
        shelves.count();
    }

    /// How many connections there are.
    pub fn len(&self) -> usize {
        self.0.borrow().total
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keeps a connection that was opened outside of a turn, and gives a place on it. It takes the place of the one that is
    /// idle for longest, as nobody would ever ask for as many as are opened so. Within a `LocalSet`.
    pub async fn add_unasked(
        &self,
        key: &PoolKey,
        io: impl Into<Stream>,
        builder: &h2::client::Builder,
        keepalive: Option<Keepalive>,
    ) -> Result<Lease, h2::Error> {
        let lease = self.add(key, io, builder, keepalive).await?;
        let mut shelves = self.0.borrow_mut();
        if let Some(shelf) = shelves.by_key.get_mut(key)
            && let Some((_, at)) = shelf.idle().min()
        {
            shelf.connections.swap_remove(at);
            shelves.total -= 1;
        }
        drop(shelves);
        Ok(lease)
    }

    /// Keeps a connection, and gives a place on it.
    async fn add(
        &self,
        key: &PoolKey,
        io: impl Into<Stream>,
        builder: &h2::client::Builder,
        keepalive: Option<Keepalive>,
    ) -> Result<Lease, h2::Error> {
        let io = io.into();
        let alert = io.peer_alert();
        let (send, mut connection) = builder.handshake(io).await?;
        let closed = Rc::new(Cell::new(false));
        let shared = Rc::new(Shared {
            pool: Rc::downgrade(&self.0),
            key: key.clone(),
            send: RefCell::new(send),
            streams: Cell::new(0),
            since: Cell::new(Instant::now()),
            served: Cell::new(false),
            closed: Rc::clone(&closed),
            alert,
        });
        let dead = Keepalive::dead(keepalive, connection.ping_pong());
        let address = key.address;
        tokio::task::spawn_local(async move {
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(%address, %error, "an upstream's HTTP/2 connection ended");
                },
                () = dead => tracing::debug!(%address, "an upstream answers no PING"),
            }
            closed.set(true);
        });
        let mut shelves = self.0.borrow_mut();
        let lease = Lease::new(&shared);
        shelves.by_key.entry(key.clone()).or_default().connections.push(shared);
        shelves.total += 1;
        if !shelves.sweeping {
            shelves.sweeping = true;
            tokio::task::spawn_local(sweep(Rc::downgrade(&self.0), shelves.limits.idle / 2));
        }
        Ok(lease)
    }
}

impl DialTurn {
    /// Keeps the connection that was made.
    pub async fn add(
        self,
        io: impl Into<Stream>,
        builder: &h2::client::Builder,
        keepalive: Option<Keepalive>,
    ) -> Result<Lease, h2::Error> {
        self.pool.add(&self.key, io, builder, keepalive).await
    }
}

impl Drop for DialTurn {
    fn drop(&mut self) {
        if let Some(shelf) = self.pool.0.borrow_mut().by_key.get_mut(&self.key) {
            shelf.dialling = false;
            shelf.dialled.notify_waiters();
        }
    }
}

/// Sweeps until the pool is empty or gone. A connection without streams closes once nobody can start one.
async fn sweep(shelves: Weak<RefCell<Shelves>>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let Some(shelves) = shelves.upgrade() else { return };
        let mut inner = shelves.borrow_mut();
        let idle = inner.limits.idle;
        for shelf in inner.by_key.values_mut() {
            shelf.connections.retain(|shared| {
                shared.is_open() && (shared.streams.get() > 0 || shared.since.get().elapsed() < idle)
            });
        }
        inner.by_key.retain(|_, shelf| shelf.dialling || !shelf.connections.is_empty());
        inner.count();
        if inner.by_key.is_empty() {
            inner.sweeping = false;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::LocalSet;

    use super::*;

    fn key() -> PoolKey {
        PoolKey {
            uid: None,
            address: SocketAddr::from(([127, 0, 0, 1], 1)),
            source: crate::net::ConnectSource::Node,
            security: crate::compile::Security::Way,
            server_name: None,
        }
    }

    /// A connection to a server that allows so many streams and says GOAWAY when told.
    async fn connected(streams: u32, goaway: Rc<Notify>) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        tokio::task::spawn_local(async move {
            let (io, _) = listener.accept().await.expect("accepts");
            let mut builder = h2::server::Builder::new();
            let mut connection =
                builder.max_concurrent_streams(streams).handshake::<_, Bytes>(io).await.expect("HTTP/2");
            let mut held = Vec::new();
            loop {
                tokio::select! {
                    accepted = connection.accept() => match accepted {
                        Some(Ok(stream)) => held.push(stream),
                        _ => return,
                    },
                    () = goaway.notified() => connection.graceful_shutdown(),
                }
            }
        });
        TcpStream::connect(address).await.expect("connects")
    }

    async fn dial(pool: &Http2Pool, streams: u32, goaway: &Rc<Notify>) -> Lease {
        let Turn::Dial(turn) = pool.take(&key()) else { panic!("no turn to dial") };
        assert!(matches!(pool.take(&key()), Turn::Wait(_)), "one dials at a time");
        let io = connected(streams, Rc::clone(goaway)).await;
        turn.add(io, &h2::client::Builder::new(), None).await.expect("a connection")
    }

    /// Lets the connections' tasks run until `done`.
    async fn until(done: impl Fn() -> bool) {
        while !done() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn streams_share_a_connection_until_it_is_full() {
        LocalSet::new()
            .run_until(async {
                let (pool, goaway) = (Http2Pool::new(PoolLimits::default()), Rc::new(Notify::new()));
                let first = dial(&pool, 2, &goaway).await;
                until(|| first.shared.send.borrow().current_max_send_streams() == 2).await;
                let Turn::Stream(second) = pool.take(&key()) else { panic!("no second stream") };
                assert!(!first.reused && second.reused && Rc::ptr_eq(&first.shared, &second.shared));
                let third = dial(&pool, 2, &goaway).await;
                assert!(!Rc::ptr_eq(&first.shared, &third.shared) && pool.len() == 2);
                drop((first, second));
                let Turn::Stream(fourth) = pool.take(&key()) else { panic!("no free stream") };
                assert!(!Rc::ptr_eq(&fourth.shared, &third.shared), "the least busy one");
            })
            .await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn goaway_and_failed_dials_make_room_for_a_new_connection() {
        LocalSet::new()
            .run_until(async {
                let (pool, goaway) = (Http2Pool::new(PoolLimits::default()), Rc::new(Notify::new()));
                let Turn::Dial(turn) = pool.take(&key()) else { panic!("no turn to dial") };
                let Turn::Wait(dialled) = pool.take(&key()) else { panic!("nothing to wait for") };
                let waiting = dialled.notified();
                drop(turn);
                waiting.await;
                let first = dial(&pool, 2, &goaway).await;
                goaway.notify_one();
                until(|| !first.shared.is_open()).await;
                let second = dial(&pool, 2, &goaway).await;
                assert!(!Rc::ptr_eq(&first.shared, &second.shared) && pool.len() == 1);
            })
            .await;
    }

    fn key_of(uid: &str) -> PoolKey {
        PoolKey { uid: Some(uid.into()), ..key() }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn idle_connections_alone_are_bounded() {
        LocalSet::new()
            .run_until(async {
                let limits = PoolLimits { total: 1, ..PoolLimits::default() };
                for (limits, kept) in [
                    (limits, &["b"][..]),
                    (PoolLimits { total: 0, ..limits }, &[]),
                    (PoolLimits { total: 9, per_key: 0, ..limits }, &[]),
                    (PoolLimits { total: 9, per_key: 1, ..limits }, &["a", "b"]),
                ] {
                    let pool = Http2Pool::new(limits);
                    let goaway = Rc::new(Notify::new());
                    let mut leases = Vec::new();
                    for uid in ["a", "b", "c"] {
                        let Turn::Dial(turn) = pool.take(&key_of(uid)) else { panic!("no turn to dial") };
                        let io = connected(2, Rc::clone(&goaway)).await;
                        let lease = turn.add(io, &h2::client::Builder::new(), None).await;
                        leases.push(lease.expect("a connection"));
                    }
                    assert_eq!(pool.len(), 3, "all are busy: {limits:?}");
                    leases.drain(..2);
                    for uid in ["a", "b"] {
                        let is_kept = matches!(pool.take(&key_of(uid)), Turn::Stream(_));
                        assert_eq!(is_kept, kept.contains(&uid), "{uid} of {limits:?}");
                    }
                    assert!(matches!(pool.take(&key_of("c")), Turn::Stream(_)), "{limits:?}");
                    pool.retain(|key| key.uid.as_deref() != Some("c"));
                    assert_eq!(pool.len(), kept.len(), "{limits:?}");
                    assert!(leases[0].shared.is_open(), "what is under way goes on");
                }
            })
            .await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn idle_connections_are_closed() {
        LocalSet::new()
            .run_until(async {
                let limits = PoolLimits { idle: Duration::from_millis(2), ..PoolLimits::default() };
                let pool = Http2Pool::new(limits);
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
                let io = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connects");
                let (mut far, _) = listener.accept().await.expect("accepts");
                drop(pool.add(&key(), io, &h2::client::Builder::new(), None).await.expect("a connection"));
                let mut all = Vec::new();
                far.read_to_end(&mut all).await.expect("a clean end");
                assert!(pool.is_empty() && all.starts_with(b"PRI * HTTP/2.0"));
            })
            .await;
    }
}
