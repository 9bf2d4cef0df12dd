//! HTTP/2 peers that send what no library would, frame by frame: each row is answered, reset or cut exactly as written,
//! nothing of it reaches an upstream unless the row says so, and everybody else is served.

mod edge;
mod garbage;
mod streams;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edge::{OPEN, PORT, gateway, route, send};
use lab::backend::{echo, listen, raw};
use lab::frames::{END_STREAM, HEADERS, RawHttp2, SETTINGS, Said, frame, headers, reset, settings};
use lab::loopback::{LoopbackAgent, Site, service};
use lab::promtext::Exposition;
use lab::wait::wait_until;
use lab::witness::Witness;
use streams::{Answering, GET, Gets, REFUSED_STREAM, Row};

/// How long one exchange may take.
const LIMIT: Duration = Duration::from_secs(4);
/// The stream of the request that shows that a connection goes on.
const PROBE_STREAM: u32 = 1001;
/// What the agent may hold while it is flooded, in KiB.
const MEMORY_CAP_KIB: u64 = 128 * 1024;

fn site(upstream: &str) -> Result<Site> {
    Site::new(&[
        ("gateway.yaml", &gateway(OPEN)),
        ("services.yaml", upstream),
        ("routes.yaml", &route("r", "  hostnames: [web]\n", "  - backendRefs: [{name: web, port: 80}]\n")),
    ])
}

/// What was counted since, by reason.
fn counted(agent: &LoopbackAgent<'_>, before: &Exposition) -> Result<BTreeMap<String, i64>> {
    const NAME: &str = "sluice_protocol_errors_total";
    let after = agent.scrape()?;
    let of =
        |metrics: &Exposition, reason: &str| metrics.sum(NAME, &[("side", "downstream"), ("reason", reason)]);
    let reasons: BTreeSet<&String> =
        after.with(NAME, &[]).filter_map(|sample| sample.labels.get("reason")).collect();
    #[expect(clippy::cast_possible_truncation, reason = "a count")]
    let grown = |reason: &str| (of(&after, reason) - of(before, reason)).round() as i64;
    Ok(reasons
        .into_iter()
        .map(|reason| (reason.clone(), grown(reason)))
        .filter(|(_, count)| *count != 0)
        .collect())
}

/// Checks what is said of a row, and whether the connection goes on.
fn check(row: &Row, mut peer: RawHttp2, web: &Witness) -> Result<()> {
    let stream = row.stream;
    let said = peer.hear(stream)?;
    ensure!(said == row.says, "{said:?} and not {:?}", row.says);
    match said {
        Said::GoAway(_) | Said::Closed => peer.end().context("the connection goes on")?,
        Said::Reset(_) => probe(&mut peer)?,
        Said::Status(status) => {
            let body = peer.body(stream)?;
            let text = String::from_utf8_lossy(&body);
            if let Some(reason) = row.reason {
                ensure!(text.ends_with(&format!(": {reason}\n")), "{status} for {text:?}");
            }
            if stream < PROBE_STREAM {
                probe(&mut peer)?;
            }
        }
    }
    let reached: Vec<String> = web.take().into_iter().filter(|seen| seen != "GET /probe []").collect();
    ensure!(reached == row.reaches, "{reached:?} reached the upstream and not {:?}", row.reaches);
    Ok(())
}

fn probe(peer: &mut RawHttp2) -> Result<()> {
    let fields = [GET[0], GET[1], GET[2], (":path", "/probe")];
    peer.send(&headers(PROBE_STREAM, END_STREAM, &fields)).context("the connection is gone")?;
    let said = peer.hear(PROBE_STREAM)?;
    ensure!(said == Said::Status(200), "the next request: {said:?}");
    Ok(())
}

