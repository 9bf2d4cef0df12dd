//! Reading a socket in large steps for somebody who reads in small ones: the TLS library asks for 4 KiB at a time, which would
//! be five system calls for a record.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Bytes that are read at once: as many as three of the largest records.
const STEP_BYTES: usize = 64 * 1024;

thread_local! {
    /// One for all connections of a thread: each holds what its reader has not taken yet, and mostly nothing.
    static STEP: RefCell<Box<[u8]>> = RefCell::new(vec![0; STEP_BYTES].into_boxed_slice());
}

/// A socket that is read ahead. What is written goes through as it is.
#[derive(Debug)]
pub struct ReadAhead {
    io: TcpStream,
    rest: Bytes,
}

impl ReadAhead {
    /// Of a socket of which nothing was read.
    pub fn new(io: TcpStream) -> Self {
        Self { io, rest: Bytes::new() }
    }
}

impl AsyncRead for ReadAhead {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.rest.is_empty() {
            return STEP.with_borrow_mut(|step| {
                let mut ahead = ReadBuf::new(step);
                ready!(Pin::new(&mut this.io).poll_read(cx, &mut ahead))?;
                let (now, later) = ahead.filled().split_at(buf.remaining().min(ahead.filled().len()));
                buf.put_slice(now);
                this.rest = Bytes::copy_from_slice(later);
                Poll::Ready(Ok(()))
            });
        }
        let bytes = this.rest.len().min(buf.remaining());
        buf.put_slice(&this.rest[..bytes]);
        this.rest.advance(bytes);
        if this.rest.is_empty() {
            // Its memory goes with the last byte.
            this.rest = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ReadAhead {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// All bytes come in order whatever the reader's step, and then the end.
    #[tokio::test]
    async fn what_is_read_ahead_is_read_in_order() {
        let sent: Vec<u8> = (0..300_000_u32).map(|at| u8::try_from(at % 251).expect("below 251")).collect();
        for step in [1, 7, 4096, 65_536, 100_000] {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("it is bound");
            let writing = async {
                let mut client = TcpStream::connect(address).await.expect("it listens");
                client.write_all(&sent).await.expect("it reads");
                client.shutdown().await.expect("it is open");
                client
            };
            let reading = async {
                let (io, _) = listener.accept().await.expect("a client");
                let mut io = ReadAhead::new(io);
                let (mut all, mut part) = (Vec::new(), vec![0; step]);
                loop {
                    let read = io.read(&mut part).await.expect("no reset");
                    if read == 0 {
                        return (all, io.rest.is_empty());
                    }
                    all.extend_from_slice(&part[..read]);
                }
            };
            let (_client, (all, nothing_left)) = tokio::join!(writing, reading);
            assert!(all == sent && nothing_left, "in steps of {step}: {} bytes", all.len());
        }
    }
}
