//! Tables of the matchers, and a comparison with a matcher that tries every rule in turn.

use std::sync::Arc;

use proptest::prelude::*;
use regex_automata::meta::Regex;

use super::conditions::{fits, prefix_taken};
use super::{
    RequestOrigin, RequestView, RouteMatch, RuleSet, redirect_location, rewrite_climbs, rewrite_path,
};
use crate::compile::{Action, LimitMemo, Route, RouteName};
use crate::model::{
    MatchPath, MatchValue, ObjectName, Redirect, RedirectPath, RedirectPort, RequestMatch, RewriteRegex,
    Workload,
};

#[derive(Debug, Clone)]
struct View {
    method: &'static str,
    path: String,
    query: Option<&'static str>,
    host: &'static str,
    headers: Vec<(&'static str, &'static [u8])>,
}

impl View {
    fn get(path: &str) -> Self {
        Self { method: "GET", path: path.to_owned(), query: None, host: "shop.example", headers: Vec::new() }
    }
}

impl RequestView for View {
    fn method(&self) -> &str {
        self.method
    }
    fn path(&self) -> &str {
        &self.path
    }
    fn query(&self) -> Option<&str> {
        self.query
    }
    fn host(&self) -> &str {
        self.host
    }
    fn scheme(&self) -> &'static str {
        "http"
    }
    fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }
}

fn route(kind: &'static str, rule: &str) -> Arc<Route> {
    Arc::new(Route {
        name: RouteName { kind, source: ObjectName::new("default", "web"), rule: rule.into() },
        action: Action::Original,
        timeout: None,
        try_timeout: None,
        request_headers: [].into(),
        response_headers: [].into(),
        limits: LimitMemo::default(),
    })
}

fn exact(text: &str) -> MatchValue {
    MatchValue::Exact(text.into())
}

fn whole(text: &str) -> Regex {
    Regex::new(&format!(r"\A(?:{text})\z")).expect("is an expression")
}

fn on_path(path: MatchPath) -> RequestMatch {
    RequestMatch { path: Some(path), ..RequestMatch::default() }
}

fn set(rules: Vec<Vec<RequestMatch>>) -> RuleSet {
    let name = |(index, matches)| (matches, route("VirtualService", &format!("{index}")));
    RuleSet::new(rules.into_iter().enumerate().map(name).collect())
}

fn found(set: &RuleSet, view: &View, origin: &RequestOrigin<'_>) -> Option<(usize, usize, bool)> {
    set.find(view, origin).map(|matched| {
        (matched.route.name.rule.parse().expect("is a number"), matched.prefix_len, matched.by_element)
    })
}

fn check(condition: &RequestMatch, view: &View, expected: bool) {
    check_from(condition, view, &RequestOrigin { source: None, port: 80 }, expected);
}

fn check_from(condition: &RequestMatch, view: &View, origin: &RequestOrigin<'_>, expected: bool) {
    let fitted = found(&set(vec![vec![condition.clone()]]), view, origin).is_some();
    assert_eq!(fitted, expected, "{condition:?} on {view:?} from {origin:?}");
}

#[test]
fn paths() {
    let table: [(MatchPath, &[&str], &[&str]); 7] = [
        (MatchPath::Exact("/a".into()), &["/a"], &["/a/", "/A", "/ab", "/", "", "*"]),
        (MatchPath::Prefix("/a".into()), &["/a", "/ab", "/a/b"], &["/A", "/", "/b/a"]),
        (MatchPath::PathPrefix("/a".into()), &["/a", "/a/", "/a/b"], &["/ab", "/A", "/", "*"]),
        (MatchPath::PathPrefix("/".into()), &["/", "/a", "/a/b"], &["*", ""]),
        (MatchPath::Regex(whole("/a|/ab"), "/a|/ab".into()), &["/a", "/ab"], &["/abc", "x/a", ""]),
        (MatchPath::ExactIgnoreCase("/a".into()), &["/a", "/A"], &["/ab", "/a/"]),
        (MatchPath::PrefixIgnoreCase("/ab".into()), &["/ab", "/AB", "/aBc"], &["/a", "/ba"]),
    ];
    for (path, fitting, failing) in table {
        for text in fitting {
            check(&on_path(path.clone()), &View::get(text), true);
        }
        for text in failing {
            check(&on_path(path.clone()), &View::get(text), false);
        }
    }
}