/// Runs rows, each on a connection that `open` gives, and checks what was counted of all of them.
fn run(rows: &[Row], open: impl Fn(SocketAddr) -> Result<RawHttp2>) -> Result<()> {
    let (web, address) = Witness::serve("web", listen()?, "")?;
    let site = site(&service("default", "web", 80, &[address]))?;
    let agent = site.start(&[])?;
    let before = agent.scrape()?;
    let mut wrong = Vec::new();
    for row in rows {
        let mut peer = open(site.at(PORT))?;
        // It may be refused before it is all sent.
        let _ = peer.send(&row.bytes);
        if let Err(error) = check(row, peer, &web) {
            wrong.push(format!("{}: {error:#}", row.what));
            web.take();
        }
    }
    let mut expected = BTreeMap::new();
    for reason in rows.iter().filter_map(|row| row.reason) {
        *expected.entry(reason.to_owned()).or_default() += 1;
    }
    // A connection is closed just before it is counted.
    let mut seen = BTreeMap::new();
    let _ = wait_until("the counts", LIMIT, || {
        seen = counted(&agent, &before).ok()?;
        (seen == expected).then_some(())
    });
    if seen != expected {
        wrong.push(format!("counted {seen:?} and not {expected:?}"));
    }
    ensure!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    Ok(())
}

fn opened(to: SocketAddr) -> Result<RawHttp2> {
    Ok(RawHttp2::open(to, LIMIT)?)
}

#[test]
fn heads() -> Result<()> {
    run(&streams::heads(), opened)
}

#[test]
fn frames_out_of_place() -> Result<()> {
    run(&streams::connections(), opened)
}

#[test]
fn openings() -> Result<()> {
    run(&streams::openings(), |to| {
        Ok(RawHttp2::over(std::net::TcpStream::connect_timeout(&to, LIMIT)?, LIMIT)?)
    })
}

/// Floods, each beside a client that is served all the while.
#[test]
fn floods_end_their_connection_and_disturb_nobody() -> Result<()> {
    let site = site(&service("default", "web", 80, &[echo("web")?]))?;
    let agent = site.start(&[])?;
    let to = site.at(PORT);
    let mut wrong = Vec::new();
    for row in streams::floods() {
        let said = flood(to, &row.bytes)?;
        if said != row.says {
            wrong.push(format!("{}: {said:?} and not {:?}", row.what, row.says));
        }
        served(to).with_context(|| format!("beside {}", row.what))?;
    }
    for (what, bytes) in streams::borne() {
        flood(to, &bytes)?;
        served(to).with_context(|| format!("beside {what}"))?;
    }
    let held = agent.resident_kib()?;
    ensure!(held < MEMORY_CAP_KIB, "{held} KiB are held");
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Sends from a thread of its own, as the agent stops reading somewhere on the way, and tells how the connection ended.
fn flood(to: SocketAddr, bytes: &[u8]) -> Result<Said> {
    let mut peer = RawHttp2::open(to, LIMIT)?;
    let mut writer = peer.try_clone()?;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            use std::io::Write;
            let _ = writer.write_all(bytes);
            let _ = writer.shutdown(std::net::Shutdown::Write);
        });
        // No row is about this stream: only what ends the connection is heard.
        Ok(peer.hear(u32::MAX)?)
    })
}

fn served(to: SocketAddr) -> Result<()> {
    let seen = send(to, "web", "/", &[])?;
    ensure!(seen.who() == "web", "{seen:?}");
    let mut peer = RawHttp2::open(to, LIMIT)?;
    peer.send(&headers(1, END_STREAM, &GET))?;
    let said = peer.hear(1)?;
    ensure!(said == Said::Status(200), "{said:?}");
    Ok(())
}

/// A server that says what a row says on every connection, once it has been asked.
fn bad_upstream(index: usize) -> Result<SocketAddr> {
    let mut rows = streams::answerings();
    let row = rows.swap_remove(index);
    // The agent may go away at the first wrong frame.
    Ok(raw(listen()?, move |stream| drop(say(stream, &row)))?)
}

