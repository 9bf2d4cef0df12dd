//! The agent's whole engine between a client and upstreams that are scripts, in one thread: what the kernel would carry
//! goes through socket pairs, and time does not pass.
//!
//! The client sends its bytes and waits until nothing moves, then closes its sending side, then goes. An upstream reads
//! requests with the strict reader and gives each whole one the next scripted answer; an answer without an end is
//! followed by the end of its connection.

use std::cell::RefCell;
use std::future::Future;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use agent::compile::{RoutingTable, TableVersion, compile};
use agent::http::h1::Limits;
use agent::model::{
    AppProtocol, Endpoint, LbPolicy, Model, ObjectName, Service, ServicePort, TlsRules, TrafficPolicy,
};
use agent::net::{ConnectTarget, Connector};
use agent::proxy::http::{HttpSettings, HttpWorker, Share, Upgrades, serve};
use agent::proxy::{Context, Downstream, ProxySettings, Random};
use agent::telemetry::{ConnectionRecord, Origin, Recorder, RequestRecord, ServedRecord};
use arc_swap::ArcSwap;
use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{LocalSet, yield_now};

use crate::pieces::Sizes;
use crate::strict::{self, Tail};

/// The service that the client dials.
pub const SERVICE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)), 80);
/// Where the client is.
const CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 244, 0, 7)), 40000);
/// What an upstream answers once its script is over.
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
/// Turns of the runtime without any bytes after which nothing moves any more. Readiness takes one turn to be told, and
/// no more than two connections are to be woken one by the other.
const QUIET_TURNS: u32 = 8;

/// A run's input.
#[derive(Debug, Clone)]
pub struct Script<'a> {
    /// What the client sends.
    pub client: &'a [u8],
    /// What upstreams answer, in the order of requests.
    pub answers: &'a [&'a [u8]],
    /// The pieces in which both go.
    pub sizes: Sizes,
}

/// What a run came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What the client got.
    pub client: Vec<u8>,
    /// What each upstream connection got.
    pub upstreams: Vec<Vec<u8>>,
    /// The whole requests in the order in which they came to upstreams, with the answers that they got.
    pub served: Vec<Served>,
}

/// A request as an upstream saw it.
#[derive(Debug, Clone)]
pub struct Served {
    /// The request.
    pub request: strict::Message,
    /// What it was answered with.
    pub answer: Vec<u8>,
}

/// Our end of a socket pair, whose other end the agent has.
#[derive(Debug)]
struct Wire {
    io: UnixStream,
    outgoing: Vec<u8>,
    sent: usize,
    /// Bytes at the end of `outgoing` that go with the piece before them: what comes after a whole answer.
    last: usize,
    received: Vec<u8>,
    close_when_sent: bool,
    over: bool,
}

impl Wire {
    fn pair() -> io::Result<(Self, TcpStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        // The engine asks nothing of its sockets that a pair does not have.
        let theirs = TcpStream::from_std(std::net::TcpStream::from(OwnedFd::from(theirs)))?;
        let wire = Self {
            io: ours,
            outgoing: Vec::new(),
            sent: 0,
            last: 0,
            received: Vec::new(),
            close_when_sent: false,
            over: false,
        };
        Ok((wire, theirs))
    }

    /// Sends and takes what can be; whether anything moved.
    fn step(&mut self, sizes: &mut Sizes) -> bool {
        let mut moved = self.receive();
        let left = self.outgoing.len() - self.sent;
        if left > 0 && !self.over {
            let size = sizes.take().min(left);
            let size = if left - size <= self.last { left } else { size };
            match self.io.write(&self.outgoing[self.sent..self.sent + size]) {
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return moved,
                Err(_) => self.over = true,
            }
            moved = true;
        } else if self.close_when_sent && !self.over {
            self.close();
            moved = true;
        }
        moved
    }

    fn receive(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        match self.io.read(&mut buffer) {
            Ok(read) => {
                self.received.extend_from_slice(&buffer[..read]);
                read > 0
            }
            Err(_) => false,
        }
    }

    fn close(&mut self) {
        // It may be closed from the other side.
        let _ = self.io.shutdown(Shutdown::Write);
        self.over = true;
    }
}

/// An upstream's side of one connection.
#[derive(Debug)]
struct Upstream {
    wire: Wire,
    /// Bytes of whole requests.
    served: usize,
}

/// Hands out connections and keeps their other ends.
#[derive(Debug, Default)]
struct Upstreams(RefCell<Vec<Upstream>>);

impl Connector for Upstreams {
    fn connect(&self, _target: ConnectTarget) -> Pin<Box<dyn Future<Output = io::Result<TcpStream>> + '_>> {
        Box::pin(async move {
            let (wire, theirs) = Wire::pair()?;
            self.0.borrow_mut().push(Upstream { wire, served: 0 });
            Ok(theirs)
        })
    }
}

