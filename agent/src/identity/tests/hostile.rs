//! More peers that mean harm, in both roles, beside those of [`super::handshakes`]: each is a row with the name of what is
//! wrong with it. Together there are at least forty.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateRevocationListParams, CustomExtension, DnType, GeneralSubtree, Issuer,
    KeyIdMethod, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256, RevokedCertParams, SanType,
    SerialNumber,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::forge::{Party, TD, at, bundle, pem, uri, with_uris};
use super::handshakes::{
    Case, Mesh, Present, SHOP, Shown, USUAL, as_client, both, dns, identities, intermediate, issuers, uses,
};
use crate::identity::certificate::Serial;
use crate::identity::tls::{self, Terms};
use crate::identity::{PeerRefusal, TrustBundle};

/// The issue's count.
const ROWS_MIN: usize = 40;

/// Ids that look like the one that is expected, and names that are no ids.
fn spellings(mesh: &Mesh) -> Vec<Case> {
    use PeerRefusal::{NoIdentity, OtherIdentity};
    let ids = [
        ("a slash at the end", "spiffe://mesh.test/ns/shop/sa/cart/", NoIdentity),
        ("a port", "spiffe://mesh.test:443/ns/shop/sa/cart", NoIdentity),
        ("a user", "spiffe://a@mesh.test/ns/shop/sa/cart", NoIdentity),
        ("a fragment", "spiffe://mesh.test/ns/shop/sa/cart#a", NoIdentity),
        ("percent signs", "spiffe://mesh.test/ns/shop/sa/%63art", NoIdentity),
        ("a step back", "spiffe://mesh.test/ns/x/../shop/sa/cart", NoIdentity),
        ("an empty step", "spiffe://mesh.test/ns/shop//sa/cart", NoIdentity),
        ("no trust domain", "spiffe:///ns/shop/sa/cart", NoIdentity),
        ("a longer name", "spiffe://mesh.test/ns/shop/sa/cart2", OtherIdentity),
        ("an operator", "spiffe://mesh.test/operator/alice", OtherIdentity),
    ];
    let of = |names: Vec<SanType>| mesh.leaf(|params| params.subject_alt_names = names);
    let mut cases: Vec<Case> = ids.map(|(what, id, why)| (what, of(vec![uri(id)]), Err(why))).into();
    let mail = SanType::Rfc822Name("cart@mesh.test".try_into().expect("ASCII"));
    let address = SanType::IpAddress("10.0.0.9".parse().expect("an address"));
    let id_as_dns = dns("spiffe.mesh.test");
    cases.extend([
        ("an address and a mailbox", of(vec![mail, address]), Err(NoIdentity)),
        ("a host name that looks like it", of(vec![id_as_dns]), Err(NoIdentity)),
        ("no names at all", of(vec![]), Err(NoIdentity)),
    ]);
    cases
}

/// Certificates that were tampered with, and chains in disorder.
fn damaged(mesh: &Mesh) -> Vec<Case> {
    use PeerRefusal::{CaCertificate, Malformed, UnknownIssuer};
    let good = || mesh.leaf(|_| {});
    let with = |change: fn(&mut Vec<u8>)| {
        let mut shown = good();
        change(&mut shown.chain[0]);
        shown
    };
    let behind = |change: fn(&mut Vec<u8>)| {
        let mut shown = good();
        change(&mut shown.chain[1]);
        shown
    };
    let renamed = with(|der| {
        let at = der.windows(7).position(|part| part == b"sa/cart").expect("its name");
        der[at + 3..at + 7].copy_from_slice(b"root");
    });
    let mut swapped = good();
    swapped.chain.swap(0, 1);
    let last = |der: &mut Vec<u8>| *der.last_mut().expect("not empty") ^= 1;
    vec![
        ("a certificate cut short", with(|der| der.truncate(der.len() - 1)), Err(Malformed)),
        ("half a certificate", with(|der| der.truncate(der.len() / 2)), Err(Malformed)),
        ("a byte behind it", with(|der| der.push(0)), Err(Malformed)),
        ("no DER", with(|der| der.fill(0xff)), Err(Malformed)),
        ("a signature with a bit flipped", with(last), Err(UnknownIssuer)),
        ("a name that was changed", renamed, Err(UnknownIssuer)),
        ("an issuer cut short", behind(|der| der.truncate(der.len() - 1)), Err(Malformed)),
        ("an issuer with a bit flipped", behind(last), Err(UnknownIssuer)),
        ("the issuer first", swapped, Err(CaCertificate)),
    ]
}

