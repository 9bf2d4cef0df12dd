//! TLS of Gateways' listeners, and the Secrets that they refer to.

use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, KeyPair, date_time_ymd};

use super::{check_bad, good, load_in_shop, messages};
use crate::config::load::load_at;
use crate::config::{Severity, State};
use crate::model::{ClientMode, ListenerProtocol, TlsVersion};

/// A certificate and its key, in PEM.
fn pair() -> (String, String) {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["a.test".to_owned()]).expect("names");
    (params.self_signed(&key).expect("signs").pem(), key.serialize_pem())
}

/// A Secret on lines of its own: `type` is on the fourth one, the entries are on the sixth.
fn secret(namespace: &str, chain: &str, key: &str) -> String {
    let data = serde_json::json!({"tls.crt": chain, "tls.key": key});
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: cert, namespace: {namespace}}}\ntype: kubernetes.io/tls\nstringData:\n  {data}\n---\n"
    )
}

fn gateway(listeners: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: edge}}\nspec: {{gatewayClassName: sluice, listeners: [{listeners}]}}\n---\n"
    )
}

fn https(tls: &str) -> String {
    gateway(&format!("{{name: a, port: 443, protocol: HTTPS, tls: {{{tls}}}}}"))
}

#[test]
fn a_secret_is_shown_by_the_listener_that_refers_to_it() {
    let (chain, key) = pair();
    for (further, version) in
        [("", TlsVersion::Tls12), (", options: {sluice.dev/min-tls-version: '1.3'}", TlsVersion::Tls13)]
    {
        let tls = format!("certificateRefs: [{{name: cert}}]{further}");
        let state = good(&(https(&tls) + &secret("default", &chain, &key)));
        let listener = &state.model.listeners[0];
        let tls = listener.tls.as_ref().expect("it ends TLS");
        assert_eq!((listener.protocol, tls.min_version), (ListenerProtocol::Https, version));
        assert_eq!(tls.certificates[0].secret.to_string(), "default/cert");
        assert_eq!(*tls.certificates[0].chain, *chain);
        assert_eq!(tls.certificates[0].key.pem(), key);
    }
}

#[test]
fn data_is_base64() {
    use base64::Engine as _;
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let (chain, key) = pair();
    let text = secret("default", &encode(&chain), &encode(&key)).replace("stringData", "data");
    let state = good(&(https("certificateRefs: [{name: cert}]") + &text));
    assert_eq!(state.model.listeners[0].tls.as_ref().expect("it ends TLS").certificates[0].key.pem(), key);
    for (text, start, part) in [
        (secret("default", "*", &encode(&key)), "6 data[\"tls.crt\"]: ", "no base64"),
        (secret("default", &encode(&chain), "/w=="), "6 data[\"tls.key\"]: ", "no PEM, which is text"),
        (
            secret("default", &encode(&chain), "").replace("\"tls.key\":\"\"", ""),
            "5 data[\"tls.key\"]: ",
            "needs tls.key",
        ),
    ] {
        check_bad(&text.replace("stringData", "data").replace(",}", "}"), start, part);
    }
}

#[test]
fn a_bad_secret_keeps_what_was_there() {
    let ((chain, key), (_, other)) = (pair(), pair());
    let text = |key: &str| https("certificateRefs: [{name: cert}]") + &secret("default", &chain, key);
    let state = good(&text(&key));
    let files = vec![super::file("0.yaml", super::SHOP), super::file("1.yaml", &text(&other))];
    let after = super::load(&state, files);
    let said = messages(&after.report, Severity::Error);
    assert!(
        said[0].contains("stringData[\"tls.key\"]: tls.key: the key is not that of the certificate"),
        "{said:?}"
    );
    let listener = &after.model.listeners[0];
    assert_eq!(listener.tls.as_ref().expect("it ends TLS").certificates[0].key.pem(), key);
}

/// A certificate that holds from a year to another, and its key.
fn pair_of(from: i32, until: i32) -> (String, String) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec!["a.test".to_owned()]).expect("names");
    (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(until, 1, 1));
    (params.self_signed(&key).expect("signs").pem(), key.serialize_pem())
}

