//! TLS at Gateways, and certificates of Secrets, as the metrics show them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;

use super::mesh;
use crate::compile::{Cluster, ClusterKey, RoutingTable};
use crate::config::{ObjectState, Report, Severity};
use crate::identity::edge;
use crate::model::{ServerCertificate, SharedMap};
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
        let is_shown = |one: &Arc<ServerCertificate>| {
            one.secret.namespace == object.namespace && one.secret.name == object.name
        };
        let then = match last_good {
            true if in_use(table).any(is_shown) => "the one before stays in use",
            // One that gives no certificate, and is as good as none.
            true => "the one before is kept, and no certificate of it is shown",
            false => "it is not used",
        };
        // The certificate's own field says nothing that the text does not.
        let field = if why.text.starts_with("tls.") || why.field.is_empty() {
            String::new()
        } else {
            format!("{}: ", why.field)
        };
        Some(format!("Secret {}/{}: {field}{}; {then}", object.namespace, object.name, why.text))
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
    table.clusters.values().flat_map(|cluster| shown_by(cluster))
}

fn shown_by(cluster: &Cluster) -> impl Iterator<Item = &Arc<ServerCertificate>> {
    let securities = [&cluster.from_pods, &cluster.from_gateways].into_iter();
    securities.filter_map(|security| security.tls()?.terms.client.as_ref())
}

/// From the first table on that has keys of Secrets, nobody else looks into the process's memory.
#[derive(Default)]
pub(super) struct Privacy {
    kept: bool,
    /// The clusters of the last table, none of which had any: only others are looked at again.
    without: SharedMap<ClusterKey, Arc<Cluster>>,
}

impl Privacy {
    /// Looks at the next table.
    pub(super) fn keep(&mut self, table: &RoutingTable) {
        if self.kept {
            return;
        }
        let mut keys = table.gateways.iter().any(|gateway| gateway.tls.is_some());
        self.without.differences(&table.clusters, Arc::ptr_eq, |_, _, is| {
            keys |= is.is_some_and(|cluster| shown_by(cluster).next().is_some());
        });
        if !keys {
            self.without = table.clusters.clone();
            return;
        }
        *self = Self { kept: true, ..Self::default() };
        if let Err(error) = mesh::keep_memory_private() {
            tracing::warn!(error = format!("{error:#}"), "keys in memory may get into a core file");
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;
    use crate::compile::{TableVersion, compile};
    use crate::config::{InputFile, State, check, load};

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
        let changed = |from: &str, to: &str| {
            let mut files = documents(4000);
            for text in files.iter_mut().filter_map(|file| file.text.as_mut().ok()) {
                *text = text.replace(from, to);
            }
            files
        };
        let wrong = || changed("stringData: ", "stringDate: ");
        let useless = load(&good, changed("type: kubernetes.io/tls", "type: Opaque"));
        let refused = told(&load(&useless, wrong()));
        let kept =
            |line: &String| line.ends_with("; the one before is kept, and no certificate of it is shown");
        assert!(refused.len() == 1 && kept(&refused[0]), "{refused:?}");
        let refused = told(&load(&good, wrong()));
        assert!(refused.len() == 1 && refused[0].contains("stringDate: unknown field"), "{refused:?}");
        // Whoever applies one that is over is told beforehand.
        let (errors, lines) = check(&documents(2002), Vec::new());
        assert!(
            errors.is_empty() && lines.iter().any(|line| line.contains("has ended at 2002-")),
            "{lines:?}"
        );
    }
}
