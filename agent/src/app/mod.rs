//! Wiring: the only place where the parts meet. Starts everything in the order in which it depends on each other, and
//! stops it in the reverse one.

mod cluster;
mod connections;
mod edge_tls;
mod flows;
mod follow;
mod following;
mod gateways;
mod hold;
mod limits;
mod mesh;
mod probes;
mod settings;
mod status;
mod tables;
mod unmet;

use std::hash::{BuildHasher, RandomState};
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::admin::{self, Role, Source};
use crate::capture::{
    CaptureListeners, CaptureSettings, Claim, Engine, EngineHandle, LocalAddresses, Released,
    SpoofingConnector,
};
use crate::cluster::RedisCounters;
use crate::compile::Realm;
use crate::hbone::{Mesh, TunnelConnector};
use crate::limit::counters::Counters;
use crate::net::{Connector, PlainConnector, server_listener};
use crate::priority::Priority;
use crate::proxy::http::Share;
use crate::proxy::{Admission, Captured, Command, SharedBridges, WorkerHandle, WorkerSettings, start_worker};
use crate::telemetry::FlowLog;
use crate::telemetry::log::LogHandle;
pub use cluster::ClusterOptions;
use following::Following;
pub use hold::wait_for_documents;
pub use mesh::{CertificateSource, MeshOptions, check_directory};
pub use settings::{CaptureOptions, DocumentSource, Settings};
use status::Observed;
use tables::Tables;

/// How often a drain looks whether the last connection has ended.
const DRAIN_POLL: Duration = Duration::from_millis(20);
/// How long a drain sees no connection before it believes that there is none: one that was captured last may have its handshake yet to end.
/// Of a client of this node that takes no time; one that is farther away may be reset and has to come again.
const SETTLED: Duration = Duration::from_millis(60);
/// How long before a drain's end nothing new is taken any more, so that what is short is not cut.
const LAST_CALL: Duration = Duration::from_secs(1);
/// How long the end waits for what has been logged to be written: whoever reads it may be slow, or gone.
pub(crate) const LAST_LINES: Duration = Duration::from_secs(1);

/// A running agent.
pub struct Running {
    /// What was bound; port 0 in the settings became a real one here.
    pub addresses: Addresses,
    observed: Arc<Observed>,
    drain: watch::Sender<bool>,
    capture: Option<RunningCapture>,
    /// Whether there are tunnels.
    meshed: bool,
    following: Following,
    probes: JoinHandle<()>,
    drain_delay: Duration,
    drain_timeout: Duration,
}

/// Where the agent listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Addresses {
    /// Dumps and control.
    pub admin: SocketAddr,
    /// Prometheus metrics.
    pub metrics: SocketAddr,
    /// Health and readiness.
    pub health: SocketAddr,
}

impl Addresses {
    fn of(admin: &TcpListener, metrics: &TcpListener, health: &TcpListener) -> std::io::Result<Self> {
        let [admin, metrics, health] = [admin, metrics, health].map(TcpListener::local_addr);
        Ok(Self { admin: admin?, metrics: metrics?, health: health? })
    }
}

struct RunningCapture {
    handle: EngineHandle,
    engine: JoinHandle<Engine>,
    /// Let go when nothing is left in the kernel.
    claim: Claim,
}

