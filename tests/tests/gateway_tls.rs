//! TLS that ends at Gateways, judged by `openssl` and `curl`: which certificate is shown, what is spoken within, what is
//! refused, and that documents change beneath open connections.

mod common;
mod edge;
mod edge_tls;

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use common::{LIMIT, TIMEOUT};
use edge::{OPEN, PORT, gateway, route, services};
use edge_tls::{Pki, Session, TLS_PORT, curl, curl_output, handshake, handshakes, https, secret, secret_of};
use lab::backend::{Reply, http, listen, raw, read_head};
use lab::loopback::{LoopbackAgent, Site, service};
use lab::{wait_for, wait_until};

fn to(service: &str) -> String {
    format!("  - backendRefs: [{{name: {service}, port: 80}}]\n")
}

/// A route on one listener.
fn on(name: &str, listener: &str, hosts: &str, rules: &str) -> String {
    route(name, hosts, rules)
        .replace("namespace: infra}]", &format!("namespace: infra, sectionName: {listener}}}]"))
}

/// A site with one listener for any host, whose certificate is for `a.test` and `b.test`.
fn simple(pki: &Pki, backend: &str) -> Result<Site> {
    let issued = pki.issue("simple", &["a.test", "b.test"])?;
    Site::new(&[
        ("gateway.yaml", &gateway(&https("tls", "", &["simple"], ""))),
        ("secret.yaml", &secret("simple", &issued)),
        ("services.yaml", backend),
        ("routes.yaml", &route("r", "", &to("web"))),
    ])
}

fn subject(to: SocketAddr, further: &[&str]) -> Result<String> {
    let said = handshake(to, further)?;
    let line = said.lines().find_map(|line| line.strip_prefix("subject=")).unwrap_or("none");
    Ok(line.trim().replace(' ', "").replace("CN=", ""))
}

#[test]
fn the_server_name_chooses_listener_and_certificate() -> Result<()> {
    let pki = Pki::new()?;
    let names = [
        ("exact", "a.shop.test"),
        ("wild", "*.shop.test"),
        ("deep", "*.deep.shop.test"),
        ("any", "any.example"),
    ];
    let mut secrets = String::new();
    for (file, name) in names {
        secrets += &secret(file, &pki.issue(file, &[name])?);
    }
    let rsa = pki.issue_with("rsa", &["rsa.example"], &["-newkey", "rsa:2048"])?;
    secrets += &secret("rsa", &rsa);
    let listeners = https("exact", "a.shop.test", &["exact"], "")
        + &https("wild", "*.shop.test", &["wild"], "")
        + &https("deep", "*.deep.shop.test", &["deep"], "")
        + &https("any", "", &["any", "rsa"], "");
    let routes = [
        on("exact", "exact", "", &to("exact")),
        on("wild", "wild", "", &to("wild")),
        on("deep", "deep", "", &to("deep")),
        on("any", "any", "", &to("any")),
    ];
    let site = Site::new(&[
        ("gateway.yaml", &gateway(&listeners)),
        ("secrets.yaml", &secrets),
        ("services.yaml", &services(&["exact", "wild", "deep", "any"])?),
        ("routes.yaml", &routes.concat()),
    ])?;
    let agent = site.start(&[])?;
    let at = site.at(TLS_PORT);
    for (name, expected) in [
        (Some("a.shop.test"), "exact"),
        (Some("A.SHOP.TEST"), "exact"),
        (Some("b.shop.test"), "wild"),
        (Some("x.y.shop.test"), "wild"),
        (Some("x.deep.shop.test"), "deep"),
        (Some("shop.test"), "any"),
        (Some("any.example"), "any"),
        // Of one listener's certificates the one for the name, else the first.
        (Some("rsa.example"), "rsa"),
        (Some("else.example"), "any"),
        (None, "any"),
    ] {
        let further = name.map_or(vec!["-noservername"], |name| vec!["-servername", name]);
        let shown = subject(at, &further)?;
        ensure!(shown == expected, "{name:?}: {shown} and not {expected}");
    }
    // A client that knows RSA alone gets what it knows.
    let shown = subject(at, &["-servername", "any.example", "-sigalgs", "RSA-PSS+SHA256"])?;
    ensure!(shown == "rsa", "{shown}");
    for host in ["a.shop.test", "b.shop.test"] {
        let got = curl(&pki.root(), at, host, "/", &[])?;
        let expected = if host == "a.shop.test" { "exact" } else { "wild" };
        ensure!(got.who() == expected, "{host}: {got:?}");
    }
    let expiry = agent.scrape()?;
    for (file, _) in names {
        let identity = format!("secret/infra/{file}");
        let end = expiry.sum("sluice_certificate_expiry_timestamp_seconds", &[("identity", &identity)]);
        ensure!(end > 1.7e9, "{identity} ends at {end}");
    }
    Ok(())
}

