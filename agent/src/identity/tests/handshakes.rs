//! Handshakes with peers of every kind, in both roles: each is refused with the name of what is wrong with it.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyUsagePurpose, SanType};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, ServerConfig, SignatureScheme, SupportedProtocolVersion,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::forge::{Party, TD, at, authority, bundle, hours, uri, with_uris};
use crate::identity::certificate::WorkloadLeaf;
use crate::identity::peer::Expected;
use crate::identity::tls::{self, Terms};
use crate::identity::{PeerRefusal, WorkloadCertificate};

const SHOP: &str = "spiffe://mesh.test/ns/shop/sa/cart";

#[derive(Debug)]
struct Present;

impl TimeProvider for Present {
    fn current_time(&self) -> Option<UnixTime> {
        let since = hours(0).duration_since(std::time::UNIX_EPOCH).ok()?;
        Some(UnixTime::since_unix_epoch(since))
    }
}

/// Believes everybody.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A client that takes any server's signature scheme, and asks every client for a certificate without looking at it.
#[derive(Debug)]
struct Asking;

impl rustls::server::danger::ClientCertVerifier for Asking {
    fn root_hint_subjects(&self) -> &[rustls::DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<rustls::server::danger::ClientCertVerified, Error> {
        Ok(rustls::server::danger::ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Credulous.supported_verify_schemes()
    }
}

/// A mesh with one root and one node.
struct Mesh {
    root: Party,
    node: Party,
}

/// What a peer shows: its chain, and the key that it signs with.
struct Shown {
    chain: Vec<Vec<u8>>,
    key: Vec<u8>,
}

impl Shown {
    fn of(leaf: &Party, behind: &[&Party]) -> Self {
        let chain = std::iter::once(leaf).chain(behind.iter().copied()).map(|party| party.der.clone());
        Self { chain: chain.collect(), key: leaf.key.serialized_der().to_vec() }
    }

    fn certified(&self) -> Arc<CertifiedKey> {
        let chain = self.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(&self.key[..]));
        let key = rustls::crypto::ring::sign::any_ecdsa_type(&key).expect("a P-256 key");
        Arc::new(CertifiedKey::new(chain, key))
    }
}

fn intermediate(node: Option<&str>, trust_domain: &str) -> CertificateParams {
    let mut params = authority(trust_domain, BasicConstraints::Constrained(0));
    params.distinguished_name.push(DnType::CommonName, format!("node {node:?}"));
    let name = node.map(|node| SanType::DnsName(node.try_into().expect("ASCII")));
    params.subject_alt_names.extend(name);
    params
}

impl Mesh {
    fn new() -> Self {
        let root = Party::root(TD);
        let node = root.issue(intermediate(Some("node1"), TD));
        Self { root, node }
    }

    fn leaf(&self, change: impl FnOnce(&mut CertificateParams)) -> Shown {
        let mut params = with_uris(&[SHOP]);
        change(&mut params);
        Shown::of(&self.node.issue(params), &[&self.node])
    }

    fn below(&self, issuer: CertificateParams) -> Shown {
        let issuer = self.root.issue(issuer);
        Shown::of(&issuer.issue(with_uris(&[SHOP])), &[&issuer])
    }

