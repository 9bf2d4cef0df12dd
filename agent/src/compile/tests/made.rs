//! Models that are made up: few names, ports and addresses, so that everything meets everything.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use crate::model::{
    Account, AnswerHeader, AppProtocol, AuthorizationPolicy, BackendName, BackendRoots, BackendTls, Cidr,
    ClientMode, ClientTls, ClientValidation, Cost, CostSource, Destination, DirectResponse, EdgeGuard,
    Endpoint, FieldTerm, HeaderChange, HeaderOp, HostPattern, HttpRule, KernelCount, KernelKey, KernelLimit,
    KeyPart, Labels, LbPolicy, Limit, LimitTarget, LimitedPods, LimitedRoute, Listener, ListenerProtocol,
    ListenerTls, MatchPath, MatchValue, Missing, Model, MtlsMode, NamespacePattern, ObjectName, Override,
    OverrideValue, PathPart, PathPattern, PathRewrite, PeerAuthentication, PolicyAction, PolicyMatch,
    PolicyRule, PolicyScope, PrivateKey, Probe, ProbeCheck, Quota, RateLimit, Redirect, RedirectPath,
    RedirectPort, RequestMatch, RequestTerms, RewriteRegex, RouteAction, RouteKind, RouteTable, SaidCost,
    ServerCertificate, Service, ServicePort, SourceRate, Subset, TextPattern, TlsRules, TlsVersion,
    TrafficPolicy, WeightedDestination, Workload, expression,
};

/// A model, sorted as [`Model`] says. Some endpoints, routes and listeners have the names of others.
pub(in crate::compile) fn model() -> impl Strategy<Value = Model> {
    let traffic =
        (vec(service(), 0..6), vec(endpoint(), 0..16), vec(endpoint(), 0..4), vec(workload(), 0..6));
    let access = (vec(authorization(), 0..4), vec(peer(), 0..4));
    let rules = (vec(policy(), 0..4), access, vec(guard(), 0..3), vec(limit(), 0..3));
    (traffic, rules, vec(route(), 0..6), vec(listener(), 0..4)).prop_map(
        |(
            (services, endpoints, datagrams, workloads),
            (policies, (authorization, peers), guards, limits),
            routes,
            listeners,
        )| {
            Model {
                services: by_name(services, |service| &service.name).into(),
                endpoints: in_order(endpoints).into(),
                datagram_endpoints: in_order(datagrams).into(),
                workloads: by_name(workloads, |workload| &workload.name).into(),
                policies: by_name(policies, |policy| &policy.service).into(),
                authorization: by_name(authorization, |policy| &policy.name).into(),
                peers: by_name(peers, |peer| &peer.name).into(),
                mesh_routes: routes.into(),
                listeners: listeners.into(),
                guards: by_name(guards, |guard| &guard.name).into(),
                limits: by_name(limits, |limit| &limit.name).into(),
            }
        },
    )
}

fn by_name<T>(values: Vec<T>, name: fn(&T) -> &ObjectName) -> Vec<T> {
    let named: BTreeMap<ObjectName, T> =
        values.into_iter().map(|value| (name(&value).clone(), value)).collect();
    named.into_values().collect()
}

fn in_order(mut endpoints: Vec<Endpoint>) -> Vec<Endpoint> {
    endpoints.sort_by(|a, b| {
        let place = |of: &Endpoint| (of.service_port, of.address);
        a.service.cmp(&b.service).then_with(|| place(a).cmp(&place(b)))
    });
    endpoints
}

fn one_of<T: Clone + std::fmt::Debug + 'static>(values: &[T]) -> impl Strategy<Value = T> + use<T> {
    select(values.to_vec())
}

