//! TLS that passes a Gateway as it is: the server name leads to backends that end it themselves, here `openssl s_server`, and
//! no byte is changed on the way.

mod common;
mod edge;
mod edge_tls;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::mpsc;

use anyhow::{Context, Result, ensure};
use common::{LIMIT, TIMEOUT};
use edge::{gateway, route, services};
use edge_tls::{Pki, Server, Session, TLS_PORT, curl, handshake, handshakes, https, secret};
use lab::backend::{echo, listen, raw};
use lab::loopback::{Site, service};
use lab::wait_until;

/// A listener on the TLS port that passes TLS on.
fn passing(name: &str, hostname: &str) -> String {
    format!(
        "  - {{name: {name}, port: {TLS_PORT}, protocol: TLS, hostname: \"{hostname}\", \
         allowedRoutes: {{namespaces: {{from: All}}}}, tls: {{mode: Passthrough}}}}\n"
    )
}

/// A TLSRoute of the namespace `default` on one listener.
fn tls_route(name: &str, listener: &str, host: &str, service: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1alpha2\nkind: TLSRoute\n\
         metadata: {{name: {name}, namespace: default}}\nspec:\n  \
         parentRefs: [{{name: edge, namespace: infra, sectionName: {listener}}}]\n  hostnames: [\"{host}\"]\n  \
         rules: [{{backendRefs: [{{name: {service}, port: 443}}]}}]\n"
    )
}

fn subject(to: SocketAddr, name: &str) -> Result<String> {
    let said = handshake(to, &["-servername", name])?;
    let line = said.lines().find_map(|line| line.strip_prefix("subject=")).unwrap_or("none");
    Ok(line.trim().replace(' ', "").replace("CN=", ""))
}

#[test]
fn the_server_name_leads_to_a_backend_that_ends_tls() -> Result<()> {
    let pki = Pki::new()?;
    let one = pki.issue("one", &["one.pass.test"])?;
    let two = pki.issue("two", &["two.pass.test"])?;
    let (first, second) = (Server::start(&one, &[])?, Server::start(&two, &[])?);
    let listeners = passing("wild", "*.pass.test")
        + &passing("exact", "one.pass.test")
        + &https("ends", "", &["edge"], "");
    let routes = [
        tls_route("one", "exact", "one.pass.test", "one"),
        tls_route("two", "wild", "two.pass.test", "two"),
        route("web", "", "  - backendRefs: [{name: web, port: 80}]\n")
            .replace("namespace: infra}]", "namespace: infra, sectionName: ends}]"),
    ];
    let backends =
        service("default", "one", 443, &[first.address]) + &service("default", "two", 443, &[second.address]);
    let site = Site::new(&[
        ("gateway.yaml", &gateway(&listeners)),
        ("secret.yaml", &secret("edge", &pki.issue("edge", &["web.test", "one.pass.test"])?)),
        ("services.yaml", &(backends + &services(&["web"])?)),
        ("routes.yaml", &routes.concat()),
    ])?;
    let agent = site.start(&[])?;
    let at = site.at(TLS_PORT);
    for (name, expected) in [("one.pass.test", "one"), ("two.pass.test", "two"), ("web.test", "edge")] {
        ensure!(subject(at, name)? == expected, "{name}: {}", subject(at, name)?);
    }
    let got = curl(&pki.root(), at, "two.pass.test", "/", &[])?;
    ensure!(got.status == "200" && String::from_utf8_lossy(&got.body).contains("s_server"), "{got:?}");
    ensure!(curl(&pki.root(), at, "web.test", "/", &[])?.who() == "web");
    // A host whose TLS ends elsewhere is not served where it ends here.
    let misdirected = curl(&pki.root(), at, "web.test", "/", &["-H", "Host: one.pass.test"])?;
    ensure!(misdirected.status == "421", "{misdirected:?}");
    // A name of the listener without a route.
    ensure!(subject(at, "three.pass.test")? == "none");
    ensure!(handshakes(&agent, "passed_on")? > 3.9);
    let logged = wait_until("the line of a connection", LIMIT, || {
        site.access().ok()?.into_iter().find(|line| line["message"] == "connection")
    })?;
    let upstream = logged["upstream_host"].as_str().unwrap_or_default();
    ensure!([first.address, second.address].iter().any(|one| one.to_string() == upstream), "{logged}");
    Ok(())
}

/// The first record that `openssl` sends for a server name.
fn hello(name: &str) -> Result<Vec<u8>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut child = Command::new("openssl")
        .args(["s_client", "-connect", &listener.local_addr()?.to_string(), "-servername", name])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let (mut stream, _) = listener.accept()?;
    let mut head = [0; 5];
    stream.read_exact(&mut head)?;
    let mut body = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
    stream.read_exact(&mut body)?;
    // It waits for an answer that does not come.
    let _ = child.kill();
    child.wait()?;
    Ok([&head[..], &body].concat())
}