    fn terms(&self) -> Terms {
        let shown = self.leaf(|_| {});
        let leaf = WorkloadLeaf::read(&shown.chain[0]).expect("a good leaf");
        let own =
            WorkloadCertificate { id: leaf.id.clone(), validity: leaf.validity, key: shown.certified() };
        Terms {
            own: Arc::new(own),
            bundle: Arc::new(bundle(&[&self.root])),
            peer: Expected { id: leaf.id, node: "node1".into() },
        }
    }
}

/// How a peer speaks TLS.
#[derive(Clone, Copy)]
struct Manner {
    version: &'static SupportedProtocolVersion,
    alpn: Option<&'static [u8]>,
}

const USUAL: Manner = Manner { version: &TLS13, alpn: Some(b"h2") };

async fn as_client(io: DuplexStream, shown: Option<&Shown>, manner: Manner) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_details(provider, Arc::new(Present))
        .with_protocol_versions(&[manner.version])
        .expect("a version")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous));
    let mut config = match shown {
        Some(shown) => config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(shown.certified()))),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = manner.alpn.map(<[u8]>::to_vec).into_iter().collect();
    let name = ServerName::try_from("server").expect("a name");
    if let Ok(mut io) = TlsConnector::from(Arc::new(config)).connect(name, io).await {
        // A client of TLS 1.3 hears of its refusal when it reads.
        let _ = io.read(&mut [0]).await;
    }
}

async fn as_server(io: DuplexStream, shown: &Shown, manner: Manner) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_details(provider, Arc::new(Present))
        .with_protocol_versions(&[manner.version])
        .expect("a version")
        .with_client_cert_verifier(Arc::new(Asking))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(shown.certified())));
    config.alpn_protocols = manner.alpn.map(<[u8]>::to_vec).into_iter().collect();
    if let Ok(mut io) = TlsAcceptor::from(Arc::new(config)).accept(io).await {
        let _ = io.read(&mut [0]).await;
    }
}

/// What our server says of a client, and our client of a server, that shows this.
async fn both(mesh: &Mesh, shown: &Shown, manner: Manner) -> [Result<(), PeerRefusal>; 2] {
    let (near, far) = duplex(64 * 1024);
    let ours = async { tls::accept(near, mesh.terms(), Arc::new(Present)).await.map(|_| ()) };
    let (served, ()) = tokio::join!(ours, as_client(far, Some(shown), manner));
    let (near, far) = duplex(64 * 1024);
    let ours = async { tls::connect(near, mesh.terms(), Arc::new(Present)).await.map(|_| ()) };
    let (dialled, ()) = tokio::join!(ours, as_server(far, shown, manner));
    [served, dialled]
}

