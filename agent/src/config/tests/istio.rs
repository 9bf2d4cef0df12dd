//! Istio's semantics of PeerAuthentication and AuthorizationPolicy, one row a case: documents in, verdict and deciding policy out.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

mod cases;

use cases::{GROUPS, Group};

use super::{load_texts, messages};
use crate::compile::{PolicyClient, Realm, RoutingTable, TableVersion, Way, compile};
use crate::config::Severity;
use crate::model::Asked;
use crate::model::authorization_tests::Made;

/// `cart` and `web` are pods of this node; `job` and `bare` are of another, from which `job` comes by tunnel.
const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web, tier: front, networking.istio.io/tunnel: http}}
spec: {nodeName: here, serviceAccountName: web}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop, labels: {app: cart}}
spec: {nodeName: here, serviceAccountName: cart}
status: {podIP: 10.0.0.2}
---
apiVersion: v1
kind: Pod
metadata: {name: job, namespace: back, labels: {app: job, networking.istio.io/tunnel: http}}
spec: {nodeName: there, serviceAccountName: job}
status: {podIP: 10.0.1.1}
---
apiVersion: v1
kind: Pod
metadata: {name: bare, namespace: back}
spec: {nodeName: there}
status: {podIP: 10.0.1.2}
";

/// One of the documents above.
fn document(line: &str) -> String {
    let mut words = line.splitn(3, ' ');
    let mut next = || words.next().expect("a word");
    let (name, action, rest) = (next(), next(), next());
    let (name, label) = name.split_once('@').unwrap_or((name, ""));
    let (namespace, name) = name.split_once('/').expect("a namespace");
    let selector =
        label.split_once('=').map(|(key, value)| format!("selector: {{matchLabels: {{{key}: {value}}}}}"));
    let (action, dry_run) = action.strip_suffix('?').map_or((action, false), |action| (action, true));
    let kind = if action == "PEER" { "PeerAuthentication" } else { "AuthorizationPolicy" };
    let content = match (action, rest.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'))) {
        ("PEER", Some(fields)) => fields.to_owned(),
        _ => format!("action: {action}, rules: {rest}"),
    };
    let spec: Vec<String> = selector.into_iter().chain([content]).collect();
    format!(
        "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}, \
         annotations: {{istio.io/dry-run: '{dry_run}'}}}}\nspec: {{{}}}\n",
        spec.join(", ")
    )
}

fn table(documents: &[&str]) -> RoutingTable {
    let texts: Vec<String> = documents.iter().map(|line| document(line)).collect();
    let state = load_texts(&[PODS, &texts.join("---\n")]);
    assert_eq!(messages(&state.report, Severity::Error), [""; 0], "{documents:?}");
    let realm = Realm { node: "here".into(), trust_domain: "mesh.test".into(), tunnels: true };
    let before = RoutingTable { realm: Arc::new(realm), ..RoutingTable::default() };
    compile(&state.model, &before, TableVersion::default())
}

fn client(who: &str) -> PolicyClient {
    let (relayed, who) = who.strip_prefix("gw:").map_or((false, who), |who| (true, who));
    let (who, plain) = who.strip_suffix('~').map_or((who, false), |who| (who, true));
    let address: IpAddr = match who {
        "cart" => [10, 0, 0, 2].into(),
        "job" => [10, 0, 1, 1].into(),
        "bare" => [10, 0, 1, 2].into(),
        address => address.parse().expect("an address"),
    };
    let way = match (relayed, who, plain) {
        (true, ..) => Way::Relayed,
        (false, "job", false) => Way::Tunnel,
        _ => Way::Direct,
    };
    PolicyClient { address, way }
}

#[test]
fn each_case_is_as_in_istio() {
    let mut cases = 0;
    for Group { documents, rows } in GROUPS {
        let table = table(documents);
        for (who, port, what, expected) in *rows {
            let endpoint = SocketAddr::new([10, 0, 0, 1].into(), *port);
            let request = Made::read(what);
            let asked = if what.is_empty() { Asked::Opaque } else { Asked::Request(&request) };
            let said = match table.check_access(client(who), endpoint, asked) {
                Ok(()) => "allow".to_owned(),
                Err(denied) => format!("{} {}", denied.policy, denied.rule_label()),
            };
            assert_eq!(said, *expected, "{documents:?}: {who} to {port}, `{what}`");
            cases += 1;
        }
    }
    assert!(cases >= 150, "{cases} cases");
}

#[test]
fn what_refuses_nobody_is_told() {
    // documents, who, port, what -> policy, rule and outcome of each
    type Case<'a> = (&'a [&'a str], &'a str, u16, &'a str, &'a [&'a str]);
    let cases: &[Case<'_>] = &[
        (&["shop/p AUDIT [{}]"], "cart", 80, "", &["shop/p 0 audited"]),
        (&["shop/p AUDIT []"], "cart", 80, "", &[]),
        (
            &["shop/p AUDIT [{to: [{operation: {methods: [GET]}}]}]"],
            "cart",
            80,
            "GET / web",
            &["shop/p 0 audited"],
        ),
        (&["shop/p AUDIT [{to: [{operation: {methods: [GET]}}]}]"], "cart", 80, "PUT / web", &[]),
        (&["shop/p AUDIT [{to: [{operation: {methods: [GET]}}]}]"], "cart", 80, "", &[]),
        (
            &["shop/p AUDIT [{from: [{source: {notPrincipals: ['*']}}]}]"],
            "job~",
            80,
            "",
            &["shop/p 0 audited"],
        ),
        (&["shop/p AUDIT [{from: [{source: {notPrincipals: ['*']}}]}]"], "job", 80, "", &[]),
        (
            &["shop/p AUDIT [{}]", "shop/q AUDIT [{}, {}]"],
            "cart",
            80,
            "",
            &["shop/p 0 audited", "shop/q 0 audited"],
        ),
        (&["shop/p DENY? [{to: [{operation: {ports: ['22']}}]}]"], "cart", 22, "", &["shop/p 0 would_deny"]),
        (&["shop/p DENY? [{to: [{operation: {ports: ['22']}}]}]"], "cart", 80, "", &[]),
        (&["shop/p ALLOW? [{to: [{operation: {ports: ['22']}}]}]"], "cart", 22, "", &[]),
        (
            &["shop/p ALLOW? [{to: [{operation: {ports: ['22']}}]}]"],
            "cart",
            80,
            "",
            &["shop/p none would_deny"],
        ),
        (&["shop/p ALLOW? []", "shop/q DENY? [{}]"], "cart", 80, "", &["shop/q 0 would_deny"]),
        (&["shop/p ALLOW? []", "shop/q ALLOW? [{}]"], "cart", 80, "", &[]),
        (&["shop/p DENY [{}]", "shop/q ALLOW [{}]"], "cart", 80, "", &[]),
        (&["back/p AUDIT [{}]"], "cart", 80, "", &[]),
    ];
    for (documents, who, port, what, expected) in cases {
        let table = table(documents);
        let endpoint = SocketAddr::new([10, 0, 0, 1].into(), *port);
        let request = Made::read(what);
        let asked = if what.is_empty() { Asked::Opaque } else { Asked::Request(&request) };
        let observed = table.observe_access(client(who), endpoint, asked);
        let said: Vec<_> = observed
            .iter()
            .map(|one| format!("{} {} {}", one.policy, one.rule_label(), one.outcome.as_str()))
            .collect();
        assert_eq!(said, *expected, "{documents:?}: {who} to {port}, `{what}`");
    }
}
