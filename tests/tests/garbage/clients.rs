//! Request lines and fields that are refused; with the framings and bodies, all that clients are refused for.

use super::bodies::bodies;
use super::framings::framings;
use super::{Case, Counted, SMUGGLED, case, field, host, request_line};

/// What clients send that any HTTP port must refuse.
pub fn from_clients() -> Vec<Case> {
    let lists =
        [start_lines(), targets(), versions(), fields(), field_bytes(), hosts(), framings(), bodies()];
    lists.into_iter().flatten().collect()
}

fn long(count: usize) -> String {
    "a".repeat(count)
}

fn start_lines() -> Vec<Case> {
    vec![
        case(format!("GET / HTTP/1.1\n\n{SMUGGLED}"), 400, "bare_lf"),
        case(format!("\nGET / HTTP/1.1\r\nHost: web\r\n\r\n{SMUGGLED}"), 400, "bare_lf"),
        case(
            format!("{}GET / HTTP/1.1\r\nHost: web\r\n\r\n{SMUGGLED}", "\r\n".repeat(4)),
            400,
            "start_line_empty",
        ),
        case(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "head_control_byte"),
        case(b"\x00\x00\x00\x17\xffSMB", 400, "head_control_byte"),
        request_line("GET / and more HTTP/1.1", 400, "request_line_malformed"),
        request_line("GET  / HTTP/1.1", 400, "request_line_malformed"),
        request_line("GET /  HTTP/1.1", 400, "request_line_malformed"),
        request_line("GET / HTTP/1.1 ", 400, "request_line_malformed"),
        request_line("GE T / HTTP/1.1", 400, "request_line_malformed"),
        request_line("GET HTTP/1.1", 400, "version_malformed"),
        request_line("GET", 400, "request_line_malformed"),
        request_line(" GET / HTTP/1.1", 400, "method_malformed"),
        request_line("\tGET / HTTP/1.1", 400, "method_malformed"),
        request_line("GET\t/ HTTP/1.1", 400, "method_malformed"),
        request_line("G(T / HTTP/1.1", 400, "method_malformed"),
        request_line("GET: / HTTP/1.1", 400, "method_malformed"),
        request_line("G\0T / HTTP/1.1", 400, "method_malformed"),
        request_line("G\rT / HTTP/1.1", 400, "request_line_malformed"),
        request_line("\u{c4} / HTTP/1.1", 400, "method_malformed"),
        request_line("HTTP/1.1 200 OK", 400, "method_malformed"),
        request_line(format!("{} / HTTP/1.1", long(40)), 501, "method_too_long"),
        request_line("CONNECT db:3306 HTTP/1.1", 405, "method_connect"),
        request_line("CONNECT / HTTP/1.1", 405, "method_connect"),
        request_line("connect db:3306 HTTP/1.1", 400, "target_form"),
        case(format!("GET /{}", long(70_000)), 414, "target_too_long"),
        Case { closes: true, ..case("GET / HTTP/1.1\r\nHost: w", 400, "head_truncated") },
        Case { closes: true, ..case("GET / HTTP/1.1\r\nHost: web\r\n", 400, "head_truncated") },
        Case { closes: true, ..case("G", 400, "head_truncated") },
    ]
}

fn targets() -> Vec<Case> {
    let target = |target: &str, reason| request_line(format!("GET {target} HTTP/1.1"), 400, reason);
    vec![
        target("*", "target_asterisk"),
        request_line("PRI * HTTP/1.1", 400, "target_asterisk"),
        request_line("OPTIONS ** HTTP/1.1", 400, "target_form"),
        target("/a#b", "target_fragment"),
        target("http://web/#b", "target_fragment"),
        target("a", "target_form"),
        target("?a=b", "target_form"),
        target("web:80", "target_form"),
        target("http:/web/", "target_form"),
        target("javascript:alert(1)", "target_form"),
        target("ftp://web/", "target_scheme"),
        target("ws://web/", "target_scheme"),
        target("://web/", "target_scheme"),
        target("http://user@web/", "target_userinfo"),
        target("http://user:pass@web/", "target_userinfo"),
        target("http://web@/", "target_userinfo"),
        target("http://", "target_authority"),
        target("http:///", "target_authority"),
        target("http://we%b:99999/", "target_authority"),
        target("http://web:80:80/", "target_authority"),
        target("http://[::1/", "target_authority"),
        target("http://web\\evil/", "target_authority"),
        target("http://web,evil/", "target_authority"),
        target("/\x01", "target_control_byte"),
        target("/\0", "target_control_byte"),
        target("/\x0b", "target_control_byte"),
        target("/\x7f", "target_control_byte"),
        target("/\tx", "target_control_byte"),
        request_line("GET /\tHTTP/1.1", 400, "target_control_byte"),
        request_line(b"GET /\xff HTTP/1.1", 400, "target_encoding"),
        request_line(format!("GET /{} HTTP/1.1", long(9_000)), 414, "target_too_long"),
    ]
}

fn versions() -> Vec<Case> {
    let version = |version: &str, reason| request_line(format!("GET / {version}"), 400, reason);
    let unsupported = |version: &str| request_line(format!("GET / {version}"), 505, "version_unsupported");
    vec![
        unsupported("HTTP/2.0"),
        unsupported("HTTP/1.2"),
        unsupported("HTTP/3.0"),
        unsupported("HTTP/0.9"),
        unsupported("HTTP/9.9"),
        request_line("PRI / HTTP/2.0", 505, "version_unsupported"),
        version("HTTQ/1.1", "version_malformed"),
        version("http/1.1", "version_malformed"),
        version("HTTP/1", "version_malformed"),
        version("HTTP/1.", "version_malformed"),
        version("HTTP/1,1", "version_malformed"),
        version("HTTP/01.1", "version_malformed"),
        version("HTTP/1.10", "version_malformed"),
        version("HTTP/11.1", "version_malformed"),
        version("HTTP-1.1", "version_malformed"),
        version("HTTP/1.1\t", "version_malformed"),
        version("HTTP/1.1\0", "version_malformed"),
        version("HTTP/1.1\rX: y", "header_malformed"),
        request_line("GET /", 400, "version_malformed"),
    ]
}

