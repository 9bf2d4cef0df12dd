//! Chunks, trailers and ends of bodies that are refused.

use super::{Case, Counted, Gets, case, chunks};

/// What is refused once its head has been taken.
pub(super) fn bodies() -> Vec<Case> {
    let lists = [sizes(), line_ends(), extensions(), trailers(), ends()];
    lists.into_iter().flatten().collect()
}

fn sizes() -> Vec<Case> {
    let size = |size: &str| chunks(&format!("{size}\r\nhello\r\n0\r\n\r\n"), 400, "chunk_size");
    let mut cases: Vec<Case> = [
        "zz", "", " 5", "5 ", "\t5", "5\t", "5 ;a", "+5", "-5", "0x5", "x5", "5_0", "5.0", "5,0", "5h",
        "\"5\"", ";a", "\u{665}", "5\0", "\x0b5", "5 5",
    ]
    .map(size)
    .into();
    cases.extend(
        ["1ffffffffffffffff", "10000000000000005", "00000000000000005", "fffffffffffffffff"]
            .map(|size| chunks(&format!("{size}\r\nhello\r\n0\r\n\r\n"), 400, "chunk_size_overflow")),
    );
    cases
}

fn line_ends() -> Vec<Case> {
    vec![
        chunks("5\nhello", 400, "chunk_size"),
        chunks("\n5\r\nhello", 400, "chunk_size"),
        chunks("0\n\n", 400, "chunk_size"),
        chunks("5\r\rhello", 400, "chunk_line_end"),
        chunks("5\rhello", 400, "chunk_line_end"),
        chunks("5\r\nhelloX\r\n", 400, "chunk_line_end"),
        chunks("5\r\nhello0\r\n\r\n", 400, "chunk_line_end"),
        chunks("5\r\nhello\n0\r\n\r\n", 400, "chunk_line_end"),
        chunks("5\r\nhello\r0\r\n\r\n", 400, "chunk_line_end"),
        chunks("5\r\nhello\r\r\n0\r\n\r\n", 400, "chunk_line_end"),
        chunks("5\r\nhel\r\nlo\r\n0\r\n\r\n", 400, "chunk_line_end"),
        chunks("4\r\nhello\r\n0\r\n\r\n", 400, "chunk_line_end"),
    ]
}

fn extensions() -> Vec<Case> {
    let sprinkled = "1;abcdefgh\r\na\r\n".repeat(200);
    vec![
        chunks(&format!("1;{}\r\na", "x".repeat(2_000)), 400, "chunk_extension_too_long"),
        chunks(&format!("{sprinkled}0\r\n\r\n"), 400, "chunk_extension_too_long"),
        chunks(&format!("0;{}\r\n\r\n", "x".repeat(2_000)), 400, "chunk_extension_too_long"),
        chunks("5;a\nb\r\nhello\r\n0\r\n\r\n", 400, "chunk_extension"),
        chunks("5;a=\"\n\"\r\nhello\r\n0\r\n\r\n", 400, "chunk_extension"),
        chunks("5;a\0\r\nhello\r\n0\r\n\r\n", 400, "chunk_extension"),
        chunks("5;\x7f\r\nhello\r\n0\r\n\r\n", 400, "chunk_extension"),
        chunks("5;a\n0\r\n\r\n", 400, "chunk_extension"),
        chunks("5;a\rb\r\nhello\r\n0\r\n\r\n", 400, "chunk_line_end"),
    ]
}

fn trailers() -> Vec<Case> {
    vec![
        chunks(&format!("0\r\n{}", "T: x\r\n".repeat(2_000)), 431, "trailers_too_long"),
        chunks(&format!("0\r\nT: {}\r\n\r\n", "x".repeat(9_000)), 431, "trailers_too_long"),
        chunks(&format!("0\r\n{}\r\n", "T: x\r\n".repeat(33)), 431, "trailers_too_many"),
        chunks("0\r\nT: x\n\r\n", 400, "trailer_line_end"),
        chunks("0\r\n\n", 400, "trailer_line_end"),
        chunks("0\r\n\rX", 400, "trailer_line_end"),
        chunks("0\r\nT: x\ry\r\n\r\n", 400, "trailer_line_end"),
        chunks("0\r\n", 400, "trailer_field"),
        chunks("0\r\nT : x\r\n\r\n", 400, "trailer_field"),
        chunks("0\r\nT: x\r\n y\r\n\r\n", 400, "trailer_field"),
        chunks("0\r\n T: x\r\n\r\n", 400, "trailer_field"),
        chunks("0\r\nT: x\0\r\n\r\n", 400, "trailer_field"),
        chunks("0\r\n: x\r\n\r\n", 400, "trailer_field"),
        chunks("0\r\n:path: /x\r\n\r\n", 400, "trailer_field"),
        chunks("0\r\nT\r\n\r\n", 400, "trailer_field"),
    ]
}

/// Bodies that their senders do not finish. Nobody is there to be answered.
fn ends() -> Vec<Case> {
    let post = "POST / HTTP/1.1\r\nHost: web\r\n";
    let ended = |rest: &str| Case {
        closes: true,
        gets: Gets::Close,
        counted: Counted::Flag("DC"),
        ..case(format!("{post}{rest}"), 0, "")
    };
    vec![
        ended("Content-Length: 10\r\n\r\nhel"),
        ended("Content-Length: 10\r\n\r\n"),
        ended("Content-Length: 9223372036854775807\r\n\r\nhello"),
        ended("Transfer-Encoding: chunked\r\n\r\n5\r\nhe"),
        ended("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"),
        ended("Transfer-Encoding: chunked\r\n\r\n0\r\n"),
        ended("Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nhello"),
    ]
}
