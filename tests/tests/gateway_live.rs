//! Gateways whose documents change while they serve, and their end.

mod common;
mod edge;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use common::{LIMIT, TIMEOUT};
use edge::{OPEN, PORT, check, gateway, route, send_on, services};
use lab::backend::{echo_reply, http, listen};
use lab::http::Connection;
use lab::load::{Load, Plan};
use lab::loopback::{LoopbackAgent, Site, service};
use lab::wait_for;

fn to(service: &str) -> String {
    format!("  - backendRefs: [{{name: {service}, port: 80}}]\n")
}

fn listener(name: &str, port: u16, hostname: &str) -> String {
    let hostname = if hostname.is_empty() { String::new() } else { format!(", hostname: \"{hostname}\"") };
    format!(
        "  - {{name: {name}, port: {port}, protocol: HTTP{hostname}, allowedRoutes: {{namespaces: {{from: All}}}}}}\n"
    )
}

/// The open Gateway listeners by what `status` says.
fn listeners(agent: &LoopbackAgent<'_>) -> Result<Vec<(String, String)>> {
    let status = agent.status()?;
    let list = status["listeners"].as_array().context("status has no listeners")?;
    let pair = |one: &serde_json::Value| {
        (
            one["name"].as_str().unwrap_or_default().to_owned(),
            one["address"].as_str().unwrap_or_default().to_owned(),
        )
    };
    Ok(list.iter().map(pair).filter(|(name, _)| name.contains('/')).collect())
}

#[test]
fn listeners_come_change_and_go_with_the_document() -> Result<()> {
    let site = Site::new(&[
        ("gateway.yaml", &gateway(&listener("one", 8080, ""))),
        ("services.yaml", &services(&["web"])?),
        ("routes.yaml", &route("r", "", &to("web"))),
    ])?;
    let agent = site.start(&[])?;
    let open = |port: u16| TcpStream::connect_timeout(&site.at(port), TIMEOUT).is_ok();
    let wanted = |expected: &[(&str, u16)]| -> Result<()> {
        let expected: Vec<_> = expected
            .iter()
            .map(|(name, port)| (format!("infra/edge/{name}"), site.at(*port).to_string()))
            .collect();
        let found = listeners(&agent)?;
        ensure!(found == expected, "{found:?} and not {expected:?}");
        Ok(())
    };
    wanted(&[("one", 8080)])?;
    ensure!(open(8080) && !open(8081));
    // Added.
    agent.apply("gateway.yaml", &gateway(&(listener("one", 8080, "") + &listener("two", 8081, ""))))?;
    wanted(&[("one", 8080), ("two", 8081)])?;
    check(site.at(8081), "x.test", "/", &[], "web")?;
    // Changed: another port, and a hostname.
    agent.apply("gateway.yaml", &gateway(&(listener("one", 8080, "a.test") + &listener("two", 8082, ""))))?;
    wanted(&[("one", 8080), ("two", 8082)])?;
    check(site.at(8080), "a.test", "/", &[], "web")?;
    check(site.at(8080), "x.test", "/", &[], "404")?;
    check(site.at(8082), "x.test", "/", &[], "web")?;
    wait_for("port 8081 to close", LIMIT, || !open(8081))?;
    // Removed, and a connection that is kept has no use any more.
    let mut kept = Connection::open(site.at(8080), TIMEOUT)?;
    ensure!(send_on(&mut kept, "a.test", "/", &[])?.who() == "web" && kept.is_reusable());
    agent.apply("gateway.yaml", &gateway(&listener("two", 8082, "")))?;
    wanted(&[("two", 8082)])?;
    wait_for("port 8080 to close", LIMIT, || !open(8080))?;
    let last = send_on(&mut kept, "a.test", "/", &[])?;
    ensure!(last.response.status == 404 && !kept.is_reusable(), "{last:?}");
    check(site.at(8082), "x.test", "/", &[], "web")?;
    // A broken edit changes nothing.
    site.write("gateway.yaml", &gateway("  - {name: two, port: 8083, protocol: HTP}\n"))?;
    wait_for("the report", LIMIT, || agent.status().is_ok_and(|s| s["config"].to_string().contains("HTP")))?;
    wanted(&[("two", 8082)])?;
    check(site.at(8082), "x.test", "/", &[], "web")?;
    // And the whole Gateway.
    std::fs::remove_file(site.config().join("gateway.yaml"))?;
    wait_for("port 8082 to close", LIMIT, || !open(8082))?;
    wanted(&[])
}

