//! The series of mutual TLS between workloads: how handshakes went, and when certificates end.

use std::sync::OnceLock;

use prometheus::{Error, IntCounterVec, IntGaugeVec, Opts, Registry};

/// What is known of it now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsReading {
    /// Handshakes by this end's role and outcome.
    pub handshakes: Vec<(&'static str, &'static str, u64)>,
    /// Certificates of this node's workloads: identity, and the second since 1970 in which they end.
    pub certificates: Vec<(String, u64)>,
}

type Read = Box<dyn Fn() -> TlsReading + Send + Sync>;

/// The series, and who is asked for them.
pub(super) struct TlsSeries {
    handshakes: IntCounterVec,
    certificates: IntGaugeVec,
    read: OnceLock<Read>,
}

impl TlsSeries {
    pub fn new(registry: &Registry) -> Result<Self, Error> {
        let handshakes = Opts::new(
            "sluice_tls_handshakes_total",
            "Handshakes of mutual TLS between workloads, by this end's role and what came of them.",
        );
        let certificates = Opts::new(
            "sluice_certificate_expiry_timestamp_seconds",
            "When the certificates of this node's workloads end.",
        );
        let series = Self {
            handshakes: IntCounterVec::new(handshakes, &["role", "outcome"])?,
            certificates: IntGaugeVec::new(certificates, &["identity"])?,
            read: OnceLock::new(),
        };
        registry.register(Box::new(series.handshakes.clone()))?;
        registry.register(Box::new(series.certificates.clone()))?;
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
        for (role, outcome, count) in reading.handshakes {
            let counter = self.handshakes.with_label_values(&[role, outcome]);
            counter.inc_by(count.saturating_sub(counter.get()));
        }
        // Identities come and go with their pods.
        self.certificates.reset();
        for (identity, until) in reading.certificates {
            let gauge = self.certificates.with_label_values(&[&identity]);
            gauge.set(i64::try_from(until).unwrap_or(i64::MAX));
        }
    }
}
