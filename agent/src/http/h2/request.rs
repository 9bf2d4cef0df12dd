//! Request heads from HTTP/2 and to it.

use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Uri, header};

use crate::http::Refusal;
use crate::http::h1::{Limits, RequestHead, RequestParts};

/// Reads a request's head into `head`; `ends`: it has no body.
///
/// Cookie fields are joined to one (RFC 9113 section 8.2.3). After a refusal `head` is not to be used.
pub fn read_request(
    head: &mut RequestHead,
    parts: &Parts,
    ends: bool,
    limits: &Limits,
) -> Result<(), Refusal> {
    let target = parts.uri.path_and_query().map_or("", PathAndQuery::as_str);
    let request = RequestParts {
        method: parts.method.as_str(),
        target,
        authority: parts.uri.authority().map(Authority::as_str),
        ends,
    };
    if head_bytes(parts, target) > limits.head_bytes && target.len() <= limits.target_bytes {
        return Err(Refusal::with(431, "header_too_long"));
    }
    let cookie = joined_cookie(&parts.headers);
    let rest = parts.headers.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
    match &cookie {
        None => head.assemble(request, rest, limits),
        Some(cookie) => {
            let rest = rest.filter(|(name, _)| *name != b"cookie");
            head.assemble(request, rest.chain([(&b"cookie"[..], &cookie[..])]), limits)
        }
    }
}

/// How long the head would be as text of HTTP/1, whose limit is the same.
fn head_bytes(parts: &Parts, target: &str) -> usize {
    let authority = parts.uri.authority().map_or(0, |authority| authority.as_str().len());
    let fields = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len());
    parts.method.as_str().len() + target.len() + authority + fields.sum::<usize>()
}

/// The one cookie field that stands for several; `None` where there are not several.
fn joined_cookie(fields: &HeaderMap) -> Option<Vec<u8>> {
    let crumbs = fields.get_all(header::COOKIE);
    crumbs.iter().nth(1)?;
    let mut joined = Vec::new();
    for crumb in crumbs.iter().map(header::HeaderValue::as_bytes).filter(|crumb| !crumb.is_empty()) {
        if !joined.is_empty() {
            joined.extend_from_slice(b"; ");
        }
        joined.extend_from_slice(crumb);
    }
    Some(joined)
}

