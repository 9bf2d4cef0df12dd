//! AuthorizationPolicy.

use super::{check_bad, good, load_in_shop, messages};
use crate::config::Severity;
use crate::model::{
    Account, AuthorizationPolicy, Cidr, FieldTerm, NamespacePattern, PathPart, PathPattern, PolicyAction,
    PolicyMatch, PolicyScope, RequestTerms, TextPattern,
};

fn document(namespace: &str, spec: &str) -> String {
    let head = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n";
    format!("{head}metadata: {{name: p, namespace: {namespace}}}\nspec:\n{spec}")
}

/// The one policy of a good document.
fn policy(namespace: &str, spec: &str) -> AuthorizationPolicy {
    let state = good(&document(namespace, spec));
    assert_eq!(state.model.authorization.len(), 1, "{spec}");
    state.model.authorization[0].clone()
}

fn cidr(address: &str, prefix: u8) -> Cidr {
    Cidr::new(address.parse().expect("an address"), prefix).expect("a range")
}

#[test]
fn fields_that_connections_decide_are_read() {
    let spec = r#"
  selector: {matchLabels: {app: order}}
  action: DENY
  rules:
  - from:
    - source: {namespaces: [back, "t-*"], notNamespaces: ["*-x", "*"]}
    - source: {ipBlocks: [10.1.2.3, 10.0.0.0/8], notIpBlocks: ["fd00::/64"]}
    to:
    - operation: {ports: ["80"], notPorts: ["90"]}
    when:
    - {key: source.ip, values: [1.2.3.4]}
    - {key: source.namespace, notValues: [z]}
    - {key: destination.port, values: ["443"]}
  - {}
"#;
    let policy = policy("default", spec);
    assert_eq!((policy.action, policy.scope), (PolicyAction::Deny, PolicyScope::Namespace));
    assert_eq!(policy.selector, [("app".into(), "order".into())].into());
    let empty = PolicyMatch::default;
    let first = PolicyMatch {
        namespaces: vec![NamespacePattern::Exact("back".into()), NamespacePattern::Prefix("t-".into())],
        not_namespaces: vec![NamespacePattern::Suffix("-x".into()), NamespacePattern::Any],
        ..empty()
    };
    let second = PolicyMatch {
        cidrs: vec![cidr("10.1.2.3", 32), cidr("10.0.0.0", 8)],
        not_cidrs: vec![cidr("fd00::", 64)],
        ..empty()
    };
    let when = [
        PolicyMatch { cidrs: vec![cidr("1.2.3.4", 32)], ..empty() },
        PolicyMatch { not_namespaces: vec![NamespacePattern::Exact("z".into())], ..empty() },
        PolicyMatch { ports: vec![443], ..empty() },
    ];
    let to = PolicyMatch { ports: vec![80], not_ports: vec![90], ..empty() };
    let [a, b, c] = when;
    assert_eq!(policy.rules[0].clauses, [vec![first, second], vec![to], vec![a], vec![b], vec![c]]);
    assert_eq!((policy.rules[1].index, policy.rules[1].clauses.len()), (1, 0));
}

#[test]
fn allow_is_the_default_and_the_root_namespace_speaks_for_all() {
    let nothing = policy("shop", "  {}\n");
    assert_eq!((nothing.action, nothing.rules.len()), (PolicyAction::Allow, 0));
    assert_eq!(nothing.scope, PolicyScope::Namespace);
    assert_eq!(policy("istio-system", "  rules: [{}]\n").scope, PolicyScope::Mesh);
}

