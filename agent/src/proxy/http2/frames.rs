//! Counts the frames of a client that carry no request. The frame layer answers or skips each at once, and bounds only
//! what it must keep: a client that sends nothing else would be served for as long as it likes.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::budget::Budget;
use crate::net::HTTP2_FRAME_HEAD;
use crate::net::Replay;
use crate::proxy::http::Http2Settings;

/// What a client's connection starts with (RFC 9113 section 3.4).
const PREFACE_BYTES: usize = 24;
/// How many seconds' worth of frames may come at once.
const BURST_SECONDS: u32 = 10;
/// Windows that a frame of ours allows the client to open: those of the stream and of the connection, each in parts.
const WINDOWS_PER_FRAME: u32 = 10;

/// The frame layer bears at least so many resets.
const RESETS_OF_A_FLOOD: u32 = 20;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// Finds the heads of frames in bytes as they come, by stepping over all else.
#[derive(Debug, Default)]
struct FrameWalk {
    head: [u8; HTTP2_FRAME_HEAD],
    /// How many bytes of the head are there.
    begun: usize,
    /// Bytes until the next head.
    skip: usize,
}

impl FrameWalk {
    /// Walks over `bytes`; `each` gets the type of every frame whose head ends there.
    fn walk(&mut self, mut bytes: &[u8], mut each: impl FnMut(u8)) {
        loop {
            let skipped = self.skip.min(bytes.len());
            (self.skip, bytes) = (self.skip - skipped, &bytes[skipped..]);
            if bytes.is_empty() {
                return;
            }
            let taken = (HTTP2_FRAME_HEAD - self.begun).min(bytes.len());
            self.head[self.begun..self.begun + taken].copy_from_slice(&bytes[..taken]);
            (self.begun, bytes) = (self.begun + taken, &bytes[taken..]);
            if self.begun < HTTP2_FRAME_HEAD {
                return;
            }
            self.begun = 0;
            let [high, middle, low, kind, ..] = self.head;
            self.skip = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            each(kind);
        }
    }
}

/// What a client may still send.
#[derive(Debug)]
pub(super) struct FrameGuard {
    budgets: RefCell<Budgets>,
    flood: Cell<Option<&'static str>>,
    /// The type of the client's last frame.
    last: Cell<u8>,
    /// Streams that the client has reset.
    resets: Cell<u32>,
}

#[derive(Debug)]
struct Budgets {
    settings: Option<Budget>,
    pings: Option<Budget>,
    window_updates: Option<Budget>,
    resets: Option<Budget>,
    others: Option<Budget>,
}

impl Budgets {
    /// Takes a frame of the client; names the flood that it is one too many of.
    fn take(&mut self, kind: u8, now: impl FnOnce() -> Instant) -> Result<(), &'static str> {
        let (budget, flood) = match kind {
            // Bounded by streams, windows and the frame layer itself.
            DATA | HEADERS | PUSH_PROMISE | CONTINUATION => return Ok(()),
            SETTINGS => (&mut self.settings, "h2_settings_flood"),
            PING => (&mut self.pings, "h2_ping_flood"),
            WINDOW_UPDATE => (&mut self.window_updates, "h2_window_update_flood"),
            RST_STREAM => (&mut self.resets, "h2_reset_flood"),
            _ => (&mut self.others, "h2_other_frame_flood"),
        };
        let granted = budget.as_mut().is_none_or(|budget| budget.take(now()));
        if granted { Ok(()) } else { Err(flood) }
    }

    /// A frame of ours gives the client reason to answer.
    fn earn(&mut self, kind: u8) {
        if !matches!(kind, DATA | HEADERS) {
            return;
        }
        for (budget, earned) in [
            (&mut self.pings, 1),
            (&mut self.window_updates, WINDOWS_PER_FRAME),
            (&mut self.resets, 1),
            (&mut self.others, 1),
        ] {
            if let Some(budget) = budget {
                budget.add(earned);
            }
        }
    }
}

impl FrameGuard {
    /// Full budgets.
    pub fn new(settings: &Http2Settings, now: Instant) -> Rc<Self> {
        let rates = &settings.frames;
        let budget =
            |rate: Option<u32>| rate.map(|rate| Budget::new(rate.saturating_mul(BURST_SECONDS), rate, now));
        let budgets = Budgets {
            settings: budget(rates.settings),
            pings: budget(rates.pings),
            window_updates: budget(rates.window_updates),
            // Resets of streams that are over are told from others by nobody else.
            resets: Some(Budget::new(settings.reset_burst, settings.resets_per_second, now)),
            others: budget(rates.others),
        };
        Rc::new(Self {
            budgets: RefCell::new(budgets),
            flood: Cell::new(None),
            last: Cell::new(DATA),
            resets: Cell::new(0),
        })
    }

