//! Service, EndpointSlice and Pod.

use super::{check_bad, good, load_texts};
use crate::config::Severity;
use crate::config::tests::messages;
use crate::model::{AppProtocol, Endpoint, Model, ObjectName};

fn addresses(model: &Model, service: &str) -> Vec<String> {
    let of_service = |endpoint: &&Endpoint| &*endpoint.service.name == service;
    let endpoints = model.endpoints.iter().filter(of_service);
    let text = |endpoint: &Endpoint| {
        format!(
            "{}->{}{}",
            endpoint.service_port,
            endpoint.address,
            if endpoint.ready { "" } else { " not ready" }
        )
    };
    endpoints.map(text).collect()
}

/// A service as the API server returns it, with every kind of field that does not matter here.
const FULL_SERVICE: &str = r#"
apiVersion: v1
kind: Service
metadata:
  name: full
  namespace: prod
  uid: 7c0a
  resourceVersion: "12"
  creationTimestamp: "2026-01-01T00:00:00Z"
  annotations: {a: b}
  managedFields: [{manager: kubectl, fieldsV1: {"f:spec": {}}}]
  finalizers: [x]
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.20
  clusterIPs: [10.96.0.20, "fd00::20"]
  ipFamilies: [IPv4, IPv6]
  ipFamilyPolicy: PreferDualStack
  sessionAffinity: None
  internalTrafficPolicy: Cluster
  externalTrafficPolicy: Cluster
  allocateLoadBalancerNodePorts: true
  selector: {app: full}
  ports:
  - {name: http-web, port: 80, targetPort: web, nodePort: 30080, protocol: TCP}
  - {name: db, port: 3306, appProtocol: mysql}
  - {name: dns, port: 53, protocol: UDP}
status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}
---
apiVersion: v1
kind: Pod
metadata:
  name: full-6c7d9-x1
  namespace: prod
  uid: pod-uid
  labels: {app: full, pod-template-hash: 6c7d9}
  ownerReferences:
  - {apiVersion: apps/v1, kind: ReplicaSet, name: full-6c7d9, uid: u, controller: true, blockOwnerDeletion: true}
spec:
  nodeName: node-1
  serviceAccountName: full-sa
  containers:
  - name: main
    image: x
    ports: [{name: web, containerPort: 8080, protocol: TCP}, {containerPort: 9}]
    resources: {limits: {cpu: 100m}}
  tolerations: [{operator: Exists}]
  volumes: [{name: v, emptyDir: {}}]
status:
  phase: Running
  podIP: 10.0.1.1
  podIPs: [{ip: 10.0.1.1}, {ip: "fd00:1::1"}]
  conditions: [{type: Ready, status: "True", lastProbeTime: null, lastTransitionTime: "2026-01-01T00:00:00Z"}]
  qosClass: BestEffort
"#;

#[test]
fn a_service_as_the_api_server_returns_it() {
    let model = good(FULL_SERVICE).model;
    let service = model.services.iter().find(|service| &*service.name.name == "full").expect("the service");
    assert_eq!(service.cluster_ips.len(), 2);
    let ports: Vec<_> = service.ports.iter().map(|port| (port.port, port.protocol)).collect();
    assert_eq!(ports, [(80, AppProtocol::Http), (3306, AppProtocol::Tcp)]);
    let expected =
        ["80->10.0.1.1:8080", "80->[fd00:1::1]:8080", "3306->10.0.1.1:3306", "3306->[fd00:1::1]:3306"];
    assert_eq!(addresses(&model, "full"), expected);
    let datagrams: Vec<_> = model.datagram_endpoints.iter().map(|one| one.address.to_string()).collect();
    assert_eq!(datagrams, ["10.0.1.1:53", "[fd00:1::1]:53"]);
    let pod = model.workloads.iter().find(|pod| &*pod.name.namespace == "prod").expect("the pod");
    assert_eq!(
        (&*pod.workload, &*pod.service_account, pod.node.as_deref()),
        ("full", "full-sa", Some("node-1"))
    );
    assert_eq!((&*pod.uid, pod.addresses.len(), pod.ready), ("pod-uid", 2, true));
}