#[tokio::test]
async fn a_peer_is_who_it_should_be_or_refused_by_name() {
    use PeerRefusal::*;
    let mesh = Mesh::new();
    let (stranger, foreign) = (Mesh::new(), Party::root("other.test"));
    let foreign_node = foreign.issue(intermediate(Some("node1"), "other.test"));
    let plain = || with_uris(&[SHOP]);
    let own = |change: fn(&mut CertificateParams)| mesh.leaf(change);
    let lone = Party::root_with(TD, &rcgen::PKCS_ECDSA_P256_SHA256, |params| *params = with_uris(&[SHOP]));
    let other_key = Shown { key: own(|_| {}).key, ..own(|_| {}) };
    let mut huge = own(|_| {});
    huge.chain.extend(std::iter::repeat_n(mesh.node.der.clone(), 40));
    let mut heavy = own(|params| {
        let long = |n: u16| SanType::DnsName(format!("{n}.{}", "a".repeat(60)).try_into().expect("ASCII"));
        params.subject_alt_names.extend((0..400).map(long));
    });
    heavy.chain.truncate(2);
    let nested = mesh.node.issue(intermediate(Some("node1"), TD));
    let issued_by_leaf = mesh.node.issue(plain());
    let cases: Vec<(&str, Shown, Result<(), PeerRefusal>)> = vec![
        ("a good one", own(|_| {}), Ok(())),
        ("issued by the root itself", Shown::of(&mesh.root.issue(plain()), &[]), Ok(())),
        ("its root sent along", Shown::of(&mesh.node.issue(plain()), &[&mesh.node, &mesh.root]), Ok(())),
        (
            "names of DNS beside it",
            own(|p| p.subject_alt_names.push(SanType::DnsName("a".try_into().unwrap()))),
            Ok(()),
        ),
        ("expired", own(|p| p.not_after = at(-1) + Duration::from_secs(60)), Err(Expired)),
        ("not yet valid", own(|p| p.not_before = at(1) - Duration::from_secs(60)), Err(NotYetValid)),
        (
            "another workload",
            own(|p| p.subject_alt_names = vec![uri("spiffe://mesh.test/ns/shop/sa/pay")]),
            Err(OtherIdentity),
        ),
        (
            "another namespace",
            own(|p| p.subject_alt_names = vec![uri("spiffe://mesh.test/ns/shop2/sa/cart")]),
            Err(OtherIdentity),
        ),
        (
            "the id in another spelling",
            own(|p| p.subject_alt_names = vec![uri("spiffe://mesh.test/ns/shop/sa/Cart")]),
            Err(OtherIdentity),
        ),
        (
            "more path",
            own(|p| p.subject_alt_names = vec![uri("spiffe://mesh.test/ns/shop/sa/cart/x")]),
            Err(OtherIdentity),
        ),
        (
            "a node",
            own(|p| p.subject_alt_names = vec![uri("spiffe://mesh.test/node/node1")]),
            Err(OtherIdentity),
        ),
        (
            "the trust domain itself",
            own(|p| p.subject_alt_names = vec![uri("spiffe://mesh.test")]),
            Err(OtherIdentity),
        ),
        (
            "several URIs",
            own(|p| p.subject_alt_names.push(uri("spiffe://mesh.test/ns/a/sa/b"))),
            Err(SeveralIdentities),
        ),
        ("the same URI twice", own(|p| p.subject_alt_names.push(uri(SHOP))), Err(SeveralIdentities)),
        (
            "a common name alone",
            own(|p| {
                p.subject_alt_names.clear();
                p.distinguished_name.push(DnType::CommonName, SHOP);
            }),
            Err(NoIdentity),
        ),
        (
            "a name of DNS alone",
            own(|p| p.subject_alt_names = vec![SanType::DnsName("cart".try_into().unwrap())]),
            Err(NoIdentity),
        ),
        (
            "no SPIFFE id",
            own(|p| p.subject_alt_names = vec![uri("https://mesh.test/ns/shop/sa/cart")]),
            Err(NoIdentity),
        ),
        (
            "a query in the id",
            own(|p| p.subject_alt_names = vec![uri("spiffe://mesh.test/ns/shop/sa/cart?x")]),
            Err(NoIdentity),
        ),
        (
            "another trust domain",
            own(|p| p.subject_alt_names = vec![uri("spiffe://other.test/ns/shop/sa/cart")]),
            Err(WrongTrustDomain),
        ),
        (
            "a trust domain with a root of its own",
            Shown::of(&foreign_node.issue(plain()), &[&foreign_node]),
            Err(UnknownIssuer),
        ),
        ("a root of the same name", stranger.leaf(|_| {}), Err(UnknownIssuer)),
        ("self-signed", Shown::of(&lone, &[]), Err(UnknownIssuer)),
        ("its intermediate left out", Shown::of(&mesh.node.issue(plain()), &[]), Err(UnknownIssuer)),
        (
            "for e-mail",
            own(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::EmailProtection]),
            Err(WrongUsage),
        ),
        (
            "for signing certificates",
            own(|p| p.key_usages.push(KeyUsagePurpose::KeyCertSign)),
            Err(WrongUsage),
        ),
        ("for no use", own(|p| p.key_usages.clear()), Err(WrongUsage)),
        ("a CA", own(|p| p.is_ca = rcgen::IsCa::Ca(BasicConstraints::Constrained(0))), Err(CaCertificate)),
        ("the node's intermediate itself", Shown::of(&mesh.node, &[]), Err(CaCertificate)),
        ("made on another node", mesh.below(intermediate(Some("node2"), TD)), Err(WrongNode)),
        ("made by who names no node", mesh.below(intermediate(None, TD)), Err(WrongNode)),
        (
            "made by who names two nodes",
            mesh.below({
                let mut two = intermediate(Some("node1"), TD);
                two.subject_alt_names.push(SanType::DnsName("node2".try_into().unwrap()));
                two
            }),
            Err(WrongNode),
        ),
        (
            "made in another trust domain",
            mesh.below(intermediate(Some("node1"), "other.test")),
            Err(WrongTrustDomain),
        ),
        (
            "its issuer expired",
            mesh.below({
                let mut old = intermediate(Some("node1"), TD);
                old.not_after = at(-1) + Duration::from_secs(60);
                old
            }),
            Err(IssuerNotValid),
        ),
        (
            "issued by a leaf",
            Shown::of(&issued_by_leaf.issue(plain()), &[&issued_by_leaf, &mesh.node]),
            Err(Malformed),
        ),
        (
            "a path that is too long",
            Shown::of(&nested.issue(plain()), &[&nested, &mesh.node]),
            Err(UnknownIssuer),
        ),
        ("a key that is not the certificate's", other_key, Err(BadSignature)),
        ("forty certificates", huge, Err(ChainTooLarge)),
        ("a certificate of 30 KiB", heavy, Err(ChainTooLarge)),
    ];
    for (what, shown, expected) in cases {
        assert_eq!(both(&mesh, &shown, USUAL).await, [expected, expected], "{what}");
    }
    let for_servers = own(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    assert_eq!(both(&mesh, &for_servers, USUAL).await, [Err(WrongUsage), Ok(())]);
    let for_clients = own(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
    assert_eq!(both(&mesh, &for_clients, USUAL).await, [Ok(()), Err(WrongUsage)]);
}

#[tokio::test]
async fn tls_is_1_3_and_what_is_in_it_http_2() {
    use PeerRefusal::{Incompatible, NoAlpn, NoCertificate, Refused};
    let mesh = Mesh::new();
    let good = mesh.leaf(|_| {});
    let old = Manner { version: &TLS12, ..USUAL };
    let [served, dialled] = both(&mesh, &good, old).await;
    assert_eq!(served, Err(Incompatible));
    // A server that can't do it says so itself.
    assert!(matches!(dialled, Err(Incompatible | Refused)), "{dialled:?}");
    for alpn in [None, Some(&b"http/1.1"[..])] {
        assert_eq!(both(&mesh, &good, Manner { alpn, ..USUAL }).await, [Err(NoAlpn), Err(NoAlpn)]);
    }
    let (near, far) = duplex(64 * 1024);
    let ours = tls::accept(near, mesh.terms(), Arc::new(Present));
    let (served, ()) = tokio::join!(ours, as_client(far, None, USUAL));
    assert_eq!(served.err(), Some(NoCertificate));
}

#[tokio::test]
async fn what_is_no_tls_is_told_so() {
    use PeerRefusal::{Closed, NotTls};
    let mesh = Mesh::new();
    let cases: [(&[u8], PeerRefusal); 6] = [
        (b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", NotTls),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", NotTls),
        (b"SSH-2.0-OpenSSH_9.2\r\n", NotTls),
        (b"\x16\x03\x01\x40\x01", Closed),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", Closed),
        (b"", Closed),
    ];
    for (bytes, expected) in cases {
        for dialled in [false, true] {
            let (near, mut far) = duplex(64 * 1024);
            let ours = async {
                if dialled {
                    tls::connect(near, mesh.terms(), Arc::new(Present)).await.err()
                } else {
                    tls::accept(near, mesh.terms(), Arc::new(Present)).await.err()
                }
            };
            let theirs = async move {
                far.write_all(bytes).await.expect("room");
                far.shutdown().await.expect("open");
                let mut rest = Vec::new();
                let _ = far.read_to_end(&mut rest).await;
            };
            let (refusal, ()) = tokio::join!(ours, theirs);
            assert_eq!(refusal, Some(expected), "{bytes:?} dialled: {dialled}");
        }
    }
}
