//! Directions of a relay that the kernel may take over, so that their bytes no longer come here.
//!
//! Owns what a relay has to say for that: which two connections it copies between, that it has caught up, and how much it has
//! passed on. What the kernel makes of it is behind [`Bridges`].

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use tokio::net::TcpStream;

/// How often it is asked whether there can be bridges while a connection's other end is not there yet.
const ASKED_MAX: u8 = 4;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the client to the upstream.
    Up = 0,
    /// From the upstream to the client.
    Down = 1,
}

/// One of a relay's connections, by this end of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leg {
    /// This end.
    pub local: SocketAddr,
    /// The other one.
    pub remote: SocketAddr,
    /// The socket, open for as long as the relay.
    pub socket: RawFd,
}

impl Leg {
    fn of(io: &TcpStream) -> io::Result<Self> {
        Ok(Self { local: io.local_addr()?, remote: io.peer_addr()?, socket: io.as_raw_fd() })
    }
}

/// Whoever can make the kernel take directions over.
pub trait Bridges: Send + Sync {
    /// Declares that all that comes on either connection is copied to the other one and nothing else is sent there, and that
    /// so many bytes were, by [`Way`]. From then on bytes may go past the relay.
    fn declare(&self, downstream: &Leg, upstream: &Leg, forwarded: [u64; 2]) -> Declared;
}

/// What came of a declaration.
pub enum Declared {
    /// The kernel may take both directions over.
    Bridged(Box<dyn Bridge>),
    /// A connection's other end is not there yet.
    NotYet,
    /// The bytes come here for good.
    Never,
}

/// Both directions of a relay. Dropped, it is over.
pub trait Bridge: Send + Sync {
    /// So many bytes were read in all and have been written.
    fn forwarded(&self, way: Way, bytes: u64);

    /// No bytes go past the relay any more; answers how many did, by [`Way`].
    fn end(&self) -> [u64; 2];
}

/// What a relay says of itself.
pub struct Bridging<'a> {
    kernel: Option<(&'a dyn Bridges, [Leg; 2])>,
    forwarded: [AtomicU64; 2],
    asked: AtomicU8,
    bridge: OnceLock<Box<dyn Bridge>>,
}

impl<'a> Bridging<'a> {
    /// Of a relay between these, before which `sent` bytes went to the upstream, and none to the client.
    pub fn new(
        kernel: Option<&'a dyn Bridges>,
        (downstream, upstream): (&TcpStream, &TcpStream),
        sent: u64,
    ) -> Self {
        let legs = |kernel| Some((kernel, [Leg::of(downstream).ok()?, Leg::of(upstream).ok()?]));
        Self { kernel: kernel.and_then(legs), forwarded: [sent.into(), 0.into()], ..Self::none() }
    }

    /// Of a relay whose bytes all come here.
    pub fn none() -> Self {
        Self { kernel: None, forwarded: [0.into(), 0.into()], asked: 0.into(), bridge: OnceLock::new() }
    }

    /// So many more bytes were read, and all that were read are written.
    pub(super) fn passed_on(&self, way: Way, bytes: u64) {
        let forwarded = self.forwarded[way as usize].fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let Some(bridge) = self.bridge.get() {
            bridge.forwarded(way, forwarded);
        }
    }

    /// There is nothing to read in some direction, and so there is time to ask for bridges.
    pub(super) fn idles(&self) {
        let Some((kernel, [downstream, upstream])) = &self.kernel else { return };
        if self.asked.fetch_add(1, Ordering::Relaxed) >= ASKED_MAX {
            self.asked.store(ASKED_MAX, Ordering::Relaxed);
            return;
        }
        let forwarded = [0, 1].map(|way: usize| self.forwarded[way].load(Ordering::Relaxed));
        match kernel.declare(downstream, upstream, forwarded) {
            Declared::NotYet => return,
            Declared::Never => {}
            Declared::Bridged(bridge) => drop(self.bridge.set(bridge)),
        }
        self.asked.store(ASKED_MAX, Ordering::Relaxed);
    }

    /// The relay is over; answers how many bytes went past it, by [`Way`].
    pub(super) fn end(&self) -> [u64; 2] {
        self.bridge.get().map_or([0, 0], |bridge| bridge.end())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::net::TcpListener;

    use super::*;

    /// Answers `NotYet` so many times, and keeps what it is told.
    struct Kernel {
        not_yet: usize,
        told: std::sync::Arc<Mutex<Vec<String>>>,
    }

    struct Told(std::sync::Arc<Mutex<Vec<String>>>);

    impl Bridges for Kernel {
        fn declare(&self, _: &Leg, _: &Leg, forwarded: [u64; 2]) -> Declared {
            let mut told = self.told.lock().expect("no test panics with it");
            told.push(format!("declared at {forwarded:?}"));
            if told.len() <= self.not_yet {
                Declared::NotYet
            } else {
                Declared::Bridged(Box::new(Told(self.told.clone())))
            }
        }
    }

    impl Bridge for Told {
        fn forwarded(&self, way: Way, bytes: u64) {
            self.0.lock().expect("no test panics with it").push(format!("{way:?} {bytes}"));
        }

        fn end(&self) -> [u64; 2] {
            [5, 7]
        }
    }

    async fn told(not_yet: usize, relay: impl Fn(&Bridging<'_>)) -> (Vec<String>, [u64; 2]) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        let kernel = Kernel { not_yet, told: std::sync::Arc::default() };
        let bridging = Bridging::new(Some(&kernel), (&near.expect("connects"), &far.expect("accepts").0), 10);
        relay(&bridging);
        let moved = bridging.end();
        drop(bridging);
        let told = kernel.told.lock().expect("no test panics with it").clone();
        (told, moved)
    }

    #[tokio::test]
    async fn it_is_said_how_much_was_passed_on() {
        let (told, moved) = told(1, |bridging| {
            bridging.passed_on(Way::Up, 1);
            bridging.idles();
            bridging.passed_on(Way::Down, 2);
            bridging.idles();
            bridging.idles();
            bridging.passed_on(Way::Up, 3);
        })
        .await;
        assert_eq!(told, ["declared at [11, 0]", "declared at [11, 2]", "Up 14"]);
        assert_eq!(moved, [5, 7]);
    }

    #[tokio::test]
    async fn an_end_that_does_not_come_is_not_asked_for_for_ever() {
        let (told, moved) = told(usize::MAX, |bridging| (0..100).for_each(|_| bridging.idles())).await;
        assert_eq!(told.len(), usize::from(ASKED_MAX));
        assert_eq!(moved, [0, 0]);
    }
}