#[test]
fn a_certificate_that_has_ended_does_not_take_the_place_of_one_that_holds() {
    let year = |year: u64| SystemTime::UNIX_EPOCH + Duration::from_hours((year - 1970) * 24 * 366);
    let (ended, held) = (pair_of(2001, 2002), pair_of(2001, 2090));
    let load = |before: &State, (chain, key): &(String, String), now| {
        let text = https("certificateRefs: [{name: cert}]") + &secret("default", chain, key);
        load_at(before, vec![super::file("0.yaml", super::SHOP), super::file("1.yaml", &text)], now)
    };
    let shown = |state: &State| {
        state.model.listeners[0].tls.as_ref().expect("it ends TLS").certificates[0].chain.to_string()
    };
    let told = |state: &State, severity| messages(&state.report, severity);
    let now = year(2026);
    let good = load(&State::default(), &held, now);
    assert_eq!((shown(&good), told(&good, Severity::Warning)), (held.0.clone(), vec![]));
    let after = load(&good, &ended, now);
    assert_eq!(shown(&after), held.0, "the one that holds stays");
    let expected = "11 stringData[\"tls.crt\"]: tls.crt: the certificate has ended at 2002-01-01T00:00:00";
    assert!(told(&after, Severity::Error)[0].starts_with(expected), "{:?}", told(&after, Severity::Error));
    // A better one than the one that is there takes its place, and where there is none it is what there is.
    let again = pair_of(2001, 2003);
    for (before, next, now) in [
        (&State::default(), &ended, now),
        (&load(&State::default(), &ended, now), &again, now),
        (&good, &ended, year(2095)),
        (&after, &pair_of(2002, 2095), now),
    ] {
        let state = load(before, next, now);
        assert_eq!(shown(&state), next.0);
        assert_eq!(told(&state, Severity::Error), [""; 0]);
    }
}

#[test]
fn references_are_followed_only_where_they_may() {
    let (chain, key) = pair();
    let check = |refs: &str, further: &str, expected: Option<&str>| {
        let text = https(&format!("certificateRefs: [{refs}]")) + further;
        let state = load_in_shop(&text);
        let said = messages(&state.report, Severity::Warning);
        match expected {
            None => assert_eq!(said, [""; 0], "{refs}"),
            Some(part) => assert!(said.iter().any(|text| text.contains(part)), "{refs}: {said:?}"),
        }
        let tls = state.model.listeners[0].tls.as_ref().expect("never without TLS");
        assert_eq!(tls.certificates.len(), usize::from(expected.is_none()), "{refs}");
    };
    let grant = |from: &str, to: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: vault}}\nspec: {{from: [{{group: gateway.networking.k8s.io, kind: {from}, namespace: default}}], to: [{{group: '', {to}}}]}}\n---\n"
        )
    };
    let (here, there) = (secret("default", &chain, &key), secret("vault", &chain, &key));
    let foreign = "{name: cert, namespace: vault}";
    check("{name: cert}", &here, None);
    check("{group: '', kind: Secret, name: cert}", &here, None);
    check("{name: other}", &here, Some("there is no valid Secret default/other"));
    check("{kind: ConfigMap, name: cert}", &here, Some("only a Secret"));
    check("{group: x.io, name: cert}", &here, Some("only a Secret"));
    check(foreign, &there, Some("no ReferenceGrant lets Gateways of default refer to vault/cert"));
    check(foreign, &(there.clone() + &grant("Gateway", "kind: Secret")), None);
    check(foreign, &(there.clone() + &grant("Gateway", "kind: Secret, name: cert")), None);
    check(foreign, &(there.clone() + &grant("Gateway", "kind: Secret, name: x")), Some("no ReferenceGrant"));
    check(foreign, &(there.clone() + &grant("HTTPRoute", "kind: Secret")), Some("no ReferenceGrant"));
    check(foreign, &(there + &grant("Gateway", "kind: Service")), Some("no ReferenceGrant"));
    let opaque = here.replace("kubernetes.io/tls", "Opaque");
    check("{name: cert}", &opaque, Some("is not of the type kubernetes.io/tls"));
}

