//! Which protocol a client speaks, from its first bytes.

/// What the bytes so far say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoken {
    /// An HTTP/1 request line.
    Http,
    /// HTTP/2's connection preface.
    Http2,
    /// Anything else.
    Opaque,
    /// Not enough to tell.
    Undecided,
}

/// A request line longer than this is HTTP all the same; the HTTP side answers it with 414.
const REQUEST_LINE_MAX: usize = 8 * 1024;
/// What an HTTP/2 client sends first (RFC 9113 section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// After this many bytes of it (the first line's CR) nothing else is meant.
const HTTP2_UNIQUE: usize = 15;
/// Registered methods are shorter; so are the ones that WebDAV added.
const METHOD_MAX: usize = 24;

/// Tells HTTP/1 from all else: a method in upper case, a space, a target, and `HTTP/1.` at the end of the line.
///
/// HTTP/2 is told by its preface.
pub fn classify(bytes: &[u8]) -> Spoken {
    if bytes.starts_with(HTTP2_PREFACE) {
        return Spoken::Http2;
    }
    if bytes.len() > HTTP2_UNIQUE && HTTP2_PREFACE.starts_with(bytes) {
        return Spoken::Undecided;
    }
    let method_len = bytes.iter().take_while(|b| b.is_ascii_uppercase() || **b == b'-').count();
    if method_len > METHOD_MAX {
        return Spoken::Opaque;
    }
    match bytes.get(method_len) {
        None => return Spoken::Undecided,
        Some(b' ') if method_len > 0 => {}
        Some(_) => return Spoken::Opaque,
    }
    let rest = &bytes[method_len + 1..];
    // Absolute-form and CONNECT are for a forward proxy, which must see them as they are.
    if rest.first().is_some_and(|b| !matches!(b, b'/' | b'*')) {
        return Spoken::Opaque;
    }
    match rest.iter().position(|b| *b == b'\n') {
        Some(end) => {
            let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
            let versioned =
                line.rsplit(|b| *b == b' ').next().is_some_and(|last| last.starts_with(b"HTTP/1."));
            if versioned { Spoken::Http } else { Spoken::Opaque }
        }
        None if bytes.len() >= REQUEST_LINE_MAX => Spoken::Http,
        None if rest.iter().any(|b| b.is_ascii_control() && *b != b'\r') => Spoken::Opaque,
        None => Spoken::Undecided,
    }
}

/// Bytes of an HTTP/2 frame's head (RFC 9113 section 4.1).
pub const HTTP2_FRAME_HEAD: usize = 9;

/// Whether a server's first bytes are the head of an HTTP/2 SETTINGS frame, which must come first: a length of whole
/// settings, type 4, no flag, stream 0.
pub fn is_http2_settings(head: [u8; HTTP2_FRAME_HEAD]) -> bool {
    const MAX_LENGTH: u32 = 64 * 6;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    length.is_multiple_of(6) && length <= MAX_LENGTH && head[3..] == [4, 0, 0, 0, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_frames() {
        let check = |head, expected| assert_eq!(is_http2_settings(head), expected, "{head:?}");
        check([0, 0, 0, 4, 0, 0, 0, 0, 0], true);
        check([0, 0, 24, 4, 0, 0, 0, 0, 0], true);
        check([0, 0, 25, 4, 0, 0, 0, 0, 0], false);
        check([1, 0, 0, 4, 0, 0, 0, 0, 0], false);
        check([0, 0, 0, 4, 1, 0, 0, 0, 0], false);
        check([0, 0, 0, 4, 0, 0, 0, 0, 1], false);
        check(*b"INFO {\"se", false);
        check([0x4a, 0, 0, 0, 10, b'8', b'.', b'0', b'.'], false);
    }

    #[test]
    fn first_bytes() {
        let long = [b"GET /".as_slice(), &[b'a'; REQUEST_LINE_MAX]].concat();
        let cases: &[(&[u8], Spoken)] = &[
            (b"GET / HTTP/1.1\r\n", Spoken::Http),
            (b"POST /x?y HTTP/1.0\n", Spoken::Http),
            (b"M-SEARCH * HTTP/1.1\r\n", Spoken::Http),
            (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", Spoken::Http),
            (&long, Spoken::Http),
            (b"", Spoken::Undecided),
            (b"G", Spoken::Undecided),
            (b"GET", Spoken::Undecided),
            (b"GET /inde", Spoken::Undecided),
            (b"GET / HTTP/1.1\r", Spoken::Undecided),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Spoken::Http2),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04", Spoken::Http2),
            (b"PRI * HTTP/2.0", Spoken::Undecided),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n", Spoken::Undecided),
            (b"PRI * HTTP/2.0\r\n\r\nXX", Spoken::Opaque),
            (b"GET key\r\n", Spoken::Opaque),
            (b"GET / FTP/1.1\r\n", Spoken::Opaque),
            (b"*1\r\n$4\r\nPING\r\n", Spoken::Opaque),
            (b"get / HTTP/1.1\r\n", Spoken::Opaque),
            (b"\x16\x03\x01\x02\x00", Spoken::Opaque),
            (b" GET / HTTP/1.1\r\n", Spoken::Opaque),
            (b"GET  / HTTP/1.1\r\n", Spoken::Opaque),
            (b"GET \x00\x01", Spoken::Opaque),
            (b"CONNECT example.com:443 HTTP/1.1\r\n", Spoken::Opaque),
            (b"GET http://example.com/ HTTP/1.1\r\n", Spoken::Opaque),
            (b"EHLO example.com\r\n", Spoken::Opaque),
            (b"SSH-2.0-OpenSSH_9.2\r\n", Spoken::Opaque),
            (b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", Spoken::Opaque),
        ];
        for (bytes, spoken) in cases {
            assert_eq!(classify(bytes), *spoken, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_decision_does_not_change_with_more_bytes() {
        let texts: [&[u8]; 4] = [
            HTTP2_PREFACE,
            b"GET / HTTP/1.1\r\nHost: a\r\n",
            b"GET key\r\nGET k HTTP/1.1\r\n",
            b"\x16\x03\x01",
        ];
        for text in texts {
            let mut decided = Spoken::Undecided;
            for len in 0..=text.len() {
                let now = classify(&text[..len]);
                assert!(decided == Spoken::Undecided || decided == now, "{text:?} at {len}");
                decided = now;
            }
        }
    }
}
