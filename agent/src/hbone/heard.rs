//! What the end that is dialled says first. In TLS 1.3 the end that dials is done before the other one has looked at its
//! certificate: whether it is taken shows in the first bytes that come, or in the alert in their place.

use std::cell::Cell;
use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::identity::PeerRefusal;

/// Is told once what came first.
type Tell = Box<dyn FnOnce(Result<(), PeerRefusal>)>;

/// Why the peer has not taken this end, once that is known.
pub(super) type Verdict = Rc<Cell<Option<PeerRefusal>>>;

/// TLS whose first bytes are listened for.
pub(super) struct Heard<Io> {
    io: Io,
    tell: Option<Tell>,
    verdict: Verdict,
}

impl<Io> Heard<Io> {
    /// Of a connection from which nothing was read.
    pub(super) fn new(io: Io, tell: impl FnOnce(Result<(), PeerRefusal>) + 'static) -> (Self, Verdict) {
        let verdict = Verdict::default();
        (Self { io, tell: Some(Box::new(tell)), verdict: Rc::clone(&verdict) }, verdict)
    }

    fn hear(&mut self, first: Result<(), PeerRefusal>) {
        let Some(tell) = self.tell.take() else { return };
        self.verdict.set(first.err());
        tell(first);
    }

    /// What came of writing. An end that was refused may learn first that nobody takes its bytes any more; why, is what it was
    /// told before. That has to be waited for where the reactor has not seen it yet: it will, as the connection is over.
    fn wrote<T>(&mut self, cx: &mut Context<'_>, done: Poll<io::Result<T>>) -> Poll<io::Result<T>>
    where
        Io: AsyncRead + Unpin,
    {
        if matches!(done, Poll::Ready(Err(_))) && self.tell.is_some() {
            let mut byte = [0];
            let mut unread = ReadBuf::new(&mut byte);
            let read = ready!(Pin::new(&mut self.io).poll_read(cx, &mut unread));
            self.hear(first(&read, unread.filled().len()));
        }
        done
    }
}

/// What the first bytes say.
fn first(read: &io::Result<()>, count: usize) -> Result<(), PeerRefusal> {
    match read {
        Ok(()) if count > 0 => Ok(()),
        Ok(()) => Err(PeerRefusal::Closed),
        Err(error) => Err(PeerRefusal::of(error)),
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Heard<Io> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut this.io).poll_read(cx, buf));
        if this.tell.is_some() {
            this.hear(first(&read, buf.filled().len() - before));
        }
        Poll::Ready(read)
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Heard<Io> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let done = Pin::new(&mut this.io).poll_write(cx, bytes);
        this.wrote(cx, done)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let done = Pin::new(&mut this.io).poll_write_vectored(cx, parts);
        this.wrote(cx, done)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let done = Pin::new(&mut this.io).poll_flush(cx);
        this.wrote(cx, done)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

impl<Io> fmt::Debug for Heard<Io> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heard").field("verdict", &self.verdict.get()).finish_non_exhaustive()
    }
}
