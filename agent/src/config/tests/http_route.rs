//! HTTPRoute: rules, their order, and backends.

use std::time::Duration;

use super::{check_bad, good, load_in_shop};
use crate::config::{Code, State};
use crate::model::{
    Destination, HttpRule, MatchPath, MatchValue, ObjectName, Redirect, RedirectPath, RouteAction, RouteKind,
};

/// A route of the Service `order-service`; the rules begin on line 7.
fn with_rules(rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r}}\nspec:\n  parentRefs: [{{group: '', kind: Service, name: order-service, port: 80}}]\n  rules:\n{rules}"
    )
}

/// A rule with a backend and these fields, on line 7.
fn with_fields(fields: &str) -> String {
    with_rules(&format!("  - {{{fields}, backendRefs: [{{name: order-service, port: 80}}]}}\n"))
}

fn rules(state: &State) -> Vec<HttpRule> {
    assert_eq!(state.model.mesh_routes.len(), 1, "{:?}", state.model.mesh_routes);
    state.model.mesh_routes[0].rules.clone()
}

#[test]
fn a_route_of_a_service_is_a_mesh_route() {
    let state = good(&with_rules(
        "  - {backendRefs: [{name: order-service, port: 80}, {name: payment-service, port: 80, weight: 3}]}\n",
    ));
    let table = &state.model.mesh_routes[0];
    assert_eq!(table.kind, RouteKind::HttpRoute);
    assert_eq!(table.services, [(ObjectName::new("default", "order-service"), Some(80))]);
    let RouteAction::Forward { destinations, .. } = &table.rules[0].action else { panic!("a route") };
    let weights: Vec<_> = destinations.iter().map(|one| one.weight).collect();
    assert_eq!(weights, [1, 3]);
    assert_eq!(table.rules[0].matches[0].path, Some(MatchPath::PathPrefix("/".into())));
}

#[test]
fn a_route_from_another_namespace_is_for_its_own_clients() {
    let text = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: front}\nspec:\n  parentRefs: [{group: '', kind: Service, name: order-service, namespace: default}]\n  rules: [{filters: [{type: RequestRedirect, requestRedirect: {hostname: a.b}}]}]\n";
    let rules = rules(&good(text));
    assert_eq!(rules[0].matches[0].source_namespace.as_deref(), Some("front"));
}

#[test]
fn a_section_of_a_service_is_one_of_its_ports() {
    let with = |parent: &str| with_fields("name: r").replace("port: 80}]\n", &format!("{parent}}}]\n"));
    let port = |parent: &str| good(&with(parent)).model.mesh_routes[0].services[0].1;
    assert_eq!(port("sectionName: http"), Some(80));
    assert_eq!(port("sectionName: http, port: 80"), Some(80));
    let check = |parent: &str, part: &str| {
        check_bad(&with(parent), "5 spec.parentRefs[0]: ", part);
        let state = load_in_shop(&with(parent));
        assert!(state.model.mesh_routes.is_empty(), "{parent}");
        let messages = state.report.objects.iter().flat_map(|object| &object.messages);
        assert!(messages.into_iter().any(|message| message.code == Code::NoMatchingParent), "{parent}");
    };
    check("sectionName: web", "no TCP port called web");
    check("sectionName: http, port: 9000", "is 80, not 9000");
    check("sectionName: http, port: 81", "no TCP port 81");
}

#[test]
fn a_parent_that_is_an_opaque_port_is_not_enforced() {
    let text = with_fields("name: r").replace("port: 80}]\n", "port: 9000}]\n");
    check_bad(&text, "5 spec.parentRefs[0]: ", "port 9000 of the Service default/order-service");
    let report = load_in_shop(&text).report;
    let object = report.objects.iter().find(|object| &*object.kind == "HTTPRoute").expect("it");
    let fields = &serde_json::to_value(object).expect("plain data")["fields"];
    assert_eq!(*fields, serde_json::json!(["spec.parentRefs[0]"]));
}

#[test]
fn rules_are_sorted_by_precedence() {
    let text = with_rules(
        r"  - {name: any, backendRefs: [{name: order-service, port: 80}]}
  - name: several
    matches:
    - {path: {value: /a}}
    - {path: {type: Exact, value: /a}}
    - {path: {value: /a/b/}}
    backendRefs: [{name: order-service, port: 80}]
  - {name: method, matches: [{path: {value: /a}, method: GET}], backendRefs: [{name: order-service, port: 80}]}
  - {name: headers, matches: [{path: {value: /a}, headers: [{name: X-A, value: '1'}]}], backendRefs: [{name: order-service, port: 80}]}
  - {name: query, matches: [{path: {value: /a}, queryParams: [{name: q, value: '1'}]}], backendRefs: [{name: order-service, port: 80}]}
  - {name: again, matches: [{path: {value: /a}}], backendRefs: [{name: order-service, port: 80}]}
  - {name: regex, matches: [{path: {type: RegularExpression, value: /a.*}}], backendRefs: [{name: order-service, port: 80}]}
",
    );
    let order: Vec<_> = rules(&good(&text)).iter().map(|rule| rule.name.to_string()).collect();
    let expected = ["several", "several", "method", "headers", "query", "several", "again", "any", "regex"];
    assert_eq!(order, expected);
}

