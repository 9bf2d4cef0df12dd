//! A server of tunnels that shares no code with the agent and knows of HBONE what ztunnel knows: what the agent asks it, and what
//! becomes of a tunnel whose certificate is not shown anew.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use common::{LIMIT, Mesh, TIMEOUT};
use h2::RecvStream;
use h2::server::SendResponse;
use http::{Method, Request, Response, StatusCode};
use lab::agent::{AgentOptions, built_binary};
use lab::{Lab, PodSpec, ServiceSpec, Topology, exec, unprivileged};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};

const OPAQUE: u16 = 81;
const TARGET: u16 = 7000;
const TUNNEL: u16 = 15008;
/// A life that is over while the test waits.
const SHORT: Duration = Duration::from_secs(4);

/// Takes every client that shows something.
#[derive(Debug)]
struct Anybody;

impl ClientCertVerifier for Anybody {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
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

/// Shows a certificate of the pod that holds for so long.
fn config(node: &Path, life: Duration) -> Result<Arc<ServerConfig>> {
    let read = |name: &str| fs::read_to_string(node.join(name)).with_context(|| name.to_owned());
    let issuer = CertificateDer::from_pem_slice(read("intermediate.pem")?.as_bytes())?;
    let issuer_key = KeyPair::from_pem(&read("intermediate.key")?)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.subject_alt_names = vec![SanType::URI("spiffe://mesh.test/ns/default/sa/default".try_into()?)];
    params.not_after = (SystemTime::now() + life).into();
    let leaf = params.signed_by(&key, &Issuer::from_ca_cert_der(&issuer, &issuer_key)?)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(Anybody))
        .with_single_cert(vec![leaf.der().clone(), issuer], key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// What a request was: its method, its target, and its fields.
type Asked = (Method, String, BTreeMap<String, String>);

/// Serves connections one after the other, each with a certificate of the next life, and tells what is asked.
fn serve(listener: TcpListener, node: PathBuf, lives: Vec<Duration>, told: Sender<Asked>) {
    std::thread::spawn(move || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async move {
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let mut connections = tokio::task::JoinSet::new();
            for life in lives {
                let (io, _) = listener.accept().await?;
                connections.spawn(connection(io, config(&node, life)?, told.clone()));
            }
            while connections.join_next().await.is_some() {}
            Ok(())
        })
    });
}

async fn connection(io: tokio::net::TcpStream, config: Arc<ServerConfig>, told: Sender<Asked>) -> Result<()> {
    let io = tokio_rustls::TlsAcceptor::from(config).accept(io).await?;
    let mut connection = h2::server::handshake(io).await?;
    while let Some(Ok((request, respond))) = connection.accept().await {
        let fields = request.headers().iter();
        let fields = fields
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()));
        told.send((request.method().clone(), request.uri().to_string(), fields.collect()))?;
        tokio::spawn(answer(request, respond));
    }
    Ok(())
}

