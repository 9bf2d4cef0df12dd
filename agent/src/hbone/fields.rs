//! What a CONNECT request says of who asks, in the words of Istio's ztunnel: for the logs and traces of whoever answers. Nobody
//! is believed for it: who a peer is, its certificate says.

use std::fmt::Write as _;
use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::model::Workload;

const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// A trace and the span within it that the tunnel is, both by chance.
pub(super) type TraceIds = [u8; 24];
const TRACE_BYTES: usize = 16;

/// The fields of a request in the name of a pod of this cluster, or of a Gateway, which has no address.
pub(super) fn fields(
    source: &Workload,
    address: Option<IpAddr>,
    cluster: &str,
    trace: &TraceIds,
) -> HeaderMap {
    let said = [
        Some((BAGGAGE, baggage(source, cluster))),
        address.map(|address| (header::FORWARDED, forwarded(address))),
        Some((TRACEPARENT, traceparent(trace))),
    ];
    let valid =
        said.into_iter().flatten().map(|(name, text)| Some((name, HeaderValue::try_from(text).ok()?)));
    valid.flatten().collect()
}

/// W3C baggage, with the names of OpenTelemetry's conventions.
fn baggage(source: &Workload, cluster: &str) -> String {
    let workload = format!("k8s.{}.name", source.workload_type());
    let members = [
        ("k8s.cluster.name", cluster),
        ("k8s.namespace.name", &*source.name.namespace),
        (&*workload, &*source.workload),
        ("service.name", source.canonical_name()),
        ("service.version", source.canonical_revision()),
        // Pods' documents say nothing of regions.
        ("cloud.region", ""),
        ("cloud.availability_zone", ""),
    ];
    members.map(|(key, value)| format!("{key}={}", encoded(value))).join(",")
}

/// RFC 7239. The client's port is not known where tunnels are asked for, so it is left out.
fn forwarded(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("for=\"{address}\""),
        IpAddr::V6(address) => format!("for=\"[{address}]\""),
    }
}

/// W3C trace context, not sampled: the agent exports no spans.
fn traceparent(ids: &TraceIds) -> String {
    let mut text = "00-".to_owned();
    for (index, byte) in ids.iter().enumerate() {
        if index == TRACE_BYTES {
            text.push('-');
        }
        let _ = write!(text, "{byte:02x}");
    }
    text + "-00"
}

/// A value of baggage: what may not be in one is percent-encoded.
fn encoded(value: &str) -> String {
    value.bytes().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b':' | b'/') {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Labels, ObjectName};

    fn workload(labels: &[(&str, &str)]) -> Workload {
        let labels: Labels = labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        Workload {
            name: ObjectName::new("shop", "cart-5f7-x2"),
            uid: "uid".into(),
            workload: "cart".into(),
            node: None,
            service_account: "cart".into(),
            addresses: Vec::new(),
            labels: labels.into(),
            accelerated: true,
            ready: true,
            probes: Vec::new(),
        }
    }

    #[test]
    fn a_request_says_what_ztunnels_says() {
        let ids: TraceIds = std::array::from_fn(|index| u8::try_from(index).expect("below 24"));
        let labels = [("app", "basket"), ("version", "v 2,b")];
        let said = fields(&workload(&labels), "10.0.0.9".parse().ok(), "c1", &ids);
        let field = |name: &str| said.get(name).and_then(|value| value.to_str().ok());
        let baggage = "k8s.cluster.name=c1,k8s.namespace.name=shop,k8s.deployment.name=cart,service.name=basket,\
                       service.version=v%202%2Cb,cloud.region=,cloud.availability_zone=";
        assert_eq!(field("baggage"), Some(baggage));
        assert_eq!(field("forwarded"), Some("for=\"10.0.0.9\""));
        let trace = "00-000102030405060708090a0b0c0d0e0f-1011121314151617-00";
        assert_eq!(field("traceparent"), Some(trace));
        let said = fields(&workload(&[]), "fd00::9".parse().ok(), "c1", &ids);
        assert_eq!(said["forwarded"], "for=\"[fd00::9]\"");
        assert!(
            said["baggage"].to_str().expect("ASCII").contains("service.name=cart,service.version=latest")
        );
        assert_eq!(said.len(), 3);
    }
}