/// Nobody looks at the records of these runs.
#[derive(Debug)]
struct Unrecorded;

impl Recorder for Unrecorded {
    fn request(&self, _record: &RequestRecord<'_>) {}
    fn connection_opened(&self, _record: &ConnectionRecord<'_>) {}
    fn served(&self, _: &ServedRecord) {}
    fn observed(&self, _: &agent::compile::Observed, _: SocketAddr, _: SocketAddr) {}
    fn denied(&self, _: &agent::compile::Denied, _: SocketAddr, _: SocketAddr) {}
    fn turned_away(&self, _: &'static str, _: SocketAddr, _: SocketAddr) {}
    fn connection(&self, _record: &ConnectionRecord<'_>) {}
    fn downstream(&self, _origin: &Origin, _opened: bool) {}
}

/// One run's state.
struct Stage<'a> {
    script: &'a Script<'a>,
    sizes: Sizes,
    client: Wire,
    upstreams: Rc<Upstreams>,
    served: Vec<Served>,
}

thread_local! {
    static RUNTIME: Runtime = {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        // A listener for it keeps SIGPIPE from ending the process, which libFuzzer's `main` leaves as it is.
        runtime.block_on(async { signal(SignalKind::pipe()).map(drop) }).expect("a signal handler");
        runtime
    };
    static TABLE: Arc<RoutingTable> =
        Arc::new(compile(&model(), &RoutingTable::default(), TableVersion::default()));
}

/// Runs the engine with `script`.
pub fn run(script: &Script<'_>) -> Outcome {
    RUNTIME.with(|runtime| LocalSet::new().block_on(runtime, play(script)))
}

/// Runs a future on the runtime of these runs.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    RUNTIME.with(|runtime| runtime.block_on(future))
}

async fn play(script: &Script<'_>) -> Outcome {
    let upstreams = Rc::new(Upstreams::default());
    let (mut client, io) = Wire::pair().expect("a socket pair");
    client.outgoing.extend_from_slice(script.client);
    let (_drain, context) = context(&upstreams);
    let downstream = Downstream {
        io,
        read: BytesMut::new(),
        peer: CLIENT,
        original_destination: SERVICE,
        origin: Origin::Outbound,
        early: None,
        shown: context.open.show(CLIENT, SERVICE, (&Origin::Outbound, std::time::SystemTime::UNIX_EPOCH)),
        tls: None,
    };
    let engine = tokio::task::spawn_local(serve(context, downstream));
    let mut stage = Stage { script, sizes: script.sizes.clone(), client, upstreams, served: Vec::new() };
    stage.settle().await;
    stage.client.close_when_sent = true;
    stage.settle().await;
    for upstream in stage.upstreams.0.borrow_mut().iter_mut() {
        upstream.wire.close_when_sent = true;
    }
    stage.settle().await;
    let Stage { client, upstreams, served, .. } = stage;
    let Wire { received, io, .. } = client;
    drop(io);
    for _ in 0..QUIET_TURNS {
        yield_now().await;
    }
    assert!(engine.is_finished(), "the engine still waits, though all its peers are gone");
    engine.await.expect("the engine does not panic");
    let upstreams = upstreams.0.take().into_iter().map(|upstream| upstream.wire.received).collect();
    Outcome { client: received, upstreams, served }
}

impl Stage<'_> {
    /// Goes on until nothing moves any more.
    async fn settle(&mut self) {
        let mut quiet = 0;
        while quiet < QUIET_TURNS {
            quiet = if self.step() { 0 } else { quiet + 1 };
            yield_now().await;
        }
    }

    fn step(&mut self) -> bool {
        let mut moved = self.client.step(&mut self.sizes);
        for upstream in self.upstreams.0.borrow_mut().iter_mut() {
            moved |= upstream.wire.step(&mut self.sizes);
            let (requests, _) = strict::requests(&upstream.wire.received[upstream.served..], false);
            if let Some(request) = requests.into_iter().next() {
                upstream.served += request.len;
                let answer = self.script.answers.get(self.served.len()).copied().unwrap_or(ANSWER);
                upstream.answer(answer, request.head.method() == "HEAD");
                self.served.push(Served { request, answer: answer.to_vec() });
                moved = true;
            }
        }
        moved
    }
}

impl Upstream {
    fn answer(&mut self, answer: &[u8], to_head: bool) {
        self.wire.outgoing.extend_from_slice(answer);
        match answer_end(answer, to_head) {
            // A peer that sends more than its answer sends it at once: whoever reads the answer must see that.
            Some(end) => self.wire.last = answer.len() - end,
            None => self.wire.close_when_sent = true,
        }
    }
}

/// Where an answer ends that says so itself.
pub fn answer_end(answer: &[u8], to_head: bool) -> Option<usize> {
    let mut at = 0;
    loop {
        let head = strict::response_head(&answer[at..]).ok()??;
        let framing = head.framing(to_head).ok()?;
        if framing == strict::Framing::UntilClose {
            return None;
        }
        let (_, _, len) = strict::body(framing, &answer[at + head.len..]).ok()??;
        at += head.len + len;
        if head.status() >= 200 {
            return Some(at);
        }
    }
}

/// The answer's final response as the strict reader sees it, were the connection to end after it.
pub fn final_answer(answer: &[u8], to_head: bool) -> (Option<strict::Message>, Tail) {
    let (messages, tail) = strict::responses(answer, |_| to_head);
    (messages.into_iter().find(|message| message.head.status() >= 200), tail)
}

fn context(upstreams: &Rc<Upstreams>) -> (watch::Sender<bool>, Context) {
    let limits = Limits { head_bytes: 2048, target_bytes: 512, fields: 40, underscores: true };
    let captured = HttpSettings {
        request: limits,
        response: limits,
        upgrades: Upgrades::Off,
        discard_bytes: 512,
        ..HttpSettings::captured()
    };
    let settings = ProxySettings { captured, ..ProxySettings::default() };
    let random = Rc::new(Random::new(1));
    let (drain, draining) = watch::channel(false);
    let context = Context {
        tables: TABLE.with(|table| Arc::new(ArcSwap::from(Arc::clone(table)))),
        table_changed: Rc::default(),
        connector: Rc::<Upstreams>::clone(upstreams),
        counters: None,
        bridges: Arc::default(),
        recorder: Rc::new(Unrecorded),
        drain: draining,
        open: Arc::default(),
        http: Rc::new(HttpWorker::new(settings, Share::default(), Rc::clone(&random))),
        random,
    };
    (drain, context)
}

/// One service with one endpoint.
fn model() -> Model {
    let name = ObjectName::new("default", "web");
    let port =
        ServicePort { name: "http".into(), port: SERVICE.port(), protocol: AppProtocol::Http, tls: None };
    let service = Service {
        name: name.clone(),
        cluster_ips: vec![SERVICE.ip()],
        headless: false,
        ports: vec![port],
        datagram_ports: Vec::new(),
        affinity: None,
    };
    let endpoint = Endpoint {
        service: name.clone(),
        service_port: SERVICE.port(),
        address: SocketAddr::from(([10, 244, 0, 9], 8080)),
        ready: true,
        pod: None,
        uid: "web-0".into(),
        node: None,
        labels: Arc::default(),
    };
    let policy = TrafficPolicy {
        source: name.clone(),
        service: name,
        lb: LbPolicy::RoundRobin,
        port_lb: vec![],
        tls: TlsRules::default(),
        subsets: vec![],
    };
    Model {
        services: vec![service].into(),
        endpoints: vec![endpoint].into(),
        policies: vec![policy].into(),
        ..Model::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The runs do go through the engine: else their checks would check nothing.
    #[test]
    fn requests_reach_an_upstream_and_answers_come_back() {
        let client =
            b"GET /a HTTP/1.1\r\nhost: a\r\n\r\nPUT /b HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi";
        for sizes in [Sizes::whole(), Sizes::of(client)] {
            let answers = [&b"HTTP/1.1 404 No\r\ncontent-length: 1\r\n\r\nx"[..]];
            let outcome = run(&Script { client, answers: &answers, sizes });
            let (responses, tail) = strict::responses(&outcome.client, |_| false);
            let seen: Vec<_> = responses.iter().map(|r| (r.head.status(), &r.body[..])).collect();
            assert_eq!((seen, tail), (vec![(404, &b"x"[..]), (200, b"ok")], Tail::Clean));
            assert_eq!((outcome.upstreams.len(), outcome.served.len()), (1, 2));
            assert_eq!(outcome.served[1].request.body, b"hi");
        }
    }

    #[test]
    fn answers_end_where_they_say() {
        let check = |answer: &str, to_head, expected| {
            assert_eq!(answer_end(answer.as_bytes(), to_head), expected, "{answer:?}");
        };
        check("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nab", false, Some(39));
        check("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n", true, Some(38));
        check("HTTP/1.1 100 C\r\n\r\nHTTP/1.1 204 N\r\n\r\n", false, Some(36));
        check("HTTP/1.1 200 OK\r\n\r\nab", false, None);
        check("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab", false, None);
        check("", false, None);
    }
}
