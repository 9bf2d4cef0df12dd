//! Peers that send garbage: each is answered or closed as the standard asks, counted by its reason, and disturbs
//! nobody else.

mod common;
mod edge;
mod garbage;

use std::collections::BTreeMap;
use std::io::{BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use common::{LIMIT, Mesh, TIMEOUT};
use edge::{OPEN, PORT, gateway, route, send_on};
use garbage::{
    Case, Counted, Gets, PROBE, from_clients, from_slow_upstreams, from_strangers, from_upstreams, passed,
    poisons,
};
use lab::agent::METRICS;
use lab::backend::{echo, listen, raw, read_head};
use lab::http::{Connection, get};
use lab::loopback::{Site, service};
use lab::promtext::Exposition;
use lab::witness::Witness;
use lab::{PodSpec, ServiceSpec, Topology, unprivileged};

/// What the well-behaved client sends, and nobody else may ever see.
const SECRET: &str = "secret-token";
/// Where it sends that.
const TOKEN: &str = "x-token";

/// Where what a peer did wrong is counted.
const ERRORS: &str = "sluice_protocol_errors_total";

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
fn check_answer(case: &Case, answer: &[u8]) -> Result<()> {
    let text = String::from_utf8_lossy(answer);
    ensure!(!text.contains("secret"), "somebody else's bytes in {text}");
    let text = past_interim(&text);
    let count = text.matches("HTTP/1.1 ").count();
    match case.gets {
        Gets::Status(status) => {
            if let Counted::Protocol(reason) = case.counted {
                ensure!(text.ends_with(&format!(": {reason}\n")), "not {reason}: {text}");
            }
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

/// What follows the interim answers.
fn past_interim(mut text: &str) -> &str {
    while let Some((_, rest)) = text.split_once("\r\n\r\n").filter(|_| text.starts_with("HTTP/1.1 1")) {
        text = rest;
    }
    text
}

/// What is counted of both kinds.
const FLAGS: &str = "istio_requests_total";

/// How often each reason and each flag of the cases has been counted, by what it is called.
fn counts(metrics: &Exposition, side: &str, cases: &[Case]) -> BTreeMap<&'static str, f64> {
    let count = |case: &Case| match case.counted {
        Counted::Protocol(reason) => (reason, metrics.sum(ERRORS, &[("side", side), ("reason", reason)])),
        Counted::Flag(flag) => (flag, metrics.sum(FLAGS, &[("response_flags", flag)])),
    };
    cases.iter().map(count).collect()
}

/// All errors but the head that never ends, which is refused at a time of its own.
fn all_errors(metrics: &Exposition) -> f64 {
    metrics.sum(ERRORS, &[]) - metrics.sum(ERRORS, &[("side", "downstream"), ("reason", LATE)])
}

/// Runs every case, and checks that `web` has seen no whole request of it and that each was counted once.
fn check_all(
    cases: &[Case],
    side: &str,
    web: &Witness,
    scrape: impl Fn() -> Result<Exposition>,
    run: impl Fn(usize, &Case) -> Result<Vec<u8>>,
) -> Result<()> {
    let before = scrape()?;
    let mut wrong = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        if let Err(error) = run(index, case).and_then(|answer| check_answer(case, &answer)) {
            wrong.push(format!("{side} {index}: {} {:?}: {error:#}", shown(&case.bytes), case.counted));
        }
        let reached = web.take();
        if !reached.is_empty() {
            wrong.push(format!("{side} {index}: {} reached the upstream: {reached:?}", shown(&case.bytes)));
        }
    }
    ensure!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    let after = scrape()?;
    let mut expected = counts(&before, side, cases);
    for case in cases {
        let (Counted::Protocol(name) | Counted::Flag(name)) = case.counted;
        expected.entry(name).and_modify(|count| *count += 1.0);
    }
    let counted = counts(&after, side, cases);
    ensure!(counted == expected, "counted {counted:?} and not {expected:?}");
    let errors = cases.iter().filter(|case| matches!(case.counted, Counted::Protocol(_))).count();
    let grown = all_errors(&after) - all_errors(&before);
    ensure!(grown.to_string() == errors.to_string(), "{grown} errors were counted and not {errors}");
    Ok(())
}

fn shown(bytes: &[u8]) -> String {
    bytes[..bytes.len().min(120)].escape_ascii().to_string()
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
        let seen = send_on(&mut connection, "web", &path, &[(TOKEN, &token)])?;
        ensure!(seen.response.status == 200, "request {count}: {seen:?}");
        ensure!(seen.request["target"] == path && seen.sent(TOKEN) == [token], "request {count}: {seen:?}");
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

/// A server that answers `/../INDEX` with the bytes of that case, and closes, or waits where time shall run out.
fn bad_upstream(listener: TcpListener, cases: Vec<Case>) -> Result<SocketAddr> {
    Ok(raw(listener, move |mut stream| {
        let head = stream.try_clone().and_then(|stream| read_head(&mut BufReader::new(stream)));
        let target = head.unwrap_or_default();
        let index = target.split(' ').nth(1).and_then(|path| path.rsplit('/').next()?.parse::<usize>().ok());
        if let Some(case) = index.and_then(|index| cases.get(index)) {
            // The agent may have gone away at the first wrong byte.
            let _ = stream.write_all(&case.bytes);
            if matches!(case.counted, Counted::Flag("UT")) {
                let _ = stream.read_to_end(&mut Vec::new());
            }
        }
    })?)
}

fn ask(path: &str, index: usize) -> Case {
    let bytes = format!("GET {path}/{index} HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").into_bytes();
    Case { bytes, closes: false, gets: Gets::Close, counted: Counted::Protocol("") }
}

/// A rule that sends a path to a Service.
fn to(path: &str, name: &str, more: &str) -> String {
    format!(
        "  - matches: [{{path: {{value: {path}}}}}]\n    backendRefs: [{{name: {name}, port: 80}}]\n{more}"
    )
}

/// A gateway before an upstream that writes down what reaches it, one that answers garbage, and one that stops half-way.
fn garbage_site() -> Result<(Site, Witness)> {
    let (witness, web) = Witness::serve("web", listen()?, TOKEN)?;
    let rules = [
        to("/bad", "bad", ""),
        to("/slow", "slow", "    timeouts: {request: 300ms}\n"),
        to("/good", "web", ""),
        to("/probe", "web", ""),
        "  - matches: [{path: {type: Exact, value: /}}]\n    backendRefs: [{name: web, port: 80}]\n"
            .to_owned(),
    ];
    let services = [
        service("default", "web", 80, &[web]),
        service("default", "bad", 80, &[bad_upstream(listen()?, from_upstreams())?]),
        service("default", "slow", 80, &[bad_upstream(listen()?, from_slow_upstreams())?]),
    ];
    let site = Site::new(&[
        ("gateway.yaml", &gateway(OPEN)),
        ("services.yaml", &services.concat()),
        ("routes.yaml", &route("r", "  hostnames: [web]\n", &rules.concat())),
    ])?;
    Ok((site, witness))
}

#[test]
fn garbage_at_a_gateway() -> Result<()> {
    let (site, web) = garbage_site()?;
    let agent = site.start(&[])?;
    let to = site.at(PORT);
    // A head that never ends, beside all the others.
    let mut slow = TcpStream::connect(to)?;
    slow.set_read_timeout(Some(LIMIT))?;
    slow.write_all(b"GET / HTTP/1.1\r\nHost: we")?;
    let clients: Vec<Case> = from_clients().into_iter().chain(from_strangers()).collect();
    beside(
        |stop| behave(to, stop),
        || {
            let scrape = || agent.scrape();
            check_all(&clients, "downstream", &web, scrape, |_, case| exchange(to, case))?;
            let bad = from_upstreams();
            check_all(&bad, "upstream", &web, scrape, |index, _| exchange(to, &ask("/bad", index)))?;
            let slow_ones = from_slow_upstreams();
            check_all(&slow_ones, "upstream", &web, scrape, |index, _| exchange(to, &ask("/slow", index)))?;
            let late = Case { gets: Gets::Status(408), counted: Counted::Protocol(LATE), ..ask("", 0) };
            check_answer(&late, &read_to_end(&mut slow)?).context("a head that never ends")?;
            let late = scrape()?.sum(ERRORS, &[("side", "downstream"), ("reason", LATE)]);
            ensure!((late - 1.0).abs() < 0.5, "the late head was counted {late} times");
            Ok(())
        },
    )?;
    let refused = site.access()?.iter().filter(|line| line["response_flags"] == "DPE").count();
    let expected = clients.iter().filter(|case| matches!(case.counted, Counted::Protocol(_))).count();
    ensure!(refused == expected, "{refused} refusals in the access log, not {expected}");
    Ok(())
}

#[test]
fn requests_that_pass_reach_the_upstream_as_they_were_understood() -> Result<()> {
    let (site, web) = garbage_site()?;
    let agent = site.start(&[])?;
    let mut wrong = Vec::new();
    for row in passed() {
        let bytes = [&row.bytes, PROBE.as_bytes()].concat();
        let case = Case { bytes, closes: false, gets: Gets::Close, counted: Counted::Protocol("") };
        let answer = exchange(site.at(PORT), &case)?;
        let text = String::from_utf8_lossy(&answer).into_owned();
        let answered = text.matches("HTTP/1.1 200 ").count();
        let expected: Vec<&str> = row.reaches.iter().copied().chain(["GET /probe []"]).collect();
        let reached = web.take();
        if reached != expected || answered != expected.len() || text.matches("HTTP/1.1 ").count() != answered
        {
            wrong.push(format!("{}: {reached:?} and not {expected:?}: {text}", shown(&row.bytes)));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    ensure!(agent.scrape()?.sum(ERRORS, &[]) == 0.0, "something was counted as an error");
    Ok(())
}

/// A server that answers each request on a connection with the same bytes, whatever the request was.
fn poisoner() -> Result<SocketAddr> {
    let rows = poisons();
    Ok(raw(listen()?, move |mut stream| {
        let Ok(reader) = stream.try_clone() else { return };
        let mut reader = BufReader::new(reader);
        while let Ok(head) = read_head(&mut reader) {
            let index = head.split([' ', '/']).find_map(|word| word.parse::<usize>().ok());
            let Some(row) = index.and_then(|index| rows.get(index)) else { return };
            if stream.write_all(row.bytes.as_bytes()).is_err() {
                return;
            }
        }
    })?)
}

#[test]
fn bytes_behind_an_answer_never_become_the_next_one() -> Result<()> {
    let services = service("default", "bad", 80, &[poisoner()?]);
    let site = Site::new(&[
        ("gateway.yaml", &gateway(OPEN)),
        ("services.yaml", &services),
        ("routes.yaml", &route("r", "", &to("/", "bad", ""))),
    ])?;
    let _agent = site.start(&[])?;
    for (index, row) in poisons().iter().enumerate() {
        for round in 0..4 {
            let one = format!("{} /{index} HTTP/1.1\r\nHost: web\r\n", row.method);
            let bytes = format!("{one}\r\n{one}Connection: close\r\n\r\n").into_bytes();
            let case = Case { bytes, closes: false, gets: Gets::Close, counted: Counted::Protocol("") };
            let answer = exchange(site.at(PORT), &case)?;
            let text = String::from_utf8_lossy(&answer).into_owned();
            let status = format!("HTTP/1.1 {} ", row.status);
            ensure!(!text.contains("secret"), "{index} {round}: {text}");
            ensure!(text.matches(&status).count() == 2, "{index} {round}: {text}");
            let bodies: Vec<&str> =
                text.split("HTTP/1.1 ").filter_map(|answer| Some(answer.split_once("\r\n\r\n")?.1)).collect();
            let hold = |body: &&&str| body.contains(row.body) && (!row.body.is_empty() || body.is_empty());
            let finals = bodies.iter().filter(hold).count();
            ensure!(finals >= 2, "{index} {round}: {text}");
        }
    }
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
    let (witness, _) = Witness::serve("good", bind("good")?, TOKEN)?;
    bad_upstream(bind("evil")?, from_upstreams())?;
    let (web, bad) = (mesh.service("web", 0, 80)?, mesh.service("bad", 0, 80)?);
    let (client, node) = (mesh.lab.pod("client")?, mesh.lab.node("node1")?);
    let scrape =
        || Exposition::parse(&node.in_netns(|| get(METRICS, "localhost", "/metrics", TIMEOUT))??.text());
    beside(
        |stop| client.in_netns(|| behave(web, stop))?,
        || {
            check_all(&from_clients(), "downstream", &witness, scrape, |_, case| {
                client.in_netns(|| exchange(web, case))?
            })?;
            check_all(&from_upstreams(), "upstream", &witness, scrape, |index, _| {
                client.in_netns(|| exchange(bad, &ask("/bad", index)))?
            })
        },
    )
}
