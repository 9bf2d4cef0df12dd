//! Header sections: fields that HTTP/2 forbids, and those that would change their meaning as HTTP/1.1 text.

use lab::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, Said, block, frame, headers, window_update,
};

use super::{ENHANCE_YOUR_CALM, GET, PROTOCOL_ERROR, Row, get_but, get_with};

/// All of them.
pub fn heads() -> Vec<Row> {
    let lists = [forbidden(), pseudo(), texts(), refused(), lengths(), passed(), too_large()];
    lists.into_iter().flatten().collect()
}

fn reset(what: impl Into<String>, bytes: Vec<u8>) -> Row {
    Row::new(what, bytes, Said::Reset(PROTOCOL_ERROR))
}

fn status(what: impl Into<String>, bytes: Vec<u8>, status: u16, reason: &'static str) -> Row {
    Row::new(what, bytes, Said::Status(status)).because(reason)
}

/// What belongs to one connection of HTTP/1 (RFC 9113 section 8.2.2).
fn forbidden() -> Vec<Row> {
    [
        ("connection", "close"),
        ("connection", "x-a"),
        ("keep-alive", "1"),
        ("proxy-connection", "close"),
        ("transfer-encoding", "chunked"),
        ("transfer-encoding", "identity"),
        ("upgrade", "websocket"),
        ("te", "gzip"),
        ("te", "trailers, gzip"),
        ("te", "chunked"),
    ]
    .map(|(name, value)| reset(format!("{name}: {value}"), get_with(&[(name, value)])))
    .into()
}

fn pseudo() -> Vec<Row> {
    let mut rows: Vec<Row> = [
        (":status", "200"),
        (":method", "POST"),
        (":path", "/other"),
        (":authority", "other"),
        (":authority", "web"),
        (":scheme", "https"),
        (":protocol", "websocket"),
    ]
    .map(|(name, value)| reset(format!("{name}: {value} as well"), get_with(&[(name, value)])))
    .into();
    for missing in GET.into_iter().filter(|(name, _)| *name != ":authority") {
        let fields: Vec<_> = GET.into_iter().filter(|field| *field != missing).collect();
        rows.push(reset(format!("no {}", missing.0), headers(1, END_STREAM, &fields)));
    }
    let late = [&[("x", "y")], &GET[..]].concat();
    let connect = GET.map(|field| if field.0 == ":method" { (":method", "CONNECT") } else { field });
    rows.push(reset("CONNECT with a path", headers(1, END_STREAM, &connect)));
    rows.push(reset("pseudo-header fields after others", headers(1, END_STREAM, &late)));
    let mixed = [GET[0], GET[1], GET[2], ("x", "y"), GET[3]];
    rows.push(reset("a path after other fields", headers(1, END_STREAM, &mixed)));
    rows.push(reset("no fields", headers(1, END_STREAM, &[])));
    let upgraded = [(":method", "CONNECT"), (":protocol", "websocket"), GET[1], GET[2], GET[3]];
    rows.push(reset("extended CONNECT, which nobody offered", headers(1, END_STREAM, &upgraded)));
    for name in [":unknown", ":", ":Path", ":host"] {
        rows.push(
            Row::new(format!("the pseudo-header field {name}"), get_with(&[(name, "x")]), CUT)
                .because("h2_protocol_error"),
        );
    }
    rows
}

const CUT: Said = Said::GoAway(PROTOCOL_ERROR);

/// Names and values that would end a line of HTTP/1, or begin another request.
fn texts() -> Vec<Row> {
    let mut rows: Vec<Row> = [
        ("X-Upper", "1"),
        ("x y", "1"),
        ("x:y", "1"),
        ("x ", "1"),
        ("x\r\ny", "1"),
        ("x\0", "1"),
        ("x: y\r\ntransfer-encoding", "chunked"),
        ("", "1"),
        ("x", "a\r\nhost: evil"),
        ("x", "a\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: web\r\n\r\n"),
        ("x", "a\0"),
        ("x", "a\n"),
        ("x", "a\r"),
        ("x", "\x7f"),
        ("x", "\x01"),
    ]
    .map(|(name, value)| {
        Row::new(format!("{name:?}: {value:?}"), get_with(&[(name, value)]), CUT).because("h2_protocol_error")
    })
    .into();
    for (name, value) in [
        (":path", ""),
        (":path", "/ HTTP/1.1\r\nhost: web\r\n\r\nGET /smuggled"),
        (":path", "/a b"),
        (":path", "/a\tb"),
        (":path", "/\0"),
        (":path", "/\x7f"),
        (":authority", "web\r\nx: y"),
        (":authority", "we b"),
        (":authority", "web/x"),
        (":authority", ""),
        (":scheme", "ht tp"),
        (":scheme", "http\r\n"),
    ] {
        rows.push(reset(format!("{name} {value:?}"), get_but(name, value)));
    }
    for method in ["GET / HTTP/1.1\r\nhost: web\r\n\r\nGET", "GE T", "", "G\0T"] {
        let row = Row::new(format!(":method {method:?}"), get_but(":method", method), CUT);
        rows.push(row.because("h2_protocol_error"));
    }
    rows
}

