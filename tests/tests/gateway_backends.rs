//! TLS from Gateways to backends, here nginx: who is believed, what is spoken within, and how failures are told.

mod common;
mod edge;
mod edge_tls;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use common::{LIMIT, TIMEOUT};
use edge::{OPEN, PORT, gateway, route, send, send_on};
use edge_tls::{Issued, Pki, indented};
use lab::backend::{echo, listen, raw};
use lab::http::Connection;
use lab::loopback::{Site, service};
use lab::{wait_for, wait_until};

/// An nginx that ends TLS, until it is dropped.
struct Nginx {
    child: Child,
    address: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Nginx {
    fn start(issued: &Issued) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("sluice-nginx-").tempdir()?;
        let address = listen()?.local_addr()?;
        let path = directory.path().display();
        let config = format!(
            "daemon off; worker_processes 1; pid {path}/pid; error_log {path}/error.log;\nevents {{}}\nhttp {{\n  \
             access_log off; client_body_temp_path {path}/b; proxy_temp_path {path}/p; fastcgi_temp_path {path}/f; \
             uwsgi_temp_path {path}/u; scgi_temp_path {path}/s;\n  server {{\n    listen {address} ssl;\n    \
             ssl_certificate {}; ssl_certificate_key {}; ssl_protocols TLSv1.2 TLSv1.3;\n    \
             location / {{ return 200 \"$ssl_server_name $ssl_protocol $connection_requests $http_host\"; }}\n  }}\n}}\n",
            issued.chain_path.display(),
            issued.key_path.display(),
        );
        let file = directory.path().join("nginx.conf");
        fs::write(&file, config)?;
        let child = Command::new("nginx")
            .arg("-c")
            .arg(&file)
            .arg("-p")
            .arg(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting nginx")?;
        let nginx = Self { child, address, _directory: directory };
        wait_for("nginx", LIMIT, || TcpStream::connect_timeout(&address, TIMEOUT).is_ok())?;
        Ok(nginx)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Its master ends its worker on SIGTERM, which a kill would leave behind.
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        }
        let _ = self.child.wait();
    }
}

fn bundle(pem: &str) -> String {
    let block = indented(pem);
    format!(
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: ca, namespace: default}}\ndata:\n  ca.crt: |\n{block}"
    )
}

