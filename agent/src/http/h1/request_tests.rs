//! Request heads, good and hostile: every input with its exact outcome.

use super::*;
use crate::http::h1::HeadScan;

fn parse_with(input: &[u8], limits: &Limits) -> Result<RequestHead, (u16, &'static str)> {
    let code = |refusal: Refusal| (refusal.status, refusal.reason);
    let mut head = RequestHead::default();
    let end = HeadScan::default().find_end(input, limits).map_err(code)?.unwrap_or(input.len());
    head.parse(&input[..end], limits).map_err(code)?;
    Ok(head)
}

fn parse(input: &[u8]) -> Result<RequestHead, (u16, &'static str)> {
    parse_with(input, &Limits::default())
}

/// A request with `lines` after the request line.
fn with_lines(lines: &str) -> Vec<u8> {
    format!("POST /a HTTP/1.1\r\n{lines}\r\n\r\n").into_bytes()
}

#[test]
fn targets_are_split() {
    let check = |line: &str, host: &str, path: &str, query: Option<&str>, authority: &str| {
        let head = parse(format!("{line}\r\nHost: H.example:81\r\n\r\n").as_bytes()).expect(line);
        let seen = (head.host(), head.path(), head.query(), head.authority());
        assert_eq!(seen, (host, path, query, authority), "{line}");
    };
    check("GET / HTTP/1.1", "h.example", "/", None, "H.example:81");
    check("GET /a/b?c=d&e HTTP/1.1", "h.example", "/a/b", Some("c=d&e"), "H.example:81");
    check("GET /a? HTTP/1.1", "h.example", "/a", Some(""), "H.example:81");
    check("GET /a?b?c HTTP/1.1", "h.example", "/a", Some("b?c"), "H.example:81");
    check("GET //a HTTP/1.1", "h.example", "//a", None, "H.example:81");
    check("GET /\u{e4} HTTP/1.1", "h.example", "/\u{e4}", None, "H.example:81");
    check("GET /%2e%2e/a{b}|c HTTP/1.0", "h.example", "/%2e%2e/a{b}|c", None, "H.example:81");
    check("GET http://Other.example:82/a?b HTTP/1.1", "other.example", "/a", Some("b"), "Other.example:82");
    check("GET HTTP://other.example HTTP/1.1", "other.example", "/", None, "other.example");
    check("GET https://other.example?q HTTP/1.1", "other.example", "/", Some("q"), "other.example");
    check("OPTIONS * HTTP/1.1", "h.example", "*", None, "H.example:81");
    check("get / HTTP/1.1", "h.example", "/", None, "H.example:81");
}

/// Path, query and the text for records after normalisation, or why the path is refused.
fn normalised(target: &str, policy: PathPolicy) -> Result<(String, Option<String>, String), &'static str> {
    let mut head =
        parse(format!("OPTIONS {target} HTTP/1.1\r\nHost: a\r\nx: y\r\n\r\n").as_bytes()).expect(target);
    let refused = head.normalise_path(policy).map_err(|refusal| refusal.reason);
    assert_eq!((head.method(), head.header("x"), head.host()), ("OPTIONS", Some(&b"y"[..]), "a"), "{target}");
    if let Err(reason) = refused {
        assert_eq!(head.raw_target(), target, "a refused head stays as it was");
        return Err(reason);
    }
    Ok((head.path().to_owned(), head.query().map(str::to_owned), head.raw_target().to_owned()))
}

