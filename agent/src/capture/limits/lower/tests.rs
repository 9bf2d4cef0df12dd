//! What documents become in the kernel's maps.

use std::collections::BTreeMap;
use std::net::IpAddr;

use agent_common::limit::LIMITS_PER_END;

use super::*;
use crate::compile::{TableVersion, compile};
use crate::model::{
    AppProtocol, DirectResponse, Endpoint, HostPattern, KernelCount, LimitTarget, Listener, ListenerProtocol,
    Model, RateLimit, Service, ServicePort,
};

const SECOND: u64 = 1_000_000_000;

fn name(text: &str) -> ObjectName {
    ObjectName::new("shop", text)
}

fn dials() -> KernelLimit {
    KernelLimit {
        name: "dials".into(),
        count: KernelCount::Connections,
        key: KernelKey::SourceAddress { v4: 24, v6: 64 },
        missing: Missing::default(),
        amount: 2,
        window_ns: SECOND,
        burst: 5,
        exempt: Vec::new(),
    }
}

fn document(text: &str, services: &[&str], kernel: Vec<KernelLimit>) -> RateLimit {
    RateLimit {
        name: name(text),
        targets: services.iter().map(|service| LimitTarget::Service(name(service))).collect(),
        shadow: false,
        limits: Vec::new(),
        connections: Vec::new(),
        kernel,
        answer: DirectResponse { status: 429, body: b"".as_slice().into() },
        headers: Arc::default(),
        tells: false,
    }
}

/// `web` has a port with an endpoint of each family, one of them not ready, and a port for datagrams; `other` shares one of its
/// endpoints.
fn table(limits: Vec<RateLimit>) -> RoutingTable {
    let port = |port| ServicePort { name: "".into(), port, protocol: AppProtocol::Tcp, tls: None };
    let service = |text, ip: &str, udp: Vec<u16>| Service {
        name: name(text),
        cluster_ips: vec![ip.parse().expect("an address")],
        headless: false,
        ports: vec![port(80)],
        datagram_ports: udp.into_iter().map(port).collect(),
        affinity: None,
    };
    let endpoint = |service, port, address: &str, ready| Endpoint {
        service: name(service),
        service_port: port,
        address: address.parse().expect("an address"),
        ready,
        pod: None,
        uid: address.into(),
        node: None,
        labels: Arc::default(),
    };
    let pod = |text, account: &str, address: &str| Workload {
        name: name(text),
        uid: text.into(),
        workload: text.into(),
        node: None,
        service_account: account.into(),
        addresses: vec![address.parse().expect("an address")],
        labels: Arc::default(),
        accelerated: true,
        ready: true,
        probes: Vec::new(),
    };
    let model = Model {
        services: vec![service("other", "10.96.0.2", vec![]), service("web", "10.96.0.1", vec![53])].into(),
        endpoints: vec![
            endpoint("other", 80, "10.0.0.1:8080", true),
            endpoint("web", 80, "10.0.0.1:8080", true),
            endpoint("web", 80, "[fd00::1]:8080", false),
        ]
        .into(),
        datagram_endpoints: vec![endpoint("web", 53, "10.0.0.1:5353", true)].into(),
        workloads: vec![
            pod("a", "shop", "10.0.0.1"),
            pod("b", "shop", "10.0.0.2"),
            pod("c", "till", "10.0.0.3"),
        ]
        .into(),
        limits: limits.into(),
        ..Model::default()
    };
    compile(&model, &RoutingTable::default(), TableVersion::default())
}

/// Listeners of Gateway `edge`: on two addresses, on all, and beside that, on the same port, another Gateway's at one address.
fn with_gateways(limits: Vec<RateLimit>) -> RoutingTable {
    let listener = |gateway, text: &str, addresses: &[&str], port| Listener {
        gateway: name(gateway),
        name: text.into(),
        addresses: addresses.iter().map(|address| address.parse().expect("an address")).collect(),
        port,
        protocol: ListenerProtocol::Http,
        hostname: HostPattern::Any,
        tls: None,
        routes: Vec::new(),
    };
    let listeners = vec![
        listener("edge", "own", &["192.0.2.1", "2001:db8::1"], 80),
        listener("edge", "any", &[], 81),
        listener("other", "own", &["192.0.2.2"], 81),
    ];
    let model = Model { listeners: listeners.into(), limits: limits.into(), ..Model::default() };
    compile(&model, &RoutingTable::default(), TableVersion::default())
}

