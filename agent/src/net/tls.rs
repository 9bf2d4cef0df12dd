//! TLS over a socket: one session that both directions of a connection share.
//!
//! Owns how bytes pass between the session and its socket. What is shown and believed in the handshake is in the session's
//! configuration, which is its maker's.

use std::cell::{Cell, RefCell};
use std::io::{self, BufRead as _, IoSlice, Read, Write};
use std::net::Shutdown;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::BytesMut;
use rustls::server::{Accepted, Acceptor};
use rustls::{Connection, Error, PeerIncompatible};
use tokio::io::ReadBuf;
use tokio::net::TcpStream;

/// A socket with the TLS session on it. Both directions take turns with the session, within one thread and never across a
/// wait, so that they need no lock.
#[derive(Debug)]
pub struct TlsIo {
    socket: TcpStream,
    session: RefCell<Connection>,
    /// Whether `close_notify` has been said.
    closing: Cell<bool>,
    alert: PeerAlert,
}

/// Whether a peer has ended its TLS with an alert; clones tell of the same peer. A server that speaks TLS 1.3 looks at its client's certificate
/// after the client's handshake has ended, so that what it says of it comes in the place of its first answer.
#[derive(Debug, Clone, Default)]
pub struct PeerAlert(Rc<Cell<bool>>);

impl PeerAlert {
    /// Whether there has been one.
    pub fn is_heard(&self) -> bool {
        self.0.get()
    }

    /// There has been one.
    pub fn hear(&self) {
        self.0.set(true);
    }
}

impl TlsIo {
    /// A session that is about to begin, or has begun, on a socket.
    pub fn new(socket: TcpStream, session: impl Into<Connection>) -> Self {
        let alert = PeerAlert::default();
        Self { socket, session: RefCell::new(session.into()), closing: Cell::new(false), alert }
    }

    /// The socket beneath.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Gives up the session; nothing more is said in TLS.
    pub fn into_socket(self) -> TcpStream {
        self.socket
    }

    /// Whether the peer has sent an alert.
    pub fn peer_alert(&self) -> &PeerAlert {
        &self.alert
    }

    /// Asks the session something.
    pub fn session<T>(&self, ask: impl FnOnce(&Connection) -> T) -> T {
        ask(&self.session.borrow())
    }

