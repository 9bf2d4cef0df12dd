//! TLS that pods' connections are wrapped in for DestinationRules: what a real nginx in the lab is asked for and shown, whom the
//! agent believes, and that nothing goes in plaintext where TLS can't be had.

mod common;
mod edge_tls;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use common::{LIMIT, Mesh, TIMEOUT};
use edge_tls::{Issued, Pki, indented};
use lab::http::{Response, get};
use lab::{PodSpec, Program, ServiceSpec, Topology, unprivileged, wait_for, wait_until};

const TLS_TARGET: u16 = 8443;
const HTTP: u16 = 80;
const OPAQUE: u16 = 81;
const UNDECLARED: u16 = 82;
const HTTP2: u16 = 83;
/// Where the server speaks HTTP/2 as well.
const HTTP2_TARGET: u16 = 8444;
/// The port of a Gateway of the client's node.
const EDGE: u16 = 8888;

/// An nginx that ends TLS in a pod, until it is dropped.
struct Nginx(Child);

impl Nginx {
    fn start(mesh: &Mesh, pod: &str, issued: &Issued, pki: &Pki) -> Result<Self> {
        let directory = mesh.lab.pod(pod)?.directory();
        fs::create_dir_all(&directory)?;
        let (root, path) = (pki.root().display().to_string(), directory.display());
        let config = format!(
            "daemon off; master_process off; pid {path}/tls.pid; error_log stderr crit;\nevents {{}}\nhttp {{\n  \
             access_log off; client_body_temp_path {path}/b; proxy_temp_path {path}/p; fastcgi_temp_path {path}/f; \
             uwsgi_temp_path {path}/u; scgi_temp_path {path}/s;\n  server {{\n    \
             listen {TLS_TARGET} ssl; listen [::]:{TLS_TARGET} ssl; listen {HTTP2_TARGET} ssl http2; listen [::]:{HTTP2_TARGET} ssl http2;\n    \
             ssl_certificate {}; ssl_certificate_key {}; ssl_protocols TLSv1.2 TLSv1.3; ssl_verify_client optional; ssl_client_certificate {root};\n    \
             location / {{ return 200 \"<$ssl_server_name $ssl_protocol $ssl_client_verify $ssl_alpn_protocol $remote_addr>\"; }}\n  \
             }}\n}}\n",
            issued.chain_path.display(),
            issued.key_path.display(),
        );
        let file = directory.join("tls.conf");
        fs::write(&file, config)?;
        let mut command = mesh.lab.pod(pod)?.command("nginx")?;
        command.arg("-e").arg("stderr").arg("-c").arg(&file).arg("-p").arg(&directory);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("starting nginx")?;
        let nginx = Self(child);
        let to = SocketAddr::new(mesh.pod_ip(pod, 0)?, TLS_TARGET);
        let netns = mesh.lab.pod(pod)?;
        wait_for("nginx", LIMIT, || {
            netns.in_netns(|| TcpStream::connect_timeout(&to, TIMEOUT)).is_ok_and(|io| io.is_ok())
        })?;
        Ok(nginx)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `web` ends TLS itself, on the other node.
fn topology() -> Topology {
    let ports = ServiceSpec::new("web")
        .port("http", HTTP, TLS_TARGET)
        .port("tcp", OPAQUE, TLS_TARGET)
        .undeclared_port(UNDECLARED, TLS_TARGET)
        .port("http2", HTTP2, HTTP2_TARGET);
    Topology::with_nodes(2)
        .pod(PodSpec::new("client", "node1"))
        .pod(PodSpec::new("web", "node2").label("app", "web"))
        .service(ports)
}

fn rule(policy: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: web, namespace: default}}\nspec:\n  \
         host: web\n  trafficPolicy: {policy}\n"
    )
}

fn tls(fields: &str) -> String {
    rule(&format!("{{tls: {{{fields}}}}}"))
}

/// A Secret with CA certificates alone, and one with what a client shows as well.
fn secrets(pki: &Pki, client: &Issued) -> Result<String> {
    let root = indented(&fs::read_to_string(pki.root())?);
    let tls = edge_tls::secret_of("default", "shown", &client.chain, &client.key);
    Ok(format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: ca, namespace: default}}\ntype: Opaque\nstringData:\n  cacert: |\n{root}\
         {tls}  ca.crt: |\n{root}"
    ))
}

