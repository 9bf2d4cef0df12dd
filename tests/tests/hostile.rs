//! Peers that send garbage: each is answered or closed as the standard asks, counted by its reason, and disturbs
//! nobody else.

mod common;
mod edge;
mod garbage;

use std::io::{BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use common::{LIMIT, Mesh, TIMEOUT};
use edge::{OPEN, PORT, gateway, route, send_on};
use garbage::{Case, Counted, Gets, from_clients, from_strangers, from_upstreams};
use lab::agent::METRICS;
use lab::backend::{echo, echo_reply, http, listen, raw, read_head};
use lab::http::{Connection, get};
use lab::loopback::{Site, service};
use lab::promtext::Exposition;
use lab::{PodSpec, ServiceSpec, Topology, unprivileged};

/// What the well-behaved client sends, and nobody else may ever see.
const SECRET: &str = "secret-token";

/// The reason of a head that does not end in time.
const LATE: &str = "header_timeout";

/// Sends bytes and reads to the end of the connection, which may be a reset.
fn exchange(to: SocketAddr, case: &Case) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    // It may be refused before it is all sent.
    let _ = stream.write_all(&case.bytes);
    if case.closes {
        stream.shutdown(Shutdown::Write)?;
    }
    read_to_end(&mut stream)
}

fn read_to_end(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => Ok(answer),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(answer),
        Err(error) => Err(error).context("the connection was not closed"),
    }
}

/// Checks what the client got.
fn check_answer(gets: Gets, answer: &[u8]) -> Result<()> {
    let text = String::from_utf8_lossy(answer);
    ensure!(!text.contains("secret"), "somebody else's bytes in {text}");
    let count = text.matches("HTTP/1.1 ").count();
    match gets {
        Gets::Status(status) => {
            ensure!(text.starts_with(&format!("HTTP/1.1 {status} ")), "not {status}: {text}");
            ensure!(count == 1 && text.contains("connection: close\r\n"), "{text}");
            let (head, body) = text.split_once("\r\n\r\n").context("no end of the head")?;
            ensure!(head.contains(&format!("content-length: {}", body.len())), "{text}");
        }
        Gets::Close => ensure!(answer.is_empty(), "an answer: {text}"),
        Gets::Cut => {
            ensure!(text.starts_with("HTTP/1.1 200 ") && count == 1, "{text}");
            ensure!(!text.contains("\r\n0\r\n\r\n"), "a cut body looks whole: {text}");
        }
    }
    Ok(())
}

/// How often something has been counted.
fn counted(metrics: &Exposition, counted: Counted, side: &str) -> f64 {
    match counted {
        Counted::Protocol(reason) => {
            metrics.sum("sluice_protocol_errors_total", &[("side", side), ("reason", reason)])
        }
        Counted::Flag(flag) => metrics.sum("istio_requests_total", &[("response_flags", flag)]),
    }
}

/// Runs every case and checks that it is counted once.
fn check_all(
    cases: &[Case],
    side: &str,
    scrape: impl Fn() -> Result<Exposition>,
    run: impl Fn(usize, &Case) -> Result<Vec<u8>>,
) -> Result<()> {
    let mut before = scrape()?;
    for (index, case) in cases.iter().enumerate() {
        let shown = case.bytes[..case.bytes.len().min(120)].escape_ascii().to_string();
        let what = || format!("{side} {index}: {shown} {:?}", case.counted);
        let answer = run(index, case).with_context(what)?;
        check_answer(case.gets, &answer).with_context(what)?;
        let after = scrape()?;
        let grown = counted(&after, case.counted, side) - counted(&before, case.counted, side);
        ensure!((grown - 1.0).abs() < 0.5, "{}: counted {grown} times", what());
        // The head that never ends is refused at a time of its own.
        let late = |metrics: &Exposition| counted(metrics, Counted::Protocol(LATE), "downstream");
        let all = |metrics: &Exposition| metrics.sum("sluice_protocol_errors_total", &[]) - late(metrics);
        let expected = f64::from(u8::from(matches!(case.counted, Counted::Protocol(_))));
        let other = all(&after) - all(&before) - expected;
        ensure!(other.abs() < 0.5, "{}: something else was counted too", what());
        before = after;
    }
    Ok(())
}