fn text(values: &[&'static str]) -> impl Strategy<Value = Arc<str>> + use<> {
    one_of(values).prop_map(Into::into)
}

fn name() -> impl Strategy<Value = ObjectName> {
    (one_of(&["a", "b", "a-b"]), one_of(&["x", "y", "x/y~%"])).prop_map(|(a, b)| ObjectName::new(a, b))
}

fn port() -> impl Strategy<Value = u16> {
    one_of(&[80, 81])
}

fn ip() -> impl Strategy<Value = IpAddr> {
    let parse = |text: &str| text.parse().expect("is an address");
    one_of(&["10.0.0.1", "10.0.0.2", "10.0.1.1", "fd00::1", "fd00::2"].map(parse))
}

fn address() -> impl Strategy<Value = SocketAddr> {
    (ip(), one_of(&[80, 8080])).prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

fn labels() -> impl Strategy<Value = Labels> {
    vec((text(&["app", "version"]), text(&["v1", "v2"])), 0..3).prop_map(|pairs| pairs.into_iter().collect())
}

fn service_port() -> impl Strategy<Value = ServicePort> {
    let protocols =
        [AppProtocol::Http, AppProtocol::Http2, AppProtocol::Grpc, AppProtocol::Tcp, AppProtocol::Undeclared];
    let bundles = vec(text(&["roots", "others"]), 0..2).prop_map(BackendRoots::Bundles);
    let roots = prop_oneof![Just(BackendRoots::System), bundles];
    let both = |text: Arc<str>| [BackendName::Dns(Arc::clone(&text)), BackendName::Uri(text)];
    let names = vec(text(&["a.example", "b.example"]).prop_map(both), 0..2).prop_map(|names| names.concat());
    let tls = (text(&["a.example", "b.example"]), names, roots)
        .prop_map(|(hostname, names, roots)| Arc::new(BackendTls { hostname, names, roots, client: None }));
    (text(&["", "http"]), port(), one_of(&protocols), option::of(tls))
        .prop_map(|(name, port, protocol, tls)| ServicePort { name, port, protocol, tls })
}

fn service() -> impl Strategy<Value = Service> {
    let ports = (vec(service_port(), 0..3), vec(service_port(), 0..2));
    (name(), vec(ip(), 0..3), any::<bool>(), ports, option::of(time())).prop_map(
        |(name, cluster_ips, headless, (ports, datagram_ports), affinity)| Service {
            name,
            cluster_ips: if headless { Vec::new() } else { cluster_ips },
            headless,
            ports,
            datagram_ports,
            affinity,
        },
    )
}

fn time() -> impl Strategy<Value = Duration> {
    one_of(&[Duration::ZERO, Duration::from_millis(1500), Duration::from_nanos(7)])
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let who = (option::of(name()), text(&["u1", "u2"]), option::of(text(&["n1", "n2"])), labels());
    (name(), port(), address(), any::<bool>(), who).prop_map(
        |(service, service_port, address, ready, (pod, uid, node, labels))| Endpoint {
            service,
            service_port,
            address,
            ready,
            pod,
            uid,
            node,
            labels: Arc::new(labels),
        },
    )
}

fn probe() -> impl Strategy<Value = Probe> {
    let headers = vec((text(&["host"]), text(&["a", "b"])), 0..2);
    let check =
        (0_u8..3, port(), text(&["/", "/ready?full"]), headers).prop_map(|(kind, port, path, headers)| {
            match kind {
                0 => ProbeCheck::Http { port, path, headers },
                1 => ProbeCheck::Tcp { port },
                _ => ProbeCheck::Grpc { port, service: path },
            }
        });
    (check, [1_u32..4, 1..4], [0_u64..99, 0..99, 0..99]).prop_map(
        |(check, [passes, failures], [period, timeout, delay])| Probe {
            check,
            period: Duration::from_secs(period),
            timeout: Duration::from_secs(timeout),
            initial_delay: Duration::from_secs(delay),
            success_threshold: NonZeroU32::new(passes).expect("at least one"),
            failure_threshold: NonZeroU32::new(failures).expect("at least one"),
        },
    )
}

fn workload() -> impl Strategy<Value = Workload> {
    let what = (text(&["u1", "u2"]), text(&["w"]), option::of(text(&["n1"])), text(&["default"]));
    (name(), what, vec(ip(), 0..3), labels(), any::<[bool; 2]>(), vec(probe(), 0..3)).prop_map(
        |(name, (uid, workload, node, service_account), addresses, labels, [accelerated, ready], probes)| {
            Workload {
                name,
                uid,
                workload,
                node,
                service_account,
                addresses,
                labels: Arc::new(labels),
                accelerated,
                ready,
                probes,
            }
        },
    )
}

fn lb() -> impl Strategy<Value = LbPolicy> {
    one_of(&[LbPolicy::RoundRobin, LbPolicy::Random, LbPolicy::LeastRequest, LbPolicy::SourceIp])
}

fn policy() -> impl Strategy<Value = TrafficPolicy> {
    let subset = (text(&["v1", "v2"]), labels(), option::of(lb()), client_tls())
        .prop_map(|(name, labels, lb, tls)| Subset { name, labels, lb, tls });
    (name(), name(), lb(), vec((port(), lb()), 0..2), client_tls(), vec(subset, 0..3)).prop_map(
        |(source, service, lb, port_lb, tls, subsets)| TrafficPolicy {
            source,
            service,
            lb,
            port_lb,
            tls,
            subsets,
        },
    )
}

fn client_tls() -> impl Strategy<Value = TlsRules<ClientTls>> {
    let own = |hostname: Arc<str>| {
        let roots = BackendRoots::Anybody;
        ClientTls::Own(Arc::new(BackendTls { hostname, names: Vec::new(), roots, client: None }))
    };
    let one =
        prop_oneof![Just(ClientTls::Disable), Just(ClientTls::Mesh), text(&["", "a.example"]).prop_map(own)];
    let one = one.boxed();
    (option::of(one.clone()), vec((port(), option::of(one)), 0..2))
        .prop_map(|(others, ports)| TlsRules { others, ports })
}

fn cidr() -> impl Strategy<Value = Cidr> {
    (ip(), 0_u8..=32).prop_map(|(ip, prefix)| Cidr::new(ip, prefix).expect("fits either family"))
}

fn pattern() -> impl Strategy<Value = TextPattern> {
    let text = || text(&["GET", "a.example", "é"]);
    prop_oneof![
        Just(TextPattern::Present),
        text().prop_map(TextPattern::Exact),
        text().prop_map(TextPattern::Prefix),
        text().prop_map(TextPattern::Suffix),
    ]
}

fn terms() -> impl Strategy<Value = RequestTerms> {
    let part =
        prop_oneof![text(&["a", "b"]).prop_map(PathPart::Text), Just(PathPart::One), Just(PathPart::Many)];
    let path =
        prop_oneof![pattern().prop_map(PathPattern::Text), vec(part, 0..3).prop_map(PathPattern::Template)];
    let field = (text(&["x-a"]), vec(pattern(), 0..2), vec(pattern(), 0..2))
        .prop_map(|(name, values, not_values)| FieldTerm { name, values, not_values });
    (vec(pattern(), 0..2), vec(path, 0..2), vec(pattern(), 0..2), option::of(field)).prop_map(
        |(methods, paths, hosts, field)| RequestTerms {
            methods,
            not_paths: paths.clone(),
            paths,
            hosts,
            field,
            ..RequestTerms::default()
        },
    )
}

fn policy_match() -> impl Strategy<Value = PolicyMatch> {
    let namespace = prop_oneof![
        Just(NamespacePattern::Any),
        text(&["a", "b"]).prop_map(NamespacePattern::Exact),
        text(&["a"]).prop_map(NamespacePattern::Prefix),
        text(&["b"]).prop_map(NamespacePattern::Suffix),
    ];
    let principal =
        prop_oneof![Just(TextPattern::Present), text(&["a/ns/b/sa/c"]).prop_map(TextPattern::Exact)];
    let account = (text(&["a", "b"]), text(&["c"])).prop_map(|(namespace, name)| Account { namespace, name });
    let who = (vec(principal, 0..2), vec(account, 0..2), vec(cidr(), 0..2));
    (vec(cidr(), 0..2), vec(cidr(), 0..2), vec(namespace, 0..2), vec(port(), 0..2), terms(), who).prop_map(
        |(cidrs, not_cidrs, namespaces, ports, request, (principals, accounts, others))| PolicyMatch {
            not_principals: principals.clone(),
            principals,
            not_accounts: accounts.clone(),
            accounts,
            remote_cidrs: others.clone(),
            not_destinations: cidrs.clone(),
            destinations: others,
            cidrs,
            not_cidrs,
            not_namespaces: namespaces.clone(),
            namespaces,
            not_ports: ports.clone(),
            ports,
            request,
        },
    )
}

fn authorization() -> impl Strategy<Value = AuthorizationPolicy> {
    let rule = (0_usize..9, vec(vec(policy_match(), 1..3), 0..3))
        .prop_map(|(index, clauses)| PolicyRule { index, clauses });
    let scope = one_of(&[PolicyScope::Mesh, PolicyScope::Namespace]);
    let action = one_of(&[PolicyAction::Allow, PolicyAction::Deny, PolicyAction::Audit]);
    (name(), scope, labels(), action, vec(rule, 0..3)).prop_map(|(name, scope, selector, action, rules)| {
        let dry_run = rules.len() == 2;
        AuthorizationPolicy { name, scope, selector, action, dry_run, rules }
    })
}

/// What requests cost of the limit at a place.
fn cost(index: usize) -> Cost {
    let by = CostSource::Header("x-cost".into());
    if index == 0 { Cost::default() } else { Cost { units: 2, said: Some(SaidCost { by, max: Some(9) }) } }
}

/// One key's other numbers.
fn overrides(quota: Quota) -> Vec<Override> {
    let network = OverrideValue::Network("10.0.0.0/8".parse().expect("a network"));
    vec![Override { values: vec![network, OverrideValue::Text("ann".into())], quota }]
}

fn limit() -> impl Strategy<Value = RateLimit> {
    let target = (name(), option::of("[a-z]{1,3}")).prop_map(|(name, part)| match part {
        None => LimitTarget::Service(name),
        Some(part) if part.len() == 1 => LimitTarget::Gateway(name, Some(part.into())),
        Some(part) if part.len() == 2 => {
            let labels = [("app".into(), part.as_str().into())].into();
            let pods = LimitedPods { namespace: Some(name.namespace), labels };
            if *part < *"m" { LimitTarget::SentBy(pods) } else { LimitTarget::Enters(pods) }
        }
        Some(part) if *part > *"m" => LimitTarget::EntersNode(None),
        Some(part) => LimitTarget::Route(LimitedRoute::HttpRoute, name, Some(part.into())),
    });
    let quota = (1_u32..9, 1_u64..1_000_000, 0..3).prop_map(|(requests, window_ns, kind)| match kind {
        0 => Quota::Rate { requests, window_ns, burst: requests },
        1 => Quota::Window { requests, window_ns },
        _ => Quota::InFlight { requests },
    });
    let header = select(vec![("content-type", "text/html"), ("x-code", "slow"), ("x-code", "")]);
    (name(), vec(target, 1..3), any::<bool>(), vec(quota, 1..3), vec(header, 0..3)).prop_map(
        |(name, targets, shadow, quotas, headers)| {
            let headers = headers.into_iter();
            let headers =
                headers.map(|(name, value)| AnswerHeader { name: name.into(), value: value.into() });
            let limit = |(index, quota)| Limit {
                name: format!("limit-{index}").into(),
                key: vec![KeyPart::SourceAddress { v4: 24, v6: 64 }, KeyPart::Header("x-user".into())],
                missing: Missing::Shared,
                quota,
                cost: cost(index),
                overrides: overrides(quota),
                exempt: vec!["10.0.0.0/8".parse().expect("a network")],
                exempt_principals: vec![TextPattern::Suffix("/sa/probe".into())],
                max_keys: 8,
                cluster: None,
                push_down: None,
            };
            RateLimit {
                name,
                targets,
                shadow,
                kernel: if shadow { vec![kernel_limit(quotas.len())] } else { Vec::new() },
                connections: quotas.iter().copied().enumerate().skip(1).map(limit).collect(),
                limits: quotas.into_iter().enumerate().map(limit).collect(),
                answer: DirectResponse { status: 429, body: b"no".as_slice().into() },
                headers: headers.collect(),
                tells: shadow,
            }
        },
    )
}

fn kernel_limit(amount: usize) -> KernelLimit {
    KernelLimit {
        name: "dials".into(),
        count: KernelCount::Connections,
        key: KernelKey::SourceAddress { v4: 24, v6: 64 },
        missing: Missing::default(),
        amount: u32::try_from(amount).expect("few"),
        window_ns: 1_000_000_000,
        burst: 5,
        exempt: vec!["10.0.0.0/8".parse().expect("a network")],
    }
}

fn peer() -> impl Strategy<Value = PeerAuthentication> {
    let mode = || option::of(one_of(&[MtlsMode::Strict, MtlsMode::Permissive, MtlsMode::Disable]));
    let scope = one_of(&[PolicyScope::Mesh, PolicyScope::Namespace]);
    let ports = vec((port(), mode()), 0..3).prop_map(|ports| ports.into_iter().collect());
    (name(), text(&["", "2026-01-01T00:00:00Z"]), scope, labels(), mode(), ports).prop_map(
        |(name, created, scope, selector, mode, ports)| PeerAuthentication {
            name,
            created,
            scope,
            selector,
            mode,
            ports,
        },
    )
}

fn guard() -> impl Strategy<Value = EdgeGuard> {
    let nets = || vec(cidr().prop_map(Into::into), 0..3);
    let rate =
        || option::of((1..9_u32, 1..9_u32).prop_map(|(per_second, burst)| SourceRate { per_second, burst }));
    (name(), nets(), nets(), rate(), rate()).prop_map(|(name, deny, allow, packets, syns)| EdgeGuard {
        name,
        deny: deny.into(),
        allow: allow.into(),
        packets,
        syns,
    })
}

fn expression_text() -> impl Strategy<Value = &'static str> {
    one_of(&["/a.*", "(?i)b|c", ""])
}

fn value() -> impl Strategy<Value = MatchValue> {
    let text = || text(&["v1", "GET", "\"\u{1}"]);
    prop_oneof![
        text().prop_map(MatchValue::Exact),
        text().prop_map(MatchValue::Prefix),
        Just(MatchValue::Present),
        expression_text().prop_map(|text| {
            let (regex, text) = expression::whole(text).expect("is one");
            MatchValue::Regex(regex, text)
        }),
    ]
}

fn path() -> impl Strategy<Value = MatchPath> {
    let text = || text(&["/", "/a", "/a/b"]);
    prop_oneof![
        text().prop_map(MatchPath::Exact),
        text().prop_map(MatchPath::Prefix),
        text().prop_map(MatchPath::PathPrefix),
        text().prop_map(MatchPath::ExactIgnoreCase),
        text().prop_map(MatchPath::PrefixIgnoreCase),
        expression_text().prop_map(|text| {
            let (regex, text) = expression::whole(text).expect("is one");
            MatchPath::Regex(regex, text)
        }),
    ]
}

fn request() -> impl Strategy<Value = RequestMatch> {
    let fields = || vec((text(&["x-a", "x-b"]), value()), 0..2);
    let head = (option::of(path()), option::of(value()), option::of(value()), option::of(value()));
    let origin = (labels(), option::of(text(&["a", "b"])), option::of(port()));
    (head, fields(), fields(), fields(), origin).prop_map(
        |((path, method, authority, scheme), headers, without_headers, query, origin)| RequestMatch {
            path,
            method,
            authority,
            scheme,
            headers,
            without_headers,
            query,
            source_labels: origin.0,
            source_namespace: origin.1,
            port: origin.2,
        },
    )
}

fn headers() -> impl Strategy<Value = Vec<HeaderOp>> {
    let change = prop_oneof![
        text(&["1", ""]).prop_map(HeaderChange::Set),
        text(&["2"]).prop_map(HeaderChange::Add),
        Just(HeaderChange::Remove),
    ];
    vec((text(&["x-a", "x-b"]), change).prop_map(|(name, change)| HeaderOp { name, change }), 0..2)
}

fn destination() -> impl Strategy<Value = WeightedDestination> {
    let destination = prop_oneof![
        4 => (name(), option::of(port()), option::of(text(&["v1", "v2"])))
            .prop_map(|(service, port, subset)| Destination::Service { service, port, subset }),
        1 => one_of(&[500, 503]).prop_map(|status| Destination::Invalid { status }),
    ];
    (destination, 0..3_u32, headers(), headers()).prop_map(
        |(destination, weight, request_headers, response_headers)| WeightedDestination {
            destination,
            weight,
            request_headers,
            response_headers,
        },
    )
}

fn redirect_path() -> impl Strategy<Value = RedirectPath> {
    prop_oneof![
        text(&["/full"]).prop_map(RedirectPath::Full),
        text(&["/prefix"]).prop_map(RedirectPath::Prefix),
        (expression_text(), text(&[r"\1", ""])).prop_map(|(text, substitution)| {
            let (regex, text) = expression::part(text).expect("is one");
            RedirectPath::Regex(RewriteRegex(regex, text), substitution)
        }),
    ]
}

fn action() -> impl Strategy<Value = RouteAction> {
    let rewrite = (option::of(text(&["a.example"])), option::of(redirect_path()))
        .prop_map(|(authority, path)| PathRewrite { authority, path });
    let port = prop_oneof![port().prop_map(RedirectPort::Number), Just(RedirectPort::Request)];
    let parts = (option::of(text(&["https"])), option::of(text(&["b.example"])), option::of(port));
    let redirect = (one_of(&[301, 302, 303, 307, 308]), parts, option::of(redirect_path())).prop_map(
        |(status, (scheme, authority, port), path)| Redirect { status, scheme, authority, port, path },
    );
    let body = one_of::<&[u8]>(&[b"", b"no\n", b"\xff\x00"]);
    let response =
        (200..600_u16, body).prop_map(|(status, body)| DirectResponse { status, body: body.into() });
    prop_oneof![
        6 => (vec(destination(), 1..3), rewrite)
            .prop_map(|(destinations, rewrite)| RouteAction::Forward { destinations, rewrite }),
        1 => redirect.prop_map(RouteAction::Redirect),
        1 => response.prop_map(RouteAction::Respond),
    ]
}

fn rule() -> impl Strategy<Value = HttpRule> {
    let times = (option::of(time()), option::of(time()));
    (text(&["rule-0", "rule-1"]), vec(request(), 0..3), action(), times, headers(), headers()).prop_map(
        |(name, matches, action, (timeout, try_timeout), request_headers, response_headers)| HttpRule {
            name,
            matches,
            action,
            timeout,
            try_timeout,
            request_headers,
            response_headers,
        },
    )
}

fn host() -> impl Strategy<Value = HostPattern> {
    prop_oneof![
        text(&["a.example", "b.a.example"]).prop_map(HostPattern::Exact),
        text(&[".example", ".a.example"]).prop_map(HostPattern::Suffix),
        Just(HostPattern::Any),
    ]
}

fn route() -> impl Strategy<Value = RouteTable> {
    let kind = one_of(&[RouteKind::VirtualService, RouteKind::HttpRoute]);
    let services = vec((name(), option::of(port())), 0..3);
    (name(), kind, services, vec(host(), 0..2), vec(rule(), 0..3)).prop_map(
        |(source, kind, services, hosts, rules)| RouteTable { source, kind, services, hosts, rules },
    )
}

fn tls() -> impl Strategy<Value = ListenerTls> {
    let certificate =
        (name(), text(&["chain", "other"]), text(&["key", "another"])).prop_map(|(secret, chain, key)| {
            let key = PrivateKey::new(zeroize::Zeroizing::new(key.to_string()));
            Arc::new(ServerCertificate { secret, chain, key })
        });
    let version = one_of(&[TlsVersion::Tls12, TlsVersion::Tls13]);
    let mode = one_of(&[ClientMode::Required, ClientMode::Optional]);
    let clients = (vec(text(&["roots", "others"]), 0..2), mode)
        .prop_map(|(roots, mode)| ClientValidation { roots, mode });
    (vec(certificate, 0..2), version, option::of(clients))
        .prop_map(|(certificates, min_version, clients)| ListenerTls { certificates, min_version, clients })
}

fn listener() -> impl Strategy<Value = Listener> {
    (
        name(),
        text(&["http", "alt/1"]),
        vec(ip(), 0..2),
        port(),
        host(),
        (option::of(tls()), vec(route(), 0..4)),
    )
        .prop_map(|(gateway, name, addresses, port, hostname, (tls, routes))| Listener {
            gateway,
            name,
            addresses,
            port,
            protocol: if tls.is_some() { ListenerProtocol::Https } else { ListenerProtocol::Http },
            hostname,
            tls,
            routes,
        })
}
