//! What limits are about, what they count together by paths, and whom they do not hold for.

use super::*;
use crate::model::LimitedPods;

/// A document whose pods send; `rest` is what it is about.
fn sent(rest: &str) -> String {
    limit(&format!("{rest}  limits: [{{name: a, inFlight: 1}}]\n"))
}

/// Pods of the namespace `shop`: one on a node, and one on none that is named.
const PODS: [&str; 2] = [
    "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop, labels: {app: web}}\n\
     spec: {nodeName: n1}\nstatus: {podIP: 10.0.0.1}\n",
    "apiVersion: v1\nkind: Pod\nmetadata: {name: stray, namespace: shop, labels: {app: stray}}\n\
     status: {podIP: 10.0.0.2}\n",
];

/// Pods by namespace and their label `app`.
fn pods(namespace: Option<&str>, app: Option<&str>) -> LimitedPods {
    let labels = app.map(|app| ("app".into(), app.into())).into_iter().collect();
    LimitedPods { namespace: namespace.map(Into::into), labels }
}

fn root(text: &str) -> String {
    text.replace("namespace: shop", "namespace: istio-system")
}

/// What a document is about, and what is said where no pod fits.
fn check_about(text: &str, expected: &[LimitTarget], warned: Option<&str>) {
    let state = load_texts(&[WEB, PODS[0], PODS[1], text]);
    assert!(messages(&state.report, Severity::Error).is_empty(), "{text}: {:?}", state.report);
    assert_eq!(state.model.limits.iter().next().expect("a document").targets, expected, "{text}");
    let found = messages(&state.report, Severity::Warning);
    let said = found.iter().find(|text| text.contains("no pod is") || text.contains("no node is"));
    assert_eq!(said.map(|text| text.contains(warned.unwrap_or("?"))), warned.map(|_| true), "{found:?}");
}

#[test]
fn what_pods_and_nodes_send_is_read() {
    use LimitTarget::{SentBy, SentFrom, Service};
    let out = "  direction: Outbound\n";
    let web = "  selector: {matchLabels: {app: web}}\n";
    for (text, expected, warned) in [
        (sent(&format!("{web}{out}")), vec![SentBy(pods(Some("shop"), Some("web")))], None),
        (sent(&format!("  selector: {{}}\n{out}")), vec![SentBy(pods(Some("shop"), None))], None),
        (root(&sent(&format!("{web}{out}"))), vec![SentBy(pods(None, Some("web")))], None),
        (
            sent(&format!("{web}{out}  targetRefs: [{{kind: Service, name: web}}]\n")),
            vec![SentBy(pods(Some("shop"), Some("web"))), Service(ObjectName::new("shop", "web"))],
            None,
        ),
        (
            sent(&format!("  selector: {{matchLabels: {{app: none}}}}\n{out}")),
            vec![SentBy(pods(Some("shop"), Some("none")))],
            Some("spec.selector: no pod is one of shop/app=none"),
        ),
        (
            root(&sent(&format!(
                "{out}  targetRefs: [{{kind: Node, name: n1}}, {{kind: Node, name: '*'}}]\n"
            ))),
            vec![SentFrom(Some("n1".into())), SentFrom(None)],
            None,
        ),
        (
            root(&sent(&format!("{web}{out}  targetRefs: [{{kind: Node, name: n9}}]\n"))),
            vec![SentBy(pods(None, Some("web"))), SentFrom(Some("n9".into()))],
            Some("spec.targetRefs[0]: no pod is on a node n9"),
        ),
    ] {
        check_about(&text, &expected, warned);
    }
}

#[test]
fn what_enters_pods_and_nodes_is_read() {
    use LimitTarget::{Enters, EntersNode};
    let inbound = "  direction: Inbound\n";
    let web = "  selector: {matchLabels: {app: web}}\n";
    let connections = "  limits: [{name: a, counts: Connections, inFlight: 1}]\n";
    for (text, expected, warned) in [
        (sent(&format!("{web}{inbound}")), vec![Enters(pods(Some("shop"), Some("web")))], None),
        (limit(&format!("{web}{inbound}{connections}")), vec![Enters(pods(Some("shop"), Some("web")))], None),
        (
            sent(&format!("  selector: {{matchLabels: {{app: none}}}}\n{inbound}")),
            vec![Enters(pods(Some("shop"), Some("none")))],
            Some("spec.selector: no pod is one of shop/app=none"),
        ),
        (
            sent(&format!("  selector: {{matchLabels: {{app: stray}}}}\n{inbound}")),
            vec![Enters(pods(Some("shop"), Some("stray")))],
            Some("spec.selector: no node is named of some pod of shop/app=stray"),
        ),
        (
            root(&sent(&format!(
                "{web}{inbound}  targetRefs: [{{kind: Node, name: n9}}, {{kind: Node, name: '*'}}]\n"
            ))),
            vec![Enters(pods(None, Some("web"))), EntersNode(Some("n9".into())), EntersNode(None)],
            Some("spec.targetRefs[0]: no pod is on a node n9"),
        ),
    ] {
        check_about(&text, &expected, warned);
    }
}

