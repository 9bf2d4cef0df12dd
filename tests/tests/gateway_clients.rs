//! Certificates of clients of Gateways, judged by `openssl` and `curl`: who is let in, and what upstreams are told of whom.

mod common;
mod edge;
mod edge_tls;

use anyhow::{Context, Result, ensure};
use common::LIMIT;
use edge::{gateway, route, services};
use edge_tls::{Got, Issued, Pki, TLS_PORT, curl, curl_output, handshakes, https, indented, secret};
use lab::loopback::Site;
use lab::{exec, wait_for, wait_until};

const FIELD: &str = "x-forwarded-client-cert";

/// A Gateway that asks clients for certificates of the bundle `clients`.
fn asking(mode: &str) -> String {
    let frontend = format!(
        "  tls: {{frontend: {{default: {{validation: {{caCertificateRefs: [{{group: \"\", kind: ConfigMap, name: clients}}], mode: {mode}}}}}}}}}\n"
    );
    gateway(&https("tls", "", &["server"], "")).replace("  listeners:\n", &(frontend + "  listeners:\n"))
}

fn bundle(pem: &str) -> String {
    let block = indented(pem);
    format!(
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: clients, namespace: infra}}\ndata:\n  ca.crt: |\n{block}"
    )
}

/// Asks with a client's certificate and fields.
fn ask(pki: &Pki, site: &Site, client: Option<&Issued>, further: &[&str]) -> Result<Got> {
    let paths =
        client.map(|client| (client.chain_path.display().to_string(), client.key_path.display().to_string()));
    let mut arguments = further.to_vec();
    if let Some((chain, key)) = &paths {
        arguments.extend(["--cert", chain, "--key", key]);
    }
    curl(&pki.root(), site.at(TLS_PORT), "a.test", "/", &arguments)
}

/// Has a client refused that speaks HTTP/2 over TLS 1.3. It sends its preface and its request behind its certificate, before the
/// alert can come, and has to read that alert all the same; as it depends on who is faster, it tries some times.
fn is_told_why(pki: &Pki, site: &Site, client: Option<&Issued>) -> Result<()> {
    let paths =
        client.map(|client| (client.chain_path.display().to_string(), client.key_path.display().to_string()));
    let body = "x".repeat(32 * 1024);
    let mut arguments = vec!["--http2", "--tlsv1.3", "--data-binary", &body];
    if let Some((chain, key)) = &paths {
        arguments.extend(["--cert", chain, "--key", key]);
    }
    for turn in 0..8 {
        let got = curl_output(&pki.root(), site.at(TLS_PORT), "a.test", "/", &arguments)?;
        let said = String::from_utf8_lossy(&got.stderr);
        ensure!(!got.status.success() && said.contains("alert"), "try {turn}: {said}");
    }
    Ok(())
}

/// The hash that Envoy writes, as `openssl` has it.
fn hash(client: &Issued) -> Result<String> {
    let said = exec::stdout(
        exec::command("openssl", ["x509", "-noout", "-fingerprint", "-sha256", "-in"])
            .arg(&client.chain_path),
    )?;
    let (_, hex) = said.trim().split_once('=').context("no fingerprint")?;
    Ok(hex.replace(':', "").to_lowercase())
}

