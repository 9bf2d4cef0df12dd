//! What a client whose limit is spent tries to be let through all the same: other spellings, more fields, other versions of HTTP,
//! other connections. Nothing of it may reach the backend, whatever else the answer is.

mod common;
mod edge;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use common::TIMEOUT;
use edge::{OPEN, PORT, gateway, services};
use lab::exec;
use lab::loopback::Site;

/// What is limited by which key: one request in 15 minutes each, under a path of its own. Beneath them all, each client.
const AREAS: &[(&str, &str)] = &[
    ("header", "{type: Header, name: x-user}"),
    ("cookie", "{type: Cookie, name: sid}"),
    ("query", "{type: Query, name: who}"),
    ("path", "{type: Path}"),
    ("method", "{type: Method}"),
    ("host", "{type: Host}"),
    ("source", "{type: SourceAddress}"),
];

/// The rest of a request's line, its fields, its body: of the first request, which spends the limit.
const FIRST: &[(&str, &str)] = &[
    ("header", "GET /header/x HTTP/1.1|host: shop.test|x-user: eve"),
    ("cookie", "GET /cookie/x HTTP/1.1|host: shop.test|cookie: a=1; sid=eve"),
    ("query", "GET /query/x?who=eve HTTP/1.1|host: shop.test"),
    ("path", "GET /path/x HTTP/1.1|host: shop.test"),
    ("method", "GET /method/x HTTP/1.1|host: shop.test"),
    ("host", "GET /host/x HTTP/1.1|host: shop.test"),
    ("source", "GET /source/x HTTP/1.1|host: shop.test"),
];

/// What is tried then; `|` ends a line.
const TRICKS: &[&str] = &[
    // Other spellings of the same field, and fields beside it.
    "GET /header/x HTTP/1.1|host: shop.test|X-USER: eve",
    "GET /header/x HTTP/1.1|host: shop.test|x-user:eve",
    "GET /header/x HTTP/1.1|host: shop.test|x-user:\t eve \t",
    "GET /header/x HTTP/1.1|host: shop.test|x_user: mallory|x-user: eve",
    "GET /header/x HTTP/1.1|host: shop.test|x-user : mallory|x-user: eve",
    "GET /header/x HTTP/1.1|host: shop.test|x-user: eve|connection: close, x-user",
    "GET /header/x HTTP/1.1|host: shop.test|x-user: eve| mallory",
    "GET /header/y?z=1 HTTP/1.0|host: shop.test|x-user: eve",
    "GET /cookie/x HTTP/1.1|host: shop.test|cookie: sid=eve",
    "GET /cookie/x HTTP/1.1|host: shop.test|cookie: b=2|cookie: sid=eve; c=3",
    "GET /cookie/x HTTP/1.1|host: shop.test|Cookie:   sid=eve ;d=4",
    "GET /cookie/x HTTP/1.1|host: shop.test|cookie: sid=eve; sid=mallory",
    "GET /cookie/x HTTP/1.1|host: shop.test|cookie: ;;; sid=eve",
    "GET /query/x?who=%65ve HTTP/1.1|host: shop.test",
    "GET /query/x?wh%6f=eve HTTP/1.1|host: shop.test",
    "GET /query/x?a=b&who=eve HTTP/1.1|host: shop.test",
    "GET /query/x?&&who=eve&who=mallory HTTP/1.1|host: shop.test",
    "GET /query/y?who=eve#who=mallory HTTP/1.1|host: shop.test",
    // Other spellings of the same path.
    "GET /path/./x HTTP/1.1|host: shop.test",
    "GET /path//x HTTP/1.1|host: shop.test",
    "GET //path/x HTTP/1.1|host: shop.test",
    "GET /path/y/../x HTTP/1.1|host: shop.test",
    "GET /path/%78 HTTP/1.1|host: shop.test",
    "GET /p%61th/x HTTP/1.1|host: shop.test",
    "GET /path/%2e/x HTTP/1.1|host: shop.test",
    "GET /path%2fx HTTP/1.1|host: shop.test",
    "GET /path\\x HTTP/1.1|host: shop.test",
    "GET /path/x?new=1 HTTP/1.1|host: shop.test",
    "GET /path/x%00 HTTP/1.1|host: shop.test",
    "GET http://shop.test/path/x HTTP/1.1|host: shop.test",
    "GET http://shop.test/path/x HTTP/1.1|host: other.test",
    // Other names of the method and of the host.
    "GET /method/x HTTP/1.1|host: shop.test|x-http-method-override: POST",
    "GET /host/x HTTP/1.1|host: SHOP.test",
    "GET /host/x HTTP/1.1|host: shop.test:8080",
    "GET /host/x HTTP/1.1|host: shop.test.",
    "GET /host/x HTTP/1.1|host: shop.test|x-forwarded-host: other.test",
    "GET /host/x HTTP/1.1|host: shop.test|host: other.test",
    // Claims to be somebody else.
    "GET /source/x HTTP/1.1|host: shop.test|x-forwarded-for: 203.0.113.9",
    "GET /source/x HTTP/1.1|host: shop.test|x-forwarded-for: 203.0.113.9, 203.0.113.10|X-Forwarded-For: ::1",
    "GET /source/x HTTP/1.1|host: shop.test|forwarded: for=203.0.113.9",
    "GET /source/x HTTP/1.1|host: shop.test|x-real-ip: 203.0.113.9",
    "GET /source/x HTTP/1.1|host: shop.test|true-client-ip: 203.0.113.9|cf-connecting-ip: 203.0.113.9",
    "GET /source/x HTTP/1.1|host: shop.test|x-envoy-external-address: 203.0.113.9",
    "GET /source/x HTTP/1.1|host: shop.test|x-envoy-attempt-count: 2|x-request-id: new",
    // Requests that are odd in another way.
    "HEAD /source/x HTTP/1.1|host: shop.test",
    "OPTIONS /source/x HTTP/1.1|host: shop.test",
    "POST /source/x HTTP/1.1|host: shop.test|expect: 100-continue|content-length: 0",
    "GET /source/x HTTP/1.1|host: shop.test|connection: upgrade|upgrade: websocket|sec-websocket-version: 13|sec-websocket-key: MDEyMzQ1Njc4OWFiY2RlZg==",
    "GET /source/x HTTP/1.1|host: shop.test|connection: upgrade, http2-settings|upgrade: h2c|http2-settings: AAMAAABkAAQAAP__",
];

