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

/// How far a time is within what it breaks.
pub(super) const MINUTE: Duration = Duration::from_mins(1);
pub(super) const SHOP: &str = "spiffe://mesh.test/ns/shop/sa/cart";

#[derive(Debug)]
pub(super) struct Present;

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

/// Asks every client for a certificate, and believes it.
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
pub(super) struct Mesh {
    pub(super) root: Party,
    pub(super) node: Party,
}

/// What a peer shows: its chain, and the key that it signs with.
pub(super) struct Shown {
    pub(super) chain: Vec<Vec<u8>>,
    pub(super) key: Vec<u8>,
}

impl Shown {
    pub(super) fn of(leaf: &Party, behind: &[&Party]) -> Self {
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

pub(super) fn intermediate(node: Option<&str>, trust_domain: &str) -> CertificateParams {
    let mut params = authority(trust_domain, BasicConstraints::Constrained(0));
    params.distinguished_name.push(DnType::CommonName, format!("node {node:?}"));
    let name = node.map(|node| SanType::DnsName(node.try_into().expect("ASCII")));
    params.subject_alt_names.extend(name);
    params
}

impl Mesh {
    pub(super) fn new() -> Self {
        let root = Party::root(TD);
        let node = root.issue(intermediate(Some("node1"), TD));
        Self { root, node }
    }

    pub(super) fn leaf(&self, change: impl FnOnce(&mut CertificateParams)) -> Shown {
        let mut params = with_uris(&[SHOP]);
        change(&mut params);
        Shown::of(&self.node.issue(params), &[&self.node])
    }

    pub(super) fn below(&self, issuer: CertificateParams) -> Shown {
        let issuer = self.root.issue(issuer);
        Shown::of(&issuer.issue(with_uris(&[SHOP])), &[&issuer])
    }

    pub(super) fn terms(&self) -> Terms {
        let shown = self.leaf(|_| {});
        let leaf = WorkloadLeaf::read(&shown.chain[0]).expect("a good leaf");
        let own =
            WorkloadCertificate { id: leaf.id.clone(), validity: leaf.validity, key: shown.certified() };
        Terms {
            own: Arc::new(own),
            bundle: Arc::new(bundle(&[&self.root])),
            peer: Expected { id: leaf.id, node: "node1".into() }.into(),
        }
    }
}

/// How a peer speaks TLS.
#[derive(Clone, Copy)]
pub(super) struct Manner {
    version: &'static SupportedProtocolVersion,
    alpn: Option<&'static [u8]>,
}

pub(super) const USUAL: Manner = Manner { version: &TLS13, alpn: Some(b"h2") };

pub(super) async fn as_client(io: DuplexStream, shown: Option<&Shown>, manner: Manner) {
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

pub(super) async fn as_server(io: DuplexStream, shown: &Shown, manner: Manner) {
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
pub(super) async fn both(mesh: &Mesh, shown: &Shown, manner: Manner) -> [Result<(), PeerRefusal>; 2] {
    let (near, far) = duplex(64 * 1024);
    let ours = async {
        tls::accept(near, mesh.terms(), Arc::new(Present))
            .await
            .map(|_| ())
            .map_err(|(refused, _)| refused.why)
    };
    let (served, ()) = tokio::join!(ours, as_client(far, Some(shown), manner));
    let (near, far) = duplex(64 * 1024);
    let ours = async {
        tls::connect(near, mesh.terms(), Arc::new(Present)).await.map(|_| ()).map_err(|refused| refused.why)
    };
    let (dialled, ()) = tokio::join!(ours, as_server(far, shown, manner));
    [served, dialled]
}

pub(super) type Case = (&'static str, Shown, Result<(), PeerRefusal>);

pub(super) fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().expect("ASCII"))
}

/// Whose a certificate says that it is.
pub(super) fn identities(mesh: &Mesh) -> Vec<Case> {
    use PeerRefusal::{NoIdentity, OtherIdentity, SeveralIdentities, WrongTrustDomain};
    let other_ids = [
        ("another workload", "spiffe://mesh.test/ns/shop/sa/pay"),
        ("another namespace", "spiffe://mesh.test/ns/shop2/sa/cart"),
        ("another spelling", "spiffe://mesh.test/ns/shop/sa/Cart"),
        ("more path", "spiffe://mesh.test/ns/shop/sa/cart/x"),
        ("a node", "spiffe://mesh.test/node/node1"),
        ("the trust domain itself", "spiffe://mesh.test"),
    ];
    let of = |names: Vec<SanType>| mesh.leaf(|params| params.subject_alt_names = names);
    let mut cases: Vec<Case> = vec![
        ("a good one", of(vec![uri(SHOP)]), Ok(())),
        ("a name of DNS beside it", of(vec![uri(SHOP), dns("a")]), Ok(())),
        ("two URIs", of(vec![uri(SHOP), uri("spiffe://mesh.test/ns/a/sa/b")]), Err(SeveralIdentities)),
        ("the same URI twice", of(vec![uri(SHOP), uri(SHOP)]), Err(SeveralIdentities)),
        ("a name of DNS alone", of(vec![dns("cart")]), Err(NoIdentity)),
        ("no SPIFFE id", of(vec![uri("https://mesh.test/ns/shop/sa/cart")]), Err(NoIdentity)),
        ("a query in the id", of(vec![uri("spiffe://mesh.test/ns/shop/sa/cart?x")]), Err(NoIdentity)),
        ("another trust domain", of(vec![uri("spiffe://other.test/ns/shop/sa/cart")]), Err(WrongTrustDomain)),
    ];
    cases.extend(other_ids.map(|(what, id)| (what, of(vec![uri(id)]), Err(OtherIdentity))));
    let named = mesh.leaf(|params| {
        params.subject_alt_names.clear();
        params.distinguished_name.push(DnType::CommonName, SHOP);
    });
    cases.push(("a common name alone", named, Err(NoIdentity)));
    cases
}

/// When and for what a certificate holds.
pub(super) fn uses(mesh: &Mesh) -> Vec<Case> {
    use PeerRefusal::{BadSignature, CaCertificate, ChainTooLarge, Expired, NotYetValid, WrongUsage};
    let own = |change: fn(&mut CertificateParams)| mesh.leaf(change);
    let mut huge = own(|_| {});
    huge.chain.extend(std::iter::repeat_n(mesh.node.der.clone(), 40));
    let heavy = own(|params| {
        let name = |number: u16| dns(&format!("{number}.{}", "a".repeat(60)));
        params.subject_alt_names.extend((0..400).map(name));
    });
    let other_key = Shown { key: own(|_| {}).key, ..own(|_| {}) };
    let mail = own(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::EmailProtection]);
    vec![
        ("expired", own(|params| params.not_after = at(-1) + MINUTE), Err(Expired)),
        ("not yet valid", own(|params| params.not_before = at(1) - MINUTE), Err(NotYetValid)),
        ("for e-mail", mail, Err(WrongUsage)),
        ("signs certificates", own(|p| p.key_usages.push(KeyUsagePurpose::KeyCertSign)), Err(WrongUsage)),
        ("for no use", own(|params| params.key_usages.clear()), Err(WrongUsage)),
        ("a CA", own(|p| p.is_ca = rcgen::IsCa::Ca(BasicConstraints::Constrained(0))), Err(CaCertificate)),
        ("the intermediate itself", Shown::of(&mesh.node, &[]), Err(CaCertificate)),
        ("a key that is not the certificate's", other_key, Err(BadSignature)),
        ("forty certificates", huge, Err(ChainTooLarge)),
        ("a certificate of 25 KiB", heavy, Err(ChainTooLarge)),
    ]
}

/// Who has made it.
pub(super) fn issuers(mesh: &Mesh) -> Vec<Case> {
    use PeerRefusal::{IssuerNotValid, Malformed, UnknownIssuer, WrongNode, WrongTrustDomain};
    let plain = || with_uris(&[SHOP]);
    let foreign = Party::root("other.test").issue(intermediate(Some("node1"), "other.test"));
    let lone = Party::root_with(TD, &rcgen::PKCS_ECDSA_P256_SHA256, |params| *params = with_uris(&[SHOP]));
    let nested = mesh.node.issue(intermediate(Some("node1"), TD));
    let leaf = mesh.node.issue(plain());
    let mut two = intermediate(Some("node1"), TD);
    two.subject_alt_names.push(dns("node2"));
    let mut old = intermediate(Some("node1"), TD);
    old.not_after = at(-1) + MINUTE;
    let elsewhere = intermediate(Some("node1"), "other.test");
    vec![
        ("the root itself", Shown::of(&mesh.root.issue(plain()), &[]), Ok(())),
        ("its root sent along", Shown::of(&mesh.node.issue(plain()), &[&mesh.node, &mesh.root]), Ok(())),
        ("another mesh", Shown::of(&foreign.issue(plain()), &[&foreign]), Err(UnknownIssuer)),
        ("a root of the same name", Mesh::new().leaf(|_| {}), Err(UnknownIssuer)),
        ("nobody", Shown::of(&lone, &[]), Err(UnknownIssuer)),
        ("who was left out", Shown::of(&mesh.node.issue(plain()), &[]), Err(UnknownIssuer)),
        ("another node", mesh.below(intermediate(Some("node2"), TD)), Err(WrongNode)),
        ("who names no node", mesh.below(intermediate(None, TD)), Err(WrongNode)),
        ("who names two nodes", mesh.below(two), Err(WrongNode)),
        ("one of another trust domain", mesh.below(elsewhere), Err(WrongTrustDomain)),
        ("one that has expired", mesh.below(old), Err(IssuerNotValid)),
        ("a leaf", Shown::of(&leaf.issue(plain()), &[&leaf, &mesh.node]), Err(Malformed)),
        ("a node's own node", Shown::of(&nested.issue(plain()), &[&nested, &mesh.node]), Err(UnknownIssuer)),
    ]
}

#[tokio::test]
async fn a_peer_is_who_it_should_be_or_refused_by_name() {
    use PeerRefusal::WrongUsage;
    let mesh = Mesh::new();
    for (what, shown, expected) in identities(&mesh).into_iter().chain(uses(&mesh)).chain(issuers(&mesh)) {
        assert_eq!(both(&mesh, &shown, USUAL).await, [expected, expected], "{what}");
    }
    let only = |usage| mesh.leaf(|params| params.extended_key_usages = vec![usage]);
    let for_servers = only(ExtendedKeyUsagePurpose::ServerAuth);
    assert_eq!(both(&mesh, &for_servers, USUAL).await, [Err(WrongUsage), Ok(())]);
    let for_clients = only(ExtendedKeyUsagePurpose::ClientAuth);
    assert_eq!(both(&mesh, &for_clients, USUAL).await, [Ok(()), Err(WrongUsage)]);
}

#[tokio::test]
async fn who_is_refused_is_named_as_it_names_itself() {
    const OTHER: &str = "spiffe://mesh.test/ns/shop/sa/other";
    let mesh = Mesh::new();
    let one = (vec![OTHER], Some(OTHER));
    for (ids, expected, is_ca) in [
        (one.0.clone(), one.1, false),
        (one.0, one.1, true),
        (vec![SHOP, OTHER], None, false),
        (vec![], None, false),
    ] {
        let ids = ids.into_iter().map(uri).collect::<Vec<_>>();
        let shown = mesh.leaf(|params| {
            params.subject_alt_names = ids;
            if is_ca {
                params.is_ca = rcgen::IsCa::Ca(BasicConstraints::Unconstrained);
            }
        });
        let (near, far) = duplex(64 * 1024);
        let ours = async {
            tls::accept(near, mesh.terms(), Arc::new(Present)).await.map_err(|(refused, _)| refused)
        };
        let (served, ()) = tokio::join!(ours, as_client(far, Some(&shown), USUAL));
        let presented = served.expect_err("is not the one").presented;
        assert_eq!(presented.map(|id| id.to_string()).as_deref(), expected);
    }
}

#[tokio::test]
async fn tls_is_1_3_and_what_is_in_it_http_2() {
    use PeerRefusal::{Incompatible, NoAlpn, NoCertificate};
    let mesh = Mesh::new();
    let good = mesh.leaf(|_| {});
    let old = Manner { version: &TLS12, ..USUAL };
    // A server that can't do it says so itself.
    assert_eq!(both(&mesh, &good, old).await, [Err(Incompatible), Err(Incompatible)]);
    for alpn in [None, Some(&b"http/1.1"[..])] {
        assert_eq!(both(&mesh, &good, Manner { alpn, ..USUAL }).await, [Err(NoAlpn), Err(NoAlpn)]);
    }
    let (near, far) = duplex(64 * 1024);
    let ours =
        async { tls::accept(near, mesh.terms(), Arc::new(Present)).await.map_err(|(refused, _)| refused) };
    let (served, ()) = tokio::join!(ours, as_client(far, None, USUAL));
    assert_eq!(served.err().map(|refused| refused.why), Some(NoCertificate));
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
                    tls::connect(near, mesh.terms(), Arc::new(Present)).await.err().map(|refused| refused.why)
                } else {
                    tls::accept(near, mesh.terms(), Arc::new(Present))
                        .await
                        .err()
                        .map(|(refused, _)| refused.why)
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