#[test]
fn valid_clients_alone_are_let_in_and_named() -> Result<()> {
    let (pki, strangers) = (Pki::new()?, Pki::new()?);
    let root = std::fs::read_to_string(pki.root())?;
    let site = Site::new(&[
        ("gateway.yaml", &asking("AllowValidOnly")),
        ("secret.yaml", &secret("server", &pki.issue("server", &["a.test"])?)),
        ("bundle.yaml", &bundle(&root)),
        ("services.yaml", &services(&["web"])?),
        ("routes.yaml", &route("r", "", "  - backendRefs: [{name: web, port: 80}]\n")),
    ])?;
    let agent = site.start(&[])?;
    let client = pki.issue("alice", &["alice.test", "other.test"])?;
    let expected = format!("Hash={};Subject=\"CN=alice\";DNS=alice.test;DNS=other.test", hash(&client)?);
    for version in ["--http1.1", "--http2"] {
        for tls in ["1.2", "1.3"] {
            // What the client says of itself is not believed.
            let got = ask(
                &pki,
                &site,
                Some(&client),
                &[version, "--tls-max", tls, "-H", "X-Forwarded-Client-Cert: Hash=1;Subject=\"CN=root\""],
            )?;
            ensure!(got.who() == "web" && got.sent(FIELD) == [&*expected], "{version} {tls}: {got:?}");
        }
    }
    let logged = wait_until("the line of a request", LIMIT, || site.access().ok()?.into_iter().next())?;
    ensure!(logged["downstream_peer_subject"] == "CN=alice", "{logged}");
    ensure!(handshakes(&agent, "ok_resumed")? < 0.1, "a session was resumed");
    // Others are refused, each for its reason.
    let foreign = strangers.issue("alice", &["alice.test"])?;
    let (ca, old) = (strangers.itself()?, pki.issue_v1("old")?);
    for (client, reason) in [
        (None, "no_certificate"),
        (Some(&foreign), "unknown_issuer"),
        (Some(&ca), "ca_certificate"),
        (Some(&old), "malformed"),
    ] {
        ensure!(ask(&pki, &site, client, &[]).is_err(), "{reason} was let in");
        is_told_why(&pki, &site, client).with_context(|| format!("of {reason}"))?;
        wait_until(reason, LIMIT, || handshakes(&agent, reason).ok().filter(|count| *count > 8.9))
            .with_context(|| format!("{reason} is not counted"))?;
        let details = format!("tls_{reason}");
        wait_until(reason, LIMIT, || {
            let lines = site.access().ok()?;
            lines.into_iter().find(|line| line["response_code_details"] == *details)
        })?;
    }
    // A bad bundle changes nothing.
    site.write("bundle.yaml", &bundle("nothing"))?;
    wait_until("the refusal", LIMIT, || {
        agent.status().ok().filter(|status| status.to_string().contains("ca.crt: holds no certificate"))
    })?;
    ensure!(ask(&pki, &site, Some(&client), &[])?.who() == "web");
    // Without the bundle nobody is let in.
    agent.apply("bundle.yaml", "# nothing is here\n")?;
    wait_for("the reason in the report", LIMIT, || {
        agent.status().is_ok_and(|status| status.to_string().contains("InvalidCACertificateRef"))
    })?;
    ensure!(ask(&pki, &site, Some(&client), &[]).is_err(), "let in without a bundle");
    Ok(())
}

#[test]
fn with_the_fallback_everybody_is_let_in_and_the_valid_are_named() -> Result<()> {
    let (pki, strangers) = (Pki::new()?, Pki::new()?);
    let root = std::fs::read_to_string(pki.root())?;
    let site = Site::new(&[
        ("gateway.yaml", &asking("AllowInsecureFallback")),
        ("secret.yaml", &secret("server", &pki.issue("server", &["a.test"])?)),
        ("bundle.yaml", &bundle(&root)),
        ("services.yaml", &services(&["web"])?),
        ("routes.yaml", &route("r", "", "  - backendRefs: [{name: web, port: 80}]\n")),
    ])?;
    // Even where clients are believed in other things.
    let _agent = site.start(&["--set", "gateway.http.trust-forwarded=on"])?;
    let valid = pki.issue("alice", &["alice.test"])?;
    let foreign = strangers.issue("mallory", &["alice.test"])?;
    let claim = ["-H", "x-forwarded-client-cert: Subject=\"CN=root\""];
    for (client, named) in [(None, false), (Some(&foreign), false), (Some(&valid), true)] {
        let got = ask(&pki, &site, client, &claim)?;
        let told = got.sent(FIELD);
        ensure!(got.who() == "web", "{got:?}");
        ensure!(told.len() == usize::from(named), "{named}: {told:?}");
        ensure!(told.iter().all(|told| told.contains("Subject=\"CN=alice\"")), "{told:?}");
    }
    // A certificate whose key the client has not is no certificate.
    let (chain, key) = (valid.chain_path.display().to_string(), foreign.key_path.display().to_string());
    let stolen =
        curl_output(&pki.root(), site.at(TLS_PORT), "a.test", "/", &["--cert", &chain, "--key", &key])?;
    ensure!(!stolen.status.success(), "{stolen:?}");
    Ok(())
}
