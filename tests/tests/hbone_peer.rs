//! A client of tunnels that shares no code with the agent: whoever speaks HBONE as it is written down can be a peer.

mod common;

use std::fs;
use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use common::{LIMIT, Mesh, TIMEOUT};
use h2::client::SendRequest;
use http::{Method, Request, StatusCode};
use lab::agent::{AgentOptions, built_binary};
use lab::{Lab, PodSpec, Topology, exec, unprivileged, wait_for};
use rcgen::{
    CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, SanType, SigningKey,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use tokio::task::JoinSet;

const ECHO: u16 = 7000;
const FLOWS: usize = 1000;
const AT_ONCE: usize = 32;
/// How long all flows may take.
const ALL: Duration = Duration::from_mins(2);
const HOUR: Duration = Duration::from_hours(1);
/// A life that is over while the test waits.
const SHORT: Duration = Duration::from_secs(4);

/// Takes every server: this is about what is said, not about who says it.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// What the client's own workload shows: a key, and its chain.
type Shown = (KeyPair, Vec<CertificateDer<'static>>);

/// Makes it with the node's intermediate, to hold for so long.
fn workload(node: &Path, life: Duration) -> Result<Shown> {
    let read = |name: &str| fs::read_to_string(node.join(name)).with_context(|| name.to_owned());
    let issuer = CertificateDer::from_pem_slice(read("intermediate.pem")?.as_bytes())?;
    let issuer_key = KeyPair::from_pem(&read("intermediate.key")?)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names = vec![SanType::URI("spiffe://mesh.test/ns/default/sa/default".try_into()?)];
    params.not_after = (SystemTime::now() + life).into();
    let leaf = params.signed_by(&key, &Issuer::from_ca_cert_der(&issuer, &issuer_key)?)?;
    let chain = vec![leaf.der().clone(), issuer];
    Ok((key, chain))
}

fn config((key, chain): &Shown) -> Result<ClientConfig> {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_client_auth_cert(chain.clone(), key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Opens a tunnel over a connection. Answers what TLS exports for proofs as well.
async fn tunnel(io: TcpStream, config: ClientConfig) -> Result<(SendRequest<Bytes>, [u8; 32])> {
    io.set_nonblocking(true)?;
    let io = tokio::net::TcpStream::from_std(io)?;
    let name = ServerName::try_from("anybody")?;
    let io = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, io).await?;
    let exported = io.get_ref().1.export_keying_material([0; 32], b"EXPORTER-sluice-tunnel-proof", None)?;
    let (requests, connection) = h2::client::handshake(io).await?;
    tokio::spawn(connection);
    Ok((requests, exported))
}

/// A proof as docs/hbone.md has it.
fn proof((key, chain): &Shown, exported: [u8; 32]) -> Result<Vec<u8>> {
    let mut bytes = vec![1, u8::try_from(chain.len())?];
    for der in chain {
        bytes.extend(u16::try_from(der.len())?.to_be_bytes());
        bytes.extend_from_slice(der);
    }
    let hash = ring::digest::digest(&ring::digest::SHA256, &bytes);
    let signed = [&b"sluice tunnel client v1\0........"[..], &exported, hash.as_ref()].concat();
    let signature = SigningKey::sign(key, &signed)?;
    bytes.extend(u16::try_from(signature.len())?.to_be_bytes());
    bytes.extend(signature);
    Ok(bytes)
}

/// Shows a certificate on an open tunnel; answers how the other end took it.
async fn show(requests: &SendRequest<Bytes>, proof: Vec<u8>) -> Result<StatusCode> {
    let mut requests = requests.clone().ready().await?;
    let request = Request::builder().method(Method::POST).uri("https://any.invalid/proof").body(())?;
    let (answer, mut send) = requests.send_request(request, false)?;
    send.send_data(proof.into(), true)?;
    Ok(answer.await?.status())
}

fn ask(method: Method, authority: &str) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = authority.parse().expect("an authority");
    request
}

/// Sends so many bytes through a stream of its own, ends, and takes them back.
async fn flow(requests: SendRequest<Bytes>, authority: String, bytes: usize) -> Result<()> {
    let mut requests = requests.ready().await?;
    let (answer, mut send) = requests.send_request(ask(Method::CONNECT, &authority), false)?;
    let answer = answer.await?;
    ensure!(answer.status() == StatusCode::OK, "{authority} answered {}", answer.status());
    let content: Vec<u8> = (0..bytes).map(|at| u8::try_from(at % 251).expect("a byte")).collect();
    let expected = content.clone();
    // The library keeps what the peer has no room for.
    let writing = async move { send.send_data(Bytes::from(content), true) };
    let mut receive = answer.into_body();
    let reading = async move {
        let mut read = Vec::new();
        while let Some(piece) = receive.data().await {
            let piece = piece?;
            receive.flow_control().release_capacity(piece.len())?;
            read.extend_from_slice(&piece);
        }
        Ok::<_, h2::Error>(read)
    };
    let (written, read) = tokio::join!(writing, reading);
    written?;
    let read = read?;
    ensure!(read == expected, "{} of {bytes} bytes came back", read.len());
    Ok(())
}

/// Sends everything back, and ends when its client has.
fn echo(listener: TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut from = stream.try_clone()?;
                std::io::copy(&mut from, &mut stream)?;
                stream.flush()?;
                stream.shutdown(Shutdown::Write)
            });
        }
    });
}