/// What a client gets from a port: the answer's body where there is one, else why not.
fn ask(mesh: &Mesh, family: usize, port: u16, host: &str) -> Result<String> {
    let to = mesh.service("web", family, port)?;
    if port == OPAQUE {
        return mesh.lab.pod("client")?.in_netns(|| raw(to, host));
    }
    let answer = mesh.lab.pod("client")?.in_netns(|| get(to, host, "/", TIMEOUT))??;
    let told = answer.header("proxy-status").unwrap_or_default();
    Ok(format!("{} {} {told}", answer.status, answer.text()))
}

/// A request within bytes that the agent does not look at. A reset may come while the client connects, before its request is
/// sent, or after.
fn raw(to: SocketAddr, host: &str) -> String {
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let mut answer = Vec::new();
    let asked = TcpStream::connect_timeout(&to, TIMEOUT).and_then(|mut io| {
        io.set_read_timeout(Some(TIMEOUT))?;
        io.write_all(request.as_bytes())?;
        io.read_to_end(&mut answer)
    });
    match asked {
        Ok(_) => String::from_utf8_lossy(&answer).into_owned(),
        Err(error) => format!("{:?}", error.kind()),
    }
}

/// Waits until a document is in force, as a port's answer shows.
fn expect(mesh: &Mesh, document: &str, cases: &[(u16, &str, &str)]) -> Result<()> {
    mesh.write("rule.yaml", document)?;
    for (port, host, part) in cases {
        for family in 0..2 {
            let mut last = String::new();
            wait_until("the answer", LIMIT, || {
                last = ask(mesh, family, *port, host).unwrap_or_else(|error| format!("{error:#}"));
                last.contains(part).then_some(())
            })
            .with_context(|| {
                format!("port {port}, family {family}, host {host}: {part:?} is not in {last:?}\n{document}")
            })?;
        }
    }
    Ok(())
}

const PLAIN_TO_TLS: &str = "400";
const RESET: &str = "ConnectionReset";

/// A mesh with `web`, whose server has a certificate for some names, and what a client may show.
struct Site {
    // The server goes before the lab does.
    _nginx: Nginx,
    mesh: Mesh,
    /// Its files are in use.
    _pki: Pki,
    client: Issued,
}

impl Site {
    fn up(name: &str) -> Result<Self> {
        let (mesh, pki) = (Mesh::up(name, topology(), &[])?, Pki::new()?);
        let names = ["web.internal", "web.default.svc.cluster.local", "spiffe://x.test/web"];
        let nginx = Nginx::start(&mesh, "web", &pki.issue("web", &names)?, &pki)?;
        let client = pki.issue("client", &["client.internal"])?;
        mesh.write("secrets.yaml", &secrets(&pki, &client)?)?;
        Ok(Self { _nginx: nginx, mesh, _pki: pki, client })
    }
}

/// The same for each of the service's ports.
fn all(host: &'static str, part: &'static str) -> [(u16, &'static str, &'static str); 3] {
    [(HTTP, host, part), (OPAQUE, host, part), (UNDECLARED, host, part)]
}

