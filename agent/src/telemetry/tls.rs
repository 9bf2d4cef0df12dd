//! The series of mutual TLS between workloads: how handshakes went, and when certificates end.

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
    /// Certificates of this node's workloads: identity, and the second since 1970 in which they end.
    pub certificates: Vec<(String, u64)>,
    /// Likewise what they are made with and believed by: file, and second.
    pub files: Vec<(String, u64)>,
}

type Read = Box<dyn Fn() -> TlsReading + Send + Sync>;

/// The series, and who is asked for them.
pub(super) struct TlsSeries {
    handshakes: IntCounterVec,
    proofs: IntCounterVec,
    tunnels_ended: IntCounterVec,
    certificates: IntGaugeVec,
    files: IntGaugeVec,
    read: OnceLock<Read>,
}

impl TlsSeries {
    pub fn new(registry: &Registry) -> Result<Self, Error> {
        let handshakes = Opts::new(
            "sluice_tls_handshakes_total",
            "Handshakes of mutual TLS between workloads, by this end's role and what came of them.",
        );
        let proofs = Opts::new(
            "sluice_tunnel_proofs_total",
            "Exchanges of new certificates on open tunnels, by this end's role and what came of them.",
        );
        let tunnels_ended = Opts::new(
            "sluice_tunnels_ended_total",
            "Open tunnels that were ended because certificates no longer hold, by this end's role and the reason.",
        );
        let certificates = Opts::new(
            "sluice_certificate_expiry_timestamp_seconds",
            "When the certificates of this node's workloads end.",
        );
        let files = Opts::new(
            "sluice_ca_file_expiry_timestamp_seconds",
            "When what certificates of workloads are made with, and believed by, ends.",
        );
        let series = Self {
            handshakes: IntCounterVec::new(handshakes, &["role", "outcome"])?,
            proofs: IntCounterVec::new(proofs, &["role", "outcome"])?,
            tunnels_ended: IntCounterVec::new(tunnels_ended, &["role", "reason"])?,
            certificates: IntGaugeVec::new(certificates, &["identity"])?,
            files: IntGaugeVec::new(files, &["file"])?,
            read: OnceLock::new(),
        };
        registry.register(Box::new(series.handshakes.clone()))?;
        registry.register(Box::new(series.proofs.clone()))?;
        registry.register(Box::new(series.tunnels_ended.clone()))?;
        registry.register(Box::new(series.certificates.clone()))?;
        registry.register(Box::new(series.files.clone()))?;
        Ok(series)
    }

    /// Only the first reader is taken.
    pub fn watch(&self, read: impl Fn() -> TlsReading + Send + Sync + 'static) {
        let _ = self.read.set(Box::new(read));
    }

    /// Asks for the counts anew.
    pub fn refresh(&self) {
        let Some(read) = self.read.get() else { return };
        let reading = read();
        let tallies = [
            (&self.handshakes, reading.handshakes),
            (&self.proofs, reading.proofs),
            (&self.tunnels_ended, reading.tunnels_ended),
        ];
        for (series, read) in tallies {
            for (role, outcome, count) in read {
                let counter = series.with_label_values(&[role, outcome]);
                counter.inc_by(count.saturating_sub(counter.get()));
            }
        }
        for (series, read) in [(&self.certificates, reading.certificates), (&self.files, reading.files)] {
            // Identities come and go with their pods.
            series.reset();
            for (what, until) in read {
                series.with_label_values(&[&what]).set(i64::try_from(until).unwrap_or(i64::MAX));
            }
        }
    }
}