#[test]
fn clients_are_checked_as_the_listener_its_port_or_its_gateway_says() {
    let (chain, key) = pair();
    let bundle = |name: &str| {
        let data = serde_json::json!({"ca.crt": chain});
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {data}\n---\n")
    };
    let validation = |name: &str, mode: &str| {
        format!("{{caCertificateRefs: [{{group: '', kind: ConfigMap, name: {name}}}]{mode}}}")
    };
    let listener = |name: &str, port: u16, own: &str| {
        format!(
            "{{name: {name}, port: {port}, protocol: HTTPS, tls: {{certificateRefs: [{{name: cert}}]{own}}}}}"
        )
    };
    let own = format!(", frontendValidation: {}", validation("own", ""));
    let listeners =
        [listener("a", 1, &own), listener("b", 2, ""), listener("c", 3, ""), listener("d", 4, "")];
    let frontend = format!(
        "tls: {{frontend: {{default: {{validation: {}}}, perPort: [{{port: 2, tls: {{validation: {}}}}}, {{port: 3, tls: {{}}}}]}}}}, ",
        validation("all", ""),
        validation("of-port", ", mode: AllowInsecureFallback"),
    );
    let text = |frontend: &str| {
        let gateway = gateway(&listeners.join(", ")).replace("listeners:", &format!("{frontend}listeners:"));
        gateway + &secret("default", &chain, &key)
    };
    let state = good(&(text(&frontend) + &bundle("own") + &bundle("of-port") + &bundle("all")));
    let clients = |state: &crate::config::State| -> Vec<Option<(usize, ClientMode)>> {
        let listeners = state.model.listeners.iter();
        let clients = listeners.map(|listener| listener.tls.as_ref()?.clients.as_ref());
        clients.map(|clients| clients.map(|clients| (clients.roots.len(), clients.mode))).collect()
    };
    let required = Some((1, ClientMode::Required));
    assert_eq!(clients(&state), [required, Some((1, ClientMode::Optional)), None, required]);
    // Where a bundle is missing nobody is believed.
    let state = load_in_shop(&(text(&frontend) + &bundle("own") + &bundle("all")));
    assert_eq!(clients(&state), [required, Some((0, ClientMode::Optional)), None, required]);
    let field = "4 spec.tls.frontend.perPort[0].tls.validation.caCertificateRefs[0]: ";
    let missing = text(&frontend) + &bundle("own") + &bundle("all");
    check_bad(
        &missing,
        field,
        "there is no valid ConfigMap default/of-port with ca.crt: every client is refused",
    );
    let secret_kind = text(&frontend.replace("kind: ConfigMap, name: all", "kind: Secret, name: all"));
    check_bad(&secret_kind, "4 spec.tls.frontend.default", "only a ConfigMap can hold CA certificates");
    check_bad(
        &bundle("own").replace("CERTIFICATE", "NOTHING"),
        "4 data[\"ca.crt\"]: ",
        "holds no certificate",
    );
}

#[test]
fn bad_listeners_name_their_field() {
    let check = |tls: &str, field: &str, part: &str| check_bad(&https(tls), &format!("4 {field}: "), part);
    let list = "spec.listeners[0].tls.certificateRefs";
    check("", list, "needs a certificate");
    check("mode: Passthrough", "spec.listeners[0].tls.mode", "HTTPS ends TLS");
    check("mode: Off", "spec.listeners[0].tls.mode", "is none of");
    let with = |options: &str| format!("certificateRefs: [{{name: c}}], options: {{{options}}}");
    let option = |name: &str| format!("spec.listeners[0].tls.options[\"sluice.dev/{name}\"]");
    check(&with("sluice.dev/min-tls-version: '1.1'"), &option("min-tls-version"), "is none of 1.2, 1.3");
    check(&with("sluice.dev/ciphers: x"), &option("ciphers"), "no such option");
    check_bad(&gateway("{name: a, port: 443, protocol: HTTPS}"), "4 spec.listeners[0].tls: ", "needs tls");
    let plain = gateway("{name: a, port: 80, protocol: HTTP, tls: {certificateRefs: [{name: c}]}}");
    check_bad(&plain, "4 spec.listeners[0].tls: ", "has no tls");
    let (chain, key) = pair();
    let both = gateway(
        "{name: a, port: 443, protocol: HTTP}, {name: b, port: 443, protocol: HTTPS, hostname: b.test, tls: {certificateRefs: [{name: cert}]}}",
    ) + &secret("default", &chain, &key);
    check_bad(&both, "4 spec.listeners[1]: ", "speaks another protocol for default/edge/a");
    assert_eq!(load_in_shop(&both).model.listeners.len(), 1);
}