/// Issuers and leaves with more to them than there should be.
fn extended(mesh: &Mesh) -> Vec<Case> {
    use PeerRefusal::{Constrained, WrongUsage};
    let critical = || {
        let mut extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
        extension.set_criticality(true);
        extension
    };
    let strange = mesh.leaf(|params| params.custom_extensions.push(critical()));
    let mut odd = intermediate(Some("node1"), TD);
    odd.custom_extensions.push(critical());
    let mut bound = intermediate(Some("node1"), TD);
    bound.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName("mesh.test".to_owned())],
        excluded_subtrees: Vec::new(),
    });
    let bound = mesh.root.issue(bound);
    let mut host = with_uris(&[SHOP]);
    host.subject_alt_names.push(dns("other.test"));
    let named = Shown::of(&bound.issue(host), &[&bound]);
    let mut idle = intermediate(Some("node1"), TD);
    idle.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let signs_lists = mesh.leaf(|params| params.key_usages.push(KeyUsagePurpose::CrlSign));
    vec![
        ("a critical extension", strange, Err(Constrained)),
        ("an issuer with a critical extension", mesh.below(odd), Err(Constrained)),
        ("an issuer that may name other hosts alone", named, Err(Constrained)),
        ("an issuer that may not issue", mesh.below(idle), Err(WrongUsage)),
        ("a leaf that signs lists", signs_lists, Err(WrongUsage)),
    ]
}

#[tokio::test]
async fn forty_hostile_peers_are_refused_by_name_in_both_roles() {
    let mesh = Mesh::new();
    let mut refused = 0;
    let more = spellings(&mesh).into_iter().chain(damaged(&mesh)).chain(extended(&mesh));
    for (what, shown, expected) in more {
        assert!(expected.is_err(), "{what}");
        assert_eq!(both(&mesh, &shown, USUAL).await, [expected, expected], "{what}");
        refused += 1;
    }
    // Those were refused where they are.
    let others = identities(&mesh).into_iter().chain(uses(&mesh)).chain(issuers(&mesh));
    let all = refused + others.filter(|(.., expected)| expected.is_err()).count();
    assert!(all >= ROWS_MIN, "{all} rows");
}

