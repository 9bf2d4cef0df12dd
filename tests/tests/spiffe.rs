//! Certificates of pods from a SPIFFE Workload API: one that is built on the published `workload.proto` with grpcio, held
//! against the `spiffe` package of PyPI first.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use common::{LIMIT, Mesh, TIMEOUT};
use lab::agent::{AgentOptions, built_binary};
use lab::documents::replace_file;
use lab::{Lab, PodSpec, Program, ServiceSpec, Topology, exec, unprivileged, wait_for};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P384_SHA384, SanType,
};
use serde_json::{Value, json};

const PEER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/workload_api.py");
const ID: &str = "spiffe://mesh.test/ns/default/sa/default";
const HOUR: Duration = Duration::from_hours(1);
const HTTP: u16 = 80;
const OPAQUE: u16 = 81;
const RAW_TARGET: u16 = 7000;

/// A Python with the `spiffe` package, made where it is missing.
fn python() -> Result<PathBuf> {
    let target = built_binary()?;
    let target = target.parent().and_then(Path::parent).context("the binary lies in target/PROFILE")?;
    let python = target.join("spiffe/bin/python");
    let has_it =
        |python: &PathBuf| exec::run(Command::new(python).args(["-c", "import spiffe, grpc"])).is_ok();
    if !has_it(&python) {
        exec::run(Command::new("python3").args(["-m", "venv"]).arg(target.join("spiffe")))?;
        exec::run(Command::new(&python).args(["-m", "pip", "install", "-q", "spiffe"]))?;
    }
    Ok(python)
}

