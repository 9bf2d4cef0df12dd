//! What is looked up is what the policies say.

use agent_common::inbound::takes;
use agent_common::packet::{Family, Segment};
use agent_common::policy::{
    PROVEN, PacketKind, PolicyFlow, PolicyMaps, PolicyPacket, PolicyPod, PolicyRuleValue, PolicySourceKey,
    refuses,
};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::compile::{PolicyClient, Realm, TableVersion, Way, compile};
use crate::model::authorization_tests::Made;
use crate::model::{
    Account, Asked, AuthorizationPolicy, Cost, DirectResponse, Limit, LimitTarget, Missing, Model, MtlsMode,
    ObjectName, PeerAuthentication, PolicyAction, PolicyRule, PolicyScope, Quota, RateLimit, RequestTerms,
    TextPattern, Workload,
};

impl PolicyMaps for Lowered {
    fn pod(&self, address: &PolicyAddress) -> Option<PolicyPod> {
        let pod = self.pods.iter().find(|(pod, _)| policy_address(**pod) == *address);
        let proofs = u8::from(!self.proven.is_empty());
        pod.map(|(_, set)| PolicyPod { set: *set, side: 0, captured: 1, proofs, padding: 0, since: 0 })
    }
    fn class(&self, key: &PolicySourceKey) -> u32 {
        let address = plain_address(&key.source);
        if key.source.family & PROVEN != 0 {
            return self.proven.get(&address).copied().unwrap_or(0);
        }
        let holding = self.sources.iter().filter(|(cidr, _)| cidr.contains(&Cidr::host(address)));
        holding.max_by_key(|(cidr, _)| cidr.prefix()).map_or(0, |(_, class)| *class)
    }
    fn rule(&self, key: &PolicyRuleKey) -> Option<PolicyRuleValue> {
        let verdict = self.rules.get(key)?;
        Some(PolicyRuleValue { access: verdict.access as u32, slot: 1 })
    }
    fn began(&self, _: &PolicyFlow) -> bool {
        false
    }
    /// All come by their own interfaces.
    fn proves(&self, _: &PolicyAddress, _: &PolicyAddress) -> bool {
        true
    }
}

fn plain_address(address: &PolicyAddress) -> IpAddr {
    match (address.family & !PROVEN, address.address) {
        (4, [a, b, c, d, ..]) => IpAddr::from([a, b, c, d]),
        (_, wide) => IpAddr::from(wide),
    }
}

/// Pods of three namespaces, two of them with both families; all with one label.
fn workloads() -> Vec<Workload> {
    let pod = |namespace: &str, name: &str, addresses: &[&str]| Workload {
        name: ObjectName::new(namespace, name),
        uid: name.into(),
        workload: name.into(),
        node: match name {
            "a1" | "b1" => Some("here".into()),
            _ => None,
        },
        service_account: name.into(),
        addresses: addresses.iter().map(|text| text.parse().expect("an address")).collect(),
        labels: Arc::default(),
        ready: true,
        probes: Vec::new(),
        accelerated: true,
    };
    vec![
        pod("a", "a1", &["10.0.0.1", "fd00::1"]),
        pod("a", "a2", &["10.1.0.1"]),
        pod("ab", "b1", &["10.0.0.2", "fd00::2"]),
        pod("c", "c1", &["10.1.0.2"]),
    ]
}

const SOURCES: &[&str] = &[
    "10.0.0.1",
    "10.0.0.2",
    "10.1.0.1",
    "10.1.0.2",
    "10.0.0.77",
    "10.9.9.9",
    "11.1.1.1",
    "fd00::1",
    "fd00::2",
    "fd00::77",
    "fe00::1",
    "0.0.0.0",
    "::",
];

