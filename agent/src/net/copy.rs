//! Moving opaque bytes both ways, with half-close kept and resets passed on.

mod sessions;

pub use sessions::relay_stream;

use std::cell::RefCell;
use std::io;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::bridge::{Bridging, Way};

/// Bytes read at once. One such buffer serves a whole thread: a connection holds memory only for what its receiver has
/// not taken yet.
const SCRATCH_BYTES: usize = 64 * 1024;
/// Steps after which a busy direction lets others run.
const STEPS_MAX: u32 = 16;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_BYTES].into_boxed_slice());
}

/// How a relay went. The byte counts hold whether or not it failed.
#[derive(Debug, Default)]
pub struct Relayed {
    /// Bytes from the client to the upstream.
    pub sent: u64,
    /// Bytes from the upstream to the client.
    pub received: u64,
    /// Why it ended early; the side that failed first is named.
    pub failure: Option<RelayFailure>,
}

/// Which side broke off.
#[derive(Debug)]
pub enum RelayFailure {
    /// The client reset its connection, or can't be written to.
    Downstream(io::Error),
    /// The upstream reset its connection, or can't be written to.
    Upstream(io::Error),
    /// It was told to stop.
    Stopped,
}

/// Copies until both directions have ended, or one fails; the other side of a failure is reset, not closed politely.
///
/// A side that takes no more bytes may still have sent some: its last words are delivered before the end.
///
/// It stops when `stop` does, as if both sides had failed.
pub async fn relay(
    downstream: &mut TcpStream,
    upstream: &mut TcpStream,
    stop: impl Future<Output = ()>,
) -> Relayed {
    relay_bridged(downstream, upstream, &Bridging::none(), stop).await
}

/// The same, and bytes may go past it, which are counted all the same.
pub async fn relay_bridged(
    downstream: &mut TcpStream,
    upstream: &mut TcpStream,
    bridging: &Bridging<'_>,
    stop: impl Future<Output = ()>,
) -> Relayed {
    let mut relayed = Relayed::default();
    let result = {
        let (client_read, client_write) = downstream.split();
        let (server_read, server_write) = upstream.split();
        let up = pump(client_read, server_write, &mut relayed.sent, (bridging, Way::Up));
        let down = pump(server_read, client_write, &mut relayed.received, (bridging, Way::Down));
        let both = async {
            tokio::try_join!(
                async { end(up.await, RelayFailure::Downstream, RelayFailure::Upstream) },
                async { end(down.await, RelayFailure::Upstream, RelayFailure::Downstream) },
            )
        };
        tokio::select! {
            biased;
            () = stop => Err(RelayFailure::Stopped),
            ended = both => ended,
        }
    };
    // Before the sockets close, or something else might be at their addresses.
    let [sent, received] = bridging.end();
    relayed.sent += sent;
    relayed.received += received;
    relayed.failure = match result {
        Ok((up, down)) => up.or(down),
        Err(failure) => Some(failure),
    };
    if relayed.failure.is_some() {
        // Dropping a socket that lingers for no time sends RST: the survivor learns that the stream was cut.
        let _ = downstream.set_zero_linger();
        let _ = upstream.set_zero_linger();
    }
    relayed
}

/// Which end of one direction failed.
enum PumpError {
    Read(io::Error),
    Write(io::Error),
}

/// What the end of one direction means: a reader that fails ends both, a writer that fails only its own.
fn end(
    pumped: Result<(), PumpError>,
    reader: impl FnOnce(io::Error) -> RelayFailure,
    writer: impl FnOnce(io::Error) -> RelayFailure,
) -> Result<Option<RelayFailure>, RelayFailure> {
    match pumped {
        Ok(()) => Ok(None),
        Err(PumpError::Write(error)) => Ok(Some(writer(error))),
        Err(PumpError::Read(error)) => Err(reader(error)),
    }
}

