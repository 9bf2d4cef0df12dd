//! Bytes that break HTTP/1.1, from clients and from upstreams, with what each earns.

/// Where an exchange is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// In `sluice_protocol_errors_total`, under a reason.
    Protocol(&'static str),
    /// In `istio_requests_total`, under a response flag.
    Flag(&'static str),
}

/// What the client gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gets {
    /// One answer with this status, and the end.
    Status(u16),
    /// An end without any answer.
    Close,
    /// A 200 whose body is cut.
    Cut,
}

/// One hostile exchange.
#[derive(Debug)]
pub struct Case {
    /// What is sent.
    pub bytes: Vec<u8>,
    /// Whether the sender then closes its side.
    pub closes: bool,
    /// What the client gets.
    pub gets: Gets,
    /// Where that is counted.
    pub counted: Counted,
}

fn case(bytes: impl AsRef<[u8]>, status: u16, reason: &'static str) -> Case {
    Case {
        bytes: bytes.as_ref().to_vec(),
        closes: false,
        gets: Gets::Status(status),
        counted: Counted::Protocol(reason),
    }
}

/// A request that must never be answered, behind every hostile one.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: web\r\n\r\n";

fn request_line(line: &str, status: u16, reason: &'static str) -> Case {
    case(format!("{line}\r\nHost: web\r\n\r\n{SMUGGLED}"), status, reason)
}

fn field(field: &str, status: u16, reason: &'static str) -> Case {
    case(format!("GET / HTTP/1.1\r\nHost: web\r\n{field}\r\n\r\n{SMUGGLED}"), status, reason)
}

fn host(fields: &str, reason: &'static str) -> Case {
    case(format!("GET / HTTP/1.1\r\n{fields}\r\n{SMUGGLED}"), 400, reason)
}

fn framed(fields: &str, status: u16, reason: &'static str) -> Case {
    case(format!("POST / HTTP/1.1\r\nHost: web\r\n{fields}\r\n0\r\n\r\n{SMUGGLED}"), status, reason)
}

fn chunks(body: &str, status: u16, reason: &'static str) -> Case {
    let head = "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n";
    case(format!("{head}{body}{SMUGGLED}"), status, reason)
}

/// What clients send that any HTTP port must refuse.
pub fn from_clients() -> Vec<Case> {
    let lists = [start_lines(), fields(), framings(), bodies()];
    lists.into_iter().flatten().collect()
}

fn start_lines() -> Vec<Case> {
    let long = |count: usize| "a".repeat(count);
    vec![
        case(format!("GET / HTTP/1.1\n\n{SMUGGLED}"), 400, "bare_lf"),
        case(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "head_control_byte"),
        case(b"\x00\x00\x00\x17\xffSMB", 400, "head_control_byte"),
        request_line("GET / HTTP/2.0", 505, "version_unsupported"),
        request_line("GET / HTTP/1.2", 505, "version_unsupported"),
        request_line("GET / HTTP/3.0", 505, "version_unsupported"),
        request_line("GET / HTTQ/1.1", 400, "version_malformed"),
        request_line("GET /", 400, "version_malformed"),
        request_line("GET / and more HTTP/1.1", 400, "request_line_malformed"),
        request_line("G(T / HTTP/1.1", 400, "method_malformed"),
        request_line(&format!("{} / HTTP/1.1", long(40)), 501, "method_too_long"),
        request_line("CONNECT db:3306 HTTP/1.1", 405, "method_connect"),
        request_line("GET * HTTP/1.1", 400, "target_asterisk"),
        request_line("GET /a#b HTTP/1.1", 400, "target_fragment"),
        request_line("GET a HTTP/1.1", 400, "target_form"),
        request_line("GET ftp://web/ HTTP/1.1", 400, "target_scheme"),
        request_line("GET http://user@web/ HTTP/1.1", 400, "target_userinfo"),
        request_line("GET http://we%b:99999/ HTTP/1.1", 400, "target_authority"),
        request_line("GET /\x01 HTTP/1.1", 400, "target_control_byte"),
        request_line(&format!("GET /{} HTTP/1.1", long(9_000)), 414, "target_too_long"),
        case(format!("GET /{}", long(70_000)), 414, "target_too_long"),
        Case { closes: true, ..case("GET / HTTP/1.1\r\nHost: w", 400, "head_truncated") },
    ]
}

fn fields() -> Vec<Case> {
    vec![
        field("A: b\r\n c", 400, "header_obs_fold"),
        field("A : b", 400, "header_space_before_colon"),
        field("A", 400, "header_without_colon"),
        field(": b", 400, "header_name_empty"),
        field("A@b: c", 400, "header_name"),
        field("A: b\0c", 400, "header_control_byte"),
        field("A: b\rc: d", 400, "header_control_byte"),
        field("A: b\nC: d", 400, "bare_lf"),
        field(&format!("A: {}", "b".repeat(66_000)), 431, "header_too_long"),
        field(&["A: b"; 100].join("\r\n"), 431, "header_too_many"),
        field("Expect: 200-ok", 417, "expect_unknown"),
        host("", "host_missing"),
        host("Host: web\r\nHost: web\r\n", "host_repeated"),
        host("Host:\r\n", "host_empty"),
        host("Host: web/x\r\n", "host_malformed"),
        host("Host: web, other\r\n", "host_malformed"),
        host("Host: root@web\r\n", "host_userinfo"),
    ]
}

