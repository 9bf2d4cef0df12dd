//! TLS that ends at Gateways, judged by `testssl.sh`: versions, ciphers, forward secrecy, the certificate, and known weaknesses.

mod edge;
mod edge_tls;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use edge::{gateway, route, services};
use edge_tls::{Pki, TLS_PORT, https, secret};
use lab::loopback::Site;
use serde_json::Value;

/// What it finds that is no listener's: the certificates of the tests hold for a month, and say nowhere whether they were taken
/// back.
const OF_THE_CERTIFICATE: &[&str] = &["cert_revocation", "cert_expirationStatus", "cert_notAfter"];
/// What it calls grave.
const GRAVE: &[&str] = &["HIGH", "CRITICAL", "FATAL"];

/// What no listener has.
const WEAKNESSES: &[&str] = &[
    "heartbleed",
    "ticketbleed",
    "secure_client_renego",
    "CRIME_TLS",
    "POODLE_SSL",
    "SWEET32",
    "FREAK",
    "BEAST",
];

/// What it finds of a listener: severity and finding by id.
type Found = BTreeMap<String, (String, String)>;

fn judge(pki: &Pki, at: SocketAddr, checks: &[&str]) -> Result<Found> {
    let report = pki.path("testssl.json");
    let _ = fs::remove_file(&report);
    let output = Command::new("testssl")
        .args(["--quiet", "--warnings", "off", "--color", "0", "--nodns", "none", "--sneaky"])
        .args(["--openssl-timeout", "5", "--connect-timeout", "5"])
        .args(["--ip", &at.ip().to_string(), "--add-ca"])
        .arg(pki.root())
        .arg("--jsonfile")
        .arg(&report)
        .args(checks)
        .arg(format!("a.test:{}", at.port()))
        .env("TERM", "dumb")
        .stdin(Stdio::null())
        .output()
        .context("running testssl")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let text = fs::read_to_string(&report).with_context(|| format!("testssl wrote no report: {said}"))?;
    let report: Value = serde_json::from_str(&text).with_context(|| format!("testssl wrote {text}"))?;
    let findings = report.as_array().context("the report is no list")?;
    let word = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let one = |finding| (word(finding, "id"), (word(finding, "severity"), word(finding, "finding")));
    Ok(findings.iter().map(one).collect())
}

/// Fails unless nothing grave was found, and each of these findings begins so.
fn check(found: &Found, expected: &[(&str, &str)]) -> Result<()> {
    let grave: Vec<_> = found
        .iter()
        .filter(|(id, (severity, _))| {
            GRAVE.contains(&severity.as_str()) && !OF_THE_CERTIFICATE.contains(&id.as_str())
        })
        .collect();
    ensure!(grave.is_empty(), "testssl.sh finds {grave:#?}");
    for (id, begin) in expected {
        let (_, finding) = found.get(*id).with_context(|| format!("nothing on {id} in {found:#?}"))?;
        ensure!(finding.starts_with(begin), "{id}: {finding:?} and not {begin:?}");
    }
    Ok(())
}

fn site(pki: &Pki, further: &str) -> Result<Site> {
    let issued = pki.issue("simple", &["a.test", "b.test"])?;
    Site::new(&[
        ("gateway.yaml", &gateway(&https("tls", "", &["simple"], further))),
        ("secret.yaml", &secret("simple", &issued)),
        ("services.yaml", &services(&["web"])?),
        ("routes.yaml", &route("r", "", "  - backendRefs: [{name: web, port: 80}]\n")),
    ])
}

#[test]
fn a_listener_offers_nothing_that_is_known_to_be_weak() -> Result<()> {
    let pki = Pki::new()?;
    let site = site(&pki, "")?;
    let _agent = site.start(&[])?;
    // Versions, ciphers by strength, forward secrecy, the certificate, then weaknesses by name.
    let checks = ["-p", "-s", "-f", "-S", "-H", "-I", "-T", "-R", "-C", "-O", "-Z", "-W", "-F", "-A"];
    let found = judge(&pki, site.at(TLS_PORT), &checks)?;
    let expected = [
        ("SSLv2", "not offered"),
        ("SSLv3", "not offered"),
        ("TLS1", "not offered"),
        ("TLS1_1", "not offered"),
        ("TLS1_2", "offered"),
        ("TLS1_3", "offered with final"),
        ("cipherlist_NULL", "not offered"),
        ("cipherlist_aNULL", "not offered"),
        ("cipherlist_EXPORT", "not offered"),
        ("cipherlist_LOW", "not offered"),
        ("cipherlist_3DES_IDEA", "not offered"),
        ("cipherlist_STRONG", "offered"),
        ("cert_commonName", "simple"),
        ("cert_subjectAltName", "a.test b.test"),
        ("cert_trust", "Ok via SAN"),
        ("cert_chain_of_trust", "passed"),
    ];
    check(&found, &expected)?;
    // Some are told by what does not happen within a time: `likely not vulnerable (timed out)`.
    for id in WEAKNESSES {
        let (_, finding) = found.get(*id).with_context(|| format!("nothing on {id} in {found:#?}"))?;
        ensure!(finding.contains("not vulnerable"), "{id}: {finding:?}");
    }
    Ok(())
}

#[test]
fn a_listener_that_is_told_so_offers_the_newest_version_alone() -> Result<()> {
    let pki = Pki::new()?;
    let site = site(&pki, ", options: {sluice.dev/min-tls-version: \"1.3\"}")?;
    let _agent = site.start(&[])?;
    let found = judge(&pki, site.at(TLS_PORT), &["-p"])?;
    let expected = [
        ("TLS1", "not offered"),
        ("TLS1_1", "not offered"),
        ("TLS1_2", "not offered"),
        ("TLS1_3", "offered with final"),
    ];
    check(&found, &expected)
}
