//! Idle upstream connections of one worker, kept for the next request to the same endpoint as the same client.
//!
//! A connection is put here only between two messages, with nothing unread. It is taken last in, first out, so that
//! those not needed grow old and leave.

mod http2;

pub use http2::{DialTurn, Http2Pool, Keepalive, Lease, Turn};

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::compile::Security;
use crate::net::{ConnectSource, Stream};

/// How often idle connections are looked at for what their peers have closed. What is looked at is mostly what the event
/// loop knows; a peer that is short of sockets may need the other half gone soon.
const SWEEP_MAX: Duration = Duration::from_secs(1);

/// Bounds of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolLimits {
    /// How long a connection may stay unused. Below the keep-alive time of common servers (nginx: 75 s).
    pub idle: Duration,
    /// Idle connections for one key; the oldest leaves.
    pub per_key: usize,
    /// Idle connections of the worker; the oldest leave.
    pub total: usize,
}

impl PoolLimits {
    /// Whether a connection is closed as soon as it is unused.
    fn keeps_none(&self) -> bool {
        self.total == 0 || self.per_key == 0
    }
}

impl Default for PoolLimits {
    /// 60 s, 512 for a key, 4096 in all.
    fn default() -> Self {
        Self { idle: Duration::from_mins(1), per_key: 512, total: 4096 }
    }
}

/// What two requests must have in common to share a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolKey {
    /// The endpoint across address reuse; `None` for an address that no table names.
    pub uid: Option<Arc<str>>,
    /// Where it is.
    pub address: SocketAddr,
    /// The address that the endpoint sees; `None`: the node's own.
    pub source: ConnectSource,
    /// What it is kept within.
    pub security: Security,
    /// The name that was asked for in TLS, where its terms name none.
    pub server_name: Option<Arc<str>>,
}

/// The addresses tell nearly all keys apart, and cost less to hash than the name.
impl Hash for PoolKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u16(self.address.port());
        hash_ip(self.address.ip(), state);
        match self.source {
            ConnectSource::Pod(pod) => hash_ip(pod, state),
            ConnectSource::Node => state.write_u8(0),
            ConnectSource::Gateway(gateway) => gateway.hash(state),
            ConnectSource::Translated => state.write_u8(1),
        }
    }
}

fn hash_ip(address: IpAddr, state: &mut impl Hasher) {
    match address {
        IpAddr::V4(v4) => state.write_u32(v4.to_bits()),
        IpAddr::V6(v6) => state.write_u128(v6.to_bits()),
    }
}

/// How sure one must be that a connection lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// What the event loop has heard; costs no system call. For requests that can be sent again.
    Heard,
    /// What the kernel knows now. For requests that can't be sent again.
    Asked,
}

/// Idle connections; clones share them.
#[derive(Debug, Clone)]
pub struct Pool(Rc<RefCell<Shelves>>);

#[derive(Debug)]
struct Shelves {
    limits: PoolLimits,
    by_key: HashMap<PoolKey, Vec<Idle>, foldhash::fast::RandomState>,
    total: usize,
    sweeping: bool,
}

#[derive(Debug)]
struct Idle {
    io: Stream,
    since: Instant,
}

impl Pool {
    /// An empty pool.
    pub fn new(limits: PoolLimits) -> Self {
        let shelves = Shelves { limits, by_key: HashMap::default(), total: 0, sweeping: false };
        Self(Rc::new(RefCell::new(shelves)))
    }

    /// The connection that was used last, of those that live and are not too old at `now`.
    pub fn take(&self, key: &PoolKey, liveness: Liveness, now: Instant) -> Option<Stream> {
        let mut shelves = self.0.borrow_mut();
        let idle = shelves.limits.idle;
        loop {
            let kept = shelves.by_key.get_mut(key)?.pop()?;
            shelves.total -= 1;
            if now.duration_since(kept.since) < idle && is_between(&kept.io, liveness) {
                return Some(kept.io);
            }
        }
    }