/// The pseudo-header fields of a request to an upstream.
pub fn request_uri(scheme: Scheme, authority: &str, target: &str) -> Result<Uri, Refusal> {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(scheme);
    parts.authority = Some(authority.parse().map_err(|_| Refusal::bad("authority_untranslatable"))?);
    parts.path_and_query = Some(target.parse().map_err(|_| Refusal::bad("target_untranslatable"))?);
    Uri::from_parts(parts).map_err(|_| Refusal::bad("target_untranslatable"))
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue, Request};

    use super::*;
    use crate::http::body::Framing;
    use crate::route::RequestView;

    fn read(uri: &str, method: &str, fields: &[(&str, &str)], ends: bool) -> Result<RequestHead, Refusal> {
        let mut request = Request::builder().method(method).uri(uri).body(()).expect("a request");
        for (name, value) in fields {
            let name: HeaderName = name.parse().expect("a name");
            request.headers_mut().append(name, HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
        }
        let mut head = RequestHead::default();
        let limits = Limits { fields: 20, target_bytes: 64, head_bytes: 256, underscores: false };
        read_request(&mut head, &request.into_parts().0, ends, &limits).map(|()| head)
    }

    #[test]
    fn good_heads_read_like_those_of_http1() {
        let head = read("http://Shop.Example:8080/a/b?c=d", "POST", &[("x-a", "1")], false).expect("good");
        assert_eq!((head.method(), head.path(), head.query()), ("POST", "/a/b", Some("c=d")));
        assert_eq!((head.host(), head.authority()), ("shop.example", "Shop.Example:8080"));
        assert_eq!((head.raw_target(), head.version().as_str()), ("/a/b?c=d", "HTTP/2"));
        assert_eq!(head.header("x-a"), Some(&b"1"[..]));
        assert_eq!(head.header("host"), Some(&b"Shop.Example:8080"[..]));
    }

    #[test]
    fn bodies_are_told_by_length_or_by_the_stream() {
        let check = |fields: &[(&str, &str)], ends, framing| {
            let head = read("http://a/", "POST", fields, ends).expect("good");
            assert_eq!(head.framing(), framing, "{fields:?} {ends}");
        };
        check(&[], true, Framing::None);
        check(&[], false, Framing::Chunked);
        check(&[("content-length", "5")], false, Framing::Length(5));
        check(&[("content-length", "0")], true, Framing::None);
    }

    #[test]
    fn host_stands_in_for_a_missing_authority_and_may_not_differ_from_it() {
        assert_eq!(read("/", "GET", &[("host", "a:1")], true).expect("good").authority(), "a:1");
        assert_eq!(read("http://A:1/", "GET", &[("host", "a:1")], true).expect("good").host(), "a");
        let head = read("http://a/", "GET", &[("host", "a")], true).expect("good");
        assert_eq!(head.fields().iter().count(), 1, "one host");
    }

    #[test]
    fn cookies_are_joined() {
        let head = read("http://a/", "GET", &[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2; c=3")], true)
            .expect("good");
        let cookies: Vec<_> = head.fields().iter().filter(|field| field.name == b"cookie").collect();
        assert_eq!((cookies.len(), cookies[0].value), (1, &b"a=1; b=2; c=3"[..]));
    }

    #[test]
    fn hostile_heads() {
        let check = |uri: &str, method: &str, fields: &[(&str, &str)], status, reason: &str| {
            let refusal = read(uri, method, fields, false).map(drop).expect_err("refused");
            assert_eq!((refusal.status, refusal.reason), (status, reason), "{uri} {method} {fields:?}");
        };
        let get =
            |fields: &[(&str, &str)], status, reason: &str| check("http://a/", "GET", fields, status, reason);
        get(&[("host", "b")], 400, "host_conflict");
        get(&[("host", "a:80")], 400, "host_conflict");
        get(&[("host", "a"), ("host", "b")], 400, "host_conflict");
        get(&[("content-length", "5"), ("content-length", "5")], 400, "content_length_repeated");
        get(&[("content-length", "5, 6")], 400, "content_length_repeated");
        get(&[("content-length", "+5")], 400, "content_length_malformed");
        get(&[("content-length", "99999999999999999999")], 400, "content_length_overflow");
        get(
            &[("transfer-encoding", "chunked"), ("content-length", "5")],
            400,
            "transfer_encoding_with_content_length",
        );
        get(&[("x", " a")], 400, "header_value_space");
        get(&[("x", "a\t")], 400, "header_value_space");
        get(&[("x_user", "root")], 400, "header_underscore");
        get(&[("expect", "magic")], 417, "expect_unknown");
        get(&[("a", "b"); 20], 431, "header_too_many");
        get(&[("a", "b".repeat(256).as_str())], 431, "header_too_long");
        get(&[("a", "b".repeat(60).as_str()); 4], 431, "header_too_long");
        check("/", "GET", &[], 400, "host_missing");
        check("/", "GET", &[("host", "")], 400, "host_empty");
        check("/", "GET", &[("host", "a"), ("host", "a")], 400, "host_repeated");
        check("/", "GET", &[("host", "u@a")], 400, "host_userinfo");
        check("http://u@a/", "GET", &[], 400, "host_userinfo");
        check("http://a/", "CONNECT", &[], 405, "method_connect");
        check("http://a/", &"M".repeat(33), &[], 501, "method_too_long");
        check(&format!("http://a/{}", "x".repeat(64)), "GET", &[], 414, "target_too_long");
        check("*", "GET", &[("host", "a")], 400, "target_asterisk");
    }

    #[test]
    fn upstream_targets() {
        let uri = request_uri(Scheme::HTTP, "order-service:80", "/a?b=c").expect("good");
        assert_eq!(uri.to_string(), "http://order-service:80/a?b=c");
        assert_eq!(request_uri(Scheme::HTTP, "[fd00::1]:80", "*").expect("good").path(), "*");
        assert_eq!(
            request_uri(Scheme::HTTP, "a b", "/").map_err(|r| r.reason),
            Err("authority_untranslatable")
        );
        assert_eq!(
            request_uri(Scheme::HTTP, "a", "/a b").map_err(|r| r.reason),
            Err("target_untranslatable")
        );
    }
}
