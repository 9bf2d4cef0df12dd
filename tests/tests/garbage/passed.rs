//! Requests that look hostile and are none, or that are taken apart and written anew: exactly what reaches the upstream.

/// What is sent behind each: it is answered, as the connection is kept.
pub const PROBE: &str = "GET /probe HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";

/// An exchange that the agent takes part in.
#[derive(Debug)]
pub struct Passed {
    /// What is sent, before [`PROBE`].
    pub bytes: Vec<u8>,
    /// What the upstream sees of it, as [`lab::witness::Witness`] writes it; each is answered with 200.
    pub reaches: Vec<&'static str>,
}

fn row(bytes: impl AsRef<[u8]>, reaches: &'static str) -> Passed {
    Passed { bytes: bytes.as_ref().to_vec(), reaches: vec![reaches] }
}

fn get(fields: &str, reaches: &'static str) -> Passed {
    row(format!("GET / HTTP/1.1\r\nHost: web\r\n{fields}\r\n\r\n"), reaches)
}

fn post(fields: &str, body: &str, reaches: &'static str) -> Passed {
    row(format!("POST / HTTP/1.1\r\nHost: web\r\n{fields}\r\n\r\n{body}"), reaches)
}

/// All of them.
pub fn passed() -> Vec<Passed> {
    [lines(), framings(), chunks(), hops(), values()].into_iter().flatten().collect()
}

fn lines() -> Vec<Passed> {
    vec![
        row("\r\nGET / HTTP/1.1\r\nHost: web\r\n\r\n", "GET / []"),
        row("\r\n\r\nGET / HTTP/1.1\r\nHost: web\r\n\r\n", "GET / []"),
        row("GET / HTTP/1.1\r\nhOsT:web\r\n\r\n", "GET / []"),
        row("GET / HTTP/1.1\r\nHost:\t web \t\r\n\r\n", "GET / []"),
        row("GET / HTTP/1.1\r\nHost: WEB:80\r\n\r\n", "GET / [host: WEB:80]"),
        row("GET / HTTP/1.0\r\nHost: web\r\nConnection: keep-alive\r\n\r\n", "GET / []"),
        row("get / HTTP/1.1\r\nHost: web\r\n\r\n", "get / []"),
        row("M!#$%&'*+-.^_`|~ / HTTP/1.1\r\nHost: web\r\n\r\n", "M!#$%&'*+-.^_`|~ / []"),
        Passed {
            bytes: b"GET / HTTP/1.1\r\nHost: web\r\n\r\nGET /good/2 HTTP/1.1\r\nHost: web\r\n\r\n".to_vec(),
            reaches: vec!["GET / []", "GET /good/2 []"],
        },
    ]
}

fn framings() -> Vec<Passed> {
    vec![
        row(
            "GET / HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\n\r\nhello",
            "GET / [content-length: 5] hello",
        ),
        post("Content-Length: 0", "", "POST / [content-length: 0]"),
        post("Content-Length: 5", "hello", "POST / [content-length: 5] hello"),
        post("Content-Length: 0005", "hello", "POST / [content-length: 0005] hello"),
        post("Content-Length:\t5 ", "hello", "POST / [content-length: 5] hello"),
        // A whole request within a body is a body.
        post(
            "Content-Length: 37",
            "GET /smuggled HTTP/1.1\r\nHost: web\r\n\r\n",
            "POST / [content-length: 37] GET /smuggled HTTP/1.1\r\nHost: web\r\n\r\n",
        ),
        post(
            "Transfer-Encoding: cHuNkEd",
            "5\r\nhello\r\n0\r\n\r\n",
            "POST / [transfer-encoding: chunked] hello",
        ),
        post(
            "Transfer-Encoding:chunked",
            "5\r\nhello\r\n0\r\n\r\n",
            "POST / [transfer-encoding: chunked] hello",
        ),
        post(
            "Transfer-Encoding: \tchunked \t",
            "5\r\nhello\r\n0\r\n\r\n",
            "POST / [transfer-encoding: chunked] hello",
        ),
        get("Transfer-Encoding: chunked\r\n\r\n0", "GET / [transfer-encoding: chunked]"),
    ]
}