#[test]
fn what_nobody_can_tell_errs_on_the_side_of_refusing() {
    let rules = "
  rules:
  - from: [{source: {namespaces: [back]}}]
  - from: [{source: {requestPrincipals: [a]}}]
  - to: [{operation: {methods: [GET], ports: ['80']}}]
    from: [{source: {notRequestPrincipals: [a]}}]
  - when: [{key: 'request.auth.claims[x]', values: [a]}]
";
    let load = |action: &str| load_in_shop(&document("default", &format!("  action: {action}{rules}")));
    let allow = load("ALLOW");
    let indexes: Vec<_> = allow.model.authorization[0].rules.iter().map(|rule| rule.index).collect();
    assert_eq!(indexes, [0]);
    let deny = load("DENY");
    let rules = &deny.model.authorization[0].rules;
    assert_eq!(rules.len(), 4);
    assert_eq!(rules[1].clauses, [[PolicyMatch::default()]]);
    let get = RequestTerms { methods: vec![TextPattern::Exact("GET".into())], ..RequestTerms::default() };
    let on_port = PolicyMatch { ports: vec![80], request: get, ..PolicyMatch::default() };
    assert_eq!(rules[2].clauses, [[PolicyMatch::default()], [on_port]]);
    assert_eq!(rules[3].clauses, [[PolicyMatch::default()]]);
    for (state, outcome) in [(allow, "allows nothing"), (deny, "denies as if it were absent")] {
        let said = messages(&state.report, Severity::Warning);
        for start in [
            "8 spec.rules[1].from[0].source.requestPrincipals: ",
            "10 spec.rules[2].from[0].source.notRequestPrincipals: ",
            "11 spec.rules[3].when[0].key: ",
        ] {
            let found = said.iter().any(|line| line.starts_with(start) && line.contains(outcome));
            assert!(found, "{start}: {said:#?}");
        }
        assert_eq!(said.len(), 3, "{said:#?}");
        let object =
            state.report.objects.iter().find(|object| object.title().contains("AuthorizationPolicy"));
        assert_eq!(object.expect("reported").state.as_str(), "partly enforced");
    }
}

#[test]
fn identities_audits_and_dry_runs_are_read() {
    let spec = r#"
  action: AUDIT
  rules:
  - from:
    - source: {principals: [cluster.local/ns/a/sa/b, "*"], notPrincipals: ["*/sa/x"]}
    - source: {serviceAccounts: [b, back/c], notServiceAccounts: [d]}
    - source: {remoteIpBlocks: [10.0.0.0/8], notRemoteIpBlocks: [10.1.0.0/16], notIpBlocks: [10.2.0.0/16]}
    when:
    - {key: source.principal, values: [a*], notValues: [b]}
    - {key: source.serviceAccount, notValues: [x/y]}
    - {key: remote.ip, values: [1.2.3.4]}
    - {key: destination.ip, values: [10.0.0.1], notValues: ["fd00::/64"]}
"#;
    let audit = policy("shop", spec);
    assert_eq!((audit.action, audit.dry_run, audit.is_enforced()), (PolicyAction::Audit, false, false));
    let empty = PolicyMatch::default;
    let account = |namespace: &str, name: &str| Account { namespace: namespace.into(), name: name.into() };
    let exact = |text: &str| TextPattern::Exact(text.into());
    let from = vec![
        PolicyMatch {
            principals: vec![exact("cluster.local/ns/a/sa/b"), TextPattern::Present],
            not_principals: vec![TextPattern::Suffix("/sa/x".into())],
            ..empty()
        },
        PolicyMatch {
            accounts: vec![account("shop", "b"), account("back", "c")],
            not_accounts: vec![account("shop", "d")],
            ..empty()
        },
        PolicyMatch {
            remote_cidrs: vec![cidr("10.0.0.0", 8)],
            not_cidrs: vec![cidr("10.2.0.0", 16), cidr("10.1.0.0", 16)],
            ..empty()
        },
    ];
    let principal = PolicyMatch {
        principals: vec![TextPattern::Prefix("a".into())],
        not_principals: vec![exact("b")],
        ..empty()
    };
    let other = PolicyMatch { not_accounts: vec![account("x", "y")], ..empty() };
    let remote = PolicyMatch { cidrs: vec![cidr("1.2.3.4", 32)], ..empty() };
    let to = PolicyMatch {
        destinations: vec![cidr("10.0.0.1", 32)],
        not_destinations: vec![cidr("fd00::", 64)],
        ..empty()
    };
    assert_eq!(audit.rules[0].clauses, [from, vec![principal], vec![other], vec![remote], vec![to]]);
    let annotated = |value: &str| {
        let text = document("default", "  rules: [{}]\n");
        text.replace("{name: p,", &format!("{{name: p, annotations: {{istio.io/dry-run: '{value}'}},"))
    };
    for (value, expected) in [("true", true), ("1", true), ("false", false), ("F", false)] {
        assert_eq!(good(&annotated(value)).model.authorization[0].dry_run, expected, "{value}");
    }
    check_bad(&annotated("yes"), "3 metadata.annotations", "neither true nor false");
}

