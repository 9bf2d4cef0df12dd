//! Lengths and codings that two recipients could read in two ways: CL.TE, TE.CL, TE.TE, and lengths that are none.

use super::{Case, SMUGGLED, case, framed};

/// What is refused for its `Content-Length` or `Transfer-Encoding`.
pub(super) fn framings() -> Vec<Case> {
    [lengths(), both(), codings(), hidden()].into_iter().flatten().collect()
}

fn lengths() -> Vec<Case> {
    let one = |value: &str, reason| framed(&format!("Content-Length: {value}\r\n"), 400, reason);
    let malformed = [
        "-1", "-0", "+0", "+5", "0x5", "5.0", "5e0", "1_0", "\"5\"", "5 5", "5\t5", "5;5", "5;", "five",
        "chunked", "\u{665}", "",
    ];
    let mut cases: Vec<Case> = malformed.map(|value| one(value, "content_length_malformed")).into();
    cases.extend(
        ["99999999999999999999", "18446744073709551616", "18446744073709551621", "9223372036854775808"]
            .map(|value| one(value, "content_length_overflow")),
    );
    cases.extend(["5, 5", "5,5", "5, 6", "5,", ",5"].map(|value| one(value, "content_length_repeated")));
    for (first, second) in [
        ("Content-Length: 5", "Content-Length: 5"),
        ("Content-Length: 5", "Content-Length: 6"),
        ("Content-Length: 0", "CONTENT-LENGTH: 5"),
        ("Content-Length:", "Content-Length: 5"),
    ] {
        cases.push(framed(&format!("{first}\r\n{second}\r\n"), 400, "content_length_repeated"));
    }
    cases
}

fn both() -> Vec<Case> {
    [
        ("Content-Length: 6", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", "Content-Length: 6"),
        ("Content-Length: 0", "Transfer-Encoding: chunked"),
        ("Content-Length: 5", "Transfer-Encoding: identity"),
        ("Content-Length: 5", "Transfer-Encoding: xchunked"),
        ("Content-Length: 5", "Transfer-Encoding:"),
        ("Content-Length: x", "Transfer-Encoding: chunked"),
        ("content-length: 5", "tRANSFER-eNCODING: CHUNKED"),
    ]
    .map(|(first, second)| {
        framed(&format!("{first}\r\n{second}\r\n"), 400, "transfer_encoding_with_content_length")
    })
    .into()
}

fn codings() -> Vec<Case> {
    let one =
        |value: &str, status, reason| framed(&format!("Transfer-Encoding: {value}\r\n"), status, reason);
    let ambiguous = [
        "xchunked",
        "chunkedx",
        "chunk",
        "x",
        "",
        "identity",
        "gzip",
        "chunked, gzip",
        "chunked, identity",
        "identity, chunked",
        "chunked, chunked",
        "chunked,",
        ",chunked",
        "chunked;q=1",
        "chunked; a=b",
        "\"chunked\"",
        "'chunked'",
        "chunked chunked",
        "chunked\tx",
        "chu nked",
        "x chunked",
        "foo, chunked",
        "chun\u{212a}ed",
        "[chunked]",
    ];
    let mut cases: Vec<Case> = ambiguous.map(|value| one(value, 400, "transfer_encoding_not_chunked")).into();
    cases.extend(
        ["gzip, chunked", "deflate,chunked", "br, chunked", "gzip, deflate, chunked"]
            .map(|value| one(value, 501, "transfer_encoding_unsupported")),
    );
    for (first, second) in [
        ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: gzip", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
        ("Transfer-Encoding: x", "transfer-encoding: chunked"),
        ("Transfer-Encoding:", "Transfer-Encoding: chunked"),
    ] {
        cases.push(framed(&format!("{first}\r\n{second}\r\n"), 400, "transfer_encoding_repeated"));
    }
    for rest in ["", "Connection: keep-alive\r\n", "Content-Type: text/plain\r\n"] {
        cases.push(case(
            format!(
                "POST / HTTP/1.0\r\nHost: web\r\n{rest}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"
            ),
            400,
            "transfer_encoding_in_http10",
        ));
    }
    cases
}

/// Framing fields that one recipient sees and another does not.
fn hidden() -> Vec<Case> {
    let one = |fields: &str, reason| framed(&format!("{fields}\r\n"), 400, reason);
    vec![
        one("Content-Length : 5", "header_space_before_colon"),
        one("Content-Length\t: 5", "header_space_before_colon"),
        one("Transfer-Encoding : chunked", "header_space_before_colon"),
        one("Transfer-Encoding\t: chunked", "header_space_before_colon"),
        one("Transfer-Encoding\x0b: chunked", "header_name"),
        one("Transfer-Encoding\0: chunked", "header_name"),
        one("Transfer-Encoding\u{a0}: chunked", "header_name"),
        one("\0Transfer-Encoding: chunked", "header_name"),
        one("Transfer-Encoding: \x0bchunked", "header_control_byte"),
        one("Transfer-Encoding: chunked\x0b", "header_control_byte"),
        one("Transfer-Encoding: \0chunked", "header_control_byte"),
        one("Transfer-Encoding: chunked\r\r", "header_control_byte"),
        one("Content-Length: 5\x0b", "header_control_byte"),
        one("Content-Length: 5\r", "header_control_byte"),
        one("Content-Length: 5\0", "header_control_byte"),
        one("X: y\rTransfer-Encoding: chunked", "header_control_byte"),
        one("X: y\nTransfer-Encoding: chunked", "bare_lf"),
        one("X: y\n\rTransfer-Encoding: chunked", "bare_lf"),
        one("Transfer-Encoding:\r\n chunked", "header_obs_fold"),
        one("Transfer-Encoding: chunked\r\n , identity", "header_obs_fold"),
        one("Content-Length: 5\r\n 0", "header_obs_fold"),
        one("X: y\r\n Content-Length: 5", "header_obs_fold"),
        one(" Transfer-Encoding: chunked", "header_obs_fold"),
    ]
}
