//! Wiring: the only place where the parts meet. Starts everything in the order in which it depends on each other, and
//! stops it in the reverse one.

mod follow;
mod gateways;
mod settings;
mod status;
mod tables;

use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::capture::{CaptureListeners, CaptureSettings, Engine, EngineHandle, LocalAddresses, SpoofingConnector};
use crate::net::{Connector, PlainConnector};
use crate::proxy::{Command, WorkerHandle, WorkerSettings, start_worker};
use crate::telemetry::log::LogHandle;
use crate::telemetry::{AccessLog, Metrics};
use crate::{admin, config};
pub use settings::{CaptureOptions, Settings};
use status::Observed;
use tables::Tables;

/// How often a drain looks whether the last connection has ended.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// A running agent.
pub struct Running {
    /// What was bound; port 0 in the settings became a real one here.
    pub addresses: Addresses,
    observed: Arc<Observed>,
    drain: watch::Sender<bool>,
    open: Arc<AtomicUsize>,
    capture: Option<RunningCapture>,
    follower: JoinHandle<()>,
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

struct RunningCapture {
    handle: EngineHandle,
    engine: JoinHandle<Engine>,
}

/// Starts an agent. Ready means: the documents are loaded, the listeners open, the kernel programs in place. On an error
/// nothing stays behind.
pub async fn start(settings: Settings, log: LogHandle) -> anyhow::Result<Running> {
    let admin = bind(settings.admin, "--admin")?;
    let metrics = bind(settings.metrics, "--metrics")?;
    let health = bind(settings.health, "--health")?;
    let addresses =
        Addresses { admin: admin.local_addr()?, metrics: metrics.local_addr()?, health: health.local_addr()? };

    let tables = Arc::new(Tables::new());
    let observed = Arc::new(Observed::new(&settings, Metrics::new(), Arc::clone(&tables.current)));
    let listeners = capture_listeners(&settings)?;
    let local = LocalAddresses::default();
    let drain = watch::Sender::new(false);
    let open = Arc::new(AtomicUsize::new(0));
    let workers = Workers { settings: &settings, observed: &observed, drain: &drain, open: &open, local: &local };
    let workers = Arc::new(workers.start(&listeners)?);

    let (state, changes) = config::watch(settings.config.clone()).context("--config")?;
    let mut follower = follow::Follower::new(Arc::clone(&tables), Arc::clone(&observed), workers);
    follower.first(&state)?;
    let capture = match &settings.capture {
        Some(options) => Some(start_capture(options, &settings, &listeners, local, &tables).await?),
        None => None,
    };
    if let Some(capture) = &capture {
        observed.set_capture(capture.handle.status(), capture.handle.counters());
    }
    admin::serve(admin, metrics, health, Arc::clone(&observed) as Arc<dyn admin::Source>, log)?;
    let follower = tokio::spawn(follower.run(changes));
    observed.set_ready(true);
    tracing::info!(node = settings.node, %addresses.admin, %addresses.metrics, %addresses.health, "ready");
    Ok(Running { addresses, observed, drain, open, capture, follower, drain_timeout: settings.drain_timeout })
}
