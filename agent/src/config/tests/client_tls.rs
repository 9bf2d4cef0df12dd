//! `tls` of DestinationRules.

use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair};

use super::{check_bad, good, load_in_shop, messages};
use crate::config::Severity;
use crate::model::{BackendName, BackendRoots, BackendTls, ClientTls};

/// A certificate and its key, in PEM.
fn pair() -> (String, String) {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["a.test".to_owned()]).expect("names");
    (params.self_signed(&key).expect("signs").pem(), key.serialize_pem())
}

/// A rule on its first lines: `trafficPolicy` is on the sixth one.
fn rule(policy: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: orders}}\nspec:\n  host: order-service\n  trafficPolicy: {policy}\n"
    )
}

fn tls(fields: &str) -> String {
    rule(&format!("{{tls: {{{fields}}}}}"))
}

fn secret(name: &str, of_type: &str, entries: &serde_json::Value) -> String {
    format!(
        "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\ntype: {of_type}\nstringData: {entries}\n"
    )
}

fn own(tls: Option<&ClientTls>) -> &Arc<BackendTls> {
    match tls {
        Some(ClientTls::Own(own)) => own,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_rule_says_what_is_spoken_by_port_and_subset() {
    let state = good(
        &(rule(
            "{tls: {mode: SIMPLE, sni: a.test}, portLevelSettings: [{port: {number: 9000}, tls: {mode: DISABLE}}, {port: {number: 9001}}]}",
        ) + "  subsets:\n  - {name: v1, labels: {version: v1}, trafficPolicy: {tls: {}, portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE, sni: b.test}}]}}\n  - {name: v2, labels: {version: v2}}\n"),
    );
    let [policy] = &state.model.policies[..] else { panic!("one policy") };
    let of_service = own(policy.tls.others.as_ref());
    assert_eq!((&*of_service.hostname, &of_service.roots), ("a.test", &BackendRoots::System));
    assert_eq!(policy.tls.on(9000), Some(Some(&ClientTls::Disable)));
    assert_eq!(policy.tls.on(9001), Some(None), "a port inherits nothing");
    let [v1, v2] = &policy.subsets[..] else { panic!("two subsets") };
    assert_eq!(&*own(v1.tls.on(80).flatten()).hostname, "b.test");
    assert_eq!(v1.tls.on(9000), Some(Some(&ClientTls::Disable)));
    assert_eq!(v2.tls.on(80), None);
}

#[test]
fn names_and_secrets_are_followed() {
    let (chain, key) = pair();
    let pair = serde_json::json!({"tls.crt": chain, "tls.key": key, "ca.crt": chain});
    let roots = serde_json::json!({"cacert": chain});
    let without = serde_json::json!({"tls.crt": chain, "tls.key": key, "ca.crt": ""});
    let state = good(
        &(tls("mode: MUTUAL, credentialName: both, subjectAltNames: [a.test, 'spiffe://x/y']")
            + &secret("both", "kubernetes.io/tls", &pair)),
    );
    let found = own(state.model.policies[0].tls.others.as_ref());
    assert_eq!(found.names, [BackendName::Dns("a.test".into()), BackendName::Uri("spiffe://x/y".into())]);
    assert_eq!(found.roots, BackendRoots::Bundles(vec![chain.as_str().into()]));
    assert_eq!(*found.client.as_ref().expect("is shown").chain, *chain);
    for documents in [
        secret("ca", "Opaque", &roots),
        secret("ca-cacert", "Opaque", &roots),
        // As cert-manager makes them for some issuers.
        secret("ca", "kubernetes.io/tls", &without) + &secret("ca-cacert", "Opaque", &roots),
    ] {
        let state = good(&(tls("mode: SIMPLE, credentialName: ca") + &documents));
        let found = own(state.model.policies[0].tls.others.as_ref());
        assert_eq!(found.roots, BackendRoots::Bundles(vec![chain.as_str().into()]), "{documents}");
        assert_eq!(found.client, None);
    }
}

#[test]
fn a_secret_that_is_missing_leaves_nobody_to_believe() {
    for (fields, documents, part) in [
        ("mode: SIMPLE, credentialName: ca", String::new(), "neither the Secret default/ca"),
        ("mode: MUTUAL, credentialName: ca", String::new(), "there is no valid Secret default/ca"),
        (
            "mode: MUTUAL, credentialName: ca",
            secret("ca", "Opaque", &serde_json::json!({"cacert": pair().0})),
            "not of the type kubernetes.io/tls",
        ),
        (
            "mode: SIMPLE, credentialName: ca",
            secret("ca", "Opaque", &serde_json::json!({"cacert": "no PEM"})),
            "neither the Secret default/ca",
        ),
    ] {
        let text = tls(fields) + &documents;
        check_bad(&text, "6 spec.trafficPolicy.tls.credentialName: ", part);
        let state = load_in_shop(&text);
        let found = own(state.model.policies[0].tls.others.as_ref());
        assert_eq!(found.roots, BackendRoots::Bundles(Vec::new()), "{text}");
    }
}

#[test]
fn what_can_not_be_meant_is_refused_with_its_field() {
    let check = |fields: &str, field: &str, part: &str| {
        check_bad(&tls(fields), &format!("6 spec.trafficPolicy.tls.{field}: "), part);
    };
    check("mode: simple", "mode", "none of DISABLE, SIMPLE, MUTUAL, ISTIO_MUTUAL");
    check("mode: SIMPLE, sni: 'a b'", "sni", "no host name");
    check("mode: SIMPLE, sni: 10.0.0.1", "sni", "no host name");
    check("mode: SIMPLE, subjectAltNames: [a.test, '*.b.test']", "subjectAltNames[1]", "neither");
    check("mode: SIMPLE, caCertificates: /etc/ca.pem", "caCertificates", "name a Secret");
    check("mode: MUTUAL, clientCertificate: /a, privateKey: /b", "clientCertificate", "name a Secret");
    check("mode: MUTUAL, clientCertificate: /a, privateKey: /b", "privateKey", "name a Secret");
    check("mode: SIMPLE, caCrl: /etc/crl.pem", "caCrl", "revoked");
    check("mode: MUTUAL", "credentialName", "needs a certificate");
    check("mode: SIMPLE, insecureSkipVerify: true, credentialName: a", "credentialName", "looks at no");
    check(
        "mode: SIMPLE, insecureSkipVerify: true, subjectAltNames: [a.test]",
        "subjectAltNames",
        "looks at no",
    );
    for (field, value) in [
        ("sni", "a.test"),
        ("subjectAltNames", "[a.test]"),
        ("credentialName", "a"),
        ("insecureSkipVerify", "true"),
    ] {
        check(&format!("mode: ISTIO_MUTUAL, {field}: {value}"), field, "own identities");
        check(&format!("mode: DISABLE, {field}: {value}"), field, "with DISABLE no TLS");
        check(&format!("{field}: {value}"), field, "without a mode no TLS");
    }
    check("mode: SIMPLE, sni: ''", "sni", "`` is no host name");
    check("mode: SIMPLE, subjectAltNames: ['spiffe://x y']", "subjectAltNames[0]", "neither");
    for name in ["../x", "''", "kubernetes://a", "other/a", "A"] {
        check(&format!("mode: MUTUAL, credentialName: {name}"), "credentialName", "no name of a Secret");
    }
    check_bad(&tls("mode: SIMPLE, snl: a"), "6 spec.trafficPolicy.tls.snl: ", "unknown field");
}

#[test]
fn endpoints_that_it_does_not_go_with_are_told() {
    const STRICT: &str = "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict}\nspec: {mtls: {mode: STRICT}}\n";
    const MODE: &str = "6 spec.trafficPolicy.tls.mode: ";
    check_bad(&tls("mode: ISTIO_MUTUAL"), MODE, "is not in the mesh");
    for mode in ["DISABLE", "SIMPLE"] {
        check_bad(
            &(tls(&format!("mode: {mode}")) + STRICT),
            MODE,
            "default/strict has the pod default/order-1 in mode STRICT",
        );
        good(&tls(&format!("mode: {mode}")));
    }
    // Of one field once, however many endpoints there are; the port that says nothing of TLS is not concerned.
    let ports =
        rule("{portLevelSettings: [{port: {number: 9000}, tls: {mode: DISABLE}}, {port: {number: 80}}]}");
    let told = messages(&load_in_shop(&(ports + STRICT)).report, Severity::Warning);
    assert!(
        told.len() == 1 && told[0].starts_with("6 spec.trafficPolicy.portLevelSettings[0].tls.mode: "),
        "{told:?}"
    );
}

#[test]
fn for_gateways_a_backend_tls_policy_counts_before_it() {
    let policy = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {name: p}\nspec: {targetRefs: [{group: '', kind: Service, name: order-service, sectionName: http}], validation: {hostname: a.test, wellKnownCACertificates: System}}\n";
    let told = messages(&load_in_shop(&(tls("mode: DISABLE") + policy)).report, Severity::Warning);
    assert!(told.len() == 1 && told[0].contains("for port 80 of default/order-service"), "{told:?}");
}

#[test]
fn a_rule_about_tls_that_cannot_be_read_at_the_start_lets_no_plaintext_out() {
    for policy in [
        "{tls: {mode: SIMPEL}}",
        "{portLevelSettings: [{port: {number: 80}, tls: {mode: MUTUAL, privateKey: /k}}]}",
    ] {
        let state = load_in_shop(&rule(policy));
        let [policy] = &state.model.policies[..] else { panic!("{policy}: one policy") };
        assert_eq!(policy.tls.others, Some(ClientTls::Mesh));
        let said = messages(&state.report, Severity::Error);
        let stands = "nothing is sent to its host but by the mesh's mutual TLS";
        assert!(said.iter().any(|text| text.contains(stands)), "{said:#?}");
    }
    // One that asks for no TLS takes nothing away.
    for policy in
        ["{loadBalancer: {simple: NOBODY}}", "{tls: {mode: DISABLE}, loadBalancer: {simple: NOBODY}}"]
    {
        assert!(load_in_shop(&rule(policy)).model.policies.is_empty(), "{policy}");
    }
}

#[test]
fn a_backend_tls_policy_that_cannot_be_read_at_the_start_lets_nothing_out() {
    let good = "{hostname: a.test, wellKnownCACertificates: System}";
    for (target, validation) in [
        ("", "{hostname: a.test, wellKnownCACertificates: Nobody}"),
        ("", "{}"),
        ("", "{hostname: a.test, unknown: 1}"),
        (", namespace: shop", good),
        ("}, {group: '', kind: Servcie, name: other", good),
        ("}, {kind: 1", good),
    ] {
        let policy = format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{name: p}}\nspec: {{targetRefs: [{{group: '', kind: Service, name: order-service{target}}}], validation: {validation}}}\n"
        );
        let state = load_in_shop(&policy);
        let service = state.model.services.iter().find(|service| &*service.name.name == "order-service");
        let ports = &service.expect("the service").ports;
        let nobody = |tls: &BackendTls| tls.roots == BackendRoots::Bundles(Vec::new());
        assert!(
            ports.iter().all(|port| port.tls.as_deref().is_some_and(nobody)),
            "{target} {validation}: {ports:?}"
        );
        let said = messages(&state.report, Severity::Error);
        assert!(said.iter().any(|text| text.contains("Gateways send nothing to its targets")), "{said:#?}");
    }
}
