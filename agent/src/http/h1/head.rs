//! What request and response heads share: finding their end, limits, versions, and the reasons behind a parse error.

use memchr::memchr;

use crate::http::Refusal;

/// The most fields in one head; parsing keeps its index of them on the stack.
pub const MAX_FIELDS: usize = 100;

/// Bounds of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The whole head, its empty last line included.
    pub head_bytes: usize,
    /// The request target.
    pub target_bytes: usize,
    /// Fields; never more than [`MAX_FIELDS`].
    pub fields: usize,
    /// Whether `_` in field names is taken. Some servers read it as `-`, so that `x_user` would pass for `x-user`.
    pub underscores: bool,
}

impl Default for Limits {
    /// 64 KiB, 8 KiB, 100 fields, underscores taken.
    fn default() -> Self {
        Self { head_bytes: 64 * 1024, target_bytes: 8 * 1024, fields: MAX_FIELDS, underscores: true }
    }
}

/// The version that a message declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    #[default]
    Http11,
    /// HTTP/2, whose heads are translated into this codec's values.
    Http2,
}

impl Version {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        }
    }

    pub(super) fn from_minor(minor: Option<u8>) -> Self {
        if minor == Some(0) { Self::Http10 } else { Self::Http11 }
    }
}

/// Looks for the end of a head without reading any byte twice, however small the pieces in which it comes. Bytes that
/// no head can hold are refused as soon as they are seen, so that a peer that speaks something else is not waited for.
#[derive(Debug, Default)]
pub struct HeadScan {
    line_start: usize,
    checked: usize,
}

impl HeadScan {
    /// The length of the head that `bytes` starts with, once it is all there. Start lines are not looked at.
    pub fn find_end(&mut self, bytes: &[u8], limits: &Limits) -> Result<Option<usize>, Refusal> {
        let mut from = self.checked.max(self.line_start);
        while let Some(found) = memchr(b'\n', &bytes[from..]) {
            let line_feed = from + found;
            if line_feed == self.line_start || bytes[line_feed - 1] != b'\r' {
                return Err(Refusal::bad("bare_lf"));
            }
            if line_feed == 1 {
                // httparse would pass over any number of empty lines.
                return Err(Refusal::bad("start_line_empty"));
            }
            let end = line_feed + 1;
            if end > limits.head_bytes {
                return Err(self.too_long());
            }
            if line_feed == self.line_start + 1 {
                return Ok(Some(end));
            }
            self.line_start = end;
            from = end;
        }
        if bytes.len() >= limits.head_bytes {
            return Err(self.too_long());
        }
        self.refuse_controls(bytes)?;
        self.checked = bytes.len();
        Ok(None)
    }

    /// Whether nothing has been looked at yet.
    pub fn is_fresh(&self) -> bool {
        self.checked == 0 && self.line_start == 0
    }

    fn too_long(&self) -> Refusal {
        if self.line_start == 0 {
            Refusal::with(414, "target_too_long")
        } else {
            Refusal::with(431, "header_too_long")
        }
    }

    fn refuse_controls(&self, bytes: &[u8]) -> Result<(), Refusal> {
        let fresh = &bytes[self.checked..];
        if fresh.iter().any(|byte| is_control(*byte) && *byte != b'\r' && *byte != b'\n') {
            return Err(Refusal::bad("head_control_byte"));
        }
        Ok(())
    }
}

/// Control bytes other than the tab, which field values may hold.
pub(super) fn is_control(byte: u8) -> bool {
    (byte < 0x20 && byte != b'\t') || byte == 0x7f
}

/// Whether a byte may stand in a token: a method or a field name (RFC 9110 section 5.6.2).
pub(crate) const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

/// The first line of `input` with its end, where it is all there and ends as it must.
pub(super) fn start_line(input: &[u8]) -> Option<&[u8]> {
    let line = &input[..=memchr(b'\n', input)?];
    (line.len() > 2 && line.ends_with(b"\r\n")).then_some(line)
}

/// Why the field lines of `head` are not taken. Slow and exact: runs only on heads that are refused.
pub(super) fn explain_fields(head: &[u8]) -> Refusal {
    for line in head.split(|byte| *byte == b'\n').skip(1) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let Some(first) = line.first() else { break };
        if *first == b' ' || *first == b'\t' {
            return Refusal::bad("header_obs_fold");
        }
        let Some(colon) = memchr(b':', line) else {
            return Refusal::bad("header_without_colon");
        };
        let (name, value) = line.split_at(colon);
        if name.is_empty() {
            return Refusal::bad("header_name_empty");
        }
        if name.ends_with(b" ") || name.ends_with(b"\t") {
            return Refusal::bad("header_space_before_colon");
        }
        if !name.iter().copied().all(is_token) {
            return Refusal::bad("header_name");
        }
        if value.iter().copied().any(is_control) {
            return Refusal::bad("header_control_byte");
        }
    }
    Refusal::bad("header_malformed")
}

/// The checks on a field that did not come as HTTP/1 text. What would read differently once written as text (space around
/// a value, RFC 9113 section 8.2.1; control bytes) is refused.
pub(super) fn check_field(name: &[u8], value: &[u8], limits: &Limits) -> Result<(), Refusal> {
    if name.is_empty() || !name.iter().copied().all(is_token) {
        return Err(Refusal::bad("header_name"));
    }
    if value.iter().copied().any(is_control) {
        return Err(Refusal::bad("header_control_byte"));
    }
    if value.trim_ascii().len() != value.len() {
        return Err(Refusal::bad("header_value_space"));
    }
    if !limits.underscores && memchr(b'_', name).is_some() {
        return Err(Refusal::bad("header_underscore"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(input: &[u8], step: usize) -> Result<Option<usize>, &'static str> {
        let limits = Limits { head_bytes: 64, ..Limits::default() };
        let mut scan = HeadScan::default();
        let mut end = 0;
        while end < input.len() {
            end = (end + step).min(input.len());
            if let Some(len) = scan.find_end(&input[..end], &limits).map_err(|refusal| refusal.reason)? {
                return Ok(Some(len));
            }
        }
        Ok(None)
    }

    #[test]
    fn the_end_is_found_whatever_the_pieces() {
        let check = |input: &[u8], expected| {
            for step in [1, 2, 3, 100] {
                assert_eq!(scan(input, step), expected, "{:?} by {step}", input.escape_ascii().to_string());
            }
        };
        check(b"GET / HTTP/1.1\r\n\r\n", Ok(Some(18)));
        check(b"GET / HTTP/1.1\r\na: b\r\n\r\nrest", Ok(Some(24)));
        check(b"GET / HTTP/1.1\r\na: b\r\n", Ok(None));
        check(b"GET / HTTP/1.1\r", Ok(None));
        check(b"", Ok(None));
        check(b"GET / HTTP/1.1\n\n", Err("bare_lf"));
        check(b"GET / HTTP/1.1\r\na: b\n\r\n", Err("bare_lf"));
        check(b"GET / HTTP/1.1\r\n\n", Err("bare_lf"));
        check(b"\n", Err("bare_lf"));
        check(b"\r\nGET / HTTP/1.1\r\n\r\n", Err("start_line_empty"));
        check(b"\r\n\r\n", Err("start_line_empty"));
        check(&[b'a'; 70], Err("target_too_long"));
        check(&[b"GET / HTTP/1.1\r\n".as_slice(), &[b'a'; 60]].concat(), Err("header_too_long"));
        check(b"\x16\x03\x01\x02\x00", Err("head_control_byte"));
        check(b"GET /\0", Err("head_control_byte"));
    }
}