#[test]
fn paths_are_normalised_and_queries_are_not() {
    let check = |target: &str, path: &str, query: Option<&str>, raw: &str| {
        let seen = normalised(target, PathPolicy::gateway());
        assert_eq!(seen, Ok((path.to_owned(), query.map(str::to_owned), raw.to_owned())), "{target}");
    };
    check("/a/b?c", "/a/b", Some("c"), "/a/b?c");
    check("/a/../b", "/b", None, "/b");
    check("/a//b?/../%2e//", "/a/b", Some("/../%2e//"), "/a/b?/../%2e//");
    check("/%61?", "/a", Some(""), "/a?");
    check("http://a/x/../%62?q=%zz", "/b", Some("q=%zz"), "/b?q=%zz");
    check("http://a", "/", None, "http://a");
    check("http://a?q", "/", Some("q"), "http://a?q");
    check("*", "*", None, "*");
    assert_eq!(normalised("/a%2fb?c", PathPolicy::gateway()), Err("path_escaped_slash"));
    assert_eq!(normalised("/a/../..?c", PathPolicy::gateway()), Err("path_above_root"));
    assert_eq!(normalised("/?c=%2f%00%zz/../..", PathPolicy::gateway()).map(|seen| seen.0), Ok("/".into()));
}

#[test]
fn authorities_schemes_and_hops() {
    let check = |head: &str, two: bool, https: bool, hops: usize| {
        let head = parse(format!("{}\r\n\r\n", head.replace('\n', "\r\n")).as_bytes()).expect(head);
        assert_eq!(
            (head.has_two_authorities(), head.names_https() == Some(true), head.passed_by("us")),
            (two, https, hops)
        );
    };
    check("GET / HTTP/1.1\nHost: a", false, false, 0);
    check("GET http://a/ HTTP/1.1\nHost: A", false, false, 0);
    check("GET http://a/ HTTP/1.1\nHost: b", true, false, 0);
    check("GET http://a/ HTTP/1.1\nHost: a:80", true, false, 0);
    check("GET http://a/ HTTP/1.1\nHost:", true, false, 0);
    check("GET http://a/ HTTP/1.0", false, false, 0);
    check("GET HTTPS://a HTTP/1.1\nHost: a", false, true, 0);
    check("GET /https HTTP/1.1\nHost: a", false, false, 0);
    check("GET / HTTP/1.1\nHost: a\nVia: 1.1 us, 1.0 them\nVia: 2 US (a comment)", false, false, 2);
    check("GET / HTTP/1.1\nHost: a\nVia: us, 1.1 usa, 1.1, ,", false, false, 0);
}

#[test]
fn bodies_and_connections() {
    let check = |lines: &str, framing, persistent, expects| {
        let head = parse(&with_lines(&format!("Host: a\r\n{lines}"))).expect(lines);
        let seen = (head.framing(), head.connection().persistent(head.version()), head.expects_continue());
        assert_eq!(seen, (framing, persistent, expects), "{lines}");
    };
    check("a: b", Framing::None, true, false);
    check("Content-Length: 0", Framing::Length(0), true, false);
    check("content-length:  42 ", Framing::Length(42), true, false);
    check("Content-Length: 007", Framing::Length(7), true, false);
    check("Content-Length: 9223372036854775807", Framing::Length(9_223_372_036_854_775_807), true, false);
    check("Transfer-Encoding: Chunked", Framing::Chunked, true, false);
    check("Connection: close", Framing::None, false, false);
    check("Connection: Keep-Alive, Close", Framing::None, false, false);
    check("Connection: x\r\nConnection: close", Framing::None, false, false);
    check("Content-Length: 1\r\nExpect: 100-Continue", Framing::Length(1), true, true);
}

#[test]
fn http10_closes_unless_told_otherwise() {
    let check = |lines: &str, persistent| {
        let head = parse(format!("GET / HTTP/1.0\r\n{lines}\r\n").as_bytes()).expect(lines);
        assert_eq!(head.connection().persistent(head.version()), persistent, "{lines}");
        assert!(!head.expects_continue(), "an expectation means nothing in HTTP/1.0");
    };
    check("", false);
    check("Connection: keep-alive\r\n", true);
    check("Expect: 100-continue\r\nContent-Length: 1\r\n", false);
    check("Connection: keep-alive, close\r\n", false);
}