fn cidr() -> impl Strategy<Value = Cidr> {
    const RANGES: &[&str] = &[
        "0.0.0.0/0",
        "::/0",
        "10.0.0.0/8",
        "10.0.0.0/16",
        "10.0.0.0/24",
        "10.0.0.1/32",
        "10.1.0.0/16",
        "fd00::/16",
        "fd00::/64",
        "fd00::1/128",
    ];
    select(RANGES).prop_map(|text| {
        let (address, prefix) = text.split_once('/').expect("a prefix");
        Cidr::new(address.parse().expect("an address"), prefix.parse().expect("a length")).expect("a range")
    })
}

fn pattern() -> impl Strategy<Value = NamespacePattern> {
    use NamespacePattern::{Any, Exact, Prefix, Suffix};
    select(vec![Any, Exact("a".into()), Exact("x".into()), Prefix("a".into()), Suffix("b".into())])
}

/// Every other asks nothing of requests, so that rules of both kinds meet.
fn request_terms() -> impl Strategy<Value = RequestTerms> {
    let method = |text: &str| vec![TextPattern::Exact(text.into())];
    let empty = RequestTerms::default();
    select(vec![
        empty.clone(),
        empty.clone(),
        RequestTerms { methods: method("GET"), ..empty.clone() },
        RequestTerms { not_methods: method("GET"), ..empty },
    ])
}

fn principal() -> impl Strategy<Value = TextPattern> {
    use TextPattern::{Exact, Prefix, Present, Suffix};
    select(vec![
        Present,
        Exact("cluster.local/ns/a/sa/a1".into()),
        Exact("other/ns/a/sa/a1".into()),
        Prefix("cluster.local/ns/a".into()),
        Suffix("/sa/b1".into()),
    ])
}

fn account() -> impl Strategy<Value = Account> {
    select(vec![("a", "a1"), ("ab", "b1"), ("a", "x")])
        .prop_map(|(namespace, name)| Account { namespace: namespace.into(), name: name.into() })
}

prop_compose! {
    fn identities()(
        principals in vec(principal(), 0..2),
        not_principals in vec(principal(), 0..2),
        accounts in vec(account(), 0..2),
        not_accounts in vec(account(), 0..2),
    ) -> PolicyMatch {
        PolicyMatch { principals, not_principals, accounts, not_accounts, ..PolicyMatch::default() }
    }
}

prop_compose! {
    fn alternative()(
        cidrs in vec(cidr(), 0..2),
        not_cidrs in vec(cidr(), 0..2),
        namespaces in vec(pattern(), 0..2),
        not_namespaces in vec(pattern(), 0..2),
        ports in vec(1u16..4, 0..2),
        not_ports in vec(1u16..4, 0..2),
        request in request_terms(),
        identities in option::weighted(0.3, identities()),
        places in option::weighted(0.2, (vec(cidr(), 0..2), vec(cidr(), 0..2), vec(cidr(), 0..2))),
    ) -> PolicyMatch {
        let (remote_cidrs, destinations, not_destinations) = places.unwrap_or_default();
        PolicyMatch {
            cidrs,
            not_cidrs,
            namespaces,
            not_namespaces,
            remote_cidrs,
            destinations,
            not_destinations,
            ports,
            not_ports,
            request,
            ..identities.unwrap_or_default()
        }
    }
}

prop_compose! {
    fn policy()(
        namespace in select(vec!["a", "ab", "c", "istio-system"]),
        name in "[a-d]",
        deny in any::<bool>(),
        rules in vec(vec(vec(alternative(), 1..3), 0..3), 0..3),
    ) -> AuthorizationPolicy {
        let rules = rules.into_iter().enumerate();
        AuthorizationPolicy {
            name: ObjectName::new(namespace, &name),
            scope: if namespace == "istio-system" { PolicyScope::Mesh } else { PolicyScope::Namespace },
            selector: [].into(),
            action: if deny { PolicyAction::Deny } else { PolicyAction::Allow },
            dry_run: false,
            rules: rules.map(|(index, clauses)| PolicyRule { index, clauses }).collect(),
        }
    }
}