/// A client on a kept connection that sees only answers to its own requests, until it is told to stop.
fn behave(to: SocketAddr, stop: &AtomicBool) -> Result<u32> {
    let mut connection = Connection::open(to, TIMEOUT)?;
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        if !connection.is_reusable() {
            connection = Connection::open(to, TIMEOUT)?;
        }
        let (path, token) = (format!("/good/{count}"), format!("{SECRET}-{count}"));
        let seen = send_on(&mut connection, "web", &path, &[("x-token", &token)])?;
        ensure!(seen.response.status == 200, "request {count}: {seen:?}");
        ensure!(
            seen.request["target"] == path && seen.sent("x-token") == [token],
            "request {count}: {seen:?}"
        );
        count += 1;
    }
    Ok(count)
}

/// Runs hostile exchanges beside a well-behaved client, which `good` runs until it is told to stop.
fn beside(
    good: impl FnOnce(&AtomicBool) -> Result<u32> + Send,
    hostile: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let good = scope.spawn(|| good(&stop));
        let outcome = hostile();
        stop.store(true, Ordering::Relaxed);
        let count = good.join().map_err(|_| anyhow::anyhow!("the good client panicked"))?;
        outcome?;
        let count = count.context("the good client was disturbed")?;
        ensure!(count > 50, "the good client sent only {count} requests");
        Ok(())
    })
}

/// A server that answers `/bad/INDEX` with the bytes of that case, and closes.
fn bad_upstream(listener: TcpListener) -> Result<SocketAddr> {
    let cases = from_upstreams();
    Ok(raw(listener, move |mut stream| {
        let head = stream.try_clone().and_then(|stream| read_head(&mut BufReader::new(stream)));
        let target = head.unwrap_or_default();
        let index =
            target.split(' ').nth(1).and_then(|path| path.strip_prefix("/bad/")?.parse::<usize>().ok());
        if let Some(case) = index.and_then(|index| cases.get(index)) {
            // The agent may have gone away at the first wrong byte.
            let _ = stream.write_all(&case.bytes);
        }
    })?)
}

fn ask_bad(index: usize) -> Case {
    let bytes = format!("GET /bad/{index} HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").into_bytes();
    Case { bytes, closes: false, gets: Gets::Close, counted: Counted::Protocol("") }
}

#[test]
fn garbage_at_a_gateway() -> Result<()> {
    let rules = "  - matches: [{path: {value: /bad}}]\n    backendRefs: [{name: bad, port: 80}]\n  \
                 - matches: [{path: {value: /good}}, {path: {type: Exact, value: /}}]\n    backendRefs: [{name: web, port: 80}]\n";
    let services = service("default", "web", 80, &[echo("web")?])
        + &service("default", "bad", 80, &[bad_upstream(listen()?)?]);
    let site = Site::new(&[
        ("gateway.yaml", &gateway(OPEN)),
        ("services.yaml", &services),
        ("routes.yaml", &route("r", "  hostnames: [web]\n", rules)),
    ])?;
    let agent = site.start(&[])?;
    let to = site.at(PORT);
    // A head that never ends, beside all the others.
    let mut slow = TcpStream::connect(to)?;
    slow.set_read_timeout(Some(LIMIT))?;
    slow.write_all(b"GET / HTTP/1.1\r\nHost: we")?;
    beside(
        |stop| behave(to, stop),
        || {
            let scrape = || agent.scrape();
            let clients: Vec<Case> = from_clients().into_iter().chain(from_strangers()).collect();
            ensure!(clients.len() >= 40, "only {} exchanges", clients.len());
            check_all(&clients, "downstream", scrape, |_, case| exchange(to, case))?;
            check_all(&from_upstreams(), "upstream", scrape, |index, _| exchange(to, &ask_bad(index)))?;
            check_answer(Gets::Status(408), &read_to_end(&mut slow)?).context("a head that never ends")?;
            let late = counted(&scrape()?, Counted::Protocol(LATE), "downstream");
            ensure!((late - 1.0).abs() < 0.5, "the late head was counted {late} times");
            Ok(())
        },
    )?;
    let refused = site.access()?.iter().filter(|line| line["response_flags"] == "DPE").count();
    ensure!(refused >= 40, "only {refused} refusals in the access log");
    Ok(())
}

