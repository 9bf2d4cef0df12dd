//! `discovery.k8s.io` EndpointSlice, `v1` and `v1beta1`.

use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;

use super::super::field::Field;
use super::super::node::{DecodeError, Extra, Known};
use super::super::object::Notes;
use super::super::report::Code;
use super::{Source, decode_machine_written};
use crate::model::ObjectName;

/// The label that names a slice's service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

const EXTRAS: &[&[Extra]] = &[&[
    Extra { of: "Slice", fields: &[Known::Ignored(&["apiVersion", "kind", "metadata"]), Known::Open] },
    Extra {
        of: "SliceAddress",
        // `topology` and `deprecatedTopology` are the node's labels of v1beta1, `hints` the zones to prefer.
        fields: &[
            Known::Ignored(&["deprecatedTopology", "hints", "hostname", "topology", "zone"]),
            Known::Open,
        ],
    },
    Extra {
        of: "TargetRef",
        fields: &[Known::Ignored(&["apiVersion", "fieldPath", "resourceVersion"]), Known::Open],
    },
    Extra { of: "SlicePort", fields: &[Known::Ignored(&["appProtocol"]), Known::Open] },
    Extra { of: "Conditions", fields: &[Known::Open] },
]];

/// A checked EndpointSlice.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EndpointSlice {
    /// The service it belongs to; `None`: nobody's.
    pub service: Option<ObjectName>,
    /// TCP ports by the service port's name.
    pub ports: Vec<(Arc<str>, u16)>,
    /// UDP ports likewise.
    pub datagram_ports: Vec<(Arc<str>, u16)>,
    /// Addresses.
    pub endpoints: Vec<SliceEndpoint>,
}

/// One address of a slice.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SliceEndpoint {
    /// The address.
    pub address: IpAddr,
    /// Whether it may be given new work.
    pub ready: bool,
    /// Whether it still answers while it shuts down: used where a service has no ready endpoint (KEP-1669).
    pub serving_last: bool,
    /// The pod behind it.
    pub pod: Option<ObjectName>,
    /// The pod's uid.
    pub uid: Option<Arc<str>>,
    /// The node that runs it.
    pub node: Option<Arc<str>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Slice {
    address_type: Option<String>,
    endpoints: Vec<SliceAddress>,
    ports: Vec<SlicePort>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct SliceAddress {
    addresses: Vec<String>,
    #[serde(default)]
    conditions: Conditions,
    target_ref: Option<TargetRef>,
    node_name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TargetRef {
    kind: String,
    namespace: Option<String>,
    name: String,
    uid: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SlicePort {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<u16>,
}

/// Decodes an EndpointSlice.
pub(super) fn decode(source: &Source<'_>, notes: &mut Notes<'_>) -> Result<EndpointSlice, DecodeError> {
    let slice: Slice = decode_machine_written(source, EXTRAS, notes)?;
    let namespace = &source.name.namespace;
    let service = source.meta.labels().get(SERVICE_NAME).map(|service| ObjectName::new(namespace, service));
    if service.is_none() {
        let field = Field::root().key("metadata").key("labels");
        notes.warning(
            Code::Ignored,
            &field,
            format!("without the label {SERVICE_NAME} the slice serves nothing"),
        );
    }
    match slice.address_type.as_deref() {
        Some("IPv4" | "IPv6") => {}
        // v1beta1 had `IP` for both families and defaulted to it.
        None | Some("IP") if is_beta(source) => {}
        Some("FQDN") => {
            notes.later(&Field::root().key("addressType"));
            let (ports, datagram_ports) = (Vec::new(), Vec::new());
            return Ok(EndpointSlice { service, ports, datagram_ports, endpoints: Vec::new() });
        }
        other => {
            let text = format!("`{}` is no address type: IPv4, IPv6 or FQDN", other.unwrap_or_default());
            notes.error(&Field::root().key("addressType"), text);
        }
    }
    let ports = |protocol: &str| {
        let spoken = |port: &&SlicePort| port.protocol.as_deref().unwrap_or("TCP") == protocol;
        let ports = slice.ports.iter().filter(spoken);
        ports.filter_map(|port| Some((port.name.as_deref().unwrap_or_default().into(), port.port?))).collect()
    };
    Ok(EndpointSlice {
        service,
        ports: ports("TCP"),
        datagram_ports: ports("UDP"),
        endpoints: endpoints(&slice.endpoints, namespace, notes),
    })
}

fn is_beta(source: &Source<'_>) -> bool {
    source
        .node
        .get("apiVersion")
        .and_then(|node| node.as_str())
        .is_some_and(|version| version.ends_with("v1beta1"))
}

fn endpoints(written: &[SliceAddress], namespace: &str, notes: &mut Notes<'_>) -> Vec<SliceEndpoint> {
    let mut endpoints = Vec::with_capacity(written.len());
    for (index, endpoint) in written.iter().enumerate() {
        let field = Field::root().key("endpoints").index(index).key("addresses");
        if endpoint.addresses.is_empty() {
            notes.error(&field, "an endpoint needs an address");
        }
        let pod = endpoint.target_ref.as_ref().filter(|target| target.kind == "Pod");
        let Conditions { ready, serving, terminating } = endpoint.conditions;
        let terminating = terminating.unwrap_or(false);
        for (position, text) in endpoint.addresses.iter().enumerate() {
            let Ok(address) = text.parse::<IpAddr>() else {
                notes.error(&field.index(position), format!("`{text}` is no IP address"));
                continue;
            };
            endpoints.push(SliceEndpoint {
                address,
                // A condition that is not known counts as true, as the API has it.
                ready: ready.unwrap_or(!terminating),
                serving_last: terminating && serving.unwrap_or(false),
                pod: pod.map(|pod| ObjectName::new(pod.namespace.as_deref().unwrap_or(namespace), &pod.name)),
                uid: pod.and_then(|pod| pod.uid.as_deref()).map(Into::into),
                node: endpoint.node_name.as_deref().map(Into::into),
            });
        }
    }
    endpoints
}
