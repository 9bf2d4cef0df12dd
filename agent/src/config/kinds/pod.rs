//! `v1` Pod: what traffic needs to know of it. Everything else that a pod may say is accepted and left alone.

use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;

use super::super::field::Field;
use super::super::node::{DecodeError, Extra, Known};
use super::super::object::Notes;
use super::super::report::Code;
use super::probe::{EXTRAS as EXTRAS_OF_PROBES, ReadinessProbe};
use super::{ObjectMeta, Source, decode_machine_written};
use crate::model::{Labels, ObjectName, Probe, Workload};

/// The annotation by which a pod takes no part in same-node acceleration.
const ACCELERATION: &str = "sluice.dev/acceleration";

const EXTRAS: &[&[Extra]] = &[
    &[
        Extra {
            of: "PodDocument",
            fields: &[Known::Ignored(&["apiVersion", "kind", "metadata"]), Known::Open],
        },
        Extra {
            of: "PodSpec",
            fields: &[
                Known::Ignored(&[
                    "activeDeadlineSeconds",
                    "affinity",
                    "automountServiceAccountToken",
                    "dnsConfig",
                    "dnsPolicy",
                    "enableServiceLinks",
                    "ephemeralContainers",
                    "hostAliases",
                    "hostIPC",
                    "hostPID",
                    "hostUsers",
                    "hostname",
                    "hostnameOverride",
                    "imagePullSecrets",
                    "nodeSelector",
                    "os",
                    "overhead",
                    "preemptionPolicy",
                    "priority",
                    "priorityClassName",
                    "readinessGates",
                    "resourceClaims",
                    "resources",
                    "restartPolicy",
                    "runtimeClassName",
                    "schedulerName",
                    "schedulingGates",
                    "schedulingGroup",
                    "securityContext",
                    "setHostnameAsFQDN",
                    "shareProcessNamespace",
                    "subdomain",
                    "terminationGracePeriodSeconds",
                    "tolerations",
                    "topologySpreadConstraints",
                    "volumes",
                    "workloadRef",
                ]),
                Known::Open,
            ],
        },
        Extra {
            of: "Container",
            fields: &[
                Known::Ignored(&[
                    "args",
                    "command",
                    "env",
                    "envFrom",
                    "image",
                    "imagePullPolicy",
                    "lifecycle",
                    "livenessProbe",
                    "name",
                    "resizePolicy",
                    "resources",
                    "restartPolicyRules",
                    "securityContext",
                    "startupProbe",
                    "stdin",
                    "stdinOnce",
                    "terminationMessagePath",
                    "terminationMessagePolicy",
                    "tty",
                    "volumeDevices",
                    "volumeMounts",
                    "workingDir",
                ]),
                Known::Open,
            ],
        },
        Extra { of: "ContainerPort", fields: &[Known::Ignored(&["hostIP", "hostPort"]), Known::Open] },
        Extra {
            of: "PodStatus",
            fields: &[
                Known::Ignored(&[
                    "allocatedResources",
                    "containerStatuses",
                    "ephemeralContainerStatuses",
                    "extendedResourceClaimStatus",
                    "hostIP",
                    "hostIPs",
                    "initContainerStatuses",
                    "message",
                    "nodeAllocatableResourceClaimStatuses",
                    "nominatedNodeName",
                    "observedGeneration",
                    "qosClass",
                    "reason",
                    "resize",
                    "resourceClaimStatuses",
                    "resources",
                    "startTime",
                ]),
                Known::Open,
            ],
        },
        Extra {
            of: "PodCondition",
            fields: &[
                Known::Ignored(&[
                    "lastProbeTime",
                    "lastTransitionTime",
                    "message",
                    "observedGeneration",
                    "reason",
                ]),
                Known::Open,
            ],
        },
        Extra { of: "PodIp", fields: &[Known::Open] },
    ],
    EXTRAS_OF_PROBES,
];

