//! Frames of which each is allowed, and all together are an attack.

use lab::frames::{
    CONTINUATION, DATA, END_STREAM, HEADERS, PING, Said, block, frame, headers, reset, settings,
    window_update,
};

use super::{ENHANCE_YOUR_CALM, GET, PROTOCOL_ERROR, Row};

/// Floods that end in a GOAWAY.
pub fn floods() -> Vec<Row> {
    let calm = |what: &str, bytes: Vec<u8>| Row::new(what, bytes, Said::GoAway(ENHANCE_YOUR_CALM));
    let post = |stream| headers(stream, 0, &[&[(":method", "POST")], &GET[1..]].concat());
    let each = |count: u32, frames: &dyn Fn(u32) -> Vec<u8>| -> Vec<u8> {
        (0..count).flat_map(|number| frames(2 * number + 1)).collect()
    };
    let section = || frame(HEADERS, 0, 1, &block(&GET));
    let field = block(&[("x", &"y".repeat(200))]).repeat(60);
    vec![
        calm("rapid reset", each(1_000, &|id| [headers(id, END_STREAM, &GET), reset(id, 8)].concat())),
        calm("rapid reset of uploads", each(1_000, &|id| [post(id), reset(id, 8)].concat())),
        Row::new(
            "streams that are made to be reset by data behind their end",
            each(1_000, &|id| [headers(id, END_STREAM, &GET), frame(DATA, 0, id, b"x")].concat()),
            Said::GoAway(PROTOCOL_ERROR),
        ),
        calm(
            "streams that are made to be reset by their window",
            each(1_000, &|id| [post(id), window_update(id, 0x7fff_ffff)].concat()),
        ),
        calm(
            "streams that are made to be reset by their length",
            each(1_000, &|id| headers(id, END_STREAM, &[&GET[..], &[("content-length", "5")]].concat())),
        ),
        calm(
            "streams that are made to be reset by their head",
            each(1_000, &|id| headers(id, END_STREAM, &[&GET[..], &[("connection", "close")]].concat())),
        ),
        calm("CONTINUATION", [section(), frame(CONTINUATION, 0, 1, &field).repeat(100)].concat()),
        calm("empty CONTINUATION", [section(), frame(CONTINUATION, 0, 1, &[]).repeat(10_000)].concat()),
        calm("empty DATA", [post(1), frame(DATA, 0, 1, &[]).repeat(200_000)].concat()),
    ]
}

/// Floods that a frame layer may bear; whatever becomes of their sender, all others are served.
pub fn borne() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("PING", frame(PING, 0, 0, &[7; 8]).repeat(200_000)),
        ("SETTINGS", settings(&[(4, 65_535)]).repeat(100_000)),
        ("empty SETTINGS", settings(&[]).repeat(200_000)),
        ("windows", window_update(0, 1).repeat(200_000)),
        ("unknown frames", frame(0xfa, 0, 0, &[]).repeat(200_000)),
        ("priorities", frame(2, 0, 1, &[0, 0, 0, 0, 1]).repeat(200_000)),
    ]
}
