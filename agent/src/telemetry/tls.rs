//! The series of TLS, between workloads and at Gateways: how handshakes went, and when certificates end.

use std::sync::OnceLock;

use prometheus::{Error, IntCounterVec, IntGaugeVec, Opts, Registry};

/// What is known of it now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsReading {
    /// Handshakes by this end's role and outcome.
    pub handshakes: Vec<(&'static str, &'static str, u64)>,
    /// Certificates that were shown anew on open tunnels, likewise.
    pub proofs: Vec<(&'static str, &'static str, u64)>,
    /// Open tunnels that were ended, by this end's role and reason.
    pub tunnels_ended: Vec<(&'static str, &'static str, u64)>,
    /// Streams of tunnels that were refused, likewise.
    pub streams_refused: Vec<(&'static str, &'static str, u64)>,
    /// Likewise what they are made with and believed by: file, and second.
    pub files: Vec<(String, u64)>,
    /// Certificates in use: identity, or the Secret that one is of, and the second since 1970 in which they end.
    pub certificates: Vec<(String, u64)>,
    /// Handshakes with clients of Gateways that came to their end, by version.
    pub versions: Vec<(&'static str, u64)>,
}

type Read = Box<dyn Fn() -> TlsReading + Send + Sync>;

/// The series, and who is asked for them.
pub(super) struct TlsSeries {
    handshakes: IntCounterVec,
    proofs: IntCounterVec,
    tunnels_ended: IntCounterVec,
    streams_refused: IntCounterVec,
    certificates: IntGaugeVec,
    files: IntGaugeVec,
    versions: IntCounterVec,
    read: OnceLock<Read>,
    edge: OnceLock<Read>,
}

impl TlsSeries {
    pub fn new(registry: &Registry) -> Result<Self, Error> {
        let handshakes = Opts::new(
            "sluice_tls_handshakes_total",
            "TLS handshakes, by this end's role and what came of them: client and server between workloads, gateway with clients of Gateways.",
        );
        let proofs = Opts::new(
            "sluice_tunnel_proofs_total",
            "Exchanges of new certificates on open tunnels, by this end's role and what came of them.",
        );
        let tunnels_ended = Opts::new(
            "sluice_tunnels_ended_total",
            "Open tunnels that were ended because certificates no longer hold, by this end's role and the reason.",
        );
        let streams_refused = Opts::new(
            "sluice_tunnel_streams_refused_total",
            "Streams of tunnels that were refused before anything was dialled for them, by this end's role and the reason.",
        );
        let certificates = Opts::new(
            "sluice_certificate_expiry_timestamp_seconds",
            "When certificates end: those of this node's workloads, by identity, and those that Gateways show, by Secret.",
        );
        let versions = Opts::new(
            "sluice_gateway_tls_versions_total",
            "TLS handshakes with clients of Gateways that came to their end, by the version that is spoken.",
        );
        let files = Opts::new(
            "sluice_ca_file_expiry_timestamp_seconds",
            "When what certificates of workloads are made with, and believed by, ends.",
        );
        let series = Self {
            handshakes: IntCounterVec::new(handshakes, &["role", "outcome"])?,
            proofs: IntCounterVec::new(proofs, &["role", "outcome"])?,
            tunnels_ended: IntCounterVec::new(tunnels_ended, &["role", "reason"])?,
            streams_refused: IntCounterVec::new(streams_refused, &["role", "reason"])?,
            certificates: IntGaugeVec::new(certificates, &["identity"])?,
            files: IntGaugeVec::new(files, &["file"])?,
            versions: IntCounterVec::new(versions, &["version"])?,
            read: OnceLock::new(),
            edge: OnceLock::new(),
        };
        registry.register(Box::new(series.handshakes.clone()))?;
        registry.register(Box::new(series.proofs.clone()))?;
        registry.register(Box::new(series.tunnels_ended.clone()))?;
        registry.register(Box::new(series.streams_refused.clone()))?;
        registry.register(Box::new(series.certificates.clone()))?;
        registry.register(Box::new(series.files.clone()))?;
        registry.register(Box::new(series.versions.clone()))?;
        Ok(series)
    }

    /// Only the first reader is taken.
    pub fn watch(&self, read: impl Fn() -> TlsReading + Send + Sync + 'static) {
        let _ = self.read.set(Box::new(read));
    }

    /// The same for Gateways.
    pub fn watch_edge(&self, read: impl Fn() -> TlsReading + Send + Sync + 'static) {
        let _ = self.edge.set(Box::new(read));
    }

    /// Asks for the counts anew.
    pub fn refresh(&self) {
        // Identities come and go with their pods, Secrets with their documents.
        self.certificates.reset();
        self.files.reset();
        for read in [&self.read, &self.edge].into_iter().filter_map(OnceLock::get) {
            self.take(read());
        }
    }

    fn take(&self, reading: TlsReading) {
        let tallies = [
            (&self.handshakes, reading.handshakes),
            (&self.proofs, reading.proofs),
            (&self.tunnels_ended, reading.tunnels_ended),
            (&self.streams_refused, reading.streams_refused),
        ];
        for (series, read) in tallies {
            for (role, outcome, count) in read {
                let counter = series.with_label_values(&[role, outcome]);
                counter.inc_by(count.saturating_sub(counter.get()));
            }
        }
        for (version, count) in reading.versions {
            let counter = self.versions.with_label_values(&[version]);
            counter.inc_by(count.saturating_sub(counter.get()));
        }
        for (series, read) in [(&self.certificates, reading.certificates), (&self.files, reading.files)] {
            for (what, until) in read {
                series.with_label_values(&[&what]).set(i64::try_from(until).unwrap_or(i64::MAX));
            }
        }
    }
}
