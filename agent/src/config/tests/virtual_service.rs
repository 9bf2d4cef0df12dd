//! VirtualService.

use std::time::Duration;

use super::{check_bad, good, load_in_shop, messages};
use crate::config::Severity;
use crate::model::{
    Destination, HeaderChange, HostPattern, HttpRule, MatchPath, MatchValue, Model, ObjectName, Redirect,
    RedirectPath, RedirectPort, RouteAction, RouteKind,
};

/// A VirtualService for `order-service` with these rules, whose first line is line 6.
fn with_rules(rules: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: orders}}\nspec:\n  hosts: [order-service]\n{rules}"
    )
}

/// One rule that routes, with more fields; the fields begin on line 9.
fn with_fields(fields: &str) -> String {
    with_rules(&format!("  http:\n  - route: [{{destination: {{host: order-service}}}}]\n{fields}"))
}

fn rules(model: &Model) -> &[HttpRule] {
    assert_eq!(model.mesh_routes.len(), 1, "{:?}", model.mesh_routes);
    &model.mesh_routes[0].rules
}

#[test]
fn the_canary_example_is_two_rules() {
    let state = good(include_str!("../../../../examples/order-service.yaml"));
    let table = &state.model.mesh_routes[0];
    assert_eq!(table.kind, RouteKind::VirtualService);
    assert_eq!(table.services, [(ObjectName::new("default", "order-service"), None)]);
    assert!(table.hosts.is_empty());
    let [beta, canary] = &table.rules[..] else { panic!("{:?}", table.rules) };
    assert_eq!(beta.matches[0].headers, [("x-user-group".into(), MatchValue::Exact("beta".into()))]);
    assert!(canary.matches.is_empty());
    let RouteAction::Forward { destinations, .. } = &canary.action else { panic!("a route") };
    let weights: Vec<_> = destinations.iter().map(|one| one.weight).collect();
    assert_eq!(weights, [90, 10]);
    let subset = |name: &str| Destination::Service {
        service: ObjectName::new("default", "order-service"),
        port: None,
        subset: Some(name.into()),
    };
    assert_eq!(destinations[1].destination, subset("v2"));
}

#[test]
fn every_match_is_read() {
    let text = with_fields(
        r#"    timeout: 1m30s
    match:
    - name: all
      uri: {prefix: /API/}
      ignoreUriCase: true
      scheme: {exact: HTTP}
      method: {regex: "GET|HEAD"}
      authority: {prefix: Orders.}
      headers: {X-Any: {}, x-re: {regex: "a+"}}
      withoutHeaders: {x-not: {exact: "1"}}
      queryParams: {q: {exact: v}}
      sourceLabels: {app: web}
      sourceNamespace: front
      port: 80
    - uri: {exact: /one}
    - uri: {regex: "/r/.*"}
"#,
    );
    let state = good(&text);
    let rule = &rules(&state.model)[0];
    assert_eq!(rule.timeout, Some(Duration::from_secs(90)));
    let [all, exact, regex] = &rule.matches[..] else { panic!("{:?}", rule.matches) };
    assert_eq!(all.path, Some(MatchPath::PrefixIgnoreCase("/api/".into())));
    assert_eq!(all.scheme, Some(MatchValue::Exact("http".into())));
    assert_eq!(all.authority, Some(MatchValue::Prefix("orders.".into())));
    assert_eq!(all.headers[0], ("x-any".into(), MatchValue::Present));
    assert_eq!(all.without_headers, [("x-not".into(), MatchValue::Exact("1".into()))]);
    assert_eq!(all.query, [("q".into(), MatchValue::Exact("v".into()))]);
    assert_eq!((all.source_namespace.as_deref(), all.port), (Some("front"), Some(80)));
    assert_eq!(all.source_labels.get("app").map(|value| &**value), Some("web"));
    assert_eq!(exact.path, Some(MatchPath::Exact("/one".into())));
    let Some(MatchPath::Regex(expression, _)) = &regex.path else { panic!("an expression") };
    assert!(expression.is_match("/r/x") && !expression.is_match("/a/r/x"));
}

