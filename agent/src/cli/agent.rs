//! `sluice agent`: runs until told to stop.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use super::store::StoreArgs;
use crate::app::{
    self, CaptureOptions, CertificateSource, ClusterOptions, DocumentSource, MeshOptions, Settings,
};
use crate::capture::{
    AccelerationMode, Bpffs, CgroupChoice, DESTINATIONS_DEFAULT, Glob, GuardOptions, LIMIT_SOURCES_DEFAULT,
    Marks, OnStop,
};
use crate::identity::TrustDomain;
use crate::priority::Priority;
use crate::proxy::{InvalidSetting, ProxySettings};
use crate::telemetry::log;

/// How long one call to the store may take at most.
const STORE_LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(super) struct AgentArgs {
    /// This node's name, as Pod and EndpointSlice documents call it.
    #[arg(long, env = "SLUICE_NODE", default_value_t = hostname())]
    node: String,
    /// The cluster's name, a label of the metrics.
    #[arg(long, env = "SLUICE_CLUSTER", default_value = "Kubernetes")]
    cluster: String,
    /// The directory of documents; edits apply at once.
    #[arg(
        long,
        env = "SLUICE_CONFIG",
        value_name = "DIR",
        required_unless_present = "redis",
        conflicts_with = "redis"
    )]
    config: Option<PathBuf>,
    #[command(flatten)]
    cluster_args: ClusterArgs,
    #[command(flatten)]
    capture: CaptureArgs,
    /// Worker threads.
    #[arg(long, env = "SLUICE_WORKERS", default_value_t = cores(), value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: u16,
    /// Sets a limit or timeout of the data path; may be given several times, the last one counts. `sluice settings` lists
    /// them.
    #[arg(long = "set", env = "SLUICE_SET", value_name = "NAME=VALUE", value_delimiter = ',', value_parser = setting)]
    set: Vec<String>,
    /// Address of dumps and control; keep it on loopback.
    #[arg(long, env = "SLUICE_ADMIN", default_value = "127.0.0.1:15000")]
    admin: SocketAddr,
    /// Address of the Prometheus metrics.
    #[arg(long, env = "SLUICE_METRICS", default_value = "[::]:15020")]
    metrics: SocketAddr,
    /// Address of health and readiness.
    #[arg(long, env = "SLUICE_HEALTH", default_value = "[::]:15021")]
    health: SocketAddr,
    /// How long new connections are taken as ever after SIGTERM while readiness says no, in seconds, so that load balancers before
    /// Gateways look elsewhere. The drain begins after that.
    #[arg(long, env = "SLUICE_DRAIN_DELAY", value_name = "SECONDS", default_value_t = 0)]
    drain_delay: u64,
    /// How long connections may go on in the drain, in seconds.
    #[arg(long, env = "SLUICE_DRAIN_TIMEOUT", value_name = "SECONDS", default_value_t = 25)]
    drain_timeout: u64,
    /// What is logged to standard error: a level, or a filter such as `info,agent::capture=debug`.
    #[arg(long, env = "SLUICE_LOG", default_value = "info")]
    log: String,
    /// The form of the log.
    #[arg(long, env = "SLUICE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// Whether each request and connection is logged to standard output, one JSON line each.
    #[arg(long, env = "SLUICE_ACCESS_LOG", value_enum, default_value_t = Switch::On)]
    access_log: Switch,
}

