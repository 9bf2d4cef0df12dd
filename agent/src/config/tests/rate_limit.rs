//! RateLimit documents: what they become, and how wrong ones are named.

mod about;

use super::*;
use crate::model::{
    AnswerHeader, ClusterCount, ClusterMode, Cost, CostSource, FailMode, KernelCount, KernelKey, KeyPart,
    LimitTarget, Missing, ObjectName, Override, OverrideValue, Quota, SaidCost,
};

const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
                   spec: {clusterIP: 10.96.0.9, ports: [{name: http, port: 80}]}\n";

fn limit(spec: &str) -> String {
    format!(
        "apiVersion: sluice.dev/v1alpha1\nkind: RateLimit\nmetadata: {{name: calm, namespace: shop}}\nspec:\n{spec}"
    )
}

/// One limit on the service.
fn with(limit: &str) -> String {
    on_web(&format!("  limits: [{{name: a, {limit}}}]\n"))
}

fn on_web(rest: &str) -> String {
    limit(&format!("  targetRefs: [{{kind: Service, name: web}}]\n{rest}"))
}

#[test]
fn limits_are_read() {
    let state = load_texts(&[
        WEB,
        &on_web(
            "  limits:\n\
             \x20 - name: each\n    key: [{type: SourceAddress, prefixLengthV6: 64}, {type: Header, name: X-User}]\n\
             \x20   window: {requests: 100, per: 15m}\n    exempt: [10.0.0.0/8, '2001:db8::1']\n\
             \x20 - {name: all, rate: {requests: 50, per: 1s}, ifMissing: Shared, maxKeys: 9}\n\
             \x20 - {name: busy, inFlight: 3}\n\
             \x20 - {name: once, rate: {requests: 9, per: 1s}, cluster: {mode: Leased, fail: Closed}}\n\
             \x20 - {name: twice, window: {requests: 9, per: 1s}, cluster: {mode: Exact}}\n\
             \x20 mode: Shadow\n  response: {status: 503, body: later, fields: Always}\n",
        ),
    ]);
    assert!(messages(&state.report, Severity::Error).is_empty(), "{:?}", state.report);
    let [limit] = &state.model.limits[..] else { panic!("{:?}", state.model.limits) };
    assert_eq!(limit.targets, [LimitTarget::Service(ObjectName::new("shop", "web"))]);
    assert!(limit.shadow && limit.tells);
    assert_eq!((limit.answer.status, &*limit.answer.body), (503, &b"later"[..]));
    let [each, all, busy, once, twice] = &limit.limits[..] else { panic!("{:?}", limit.limits) };
    assert_eq!(each.key, [KeyPart::SourceAddress { v4: 32, v6: 64 }, KeyPart::Header("x-user".into())]);
    assert_eq!(each.quota, Quota::Window { requests: 100, window_ns: 900_000_000_000 });
    assert_eq!((each.exempt.len(), each.max_keys, each.missing), (2, 65_536, Missing::SourceAddress));
    assert_eq!(all.quota, Quota::Rate { requests: 50, window_ns: 1_000_000_000, burst: 50 });
    assert_eq!((all.max_keys, all.missing), (9, Missing::Shared));
    assert_eq!(busy.quota, Quota::InFlight { requests: 3 });
    let count = |mode, fail| Some(ClusterCount { mode, fail });
    assert_eq!((each.cluster, once.cluster), (None, count(ClusterMode::Leased, FailMode::Closed)));
    assert_eq!(twice.cluster, count(ClusterMode::Exact, FailMode::Share), "who says nothing has its share");
}

