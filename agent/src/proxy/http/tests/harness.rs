//! A proxy with a fake client before it and fake upstreams behind it, all on loopback and in one thread.

use std::cell::RefCell;
use std::future::Future;
use std::io::{self, Cursor};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Chain};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::LocalSet;

use crate::compile::{RoutingTable, TableVersion, compile};
use crate::model::{
    AppProtocol, Destination, Endpoint, HostPattern, HttpRule, LbPolicy, Listener, ListenerProtocol, Model,
    ObjectName, PathRewrite, RequestMatch, RouteAction, RouteKind, RouteTable, Service, ServicePort,
    TrafficPolicy, WeightedDestination, Workload,
};
use crate::net::{ConnectTarget, Connector};
use crate::proxy::http::{HttpSettings, HttpWorker, Share, serve};
use crate::proxy::{AdmissionSettings, Context, Downstream, Early, ProxySettings};
use crate::telemetry::{ConnectionRecord, Origin, Recorder, RequestRecord, ServedRecord};

/// The service's captured address.
pub fn service_address() -> SocketAddr {
    SocketAddr::from(([10, 96, 0, 10], 80))
}

/// Runs a test on one thread, with an end if it hangs.
pub fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(30), test).await.expect("the test came to its end");
    });
}

#[derive(Debug)]
struct Loopback {
    send_buffer: Option<usize>,
}

impl Connector for Loopback {
    fn connect(&self, target: ConnectTarget) -> Pin<Box<dyn Future<Output = io::Result<TcpStream>> + '_>> {
        Box::pin(async move {
            let io = TcpStream::connect(target.address).await?;
            if let Some(bytes) = self.send_buffer {
                socket2::SockRef::from(&io).set_send_buffer_size(bytes)?;
            }
            Ok(io)
        })
    }
}

/// What the tests look at in a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub status: u16,
    pub flags: String,
    pub details: &'static str,
    pub request_bytes: u64,
    pub response_bytes: u64,
    pub upstream: Option<SocketAddr>,
    pub protocol: &'static str,
    pub grpc_status: Option<u16>,
}

#[derive(Debug, Default)]
struct Records(RefCell<Vec<Seen>>);

