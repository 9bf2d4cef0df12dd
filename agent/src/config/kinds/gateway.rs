//! `gateway.networking.k8s.io` Gateway and GatewayClass.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;

use super::super::field::Field;
use super::super::node::{DecodeError, Extra, Known};
use super::super::object::Notes;
use super::gateway_clients::GatewayTlsSpec;
use super::gateway_tls::{self, GatewayTls, TlsSpec};
use super::{DOCUMENT, GATEWAY_API, Source, decode_spec, host_pattern, meta};
use crate::model::{HostPattern, Labels, ListenerProtocol, ObjectName};

/// The controller name of the GatewayClasses that are ours.
const CONTROLLER_NAME: &str = "sluice.dev/gateway-controller";

const EXTRAS: &[&[Extra]] = &[
    DOCUMENT,
    &[
        Extra { of: "GatewayClassSpec", fields: &[Known::Ignored(&["description", "parametersRef"])] },
        Extra {
            of: "GatewaySpec",
            fields: &[
                Known::Ignored(&["infrastructure"]),
                Known::Later("allowedListeners", &["namespaces"]),
                Known::Later("backendTLS", &["clientCertificateRef"]),
                Known::Later("defaultScope", &[]),
            ],
        },
        Extra { of: "GatewayTlsSpec", fields: &[Known::Later("backend", &["clientCertificateRef"])] },
    ],
];

/// A checked GatewayClass.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GatewayClass {
    /// Whether Gateways of this class are ours to serve.
    pub ours: bool,
}

/// A checked Gateway.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Gateway {
    /// The name of its class.
    pub class: String,
    /// Addresses to bind; empty: all.
    pub addresses: Vec<IpAddr>,
    /// The listeners that are served, in written order.
    pub listeners: Vec<GatewayListenerSpec>,
}

/// A checked listener.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GatewayListenerSpec {
    /// Its name.
    pub name: Arc<str>,
    /// The port to bind.
    pub port: u16,
    /// The hosts it is for.
    pub hostname: HostPattern,
    /// Namespaces whose routes it takes.
    pub namespaces: AllowedNamespaces,
    /// Whether it takes HTTPRoutes.
    pub takes_http_routes: bool,
    /// Whether it takes TLSRoutes: it passes TLS on as it is.
    pub takes_tls_routes: bool,
    /// What is spoken.
    pub protocol: ListenerProtocol,
    /// How it ends TLS, where it does.
    pub tls: Option<GatewayTls>,
    /// Where it stands among all that are written.
    pub index: usize,
}

/// Namespaces whose routes a listener takes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum AllowedNamespaces {
    /// The Gateway's own.
    Same,
    /// All.
    All,
    /// Those whose labels fit.
    Selector(LabelSelector),
    /// None.
    None,
}

