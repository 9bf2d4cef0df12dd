//! Gateway, GatewayClass, and how HTTPRoutes attach.

use super::{check_bad, good, load_in_shop, messages};
use crate::config::{Severity, State};
use crate::model::HostPattern;

/// A Gateway with these listeners, in flow style on line 4.
fn gateway(listeners: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: edge}}\nspec: {{gatewayClassName: sluice, listeners: [{listeners}]}}\n"
    )
}

fn route(meta: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r{meta}}}\nspec: {{{spec}, rules: [{{backendRefs: [{{name: order-service, namespace: default, port: 80}}]}}]}}\n"
    )
}

const GRANT: &str = "---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g}\nspec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: other}], to: [{group: '', kind: Service}]}\n";

fn attached(state: &State) -> Vec<String> {
    let listeners = state.model.listeners.iter();
    listeners
        .map(|listener| format!("{}:{}={}", listener.name, listener.port, listener.routes.len()))
        .collect()
}

#[test]
fn routes_attach_where_they_may() {
    let two = "{name: a, port: 80, protocol: HTTP}, {name: b, port: 81, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}";
    let check = |listeners: &str, meta: &str, spec: &str, expected: &[&str]| {
        let state = good(&(gateway(listeners) + &route(meta, spec) + GRANT));
        assert_eq!(attached(&state), expected, "{listeners} {meta} {spec}");
    };
    check(two, "", "parentRefs: [{name: edge}]", &["a:80=1", "b:81=1"]);
    check(two, "", "parentRefs: [{name: edge, sectionName: b}]", &["a:80=0", "b:81=1"]);
    check(two, "", "parentRefs: [{name: edge, port: 80}]", &["a:80=1", "b:81=0"]);
    check(
        two,
        "",
        "parentRefs: [{name: edge, port: 80}, {name: edge, sectionName: a}]",
        &["a:80=1", "b:81=0"],
    );
    check(two, ", namespace: other", "parentRefs: [{name: edge, namespace: default}]", &["a:80=0", "b:81=1"]);
    let selector = "{name: s, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {kubernetes.io/metadata.name: other}}}}}";
    check(selector, ", namespace: other", "parentRefs: [{name: edge, namespace: default}]", &["s:80=1"]);
}

#[test]
fn namespace_labels_are_selected_on() {
    let selector = "{name: s, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: Selector, selector: {matchExpressions: [{key: team, operator: In, values: [shop]}]}}}}";
    let namespace = |team: &str| {
        format!(
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: other, labels: {{team: {team}}}}}\nspec: {{finalizers: [kubernetes]}}\n"
        )
    };
    let text = |team: &str| {
        gateway(selector)
            + &route(", namespace: other", "parentRefs: [{name: edge, namespace: default}]")
            + GRANT
            + &namespace(team)
    };
    assert_eq!(attached(&good(&text("shop"))), ["s:80=1"]);
    check_bad(&text("else"), "9 spec.parentRefs[0]: ", "does not take");
}

#[test]
fn hostnames_are_those_of_both() {
    let listener = "{name: a, port: 80, protocol: HTTP, hostname: '*.example.com'}";
    let state = good(
        &(gateway(listener) + &route("", "parentRefs: [{name: edge}], hostnames: [a.example.com, b.org]")),
    );
    assert_eq!(state.model.listeners[0].routes[0].hosts, [HostPattern::Exact("a.example.com".into())]);
    let none = gateway(listener) + &route("", "parentRefs: [{name: edge}], hostnames: [b.org]");
    check_bad(&none, "9 spec.parentRefs[0]: ", "no hostname of the route");
}