impl Recorder for Records {
    fn request(&self, record: &RequestRecord<'_>) {
        self.0.borrow_mut().push(Seen {
            method: record.method.to_owned(),
            path: record.path.to_owned(),
            status: record.status,
            flags: record.flags.to_string(),
            details: record.details,
            request_bytes: record.request_bytes,
            response_bytes: record.response_bytes,
            upstream: record.upstream,
            protocol: record.protocol,
            grpc_status: record.grpc_status.map(|status| status.0),
        });
    }
    fn connection_opened(&self, _record: &ConnectionRecord<'_>) {}
    fn connection(&self, _record: &ConnectionRecord<'_>) {}
    fn served(&self, _record: &ServedRecord) {}
    fn observed(&self, _: &crate::compile::Observed, _client: SocketAddr, _endpoint: SocketAddr) {}
    fn denied(&self, _: &crate::compile::Denied, _client: SocketAddr, _endpoint: SocketAddr) {}
    fn turned_away(&self, _: &'static str, _client: SocketAddr, _dialled: SocketAddr) {}
    fn downstream(&self, _origin: &Origin, _opened: bool) {}
}

/// How a proxy is set up.
pub struct Setup {
    pub model: Model,
    pub origin: Origin,
    pub original_destination: SocketAddr,
    pub captured: HttpSettings,
    pub gateway: HttpSettings,
    pub admission: AdmissionSettings,
    /// Whether each client connection comes with one to the only endpoint.
    pub early: bool,
    /// What the kernel takes from the proxy for an upstream that does not read; `None`: its default.
    pub send_buffer: Option<usize>,
}

impl Setup {
    /// A captured service with these endpoints, in turns, without rules.
    pub fn service(endpoints: &[SocketAddr]) -> Self {
        Self {
            model: model(endpoints),
            origin: Origin::Outbound,
            original_destination: service_address(),
            captured: HttpSettings { drain_grace: Duration::ZERO, ..HttpSettings::captured() },
            gateway: HttpSettings { drain_grace: Duration::ZERO, ..HttpSettings::gateway() },
            admission: AdmissionSettings::default(),
            early: false,
            send_buffer: None,
        }
    }

    /// The same with one rule.
    pub fn with_rule(endpoints: &[SocketAddr], rule: HttpRule) -> Self {
        Self::service(endpoints).and_rule(rule)
    }

    /// The same whose port declares a protocol.
    pub fn speaking(mut self, protocol: AppProtocol) -> Self {
        self.model.services[0].ports[0].protocol = protocol;
        self
    }

    pub fn and_rule(mut self, rule: HttpRule) -> Self {
        let setup = &mut self;
        setup.model.mesh_routes.push(routes(vec![(name(), None)], vec![], vec![rule]));
        self
    }

    /// A Gateway listener for a host with one rule.
    pub fn gateway(host: HostPattern, rule: HttpRule, endpoints: &[SocketAddr]) -> Self {
        let mut setup = Self::service(endpoints);
        setup.model.listeners.push(Listener {
            gateway: ObjectName::new("default", "edge"),
            name: "http".into(),
            addresses: vec![],
            port: 8080,
            protocol: ListenerProtocol::Http,
            hostname: HostPattern::Any,
            tls: None,
            routes: vec![routes(vec![], vec![host], vec![rule])],
        });
        setup.origin = Origin::Gateway("default/edge/http".into());
        setup.original_destination = SocketAddr::from(([127, 0, 0, 1], 8080));
        setup
    }

    pub async fn start(self) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        let early = self.early;
        let table = compile(&self.model, &RoutingTable::default(), TableVersion::default());
        let records = Rc::new(Records::default());
        let (drain, draining) = watch::channel(false);
        let random = Rc::new(crate::proxy::Random::new(1));
        let settings = ProxySettings {
            captured: self.captured,
            gateway: self.gateway,
            admission: self.admission,
            ..ProxySettings::default()
        };
        let worker = Rc::new(HttpWorker::new(settings, Share::default(), Rc::clone(&random)));
        let ctx = Context {
            tables: Arc::new(ArcSwap::from_pointee(table)),
            table_changed: Rc::default(),
            connector: Rc::new(Loopback { send_buffer: self.send_buffer }),
            recorder: Rc::<Records>::clone(&records),
            drain: draining,
            http: Rc::clone(&worker),
            open: Arc::default(),
            bridges: Arc::default(),
            counters: None,
            random,
        };
        let (origin, original_destination) = (self.origin, self.original_destination);
        let context = ctx.clone();
        tokio::task::spawn_local(async move {
            while let Ok((io, peer)) = listener.accept().await {
                let _ = io.set_nodelay(true);
                let (read, origin) = (BytesMut::new(), origin.clone());
                let early = if early { Some(connect_early(&ctx, original_destination).await) } else { None };
                let shown =
                    ctx.open.show(peer, original_destination, (&origin, std::time::SystemTime::now()));
                let downstream =
                    Downstream { io, read, peer, original_destination, origin, early, shown, tls: None };
                tokio::task::spawn_local(serve(ctx.clone(), downstream));
            }
        });
        Proxy { address, records, drain, worker, context }
    }
}

async fn connect_early(ctx: &Context, dialled: SocketAddr) -> Early {
    let table = ctx.tables.load_full();
    if table.frontends.get(&dialled).is_some_and(|frontend| frontend.headless) {
        let io = TcpStream::connect(dialled).await.expect("connects");
        return Early { io, pick: None };
    }
    let pick = table.frontends[&service_address()]
        .tcp
        .pick(std::net::Ipv4Addr::LOCALHOST.into(), 0, &[])
        .expect("an endpoint");
    let io = TcpStream::connect(pick.upstream().address).await.expect("connects");
    Early { io, pick: Some(pick) }
}

/// A pod of whose node nobody knows.
pub fn pod(address: impl Into<std::net::IpAddr>) -> Workload {
    Workload {
        name: ObjectName::new("default", "pod"),
        uid: "pod".into(),
        workload: "pod".into(),
        node: None,
        service_account: "default".into(),
        addresses: vec![address.into()],
        labels: Arc::default(),
        ready: true,
        probes: Vec::new(),
        accelerated: true,
    }
}

/// A running proxy.
pub struct Proxy {
    address: SocketAddr,
    records: Rc<Records>,
    pub drain: watch::Sender<bool>,
    pub worker: Rc<HttpWorker>,
    context: Context,
}

impl Proxy {
    /// Puts another table in force.
    pub fn apply(&self, model: &Model) {
        let table = compile(model, &self.context.tables.load(), TableVersion::default());
        self.context.tables.store(Arc::new(table));
        self.context.table_changed.notify_waiters();
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("the proxy listens")
    }

    pub async fn client(&self) -> Peer {
        Peer::new(TcpStream::connect(self.address).await.expect("the proxy listens"))
    }

    /// Sends one request on a connection of its own and gives all that comes back until the end.
    pub async fn exchange(&self, request: &str) -> String {
        let mut client = self.client().await;
        client.send(request).await;
        client.rest().await
    }

    /// The records so far, once there are `count`.
    pub async fn records(&self, count: usize) -> Vec<Seen> {
        while self.records.0.borrow().len() < count {
            tokio::task::yield_now().await;
        }
        self.records.0.borrow().clone()
    }
}

/// One end of a connection, spoken to in raw bytes.
pub struct Peer {
    pub io: TcpStream,
    read: BytesMut,
}

impl Peer {
    pub fn new(io: TcpStream) -> Self {
        let _ = io.set_nodelay(true);
        Self { io, read: BytesMut::new() }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.io.write_all(bytes.as_ref()).await.expect("the peer takes bytes");
    }

    async fn fill(&mut self) -> usize {
        self.io.read_buf(&mut self.read).await.unwrap_or(0)
    }

    /// A head, its empty line included; empty at the end of the connection.
    pub async fn head(&mut self) -> String {
        loop {
            let end = self.read.windows(4).position(|bytes| bytes == b"\r\n\r\n");
            if let Some(end) = end {
                return String::from_utf8(self.read.split_to(end + 4).to_vec()).expect("text");
            }
            if self.fill().await == 0 {
                assert!(self.read.is_empty(), "cut off: {:?}", self.read);
                return String::new();
            }
        }
    }

    /// Exactly so many bytes.
    pub async fn bytes(&mut self, count: usize) -> String {
        while self.read.len() < count {
            assert!(self.fill().await > 0, "cut off: {:?}", self.read);
        }
        String::from_utf8(self.read.split_to(count).to_vec()).expect("text")
    }

    /// A head and a body by its content-length.
    pub async fn message(&mut self) -> (String, String) {
        let head = self.head().await;
        let length = field(&head, "content-length").map_or(0, |length| length.parse().expect("a length"));
        let body = self.bytes(length).await;
        (head, body)
    }

    /// A head and a chunked body as it came.
    pub async fn chunked(&mut self) -> (String, String) {
        let head = self.head().await;
        assert_eq!(field(&head, "transfer-encoding").as_deref(), Some("chunked"), "{head}");
        let mut body = String::new();
        while !body.ends_with("0\r\n\r\n") {
            body.push_str(&self.bytes(1).await);
        }
        (head, body)
    }

    /// What comes until the connection ends, and whether it ends in a reset.
    pub async fn until_reset(&mut self) -> (String, bool) {
        let reset = loop {
            match self.io.read_buf(&mut self.read).await {
                Ok(0) => break false,
                Ok(_) => {}
                Err(_) => break true,
            }
        };
        (String::from_utf8(self.read.split().to_vec()).expect("text"), reset)
    }

    /// Both directions by themselves.
    pub fn into_parts(self) -> (Chain<Cursor<BytesMut>, OwnedReadHalf>, OwnedWriteHalf) {
        let (read, write) = self.io.into_split();
        (Cursor::new(self.read).chain(read), write)
    }

    /// Everything until the end of the connection.
    pub async fn rest(&mut self) -> String {
        while self.fill().await > 0 {}
        String::from_utf8(self.read.split().to_vec()).expect("text")
    }
}

/// A field's value in a head.
pub fn field(head: &str, name: &str) -> Option<String> {
    head.lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(field, _)| field.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.to_owned())
}

/// A gate for a script that waits until the test has seen something: whoever opens it, and what is waited for.
pub fn gate() -> (Rc<Notify>, Rc<Notify>) {
    let gate = Rc::new(Notify::new());
    (Rc::clone(&gate), gate)
}

/// An upstream that serves each connection with `script`, which also gets the connection's number.
pub async fn upstream<F: Future<Output = ()> + 'static>(
    script: impl Fn(Peer, usize) -> F + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    tokio::task::spawn_local(async move {
        let mut number = 0;
        while let Ok((io, _)) = listener.accept().await {
            tokio::task::spawn_local(script(Peer::new(io), number));
            number += 1;
        }
    });
    address
}