#[test]
fn rewrites_follow_how_the_path_matched() {
    let text = with_fields(
        "    match: [{uri: {prefix: /api/}}, {uri: {exact: /x}}, {method: {exact: GET}}]\n    rewrite: {uri: /v2/, authority: new.host}\n",
    );
    let state = good(&text);
    let rules = rules(&state.model);
    let path = |rule: &HttpRule| match &rule.action {
        RouteAction::Forward { rewrite, .. } => {
            assert_eq!(rewrite.authority.as_deref(), Some("new.host"));
            rewrite.path.clone()
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(rules.len(), 3);
    assert!(rules.iter().all(|rule| &*rule.name == "rule-0"));
    assert_eq!(path(&rules[0]), Some(RedirectPath::Prefix("/v2/".into())));
    assert_eq!(path(&rules[1]), Some(RedirectPath::Full("/v2/".into())));
    assert_eq!(path(&rules[2]), Some(RedirectPath::Prefix("/v2/".into())));
    assert_eq!(rules[2].matches[0].path, Some(MatchPath::Prefix("/".into())));
    let by_regex =
        good(&with_fields("    rewrite: {uriRegexRewrite: {match: '^/a/(.*)', rewrite: '/\\1'}}\n"));
    let RouteAction::Forward { rewrite, .. } = &self::rules(&by_regex.model)[0].action else {
        panic!("a route")
    };
    assert!(matches!(&rewrite.path, Some(RedirectPath::Regex(_, text)) if &**text == r"/\1"));
}

#[test]
fn headers_change_in_order() {
    let text = with_fields(
        "    headers:\n      request: {set: {Host: other, X-A: '1'}, add: {x-b: '2'}, remove: [X-C]}\n      response: {remove: [server]}\n",
    );
    let state = good(&text);
    let rule = &rules(&state.model)[0];
    let changes: Vec<_> = rule.request_headers.iter().map(|op| (&*op.name, op.change.clone())).collect();
    let expected = [
        ("x-c", HeaderChange::Remove),
        ("x-a", HeaderChange::Set("1".into())),
        ("x-b", HeaderChange::Add("2".into())),
    ];
    assert_eq!(changes, expected);
    assert_eq!(rule.response_headers.len(), 1);
    let RouteAction::Forward { rewrite, .. } = &rule.action else { panic!("a route") };
    assert_eq!(rewrite.authority.as_deref(), Some("other"));
}

#[test]
fn redirects_and_direct_responses_are_answers() {
    let action = |fields: &str| {
        let state = good(&with_rules(&format!("  http:\n  - {fields}\n")));
        rules(&state.model)[0].action.clone()
    };
    let plain = Redirect { status: 301, scheme: None, authority: None, port: None, path: None };
    let check = |fields: &str, expected: Redirect| {
        assert_eq!(action(fields), RouteAction::Redirect(expected), "{fields}");
    };
    check("redirect: {authority: a.b}", Redirect { authority: Some("a.b".into()), ..plain.clone() });
    check(
        "redirect: {scheme: https, redirectCode: 308}",
        Redirect { scheme: Some("https".into()), port: Some(443.into()), status: 308, ..plain.clone() },
    );
    check(
        "redirect: {uri: /x, port: 81}",
        Redirect { path: Some(RedirectPath::Full("/x".into())), port: Some(81.into()), ..plain.clone() },
    );
    check(
        "redirect: {uri: '%PREFIX()%/x'}",
        Redirect { path: Some(RedirectPath::Prefix("/x".into())), ..plain.clone() },
    );
    check(
        "redirect: {scheme: https, derivePort: FROM_REQUEST_PORT}",
        Redirect { scheme: Some("https".into()), port: Some(RedirectPort::Request), ..plain.clone() },
    );
    check("redirect: {derivePort: FROM_PROTOCOL_DEFAULT}", Redirect { port: Some(80.into()), ..plain });
    let RouteAction::Respond(answer) = action("directResponse: {status: 503, body: {string: no}}") else {
        panic!()
    };
    assert_eq!((answer.status, &*answer.body), (503, &b"no"[..]));
}

#[test]
fn hosts_name_services_in_every_form() {
    let check = |hosts: &str, services: &[&str], others: &[HostPattern]| {
        let text = format!(
            "apiVersion: networking.istio.io/v1alpha3\nkind: VirtualService\nmetadata: {{name: v}}\nspec:\n  hosts: {hosts}\n  http: [{{route: [{{destination: {{host: order-service}}}}]}}]\n"
        );
        let table = &good(&text).model.mesh_routes[0];
        let found: Vec<_> = table.services.iter().map(|(service, _)| service.to_string()).collect();
        assert_eq!(found, services, "{hosts}");
        assert_eq!(table.hosts, others, "{hosts}");
    };
    check("[order-service]", &["default/order-service"], &[]);
    check("[stock.back]", &["back/stock"], &[]);
    check("[stock.back.svc]", &["back/stock"], &[]);
    check("[stock.back.svc.cluster.local]", &["back/stock"], &[]);
    check(
        "[\"*.back.svc.cluster.local\"]",
        &["back/stock"],
        &[HostPattern::Suffix(".back.svc.cluster.local".into())],
    );
    check(
        "[\"*\"]",
        &["back/stock", "default/order-service", "default/payment-service"],
        &[HostPattern::Any],
    );
}

#[test]
fn hosts_without_a_service_are_not_enforced() {
    let check = |hosts: &str, state: &str, fields: &serde_json::Value, part: &str| {
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: v}}\nspec:\n  hosts: {hosts}\n  http: [{{route: [{{destination: {{host: order-service}}}}]}}]\n"
        );
        check_bad(&text, "5 spec.hosts[", part);
        let report = load_in_shop(&text).report;
        let object = report.objects.iter().find(|object| &*object.kind == "VirtualService").expect("it");
        assert_eq!(object.state.as_str(), state, "{hosts}");
        assert_eq!(serde_json::to_value(object).expect("plain data")["fields"], *fields, "{hosts}");
    };
    let whole = serde_json::json!([]);
    check("[shop.example.com]", "not yet enforced", &whole, "shop.example.com is no Service");
    check("['*.example.com']", "not yet enforced", &whole, "*.example.com is no Service");
    check("[nowhere]", "not yet enforced", &whole, "no Service default/nowhere");
    let second = serde_json::json!(["spec.hosts[1]"]);
    check("[order-service, shop.example.com]", "partly enforced", &second, "is no Service");
}