#[test]
fn what_is_asked_of_requests_is_read() {
    let spec = r#"
  rules:
  - to:
    - operation:
        methods: [GET, "P*"]
        notMethods: ["*"]
        paths: [/ok, "/a%c3*", "*.png", "/x/{*}/y/{**}/z"]
        notPaths: ["*"]
        hosts: [Shop.Example, "*.example"]
        notHosts: ["a*"]
    when:
    - {key: "request.headers[X-Role]", values: [admin, "o*"], notValues: ["*"]}
"#;
    let state = load_in_shop(&document("default", spec));
    assert_eq!(messages(&state.report, Severity::Warning), [""; 0]);
    let [operation, header] = &state.model.authorization[0].rules[0].clauses[..] else {
        panic!("two clauses")
    };
    let exact = |text: &str| TextPattern::Exact(text.into());
    let prefix = |text: &str| TextPattern::Prefix(text.into());
    let suffix = |text: &str| TextPattern::Suffix(text.into());
    let part = |text: &str| PathPart::Text(text.into());
    let template = vec![part("x"), PathPart::One, part("y"), PathPart::Many, part("z")];
    let path = PathPattern::Text;
    let expected = RequestTerms {
        methods: vec![exact("GET"), prefix("P")],
        not_methods: vec![TextPattern::Present],
        paths: vec![
            path(exact("/ok")),
            path(prefix("/a%C3")),
            path(suffix(".png")),
            PathPattern::Template(template),
        ],
        not_paths: vec![path(TextPattern::Present)],
        hosts: vec![exact("shop.example"), suffix(".example")],
        not_hosts: vec![prefix("a")],
        field: None,
    };
    assert_eq!(operation[0].request, expected);
    let field = FieldTerm {
        name: "x-role".into(),
        values: vec![exact("admin"), prefix("o")],
        not_values: vec![TextPattern::Present],
    };
    assert_eq!(header[0].request, RequestTerms { field: Some(field), ..RequestTerms::default() });
}

#[test]
fn actions_that_are_not_enforced_leave_the_policy_out() {
    for (spec, start) in [
        ("  action: CUSTOM\n  provider: {name: x}\n  rules: [{}]\n", "5 spec.action: "),
        (
            "  targetRefs: [{kind: Gateway, name: g, group: gateway.networking.k8s.io}]\n",
            "5 spec.targetRefs: ",
        ),
    ] {
        let state = load_in_shop(&document("default", spec));
        assert!(state.model.authorization.is_empty(), "{spec}");
        let said = messages(&state.report, Severity::Warning);
        assert!(said.len() == 1 && said[0].starts_with(start), "{said:?}");
    }
}