#[test]
fn conditions_spell_their_escapes_as_paths_do() {
    for (path, fitting) in [
        (MatchPath::Exact("/caf%c3%a9".into()), "/caf%C3%A9"),
        (MatchPath::Prefix("/%61/b%2f".into()), "/a/b%2Fc"),
        (MatchPath::PathPrefix("/%7euser".into()), "/~user/x"),
        (MatchPath::ExactIgnoreCase("/%41%2f".into()), "/a%2F"),
        (MatchPath::PrefixIgnoreCase("/%c3".into()), "/%C3%A4"),
    ] {
        check(&on_path(path), &View::get(fitting), true);
    }
    let set = set(vec![vec![on_path(MatchPath::PathPrefix("/%61%62".into()))]]);
    let taken = found(&set, &View::get("/ab/c"), &RequestOrigin { source: None, port: 80 });
    assert_eq!(taken, Some((0, 3, true)), "what is replaced is what was matched");
}

#[test]
fn an_expression_that_was_not_anchored_takes_whole_values_all_the_same() {
    let unanchored = MatchPath::Regex(Regex::new("/a").expect("is an expression"), "/a".into());
    check(&on_path(unanchored.clone()), &View::get("/a"), true);
    check(&on_path(unanchored.clone()), &View::get("/ab"), false);
    check(&on_path(unanchored), &View::get("/x/a"), false);
}

#[test]
fn headers_and_methods() {
    let view =
        View { method: "PUT", headers: vec![("x-group", b"beta"), ("x-raw", b"\xff\xfe")], ..View::get("/") };
    let on =
        |name: &str, value| RequestMatch { headers: vec![(name.into(), value)], ..RequestMatch::default() };
    check(&on("x-group", exact("beta")), &view, true);
    check(&on("x-group", exact("Beta")), &view, false);
    check(&on("x-group", exact("bet")), &view, false);
    check(&on("x-group", MatchValue::Prefix("be".into())), &view, true);
    check(&on("x-group", MatchValue::Regex(whole("b.*"), "b.*".into())), &view, true);
    check(&on("x-group", MatchValue::Regex(whole("b"), "b".into())), &view, false);
    check(&on("x-group", MatchValue::Present), &view, true);
    check(&on("x-raw", MatchValue::Present), &view, true);
    check(&on("x-raw", exact("\u{ff}")), &view, false);
    check(&on("x-none", MatchValue::Present), &view, false);
    check(&RequestMatch { method: Some(exact("PUT")), ..RequestMatch::default() }, &view, true);
    check(&RequestMatch { method: Some(exact("put")), ..RequestMatch::default() }, &view, false);
    let without = |name: &str| RequestMatch {
        without_headers: vec![(name.into(), exact("beta"))],
        ..RequestMatch::default()
    };
    check(&without("x-group"), &view, false);
    check(&without("x-none"), &view, true);
}

#[test]
fn hosts_and_schemes() {
    let host = |value| RequestMatch { authority: Some(value), ..RequestMatch::default() };
    check(&host(exact("Shop.Example")), &View::get("/"), true);
    check(&host(exact("shop.example.com")), &View::get("/"), false);
    check(&host(MatchValue::Prefix("SHOP.".into())), &View::get("/"), true);
    check(&host(MatchValue::Present), &View { host: "", ..View::get("/") }, false);
    let scheme = |text| RequestMatch { scheme: Some(exact(text)), ..RequestMatch::default() };
    check(&scheme("http"), &View::get("/"), true);
    check(&scheme("https"), &View::get("/"), false);
}

#[test]
fn query_parameters() {
    let view = View { query: Some("v=2&name=a%20b&flag"), ..View::get("/") };
    let on =
        |name: &str, value| RequestMatch { query: vec![(name.into(), value)], ..RequestMatch::default() };
    check(&on("v", exact("2")), &view, true);
    check(&on("v", exact("3")), &view, false);
    check(&on("name", exact("a b")), &view, true);
    check(&on("name", exact("a%20b")), &view, false);
    check(&on("name", MatchValue::Prefix("a ".into())), &view, true);
    check(&on("name", MatchValue::Regex(whole("a.b"), "a.b".into())), &view, true);
    check(&on("flag", exact("")), &view, true);
    check(&on("none", MatchValue::Present), &view, false);
    check(&on("v", MatchValue::Present), &View::get("/"), false);
}