#[test]
fn rules_on_opaque_ports_are_not_enforced() {
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: db}\nspec: {ports: [{name: tcp-a, port: 1}, {name: tcp-b, port: 2}]}\n";
    let fields = |text: &str, part: &str| {
        let text = text.to_owned() + service;
        check_bad(&text, "", part);
        let report = load_in_shop(&text).report;
        let object = report.objects.iter().find(|object| &*object.kind == "VirtualService").expect("it");
        serde_json::to_value(object).expect("plain data")["fields"].clone()
    };
    let all = with_fields("").replace("[order-service]", "[order-service, db]");
    assert_eq!(fields(&all, "port 1, 2 of the Service default/db"), serde_json::json!(["spec.hosts[1]"]));
    let one = with_fields("    match: [{port: 80}, {port: 9000}]\n");
    assert_eq!(
        fields(&one, "port 9000 of the Service default/order-service"),
        serde_json::json!(["spec.http[0].match"])
    );
    good(&with_fields("    match: [{port: 80}]\n"));
    // Where there are no rules for HTTP, nothing is said of them.
    let tcp = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: db}\nspec: {hosts: [db], tcp: [{route: [{destination: {host: db}}]}]}\n";
    let report = load_in_shop(&(tcp.to_owned() + service)).report;
    let said = messages(&report, Severity::Warning).join("\n");
    assert!(!said.contains("rules for HTTP"), "{said}");
}