#[test]
fn garbage_behind_good_requests_on_one_connection() -> Result<()> {
    let services = service("default", "web", 80, &[echo("web")?]);
    let rules = "  - backendRefs: [{name: web, port: 80}]\n";
    let site = Site::new(&[
        ("gateway.yaml", &gateway(OPEN)),
        ("services.yaml", &services),
        ("routes.yaml", &route("r", "", rules)),
    ])?;
    let _agent = site.start(&[])?;
    for case in from_clients().iter().filter(|case| matches!(case.gets, Gets::Status(_))) {
        let good = |n: u32| format!("GET /good/{n} HTTP/1.1\r\nHost: web\r\n\r\n");
        let bytes = [good(1).as_bytes(), good(2).as_bytes(), &case.bytes].concat();
        let answer = exchange(site.at(PORT), &Case { bytes, closes: case.closes, ..*case })?;
        let text = String::from_utf8_lossy(&answer).into_owned();
        let statuses: Vec<&str> =
            text.match_indices("HTTP/1.1 ").map(|(at, _)| &text[at + 9..at + 12]).collect();
        let Gets::Status(status) = case.gets else { continue };
        ensure!(statuses == ["200", "200", &status.to_string()], "{:?}: {statuses:?} {text}", case.counted);
        ensure!(text.contains("/good/1") && text.contains("/good/2") && !text.contains("smuggled"), "{text}");
    }
    Ok(())
}

#[test]
fn garbage_from_and_to_captured_pods() -> Result<()> {
    if unprivileged("garbage_from_and_to_captured_pods") {
        return Ok(());
    }
    let topology = Topology::with_nodes(1)
        .pod(PodSpec::new("client", "node1"))
        .pod(PodSpec::new("good", "node1").label("app", "web"))
        .pod(PodSpec::new("evil", "node1").label("app", "bad"))
        .service(ServiceSpec::new("web").port("http", 80, 8080))
        .service(ServiceSpec::new("bad").port("http", 80, 8080));
    let mesh = Mesh::up("hostile", topology, &[])?;
    let bind = |pod: &str| -> Result<TcpListener> {
        let address = SocketAddr::new(mesh.pod_ip(pod, 0)?, 8080);
        Ok(mesh.lab.pod(pod)?.in_netns(|| TcpListener::bind(address))??)
    };
    http(bind("good")?, |request| echo_reply("good", request))?;
    bad_upstream(bind("evil")?)?;
    let (web, bad) = (mesh.service("web", 0, 80)?, mesh.service("bad", 0, 80)?);
    let (client, node) = (mesh.lab.pod("client")?, mesh.lab.node("node1")?);
    let scrape =
        || Exposition::parse(&node.in_netns(|| get(METRICS, "localhost", "/metrics", TIMEOUT))??.text());
    beside(
        |stop| client.in_netns(|| behave(web, stop))?,
        || {
            check_all(&from_clients(), "downstream", scrape, |_, case| {
                client.in_netns(|| exchange(web, case))?
            })?;
            check_all(&from_upstreams(), "upstream", scrape, |index, _| {
                client.in_netns(|| exchange(bad, &ask_bad(index)))?
            })
        },
    )
}
