//! The cluster's series and those of health checks, read when the metrics are.

use std::sync::OnceLock;
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{Error, Gauge, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// What is read of the cluster.
#[derive(Debug, Clone, Default, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a gauge of its own")]
pub struct ClusterReading {
    /// Whether this agent leads.
    pub leads: bool,
    /// Members by state.
    pub nodes: [(&'static str, usize); 4],
    /// Since when the table in force is; `None`: none is.
    pub table_age: Option<Duration>,
    /// Published tables that were refused, by reason.
    pub refused: Vec<(&'static str, u64)>,
    /// Whether this agent leads and holds back what the documents say.
    pub held_back: bool,
    /// Whether it refuses the documents of the store.
    pub documents_refused: bool,
    /// Documents that it refused, by reason.
    pub document_refusals: Vec<(&'static str, u64)>,
    /// Whether it leads and the store contradicts itself about documents.
    pub at_odds: bool,
    /// How often it found that.
    pub odds: u64,
    /// Tables that this agent published.
    pub publications: u64,
    /// Publications that were refused because it led no more.
    pub fenced: u64,
    /// Faults by which the cluster's tasks ended and began anew.
    pub faults: u64,
    /// Whether nothing is wrong with the store.
    pub store_up: bool,
    /// How often it came back.
    pub store_reconnects: u64,
}

/// Health checks by outcome.
pub type ProbeReading = [(&'static str, u64); 3];

/// Reads something whenever the metrics are.
type Read<T> = OnceLock<Box<dyn Fn() -> T + Send + Sync>>;

/// The series. Those of the cluster are there where there is one.
pub(super) struct ClusterSeries {
    registry: Registry,
    read: Read<(ClusterReading, Series)>,
    probes: IntCounterVec,
    read_probes: Read<ProbeReading>,
}

/// The series of a [`ClusterReading`].
#[derive(Clone)]
struct Series {
    leader: IntGauge,
    nodes: IntGaugeVec,
    table_age: Gauge,
    refused: IntCounterVec,
    held_back: IntGauge,
    documents_refused: IntGauge,
    document_refusals: IntCounterVec,
    at_odds: IntGauge,
    odds: IntCounter,
    publications: IntCounter,
    fenced: IntCounter,
    faults: IntCounter,
    store_up: IntGauge,
    reconnects: IntCounter,
}

impl ClusterSeries {
    pub(super) fn new(registry: &Registry) -> Result<Self, Error> {
        let opts =
            Opts::new("sluice_probes_total", "Health checks of this node's pods, by what came of them.");
        let probes = IntCounterVec::new(opts, &["outcome"])?;
        registry.register(Box::new(probes.clone()))?;
        Ok(Self { registry: registry.clone(), read: OnceLock::new(), probes, read_probes: OnceLock::new() })
    }

    /// Only the first reader is taken.
    pub(super) fn watch(&self, read: impl Fn() -> ClusterReading + Send + Sync + 'static) {
        match Series::new(&self.registry) {
            Ok(series) => {
                let _ = self.read.set(Box::new(move || (read(), series.clone())));
            }
            Err(error) => tracing::error!(%error, "the cluster's metrics are missing"),
        }
    }

    /// Likewise.
    pub(super) fn watch_probes(&self, read: impl Fn() -> ProbeReading + Send + Sync + 'static) {
        let _ = self.read_probes.set(Box::new(read));
    }

    /// Shows what is read now.
    pub(super) fn refresh(&self) {
        for (outcome, count) in self.read_probes.get().map(|read| read()).unwrap_or_default() {
            catch_up(&self.probes.with_label_values(&[outcome]), count);
        }
        if let Some((reading, series)) = self.read.get().map(|read| read()) {
            series.show(&reading);
        }
    }
}

impl Series {
    fn new(registry: &Registry) -> Result<Self, Error> {
        let gauge = |name: &str, help: &str| registered(registry, IntGauge::new(name, help)?);
        let counter = |name: &str, help: &str| registered(registry, IntCounter::new(name, help)?);
        let refused =
            Opts::new("sluice_tables_refused_total", "Published tables that this agent refused, by reason.");
        let document_refusals = Opts::new(
            "sluice_documents_refused_total",
            "How often this agent refused the documents of the store, by reason.",
        );
        Ok(Self {
            leader: gauge("sluice_leader", "Whether this agent leads.")?,
            nodes: registered(
                registry,
                IntGaugeVec::new(Opts::new("sluice_nodes", "Members of the cluster, by state."), &["state"])?,
            )?,
            table_age: registered(
                registry,
                Gauge::new(
                    "sluice_table_age_seconds",
                    "Since the table in force was applied; -1: none was.",
                )?,
            )?,
            refused: registered(registry, IntCounterVec::new(refused, &["reason"])?)?,
            held_back: gauge(
                "sluice_cluster_change_held_back",
                "Whether this agent leads and holds back what the documents say.",
            )?,
            documents_refused: gauge(
                "sluice_cluster_documents_refused",
                "Whether this agent refuses the documents of the store.",
            )?,
            document_refusals: registered(registry, IntCounterVec::new(document_refusals, &["reason"])?)?,
            at_odds: gauge(
                "sluice_cluster_documents_at_odds",
                "Whether this agent leads and the store contradicts itself about documents.",
            )?,
            odds: counter(
                "sluice_documents_at_odds_total",
                "How often this agent, as the leader, found that the store contradicts itself about documents.",
            )?,
            publications: counter("sluice_publications_total", "Tables that this agent published.")?,
            fenced: counter(
                "sluice_publications_fenced_total",
                "Publications that were refused because this agent led no more.",
            )?,
            faults: counter(
                "sluice_cluster_faults_total",
                "Faults of this agent by which its cluster tasks ended and began anew.",
            )?,
            store_up: gauge("sluice_store_up", "Whether nothing is wrong with the store.")?,
            reconnects: counter("sluice_store_reconnects_total", "How often the store came back.")?,
        })
    }

    fn show(&self, reading: &ClusterReading) {
        self.leader.set(i64::from(reading.leads));
        for (state, count) in reading.nodes {
            self.nodes.with_label_values(&[state]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        self.table_age.set(reading.table_age.map_or(-1.0, |age| age.as_secs_f64()));
        for (reason, count) in &reading.refused {
            catch_up(&self.refused.with_label_values(&[*reason]), *count);
        }
        self.held_back.set(i64::from(reading.held_back));
        self.documents_refused.set(i64::from(reading.documents_refused));
        for (reason, count) in &reading.document_refusals {
            catch_up(&self.document_refusals.with_label_values(&[*reason]), *count);
        }
        self.at_odds.set(i64::from(reading.at_odds));
        catch_up(&self.odds, reading.odds);
        catch_up(&self.publications, reading.publications);
        catch_up(&self.fenced, reading.fenced);
        catch_up(&self.faults, reading.faults);
        self.store_up.set(i64::from(reading.store_up));
        catch_up(&self.reconnects, reading.store_reconnects);
    }
}

fn registered<M: Collector + Clone + 'static>(registry: &Registry, metric: M) -> Result<M, Error> {
    registry.register(Box::new(metric.clone())).map(|()| metric)
}

fn catch_up(counter: &IntCounter, count: u64) {
    counter.inc_by(count.saturating_sub(counter.get()));
}