#[test]
fn the_closest_host_takes_a_service() {
    let one = |name: &str, host: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}}}\nspec: {{hosts: ['{host}'], http: [{{route: [{{destination: {{host: order-service}}}}]}}]}}\n---\n"
        )
    };
    let state =
        good(&[one("a", "*"), one("b", "*.default.svc.cluster.local"), one("c", "order-service")].concat());
    let taken: Vec<_> =
        state.model.mesh_routes.iter().map(|table| (&*table.source.name, table.services.len())).collect();
    assert_eq!(taken, [("a", 1), ("b", 1), ("c", 1)]);
    check_bad(
        &[one("a", "order-service"), one("b", "order-service")].concat(),
        "9 spec.hosts: ",
        "its rules come first",
    );
}

#[test]
fn what_is_not_enforced_yet_is_listed() {
    let fields = |text: &str| {
        let state = good(text);
        let object =
            state.report.objects.iter().find(|object| &*object.kind == "VirtualService").expect("it");
        serde_json::to_value(object).expect("plain data")["fields"].clone()
    };
    let text = with_fields(
        "    retries: {attempts: 3}\n    fault: {abort: {httpStatus: 500}}\n    mirror: {host: x}\n    mirrors: []\n    corsPolicy: {}\n",
    );
    assert_eq!(
        fields(&text),
        serde_json::json!(["spec.http[0].retries", "spec.http[0].fault", "spec.http[0].mirror"])
    );
    let gateway =
        with_rules("  gateways: [edge]\n  http: [{route: [{destination: {host: order-service}}]}]\n");
    assert_eq!(fields(&gateway), serde_json::json!([]));
    assert!(good(&gateway).model.mesh_routes.is_empty());
    let both =
        with_rules("  gateways: [edge, mesh]\n  http: [{route: [{destination: {host: order-service}}]}]\n");
    assert_eq!(fields(&both), serde_json::json!(["spec.gateways[0]"]));
    assert_eq!(good(&both).model.mesh_routes.len(), 1);
}

#[test]
fn unresolved_destinations_answer_503() {
    let check = |destination: &str, start: &str, part: &str| {
        let text = with_rules(&format!("  http:\n  - route:\n    - destination:\n        {destination}\n"));
        check_bad(&text, start, part);
        let state = load_in_shop(&text);
        assert_eq!(state.report.count(Severity::Error), 1, "{destination}");
        let RouteAction::Forward { destinations, .. } = &rules(&state.model)[0].action else {
            panic!("a route")
        };
        assert_eq!(destinations[0].destination, Destination::Invalid { status: 503 });
    };
    check("host: nowhere", "9 spec.http[0].route[0].destination.host: ", "no Service default/nowhere");
    check("host: api.example.com", "9 spec.http[0].route[0].destination.host: ", "no Service of the mesh");
    check(
        "{host: order-service, port: {number: 81}}",
        "9 spec.http[0].route[0].destination.port.number: ",
        "no TCP port 81",
    );
    check(
        "{host: order-service, subset: v3}",
        "9 spec.http[0].route[0].destination.subset: ",
        "no DestinationRule",
    );
}

