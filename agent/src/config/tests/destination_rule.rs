//! DestinationRule.

use super::{check_bad, good, load_in_shop, messages};
use crate::config::Severity;
use crate::model::LbPolicy;

/// A DestinationRule for `order-service`; `spec` begins on line 6.
fn rule(spec: &str) -> String {
    named("orders", "order-service", spec)
}

fn named(name: &str, host: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}}}\nspec:\n  host: '{host}'\n{spec}"
    )
}

#[test]
fn balancing_and_subsets_are_read() {
    let state = good(&rule(
        "  trafficPolicy:\n    loadBalancer: {simple: ROUND_ROBIN}\n    portLevelSettings: [{port: {number: 9000}, loadBalancer: {simple: RANDOM}}]\n  subsets:\n  - {name: v1, labels: {version: v1}}\n  - {name: v2, labels: {version: v2}, trafficPolicy: {loadBalancer: {simple: LEAST_CONN}}}\n",
    ));
    let [policy] = &state.model.policies[..] else { panic!("one policy") };
    assert_eq!(policy.service.to_string(), "default/order-service");
    assert_eq!((policy.lb, &policy.port_lb[..]), (LbPolicy::RoundRobin, &[(9000, LbPolicy::Random)][..]));
    let subsets: Vec<_> = policy.subsets.iter().map(|subset| (&*subset.name, subset.lb)).collect();
    assert_eq!(subsets, [("v1", None), ("v2", Some(LbPolicy::LeastRequest))]);
}

#[test]
fn policies_are_named_in_the_fields_words() {
    let check = |simple: &str, expected, later: bool| {
        let state = good(&rule(&format!("  trafficPolicy: {{loadBalancer: {{simple: {simple}}}}}\n")));
        assert_eq!(state.model.policies[0].lb, expected, "{simple}");
        let object =
            state.report.objects.iter().find(|object| &*object.kind == "DestinationRule").expect("it");
        assert_eq!(object.state.as_str() == "partly enforced", later, "{simple}");
    };
    check("ROUND_ROBIN", LbPolicy::RoundRobin, false);
    check("RANDOM", LbPolicy::Random, false);
    check("LEAST_REQUEST", LbPolicy::LeastRequest, false);
    check("LEAST_CONN", LbPolicy::LeastRequest, false);
    check("UNSPECIFIED", LbPolicy::LeastRequest, false);
    check("PASSTHROUGH", LbPolicy::LeastRequest, true);
}

#[test]
fn a_hash_by_source_is_read_and_other_hashes_are_not_enforced() {
    let check = |hash: &str, expected, later: bool| {
        let rule = rule(&format!("  trafficPolicy: {{loadBalancer: {{consistentHash: {hash}}}}}\n"));
        let state = good(&rule);
        assert_eq!(state.model.policies[0].lb, expected, "{hash}");
        let object =
            state.report.objects.iter().find(|object| &*object.kind == "DestinationRule").expect("it");
        assert_eq!(object.state.as_str() == "partly enforced", later, "{hash}");
    };
    check("{useSourceIp: true}", LbPolicy::SourceIp, false);
    check("{useSourceIp: false}", LbPolicy::LeastRequest, false);
    check("{useSourceIp: true, maglev: {tableSize: 1021}}", LbPolicy::SourceIp, true);
    check("{httpHeaderName: x-user}", LbPolicy::LeastRequest, true);
    check("{httpCookie: {name: user, ttl: 0s}}", LbPolicy::LeastRequest, true);
    let both = "  trafficPolicy: {loadBalancer: {simple: RANDOM, consistentHash: {useSourceIp: true}}}\n";
    check_bad(&rule(both), "6 spec.trafficPolicy.loadBalancer", "not both");
    let unknown = "  trafficPolicy: {loadBalancer: {consistentHash: {useSourceIP: true}}}\n";
    check_bad(&rule(unknown), "6 spec.trafficPolicy.loadBalancer.consistentHash", "unknown field");
}

#[test]
fn the_closest_host_counts_and_rules_of_one_host_add_their_subsets() {
    let wide =
        named("wide", "*.default.svc.cluster.local", "  trafficPolicy: {loadBalancer: {simple: RANDOM}}\n");
    let close = rule("  trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}\n");
    let state = good(&format!("{wide}---\n{close}"));
    let found: Vec<_> =
        state.model.policies.iter().map(|policy| (&*policy.service.name, policy.lb)).collect();
    assert_eq!(found, [("order-service", LbPolicy::RoundRobin), ("payment-service", LbPolicy::Random)]);
    let more = named("zz", "order-service", "  subsets: [{name: v1, labels: {version: v1}}]\n");
    let state = load_in_shop(&format!("{close}---\n{more}"));
    assert_eq!(state.model.policies[0].subsets.len(), 1);
    let warnings = messages(&state.report, Severity::Warning);
    assert!(warnings.len() == 1 && warnings[0].contains("only the subsets"), "{warnings:?}");
}

#[test]
fn bad_destination_rules_name_their_field() {
    let check = |spec: &str, start: &str, part: &str| check_bad(&rule(&format!("  {spec}\n")), start, part);
    check("subset: []", "6 spec.subset: ", "unknown field");
    check(
        "trafficPolicy: {loadBalancer: {simple: LEAST}}",
        "6 spec.trafficPolicy.loadBalancer.simple: ",
        "is none of",
    );
    check(
        "trafficPolicy: {loadBalancer: {smple: X}}",
        "6 spec.trafficPolicy.loadBalancer.smple: ",
        "unknown field",
    );
    check("trafficPolicy: {conectionPool: {}}", "6 spec.trafficPolicy.conectionPool: ", "unknown field");
    check(
        "trafficPolicy: {outlierDetection: {consecutive: 5}}",
        "6 spec.trafficPolicy.outlierDetection.consecutive: ",
        "unknown field",
    );
    check(
        "trafficPolicy: {portLevelSettings: [{}]}",
        "6 spec.trafficPolicy.portLevelSettings[0].port: ",
        "missing",
    );
    check("subsets: [{labels: {}}]", "6 spec.subsets[0]: ", "`name` is missing");
    check("subsets: [{name: a}, {name: a}]", "6 spec.subsets[1].name: ", "given twice");
    check(
        "subsets: [{name: v9, labels: {version: v9}}]",
        "6 spec.subsets[0].labels: ",
        "no endpoint has the labels",
    );
    check_bad(&named("x", "nowhere", ""), "5 spec.host: ", "names no Service");
    check_bad(&named("x", "a b", ""), "5 spec.host: ", "no host name");
    check_bad(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: x}\nspec: {}\n",
        "4 spec: ",
        "`host` is missing",
    );
}
