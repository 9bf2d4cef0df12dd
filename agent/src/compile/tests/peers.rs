//! What PeerAuthentications say of pods, and whom they keep out.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::compile::{PolicyClient, Realm, RoutingTable, TableVersion, Way, compile};
use crate::model::{Asked, Model, MtlsMode, ObjectName, PeerAuthentication, PolicyScope, Workload};

/// `namespace/name created labels mode port=mode...`; `-` where nothing is given.
fn peer(text: &str) -> PeerAuthentication {
    let mut words = text.split(' ');
    let mut next = || words.next().expect("a word");
    let (namespace, name) = next().split_once('/').expect("a name");
    let mode = |word: &str| match word {
        "STRICT" => Some(MtlsMode::Strict),
        "PERMISSIVE" => Some(MtlsMode::Permissive),
        "DISABLE" => Some(MtlsMode::Disable),
        _ => None,
    };
    let created = next().trim_start_matches('-').into();
    let selector = next().split_once('=').map(|(key, value)| (key.into(), value.into()));
    let of_all = mode(next());
    let ports = words.map(|word| {
        let (port, of_port) = word.split_once('=').expect("a port");
        (port.parse().expect("a port"), mode(of_port))
    });
    PeerAuthentication {
        name: ObjectName::new(namespace, name),
        created,
        scope: if namespace == "istio-system" { PolicyScope::Mesh } else { PolicyScope::Namespace },
        selector: selector.into_iter().collect(),
        mode: of_all,
        ports: ports.collect::<BTreeMap<_, _>>(),
    }
}

fn pod(name: &str, address: &str, node: Option<&str>, tunnelled: bool) -> Workload {
    let (namespace, name) = name.split_once('/').expect("a name");
    let tunnel = tunnelled.then(|| ("networking.istio.io/tunnel".into(), "http".into()));
    Workload {
        name: ObjectName::new(namespace, name),
        uid: name.into(),
        workload: name.into(),
        node: node.map(Into::into),
        service_account: "default".into(),
        addresses: vec![address.parse().expect("an address")],
        labels: Arc::new([("app".into(), name.into())].into_iter().chain(tunnel).collect()),
        ready: true,
        probes: Vec::new(),
        accelerated: true,
    }
}

fn table(peers: &[&str], workloads: Vec<Workload>, tunnels: bool) -> RoutingTable {
    let mut peers: Vec<_> = peers.iter().map(|text| peer(text)).collect();
    peers.sort_by(|a, b| a.name.cmp(&b.name));
    let realm = Realm { node: "here".into(), tunnels, ..Realm::default() };
    let before = RoutingTable { realm: Arc::new(realm), ..RoutingTable::default() };
    let model = Model { workloads: workloads.into(), peers: peers.into(), ..Model::default() };
    compile(&model, &before, TableVersion::default())
}

