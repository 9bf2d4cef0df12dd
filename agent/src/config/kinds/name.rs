//! Names of objects, hosts and services as documents write them.

use crate::model::{HostPattern, ObjectName};

/// The domain of the cluster's services.
const CLUSTER_DOMAIN: &str = "cluster.local";

/// Longest DNS name.
const NAME_MAX_BYTES: usize = 253;

/// Whether this may be the name of an object: a DNS subdomain in lower case.
pub(super) fn is_object_name(name: &str) -> bool {
    let byte = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let label = |label: &str| {
        !label.is_empty() && label.bytes().all(byte) && !label.starts_with('-') && !label.ends_with('-')
    };
    name.len() <= NAME_MAX_BYTES && name.split('.').all(label)
}

/// A host name or wildcard, lower case, without a trailing dot; `None` where it is neither.
pub(crate) fn host_pattern(host: &str) -> Option<HostPattern> {
    let host = host.to_ascii_lowercase();
    let host = host.strip_suffix('.').unwrap_or(&host);
    // Underscores are no part of host names, yet real services have them.
    let is_host = |name: &str| is_object_name(&name.replace('_', "a"));
    match host.strip_prefix('*') {
        Some("") => Some(HostPattern::Any),
        Some(suffix) => {
            suffix.strip_prefix('.').is_some_and(is_host).then(|| HostPattern::Suffix(suffix.into()))
        }
        None => is_host(host).then(|| HostPattern::Exact(host.into())),
    }
}

/// Whether this is a URI with an authority, as certificates have them in the place of names (RFC 3986 sections 2 and 3).
pub(super) fn is_uri(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let of_scheme = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    let mut bytes = rest.bytes();
    let mut rest_is_good = !rest.is_empty();
    while let Some(byte) = bytes.next() {
        rest_is_good &= match byte {
            b'%' => bytes.by_ref().take(2).filter(u8::is_ascii_hexdigit).count() == 2,
            byte => byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=".contains(&byte),
        };
    }
    scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.bytes().all(of_scheme)
        && rest_is_good
}

/// The service that a host names, seen from a namespace: `name`, `name.namespace`, `name.namespace.svc` or the full
/// name. `None` for hosts that can be no service's name.
pub(crate) fn service_of_host(host: &str, namespace: &str) -> Option<ObjectName> {
    let host = host.to_ascii_lowercase();
    let host = host.strip_suffix('.').unwrap_or(&host);
    let short = host.strip_suffix(CLUSTER_DOMAIN).and_then(|rest| rest.strip_suffix('.')).unwrap_or(host);
    let labels: Vec<&str> = short.split('.').collect();
    let full = short.len() < host.len();
    match labels[..] {
        [name] if !full && !name.is_empty() && name != "*" => Some(ObjectName::new(namespace, name)),
        [name, namespace] if !full && name != "*" => Some(ObjectName::new(namespace, name)),
        [name, namespace, "svc"] if name != "*" => Some(ObjectName::new(namespace, name)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_name_services_in_every_form() {
        let check = |host: &str, expected: Option<&str>| {
            let service = service_of_host(host, "shop").map(|name| name.to_string());
            assert_eq!(service.as_deref(), expected, "{host}");
        };
        check("orders", Some("shop/orders"));
        check("Orders", Some("shop/orders"));
        check("orders.prod", Some("prod/orders"));
        check("orders.prod.svc", Some("prod/orders"));
        check("orders.prod.svc.cluster.local", Some("prod/orders"));
        check("orders.prod.svc.cluster.local.", Some("prod/orders"));
        check("", None);
        check("*", None);
        check("*.prod", None);
        check("*.prod.svc.cluster.local", None);
        check("orders.cluster.local", None);
        check("cluster.local", Some("local/cluster"));
        check("a.b.example.com", None);
    }

    #[test]
    fn host_patterns_are_names_or_leading_wildcards() {
        let check =
            |host: &str, expected: Option<HostPattern>| assert_eq!(host_pattern(host), expected, "{host}");
        check("*", Some(HostPattern::Any));
        check("*.Example.com", Some(HostPattern::Suffix(".example.com".into())));
        check("a.example.com.", Some(HostPattern::Exact("a.example.com".into())));
        check("my_service", Some(HostPattern::Exact("my_service".into())));
        check("", None);
        check("*example.com", None);
        check("a.*.com", None);
        check("a..com", None);
        check("example.com:80", None);
        check("http://example.com", None);
        check(&"a".repeat(254), None);
    }

    #[test]
    fn uris_have_a_scheme_and_no_other_bytes_than_uris_have() {
        for (text, expected) in [
            ("spiffe://mesh.test/ns/a/sa/b", true),
            ("https://a.test:443/%7Ea?b=c#d", true),
            ("spiffe://x y", false),
            ("spiffe://", false),
            ("://a", false),
            ("1a://b", false),
            ("a b://c", false),
            ("spiffe:/a", false),
            ("spiffe://a%2", false),
            ("spiffe://a%zz", false),
            ("spiffe://a\"b", false),
            ("spiffe://a\nb", false),
            ("spiffe://ä", false),
        ] {
            assert_eq!(is_uri(text), expected, "{text:?}");
        }
    }

    #[test]
    fn object_names_are_dns_subdomains() {
        let check = |name: &str, expected| assert_eq!(is_object_name(name), expected, "{name}");
        check("order-service", true);
        check("a.b-1", true);
        check("Order", false);
        check("-a", false);
        check("a-", false);
        check("a/b", false);
        check("", false);
    }
}
