//! TLS clients of the bench: one request on each connection, with a full handshake or a resumed session.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use rustls::client::Resumption;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use super::super::load::Counted;
use super::material::{Material, NAME};

/// Clients at a time; they share one core.
const THREADS: usize = 4;
/// How long one read or write may take.
const TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST: &[u8] = b"GET /100 HTTP/1.1\r\nHost: bench.test\r\nConnection: close\r\n\r\n";
const KEPT: &[u8] = b"GET /100 HTTP/1.1\r\nHost: bench.test\r\n\r\n";

/// A connection with TLS on it.
pub type Connected = StreamOwned<ClientConnection, TcpStream>;

/// How a client shakes hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manner {
    /// Whether it resumes sessions.
    pub resumes: bool,
    /// Whether it shows a certificate.
    pub mutual: bool,
}

/// A client that believes the bench's CA; each keeps its own sessions.
pub fn config(material: &Material, manner: Manner) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(material.ca()).context("reading the CA")?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let mut config = if manner.mutual {
        let chain = vec![CertificateDer::from_pem_file(material.client()).context("reading a certificate")?];
        let key = PrivateKeyDer::from_pem_file(material.client()).context("reading a key")?;
        builder.with_client_auth_cert(chain, key)?
    } else {
        builder.with_no_client_auth()
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption =
        if manner.resumes { Resumption::in_memory_sessions(32) } else { Resumption::disabled() };
    Ok(Arc::new(config))
}

fn connect(address: SocketAddr, config: &Arc<ClientConfig>) -> Result<Connected> {
    let socket = TcpStream::connect_timeout(&address, TIMEOUT)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    let session = ClientConnection::new(Arc::clone(config), ServerName::try_from(NAME)?)?;
    Ok(StreamOwned::new(session, socket))
}

/// One connection with one request; says how it shook hands.
pub fn once(address: SocketAddr, config: &Arc<ClientConfig>) -> Result<HandshakeKind> {
    let mut stream = connect(address, config)?;
    stream.write_all(REQUEST)?;
    let mut answer = Vec::with_capacity(1024);
    match stream.read_to_end(&mut answer) {
        // Not all say in TLS that they close.
        Err(error) if error.kind() != ErrorKind::UnexpectedEof => return Err(error.into()),
        _ => {}
    }
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "{}", answer.escape_ascii());
    stream.conn.handshake_kind().context("no handshake")
}

/// Connections for so long from the calling thread's namespace, on one core.
pub fn run(
    address: SocketAddr,
    material: &Material,
    manner: Manner,
    (seconds, core): (u32, usize),
) -> Result<Counted> {
    let mut cores = CpuSet::new();
    cores.set(core).context("that core")?;
    sched_setaffinity(Pid::from_raw(0), &cores).context("binding the clients to their core")?;
    let begin = Instant::now();
    let until = begin + Duration::from_secs(seconds.into());
    // Threads inherit namespace and core.
    let clients: Vec<_> = (0..THREADS)
        .map(|_| {
            let config = config(material, manner)?;
            Ok(thread::spawn(move || client(address, &config, manner.resumes, until)))
        })
        .collect::<Result<_>>()?;
    let mut requests = 0;
    for client in clients {
        requests += client.join().ok().context("a client panicked")??;
    }
    let requests = f64::from(requests);
    Ok(Counted { requests, per_second: requests / begin.elapsed().as_secs_f64() })
}

fn client(address: SocketAddr, config: &Arc<ClientConfig>, resumes: bool, until: Instant) -> Result<u32> {
    let wanted = if resumes { HandshakeKind::Resumed } else { HandshakeKind::Full };
    // The first session is never resumed.
    once(address, config)?;
    let mut count = 0;
    while Instant::now() < until {
        let kind = once(address, config)?;
        if kind != wanted {
            bail!("a handshake was {kind:?} and not {wanted:?}");
        }
        count += 1;
    }
    Ok(count)
}

/// Connections of clients with certificates that have had one answer each and then stay silent.
pub fn idle(address: SocketAddr, material: &Material, count: usize) -> Result<Vec<Connected>> {
    let config = config(material, Manner { resumes: false, mutual: true })?;
    (0..count)
        .map(|index| {
            let what = || format!("idle connection {index} of {count}");
            let mut stream = connect(address, &config).with_context(what)?;
            stream.write_all(KEPT).with_context(what)?;
            let mut answer = [0; 2048];
            let mut read = 0;
            // The body is 100 times the same byte.
            while !answer[..read].ends_with(&[b'x'; 100]) {
                let bytes = stream.read(&mut answer[read..]).with_context(what)?;
                ensure!(bytes > 0, "{}: closed", what());
                read += bytes;
            }
            ensure!(answer.starts_with(b"HTTP/1.1 200"), "{}", answer[..read].escape_ascii());
            Ok(stream)
        })
        .collect()
}

/// Signatures a second of one core with the certificate's key, the bare cost of a full handshake.
pub fn signatures_per_second(key: &Path, core: usize) -> Result<f64> {
    let mut cores = CpuSet::new();
    cores.set(core).context("that core")?;
    sched_setaffinity(Pid::from_raw(0), &cores).context("binding to a core")?;
    let key = PrivateKeyDer::from_pem_file(key).context("reading the key")?;
    let key = rustls::crypto::ring::sign::any_supported_type(&key)?;
    let scheme = rustls::SignatureScheme::ECDSA_NISTP256_SHA256;
    let signer = key.choose_scheme(&[scheme]).context("the key signs otherwise")?;
    let begin = Instant::now();
    let mut count = 0_u32;
    while begin.elapsed() < Duration::from_secs(1) {
        for _ in 0..100 {
            signer.sign(b"as long as the hash that is signed")?;
            count += 1;
        }
    }
    Ok(f64::from(count) / begin.elapsed().as_secs_f64())
}