#[test]
fn the_narrowest_that_says_something_wins_and_of_equals_the_oldest() {
    // PeerAuthentications, port -> what holds for the pod `shop/web`, and who says so
    let cases: &[(&[&str], u16, &str)] = &[
        (&[], 80, "-"),
        (&["istio-system/m - - STRICT"], 80, "STRICT istio-system/m"),
        (&["istio-system/m - - -"], 80, "-"),
        (&["shop/n - - STRICT"], 80, "STRICT shop/n"),
        (&["other/n - - STRICT"], 80, "-"),
        (&["istio-system/m - - STRICT", "shop/n - - PERMISSIVE"], 80, "PERMISSIVE shop/n"),
        (&["istio-system/m - - STRICT", "shop/n - - DISABLE"], 80, "DISABLE shop/n"),
        (&["istio-system/m - - STRICT", "shop/n - - -"], 80, "STRICT istio-system/m"),
        (&["istio-system/m - - PERMISSIVE", "other/n - - STRICT"], 80, "PERMISSIVE istio-system/m"),
        (&["shop/n - - PERMISSIVE", "shop/w - app=web STRICT"], 80, "STRICT shop/w"),
        (&["shop/n - - STRICT", "shop/w - app=web PERMISSIVE"], 80, "PERMISSIVE shop/w"),
        (&["shop/n - - STRICT", "shop/w - app=other PERMISSIVE"], 80, "STRICT shop/n"),
        (&["shop/n - - STRICT", "shop/w - app=web -"], 80, "STRICT shop/n"),
        (&["istio-system/m - - STRICT", "shop/n - - -", "shop/w - app=web -"], 80, "STRICT istio-system/m"),
        // A selector in the root namespace selects nothing.
        (&["istio-system/m - app=web STRICT"], 80, "-"),
        (
            &["istio-system/m - app=web STRICT", "istio-system/n - - PERMISSIVE"],
            80,
            "PERMISSIVE istio-system/n",
        ),
        // Ports.
        (&["shop/w - app=web PERMISSIVE 80=STRICT"], 80, "STRICT shop/w"),
        (&["shop/w - app=web PERMISSIVE 80=STRICT"], 81, "PERMISSIVE shop/w"),
        (&["shop/w - app=web STRICT 80=DISABLE"], 80, "DISABLE shop/w"),
        (&["shop/w - app=web STRICT 80=-"], 80, "STRICT shop/w"),
        (&["shop/n - - STRICT", "shop/w - app=web - 80=-"], 80, "STRICT shop/n"),
        (&["shop/n - - STRICT", "shop/w - app=web - 80=PERMISSIVE"], 80, "PERMISSIVE shop/w"),
        (&["shop/n - - STRICT", "shop/w - app=web - 80=PERMISSIVE"], 81, "STRICT shop/n"),
        (&["shop/w - app=web - 80=-"], 80, "-"),
        (&["shop/w - app=web - 80=STRICT"], 80, "STRICT shop/w"),
        (&["shop/w - app=web - 80=STRICT"], 81, "-"),
        // The oldest of one level; without a time by name.
        (&["shop/a 2026-02 - STRICT", "shop/b 2026-01 - PERMISSIVE"], 80, "PERMISSIVE shop/b"),
        (&["shop/a 2026-01 - STRICT", "shop/b 2026-02 - PERMISSIVE"], 80, "STRICT shop/a"),
        (&["shop/a - - STRICT", "shop/b - - PERMISSIVE"], 80, "STRICT shop/a"),
        (&["shop/a 2026-01 - STRICT", "shop/b - - PERMISSIVE"], 80, "PERMISSIVE shop/b"),
        (
            &["istio-system/a 2026-02 - STRICT", "istio-system/b 2026-01 - DISABLE"],
            80,
            "DISABLE istio-system/b",
        ),
        (&["shop/a 2026-02 app=web STRICT", "shop/b 2026-01 app=web PERMISSIVE"], 80, "PERMISSIVE shop/b"),
        (&["shop/a 2026-02 app=web STRICT", "shop/b 2026-01 app=other PERMISSIVE"], 80, "STRICT shop/a"),
        // The oldest counts as a whole: what it leaves open is said by a wider one, not by a younger one.
        (&["shop/a 2026-02 - STRICT", "shop/b 2026-01 - -"], 80, "-"),
        (
            &["shop/a 2026-02 app=web - 80=STRICT", "shop/b 2026-01 app=web PERMISSIVE"],
            80,
            "PERMISSIVE shop/b",
        ),
    ];
    for (peers, port, expected) in cases {
        let table = table(peers, vec![pod("shop/web", "10.0.0.1", None, false)], false);
        let policy = table.policies.of("10.0.0.1".parse().expect("an address"));
        let mode = policy.and_then(|policy| policy.mtls().on(Some(*port)));
        let found = mode.map_or_else(|| "-".to_owned(), |mode| format!("{} {}", mode.mode.as_str(), mode.by));
        assert_eq!(found, *expected, "{peers:?} port {port}");
    }
}

#[test]
fn strict_lets_in_whom_somebody_has_proven() {
    use Way::{Direct, Relayed, Tunnel};
    let pods = || {
        vec![
            pod("shop/web", "10.0.0.1", Some("here"), true),
            pod("shop/near", "10.0.0.2", Some("here"), false),
            pod("shop/far", "10.0.1.1", Some("there"), true),
            pod("shop/bare", "10.0.1.2", Some("there"), false),
            pod("shop/lost", "10.0.2.1", None, true),
        ]
    };
    let (web, far, bare, lost) = ("10.0.0.1:80", "10.0.1.1:80", "10.0.1.2:80", "10.0.2.1:80");
    // client, way, endpoint, whether this node makes tunnels -> let in
    let cases = [
        ("10.0.0.2", Direct, web, false, true),
        ("10.0.0.1", Direct, web, false, true),
        ("10.0.1.1", Direct, web, true, false),
        ("10.0.1.1", Tunnel, web, true, true),
        ("10.0.1.2", Tunnel, web, true, true),
        ("10.0.2.1", Direct, web, true, false),
        ("192.0.2.1", Direct, web, true, false),
        ("192.0.2.1", Tunnel, web, true, false),
        ("10.0.0.2", Relayed, web, true, false),
        ("192.0.2.1", Relayed, web, true, false),
        // What this node sends to others.
        ("10.0.0.2", Direct, far, true, true),
        ("10.0.0.2", Direct, far, false, false),
        ("10.0.0.2", Direct, bare, true, false),
        ("10.0.0.2", Direct, lost, false, true),
        ("192.0.2.1", Direct, lost, true, false),
        ("10.0.0.2", Relayed, far, true, false),
    ];
    for (client, way, endpoint, tunnels, expected) in cases {
        let table = table(&["istio-system/m - - STRICT"], pods(), tunnels);
        let address: IpAddr = client.parse().expect("an address");
        let endpoint: SocketAddr = endpoint.parse().expect("an endpoint");
        let checked = table.check_access(PolicyClient { address, way }, endpoint, Asked::Opaque);
        let said = checked.map_err(|denied| format!("{} {}", denied.policy, denied.rule_label()));
        let refused = || Err("istio-system/m plaintext".to_owned());
        let expected = if expected { Ok(()) } else { refused() };
        assert_eq!(said, expected, "{client} {way:?} to {endpoint}, tunnels: {tunnels}");
    }
}