/// What the agent itself refuses, with an answer.
fn refused() -> Vec<Row> {
    let field = |name: &str, value: &str, code: u16, reason| {
        status(format!("{name}: {value:?}"), get_with(&[(name, value)]), code, reason)
    };
    let but = |name: &str, value: &str, code, reason| {
        status(format!("{name} {value:.20}"), get_but(name, value), code, reason)
    };
    let without_authority = |more: &[(&str, &str)]| {
        let fields: Vec<_> = GET.into_iter().filter(|field| field.0 != ":authority").collect();
        headers(1, END_STREAM, &[&fields[..], more].concat())
    };
    vec![
        field("host", "evil", 400, "host_conflict"),
        field("host", "web:81", 400, "host_conflict"),
        field("host", "", 400, "host_conflict"),
        field("x", " a", 400, "header_value_space"),
        field("x", "a\t", 400, "header_value_space"),
        field("x_user", "root", 400, "header_underscore"),
        field("content_length", "5", 400, "header_underscore"),
        field("content-length", "", 400, "content_length_malformed"),
        field("expect", "magic", 417, "expect_unknown"),
        but(":path", "*", 400, "target_asterisk"),
        status("CONNECT", headers(1, 0, &[(":method", "CONNECT"), GET[2]]), 405, "method_connect"),
        but(":method", &"M".repeat(40), 501, "method_too_long"),
        but(":path", &format!("/{}", "a".repeat(9_000)), 414, "target_too_long"),
        but(":authority", "root@web", 400, "host_userinfo"),
        but(":authority", "web,evil", 400, "host_malformed"),
        but(":authority", "web:99999", 400, "host_malformed"),
        status("no host at all", without_authority(&[]), 400, "host_missing"),
        status("an empty host", without_authority(&[("host", "")]), 400, "host_empty"),
        status("a bad host", without_authority(&[("host", "web/x")]), 400, "host_malformed"),
        status("two hosts", without_authority(&[("host", "web"), ("host", "evil")]), 400, "host_repeated"),
        status("101 fields", get_with(&[("x", "y"); 101]), 431, "header_too_many"),
    ]
}

/// Lengths that are none, and those that the data belie.
fn lengths() -> Vec<Row> {
    let post = |length: &str, body: &[u8]| {
        let fields = [&[(":method", "POST")], &GET[1..], &[("content-length", length)]].concat();
        [headers(1, 0, &fields), frame(DATA, END_STREAM, 1, body)].concat()
    };
    let mut rows = vec![
        reset("content-length: 5 and no data", get_with(&[("content-length", "5")])),
        reset("less data than content-length", post("5", b"hell")),
        reset("more data than content-length", post("5", b"hello!")),
        reset("data behind content-length: 0", post("0", b"GET /smuggled HTTP/1.1\r\nhost: web\r\n\r\n")),
    ];
    for length in [" 5", "+5", "-5", "0x5", "5 5", "five", "5, 5", "5,5", "18446744073709551621"] {
        rows.push(reset(format!("content-length: {length:?}"), post(length, b"hello")));
    }
    let twice =
        [&[(":method", "POST")], &GET[1..], &[("content-length", "5"), ("content-length", "5")]].concat();
    rows.push(
        Row::new(
            "content-length twice",
            [headers(1, 0, &twice), frame(DATA, END_STREAM, 1, b"hello")].concat(),
            Said::Status(400),
        )
        .because("content_length_repeated"),
    );
    rows
}

