//! Certificates of this node's workloads: opened at start, made anew in time, shown.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::sys::resource::{Resource, setrlimit};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::time_provider::DefaultTimeProvider;
use tokio::sync::watch;

use super::Settings;
use super::status::Observed;
use super::tables::Tables;
use crate::admin::{CertDump, CertificateDump};
use crate::compile::{Realm, RoutingTable};
use crate::hbone::Mesh;
use crate::identity::{
    CaSource, DirectorySource, NodeDirectory, ShownCertificate, TrustDomain, Turned, WorkloadCertificates,
};
use crate::spiffe::{self, WorkloadApi};
use crate::telemetry::{TlsReading, rfc3339};

/// How often the files are looked at, at least.
const LOOK: Duration = Duration::from_secs(5);
/// How often at most: a table may change more often than certificates have to.
const PAUSE: Duration = Duration::from_millis(20);

/// How this node's pods take part in mutual TLS.
#[derive(Debug, Clone)]
pub struct MeshOptions {
    /// Where certificates of workloads come from.
    pub certificates: CertificateSource,
    /// How long a workload's certificate lives.
    pub certificate_life: Duration,
    /// The port of the first worker's listener for tunnels; further workers take free ones.
    pub tunnel_port: u16,
}

/// Where certificates of workloads come from.
#[derive(Debug, Clone)]
pub enum CertificateSource {
    /// The node's directory, as `sluice ca node` makes it.
    Directory(PathBuf),
    /// A SPIFFE Workload API.
    WorkloadApi {
        /// Its socket.
        socket: PathBuf,
        /// Whose identities are asked of it.
        trust_domain: TrustDomain,
    },
}

/// Opens the source. From here on there are keys in memory, which shall not get into a core file.
pub(super) fn open(
    settings: &Settings,
    tables: &Tables,
    observed: &Observed,
) -> anyhow::Result<Option<Arc<Mesh>>> {
    let Some(options) = &settings.mesh else { return Ok(None) };
    keep_memory_private()?;
    let (name, source): (Arc<str>, Box<dyn CaSource>) = match &options.certificates {
        CertificateSource::Directory(ca) => {
            let name = node_directory(ca, &settings.node)?.current().identity.name().shared();
            (name, Box::new(DirectorySource::open(ca).context("--ca")?))
        }
        CertificateSource::WorkloadApi { socket, trust_domain } => {
            let api = Arc::new(WorkloadApi::new(socket, trust_domain.clone()));
            tokio::spawn(spiffe::follow(Arc::clone(&api), SystemTime::now, draw));
            (settings.node.as_str().into(), Box::new(api))
        }
    };
    let certificates = WorkloadCertificates::new(source, options.certificate_life);
    let clock = Arc::new(DefaultTimeProvider);
    let names = (name, settings.cluster.as_str().into());
    let mesh = Arc::new(Mesh::new(names, Arc::clone(&tables.current), Arc::new(certificates), clock));
    observed.set_mesh(&mesh);
    Ok(Some(mesh))
}

/// What is given by `--ca`, which has to be this node's.
pub(super) fn node_directory(ca: &Path, node: &str) -> anyhow::Result<NodeDirectory> {
    let directory = NodeDirectory::open(ca).context("--ca")?;
    let name = directory.current().identity.name().shared();
    anyhow::ensure!(
        *name == *node,
        "--ca {}: the certificate is that of the node '{name}', and this one is '{node}'",
        ca.display(),
    );
    Ok(directory)
}

/// Looks at a directory that nothing is made of, so that a wrong one is told all the same.
pub fn check_directory(ca: &Path, node: &str) -> anyhow::Result<()> {
    node_directory(ca, node)?;
    DirectorySource::open(ca).context("--ca").map(drop)
}

/// Where this node's tables are in force.
pub(super) fn realm(node: &str, mesh: Option<&Mesh>) -> Realm {
    let alone = Realm { node: node.into(), ..Realm::default() };
    match mesh {
        Some(mesh) => {
            let trust_domain = mesh.certificates().bundle().trust_domain().to_string().into();
            Realm { trust_domain, tunnels: true, ..alone }
        }
        None => alone,
    }
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
    let (counts, certificates) = (mesh.counts(), mesh.certificates().list());
    let endings = mesh.certificates().endings();
    TlsReading {
        handshakes: counts.handshakes.read(),
        proofs: counts.proofs.read(),
        tunnels_ended: counts.ended.read_refused(),
        streams_refused: counts.streams.read_refused(),
        certificates: certificates.into_iter().map(|(id, until)| (id, since(until))).collect(),
        files: endings.into_iter().map(|ending| (ending.what.clone(), since(ending.not_after()))).collect(),
        versions: Vec::new(),
    }
}

/// What this node's workloads show, as it is dumped.
pub(super) fn dump(mesh: &Mesh) -> Vec<CertificateDump> {
    let link = |link: ShownCertificate| CertDump {
        pem: STANDARD.encode(link.pem),
        serial_number: link.serial,
        valid_from: rfc3339(link.not_before).to_string(),
        expiration_time: rfc3339(link.not_after).to_string(),
    };
    let shown = mesh.certificates().shown().into_iter().map(|(identity, chain)| CertificateDump {
        identity,
        state: "Available".to_owned(),
        cert_chain: chain.into_iter().map(link).collect(),
    });
    shown.collect()
}

/// Keeps certificates for as long as there are tables.
pub(super) async fn keep(mesh: Arc<Mesh>, mut tables: watch::Receiver<Arc<RoutingTable>>) {
    let mut said = None;
    loop {
        let now = mesh.now();
        let turned = mesh.certificates().turn(&mesh.wanted(), now, draw);
        let next = turned.next.and_then(|next| next.duration_since(now).ok());
        tell(&turned, &mut said);
        tokio::time::sleep(PAUSE).await;
        let wait = next.unwrap_or(LOOK).min(LOOK);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            changed = tables.changed() => if changed.is_err() { return },
        }
    }
}

/// Logs what is new of it.
fn tell(turned: &Turned, said: &mut Option<String>) {
    if turned.minted > 0 {
        tracing::info!(count = turned.minted, "certificates of workloads were made");
    }
    let now = turned.trouble();
    if let Some(error) = now.as_ref().filter(|_| now != *said) {
        if turned.forgot() {
            tracing::warn!(error, "workloads have no certificates any more");
        } else {
            tracing::warn!(error, "certificates of workloads stay what they were");
        }
    }
    *said = now;
}

fn draw() -> u8 {
    let mut byte = [0];
    // Without chance all nodes renew at once, which is no reason not to.
    let _ = SystemRandom::new().fill(&mut byte);
    byte[0]
}
