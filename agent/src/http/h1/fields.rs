//! The header section of a message, kept as ranges into one reused buffer: order, case and repetition as received.

use std::ops::Range;

use memchr::memchr;

use super::head::Limits;
use super::lines::{Line, Lines, find_lines};
use crate::http::Refusal;

/// A range of bytes in a head, which is never larger than 4 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// The span of `part`, which lies within `whole`.
    pub(super) fn within(whole: &[u8], part: &[u8]) -> Self {
        let start = part.as_ptr().addr().saturating_sub(whole.as_ptr().addr());
        Self::from(start..start + part.len())
    }

    pub(super) fn of(self, bytes: &[u8]) -> &[u8] {
        bytes.get(self.start as usize..self.end as usize).unwrap_or_default()
    }

    pub(super) fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// From the start of this one to the end of a later one.
    pub(super) fn until(self, later: Self) -> Self {
        Self { start: self.start, end: later.end }
    }
}

impl From<Range<usize>> for Span {
    fn from(range: Range<usize>) -> Self {
        let bound = |at| u32::try_from(at).expect("heads are bounded far below 4 GiB");
        Self { start: bound(range.start), end: bound(range.end) }
    }
}

macro_rules! known_fields {
    ($($variant:ident $name:literal,)*) => {
        /// Fields that the proxy itself reads or writes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Known {
            $(#[doc = concat!("`", $name, "`")] $variant,)*
            /// Every other field.
            Other,
        }

        impl Known {
            /// Which field a name means, in any case.
            pub fn of(name: &[u8]) -> Self {
                match name.len() {
                    $(len if len == $name.len() && name.eq_ignore_ascii_case($name.as_bytes()) => Self::$variant,)*
                    _ => Self::Other,
                }
            }
        }
    };
}

known_fields! {
    Te "te",
    Via "via",
    Host "host",
    Date "date",
    Expect "expect",
    Upgrade "upgrade",
    Connection "connection",
    KeepAlive "keep-alive",
    UserAgent "user-agent",
    GrpcStatus "grpc-status",
    ContentType "content-type",
    GrpcTimeout "grpc-timeout",
    XRequestId "x-request-id",
    ContentLength "content-length",
    Http2Settings "http2-settings",
    XForwardedFor "x-forwarded-for",
    XForwardedHost "x-forwarded-host",
    XForwardedProto "x-forwarded-proto",
    ProxyConnection "proxy-connection",
    TransferEncoding "transfer-encoding",
}

/// One field line.
#[derive(Debug, Clone, Copy)]
struct Entry {
    name: Span,
    value: Span,
    known: Known,
    /// Whether it was received as one plain line.
    plain: bool,
}

impl Entry {
    fn line(self, bytes: &[u8]) -> Option<&[u8]> {
        let line = Span { start: self.name.start, end: self.value.end + 2 };
        self.plain.then(|| line.of(bytes))
    }
}

/// One field line as seen from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    /// The name, case kept.
    pub name: &'a [u8],
    /// The value without the space around it.
    pub value: &'a [u8],
    /// Which field it is.
    pub known: Known,
    /// The whole line, its end included, where it reads `name: value` with one space.
    pub line: Option<&'a [u8]>,
}

/// A head's bytes and where its fields lie in them. Reused from message to message.
#[derive(Debug, Default)]
pub struct Fields {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    seen: u32,
}

impl Fields {
    /// Takes over the head that `input` starts with and whose start line ends before `at`; gives where it ends.
    pub(super) fn read(&mut self, input: &[u8], at: usize) -> Lines {
        self.entries.clear();
        self.seen = 0;
        let Self { entries, seen, .. } = self;
        let lines = find_lines(input, at, |Line { name, value, plain }| {
            let known = Known::of(name.of(input));
            *seen |= 1 << known as u8;
            entries.push(Entry { name, value, known, plain });
        });
        self.bytes.clear();
        if let Lines::End(end) = lines {
            self.bytes.extend_from_slice(&input[..end]);
        }
        lines
    }

    /// [`Self::read`] within limits; `None` where the head is not whole, not in order, or too long.
    pub(super) fn read_within(
        &mut self,
        input: &[u8],
        at: usize,
        limits: &Limits,
    ) -> Result<Option<usize>, Refusal> {
        match self.read(input, at) {
            Lines::End(end) if end <= limits.head_bytes => self.check(limits).map(|()| Some(end)),
            _ => Ok(None),
        }
    }

    fn check(&self, limits: &Limits) -> Result<(), Refusal> {
        if self.entries.len() > limits.fields {
            return Err(Refusal::with(431, "header_too_many"));
        }
        // One look at the whole head tells for nearly all.
        let suspect = !limits.underscores && memchr(b'_', &self.bytes).is_some();
        if suspect && self.iter().any(|field| field.name.contains(&b'_')) {
            return Err(Refusal::bad("header_underscore"));
        }
        Ok(())
    }

    /// Starts a head that did not come as HTTP/1 text with bytes that are not fields; gives where each part lies.
    pub(super) fn restart<const N: usize>(&mut self, parts: [&str; N]) -> [Span; N] {
        self.bytes.clear();
        self.entries.clear();
        self.seen = 0;
        parts.map(|part| self.append(part.as_bytes()))
    }

    /// Adds a field to a head that [`Self::restart`] began; gives where its value lies.
    pub(super) fn push(&mut self, name: &[u8], value: &[u8]) -> Span {
        let known = Known::of(name);
        self.seen |= 1 << known as u8;
        let (name, value) = (self.append(name), self.append(value));
        self.entries.push(Entry { name, value, known, plain: false });
        value
    }

    /// Adds bytes that are no field; gives where they lie.
    pub(super) fn append(&mut self, part: &[u8]) -> Span {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(part);
        Span::from(start..self.bytes.len())
    }

    /// How many fields there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The bytes of the whole head.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether a known field is there.
    pub fn has(&self, known: Known) -> bool {
        self.seen & (1 << known as u8) != 0
    }

    /// All field lines in order.
    pub fn iter(&self) -> impl Iterator<Item = Field<'_>> {
        self.entries.iter().map(|entry| Field {
            name: entry.name.of(&self.bytes),
            value: entry.value.of(&self.bytes),
            known: entry.known,
            line: entry.line(&self.bytes),
        })
    }

    /// All values of a known field, in order.
    pub fn all(&self, known: Known) -> impl Iterator<Item = &[u8]> {
        let entries = if self.has(known) { &self.entries[..] } else { &[] };
        entries.iter().filter(move |entry| entry.known == known).map(|entry| entry.value.of(&self.bytes))
    }

    /// The first value of a known field.
    pub fn first(&self, known: Known) -> Option<&[u8]> {
        self.all(known).next()
    }

    /// The first value of any field, by name in any case.
    pub fn find(&self, name: &[u8]) -> Option<&[u8]> {
        self.iter().find(|field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_fields_are_found_in_any_case() {
        assert_eq!(Known::of(b"HOST"), Known::Host);
        assert_eq!(Known::of(b"transfer-Encoding"), Known::TransferEncoding);
        assert_eq!(Known::of(b"x-request-id"), Known::XRequestId);
        assert_eq!(Known::of(b"content_length"), Known::Other);
        assert_eq!(Known::of(b"hos"), Known::Other);
        assert_eq!(Known::of(b""), Known::Other);
    }
}
