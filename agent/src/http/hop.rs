//! Hop-by-hop rules (RFC 9110 section 7.6.1): what ends at this hop and what a peer may not take away.

use super::h1::Known;

/// Whether a field always ends at this hop, whether or not `Connection` names it. `Upgrade` and `TE` are written anew
/// where they apply.
pub fn ends_here(known: Known) -> bool {
    matches!(
        known,
        Known::Connection
            | Known::KeepAlive
            | Known::ProxyConnection
            | Known::TransferEncoding
            | Known::Te
            | Known::Upgrade
            | Known::Http2Settings
    )
}

/// Fields that stay although `Connection` names them: framing, identity, and what this proxy and those before it vouch
/// for. Else a client could have us strip what the upstream trusts.
pub fn is_protected(name: &[u8]) -> bool {
    const PROTECTED: [&[u8]; 14] = [
        b"host",
        b"content-length",
        b"content-type",
        b"content-encoding",
        b"authorization",
        b"proxy-authorization",
        b"cookie",
        b"forwarded",
        b"via",
        b"x-real-ip",
        b"x-request-id",
        b"traceparent",
        b"tracestate",
        b"cache-control",
    ];
    is_forwarded(name) || PROTECTED.iter().any(|protected| name.eq_ignore_ascii_case(protected))
}

fn is_forwarded(name: &[u8]) -> bool {
    name.len() > 12 && name[..12].eq_ignore_ascii_case(b"x-forwarded-")
}

/// Whether a field says whom a request comes from or where it really goes, which only a proxy that one trusts may say.
pub fn is_vouched_for(name: &[u8]) -> bool {
    const OTHERS: [&[u8]; 4] = [b"forwarded", b"x-real-ip", b"x-original-url", b"x-rewrite-url"];
    matches!(name.first(), Some(b'x' | b'X' | b'f' | b'F'))
        && (is_forwarded(name) || OTHERS.iter().any(|other| name.eq_ignore_ascii_case(other)))
}

/// Whether a trailer field may be passed on (RFC 9110 section 6.5.1): never framing, routing, what the head decides, or
/// what only a trusted proxy may say.
pub fn may_be_trailer(name: &[u8]) -> bool {
    const HEAD_ONLY: [&[u8]; 8] = [
        b"trailer",
        b"set-cookie",
        b"content-range",
        b"max-forwards",
        b"age",
        b"expires",
        b"location",
        b"www-authenticate",
    ];
    let known = Known::of(name);
    !ends_here(known)
        && !matches!(known, Known::Host | Known::ContentLength | Known::Expect | Known::Date)
        && !is_protected(name)
        && !is_vouched_for(name)
        && !HEAD_ONLY.iter().any(|only| name.eq_ignore_ascii_case(only))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_only_trusted_proxies_may_send() {
        for name in [
            "Forwarded",
            "X-Real-IP",
            "x-forwarded-for",
            "X-Forwarded-Port",
            "x-forwarded-client-cert",
            "X-Original-URL",
            "x-rewrite-url",
        ] {
            assert!(is_vouched_for(name.as_bytes()), "{name}");
        }
        for name in [
            "",
            "x",
            "x-request-id",
            "x-real-ip-2",
            "from",
            "x-forwarded",
            "x-forwarded-",
            "via",
            "original-url",
        ] {
            assert!(!is_vouched_for(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn hop_by_hop_and_protected_fields() {
        let check = |name: &str, ends, protected, trailer| {
            let name_bytes = name.as_bytes();
            assert_eq!(
                (ends_here(Known::of(name_bytes)), is_protected(name_bytes), may_be_trailer(name_bytes)),
                (ends, protected, trailer),
                "{name}"
            );
        };
        check("Connection", true, false, false);
        check("keep-alive", true, false, false);
        check("Proxy-Connection", true, false, false);
        check("TE", true, false, false);
        check("Transfer-Encoding", true, false, false);
        check("HTTP2-Settings", true, false, false);
        check("Host", false, true, false);
        check("X-Forwarded-For", false, true, false);
        check("X-Forwarded-", false, false, true);
        check("X-Original-URL", false, false, false);
        check("x-rewrite-url", false, false, false);
        check("Authorization", false, true, false);
        check("grpc-status", false, false, true);
        check("Set-Cookie", false, false, false);
        check("x-anything", false, false, true);
    }
}
