//! Bytes between a stream of a tunnel and a socket, with half-close kept and resets passed on.
//!
//! What is held for a connection is bounded by both: bytes are read from the socket only where the peer has room for them,
//! and the peer gets room for what the socket has taken.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

/// Bytes that are read at once.
const READ_MAX_BYTES: usize = 64 * 1024;

thread_local! {
    /// Where bytes are read to before it is known how many there are; one for all streams of a thread.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_MAX_BYTES].into_boxed_slice());
}

/// How a stream ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamEnd {
    /// Bytes from the tunnel to the socket.
    pub to_socket: u64,
    /// Bytes from the socket to the tunnel.
    pub to_tunnel: u64,
    /// Who broke off; `None`: both ended politely.
    pub broken: Option<Broken>,
}

/// Why a stream ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// The peer reset it, or the tunnel is gone.
    Tunnel,
    /// The socket was reset.
    Socket,
    /// It was told to stop, for this reason.
    Stopped(&'static str),
}

/// Copies until both directions have ended, one fails, or `stop` says why not to go on. The other side of a failure is reset.
pub async fn relay(
    io: &mut TcpStream,
    (mut send, mut receive): (SendStream<Bytes>, RecvStream),
    stop: impl Future<Output = &'static str>,
) -> StreamEnd {
    let mut end = StreamEnd::default();
    let result = {
        let (reader, writer) = io.split();
        let up = to_tunnel(reader, &mut send, &mut end.to_tunnel);
        let down = to_socket(&mut receive, writer, &mut end.to_socket);
        let both = async { tokio::try_join!(up, down).map(|_| ()) };
        tokio::select! {
            biased;
            why = stop => Err(Broken::Stopped(why)),
            ended = both => ended,
        }
    };
    if let Err(broken) = result {
        end.broken = Some(broken);
        let _ = io.set_zero_linger();
        send.send_reset(Reason::CANCEL);
    }
    end
}

async fn to_tunnel(
    reader: ReadHalf<'_>,
    send: &mut SendStream<Bytes>,
    count: &mut u64,
) -> Result<(), Broken> {
    loop {
        // Nothing is held for a socket that is silent.
        tokio::select! {
            ready = reader.readable() => ready.map_err(|_| Broken::Socket)?,
            // Whoever wants no more of it says NO_ERROR, having said all that it had to (RFC 9113, section 8.1).
            reset = poll_fn(|context| send.poll_reset(context)) => return ended(&reset),
        }
        let room = match room(send).await {
            Ok(room) => room,
            Err(reset) => return ended(&reset),
        };
        // What is held for a stream is what came, not the room for it.
        let read = SCRATCH.with_borrow_mut(|scratch| {
            let read = reader.try_read(&mut scratch[..room])?;
            Ok(Bytes::copy_from_slice(&scratch[..read]))
        });
        match read {
            Ok(bytes) if bytes.is_empty() => {
                send.send_data(bytes, true).map_err(|_| Broken::Tunnel)?;
                return Ok(());
            }
            Ok(bytes) => {
                *count += bytes.len() as u64;
                send.send_data(bytes, false).map_err(|_| Broken::Tunnel)?;
            }
            Err(error) if io::Error::kind(&error) == io::ErrorKind::WouldBlock => {}
            Err(_) => return Err(Broken::Socket),
        }
        send.reserve_capacity(0);
    }
}

/// Sends what was read before, as the peer takes it; answers how much that was.
pub(super) async fn send_all(send: &mut SendStream<Bytes>, mut bytes: Bytes) -> Result<u64, Broken> {
    let all = bytes.len() as u64;
    while !bytes.is_empty() {
        let room = room(send).await.map_err(|_| Broken::Tunnel)?;
        let part = bytes.split_to(room.min(bytes.len()));
        send.send_data(part, false).map_err(|_| Broken::Tunnel)?;
        send.reserve_capacity(0);
    }
    Ok(all)
}

/// Waits until the peer takes bytes; answers how many.
async fn room(send: &mut SendStream<Bytes>) -> Result<usize, Result<Reason, h2::Error>> {
    send.reserve_capacity(READ_MAX_BYTES);
    loop {
        match poll_fn(|context| send.poll_capacity(context)).await {
            Some(Ok(0)) => {}
            Some(Ok(room)) => return Ok(room.min(READ_MAX_BYTES)),
            Some(Err(error)) => return Err(error.reason().ok_or(error)),
            None => return Err(Ok(Reason::CANCEL)),
        }
    }
}

fn ended(reset: &Result<Reason, h2::Error>) -> Result<(), Broken> {
    match reset {
        Ok(Reason::NO_ERROR) => Ok(()),
        _ => Err(Broken::Tunnel),
    }
}

async fn to_socket(
    receive: &mut RecvStream,
    mut writer: WriteHalf<'_>,
    count: &mut u64,
) -> Result<(), Broken> {
    while let Some(bytes) = receive.data().await {
        let bytes = bytes.map_err(|_| Broken::Tunnel)?;
        writer.write_all(&bytes).await.map_err(|_| Broken::Socket)?;
        *count += bytes.len() as u64;
        // The peer may send as much again.
        receive.flow_control().release_capacity(bytes.len()).map_err(|_| Broken::Tunnel)?;
    }
    // The other side may be gone already; whoever reads from it says so.
    let _ = writer.shutdown().await;
    Ok(())
}