fn table(policies: Vec<AuthorizationPolicy>) -> RoutingTable {
    strict_table(policies, Vec::new())
}

/// The table of a node that runs the pods that [`workloads`] says it does.
fn strict_table(authorization: Vec<AuthorizationPolicy>, peers: Vec<PeerAuthentication>) -> RoutingTable {
    let realm = Realm { node: "here".into(), ..Realm::default() };
    let before = RoutingTable { realm: Arc::new(realm), ..RoutingTable::default() };
    let model = Model {
        workloads: workloads().into(),
        authorization: authorization.into(),
        peers: peers.into(),
        ..Model::default()
    };
    compile(&model, &before, TableVersion::default())
}

prop_compose! {
    fn peer()(
        namespace in select(vec!["a", "ab", "c", "istio-system"]),
        name in "[a-d]",
        mode in mode(),
        ports in btree_map(1u16..4, mode(), 0..3),
    ) -> PeerAuthentication {
        PeerAuthentication {
            name: ObjectName::new(namespace, &name),
            created: "".into(),
            scope: if namespace == "istio-system" { PolicyScope::Mesh } else { PolicyScope::Namespace },
            selector: [].into(),
            mode,
            ports,
        }
    }
}

fn mode() -> impl Strategy<Value = Option<MtlsMode>> {
    option::of(select(vec![MtlsMode::Strict, MtlsMode::Permissive, MtlsMode::Disable]))
}

fn syn(source: IpAddr, pod: IpAddr, port: u16) -> PolicyPacket {
    PolicyPacket {
        source: policy_address(source),
        destination: policy_address(pod),
        protocol: 6,
        source_port: [1, 1],
        destination_port: port.to_be_bytes(),
        kind: PacketKind::Opening,
    }
}

fn segment(source: IpAddr, pod: IpAddr, port: u16) -> Segment {
    Segment {
        family: if pod.is_ipv4() { Family::V4 } else { Family::V6 },
        source: policy_address(source).address,
        destination: policy_address(pod).address,
        source_port: [1, 1],
        destination_port: port.to_be_bytes(),
        flags: 2,
    }
}

proptest! {
    #[test]
    fn the_kernel_looks_up_what_the_agent_decides(
        policies in vec(policy(), 0..5),
        peers in vec(peer(), 0..3),
    ) {
        let table = strict_table(policies, peers);
        let lowered = lower(&table, "here", Room::default());
        for pod in workloads().iter().flat_map(|workload| &workload.addresses) {
            for source in SOURCES.iter().map(|text| text.parse::<IpAddr>().expect("an address")) {
                for port in 1..5 {
                    let ask = |asked| table.check_access(PolicyClient::direct(source), (*pod, port).into(), asked).is_err();
                    let looked_up = refuses(&syn(source, *pod, port), 1, &lowered).is_some();
                    prop_assert_eq!(looked_up, ask(Asked::Opaque), "{} to {}:{}", source, pod, port);
                    if source.is_ipv4() != pod.is_ipv4() {
                        continue;
                    }
                    let taken = takes(&segment(source, *pod, port), &lowered);
                    let requests = ["GET", "PUT"].map(|method| Made { method: method.into(), ..Made::default() });
                    for request in &requests {
                        let refused = ask(Asked::Request(request));
                        // What the kernel lets by, and what it drops for good, is so whatever the request.
                        prop_assert!(taken || refused == looked_up, "{} to {}:{}", source, pod, port);
                    }
                    prop_assert!(!taken || looked_up, "what is not of the agent is let by");
                }
            }
        }
    }
}

