//! Frames that do not fit the state of their stream or connection.

use lab::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PADDED, PING, PREFACE, PRIORITY,
    PUSH_PROMISE, RST_STREAM, SETTINGS, Said, WINDOW_UPDATE, WITH_PRIORITY, block, frame, headers, reset,
    settings, window_update,
};

use super::{FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, GET, PROTOCOL_ERROR, Row, get_with};

/// All of them.
pub fn connections() -> Vec<Row> {
    let lists = [streams(), sizes(), priorities(), windows(), own_settings(), ignored(), sections()];
    lists.into_iter().flatten().collect()
}

fn ends(what: &str, bytes: Vec<u8>) -> Row {
    Row::new(what, bytes, Said::GoAway(PROTOCOL_ERROR)).because("h2_protocol_error")
}

fn post(flags: u8) -> Vec<u8> {
    headers(1, flags, &[&[(":method", "POST")], &GET[1..]].concat())
}

/// Frames on streams that they can't be on.
fn streams() -> Vec<Row> {
    let get = |stream| headers(stream, END_STREAM, &GET);
    let push = frame(PUSH_PROMISE, END_HEADERS, 1, &[&2_u32.to_be_bytes()[..], &block(&GET)].concat());
    vec![
        ends("DATA on stream 0", frame(DATA, 0, 0, b"x")),
        ends("HEADERS on stream 0", get(0)),
        ends("RST_STREAM on stream 0", reset(0, 8)),
        ends("CONTINUATION on stream 0", frame(CONTINUATION, END_HEADERS, 0, &[])),
        ends("SETTINGS on a stream", frame(SETTINGS, 0, 1, &[])),
        ends("PING on a stream", frame(PING, 0, 1, &[0; 8])),
        ends("GOAWAY on a stream", frame(GOAWAY, 0, 1, &[0; 8])),
        ends("DATA before HEADERS", frame(DATA, 0, 1, b"x")),
        ends("RST_STREAM before HEADERS", reset(1, 8)),
        ends("WINDOW_UPDATE before HEADERS", window_update(1, 1)),
        ends("an even stream", get(2)),
        ends("a lower stream", [get(3), get(1)].concat()),
        ends("CONTINUATION by itself", frame(CONTINUATION, END_HEADERS, 1, &[])),
        ends("a client that pushes", [post(0), push].concat()),
        ends("DATA behind the end", [get_with(&[]), frame(DATA, 0, 1, b"x")].concat()),
        Row {
            stream: 0x7fff_ffff,
            ..Row::new("the highest stream", get(0x7fff_ffff), Said::Status(200)).reaching("GET / []")
        },
    ]
}

/// Frames of lengths that they can't have.
fn sizes() -> Vec<Row> {
    // The frame layer tells frames that it can't read from others by ending the connection, not always by the code.
    vec![
        ends("a PING of 7 bytes", frame(PING, 0, 0, &[0; 7])),
        ends("a PING of 9 bytes", frame(PING, 0, 0, &[0; 9])),
        ends("half a setting", frame(SETTINGS, 0, 0, &[0; 5])),
        ends("an answer to SETTINGS with settings", frame(SETTINGS, 1, 0, &[0; 6])),
        ends("a window of 3 bytes", frame(WINDOW_UPDATE, 0, 0, &[0; 3])),
        ends("a reset of 3 bytes", [post(0), frame(RST_STREAM, 0, 1, &[0; 3])].concat()),
        ends("a GOAWAY of 4 bytes", frame(GOAWAY, 0, 0, &[0; 4])),
        ends("a priority of 4 bytes", frame(PRIORITY, 0, 1, &[0; 4])),
        ends("padded DATA of no bytes", [post(0), frame(DATA, PADDED, 1, &[])].concat()),
        ends("more padding than DATA", [post(0), frame(DATA, PADDED, 1, &[9, b'x'])].concat()),
        ends("more padding than HEADERS", frame(HEADERS, END_HEADERS | PADDED, 1, &[200, 0x82])),
        Row::new(
            "a frame of 16 KiB and a byte",
            frame(DATA, 0, 1, &vec![0; 16_385]),
            Said::GoAway(FRAME_SIZE_ERROR),
        )
        .because("h2_frame_size"),
        Row::new(
            "HEADERS of 16 KiB and a byte",
            frame(HEADERS, END_HEADERS, 1, &vec![0; 16_385]),
            Said::GoAway(FRAME_SIZE_ERROR),
        )
        .because("h2_frame_size"),
        Row::new("SETTINGS of 18 KB", frame(SETTINGS, 0, 0, &[0; 18_000]), Said::GoAway(FRAME_SIZE_ERROR))
            .because("h2_frame_size"),
    ]
}

fn priorities() -> Vec<Row> {
    let on_itself = [&1_u32.to_be_bytes()[..], &[16]].concat();
    let section = [&on_itself[..], &block(&GET)].concat();
    vec![
        ends("PRIORITY on stream 0", frame(PRIORITY, 0, 0, &[0; 5])),
        Row::new(
            "a stream that depends on itself",
            [post(0), frame(PRIORITY, 0, 1, &on_itself)].concat(),
            Said::Reset(PROTOCOL_ERROR),
        ),
        Row::new(
            "HEADERS that depend on themselves",
            frame(HEADERS, END_HEADERS | END_STREAM | WITH_PRIORITY, 1, &section),
            Said::Reset(PROTOCOL_ERROR),
        ),
    ]
}