#[test]
fn a_limit_is_about_the_listeners_of_its_gateways_and_no_others() {
    let about = |gateway, section: Option<&str>| RateLimit {
        targets: vec![LimitTarget::Gateway(name(gateway), section.map(Into::into))],
        ..document("a", &[], vec![dials()])
    };
    // documents -> limits at the addresses of edge's own, at all on the other port, and at the other Gateway's
    for (limits, expected, ends) in [
        (vec![], [0, 0, 0, 0, 0], 0),
        (vec![about("edge", None)], [1, 1, 1, 1, 0], 5),
        (vec![about("edge", Some("own"))], [1, 1, 0, 0, 0], 2),
        (vec![about("edge", Some("any"))], [0, 0, 1, 1, 0], 3),
        (vec![about("other", None)], [0, 0, 0, 0, 1], 1),
        (vec![about("none", None), about("ed", None)], [0; 5], 0),
        (
            vec![about("edge", None), RateLimit { name: name("b"), ..about("edge", Some("any")) }],
            [1, 1, 2, 2, 0],
            5,
        ),
    ] {
        let lowered = lowered(&with_gateways(limits.clone()));
        let at = ["192.0.2.1:80", "[2001:db8::1]:80", "0.0.0.0:81", "[::]:81", "192.0.2.2:81"];
        let count = |at: &str| {
            let set = lowered.gateways.get(&end(at, 6));
            set.map_or(0, |set| set.limits.iter().filter(|limit| limit.is_set()).count())
        };
        assert_eq!(at.map(count), expected, "{limits:?}");
        assert_eq!((lowered.gateways.len(), lowered.ends.len()), (ends, 0), "{limits:?}");
        assert_eq!(lowered.listened.values().sum::<usize>(), expected.iter().sum::<usize>());
    }
}

/// With each limit in the slot of its order.
fn lowered(table: &RoutingTable) -> Lowered {
    let asked = asked(table);
    let mut numbers = RuleNumbers::default();
    numbers.assign(asked.iter().map(|one| &one.title));
    lower(table, &asked, &numbers)
}

fn end(text: &str, protocol: u8) -> LimitEnd {
    limit_end(text.parse().expect("an address and port"), protocol)
}

fn names_at(lowered: &Lowered, text: &str, protocol: u8) -> usize {
    let set = lowered.ends.get(&end(text, protocol));
    set.map_or(0, |set| set.limits.iter().filter(|limit| limit.is_set()).count())
}

#[test]
fn a_limit_is_about_all_endpoints_of_its_services_and_no_others() {
    let packets = KernelLimit { name: "packets".into(), count: KernelCount::Packets, ..dials() };
    // documents -> limits at web's IPv4 endpoint, IPv6, UDP, its own address, and that of the other
    for (limits, expected) in [
        (vec![], [0, 0, 0, 0, 0]),
        (vec![document("a", &["web"], vec![dials()])], [1, 1, 0, 1, 0]),
        (vec![document("a", &["other"], vec![dials()])], [1, 0, 0, 0, 1]),
        (vec![document("a", &["web"], vec![packets.clone()])], [1, 1, 1, 1, 0]),
        (vec![document("a", &["other", "web"], vec![dials(), packets.clone()])], [2, 2, 1, 2, 2]),
        (
            vec![document("a", &["web"], vec![dials()]), document("b", &["web"], vec![dials()])],
            [2, 2, 0, 2, 0],
        ),
        (vec![document("a", &["none"], vec![dials()])], [0; 5]),
        (vec![document("a", &["web"], vec![KernelLimit { amount: 20_000_000, ..dials() }])], [0; 5]),
    ] {
        let lowered = lowered(&table(limits.clone()));
        let at = [
            ("10.0.0.1:8080", 6),
            ("[fd00::1]:8080", 6),
            ("10.0.0.1:5353", 17),
            ("10.96.0.1:80", 6),
            ("10.96.0.2:80", 6),
        ];
        assert_eq!(at.map(|(at, protocol)| names_at(&lowered, at, protocol)), expected, "{limits:?}");
        assert_eq!(lowered.ends.len(), expected.iter().filter(|count| **count > 0).count());
    }
}