#[test]
fn callers_and_ports() {
    let labels = [("app".into(), "cart".into())].into_iter().collect();
    let pod = Workload {
        name: ObjectName::new("shop", "cart-1"),
        uid: "u".into(),
        workload: "cart".into(),
        node: None,
        service_account: "default".into(),
        addresses: Vec::new(),
        labels: Arc::new(labels),
        accelerated: true,
        ready: true,
        probes: Vec::new(),
    };
    let known = RequestOrigin { source: Some(&pod), port: 8080 };
    let unknown = RequestOrigin { source: None, port: 80 };
    let label = |value: &str| RequestMatch {
        source_labels: [("app".into(), value.into())].into_iter().collect(),
        ..RequestMatch::default()
    };
    let namespace =
        |name: &str| RequestMatch { source_namespace: Some(name.into()), ..RequestMatch::default() };
    let port = |port| RequestMatch { port: Some(port), ..RequestMatch::default() };
    for (condition, of_known, of_unknown) in [
        (label("cart"), true, false),
        (label("other"), false, false),
        (namespace("shop"), true, false),
        (namespace("default"), false, false),
        (port(8080), true, false),
        (port(80), false, true),
    ] {
        check_from(&condition, &View::get("/"), &known, of_known);
        check_from(&condition, &View::get("/"), &unknown, of_unknown);
    }
}

#[test]
fn the_first_rule_that_fits_wins() {
    let beta = RequestMatch { headers: vec![("x-group".into(), exact("beta"))], ..RequestMatch::default() };
    let rules = set(vec![
        vec![RequestMatch { path: Some(MatchPath::Exact("/a/b".into())), ..beta }],
        vec![on_path(MatchPath::Prefix("/a".into())), on_path(MatchPath::Exact("/z".into()))],
        vec![on_path(MatchPath::Exact("/a/b".into()))],
        vec![on_path(MatchPath::Regex(whole("/q.*"), "/q.*".into()))],
        vec![],
        vec![on_path(MatchPath::Exact("/never".into()))],
    ]);
    let origin = RequestOrigin::default();
    let of_beta = View { headers: vec![("x-group", b"beta")], ..View::get("/a/b") };
    assert_eq!(found(&rules, &of_beta, &origin), Some((0, 0, false)));
    assert_eq!(found(&rules, &View::get("/a/b"), &origin), Some((1, 2, false)));
    assert_eq!(found(&rules, &View::get("/z"), &origin), Some((1, 0, false)));
    assert_eq!(found(&rules, &View::get("/q1"), &origin), Some((3, 0, false)));
    assert_eq!(found(&rules, &View::get("/never"), &origin), Some((4, 1, true)));
    assert_eq!(found(&set(vec![]), &View::get("/"), &origin), None);
    assert_eq!(rules.routes().count(), 6);
}