#[test]
fn wrong_values_name_their_place() {
    for (spec, start, part) in [
        ("  action: BLOCK\n", "5 spec.action: ", "none of ALLOW"),
        (
            "  rules:\n  - to:\n    - operation:\n        ports: [http]\n",
            "8 spec.rules[0].to[0].operation.ports[0]: ",
            "no port",
        ),
        (
            "  rules:\n  - to: [{operation: {ports: ['0']}}]\n",
            "6 spec.rules[0].to[0].operation.ports[0]: ",
            "no port",
        ),
        ("  rules:\n  - to: [{operation: {}}]\n", "6 spec.rules[0].to[0].operation: ", "at least one"),
        ("  rules:\n  - from: [{}]\n", "6 spec.rules[0].from[0]", "missing"),
        (
            "  rules:\n  - from: [{source: {ipBlocks: [10.0.0.0/33]}}]\n",
            "6 spec.rules[0].from[0].source.ipBlocks[0]: ",
            "no IP",
        ),
        (
            "  rules:\n  - from: [{source: {namespaces: ['a*b*']}}]\n",
            "6 spec.rules[0].from[0].source.namespaces[0]: ",
            "no namespace",
        ),
        (
            "  rules:\n  - to: [{operation: {methods: ['G*T']}}]\n",
            "6 spec.rules[0].to[0].operation.methods[0]: ",
            "one end",
        ),
        (
            "  rules:\n  - to: [{operation: {paths: ['/{**}/{*}']}}]\n",
            "6 spec.rules[0].to[0].operation.paths[0]: ",
            "no template",
        ),
        (
            "  rules:\n  - to: [{operation: {paths: ['/a{*}']}}]\n",
            "6 spec.rules[0].to[0].operation.paths[0]: ",
            "no template",
        ),
        (
            "  rules:\n  - when: [{key: 'request.headers[a b]', values: [x]}]\n",
            "6 spec.rules[0].when[0].key: ",
            "no header field",
        ),
        ("  rules:\n  - when: [{key: source.ip}]\n", "6 spec.rules[0].when[0]: ", "needs values"),
        ("  rules:\n  - form: []\n", "6 spec.rules[0].form: ", "unknown field"),
        ("  provider: {name: x}\n", "5 spec.provider: ", "CUSTOM"),
        ("  selector: {matchLabels: {app: 'a*'}}\n", "5 spec.selector.matchLabels.app: ", "as they are"),
    ] {
        check_bad(&document("default", spec), start, part);
    }
}

#[test]
fn principals_that_are_nobody_are_told() {
    for (principal, told) in [("spiffe://a/ns/b/sa/c", 1), ("a/ns/b/sa/c", 0), ("*/sa/c", 0)] {
        let rules = [
            format!("  rules:\n  - from: [{{source: {{principals: ['{principal}']}}}}]\n"),
            format!("  rules:\n  - when: [{{key: source.principal, notValues: ['{principal}']}}]\n"),
        ];
        for rule in rules {
            let said = messages(&load_in_shop(&document("default", &rule)).report, Severity::Warning);
            assert_eq!(said.len(), told, "{rule}: {said:?}");
            assert!(said.iter().all(|said| said.contains("without `spiffe://`")), "{said:?}");
        }
    }
}

#[test]
fn methods_that_nobody_uses_are_told() {
    for (method, told) in
        [("get", 1), ("Get", 1), ("g*", 1), ("GET", 0), ("*", 0), ("P*", 0), ("M-SEARCH", 0)]
    {
        for field in ["methods", "notMethods"] {
            let rule = format!("  rules:\n  - to: [{{operation: {{{field}: ['{method}']}}}}]\n");
            let said = messages(&load_in_shop(&document("default", &rule)).report, Severity::Warning);
            assert_eq!(said.len(), told, "{rule}: {said:?}");
            assert!(
                said.iter().all(|said| said.contains(".operation.") && said.contains("in capitals")),
                "{said:?}"
            );
        }
    }
}

#[test]
fn wrong_identities_name_their_place() {
    for (spec, start, part) in [
        (
            "  rules:\n  - from: [{source: {principals: ['a*b']}}]\n",
            "6 spec.rules[0].from[0].source.principals[0]: ",
            "one end",
        ),
        (
            "  rules:\n  - from: [{source: {serviceAccounts: ['a/*']}}]\n",
            "6 spec.rules[0].from[0].source.serviceAccounts[0]: ",
            "no service account",
        ),
        (
            "  rules:\n  - from: [{source: {serviceAccounts: [a], namespaces: [b]}}]\n",
            "6 spec.rules[0].from[0].source.serviceAccounts: ",
            "stand for themselves",
        ),
        (
            "  rules:\n  - when: [{key: destination.ip, values: [web]}]\n",
            "6 spec.rules[0].when[0].values[0]: ",
            "no IP",
        ),
    ] {
        check_bad(&document("default", spec), start, part);
    }
}