/// The flags of a cluster.
#[derive(Debug, Args)]
struct ClusterArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// How long a leader and a node's heartbeat are good for without a sign of life: 1s to 10m.
    #[arg(long, env = "SLUICE_LEASE_TTL", value_name = "TIME", value_parser = lease_ttl, default_value = "30s")]
    lease_ttl: Duration,
    /// Where the last good table and the documents are kept, so that a start without Redis serves them. Default: nowhere.
    #[arg(long, env = "SLUICE_STATE", value_name = "DIR")]
    state: Option<PathBuf>,
    /// This node's certificates, as `sluice ca node` makes them: tables are signed, only tables of the cluster's nodes are
    /// believed, and this node's pods get certificates, with which they speak TLS with pods of other nodes.
    #[arg(long, env = "SLUICE_CA", value_name = "DIR")]
    ca: Option<PathBuf>,
    /// The socket of a SPIFFE Workload API, as SPIRE's agent serves it: pods' certificates come from there, and not from --ca.
    #[arg(long, env = "SLUICE_SPIFFE_SOCKET", value_name = "PATH", requires = "trust_domain")]
    spiffe_socket: Option<PathBuf>,
    /// The trust domain of the identities that are asked of --spiffe-socket; --ca names its own.
    #[arg(long, env = "SLUICE_TRUST_DOMAIN", value_name = "TRUST-DOMAIN", requires = "spiffe_socket")]
    trust_domain: Option<TrustDomain>,
    /// How long the certificate of a workload lives that is made with --ca, which is renewed at 50 to 70 % of that: 10s to 90d.
    #[arg(
        long, env = "SLUICE_CERT_LIFE", value_name = "TIME", value_parser = certificate_life, default_value = "24h",
        conflicts_with = "spiffe_socket"
    )]
    cert_life: Duration,
    /// The port of the first worker's listener for tunnels (HBONE), on loopback; further workers take free ones. Tunnels are
    /// dialled at 15008 of the pod whatever it is.
    #[arg(long, env = "SLUICE_TUNNEL_PORT", default_value_t = 15008)]
    tunnel_port: u16,
    /// Tables are neither signed nor checked: whoever can write to Redis moves traffic.
    #[arg(long, env = "SLUICE_INSECURE_UNSIGNED", conflicts_with = "ca")]
    insecure_unsigned: bool,
}

impl ClusterArgs {
    /// How this node's pods take part in mutual TLS; without capture they don't.
    fn mesh(&self, node: &str, captures: bool) -> anyhow::Result<Option<MeshOptions>> {
        if !captures {
            self.check_unused(node)?;
            return Ok(None);
        }
        let certificates = match (&self.spiffe_socket, &self.trust_domain, &self.ca) {
            (Some(socket), Some(trust_domain), _) => CertificateSource::WorkloadApi {
                socket: socket_path(socket),
                trust_domain: trust_domain.clone(),
            },
            (_, _, Some(ca)) => CertificateSource::Directory(ca.clone()),
            _ => return Ok(None),
        };
        let (certificate_life, tunnel_port) = (self.cert_life, self.tunnel_port);
        Ok(Some(MeshOptions { certificates, certificate_life, tunnel_port }))
    }

    /// Looks at what is given for pods' certificates where nothing is captured, and none are made.
    fn check_unused(&self, node: &str) -> anyhow::Result<()> {
        if let Some(ca) = &self.ca {
            app::check_directory(ca, node)?;
        }
        let flag = if self.spiffe_socket.is_some() { Some("--spiffe-socket") } else { None };
        // With Redis it is what tables are signed with.
        let flag = flag.or_else(|| (self.ca.is_some() && self.store.redis.is_none()).then_some("--ca"));
        if let Some(flag) = flag {
            tracing::warn!(
                "{flag} is of no use with --capture off: no certificates are made for pods, and no tunnels"
            );
        }
        Ok(())
    }

    fn source(&self, cluster: &str, config: Option<PathBuf>) -> anyhow::Result<DocumentSource> {
        // A call must not outlast what its answer is for.
        let limit = (self.lease_ttl / 6).min(STORE_LIMIT);
        let Some(redis) = self.store.options(cluster, limit) else {
            return Ok(DocumentSource::Directory(
                config.context("--config or --redis says where documents are")?,
            ));
        };
        anyhow::ensure!(
            self.ca.is_some() || self.insecure_unsigned,
            "--redis: --ca DIR says with what tables are signed (`sluice ca` makes it); --insecure-unsigned lets whoever can \
             write to Redis move traffic"
        );
        if self.insecure_unsigned {
            tracing::warn!("tables are not signed: whoever can write to Redis moves traffic");
        }
        Ok(DocumentSource::Cluster(Box::new(ClusterOptions {
            redis,
            ttl: self.lease_ttl,
            state: self.state.clone(),
            ca: self.ca.clone(),
        })))
    }
}