/// Whether a test is to be skipped for want of it. Says so; CI, which has it, fails instead.
fn without_spiffe(test: &str) -> Result<Option<PathBuf>> {
    match python() {
        Ok(python) => Ok(Some(python)),
        Err(error) if std::env::var_os("CI").is_none() => {
            eprintln!("SKIPPED {test}: the package spiffe can't be installed: {error:#}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// What a SPIRE server has: a root of P-384 that names nobody, and an intermediate below it.
struct Authority {
    root: Vec<u8>,
    between: CertificateParams,
    between_der: Vec<u8>,
    key: KeyPair,
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

impl Authority {
    fn new() -> Result<Self> {
        let (root_key, key) = (KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384)?, KeyPair::generate()?);
        let (root_params, between) = (authority("root"), authority("below"));
        let root = root_params.self_signed(&root_key)?.der().to_vec();
        let signed = between.signed_by(&key, &Issuer::from_params(&root_params, &root_key))?;
        let between_der = signed.der().to_vec();
        Ok(Self { root, between, between_der, key })
    }

    /// A chain, and its key.
    fn svid(&self, id: &str, life: Duration) -> Result<(Vec<u8>, Vec<u8>)> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![SanType::URI(id.try_into()?)];
        params.not_before = SystemTime::now().into();
        params.not_after = (SystemTime::now() + life).into();
        let leaf = params.signed_by(&key, &Issuer::from_params(&self.between, &self.key))?;
        Ok(([&leaf.der()[..], &self.between_der].concat(), key.serialize_der()))
    }
}

/// The API's process, and what it hands out.
struct Api {
    python: PathBuf,
    directory: PathBuf,
    process: Option<Child>,
}

impl Api {
    fn socket(&self) -> String {
        self.directory.join("api.sock").display().to_string()
    }

    fn start(&mut self) -> Result<()> {
        let _ = fs::remove_file(self.socket());
        let mut command = Command::new(&self.python);
        command.args([PEER, "serve", &self.socket()]).arg(&self.directory).stdin(Stdio::null());
        self.process = Some(command.spawn().context("starting the Workload API")?);
        let socket = self.socket();
        wait_for("the Workload API's socket", LIMIT, || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        })
    }

    fn stop(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    }

    /// Hands out these identities from now on.
    fn hand_out(&self, authority: &Authority, svids: &[(&str, Vec<u8>, Vec<u8>)]) -> Result<()> {
        let name = |index: usize, kind: &str| {
            let nanos =
                SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
            format!("{nanos}-{index}.{kind}")
        };
        fs::write(self.directory.join("bundle.der"), &authority.root)?;
        let mut listed = Vec::new();
        for (index, (id, chain, key)) in svids.iter().enumerate() {
            let (chain_file, key_file) = (name(index, "chain"), name(index, "key"));
            fs::write(self.directory.join(&chain_file), chain)?;
            fs::write(self.directory.join(&key_file), key)?;
            listed.push(json!({ "id": id, "chain": chain_file, "key": key_file }));
        }
        let now = json!({ "bundle": "bundle.der", "svids": listed });
        replace_file(&self.directory.join("now.json"), &now.to_string())
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.stop();
    }
}

fn up(api: &Api, name: &str) -> Result<Mesh> {
    let web = PodSpec::new("web", "node2").label("app", "web").label("networking.istio.io/tunnel", "http");
    let topology = Topology::with_nodes(2)
        .pod(PodSpec::new("client", "node1"))
        .pod(web.runs(Program::Http { port: 8080 }))
        .service(ServiceSpec::new("web").port("http", HTTP, 8080).port("tcp", OPAQUE, RAW_TARGET));
    let lab = Lab::for_test(name, topology)?;
    let config = lab.directory().join("config");
    lab.write_documents(&config)?;
    let mut mesh = Mesh { agents: Vec::new(), lab, config };
    for node in ["node1", "node2"] {
        let socket = format!("unix:{}", api.socket());
        let arguments = ["--spiffe-socket", &socket, "--trust-domain", "mesh.test"];
        let agent = mesh.lab.node(node)?.start_agent(&AgentOptions::new(&mesh.config)?.with(arguments))?;
        mesh.agents.push(agent);
    }
    Ok(mesh)
}

fn alerts(mesh: &Mesh, node: &str) -> Result<String> {
    Ok(mesh.verb(node, "status")?["alerts"].to_string())
}

fn held(mesh: &Mesh, node: &str) -> Result<Value> {
    Ok(mesh.verb(node, "status")?["certificates"].clone())
}

fn wait_held(mesh: &Mesh, node: &str, count: usize) -> Result<()> {
    wait_for(&format!("{count} certificates on {node}"), LIMIT, || {
        held(mesh, node).is_ok_and(|held| held.as_array().is_some_and(|held| held.len() == count))
    })
}

fn answers(mesh: &Mesh) -> Result<()> {
    let answer = mesh.get("client", mesh.service("web", 0, HTTP)?, "web", "/")?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
    Ok(())
}

/// What is handed out, as the test's own workloads get it.
fn default_svid(authority: &Authority, life: Duration) -> Result<(&'static str, Vec<u8>, Vec<u8>)> {
    authority.svid(ID, life).map(|(chain, key)| (ID, chain, key))
}

fn wait_alerts(mesh: &Mesh, what: &str, holds: impl Fn(&str) -> bool) -> Result<()> {
    for node in ["node1", "node2"] {
        wait_for(&format!("{what} on {node}"), LIMIT, || alerts(mesh, node).is_ok_and(|told| holds(&told)))?;
    }
    Ok(())
}

/// Who is registered for nothing is told so and asks again, until there is something.
fn up_after_a_denial(api: &Api, authority: &Authority) -> Result<Mesh> {
    api.hand_out(authority, &[])?;
    let mesh = up(api, "spiffe")?;
    wait_alerts(&mesh, "the denial", |told| told.contains("PermissionDenied (7): no identity issued"))?;
    api.hand_out(authority, &[default_svid(authority, HOUR)?])?;
    for node in ["node1", "node2"] {
        wait_held(&mesh, node, 1)?;
        ensure!(held(&mesh, node)?[0]["identity"] == ID);
    }
    wait_alerts(&mesh, "the end of the alert", |told| told == "[]")?;
    answers(&mesh)?;
    let done = mesh.metric("node2", "sluice_tls_handshakes_total{outcome=\"ok\",role=\"server\"}")?;
    ensure!(done >= 1.0, "no tunnel was made");
    Ok(mesh)
}

/// Open connections outlive what they were made with.
fn renewed(mesh: &Mesh, api: &Api, authority: &Authority) -> Result<()> {
    let address = SocketAddr::new(mesh.pod_ip("web", 0)?, RAW_TARGET);
    let listener = mesh.lab.pod("web")?.in_netns(|| TcpListener::bind(address))??;
    let to = mesh.service("web", 0, OPAQUE)?;
    let mut client = mesh.lab.pod("client")?.in_netns(|| TcpStream::connect_timeout(&to, TIMEOUT))??;
    let (mut server, _) = listener.accept()?;
    let before = held(mesh, "node1")?;
    let stranger = ("spiffe://other.test/a", vec![1], vec![2]);
    api.hand_out(authority, &[default_svid(authority, 2 * HOUR)?, stranger])?;
    for node in ["node1", "node2"] {
        let what = format!("the next certificate on {node}");
        wait_for(&what, LIMIT, || held(mesh, node).is_ok_and(|now| now != before))?;
    }
    wait_for("new certificates on the open tunnel", LIMIT, || {
        mesh.metric("node2", "sluice_tunnel_proofs_total{outcome=\"ok\",role=\"server\"}")
            .is_ok_and(|count| count >= 1.0)
    })?;
    client.write_all(b"ping")?;
    Ok(server.read_exact(&mut [0; 4])?)
}

/// What was handed out goes on, and somebody is told.
fn away(mesh: &Mesh, api: &mut Api) -> Result<()> {
    api.stop()?;
    wait_alerts(mesh, "an alert", |told| told.contains("the Workload API at"))?;
    answers(mesh)?;
    api.start()?;
    wait_alerts(mesh, "the end of the alert", |told| told == "[]")
}

#[test]
fn pods_speak_with_what_a_workload_api_hands_out() -> Result<()> {
    let test = "pods_speak_with_what_a_workload_api_hands_out";
    if unprivileged(test) {
        return Ok(());
    }
    let Some(python) = without_spiffe(test)? else { return Ok(()) };
    let directory = tempfile::tempdir()?;
    let mut api = Api { python, directory: directory.path().to_owned(), process: None };
    let authority = Authority::new()?;
    api.hand_out(&authority, &[default_svid(&authority, HOUR)?])?;
    api.start()?;
    // Somebody else's client takes what the server says, so the agent reads the right thing.
    let fetched = exec::stdout(Command::new(&api.python).args([PEER, "fetch", &api.socket()]))?;
    let fetched: Value = serde_json::from_str(&fetched).with_context(|| fetched.clone())?;
    ensure!(fetched == json!({ "id": ID, "chain": 2 }), "{fetched}");

    let mesh = up_after_a_denial(&api, &authority)?;
    renewed(&mesh, &api, &authority)?;
    away(&mesh, &mut api)?;
    // A key that is another's is named, and the identity before it goes on.
    let ((_, chain, _), (_, _, key)) = (default_svid(&authority, HOUR)?, default_svid(&authority, HOUR)?);
    api.hand_out(&authority, &[(ID, chain, key)])?;
    wait_alerts(&mesh, "the fault", |told| told.contains("the key is not that of the certificate"))?;
    answers(&mesh)?;
    // Another authority, all at once: requests go on when both nodes know of it.
    let other = Authority::new()?;
    api.hand_out(&other, &[default_svid(&other, HOUR)?])?;
    wait_for("requests with the other authority", LIMIT, || answers(&mesh).is_ok())?;
    // An identity that is no longer handed out is gone, and so are the tunnels that were made with it.
    let foreign = "spiffe://mesh.test/ns/default/sa/other";
    let (chain, key) = other.svid(foreign, HOUR)?;
    api.hand_out(&other, &[(foreign, chain, key)])?;
    for node in ["node1", "node2"] {
        wait_held(&mesh, node, 0)?;
    }
    wait_for("the end of what was open", LIMIT, || answers(&mesh).is_err())
}