/// Connections to pods under a limit of what enters them are the agent's alone, whoever opens them; pods of other nodes, and of none
/// that is known, are not this agent's to count for.
#[test]
fn what_enters_limited_pods_is_taken() {
    for (target, counts) in [
        (LimitTarget::EntersNode(None), true),
        (LimitTarget::EntersNode(Some("there".into())), false),
        (LimitTarget::SentFrom(None), false),
    ] {
        let limit = RateLimit { targets: vec![target], ..limit() };
        let realm = Realm { node: "here".into(), ..Realm::default() };
        let before = RoutingTable { realm: Arc::new(realm), ..RoutingTable::default() };
        let model = Model { workloads: workloads().into(), limits: vec![limit].into(), ..Model::default() };
        let table = compile(&model, &before, TableVersion::default());
        let lowered = lower(&table, "here", Room::default());
        let taken = captured(&table, &lowered, "here");
        for pod in workloads() {
            let is_here = pod.node.as_deref() == Some("here");
            for address in &pod.addresses {
                assert_eq!(taken.contains(address), counts && is_here, "{}", pod.name);
                let source = if address.is_ipv4() { "8.8.8.8" } else { "2001:db8::8" };
                let source = source.parse().expect("an address");
                assert_eq!(
                    takes(&segment(source, *address, 80), &lowered),
                    counts && is_here,
                    "{}",
                    pod.name
                );
                let opening = syn(source, *address, 80);
                assert_eq!(refuses(&opening, 1, &lowered).is_some(), counts && is_here, "{}", pod.name);
                let datagram = PolicyPacket { kind: PacketKind::Datagram, ..opening };
                assert_eq!(refuses(&datagram, 1, &lowered), None, "{}", pod.name);
            }
        }
        assert_eq!(taken.is_empty(), !counts);
    }
}

/// A limit of requests, about nothing yet.
fn limit() -> RateLimit {
    let quota = Quota::InFlight { requests: 1 };
    RateLimit {
        name: ObjectName::new("default", "calm"),
        targets: Vec::new(),
        shadow: false,
        limits: vec![Limit {
            name: "all".into(),
            key: Vec::new(),
            missing: Missing::Shared,
            quota,
            cost: Cost::default(),
            overrides: Vec::new(),
            exempt: Vec::new(),
            exempt_principals: Vec::new(),
            max_keys: 1,
            cluster: None,
            push_down: None,
        }],
        connections: Vec::new(),
        kernel: Vec::new(),
        answer: DirectResponse { status: 429, body: Vec::new().into() },
        headers: [].into(),
        tells: false,
    }
}

/// What the programs look up for a packet that comes by its sender's own interface, or by another.
struct Arriving<'l> {
    lowered: &'l Lowered,
    home: bool,
}

impl PolicyMaps for Arriving<'_> {
    fn pod(&self, address: &PolicyAddress) -> Option<PolicyPod> {
        self.lowered.pod(address)
    }
    fn class(&self, key: &PolicySourceKey) -> u32 {
        self.lowered.class(key)
    }
    fn rule(&self, key: &PolicyRuleKey) -> Option<PolicyRuleValue> {
        self.lowered.rule(key)
    }
    fn began(&self, flow: &PolicyFlow) -> bool {
        self.lowered.began(flow)
    }
    fn proves(&self, _: &PolicyAddress, _: &PolicyAddress) -> bool {
        self.home
    }
}

/// Connections that each set of policies is asked about.
const CONNECTIONS: u32 = 10;