/// The flags of capture; `check` has them too.
#[derive(Debug, Args)]
pub(super) struct CaptureArgs {
    /// How pods' traffic is captured. `auto` takes the best engine there is, which is `packet`; `off` makes the agent a
    /// plain reverse proxy that needs no privilege.
    #[arg(long, env = "SLUICE_CAPTURE", value_enum, default_value_t = CaptureMode::Auto)]
    capture: CaptureMode,
    /// The host-side interfaces of pods: names with `*` and `?`, separated by commas.
    #[arg(long, env = "SLUICE_POD_INTERFACES", value_name = "GLOB", default_value = "veth*,cali*,lxc*,gke*")]
    pod_interfaces: Glob,
    /// An interface by which replies from other nodes come back; may be given several times. Default: every one but the
    /// pods' and loopback.
    #[arg(long, env = "SLUICE_UPLINK", value_name = "IFACE", value_delimiter = ',')]
    uplink: Vec<String>,
    /// The cgroup v2 directory below which sockets are balanced at connect(): to a service that needs nothing of the agent
    /// (declared to be no HTTP, or UDP) they go straight. `auto` takes the whole hierarchy. Default: none are; pods elsewhere
    /// are captured as ever.
    #[arg(long, env = "SLUICE_CGROUP", value_name = "DIR")]
    cgroup: Option<CgroupChoice>,
    /// An interface whose incoming frames the XDP guard looks at; may be given several times. `EdgeGuard` documents say whom it
    /// keeps out.
    #[arg(long, env = "SLUICE_GUARD", value_name = "IFACE", value_delimiter = ',')]
    guard: Vec<String>,
    /// Networks of each family that the guard's lists have room for.
    #[arg(long, env = "SLUICE_GUARD_ENTRIES", value_name = "N", default_value_t = GuardOptions::DEFAULT_ENTRIES, value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    guard_entries: u32,
    /// Sources whose limits the guard holds at once; beyond them it forgets who was silent longest.
    #[arg(long, env = "SLUICE_GUARD_SOURCES", value_name = "N", default_value_t = GuardOptions::DEFAULT_SOURCES, value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    guard_sources: u32,
    /// The port of the first worker's capture listener, on loopback; further workers take free ones.
    #[arg(long, env = "SLUICE_OUTBOUND_PORT", default_value_t = 15001)]
    outbound_port: u16,
    /// The same for connections to pods whose policy asks of requests.
    #[arg(long, env = "SLUICE_INBOUND_PORT", default_value_t = 15006)]
    inbound_port: u16,
    /// The packet mark that leads captured packets to the agent.
    #[arg(long, env = "SLUICE_DELIVER_MARK", value_parser = number, default_value = "0x1510")]
    deliver_mark: u32,
    /// The mark of the agent's own sockets.
    #[arg(long, env = "SLUICE_OWN_MARK", value_parser = number, default_value = "0x1520")]
    own_mark: u32,
    /// The routing table of the deliver mark; none of the kernel's own (0 and 253 to 255).
    #[arg(long, env = "SLUICE_ROUTE_TABLE", value_parser = table, default_value_t = 1510)]
    route_table: u32,
    /// What a stop leaves in the kernel. `remove`: nothing but the policies of pods, where they are pinned. `keep`: also what
    /// captures, and the guard, for the next agent; needs pins.
    #[arg(long, env = "SLUICE_ON_STOP", value_enum, default_value_t = StopMode::Remove)]
    on_stop: StopMode,
    /// Where maps and links are pinned, a directory on a BPF file system, or `off`. Default: /sys/fs/bpf/sluice where a
    /// BPF file system is mounted at /sys/fs/bpf, else nothing is pinned, and the policies of pods end with the agent.
    #[arg(long, env = "SLUICE_BPFFS", value_name = "DIR|off")]
    bpffs: Option<Bpffs>,
    /// How many destinations the kernel's map holds; those beyond go direct.
    #[arg(long, env = "SLUICE_DESTINATIONS_MAX", value_name = "N", default_value_t = DESTINATIONS_DEFAULT,
          value_parser = clap::value_parser!(u32).range(1..=4_194_304))]
    destinations_max: u32,
    /// Sources that the limits of the kernel (RateLimit documents) remember at once, all limits together; beyond them the one that
    /// was silent longest is forgotten.
    #[arg(long, env = "SLUICE_LIMIT_SOURCES", value_name = "N", default_value_t = LIMIT_SOURCES_DEFAULT,
          value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    limit_sources: u32,
    /// Whether connections between two sockets on this node skip TCP: `auto` does where `--cgroup` is given and the kernel
    /// passes a self-test; `on` takes three faults: `splice` from such a socket finds nothing, a receiver that does not read
    /// does not stop its sender, and who waits in `recv` on a blocking socket may be told EAGAIN where the connection is half
    /// closed or reset. Pods with the annotation `sluice.dev/acceleration: "off"` take no part.
    #[arg(long, env = "SLUICE_ACCELERATION", value_enum, default_value_t = Acceleration::Auto)]
    acceleration: Acceleration,
    /// Whether `sluice observe` is told when connections of sockets below `--cgroup` stand and end, with bytes and round-trip
    /// time. It costs a few calls for each connection, and nothing for each packet.
    #[arg(long, env = "SLUICE_SOCKET_EVENTS", value_enum, default_value_t = Switch::On)]
    socket_events: Switch,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CaptureMode {
    Auto,
    Packet,
    Off,
}