fn fields() -> Vec<Case> {
    vec![
        field("A: b\r\n c", 400, "header_obs_fold"),
        field("A: b\r\n\tc", 400, "header_obs_fold"),
        field("A:\r\n b", 400, "header_obs_fold"),
        host(" A: b\r\nHost: web\r\n", "header_obs_fold"),
        host("\tHost: web\r\n", "header_obs_fold"),
        field("A : b", 400, "header_space_before_colon"),
        field("A\t: b", 400, "header_space_before_colon"),
        field("A", 400, "header_without_colon"),
        field("A=b", 400, "header_without_colon"),
        field("GET /x HTTP/1.1", 400, "header_without_colon"),
        field(": b", 400, "header_name_empty"),
        field(" : b", 400, "header_obs_fold"),
        field("A B: c", 400, "header_name"),
        field("A@b: c", 400, "header_name"),
        field("(A): b", 400, "header_name"),
        field("A;b: c", 400, "header_name"),
        field("\"A\": b", 400, "header_name"),
        field("\u{c4}: b", 400, "header_name"),
        field(format!("A: {}", "b".repeat(66_000)), 431, "header_too_long"),
        field("b".repeat(66_000), 431, "header_too_long"),
        field(vec![format!("A: {}", "b".repeat(700)); 99].join("\r\n"), 431, "header_too_long"),
        field(["A: b"; 100].join("\r\n"), 431, "header_too_many"),
        field("Expect: 200-ok", 417, "expect_unknown"),
        field("Expect: 100", 417, "expect_unknown"),
        field("Expect: 100-continue, x", 417, "expect_unknown"),
        field("Expect: 100-continue=1", 417, "expect_unknown"),
        field("Expect: 100-continue\r\nExpect: 100-continue", 417, "expect_unknown"),
    ]
}

/// Bytes that end or hide a field for some recipients.
fn field_bytes() -> Vec<Case> {
    vec![
        field("A: b\0c", 400, "header_control_byte"),
        field("A: b\rc: d", 400, "header_control_byte"),
        field("A: b\r\rC: d", 400, "header_control_byte"),
        field("A: b\x0bc", 400, "header_control_byte"),
        field("A: b\x0cc", 400, "header_control_byte"),
        field("A: \x1b[31m", 400, "header_control_byte"),
        field("A: b\x7f", 400, "header_control_byte"),
        field("A: \x08", 400, "header_control_byte"),
        field("A\0: b", 400, "header_name"),
        field("A\x0b: b", 400, "header_name"),
        field("A\r: b", 400, "header_name"),
        field("\rA: b", 400, "header_name"),
        field("A: b\nC: d", 400, "bare_lf"),
        field("A: b\n C: d", 400, "bare_lf"),
        field("A: b\n\nGET /smuggled HTTP/1.1", 400, "bare_lf"),
        field("A: b\r\n\nC: d", 400, "bare_lf"),
    ]
}

fn hosts() -> Vec<Case> {
    let malformed = |value: &str| host(&format!("Host: {value}\r\n"), "host_malformed");
    let mut cases = vec![
        host("", "host_missing"),
        request_without_host("http://web/"),
        host("Host: web\r\nHost: web\r\n", "host_repeated"),
        host("Host: web\r\nhOST: evil\r\n", "host_repeated"),
        host("Host:\r\nHost: web\r\n", "host_repeated"),
        host("Host:\r\n", "host_empty"),
        host("Host: \t \r\n", "host_empty"),
        host("Host: root@web\r\n", "host_userinfo"),
        host("Host: evil:80@web\r\n", "host_userinfo"),
        host("Host : web\r\n", "header_space_before_colon"),
        host("Host: web\0\r\n", "header_control_byte"),
    ];
    cases.extend(
        [
            "web/x",
            "web, other",
            "web,web",
            "web?x",
            "web#x",
            "web evil",
            "web\tevil",
            "web\\evil",
            "http://web",
            "<web>",
            "web|x",
            "web:99999",
            "web:-1",
            "web:+80",
            "web:0x50",
            "web:80:80",
            "web:80a",
            ":80",
            ".",
            "[::1",
            "[]",
            "[::1]x",
            "::1",
            "w\u{e4}b",
            "\"web\"",
        ]
        .map(malformed),
    );
    cases
}

fn request_without_host(target: &str) -> Case {
    case(format!("GET {target} HTTP/1.1\r\n\r\n{SMUGGLED}"), 400, "host_missing")
}

/// What strangers send that a Gateway refuses and a captured port does not.
pub fn from_strangers() -> Vec<Case> {
    let not_found = |authority: &str, path: &str| Case {
        counted: Counted::Flag("NR"),
        ..case(
            format!("GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n{SMUGGLED}"),
            404,
            "",
        )
    };
    vec![
        field("X_User: root", 400, "header_underscore"),
        field("Content_Length: 5", 400, "header_underscore"),
        field("Transfer_Encoding: chunked", 400, "header_underscore"),
        not_found("other", "/"),
        not_found("web.", "/nowhere"),
        not_found("web", "/nowhere"),
    ]
}