/// Starts an agent. Ready means: the documents are loaded, the listeners open, the kernel programs in place. On an error
/// nothing stays behind.
/// `None`: it was told to stop while it waited for its first table.
pub async fn start(
    settings: Settings,
    log: LogHandle,
    stopping: impl Future<Output = ()>,
) -> anyhow::Result<Option<Running>> {
    // The node comes first: a second agent must not touch what the first one has installed.
    let claim = settings.capture.is_some().then(Claim::take).transpose()?;
    let (servers, addresses) = servers(&settings)?;
    let tables = Arc::new(Tables::new());
    let drain = watch::Sender::new(false);
    let current = Arc::clone(&tables.current);
    let observed = Arc::new(Observed::new(&settings, addresses, current, drain.subscribe())?);
    let listeners = capture_listeners(&settings)?;
    let mesh = mesh::open(&settings, &tables, &observed)?;
    settle(mesh::realm(&settings.node, mesh.as_deref()), &observed, &tables);
    let local = LocalAddresses::default();
    let admission = edge_tls::admission(&settings.proxy.admission, (&observed.metrics, &tables.current));
    let counters = cluster::counters(&settings, &observed, &tables)?;
    let workers = Workers {
        settings: &settings,
        observed: &observed,
        drain: &drain,
        local: &local,
        admission: Arc::clone(&admission),
        bridges: SharedBridges::default(),
        counters,
        mesh: mesh.clone(),
    };
    let bridges = Arc::clone(&workers.bridges);
    let workers = workers.start(&listeners)?;

    let follower = follow::Follower::new(Arc::clone(&tables), Arc::clone(&observed), workers);
    let mut following = Following::start(&settings, &observed, follower)?;
    let probes = probes::start(&settings, &observed, &tables, following.health());
    let source = Arc::new(observed.source(log));
    for (listener, role) in servers {
        serve_apart(listener, role, Arc::clone(&source))?;
    }
    if !first_table(&mut following, &settings, stopping).await? {
        probes.abort();
        following.stop().await;
        return Ok(None);
    }
    mesh.map(|mesh| tokio::spawn(mesh::keep(mesh, tables.subscribe())));
    // The last that can fail, and it undoes itself: nothing stays in the kernel without an agent.
    let mut capture = None;
    if let Some(asked) = claim.zip(settings.capture.as_ref()) {
        let started = start_capture(asked, &settings, &listeners, local, (&tables, observed.flows.clone()));
        capture = Some(Box::pin(started).await?);
    }
    if let Some(capture) = &capture {
        observed.set_capture(&capture.handle);
        connect_kernel(&capture.handle, &bridges, &admission);
    }
    following.go_on();
    observed.set_ready(true);
    tracing::info!(node = settings.node, %addresses.admin, %addresses.metrics, %addresses.health, "ready");
    Ok(Some(Running {
        addresses,
        observed,
        drain,
        capture,
        meshed: settings.mesh.is_some(),
        following,
        probes,
        drain_delay: settings.drain_delay,
        drain_timeout: settings.drain_timeout,
    }))
}

/// The listeners of the agent's own servers.
fn servers(settings: &Settings) -> anyhow::Result<([(TcpListener, Role); 3], Addresses)> {
    let admin = bind(settings.admin, "--admin")?;
    let metrics = bind(settings.metrics, "--metrics")?;
    let health = bind(settings.health, "--health")?;
    let addresses = Addresses::of(&admin, &metrics, &health)?;
    Ok(([(admin, Role::Admin), (metrics, Role::Metrics), (health, Role::Health)], addresses))
}

/// Tells metrics and tables which node this is.
fn settle(realm: Realm, observed: &Observed, tables: &Tables) {
    observed.metrics.settle(realm.clone());
    tables.settle(realm);
}

/// Waits for a table to begin with; false where the agent was told to stop before there was one.
async fn first_table(
    following: &mut Following,
    settings: &Settings,
    stopping: impl Future<Output = ()>,
) -> anyhow::Result<bool> {
    tokio::select! {
        waited = following.wait_for_table(settings) => waited.map(|()| true),
        () = stopping => Ok(false),
    }
}

/// Gives the workers what the kernel offers them.
fn connect_kernel(handle: &EngineHandle, bridges: &SharedBridges, admission: &Admission) {
    let readings = handle.readings();
    if let Some(kernel) = readings.bridges {
        // Nobody has set it before: there is one engine.
        let _ = bridges.set(kernel);
    }
    if let Some((guard, _)) = readings.guard {
        admission.refusals().tell(move |source, lasts| {
            // A source that goes on is told again.
            let _ = guard.push(source, lasts);
        });
    }
}