#[test]
fn without_a_listener_for_the_name_the_handshake_is_refused() -> Result<()> {
    let pki = Pki::new()?;
    let site = Site::new(&[
        ("gateway.yaml", &gateway(&https("one", "a.test", &["a"], ""))),
        ("secret.yaml", &secret("a", &pki.issue("a", &["a.test"])?)),
        ("services.yaml", &services(&["web"])?),
        ("routes.yaml", &route("r", "", &to("web"))),
    ])?;
    let agent = site.start(&[])?;
    let at = site.at(TLS_PORT);
    ensure!(curl(&pki.root(), at, "a.test", "/", &[])?.who() == "web");
    for (count, further) in [(1.0, &["-servername", "b.test"][..]), (2.0, &["-noservername"])] {
        let said = handshake(at, further)?;
        ensure!(said.contains("unrecognized name"), "{further:?}: {said}");
        let refused = handshakes(&agent, "unknown_server_name")?;
        ensure!((refused - count).abs() < 0.1, "{further:?}: {refused}");
    }
    wait_for("the refusals to be logged", LIMIT, || {
        let refusal = |line: &serde_json::Value| line["response_code_details"] == "tls_unknown_server_name";
        site.access().is_ok_and(|lines| lines.iter().filter(|line| refusal(line)).count() == 2)
    })
}

/// A port that two listeners share: refusals are told with what the client asked for, and of the listener that this led to.
#[test]
fn refused_handshakes_are_logged_with_what_was_asked_for() -> Result<()> {
    let pki = Pki::new()?;
    let listeners = https("first", "a.test", &["all"], "") + &https("second", "*.b.test", &["all"], "");
    let site = Site::new(&[
        ("gateway.yaml", &gateway(&listeners)),
        ("secret.yaml", &secret("all", &pki.issue("all", &["a.test", "*.b.test"])?)),
        ("services.yaml", &services(&["web"])?),
        ("routes.yaml", &route("r", "", &to("web"))),
    ])?;
    let _agent = site.start(&[])?;
    let at = site.at(TLS_PORT);
    let logged = |count: usize| {
        wait_until("the line", LIMIT, || site.access().ok().filter(|lines| lines.len() == count)?.pop())
    };
    for (count, (name, reason, listener)) in [
        ("a.test", "tls_no_alpn", Some("infra/edge/first")),
        ("x.b.test", "tls_no_alpn", Some("infra/edge/second")),
        ("c.test", "tls_unknown_server_name", None),
    ]
    .into_iter()
    .enumerate()
    {
        handshake(at, &["-servername", name, "-alpn", "spdy/3"])?;
        let line = logged(count + 1)?;
        ensure!(line["response_code_details"] == reason, "{name}: {line}");
        ensure!(line["requested_server_name"] == name, "{name}: {line}");
        ensure!(line["listener"].as_str() == listener, "{name}: {line}");
        ensure!(line["protocol"] == "-" && line["downstream_tls_version"].is_null(), "{name}: {line}");
    }
    // Where nothing was asked for in TLS nothing is known.
    TcpStream::connect_timeout(&at, TIMEOUT)?.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
    let line = logged(4)?;
    ensure!(line["response_code_details"] == "tls_not_tls" && line["protocol"] == "-", "{line}");
    ensure!(line["requested_server_name"].is_null() && line["listener"].is_null(), "{line}");
    // What is served tells its own listener too.
    let got = curl(&pki.root(), at, "x.b.test", "/", &[])?;
    ensure!(got.who() == "web", "{got:?}");
    let line = logged(5)?;
    ensure!(line["listener"] == "infra/edge/second" && line["protocol"] == "HTTP/2", "{line}");
    Ok(())
}