#[test]
fn pods_speak_the_tls_that_a_rule_asks_for() -> Result<()> {
    if unprivileged("pods_speak_the_tls_that_a_rule_asks_for") {
        return Ok(());
    }
    let Site { mesh, .. } = &Site::up("client_tls")?;
    // Without a rule the server says that it was spoken to in plaintext.
    expect(mesh, "# nothing\n", &all("web.internal", PLAIN_TO_TLS))?;
    let named = tls("mode: SIMPLE, sni: web.internal, credentialName: ca");
    expect(mesh, &named, &all("other.test", "<web.internal TLSv1.3 NONE "))?;
    // What is offered within TLS is what is spoken, and the pod's own address arrives.
    let from = mesh.pod_ip("client", 0)?;
    expect(mesh, &named, &[(HTTP, "web", "NONE http/1.1 "), (OPAQUE, "web", "NONE  ")])?;
    let seen = ask(mesh, 0, HTTP, "web")?;
    ensure!(seen.contains(&format!(" {from}>")), "{seen}");
    // Without a name it is the host's that the client asks for, and of bytes the Service's own.
    let unnamed = tls("mode: SIMPLE, credentialName: ca");
    let cases = [
        (HTTP, "web.internal", "<web.internal TLSv1.3"),
        (UNDECLARED, "web.internal", "<web.internal TLSv1.3"),
        (HTTP, "other.test", "upstream_tls_wrong_name"),
        (OPAQUE, "other.test", "<web.default.svc.cluster.local TLSv1.3"),
    ];
    expect(mesh, &unnamed, &cases)?;
    let shown = tls("mode: MUTUAL, sni: web.internal, credentialName: shown");
    expect(mesh, &shown, &all("web", "<web.internal TLSv1.3 SUCCESS "))?;
    let expiry = "sluice_certificate_expiry_timestamp_seconds{identity=\"secret/default/shown\"}";
    let end = mesh.metric("node1", expiry)?;
    ensure!(end > 1.7e9, "what is shown ends at {end}");
    for (names, part) in [
        ("spiffe://x.test/web", "<other.internal TLSv1.3"),
        ("no.internal, web.internal", "<other.internal TLSv1.3"),
        ("other.internal", "upstream_tls_wrong_name"),
    ] {
        let fields = "mode: SIMPLE, sni: other.internal, credentialName: ca, subjectAltNames";
        expect(mesh, &tls(&format!("{fields}: [{names}]")), &[(HTTP, "web", part)])?;
    }
    let anybody = tls("mode: SIMPLE, sni: any.internal, insecureSkipVerify: true");
    expect(mesh, &anybody, &all("web", "<any.internal TLSv1.3 NONE"))?;
    // Ports have the first word, and inherit nothing.
    let ports = rule(
        "{tls: {mode: SIMPLE, sni: web.internal, credentialName: ca}, portLevelSettings: [{port: {number: 80}, \
         tls: {mode: SIMPLE, sni: web.internal, insecureSkipVerify: true}}, {port: {number: 82}}]}",
    );
    let cases =
        [(HTTP, "web", "<web.internal"), (OPAQUE, "web", "<web.internal"), (UNDECLARED, "web", PLAIN_TO_TLS)];
    expect(mesh, &ports, &cases)
}

/// `web` as a service without an address of its own, and a Gateway before it; the rule is for both services.
fn headless_and_gateway(mesh: &Mesh) -> Result<String> {
    let slice = |family: usize| {
        let ip = mesh.pod_ip("web", family)?;
        Ok::<_, anyhow::Error>(format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: pods-{family}, namespace: default, \
             labels: {{kubernetes.io/service-name: pods}}}}\naddressType: {}\nports: [{{name: http, port: {TLS_TARGET}, protocol: TCP}}]\n\
             endpoints: [{{addresses: ['{ip}'], conditions: {{ready: true}}, targetRef: {{kind: Pod, name: web}}}}]\n",
            ["IPv4", "IPv6"][family]
        ))
    };
    let service = format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: pods, namespace: default}}\nspec: {{clusterIP: None, \
         selector: {{app: web}}, ports: [{{name: http, port: {TLS_TARGET}, appProtocol: http}}]}}\n"
    );
    let gateway = format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: edge, namespace: default}}\nspec: \
         {{gatewayClassName: sluice, listeners: [{{name: http, port: {EDGE}, protocol: HTTP}}]}}\n"
    );
    let route = format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: web, namespace: default}}\nspec: \
         {{parentRefs: [{{name: edge}}], rules: [{{backendRefs: [{{name: web, port: {HTTP}}}]}}]}}\n"
    );
    let terms = "mode: SIMPLE, sni: web.internal, credentialName: ca";
    let other = tls(terms).replace("name: web,", "name: pods,").replace("host: web", "host: pods");
    Ok(format!("{}---\n{other}{service}{}{}{gateway}{route}", tls(terms), slice(0)?, slice(1)?))
}

/// Waits until `ask` gets what the server says to the TLS that the rule asks for: a pod's address is taken by the kernel, a Gateway's port is
/// opened, a moment after the table is in force for services that are captured already.
fn answers(what: &str, ask: impl Fn() -> Result<Response>) -> Result<()> {
    let mut last = String::new();
    wait_until(what, LIMIT, || {
        last = ask().map_or_else(|error| format!("{error:#}"), |answer| answer.text());
        last.contains("<web.internal TLSv1.3").then_some(())
    })
    .with_context(|| format!("{what}: {last}"))
}