async fn flows(io: TcpStream, config: ClientConfig, pod: std::net::IpAddr) -> Result<()> {
    let (requests, _) = tunnel(io, config).await.context("opening the tunnel")?;
    for (method, authority, expected) in [
        (Method::CONNECT, SocketAddr::new(pod, 9), StatusCode::SERVICE_UNAVAILABLE),
        (Method::CONNECT, "10.99.99.99:80".parse()?, StatusCode::BAD_REQUEST),
        (Method::CONNECT, SocketAddr::new(pod, 15008), StatusCode::BAD_REQUEST),
    ] {
        let mut requests = requests.clone().ready().await?;
        let (answer, _send) = requests.send_request(ask(method, &authority.to_string()), false)?;
        let status = answer.await?.status();
        ensure!(status == expected, "{authority} answered {status}");
    }
    let authority = SocketAddr::new(pod, ECHO).to_string();
    let mut running = JoinSet::new();
    for number in 0..FLOWS {
        if running.len() == AT_ONCE {
            running.join_next().await.context("one is running")???;
        }
        let bytes = [0, 1, 100, 16_384, 70_000, 700_000][if number % 50 == 0 { 5 } else { number % 5 }];
        running.spawn(flow(requests.clone(), authority.clone(), bytes));
    }
    while let Some(ended) = running.join_next().await {
        ended??;
    }
    Ok(())
}

/// Two nodes, of which the second has an agent: the client's node has none, and speaks for itself. Answers the directory with
/// the client's node's keys.
fn up(name: &str) -> Result<(Mesh, PathBuf)> {
    let topology = Topology::with_nodes(2)
        .pod(PodSpec::new("client", "node1"))
        .pod(PodSpec::new("web", "node2").label("networking.istio.io/tunnel", "http"));
    let lab = Lab::for_test(name, topology)?;
    let config_dir = lab.directory().join("config");
    lab.write_documents(&config_dir)?;
    let path = |name: &str| lab.directory().join(name).display().to_string();
    let sluice = |words: &[&str]| exec::stdout(Command::new(built_binary()?).args(words));
    let (ca, one, two) = (path("ca"), path("ca-node1"), path("ca-node2"));
    sluice(&["ca", "init", "--dir", &ca, "--trust-domain", "mesh.test"])?;
    sluice(&["ca", "node", "--dir", &ca, "--name", "node1", "--out", &one])?;
    sluice(&["ca", "node", "--dir", &ca, "--name", "node2", "--out", &two])?;
    let mut mesh = Mesh { agents: Vec::new(), lab, config: config_dir };
    let options = AgentOptions::new(&mesh.config)?.with(["--ca", &two]);
    let agent = mesh.lab.node("node2")?.start_agent(&options)?;
    mesh.agents.push(agent);
    Ok((mesh, one.into()))
}

fn dial(mesh: &Mesh, family: usize) -> Result<TcpStream> {
    let to = SocketAddr::new(mesh.pod_ip("web", family)?, 15008);
    Ok(mesh.lab.pod("client")?.in_netns(|| TcpStream::connect_timeout(&to, TIMEOUT))??)
}

#[test]
fn a_client_of_other_make_passes_a_thousand_flows() -> Result<()> {
    if unprivileged("a_client_of_other_make_passes_a_thousand_flows") {
        return Ok(());
    }
    let (mesh, one) = up("hbone_peer")?;
    for family in 0..2 {
        let pod = mesh.pod_ip("web", family)?;
        echo(mesh.lab.pod("web")?.in_netns(|| TcpListener::bind(SocketAddr::new(pod, ECHO)))??);
        let io = dial(&mesh, family)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let run = flows(io, config(&workload(&one, HOUR)?)?, pod);
        runtime
            .block_on(async { tokio::time::timeout(ALL, run).await })
            .with_context(|| format!("family {family}: the flows took too long"))?
            .with_context(|| format!("family {family}"))?;
    }
    refusals_are_told(&mesh)
}

