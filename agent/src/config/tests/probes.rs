//! Readiness probes of Pods.

use std::num::NonZeroU32;
use std::time::Duration;

use super::{check_bad, good, load_in_shop, messages};
use crate::config::Severity;
use crate::model::{Probe, ProbeCheck};

fn pod(spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec: {{nodeName: n, {spec}}}\nstatus: {{podIP: 10.0.0.1}}\n"
    )
}

fn with_probe(probe: &str) -> String {
    pod(&format!(
        "containers: [{{name: c, ports: [{{name: web, containerPort: 8080}}], readinessProbe: {{{probe}}}}}]"
    ))
}

fn probes(text: &str) -> Vec<Probe> {
    let state = good(text);
    let pod = state.model.workloads.iter().find(|workload| &*workload.name.name == "p");
    pod.expect("the pod").probes.clone()
}

#[test]
fn what_is_asked_is_read_with_its_defaults() {
    let http = |port, path: &str| ProbeCheck::Http { port, path: path.into(), headers: Vec::new() };
    let cases = [
        ("httpGet: {path: /ready?full=1, port: 8080}", http(8080, "/ready?full=1")),
        ("httpGet: {path: ready, port: web, scheme: HTTP}", http(8080, "/ready")),
        ("httpGet: {port: 81}", http(81, "/")),
        (
            "httpGet: {port: 81, httpHeaders: [{name: Host, value: shop}]}",
            ProbeCheck::Http { port: 81, path: "/".into(), headers: vec![("host".into(), "shop".into())] },
        ),
        ("tcpSocket: {port: web}", ProbeCheck::Tcp { port: 8080 }),
        ("grpc: {port: 9000}", ProbeCheck::Grpc { port: 9000, service: "".into() }),
        (
            "grpc: {port: 9000, service: shop.Cart}",
            ProbeCheck::Grpc { port: 9000, service: "shop.Cart".into() },
        ),
    ];
    for (text, expected) in cases {
        let probes = probes(&with_probe(text));
        assert_eq!(probes, [Probe::new(expected)], "{text}");
        assert_eq!((probes[0].period.as_secs(), probes[0].timeout.as_secs()), (10, 5));
    }
}

#[test]
fn what_is_given_counts() {
    let timing = "periodSeconds: 3, timeoutSeconds: 2, initialDelaySeconds: 7, successThreshold: 4, failureThreshold: 5";
    let expected = Probe {
        check: ProbeCheck::Tcp { port: 1 },
        period: Duration::from_secs(3),
        timeout: Duration::from_secs(2),
        initial_delay: Duration::from_secs(7),
        success_threshold: NonZeroU32::new(4).expect("four"),
        failure_threshold: NonZeroU32::new(5).expect("five"),
    };
    assert_eq!(probes(&with_probe(&format!("tcpSocket: {{port: 1}}, {timing}"))), [expected]);
    // As the API server has it, nought stands for the default.
    let nought = "periodSeconds: 0, timeoutSeconds: 0, failureThreshold: 0, terminationGracePeriodSeconds: 5";
    let plain = Probe::new(ProbeCheck::Tcp { port: 1 });
    assert_eq!(probes(&with_probe(&format!("tcpSocket: {{port: 1}}, {nought}"))), [plain]);
}

#[test]
fn all_containers_that_run_on_are_asked() {
    let text = pod(
        "containers: [{readinessProbe: {tcpSocket: {port: 1}}}, {name: none}, {readinessProbe: {tcpSocket: {port: 2}}}], \
         initContainers: [{restartPolicy: Always, readinessProbe: {tcpSocket: {port: 3}}}, {name: setup}]",
    );
    let ports: Vec<u16> = probes(&text).iter().map(|probe| probe.check.port()).collect();
    assert_eq!(ports, [1, 2, 3]);
}

#[test]
fn what_is_not_asked_is_named_with_its_field() {
    let at = |field: &str| format!("4 spec.containers[0].readinessProbe{field}: ");
    let cases = [
        ("exec: {command: [cat, /ready]}", ".exec", "kubelet"),
        ("httpGet: {port: 1, scheme: HTTPS}", ".httpGet.scheme", "without TLS"),
        ("httpGet: {port: 1, host: other}", ".httpGet.host", "the pod alone"),
        ("tcpSocket: {port: 1, host: other}", ".tcpSocket.host", "the pod alone"),
        ("httpGet: {port: admin}", ".httpGet.port", "called `admin`"),
    ];
    for (probe, field, part) in cases {
        check_bad(&with_probe(probe), &at(field), part);
        let state = load_in_shop(&with_probe(probe));
        let pod = state.model.workloads.iter().find(|workload| &*workload.name.name == "p").expect("the pod");
        assert!(pod.probes.is_empty() && pod.ready, "{probe}");
    }
    let host = pod("hostNetwork: true, containers: [{readinessProbe: {tcpSocket: {port: 1}}}]");
    check_bad(&host, &at(""), "its node's address");
}

#[test]
fn what_is_wrong_is_refused() {
    let at = |field: &str| format!("4 spec.containers[0].readinessProbe{field}: ");
    let cases = [
        ("", "", "has one of"),
        ("tcpSocket: {port: 1}, grpc: {port: 2}", "", "has one of"),
        ("httpGet: {port: 1, path: '/a b'}", ".httpGet.path", "%XX"),
        (
            "httpGet: {port: 1, httpHeaders: [{name: 'a b', value: c}]}",
            ".httpGet.httpHeaders[0]",
            "no header",
        ),
        ("httpGet: {port: 0}", ".httpGet.port", ""),
        ("grpc: {}", ".grpc", "port"),
        ("tcpSocket: {port: 1}, periodSeconds: -1", ".periodSeconds", "number"),
    ];
    for (probe, field, part) in cases {
        let text = with_probe(probe);
        check_bad(&text, &at(field), part);
        let errors = messages(&load_in_shop(&text).report, Severity::Error);
        assert!(!errors.is_empty(), "{probe}");
    }
}
