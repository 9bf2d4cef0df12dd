//! `host[:port]` (RFC 3986 section 3.2), without userinfo.

/// An authority taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Authority<'a> {
    /// The host, brackets included for an IPv6 address; no trailing dot.
    pub host: &'a str,
}

/// Why an authority is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AuthorityError {
    Empty,
    Userinfo,
    Malformed,
}

/// Takes an authority apart; `Empty` for no bytes at all.
pub(super) fn parse(bytes: &[u8]) -> Result<Authority<'_>, AuthorityError> {
    if bytes.is_empty() {
        return Err(AuthorityError::Empty);
    }
    if bytes.contains(&b'@') {
        return Err(AuthorityError::Userinfo);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| AuthorityError::Malformed)?;
    let (host, port) = if text.starts_with('[') {
        let end = text.find(']').ok_or(AuthorityError::Malformed)? + 1;
        text[1..end - 1].parse::<std::net::Ipv6Addr>().map_err(|_| AuthorityError::Malformed)?;
        (&text[..end], &text[end..])
    } else {
        text.split_at(text.find(':').unwrap_or(text.len()))
    };
    let port_fits = match port.strip_prefix(':') {
        Some(digits) => {
            digits.bytes().all(|byte| byte.is_ascii_digit())
                && (digits.is_empty() || digits.parse::<u16>().is_ok())
        }
        None => port.is_empty(),
    };
    let host_fits = host.starts_with('[') || host.bytes().all(is_reg_name);
    let host = host.strip_suffix('.').unwrap_or(host);
    if !port_fits || !host_fits || host.is_empty() {
        return Err(AuthorityError::Malformed);
    }
    Ok(Authority { host })
}

/// Bytes of a registered name; `,` is left out, which only occurs where two Host values were joined.
fn is_reg_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+;=%".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities() {
        let check = |input: &str, expected: Result<&str, AuthorityError>| {
            assert_eq!(parse(input.as_bytes()).map(|authority| authority.host), expected, "{input:?}");
        };
        check("order-service", Ok("order-service"));
        check("Example.COM:8080", Ok("Example.COM"));
        check("example.com.", Ok("example.com"));
        check("example.com.:80", Ok("example.com"));
        check("a:", Ok("a"));
        check("under_score", Ok("under_score"));
        check("10.0.0.1:65535", Ok("10.0.0.1"));
        check("[fd00::1]:80", Ok("[fd00::1]"));
        check("[::1]", Ok("[::1]"));
        check("", Err(AuthorityError::Empty));
        check("user@example.com", Err(AuthorityError::Userinfo));
        for bad in [
            ":80",
            ".",
            "a:b",
            "a:80:80",
            "a:65536",
            "a:-1",
            "a:+1",
            "a b",
            "a/b",
            "a\\b",
            "a,b",
            "[::1",
            "[::1]x",
            "[]",
            "[fd00::1%25eth0]",
            "::1",
            "a\tb",
            "a\"b",
            "a<b",
            "h\u{e4}",
        ] {
            check(bad, Err(AuthorityError::Malformed));
        }
    }
}
