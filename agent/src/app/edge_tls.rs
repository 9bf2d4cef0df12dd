//! TLS at Gateways, and certificates of Secrets, as the metrics show them.

use std::collections::BTreeMap;
use std::sync::{Arc, Once};

use arc_swap::ArcSwap;

use super::mesh;
use crate::compile::RoutingTable;
use crate::identity::edge;
use crate::model::ServerCertificate;
use crate::proxy::{Admission, AdmissionSettings};
use crate::telemetry::{Metrics, TlsReading};

/// What counts connections and handshakes; the metrics show what came of handshakes, and when the certificates end that the table
/// in force has.
pub(super) fn admission(
    settings: &AdmissionSettings,
    (metrics, tables): (&Metrics, &Arc<ArcSwap<RoutingTable>>),
) -> Arc<Admission> {
    let admission = Arc::new(Admission::new(settings));
    let (counted, tables) = (Arc::clone(&admission), Arc::clone(tables));
    metrics.watch_edge_tls(move || {
        let handshakes = counted.handshakes();
        let outcomes = handshakes.read();
        TlsReading {
            handshakes: outcomes.into_iter().map(|(outcome, count)| ("gateway", outcome, count)).collect(),
            certificates: ends(&tables.load()).into_iter().collect(),
            versions: handshakes.versions().to_vec(),
            ..TlsReading::default()
        }
    });
    admission
}

/// When each certificate ends, by its Secret.
fn ends(table: &RoutingTable) -> BTreeMap<String, u64> {
    let ports = table.gateways.iter().filter_map(|gateway| gateway.tls.as_ref());
    let servers = ports.flat_map(|port| port.servers.iter().map(|(_, server)| server));
    let certificates =
        servers.filter_map(|server| server.terms.as_ref()).flat_map(|terms| &terms.certificates);
    let certificates = certificates.chain(shown_upstream(table));
    certificates.filter_map(|one| Some((format!("secret/{}", one.secret), edge::ends(one)?))).collect()
}

/// What endpoints are shown for DestinationRules.
fn shown_upstream(table: &RoutingTable) -> impl Iterator<Item = &Arc<ServerCertificate>> {
    let securities = table.clusters.values().flat_map(|one| [&one.from_pods, &one.from_gateways]);
    securities.filter_map(|security| security.tls()?.terms.client.as_ref())
}

/// From the first table on that has keys of Secrets, nobody else looks into the process's memory.
pub(super) fn keep_private(table: &RoutingTable) {
    static KEPT: Once = Once::new();
    if KEPT.is_completed() {
        return;
    }
    if table.gateways.iter().any(|gateway| gateway.tls.is_some()) || shown_upstream(table).next().is_some() {
        KEPT.call_once(|| {
            if let Err(error) = mesh::keep_memory_private() {
                tracing::warn!(error = format!("{error:#}"), "keys in memory may get into a core file");
            }
        });
    }
}