fn framings() -> Vec<Case> {
    vec![
        framed(
            "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n",
            400,
            "transfer_encoding_with_content_length",
        ),
        framed("Content-Length: 5\r\nContent-Length: 5\r\n", 400, "content_length_repeated"),
        framed("Content-Length: 5, 5\r\n", 400, "content_length_repeated"),
        framed("Content-Length: -1\r\n", 400, "content_length_malformed"),
        framed("Content-Length: +5\r\n", 400, "content_length_malformed"),
        framed("Content-Length: 0x5\r\n", 400, "content_length_malformed"),
        framed("Content-Length: 99999999999999999999\r\n", 400, "content_length_overflow"),
        framed("Transfer-Encoding: xchunked\r\n", 400, "transfer_encoding_not_chunked"),
        framed("Transfer-Encoding: chunked, gzip\r\n", 400, "transfer_encoding_not_chunked"),
        framed("Transfer-Encoding: gzip, chunked\r\n", 501, "transfer_encoding_unsupported"),
        framed(
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            400,
            "transfer_encoding_repeated",
        ),
        case(
            format!("POST / HTTP/1.0\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"),
            400,
            "transfer_encoding_in_http10",
        ),
    ]
}

fn bodies() -> Vec<Case> {
    let trailers = "T: x\r\n".repeat(2_000);
    vec![
        chunks("zz\r\n", 400, "chunk_size"),
        chunks("5\nhello", 400, "chunk_size"),
        chunks("5\r\nhelloX\r\n", 400, "chunk_line_end"),
        chunks("1ffffffffffffffff\r\n", 400, "chunk_size_overflow"),
        chunks(&format!("1;{}\r\na", "x".repeat(2_000)), 400, "chunk_extension_too_long"),
        chunks("0\r\nT: x\n\r\n", 400, "trailer_line_end"),
        chunks(&format!("0\r\n{trailers}"), 431, "trailers_too_long"),
        Case {
            closes: true,
            gets: Gets::Close,
            counted: Counted::Flag("DC"),
            ..case("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 10\r\n\r\nhel", 0, "")
        },
        Case {
            closes: true,
            gets: Gets::Close,
            counted: Counted::Flag("DC"),
            ..case("POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe", 0, "")
        },
    ]
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
        not_found("other", "/"),
        not_found("web", "/nowhere"),
    ]
}

/// What upstreams answer, and what the client gets instead. They close after it.
pub fn from_upstreams() -> Vec<Case> {
    let answer = |fields: &str, reason| case(format!("HTTP/1.1 200 OK\r\n{fields}\r\n"), 502, reason);
    let mut cases = vec![
        case("secret-hello\r\n\r\n", 502, "version_malformed"),
        case("SSH-2.0-OpenSSH_9.2\r\n", 502, "head_truncated"),
        case(b"\x15\x03\x01\x00\x02", 502, "head_control_byte"),
        case("HTTP/1.1 200 OK\n\n", 502, "bare_lf"),
        case("HTTP/2.0 200 OK\r\n\r\n", 502, "version_malformed"),
        case("HTTP/1.1 2000 OK\r\n\r\n", 502, "status_malformed"),
        case("HTTP/1.1 600 High\r\n\r\n", 502, "status_out_of_range"),
        case("HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", 502, "upgrade_unasked"),
        answer("A : b\r\n", "header_space_before_colon"),
        answer("A: b\r\n c\r\n", "header_obs_fold"),
        answer("A: b\0\r\n", "header_control_byte"),
        answer("Content-Length: 1\r\nContent-Length: 2\r\n", "content_length_repeated"),
        answer("Content-Length: x\r\n", "content_length_malformed"),
        answer(
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "transfer_encoding_with_content_length",
        ),
        answer("Transfer-Encoding: gzip\r\n", "transfer_encoding_not_chunked"),
        answer(&format!("A: {}\r\n", "b".repeat(66_000)), "header_too_long"),
        answer(&"A: b\r\n".repeat(101), "header_too_many"),
        case("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nsecret", 502, "chunk_size"),
        case("", 503, "upstream_closed"),
    ];
    let cut = case("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhel", 200, "upstream_truncated");
    cases.push(Case { gets: Gets::Cut, ..cut });
    let cut = case(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        200,
        "upstream_truncated",
    );
    cases.push(Case { gets: Gets::Cut, ..cut });
    cases
}