/// Serves on a thread of its own, so that a slow dump never delays a probe. It ends with the process.
fn serve_apart(listener: TcpListener, role: Role, source: Arc<Source>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (never, stop) = watch::channel(false);
    let serve = move || {
        let _never = never;
        // A dump takes as long as the table is large; a probe is awaited.
        if !matches!(role, Role::Health) {
            Priority::Control.take();
        }
        if let Err(error) = runtime.block_on(admin::serve(listener, role, source, stop)) {
            tracing::error!(%error, ?role, "a server could not start");
        }
    };
    std::thread::Builder::new()
        .name(format!("{role:?}").to_lowercase())
        .spawn(serve)
        .context("starting a server")?;
    Ok(())
}

impl Running {
    /// Stops: not ready, then no new connections but those that nobody else could take, then the ones under way to their end or
    /// the deadline, then nothing is left in the kernel.
    pub async fn stop(mut self) {
        tracing::info!(delay = ?self.drain_delay, "draining");
        self.observed.set_ready(false);
        tokio::time::sleep(self.drain_delay).await;
        self.following.drain().await;
        let begin = Instant::now();
        let last_call = begin + self.drain_timeout.saturating_sub(LAST_CALL.min(self.drain_timeout / 4));
        let deadline = begin + self.drain_timeout;
        // What could go by tunnel alone can't go direct: it would be plaintext, or be dropped.
        if let Some(capture) = self.capture.as_ref().filter(|_| !self.meshed) {
            capture.handle.release(Released::Outbound).await;
        }
        self.drain.send_replace(true);
        self.until_idle(last_call).await;
        if let Some(capture) = &self.capture {
            capture.handle.release(Released::All).await;
        }
        self.until_idle(deadline).await;
        let cut = self.observed.open_connections();
        if cut > 0 {
            tracing::warn!(connections = cut, "the drain's time is over; closing what is still open");
        }
        self.probes.abort();
        self.following.stop().await;
        if let Some(RunningCapture { engine, claim, .. }) = self.capture {
            match engine.await {
                Ok(engine) => engine.end().await,
                Err(error) => tracing::error!(%error, "capture ended badly and could not be removed"),
            }
            drop(claim);
        }
        tracing::info!("stopped");
        self.observed.flush(LAST_LINES);
    }

    /// Waits until no connection is open or waits to be accepted, but no longer than this.
    async fn until_idle(&self, deadline: Instant) {
        let mut busy = Instant::now();
        while Instant::now() < deadline {
            if self.observed.open_connections() > 0 || self.observed.has_waiting() {
                busy = Instant::now();
            } else if self.capture.is_none() || busy.elapsed() >= SETTLED {
                return;
            }
            tokio::time::sleep(DRAIN_POLL).await;
        }
    }
}

/// Binds before anything is changed on the node.
fn bind(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    let listener = match server_listener(address) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            bail!(
                "{address} is taken by another process; is an agent running already? {flag} sets another address"
            )
        }
        bound => bound.with_context(|| format!("{flag} {address}"))?,
    };
    Ok(listener)
}

/// One pair of capture listeners for each worker; none where capture is off.
fn capture_listeners(settings: &Settings) -> anyhow::Result<Vec<CaptureListeners>> {
    let Some(capture) = &settings.capture else { return Ok(Vec::new()) };
    let bind = |worker| {
        let [outbound, inbound] = [capture.outbound_port, capture.inbound_port];
        let [outbound, inbound] = if worker == 0 { [outbound, inbound] } else { [0, 0] };
        let tunnels = settings.mesh.as_ref().map(|mesh| if worker == 0 { mesh.tunnel_port } else { 0 });
        CaptureListeners::bind([outbound, inbound], tunnels, capture.marks.own)
    };
    Ok((0..settings.workers).map(bind).collect::<Result<_, _>>()?)
}

/// What workers are made from.
struct Workers<'a> {
    settings: &'a Settings,
    observed: &'a Arc<Observed>,
    drain: &'a watch::Sender<bool>,
    local: &'a LocalAddresses,
    admission: Arc<Admission>,
    bridges: SharedBridges,
    counters: Option<Arc<RedisCounters>>,
    mesh: Option<Arc<Mesh>>,
}