#[test]
fn only_our_classes_are_served() {
    let class = |controller: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {{name: sluice}}\nspec: {{controllerName: {controller}}}\n"
        )
    };
    let listener = "{name: a, port: 80, protocol: HTTP}";
    let served = |text: String| load_in_shop(&text).model.listeners.len();
    assert_eq!(served(gateway(listener)), 1);
    assert_eq!(served(gateway(listener) + &class("sluice.dev/gateway-controller")), 1);
    let state = good(&(gateway(listener) + &class("example.com/other")));
    assert!(state.model.listeners.is_empty());
    assert!(
        messages(&state.report, Severity::Info).iter().any(|text| text.contains("not served by this agent"))
    );
}

#[test]
fn listeners_that_come_later_are_listed() {
    let state = good(&gateway("{name: a, port: 443, protocol: TCP}, {name: b, port: 80, protocol: HTTP}"));
    assert_eq!(attached(&state), ["b:80=0"]);
    let object = state.report.objects.iter().find(|object| &*object.kind == "Gateway").expect("it");
    let fields = serde_json::to_value(object).expect("plain data")["fields"].clone();
    assert_eq!(fields, serde_json::json!(["spec.listeners[0].protocol"]));
}

#[test]
fn bad_gateways_name_their_field() {
    let check = |listener: &str, start: &str, part: &str| check_bad(&gateway(listener), start, part);
    check("", "4 spec.listeners: ", "needs a listener");
    check("{name: a, port: 80}", "4 spec.listeners[0]: ", "`protocol` is missing");
    check("{name: a, port: 0, protocol: HTTP}", "4 spec.listeners[0].port: ", "0 is no port");
    check("{name: a, port: 80, protocol: HTP}", "4 spec.listeners[0].protocol: ", "no protocol");
    check(
        "{name: a, port: 80, protocol: HTTP, hostname: a_/b}",
        "4 spec.listeners[0].hostname: ",
        "no host name",
    );
    check("{name: a, port: 80, protocol: HTTP, host: a}", "4 spec.listeners[0].host: ", "unknown field");
    check(
        "{name: a, port: 80, protocol: HTTP}, {name: a, port: 81, protocol: HTTP}",
        "4 spec.listeners[1].name: ",
        "given twice",
    );
    check(
        "{name: a, port: 80, protocol: HTTP}, {name: b, port: 80, protocol: HTTP}",
        "4 spec.listeners[1]: ",
        "same port",
    );
    check(
        "{name: a, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: Any}}}",
        "4 spec.listeners[0].allowedRoutes.namespaces.from: ",
        "is none of",
    );
    check(
        "{name: a, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: Selector}}}",
        "4 spec.listeners[0].allowedRoutes.namespaces.selector: ",
        "needs a selector",
    );
    let conflict = gateway("{name: a, port: 80, protocol: HTTP}")
        + "---\n"
        + &gateway("{name: z, port: 80, protocol: HTTP}").replace("edge", "edge2");
    check_bad(&conflict, "9 spec.listeners: ", "belongs to the Gateway default/edge");
    let listener = "{name: a, port: 80, protocol: HTTP}";
    let attach = |meta: &str, spec: &str, start: &str, part: &str| {
        check_bad(&(gateway(listener) + &route(meta, spec)), start, part);
    };
    attach("", "parentRefs: [{name: nowhere}]", "9 spec.parentRefs[0]: ", "no Gateway default/nowhere");
    attach("", "parentRefs: [{name: edge, sectionName: x}]", "9 spec.parentRefs[0]: ", "no such listener");
    attach(
        "",
        "parentRefs: [{name: edge, kind: Mesh}]",
        "9 spec.parentRefs[0].kind: ",
        "only a Gateway or a Service",
    );
    attach("", "parentRefs: [{name: edge}, {name: edge}]", "9 spec.parentRefs[1]: ", "given twice");
    attach("", "parentRefs: []", "9 spec: ", "no parents");
    attach(
        ", namespace: other",
        "parentRefs: [{name: edge, namespace: default}]",
        "9 spec.parentRefs[0]: ",
        "does not take",
    );
    attach(
        "",
        "parentRefs: [{group: '', kind: Service, name: nowhere}]",
        "9 spec.parentRefs[0]: ",
        "no Service default/nowhere",
    );
}