fn say(stream: std::net::TcpStream, row: &Answering) -> std::io::Result<()> {
    let mut peer = RawHttp2::over(stream, LIMIT)?;
    peer.read_preface()?;
    peer.send(&settings(&[]))?;
    while let Some(seen) = peer.next_frame()? {
        match seen.kind {
            SETTINGS if seen.flags == 0 => peer.send(&frame(SETTINGS, 1, 0, &[]))?,
            // Asked once more, it refuses once more.
            HEADERS if seen.stream != 1 => peer.send(&reset(seen.stream, REFUSED_STREAM))?,
            HEADERS => {
                peer.send(&row.bytes)?;
                if row.closes {
                    return Ok(());
                }
            }
            _ => {}
        }
    }
    Ok(())
}

#[test]
fn upstreams_that_break_the_protocol() -> Result<()> {
    let rows = streams::answerings();
    let (mut services, mut routes) = (String::new(), String::new());
    for index in 0..rows.len() {
        // A Service each, so that no row meets a connection that another one left.
        let name = format!("bad{index}");
        services += &service("default", &name, 80, &[bad_upstream(index)?]);
        let rule = format!(
            "  - matches: [{{path: {{type: Exact, value: /{index}}}}}]\n    backendRefs: [{{name: {name}, port: 80}}]\n"
        );
        routes += &route(&name, "", &rule);
    }
    let site = Site::new(&[
        ("gateway.yaml", &gateway(OPEN)),
        ("services.yaml", &services.replace("appProtocol: http}", "appProtocol: kubernetes.io/h2c}")),
        ("routes.yaml", &routes),
    ])?;
    let _agent = site.start(&[])?;
    let mut wrong = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let answer = ask(site.at(PORT), index)?;
        if let Err(error) = check_gets(row.gets, &answer) {
            wrong.push(format!("{}: {error:#}", row.what));
        }
    }
    ensure!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    Ok(())
}

fn ask(to: SocketAddr, index: usize) -> Result<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect_timeout(&to, LIMIT)?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    write!(stream, "GET /{index} HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => {
            answer.extend_from_slice(format!(" and then {error}").as_bytes());
        }
        _ => {}
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn check_gets(gets: Gets, answer: &str) -> Result<()> {
    ensure!(!answer.contains("secret"), "somebody else's bytes in {answer}");
    let mut last = answer;
    while let Some((_, rest)) = last.split_once("\r\n\r\n").filter(|_| last.starts_with("HTTP/1.1 1")) {
        last = rest;
    }
    let fits = match gets {
        Gets::Status(status, reason) => {
            last.starts_with(&format!("HTTP/1.1 {status} ")) && last.ends_with(&format!(": {reason}\n"))
        }
        Gets::Hello => last.starts_with("HTTP/1.1 200 ") && last.contains("hello"),
        Gets::Cut => last.starts_with("HTTP/1.1 200 ") && !last.ends_with("\r\n0\r\n\r\n"),
    };
    ensure!(fits, "not {gets:?} but {answer}");
    Ok(())
}

/// The number that the project's goals name, of exchanges that differ in what is sent.
#[test]
fn there_are_hundreds_of_exchanges() -> Result<()> {
    let http1 = garbage::from_clients().into_iter().chain(garbage::from_strangers());
    let clients: BTreeSet<Vec<u8>> =
        http1.map(|case| case.bytes).chain(garbage::passed().into_iter().map(|row| row.bytes)).collect();
    let answers = garbage::from_upstreams().into_iter().chain(garbage::from_slow_upstreams());
    let poisons = garbage::poisons().into_iter().map(|row| [row.method, row.bytes].concat().into_bytes());
    let upstreams: BTreeSet<Vec<u8>> = answers.map(|case| case.bytes).chain(poisons).collect();
    let rows = [streams::heads(), streams::connections(), streams::openings(), streams::floods()].concat();
    let streams: BTreeSet<Vec<u8>> = rows.into_iter().map(|row| row.bytes).collect();
    let answering: BTreeSet<Vec<u8>> =
        streams::answerings().into_iter().map(|row| [row.bytes, vec![row.closes.into()]].concat()).collect();
    let counts = [clients.len(), upstreams.len(), streams.len(), answering.len()];
    println!("{counts:?} exchanges");
    ensure!(clients.len() >= 200 && counts.iter().sum::<usize>() >= 400, "{counts:?}");
    Ok(())
}