#[test]
fn directions_that_cannot_be_are_named() {
    let web = "  selector: {matchLabels: {app: web}}\n";
    let out =
        |limit: &str| self::limit(&format!("{web}  direction: Outbound\n  limits: [{{name: a, {limit}}}]\n"));
    let into =
        |limit: &str| self::limit(&format!("{web}  direction: Inbound\n  limits: [{{name: a, {limit}}}]\n"));
    let nodes = "  targetRefs: [{kind: Node, name: '*'}]\n  direction: Outbound\n";
    for (text, start, part) in [
        (sent(web), "4 spec.direction: ", "needs it"),
        (
            sent(&format!("{web}  direction: Inbound\n  targetRefs: [{{kind: Service, name: web}}]\n")),
            "6 spec.direction: ",
            "one of their own",
        ),
        (into("inFlight: 1, key: [{type: Route}]"), "7 spec.limits[0].key[0].type: ", "another node's agent"),
        (into("counts: Connections, inFlight: 1, key: [{type: Path}]"), "7 spec.limits[0].key[0]: ", "only"),
        (
            into("kernel: {count: Packets}, rate: {requests: 1, per: 1s}"),
            "7 spec.limits[0].kernel: ",
            "Services",
        ),
        (
            into("inFlight: 1, key: [{type: SourceAddress, prefixLengthV6: 64}], pushDown: {}"),
            "7 spec.limits[0].pushDown: ",
            "never kept out",
        ),
        (sent(&format!("{web}  direction: Sideways\n")), "6 spec.direction: ", "Sideways"),
        (
            sent("  targetRefs: [{kind: Service, name: web}]\n  direction: Outbound\n"),
            "6 spec.direction: ",
            "where requests go",
        ),
        (sent("  selector: {matchLabels: {app: 'w*'}}\n  direction: Outbound\n"), "5 spec.selector.", "`*`"),
        (sent("  selector: {app: web}\n  direction: Outbound\n"), "5 spec.selector.app: ", ""),
        (sent("  direction: Outbound\n"), "", "about nothing"),
        (sent(nodes), "5 spec.targetRefs[0]: ", "only a document in istio-system"),
        (
            out("kernel: {count: Packets}, rate: {requests: 1, per: 1s}"),
            "7 spec.limits[0].kernel: ",
            "Services",
        ),
        (out("counts: Connections, inFlight: 1"), "7 spec.limits[0].counts: ", "Service"),
        (
            out("inFlight: 1, key: [{type: SourceAddress, prefixLengthV6: 64}], pushDown: {}"),
            "7 spec.limits[0].pushDown: ",
            "never kept out",
        ),
    ] {
        check_bad(&text, start, part);
    }
}

#[test]
fn proven_senders_are_exempt_as_policies_name_them() {
    let of = |list: &str| with(&format!("inFlight: 1, exempt: [10.0.0.0/8], exemptPrincipals: {list}"));
    let state = load_texts(&[
        WEB,
        &of("[cluster.local/ns/shop/sa/cart, 'mesh.test/ns/ops/*', '*/sa/probe', '*', spiffe://a/ns/b/sa/c]"),
    ]);
    assert!(messages(&state.report, Severity::Error).is_empty(), "{:?}", state.report);
    let warned = messages(&state.report, Severity::Warning);
    assert!(warned.iter().any(|text| text.contains("spec.limits[0].exemptPrincipals[4]: ")), "{warned:?}");
    let limit = &state.model.limits.iter().next().expect("a document").limits[0];
    let read: Vec<String> = limit.exempt_principals.iter().map(ToString::to_string).collect();
    assert_eq!(
        read,
        ["cluster.local/ns/shop/sa/cart", "mesh.test/ns/ops/*", "*/sa/probe", "*", "spiffe://a/ns/b/sa/c"]
    );
    assert_eq!(limit.exempt.len(), 1);
    let many = vec!["a"; 65].join(", ");
    for (list, start, part) in [
        ("['']", "6 spec.limits[0].exemptPrincipals[0]: ", "is empty"),
        ("[a, 'mesh.test/*/sa/a']", "6 spec.limits[0].exemptPrincipals[1]: ", "elsewhere than at one end"),
        ("['*a*']", "6 spec.limits[0].exemptPrincipals[0]: ", "elsewhere than at one end"),
        (&*format!("[{many}]"), "6 spec.limits[0].exemptPrincipals: ", "64"),
    ] {
        check_bad(&of(list), start, part);
    }
    let kernel = "kernel: {count: Packets}, rate: {requests: 1, per: 1s}, exemptPrincipals: [a]";
    check_bad(&with(kernel), "6 spec.limits[0].exemptPrincipals: ", "prove nothing");
}