/// Copies one direction to its end and closes the writer's side after it.
async fn pump(
    reader: ReadHalf<'_>,
    mut writer: WriteHalf<'_>,
    copied: &mut u64,
    (bridging, way): (&Bridging<'_>, Way),
) -> Result<(), PumpError> {
    let mut moved = 0;
    loop {
        let before = *copied;
        let stepped = step(&reader, &writer, copied);
        if let Ok(Step::Moved) = stepped {
            bridging.passed_on(way, *copied - before);
        }
        match stepped {
            Ok(Step::Moved) if moved < STEPS_MAX => moved += 1,
            Ok(Step::Moved) => {
                moved = 0;
                tokio::task::yield_now().await;
            }
            Ok(Step::Idle) => {
                bridging.idles();
                reader.readable().await.map_err(PumpError::Read)?;
            }
            Ok(Step::Rest(rest)) => {
                writer.write_all(&rest).await.map_err(PumpError::Write)?;
                *copied += rest.len() as u64;
                bridging.passed_on(way, *copied - before);
            }
            Ok(Step::End) => return writer.shutdown().await.map_err(PumpError::Write),
            Err(error) => return Err(error),
        }
    }
}

enum Step {
    Moved,
    Idle,
    Rest(Vec<u8>),
    End,
}

/// One read and one write, without waiting.
fn step(reader: &ReadHalf<'_>, writer: &WriteHalf<'_>, copied: &mut u64) -> Result<Step, PumpError> {
    SCRATCH.with_borrow_mut(|scratch| {
        let len = match reader.try_read(scratch) {
            Ok(0) => return Ok(Step::End),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Step::Idle),
            Err(error) => return Err(PumpError::Read(error)),
        };
        let written = match writer.try_write(&scratch[..len]) {
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(PumpError::Write(error)),
        };
        *copied += written as u64;
        Ok(if written == len { Step::Moved } else { Step::Rest(scratch[written..len].to_vec()) })
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (near.expect("connects"), far.expect("accepts").0)
    }

    #[tokio::test]
    async fn half_close_is_kept_and_bytes_are_counted() {
        let ((mut client, mut down), (mut up, mut server)) = (pair().await, pair().await);
        let relaying = tokio::spawn(async move { relay(&mut down, &mut up, std::future::pending()).await });
        client.write_all(b"ping").await.expect("writes");
        client.shutdown().await.expect("shuts down");
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.expect("reads to the end");
        assert_eq!(got, b"ping");
        server.write_all(b"pong!").await.expect("the other direction is open");
        drop(server);
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.expect("reads to the end");
        assert_eq!(got, b"pong!");
        let relayed = relaying.await.expect("ends");
        assert_eq!((relayed.sent, relayed.received), (4, 5));
        assert!(relayed.failure.is_none());
    }

    #[tokio::test]
    async fn a_reset_is_passed_on() {
        let ((mut client, mut down), (mut up, server)) = (pair().await, pair().await);
        let relaying = tokio::spawn(async move { relay(&mut down, &mut up, std::future::pending()).await });
        server.set_zero_linger().expect("sets");
        drop(server);
        let error = client.read_u8().await.expect_err("the stream was cut");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(matches!(relaying.await.expect("ends").failure, Some(RelayFailure::Upstream(_))));
    }

    /// A server that answers, closes with bytes unread and so resets: the client shall still get the answer.
    #[tokio::test]
    async fn last_words_reach_a_client_that_is_still_sending() {
        let ((mut client, mut down), (mut up, mut server)) = (pair().await, pair().await);
        let relaying = tokio::spawn(async move {
            let relayed = relay(&mut down, &mut up, std::future::pending()).await;
            drop(down);
            relayed
        });
        client.write_all(&[b'x'; 1024]).await.expect("writes");
        server.readable().await.expect("readable");
        server.write_all(b"-ERR busy\r\n").await.expect("writes");
        drop(server);
        let mut answer = [0; 11];
        let read = tokio::time::timeout(Duration::from_secs(5), client.read_exact(&mut answer)).await;
        read.expect("in time").expect("the answer arrives");
        assert_eq!(&answer, b"-ERR busy\r\n");
        drop(client);
        relaying.await.expect("ends");
    }
}