#[test]
fn upgrades_are_single_and_bodiless() {
    let check = |lines: &str, expected: Option<&str>| {
        let head = parse(&with_lines(&format!("Host: a\r\n{lines}"))).expect(lines);
        assert_eq!(head.upgrade(), expected.map(str::as_bytes), "{lines}");
    };
    check("Connection: Upgrade\r\nUpgrade: websocket", Some("websocket"));
    check("Connection: keep-alive, upgrade\r\nUpgrade: TLS/1.0", Some("TLS/1.0"));
    check("Upgrade: websocket", None);
    check("Connection: upgrade", None);
    check("Connection: upgrade, http2-settings\r\nUpgrade: h2c", None);
    check("Connection: upgrade\r\nUpgrade: H2C", None);
    check("Connection: upgrade\r\nUpgrade: websocket, h2c", None);
    check("Connection: upgrade\r\nUpgrade: websocket\r\nUpgrade: other", None);
    check("Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 5", None);
}

#[test]
fn hostile_request_lines() {
    let check = |line: &[u8], status, reason| {
        let input = [line, b"\r\nHost: a\r\n\r\n"].concat();
        assert_eq!(parse(&input).map(|_| ()), Err((status, reason)), "{:?}", line.escape_ascii().to_string());
    };
    check(b"GET  / HTTP/1.1", 400, "request_line_malformed");
    check(b"GET / a HTTP/1.1", 400, "request_line_malformed");
    check(b"GET\t/ HTTP/1.1", 400, "method_malformed");
    check(b" GET / HTTP/1.1", 400, "method_malformed");
    check(b"G@T / HTTP/1.1", 400, "method_malformed");
    check(b"GET", 400, "request_line_malformed");
    check(b"GET /", 400, "version_malformed");
    check(b"GET / ", 400, "version_malformed");
    check(b"GET / HTTP/1.1 ", 400, "request_line_malformed");
    check(b"GET / http/1.1", 400, "version_malformed");
    check(b"GET / HTTP/1.11", 400, "version_malformed");
    check(b"GET / HTTP/1", 400, "version_malformed");
    check(b"GET / HTTPS/1.1", 400, "version_malformed");
    check(b"GET / HTTP/1.2", 505, "version_unsupported");
    check(b"GET / HTTP/2.0", 505, "version_unsupported");
    check(b"PRI * HTTP/2.0", 505, "version_unsupported");
    check(b"GET / HTTP/0.9", 505, "version_unsupported");
    check(b"GET /#a HTTP/1.1", 400, "target_fragment");
    check(b"GET http://a/#b HTTP/1.1", 400, "target_fragment");
    check(b"GET /\x01 HTTP/1.1", 400, "target_control_byte");
    check(b"GET /\x7f HTTP/1.1", 400, "target_control_byte");
    check(b"GET /\0 HTTP/1.1", 400, "target_control_byte");
    check(b"GET /\xff HTTP/1.1", 400, "target_encoding");
    check(b"GET a HTTP/1.1", 400, "target_form");
    check(b"GET ?a HTTP/1.1", 400, "target_form");
    check(b"GET a.example/b HTTP/1.1", 400, "target_form");
    check(b"GET * HTTP/1.1", 400, "target_asterisk");
    check(b"GET ftp://a/ HTTP/1.1", 400, "target_scheme");
    check(b"GET http://u:p@a/ HTTP/1.1", 400, "target_userinfo");
    check(b"GET http:///a HTTP/1.1", 400, "target_authority");
    check(b"GET http://a:b/ HTTP/1.1", 400, "target_authority");
    check(b"GET http://a b/ HTTP/1.1", 400, "request_line_malformed");
    check(b"CONNECT a:443 HTTP/1.1", 405, "method_connect");
    check(&[b"GET /".as_slice(), &[b'a'; 8192], b" HTTP/1.1"].concat(), 414, "target_too_long");
    check(&[&[b'A'; 33], b" / HTTP/1.1".as_slice()].concat(), 501, "method_too_long");
}

