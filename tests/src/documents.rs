//! The lab as Kubernetes would tell it: Services, EndpointSlices and Pods as YAML documents.

use std::fmt::Write;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};

use crate::address;
use crate::topology::{Pod, Service, Topology};

/// Writes the documents of a topology into a directory, each file whole or not at all.
pub fn write_all(topology: &Topology, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    let files = [
        ("services.yaml", services(topology)),
        ("endpoints.yaml", slices(topology)),
        ("pods.yaml", pods(topology)),
    ];
    for (name, text) in files {
        replace_file(&directory.join(name), &text)?;
    }
    Ok(())
}

/// Replaces a file in one step, as editors and ConfigMap updates do: a reader sees the old text or the new.
pub fn replace_file(path: &Path, text: &str) -> Result<()> {
    let name = path.file_name().context("a document needs a file name")?.to_string_lossy();
    // The leading dot and the suffix keep directory watchers from taking it for a document.
    let draft = path.with_file_name(format!(".{name}.draft"));
    fs::write(&draft, text).with_context(|| format!("writing {}", draft.display()))?;
    fs::rename(&draft, path).with_context(|| format!("renaming to {}", path.display()))
}

/// The Services.
pub fn services(topology: &Topology) -> String {
    let mut text = String::new();
    for (index, service) in topology.services.iter().enumerate() {
        let ip = address::cluster_ip(index);
        let ports = service.ports.iter().fold(String::new(), |mut ports, port| {
            let _ = write!(
                ports,
                "    - name: {}\n      protocol: TCP\n      port: {}\n      targetPort: {}\n",
                port.name, port.port, port.target_port
            );
            if let Some(protocol) = &port.app_protocol {
                let _ = writeln!(ports, "      appProtocol: {protocol}");
            }
            ports
        });
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: {}\n  namespace: {}\nspec:\n  type: ClusterIP\n  \
             clusterIP: {}\n  clusterIPs:\n    - {}\n    - \"{}\"\n  ipFamilies: [IPv4, IPv6]\n  \
             ipFamilyPolicy: RequireDualStack\n  selector:\n{}  ports:\n{ports}",
            service.name,
            service.namespace,
            ip.v4,
            ip.v4,
            ip.v6,
            mapping(service.selector.iter(), 4),
        );
    }
    text
}

/// The EndpointSlices: one per service and family.
pub fn slices(topology: &Topology) -> String {
    let mut text = String::new();
    for service in &topology.services {
        for family in [Family::V4, Family::V6] {
            text.push_str(&slice(topology, service, family));
        }
    }
    text
}

/// The Pods.
pub fn pods(topology: &Topology) -> String {
    let mut text = String::new();
    for pod in &topology.pods {
        let Some(place) = address::place(topology, &pod.name) else { continue };
        let ip = place.address();
        let labels = if pod.labels.is_empty() {
            String::new()
        } else {
            format!("  labels:\n{}", mapping(pod.labels.iter(), 4))
        };
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  uid: {uid}\n\
             {labels}spec:\n  nodeName: {node}\n  serviceAccountName: default\n  containers:\n    - name: main\n      \
             image: lab/main\nstatus:\n  phase: Running\n  hostIP: {host}\n  podIP: {v4}\n  podIPs:\n    - ip: {v4}\n    \
             - ip: \"{v6}\"\n  conditions:\n    - type: Ready\n      status: \"{ready}\"\n",
            name = pod.name,
            namespace = pod.namespace,
            uid = uid(pod),
            node = pod.node,
            host = address::node(place.node).v4,
            v4 = ip.v4,
            v6 = ip.v6,
            ready = if pod.ready { "True" } else { "False" },
        );
    }
    text
}

#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
}

