//! Telling the protocol of a captured connection whose port declares none.
//!
//! The endpoint is dialled at once and the first byte from either side decides, so that a server that speaks first
//! (MySQL, SMTP, NATS) is never made to wait for a client that is waiting for it.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::tcp::{self, Dial, Dialled, Undialled};
use super::{Context, Downstream};
use crate::net::{Spoken, classify};

/// Bytes taken at once while the protocol is being told; a request line that is longer is HTTP anyway.
const READ_BYTES: usize = 8 * 1024;
/// How long a silent client may still speak once its endpoint can't be reached: an HTTP request gets a proper answer.
const SPEAK_AFTER_FAILURE: Duration = Duration::from_secs(1);

/// What was told.
pub(super) enum Told {
    /// HTTP/1 or HTTP/2, with the connection that was opened meanwhile.
    Http(Option<Dialled>),
    /// Anything else, with the endpoint's connection or the reason why there is none.
    Opaque(Result<Dialled, Undialled>),
}

/// Waits for the first byte from either side. Bytes from the client are kept in `downstream.read`.
pub(super) async fn detect(context: &Context, downstream: &mut Downstream, dial: &Dial) -> Told {
    let mut dialling = Box::pin(tcp::dial(context, downstream.peer, dial));
    let dialled = tokio::select! {
        biased;
        spoken = client_speaks(&downstream.io, &mut downstream.read) => {
            let dialled = dialling.await;
            return match spoken {
                Spoken::Http | Spoken::Http2 => Told::Http(dialled.ok()),
                Spoken::Opaque | Spoken::Undecided => Told::Opaque(dialled),
            };
        }
        dialled = &mut dialling => dialled,
    };
    match dialled {
        Ok(upstream) => tokio::select! {
            biased;
            spoken = client_speaks(&downstream.io, &mut downstream.read) => match spoken {
                Spoken::Http | Spoken::Http2 => Told::Http(Some(upstream)),
                Spoken::Opaque | Spoken::Undecided => Told::Opaque(Ok(upstream)),
            },
            // Bytes, the end, or an error: each ends the waiting, and the relay finds out which it was.
            _ = upstream.io.readable() => Told::Opaque(Ok(upstream)),
        },
        Err(undialled) => {
            let spoken =
                timeout(SPEAK_AFTER_FAILURE, client_speaks(&downstream.io, &mut downstream.read)).await;
            match spoken {
                Ok(Spoken::Http | Spoken::Http2) => Told::Http(None),
                _ => Told::Opaque(Err(undialled)),
            }
        }
    }
}

/// Reads until the client's protocol is told. The end of its bytes, or an error, tells that it is nothing of ours. Safe to
/// drop at any point: what was read is in the buffer.
async fn client_speaks(io: &TcpStream, read: &mut BytesMut) -> Spoken {
    loop {
        match classify(read) {
            Spoken::Undecided => {}
            spoken => return spoken,
        }
        if io.readable().await.is_err() {
            return Spoken::Opaque;
        }
        read.reserve(READ_BYTES);
        match io.try_read_buf(read) {
            Ok(0) => return Spoken::Opaque,
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Spoken::Opaque,
            Ok(_) | Err(_) => {}
        }
    }
}