#[test]
fn bad_virtual_services_name_their_field() {
    let field = |fields: &str, start: &str, part: &str| {
        check_bad(&with_fields(&format!("    {fields}\n")), start, part);
    };
    field("timeuot: 1s", "8 spec.http[0].timeuot: ", "unknown field");
    field("timeout: 10", "8 spec.http[0].timeout: ", "expected a string");
    field("timeout: 10 s", "8 spec.http[0].timeout: ", "no duration");
    field("retries: {atempts: 3}", "8 spec.http[0].retries.atempts: ", "unknown field");
    field("match: [{uri: {exact: /a, prefix: /b}}]", "8 spec.http[0].match[0].uri: ", "exclude each other");
    field("match: [{uri: {prefix: ''}}]", "8 spec.http[0].match[0].uri.prefix: ", "empty prefix");
    field("match: [{uri: {regex: '('}}]", "8 spec.http[0].match[0].uri.regex: ", "no valid expression");
    field("match: [{headers: {x: {regx: a}}}]", "8 spec.http[0].match[0].headers.x.regx: ", "unknown field");
    field("match: [{headers: {'a b': {}}}]", "8 spec.http[0].match[0].headers[\"a b\"]: ", "no header name");
    field("match: [{headers: {x: }}]", "8 spec.http[0].match[0].headers.x: ", "nothing (null)");
    field(
        "match: [{headers: {method: {exact: GET}}}]",
        "8 spec.http[0].match[0].headers.method: ",
        "never as a header",
    );
    field("match: [{port: 0}]", "8 spec.http[0].match[0].port: ", "0 is no port");
    field("redirect: {authority: x}", "7 spec.http[0]: ", "exclude each other");
    field("rewrite: {uri: x}", "8 spec.http[0].rewrite.uri: ", "no path");
    field(
        "rewrite: {uri: /a, uriRegexRewrite: {match: a}}",
        "8 spec.http[0].rewrite: ",
        "exclude each other",
    );
    field(
        "headers: {request: {set: {Content-Length: '1'}}}",
        "8 spec.http[0].headers.request.set.Content-Length: ",
        "can't be changed",
    );
    field(
        "headers: {request: {set: {x: \"a\\r\\nb\"}}}",
        "8 spec.http[0].headers.request.set.x: ",
        "control characters",
    );
    field(
        "headers: {request: {set: {host: \"x\\r\\n\\r\\nGET /admin\"}}}",
        "8 spec.http[0].headers.request.set.host: ",
        "no host",
    );
    field(
        "rewrite: {uriRegexRewrite: {match: a, rewrite: \"/b HTTP/1.1\\r\\n\"}}",
        "8 spec.http[0].rewrite.uriRegexRewrite.rewrite: ",
        "control characters",
    );
}

#[test]
fn bad_rules_name_their_field() {
    let rule = |rule: &str, start: &str, part: &str| {
        check_bad(&with_rules(&format!("  http:\n  - {rule}\n")), start, part);
    };
    rule("redirect: {uri: \"%PREFIX()%\\r\\nx: y\"}", "7 spec.http[0].redirect.uri: ", "control characters");
    rule("name: empty", "7 spec.http[0]: ", "needs one of route");
    rule("delegate: {name: other, namespace: n}", "7 spec.http[0].delegate: ", "rules of n/other");
    rule("delegate: {nmae: other}", "7 spec.http[0].delegate.nmae: ", "unknown field");
    rule("redirect: {redirectCode: 200}", "7 spec.http[0].redirect.redirectCode: ", "is none of");
    rule("redirect: {scheme: ftp}", "7 spec.http[0].redirect.scheme: ", "no scheme");
    rule("directResponse: {status: 99}", "7 spec.http[0].directResponse.status: ", "no status");
    rule("directResponse: {}", "7 spec.http[0].directResponse: ", "`status` is missing");
    rule("route: [{weight: 1}]", "7 spec.http[0].route[0]: ", "`destination` is missing");
    let two = |a: &str, b: &str, start: &str, part: &str| {
        let target = "destination: {host: order-service}";
        rule(&format!("route: [{{{target}{a}}}, {{{target}{b}}}]"), start, part);
    };
    two("", "", "7 spec.http[0].route: ", "add up to zero");
    two(", weight: 0", ", weight: 0", "7 spec.http[0].route: ", "add up to zero");
    two(", weight: -1", ", weight: 2", "7 spec.http[0].route[0].weight: ", "negative");
    two(", weigth: 1", ", weight: 2", "7 spec.http[0].route[0].weigth: ", "unknown field");
    check_bad(&with_rules("  http: []\n"), "4 spec: ", "no rules");
    check_bad(&with_rules("  htp: []\n"), "6 spec.htp: ", "unknown field");
    let hosts =
        with_rules("").replace("[order-service]", "['a b', a, a]") + "  http: [{redirect: {authority: x}}]\n";
    check_bad(&hosts, "5 spec.hosts[0]: ", "no host name");
    check_bad(&hosts, "5 spec.hosts[2]: ", "given twice");
    let hidden = "  http:\n  - redirect: {authority: x}\n  - name: never\n    redirect: {authority: y}\n";
    check_bad(&with_rules(hidden), "8 spec.http[1]: ", "never gets a request");
}
