//! `v1` Service.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

use super::super::field::Field;
use super::super::node::{DecodeError, Extra, Known};
use super::super::object::Notes;
use super::super::report::Code;
use super::{DOCUMENT, Source, decode_spec, meta};
use crate::model::{AppProtocol, Labels, ServicePort};

const EXTRAS: &[&[Extra]] = &[
    DOCUMENT,
    &[
        Extra {
            of: "ServiceSpec",
            fields: &[
                Known::Ignored(&[
                    "allocateLoadBalancerNodePorts",
                    "externalTrafficPolicy",
                    "healthCheckNodePort",
                    "ipFamilies",
                    "ipFamilyPolicy",
                    "ipFamily",
                    "loadBalancerClass",
                    "loadBalancerIP",
                    "loadBalancerSourceRanges",
                    "topologyKeys",
                    "trafficDistribution",
                ]),
                Known::Later("externalIPs", &[]),
            ],
        },
        Extra { of: "PortSpec", fields: &[Known::Ignored(&["nodePort"])] },
    ],
];

/// A checked Service.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Service {
    /// Its virtual addresses.
    pub cluster_ips: Vec<IpAddr>,
    /// Whether `clusterIP: None`.
    pub headless: bool,
    /// Whether it is a name for something outside (`type: ExternalName`).
    pub external: bool,
    /// TCP ports, each with where it leads in a pod.
    pub ports: Vec<(ServicePort, TargetPort)>,
    /// UDP ports likewise.
    pub datagram_ports: Vec<(ServicePort, TargetPort)>,
    /// How long a client is led to the same endpoint after its last connection.
    pub affinity: Option<Duration>,
    /// The pods behind it; empty: endpoints are given by EndpointSlices alone.
    pub selector: Labels,
    /// Whether pods that are not ready get traffic all the same.
    pub publish_not_ready: bool,
}

/// A port of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TargetPort {
    /// By number.
    Number(u16),
    /// By a container port's name.
    Name(Arc<str>),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[derive(Default)]
struct ServiceSpec {
    #[serde(rename = "type")]
    service_type: Option<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Vec<String>,
    selector: BTreeMap<String, String>,
    ports: Vec<PortSpec>,
    publish_not_ready_addresses: Option<bool>,
    external_name: Option<String>,
    session_affinity: Option<String>,
    session_affinity_config: AffinityConfig,
    internal_traffic_policy: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct AffinityConfig {
    #[serde(rename = "clientIP")]
    client_ip: ClientIpConfig,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct ClientIpConfig {
    timeout_seconds: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PortSpec {
    name: Option<String>,
    port: u16,
    target_port: Option<TargetPort>,
    protocol: Option<String>,
    app_protocol: Option<String>,
}

impl<'de> Deserialize<'de> for TargetPort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrName;

        impl Visitor<'_> for NumberOrName {
            type Value = TargetPort;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port number or a port name")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<TargetPort, E> {
                match u16::try_from(number) {
                    Ok(number) if number > 0 => Ok(TargetPort::Number(number)),
                    _ => Err(E::invalid_value(de::Unexpected::Unsigned(number), &"a port from 1 to 65535")),
                }
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<TargetPort, E> {
                Ok(TargetPort::Name(name.into()))
            }
        }

        deserializer.deserialize_any(NumberOrName)
    }
}

/// Decodes a Service.
pub(super) fn decode(source: &Source<'_>, notes: &mut Notes<'_>) -> Result<Service, DecodeError> {
    let spec: ServiceSpec = decode_spec(source, EXTRAS, notes)?;
    let field = Field::spec();
    let external = match spec.service_type.as_deref() {
        Some("ExternalName") => true,
        None | Some("ClusterIP" | "NodePort" | "LoadBalancer") => false,
        Some(other) => {
            notes.error(&field.key("type"), format!("`{other}` is no type of a Service"));
            false
        }
    };
    if external {
        notes.later(&field.key("type"));
        if spec.external_name.as_deref().is_none_or(str::is_empty) {
            notes.error(&field.key("externalName"), "a Service of type ExternalName needs an externalName");
        }
    }
    if spec.internal_traffic_policy.as_deref().is_some_and(|policy| policy != "Cluster") {
        notes.later(&field.key("internalTrafficPolicy"));
    }
    let headless = !external && spec.cluster_ip.as_deref() == Some("None");
    let ports = ports(&spec.ports, &field.key("ports"), notes);
    let affinity = affinity(&spec, &field, notes);
    if affinity.is_some() && ports.iter().any(|(port, _)| port.protocol != AppProtocol::Tcp) {
        // It is kept where connections are balanced, and not where the agent takes them.
        notes.later(&field.key("sessionAffinity"));
    }
    Ok(Service {
        cluster_ips: if headless || external { Vec::new() } else { cluster_ips(&spec, &field, notes) },
        headless,
        external,
        ports,
        datagram_ports: datagram_ports(&spec.ports, &field.key("ports"), notes),
        affinity,
        selector: meta::labels(&spec.selector),
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
    })
}