fn rewritten(
    matched: (&'static str, usize, bool),
    rewrite: &RedirectPath,
    path: &str,
    query: Option<&str>,
) -> String {
    let (kind, prefix_len, by_element) = matched;
    rewrite_path(&RouteMatch { route: &route(kind, "0"), prefix_len, by_element }, rewrite, path, query)
}

#[test]
fn prefixes_of_elements_are_replaced_as_the_gateway_api_says() {
    for (path, prefix, replacement, expected) in [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        ("/foo/bar", "/foo", "/", "/bar"),
        ("/bar", "/", "/xyz", "/xyz/bar"),
        ("/", "/", "/xyz", "/xyz"),
        ("/foo//bar", "/foo", "/xyz", "/xyz//bar"),
    ] {
        let rewrite = RedirectPath::Prefix(replacement.into());
        let shown = rewritten(("HTTPRoute", prefix.len(), true), &rewrite, path, None);
        assert_eq!(shown, expected, "{path}: {prefix} -> {replacement}");
    }
}

#[test]
fn plain_prefixes_and_other_rewrites() {
    let prefix = |text: &str| RedirectPath::Prefix(text.into());
    let full = RedirectPath::Full("/new".into());
    let regex = |text: &str, substitution: &str| {
        RedirectPath::Regex(RewriteRegex(Regex::new(text).expect("is one"), text.into()), substitution.into())
    };
    for (taken, rewrite, path, query, expected) in [
        (4, prefix("/v2"), "/apiary", None, "/v2ary"),
        (5, prefix("/"), "/api/users", Some("a=1"), "/users?a=1"),
        (4, prefix("/"), "/api/users", None, "//users"),
        (4, prefix(""), "/apiary", None, "/ary"),
        // An exact path or an expression took the whole path.
        (0, prefix("/other"), "/exact", None, "/other"),
        (0, full.clone(), "/a/b", Some(""), "/new?"),
        (2, full, "/a/b", Some("q"), "/new?q"),
        (0, regex("^/api/v([0-9])/(.*)$", r"/\2/v\1"), "/api/v1/users", None, "/users/v1"),
        (0, regex("a", r"[\0]"), "/a/ba", None, "/[a]/b[a]"),
        (0, regex("x", "y"), "/a", None, "/a"),
        (0, regex("a", r"\9\\\"), "/a/b", None, r"/\\/b"),
        (0, regex("^/", ""), "/a", None, "/a"),
    ] {
        let shown = rewritten(("VirtualService", taken, false), &rewrite, path, query);
        assert_eq!(shown, expected, "{path} by {rewrite:?}");
    }
}

#[test]
fn rewrites_that_climb() {
    let route = route("VirtualService", "0");
    let check = |rewrite: &RedirectPath, prefix_len, by_element, path: &str, expected| {
        let matched = RouteMatch { route: &route, prefix_len, by_element };
        assert_eq!(rewrite_climbs(&matched, rewrite, path), expected, "{path} by {rewrite:?}");
    };
    let prefix = RedirectPath::Prefix("/files/".into());
    check(&prefix, 2, false, "/a../b", true);
    check(&prefix, 2, false, "/a.", true);
    check(&prefix, 2, false, "/a.b", false);
    check(&prefix, 2, false, "/a/b", false);
    check(&prefix, 2, true, "/a../b", false);
    check(&RedirectPath::Prefix("/files".into()), 2, false, "/a../b", false);
    check(&RedirectPath::Full("/files".into()), 2, false, "/a../b", false);
    let regex = |pattern: &str, substitution: &str| {
        let compiled = Regex::new(pattern).expect("is an expression");
        RedirectPath::Regex(RewriteRegex(compiled, pattern.into()), substitution.into())
    };
    check(&regex("^/a(.*)", "/files/\\1"), 0, false, "/a../b", true);
    check(&regex("^/a(.*)", "/files/\\1"), 0, false, "/ab.c", false);
    check(&regex("x", ""), 0, false, "/.x./b", true);
}

#[test]
fn locations() {
    let plain = Redirect { status: 302, scheme: None, authority: None, port: None, path: None };
    let https = Redirect { scheme: Some("https".into()), ..plain.clone() };
    let host = Redirect { authority: Some("other.example".into()), ..plain.clone() };
    let port = Redirect { port: Some(8443.into()), ..https.clone() };
    let path = Redirect { path: Some(RedirectPath::Prefix("/new".into())), ..plain.clone() };
    let own_port = Redirect { port: Some(443.into()), ..https.clone() };
    let kept = Redirect { port: Some(RedirectPort::Request), ..https.clone() };
    let kept_host = Redirect { port: Some(RedirectPort::Request), ..host.clone() };
    for (kind, redirect, listener, expected) in [
        ("HTTPRoute", &plain, 80, "http://shop.example/old/a?q=1"),
        ("HTTPRoute", &plain, 8080, "http://shop.example:8080/old/a?q=1"),
        ("HTTPRoute", &plain, 443, "http://shop.example:443/old/a?q=1"),
        ("HTTPRoute", &https, 8080, "https://shop.example/old/a?q=1"),
        ("HTTPRoute", &port, 80, "https://shop.example:8443/old/a?q=1"),
        ("HTTPRoute", &own_port, 80, "https://shop.example/old/a?q=1"),
        ("HTTPRoute", &host, 8080, "http://other.example:8080/old/a?q=1"),
        ("VirtualService", &host, 8080, "http://other.example/old/a?q=1"),
        ("VirtualService", &kept, 80, "https://shop.example/old/a?q=1"),
        ("VirtualService", &kept, 8080, "https://shop.example:8080/old/a?q=1"),
        ("VirtualService", &kept_host, 8080, "http://other.example:8080/old/a?q=1"),
        ("VirtualService", &path, 80, "http://shop.example/new/a?q=1"),
    ] {
        let route = route(kind, "0");
        let matched = RouteMatch { route: &route, prefix_len: 4, by_element: true };
        let view = View { query: Some("q=1"), ..View::get("/old/a") };
        assert_eq!(redirect_location(&matched, redirect, &view, listener), expected, "{kind} {redirect:?}");
    }
    let route = route("HTTPRoute", "0");
    let matched = RouteMatch { route: &route, prefix_len: 0, by_element: false };
    let view = View { host: "", ..View::get("/a") };
    assert_eq!(redirect_location(&matched, &https, &view, 80), "/a");
}

fn any_path() -> impl Strategy<Value = Option<MatchPath>> {
    let text = "(/[abA]{0,2}){1,3}";
    prop_oneof![
        Just(None),
        text.prop_map(|path| Some(MatchPath::Exact(path.into()))),
        text.prop_map(|path| Some(MatchPath::Prefix(path.into()))),
        "(/[ab]{1,2}){1,2}|/".prop_map(|path| Some(MatchPath::PathPrefix(path.into()))),
        "/[ab.]{0,3}".prop_map(|text| Some(MatchPath::Regex(whole(&text), text.into()))),
        text.prop_map(|path| Some(MatchPath::ExactIgnoreCase(path.to_lowercase().into()))),
        text.prop_map(|path| Some(MatchPath::PrefixIgnoreCase(path.to_lowercase().into()))),
    ]
}

fn any_match() -> impl Strategy<Value = RequestMatch> {
    let method = prop::option::of(prop::sample::select(&["GET", "PUT"][..]));
    let header = prop::option::of(prop::sample::select(&["0", "1"][..]));
    let port = prop::option::weighted(0.2, 80_u16..82);
    (any_path(), method, header, port).prop_map(|(path, method, header, port)| RequestMatch {
        path,
        method: method.map(exact),
        headers: header.map(|value| ("x".into(), exact(value))).into_iter().collect(),
        port,
        ..RequestMatch::default()
    })
}

/// What the rules mean, said plainly.
fn naive(
    rules: &[Vec<RequestMatch>],
    view: &View,
    origin: &RequestOrigin<'_>,
) -> Option<(usize, usize, bool)> {
    rules.iter().enumerate().find_map(|(index, matches)| {
        if matches.is_empty() {
            return Some((index, 1, true));
        }
        let hit = matches.iter().find(|conditions| fits(conditions, view, origin))?;
        let (prefix_len, by_element) = prefix_taken(hit.path.as_ref());
        Some((index, prefix_len, by_element))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_indexes_find_what_trying_every_rule_finds(
        rules in prop::collection::vec(prop::collection::vec(any_match(), 0..4), 0..12),
        paths in prop::collection::vec("(/[abAB]{0,2}){1,3}|\\*", 1..6),
        method in prop::sample::select(&["GET", "PUT", "POST"][..]),
        header in prop::sample::select(vec![&b"0"[..], b"1", b"2"]),
        port in 80_u16..82,
    ) {
        let compiled = set(rules.clone());
        let origin = RequestOrigin { source: None, port };
        for path in paths {
            let view = View { method, headers: vec![("x", header)], ..View::get(&path) };
            prop_assert_eq!(found(&compiled, &view, &origin), naive(&rules, &view, &origin), "{}", path);
        }
    }

    #[test]
    fn rewritten_paths_stay_absolute(path in "/[ -~]{0,12}", taken in 0_usize..14, new in "[ -~]{0,6}", by: bool) {
        let shown = rewritten(("HTTPRoute", taken, by), &RedirectPath::Prefix(new.into()), &path, None);
        prop_assert!(shown.starts_with('/'));
    }
}
