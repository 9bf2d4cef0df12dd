//! RateLimit documents: what they become, and how wrong ones are named.

use super::*;
use crate::model::{ClusterCount, ClusterMode, FailMode, KeyPart, LimitTarget, Missing, ObjectName, Quota};

const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
                   spec: {clusterIP: 10.96.0.9, ports: [{name: http, port: 80}]}\n";

fn limit(spec: &str) -> String {
    format!(
        "apiVersion: sluice.dev/v1alpha1\nkind: RateLimit\nmetadata: {{name: calm, namespace: shop}}\nspec:\n{spec}"
    )
}

fn on_web(rest: &str) -> String {
    limit(&format!("  targetRefs: [{{kind: Service, name: web}}]\n{rest}"))
}

#[test]
fn limits_are_read() {
    let state = load_texts(&[
        WEB,
        &on_web(
            "  limits:\n\
             \x20 - name: each\n    key: [{type: SourceAddress, prefixLengthV6: 64}, {type: Header, name: X-User}]\n\
             \x20   window: {requests: 100, per: 15m}\n    exempt: [10.0.0.0/8, '2001:db8::1']\n\
             \x20 - {name: all, rate: {requests: 50, per: 1s}, ifMissing: Shared, maxKeys: 9}\n\
             \x20 - {name: busy, inFlight: 3}\n\
             \x20 - {name: once, rate: {requests: 9, per: 1s}, cluster: {mode: Leased, fail: Closed}}\n\
             \x20 - {name: twice, window: {requests: 9, per: 1s}, cluster: {mode: Exact}}\n\
             \x20 mode: Shadow\n  response: {status: 503, body: later, fields: Always}\n",
        ),
    ]);
    assert!(messages(&state.report, Severity::Error).is_empty(), "{:?}", state.report);
    let [limit] = &state.model.limits[..] else { panic!("{:?}", state.model.limits) };
    assert_eq!(limit.targets, [LimitTarget::Service(ObjectName::new("shop", "web"))]);
    assert!(limit.shadow && limit.tells);
    assert_eq!((limit.answer.status, &*limit.answer.body), (503, &b"later"[..]));
    let [each, all, busy, once, twice] = &limit.limits[..] else { panic!("{:?}", limit.limits) };
    assert_eq!(each.key, [KeyPart::SourceAddress { v4: 32, v6: 64 }, KeyPart::Header("x-user".into())]);
    assert_eq!(each.quota, Quota::Window { requests: 100, window_ns: 900_000_000_000 });
    assert_eq!((each.exempt.len(), each.max_keys, each.missing), (2, 65_536, Missing::SourceAddress));
    assert_eq!(all.quota, Quota::Rate { requests: 50, window_ns: 1_000_000_000, burst: 50 });
    assert_eq!((all.max_keys, all.missing), (9, Missing::Shared));
    assert_eq!(busy.quota, Quota::InFlight { requests: 3 });
    let count = |mode, fail| Some(ClusterCount { mode, fail });
    assert_eq!((each.cluster, once.cluster), (None, count(ClusterMode::Leased, FailMode::Closed)));
    assert_eq!(twice.cluster, count(ClusterMode::Exact, FailMode::Share), "who says nothing has its share");
}