#[test]
fn versions_and_protocols() -> Result<()> {
    let pki = Pki::new()?;
    let backend = services(&["web"])?;
    let site = simple(&pki, &backend)?;
    let agent = site.start(&[])?;
    let at = site.at(TLS_PORT);
    for (further, version, http) in [
        (&["--http1.1"][..], "TLSv1.3", "1.1"),
        (&["--http2"], "TLSv1.3", "2"),
        (&["--http2", "--tls-max", "1.2"], "TLSv1.2", "2"),
        (&["--http1.1", "--tls-max", "1.2"], "TLSv1.2", "1.1"),
    ] {
        // The line of each is told by its path.
        let path = format!("/{}", further.concat());
        let got = curl(&pki.root(), at, "a.test", &path, further)?;
        ensure!(got.who() == "web" && got.version == http, "{further:?}: {got:?}");
        ensure!(got.sent("x-forwarded-proto") == ["https"], "{further:?}: {got:?}");
        let logged = wait_until("the request's line", LIMIT, || {
            site.access().ok()?.into_iter().find(|line| line["path"] == *path)
        })?;
        ensure!(logged["downstream_tls_version"] == version, "{further:?}: {logged}");
        ensure!(logged["requested_server_name"] == "a.test", "{further:?}: {logged}");
    }
    let said = handshake(at, &["-servername", "a.test", "-alpn", "spdy/3"])?;
    ensure!(said.contains("no application protocol"), "{said}");
    let old = handshake(at, &["-servername", "a.test", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0"])?;
    ensure!(old.contains("alert protocol version"), "{old}");
    // A cipher without forward secrecy.
    let weak = handshake(at, &["-servername", "a.test", "-tls1_2", "-cipher", "AES128-SHA"])?;
    ensure!(weak.contains("alert access denied"), "{weak}");
    for (version, least) in [("1.2", 2.0), ("1.3", 2.0)] {
        let seen = agent.scrape()?.sum("sluice_gateway_tls_versions_total", &[("version", version)]);
        ensure!(seen >= least, "{version}: {seen}");
    }
    for (outcome, count) in [("no_alpn", 1.0), ("incompatible", 2.0)] {
        let seen = handshakes(&agent, outcome)?;
        ensure!((seen - count).abs() < 0.1, "{outcome}: {seen}");
    }
    // The option of the listener.
    let strict = ", options: {sluice.dev/min-tls-version: \"1.3\"}";
    agent.apply("gateway.yaml", &gateway(&https("tls", "", &["simple"], strict)))?;
    ensure!(curl(&pki.root(), at, "a.test", "/", &[])?.who() == "web");
    let refused = curl_output(&pki.root(), at, "a.test", "/", &["--tls-max", "1.2"])?;
    ensure!(refused.status.code() == Some(35), "{refused:?}");
    Ok(())
}

#[test]
fn sessions_are_resumed_until_the_certificate_changes() -> Result<()> {
    let pki = Pki::new()?;
    let backend = services(&["web"])?;
    let site = simple(&pki, &backend)?;
    let agent = site.start(&[])?;
    let at = site.at(TLS_PORT);
    let file = pki.path("session.pem").display().to_string();
    let reused = |version: &str| -> Result<bool> {
        let said = handshake(at, &["-servername", "a.test", version, "-sess_in", &file])?;
        ensure!(said.contains("Reused, ") || said.contains("New, "), "{said}");
        Ok(said.contains("Reused, "))
    };
    for version in ["-tls1_3", "-tls1_2"] {
        // The ticket of 1.3 comes behind the handshake: with the answer it has come.
        let mut session = Session::open(at, &["-servername", "a.test", version, "-sess_out", &file])?;
        ensure!(session.get("a.test", "/")?.0 == 200);
        drop(session);
        ensure!(reused(version)?, "{version}: a full handshake");
        let other = handshake(at, &["-servername", "b.test", version, "-sess_in", &file])?;
        ensure!(other.contains("New, "), "{version}: resumed for another name: {other}");
    }
    ensure!(handshakes(&agent, "ok_resumed")? > 1.9);
    agent.apply("secret.yaml", &secret("simple", &pki.issue("newer", &["a.test"])?))?;
    ensure!(!reused("-tls1_2")?, "a ticket outlived its certificate");
    Ok(())
}

#[test]
fn hosts_of_other_listeners_are_misdirected() -> Result<()> {
    let pki = Pki::new()?;
    let listeners = https("a", "a.test", &["all"], "") + &https("wild", "*.wild.test", &["all"], "");
    let routes = [on("a", "a", "", &to("a")), on("wild", "wild", "", &to("wild"))];
    let issued = pki.issue("all", &["a.test", "*.wild.test"])?;
    let site = Site::new(&[
        ("gateway.yaml", &gateway(&listeners)),
        ("secrets.yaml", &secret("all", &issued)),
        ("services.yaml", &services(&["a", "wild"])?),
        ("routes.yaml", &routes.concat()),
    ])?;
    let _agent = site.start(&[])?;
    let at = site.at(TLS_PORT);
    for http in ["--http1.1", "--http2"] {
        for (name, host, expected) in [
            ("a.test", "a.test", "a"),
            ("a.test", "x.wild.test", "421"),
            ("x.wild.test", "a.test", "421"),
            // One listener, whose certificate is for both.
            ("x.wild.test", "y.wild.test", "wild"),
            // No listener's, as the Gateway API has it.
            ("a.test", "nobody.test", "404"),
        ] {
            let host_field = format!("Host: {host}");
            let got = curl(&pki.root(), at, name, "/", &[http, "-H", &host_field])?;
            ensure!(got.who() == expected, "{http} {name} {host}: {got:?}");
            if expected == "421" {
                ensure!(got.headers.contains("host_of_another_listener"), "{got:?}");
            }
        }
    }
    // The connection goes on.
    let mut session = Session::open(at, &["-servername", "a.test"])?;
    ensure!(session.get("x.wild.test", "/")?.0 == 421);
    ensure!(session.get("a.test", "/")?.0 == 200);
    // The scheme of an absolute target is that of the connection.
    ensure!(session.get("a.test", "http://a.test/")?.0 == 421);
    ensure!(session.get("a.test", "https://a.test/")?.0 == 200);
    Ok(())
}

#[test]
fn plain_http_is_redirected_to_tls() -> Result<()> {
    let pki = Pki::new()?;
    let listeners = OPEN.to_owned() + &https("tls", "", &["a"], "");
    let redirect = "  - filters: [{type: RequestRedirect, requestRedirect: {scheme: https, port: 8443, statusCode: 301}}]\n";
    let site = Site::new(&[
        ("gateway.yaml", &gateway(&listeners)),
        ("secret.yaml", &secret("a", &pki.issue("a", &["a.test"])?)),
        ("services.yaml", &services(&["web"])?),
        ("routes.yaml", &(on("plain", "http", "", redirect) + &on("tls", "tls", "", &to("web")))),
    ])?;
    let _agent = site.start(&[])?;
    let seen = edge::send(site.at(PORT), "a.test", "/p?q=1", &[])?;
    ensure!(seen.response.status == 301 && seen.got("location") == ["https://a.test:8443/p?q=1"], "{seen:?}");
    let got = curl(&pki.root(), site.at(TLS_PORT), "a.test", "/p?q=1", &[])?;
    ensure!(got.who() == "web" && got.seen["target"] == "/p?q=1", "{got:?}");
    Ok(())
}

#[test]
fn certificates_change_beneath_open_connections_and_bad_ones_change_nothing() -> Result<()> {
    let pki = Pki::new()?;
    let backend = services(&["web"])?;
    let site = simple(&pki, &backend)?;
    let agent = site.start(&[])?;
    let at = site.at(TLS_PORT);
    let mut open = Session::open(at, &["-servername", "a.test"])?;
    ensure!(open.get("a.test", "/")?.0 == 200);
    ensure!(subject(at, &["-servername", "a.test"])? == "simple");
    let newer = pki.issue("newer", &["a.test"])?;
    agent.apply("secret.yaml", &secret("simple", &newer))?;
    wait_for("the new certificate", LIMIT, || {
        subject(at, &["-servername", "a.test"]).is_ok_and(|subject| subject == "newer")
    })?;
    ensure!(open.get("a.test", "/")?.0 == 200, "the open connection is served no more");
    let other = pki.issue("other", &["a.test"])?;
    for (chain, key, words) in [
        (&*newer.chain, &*other.key, ["tls.key", "the key is not that of the certificate"]),
        ("nothing", &newer.key, ["tls.crt", "holds no certificate"]),
        (&newer.chain, "nothing", ["tls.key", "holds no private key"]),
    ] {
        site.write("secret.yaml", &secret_of("infra", "simple", chain, key))?;
        let said = wait_until("the refusal", LIMIT, || {
            let status = agent.status().ok()?.to_string();
            words.iter().all(|word| status.contains(word)).then_some(status)
        });
        said.with_context(|| format!("{words:?}: {}", agent.status().unwrap_or_default()))?;
        ensure!(subject(at, &["-servername", "a.test"])? == "newer", "{words:?}");
        ensure!(curl(&pki.root(), at, "a.test", "/", &[])?.who() == "web", "{words:?}");
    }
    // No part of any key is shown anywhere.
    let dumps: Vec<String> = ["/config_dump", "/status", "/routes"]
        .iter()
        .map(|path| agent.ask(agent.admin, path).map(|answer| answer.text()))
        .collect::<Result<_>>()?;
    let shown = dumps.concat() + &site.log() + &format!("{:?}", site.access()?);
    for key in [&newer.key, &other.key] {
        let line = key.lines().nth(1).context("a key of several lines")?;
        ensure!(!shown.contains(line) && !shown.contains("PRIVATE KEY"), "a key is shown");
    }
    Ok(())
}

#[test]
fn references_that_cannot_be_followed_are_named_and_nothing_is_spoken_in_plaintext() -> Result<()> {
    let pki = Pki::new()?;
    let issued = pki.issue("a", &["a.test"])?;
    let of = |refs: &str| {
        gateway(&format!(
            "  - {{name: tls, port: {TLS_PORT}, protocol: HTTPS, allowedRoutes: {{namespaces: {{from: All}}}}, \
             tls: {{certificateRefs: [{refs}]}}}}\n"
        ))
    };
    let grant = "---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\n\
                 metadata: {name: g, namespace: vault}\nspec:\n  \
                 from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: infra}]\n  \
                 to: [{group: \"\", kind: Secret, name: a}]\n";
    let opaque =
        "---\napiVersion: v1\nkind: Secret\nmetadata: {name: opaque, namespace: infra}\ndata: {a: YQ==}\n";
    let site = Site::new(&[
        ("gateway.yaml", &of("{name: nobody}")),
        ("secrets.yaml", &(secret_of("vault", "a", &issued.chain, &issued.key) + opaque)),
        ("services.yaml", &services(&["web"])?),
        ("routes.yaml", &route("r", "", &to("web"))),
    ])?;
    let agent = site.start(&[])?;
    let at = site.at(TLS_PORT);
    let refused = |refs: &str, words: &[&str]| -> Result<()> {
        let status = wait_until("the reason", LIMIT, || {
            let status = agent.status().ok()?.to_string();
            words.iter().all(|word| status.contains(word)).then_some(status)
        });
        status.with_context(|| format!("{refs}: {words:?}: {}", agent.status().unwrap_or_default()))?;
        let said = handshake(at, &["-servername", "a.test"])?;
        ensure!(said.contains("alert internal error"), "{refs}: {said}");
        let mut plain = TcpStream::connect_timeout(&at, TIMEOUT)?;
        plain.set_read_timeout(Some(LIMIT))?;
        plain.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")?;
        let mut answer = Vec::new();
        // It may be reset.
        let _ = plain.read_to_end(&mut answer);
        ensure!(!answer.starts_with(b"HTTP"), "{refs}: {}", String::from_utf8_lossy(&answer));
        Ok(())
    };
    refused("nobody", &["InvalidCertificateRef", "there is no valid Secret infra/nobody"])?;
    for (refs, words) in [
        ("{name: opaque}", ["InvalidCertificateRef", "is not of the type kubernetes.io/tls"]),
        ("{name: a, namespace: vault}", ["RefNotPermitted", "no ReferenceGrant lets Gateways of infra"]),
        ("{kind: ConfigMap, name: a}", ["InvalidCertificateRef", "only a Secret can be"]),
    ] {
        site.write("gateway.yaml", &of(refs))?;
        refused(refs, &words)?;
    }
    agent.apply("gateway.yaml", &(of("{name: a, namespace: vault}") + grant))?;
    ensure!(curl(&pki.root(), at, "a.test", "/", &[])?.who() == "web");
    ensure!(handshakes(&agent, "no_own_certificate")? > 3.9);
    Ok(())
}

#[test]
fn bodies_pass_whole_in_both_versions() -> Result<()> {
    let pki = Pki::new()?;
    let large: Vec<u8> = (0..=250_u8).cycle().take(5_000_000).collect();
    let sent = large.clone();
    let backend = http(listen()?, move |request| {
        let body = match request.method.as_str() {
            "POST" => format!("{}", request.body == sent).into_bytes(),
            _ => sent[..request.target[1..].parse().unwrap_or(0)].to_vec(),
        };
        Reply { status: 200, headers: Vec::new(), body }
    })?;
    let site = simple(&pki, &service("default", "web", 80, &[backend]))?;
    let _agent = site.start(&[])?;
    let at = site.at(TLS_PORT);
    let file = pki.path("large");
    std::fs::write(&file, &large)?;
    let upload = format!("@{}", file.display());
    for http in ["--http1.1", "--http2"] {
        for count in [0, 1, 1_000, 16_383, 16_384, 16_385, 70_000, 5_000_000] {
            let got = curl(&pki.root(), at, "a.test", &format!("/{count}"), &[http])?;
            ensure!(got.body == large[..count], "{http}: {} of {count} bytes", got.body.len());
        }
        let got = curl(&pki.root(), at, "a.test", "/", &[http, "--data-binary", &upload])?;
        ensure!(got.body == b"true", "{http}: the upload arrived changed: {got:?}");
    }
    Ok(())
}

#[test]
fn a_switched_protocol_passes_both_ways() -> Result<()> {
    let pki = Pki::new()?;
    let backend = raw(listen()?, |stream| {
        let echo = || -> std::io::Result<()> {
            let mut reader = BufReader::new(stream.try_clone()?);
            let mut stream = stream;
            read_head(&mut reader)?;
            stream.write_all(
                b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhello",
            )?;
            std::io::copy(&mut reader, &mut stream)?;
            stream.shutdown(std::net::Shutdown::Write)
        };
        // The client's end is the test's.
        let _ = echo();
    })?;
    let site = simple(&pki, &service("default", "web", 80, &[backend]))?;
    let _agent = site.start(&[])?;
    let mut session = Session::open(site.at(TLS_PORT), &["-servername", "a.test"])?;
    session
        .send(b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nahead")?;
    ensure!(session.head()?.0 == 101);
    let mut first = [0; 10];
    session.read(&mut first)?;
    ensure!(&first == b"helloahead", "{}", first.escape_ascii());
    // What comes back has to fit the client's pipe, as it is read after all has been sent.
    for size in [1, 20_000, 50_000] {
        let message: Vec<u8> = (0..=240_u8).cycle().take(size).collect();
        session.send(&message)?;
        let mut back = vec![0; message.len()];
        session.read(&mut back)?;
        ensure!(back == message, "{size} bytes came back changed");
    }
    Ok(())
}

/// A TCP connection that begins a handshake and does not go on.
fn half_open(at: SocketAddr, bytes: &[u8]) -> Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&at, TIMEOUT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(bytes)?;
    Ok(stream)
}

/// Reads to the end, which may be a reset.
fn rest(mut stream: &TcpStream) -> Vec<u8> {
    let mut read = Vec::new();
    let _ = stream.read_to_end(&mut read);
    read
}

#[test]
fn hostile_beginnings_are_refused_and_counted() -> Result<()> {
    let pki = Pki::new()?;
    let backend = services(&["web"])?;
    let site = simple(&pki, &backend)?;
    let agent =
        site.start(&["--set", "gateway.tls.handshake-timeout=1s", "--set", "gateway.tls.max-handshakes=8"])?;
    let at = site.at(TLS_PORT);
    let counted = |agent: &LoopbackAgent<'_>, outcome: &str, count: f64| {
        wait_for(outcome, LIMIT, || handshakes(agent, outcome).is_ok_and(|seen| (seen - count).abs() < 0.1))
            .with_context(|| format!("{outcome}: {:?} and not {count}", handshakes(agent, outcome)))
    };
    let cases: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n",
        &[0x16, 3, 1, 0xff, 0xff, 1, 2, 3],
        &[0x16, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff],
        &[0x17, 3, 3, 0, 1, 0],
        &[0; 64],
    ];
    for case in cases {
        let answer = rest(&half_open(at, case)?);
        ensure!(answer.is_empty() || answer[0] == 0x15, "{}: {}", case.escape_ascii(), answer.escape_ascii());
    }
    counted(&agent, "not_tls", 5.0)?;
    drop(half_open(at, &[])?);
    drop(half_open(at, &[0x16, 3, 1])?);
    counted(&agent, "closed", 2.0)?;
    // Slow ones are cut off, and while they are there no more than eight.
    let slow: Vec<TcpStream> = (0..8).map(|_| half_open(at, &[0x16, 3, 1, 0, 200])).collect::<Result<_>>()?;
    let refused = half_open(at, &[]).map(|stream| rest(&stream));
    ensure!(refused.is_err() || refused.is_ok_and(|answer| answer.is_empty()));
    for stream in &slow {
        ensure!(rest(stream).is_empty(), "a slow client was answered");
    }
    counted(&agent, "timeout", 8.0)?;
    ensure!(handshakes(&agent, "handshakes")? > 0.9, "none was one too many");
    ensure!(curl(&pki.root(), at, "a.test", "/", &[])?.who() == "web");
    Ok(())
}

#[test]
fn a_listener_that_turns_to_tls_answers_old_connections_no_more() -> Result<()> {
    let pki = Pki::new()?;
    let plain = format!(
        "  - {{name: tls, port: {TLS_PORT}, protocol: HTTP, allowedRoutes: {{namespaces: {{from: All}}}}}}\n"
    );
    let site = Site::new(&[
        ("gateway.yaml", &gateway(&plain)),
        ("secret.yaml", &secret("a", &pki.issue("a", &["a.test"])?)),
        ("services.yaml", &services(&["web"])?),
        ("routes.yaml", &route("r", "", &to("web"))),
    ])?;
    let agent = site.start(&[])?;
    let at = site.at(TLS_PORT);
    let mut kept = lab::http::Connection::open(at, TIMEOUT)?;
    ensure!(edge::send_on(&mut kept, "a.test", "/", &[])?.who() == "web");
    agent.apply("gateway.yaml", &gateway(&https("tls", "", &["a"], "")))?;
    ensure!(edge::send_on(&mut kept, "a.test", "/", &[])?.who() == "404");
    ensure!(curl(&pki.root(), at, "a.test", "/", &[])?.who() == "web");
    Ok(())
}