fn windows() -> Vec<Row> {
    let flow = |what: &str, bytes: Vec<u8>, says| Row::new(what, bytes, says);
    vec![
        ends("a window of nothing more", window_update(0, 0)),
        flow("a window beyond bounds", window_update(0, 0x7fff_ffff), Said::GoAway(FLOW_CONTROL_ERROR))
            .because("h2_flow_control"),
        flow(
            "a stream's window beyond bounds",
            [post(0), window_update(1, 0x7fff_ffff)].concat(),
            Said::Reset(FLOW_CONTROL_ERROR),
        ),
        ends("a stream's window of nothing more", [post(0), window_update(1, 0)].concat()),
        flow(
            "more data than the window",
            [post(0), frame(DATA, 0, 1, &[b'x'; 16_384]).repeat(80)].concat(),
            Said::GoAway(FLOW_CONTROL_ERROR),
        )
        .because("h2_flow_control"),
    ]
}

/// Settings with values that they can't have (RFC 9113 section 6.5.2).
fn own_settings() -> Vec<Row> {
    vec![
        ends("SETTINGS_ENABLE_PUSH of 2", settings(&[(2, 2)])),
        ends("frames of less than 16 KiB", settings(&[(5, 16_383)])),
        ends("frames of 16 MiB", settings(&[(5, 1 << 24)])),
        ends("a first window beyond bounds", settings(&[(4, 1 << 31)])),
        ends("SETTINGS_ENABLE_CONNECT_PROTOCOL of 2", settings(&[(8, 2)])),
    ]
}

/// What must be ignored.
fn ignored() -> Vec<Row> {
    let good = |what: &str, before: Vec<u8>| {
        Row::new(what, [before, get_with(&[])].concat(), Said::Status(200)).reaching("GET / []")
    };
    vec![
        good("a frame of an unknown type", frame(0xfa, 0xff, 0, b"whatever")),
        good("a frame of an unknown type on a stream", frame(0xfa, 0xff, 7, b"whatever")),
        good("an unknown setting", settings(&[(0xfafa, 1)])),
        good("an answer to a PING that nobody sent", frame(PING, 1, 0, &[7; 8])),
        good("a priority of a stream that is not", frame(PRIORITY, 0, 9, &[0, 0, 0, 0, 1])),
        Row {
            stream: 3,
            ..Row::new(
                "a stream that is reset before",
                [headers(1, 0, &GET), reset(1, 8), headers(3, END_STREAM, &GET)].concat(),
                Said::Status(200),
            )
            .reaching("GET / []")
        },
    ]
}

/// Header sections that are not whole when something else comes.
fn sections() -> Vec<Row> {
    let open = || frame(HEADERS, END_STREAM, 1, &block(&GET));
    vec![
        ends("PING within a header section", [open(), frame(PING, 0, 0, &[0; 8])].concat()),
        ends("DATA within a header section", [open(), frame(DATA, 0, 1, b"x")].concat()),
        ends("HEADERS within a header section", [open(), headers(3, END_STREAM, &GET)].concat()),
        ends("RST_STREAM within a header section", [open(), reset(1, 8)].concat()),
        ends("an unknown frame within a header section", [open(), frame(0xfa, 0, 1, b"x")].concat()),
        ends(
            "CONTINUATION on another stream",
            [open(), frame(CONTINUATION, END_HEADERS, 3, &block(&GET))].concat(),
        ),
        ends(
            "CONTINUATION behind a whole header section",
            [headers(1, 0, &GET), frame(CONTINUATION, END_HEADERS, 1, &block(&[("x", "y")]))].concat(),
        ),
    ]
}

/// What is sent instead of the preface and SETTINGS. A client that sends no SETTINGS first is borne with the defaults.
pub fn openings() -> Vec<Row> {
    let mut wrong = PREFACE.to_vec();
    wrong[18] = b'X';
    let with = |frames: Vec<u8>| [PREFACE.to_vec(), frames].concat();
    let borne = |what: &str, before: Vec<u8>| {
        Row::new(what, with([before, get_with(&[])].concat()), Said::Status(200)).reaching("GET / []")
    };
    vec![
        Row::new("a preface with a wrong end", [wrong, settings(&[])].concat(), Said::Closed)
            .because("h2_protocol_error"),
        borne("HEADERS instead of SETTINGS", Vec::new()),
        borne("PING instead of SETTINGS", frame(PING, 0, 0, &[0; 8])),
        borne("an answer instead of SETTINGS", frame(SETTINGS, 1, 0, &[])),
        Row::new(
            "HTTP/1.1 behind the preface",
            with(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n".to_vec()),
            Said::GoAway(FRAME_SIZE_ERROR),
        )
        .because("h2_frame_size"),
    ]
}