/// What another agent has on a port: a listener that lets processes of the same user share it.
fn listener_that_shares(address: SocketAddr) -> Result<OwnedFd> {
    use nix::sys::socket::{self, sockopt};
    let (family, kind) = (socket::AddressFamily::Inet, socket::SockType::Stream);
    let listener = socket::socket(family, kind, socket::SockFlag::empty(), None)?;
    socket::setsockopt(&listener, sockopt::ReuseAddr, &true)?;
    socket::setsockopt(&listener, sockopt::ReusePort, &true)?;
    socket::bind(listener.as_raw_fd(), &socket::SockaddrStorage::from(address))?;
    socket::listen(&listener, socket::Backlog::new(1)?)?;
    Ok(listener)
}

#[test]
fn a_listener_that_cannot_open_is_reported_and_the_others_serve() -> Result<()> {
    let site = Site::new(&[
        ("gateway.yaml", &gateway(OPEN)),
        ("services.yaml", &services(&["web"])?),
        ("routes.yaml", &route("r", "", &to("web"))),
    ])?;
    let agent = site.start(&[])?;
    let taken = listener_that_shares(site.at(8081))?;
    agent.apply("gateway.yaml", &gateway(&format!("{OPEN}{}", listener("two", 8081, ""))))?;
    let status = agent.status()?;
    let list = status["listeners"].as_array().context("listeners")?;
    let two =
        list.iter().find(|one| one["name"] == "infra/edge/two").context("the listener is not listed")?;
    ensure!(
        two["error"].as_str().is_some_and(|error| error.contains("another process has the port")),
        "{two}"
    );
    let table = agent.verb(&["status"])?;
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    ensure!(table.contains("infra/edge/two NOT OPEN"), "{table}");
    check(site.at(PORT), "x.test", "/", &[], "web")?;
    // It opens as soon as it can.
    drop(taken);
    let listening = |status: serde_json::Value| {
        status["listeners"].as_array().is_some_and(|all| all.iter().all(|one| one["error"].is_null()))
    };
    wait_for("port 8081 to open", LIMIT, || agent.status().is_ok_and(listening))?;
    check(site.at(8081), "x.test", "/", &[], "web")
}

#[test]
fn a_kept_connection_lives_on_when_its_port_goes_to_another_listener() -> Result<()> {
    let shared = listener("first", 8080, "a.test") + &listener("second", 8080, "");
    let site = Site::new(&[
        ("gateway.yaml", &gateway(&shared)),
        ("services.yaml", &services(&["web", "next"])?),
        ("routes.yaml", &route("r", "", &to("web"))),
    ])?;
    let agent = site.start(&[])?;
    let mut kept = Connection::open(site.at(PORT), TIMEOUT)?;
    let load = Load::start_here(&plan(site.at(PORT)))?;
    for (listeners, service) in [
        (listener("second", 8080, ""), "next"),
        (listener("third", 8080, "") + &listener("second", 8080, "c.test"), "web"),
        (shared, "next"),
    ] {
        ensure!(send_on(&mut kept, "b.test", "/", &[])?.response.status == 200);
        agent.apply("gateway.yaml", &gateway(&listeners))?;
        agent.apply("routes.yaml", &route("r", "", &to(service)))?;
        let seen = send_on(&mut kept, "b.test", "/", &[])?;
        ensure!(seen.who() == service, "{seen:?}");
        load.wait_requests(50, LIMIT)?;
    }
    let report = load.stop()?;
    ensure!(report.failures().next().is_none(), "failed: {:?}", report.failure_kinds());
    Ok(())
}

fn plan(address: SocketAddr) -> Plan {
    Plan { address, host: "b.test".to_owned(), paths: vec!["/a".to_owned(), "/b".to_owned()], rate: 200 }
}

#[test]
fn a_route_flips_under_load_without_a_failure() -> Result<()> {
    let site = Site::new(&[
        ("gateway.yaml", &gateway(OPEN)),
        ("services.yaml", &services(&["blue", "green"])?),
        ("routes.yaml", &route("r", "", &to("blue"))),
    ])?;
    let agent = site.start(&[])?;
    let load = Load::start_here(&plan(site.at(PORT)))?;
    load.wait_requests(50, LIMIT)?;
    for service in ["green", "blue", "green", "blue", "green"] {
        agent.apply("routes.yaml", &route("r", "", &to(service)))?;
        let since = Instant::now();
        load.wait_requests(60, LIMIT)?;
        let pods = load.so_far().pods("/a", since);
        ensure!(pods.keys().collect::<Vec<_>>() == [service], "{pods:?} and not {service}");
    }
    let report = load.stop()?;
    ensure!(report.failures().next().is_none(), "failed: {:?}", report.failure_kinds());
    ensure!(report.samples.len() >= 350, "only {} requests", report.samples.len());
    Ok(())
}

