//! Trailers between the two versions.

use http::{HeaderMap, HeaderName};

use crate::http::h1::{Known, is_token};
use crate::http::{FieldSink, hop};

/// Trailers of HTTP/1, whole lines that have been filtered, as HTTP/2 has them.
pub fn from_lines(lines: &[u8]) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if let Some(colon) = memchr::memchr(b':', line) {
            trailers.field(&line[..colon], line[colon + 1..].trim_ascii());
        }
    }
    trailers
}

/// Trailers of HTTP/2 as lines of HTTP/1. Those that a recipient could take for a head's field of weight are left out, and
/// those whose names are no tokens, which the `http` crate takes from HTTP/2 (`"` in them).
pub fn to_lines(trailers: &HeaderMap) -> bytes::BytesMut {
    let mut lines = bytes::BytesMut::new();
    let may_go = |name: &[u8]| hop::may_be_trailer(name) && name.iter().copied().all(is_token);
    for (name, value) in trailers.iter().filter(|(name, _)| may_go(name.as_str().as_bytes())) {
        lines.field(name.as_str().as_bytes(), value.as_bytes().trim_ascii());
    }
    lines
}

/// Trailers of an HTTP/2 request for HTTP/2. An upstream may merge them into the head, where what was taken from the
/// head must not come in by this door; `_` in names where `underscores` says so.
pub fn request_trailers(trailers: HeaderMap, underscores: bool) -> HeaderMap {
    keep(trailers, |name| hop::may_be_trailer(name) && (underscores || !name.contains(&b'_')))
}

/// Trailers of an HTTP/2 response for HTTP/2. gRPC puts arbitrary metadata in them, so that only what a message's frame
/// consists of is left out.
pub fn response_trailers(trailers: HeaderMap) -> HeaderMap {
    keep(trailers, |name| {
        let known = Known::of(name);
        !hop::ends_here(known) && !matches!(known, Known::Host | Known::ContentLength | Known::Expect)
    })
}

fn keep(trailers: HeaderMap, may_go: impl Fn(&[u8]) -> bool) -> HeaderMap {
    let goes = |name: &HeaderName| may_go(name.as_str().as_bytes());
    if trailers.keys().all(goes) {
        return trailers;
    }
    let mut kept = HeaderMap::with_capacity(trailers.len());
    for (name, value) in trailers.iter().filter(|(name, _)| goes(name)) {
        kept.field(name.as_str().as_bytes(), value.as_bytes());
    }
    kept
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn lines_and_maps() {
        let trailers = from_lines(b"Grpc-Status: 0\r\nx-sum:  abc \r\n");
        assert_eq!(trailers, map(&[("grpc-status", "0"), ("x-sum", "abc")]));
        assert!(from_lines(b"").is_empty());
        let lines = to_lines(&map(&[("grpc-status", "5"), ("content-length", "3"), ("authorization", "x")]));
        assert_eq!(lines, "grpc-status: 5\r\n");
        let mut quoted = HeaderMap::new();
        quoted
            .insert(HeaderName::from_lowercase(b"x\"y").expect("taken there"), HeaderValue::from_static("1"));
        assert_eq!(to_lines(&quoted), "");
    }

    #[test]
    fn what_frames_a_message_is_no_trailer() {
        let trailers = || {
            map(&[
                ("grpc-status", "0"),
                ("host", "a"),
                ("x-request-id", "b"),
                ("te", "trailers"),
                ("x_user", "root"),
            ])
        };
        let kept = [("grpc-status", "0"), ("x-request-id", "b"), ("x_user", "root")];
        assert_eq!(response_trailers(trailers()), map(&kept));
        assert_eq!(request_trailers(trailers(), true), map(&[("grpc-status", "0"), ("x_user", "root")]));
        assert_eq!(request_trailers(trailers(), false), map(&[("grpc-status", "0")]));
    }

    #[test]
    fn what_is_taken_from_heads_does_not_come_in_trailers() {
        for name in [
            "forwarded",
            "x-forwarded-for",
            "x-forwarded-client-cert",
            "x-real-ip",
            "x-original-url",
            "x-rewrite-url",
            "authorization",
            "cookie",
        ] {
            let claim = map(&[(name, "evil"), ("x-sum", "1")]);
            assert_eq!(request_trailers(claim.clone(), true), map(&[("x-sum", "1")]), "{name}");
            assert_eq!(from_lines(&to_lines(&claim)), map(&[("x-sum", "1")]), "{name}");
        }
    }
}