#[test]
fn pods_become_endpoints_only_while_they_run() {
    let pod = |meta: &str, spec: &str, status: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, labels: {{app: s}}{meta}}}\nspec: {{{spec}}}\nstatus: {{{status}}}\n"
        )
    };
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {clusterIP: None, selector: {app: s}, ports: [{port: 80}]}\n";
    let check = |pod: String, expected: &[&str]| {
        let state = load_texts(&[service, &pod]);
        assert_eq!(messages(&state.report, Severity::Warning), [""; 0]);
        assert_eq!(addresses(&state.model, "s"), expected, "{pod}");
    };
    check(pod("", "", "podIP: 10.0.0.1"), &["80->10.0.0.1:80"]);
    check(pod("", "", "podIP: 10.0.0.1, conditions: []"), &["80->10.0.0.1:80 not ready"]);
    check(
        pod("", "", "podIP: 10.0.0.1, conditions: [{type: Ready, status: \"False\"}]"),
        &["80->10.0.0.1:80 not ready"],
    );
    check(
        pod(", deletionTimestamp: \"2026-01-01T00:00:00Z\"", "", "podIP: 10.0.0.1"),
        &["80->10.0.0.1:80 not ready"],
    );
    check(pod("", "hostNetwork: true", "podIP: 192.0.2.1"), &["80->192.0.2.1:80"]);
    check(pod("", "", "podIP: 10.0.0.1, phase: Succeeded"), &[]);
    check(pod("", "", "phase: Pending"), &[]);
    check(pod(", namespace: other", "", "podIP: 10.0.0.1"), &[]);
}

#[test]
fn slices_are_the_truth_where_a_service_has_one() {
    let slice = |conditions: &str| {
        format!(
            r"
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: order-service-x, labels: {{kubernetes.io/service-name: order-service}}}}
addressType: IPv4
ports: [{{name: http, port: 8081, protocol: TCP, appProtocol: http}}, {{name: tcp-admin, port: 9001}}]
endpoints:
- addresses: [10.0.0.1]
  conditions: {{{conditions}}}
  targetRef: {{kind: Pod, name: order-1, namespace: default, uid: u1}}
  nodeName: node-1
  zone: a
  hints: {{forZones: [{{name: a}}]}}
- addresses: [10.9.9.9]
  conditions: {{ready: false}}
"
        )
    };
    let check = |conditions: &str, first: &str| {
        let model = good(&slice(conditions)).model;
        let all = addresses(&model, "order-service");
        assert_eq!(all[..2], [first.to_owned(), "80->10.9.9.9:8081 not ready".to_owned()], "{conditions}");
        assert_eq!(all.len(), 4);
        model
    };
    let model = check("ready: true", "80->10.0.0.1:8081");
    let first = &model.endpoints[0];
    assert_eq!(first.pod, Some(ObjectName::new("default", "order-1")));
    assert_eq!(
        (&*first.uid, first.node.as_deref(), first.labels.get("version").map(|v| &**v)),
        ("u1", Some("node-1"), Some("v1"))
    );
    assert_eq!(&*model.endpoints[1].uid, "10.9.9.9:8081");
    check("", "80->10.0.0.1:8081");
    check("ready: false", "80->10.0.0.1:8081 not ready");
    // The last one that still answers is used while it shuts down.
    check("ready: false, serving: true, terminating: true", "80->10.0.0.1:8081");
    check("ready: false, serving: false, terminating: true", "80->10.0.0.1:8081 not ready");
}

#[test]
fn of_an_address_in_two_slices_the_ready_one_counts() {
    let slice = |name: &str, ready: bool| {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, labels: {{kubernetes.io/service-name: payment-service}}}}\naddressType: IPv4\nports: [{{name: http, port: 1}}]\nendpoints: [{{addresses: [10.9.0.1], conditions: {{ready: {ready}}}}}]\n"
        )
    };
    for [first, second] in [[true, false], [false, true]] {
        let model = good(&(slice("a", first) + &slice("b", second))).model;
        assert_eq!(addresses(&model, "payment-service"), ["80->10.9.0.1:1"]);
    }
}

#[test]
fn the_beta_slice_is_read() {
    let text = "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\nmetadata: {name: x, labels: {kubernetes.io/service-name: payment-service}}\naddressType: IPv6\nports: [{name: http, port: 80}]\nendpoints: [{addresses: [\"fd00::1\"], topology: {kubernetes.io/hostname: n}}]\n";
    assert_eq!(addresses(&good(text).model, "payment-service"), ["80->[fd00::1]:80"]);
}

#[test]
fn external_names_and_affinity_are_listed_as_not_enforced() {
    let state = good(
        "apiVersion: v1\nkind: Service\nmetadata: {name: out}\nspec: {type: ExternalName, externalName: example.com}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: sticky}\nspec: {sessionAffinity: ClientIP, ports: [{port: 80}]}\n",
    );
    assert!(!state.model.services.iter().any(|service| &*service.name.name == "out"));
    let shown = |name: &str| {
        let object = state.report.objects.iter().find(|object| &*object.name == name).expect(name);
        object.state.as_str()
    };
    assert_eq!((shown("out"), shown("sticky")), ("not yet enforced", "partly enforced"));
}

