//! `/config_dump` in ztunnel's shape, which `istioctl ztunnel-config` reads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::compile::{Cluster, RoutingTable};
use crate::model::{ObjectName, Workload};

/// The dump. Policies, certificates and the proxies' own workload state are empty until the agent has them.
pub(super) fn config_dump(table: &RoutingTable) -> Value {
    let workloads: BTreeMap<&ObjectName, &Arc<Workload>> =
        table.workloads.values().map(|workload| (&workload.name, workload)).collect();
    json!({
        "workloads": workloads.values().map(|found| workload(found)).collect::<Vec<_>>(),
        "services": services(table),
        "policies": [],
        "certificates": [],
        "workloadState": {},
    })
}

fn workload(workload: &Workload) -> Value {
    let label =
        |names: &[&str]| names.iter().find_map(|name| workload.labels.get(*name)).map(ToString::to_string);
    json!({
        "uid": &*workload.uid,
        "workloadIps": workload.addresses,
        "protocol": "TCP",
        "name": &*workload.name.name,
        "namespace": &*workload.name.namespace,
        "serviceAccount": &*workload.service_account,
        "workloadName": &*workload.workload,
        "workloadType": if workload.workload == workload.name.name { "pod" } else { "deployment" },
        "canonicalName": label(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"])
            .unwrap_or_else(|| workload.workload.to_string()),
        "canonicalRevision": label(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"])
            .unwrap_or_else(|| "latest".to_owned()),
        "node": workload.node.as_deref().unwrap_or_default(),
        "status": if workload.ready { "Healthy" } else { "Unhealthy" },
    })
}

fn services(table: &RoutingTable) -> Vec<Value> {
    let mut by_name: BTreeMap<&ObjectName, Vec<&Arc<Cluster>>> = BTreeMap::new();
    for cluster in table.clusters.values().filter(|cluster| cluster.key.subset.is_none()) {
        by_name.entry(&cluster.key.service).or_default().push(cluster);
    }
    let mut vips: BTreeMap<&ObjectName, BTreeSet<String>> = BTreeMap::new();
    for (address, frontend) in table.frontends.iter().filter(|(_, frontend)| !frontend.headless) {
        // The part before the slash is the network, of which there is one without a name.
        vips.entry(&frontend.service).or_default().insert(format!("/{}", address.ip()));
    }
    let service = |(name, clusters): (&ObjectName, Vec<&Arc<Cluster>>)| {
        json!({
            "name": &*name.name,
            "namespace": &*name.namespace,
            "hostname": name.fqdn(),
            "vips": vips.get(name).cloned().unwrap_or_default(),
            "ports": ports(&clusters),
            "endpoints": endpoints(name, &clusters),
            "subjectAltNames": [],
        })
    };
    by_name.into_iter().map(service).collect()
}

/// Service port to target port; the port itself where no endpoint says.
fn ports(clusters: &[&Arc<Cluster>]) -> Map<String, Value> {
    let target =
        |cluster: &Cluster| cluster.endpoints.first().map_or(cluster.key.port, |first| first.address.port());
    clusters.iter().map(|cluster| (cluster.key.port.to_string(), json!(target(cluster)))).collect()
}

fn endpoints(service: &ObjectName, clusters: &[&Arc<Cluster>]) -> BTreeMap<String, Value> {
    let mut ports: BTreeMap<&Arc<str>, Map<String, Value>> = BTreeMap::new();
    for cluster in clusters {
        for upstream in &cluster.endpoints {
            let target = json!(upstream.address.port());
            ports.entry(&upstream.uid).or_default().insert(cluster.key.port.to_string(), target);
        }
    }
    let endpoint = |(uid, port): (&Arc<str>, _)| {
        let service = format!("{}/{}", service.namespace, service.fqdn());
        let value = json!({ "workloadUid": &**uid, "service": service, "port": Value::Object(port) });
        (uid.to_string(), value)
    };
    ports.into_iter().map(endpoint).collect()
}
