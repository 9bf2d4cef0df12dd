//! What is no change, or none that fits, and what is said of it.

use super::super::change::Limits;
use super::super::{Change, Parts, WireError};
use super::{made, parts_of};
use crate::model::{Model, ObjectName, RouteKind, RouteTable};

type Puts<'a> = &'a [(&'a str, &'a str)];

/// A change with these records, in this order, whatever they are.
fn plain(puts: Puts<'_>, removals: &[&str]) -> Vec<u8> {
    let field = |bytes: &[u8]| {
        let length = u8::try_from(bytes.len()).expect("is short");
        assert!(length < 0x80);
        [&[length], bytes].concat()
    };
    let mut plain = vec![u8::try_from(puts.len()).expect("are few")];
    for (key, value) in puts {
        plain.extend(field(key.as_bytes()));
        plain.extend(field(value.as_bytes()));
    }
    plain.push(u8::try_from(removals.len()).expect("are few"));
    for key in removals {
        plain.extend(field(key.as_bytes()));
    }
    plain
}

fn apply(puts: Puts<'_>, removals: &[&str]) -> Result<Model, String> {
    let change =
        Change::decode(&Change::compress(&plain(puts, removals))).map_err(|error| error.to_string())?;
    let mut parts = Parts::default();
    parts.apply(&change).map_err(|error| error.to_string())?;
    Ok(parts.model())
}

#[test]
fn bytes_that_are_no_change() {
    let good = Change::compress(&plain(&[("service/a/b", "{}")], &["service/a/c"]));
    assert!(Change::decode(&good).is_ok());
    let compressed = |plain: &[u8]| Change::compress(plain);
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    let check = |bytes: &[u8], expected: &str| {
        let error = Change::decode(bytes).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error} does not say {expected}");
    };
    check(&[], "ends early");
    check(&[1], "ends early");
    check(&good[..good.len() - 1], "ends early");
    check(&good[..good.len() / 2], "ends early");
    check(&with(0, 0), "form 0");
    check(&with(0, 2), "form 2");
    check(&with(1, 0), "damaged");
    check(&with(good.len() - 1, !good[good.len() - 1]), "damaged");
    check(&[&good[..], &[0]].concat(), "1 bytes follow");
    check(&[&good[..], &good[1..]].concat(), "bytes follow");
    check(&compressed(&[]), "ends early");
    check(&compressed(&[0]), "ends early");
    check(&compressed(&[0, 0, 0]), "1 bytes follow");
    check(&compressed(&[1, 9, b'a']), "ends early");
    check(&compressed(&[0x80, 0x00, 0]), "a length is none");
    check(&compressed(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), "a length is none");
    check(&compressed(&[0xff, 0xff, 0xff, 0xff, 0x0f, 0]), "number of records exceeds 4194304");
    check(&compressed(&plain(&[("service/a", "{}")], &[])), "\"service/a\" is no key");
    check(&compressed(&[1, 2, 0xff, b'/', 0, 0]), "is no key");
    check(
        &compressed(&plain(&[("service/b/b", "{}"), ("service/a/b", "{}")], &[])),
        "service/a/b is out of order",
    );
    check(
        &compressed(&plain(&[("service/a/b", "{}"), ("service/a/b", "{}")], &[])),
        "service/a/b is out of order",
    );
    check(&compressed(&plain(&[], &["service/b/b", "service/a/b"])), "service/a/b is out of order");
    check(&compressed(&plain(&[("service/a/b", "{}")], &["service/a/b"])), "service/a/b is out of order");
}