fn policy(hostname: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{name: p, namespace: default}}\n\
         spec:\n  targetRefs: [{{group: \"\", kind: Service, name: web}}]\n  validation:\n    hostname: {hostname}\n    \
         caCertificateRefs: [{{group: \"\", kind: ConfigMap, name: ca}}]\n"
    )
}

#[test]
fn of_several_names_backends_prove_one_instead_of_the_one_they_are_asked_by() -> Result<()> {
    let pki = Pki::new()?;
    let nginx =
        Nginx::start(&pki.issue("web", &["web.internal", "*.wild.internal", "spiffe://x.test/web"])?)?;
    let named = |names: &str| format!("{}    subjectAltNames: [{names}]\n", policy("other.internal"));
    let uri = |uri: &str| format!("{{type: URI, uri: \"{uri}\"}}");
    let host = |name: &str| format!("{{type: Hostname, hostname: {name}}}");
    let site = Site::new(&[
        ("gateway.yaml", &gateway(OPEN)),
        ("services.yaml", &service("default", "web", 80, &[nginx.address])),
        ("bundle.yaml", &bundle(&fs::read_to_string(pki.root())?)),
        ("policy.yaml", &named(&host("first.internal"))),
        ("routes.yaml", &route("r", "", "  - backendRefs: [{name: web, port: 80}]\n")),
    ])?;
    let agent = site.start(&[])?;
    let at = site.at(PORT);
    let cases = [
        (host("web.internal"), 200),
        (host("api.web.internal"), 503),
        (host("a.wild.internal"), 200),
        (uri("spiffe://x.test/web"), 200),
        (uri("spiffe://x.test/we"), 503),
        (uri("spiffe://x.test/web/"), 503),
        // The name that is asked for proves nothing any more.
        (host("other.internal"), 503),
        ([uri("spiffe://x.test/no"), host("web.internal")].join(", "), 200),
    ];
    for (names, expected) in cases {
        agent.apply("policy.yaml", &named(&names))?;
        wait_until(&names, LIMIT, || {
            let seen = send(at, "a.test", "/", &[]).ok()?;
            let told = seen.got("proxy-status").concat();
            let asked = seen.response.text().starts_with("other.internal ");
            let as_expected = match expected {
                200 => asked,
                _ => told.contains("details=\"upstream_tls_wrong_name\""),
            };
            (seen.response.status == expected && as_expected).then_some(())
        })
        .with_context(|| format!("{names}: {:?}", send(at, "a.test", "/", &[])))?;
    }
    Ok(())
}

#[test]
fn backends_are_asked_by_name_and_believed_by_their_ca() -> Result<()> {
    let (pki, strangers) = (Pki::new()?, Pki::new()?);
    let root = fs::read_to_string(pki.root())?;
    let nginx = Nginx::start(&pki.issue("web", &["web.internal"])?)?;
    let site = Site::new(&[
        ("gateway.yaml", &gateway(OPEN)),
        ("services.yaml", &service("default", "web", 80, &[nginx.address])),
        ("bundle.yaml", &bundle(&root)),
        ("policy.yaml", &policy("web.internal")),
        ("routes.yaml", &route("r", "", "  - backendRefs: [{name: web, port: 80}]\n")),
    ])?;
    let agent = site.start(&[])?;
    let at = site.at(PORT);
    // The upstream's connection is kept, whatever tickets come on it; one client's requests are one worker's.
    let mut client = Connection::open(at, TIMEOUT)?;
    for count in 1..=5 {
        let seen = send_on(&mut client, "a.test", "/", &[])?;
        let expected = format!("web.internal TLSv1.3 {count} a.test");
        ensure!(seen.response.text() == expected, "{} and not {expected}", seen.response.text());
    }
    let refused = |reason: &str| -> Result<()> {
        wait_until(reason, LIMIT, || {
            let seen = send(at, "a.test", "/", &[]).ok()?;
            let told = seen.got("proxy-status").concat();
            (seen.response.status == 503 && told.contains(&format!("details=\"{reason}\""))).then_some(())
        })
        .with_context(|| format!("{reason}: {:?}", send(at, "a.test", "/", &[])))
    };
    agent.apply("policy.yaml", &policy("other.internal"))?;
    refused("upstream_tls_wrong_name")?;
    agent.apply("policy.yaml", &policy("web.internal"))?;
    ensure!(send(at, "a.test", "/", &[])?.response.status == 200);
    agent.apply("bundle.yaml", &bundle(&fs::read_to_string(strangers.root())?))?;
    refused("upstream_tls_unknown_issuer")?;
    agent.apply("bundle.yaml", "# nothing is here\n")?;
    refused("upstream_tls_no_ca")?;
    wait_for("the reason in the report", LIMIT, || {
        agent.status().is_ok_and(|status| status.to_string().contains("InvalidCACertificateRef"))
    })?;
    agent.apply("bundle.yaml", &bundle(&root))?;
    ensure!(send(at, "a.test", "/", &[])?.response.status == 200);
    // Backends that speak plaintext are not spoken to, whether they answer or not.
    let answering = raw(listen()?, |mut stream| {
        let mut first = [0; 5];
        if stream.read_exact(&mut first).is_ok() {
            // The agent may have left.
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
        }
    })?;
    for (backend, reason) in [(answering, "upstream_not_tls"), (echo("web")?, "upstream_tls_closed")] {
        agent.apply("services.yaml", &service("default", "web", 80, &[backend]))?;
        refused(reason)?;
    }
    agent.apply("policy.yaml", "# nothing is here\n")?;
    ensure!(edge::send(at, "a.test", "/", &[])?.who() == "web");
    Ok(())
}
