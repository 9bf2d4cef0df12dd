//! Telling the protocol of a captured connection whose port declares none.
//!
//! The endpoint is dialled at once and the first byte from either side decides, so that a server that speaks first
//! (MySQL, SMTP, NATS) is never made to wait for a client that is waiting for it.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{Interest, Ready};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::access::{self, Client};
use super::tcp::{self, Dial, Dialled, Undialled};
use super::{Context, Downstream};
use crate::net::{HTTP2_FRAME_HEAD, Spoken, classify, is_http2_settings};

/// Bytes taken at once while the protocol is being told; a request line that is longer is HTTP anyway.
const READ_BYTES: usize = 8 * 1024;
/// How long a silent client may still speak once its endpoint can't be reached: an HTTP request gets a proper answer.
const SPEAK_AFTER_FAILURE: Duration = Duration::from_secs(1);
/// How long a client may be silent whose request decides what it may reach.
const FIRST_REQUEST: Duration = Duration::from_mins(1);
/// How long a client that speaks HTTP waits for the connection that was dialled before it spoke.
const EARLY_PATIENCE: Duration = Duration::from_millis(100);
/// How long a client may leave it open what its first bytes are; after that they are passed on as they came.
const UNDECIDED_MAX: Duration = Duration::from_secs(5);

/// What was told.
pub(super) enum Told {
    /// HTTP/1 or HTTP/2, with the connection that was opened meanwhile.
    Http(Option<Dialled>),
    /// Anything else, with the endpoint's connection or the reason why there is none.
    Opaque(Result<Dialled, Undialled>),
}

/// Waits for the first byte from either side. Bytes from the client are kept in `downstream.read`.
pub(super) async fn detect(context: &Context, downstream: &mut Downstream, dial: &Dial) -> Told {
    let Downstream { io, read, peer, origin, .. } = &mut *downstream;
    let client = Client { peer: *peer, origin };
    let mut dialling = Box::pin(tcp::dial_early(context, client, dial));
    let dialled = tokio::select! {
        biased;
        spoken = client_speaks(io, read) => {
            return match spoken {
                // The route says where HTTP goes; an endpoint that is silent must not hold it up.
                Ok(Spoken::Http | Spoken::Http2) => Told::Http(timeout(EARLY_PATIENCE, dialling).await.ok().and_then(Result::ok)),
                Ok(Spoken::Opaque | Spoken::Undecided) => opaque(context, client, dial, dialling.await).await,
                Err(error) => Told::Opaque(dialling.await.map(|dialled| dialled.without_client(error))),
            };
        }
        dialled = &mut dialling => dialled,
    };
    match dialled {
        Ok(upstream) => tokio::select! {
            biased;
            spoken = client_speaks(io, read) => match spoken {
                Ok(Spoken::Http | Spoken::Http2) => Told::Http(Some(upstream)),
                Ok(Spoken::Opaque | Spoken::Undecided) => Told::Opaque(Ok(upstream)),
                Err(error) => Told::Opaque(Ok(upstream.without_client(error))),
            },
            // Bytes, the end, or an error: each ends the waiting, and the relay finds out which it was.
            () = server_speaks(&upstream.io) => Told::Opaque(Ok(upstream)),
        },
        Err(undialled) => {
            let speaking = client_speaks(io, read);
            let asks = undialled
                .refused_by()
                .is_some_and(|endpoint| access::depends_on_request(context, client, endpoint));
            // Where its request decides, a client may have opened the connection for one that comes later.
            let patience = if asks { FIRST_REQUEST } else { SPEAK_AFTER_FAILURE };
            match timeout(patience, speaking).await {
                Ok(Ok(Spoken::Http | Spoken::Http2)) => Told::Http(None),
                _ => opaque(context, client, dial, Err(undialled)).await,
            }
        }
    }
}

/// What came of dialling, for a connection that turned out to be opaque: only now a policy's refusal is one.
async fn opaque(
    context: &Context,
    client: Client<'_>,
    dial: &Dial,
    dialled: Result<Dialled, Undialled>,
) -> Told {
    match dialled {
        Err(undialled) if undialled.refused_by().is_some() => {
            Told::Opaque(tcp::dial(context, client, dial).await)
        }
        dialled => Told::Opaque(dialled),
    }
}

/// Waits until the server has spoken first. An HTTP/2 server may send its settings before it has heard its client, who
/// speaks first all the same: those bytes tell nothing.
async fn server_speaks(io: &TcpStream) {
    let closed = io.ready(Interest::READABLE).await.is_ok_and(Ready::is_read_closed);
    if closed {
        // Perhaps by a reset, which a look would take from the relay.
        return;
    }
    let mut start = [0; HTTP2_FRAME_HEAD];
    if let Ok(HTTP2_FRAME_HEAD) = io.peek(&mut start).await
        && is_http2_settings(start)
    {
        std::future::pending::<()>().await;
    }
}

/// Reads until the client's protocol is told. The end of its bytes tells that it is nothing of ours. Safe to drop at any
/// point: what was read is in the buffer. A socket says only once that it was reset, so the error must not be lost.
async fn client_speaks(io: &TcpStream, read: &mut BytesMut) -> io::Result<Spoken> {
    loop {
        match classify(read) {
            Spoken::Undecided => {}
            spoken => return Ok(spoken),
        }
        if read.is_empty() {
            io.readable().await?;
        } else {
            match timeout(UNDECIDED_MAX, io.readable()).await {
                Ok(readable) => readable?,
                Err(_) => return Ok(Spoken::Opaque),
            }
        }
        read.reserve(READ_BYTES);
        match io.try_read_buf(read) {
            Ok(0) => return Ok(Spoken::Opaque),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            Ok(_) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::poll_immediate;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn only_settings_do_not_count_as_a_server_that_speaks_first() {
        for (bytes, speaks) in [
            (&b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64"[..], false),
            (b"INFO {\"server_id\":1}", true),
            (b"220 mail\r\n", true),
            (b"", true),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
            let address = listener.local_addr().expect("bound");
            let (io, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
            let (io, mut server) = (io.expect("connects"), accepted.expect("accepts").0);
            server.write_all(bytes).await.expect("writes");
            if bytes.is_empty() {
                drop(server);
            }
            io.readable().await.expect("readable");
            assert_eq!(poll_immediate(server_speaks(&io)).await.is_some(), speaks, "{bytes:?}");
        }
    }
}