#[test]
fn fields_of_answers_are_read() {
    let with = |headers: &str| {
        on_web(&format!("  limits: [{{name: a, inFlight: 1}}]\n  response: {{headers: {headers}}}\n"))
    };
    let headers = "[{name: Content-Type, value: application/json}, {name: X-Code, value: ''}, {name: x-code, value: a b}]";
    let state = load_texts(&[WEB, &with(headers)]);
    assert!(messages(&state.report, Severity::Error).is_empty(), "{:?}", state.report);
    let header = |name: &str, value: &str| AnswerHeader { name: name.into(), value: value.into() };
    let expected =
        [header("content-type", "application/json"), header("x-code", ""), header("x-code", "a b")];
    assert_eq!(*state.model.limits.iter().next().expect("a limit").headers, expected);

    let long = "x".repeat(4096);
    let wrong = |rest: &str| format!("7 spec.response.headers{rest}: ");
    let many = vec!["{name: a, value: b}"; 17].join(", ");
    for (headers, start, part) in [
        ("[{name: 'a b', value: c}]", wrong("[0].name"), "no header name"),
        ("[{name: '', value: c}]", wrong("[0].name"), "no header name"),
        ("[{name: ':status', value: '200'}]", wrong("[0].name"), "no header name"),
        ("[{name: Connection, value: close}]", wrong("[0].name"), "belongs to the connection"),
        ("[{name: transfer-encoding, value: chunked}]", wrong("[0].name"), "belongs to the connection"),
        ("[{name: Content-Length, value: '0'}]", wrong("[0].name"), "belongs to the connection"),
        ("[{name: a, value: b}, {name: Retry-After, value: '1'}]", wrong("[1].name"), "by the agent itself"),
        ("[{name: RateLimit, value: x}]", wrong("[0].name"), "by the agent itself"),
        ("[{name: ratelimit-policy, value: x}]", wrong("[0].name"), "by the agent itself"),
        ("[{name: grpc-status, value: '0'}]", wrong("[0].name"), "by the agent itself"),
        (
            "[{name: content-type, value: a/b}, {name: Content-Type, value: c/d}]",
            wrong("[1].name"),
            "one type",
        ),
        (r#"[{name: a, value: "b\r\nc: d"}]"#, wrong("[0].value"), "control characters"),
        ("[{name: a, value: ' b'}]", wrong("[0].value"), "spaces around it"),
        ("[{name: a}]", "7 spec.response.headers[0]".to_owned(), "value"),
        (&*format!("[{{name: a, value: {long}}}]"), wrong(""), "4096 bytes"),
        (&*format!("[{many}]"), wrong(""), "16 fields"),
    ] {
        check_bad(&with(headers), &start, part);
    }
}

#[test]
fn costs_are_read() {
    let limit =
        |rest: &str| on_web(&format!("  limits: [{{name: a, window: {{requests: 9, per: 1s}}{rest}}}]\n"));
    let header = |name: &str| CostSource::Header(name.into());
    let said = |units, by, max| Cost { units, said: Some(SaidCost { by, max }) };
    for (rest, expected) in [
        ("", Cost::default()),
        (", cost: {units: 5}", Cost { units: 5, said: None }),
        (", cost: {header: X-Cost}", said(1, header("x-cost"), None)),
        (", cost: {units: 2, query: Size, max: 4}", said(2, CostSource::Query("Size".into()), Some(4))),
        (", cost: {header: a, max: 100}", said(1, header("a"), Some(100))),
    ] {
        let state = load_texts(&[WEB, &limit(rest)]);
        assert!(messages(&state.report, Severity::Error).is_empty(), "{rest}: {:?}", state.report);
        assert_eq!(state.model.limits.iter().next().expect("a limit").limits[0].cost, expected, "{rest}");
    }
}

#[test]
fn overrides_and_limits_of_connections_are_read() {
    let state = load_texts(&[
        WEB,
        &on_web(
            "  limits:\n\
             \x20 - name: each\n    key: [{type: Header, name: a}, {type: SourceAddress}, {type: SourceIdentity}]\n\
             \x20   window: {requests: 9, per: 1s}\n\
             \x20   overrides: [{values: [gold, 10.1.2.3/8, shop/web], window: {requests: 90, per: 1m}}]\n\
             \x20 - {name: open, counts: Connections, key: [{type: SourceAddress}], inFlight: 3}\n",
        ),
    ]);
    assert!(messages(&state.report, Severity::Error).is_empty(), "{:?}", state.report);
    let limit = state.model.limits.iter().next().expect("a document");
    let text = |text: &str| OverrideValue::Text(text.into());
    let network = OverrideValue::Network("10.0.0.0/8".parse().expect("a network"));
    let quota = Quota::Window { requests: 90, window_ns: 60_000_000_000 };
    let expected = Override { values: vec![text("gold"), network, text("shop/web")], quota };
    assert_eq!(limit.limits[0].overrides, [expected]);
    assert_eq!((limit.limits.len(), &*limit.connections[0].name), (1, "open"));
    assert_eq!(limit.connections[0].quota, Quota::InFlight { requests: 3 });
}

#[test]
fn templates_of_paths_are_read() {
    let of = |part: &str| with(&format!("inFlight: 1, key: [{{type: PathTemplate, {part}}}]"));
    let state = load_texts(&[
        WEB,
        &of("name: id, templates: ['/users/{id}/orders/*', '/a%20b/%7e/{*}/{id}', '/**/{id}/x']"),
    ]);
    assert!(messages(&state.report, Severity::Error).is_empty(), "{:?}", state.report);
    let limit = &state.model.limits.iter().next().expect("a document").limits[0];
    let [KeyPart::PathTemplate(part)] = &limit.key[..] else { panic!("{:?}", limit.key) };
    let read: Vec<_> = part.templates.iter().map(|one| (&*one.text, one.parts.len(), one.named)).collect();
    assert_eq!(
        read,
        [
            ("/users/{id}/orders/*", 4, Some(1)),
            ("/a%20b/%7e/{*}/{id}", 4, Some(3)),
            ("/**/{id}/x", 3, Some(1))
        ]
    );
    assert_eq!(part.value("/a%20b/~/1/2"), Some("2"));
    let (at, list) = (|index| format!("6 spec.limits[0].key[0].templates[{index}]: "), "templates: ");
    for (part, start, problem) in [
        (format!("{list}[]"), "6 spec.limits[0].key[0].templates: ".to_owned(), "from 1 to 64"),
        (format!("{list}[users/a]"), at(0), "begin with `/`"),
        (format!("{list}[/a, '/b/x*']"), at(1), "whole elements"),
        (format!("{list}['/a/{{b}}c']"), at(0), "whole elements"),
        (format!("{list}['/a/{{}}']"), at(0), "whole elements"),
        (format!("{list}['/a?b']"), at(0), "whole elements"),
        (format!("{list}['/**/a/**']"), at(0), "twice"),
        (format!("{list}['/{{a}}/{{a}}']"), at(0), "a name twice"),
        (format!("{list}[/a/../b]"), at(0), "no path has"),
        (format!("{list}[/a//b]"), at(0), "no path has"),
        (format!("{list}['/a/{{x}}', '/a/*']"), at(1), "takes what the template 0 takes"),
        (format!("name: id, {list}['/a/{{id}}', '/b/{{x}}']"), at(1), "no element of the part's name"),
        (format!("name: '', {list}['/a']"), "6 spec.limits[0].key[0].name: ".to_owned(), "no name"),
    ] {
        check_bad(&of(&part), &start, problem);
    }
    let path = "inFlight: 1, key: [{type: Path, templates: [/a]}]";
    check_bad(&with(path), "6 spec.limits[0].key[0].templates: ", "only a PathTemplate");
    let other = |part: &str, value: &str| {
        with(&format!(
            "inFlight: 2, key: [{{type: PathTemplate, {part}}}], overrides: [{{values: ['{value}'], inFlight: 3}}]"
        ))
    };
    let value = "6 spec.limits[0].overrides[0].values[0]: ";
    check_bad(&other("templates: ['/a/*']", "/a/b"), value, "none of the part's templates");
    check_bad(&other("name: id, templates: ['/a/{id}']", "a/b"), value, "no element");
}

#[test]
fn connections_are_counted_on_their_way_to_services_alone() {
    let gateway = "{kind: Service, name: web}, {group: gateway.networking.k8s.io, kind: Gateway, name: edge}";
    let text = limit(&format!(
        "  targetRefs: [{gateway}]\n  limits: [{{name: a, counts: Connections, inFlight: 1}}]\n"
    ));
    check_bad(&text, "6 spec.limits[0].counts: ", "Service");
}

#[test]
fn wrong_ones_are_named() {
    let to =
        |target: &str| limit(&format!("  targetRefs: [{target}]\n  limits: [{{name: a, inFlight: 1}}]\n"));
    for (text, start, part) in [
        (with("window: {requests: 0, per: 1s}"), "6 spec.limits[0].window.requests: ", "from 1 to 10000"),
        (with("window: {requests: 5, per: 0s}"), "6 spec.limits[0].window.per: ", "from 1ms to 24h"),
        (with("window: {requests: 5, per: 25h}"), "6 spec.limits[0].window.per: ", "from 1ms to 24h"),
        (with("rate: {requests: 5, per: soon}"), "6 spec.limits[0].rate.per: ", "`soon`"),
        (with("rate: {requests: 5, per: 1s, burst: 0}"), "6 spec.limits[0].rate.burst: ", "least is 1"),
        (with("rate: {requests: 0, per: 1s}"), "6 spec.limits[0].rate.requests: ", "least is 1"),
        (with("inFlight: 0"), "6 spec.limits[0].inFlight: ", "least is 1"),
        (with("maxKeys: 5"), "6 spec.limits[0]: ", "exactly one"),
        (with("inFlight: 1, rate: {requests: 1, per: 1s}"), "6 spec.limits[0]: ", "exactly one"),
        (with("inFlight: 1, maxKeys: 0"), "6 spec.limits[0].maxKeys: ", "from 1"),
        (with("inFlight: 1, key: [{type: Colour}]"), "6 spec.limits[0].key[0].type: ", "Colour"),
        (with("inFlight: 1, key: [{type: Header}]"), "6 spec.limits[0].key[0].name: ", "missing"),
        (with("inFlight: 1, key: [{type: Path, name: x}]"), "6 spec.limits[0].key[0].name: ", "no name"),
        (with("inFlight: 1, exempt: [here]"), "6 spec.limits[0].exempt[0]: ", "neither"),
        (
            with("inFlight: 1, key: [{type: SourceAddress}], pushDown: {}"),
            "6 spec.limits[0].pushDown: ",
            "prefixLengthV6: 64",
        ),
        (with("inFlight: 1, pushDown: {after: 0}"), "6 spec.limits[0].pushDown.after: ", "least is 1"),
        (with("inFlight: 1, pushDown: {for: 25h}"), "6 spec.limits[0].pushDown.for: ", "24h"),
        (with("inFlight: 1, cluster: {mode: Exact}"), "6 spec.limits[0].cluster: ", "each node for itself"),
        (with("window: {requests: 1, per: 1s}, cluster: {}"), "6 spec.limits[0].cluster", "mode"),
        (
            with("window: {requests: 1, per: 1s}, cluster: {mode: Loose}"),
            "6 spec.limits[0].cluster.mode: ",
            "Loose",
        ),
        (
            with("rate: {requests: 1, per: 24h, burst: 4000000000}, cluster: {mode: Exact}"),
            "6 spec.limits[0]",
            "burst",
        ),
        (
            with("rate: {requests: 7, per: 1h, burst: 2000000}, cluster: {mode: Exact}"),
            "6 spec.limits[0].cluster: ",
            "too large",
        ),
        (with("inFlight: 1, burst: 5"), "6 spec.limits[0].burst: ", ""),
        (on_web("  limits: []\n"), "6 spec.limits: ", "from 1 to 16"),
        (on_web("  limits: [{name: A b, inFlight: 1}]\n"), "6 spec.limits[0].name: ", "lower case"),
        (
            on_web("  limits: [{name: a, inFlight: 1}, {name: a, inFlight: 2}]\n"),
            "6 spec.limits[1].name: ",
            "too",
        ),
        (
            on_web("  limits: [{name: a, inFlight: 1}]\n  response: {status: 200}\n"),
            "7 spec.response.status: ",
            "from 400",
        ),
        (limit("  targetRefs: []\n  limits: [{name: a, inFlight: 1}]\n"), "5 spec.targetRefs: ", "nothing"),
        (to("{kind: Pod, name: x}"), "5 spec.targetRefs[0]: ", "none of"),
        (
            to("{kind: Service, name: web, sectionName: http}"),
            "5 spec.targetRefs[0].sectionName: ",
            "all ports",
        ),
    ] {
        check_bad(&text, start, part);
    }
}

#[test]
fn what_is_not_there_is_named_however_few_documents_there_are() {
    let gateway = "gateway.networking.k8s.io";
    for (target, part) in [
        ("{kind: Service, name: gone}".to_owned(), "there is no Service shop/gone"),
        (format!("{{group: {gateway}, kind: Gateway, name: gone}}"), "there is no Gateway shop/gone"),
        (format!("{{group: {gateway}, kind: HTTPRoute, name: gone}}"), "there is no HTTPRoute shop/gone"),
        (
            "{group: networking.istio.io, kind: VirtualService, name: gone}".to_owned(),
            "there is no VirtualService shop/gone",
        ),
    ] {
        let text = limit(&format!("  targetRefs: [{target}]\n  limits: [{{name: a, inFlight: 1}}]\n"));
        for others in [&[][..], &[WEB]] {
            let state = load_texts(&[others, &[&text]].concat());
            let errors = messages(&state.report, Severity::Error);
            let expected = format!("5 spec.targetRefs[0]: {part}");
            assert_eq!(errors, [expected], "beside {} others", others.len());
        }
    }
}

#[test]
fn wrong_overrides_are_named() {
    let keyed = |others: &str| {
        with(&format!(
            "inFlight: 2, key: [{{type: Header, name: a}}, {{type: SourceAddress}}], overrides: {others}"
        ))
    };
    for (text, start, part) in [
        (
            with("inFlight: 2, overrides: [{values: [a], inFlight: 3}]"),
            "6 spec.limits[0].overrides[0].values: ",
            "without a key",
        ),
        (
            keyed("[{values: [a], inFlight: 3}]"),
            "6 spec.limits[0].overrides[0].values: ",
            "1 values for the 2 parts",
        ),
        (keyed("[{values: [a, here], inFlight: 3}]"), "6 spec.limits[0].overrides[0].values[1]: ", "neither"),
        (
            keyed("[{values: [' a', 10.0.0.1], inFlight: 3}]"),
            "6 spec.limits[0].overrides[0].values[0]: ",
            "space",
        ),
        (keyed("[{values: [a, 10.0.0.1]}]"), "6 spec.limits[0].overrides[0]: ", "exactly one"),
        (
            keyed("[{values: [a, 10.0.0.1], inFlight: 0}]"),
            "6 spec.limits[0].overrides[0].inFlight: ",
            "least is 1",
        ),
        (
            keyed("[{values: [a, 10.0.0.1], inFlight: 3}], maxKeys: 4194304"),
            "6 spec.limits[0].maxKeys: ",
            "for each of 2 different numbers",
        ),
        (
            keyed("[{values: [a, 10.0.0.1], rate: {requests: 1, per: 1s}}]"),
            "6 spec.limits[0].overrides[0]: ",
            "what its limit has",
        ),
        (
            keyed("[{values: [a, 10.0.0.1], inFlight: 3}, {values: [a, 10.0.0.1/32], inFlight: 4}]"),
            "6 spec.limits[0].overrides[1].values: ",
            "the override 0 is about the same key",
        ),
        (
            with(
                "rate: {requests: 4, per: 1s}, key: [{type: Path}], cost: {units: 3}, \
                  overrides: [{values: [/a], rate: {requests: 9, per: 1s, burst: 2}}]",
            ),
            "6 spec.limits[0].overrides[0]: ",
            "no request of 3",
        ),
        (
            with("inFlight: 2, key: [{type: Path}], overrides: [{values: ['/a?b'], inFlight: 3}]"),
            "6 spec.limits[0].overrides[0].values[0]: ",
            "no path",
        ),
        (
            with("inFlight: 2, key: [{type: SourceIdentity}], overrides: [{values: [web], inFlight: 3}]"),
            "6 spec.limits[0].overrides[0].values[0]: ",
            "NAMESPACE/SERVICEACCOUNT",
        ),
        (
            with("inFlight: 2, key: [{type: Host}], overrides: [{values: ['A.test'], inFlight: 3}]"),
            "6 spec.limits[0].overrides[0].values[0]: ",
            "lower case",
        ),
    ] {
        check_bad(&text, start, part);
    }
}

#[test]
fn wrong_costs_and_limits_of_connections_are_named() {
    for (text, start, part) in [
        (
            with("inFlight: 2, counts: Connections, key: [{type: SourceAddress}, {type: Path}]"),
            "6 spec.limits[0].key[1]: ",
            "only a SourceAddress",
        ),
        (
            with("inFlight: 2, counts: Connections, cost: {units: 2}"),
            "6 spec.limits[0].cost: ",
            "each connection",
        ),
        (
            with(
                "inFlight: 2, counts: Connections, key: [{type: SourceAddress, prefixLengthV6: 64}], pushDown: {}",
            ),
            "6 spec.limits[0].pushDown: ",
            "requests",
        ),
        (with("inFlight: 2, counts: Packets"), "6 spec.limits[0].counts: ", "Packets"),
        (with("inFlight: 2, cost: {units: 0}"), "6 spec.limits[0].cost.units: ", "least is 1"),
        (with("inFlight: 2, cost: {units: 3}"), "6 spec.limits[0].cost.units: ", "at most 2"),
        (
            with("rate: {requests: 9, per: 1s, burst: 4}, cost: {units: 5}"),
            "6 spec.limits[0].cost.units: ",
            "at most 4",
        ),
        (
            with("window: {requests: 900, per: 1h}, cost: {units: 101}"),
            "6 spec.limits[0].cost.units: ",
            "over 100",
        ),
        (
            with("window: {requests: 900, per: 1h}, cost: {header: a, max: 101}"),
            "6 spec.limits[0].cost.max: ",
            "over 100",
        ),
        (with("inFlight: 2, cost: {header: a, query: b}"), "6 spec.limits[0].cost: ", "either"),
        (with("inFlight: 2, cost: {header: ''}"), "6 spec.limits[0].cost.header: ", "name is missing"),
        (with("inFlight: 2, cost: {max: 2}"), "6 spec.limits[0].cost.max: ", "without"),
        (
            with("inFlight: 2, cost: {units: 2, header: a, max: 1}"),
            "6 spec.limits[0].cost.max: ",
            "less than",
        ),
        (with("inFlight: 2, cost: {weight: 2}"), "6 spec.limits[0].cost.weight: ", ""),
    ] {
        check_bad(&text, start, part);
    }
}

#[test]
fn what_selects_nothing_is_told() {
    for (target, part) in [
        ("{kind: Service, name: none}", "there is no Service shop/none"),
        ("{group: gateway.networking.k8s.io, kind: Gateway, name: none}", "there is no Gateway shop/none"),
        (
            "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: none}",
            "there is no HTTPRoute shop/none",
        ),
        (
            "{group: networking.istio.io, kind: VirtualService, name: none}",
            "there is no VirtualService shop/none",
        ),
    ] {
        let text = limit(&format!(
            "  targetRefs: [{target}]\n  limits: [{{name: a, rate: {{requests: 1, per: 1s}}}}]\n"
        ));
        let state = load_texts(&[WEB, &text]);
        let messages = messages(&state.report, Severity::Error);
        assert!(messages.iter().any(|message| message.contains(part)), "{target}: {messages:?}");
    }
}

#[test]
fn limits_of_the_kernel_are_read() {
    let state = load_texts(&[
        WEB,
        &on_web(
            "  limits:\n\
             \x20 - name: dials\n    kernel: {count: Connections}\n\
             \x20   key: [{type: SourceAddress, prefixLengthV4: 24, prefixLengthV6: 64}]\n\
             \x20   rate: {requests: 50, per: 1s, burst: 9}\n    exempt: [10.0.0.0/8]\n\
             \x20 - {name: flood, kernel: {count: Packets}, rate: {requests: 10, per: 1m}}\n\
             \x20 - {name: who, kernel: {count: Connections}, key: [{type: SourceIdentity}], ifMissing: Refuse,\n\
             \x20    rate: {requests: 1, per: 1s}}\n\
             \x20 - {name: asks, inFlight: 3}\n",
        ),
    ]);
    assert!(messages(&state.report, Severity::Error).is_empty(), "{:?}", state.report);
    let [limit] = &state.model.limits[..] else { panic!("{:?}", state.model.limits) };
    assert_eq!(limit.limits.iter().map(|limit| &*limit.name).collect::<Vec<_>>(), ["asks"]);
    let [dials, flood, who] = &limit.kernel[..] else { panic!("{:?}", limit.kernel) };
    assert_eq!((&*dials.name, dials.count), ("dials", KernelCount::Connections));
    assert_eq!(dials.key, KernelKey::SourceAddress { v4: 24, v6: 64 });
    assert_eq!((dials.intervals(), dials.exempt.len()), (Some((20_000_000, 180_000_000)), 1));
    assert_eq!((flood.count, flood.key), (KernelCount::Packets, KernelKey::Together));
    assert_eq!(flood.intervals(), Some((6_000_000_000, 60_000_000_000)));
    assert_eq!((who.key, who.missing), (KernelKey::SourceIdentity, Missing::Refuse));
}

#[test]
fn what_the_kernel_cannot_hold_to_is_named() {
    let with =
        |rest: &str| on_web(&format!("  limits: [{{name: a, kernel: {{count: Connections}}, {rest}}}]\n"));
    let rate = "rate: {requests: 1, per: 1s}";
    for (text, start, part) in [
        (with("window: {requests: 5, per: 1s}"), "6 spec.limits[0].window: ", "only a `rate`"),
        (with("inFlight: 5"), "6 spec.limits[0].inFlight: ", "only a `rate`"),
        (with(""), "6 spec.limits[0].rate: ", "needs it"),
        (with("rate: {requests: 0, per: 1s}"), "6 spec.limits[0].rate.requests: ", "least is 1"),
        (with("rate: {requests: 20000000, per: 1s}"), "6 spec.limits[0].rate: ", "10000000"),
        (with("rate: {requests: 1, per: 24h, burst: 4000}"), "6 spec.limits[0].rate: ", "within a year"),
        (with(&format!("{rate}, cluster: {{mode: Exact}}")), "6 spec.limits[0].cluster: ", "for itself"),
        (with(&format!("{rate}, pushDown: {{}}")), "6 spec.limits[0].pushDown: ", "already"),
        (with(&format!("{rate}, counts: Connections")), "6 spec.limits[0].counts: ", "kernel.count"),
        (with(&format!("{rate}, cost: {{units: 1}}")), "6 spec.limits[0].cost: ", "is one"),
        (
            with(&format!("{rate}, overrides: [{{values: [a], {rate}}}]")),
            "6 spec.limits[0].overrides: ",
            "same numbers",
        ),
        (with(&format!("{rate}, maxKeys: 5")), "6 spec.limits[0].maxKeys: ", "--limit-sources"),
        (
            with(&format!("{rate}, key: [{{type: Header, name: x}}]")),
            "6 spec.limits[0].key[0].type: ",
            "Header",
        ),
        (
            with(&format!("{rate}, key: [{{type: SourceAddress}}, {{type: SourceIdentity}}]")),
            "6 spec.limits[0].key[1]: ",
            "one part",
        ),
        (
            with(&format!("{rate}, key: [{{type: SourceAddress, prefixLengthV4: 0}}]")),
            "6 spec.limits[0].key[0]: ",
            "from /1",
        ),
        (with(&format!("{rate}, ifMissing: Shared")), "6 spec.limits[0].ifMissing: ", "every packet"),
        (with(&format!("{rate}, exempt: [x]")), "6 spec.limits[0].exempt[0]: ", "neither"),
        (
            on_web(&format!("  limits: [{{name: a, kernel: {{count: Bytes}}, {rate}}}]\n")),
            "6 spec.limits[0].kernel.count: ",
            "Bytes",
        ),
        (
            on_web(&format!("  limits: [{{name: a, kernel: {{}}, {rate}}}]\n")),
            "6 spec.limits[0].kernel",
            "count",
        ),
    ] {
        check_bad(&text, start, part);
    }
}

#[test]
fn what_no_document_can_ask_of_the_kernel_is_named() {
    let rate = "rate: {requests: 1, per: 1s}";
    let to = |target: &str| {
        limit(&format!(
            "  targetRefs: [{target}]\n  limits: [{{name: a, kernel: {{count: Packets}}, {rate}}}]\n"
        ))
    };
    let many: Vec<String> =
        (0..5).map(|name| format!("{{name: a{name}, kernel: {{count: Packets}}, {rate}}}")).collect();
    for (text, start, part) in [
        (on_web(&format!("  limits: [{}]\n", many.join(", "))), "6 spec.limits: ", "4 at most"),
        (
            on_web(&format!(
                "  limits: [{{name: a, kernel: {{count: Packets}}, {rate}}}]\n  response: {{status: 503}}\n"
            )),
            "7 spec.response: ",
            "gets no answer",
        ),
        (
            to("{group: gateway.networking.k8s.io, kind: Gateway, name: x}, {kind: Service, name: web}")
                .replace("Packets}", "Packets}, key: [{type: SourceIdentity}]"),
            "6 spec.limits[0].key[0].type: ",
            "by SourceAddress",
        ),
        (
            to("{group: gateway.networking.k8s.io, kind: HTTPRoute, name: x}"),
            "6 spec.limits[0].kernel: ",
            "which the kernel does not",
        ),
    ] {
        check_bad(&text, start, part);
    }
}

#[test]
fn a_service_has_no_more_limits_of_the_kernel_than_it_holds_to() {
    let document = |name: &str, limits: usize| {
        let one = |at| format!("{{name: a{at}, kernel: {{count: Packets}}, rate: {{requests: 1, per: 1s}}}}");
        let limits: Vec<String> = (0..limits).map(one).collect();
        on_web(&format!("  limits: [{}]\n", limits.join(", ")))
            .replace("name: calm", &format!("name: {name}"))
    };
    let state = load_texts(&[WEB, &document("one", 3), &document("two", 1)]);
    assert!(messages(&state.report, Severity::Error).is_empty(), "{:?}", state.report);
    let state = load_texts(&[WEB, &document("one", 3), &document("two", 2)]);
    let messages = messages(&state.report, Severity::Error);
    assert!(messages.iter().any(|message| message.contains("spec.targetRefs[0]: 3 limits")), "{messages:?}");
}

#[test]
fn a_listener_is_limited_by_the_kernel_where_its_port_tells_it() {
    let gateway = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: edge, namespace: shop}\nspec:\n  \
                   gatewayClassName: sluice\n  listeners:\n  - {name: a, port: 80, protocol: HTTP, hostname: a.test}\n  \
                   - {name: b, port: 80, protocol: HTTP, hostname: b.test}\n  - {name: c, port: 81, protocol: HTTP}\n";
    let with = |sections: &[&str], limits: usize| {
        let one = |at| format!("{{name: l{at}, kernel: {{count: Packets}}, rate: {{requests: 1, per: 1s}}}}");
        let limits: Vec<String> = (0..limits).map(one).collect();
        let target = |section: &&str| {
            format!("{{group: gateway.networking.k8s.io, kind: Gateway, name: edge{section}}}")
        };
        let targets: Vec<String> = sections.iter().map(target).collect();
        let spec = format!("  targetRefs: [{}]\n  limits: [{}]\n", targets.join(", "), limits.join(", "));
        messages(&load_texts(&[gateway, &limit(&spec)]).report, Severity::Error)
    };
    let (a, b, c) = (", sectionName: a", ", sectionName: b", ", sectionName: c");
    for good in [&[""][..], &[c], &[a, b], &[a, ""]] {
        assert!(with(good, 4).is_empty(), "{good:?}: {:?}", with(good, 4));
    }
    let found = with(&[c, a], 1);
    let part = "spec.targetRefs[1].sectionName: the kernel can't tell the listener a from b";
    assert!(found.iter().any(|message| message.contains(part)), "{found:?}");
}