#[test]
fn matches_and_timeouts_are_read() {
    let state = good(&with_fields(
        "matches: [{path: {type: RegularExpression, value: '/x/\\d+'}, method: POST, headers: [{name: X-A, type: RegularExpression, value: 'a|b'}], queryParams: [{name: q, value: v}]}], timeouts: {request: 10s, backendRequest: 2s500ms}",
    ));
    let rule = &rules(&state)[0];
    assert_eq!(
        (rule.timeout, rule.try_timeout),
        (Some(Duration::from_secs(10)), Some(Duration::from_millis(2500)))
    );
    let one = &rule.matches[0];
    assert_eq!(one.method, Some(MatchValue::Exact("POST".into())));
    assert_eq!(one.query, [("q".into(), MatchValue::Exact("v".into()))]);
    let (name, MatchValue::Regex(expression, _)) = &one.headers[0] else { panic!("an expression") };
    assert!(&**name == "x-a" && expression.is_match("a") && !expression.is_match("ab"));
}

#[test]
fn filters_are_read() {
    let state = good(&with_fields(
        "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-A, value: '1'}], remove: [x-b]}}, {type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: x-c, value: '2'}]}}, {type: URLRewrite, urlRewrite: {hostname: new.host, path: {type: ReplacePrefixMatch, replacePrefixMatch: /v2}}}]",
    ));
    let rule = &rules(&state)[0];
    assert_eq!((rule.request_headers.len(), rule.response_headers.len()), (2, 1));
    let RouteAction::Forward { rewrite, .. } = &rule.action else { panic!("a route") };
    assert_eq!(rewrite.authority.as_deref(), Some("new.host"));
    assert_eq!(rewrite.path, Some(RedirectPath::Prefix("/v2".into())));
    let redirect = |fields: &str| {
        let state = good(&with_rules(&format!(
            "  - {{filters: [{{type: RequestRedirect, requestRedirect: {{{fields}}}}}]}}\n"
        )));
        match &rules(&state)[0].action {
            RouteAction::Redirect(redirect) => redirect.clone(),
            other => panic!("{other:?}"),
        }
    };
    let plain = Redirect { status: 302, scheme: None, authority: None, port: None, path: None };
    assert_eq!(redirect("hostname: a.b"), Redirect { authority: Some("a.b".into()), ..plain.clone() });
    assert_eq!(
        redirect("scheme: https, statusCode: 301"),
        Redirect { status: 301, scheme: Some("https".into()), port: Some(443.into()), ..plain.clone() }
    );
    assert_eq!(
        redirect("scheme: https, port: 8443"),
        Redirect { scheme: Some("https".into()), port: Some(8443.into()), ..plain.clone() }
    );
    assert_eq!(
        redirect("path: {type: ReplaceFullPath, replaceFullPath: /x}"),
        Redirect { path: Some(RedirectPath::Full("/x".into())), ..plain }
    );
}

#[test]
fn backends_that_are_not_there_answer_500() {
    let check = |backends: &str, start: &str, part: &str| {
        let text = with_rules(&format!("  - backendRefs: [{backends}]\n"));
        check_bad(&text, start, part);
        let RouteAction::Forward { destinations, .. } = &rules(&load_in_shop(&text))[0].action else {
            panic!("a route")
        };
        assert_eq!(destinations[0].destination, Destination::Invalid { status: 500 }, "{backends}");
    };
    check("{name: nowhere, port: 80}", "7 spec.rules[0].backendRefs[0]: ", "no Service default/nowhere");
    check("{name: order-service, port: 81}", "7 spec.rules[0].backendRefs[0]: ", "no TCP port 81");
    check(
        "{name: stock, namespace: back, port: 80}",
        "7 spec.rules[0].backendRefs[0]: ",
        "no ReferenceGrant",
    );
    check("{name: x, kind: Bucket, group: a.b}", "7 spec.rules[0].backendRefs[0]: ", "only a Service");
    check(
        "{name: order-service, port: 80, weight: 0}",
        "7 spec.rules[0].backendRefs: ",
        "all weights are zero",
    );
    check("", "7 spec.rules[0].backendRefs: ", "no backends");
}