#[test]
fn an_affinity_is_kept_where_no_port_needs_the_agent() {
    let check = |spec: &str, seconds: Option<u64>, state: &str| {
        let text = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: sticky}}\nspec: {{{spec}}}\n");
        let loaded = good(&text);
        let service = loaded.model.services.iter().find(|service| &*service.name.name == "sticky");
        let affinity = service.expect("the service").affinity;
        assert_eq!(affinity, seconds.map(std::time::Duration::from_secs), "{spec}");
        let object = loaded.report.objects.iter().find(|object| &*object.name == "sticky").expect("it");
        assert_eq!(object.state.as_str(), state, "{spec}");
    };
    let udp = "ports: [{port: 53, protocol: UDP}]";
    check(&format!("{udp}, sessionAffinity: ClientIP"), Some(10_800), "applied");
    let timed = "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 30}}";
    check(&format!("ports: [{{name: tcp, port: 1}}], {timed}"), Some(30), "applied");
    check(&format!("ports: [{{name: http, port: 1}}], {timed}"), Some(30), "partly enforced");
    check(&format!("{udp}, sessionAffinity: None"), None, "applied");
}

#[test]
fn both_protocols_of_one_port_have_their_own_endpoints() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: dns}\nspec:\n  ports: [{name: dns, port: 53, protocol: UDP, targetPort: dns}, {name: dns-tcp, port: 53, targetPort: dns-tcp}]\n  selector: {app: dns}\n";
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {app: dns}}\nspec:\n  containers: [{name: main, ports: [{name: dns, containerPort: 5353, protocol: UDP}, {name: dns-tcp, containerPort: 5354}]}]\nstatus: {podIP: 10.0.0.1}\n";
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: x, labels: {kubernetes.io/service-name: dns}}\naddressType: IPv4\nports: [{name: dns, port: 6353, protocol: UDP}, {name: dns-tcp, port: 6354}]\nendpoints: [{addresses: [10.0.0.2]}]\n";
    let check = |texts: &[&str], stream: &str, datagram: &str| {
        let state = load_texts(texts);
        assert_eq!(messages(&state.report, Severity::Warning), [""; 0]);
        assert_eq!(addresses(&state.model, "dns"), [stream]);
        let datagrams: Vec<_> =
            state.model.datagram_endpoints.iter().map(|one| one.address.to_string()).collect();
        assert_eq!(datagrams, [datagram]);
    };
    check(&[service, pod], "53->10.0.0.1:5354", "10.0.0.1:5353");
    check(&[service, pod, slice], "53->10.0.0.2:6354", "10.0.0.2:6353");
}