    /// Runs the handshake to its end, what it leaves to be sent included. A failure has been told to the peer, as far as its
    /// socket took it at once; for the peer to read it the socket has to linger.
    pub async fn shake(&self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_shake(cx)).await
    }

    fn poll_shake(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_drain(cx))?;
            if !self.session.borrow().is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            ready!(self.socket.poll_read_ready(cx))?;
            match self.take_packets(cx) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Reads what the socket has at once, and lets the session understand it.
    fn take_packets(&self, cx: &mut Context<'_>) -> io::Result<usize> {
        let mut session = self.session.borrow_mut();
        let read = session.read_tls(&mut Socket(&self.socket))?;
        let understood = session.process_new_packets();
        drop(session);
        if let Err(error) = understood {
            if let Error::AlertReceived(alert) = error {
                tracing::debug!(?alert, "a peer ended TLS");
                self.alert.hear();
            }
            // The alert that tells the peer; a peer that takes nothing misses it.
            let _ = self.poll_drain(cx);
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        Ok(read)
    }

    /// Sends what the session has ready.
    fn poll_drain(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut session = self.session.borrow_mut();
        while session.wants_write() {
            match session.write_tls(&mut Socket(&self.socket)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.socket.poll_write_ready(cx))?;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Whether the peer has neither closed nor said anything that is for us; its TLS may have.
    pub fn is_quiet(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            match self.take_packets(&mut cx) {
                Ok(1..) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return !self.has_input(),
                Ok(0) | Err(_) => return false,
            }
            if self.has_input() {
                return false;
            }
        }
    }

    /// Whether there is something to read without waiting, be it the end.
    pub fn has_input(&self) -> bool {
        match self.session.borrow_mut().reader().fill_buf() {
            Ok(_) => true,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }

    /// Waits until reading may give something. Like a socket's readiness it is a hint.
    pub fn poll_input(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.has_input() { Poll::Ready(Ok(())) } else { self.socket.poll_read_ready(cx) }
    }

    /// Reads plaintext. A peer that ends its connection without saying so in TLS is an error, and no end.
    pub fn poll_read(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.take_plaintext(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                taken => return Poll::Ready(taken),
            }
            ready!(self.socket.poll_read_ready(cx))?;
            match self.take_packets(cx) {
                // Answers to what came (new keys, alerts) go with the next write at the latest.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Moves what has been understood already, one record's at the most.
    fn take_plaintext(&self, buf: &mut ReadBuf<'_>) -> io::Result<()> {
        let mut session = self.session.borrow_mut();
        let mut reader = session.reader();
        let chunk = reader.fill_buf()?;
        let bytes = chunk.len().min(buf.remaining());
        buf.put_slice(&chunk[..bytes]);
        reader.consume(bytes);
        Ok(())
    }

    /// Takes plaintext, which all goes into as few records as hold it, and sends what the socket takes at once; what it does
    /// not is bounded by the session, and sent before anything more is taken.
    pub fn poll_write(&self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        ready!(self.poll_drain(cx))?;
        let taken = self.session.borrow_mut().writer().write_vectored(parts)?;
        match self.poll_drain(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(taken)),
        }
    }

    /// Waits until the socket has taken all that was written.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_drain(cx)
    }

    /// Says that nothing more comes, in TLS and in TCP.
    pub fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closing.replace(true) {
            self.session.borrow_mut().send_close_notify();
        }
        ready!(self.poll_drain(cx))?;
        Poll::Ready(socket2::SockRef::from(&self.socket).shutdown(Shutdown::Write))
    }
}

/// Room for one read of a client's first message; most are shorter.
const HELLO_BYTES: usize = 4 * 1024;

/// The alert that no version is in common, as a record: fatal, `protocol_version`.
const PROTOCOL_VERSION: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 70];

/// Whether a first message offers nothing newer than TLS 1.1. Such a client has no use for the extension with signatures, which the TLS
/// library misses before it looks at the version, and would tell it of; RFC 8446 appendix D.2 asks for `protocol_version`.
fn names_old_version(read: &[u8]) -> bool {
    // A handshake's record, its first message a ClientHello, and the version in that.
    matches!(read, [22, _, _, _, _, 1, _, _, _, 3, 0..=2, ..])
}

/// Reads a client's first message, of which the TLS library bounds the size, and gives the bytes that were read as well. A client
/// that says something else has been told so.
pub async fn read_hello(socket: &TcpStream) -> io::Result<(Accepted, BytesMut)> {
    let mut acceptor = Acceptor::default();
    let mut read = BytesMut::new();
    loop {
        socket.readable().await?;
        let before = read.len();
        read.reserve(HELLO_BYTES);
        match socket.try_read_buf(&mut read) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        }
        let mut fresh = &read[before..];
        while !fresh.is_empty() {
            acceptor.read_tls(&mut fresh)?;
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Ok((accepted, read)),
            Ok(None) => {}
            Err((error, mut alert)) => {
                let mut socket = Socket(socket);
                let unsigned = PeerIncompatible::SignatureAlgorithmsExtensionRequired;
                let is_old = error == Error::PeerIncompatible(unsigned) && names_old_version(&read);
                // The peer may take neither.
                let _ = if is_old { socket.write(&PROTOCOL_VERSION) } else { alert.write(&mut socket) };
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
    }
}

/// A socket as the TLS library reads and writes it: at once or not at all.
struct Socket<'a>(&'a TcpStream);

impl Read for Socket<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buf)
    }
}

impl Write for Socket<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.try_write(buf)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(bufs)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