/// A gate that a backend's answers wait for.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn open(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.opened.notify_all();
    }

    fn pass(&self) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.opened.wait_while(open, |open| !*open));
    }
}

/// A site with a backend that holds every answer until its gate opens.
fn held(gate: &Arc<Gate>, asked: std::sync::mpsc::Sender<()>) -> Result<Site> {
    let gate = Arc::clone(gate);
    let asked = Mutex::new(asked);
    let slow = http(listen()?, move |request| {
        // The test may have ended.
        let _ = asked.lock().unwrap_or_else(PoisonError::into_inner).send(());
        gate.pass();
        echo_reply("slow", request)
    })?;
    Site::new(&[
        ("gateway.yaml", &gateway(OPEN)),
        ("services.yaml", &service("default", "slow", 80, &[slow])),
        ("routes.yaml", &route("r", "", &to("slow"))),
    ])
}

#[test]
fn sigterm_lets_the_request_in_flight_end() -> Result<()> {
    let gate = Arc::new(Gate::default());
    let (asked, was_asked) = std::sync::mpsc::channel();
    let site = held(&gate, asked)?;
    let agent = site.start(&[])?;
    let address = site.at(PORT);
    let slow = std::thread::spawn(move || {
        let mut connection = Connection::open(address, LIMIT)?;
        let response = connection.get("x.test", "/slow", &[]);
        response.map(|response| (response, connection.is_reusable()))
    });
    was_asked.recv_timeout(LIMIT)?;
    agent.signal()?;
    let state =
        |path: &str| agent.ask(agent.health, path).map(|response| response.status).unwrap_or_default();
    wait_for("readiness to end", LIMIT, || state("/readyz") == 503)?;
    ensure!(state("/healthz") == 200, "a draining agent is alive");
    let refused = || TcpStream::connect_timeout(&address, TIMEOUT).is_err();
    wait_for("new connections to be refused", LIMIT, refused)?;
    let info = agent.ask(agent.admin, "/server_info")?.text();
    ensure!(info.contains("DRAINING"), "{info}");
    ensure!(!slow.is_finished(), "the slow request did not wait for its answer");
    gate.open();
    let (response, reusable) = slow.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
    ensure!(response.status == 200 && !reusable, "{response:?}");
    let status = agent.wait_end()?;
    ensure!(status.code() == Some(0), "it ended with {status}");
    let lines = site.access()?;
    ensure!(lines.iter().any(|line| line["path"] == "/slow" && line["response_code"] == 200), "{lines:?}");
    Ok(())
}

#[test]
fn load_balancers_have_time_to_see_that_readiness_ended() -> Result<()> {
    let gate = Arc::new(Gate::default());
    gate.open();
    let (asked, _was_asked) = std::sync::mpsc::channel();
    let site = held(&gate, asked)?;
    let agent = site.start(&["--drain-delay", "3"])?;
    agent.signal()?;
    let state =
        |path: &str| agent.ask(agent.health, path).map(|response| response.status).unwrap_or_default();
    wait_for("readiness to end", LIMIT, || state("/readyz") == 503)?;
    let response = Connection::open(site.at(PORT), LIMIT)?.get("x.test", "/", &[])?;
    ensure!(response.status == 200, "{response:?}");
    ensure!(agent.wait_end()?.code() == Some(0));
    Ok(())
}

#[test]
fn the_drains_deadline_cuts_what_does_not_end() -> Result<()> {
    let gate = Arc::new(Gate::default());
    let (asked, was_asked) = std::sync::mpsc::channel();
    let site = held(&gate, asked)?;
    let agent = site.start(&["--drain-timeout", "1"])?;
    let mut stuck = TcpStream::connect(site.at(PORT))?;
    stuck.set_read_timeout(Some(LIMIT))?;
    stuck.write_all(b"GET / HTTP/1.1\r\nHost: x.test\r\n\r\n")?;
    was_asked.recv_timeout(LIMIT)?;
    let begin = Instant::now();
    agent.signal()?;
    ensure!(agent.wait_end()?.code() == Some(0));
    let took = begin.elapsed();
    ensure!((900..5000).contains(&took.as_millis()), "the drain took {took:?}");
    let mut rest = Vec::new();
    // A reset says the same as an end.
    let _ = stuck.read_to_end(&mut rest);
    ensure!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
    ensure!(site.log().contains("the drain's time is over"), "{}", site.log());
    Ok(())
}