fn cluster_ips(spec: &ServiceSpec, field: &Field, notes: &mut Notes<'_>) -> Vec<IpAddr> {
    let single = spec.cluster_ip.iter().filter(|ip| !ip.is_empty()).map(|ip| (field.key("clusterIP"), ip));
    let list = field.key("clusterIPs");
    let several = spec.cluster_ips.iter().enumerate().map(|(index, ip)| (list.index(index), ip));
    let mut addresses = Vec::new();
    for (field, text) in single.chain(several) {
        match text.parse::<IpAddr>() {
            Ok(address) if address.is_unspecified() || address.is_multicast() => {
                notes.error(&field, format!("`{text}` can't be the address of a Service"));
            }
            Ok(address) if addresses.contains(&address) => {}
            Ok(address) => addresses.push(address),
            Err(_) => notes.error(&field, format!("`{text}` is no IP address")),
        }
    }
    addresses
}

fn ports(written: &[PortSpec], field: &Field, notes: &mut Notes<'_>) -> Vec<(ServicePort, TargetPort)> {
    let mut ports: Vec<(ServicePort, TargetPort)> = Vec::new();
    for (index, port) in written.iter().enumerate() {
        let field = field.index(index);
        match port.protocol.as_deref() {
            None | Some("TCP") => {}
            Some("UDP") => continue,
            Some("SCTP") => {
                let text = "SCTP ports are left alone: their traffic goes directly";
                notes.info(Code::Ignored, &field.key("protocol"), text);
                continue;
            }
            Some(other) => {
                notes.error(&field.key("protocol"), format!("`{other}` is no protocol: TCP, UDP or SCTP"));
                continue;
            }
        }
        if port.port == 0 {
            notes.error(&field.key("port"), "0 is no port");
        }
        if ports.iter().any(|(before, _)| before.port == port.port) {
            notes.error(&field.key("port"), format!("port {} is given twice", port.port));
        }
        let name = port.name.as_deref().unwrap_or_default();
        if written.len() > 1 && name.is_empty() {
            notes.error(&field.key("name"), "each of several ports needs a name");
        } else if ports.iter().any(|(before, _)| !name.is_empty() && *before.name == *name) {
            notes.error(&field.key("name"), format!("the name {name} is given twice"));
        }
        let protocol = protocol(port, &field, notes);
        let target = port.target_port.clone().unwrap_or(TargetPort::Number(port.port));
        ports.push((ServicePort { name: name.into(), port: port.port, protocol, tls: None }, target));
    }
    ports
}

fn datagram_ports(
    written: &[PortSpec],
    field: &Field,
    notes: &mut Notes<'_>,
) -> Vec<(ServicePort, TargetPort)> {
    let mut ports: Vec<(ServicePort, TargetPort)> = Vec::new();
    let datagrams = written.iter().enumerate().filter(|(_, port)| port.protocol.as_deref() == Some("UDP"));
    for (index, port) in datagrams {
        let field = field.index(index);
        if port.port == 0 {
            notes.error(&field.key("port"), "0 is no port");
        }
        if ports.iter().any(|(before, _)| before.port == port.port) {
            notes.error(&field.key("port"), format!("UDP port {} is given twice", port.port));
        }
        let name = port.name.as_deref().unwrap_or_default();
        if written.len() > 1 && name.is_empty() {
            notes.error(&field.key("name"), "each of several ports needs a name");
        }
        let target = port.target_port.clone().unwrap_or(TargetPort::Number(port.port));
        let port = ServicePort { name: name.into(), port: port.port, protocol: AppProtocol::Tcp, tls: None };
        ports.push((port, target));
    }
    ports
}