/// What led nowhere has been counted, logged with who asked for it, and told.
fn refusals_are_told(mesh: &Mesh) -> Result<()> {
    const REASON: &str = "other_destination";
    let counted = mesh.metrics("node2", "sluice_tunnel_streams_refused_total{")?;
    let expected = format!("sluice_tunnel_streams_refused_total{{reason=\"{REASON}\",role=\"server\"}} 4");
    ensure!(counted == [expected.clone()], "{counted:?} and not {expected}");
    let lines = || -> Vec<serde_json::Value> {
        let log = mesh.agents[0].log();
        let lines = log.lines().filter(|line| line.contains("\"scope\":\"access\"") && line.contains(REASON));
        lines.filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    wait_for("lines of the access log", LIMIT, || lines().len() == 4)?;
    for line in lines() {
        ensure!(line["src.identity"] == "spiffe://mesh.test/ns/default/sa/default", "{line}");
        ensure!(line["direction"] == "inbound" && line["connection_termination_details"] == REASON, "{line}");
    }
    let mut command = mesh.lab.node("node2")?.command(built_binary()?)?;
    command.args(["observe", "-o", "json", "--kind", "drop", "--verdict", REASON]);
    let told = exec::stdout(&mut command)?;
    ensure!(told.lines().count() == 4, "{told}");
    ensure!(told.lines().all(|line| line.contains("\"default/client\"")), "{told}");
    Ok(())
}

/// Opens a stream that goes on, and waits for its end; answers how long that took.
async fn until_ended(requests: &SendRequest<Bytes>, authority: &str) -> Result<Duration> {
    let begun = Instant::now();
    let mut requests = requests.clone().ready().await?;
    let (answer, _send) = requests.send_request(ask(Method::CONNECT, authority), false)?;
    let mut receive = answer.await?.into_body();
    let ended = tokio::time::timeout(LIMIT, receive.data()).await.context("it went on")?;
    ensure!(matches!(ended, Some(Err(_))), "the stream ended with {ended:?}");
    Ok(begun.elapsed())
}

#[test]
fn a_tunnel_ends_with_its_certificate_unless_a_new_one_is_shown() -> Result<()> {
    if unprivileged("a_tunnel_ends_with_its_certificate_unless_a_new_one_is_shown") {
        return Ok(());
    }
    let (mesh, one) = up("hbone_proof")?;
    let pod = mesh.pod_ip("web", 0)?;
    echo(mesh.lab.pod("web")?.in_netns(|| TcpListener::bind(SocketAddr::new(pod, ECHO)))??);
    let authority = SocketAddr::new(pod, ECHO).to_string();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let shown = workload(&one, SHORT)?;
        let (first, exported) = tunnel(dial(&mesh, 0)?, config(&shown)?).await?;
        let (second, other) = tunnel(dial(&mesh, 0)?, config(&workload(&one, SHORT)?)?).await?;
        let longer = workload(&one, HOUR)?;
        let forged = (KeyPair::generate()?, longer.1.clone());
        let stranger = workload(&mesh.lab.directory().join("ca-node2"), HOUR)?;
        for (what, proof, expected) in [
            ("bound to another connection", proof(&longer, other)?, StatusCode::FORBIDDEN),
            ("with another key", proof(&forged, exported)?, StatusCode::FORBIDDEN),
            ("made on another node", proof(&stranger, exported)?, StatusCode::FORBIDDEN),
            ("of zeros", vec![0; 100], StatusCode::FORBIDDEN),
            ("too long", vec![1; 40_000], StatusCode::FORBIDDEN),
            ("good", proof(&longer, exported)?, StatusCode::OK),
        ] {
            let status = show(&first, proof).await.with_context(|| what.to_owned())?;
            ensure!(status == expected, "a proof {what} was answered {status}");
        }
        let lasted = until_ended(&second, &authority).await.context("the tunnel with one certificate")?;
        ensure!(lasted <= SHORT + Duration::from_secs(3), "it went on for {lasted:?}");
        flow(first, authority, 1000).await.context("the tunnel with a certificate shown anew")
    })?;
    let ended = mesh.metrics("node2", "sluice_tunnels_ended_total{")?;
    ensure!(ended == ["sluice_tunnels_ended_total{reason=\"expired\",role=\"server\"} 1"], "{ended:?}");
    Ok(())
}