fn slice(topology: &Topology, service: &Service, family: Family) -> String {
    let (suffix, kind) = match family {
        Family::V4 => ("v4", "IPv4"),
        Family::V6 => ("v6", "IPv6"),
    };
    let (name, namespace) = (&service.name, &service.namespace);
    let mut text = format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-{suffix}\n  \
         namespace: {namespace}\n  labels:\n    kubernetes.io/service-name: {name}\naddressType: {kind}\nports:\n"
    );
    for port in &service.ports {
        let _ = writeln!(text, "  - name: {}\n    protocol: TCP\n    port: {}", port.name, port.target_port);
        if let Some(protocol) = &port.app_protocol {
            let _ = writeln!(text, "    appProtocol: {protocol}");
        }
    }
    let behind: Vec<&Pod> = topology.pods.iter().filter(|pod| service.selects(pod)).collect();
    text.push_str(if behind.is_empty() { "endpoints: []\n" } else { "endpoints:\n" });
    for pod in behind {
        let Some(place) = address::place(topology, &pod.name) else { continue };
        let ip: IpAddr = match family {
            Family::V4 => place.address().v4.into(),
            Family::V6 => place.address().v6.into(),
        };
        let _ = write!(
            text,
            "  - addresses: [\"{ip}\"]\n    conditions:\n      ready: {ready}\n      serving: {ready}\n      \
             terminating: false\n    nodeName: {node}\n    targetRef:\n      kind: Pod\n      name: {name}\n      \
             namespace: {namespace}\n      uid: {uid}\n",
            ready = pod.ready,
            node = pod.node,
            name = pod.name,
            namespace = pod.namespace,
            uid = uid(pod),
        );
    }
    text
}

/// A uid that is the same in every run, so that documents can be compared.
fn uid(pod: &Pod) -> String {
    format!("uid-{}-{}", pod.namespace, pod.name)
}

fn mapping<'a>(entries: impl Iterator<Item = (&'a String, &'a String)>, indent: usize) -> String {
    entries.fold(String::new(), |mut text, (key, value)| {
        let _ = writeln!(text, "{:indent$}{key}: \"{value}\"", "");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology() -> Topology {
        let mut topology = Topology::with_nodes(1)
            .pod(Pod::new("order-a", "node1").label("app", "order").label("version", "v1"))
            .pod(Pod::new("bare", "node1"))
            .service(Service::new("order").port("http", 80, 8080).undeclared_port(81, 8081));
        topology.pods[0].ready = false;
        topology
    }

    fn check(text: &str, wanted: &[&str]) {
        for lines in wanted {
            assert!(text.contains(lines), "no {lines:?} in\n{text}");
        }
    }

    #[test]
    fn services_carry_addresses_selector_and_ports() {
        check(
            &services(&topology()),
            &[
                "kind: Service\nmetadata:\n  name: order\n  namespace: default\n",
                "  clusterIPs:\n    - 10.96.0.1\n    - \"fd00:96::1\"\n",
                "  selector:\n    app: \"order\"\n",
                "    - name: http-80\n      protocol: TCP\n      port: 80\n      targetPort: 8080\n      appProtocol: http\n",
                "    - name: p81\n      protocol: TCP\n      port: 81\n      targetPort: 8081\n",
            ],
        );
    }

    #[test]
    fn slices_list_pods_of_either_family_with_their_readiness() {
        let text = slices(&topology());
        check(
            &text,
            &[
                "    kubernetes.io/service-name: order\naddressType: IPv4\n",
                "  - addresses: [\"10.10.1.1\"]\n    conditions:\n      ready: false\n",
                "  - addresses: [\"fd00:10:1::1\"]\n",
                "    nodeName: node1\n    targetRef:\n      kind: Pod\n      name: order-a\n",
            ],
        );
        assert!(!text.contains("bare"), "an unselected pod is listed in\n{text}");
    }

    #[test]
    fn pods_carry_labels_node_and_addresses() {
        check(
            &pods(&topology()),
            &[
                "  name: order-a\n  namespace: default\n  uid: uid-default-order-a\n  labels:\n    app: \"order\"\n    version: \"v1\"\nspec:\n  nodeName: node1\n",
                "  podIPs:\n    - ip: 10.10.1.1\n    - ip: \"fd00:10:1::1\"\n",
                "  uid: uid-default-bare\nspec:\n",
            ],
        );
    }
}
