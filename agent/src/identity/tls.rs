//! TLS between workloads: 1.3 alone, both ends with a certificate, ALPN `h2`, each peer exactly the one that it should be.
//! Nothing is resumed: every connection is checked as a whole.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::certificate;
use super::peer::{self, Peer, PeerRole};
use super::{Expected, PeerRefusal, RefusedPeer, TrustBundle, WorkloadCertificate};

/// What is spoken within.
pub const ALPN: &[u8] = b"h2";

/// How one end shows itself and checks the other.
#[derive(Debug, Clone)]
pub struct Terms {
    /// What this end shows.
    pub own: Arc<WorkloadCertificate>,
    /// Whom it believes.
    pub bundle: Arc<TrustBundle>,
    /// Who the peer has to be.
    pub peer: Peer,
}

impl Terms {
    /// For the end that dials.
    pub fn client(self, clock: Arc<dyn TimeProvider>) -> Result<Arc<ClientConfig>, Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Arc::new(Verifier::new(&self, &provider));
        let mut config = ClientConfig::builder_with_details(provider, clock)
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&self.own.key))));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        Ok(Arc::new(config))
    }

    /// For the end that is dialled.
    pub fn server(self, clock: Arc<dyn TimeProvider>) -> Result<Arc<ServerConfig>, Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Arc::new(Verifier::new(&self, &provider));
        let mut config = ServerConfig::builder_with_details(provider, clock)
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&self.own.key))));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(Arc::new(config))
    }
}

/// Dials TLS over a connection.
pub async fn connect<Io: AsyncRead + AsyncWrite + Unpin>(
    io: Io,
    terms: Terms,
    clock: Arc<dyn TimeProvider>,
) -> Result<client::TlsStream<Io>, RefusedPeer> {
    let config = terms.client(clock).map_err(|_| PeerRefusal::NoOwnCertificate)?;
    // It is neither sent nor looked at: who the peer is, its certificate alone says.
    let nobody = ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let connected = TlsConnector::from(config).connect(nobody, io).await;
    let io = connected.map_err(|error| RefusedPeer::of(&error))?;
    match io.get_ref().1.alpn_protocol() {
        Some(ALPN) => Ok(io),
        _ => Err(PeerRefusal::NoAlpn.into()),
    }
}

/// Answers TLS on a connection. A peer that is refused has been told so, on the connection that is given back.
pub async fn accept<Io: AsyncRead + AsyncWrite + Unpin>(
    io: Io,
    terms: Terms,
    clock: Arc<dyn TimeProvider>,
) -> Result<server::TlsStream<Io>, (RefusedPeer, Io)> {
    let Ok(config) = terms.server(clock) else { return Err((PeerRefusal::NoOwnCertificate.into(), io)) };
    let accepted = TlsAcceptor::from(config).accept(io).into_fallible().await;
    let io = accepted.map_err(|(error, io)| (RefusedPeer::of(&error), io))?;
    match io.get_ref().1.alpn_protocol() {
        Some(ALPN) => Ok(io),
        _ => Err((PeerRefusal::NoAlpn.into(), io.into_inner().0)),
    }
}

/// Refuses a handshake for want of a certificate. The peer is told so (`access_denied`), on the connection that is given back: to one that
/// only sees it end, it looks like the network's fault.
pub async fn refuse<Io: AsyncRead + AsyncWrite + Unpin>(io: Io, clock: Arc<dyn TimeProvider>) -> Option<Io> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_details(provider, clock).with_protocol_versions(&[&TLS13]);
    let mut config = builder.ok()?.with_no_client_auth().with_cert_resolver(Arc::new(Nobody));
    config.alpn_protocols = vec![ALPN.to_vec()];
    TlsAcceptor::from(Arc::new(config)).accept(io).into_fallible().await.err().map(|(_, io)| io)
}

/// Has no certificate for anybody.
#[derive(Debug)]
struct Nobody;

impl ResolvesServerCert for Nobody {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

/// Whether a chain that a peer of that role has shown would be taken now; until when, if nothing else changes.
pub fn check(
    bundle: &TrustBundle,
    expected: &Expected,
    chain: &[CertificateDer<'_>],
    role: PeerRole,
    now: SystemTime,
) -> Result<SystemTime, PeerRefusal> {
    let (leaf, intermediates) = chain.split_first().ok_or(PeerRefusal::NoCertificate)?;
    peer::check(bundle, expected, (leaf, intermediates), role, now)
}

/// Asks [`peer::check`] for the TLS library.
#[derive(Debug)]
struct Verifier {
    bundle: Arc<TrustBundle>,
    peer: Peer,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(terms: &Terms, provider: &Arc<CryptoProvider>) -> Self {
        Self { bundle: Arc::clone(&terms.bundle), peer: terms.peer.clone(), provider: Arc::clone(provider) }
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        (role, now): (PeerRole, UnixTime),
    ) -> Result<(), Error> {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs());
        let expected = self.peer.expected(leaf, intermediates);
        let checked = expected
            .and_then(|expected| peer::check(&self.bundle, &expected, (leaf, intermediates), role, now));
        checked.map(|_| ()).map_err(|why| {
            let presented = certificate::presented(leaf);
            refused(RefusedPeer { why, presented })
        })
    }

    fn signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }
}

fn refused(refused: RefusedPeer) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refused))))
}

/// TLS 1.2 is not offered, so nothing of it is ever asked.
fn never() -> Error {
    refused(PeerRefusal::Incompatible.into())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, intermediates, (PeerRole::Server, now))?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(never())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, intermediates, (PeerRole::Client, now))?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(never())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