#[test]
fn more_than_there_may_be() {
    let model = Model {
        mesh_routes: (0..50)
            .map(|index| RouteTable {
                source: ObjectName::new("a", &format!("route-{index}")),
                kind: RouteKind::HttpRoute,
                services: Vec::new(),
                hosts: Vec::new(),
                rules: Vec::new(),
            })
            .collect(),
        ..Model::default()
    };
    let bytes = Change::whole(&model).encode();
    let plain = Change::whole(&model).plain().len();
    let exact = Limits {
        compressed_max_bytes: bytes.len(),
        decompressed_max_bytes: plain,
        records_max: 50,
        key_max_bytes: "route/HTTPRoute/a/route-49".len(),
    };
    assert!(Change::decode_within(&bytes, exact).is_ok());
    for (limits, limit) in [
        (Limits { compressed_max_bytes: bytes.len() - 1, ..exact }, bytes.len() - 1),
        (Limits { decompressed_max_bytes: plain - 1, ..exact }, plain - 1),
        (Limits { records_max: 49, ..exact }, 49),
        (Limits { key_max_bytes: exact.key_max_bytes - 1, ..exact }, exact.key_max_bytes - 1),
    ] {
        match Change::decode_within(&bytes, limits) {
            Err(WireError::TooLarge { limit: said, .. }) => assert_eq!(said, limit),
            other => panic!("{limits:?}: {other:?}"),
        }
    }
}

/// 64 GiB of zeros in a few KiB are given up on early.
#[test]
fn a_bomb_is_not_unpacked() {
    let limits = Limits { decompressed_max_bytes: 1 << 20, ..Limits::default() };
    let bomb = Change::compress(&vec![0; 16 << 20]);
    assert!(bomb.len() < 4096, "{}", bomb.len());
    let refused = Change::decode_within(&bomb, limits);
    assert_eq!(refused, Err(WireError::TooLarge { what: "the number of bytes", limit: 1 << 20 }));
}