/// The same handshake message in records of a few bytes.
fn in_small_records(record: &[u8], size: usize) -> Vec<u8> {
    let pieces = record[5..].chunks(size);
    pieces
        .flat_map(|piece| [&[0x16, 3, 1, 0, u8::try_from(piece.len()).unwrap_or(0)][..], piece].concat())
        .collect()
}

#[test]
fn no_byte_is_changed_however_it_comes() -> Result<()> {
    let (seen, reads) = mpsc::channel();
    let backend = raw(listen()?, move |mut stream| {
        let mut all = Vec::new();
        // A reset shows in what is missing.
        let _ = stream.read_to_end(&mut all);
        let _ = stream.write_all(b"and back");
        // The test may have failed already.
        let _ = seen.send(all);
    })?;
    let site = Site::new(&[
        ("gateway.yaml", &gateway(&passing("all", "*.pass.test"))),
        ("services.yaml", &service("default", "raw", 443, &[backend])),
        ("routes.yaml", &tls_route("raw", "all", "*.pass.test", "raw")),
    ])?;
    let _agent = site.start(&["--set", "gateway.tls.handshake-timeout=20s"])?;
    let record = hello("a.pass.test")?;
    let large: Vec<u8> = (0..300_000_u32).map(|index| (index % 253) as u8).collect();
    for (what, sent, piece) in [
        ("whole", record.clone(), 100_000),
        ("byte by byte", record.clone(), 1),
        ("in small records", in_small_records(&record, 50), 100_000),
        ("in small records, in pieces", in_small_records(&record, 40), 7),
        ("with more behind it", [&record[..], &large].concat(), 100_000),
    ] {
        let mut stream = TcpStream::connect_timeout(&site.at(TLS_PORT), TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        for piece in sent.chunks(piece) {
            stream.write_all(piece)?;
        }
        stream.shutdown(Shutdown::Write)?;
        let mut back = Vec::new();
        stream.read_to_end(&mut back).with_context(|| what.to_owned())?;
        ensure!(back == b"and back", "{what}: {}", back.escape_ascii());
        let arrived = reads.recv_timeout(LIMIT).with_context(|| what.to_owned())?;
        ensure!(arrived == sent, "{what}: {} bytes of {} arrived, or others", arrived.len(), sent.len());
    }
    Ok(())
}

/// A listener on the TLS port that ends TLS and passes on what is in it.
fn ending(name: &str, hostname: &str, secret: &str) -> String {
    format!(
        "  - {{name: {name}, port: {TLS_PORT}, protocol: TLS, hostname: \"{hostname}\", \
         allowedRoutes: {{namespaces: {{from: All}}}}, tls: {{mode: Terminate, certificateRefs: [{{name: {secret}}}]}}}}\n"
    )
}

#[test]
fn what_is_in_tls_that_ends_here_goes_to_the_backend_byte_for_byte() -> Result<()> {
    const GREETING: &[u8] = b"220 who speaks first\r\n";
    let pki = Pki::new()?;
    let large: Vec<u8> = (0..300_000_u32).map(|index| (index % 253) as u8).collect();
    let (seen, reads) = mpsc::channel();
    let expected = large.len();
    let speaks = raw(listen()?, move |mut stream| {
        // The server speaks first, and its client's bytes come back.
        let mut all = vec![0; expected];
        let read = stream.write_all(GREETING).and_then(|()| stream.read_exact(&mut all));
        if read.is_ok() {
            let _ = stream.write_all(&all);
            // The test may have failed already.
            let _ = seen.send(all);
        }
    })?;
    let listeners = ending("ends", "*.end.test", "edge") + &passing("raw", "*.pass.test");
    let inner = Server::start(&pki.issue("inner", &["a.pass.test"])?, &[])?;
    let routes = tls_route("mail", "ends", "mail.end.test", "mail")
        + &tls_route("web", "ends", "web.end.test", "web")
        + &tls_route("raw", "raw", "a.pass.test", "raw");
    let backends = service("default", "mail", 443, &[speaks])
        + &service("default", "web", 443, &[echo("web")?])
        + &service("default", "raw", 443, &[inner.address]);
    let site = Site::new(&[
        ("gateway.yaml", &gateway(&listeners)),
        ("secret.yaml", &secret("edge", &pki.issue("edge", &["*.end.test"])?)),
        ("services.yaml", &backends),
        ("routes.yaml", &routes),
    ])?;
    let agent = site.start(&[])?;
    let at = site.at(TLS_PORT);
    // Whatever is within is the client's and the backend's: nothing is negotiated for them.
    let got = curl(&pki.root(), at, "web.end.test", "/x", &[])?;
    ensure!(got.who() == "web" && got.version == "1.1", "{got:?}");
    ensure!(got.sent("x-forwarded-proto").is_empty(), "it was taken for HTTP: {got:?}");
    ensure!(subject(at, "mail.end.test")? == "edge" && subject(at, "a.pass.test")? == "inner");

    let mut session = Session::open(at, &["-servername", "mail.end.test"])?;
    let mut greeting = vec![0; GREETING.len()];
    session.read(&mut greeting)?;
    ensure!(greeting == GREETING, "{}", greeting.escape_ascii());
    session.send(&large)?;
    let mut back = vec![0; large.len()];
    session.read(&mut back)?;
    ensure!(back == large, "other bytes came back");
    ensure!(reads.recv_timeout(LIMIT)? == large, "other bytes arrived");
    drop(session);
    // A name of the listener without a route.
    ensure!(curl(&pki.root(), at, "none.end.test", "/", &[]).is_err());
    ensure!(handshakes(&agent, "ok")? > 3.9);
    let logged = wait_until("the line of the session", LIMIT, || {
        let lines = site.access().ok()?.into_iter();
        let mut connections = lines.filter(|line| line["message"] == "connection");
        connections
            .find(|line| line["upstream_host"] == speaks.to_string() && line["bytes_received"] == large.len())
    })?;
    ensure!(logged["bytes_sent"] == GREETING.len() + large.len(), "{logged}");
    Ok(())
}

/// Connections that are passed on are held to the limits of the service that they are passed to.
#[test]
fn connections_beyond_a_limit_of_the_service_are_reset() -> Result<()> {
    let pki = Pki::new()?;
    let (one, two) = (pki.issue("one", &["one.pass.test"])?, pki.issue("two", &["two.pass.test"])?);
    let (first, second) = (Server::start(&one, &[])?, Server::start(&two, &[])?);
    let routes =
        [tls_route("one", "wild", "one.pass.test", "one"), tls_route("two", "wild", "two.pass.test", "two")];
    let limit = "apiVersion: sluice.dev/v1alpha1\nkind: RateLimit\nmetadata: {name: calm, namespace: default}\nspec:\n  \
                 targetRefs: [{kind: Service, name: one}]\n  limits:\n  - {name: new, counts: Connections, \
                 key: [{type: SourceAddress}], rate: {requests: 1, per: 10m, burst: 2}}\n";
    let backends =
        service("default", "one", 443, &[first.address]) + &service("default", "two", 443, &[second.address]);
    let site = Site::new(&[
        ("gateway.yaml", &gateway(&passing("wild", "*.pass.test"))),
        ("services.yaml", &backends),
        ("routes.yaml", &routes.concat()),
        ("limit.yaml", limit),
    ])?;
    let _agent = site.start(&[])?;
    let at = site.at(TLS_PORT);
    let passed = |name: &str, who: &str| {
        (0..4).filter(|_| subject(at, name).is_ok_and(|subject| subject == who)).count()
    };
    let got = (passed("one.pass.test", "one"), passed("two.pass.test", "two"));
    ensure!(got == (2, 4), "{got:?} of four connections each");
    Ok(())
}

#[test]
fn what_cannot_be_is_said() -> Result<()> {
    let both =
        "  rules: [{backendRefs: [{name: one, port: 443}]}, {backendRefs: [{name: one, port: 443}]}]\n";
    let route = |parent: &str, rules: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: TLSRoute\nmetadata: {{name: r, namespace: default}}\n\
             spec:\n  parentRefs: [{parent}]\n  hostnames: [a.pass.test]\n{rules}"
        )
    };
    let edge = "{name: edge, namespace: infra}";
    let one = "  rules: [{backendRefs: [{name: one, port: 443}]}]\n";
    let cases = [
        (passing("a", "*.pass.test"), route(edge, both), "one rule is needed"),
        (
            passing("a", "*.pass.test"),
            route("{kind: Service, group: \"\", name: one}", one),
            "only a Gateway can be a parent",
        ),
        (passing("a", "*.other.test"), route(edge, one), "no hostname of the route is one of the listener a"),
        (edge::OPEN.to_owned(), route(edge, one), "does not take this route's namespace or kind"),
        (
            passing("a", "*.pass.test"),
            route(edge, "  rules: [{backendRefs: [{name: two, port: 443}]}]\n"),
            "there is no Service default/two",
        ),
    ];
    for (listener, route, part) in cases {
        let site = Site::new(&[
            ("gateway.yaml", &gateway(&listener)),
            ("services.yaml", &service("default", "one", 443, &[])),
            ("routes.yaml", &route),
        ])?;
        let output = site.command().arg("analyze").arg(site.config()).output()?;
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        ensure!(said.contains(part), "no `{part}` in {said}");
    }
    Ok(())
}