/// Sends back what comes, and 400 to what is no CONNECT.
async fn answer(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> Result<()> {
    let mut response = Response::new(());
    if request.method() != Method::CONNECT {
        *response.status_mut() = StatusCode::BAD_REQUEST;
        respond.send_response(response, true)?;
        return Ok(());
    }
    let mut send = respond.send_response(response, false)?;
    let mut receive = request.into_body();
    while let Some(piece) = receive.data().await {
        let piece = piece?;
        receive.flow_control().release_capacity(piece.len())?;
        send.send_data(piece, false)?;
    }
    send.send_data(Bytes::new(), true)?;
    Ok(())
}

fn dial(mesh: &Mesh) -> Result<TcpStream> {
    let to = mesh.service("web", 0, OPAQUE)?;
    let stream = mesh.lab.pod("client")?.in_netns(|| TcpStream::connect_timeout(&to, TIMEOUT))??;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(stream)
}

fn echoed(stream: &mut TcpStream) -> Result<()> {
    let mut bytes = [0; 5];
    stream.write_all(b"hello")?;
    stream.read_exact(&mut bytes)?;
    ensure!(&bytes == b"hello", "{bytes:?} came back");
    Ok(())
}

/// The next request that is a tunnel's.
fn connect(told: &Receiver<Asked>) -> Result<Asked> {
    loop {
        let asked = told.recv_timeout(LIMIT)?;
        if asked.0 == Method::CONNECT {
            return Ok(asked);
        }
    }
}

fn check(asked: &Asked, pod: SocketAddr, client: &str) -> Result<()> {
    let (_, target, fields) = asked;
    ensure!(*target == pod.to_string(), "{target} was asked for");
    let field =
        |name: &str| fields.get(name).map(String::as_str).with_context(|| format!("no {name} in {fields:?}"));
    let baggage = field("baggage")?;
    let expected =
        ["k8s.namespace.name=default", "k8s.pod.name=client", "service.name=client", "cloud.region="];
    for part in expected {
        ensure!(baggage.split(',').any(|member| member == part), "{part} is not in {baggage}");
    }
    ensure!(field("forwarded")? == format!("for=\"{client}\""), "{fields:?}");
    let trace: Vec<&str> = field("traceparent")?.split('-').collect();
    let lengths: Vec<usize> = trace.iter().map(|part| part.len()).collect();
    ensure!(lengths == [2, 32, 16, 2] && trace[0] == "00", "{trace:?}");
    ensure!(fields.len() == 3, "{fields:?}");
    Ok(())
}

#[test]
fn a_server_that_knows_no_proofs_is_left_when_its_certificate_ends() -> Result<()> {
    if unprivileged("a_server_that_knows_no_proofs_is_left_when_its_certificate_ends") {
        return Ok(());
    }
    let topology = Topology::with_nodes(2)
        .pod(PodSpec::new("client", "node1"))
        .pod(PodSpec::new("web", "node2").label("app", "web").label("networking.istio.io/tunnel", "http"))
        .service(ServiceSpec::new("web").port("tcp", OPAQUE, TARGET));
    let lab = Lab::for_test("hbone_server", topology)?;
    let config_dir = lab.directory().join("config");
    lab.write_documents(&config_dir)?;
    let path = |name: &str| lab.directory().join(name).display().to_string();
    let sluice = |words: &[&str]| exec::stdout(Command::new(built_binary()?).args(words));
    let (ca, one, two) = (path("ca"), path("ca-node1"), path("ca-node2"));
    sluice(&["ca", "init", "--dir", &ca, "--trust-domain", "mesh.test"])?;
    sluice(&["ca", "node", "--dir", &ca, "--name", "node1", "--out", &one])?;
    sluice(&["ca", "node", "--dir", &ca, "--name", "node2", "--out", &two])?;
    let mut mesh = Mesh { agents: Vec::new(), lab, config: config_dir };
    let agent =
        mesh.lab.node("node1")?.start_agent(&AgentOptions::new(&mesh.config)?.with(["--ca", &one]))?;
    mesh.agents.push(agent);

    let pod = mesh.pod_ip("web", 0)?;
    let listener = mesh.lab.pod("web")?.in_netns(|| TcpListener::bind(SocketAddr::new(pod, TUNNEL)))??;
    let (telling, told) = mpsc::channel();
    serve(listener, two.into(), vec![SHORT, Duration::from_hours(1)], telling);
    let client = mesh.pod_ip("client", 0)?.to_string();
    let (target, begun) = (SocketAddr::new(pod, TARGET), Instant::now());
    let mut first = dial(&mesh)?;
    echoed(&mut first)?;
    let asked = connect(&told)?;
    check(&asked, target, &client)?;
    // The agent asks for a proof, is answered 400, and resets what goes on when the certificate is over.
    let read = first.read(&mut [0]).map_err(|error| error.kind());
    ensure!(read == Err(ErrorKind::ConnectionReset), "the stream ended with {read:?}");
    let lasted = begun.elapsed();
    ensure!(lasted <= SHORT + Duration::from_secs(5), "it went on for {lasted:?}");
    let ended = mesh.metrics("node1", "sluice_tunnels_ended_total{")?;
    ensure!(ended == ["sluice_tunnels_ended_total{reason=\"expired\",role=\"client\"} 1"], "{ended:?}");
    let refused = mesh.metrics("node1", "sluice_tunnel_proofs_total{outcome=\"incompatible\"")?;
    ensure!(!refused.is_empty(), "no proof was asked for");
    // The next connection gets a tunnel of its own.
    let mut second = dial(&mesh)?;
    echoed(&mut second)?;
    let again = connect(&told)?;
    check(&again, target, &client)?;
    ensure!(again.2["traceparent"] != asked.2["traceparent"], "two streams have one trace");
    Ok(())
}
