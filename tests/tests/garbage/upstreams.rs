//! Answers that break HTTP/1.1, and what the client gets instead.

use super::{Case, Counted, Gets, case};

/// What upstreams answer, and what the client gets instead. They close after it.
pub fn from_upstreams() -> Vec<Case> {
    let lists = [status_lines(), fields(), framings(), bodies(), interims()];
    lists.into_iter().flatten().collect()
}

fn answer(fields: &str, reason: &'static str) -> Case {
    case(format!("HTTP/1.1 200 OK\r\n{fields}\r\n"), 502, reason)
}

fn cut(bytes: &str) -> Case {
    Case { gets: Gets::Cut, ..case(bytes, 200, "upstream_truncated") }
}

fn status_lines() -> Vec<Case> {
    let line = |line: &str, reason| case(format!("{line}\r\nContent-Length: 0\r\n\r\n"), 502, reason);
    vec![
        case("", 503, "upstream_closed"),
        case("secret-hello\r\n\r\n", 502, "version_malformed"),
        case("SSH-2.0-OpenSSH_9.2\r\n", 502, "head_truncated"),
        case("HTTP/1.1 200 OK\r\nContent-Le", 502, "head_truncated"),
        case(b"\x15\x03\x01\x00\x02", 502, "head_control_byte"),
        case("HTTP/1.1 200 OK\n\n", 502, "bare_lf"),
        line("HTTP/2.0 200 OK", "version_malformed"),
        line("http/1.1 200 OK", "version_malformed"),
        line("HTTP/1.2 200 OK", "version_malformed"),
        line("ICY 200 OK", "version_malformed"),
        line(" HTTP/1.1 200 OK", "version_malformed"),
        line("HTTP/1.1\t200 OK", "version_malformed"),
        line("HTTP/1.1", "version_malformed"),
        line("GET / HTTP/1.1", "version_malformed"),
        line("HTTP/1.1 2000 OK", "status_malformed"),
        line("HTTP/1.1 20 OK", "status_malformed"),
        line("HTTP/1.1  200 OK", "status_malformed"),
        line("HTTP/1.1 -20 OK", "status_malformed"),
        line("HTTP/1.1 2x0 OK", "status_malformed"),
        line("HTTP/1.1 200OK", "status_malformed"),
        line("HTTP/1.1 200\tOK", "status_malformed"),
        line("HTTP/1.1 200 O\0K", "status_malformed"),
        line("HTTP/1.1 200 O\rK", "status_malformed"),
        line("HTTP/1.1 099 Low", "status_out_of_range"),
        line("HTTP/1.1 600 High", "status_out_of_range"),
        line("HTTP/1.1 000 None", "status_out_of_range"),
        case(format!("HTTP/1.1 200 {}", "a".repeat(70_000)), 502, "header_too_long"),
    ]
}

fn fields() -> Vec<Case> {
    vec![
        answer("A : b\r\n", "header_space_before_colon"),
        answer("A: b\r\n c\r\n", "header_obs_fold"),
        answer(" A: b\r\n", "header_obs_fold"),
        answer("A\r\n", "header_without_colon"),
        answer(": b\r\n", "header_name_empty"),
        answer("A@b: c\r\n", "header_name"),
        answer("A\0: c\r\n", "header_name"),
        answer("A: b\0\r\n", "header_control_byte"),
        answer("A: b\rSet-Cookie: secret\r\n", "header_control_byte"),
        answer("A: b\x0b\r\n", "header_control_byte"),
        answer("A: b\nSet-Cookie: secret\r\n", "bare_lf"),
        answer(&format!("A: {}\r\n", "b".repeat(66_000)), "header_too_long"),
        answer(&"A: b\r\n".repeat(101), "header_too_many"),
    ]
}

