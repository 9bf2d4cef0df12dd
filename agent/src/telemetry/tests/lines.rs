//! Lines of the access log and of the agent's own.

use super::*;

#[test]
fn a_request_is_one_line() {
    let sink = Sink::default();
    let access = AccessLog::new(sink.clone()).expect("starts");
    let recorder = metrics().recorder(access.clone(), FlowLog::default());
    recorder.request(&Ends::known().request("/a?b=\"c\"", 200));
    recorder.connection(&Ends::unknown().connection());
    access.set_enabled(false);
    recorder.request(&Ends::known().request("/off", 200));
    assert!(access.writer().expect("has one").flush(LIMIT));
    let lines = sink.lines();
    assert_eq!(lines.len(), 2);
    let expected = serde_json::json!({
        "level": "info", "time": lines[0]["time"], "scope": "access", "message": "request",
        "method": "GET", "path": "/a?b=\"c\"", "authority": "order", "protocol": "HTTP/1.1",
        "response_code": 200, "response_flags": "-", "response_code_details": null,
        "bytes_received": 3, "bytes_sent": 2000, "duration": 7.25,
        "request_id": "id", "user_agent": "curl", "route_name": "VirtualService/shop/order/rule-0",
        "direction": "outbound",
        "downstream_remote_address": "10.0.0.9:1234", "downstream_local_address": "10.96.0.1:80",
        "upstream_host": "[fd00::1]:8080", "upstream_cluster": "outbound|80|v1|order.shop.svc.cluster.local",
        "src.workload": "cart", "src.namespace": "shop", "dst.workload": "order", "dst.namespace": "shop",
    });
    assert_eq!(lines[0], expected);
    assert_eq!(lines[1]["message"], "connection");
    assert_eq!(lines[1]["response_flags"], "UF");
    assert_eq!(lines[1]["connection_termination_details"], "connect_refused");
    assert_eq!(lines[1]["bytes_sent"], 22);
    assert_eq!(lines[1]["upstream_cluster"], serde_json::Value::Null);
}

#[test]
fn a_refused_request_names_the_policy_and_the_rule() {
    let denied = |by| Denied { policy: ObjectName::new("shop", "readers"), by };
    let [by_rule, by_none, plaintext] =
        [DeniedBy::Rule(2), DeniedBy::NoRule, DeniedBy::Plaintext].map(denied);
    let sink = Sink::default();
    let access = AccessLog::new(sink.clone()).expect("starts");
    let recorder = metrics().recorder(access.clone(), FlowLog::default());
    let ends = Ends::known();
    for (details, denied) in [
        ("rbac_access_denied", Some(&by_rule)),
        ("rbac_access_denied", Some(&by_none)),
        ("mtls_required", Some(&plaintext)),
        ("rbac_access_denied", None),
        // It failed for another reason first.
        ("connect_refused", Some(&by_rule)),
    ] {
        recorder.request(&RequestRecord { details, denied, ..ends.request("/", 403) });
    }
    assert!(access.writer().expect("has one").flush(LIMIT));
    let lines = sink.lines();
    let details: Vec<_> = lines.iter().filter_map(|line| line["response_code_details"].as_str()).collect();
    let expected = [
        "rbac_access_denied_matched_policy[shop/readers rule 2]",
        "rbac_access_denied_matched_policy[shop/readers rule none]",
        "mtls_required_by[shop/readers]",
        "rbac_access_denied",
        "connect_refused",
    ];
    assert_eq!(details, expected);
}

#[test]
fn a_request_beyond_a_limit_names_the_limit() {
    let (policy, limit) = (ObjectName::new("shop", "calm"), Arc::from("each"));
    let sink = Sink::default();
    let access = AccessLog::new(sink.clone()).expect("starts");
    let flows = FlowLog::default();
    let recorder = metrics().recorder(access.clone(), flows.clone());
    let ends = Ends::known();
    let limited = Some(LimitedBy { policy: &policy, limit: &limit });
    for details in ["rate_limited", "rate_limit_cost"] {
        recorder.request(&RequestRecord { details, limited, ..ends.request("/", 429) });
    }
    recorder.request(&ends.request("/", 429));
    assert!(access.writer().expect("has one").flush(LIMIT));
    let lines = sink.lines();
    let details: Vec<_> = lines.iter().map(|line| line["response_code_details"].as_str()).collect();
    let expected = [
        Some("rate_limited_by[shop/calm limit each]"),
        Some("rate_limit_cost_by[shop/calm limit each]"),
        None,
    ];
    assert_eq!(details, expected);
    let (told, _) = flows.since(0);
    assert_eq!(told.len(), 2, "{told:?}");
    for flow in told {
        let event = flow.event;
        let said = (event.kind.as_str(), event.tier.as_str(), event.verdict, event.reason);
        assert_eq!(said, ("drop", "agent L7", "refused", "rate_limited"));
        assert_eq!(event.rule, Some(FlowRule::Limit(policy.clone(), Arc::clone(&limit))));
        assert_eq!((event.source, event.destination), (address("10.0.0.9:1234"), address("10.96.0.1:80")));
    }
}

