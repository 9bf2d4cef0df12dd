//! EdgeGuard documents: what they become, and how wrong ones are named.

use super::*;
use crate::model::SourceRate;

fn guard(spec: &str) -> String {
    format!("apiVersion: sluice.dev/v1alpha1\nkind: EdgeGuard\nmetadata: {{name: edge}}\nspec:\n{spec}")
}

#[test]
fn lists_and_limits() {
    let state = good(&guard(
        "  deny: [192.0.2.0/24, 203.0.113.9, 'fd00:bad::/32', '2001:db8::1']\n\
         \x20 allow: [192.0.2.7]\n\
         \x20 perSource: {packetsPerSecond: 1000, packetsBurst: 50, synsPerSecond: 20}\n",
    ));
    let [guard] = &state.model.guards[..] else { panic!("{:?}", state.model.guards) };
    let texts: Vec<String> = guard.deny.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["192.0.2.0/24", "203.0.113.9/32", "fd00:bad::/32", "2001:db8::1/128"]);
    assert_eq!(guard.allow.len(), 1);
    assert_eq!(guard.packets, Some(SourceRate { per_second: 1000, burst: 50 }));
    assert_eq!(guard.syns, Some(SourceRate { per_second: 20, burst: 20 }), "a second's worth at once");
    assert_eq!(&*guard.name.namespace, "", "it has no namespace");
}

#[test]
fn wrong_ones_are_named() {
    for (spec, start, part) in [
        ("  deny: [192.0.2.1/24]\n", "5 spec.deny[0]: ", "192.0.2.0/24"),
        ("  deny:\n  - 192.0.2.0/24\n  - nonsense\n", "7 spec.deny[1]: ", "neither"),
        ("  deny: [10.0.0.0/33]\n", "5 spec.deny[0]: ", "neither"),
        ("  allow: ['::ffff:10.0.0.1']\n", "5 spec.allow[0]: ", "write it as IPv4"),
        ("  allow: 10.0.0.0/8\n", "5 spec.allow: ", ""),
        ("  denied: []\n", "5 spec.denied: ", ""),
        ("  perSource: {packetsPerSecond: 0}\n", "5 spec.perSource.packetsPerSecond: ", "no limit"),
        ("  perSource: {synsPerSecond: 10000001}\n", "5 spec.perSource.synsPerSecond: ", "10000000"),
        ("  perSource: {synsPerSecond: -1}\n", "5 spec.perSource.synsPerSecond: ", ""),
        ("  perSource: {packetsBurst: 5}\n", "5 spec.perSource.packetsBurst: ", "packetsPerSecond"),
        ("  perSource: {synsPerSecond: 1, synsBurst: 0}\n", "5 spec.perSource.synsBurst: ", "least is 1"),
        ("  perSource: {bytesPerSecond: 1}\n", "5 spec.perSource.bytesPerSecond: ", ""),
        ("  deny: [0.0.0.0/0]\n", "5 spec.deny[0]: ", "everyone"),
    ] {
        check_bad(&guard(spec), start, part);
    }
}

#[test]
fn many_wrong_ones_are_summed_up() {
    let list = "  - nonsense\n".repeat(30);
    let state = load_in_shop(&guard(&format!("  deny:\n{list}")));
    let messages = messages(&state.report, Severity::Error);
    assert_eq!(messages.len(), 21, "{messages:?}");
    assert!(messages[20].contains("10 more"), "{}", messages[20]);
}

#[test]
fn several_are_in_force_in_the_order_of_their_names() {
    let second = guard("  deny: [10.0.0.0/8]\n").replace("edge", "a-first");
    let state = load_texts(&[&guard("  deny: [10.0.0.0/8]\n"), &second]);
    let names: Vec<&str> = state.model.guards.iter().map(|guard| &*guard.name.name).collect();
    assert_eq!(names, ["a-first", "edge"]);
}
