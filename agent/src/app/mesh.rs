//! Certificates of this node's workloads: opened at start, made anew in time, shown.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use nix::sys::resource::{Resource, setrlimit};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::time_provider::DefaultTimeProvider;
use tokio::sync::watch;

use super::Settings;
use super::status::Observed;
use super::tables::Tables;
use crate::compile::RoutingTable;
use crate::hbone::Mesh;
use crate::identity::{DirectorySource, NodeDirectory, Turned, WorkloadCertificates};
use crate::telemetry::TlsReading;

/// How often the files are looked at, at least.
const LOOK: Duration = Duration::from_secs(5);
/// How often at most: a table may change more often than certificates have to.
const PAUSE: Duration = Duration::from_millis(20);

/// How this node's pods take part in mutual TLS.
#[derive(Debug, Clone)]
pub struct MeshOptions {
    /// The node's directory, as `sluice ca node` makes it.
    pub ca: PathBuf,
    /// How long a workload's certificate lives.
    pub certificate_life: Duration,
    /// The port of the first worker's listener for tunnels; further workers take free ones.
    pub tunnel_port: u16,
}

/// Reads the directory. From here on there are keys in memory, which shall not get into a core file.
pub(super) fn open(
    settings: &Settings,
    tables: &Tables,
    observed: &Observed,
) -> anyhow::Result<Option<Arc<Mesh>>> {
    let Some(options) = &settings.mesh else { return Ok(None) };
    keep_memory_private()?;
    let name = NodeDirectory::open(&options.ca).context("--ca")?.current().identity.name().shared();
    anyhow::ensure!(
        *name == *settings.node,
        "--ca {}: the certificate is that of the node '{name}', and this one is '{}'",
        options.ca.display(),
        settings.node
    );
    let source = DirectorySource::open(&options.ca).context("--ca")?;
    let certificates = WorkloadCertificates::new(Box::new(source), options.certificate_life);
    let clock = Arc::new(DefaultTimeProvider);
    let mesh = Arc::new(Mesh::new(name, Arc::clone(&tables.current), Arc::new(certificates), clock));
    observed.set_mesh(&mesh);
    Ok(Some(mesh))
}

/// Nothing of the process's memory gets into a core file or to another process of its user: there are keys in it.
pub(super) fn keep_memory_private() -> anyhow::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).context("forbidding core files")?;
    nix::sys::prctl::set_dumpable(false).context("making the process undumpable")
}

/// What the metrics show.
pub(super) fn reading(mesh: &Mesh) -> TlsReading {
    let since =
        |until: SystemTime| until.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs());
    let certificates = mesh.certificates().list();
    TlsReading {
        handshakes: mesh.counts().read(),
        certificates: certificates.into_iter().map(|(id, until)| (id, since(until))).collect(),
        versions: Vec::new(),
    }
}

/// Keeps certificates for as long as there are tables.
pub(super) async fn keep(mesh: Arc<Mesh>, mut tables: watch::Receiver<Arc<RoutingTable>>) {
    let mut said = None;
    loop {
        let now = mesh.now();
        let turned = mesh.certificates().turn(&mesh.wanted(), now, draw);
        let next = turned.next.and_then(|next| next.duration_since(now).ok());
        tell(turned, &mut said);
        tokio::time::sleep(PAUSE).await;
        let wait = next.unwrap_or(LOOK).min(LOOK);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            changed = tables.changed() => if changed.is_err() { return },
        }
    }
}

/// Logs what is new of it.
fn tell(turned: Turned, said: &mut Option<String>) {
    if turned.minted > 0 {
        tracing::info!(count = turned.minted, "certificates of workloads were made");
    }
    let failed = turned.failed.into_iter().next().map(|(id, error)| format!("{id}: {error}"));
    let now = failed.or_else(|| turned.reload.map(|error| error.to_string()));
    if let Some(error) = now.as_ref().filter(|_| now != *said) {
        tracing::warn!(error, "certificates of workloads stay what they were");
    }
    *said = now;
}

fn draw() -> u8 {
    let mut byte = [0];
    // Without chance all nodes renew at once, which is no reason not to.
    let _ = SystemRandom::new().fill(&mut byte);
    byte[0]
}