#[test]
fn a_connection_beyond_a_limit_names_the_limit() {
    let (policy, limit) = (ObjectName::new("shop", "calm"), Arc::from("open"));
    let sink = Sink::default();
    let access = AccessLog::new(sink.clone()).expect("starts");
    let flows = FlowLog::default();
    let recorder = metrics().recorder(access.clone(), flows.clone());
    let ends = Ends::known();
    let limited = Some(LimitedBy { policy: &policy, limit: &limit });
    recorder.connection(&ConnectionRecord { details: "rate_limited", limited, ..ends.connection() });
    recorder.connection(&ends.connection());
    assert!(access.writer().expect("has one").flush(LIMIT));
    let lines = sink.lines();
    let details: Vec<_> = lines.iter().map(|line| line["connection_termination_details"].as_str()).collect();
    assert_eq!(details, [Some("rate_limited_by[shop/calm limit open]"), Some("connect_refused")]);
    let (told, _) = flows.since(0);
    let said = |event: &FlowEvent| (event.kind.as_str(), event.tier.as_str(), event.verdict, event.reason);
    let told: Vec<_> = told.iter().map(|flow| (said(&flow.event), flow.event.rule.clone())).collect();
    let named = Some(FlowRule::Limit(policy, limit));
    let expected = [
        (("drop", "agent L4", "refused", "rate_limited"), named),
        (("close", "agent L4", "agent", "rate_limited"), None),
        (("close", "agent L4", "agent", "connect_refused"), None),
    ];
    assert_eq!(told, expected);
}

#[test]
fn dropped_lines_show_as_a_metric() {
    struct Broken;
    impl Write for Broken {
        fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let metrics = metrics();
    let access = AccessLog::new(Broken).expect("starts");
    let writer = access.writer().expect("has one").clone();
    metrics.watch_writer("access", &writer);
    metrics.recorder(access, FlowLog::default()).request(&Ends::known().request("/", 200));
    assert!(writer.flush(LIMIT));
    for _ in 0..2 {
        let text = metrics.render().expect("renders");
        assert_eq!(value(&text, "sluice_log_lines_dropped_total", &[r#"log="access""#]), Some(1.0));
    }
}

proptest! {
    #[test]
    fn lines_stay_json_whatever_a_client_sends(path: String, agent: String, authority: String) {
        let sink = Sink::default();
        let access = AccessLog::new(sink.clone()).expect("starts");
        let recorder = metrics().recorder(access.clone(), FlowLog::default());
        let ends = Ends::known();
        recorder.request(&RequestRecord { user_agent: agent.as_bytes(), authority: &authority, ..ends.request(&path, 200) });
        prop_assert!(access.writer().expect("has one").flush(LIMIT));
        let lines = sink.lines();
        prop_assert_eq!(lines.len(), 1);
        prop_assert_eq!(&lines[0]["path"], &path);
        prop_assert_eq!(&lines[0]["authority"], &authority);
    }
}

#[test]
fn the_agents_log_is_json_and_its_filter_changes_while_it_runs() {
    let sink = Sink::default();
    let (subscriber, handle) = build("info", LogFormat::Json, sink.clone()).expect("is a filter");
    tracing::subscriber::with_default(subscriber, || {
        let _span = tracing::info_span!("connection", peer = "10.0.0.9:1234").entered();
        tracing::info!(file = "a\n\"b\".yaml", line = 3, ok = true, error = ?Some(1), "rejected");
        tracing::debug!("hidden");
        handle.set_filter("debug").expect("is a filter");
        tracing::debug!("shown");
        handle.set_level_of("agent", "error").expect("is a level");
        tracing::info!("hidden again");
    });
    assert!(handle.flush(LIMIT));
    let lines = sink.lines();
    assert_eq!(lines.len(), 2, "{lines:?}");
    let first = &lines[0];
    assert_eq!(first["level"], "info");
    assert_eq!(first["scope"], module_path!());
    assert_eq!(first["message"], "rejected");
    assert_eq!(first["file"], "a\n\"b\".yaml");
    assert_eq!((&first["line"], &first["ok"], &first["error"]), (&3.into(), &true.into(), &"Some(1)".into()));
    assert_eq!(first["span"], "connection{peer=\"10.0.0.9:1234\"}");
    assert!(first["time"].as_str().is_some_and(|time| time.ends_with('Z')));
    assert_eq!(lines[1]["message"], "shown");
}

#[test]
fn bad_filters_are_refused_and_change_nothing() {
    let (_subscriber, handle) =
        build("info,agent::config=debug", LogFormat::Text, io::sink()).expect("is a filter");
    let before = handle.filter();
    for filter in ["inf", "agent=loud", "info,wran", "", "agent"] {
        assert!(handle.set_filter(filter).is_err(), "{filter}");
        assert_eq!(handle.filter(), before);
    }
    handle.set_level_of("agent::config", "trace").expect("is a level");
    assert!(handle.filter().contains("agent::config=trace"), "{}", handle.filter());
    assert!(!handle.filter().contains("debug"), "{}", handle.filter());
    assert!(handle.set_level_of("agent::config", "loud").is_err());
}
