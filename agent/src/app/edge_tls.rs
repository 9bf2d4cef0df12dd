//! TLS at Gateways as the metrics show it.

use std::collections::BTreeMap;
use std::sync::{Arc, Once};

use arc_swap::ArcSwap;

use super::mesh;
use crate::compile::RoutingTable;
use crate::identity::edge;
use crate::proxy::Admission;
use crate::telemetry::{Metrics, TlsReading};

/// Shows what came of handshakes, and when the certificates end that the table in force has.
pub(super) fn watch(metrics: &Metrics, admission: &Arc<Admission>, tables: &Arc<ArcSwap<RoutingTable>>) {
    let (admission, tables) = (Arc::clone(admission), Arc::clone(tables));
    metrics.watch_edge_tls(move || {
        let handshakes = admission.handshakes();
        let outcomes = handshakes.read();
        TlsReading {
            handshakes: outcomes.into_iter().map(|(outcome, count)| ("gateway", outcome, count)).collect(),
            certificates: ends(&tables.load()).into_iter().collect(),
            versions: handshakes.versions().to_vec(),
            ..TlsReading::default()
        }
    });
}

/// When each certificate ends, by its Secret.
fn ends(table: &RoutingTable) -> BTreeMap<String, u64> {
    let ports = table.gateways.iter().filter_map(|gateway| gateway.tls.as_ref());
    let servers = ports.flat_map(|port| port.servers.iter().map(|(_, server)| server));
    let certificates = servers.flat_map(|server| &server.terms.certificates);
    certificates.filter_map(|one| Some((format!("secret/{}", one.secret), edge::ends(one)?))).collect()
}

/// From the first table on that has keys of Gateways, nobody else looks into the process's memory.
pub(super) fn keep_private(table: &RoutingTable) {
    static KEPT: Once = Once::new();
    if table.gateways.iter().any(|gateway| gateway.tls.is_some()) {
        KEPT.call_once(|| {
            if let Err(error) = mesh::keep_memory_private() {
                tracing::warn!(error = format!("{error:#}"), "keys in memory may get into a core file");
            }
        });
    }
}
