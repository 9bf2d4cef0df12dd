//! Documents in, model and report out: the whole of the module as its users see it.

mod authorization_policy;
mod client_tls;
mod core_kinds;
mod destination_rule;
mod edge_guard;
mod gateway;
mod gateway_tls;
mod http_route;
mod istio;
mod last_good;
mod mangled;
mod peer_authentication;
mod probes;
mod rate_limit;
mod update;
mod virtual_service;
mod watching;

use super::read::InputFile;
use super::{Report, Severity, State, load};

/// Services with pods behind them, for routes to refer to.
pub(super) const SHOP: &str = r"
apiVersion: v1
kind: Service
metadata: {name: order-service}
spec:
  clusterIP: 10.96.0.10
  selector: {app: order}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp-admin, port: 9000}]
---
apiVersion: v1
kind: Service
metadata: {name: payment-service}
spec: {clusterIP: 10.96.0.11, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: stock, namespace: back}
spec: {clusterIP: 10.96.0.12, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: order-1, labels: {app: order, version: v1}}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: order-2, labels: {app: order, version: v2}}
status: {podIP: 10.0.0.2}
";

pub(super) fn file(path: &str, text: &str) -> InputFile {
    InputFile { path: path.into(), text: Ok(text.to_owned()) }
}

/// The state of some files.
pub(super) fn load_texts(texts: &[&str]) -> State {
    let files = texts.iter().enumerate().map(|(index, text)| file(&format!("{index}.yaml"), text));
    load(&State::default(), files.collect())
}

/// The state of a text beside the shop's services.
pub(super) fn load_in_shop(text: &str) -> State {
    load_texts(&[SHOP, text])
}

/// Messages from a severity on, as `line field: text`.
pub(super) fn messages(report: &Report, from: Severity) -> Vec<String> {
    let objects = report.objects.iter().flat_map(|object| &object.messages);
    let files = report.files.iter().flat_map(|file| &file.messages);
    let messages = files.chain(objects).filter(|message| message.severity >= from);
    messages.map(|message| format!("{} {}: {}", message.line, message.field, message.text)).collect()
}

/// The state of a good text: nothing to complain of.
pub(super) fn good(text: &str) -> State {
    let state = load_in_shop(text);
    assert_eq!(messages(&state.report, Severity::Warning), [""; 0], "{text}");
    state
}

/// Checks that a text beside the shop has one message that begins with `start` (`line field: `) and holds `part`.
pub(super) fn check_bad(text: &str, start: &str, part: &str) {
    let state = load_in_shop(text);
    let messages = messages(&state.report, Severity::Warning);
    let found = messages.iter().any(|message| message.starts_with(start) && message.contains(part));
    assert!(found, "expected `{start} .. {part}`, got {messages:#?} of:\n{text}");
}

#[test]
fn the_examples_load_unchanged() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
    let state = super::load_dir(std::path::Path::new(dir));
    assert_eq!(state.report.count(Severity::Error), 0, "{:#?}", state.report);
    let states: Vec<_> =
        state.report.objects.iter().map(|object| (object.title(), object.state.as_str())).collect();
    let expected = [
        ("VirtualService default/order-service", "applied"),
        ("DestinationRule default/order-service", "partly enforced"),
        ("VirtualService default/payment-service", "partly enforced"),
        ("PeerAuthentication default/default", "applied"),
    ];
    for (title, text) in expected {
        assert!(states.contains(&(title.to_owned(), text)), "{title}: {states:?}");
    }
}

#[test]
fn lists_and_later_kinds_are_accepted() {
    let state = load_texts(&[r"
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: 80}]}}
- {apiVersion: v1, kind: Service, metadata: {name: b}, spec: {ports: [{port: 80}]}}
---
apiVersion: networking.istio.io/v1
kind: VirtualServiceList
items: []
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny}
spec: {}
---
apiVersion: sluice.dev/v1alpha1
kind: Migration
metadata: {name: limit}
spec: {anything: 1}
---
apiVersion: v1
kind: Secret
metadata: {name: secret}
type: Opaque
data: {tls.crt: aGk=}
"]);
    assert_eq!(messages(&state.report, Severity::Warning), [""; 0]);
    assert_eq!(state.model.services.len(), 2);
    let later = state.report.objects.iter().filter(|object| object.state.as_str() == "not yet enforced");
    assert_eq!(later.count(), 2);
}