#[test]
fn records_that_can_not_be_read_are_named_with_their_field() {
    let check = |key: &str, value: &str, expected: &[&str]| {
        let error = apply(&[(key, value)], &[]).expect_err(value);
        assert!(error.contains(key), "{error} does not say {key}");
        for part in expected {
            assert!(error.contains(part), "{error} does not say {part}");
        }
    };
    check("service/a/b", "", &["EOF"]);
    check("service/a/b", "[]x", &["."]);
    check("service/a/b", r#"{"ports":[{"port":80,"protocol":"quic"}]}"#, &["ports[0].protocol", "`quic`"]);
    check("service/a/b", r#"{"cluster_ips":["10.0.0"]}"#, &["cluster_ips[0]", "IP address"]);
    check("endpoint/a/b/80/10.0.0.1:80", "{}", &["missing field `uid`"]);
    check("policy/a/b", r#"{"source":["a","b"],"lb":"maglev"}"#, &["lb", "`maglev`"]);
    check("guard//g", r#"{"packets":{"per_second":0,"burst":1}}"#, &["packets.per_second", "above zero"]);
    check("guard//g", r#"{"deny":["10.0.0.0/40"]}"#, &["deny[0]"]);
    let route = |rule: &str| format!(r#"{{"rules":[{{"name":"r",{rule}}}]}}"#);
    let key = "route/HTTPRoute/a/b";
    check(key, &route(r#""action":{"teapot":{}}"#), &["rules[0].action", "`teapot`"]);
    check(
        key,
        &route(r#""action":{"respond":{"status":99}}"#),
        &["rules[0].action.respond.status", "200 to 599"],
    );
    check(
        key,
        &route(r#""action":{"redirect":{"status":304}}"#),
        &["rules[0].action.redirect.status", "304"],
    );
    check(
        key,
        &route(r#""matches":[{"path":{"regex":"("}}]"#),
        &["rules[0].matches[0].path", "unclosed group"],
    );
    check(key, r#"{"rules":[],"after":"HTTPRoute/a"}"#, &["after", "is no key"]);
}

#[test]
fn what_a_later_version_adds_is_passed_over() {
    let model = apply(&[("service/a/b", r#"{"headless":true,"new":[1]}"#), ("teapot/a", "?")], &[]);
    let model = model.expect("is read");
    assert!(model.services[0].headless);
    assert!(apply(&[], &["teapot/a"]).is_ok());
}

#[test]
fn changes_that_follow_something_else() {
    let rules = r#"{"rules":[]}"#;
    let after = |key: &str| format!(r#"{{"rules":[],"after":"{key}"}}"#);
    let check = |puts: Puts<'_>, removals: &[&str], expected: &str| {
        let error = apply(puts, removals).expect_err(expected);
        assert_eq!(error, expected);
    };
    for key in
        ["service/a/b", "endpoint/a/b/80/10.0.0.1:80", "workload/a/b", "route/HTTPRoute/a/b", "guard//g"]
    {
        check(&[], &[key], &format!("there is no record {key} to be removed"));
    }
    let no_place = |key: &str| format!("the record {key} has no place in the order of precedence");
    let (a, b) = ("route/HTTPRoute/a/a", "route/HTTPRoute/a/b");
    check(&[(a, rules), (b, rules)], &[], &no_place(b));
    check(&[(a, &after("HTTPRoute/a/c"))], &[], &no_place(a));
    check(&[(a, &after("HTTPRoute/a/a"))], &[], &no_place(a));
    check(&[(a, &after("HTTPRoute/a/b")), (b, &after("HTTPRoute/a/a"))], &[], &no_place(a));
    let on_none = "listener/a/gw/http/HTTPRoute/a/b";
    check(&[(on_none, rules)], &[], &no_place(on_none));
}

/// A listener can't go while it has routes.
#[test]
fn routes_do_not_outlive_their_listener() {
    let listener = r#"{"port":80,"protocol":"http","hostname":"any"}"#;
    let whole = plain(
        &[("listener/a/gw/http", listener), ("listener/a/gw/http/HTTPRoute/a/b", r#"{"rules":[]}"#)],
        &[],
    );
    let mut parts = Parts::default();
    parts.apply(&Change::decode(&Change::compress(&whole)).expect("is one")).expect("fits");
    let model = parts.model();
    assert_eq!(model.listeners[0].routes.len(), 1);
    let gone = plain(&[], &["listener/a/gw/http"]);
    let refused = parts.apply(&Change::decode(&Change::compress(&gone)).expect("is one"));
    assert!(matches!(refused, Err(WireError::Precedence { .. })), "{refused:?}");
    assert_eq!(parts.model(), model);
    parts.apply(&Change::between(&model, &Model::default())).expect("fits");
    assert_eq!(parts.model(), Model::default());
}

/// Between two models that differ in the place of one route, few records change, wherever that is.
#[test]
fn precedence_changes_few_records() {
    let table = |index: usize| RouteTable {
        source: ObjectName::new("a", &format!("route-{index}")),
        kind: RouteKind::VirtualService,
        services: Vec::new(),
        hosts: Vec::new(),
        rules: Vec::new(),
    };
    let before = Model { mesh_routes: (0..1000).map(table).collect(), ..Model::default() };
    let check = |change: fn(&mut Vec<RouteTable>), records: usize| {
        let mut after = before.clone();
        change(&mut after.mesh_routes);
        let change = Change::between(&before, &after);
        assert_eq!(change.len(), records, "{change:?}");
        let mut parts = parts_of(&before);
        parts.apply(&change).expect("fits");
        assert_eq!(parts.model(), after);
    };
    check(|routes| drop(routes.remove(0)), 2);
    check(|routes| drop(routes.remove(500)), 2);
    check(|routes| drop(routes.pop()), 1);
    check(|routes| routes.swap(0, 999), 3);
    check(|routes| routes.rotate_left(1), 2);
    check(|routes| routes.insert(0, RouteTable { kind: RouteKind::HttpRoute, ..routes[0].clone() }), 2);
    check(|routes| routes.insert(7, routes[7].clone()), 2);
}

/// The order of a model's lists that have none is put right.
#[test]
fn a_model_that_is_not_sorted_is_read_as_if_it_were() {
    use proptest::strategy::{Strategy, ValueTree};
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..50 {
        let sorted = made::model().new_tree(&mut runner).expect("is made").current();
        let mut model = sorted.clone();
        model.services.reverse();
        model.workloads.reverse();
        model.guards.reverse();
        assert_eq!(Change::whole(&model), Change::whole(&sorted));
        assert_eq!(parts_of(&model).model(), sorted);
    }
}
