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
use edge_tls::{Issued, Pki, Server, TLS_PORT, curl_output, indented, secret};
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

/// What asks for certificates of clients, and a Gateway before it that shows it none: for HTTP, and for what comes out of TLS.
fn refusing(pki: &Pki, protocol: &str, backend: SocketAddr) -> Result<Site> {
    let ending = format!(
        "  - {{name: ends, port: {TLS_PORT}, protocol: TLS, allowedRoutes: {{namespaces: {{from: All}}}}, \
         tls: {{mode: Terminate, certificateRefs: [{{name: edge}}]}}}}\n"
    );
    let opaque = "---\napiVersion: gateway.networking.k8s.io/v1alpha2\nkind: TLSRoute\nmetadata: {name: r, namespace: default}\n\
                  spec:\n  parentRefs: [{name: edge, namespace: infra, sectionName: ends}]\n  hostnames: [a.test]\n  \
                  rules: [{backendRefs: [{name: web, port: 80}]}]\n";
    let http = route("r", "", "  - backendRefs: [{name: web, port: 80}]\n");
    let http = http.replace("namespace: infra}]", "namespace: infra, sectionName: http}]");
    let services = service("default", "web", 80, &[backend]);
    Site::new(&[
        ("gateway.yaml", &gateway(&(OPEN.to_owned() + &ending))),
        ("secret.yaml", &secret("edge", &pki.issue("edge", &["a.test"])?)),
        ("services.yaml", &services.replace("appProtocol: http", &format!("appProtocol: {protocol}"))),
        ("bundle.yaml", &bundle(&fs::read_to_string(pki.root())?)),
        ("policy.yaml", &policy("web.internal")),
        ("routes.yaml", &(http + opaque)),
    ])
}

/// With TLS 1.3 the agent's handshake is over before the backend looks at what it was shown.
#[test]
fn backends_that_refuse_what_they_are_shown_are_told_apart_from_those_that_leave() -> Result<()> {
    const TRIES: usize = 5;
    let pki = Pki::new()?;
    let root = pki.root().display().to_string();
    let asks = ["-Verify", "1", "-verify_return_error", "-alpn", "h2,http/1.1", "-CAfile", &root];
    let issued = pki.issue("web", &["web.internal"])?;
    for (version, protocol) in [("-tls1_2", "http"), ("-tls1_3", "http"), ("-tls1_3", "kubernetes.io/h2c")] {
        let what = format!("{version} {protocol}");
        let server = Server::start(&issued, &[&asks[..], &[version]].concat())?;
        let site = refusing(&pki, protocol, server.address)?;
        let agent = site.start(&[])?;
        let url = format!("http://{}/", site.at(PORT));
        for client in ["--http1.1", "--http2-prior-knowledge"] {
            for turn in 0..TRIES {
                let asked = ["-sS", "--max-time", "20", "-H", "Host: a.test", "-D", "-", client, &url];
                let got = lab::exec::stdout(&mut lab::exec::command("curl", asked))?;
                ensure!(got.contains("upstream_tls_refused"), "{what} {client} {turn}: {got}");
            }
        }
        // The client's own TLS is none of the backend's.
        for _ in 0..TRIES {
            let got = curl_output(&pki.root(), site.at(TLS_PORT), "a.test", "/", &["--http1.1"])?;
            ensure!(!got.status.success(), "{what}: {got:?}");
        }
        let logged = |kind: &str, details: &str| {
            let lines = site.access().unwrap_or_default();
            let refused = |line: &&serde_json::Value| {
                line["message"] == kind
                    && line["response_flags"] == "UF"
                    && line[details] == "upstream_tls_refused"
            };
            lines.iter().filter(refused).count()
        };
        wait_for("the lines of requests", LIMIT, || logged("request", "response_code_details") == 2 * TRIES)
            .with_context(|| format!("{what}: {:?}", site.access()))?;
        wait_for("the lines of connections", LIMIT, || {
            logged("connection", "connection_termination_details") == TRIES
        })
        .with_context(|| format!("{what}: {:?}", site.access()))?;
        let counted = agent.scrape()?.sum("istio_requests_total", &[("response_flags", "UF")]);
        ensure!((counted - 10.0).abs() < 0.1, "{what}: {counted}");
    }
    Ok(())
}