const HELLO: &str = "POST / [transfer-encoding: chunked] hello";

fn chunks() -> Vec<Passed> {
    let chunked = |body: &str, reaches| post("Transfer-Encoding: chunked", body, reaches);
    vec![
        chunked("0005\r\nhello\r\n0\r\n\r\n", HELLO),
        chunked("5\r\nhello\r\n00000\r\n\r\n", HELLO),
        chunked("2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", HELLO),
        chunked("A\r\n0123456789\r\n0\r\n\r\n", "POST / [transfer-encoding: chunked] 0123456789"),
        // Extensions end here.
        chunked("5;a=b\r\nhello\r\n0;c\r\n\r\n", HELLO),
        chunked("5;a=\"b;c\"\r\nhello\r\n0\r\n\r\n", HELLO),
        chunked("5;\r\nhello\r\n0\r\n\r\n", HELLO),
        // Trailers pass but for those that a recipient could merge into the head with effect.
        chunked(
            "5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n",
            "POST / [transfer-encoding: chunked] hello {X-Sum: 1}",
        ),
        chunked("5\r\nhello\r\n0\r\nContent-Length: 9\r\n\r\n", HELLO),
        chunked("5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n", HELLO),
        chunked("5\r\nhello\r\n0\r\nHost: evil\r\nAuthorization: x\r\nCookie: a=b\r\n\r\n", HELLO),
        chunked("5\r\nhello\r\n0\r\nX-Forwarded-For: 1.2.3.4\r\nTrailer: x\r\n\r\n", HELLO),
        // Chunks that hold what looks like framing.
        chunked("5\r\n0\r\n\r\n\r\n0\r\n\r\n", "POST / [transfer-encoding: chunked] 0\r\n\r\n"),
    ]
}

/// What ends at this hop, and what a client can't have taken away.
fn hops() -> Vec<Passed> {
    vec![
        get("Connection: x-a\r\nX-A: 1\r\nX-B: 2", "GET / [x-b: 2]"),
        get("Connection: keep-alive, X-a\r\nX-A: 1", "GET / []"),
        get("Connection: host", "GET / []"),
        get("Connection: authorization\r\nAuthorization: x", "GET / [authorization: x]"),
        get("Connection: cookie\r\nCookie: a=b", "GET / [cookie: a=b]"),
        get("Connection: ,, ,", "GET / []"),
        post("Connection: content-length\r\nContent-Length: 5", "hello", "POST / [content-length: 5] hello"),
        post(
            "Connection: transfer-encoding\r\nTransfer-Encoding: chunked",
            "5\r\nhello\r\n0\r\n\r\n",
            "POST / [transfer-encoding: chunked] hello",
        ),
        get("Keep-Alive: timeout=999999\r\nProxy-Connection: keep-alive", "GET / []"),
        get(
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
            "GET / []",
        ),
        get("Upgrade: h2c", "GET / []"),
        get("TE: gzip, chunked", "GET / []"),
        get("TE: trailers", "GET / [te: trailers; connection: te]"),
        row("GET / HTTP/1.0\r\nHost: web\r\nConnection: keep-alive\r\nExpect: magic\r\n\r\n", "GET / []"),
    ]
}

/// Values that mean nothing to a proxy.
fn values() -> Vec<Passed> {
    vec![
        get("Range: bytes=-1--2,9999999999999999999-", "GET / [range: bytes=-1--2,9999999999999999999-]"),
        get("Accept-Encoding: ;q=q,,\"", "GET / [accept-encoding: ;q=q,,\"]"),
        get("Date: yesterday", "GET / [date: yesterday]"),
        get("X-A:", "GET / [x-a: ]"),
        get("X-A: a\tb", "GET / [x-a: a\tb]"),
        get("X-A: \u{e4}", "GET / [x-a: \u{e4}]"),
        get("X-A: 1\r\nX-A: 2", "GET / [x-a: 1; x-a: 2]"),
        get("X-HTTP-Method-Override: DELETE", "GET / [x-http-method-override: DELETE]"),
        get("Content-Encoding: chunked", "GET / [content-encoding: chunked]"),
        get("Content-Length-X: 5", "GET / [content-length-x: 5]"),
    ]
}