    /// Keeps a connection that is between two messages since `now`. Within a local runtime, which runs the pool's sweeper.
    pub fn put(&self, key: PoolKey, io: impl Into<Stream>, now: Instant) {
        let per_key = self.0.borrow().limits.per_key;
        self.put_among(key, io.into(), now, per_key);
    }

    /// The same for one that was opened without the pool having been asked for one. It takes the place of the oldest that is
    /// idle, as nobody would ever ask for as many as are opened so.
    pub fn put_unasked(&self, key: PoolKey, io: impl Into<Stream>, now: Instant) {
        let idle = self.0.borrow().by_key.get(&key).map_or(0, Vec::len);
        let per_key = self.0.borrow().limits.per_key;
        self.put_among(key, io.into(), now, idle.clamp(1, per_key.max(1)));
    }

    /// Keeps at most so many for the key.
    fn put_among(&self, key: PoolKey, io: Stream, now: Instant, most: usize) {
        let mut shelves = self.0.borrow_mut();
        if shelves.limits.keeps_none() {
            return;
        }
        if shelves.total >= shelves.limits.total {
            shelves.make_room();
        }
        let idle = shelves.by_key.entry(key).or_default();
        idle.push(Idle { io, since: now });
        if idle.len() > most {
            idle.remove(0);
        } else {
            shelves.total += 1;
        }
        if !shelves.sweeping {
            shelves.sweeping = true;
            let every = (shelves.limits.idle / 2).min(SWEEP_MAX);
            tokio::task::spawn_local(sweep(Rc::downgrade(&self.0), every));
        }
    }

    /// Closes the connections whose keys are not to be kept.
    pub fn retain(&self, keep: impl Fn(&PoolKey) -> bool) {
        let mut shelves = self.0.borrow_mut();
        shelves.by_key.retain(|key, _| keep(key));
        shelves.count();
    }

    /// How many connections are idle.
    pub fn len(&self) -> usize {
        self.0.borrow().total
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Shelves {
    /// Drops what is too old or closed by its peer, and shelves that are empty.
    fn sweep(&mut self) {
        let (idle, now) = (self.limits.idle, Instant::now());
        for shelf in self.by_key.values_mut() {
            shelf.retain(|kept| {
                now.duration_since(kept.since) < idle && is_between(&kept.io, Liveness::Heard)
            });
        }
        self.count();
    }

    /// Lets the oldest eighth go, all at once: looking for them costs a walk over everything.
    fn make_room(&mut self) {
        let mut ages: Vec<Instant> = self.by_key.values().flatten().map(|kept| kept.since).collect();
        let leaving = (ages.len() / 8).max(1).min(ages.len());
        let Some(last) = leaving.checked_sub(1) else { return };
        let (_, newest, _) = ages.select_nth_unstable(last);
        let mut left = leaving;
        for shelf in self.by_key.values_mut() {
            // Several may be equally old.
            let old = shelf.iter().take_while(|kept| kept.since <= *newest).count().min(left);
            shelf.drain(..old);
            left -= old;
        }
        self.count();
    }

    fn count(&mut self) {
        self.by_key.retain(|_, shelf| !shelf.is_empty());
        self.total = self.by_key.values().map(Vec::len).sum();
    }
}

/// Sweeps until the pool is empty or gone.
async fn sweep(shelves: Weak<RefCell<Shelves>>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let Some(shelves) = shelves.upgrade() else { return };
        let mut inner = shelves.borrow_mut();
        inner.sweep();
        if inner.total == 0 {
            inner.sweeping = false;
            return;
        }
    }
}

/// Whether a peer has not closed, as far as the kernel knows; it may have spoken.
pub fn is_open(io: &TcpStream) -> bool {
    match peek(io) {
        Ok(bytes) => bytes > 0,
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    }
}

/// Whether a peer has neither closed nor said anything; between two messages it has no right to speak.
pub fn is_quiet(io: &TcpStream, liveness: Liveness) -> bool {
    match liveness {
        Liveness::Heard => {
            // Polling would not do: a task that has used up its budget gets no answer, which looks like a quiet peer.
            is_silent(io.try_io(Interest::READABLE, || peek(io)))
        }
        Liveness::Asked => is_silent(peek(io)),
    }
}

/// The same for a connection that may have TLS on it, whose own messages (tickets, new keys) are none of the peer's.
fn is_between(io: &Stream, liveness: Liveness) -> bool {
    if let Stream::Tls(tls) = io
        && !tls.is_quiet()
    {
        return false;
    }
    is_quiet(io.socket(), liveness)
}

fn peek(io: &TcpStream) -> io::Result<usize> {
    socket2::SockRef::from(io).peek(&mut [MaybeUninit::uninit()])
}

fn is_silent(peeked: io::Result<usize>) -> bool {
    peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;
    use tokio::task::LocalSet;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
        (client.expect("connects"), server.expect("accepts").0)
    }