#[test]
fn a_grant_opens_another_namespace() {
    let grant = |to: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: back}}\nspec: {{from: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: default}}], to: [{{group: '', kind: Service{to}}}]}}\n"
        )
    };
    let route = with_rules("  - backendRefs: [{name: stock, namespace: back, port: 80}]\n");
    good(&(route.clone() + &grant("")));
    good(&(route.clone() + &grant(", name: stock")));
    check_bad(&(route + &grant(", name: other")), "7 spec.rules[0].backendRefs[0]: ", "no ReferenceGrant");
}

#[test]
fn bad_http_routes_name_their_field() {
    let check = |fields: &str, start: &str, part: &str| check_bad(&with_fields(fields), start, part);
    let at = |path: &str| format!("7 spec.rules[0].{path}: ");
    check("matchs: []", &at("matchs"), "unknown field");
    check("matches: [{path: {value: a}}]", &at("matches[0].path.value"), "does not begin with `/`");
    check("matches: [{path: {value: /a//b}}]", &at("matches[0].path.value"), "has `//`");
    check("matches: [{path: {value: /a/../b}}]", &at("matches[0].path.value"), "has `/../`");
    check("matches: [{path: {value: /a/..}}]", &at("matches[0].path.value"), "has `/..`");
    check(
        "matches: [{path: {type: Prefix, value: /}}]",
        &at("matches[0].path.type"),
        "is none of Exact, PathPrefix",
    );
    check(
        "matches: [{path: {type: RegularExpression, value: '['}}]",
        &at("matches[0].path.value"),
        "no valid expression",
    );
    check("matches: [{method: get}]", &at("matches[0].method"), "is none of GET");
    check(
        "matches: [{headers: [{name: 'x y', value: a}]}]",
        &at("matches[0].headers[0].name"),
        "no header name",
    );
    check("matches: [{headers: [{name: x}]}]", &at("matches[0].headers[0]"), "`value` is missing");
    check(
        "matches: [{headers: [{name: x, value: a}, {name: X, value: b}]}]",
        &at("matches[0].headers[1]"),
        "the first one counts",
    );
    check("timeouts: {request: 1.5s}", &at("timeouts.request"), "no duration");
    check("timeouts: {request: 1s, backendRequest: 2s}", &at("timeouts.backendRequest"), "longer than");
}

#[test]
fn bad_filters_and_backends_name_their_field() {
    let check = |fields: &str, start: &str, part: &str| check_bad(&with_fields(fields), start, part);
    let at = |path: &str| format!("7 spec.rules[0].{path}: ");
    check("filters: [{type: Rewrite}]", &at("filters[0].type"), "is none of");
    check("filters: [{type: URLRewrite}]", &at("filters[0].urlRewrite"), "is missing");
    check(
        "filters: [{type: URLRewrite, urlRewrite: {}, requestRedirect: {}}]",
        &at("filters[0].requestRedirect"),
        "does not belong",
    );
    check(
        "filters: [{type: URLRewrite, urlRewrite: {}}, {type: URLRewrite, urlRewrite: {}}]",
        &at("filters[1].type"),
        "given twice",
    );
    check("filters: [{type: RequestRedirect, requestRedirect: {}}]", &at("backendRefs"), "no backends");
    check(
        "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: host, value: x}]}}]",
        &at("filters[0].requestHeaderModifier.set[0]"),
        "can't be changed",
    );
    check(
        "filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP}}]",
        &at("filters[0].type"),
        "not supported yet",
    );
    check(
        "filters: [{type: ExtensionRef, extensionRef: {group: a, kind: B, name: c}}]",
        &at("filters[0].extensionRef"),
        "no extension",
    );
    check(
        "matches: [{path: {type: Exact, value: /a}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}}]",
        &at("filters"),
        "PathPrefix alone",
    );
    let rule =
        |rule: &str, start: &str, part: &str| check_bad(&with_rules(&format!("  - {rule}\n")), start, part);
    rule("backendRefs: [{name: order-service}]", &at("backendRefs[0].port"), "needs a port");
    rule(
        "backendRefs: [{name: order-service, port: 80, weight: -1}]",
        &at("backendRefs[0].weight"),
        "from 0",
    );
    rule(
        "backendRefs: [{name: order-service, port: 80, weight: 2000000}]",
        &at("backendRefs[0].weight"),
        "more than",
    );
    rule(
        "filters: [{type: RequestRedirect, requestRedirect: {statusCode: 200}}]",
        &at("filters[0].requestRedirect.statusCode"),
        "is none of",
    );
    let hostnames = with_rules("  - {filters: [{type: RequestRedirect, requestRedirect: {hostname: x}}]}\n");
    check_bad(&(hostnames + "  hostnames: [10.0.0.1]\n"), "8 spec.hostnames[0]: ", "no host name");
}