#[test]
fn hostile_fields() {
    let check = |lines: &str, status, reason| {
        assert_eq!(parse(&with_lines(lines)).map(|_| ()), Err((status, reason)), "{lines:?}");
    };
    check("Host: a\r\n b: c", 400, "header_obs_fold");
    check("Host: a\r\nb: c\r\n\td", 400, "header_obs_fold");
    check(" Host: a", 400, "header_obs_fold");
    check("Host : a", 400, "header_space_before_colon");
    check("Host: a\r\nContent-Length\t: 5", 400, "header_space_before_colon");
    check("Host: a\r\nGET / HTTP/1.1", 400, "header_without_colon");
    check("Host: a\r\n: b", 400, "header_name_empty");
    check("Host: a\r\nb c: d", 400, "header_name");
    check("Host: a\r\nb@: d", 400, "header_name");
    check("Host: a\r\n\u{e4}: d", 400, "header_name");
    check("Host: a\r\nb: c\0d", 400, "header_control_byte");
    check("Host: a\r\nb: c\x08", 400, "header_control_byte");
    check("Host: a\r\nb: c\x7f", 400, "header_control_byte");
    check("Host: a\r\nb: c\rd", 400, "header_control_byte");
    check("Host: a\nb: c", 400, "bare_lf");
    check("Host: a\r\nb: c\n\r\n", 400, "bare_lf");
    check("a: b", 400, "host_missing");
    check("Host: a\r\nHost: a", 400, "host_repeated");
    check("Host: a\r\nhost: b", 400, "host_repeated");
    check("Host:", 400, "host_empty");
    check("Host: a, b", 400, "host_malformed");
    check("Host: a b", 400, "host_malformed");
    check("Host: a/b", 400, "host_malformed");
    check("Host: http://a", 400, "host_malformed");
    check("Host: u@a", 400, "host_userinfo");
    check("Host: a:99999", 400, "host_malformed");
    check("Host: [::1", 400, "host_malformed");
    check("Host: a\r\nExpect: 200-ok", 417, "expect_unknown");
    check("Host: a\r\nExpect: 100-continue, x", 417, "expect_unknown");
}

#[test]
fn hostile_framing() {
    let check = |lines: &str, status, reason| {
        assert_eq!(
            parse(&with_lines(&format!("Host: a\r\n{lines}"))).map(|_| ()),
            Err((status, reason)),
            "{lines:?}"
        );
    };
    check("Content-Length: 5\r\nContent-Length: 6", 400, "content_length_repeated");
    check("Content-Length: 5\r\nContent-Length: 5", 400, "content_length_repeated");
    check("Content-Length: 5, 5", 400, "content_length_repeated");
    check("Content-Length: +5", 400, "content_length_malformed");
    check("Content-Length: -5", 400, "content_length_malformed");
    check("Content-Length: 0x5", 400, "content_length_malformed");
    check("Content-Length: 5 5", 400, "content_length_malformed");
    check("Content-Length: 5.0", 400, "content_length_malformed");
    check("Content-Length: \u{665}", 400, "content_length_malformed");
    check("Content-Length:", 400, "content_length_malformed");
    check("Content-Length: 9223372036854775808", 400, "content_length_overflow");
    check("Content-Length: 99999999999999999999999", 400, "content_length_overflow");
    check("Content-Length: 5\r\nTransfer-Encoding: chunked", 400, "transfer_encoding_with_content_length");
    check("Transfer-Encoding: x\r\nContent-Length: 5", 400, "transfer_encoding_with_content_length");
    check("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", 400, "transfer_encoding_repeated");
    check("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", 400, "transfer_encoding_repeated");
    check("Transfer-Encoding: gzip, chunked", 501, "transfer_encoding_unsupported");
    check("Transfer-Encoding: chunked, chunked", 400, "transfer_encoding_not_chunked");
    check("Transfer-Encoding: chunked, gzip", 400, "transfer_encoding_not_chunked");
    check("Transfer-Encoding: gzip", 400, "transfer_encoding_not_chunked");
    check("Transfer-Encoding: identity", 400, "transfer_encoding_not_chunked");
    check("Transfer-Encoding: xchunked", 400, "transfer_encoding_not_chunked");
    check("Transfer-Encoding: chunked;q=1", 400, "transfer_encoding_not_chunked");
    check("Transfer-Encoding: \"chunked\"", 400, "transfer_encoding_not_chunked");
    check("Transfer-Encoding: , chunked", 400, "transfer_encoding_not_chunked");
    check("Transfer-Encoding: chunked,", 400, "transfer_encoding_not_chunked");
    check("Transfer-Encoding:", 400, "transfer_encoding_not_chunked");
    check("Transfer-Encoding:\x0bchunked", 400, "header_control_byte");
    check("Transfer-Encoding : chunked", 400, "header_space_before_colon");
    let old = b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(parse(old).map(|_| ()), Err((400, "transfer_encoding_in_http10")));
}