/// An upstream that answers every request with the connection's number and the request line.
pub async fn echo() -> SocketAddr {
    upstream(|mut peer, number| async move {
        loop {
            let (head, _) = peer.message().await;
            let Some(line) = head.lines().next() else { return };
            let body = format!("{number} {line}");
            peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())).await;
        }
    })
    .await
}

/// An upstream that sends `bytes` to every request head and closes.
pub async fn says(bytes: &'static [u8]) -> SocketAddr {
    upstream(move |mut peer, _| async move {
        if !peer.head().await.is_empty() {
            peer.send(bytes).await;
        }
    })
    .await
}

/// An address where nothing listens.
pub fn nobody() -> SocketAddr {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("loopback");
    let address = socket.local_addr().expect("bound");
    // Bound and deaf for as long as the tests run, so that no other program gets the port.
    std::mem::forget(socket);
    address
}

pub fn name() -> ObjectName {
    ObjectName::new("default", "web")
}

/// A rule that sends everything to the service.
pub fn rule() -> HttpRule {
    let destination = Destination::Service { service: name(), port: Some(80), subset: None };
    let destination =
        WeightedDestination { destination, weight: 1, request_headers: vec![], response_headers: vec![] };
    rule_with(RouteAction::Forward { destinations: vec![destination], rewrite: PathRewrite::default() })
}

