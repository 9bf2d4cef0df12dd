//! Limits as they are compiled: what keeps its counters, and how limits are found.

use super::*;
use crate::limit::Verdict;
use crate::model::{
    Cost, KernelCount, KernelKey, KeyPart, LimitedPods, LimitedRoute, Missing, Override, OverrideValue, Quota,
};

fn document(requests: u32, body: &str) -> RateLimit {
    let service = ObjectName::new("default", "shop");
    RateLimit {
        name: ObjectName::new("default", "limits"),
        targets: vec![
            LimitTarget::Service(service),
            LimitTarget::Gateway(ObjectName::new("default", "edge"), Some("web".into())),
            LimitTarget::Route(LimitedRoute::HttpRoute, ObjectName::new("default", "all"), None),
        ],
        shadow: false,
        limits: vec![Limit {
            name: "one".into(),
            key: Vec::new(),
            missing: Missing::default(),
            quota: Quota::Window { requests, window_ns: 1000 },
            cost: Cost::default(),
            overrides: Vec::new(),
            exempt: Vec::new(),
            exempt_principals: Vec::new(),
            max_keys: 8,
            cluster: None,
            push_down: None,
        }],
        kernel: Vec::new(),
        connections: Vec::new(),
        answer: DirectResponse { status: 429, body: body.as_bytes().into() },
        headers: Arc::default(),
        tells: false,
    }
}

#[test]
fn requests_do_not_meet_what_the_kernel_holds_to() {
    let dials = KernelLimit {
        name: "dials".into(),
        count: KernelCount::Connections,
        key: KernelKey::Together,
        missing: Missing::default(),
        amount: 1,
        window_ns: 1_000_000_000,
        burst: 1,
        exempt: Vec::new(),
    };
    let only = RateLimit { kernel: vec![dials], limits: Vec::new(), ..document(1, "a") };
    let table = compile([&only, &document(1, "a")].into_iter(), &LimitTable::default());
    assert_eq!(table.of_service(&ObjectName::new("default", "shop")).len(), 1);
    assert_eq!(table.of_kernel().count(), 1);
    assert_eq!(table.policies().len(), 2);
}

#[test]
fn what_means_the_same_keeps_its_counters() {
    let first = compile([&document(1, "a")].into_iter(), &LimitTable::default());
    let counter = &first.policies()[0].limits[0];
    assert!(matches!(counter.numbers().take(7, 0, 1).0, Verdict::Admitted { .. }));
    let second = compile([&document(1, "b")].into_iter(), &first);
    let kept = &second.policies()[0].limits[0];
    assert!(
        matches!(kept.numbers().take(7, 1, 1).0, Verdict::Refused { .. }),
        "another body is no other limit"
    );
    let third = compile([&document(2, "b")].into_iter(), &second);
    assert!(matches!(third.policies()[0].limits[0].numbers().take(7, 1, 1).0, Verdict::Admitted { .. }));
}

#[test]
fn connections_are_counted_apart_from_requests() {
    let requests = document(1, "a");
    let mut both = document(1, "a");
    both.connections = both.limits.clone();
    let table = compile([&both].into_iter(), &compile([&requests].into_iter(), &LimitTable::default()));
    let policy = &table.policies()[0];
    assert!(matches!(policy.limits[0].numbers().take(7, 0, 1).0, Verdict::Admitted { .. }));
    assert!(matches!(policy.connections[0].numbers().take(7, 0, 1).0, Verdict::Admitted { .. }));
    assert_eq!(policy.all().count(), 2);
    let after = compile([&both].into_iter(), &table);
    assert!(Arc::ptr_eq(&after.policies()[0].connections[0], &policy.connections[0]));
}