#[test]
fn limits_bind() {
    let limits = Limits { head_bytes: 1024, target_bytes: 64, fields: 4, underscores: false };
    let check = |input: &[u8], expected| {
        assert_eq!(
            parse_with(input, &limits).map(|_| ()),
            expected,
            "{:?}",
            input.escape_ascii().to_string()
        );
    };
    check(b"GET / HTTP/1.1\r\nHost: a\r\nb: 1\r\nc: 2\r\nd: 3\r\n\r\n", Ok(()));
    check(
        b"GET / HTTP/1.1\r\nHost: a\r\nb: 1\r\nc: 2\r\nd: 3\r\ne: 4\r\n\r\n",
        Err((431, "header_too_many")),
    );
    check(b"GET / HTTP/1.1\r\nHost: a\r\nx_user: 1\r\n\r\n", Err((400, "header_underscore")));
    let long = [b"GET / HTTP/1.1\r\nHost: a\r\nb: ".as_slice(), &[b'x'; 1024], b"\r\n\r\n"].concat();
    check(&long, Err((431, "header_too_long")));
    check(
        &[b"GET /".as_slice(), &[b'x'; 1024], b" HTTP/1.1\r\n\r\n"].concat(),
        Err((414, "target_too_long")),
    );
    check(
        &[b"GET /".as_slice(), &[b'x'; 64], b" HTTP/1.1\r\nHost: a\r\n\r\n"].concat(),
        Err((414, "target_too_long")),
    );
    let many = [b"GET / HTTP/1.1\r\nHost: a\r\n".as_slice(), &b"a: b\r\n".repeat(100), b"\r\n"].concat();
    assert_eq!(
        parse(&many).map(|_| ()),
        Err((431, "header_too_many")),
        "the index on the stack has its own end"
    );
}

#[test]
fn a_head_is_reused_without_traces_of_the_last_one() {
    let mut head = RequestHead::default();
    let limits = Limits::default();
    head.parse(b"POST /long/path?q HTTP/1.1\r\nHost: First\r\nContent-Length: 5\r\nx: y\r\n\r\n", &limits)
        .expect("good");
    head.parse(b"GET / HTTP/1.0\r\n\r\n", &limits).expect("good");
    assert_eq!((head.host(), head.authority(), head.path(), head.query()), ("", "", "/", None));
    assert_eq!((head.framing(), head.header("x"), head.fields().iter().count()), (Framing::None, None, 0));
}

#[test]
fn any_bytes_give_an_answer_and_no_panic() {
    proptest::proptest!(|(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300))| {
        let _ = parse(&bytes);
        let shaped = [b"GET ".as_slice(), &bytes, b" HTTP/1.1\r\nHost: a\r\n\r\n"].concat();
        if let Ok(head) = parse(&shaped) {
            proptest::prop_assert!(head.path().starts_with('/'));
        }
    });
}