/// How many sets of policies are made up: for 20,000 pairs with a connection, or as many as the environment says.
fn policy_sets() -> u32 {
    let pairs = std::env::var("SLUICE_POLICY_PAIRS").ok().and_then(|pairs| pairs.parse().ok());
    pairs.unwrap_or(20_000_u32).div_ceil(CONNECTIONS)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(policy_sets()))]

    #[test]
    fn both_tiers_say_the_same_of_random_pairs(
        policies in vec(policy(), 0..4),
        peers in vec(peer(), 0..3),
        connections in vec(
            (select(SOURCES), 0..6_usize, 1..5_u16, any::<bool>()),
            CONNECTIONS as usize,
        ),
    ) {
        let table = strict_table(policies, peers);
        let lowered = lower(&table, "here", Room::default());
        let pods: Vec<IpAddr> = workloads().into_iter().flat_map(|workload| workload.addresses).collect();
        for (source, pod, port, home) in connections {
            let (source, pod): (IpAddr, IpAddr) = (source.parse().expect("an address"), pods[pod]);
            let way = if home { Way::Direct } else { Way::Relayed };
            let client = PolicyClient { address: source, way };
            let said = table.check_access(client, (pod, port).into(), Asked::Opaque);
            let slot = refuses(&syn(source, pod, port), 1, &Arriving { lowered: &lowered, home });
            prop_assert_eq!(slot.is_some(), said.is_err(), "{} to {}:{}, home: {}", source, pod, port, home);
        }
    }
}

#[test]
fn what_finds_no_room_is_closed() {
    let rule = |cidrs: &[&str]| PolicyRule {
        index: 0,
        clauses: vec![vec![PolicyMatch {
            cidrs: cidrs.iter().map(|text| Cidr::host(text.parse().expect("an address"))).collect(),
            ..PolicyMatch::default()
        }]],
    };
    let policy = |namespace: &str, rules| AuthorizationPolicy {
        name: ObjectName::new(namespace, "p"),
        scope: PolicyScope::Namespace,
        selector: [].into(),
        action: PolicyAction::Deny,
        dry_run: false,
        rules,
    };
    let table = table(vec![policy("a", vec![rule(&["1.1.1.1"])]), policy("c", vec![rule(&["2.2.2.2"])])]);
    let sets = |room| lower(&table, "here", room).pods.into_values().collect::<Vec<_>>();
    assert_eq!(sets(Room::default()), [0, 0, 1, 0], "10.0.0.1, 10.1.0.1, 10.1.0.2, fd00::1");
    assert_eq!(sets(Room { sources: 2, rules: 4 }), [0, 0, 1, 0]);
    assert_eq!(sets(Room { sources: 2, rules: 3 }), [0, 0, CLOSED, 0]);
    assert_eq!(sets(Room { sources: 1, rules: 4 }), [CLOSED; 4]);
    let left_out = |sources, rules| lower(&table, "here", Room { sources, rules }).left_out;
    assert_eq!(left_out(2, 4), LeftOut::default());
    assert_eq!(left_out(2, 3), LeftOut { sources: 0, rules: 2 });
    assert_eq!(left_out(1, 4), LeftOut { sources: 2, rules: 0 });
    let lowered = lower(&table, "here", Room { sources: 2, rules: 0 });
    let [foreign, pod] = ["8.8.8.8", "10.0.0.1"].map(|text| text.parse().expect("an address"));
    assert_eq!(refuses(&syn(foreign, pod, 80), 1, &lowered), Some(0));
}

#[test]
fn ranges_of_one_list_are_one_class_however_many_they_are() {
    let list = |from: u32| (0..65_536).map(|low| Cidr::host(Ipv4Addr::from(from + 2 * low).into())).collect();
    let rule = |index, cidrs: Vec<Cidr>| PolicyRule {
        index,
        clauses: vec![vec![PolicyMatch { cidrs, ports: vec![80, 443], ..PolicyMatch::default() }]],
    };
    let policy = AuthorizationPolicy {
        name: ObjectName::new("a", "p"),
        scope: PolicyScope::Namespace,
        selector: [].into(),
        action: PolicyAction::Deny,
        dry_run: false,
        rules: vec![rule(0, list(0x0b00_0000)), rule(1, list(0x0b01_0000))],
    };
    let lowered = lower(&table(vec![policy]), "here", Room::default());
    // Half of the second list is in the first as well.
    assert_eq!(lowered.sources.len(), 98_304);
    let classes: BTreeSet<u32> = lowered.sources.values().copied().collect();
    assert_eq!(classes.len(), 3);
    // Everybody on any port; both ports of the one list or of both, and of the other.
    assert_eq!(lowered.rules.len(), 1 + 3 * 3);
    let pod = "10.0.0.1".parse().expect("an address");
    for (source, refused) in
        [("11.0.0.2", true), ("11.1.0.2", true), ("11.2.255.254", true), ("11.0.0.3", false)]
    {
        let source = source.parse().expect("an address");
        assert_eq!(refuses(&syn(source, pod, 443), 1, &lowered).is_some(), refused, "{source}");
        assert_eq!(refuses(&syn(source, pod, 444), 1, &lowered), None, "{source}");
    }
}

