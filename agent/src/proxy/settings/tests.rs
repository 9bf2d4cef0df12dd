//! Tests of the table of settings.

use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::proxy::http::Upgrades;

fn set(assignment: &str) -> Result<ProxySettings, String> {
    let mut settings = ProxySettings::default();
    settings.set(assignment).map(|()| settings).map_err(|error| error.to_string())
}

#[test]
fn every_setting_takes_its_default_its_bounds_and_nothing_beyond() {
    let defaults = ProxySettings::default().list();
    assert!(defaults.len() > 70, "only {} settings", defaults.len());
    for setting in &defaults {
        let Setting { name, default, min, max, off, unit, .. } = setting;
        assert_eq!(set(&format!("{name}={default}")).expect(name), ProxySettings::default(), "{name}");
        for value in [min, max] {
            let changed = set(&format!("{name}={value}")).expect(name);
            let after = changed.list();
            let different: Vec<_> = after.iter().filter(|setting| !defaults.contains(setting)).collect();
            let mine = after.iter().find(|setting| setting.name == *name).expect(name);
            assert_eq!(mine.default, *value, "{name}");
            assert!(different.iter().all(|setting| setting.name == *name), "{name}: {different:?}");
        }
        assert_eq!(set(&format!("{name}=off")).is_ok(), *off || *unit == "switch", "{name}=off");
        assert!(set(&format!("{name}=99999999h")).is_err(), "{name}");
        assert!(set(&format!("{name}=")).is_err(), "{name}");
    }
}

#[test]
fn names_are_distinct_and_meanings_are_sentences() {
    let list = ProxySettings::default().list();
    let names: BTreeSet<&str> = list.iter().map(|setting| &*setting.name).collect();
    assert_eq!(names.len(), list.len());
    for setting in &list {
        let lower = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte);
        assert!(setting.name.bytes().all(lower), "{}", setting.name);
        assert!(setting.meaning.ends_with('.'), "{}", setting.name);
    }
}

#[test]
fn values_arrive_where_they_are_used() {
    let check = |assignment: &str, seen: fn(&ProxySettings) -> bool| {
        assert!(!seen(&ProxySettings::default()), "{assignment} is the default");
        assert!(set(assignment).is_ok_and(|settings| seen(&settings)), "{assignment}");
    };
    check("gateway.http.header.timeout=2s", |s| s.gateway.header_timeout == Some(Duration::from_secs(2)));
    check("gateway.http.header.timeout=off", |s| s.gateway.header_timeout.is_none());
    check("captured.http.http2.max-streams=7", |s| s.captured.http2.max_streams == 7);
    check("captured.http.upgrades=websocket", |s| s.captured.upgrades == Upgrades::WebSocket);
    check("gateway.http.upstream.timeout=5s", |s| s.gateway.upstream_timeout == Some(Duration::from_secs(5)));
    check("gateway.http.body.max-bytes=8MiB", |s| s.gateway.body_max == Some(8 << 20));
    check("connections.max=10", |s| s.admission.connections == 10);
    check("pool.idle-timeout=5s", |s| s.pool.idle == Duration::from_secs(5));
    check(" pool.max-idle = 5 ", |s| s.pool.total == 5);
}

#[test]
fn mistakes_are_told_with_what_would_be_right() {
    let check = |assignment: &str, parts: &[&str]| {
        let error = set(assignment).expect_err(assignment);
        for part in parts {
            assert!(error.contains(part), "{assignment}: {error}");
        }
    };
    check("connections.max", &["NAME=VALUE"]);
    check("gateway.http.header-timeout=2s", &["no setting", "did you mean `gateway.http.header.timeout`?"]);
    check("conections.max=1", &["did you mean `connections.max`?"]);
    check("nonsense=1", &["no setting `nonsense`;", "sluice settings"]);
    check("gateway.http.header.timeout=10", &["a duration such as", "or off"]);
    check("gateway.http.body.max-bytes=1MB", &["a size such as"]);
    check("connections.max=off", &["a number such as"]);
    check("connections.max=0", &["out of the range", "1 to 1000000000"]);
    check("gateway.http.http2.connection-window=1KiB", &["64KiB to 2147483647"]);
    check("gateway.http.header.max-fields=101", &["1 to 100"]);
    check("gateway.http.upgrades=yes", &["one of none, websocket, any"]);
}

#[test]
fn distances() {
    for (from, to, expected) in
        [("", "", 0), ("abc", "abc", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)]
    {
        assert_eq!(distance(from, to), expected, "{from} {to}");
        assert_eq!(distance(to, from), expected, "{to} {from}");
    }
}