#[test]
fn kinds_that_say_nothing_about_traffic_are_passed_over() {
    let state = load_texts(&[r"
apiVersion: v1
kind: ConfigMap
metadata: {name: a}
data: {a: b}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: a}
---
apiVersion: cert-manager.io/v1
kind: Certificate
metadata: {name: a}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: a}
spec: {podSelector: {}}
"]);
    assert_eq!(messages(&state.report, Severity::Warning), [""; 0]);
    let said = messages(&state.report, Severity::Info);
    assert!(said.len() == 1 && said[0].contains(": Certificate, ConfigMap, Deployment"), "{said:?}");
    let states: Vec<_> = state.report.objects.iter().map(|object| object.state.as_str()).collect();
    assert_eq!(states, ["not yet enforced"]);
    // Who misspells one of ours is told.
    for (text, part) in [
        (
            "apiVersion: networking.istio.oi/v1\nkind: VirtualService\nmetadata: {name: a}\n",
            "known: networking",
        ),
        ("apiVersion: networking.istio.io/v1\nkind: VirtualServcie\nmetadata: {name: a}\n", "is not known"),
        ("apiVersion: v1\nkind: Servcie\nmetadata: {name: a}\n", "Servcie of v1"),
    ] {
        check_bad(text, "1 apiVersion: ", part);
    }
}

#[test]
fn objects_that_are_none_are_refused() {
    check_bad("a: 1\n", "1 kind: ", "apiVersion and kind are missing");
    check_bad(
        "apiVersion: v1\nkind: Deployment\nmetadata: {name: a}\n",
        "1 apiVersion: ",
        "Deployment of v1",
    );
    check_bad(
        "apiVersion: networking.istio.io/v2\nkind: VirtualService\nmetadata: {name: a}\n",
        "1 apiVersion: ",
        "known: networking.istio.io/v1,",
    );
    check_bad("apiVersion: v1\nkind: Service\nspec: {}\n", "1 metadata.name: ", "no name");
    check_bad(
        "apiVersion: v1\nkind: Service\nmetadata: {name: A_b}\nspec: {}\n",
        "3 metadata.name: ",
        "is no name",
    );
    check_bad(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: a\n  lables: {}\nspec: {}\n",
        "5 metadata.lables: ",
        "unknown field",
    );
    check_bad("apiVersion: v1\nkind: Service\nmetadata: {name: a}\n", "1 : ", "`spec` is missing");
    check_bad(
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  ports: []\n  ports: []\n",
        "6 spec.ports: ",
        "given twice",
    );
    check_bad(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec:\n  mtsl: {}\n",
        "5 spec.mtsl: ",
        "unknown field",
    );
    check_bad("- 1\n- 2\n", "1 kind: ", "no Kubernetes object");
}

#[test]
fn of_two_objects_with_one_name_the_first_counts() {
    let service = |ip: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n"
        )
    };
    let state = load_texts(&[&service("10.0.0.1"), &service("10.0.0.2")]);
    assert_eq!(state.model.services.len(), 1);
    assert_eq!(
        state.model.services[0].cluster_ips,
        ["10.0.0.1".parse::<std::net::IpAddr>().expect("an address")]
    );
    let errors = messages(&state.report, Severity::Error);
    assert!(errors.len() == 1 && errors[0].contains("already given at 0.yaml:1"), "{errors:?}");
}

#[test]
fn of_two_services_with_one_address_the_first_by_name_is_served() {
    let service = |name: &str, port: u16| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: 10.0.0.1, ports: [{{port: {port}}}]}}\n"
        )
    };
    let state = load_texts(&[&service("b", 80), &service("a", 80), &service("c", 81)]);
    let said = messages(&state.report, Severity::Warning);
    assert!(said.len() == 1 && said[0].contains("10.0.0.1:80 is the Service default/a's"), "{said:?}");
    let by: Vec<_> = state.report.objects.iter().filter(|object| !object.messages.is_empty()).collect();
    assert_eq!(&*by[0].name, "b");
}

/// A bound that even an unoptimized build keeps easily, and time that grows with the square does not.
#[test]
fn many_objects_take_linear_time() {
    let mut text = String::new();
    for number in 0..2000 {
        let service = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s{number}}}\nspec: {{ports: [{{port: 80}}]}}\n---\n"
        );
        let route = format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: s{number}}}\nspec: {{hosts: [s{number}], http: [{{route: [{{destination: {{host: s{number}}}}}]}}]}}\n---\n"
        );
        text.push_str(&service);
        text.push_str(&route);
    }
    let begin = std::time::Instant::now();
    let state = load_texts(&[&text]);
    assert_eq!(state.model.mesh_routes.len(), 2000);
    let again = load(&state, vec![file("0.yaml", &text)]);
    assert_eq!(again.model, state.model);
    assert!(begin.elapsed() < std::time::Duration::from_secs(30), "{:?}", begin.elapsed());
}