/// A selector of labels; empty: everything.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(crate) struct LabelSelector {
    match_labels: BTreeMap<String, String>,
    match_expressions: Vec<LabelExpression>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct LabelExpression {
    key: String,
    operator: LabelOperator,
    #[serde(default)]
    values: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
enum LabelOperator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl LabelSelector {
    /// Whether labels fit.
    pub fn matches(&self, labels: &Labels) -> bool {
        meta::labels(&self.match_labels).iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|expression| {
                let value = labels.get(expression.key.as_str());
                let listed = value.is_some_and(|value| expression.values.iter().any(|one| **one == **value));
                match expression.operator {
                    LabelOperator::In => listed,
                    LabelOperator::NotIn => !listed,
                    LabelOperator::Exists => value.is_some(),
                    LabelOperator::DoesNotExist => value.is_none(),
                }
            })
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct GatewayClassSpec {
    controller_name: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct GatewaySpec {
    gateway_class_name: String,
    listeners: Vec<Listener>,
    #[serde(default)]
    addresses: Vec<Address>,
    #[serde(default)]
    tls: GatewayTlsSpec,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Address {
    #[serde(rename = "type")]
    address_type: Option<String>,
    value: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Listener {
    name: String,
    hostname: Option<String>,
    port: u16,
    protocol: String,
    #[serde(default)]
    allowed_routes: AllowedRoutes,
    tls: Option<TlsSpec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct AllowedRoutes {
    namespaces: RouteNamespaces,
    kinds: Vec<RouteGroupKind>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RouteNamespaces {
    from: Option<String>,
    selector: Option<LabelSelector>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteGroupKind {
    group: Option<String>,
    kind: String,
}

/// Decodes a GatewayClass.
pub(super) fn decode_class(source: &Source<'_>, notes: &mut Notes<'_>) -> Result<GatewayClass, DecodeError> {
    let spec: GatewayClassSpec = decode_spec(source, EXTRAS, notes)?;
    Ok(GatewayClass { ours: spec.controller_name == CONTROLLER_NAME })
}

/// Decodes a Gateway.
pub(super) fn decode(source: &Source<'_>, notes: &mut Notes<'_>) -> Result<Gateway, DecodeError> {
    let spec: GatewaySpec = decode_spec(source, EXTRAS, notes)?;
    let field = Field::spec();
    let addresses = addresses(&spec.addresses, &field.key("addresses"), notes);
    let list = field.key("listeners");
    if spec.listeners.is_empty() {
        notes.error(&list, "a Gateway needs a listener");
    }
    let mut listeners = Vec::new();
    for (index, written) in spec.listeners.iter().enumerate() {
        let field = list.index(index);
        if spec.listeners[..index].iter().any(|before| before.name == written.name) {
            notes.error(&field.key("name"), format!("the listener {} is given twice", written.name));
        }
        let same = |before: &Listener| {
            before.port == written.port
                && before.protocol == written.protocol
                && before.hostname.as_deref().unwrap_or_default()
                    == written.hostname.as_deref().unwrap_or_default()
        };
        if spec.listeners[..index].iter().any(same) {
            notes.error(&field, "another listener has the same port, protocol and hostname");
        }
        listeners.extend(listener((index, written), (source.name, &spec.tls), &field, notes));
    }
    Ok(Gateway { class: spec.gateway_class_name, addresses, listeners })
}

fn addresses(written: &[Address], field: &Field, notes: &mut Notes<'_>) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for (index, address) in written.iter().enumerate() {
        let field = field.index(index);
        if address.address_type.as_deref().is_some_and(|kind| kind != "IPAddress") {
            notes.later(&field.key("type"));
            continue;
        }
        let value = address.value.as_deref().unwrap_or_default();
        match value.parse() {
            Ok(address) => addresses.push(address),
            Err(_) => notes.error(&field.key("value"), format!("`{value}` is no IP address")),
        }
    }
    addresses
}

/// A listener that is served; `None` for one that is not, or not yet.
fn listener(
    (index, written): (usize, &Listener),
    (gateway, clients): (&ObjectName, &GatewayTlsSpec),
    field: &Field,
    notes: &mut Notes<'_>,
) -> Option<GatewayListenerSpec> {
    if written.name.is_empty() {
        notes.error(&field.key("name"), "a listener needs a name");
    }
    if written.port == 0 {
        notes.error(&field.key("port"), "0 is no port");
    }
    let hostname = match written.hostname.as_deref().filter(|hostname| !hostname.is_empty()) {
        None => HostPattern::Any,
        Some(hostname) => {
            host_pattern(hostname).filter(|pattern| *pattern != HostPattern::Any).unwrap_or_else(|| {
                notes.error(&field.key("hostname"), format!("`{hostname}` is no host name or wildcard"));
                HostPattern::Any
            })
        }
    };
    let namespaces = namespaces(&written.allowed_routes.namespaces, &field.key("allowedRoutes"), notes);
    let kinds = &written.allowed_routes.kinds;
    let takes = |name: &str| {
        let is_it = |kind: &RouteGroupKind| {
            kind.kind == name && kind.group.as_deref().is_none_or(|group| group == GATEWAY_API)
        };
        kinds.is_empty() || kinds.iter().any(is_it)
    };
    let (protocol, tls) = protocol(written, (gateway, clients), field, notes)?;
    let is_opaque = protocol == ListenerProtocol::Tls;
    Some(GatewayListenerSpec {
        name: written.name.as_str().into(),
        port: written.port,
        hostname,
        namespaces,
        takes_http_routes: !is_opaque && takes("HTTPRoute"),
        takes_tls_routes: is_opaque && takes("TLSRoute"),
        protocol,
        tls,
        index,
    })
}

/// What is spoken on a listener, and how it ends TLS; `None` for what is not served, or not yet.
fn protocol(
    written: &Listener,
    (gateway, clients): (&ObjectName, &GatewayTlsSpec),
    field: &Field,
    notes: &mut Notes<'_>,
) -> Option<(ListenerProtocol, Option<GatewayTls>)> {
    match written.protocol.as_str() {
        "HTTP" => {
            if written.tls.is_some() {
                notes.error(&field.key("tls"), "a listener of the protocol HTTP has no tls");
            }
            Some((ListenerProtocol::Http, None))
        }
        "HTTPS" => {
            let of_gateway = clients.of_port(written.port);
            let tls = written.tls.as_ref();
            let tls = gateway_tls::decode(tls, of_gateway, &gateway.namespace, field, notes)?;
            Some((ListenerProtocol::Https, Some(tls)))
        }
        "TLS" if gateway_tls::passes_on(written.tls.as_ref(), field, notes) => {
            Some((ListenerProtocol::Tls, None))
        }
        "TLS" => {
            let of_gateway = clients.of_port(written.port);
            let tls = written.tls.as_ref();
            let tls = gateway_tls::decode(tls, of_gateway, &gateway.namespace, field, notes)?;
            Some((ListenerProtocol::Tls, Some(tls)))
        }
        "TCP" | "UDP" => {
            notes.later(&field.key("protocol"));
            None
        }
        other if other.contains('/') => {
            notes.later(&field.key("protocol"));
            None
        }
        other => {
            let text = format!("`{other}` is no protocol: HTTP, HTTPS, TLS, TCP or UDP");
            notes.error(&field.key("protocol"), text);
            None
        }
    }
}

fn namespaces(written: &RouteNamespaces, field: &Field, notes: &mut Notes<'_>) -> AllowedNamespaces {
    let field = field.key("namespaces");
    match (written.from.as_deref(), &written.selector) {
        (None | Some("Same"), _) => AllowedNamespaces::Same,
        (Some("All"), _) => AllowedNamespaces::All,
        (Some("None"), _) => AllowedNamespaces::None,
        (Some("Selector"), Some(selector)) => AllowedNamespaces::Selector(selector.clone()),
        (Some("Selector"), None) => {
            notes.error(&field.key("selector"), "from: Selector needs a selector");
            AllowedNamespaces::None
        }
        (Some(other), _) => {
            notes.error(&field.key("from"), format!("`{other}` is none of Same, All, Selector, None"));
            AllowedNamespaces::None
        }
    }
}