#[test]
fn only_pods_here_whose_requests_decide_are_captured() {
    let get = RequestTerms { methods: vec![TextPattern::Exact("GET".into())], ..RequestTerms::default() };
    let rule = |request: RequestTerms| PolicyRule {
        index: 0,
        clauses: vec![vec![PolicyMatch { ports: vec![80], request, ..PolicyMatch::default() }]],
    };
    let policy = |namespace: &str, rule| AuthorizationPolicy {
        name: ObjectName::new(namespace, "p"),
        scope: PolicyScope::Namespace,
        selector: [].into(),
        action: PolicyAction::Allow,
        dry_run: false,
        rules: vec![rule],
    };
    let mut pods = workloads();
    pods[0].node = Some("here".into());
    pods[1].node = Some("there".into());
    let authorization = vec![policy("a", rule(get)), policy("c", rule(RequestTerms::default()))];
    let model = Model { workloads: pods.into(), authorization: authorization.into(), ..Model::default() };
    let table = compile(&model, &RoutingTable::default(), TableVersion::default());
    let taken = |node| {
        let lowered = lower(&table, node, Room::default());
        captured(&table, &lowered, node).iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(taken("here"), ["10.0.0.1", "fd00::1"]);
    assert_eq!(taken("there"), ["10.1.0.1"]);
    assert_eq!(taken("elsewhere"), [""; 0]);
    let [foreign, pod] = ["8.8.8.8", "10.0.0.1"].map(|text| text.parse().expect("an address"));
    let lowered = lower(&table, "here", Room::default());
    let on = |port| takes(&segment(foreign, pod, port), &lowered);
    assert!(on(80) && !on(81), "the rule's port is taken, and no other");
}

#[test]
fn what_becomes_of_other_nodes_pods_is_nothing_to_this_one() {
    let policy = |namespace: &str| AuthorizationPolicy {
        name: ObjectName::new(namespace, "p"),
        scope: PolicyScope::Namespace,
        selector: [].into(),
        action: PolicyAction::Allow,
        dry_run: false,
        rules: Vec::new(),
    };
    let lowered = |nodes: [Option<&str>; 4], policies: &[&str]| {
        let mut pods = workloads();
        for (pod, node) in pods.iter_mut().zip(nodes) {
            pod.node = node.map(Into::into);
        }
        let authorization = policies.iter().map(|namespace| policy(namespace)).collect();
        let model = Model { workloads: pods.into(), authorization, ..Model::default() };
        lower(&compile(&model, &RoutingTable::default(), TableVersion::default()), "here", Room::default())
    };
    let under = |lowered: &Lowered| lowered.pods.keys().map(ToString::to_string).collect::<Vec<_>>();
    let [here, there] = [Some("here"), Some("there")];
    let mixed = [here, there, there, None];
    let all = lowered(mixed, &["a", "ab", "c"]);
    assert_eq!(under(&all), ["10.0.0.1", "10.1.0.2", "fd00::1"], "pods here, and one of no known node");
    assert_eq!(all, lowered(mixed, &["a", "c"]), "a policy of another node's pods alone changes nothing");
    // Nobody has heard of this node: it may go by another name there.
    assert_eq!(under(&lowered([there; 4], &["c"])), ["10.1.0.2"]);
}