    fn take(&self, kind: u8, now: impl FnOnce() -> Instant) {
        self.last.set(kind);
        if kind == RST_STREAM {
            self.resets.set(self.resets.get().saturating_add(1));
        }
        if let Err(flood) = self.budgets.borrow_mut().take(kind, now) {
            self.flood.set(Some(flood));
        }
    }

    /// What the frame layer must have met when it had too much of something; it does not say of what.
    pub fn frame_layer_flood(&self) -> &'static str {
        match self.last.get() {
            CONTINUATION => "h2_continuation_flood",
            _ if self.resets.get() >= RESETS_OF_A_FLOOD => "h2_reset_flood",
            DATA => "h2_data_flood",
            _ => "h2_provoked_reset_flood",
        }
    }

    /// The flood that has been met. Asked by the task that reads, after it has read.
    pub fn poll_flood(&self) -> Poll<&'static str> {
        self.flood.get().map_or(Poll::Pending, Poll::Ready)
    }
}

/// A client's connection whose frames are counted. Once there are too many nothing more is read.
#[derive(Debug)]
pub(super) struct Watched {
    io: Replay,
    guard: Rc<FrameGuard>,
    inbound: FrameWalk,
    outbound: FrameWalk,
}

impl Watched {
    /// A connection whose preface is still to be read.
    pub fn new(io: Replay, guard: Rc<FrameGuard>) -> Self {
        let inbound = FrameWalk { skip: PREFACE_BYTES, ..FrameWalk::default() };
        Self { io, guard, inbound, outbound: FrameWalk::default() }
    }

    fn wrote<'a>(&mut self, parts: impl Iterator<Item = &'a [u8]>, mut written: usize) {
        let mut budgets = self.guard.budgets.borrow_mut();
        for part in parts {
            let bytes = written.min(part.len());
            self.outbound.walk(&part[..bytes], |kind| budgets.earn(kind));
            written -= bytes;
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.guard.flood.get().is_some() {
            // The connection is about to be closed by the task that polls this.
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut this.io).poll_read(cx, buf);
        let (mut now, guard) = (None, &this.guard);
        this.inbound.walk(&buf.filled()[before..], |kind| {
            guard.take(kind, || *now.get_or_insert_with(Instant::now));
        });
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        if let Poll::Ready(Ok(bytes)) = written {
            self.wrote(std::iter::once(buf), bytes);
        }
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        if let Poll::Ready(Ok(bytes)) = written {
            self.wrote(bufs.iter().map(|part| &**part), bytes);
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::http::FrameRates;

    fn frame(kind: u8, length: u8) -> Vec<u8> {
        [&[0, 0, length, kind, 0, 0, 0, 0, 0][..], &vec![0xaa; length.into()]].concat()
    }

    #[test]
    fn heads_are_found_however_the_bytes_come() {
        let kinds = [SETTINGS, PING, DATA, HEADERS, WINDOW_UPDATE, 99];
        let bytes: Vec<u8> =
            kinds.iter().zip([0, 8, 200, 1, 4, 0]).flat_map(|(kind, length)| frame(*kind, length)).collect();
        for step in [1, 2, 3, 8, 9, 10, 17, 1000] {
            let mut seen = Vec::new();
            let mut walk = FrameWalk { skip: PREFACE_BYTES, ..FrameWalk::default() };
            let all = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &bytes].concat();
            for part in all.chunks(step) {
                walk.walk(part, |kind| seen.push(kind));
            }
            assert_eq!(seen, kinds, "in steps of {step}");
        }
    }

    #[test]
    fn each_kind_has_a_budget_of_its_own_that_answers_fill() {
        let now = Instant::now();
        let frames = FrameRates { settings: Some(1), pings: Some(1), window_updates: None, others: Some(1) };
        let settings =
            Http2Settings { reset_burst: 25, resets_per_second: 1, frames, ..Http2Settings::captured() };
        let guard = FrameGuard::new(&settings, now);
        let mut budgets = guard.budgets.borrow_mut();
        for (kind, most, flood) in [
            (SETTINGS, 10, "h2_settings_flood"),
            (PING, 10, "h2_ping_flood"),
            (2, 10, "h2_other_frame_flood"),
            (RST_STREAM, 25, "h2_reset_flood"),
        ] {
            let taken = (0..100).take_while(|_| budgets.take(kind, || now).is_ok()).count();
            assert_eq!(taken, most, "{flood}");
            assert_eq!(budgets.take(kind, || now), Err(flood));
        }
        for kind in [WINDOW_UPDATE, DATA, HEADERS, CONTINUATION] {
            assert!((0..100).all(|_| budgets.take(kind, || now).is_ok()), "{kind}");
        }
        budgets.earn(HEADERS);
        budgets.earn(DATA);
        budgets.earn(PING);
        let taken = (0..100).take_while(|_| budgets.take(PING, || now).is_ok()).count();
        assert_eq!(taken, 2, "one for each frame of an answer");
        assert_eq!(budgets.take(SETTINGS, || now), Err("h2_settings_flood"));
    }
}