#[test]
fn another_cost_keeps_the_counters() {
    let first = compile([&document(10, "a")].into_iter(), &LimitTable::default());
    let counter = &first.policies()[0].limits[0];
    counter.count(true, None, 0);
    assert!(matches!(counter.numbers().take(7, 0, 6).0, Verdict::Admitted { remaining: 4 }));
    let mut dearer = document(10, "a");
    dearer.limits[0].cost.units = 5;
    let second = compile([&dearer].into_iter(), &first);
    let kept = &second.policies()[0].limits[0];
    assert_eq!((kept.id(), kept.usage().admitted, kept.limit.cost.units), (counter.id(), 1, 5));
    assert!(matches!(kept.numbers().take(7, 1, 5).0, Verdict::Refused { .. }), "four are left");
    assert!(matches!(kept.numbers().take(7, 1, 4).0, Verdict::Admitted { remaining: 0 }));
}

fn with_overrides(quotas: &[(&str, u32)]) -> RateLimit {
    let mut document = document(10, "a");
    document.limits[0].key =
        vec![KeyPart::SourceAddress { v4: 32, v6: 128 }, KeyPart::Header("x-user".into())];
    let each = |(text, requests): &(&str, u32)| {
        let (net, user) = text.split_once(' ').expect("a network and a user");
        let values =
            vec![OverrideValue::Network(net.parse().expect("a network")), OverrideValue::Text(user.into())];
        Override { values, quota: Quota::Window { requests: *requests, window_ns: 1000 } }
    };
    document.limits[0].overrides = quotas.iter().map(each).collect();
    document
}

fn numbers<'l>(limit: &'l LimitCounter, client: &str, user: &str) -> &'l Numbers {
    let mut hasher = limit.hasher();
    write_text(user.as_bytes(), &mut hasher);
    let values = std::hash::Hasher::finish(&hasher);
    limit.numbers_of(values, client.parse().expect("an address"))
}

#[test]
fn some_keys_have_other_numbers_and_the_narrowest_network_decides() {
    let document = with_overrides(&[("10.0.0.0/8 ann", 20), ("10.1.0.0/16 ann", 30), ("10.0.0.0/8 bob", 30)]);
    let table = compile([&document].into_iter(), &LimitTable::default());
    let limit = &table.policies()[0].limits[0];
    let most = |client, user| numbers(limit, client, user).quota.at_once();
    for (client, user, expected) in [
        ("10.0.0.1", "ann", 20),
        ("10.1.0.1", "ann", 30),
        ("10.1.0.1", "bob", 30),
        ("11.0.0.1", "ann", 10),
        ("2001:db8::1", "ann", 10),
        ("10.0.0.1", "cid", 10),
        ("10.0.0.1", "", 10),
    ] {
        assert_eq!(most(client, user), expected, "{client} {user}");
    }
    assert!(std::ptr::eq(numbers(limit, "10.1.0.1", "ann"), numbers(limit, "10.1.0.1", "bob")));
}

#[test]
fn overrides_come_and_go_and_counters_that_mean_the_same_go_on() {
    let first = compile([&with_overrides(&[("10.0.0.0/8 ann", 20)])].into_iter(), &LimitTable::default());
    let before = &first.policies()[0].limits[0];
    let spend = |limit: &LimitCounter, user, cost| numbers(limit, "10.0.0.1", user).take(7, 0, cost).0;
    assert!(matches!(spend(before, "ann", 15), Verdict::Admitted { .. }));
    assert!(matches!(spend(before, "bob", 8), Verdict::Admitted { .. }));
    let changed = with_overrides(&[("10.0.0.0/8 cid", 40), ("10.0.0.0/8 ann", 20)]);
    let second = compile([&changed].into_iter(), &first);
    let after = &second.policies()[0].limits[0];
    assert!(matches!(spend(after, "ann", 6), Verdict::Refused { .. }), "five are left");
    assert!(matches!(spend(after, "bob", 3), Verdict::Refused { .. }), "two are left");
    assert!(matches!(spend(after, "cid", 40), Verdict::Admitted { remaining: 0 }));
    assert_eq!(after.usage().keys, 3);
}

