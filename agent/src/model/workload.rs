//! Workloads: the pods behind addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::{ObjectName, Probe};

/// The label by which a pod takes its connections through tunnels, as Istio has it, and the value that says so.
const TUNNEL: (&str, &str) = ("networking.istio.io/tunnel", "http");

/// Labels of a pod, a service or an endpoint.
pub type Labels = BTreeMap<Arc<str>, Arc<str>>;

/// A pod as traffic sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// The pod's own name.
    pub name: ObjectName,
    /// The pod's uid, or `namespace/name` where the document has none.
    pub uid: Arc<str>,
    /// The controller's name (Deployment, StatefulSet, ...), as Istio's `*_workload` labels have it; the pod's name
    /// where it has no controller.
    pub workload: Arc<str>,
    /// The node that runs it, where known.
    pub node: Option<Arc<str>>,
    /// The service account; `default` where the document gives none.
    pub service_account: Arc<str>,
    /// The pod's addresses, v4 and v6.
    pub addresses: Vec<IpAddr>,
    /// The pod's labels.
    pub labels: Arc<Labels>,
    /// Whether its connections within the node may be accelerated.
    pub accelerated: bool,
    /// Whether the pod's Ready condition holds; true where the document has no status.
    pub ready: bool,
    /// What the node that runs it asks it; it takes work only while it passes all of them.
    pub probes: Vec<Probe>,
}

impl Workload {
    /// Whether other nodes' pods reach it through tunnels (HBONE).
    pub fn is_tunnelled(&self) -> bool {
        self.labels.get(TUNNEL.0).is_some_and(|value| **value == *TUNNEL.1)
    }

    /// The name of the service that it is an instance of, as Istio tells it by labels; its workload's where they do not say.
    pub fn canonical_name(&self) -> &str {
        let labels = ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"];
        self.first_label(&labels).unwrap_or(&self.workload)
    }

    /// The version of that service, likewise; `latest` where they do not say.
    pub fn canonical_revision(&self) -> &str {
        let labels = ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"];
        self.first_label(&labels).unwrap_or("latest")
    }

    /// What runs it, in Istio's words: `pod` where nothing does, else `deployment`, for the document does not tell more.
    pub fn workload_type(&self) -> &'static str {
        if self.workload == self.name.name { "pod" } else { "deployment" }
    }

    fn first_label(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|name| self.labels.get(*name)).map(|value| &**value)
    }
}