/// What looks hostile and is not, and exactly what becomes of it.
fn passed() -> Vec<Row> {
    let good = |what: &str, bytes, seen| Row::new(what, bytes, Said::Status(200)).reaching(seen);
    let post = [&[(":method", "POST")], &GET[1..]].concat();
    let smuggled = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: web\r\n\r\n";
    let crumbs = [("cookie", "a=1"), ("x", "y"), ("cookie", "b=2")];
    let split = [
        frame(HEADERS, END_STREAM, 1, &block(&GET[..2])),
        frame(CONTINUATION, 0, 1, &[]),
        frame(CONTINUATION, END_HEADERS, 1, &block(&GET[2..])),
    ];
    let pieces = [
        headers(1, 0, &post),
        frame(DATA, 0, 1, b""),
        frame(DATA, 0, 1, b"he"),
        window_update(1, 1),
        frame(DATA, 0, 1, b"llo"),
        frame(DATA, END_STREAM, 1, b""),
    ];
    vec![
        good("an ordinary request", get_with(&[]), "GET / []"),
        good("the same host in another case", get_with(&[("host", "WEB")]), "GET / []"),
        good("te: trailers", get_with(&[("te", "trailers")]), "GET / [te: trailers; connection: te]"),
        good("cookies in crumbs", get_with(&crumbs), "GET / [x: y; cookie: a=1; b=2]"),
        good("a head in three frames", split.concat(), "GET / []"),
        good("a body in pieces", pieces.concat(), "POST / [transfer-encoding: chunked] hello"),
        good(
            "a body that looks like the end of chunks",
            [headers(1, 0, &post), frame(DATA, END_STREAM, 1, smuggled)].concat(),
            "POST / [transfer-encoding: chunked] 0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: web\r\n\r\n",
        ),
        // Nothing depends on the client's word about the scheme.
        good("no text for a scheme", get_but(":scheme", ""), "GET / []"),
        good("another scheme", get_but(":scheme", "https"), "GET / []"),
        good("HTTP2-Settings", get_with(&[("http2-settings", "AAMAAABk")]), "GET / []"),
        good("a fragment", get_but(":path", "/#b"), "GET / []"),
        good(
            "trailers",
            [
                headers(1, 0, &post),
                frame(DATA, 0, 1, b"hello"),
                headers(1, END_STREAM, &[("x-sum", "1"), ("content-length", "9"), ("host", "evil")]),
            ]
            .concat(),
            "POST / [transfer-encoding: chunked] hello {x-sum: 1}",
        ),
        good(
            "pseudo-header fields in trailers",
            [
                headers(1, 0, &post),
                frame(DATA, 0, 1, b"hello"),
                headers(1, END_STREAM, &[(":path", "/x"), ("x-sum", "1")]),
            ]
            .concat(),
            "POST / [transfer-encoding: chunked] hello {x-sum: 1}",
        ),
        Row::new(
            "trailers without the end",
            {
                let trailers = headers(1, 0, &[("x-sum", "1")]);
                [headers(1, 0, &post), frame(DATA, 0, 1, b"hello"), trailers].concat()
            },
            Said::Reset(PROTOCOL_ERROR),
        ),
    ]
}

/// Header sections beyond the limit, and those that are none.
fn too_large() -> Vec<Row> {
    let long = "y".repeat(4_000);
    let field = block(&[("x", &long)]).repeat(4);
    let mut split = frame(HEADERS, END_STREAM, 1, &block(&GET));
    for part in 0..5 {
        split.extend(frame(CONTINUATION, if part == 4 { END_HEADERS } else { 0 }, 1, &field));
    }
    // One field that the table keeps, and 4,000 references to it: 16 MB in 12 KiB.
    let mut bomb = block(&GET);
    bomb.extend([0x40, 1, b'x', 0x7f, 0xa1, 0x1e]);
    bomb.extend("y".repeat(4_000).as_bytes());
    bomb.extend([0xbe; 4_000]);
    let mut rows = vec![
        Row::new("80 KiB of fields", split, Said::Status(431)).because("header_too_long"),
        Row::new(
            "a bomb of references",
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &bomb),
            Said::GoAway(ENHANCE_YOUR_CALM),
        )
        .because("h2_provoked_reset_flood"),
    ];
    // The frame layer ends the connection, as it must, and does not name compression as the error.
    for (what, block) in [
        ("a field of index 0", &[0x80][..]),
        ("an index beyond the tables", &[0xff, 0x80, 0x01]),
        ("a name of an index beyond the tables", &[0x7f, 0x80, 0x01, 1, b'x']),
        ("a number without end", &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f]),
        ("a table larger than allowed", &[0x3f, 0xe2, 0x1f]),
        ("a table that changes behind a field", &[0x82, 0x20]),
        ("a string that ends early", &[0x00, 5, b'x']),
        ("a Huffman string with the end in it", &[0x00, 0x84, 0xff, 0xff, 0xff, 0xff, 1, b'x']),
        ("a Huffman string with zeros behind it", &[0x00, 0x81, 0x00, 1, b'x']),
    ] {
        let bytes = frame(HEADERS, END_HEADERS | END_STREAM, 1, block);
        rows.push(Row::new(what, bytes, CUT).because("h2_protocol_error"));
    }
    rows
}