#[test]
fn a_limit_says_in_numbers_what_its_document_says() {
    type Change = fn(&mut RateLimit);
    type Expected = ((u64, u64), Apart, u32);
    let nets = Apart::by_prefix(24, 64);
    let plain = (SECOND / 2, SECOND / 2 * 5);
    let cases: [(Change, Expected); 9] = [
        (|_| {}, (plain, nets, 0)),
        (|d| d.shadow = true, (plain, nets, SHADOW)),
        (|d| d.kernel[0].count = KernelCount::Packets, (plain, nets, COUNTS_PACKETS)),
        (|d| d.kernel[0].key = KernelKey::Together, (plain, Apart::together(), 0)),
        (|d| d.kernel[0].key = KernelKey::SourceIdentity, (plain, Apart::by_prefix(32, 64), BY_IDENTITY)),
        (
            |d| {
                d.kernel[0].key = KernelKey::SourceIdentity;
                d.kernel[0].missing = Missing::Shared;
            },
            (plain, Apart::together(), BY_IDENTITY),
        ),
        (
            |d| {
                d.kernel[0].key = KernelKey::SourceIdentity;
                d.kernel[0].missing = Missing::Refuse;
            },
            (plain, Apart::by_prefix(32, 64), BY_IDENTITY | UNNAMED_REFUSED),
        ),
        (|d| d.kernel[0].exempt = vec!["10.0.0.0/8".parse().expect("a network")], (plain, nets, HAS_EXEMPT)),
        // A third of a second is no whole number: it is rounded to what lets less through.
        (|d| d.kernel[0].amount = 3, ((333_333_334, 5 * 333_333_334), nets, 0)),
    ];
    for (change, expected) in cases {
        let mut document = document("a", &["web"], vec![dials()]);
        change(&mut document);
        let lowered = lowered(&table(vec![document.clone()]));
        let one = lowered.ends[&end("10.0.0.1:8080", 6)].limits[0];
        assert_eq!(((one.interval_ns, one.whole_ns), one.apart, one.flags), expected, "{document:?}");
    }
}

#[test]
fn buckets_stay_for_as_long_as_a_limit_means_the_same() {
    let id = |document: RateLimit| asked(&table(vec![document]))[0].id;
    let first = id(document("a", &["web"], vec![dials()]));
    let with = |change: fn(&mut KernelLimit)| {
        let mut limit = dials();
        change(&mut limit);
        id(document("a", &["web"], vec![limit]))
    };
    let exempt = with(|limit| limit.exempt = vec!["10.0.0.0/8".parse().expect("a network")]);
    let shadow = id(RateLimit { shadow: true, ..document("a", &["other"], vec![dials()]) });
    assert_eq!((exempt, shadow), (first, first));
    let others = [
        id(document("b", &["web"], vec![dials()])),
        with(|limit| limit.name = "other".into()),
        with(|limit| limit.burst = 6),
        with(|limit| limit.amount = 6),
        with(|limit| limit.count = KernelCount::Packets),
        with(|limit| limit.key = KernelKey::Together),
    ];
    assert!(!others.contains(&first));
    // Another agent, of another version, has the same: a change of this number is a decision.
    assert_eq!(number_of("shop/a"), 0x8585_119b_e227_f63a);
}

#[test]
fn pods_are_one_by_their_service_accounts() {
    let by_identity = KernelLimit { key: KernelKey::SourceIdentity, ..dials() };
    assert!(lowered(&table(vec![document("a", &["web"], vec![dials()])])).named.is_empty());
    let named = lowered(&table(vec![document("a", &["web"], vec![by_identity])])).named;
    let of = |text: &str| named[&policy_address(text.parse::<IpAddr>().expect("an address"))];
    assert_eq!(of("10.0.0.1"), of("10.0.0.2"));
    assert_ne!(of("10.0.0.1"), of("10.0.0.3"));
}

#[test]
fn networks_that_are_exempt_are_the_limits_own() {
    let nets = ["10.0.0.0/8", "2001:db8::/32"].map(|net| net.parse().expect("a network"));
    let limit = KernelLimit { exempt: nets.into(), ..dials() };
    let lowered = lowered(&table(vec![document("a", &["web"], vec![limit])]));
    let id = lowered.ends[&end("10.0.0.1:8080", 6)].limits[0].id.to_ne_bytes();
    let found: BTreeMap<u32, (u8, [u8; 8])> =
        lowered.exempt.iter().map(|(bits, key)| (*bits, (key.source.family, key.id))).collect();
    assert_eq!(found, [(72 + 8, (4, id)), (72 + 32, (6, id))].into());
}

#[test]
fn an_end_has_no_more_limits_than_there_is_room_for() {
    let document = |text: &str| document(text, &["web"], vec![dials()]);
    let lowered = lowered(&table(["a", "b", "c", "d", "e", "f"].map(document).into()));
    assert_eq!(names_at(&lowered, "10.0.0.1:8080", 6), LIMITS_PER_END);
    assert_eq!(lowered.crowded, 6, "two limits at three ends");
    assert_eq!(lowered.used.values().sum::<usize>(), LIMITS_PER_END * 3);
}
