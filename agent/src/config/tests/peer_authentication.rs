//! PeerAuthentication.

use super::{check_bad, good, load_in_shop, messages};
use crate::config::Severity;
use crate::model::{MtlsMode, PeerLevel};

fn document(name: &str, rest: &str) -> String {
    let (namespace, name) = name.split_once('/').expect("a name");
    let head = "apiVersion: security.istio.io/v1beta1\nkind: PeerAuthentication\n";
    format!("{head}metadata: {{name: {name}, namespace: {namespace}{rest}")
}

#[test]
fn modes_selectors_and_ports_are_read() {
    let spec = "}
spec:
  selector: {matchLabels: {app: web}}
  mtls: {mode: STRICT}
  portLevelMtls:
    8080: {mode: PERMISSIVE}
    9090: {}
    9091: {mode: UNSET}
";
    let state = good(&document("shop/p", spec));
    let [peer] = &state.model.peers[..] else { panic!("{:?}", state.model.peers) };
    assert_eq!((peer.mode, peer.level()), (Some(MtlsMode::Strict), PeerLevel::Workload));
    assert_eq!(peer.selector, [("app".into(), "web".into())].into());
    let ports = [(8080, Some(MtlsMode::Permissive)), (9090, None), (9091, None)];
    assert_eq!(peer.ports, ports.into());
    for (name, spec, mode, level) in [
        ("istio-system/default", "{mtls: {mode: STRICT}}", Some(MtlsMode::Strict), PeerLevel::Mesh),
        ("shop/default", "{mtls: {mode: PERMISSIVE}}", Some(MtlsMode::Permissive), PeerLevel::Namespace),
        ("shop/default", "{mtls: {mode: UNSET}}", None, PeerLevel::Namespace),
        ("shop/default", "{mtls: {}}", None, PeerLevel::Namespace),
        ("shop/default", "{}", None, PeerLevel::Namespace),
    ] {
        let state = good(&document(name, &format!("}}\nspec: {spec}")));
        let peer = &state.model.peers[0];
        assert_eq!((peer.mode, peer.level()), (mode, level), "{name} {spec}");
        let object = state.report.objects.iter().find(|object| object.title().contains("PeerAuthentication"));
        assert_eq!(object.expect("reported").state.as_str(), "applied");
    }
}

#[test]
fn what_is_wrong_is_named() {
    for (spec, start, part) in [
        ("{mtls: {mode: STRIKT}}", "4 spec.mtls.mode: ", "`STRIKT` is none of"),
        ("{mtls: {mode: strict}}", "4 spec.mtls.mode: ", "`strict` is none of"),
        ("{mtls: STRICT}", "4 spec.mtls", ""),
        ("{tls: {mode: STRICT}}", "4 spec", "tls"),
        ("{portLevelMtls: {80: {}}}", "4 spec.portLevelMtls: ", "only a PeerAuthentication with a selector"),
        ("{selector: {matchLabels: {a: b}}, portLevelMtls: {0: {}}}", "4 spec.portLevelMtls.0: ", "no port"),
        ("{selector: {matchLabels: {a: b}}, portLevelMtls: {70000: {}}}", "4 spec", "`70000` is no port"),
        ("{selector: {matchLabels: {a: b}}, portLevelMtls: {http: {}}}", "4 spec", "`http` is no port"),
        ("{selector: {matchLabels: {a: 'b*'}}}", "4 spec.selector", "labels are compared as they are"),
    ] {
        check_bad(&document("shop/p", &format!("}}\nspec: {spec}")), start, part);
    }
}

#[test]
fn what_never_counts_is_named() {
    let warnings = |documents: &[String]| {
        let state = load_in_shop(&documents.join("\n---\n"));
        messages(&state.report, Severity::Warning)
    };
    let created =
        |year: u32, spec: &str| format!(", creationTimestamp: '{year}-01-01T00:00:00Z'}}\nspec: {spec}");
    let strict = "{mtls: {mode: STRICT}}";
    let said =
        warnings(&[document("shop/a", &created(2026, strict)), document("shop/b", &created(2025, strict))]);
    assert!(said.len() == 1 && said[0].contains("shop/b is older and about the same pods"), "{said:#?}");
    let said =
        warnings(&[document("shop/a", &created(2026, strict)), document("back/b", &created(2025, strict))]);
    assert_eq!(said, [""; 0]);
    let root = "{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}}";
    let said = warnings(&[document("istio-system/a", &created(2026, root))]);
    assert!(said.len() == 1 && said[0].contains("a selector selects nothing"), "{said:#?}");
    let said = warnings(&[document("shop/a", &created(2026, "{mtls: {mode: DISABLE}}"))]);
    assert!(said.len() == 1 && said[0].contains("is taken as PERMISSIVE"), "{said:#?}");
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: w, namespace: shop, labels: {app: web, v: '1'}}\n\
               spec: {containers: []}\nstatus: {podIP: 10.0.0.1}";
    let by = |label: &str| format!("{{selector: {{matchLabels: {{{label}}}}}, mtls: {{mode: STRICT}}}}");
    let two = [
        document("shop/a", &created(2026, &by("app: web"))),
        document("shop/b", &created(2025, &by("v: '1'"))),
    ];
    assert_eq!(warnings(&two), [""; 0], "no pod has both labels");
    let said = warnings(&[pod.to_owned(), two[0].clone(), two[1].clone()]);
    assert!(
        said.len() == 1 && said[0].contains("shop/b is older and counts for the pod shop/w"),
        "{said:#?}"
    );
}