pub fn rule_with(action: RouteAction) -> HttpRule {
    HttpRule {
        name: "rule-0".into(),
        matches: Vec::<RequestMatch>::new(),
        action,
        timeout: None,
        try_timeout: None,
        request_headers: vec![],
        response_headers: vec![],
    }
}

fn routes(
    services: Vec<(ObjectName, Option<u16>)>,
    hosts: Vec<HostPattern>,
    rules: Vec<HttpRule>,
) -> RouteTable {
    RouteTable { source: name(), kind: RouteKind::HttpRoute, services, hosts, rules }
}

fn model(endpoints: &[SocketAddr]) -> Model {
    let service = Service {
        name: name(),
        cluster_ips: vec![service_address().ip()],
        headless: false,
        ports: vec![ServicePort { name: "http".into(), port: 80, protocol: AppProtocol::Http, tls: None }],
        datagram_ports: Vec::new(),
        affinity: None,
    };
    let endpoint = |address: &SocketAddr| Endpoint {
        service: name(),
        service_port: 80,
        address: *address,
        ready: true,
        pod: None,
        uid: address.to_string().into(),
        node: None,
        labels: Arc::default(),
    };
    let policy = TrafficPolicy {
        source: name(),
        service: name(),
        lb: LbPolicy::RoundRobin,
        port_lb: vec![],
        tls: crate::model::TlsRules::default(),
        subsets: vec![],
    };
    let mut endpoints: Vec<_> = endpoints.iter().map(endpoint).collect();
    endpoints.sort();
    Model {
        services: vec![service].into(),
        endpoints: endpoints.into(),
        policies: vec![policy].into(),
        ..Model::default()
    }
}