#[test]
fn a_rule_holds_for_http2_headless_services_and_gateways() -> Result<()> {
    if unprivileged("a_rule_holds_for_http2_headless_services_and_gateways") {
        return Ok(());
    }
    let Site { mesh, .. } = &Site::up("client_tls_more")?;
    let documents = headless_and_gateway(mesh)?;
    expect(mesh, &documents, &[(HTTP2, "web", "<web.internal TLSv1.3 NONE h2 ")])?;
    for family in 0..2 {
        let pod = SocketAddr::new(mesh.pod_ip("web", family)?, TLS_TARGET);
        let edge = SocketAddr::new(mesh.lab.node("node1")?.address().both()[family], EDGE);
        answers("headless", || {
            Ok(mesh.lab.pod("client")?.in_netns(|| get(pod, "pods", "/", TIMEOUT))??)
        })?;
        answers("Gateway", || Ok(mesh.lab.underlay().enter(|| get(edge, "web", "/", TIMEOUT))??))?;
    }
    // Neither is answered in plaintext where TLS can't be had.
    let unknown = documents.replace("sni: web.internal", "sni: no.internal");
    expect(mesh, &unknown, &[(HTTP2, "web", "upstream_tls_wrong_name")])?;
    let edge = SocketAddr::new(mesh.lab.node("node1")?.address().both()[0], EDGE);
    let pod = SocketAddr::new(mesh.pod_ip("web", 0)?, TLS_TARGET);
    let of_edge = mesh.lab.underlay().enter(|| get(edge, "web", "/", TIMEOUT))??;
    let of_pod = mesh.lab.pod("client")?.in_netns(|| get(pod, "pods", "/", TIMEOUT))??;
    for (what, answer) in [("Gateway", of_edge), ("headless", of_pod)] {
        let told = answer.header("proxy-status").unwrap_or_default();
        ensure!(
            answer.status == 503 && told.contains("upstream_tls_wrong_name"),
            "{what}: {} {told}",
            answer.status
        );
    }
    Ok(())
}

/// What was refused is among the events; what is refused before there is a handshake `why` knows, with the rule.
fn seen(mesh: &Mesh, reason: &str) -> Result<()> {
    let ask = |words: &[&str]| {
        let mut command = mesh.lab.node("node1")?.command(lab::agent::built_binary()?)?;
        lab::exec::stdout(command.args(words))
    };
    for kind in ["drop", "close"] {
        wait_for(&format!("{kind} {reason}"), LIMIT, || {
            ask(&["observe", "--kind", kind, "--verdict", reason]).is_ok_and(|text| text.contains(reason))
        })?;
    }
    let service = mesh.service("web", 0, OPAQUE)?.to_string();
    let opaque = ask(&["why", "client", &service, "-o", "json"])?;
    let opaque: serde_json::Value = serde_json::from_str(&opaque)?;
    ensure!(opaque["upstream"][0]["rule"] == "DestinationRule default/web", "{opaque}");
    let foreseen = ["upstream_tls_no_ca", "upstream_outside_mesh"].contains(&reason);
    ensure!((opaque["verdict"] == "refused") == foreseen, "{opaque}");
    ensure!(!foreseen || opaque["reason"] == reason, "{opaque}");
    Ok(())
}

#[test]
fn where_tls_can_not_be_had_nothing_is_sent() -> Result<()> {
    if unprivileged("where_tls_can_not_be_had_nothing_is_sent") {
        return Ok(());
    }
    let Site { mesh, client, .. } = &Site::up("client_no_tls")?;
    for (fields, reason) in [
        ("mode: SIMPLE, sni: web.internal", "upstream_tls_unknown_issuer"),
        ("mode: SIMPLE, sni: no.internal, credentialName: ca", "upstream_tls_wrong_name"),
        ("mode: MUTUAL, sni: web.internal, credentialName: missing", "upstream_tls_no_ca"),
        ("mode: ISTIO_MUTUAL", "upstream_outside_mesh"),
    ] {
        let cases = [(HTTP, "web", reason), (OPAQUE, "web", RESET), (UNDECLARED, "web", reason)];
        expect(mesh, &tls(fields), &cases)?;
        seen(mesh, reason)?;
    }
    let told = mesh.verb("node1", "status")?.to_string();
    ensure!(told.contains("is not in the mesh"), "{told}");
    mesh.write("secrets.yaml", &secrets(&Pki::new()?, client)?)?;
    let named = tls("mode: SIMPLE, sni: web.internal, credentialName: ca");
    expect(mesh, &named, &[(HTTP, "web", "upstream_tls_unknown_issuer")])?;
    expect(mesh, &tls("mode: DISABLE"), &all("web", PLAIN_TO_TLS))
}

