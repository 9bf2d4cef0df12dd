//! What a table shares with its predecessor, and what it must not.

use super::*;
use crate::compile::Cluster;

fn next(model: &Model, previous: &RoutingTable) -> RoutingTable {
    compile(model, previous, TableVersion::alone(previous.version.version + 1))
}

#[test]
fn the_same_model_shares_everything() {
    let model = Model { listeners: vec![listener("any", "*", &[("all", &[])])].into(), ..canary() };
    let first = fresh(&model);
    let second = next(&model, &first);
    assert!(first.frontends.iter().all(|(address, entry)| Arc::ptr_eq(entry, &second.frontends[address])));
    assert!(first.clusters.iter().all(|(key, entry)| Arc::ptr_eq(entry, &second.clusters[key])));
    assert!(first.workloads.iter().all(|(address, entry)| Arc::ptr_eq(entry, &second.workloads[address])));
    assert!(first.gateways.iter().zip(&second.gateways).all(|(a, b)| Arc::ptr_eq(a, b)));
    assert_eq!(second.version.version, 2);
}

#[test]
fn a_change_of_one_endpoint_shares_all_the_rest() {
    let mut model = canary();
    let first = fresh(&model);
    let of_order = &first.clusters[&key("order", 80, None)];
    let picks = [(); 2].map(|()| of_order.pick(std::net::Ipv4Addr::LOCALHOST.into(), 0, &[]));
    let forward_draws = |table: &RoutingTable| {
        let route = Arc::clone(found(frontend(table, "10.96.0.1:80"), "/").expect("fits"));
        let Action::Forward(forward) = &route.action else { panic!("forwards") };
        forward.weights.draw();
        forward.weights.drawn.load(std::sync::atomic::Ordering::Relaxed)
    };
    assert_eq!(forward_draws(&first), 1);
    model.endpoints.edit(|all| drop(all.remove(2)));
    let second = next(&model, &first);

    assert!(!Arc::ptr_eq(frontend(&first, "10.96.0.1:80"), frontend(&second, "10.96.0.1:80")));
    assert!(Arc::ptr_eq(frontend(&first, "10.96.0.2:80"), frontend(&second, "10.96.0.2:80")));
    for (cluster, shared) in [
        (key("order", 80, None), false),
        (key("order", 80, Some("v2")), false),
        (key("order", 80, Some("v1")), true),
        (key("user", 80, None), true),
    ] {
        assert_eq!(Arc::ptr_eq(&first.clusters[&cluster], &second.clusters[&cluster]), shared, "{cluster:?}");
    }
    // The endpoints that stay are the same values, load included, and turns and draws go on.
    let whole = &second.clusters[&key("order", 80, None)];
    assert_eq!(whole.endpoints.iter().map(|upstream| upstream.active()).sum::<u32>(), 2);
    assert_eq!(picked_address(whole), "10.0.0.1:8080");
    assert_eq!(forward_draws(&second), 2);
    drop(picks);
}

/// Two turns were taken before, so the third of two endpoints is the first again.
fn picked_address(cluster: &Cluster) -> String {
    cluster
        .pick(std::net::Ipv4Addr::LOCALHOST.into(), 0, &[])
        .expect("has endpoints")
        .upstream()
        .address
        .to_string()
}

#[test]
fn what_changes_is_not_shared() {
    type Change = fn(&mut Model);
    let first = fresh(&canary());
    let changes: [(&str, Change); 5] = [
        ("a weight", |model| {
            model.mesh_routes[0].rules[0].action = RouteAction::Forward {
                destinations: vec![to("order", None, Some("v1"), 50), to("order", None, Some("v2"), 50)],
                rewrite: PathRewrite::default(),
            };
        }),
        ("a timeout", |model| {
            model.mesh_routes[0].rules[0].timeout = Some(std::time::Duration::from_secs(1));
        }),
        ("a match", |model| model.mesh_routes[0].rules[0].matches = vec![under("/a")]),
        ("a protocol", |model| model.services[0].ports[0].protocol = AppProtocol::Tcp),
        ("a pod's label", |model| {
            model.workloads[0].labels = Arc::new(BTreeMap::from([("a".into(), "b".into())]));
        }),
    ];
    for (what, change) in changes {
        let mut model = canary();
        change(&mut model);
        let second = next(&model, &first);
        assert!(!Arc::ptr_eq(frontend(&first, "10.96.0.1:80"), frontend(&second, "10.96.0.1:80")), "{what}");
        assert!(Arc::ptr_eq(frontend(&first, "10.96.0.2:80"), frontend(&second, "10.96.0.2:80")), "{what}");
    }
}