/// What is left in the kernel when the agent stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StopMode {
    Remove,
    Keep,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Acceleration {
    Auto,
    On,
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

impl CaptureArgs {
    /// `None` where capture is off.
    pub(super) fn options(&self) -> anyhow::Result<Option<CaptureOptions>> {
        if self.capture == CaptureMode::Off {
            anyhow::ensure!(self.guard.is_empty(), "--guard goes with capture: leave --capture off away");
            return Ok(None);
        }
        anyhow::ensure!(
            self.deliver_mark != self.own_mark && self.deliver_mark != 0 && self.own_mark != 0,
            "--deliver-mark and --own-mark must differ from each other and from zero"
        );
        let marks = Marks {
            deliver: self.deliver_mark,
            own: self.own_mark,
            table: self.route_table,
            ..Marks::default()
        };
        Ok(Some(CaptureOptions {
            pod_interfaces: self.pod_interfaces.clone(),
            uplinks: self.uplink.clone(),
            cgroup: self.cgroup.clone(),
            outbound_port: self.outbound_port,
            inbound_port: self.inbound_port,
            marks,
            bpffs: self.bpffs.clone().unwrap_or_default(),
            on_stop: match self.on_stop {
                StopMode::Remove => OnStop::Remove,
                StopMode::Keep => OnStop::Keep,
            },
            destinations_max: self.destinations_max,
            limit_sources: self.limit_sources,
            acceleration: match self.acceleration {
                Acceleration::Auto => AccelerationMode::Auto,
                Acceleration::On => AccelerationMode::On,
                Acceleration::Off => AccelerationMode::Off,
            },
            guard: self.guard(),
            socket_events: self.socket_events == Switch::On,
        }))
    }
}

impl CaptureArgs {
    fn guard(&self) -> Option<GuardOptions> {
        let mut interfaces = self.guard.clone();
        interfaces.sort();
        interfaces.dedup();
        (!interfaces.is_empty()).then_some(GuardOptions {
            interfaces,
            entries: self.guard_entries,
            sources: self.guard_sources,
        })
    }
}

impl AgentArgs {
    fn settings(self) -> anyhow::Result<Settings> {
        let mut proxy = ProxySettings::default();
        for assignment in &self.set {
            proxy.set(assignment).context("--set")?;
        }
        let capture = self.capture.options()?;
        Ok(Settings {
            mesh: self.cluster_args.mesh(&self.node, capture.is_some())?,
            documents: self.cluster_args.source(&self.cluster, self.config)?,
            node: self.node,
            cluster: self.cluster,
            capture,
            proxy,
            workers: usize::from(self.workers),
            admin: self.admin,
            metrics: self.metrics,
            health: self.health,
            access_log: self.access_log == Switch::On,
            drain_delay: Duration::from_secs(self.drain_delay),
            drain_timeout: Duration::from_secs(self.drain_timeout),
        })
    }
}

pub(super) fn run(args: AgentArgs) -> anyhow::Result<ExitCode> {
    let format = match args.log_format {
        LogFormat::Text => log::LogFormat::Text,
        LogFormat::Json => log::LogFormat::Json,
    };
    let log = log::init(&args.log, format).context("--log")?;
    let settings = args.settings()?;
    let connections = settings.proxy.admission.connections;
    let descriptors = raise_descriptors();
    // Control work: documents, tables, netlink. Requests run on the workers' own threads, which come first.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .on_thread_start(|| Priority::Control.take())
        .enable_all()
        .build()
        .context("starting the control runtime")?;
    let lines = log.clone();
    let ended = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        tokio::select! {
            held = app::wait_for_documents(&settings) => held?,
            _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
            _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
        }
        let stopping = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        let Some(running) = Box::pin(app::start(settings, log, stopping)).await? else {
            return Ok(ExitCode::SUCCESS);
        };
        warn_of_few(descriptors, connections);
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => tracing::info!("SIGHUP: edits of the documents apply at once; there is nothing to reload"),
            }
        }
        let stopping = running.stop();
        tokio::select! {
            () = stopping => {}
            _ = interrupt.recv() => anyhow::bail!("interrupted while draining; `sluice agent` cleans up at its next start"),
        }
        Ok(ExitCode::SUCCESS)
    });
    lines.flush(app::LAST_LINES);
    ended
}