/// What a root says that it has taken back.
fn revoking(root: &Party, der: &[u8]) -> TrustBundle {
    let revoked = RevokedCertParams {
        serial_number: SerialNumber::from_slice(&Serial::read(der).expect("a certificate").number),
        revocation_time: at(-1),
        reason_code: None,
        invalidity_date: None,
    };
    let list = CertificateRevocationListParams {
        this_update: at(-1),
        next_update: at(1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![revoked],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&Issuer::from_params(&root.params, &root.key)).expect("a list");
    bundle(&[root]).revoking(pem("X509 CRL", list.der()).as_bytes()).expect("a good list")
}

/// What our server, and our client, say of a peer by a bundle.
async fn by(mesh: &Mesh, shown: &Shown, believed: impl Fn() -> TrustBundle) -> [Result<(), PeerRefusal>; 2] {
    let terms = || Terms { bundle: Arc::new(believed()), ..mesh.terms() };
    let (near, far) = duplex(64 * 1024);
    let ours = async {
        tls::accept(near, terms(), Arc::new(Present)).await.map(|_| ()).map_err(|(refused, _)| refused.why)
    };
    let (served, ()) = tokio::join!(ours, as_client(far, Some(shown), USUAL));
    let (near, far) = duplex(64 * 1024);
    let ours = async {
        tls::connect(near, terms(), Arc::new(Present)).await.map(|_| ()).map_err(|refused| refused.why)
    };
    let (dialled, ()) = tokio::join!(ours, super::handshakes::as_server(far, shown, USUAL));
    [served, dialled]
}

#[tokio::test]
async fn who_is_revoked_or_has_no_root_that_holds_is_refused_in_both_roles() {
    use PeerRefusal::{IssuerNotValid, Revoked};
    let lists = |params: &mut rcgen::CertificateParams| params.key_usages.push(KeyUsagePurpose::CrlSign);
    let root = Party::root_with(TD, &PKCS_ECDSA_P256_SHA256, lists);
    let node = root.issue(intermediate(Some("node1"), TD));
    let mesh = Mesh { root, node };
    let below = mesh.leaf(|_| {});
    let direct = Shown::of(&mesh.root.issue(with_uris(&[SHOP])), &[]);
    let (node, leaf) = (mesh.node.der.clone(), direct.chain[0].clone());
    assert_eq!(by(&mesh, &below, || revoking(&mesh.root, &node)).await, [Err(Revoked); 2]);
    assert_eq!(by(&mesh, &direct, || revoking(&mesh.root, &leaf)).await, [Err(Revoked); 2]);
    assert_eq!(by(&mesh, &below, || revoking(&mesh.root, &leaf)).await, [Ok(()); 2]);
    let over = Party::root_with(TD, &PKCS_ECDSA_P256_SHA256, |params| params.not_after = at(-1));
    let node = over.issue(intermediate(Some("node1"), TD));
    let mesh = Mesh { root: over, node };
    assert_eq!(by(&mesh, &mesh.leaf(|_| {}), || bundle(&[&mesh.root])).await, [Err(IssuerNotValid); 2]);
}

/// A name that a client asks for opens nothing: who it is, and whom it gets, its address and its certificate say.
#[tokio::test]
async fn a_server_name_changes_nothing() {
    let mesh = Mesh::new();
    for (shown, expected) in [
        (mesh.leaf(|_| {}), Ok(())),
        (mesh.leaf(|params| params.subject_alt_names = vec![dns("server")]), Err(PeerRefusal::NoIdentity)),
        (
            mesh.leaf(|params| {
                params.subject_alt_names = vec![uri("spiffe://mesh.test/ns/shop/sa/pay"), dns("server")];
                params.distinguished_name.push(DnType::CommonName, "server");
            }),
            Err(PeerRefusal::OtherIdentity),
        ),
    ] {
        // `both` dials with the name `server`.
        assert_eq!(both(&mesh, &shown, USUAL).await[0], expected);
    }
    let nested = BasicConstraints::Constrained(9);
    let mut deep = intermediate(Some("node1"), TD);
    deep.is_ca = rcgen::IsCa::Ca(nested);
    assert_eq!(
        both(&mesh, &mesh.below(deep), USUAL).await,
        [Ok(()); 2],
        "how deep it might is not the matter"
    );
}

#[tokio::test]
async fn records_that_are_none_are_told_so_in_both_roles() {
    use PeerRefusal::{Closed, Incompatible, NotTls, Refused};
    let mesh = Mesh::new();
    let rows: [(&str, &[u8], &[PeerRefusal]); 7] = [
        ("a record of 64 KiB", b"\x16\x03\x03\xff\xff\x01\x00\x00", &[NotTls]),
        ("data before a handshake", b"\x17\x03\x03\x00\x05hello", &[NotTls]),
        ("an alert that ends it", b"\x15\x03\x03\x00\x02\x02\x28", &[Refused]),
        ("a hello of SSL 2", b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10", &[NotTls]),
        ("an unknown handshake", b"\x16\x03\x03\x00\x05\x63\x00\x00\x01\x00", &[NotTls, Incompatible]),
        ("a request to begin anew", b"\x16\x03\x03\x00\x04\x00\x00\x00\x00", &[NotTls]),
        ("a hello that stops", b"\x16\x03\x01\x00\x30\x01\x00\x00\x2c\x03\x03", &[Closed]),
    ];
    for (what, bytes, expected) in rows {
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
            let named = refusal.is_some_and(|refusal| expected.contains(&refusal));
            assert!(named, "{what}, dialled {dialled}: {refusal:?}");
        }
    }
}