/// The time of `sessionAffinity: ClientIP`, three hours where nothing else is said.
fn affinity(spec: &ServiceSpec, field: &Field, notes: &mut Notes<'_>) -> Option<Duration> {
    const DEFAULT_SECONDS: u32 = 10_800;
    const SECONDS_MAX: u32 = 86_400;
    let seconds = spec.session_affinity_config.client_ip.timeout_seconds.unwrap_or(DEFAULT_SECONDS);
    if seconds == 0 || seconds > SECONDS_MAX {
        let field = field.key("sessionAffinityConfig").key("clientIP").key("timeoutSeconds");
        notes.error(&field, format!("{seconds} is not from 1 to {SECONDS_MAX}"));
    }
    match spec.session_affinity.as_deref() {
        None | Some("None") => None,
        Some("ClientIP") => Some(Duration::from_secs(seconds.into())),
        Some(other) => {
            notes.error(&field.key("sessionAffinity"), format!("`{other}` is neither None nor ClientIP"));
            None
        }
    }
}

fn protocol(port: &PortSpec, field: &Field, notes: &mut Notes<'_>) -> AppProtocol {
    if let Some(written) = port.app_protocol.as_deref().filter(|written| !written.is_empty()) {
        return app_protocol(written).unwrap_or_else(|| {
            let text = format!("`{written}` is not known: the first bytes of each connection decide");
            notes.info(Code::Ignored, &field.key("appProtocol"), text);
            AppProtocol::Undeclared
        });
    }
    let name = port.name.as_deref().unwrap_or_default();
    named_protocol(name).unwrap_or_else(|| {
        let text = format!(
            "the port name `{name}` does not tell the protocol (<protocol>[-<suffix>]): the first bytes of each \
             connection decide"
        );
        if !name.is_empty() {
            notes.info(Code::PortNameIsNotUnderNamingConvention, &field.key("name"), text);
        }
        AppProtocol::Undeclared
    })
}

/// What a port's `appProtocol` says; `None` where it is not known.
pub(super) fn app_protocol(written: &str) -> Option<AppProtocol> {
    match written.to_ascii_lowercase().as_str() {
        "kubernetes.io/h2c" => Some(AppProtocol::Http2),
        "kubernetes.io/ws" => Some(AppProtocol::Http),
        "kubernetes.io/wss" => Some(AppProtocol::Tcp),
        plain => protocol_of(plain),
    }
}

/// What a port's name says by its prefix, as in Istio: `http-web`, `grpc`, `tcp-db`.
fn named_protocol(name: &str) -> Option<AppProtocol> {
    let name = name.to_ascii_lowercase();
    // The one name of a protocol that has a dash itself.
    if name == "grpc-web" || name.starts_with("grpc-web-") {
        return Some(AppProtocol::Http);
    }
    protocol_of(name.split('-').next().unwrap_or_default())
}

fn protocol_of(word: &str) -> Option<AppProtocol> {
    match word {
        "http" | "grpc-web" => Some(AppProtocol::Http),
        "http2" => Some(AppProtocol::Http2),
        "grpc" => Some(AppProtocol::Grpc),
        "tcp" | "tls" | "https" | "mongo" | "mysql" | "redis" | "hbone" | "postgresql" | "postgres" => {
            Some(AppProtocol::Tcp)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_of_ports() {
        let check = |port_name: &str, app: Option<&str>, expected| {
            let found = app.map_or_else(|| named_protocol(port_name), app_protocol);
            assert_eq!(found, expected, "{port_name} {app:?}");
        };
        check("http", None, Some(AppProtocol::Http));
        check("http-web", None, Some(AppProtocol::Http));
        check("HTTP2-api", None, Some(AppProtocol::Http2));
        check("grpc", None, Some(AppProtocol::Grpc));
        check("grpc-web", None, Some(AppProtocol::Http));
        check("https", None, Some(AppProtocol::Tcp));
        check("tcp-db", None, Some(AppProtocol::Tcp));
        check("httpx", None, None);
        check("web", None, None);
        check("", None, None);
        check("tcp", Some("http"), Some(AppProtocol::Http));
        check("http", Some("kubernetes.io/h2c"), Some(AppProtocol::Http2));
        check("http", Some("kubernetes.io/ws"), Some(AppProtocol::Http));
        check("http", Some("tls"), Some(AppProtocol::Tcp));
        check("http", Some("example.com/own"), None);
    }
}