impl Workers<'_> {
    fn start(&self, listeners: &[CaptureListeners]) -> anyhow::Result<Vec<WorkerHandle>> {
        let mut workers = Vec::new();
        for index in 0..self.settings.workers {
            let worker = start_worker(self.worker(index)?).context("starting a worker")?;
            if let Some(pair) = listeners.get(index) {
                let outbound = pair.sockets.iter().map(|socket| (socket, Captured::Outbound));
                let inbound = pair.inbound.iter().map(|socket| (socket, Captured::Inbound));
                for (socket, direction) in outbound.chain(inbound) {
                    let socket = socket.try_clone().context("sharing a capture listener")?;
                    let command = Command::Capture(socket.into(), direction);
                    worker.commands.send(command).ok().context("a worker ended at its start")?;
                }
                for (socket, mesh) in pair.tunnels.iter().zip(self.mesh.iter().cycle()) {
                    let socket = socket.try_clone().context("sharing a listener of tunnels")?;
                    let command = Command::Tunnels(socket.into(), Arc::clone(mesh));
                    worker.commands.send(command).ok().context("a worker ended at its start")?;
                }
            }
            workers.push(worker);
        }
        Ok(workers)
    }

    fn worker(&self, index: usize) -> anyhow::Result<WorkerSettings> {
        let seed = RandomState::new().hash_one(index);
        let own_mark = self.settings.capture.as_ref().map(|capture| capture.marks.own);
        let local = Arc::clone(self.local);
        let mesh = self.mesh.clone();
        let spread = u32::try_from(seed & 0xffff).context("sixteen bits")?;
        let metrics = self.observed.metrics.clone();
        let access = self.observed.access.clone();
        let flows = self.observed.flows.clone();
        Ok(WorkerSettings {
            index,
            tables: Arc::clone(&self.observed.tables),
            drain: self.drain.subscribe(),
            proxy: self.settings.proxy.clone(),
            share: Share { workers: self.settings.workers, admission: Arc::clone(&self.admission) },
            open: Arc::clone(&self.observed.open[index]),
            bridges: Arc::clone(&self.bridges),
            counters: self.counters.clone().map(|counters| counters as Arc<dyn Counters>),
            connector: Box::new(move || {
                let direct: Rc<dyn Connector> = match own_mark {
                    Some(mark) => Rc::new(SpoofingConnector::new(mark, local, spread)),
                    None => Rc::new(PlainConnector),
                };
                match mesh {
                    Some(mesh) => Rc::new(TunnelConnector::new(direct, mesh)),
                    None => direct,
                }
            }),
            recorder: Box::new(move || Rc::new(metrics.recorder(access, flows))),
            seed,
        })
    }
}

async fn start_capture(
    (claim, options): (Claim, &CaptureOptions),
    settings: &Settings,
    listeners: &[CaptureListeners],
    local: LocalAddresses,
    (tables, flows): (&Tables, FlowLog),
) -> anyhow::Result<RunningCapture> {
    let capture = CaptureSettings {
        pod_interfaces: options.pod_interfaces.clone(),
        uplinks: options.uplinks.clone(),
        marks: options.marks,
        cgroup: options.cgroup.clone(),
        workers: u32::try_from(settings.workers).context("too many workers")?,
        bpffs: options.bpffs.clone(),
        on_stop: options.on_stop,
        destinations_max: options.destinations_max,
        limit_sources: options.limit_sources,
        acceleration: options.acceleration,
        node: settings.node.clone(),
        tunnels: settings.mesh.is_some(),
        guard: options.guard.clone(),
        socket_events: options.socket_events,
        flows,
    };
    let (engine, handle) = Box::pin(Engine::start(capture, listeners, local, tables.subscribe())).await?;
    Ok(RunningCapture { handle, engine: tokio::spawn(engine.run()), claim })
}