#[test]
fn limits_are_found_by_what_they_are_about() {
    let table = compile([&document(1, "a")].into_iter(), &LimitTable::default());
    assert_eq!(table.of_service(&ObjectName::new("default", "shop")).len(), 1);
    assert_eq!(table.of_service(&ObjectName::new("other", "shop")).len(), 0);
    assert_eq!(table.of_listener("default/edge/web").count(), 1);
    assert_eq!(table.of_listener("default/edge/other").count(), 0);
    assert_eq!(table.of_listener("default/other/web").count(), 0);
    let of_route = |kind, rule| table.of_route(kind, &ObjectName::new("default", "all"), rule).len();
    assert_eq!((of_route("HTTPRoute", "rule-0"), of_route("VirtualService", "rule-0")), (1, 0));
}

/// The same in the other direction.
fn entered(target: LimitTarget) -> LimitTarget {
    match target {
        LimitTarget::SentBy(pods) => LimitTarget::Enters(pods),
        LimitTarget::SentFrom(node) => LimitTarget::EntersNode(node),
        other => other,
    }
}

#[test]
fn what_pods_send_or_get_is_found_by_pod_and_node() {
    let pods = |namespace: Option<&str>, labels: &[(&str, &str)]| {
        let labels = labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        LimitTarget::SentBy(LimitedPods { namespace: namespace.map(Into::into), labels })
    };
    let of = |name: &str, target| RateLimit {
        name: ObjectName::new("default", name),
        targets: vec![target],
        ..document(1, "a")
    };
    let documents = [
        of("all", pods(None, &[])),
        of("webs", pods(None, &[("app", "web")])),
        of("shop", pods(Some("shop"), &[])),
        of("shop-web", pods(Some("shop"), &[("app", "web"), ("tier", "a")])),
        of("other", pods(Some("other"), &[])),
        of("a-namespace", pods(Some("a"), &[])),
        of("n1", LimitTarget::SentFrom(Some("n1".into()))),
        of("nodes", LimitTarget::SentFrom(None)),
    ];
    let table = compile(documents.iter(), &LimitTable::default());
    assert!(table.ask_for_senders() && !table.ask_for_receivers());
    let entering = documents.iter().map(|document| RateLimit {
        targets: document.targets.iter().cloned().map(entered).collect(),
        ..document.clone()
    });
    let entering: Vec<_> = entering.collect();
    let receivers = compile(entering.iter(), &LimitTable::default());
    assert!(receivers.ask_for_receivers() && !receivers.ask_for_senders());
    let pod = |namespace: &str, labels: &[(&str, &str)]| Workload {
        name: ObjectName::new(namespace, "pod"),
        uid: "pod".into(),
        workload: "pod".into(),
        node: None,
        service_account: "default".into(),
        addresses: Vec::new(),
        labels: Arc::new(labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()),
        ready: true,
        probes: Vec::new(),
        accelerated: true,
    };
    let (web, plain) = (&[("app", "web"), ("tier", "a"), ("x", "y")][..], &[][..]);
    let (shop, plain, none) = (pod("shop", web), pod("shop", plain), pod("none", &[("app", "web")]));
    for (pod, node, expected) in [
        (Some(&shop), "n1", "all webs shop shop-web n1 nodes"),
        (Some(&plain), "n2", "all shop nodes"),
        (Some(&none), "n2", "all webs nodes"),
        (None, "n1", "n1 nodes"),
    ] {
        let found: Vec<&str> = table.of_sender(pod, node).map(|policy| &*policy.name.name).collect();
        assert_eq!(found.join(" "), expected, "{pod:?} {node}");
        let Some(pod) = pod else { continue };
        let found: Vec<&str> = receivers.of_receiver(pod, node).map(|policy| &*policy.name.name).collect();
        assert_eq!(found.join(" "), expected, "what enters {pod:?} {node}");
    }
    let one = compile([&document(1, "a")].into_iter(), &LimitTable::default());
    assert!(!one.ask_for_senders());
}