fn documents() -> Result<Site> {
    let rule = |area: &str| {
        format!(
            "  - matches: [{{path: {{value: /{area}}}}}]\n    name: {area}\n    backendRefs: [{{name: web, port: 80}}]\n"
        )
    };
    let limit = |area: &str, key: &str| {
        format!(
            "---\napiVersion: sluice.dev/v1alpha1\nkind: RateLimit\nmetadata: {{name: {area}, namespace: default}}\nspec:\n\
             \x20 targetRefs: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, name: shop, sectionName: {area}}}]\n\
             \x20 limits: [{{name: one, key: [{key}], window: {{requests: 1, per: 15m}}}}]\n"
        )
    };
    let rules = AREAS.iter().map(|(area, _)| rule(area)).collect::<Vec<_>>().concat();
    let limits = AREAS.iter().map(|(area, key)| limit(area, key)).collect::<Vec<_>>().concat();
    Site::new(&[
        ("gateway.yaml", &gateway(OPEN)),
        ("services.yaml", &services(&["web"])?),
        ("routes.yaml", &edge::route("shop", "", &rules)),
        ("limits.yaml", &limits),
    ])
}

/// How often the backend answered to what is written, `|` being the ends of lines; the whole answer beside it.
fn tried(to: SocketAddr, requests: &[&str]) -> Result<(usize, String)> {
    let mut stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let heads: String = requests.iter().map(|head| head.replace('|', "\r\n") + "\r\n\r\n").collect();
    stream.write_all(heads.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    // Whoever is refused for what it wrote may find its connection reset behind the answer.
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let let_through = answer.matches("x-backend: web").count();
    Ok((let_through, answer))
}

/// The status that curl got, and whether the backend answered.
fn curl(to: SocketAddr, arguments: &[&str], path: &str) -> Result<(String, bool)> {
    let mut command = exec::command("curl", ["-sSi", "--max-time", "5", "--path-as-is"]);
    let said = exec::stdout(command.args(arguments).arg(format!("http://{to}{path}")))?;
    Ok((said.lines().next().unwrap_or_default().to_owned(), said.contains("x-backend: web")))
}

#[test]
fn no_trick_is_worth_a_request_more() -> Result<()> {
    let site = documents()?;
    let _agent = site.start(&[])?;
    let to = site.at(PORT);
    for (area, first) in FIRST {
        let (let_through, answer) = tried(to, &[first])?;
        ensure!(let_through == 1, "{area}: the first: {answer}");
        let (let_through, answer) = tried(to, &[first])?;
        ensure!(let_through == 0 && answer.starts_with("HTTP/1.1 429"), "{area}: the second: {answer}");
    }
    for trick in TRICKS {
        let (let_through, answer) = tried(to, &[trick])?;
        ensure!(let_through == 0 && answer.starts_with("HTTP/1."), "{trick}: {answer}");
    }
    Ok(())
}

#[test]
fn neither_other_versions_nor_connections_are() -> Result<()> {
    let site = documents()?;
    let _agent = site.start(&[])?;
    let to = site.at(PORT);
    // Twenty at once on one connection: one of them is let through.
    let head = "GET /source/x HTTP/1.1|host: shop.test";
    let (let_through, answer) = tried(to, &[head; 20])?;
    ensure!(let_through == 1 && answer.matches("HTTP/1.1 429").count() == 19, "in a pipeline: {answer}");
    for _ in 0..20 {
        let (let_through, answer) = tried(to, &[head])?;
        ensure!(let_through == 0, "on a connection of its own: {answer}");
    }
    // By HTTP/2, with other authorities on the same connection, and with many streams at once.
    let host = "host: shop.test";
    let h2 = "--http2-prior-knowledge";
    let (status, let_through) = curl(to, &[h2, "-H", host], "/source/x")?;
    ensure!(status.starts_with("HTTP/2 429") && !let_through, "HTTP/2: {status}");
    let (status, let_through) = curl(to, &[h2, "-H", "host: SHOP.test:8080"], "/source/x")?;
    ensure!(status.starts_with("HTTP/2 429") && !let_through, "HTTP/2, another authority: {status}");
    let (status, let_through) = curl(to, &["-0", "-H", host], "/source/x")?;
    ensure!(status.contains(" 429") && !let_through, "HTTP/1.0: {status}");
    let streams = ["-n", "50", "-c", "1", "-m", "50", "-H", ":authority: shop.test"];
    let said = exec::stdout(exec::command("h2load", streams).arg(format!("http://{to}/path/streams")))?;
    let codes = said.lines().find(|line| line.starts_with("status codes:")).context("h2load's report")?;
    ensure!(codes.contains(" 1 2xx") && codes.contains(" 49 4xx"), "fifty streams at once: {codes}");
    Ok(())
}