#[test]
fn wrong_ones_are_named() {
    let with = |limit: &str| on_web(&format!("  limits: [{{name: a, {limit}}}]\n"));
    let to =
        |target: &str| limit(&format!("  targetRefs: [{target}]\n  limits: [{{name: a, inFlight: 1}}]\n"));
    for (text, start, part) in [
        (with("window: {requests: 0, per: 1s}"), "6 spec.limits[0].window.requests: ", "from 1 to 10000"),
        (with("window: {requests: 5, per: 0s}"), "6 spec.limits[0].window.per: ", "from 1ms to 24h"),
        (with("window: {requests: 5, per: 25h}"), "6 spec.limits[0].window.per: ", "from 1ms to 24h"),
        (with("rate: {requests: 5, per: soon}"), "6 spec.limits[0].rate.per: ", "`soon`"),
        (with("rate: {requests: 5, per: 1s, burst: 0}"), "6 spec.limits[0].rate.burst: ", "least is 1"),
        (with("rate: {requests: 0, per: 1s}"), "6 spec.limits[0].rate.requests: ", "least is 1"),
        (with("inFlight: 0"), "6 spec.limits[0].inFlight: ", "least is 1"),
        (with("maxKeys: 5"), "6 spec.limits[0]: ", "exactly one"),
        (with("inFlight: 1, rate: {requests: 1, per: 1s}"), "6 spec.limits[0]: ", "exactly one"),
        (with("inFlight: 1, maxKeys: 0"), "6 spec.limits[0].maxKeys: ", "from 1"),
        (with("inFlight: 1, key: [{type: Colour}]"), "6 spec.limits[0].key[0].type: ", "Colour"),
        (with("inFlight: 1, key: [{type: Header}]"), "6 spec.limits[0].key[0].name: ", "missing"),
        (with("inFlight: 1, key: [{type: Path, name: x}]"), "6 spec.limits[0].key[0].name: ", "no name"),
        (with("inFlight: 1, exempt: [here]"), "6 spec.limits[0].exempt[0]: ", "neither"),
        (
            with("inFlight: 1, key: [{type: SourceAddress}], pushDown: {}"),
            "6 spec.limits[0].pushDown: ",
            "prefixLengthV6: 64",
        ),
        (with("inFlight: 1, pushDown: {after: 0}"), "6 spec.limits[0].pushDown.after: ", "least is 1"),
        (with("inFlight: 1, pushDown: {for: 25h}"), "6 spec.limits[0].pushDown.for: ", "24h"),
        (with("inFlight: 1, cluster: {mode: Exact}"), "6 spec.limits[0].cluster: ", "each node for itself"),
        (with("window: {requests: 1, per: 1s}, cluster: {}"), "6 spec.limits[0].cluster", "mode"),
        (
            with("window: {requests: 1, per: 1s}, cluster: {mode: Loose}"),
            "6 spec.limits[0].cluster.mode: ",
            "Loose",
        ),
        (
            with("rate: {requests: 1, per: 24h, burst: 4000000000}, cluster: {mode: Exact}"),
            "6 spec.limits[0]",
            "burst",
        ),
        (
            with("rate: {requests: 7, per: 1h, burst: 2000000}, cluster: {mode: Exact}"),
            "6 spec.limits[0].cluster: ",
            "too large",
        ),
        (with("inFlight: 1, burst: 5"), "6 spec.limits[0].burst: ", ""),
        (on_web("  limits: []\n"), "6 spec.limits: ", "from 1 to 16"),
        (on_web("  limits: [{name: A b, inFlight: 1}]\n"), "6 spec.limits[0].name: ", "lower case"),
        (
            on_web("  limits: [{name: a, inFlight: 1}, {name: a, inFlight: 2}]\n"),
            "6 spec.limits[1].name: ",
            "too",
        ),
        (
            on_web("  limits: [{name: a, inFlight: 1}]\n  response: {status: 200}\n"),
            "7 spec.response.status: ",
            "from 400",
        ),
        (limit("  targetRefs: []\n  limits: [{name: a, inFlight: 1}]\n"), "5 spec.targetRefs: ", "nothing"),
        (to("{kind: Pod, name: x}"), "5 spec.targetRefs[0]: ", "none of"),
        (
            to("{kind: Service, name: web, sectionName: http}"),
            "5 spec.targetRefs[0].sectionName: ",
            "all ports",
        ),
    ] {
        check_bad(&text, start, part);
    }
}

#[test]
fn what_selects_nothing_is_told() {
    for (target, part) in [
        ("{kind: Service, name: none}", "there is no Service shop/none"),
        ("{group: gateway.networking.k8s.io, kind: Gateway, name: none}", "there is no Gateway shop/none"),
        (
            "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: none}",
            "there is no HTTPRoute shop/none",
        ),
        (
            "{group: networking.istio.io, kind: VirtualService, name: none}",
            "there is no VirtualService shop/none",
        ),
    ] {
        let text = limit(&format!(
            "  targetRefs: [{target}]\n  limits: [{{name: a, rate: {{requests: 1, per: 1s}}}}]\n"
        ));
        let state = load_texts(&[WEB, &text]);
        let messages = messages(&state.report, Severity::Error);
        assert!(messages.iter().any(|message| message.contains(part)), "{target}: {messages:?}");
    }
}
