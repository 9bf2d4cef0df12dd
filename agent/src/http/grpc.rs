//! What a proxy must know of gRPC: how requests are told, their deadlines, and the statuses of answers that the agent
//! gives itself. Messages are not looked into.

use std::time::Duration;

/// A gRPC status code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GrpcStatus(pub u16);

impl GrpcStatus {
    /// `CANCELLED`
    pub const CANCELLED: Self = Self(1);
    /// `UNKNOWN`
    pub const UNKNOWN: Self = Self(2);
    /// `DEADLINE_EXCEEDED`
    pub const DEADLINE_EXCEEDED: Self = Self(4);
    /// `PERMISSION_DENIED`
    pub const PERMISSION_DENIED: Self = Self(7);
    /// `RESOURCE_EXHAUSTED`
    pub const RESOURCE_EXHAUSTED: Self = Self(8);
    /// `UNIMPLEMENTED`
    pub const UNIMPLEMENTED: Self = Self(12);
    /// `INTERNAL`
    pub const INTERNAL: Self = Self(13);
    /// `UNAVAILABLE`
    pub const UNAVAILABLE: Self = Self(14);
    /// `UNAUTHENTICATED`
    pub const UNAUTHENTICATED: Self = Self(16);

    /// The status that stands for an HTTP status: the mapping that clients apply to answers of intermediaries
    /// (http-grpc-status-mapping.md of gRPC), but for 504: here it is always a deadline of ours.
    pub fn of_http(status: u16) -> Self {
        match status {
            400 => Self::INTERNAL,
            401 => Self::UNAUTHENTICATED,
            403 => Self::PERMISSION_DENIED,
            404 => Self::UNIMPLEMENTED,
            429 | 502 | 503 => Self::UNAVAILABLE,
            504 => Self::DEADLINE_EXCEEDED,
            _ => Self::UNKNOWN,
        }
    }

    /// The status that stands for an HTTP/2 error code (PROTOCOL-HTTP2.md of gRPC, "Errors").
    pub fn of_reset(code: u32) -> Self {
        match code {
            7 => Self::UNAVAILABLE,
            8 => Self::CANCELLED,
            11 => Self::RESOURCE_EXHAUSTED,
            12 => Self::PERMISSION_DENIED,
            0..=6 | 9 | 10 => Self::INTERNAL,
            _ => Self::UNKNOWN,
        }
    }

    /// The code's name; empty for numbers that are none.
    pub fn name(self) -> &'static str {
        const NAMES: [&str; 17] = [
            "OK",
            "CANCELLED",
            "UNKNOWN",
            "INVALID_ARGUMENT",
            "DEADLINE_EXCEEDED",
            "NOT_FOUND",
            "ALREADY_EXISTS",
            "PERMISSION_DENIED",
            "RESOURCE_EXHAUSTED",
            "FAILED_PRECONDITION",
            "ABORTED",
            "OUT_OF_RANGE",
            "UNIMPLEMENTED",
            "INTERNAL",
            "UNAVAILABLE",
            "DATA_LOSS",
            "UNAUTHENTICATED",
        ];
        NAMES.get(usize::from(self.0)).copied().unwrap_or_default()
    }

    /// Reads a `grpc-status` field; whatever is no code is `UNKNOWN`, as clients read it.
    pub fn parse(value: &[u8]) -> Self {
        let text = std::str::from_utf8(value).unwrap_or_default();
        text.parse().ok().filter(|code| *code <= 16).map_or(Self::UNKNOWN, Self)
    }
}

/// Whether a `Content-Type` is gRPC's (and not gRPC-Web's, which is plain HTTP to a proxy).
pub fn is_grpc(content_type: &[u8]) -> bool {
    const NAME: &[u8] = b"application/grpc";
    let Some((name, rest)) = content_type.split_at_checked(NAME.len()) else { return false };
    name.eq_ignore_ascii_case(NAME) && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
}

/// Reads `grpc-timeout`: at most eight digits and a unit.
pub fn timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count = digits.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(count * 3600),
        b'M' => Duration::from_secs(count * 60),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

/// A text as `grpc-message` carries it: percent-encoded but for printable ASCII.
pub fn message(text: &[u8]) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text {
        match byte {
            b'%' | 0..b' ' | 0x7f.. => {
                const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
                encoded.push('%');
                encoded.push(char::from(DIGITS[usize::from(byte >> 4)]));
                encoded.push(char::from(DIGITS[usize::from(byte & 15)]));
            }
            printable => encoded.push(char::from(*printable)),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_types() {
        let check = |text: &str, expected| assert_eq!(is_grpc(text.as_bytes()), expected, "{text}");
        check("application/grpc", true);
        check("application/grpc+proto", true);
        check("Application/GRPC; charset=x", true);
        check("application/grpc-web", false);
        check("application/grpc-web+proto", false);
        check("application/grp", false);
        check("application/json", false);
        check("", false);
    }

    #[test]
    fn timeouts() {
        let check = |text: &str, expected| assert_eq!(timeout(text.as_bytes()), expected, "{text}");
        check("1H", Some(Duration::from_hours(1)));
        check("2M", Some(Duration::from_mins(2)));
        check("3S", Some(Duration::from_secs(3)));
        check("250m", Some(Duration::from_millis(250)));
        check("10u", Some(Duration::from_micros(10)));
        check("99999999n", Some(Duration::from_nanos(99_999_999)));
        check("0m", Some(Duration::ZERO));
        for bad in ["", "S", "1", "1s", "1h", "123456789S", "-1S", "+1S", "1.5S", " 1S", "1 S", "1S "] {
            check(bad, None);
        }
    }

    #[test]
    fn statuses() {
        for (http, grpc) in
            [(400, 13), (401, 16), (403, 7), (404, 12), (429, 14), (502, 14), (503, 14), (504, 4), (500, 2)]
        {
            assert_eq!(GrpcStatus::of_http(http).0, grpc, "{http}");
        }
        for (code, grpc) in [(0, 13), (1, 13), (2, 13), (7, 14), (8, 1), (11, 8), (12, 7), (13, 2), (99, 2)] {
            assert_eq!(GrpcStatus::of_reset(code).0, grpc, "{code}");
        }
        for (text, grpc) in [("0", 0), ("14", 14), ("16", 16), ("17", 2), ("x", 2), ("", 2), ("-1", 2)] {
            assert_eq!(GrpcStatus::parse(text.as_bytes()).0, grpc, "{text}");
        }
    }

    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(message(b"no route: 100% \xc3\xa4\n"), "no route: 100%25 %C3%A4%0A");
    }
}
