//! Gateways' listeners: whose hosts are whose, and what is bound.

use super::*;

fn check_gateway(listeners: Vec<Listener>, cases: &[(&str, &str, Option<&str>)]) {
    let table = fresh(&Model { listeners: listeners.into(), ..canary() });
    assert_eq!(table.gateways.len(), 1);
    for (name, path, expected) in cases {
        let host = table.gateways[0].hosts.find(name);
        let matched = host.and_then(|host| host.find(&Get(name, path), &RequestOrigin::default()));
        assert_eq!(rule_name(matched.map(|matched| matched.route)), *expected, "{name}{path}");
    }
}

#[test]
fn a_host_belongs_to_the_most_specific_listener_alone() {
    let listeners = vec![
        listener("any", "*", &[("open", &["*", "foo.example.com"])]),
        listener("wild", "*.example.com", &[("wild", &["*.example.com"])]),
        listener("empty", "none.example.com", &[]),
    ];
    check_gateway(
        listeners,
        &[
            ("other.org", "/open", Some("open")),
            ("foo.example.com", "/wild", Some("wild")),
            ("foo.example.com", "/open", None),
            ("none.example.com", "/wild", None),
            ("other.org", "/wild", None),
        ],
    );
}

#[test]
fn within_a_listener_specific_hosts_come_first_and_wider_ones_follow() {
    let listeners = vec![listener("any", "*", &[("all", &[]), ("wild", &["*.com"]), ("one", &["a.com"])])];
    check_gateway(
        listeners,
        &[
            ("a.com", "/one", Some("one")),
            ("a.com", "/wild", Some("wild")),
            ("a.com", "/all", Some("all")),
            ("b.com", "/one", None),
            ("b.com", "/wild", Some("wild")),
            ("b.org", "/wild", None),
            ("b.org", "/all", Some("all")),
        ],
    );
}

#[test]
fn listeners_are_bound_once_for_each_port_and_address() {
    let one = listener("one", "a.com", &[]);
    let two = listener("two", "b.com", &[]);
    let mut three = listener("three", "c.com", &[]);
    three.addresses = vec![ip("127.0.0.1")];
    let mut four = listener("four", "d.com", &[]);
    four.port = 8081;
    let table = fresh(&Model { listeners: vec![one, two, three, four].into(), ..Model::default() });
    let names: Vec<&str> = table.gateways.iter().map(|gateway| &*gateway.name).collect();
    assert_eq!(names, ["infra/edge/one", "infra/edge/three", "infra/edge/four"]);
    assert_eq!(table.gateways[0].hosts.iter().count(), 2);
}