/// Takes as many file descriptors as the process may have: most systems give 1,024 to begin with, and every proxied
/// connection needs two. Gives how many.
fn raise_descriptors() -> nix::Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}

fn warn_of_few(descriptors: nix::Result<u64>, connections: u32) {
    match descriptors {
        Ok(limit) if limit / 2 < u64::from(connections) => {
            tracing::warn!(
                limit,
                "file descriptors (LimitNOFILE) run out before connections.max={connections} does"
            );
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "the limit of file descriptors stays as it is"),
    }
}

/// A number, decimal or with `0x`.
pub(super) fn number(text: &str) -> Result<u32, std::num::ParseIntError> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    }
}

/// A routing table that is not one of the kernel's own: unspecified, default, main, local.
pub(super) fn table(text: &str) -> Result<u32, String> {
    match number(text).map_err(|error| error.to_string())? {
        0 | 253..=255 => Err("this table is the kernel's own; take another one".to_owned()),
        table => Ok(table),
    }
}

/// A socket's path, which others write with `unix:` before it (SPIFFE_ENDPOINT_SOCKET).
fn socket_path(written: &Path) -> PathBuf {
    let bare = written.to_str().and_then(|text| text.strip_prefix("unix:"));
    bare.map_or_else(|| written.to_owned(), PathBuf::from)
}

/// The life of a certificate: `60s`, `90m`, `24h`, `30d`.
fn certificate_life(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = number.parse().map_err(|_| "a number with a unit, such as 24h".to_owned())?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err("the units are s, m, h and d".to_owned()),
    };
    match number.checked_mul(unit).map(Duration::from_secs) {
        Some(life) if (Duration::from_secs(10)..=Duration::from_hours(90 * 24)).contains(&life) => Ok(life),
        _ => Err("it is 10s to 90d".to_owned()),
    }
}

/// The life of a lease: `30s`, `1500ms`, `2m`.
fn lease_ttl(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| "a number with a unit, such as 30s".to_owned())?;
    let millis = match unit {
        "ms" => Some(number),
        "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        _ => return Err("the units are ms, s and m".to_owned()),
    };
    match millis.map(Duration::from_millis) {
        Some(ttl) if (Duration::from_secs(1)..=Duration::from_mins(10)).contains(&ttl) => Ok(ttl),
        _ => Err("it is 1s to 10m".to_owned()),
    }
}

/// A setting, checked as early as all other arguments are.
fn setting(text: &str) -> Result<String, InvalidSetting> {
    ProxySettings::default().set(text).map(|()| text.to_owned())
}

fn hostname() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| "localhost".to_owned())
}

fn cores() -> u16 {
    std::thread::available_parallelism()
        .ok()
        .and_then(|cores| u16::try_from(cores.get()).ok())
        .unwrap_or(1)
        .min(64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leases_life_is_read_with_its_unit() {
        let good = [("1s", 1000), ("1500ms", 1500), ("30s", 30_000), ("10m", 600_000)];
        for (text, millis) in good {
            assert_eq!(lease_ttl(text), Ok(Duration::from_millis(millis)));
        }
        for text in ["", "30", "s", "999ms", "11m", "1h", "-1s", "1.5s", "99999999999999999999s"] {
            assert!(lease_ttl(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_certificates_life_is_read_with_its_unit() {
        for (text, seconds) in [("10s", 10), ("90m", 5400), ("24h", 86_400), ("90d", 7_776_000)] {
            assert_eq!(certificate_life(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "24", "h", "9s", "91d", "1w", "-1h", "1.5h", "99999999999999999999d"] {
            assert!(certificate_life(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_kernels_own_tables_are_refused() {
        for text in ["0", "253", "254", "0xff"] {
            assert!(table(text).unwrap_err().contains("kernel's own"), "{text}");
        }
        assert_eq!((table("1510"), table("252"), table("0x100")), (Ok(1510), Ok(252), Ok(256)));
        assert!(table("main").is_err());
    }

    #[test]
    fn a_socket_may_be_written_as_spiffe_does() {
        for (written, expected) in [
            ("/run/api.sock", "/run/api.sock"),
            ("unix:/run/api.sock", "/run/api.sock"),
            ("unix:///run/api.sock", "///run/api.sock"),
            ("api.sock", "api.sock"),
        ] {
            assert_eq!(socket_path(Path::new(written)), Path::new(expected), "{written}");
        }
    }
}