/// A checked Pod.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pod {
    /// The pod as traffic sees it.
    pub workload: Workload,
    /// Named TCP ports of its containers.
    pub ports: Vec<(Arc<str>, u16)>,
    /// Named UDP ports of its containers.
    pub datagram_ports: Vec<(Arc<str>, u16)>,
    /// Whether it has ended (`Succeeded`, `Failed`) and its addresses may be another's.
    pub ended: bool,
    /// Whether it is being deleted.
    pub deleted: bool,
    /// Whether it shares its node's network: its address is the node's and tells nothing about who calls.
    pub host_network: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PodDocument {
    spec: PodSpec,
    status: PodStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct PodSpec {
    containers: Vec<Container>,
    init_containers: Vec<Container>,
    node_name: Option<String>,
    service_account_name: Option<String>,
    /// The name before `serviceAccountName`, still written by the API server.
    service_account: Option<String>,
    host_network: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Container {
    ports: Vec<ContainerPort>,
    readiness_probe: Option<ReadinessProbe>,
    /// `Always` makes an init container one that runs beside the others.
    restart_policy: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ContainerPort {
    name: Option<String>,
    #[serde(rename = "containerPort")]
    number: u16,
    protocol: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct PodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    ip: Option<String>,
    #[serde(rename = "podIPs")]
    ips: Vec<PodIp>,
    conditions: Option<Vec<PodCondition>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PodIp {
    ip: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PodCondition {
    #[serde(rename = "type")]
    condition: String,
    status: String,
}

/// Decodes a Pod.
pub(super) fn decode(source: &Source<'_>, notes: &mut Notes<'_>) -> Result<Pod, DecodeError> {
    let PodDocument { spec, status } = decode_machine_written(source, EXTRAS, notes)?;
    let PodSpec {
        containers,
        init_containers,
        node_name,
        service_account_name,
        service_account,
        host_network,
    } = spec;
    let ready = status.conditions.as_ref().is_none_or(|conditions| {
        conditions.iter().any(|condition| condition.condition == "Ready" && condition.status == "True")
    });
    let name = source.name.clone();
    let uid = source.meta.uid.as_deref().map_or_else(|| name.to_string().into(), Into::into);
    let labels = source.meta.labels();
    let account =
        [service_account_name, service_account].into_iter().flatten().find(|account| !account.is_empty());
    let workload = Workload {
        uid,
        workload: workload_name(&name, source.meta, &labels),
        node: node_name.as_deref().filter(|node| !node.is_empty()).map(Into::into),
        service_account: account.as_deref().unwrap_or("default").into(),
        addresses: addresses(&status, notes),
        labels: Arc::new(labels),
        accelerated: accelerated(source.meta, notes),
        ready,
        probes: probes((&containers, &init_containers), host_network.unwrap_or(false), notes),
        name,
    };
    let ports = |protocol: &str| {
        let ports = containers.iter().chain(&init_containers).flat_map(|container| &container.ports);
        let spoken = ports.filter(|port| port.protocol.as_deref().unwrap_or("TCP") == protocol);
        spoken.filter_map(|port| Some((port.name.as_deref()?.into(), port.number))).collect()
    };
    Ok(Pod {
        workload,
        ports: ports("TCP"),
        datagram_ports: ports("UDP"),
        ended: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
        deleted: source.meta.is_deleted(),
        host_network: host_network.unwrap_or(false),
    })
}

/// What is asked of the containers that run for as long as the pod does.
fn probes(
    (containers, init_containers): (&[Container], &[Container]),
    host_network: bool,
    notes: &mut Notes<'_>,
) -> Vec<Probe> {
    let field = Field::spec();
    let main = containers.iter().enumerate().map(|(index, container)| ("containers", index, container));
    let beside = init_containers.iter().enumerate().filter_map(|(index, container)| {
        let runs_on = container.restart_policy.as_deref() == Some("Always");
        runs_on.then_some(("initContainers", index, container))
    });
    let mut probes = Vec::new();
    for (list, index, container) in main.chain(beside) {
        let Some(probe) = &container.readiness_probe else { continue };
        let field = field.key(list).index(index).key("readinessProbe");
        if host_network {
            let text = "the pod has its node's address, at which nothing tells it from others: the probe is not made, and the \
                        pod's Ready condition alone counts";
            notes.warning(Code::Ignored, &field, text);
            continue;
        }
        let ports = container.ports.iter().filter_map(|port| Some((port.name.as_deref()?, port.number)));
        probes.extend(probe.checked(&field, &ports.collect::<Vec<_>>(), notes));
    }
    probes
}

/// Whether the pod's connections within the node may be accelerated. A value that says nothing is reported, and the pod takes
/// no part: whoever wrote it wanted something.
fn accelerated(meta: &ObjectMeta, notes: &mut Notes<'_>) -> bool {
    match meta.annotation(ACCELERATION) {
        None | Some("auto") => true,
        Some("off") => false,
        Some(other) => {
            let field = Field::root().key("metadata").key("annotations").key(ACCELERATION);
            let text = format!("`{other}` is neither `auto` nor `off`; it counts as `off`");
            notes.warning(Code::SchemaValidationError, &field, text);
            false
        }
    }
}

fn addresses(status: &PodStatus, notes: &mut Notes<'_>) -> Vec<IpAddr> {
    let field = Field::root().key("status");
    let list = field.key("podIPs");
    let single = status.ip.iter().map(|ip| (field.key("podIP"), ip));
    let several = status.ips.iter().enumerate().map(|(index, ip)| (list.index(index).key("ip"), &ip.ip));
    let mut addresses = Vec::new();
    for (field, text) in single.chain(several).filter(|(_, text)| !text.is_empty()) {
        match text.parse::<IpAddr>() {
            Ok(address) if addresses.contains(&address) => {}
            Ok(address) => addresses.push(address),
            Err(_) => notes.error(&field, format!("`{text}` is no IP address")),
        }
    }
    addresses
}

/// The name of what manages the pod. A Deployment's pods are owned by its ReplicaSet, whose name is the Deployment's
/// with the hash of the pod template.
fn workload_name(pod: &ObjectName, meta: &ObjectMeta, labels: &Labels) -> Arc<str> {
    let owner = meta.owner_references.iter().find(|owner| owner.controller.unwrap_or(false));
    let Some(owner) = owner.or(meta.owner_references.first()).filter(|owner| !owner.name.is_empty()) else {
        return Arc::clone(&pod.name);
    };
    if owner.kind != "ReplicaSet" {
        return owner.name.as_str().into();
    }
    let by_label =
        labels.get("pod-template-hash").and_then(|hash| owner.name.strip_suffix(&**hash)?.strip_suffix('-'));
    let deployment = by_label.or_else(|| owner.name.rsplit_once('-').map(|(name, _)| name));
    deployment.unwrap_or(&owner.name).into()
}