    fn key(uid: &str) -> PoolKey {
        PoolKey {
            uid: Some(uid.into()),
            address: SocketAddr::from(([127, 0, 0, 1], 1)),
            source: ConnectSource::Node,
            security: Security::Way,
            server_name: None,
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_last_one_in_is_the_first_one_out_by_key() {
        LocalSet::new()
            .run_until(async {
                let pool = Pool::new(PoolLimits { per_key: 2, ..PoolLimits::default() });
                let pairs = [pair().await, pair().await, pair().await];
                let mut ports = Vec::new();
                let mut far_ends = Vec::new();
                for (near, far) in pairs {
                    ports.push(near.local_addr().expect("bound").port());
                    far_ends.push(far);
                    pool.put(key("a"), near, Instant::now());
                }
                assert_eq!(pool.len(), 2, "the oldest left");
                assert!(pool.take(&key("b"), Liveness::Heard, Instant::now()).is_none());
                for port in [ports[2], ports[1]] {
                    let taken = pool.take(&key("a"), Liveness::Asked, Instant::now()).expect("kept");
                    assert_eq!(taken.socket().local_addr().expect("bound").port(), port);
                }
                assert!(pool.take(&key("a"), Liveness::Heard, Instant::now()).is_none() && pool.is_empty());
            })
            .await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn closed_and_talking_connections_are_not_reused() {
        LocalSet::new()
            .run_until(async {
                let pool = Pool::new(PoolLimits::default());
                let (closed, far) = pair().await;
                drop(far);
                let (talking, mut talker) = pair().await;
                talker.write_all(b"x").await.expect("writes");
                for liveness in [Liveness::Asked, Liveness::Heard] {
                    // The event loop hears of both before they are asked about.
                    closed.readable().await.expect("readable");
                    talking.readable().await.expect("readable");
                    assert!(!is_quiet(&closed, liveness) && !is_quiet(&talking, liveness), "{liveness:?}");
                }
                pool.put(key("a"), closed, Instant::now());
                pool.put(key("a"), talking, Instant::now());
                assert!(pool.take(&key("a"), Liveness::Heard, Instant::now()).is_none());
            })
            .await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_closed_connection_is_told_by_a_task_without_budget() {
        let (closed, far) = pair().await;
        drop(far);
        closed.readable().await.expect("readable");
        while tokio::task::coop::has_budget_remaining() {
            tokio::task::coop::consume_budget().await;
        }
        assert!(!is_quiet(&closed, Liveness::Heard) && !is_quiet(&closed, Liveness::Asked));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_oldest_connections_leave_a_full_pool() {
        LocalSet::new()
            .run_until(async {
                let pool = Pool::new(PoolLimits { total: 16, ..PoolLimits::default() });
                let mut far_ends = Vec::new();
                for number in 0..17 {
                    let (near, far) = pair().await;
                    far_ends.push(far);
                    pool.put(key(&number.to_string()), near, Instant::now());
                }
                assert_eq!(pool.len(), 15, "two of sixteen made room for the seventeenth");
                for number in 0..17 {
                    let kept =
                        pool.take(&key(&number.to_string()), Liveness::Heard, Instant::now()).is_some();
                    assert_eq!(kept, number >= 2, "{number}");
                }
                let defaults = PoolLimits::default;
                for limits in [PoolLimits { total: 0, ..defaults() }, PoolLimits { per_key: 0, ..defaults() }]
                {
                    let none = Pool::new(limits);
                    let (near, mut far) = pair().await;
                    none.put(key("a"), near, Instant::now());
                    assert!(
                        none.is_empty() && none.take(&key("a"), Liveness::Heard, Instant::now()).is_none()
                    );
                    let read = tokio::io::AsyncReadExt::read(&mut far, &mut [0]).await;
                    assert_eq!(read.expect("a clean end"), 0, "closed at once");
                }
            })
            .await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn connections_of_what_is_gone_are_closed() {
        LocalSet::new()
            .run_until(async {
                let pool = Pool::new(PoolLimits::default());
                let ((near, mut far), (stays, _other)) = (pair().await, pair().await);
                pool.put(key("gone"), near, Instant::now());
                pool.put(key("stays"), stays, Instant::now());
                pool.retain(|key| key.uid.as_deref() != Some("gone"));
                let mut end = [0];
                let read = tokio::io::AsyncReadExt::read(&mut far, &mut end).await.expect("a clean end");
                assert_eq!((read, pool.len()), (0, 1));
                assert!(pool.take(&key("stays"), Liveness::Asked, Instant::now()).is_some());
            })
            .await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn old_connections_leave_although_nobody_asks_for_them() {
        LocalSet::new()
            .run_until(async {
                let pool = Pool::new(PoolLimits { idle: Duration::from_millis(2), ..PoolLimits::default() });
                let (near, mut far) = pair().await;
                pool.put(key("a"), near, Instant::now());
                // The sweeper's closing is what the far end waits for.
                let mut end = [0];
                let read = tokio::io::AsyncReadExt::read(&mut far, &mut end).await.expect("a clean end");
                assert_eq!((read, pool.len()), (0, 0));
            })
            .await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn closed_connections_leave_soon_although_nobody_asks_for_them() {
        LocalSet::new()
            .run_until(async {
                let pool = Pool::new(PoolLimits::default());
                let ((closed, mut far), (stays, _other)) = (pair().await, pair().await);
                pool.put(key("a"), closed, Instant::now());
                pool.put(key("b"), stays, Instant::now());
                far.shutdown().await.expect("closes its half");
                let started = Instant::now();
                // The sweeper's closing is what the far end waits for.
                let read = tokio::io::AsyncReadExt::read(&mut far, &mut [0]).await.expect("a clean end");
                assert!(read == 0 && started.elapsed() < PoolLimits::default().idle / 4);
                assert!(pool.take(&key("b"), Liveness::Heard, Instant::now()).is_some() && pool.is_empty());
            })
            .await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn connections_that_nobody_asked_for_take_the_place_of_others() {
        LocalSet::new()
            .run_until(async {
                let pool = Pool::new(PoolLimits::default());
                let mut far_ends = Vec::new();
                // What is put, whether somebody asked for it, and how many are idle then.
                for (name, asked, idle) in
                    [("a", false, 1), ("a", false, 1), ("b", false, 2), ("a", true, 3), ("a", false, 3)]
                {
                    let (near, far) = pair().await;
                    let port = near.local_addr().expect("bound").port();
                    far_ends.push((far, port));
                    if asked {
                        pool.put(key(name), near, Instant::now());
                    } else {
                        pool.put_unasked(key(name), near, Instant::now());
                    }
                    assert_eq!(pool.len(), idle, "{name} {asked}");
                }
                // The newest two are left.
                for (_, port) in [&far_ends[4], &far_ends[3]] {
                    let taken = pool.take(&key("a"), Liveness::Asked, Instant::now()).expect("kept");
                    assert_eq!(taken.socket().local_addr().expect("bound").port(), *port);
                }
            })
            .await;
    }
}