#[test]
fn bad_core_objects_name_their_field() {
    let service = |spec: &str, start: &str, part: &str| {
        let text = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: bad}}\nspec:\n  {spec}\n");
        check_bad(&text, start, part);
    };
    service("prots: []", "5 spec.prots: ", "unknown field");
    service("clusterIP: 10.0.0.300", "5 spec.clusterIP: ", "no IP address");
    service("clusterIP: 0.0.0.0", "5 spec.clusterIP: ", "can't be the address");
    service("type: Cluster", "5 spec.type: ", "no type of a Service");
    service("type: ExternalName", "4 spec.externalName: ", "needs an externalName");
    service("sessionAffinity: ClientIp", "5 spec.sessionAffinity: ", "neither None nor ClientIP");
    let seconds = "sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}";
    service(seconds, "5 spec.sessionAffinityConfig.clientIP.timeoutSeconds: ", "from 1 to 86400");
    service("ports: [{port: 53, protocol: UDP}, {port: 54}]", "5 spec.ports[0].name: ", "needs a name");
    service(
        "ports: [{name: a, port: 53, protocol: UDP}, {name: b, port: 53, protocol: UDP}]",
        "5 spec.ports[1].port: ",
        "UDP port 53 is given twice",
    );
    service("ports: [{port: 0}]", "5 spec.ports[0].port: ", "0 is no port");
    service("ports: [{port: 80000}]", "5 spec.ports[0].port: ", "from 0 to 65535");
    service("ports: [{port: 80}, {port: 81}]", "5 spec.ports[0].name: ", "needs a name");
    service("ports: [{name: a, port: 80}, {name: a, port: 81}]", "5 spec.ports[1].name: ", "given twice");
    service("ports: [{name: a, port: 80}, {name: b, port: 80}]", "5 spec.ports[1].port: ", "given twice");
    service("ports: [{port: 80, protocol: QUIC}]", "5 spec.ports[0].protocol: ", "no protocol");
    service("ports: [{port: 80, targetPort: 0}]", "5 spec.ports[0].targetPort: ", "a port from 1 to 65535");
    service("ports: [{targetPort: 80}]", "5 spec.ports[0]: ", "`port` is missing");
    service("selector: {version: 1.10}", "5 spec.selector.version: ", "in quotes");
    let pod = |rest: &str, start: &str, part: &str| {
        check_bad(&format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: bad}}\n{rest}\n"), start, part);
    };
    pod("status: {podIP: somewhere}", "4 status.podIP: ", "no IP address");
    pod("status: {podIPs: [{ip: x}]}", "4 status.podIPs[0].ip: ", "no IP address");
    let slice = |rest: &str, start: &str, part: &str| {
        let text = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: bad, labels: {{kubernetes.io/service-name: payment-service}}}}\n{rest}\n"
        );
        check_bad(&text, start, part);
    };
    slice(
        "addressType: IPv4\nendpoints: [{addresses: [x]}]",
        "5 endpoints[0].addresses[0]: ",
        "no IP address",
    );
    slice(
        "addressType: IPv4\nendpoints: [{adresses: [10.0.0.1]}]",
        "5 endpoints[0]: ",
        "`addresses` is missing",
    );
    slice("addressType: IPv5\nendpoints: []", "4 addressType: ", "no address type");
    slice(
        "addressType: IPv4\nports: [{name: htp, port: 1}]\nendpoints: []",
        "1 ports: ",
        "no port called `htp`",
    );
    check_bad(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: lost}\naddressType: IPv4\nendpoints: []\n",
        "3 metadata.labels: ",
        "serves nothing",
    );
}

/// The next version of Kubernetes may write fields that nobody here has heard of; no pod may go for that.
#[test]
fn unknown_fields_of_pods_and_slices_are_told_and_passed_over() {
    let state = load_texts(&[
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  nodeName: n\n  fresh: 1\n  containers: [{ports: [{containerPort: 1, nu: 2}]}]\nstatus: {podIPs: [{ip: 10.0.0.1, zone: a}], novel: {}}\n",
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: x, labels: {kubernetes.io/service-name: s}}\naddressType: IPv4\nports: [{name: a, port: 1, extra: 1}]\nendpoints: [{addresses: [10.0.0.2], more: 1, conditions: {ready: true, fit: true}}]\n",
        "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{name: a, port: 1}]}\n",
    ]);
    let said = messages(&state.report, Severity::Warning);
    for place in
        ["6 spec.fresh", "7 spec.containers[0].ports[0].nu", "8 status.podIPs[0].zone", "8 status.novel"]
    {
        assert!(said.iter().any(|text| text.contains(place)), "{place} is not in {said:?}");
    }
    for place in ["5 ports[0].extra", "6 endpoints[0].more", "6 endpoints[0].conditions.fit"] {
        assert!(said.iter().any(|text| text.contains(place)), "{place} is not in {said:?}");
    }
    assert_eq!(said.len(), 7, "{said:?}");
    assert_eq!(addresses(&state.model, "s"), ["1->10.0.0.2:1"]);
    assert_eq!(state.model.workloads[0].addresses.len(), 1);
}

#[test]
fn a_pod_can_opt_out_of_acceleration() {
    // (annotation, takes part, what is said)
    let cases = [
        ("", true, None),
        ("  annotations: {sluice.dev/acceleration: auto}\n", true, None),
        ("  annotations: {sluice.dev/acceleration: \"off\"}\n", false, None),
        (
            "  annotations: {sluice.dev/acceleration: \"on\"}\n",
            false,
            Some("`on` is neither `auto` nor `off`"),
        ),
    ];
    for (annotation, accelerated, said) in cases {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n{annotation}spec: {{nodeName: n}}\nstatus: {{podIP: 10.0.0.1}}\n"
        );
        let state = load_texts(&[&text]);
        let pod = state.model.workloads.first().expect("the pod is read");
        assert_eq!(pod.accelerated, accelerated, "{annotation}");
        let texts = messages(&state.report, Severity::Info);
        match said {
            None => assert!(texts.is_empty(), "{annotation}: {texts:?}"),
            Some(part) => assert!(texts.iter().any(|text| text.contains(part)), "{annotation}: {texts:?}"),
        }
    }
}
