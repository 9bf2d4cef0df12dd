//! Who the client is where proxies before the agent are trusted.

use std::net::{IpAddr, SocketAddr};

use crate::http::h1::{Known, RequestHead};

/// The address that the first of so many trusted proxies saw: each adds the one that asked it behind all others in
/// `x-forwarded-for`, so that it is the `hops`-th from the end of all such fields together. What stands before it is the
/// client's own claim.
///
/// `None` without trusted proxies, where there are not as many addresses, and where what stands there is none.
pub(super) fn forwarded(head: &RequestHead, hops: usize) -> Option<IpAddr> {
    let before = hops.checked_sub(1)?;
    let fields = head.fields().all(Known::XForwardedFor);
    let values: Vec<&[u8]> = fields.flat_map(|field| field.split(|byte| *byte == b',')).collect();
    // Elements of a list may be empty (RFC 9110 section 5.6.1).
    let mut latest_first = values.into_iter().rev().map(<[u8]>::trim_ascii).filter(|value| !value.is_empty());
    address(std::str::from_utf8(latest_first.nth(before)?).ok()?)
}

/// An address as proxies write it: alone, in brackets, or with a port.
fn address(text: &str) -> Option<IpAddr> {
    let bracketed =
        || text.strip_prefix('[')?.strip_suffix(']')?.parse::<IpAddr>().ok().filter(IpAddr::is_ipv6);
    let with_port = || text.parse::<SocketAddr>().ok().map(|socket| socket.ip());
    let address = text.parse::<IpAddr>().ok().or_else(bracketed).or_else(with_port)?;
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::h1::Limits;

    #[test]
    fn the_client_is_who_the_first_trusted_proxy_saw() {
        let check = |fields: &[&str], hops: usize, expected: Option<&str>| {
            let lines: String =
                fields.iter().flat_map(|value| ["X-Forwarded-For: ", value, "\r\n"]).collect();
            let mut head = RequestHead::default();
            let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
            head.read(text.as_bytes(), &Limits::default()).expect("a good head").expect("a whole head");
            let expected = expected.map(|text| text.parse::<IpAddr>().expect(text));
            assert_eq!(forwarded(&head, hops), expected, "{fields:?}, {hops}");
        };
        check(&["192.0.2.1"], 0, None);
        check(&[], 1, None);
        check(&["192.0.2.1"], 1, Some("192.0.2.1"));
        check(&["203.0.113.9, 192.0.2.1"], 1, Some("192.0.2.1"));
        check(&["203.0.113.9, 192.0.2.1"], 2, Some("203.0.113.9"));
        check(&["203.0.113.9, 192.0.2.1"], 3, None);
        check(&["203.0.113.9", "192.0.2.1"], 1, Some("192.0.2.1"));
        check(&["192.0.2.1,", " , "], 1, Some("192.0.2.1"));
        // One client, however it is written.
        for spelling in ["2001:db8::1", "2001:0DB8:0:0:0:0:0:1", "[2001:db8::1]", "[2001:db8::1]:443"] {
            check(&[spelling], 1, Some("2001:db8::1"));
        }
        for spelling in ["192.0.2.1", "192.0.2.1:80", "::ffff:192.0.2.1", "[::ffff:c000:201]:80"] {
            check(&[spelling], 1, Some("192.0.2.1"));
        }
        for none in ["unknown", "_hidden", "192.0.2", "[192.0.2.1]", "192.0.2.1 192.0.2.2", "192.0.2.1:x"] {
            check(&["192.0.2.1", none], 1, None);
        }
    }
}
