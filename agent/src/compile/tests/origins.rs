//! Rules that concern some callers alone.

use super::*;
use crate::model::Labels;

fn web() -> Labels {
    BTreeMap::from([("app".into(), "web".into())])
}

/// A caller: its namespace, and whether it has the label.
fn caller(namespace: &str, labelled: bool) -> Workload {
    let labels = Arc::new(if labelled { web() } else { Labels::new() });
    Workload { name: ObjectName::new(namespace, "caller"), labels, ..pod("caller", "10.0.9.9") }
}

#[test]
fn rules_for_some_callers_leave_the_others_alone() {
    let from = RequestMatch { source_namespace: Some("front".into()), ..under("/a") };
    let labelled = RequestMatch { source_labels: web(), ..RequestMatch::default() };
    let consumer = &RouteTable {
        source: ObjectName::new("front", "consumer"),
        ..routes(RouteKind::HttpRoute, "c", "order", vec![says("consumer", vec![from])])
    };
    let producer = &routes(RouteKind::HttpRoute, "p", "order", vec![says("producer", vec![under("/a")])]);
    let service = &routes(RouteKind::VirtualService, "v", "order", vec![says("service", vec![under("/a")])]);
    let some = &routes(RouteKind::VirtualService, "v", "order", vec![says("some", vec![labelled])]);
    let (front, plain, labelled) = (caller("front", false), caller("shop", false), caller("shop", true));
    let check = |tables: &[&RouteTable], source: Option<&Workload>, path: &str, expected: Option<&str>| {
        let mesh_routes = tables.iter().map(|table| (*table).clone()).collect();
        let table = fresh(&Model { mesh_routes, ..canary() });
        let origin = RequestOrigin { source, port: 80 };
        let found = frontend(&table, "10.96.0.1:80").http.find(&Get("", path), &origin);
        assert_eq!(rule_name(found.map(|found| found.route)), expected, "{path} {source:?} {tables:?}");
    };
    check(&[consumer], Some(&front), "/a", Some("consumer"));
    check(&[consumer], Some(&front), "/z", None);
    check(&[service, consumer, producer], Some(&front), "/a", Some("consumer"));
    check(&[service, consumer, producer], Some(&front), "/z", None);
    for other in [Some(&plain), None] {
        check(&[consumer], other, "/a", Some("default"));
        check(&[service, consumer], other, "/a", Some("service"));
        check(&[service, consumer], other, "/z", None);
        check(&[service, consumer, producer], other, "/a", Some("producer"));
        check(&[some], other, "/a", Some("default"));
        check(&[some, consumer], other, "/a", Some("default"));
    }
    check(&[some], Some(&labelled), "/z", Some("some"));
    check(&[some, consumer], Some(&labelled), "/a", Some("some"));
    check(&[some, consumer], Some(&front), "/z", None);
}

#[test]
fn the_default_is_shown_where_it_can_be_met() {
    let from = RequestMatch { source_namespace: Some("front".into()), ..under("/a") };
    let names = |matches: Vec<RequestMatch>| -> Vec<String> {
        let rules = vec![says("rule", matches)];
        let mesh_routes = vec![routes(RouteKind::VirtualService, "v", "order", rules)];
        let table = fresh(&Model { mesh_routes: mesh_routes.into(), ..canary() });
        let host = &frontend(&table, "10.96.0.1:80").http;
        host.rules().map(|(_, route)| route.name.rule.to_string()).collect()
    };
    assert_eq!(names(vec![from.clone()]), ["rule", "default"]);
    assert_eq!(names(vec![from, under("/b")]), ["rule"]);
    assert_eq!(names(vec![]), ["rule"]);
}