fn framings() -> Vec<Case> {
    let coding = |value: &str, reason| answer(&format!("Transfer-Encoding: {value}\r\n"), reason);
    let length = |value: &str, reason| answer(&format!("Content-Length: {value}\r\n"), reason);
    let both = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n";
    vec![
        answer("Content-Length: 1\r\nContent-Length: 2\r\n", "content_length_repeated"),
        answer("Content-Length: 5\r\nContent-Length: 5\r\n", "content_length_repeated"),
        length("5, 5", "content_length_repeated"),
        length("x", "content_length_malformed"),
        length("", "content_length_malformed"),
        length("-1", "content_length_malformed"),
        length("+5", "content_length_malformed"),
        length("0x5", "content_length_malformed"),
        length("18446744073709551621", "content_length_overflow"),
        answer(both, "transfer_encoding_with_content_length"),
        case(format!("HTTP/1.1 204 None\r\n{both}\r\n"), 502, "transfer_encoding_with_content_length"),
        case(format!("HTTP/1.1 304 Same\r\n{both}\r\n"), 502, "transfer_encoding_with_content_length"),
        coding("gzip", "transfer_encoding_not_chunked"),
        coding("identity", "transfer_encoding_not_chunked"),
        coding("xchunked", "transfer_encoding_not_chunked"),
        coding("chunked, chunked", "transfer_encoding_not_chunked"),
        coding("gzip, chunked", "transfer_encoding_unsupported"),
        answer("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "transfer_encoding_repeated"),
        answer("Transfer-Encoding : chunked\r\n", "header_space_before_colon"),
        case(
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            502,
            "transfer_encoding_in_http10",
        ),
    ]
}

fn bodies() -> Vec<Case> {
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunks = |body: &str, reason| case(format!("{CHUNKED}{body}"), 502, reason);
    vec![
        chunks("zz\r\nsecret", "chunk_size"),
        chunks("5 \r\nhello\r\n0\r\n\r\n", "chunk_size"),
        chunks("0x5\r\nhello\r\n0\r\n\r\n", "chunk_size"),
        chunks("5\nhello\r\n0\r\n\r\n", "chunk_size"),
        chunks("10000000000000005\r\nhello\r\n0\r\n\r\n", "chunk_size_overflow"),
        chunks("0\r\nA : b\r\n\r\n", "trailer_field"),
        chunks("0\r\nA: b\n\r\n", "trailer_line_end"),
        cut("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhel"),
        cut("HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775807\r\n\r\nhel"),
        cut(&format!("{CHUNKED}5\r\nhello\r\n")),
        cut(&format!("{CHUNKED}5\r\nhel")),
        cut(&format!("{CHUNKED}5\r\nhello\r\n0\r\n")),
        cut(&format!("{CHUNKED}5\r\nhello\r\n0\r\nA: b\r\n")),
    ]
}

fn interims() -> Vec<Case> {
    let switching = "HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n";
    vec![
        case(switching, 502, "upgrade_unasked"),
        case(
            "HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\nsecret",
            502,
            "upgrade_unasked",
        ),
        case("HTTP/1.1 103 Early\r\n\r\n".repeat(40), 502, "interim_too_many"),
        case("HTTP/1.1 100 Continue\r\nContent-Length: x\r\n\r\n", 502, "content_length_malformed"),
        case("HTTP/1.1 100 Continue\r\n\r\n", 503, "upstream_closed"),
        case("HTTP/1.1 102 Wait\r\n\r\nsecret\r\n\r\n", 502, "version_malformed"),
    ]
}

/// Answers that stop half-way, by an upstream that keeps its connection; the route gives them less than a second.
pub fn from_slow_upstreams() -> Vec<Case> {
    let late = |bytes: &str| Case { counted: Counted::Flag("UT"), ..case(bytes, 504, "") };
    let stalls = |bytes: &str| Case { gets: Gets::Cut, ..late(bytes) };
    vec![
        late(""),
        late("HTTP/1.1 20"),
        late("HTTP/1.1 200 OK\r\nA: b\r\n"),
        late("HTTP/1.1 102 Wait\r\n\r\n"),
        stalls("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhel"),
        stalls("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"),
    ]
}

/// An answer with bytes behind it that belong to no request.
#[derive(Debug)]
pub struct Poison {
    /// The method that is answered so.
    pub method: &'static str,
    /// What the upstream says; it keeps its connection.
    pub bytes: &'static str,
    /// The status that the client gets.
    pub status: u16,
    /// The body that the client gets.
    pub body: &'static str,
}

/// Answers that would be another request's if the upstream's connection were used again.
pub fn poisons() -> Vec<Poison> {
    let row = |method, status, body, bytes| Poison { method, bytes, status, body };
    vec![
        row(
            "GET",
            200,
            "hi",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret",
        ),
        row("GET", 200, "hi", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhisecret"),
        row("GET", 200, "hi", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi\r\n"),
        row(
            "GET",
            200,
            "hi",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\nsecret",
        ),
        row("GET", 204, "", "HTTP/1.1 204 None\r\nContent-Length: 6\r\n\r\nsecret"),
        row("GET", 304, "", "HTTP/1.1 304 Same\r\nContent-Length: 6\r\n\r\nsecret"),
        row(
            "GET",
            304,
            "",
            "HTTP/1.1 304 Same\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nsecret\r\n0\r\n\r\n",
        ),
        row("HEAD", 200, "", "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret"),
        row("HEAD", 200, "", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nsecret\r\n0\r\n\r\n"),
        row("GET", 200, "", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\nsecret"),
        row(
            "GET",
            200,
            "hi",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\n\r\nsecret",
        ),
    ]
}