/// Agents with certificates on two nodes; `web` is in the mesh, `bare` is not, `near` is on the client's own node.
fn mesh_with_tunnels(rules: &str) -> Result<Mesh> {
    let labelled =
        PodSpec::new("web", "node2").label("app", "web").label("networking.istio.io/tunnel", "http");
    let ports = |name: &str| ServiceSpec::new(name).port("http", HTTP, 8080).port("tcp", OPAQUE, 8080);
    let topology = Topology::with_nodes(2)
        .pod(PodSpec::new("client", "node1"))
        .pod(labelled.runs(Program::Http { port: 8080 }))
        .pod(PodSpec::new("bare", "node2").label("app", "bare").runs(Program::Http { port: 8080 }))
        .pod(PodSpec::new("near", "node1").label("app", "near").runs(Program::Http { port: 8080 }))
        .service(ports("web"))
        .service(ports("bare"))
        .service(ports("near"));
    Mesh::secured("client_mesh_tls", topology, &[("rules.yaml", rules)], &[])
}

/// A rule for each of the services.
fn rules(mode: &str) -> String {
    let of = |host: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {host}, namespace: default}}\n\
             spec: {{host: {host}, trafficPolicy: {{tls: {{mode: {mode}}}}}}}\n"
        )
    };
    ["web", "bare", "near"].map(of).concat()
}

#[test]
fn the_meshs_own_tls_is_spoken_with_its_pods_and_with_nobody_else() -> Result<()> {
    if unprivileged("the_meshs_own_tls_is_spoken_with_its_pods_and_with_nobody_else") {
        return Ok(());
    }
    let mesh = mesh_with_tunnels(&rules("ISTIO_MUTUAL"))?;
    let ask = |service: &str, port: u16| -> Result<String> {
        let to = mesh.service(service, 0, port)?;
        if port == OPAQUE {
            return mesh.lab.pod("client")?.in_netns(|| raw(to, service));
        }
        let answer = mesh.lab.pod("client")?.in_netns(|| get(to, service, "/", TIMEOUT))??;
        Ok(format!("{} {}", answer.status, answer.header("proxy-status").unwrap_or_default()))
    };
    for (service, port, part) in [
        ("web", HTTP, "200"),
        ("web", OPAQUE, "200 OK"),
        ("near", HTTP, "200"),
        ("near", OPAQUE, "200 OK"),
        ("bare", HTTP, "503 "),
        ("bare", HTTP, "upstream_outside_mesh"),
        ("bare", OPAQUE, RESET),
    ] {
        let seen = ask(service, port)?;
        ensure!(seen.contains(part), "{service}:{port}: {part} is not in {seen:?}");
    }
    let tunnels = mesh.metric("node1", "sluice_tls_handshakes_total{outcome=\"ok\",role=\"client\"}")?;
    ensure!(tunnels >= 1.0, "no tunnel was made");
    // Plaintext that is asked for to who refuses it is told, and pods with tunnels are reached by them all the same.
    let strict = "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict, namespace: default}\n\
                  spec: {mtls: {mode: STRICT}}\n";
    let version = mesh.version("node1")?;
    mesh.write("rules.yaml", &format!("{}{strict}", rules("DISABLE")))?;
    mesh.wait_version_above("node1", version)?;
    let told = mesh.verb("node1", "status")?.to_string();
    ensure!(told.contains("Conflicted") && told.contains("mode STRICT"), "{told}");
    let wire = mesh.lab.node("node2")?.in_netns(|| lab::ethernet::Wire::open("eth0"))??;
    let seen = ask("web", HTTP)?;
    ensure!(seen.contains("200"), "{seen}");
    let (frames, holding) = wire.holding(b"HTTP/1.1")?;
    ensure!(frames > 0 && holding == 0, "{holding} of {frames} frames were plaintext");
    Ok(())
}
