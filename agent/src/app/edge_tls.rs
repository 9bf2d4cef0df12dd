//! TLS at Gateways, and certificates of Secrets, as the metrics show them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Once};
use std::time::SystemTime;

use arc_swap::ArcSwap;

use super::mesh;
use crate::compile::RoutingTable;
use crate::config::{ObjectState, Report, Severity};
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

/// When each certificate ends, by its Secret, in seconds since 1970.
fn ends(table: &RoutingTable) -> BTreeMap<String, u64> {
    let since = |until: SystemTime| until.duration_since(SystemTime::UNIX_EPOCH).ok();
    let end = |one: &Arc<ServerCertificate>| {
        Some((format!("secret/{}", one.secret), since(edge::ending(one)?.not_after())?.as_secs()))
    };
    in_use(table).filter_map(end).collect()
}

/// What somebody has to look at: Secrets that are refused, and certificates that end soon or have ended.
pub(super) fn alerts(table: &RoutingTable, report: &Report, now: SystemTime) -> Vec<String> {
    let secrets = report.objects.iter().filter(|object| *object.kind == *"Secret");
    let refused = secrets.filter_map(|object| {
        let ObjectState::Rejected { last_good } = object.state else { return None };
        let why = object.messages.iter().find(|message| message.severity == Severity::Error)?;
        let then = if last_good { "the one before stays in use" } else { "it is not used" };
        Some(format!("Secret {}/{}: {}; {then}", object.namespace, object.name, why.text))
    });
    let ending: BTreeSet<_> = in_use(table).filter_map(|one| edge::ending(one)?.alert(now)).collect();
    refused.chain(ending).collect()
}

/// The certificates that Gateways, and DestinationRules, show.
fn in_use(table: &RoutingTable) -> impl Iterator<Item = &Arc<ServerCertificate>> {
    let ports = table.gateways.iter().filter_map(|gateway| gateway.tls.as_ref());
    let servers = ports.flat_map(|port| port.servers.iter().map(|(_, server)| server));
    let certificates =
        servers.filter_map(|server| server.terms.as_ref()).flat_map(|terms| &terms.certificates);
    certificates.chain(shown_upstream(table))
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

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;
    use crate::compile::{TableVersion, compile};
    use crate::config::{InputFile, State, load};

    /// A Gateway, and the Secret of its listener, whose certificate ends with a year.
    fn documents(until: i32) -> Vec<InputFile> {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec!["a.test".to_owned()]).expect("names");
        (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(until, 1, 1));
        let chain = params.self_signed(&key).expect("signs").pem();
        let entries = serde_json::json!({"tls.crt": chain, "tls.key": key.serialize_pem()});
        let text = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: edge}}\nspec: {{gatewayClassName: sluice, \
             listeners: [{{name: a, port: 443, protocol: HTTPS, tls: {{certificateRefs: [{{name: cert}}]}}}}]}}\n---\n\
             apiVersion: v1\nkind: Secret\nmetadata: {{name: cert}}\ntype: kubernetes.io/tls\nstringData: {entries}\n"
        );
        vec![InputFile { path: "a.yaml".into(), text: Ok(text) }]
    }

    #[test]
    fn who_looks_after_secrets_is_told_what_is_over_and_what_is_refused() {
        let told = |state: &State| {
            let table = compile(&state.model, &RoutingTable::default(), TableVersion::default());
            alerts(&table, &state.report, SystemTime::now())
        };
        let good = load(&State::default(), documents(4000));
        assert_eq!(told(&good), [""; 0]);
        let ended = told(&load(&State::default(), documents(2002)));
        assert_eq!(ended.len(), 1, "{ended:?}");
        assert!(
            ended[0].starts_with("the certificate of Secret default/cert has ended at 2002-"),
            "{ended:?}"
        );
        let refused = told(&load(&good, documents(2002)));
        assert_eq!(refused.len(), 1, "{refused:?}");
        let expected = "Secret default/cert: tls.crt: the certificate has ended at 2002-";
        assert!(refused[0].starts_with(expected), "{refused:?}");
        assert!(refused[0].ends_with("; the one before stays in use"), "{refused:?}");
    }
}
