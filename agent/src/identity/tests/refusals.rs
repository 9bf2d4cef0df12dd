//! Each reason to refuse a signature, with those who would come to it.

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SanType,
    SubjectPublicKeyInfo,
};

use super::forge::{MESSAGE, Party, TD, at, authority, bundle, hours, node, uri, with_uris};
use crate::identity::Untrusted;
use crate::identity::signature::Signature;
use crate::identity::trust::TrustBundle;

/// A public key of RSA, 2048 bits.
const RSA: &str = "-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAvfia+du1seLYip7sMvPz
QBW0QXWsF+RwsJfswiC1yzsIB9ZTHdkgJoX1NICt9Vjc0TTcO0dWkU08KeHeby7n
hKEMYFpl3fq48LU5G9xdbBxzEN8NdBn9GXS6wzYoakCbBd2eBxPn8JDRETTa9scl
CaZU1czUnIJ49QN2O6VSMKrxc7Dp67Zyp6c5zwDehFJaTh8+qNiYPKY9mLudxe0C
n1ekUoYfZ7rqDqAifuxLDWDRJK5aZaItjEIEydl9LPZC5q4VExZAdfQn2suAU4hm
YyEBNfnRzYSMMnn/4lBSrdRSoYz7e+45AEYnPVC+BNDfv5Ifxb2DXQShZ5BDcDs5
PwIDAQAB
-----END PUBLIC KEY-----
";

struct Site {
    root: Party,
    bundle: TrustBundle,
}

fn site() -> Site {
    let root = Party::root(TD);
    let bundle = bundle(&[&root]);
    Site { root, bundle }
}

impl Site {
    /// What becomes of a signature now, twice: what was refused once is not remembered as good.
    fn refuses(&self, case: &str, signature: &Signature, expected: Untrusted) {
        for look in ["first", "second"] {
            let verdict = self.bundle.verify(hours(0), MESSAGE, signature);
            assert_eq!(verdict, Err(expected), "{case}, {look} look");
        }
    }

    /// What becomes of a node whose certificate is changed before the root issues it.
    fn refuses_changed(&self, case: &str, expected: Untrusted, change: impl FnOnce(&mut CertificateParams)) {
        let mut params = node("node1");
        change(&mut params);
        self.refuses(case, &self.root.issue(params).sign(MESSAGE), expected);
    }
}

#[test]
fn a_node_is_believed() {
    let site = site();
    for name in ["node1", "a.b-c.9"] {
        let by = site.bundle.verify(hours(0), MESSAGE, &site.root.issue(node(name)).sign(MESSAGE));
        let by = by.expect("a good signature");
        assert_eq!((&*by.node, &*by.trust_domain), (name, TD));
    }
}

#[test]
fn names_of_other_kinds_do_not_matter() {
    let site = site();
    let mut params = node("node1");
    params.subject_alt_names.push(SanType::DnsName("node2".try_into().expect("ASCII")));
    params.distinguished_name.push(DnType::CommonName, "node3");
    let by = site.bundle.verify(hours(0), MESSAGE, &site.root.issue(params).sign(MESSAGE));
    assert_eq!(&*by.expect("a good signature").node, "node1");
}

#[test]
fn validity() {
    let site = site();
    site.refuses_changed("over", Untrusted::Expired, |params| {
        (params.not_before, params.not_after) = (at(-9), at(-1));
    });
    site.refuses_changed("to come", Untrusted::NotYetValid, |params| {
        (params.not_before, params.not_after) = (at(1), at(9));
    });
    site.refuses_changed("ends before it begins", Untrusted::Malformed, |params| {
        (params.not_before, params.not_after) = (at(1), at(-1));
    });
}

#[test]
fn identities() {
    let check = |uris: &[&str], expected| {
        let site = site();
        let signature = site.root.issue(with_uris(uris)).sign(MESSAGE);
        site.refuses(&format!("{uris:?}"), &signature, expected);
    };
    let good = "spiffe://mesh.test/node/node1";
    check(&[], Untrusted::NoIdentity);
    check(&[good, good], Untrusted::SeveralIdentities);
    check(&[good, "https://example.test"], Untrusted::SeveralIdentities);
    check(&["https://example.test", good], Untrusted::SeveralIdentities);
    check(&["https://mesh.test/node/node1"], Untrusted::NoIdentity);
    check(&["SPIFFE://mesh.test/node/node1"], Untrusted::NoIdentity);
    check(&["spiffe://mesh.test/node/node1?x"], Untrusted::NoIdentity);
    check(&["spiffe://mesh.test/node/../node/node1"], Untrusted::NoIdentity);
    check(&["spiffe://mesh.test//node/node1"], Untrusted::NoIdentity);
    check(&["spiffe://mesh.test:443/node/node1"], Untrusted::NoIdentity);
    check(&["spiffe://other.test/node/node1"], Untrusted::WrongTrustDomain);
    check(&["spiffe://mesh.test.evil/node/node1"], Untrusted::WrongTrustDomain);
    check(&["spiffe://mesh.test"], Untrusted::NotANode);
    check(&["spiffe://mesh.test/ns/shop/sa/web"], Untrusted::NotANode);
    check(&["spiffe://mesh.test/ns/node/node/node1"], Untrusted::NotANode);
    check(&["spiffe://mesh.test/node/node1/x"], Untrusted::NotANode);
    check(&["spiffe://mesh.test/node/Node1"], Untrusted::NotANode);
    check(&["spiffe://mesh.test/nodes/node1"], Untrusted::NotANode);
}

#[test]
fn a_name_elsewhere_is_no_identity() {
    let site = site();
    site.refuses_changed("common name only", Untrusted::NoIdentity, |params| {
        params.subject_alt_names.clear();
        params.distinguished_name.push(DnType::CommonName, "spiffe://mesh.test/node/node1");
    });
    site.refuses_changed("DNS name only", Untrusted::NoIdentity, |params| {
        params.subject_alt_names = vec![SanType::DnsName("node1".try_into().expect("ASCII"))];
    });
}

#[test]
fn usages() {
    let site = site();
    site.refuses_changed("no key usage", Untrusted::WrongUsage, |params| params.key_usages.clear());
    site.refuses_changed("key agreement", Untrusted::WrongUsage, |params| {
        params.key_usages = vec![KeyUsagePurpose::KeyAgreement];
    });
    site.refuses_changed("may sign certificates", Untrusted::WrongUsage, |params| {
        params.key_usages.push(KeyUsagePurpose::KeyCertSign);
    });
    site.refuses_changed("code signing", Untrusted::WrongUsage, |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    });
    site.refuses_changed("a CA", Untrusted::CaCertificate, |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    });
    site.refuses_changed("an unknown critical extension", Untrusted::Constrained, |params| {
        let mut extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999, 1], vec![5, 0]);
        extension.set_criticality(true);
        params.custom_extensions.push(extension);
    });
    site.refuses("the root itself", &site.root.sign(MESSAGE), Untrusted::CaCertificate);
}

#[test]
fn keys_of_other_kinds() {
    let site = site();
    let params = node("node1");
    let signer = site.root.issue(node("node1"));
    let check = |case: &str, der: Vec<u8>| {
        site.refuses(case, &signer.sign_as(&der, MESSAGE), Untrusted::UnsupportedKey);
    };
    for (case, algorithm) in [("Ed25519", &PKCS_ED25519), ("P-384", &PKCS_ECDSA_P384_SHA384)] {
        let key = KeyPair::generate_for(algorithm).expect("a key");
        check(case, site.root.certify(&params, &key));
    }
    let rsa = SubjectPublicKeyInfo::from_pem(RSA).expect("a public key");
    check("RSA", site.root.certify(&params, &rsa));
}

#[test]
fn issuers() {
    let site = site();
    let stranger = Party::root(TD);
    let signature = stranger.issue(node("node1")).sign(MESSAGE);
    site.refuses("another root of the same name", &signature, Untrusted::UnknownIssuer);

    let named = Party::root_with(TD, &PKCS_ECDSA_P256_SHA256, |params| {
        params.distinguished_name.push(DnType::OrganizationName, "other");
    });
    let signature = named.issue(node("node1")).sign(MESSAGE);
    site.refuses("another root of another name", &signature, Untrusted::UnknownIssuer);

    let edwards = Party::root_with(TD, &PKCS_ED25519, |_| {});
    let signature = edwards.issue(node("node1")).sign(MESSAGE);
    site.refuses("an Ed25519 root of the same name", &signature, Untrusted::UnsupportedAlgorithm);

    let mut own = node("node1");
    own.distinguished_name.push(DnType::CommonName, "authority");
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
    let der = own.self_signed(&key).expect("a certificate").der().to_vec();
    let signature = Party { key, params: own, der }.sign(MESSAGE);
    site.refuses("signed by itself", &signature, Untrusted::UnknownIssuer);
}

/// What a stolen intermediate, or a stolen node's key, can make: nothing that signs as a node.
#[test]
fn only_a_root_makes_nodes() {
    let site = site();
    let mut params = authority(TD, BasicConstraints::Constrained(0));
    params.distinguished_name.push(DnType::OrganizationName, "node1");
    let intermediate = site.root.issue(params);
    for name in ["node1", "node2"] {
        let signature = intermediate.issue(node(name)).sign(MESSAGE);
        site.refuses(&format!("{name} by an intermediate"), &signature, Untrusted::UnknownIssuer);
    }
    site.refuses("the intermediate itself", &intermediate.sign(MESSAGE), Untrusted::CaCertificate);

    let mut below = authority(TD, BasicConstraints::Constrained(0));
    below.distinguished_name.push(DnType::OrganizationName, "below");
    let below = intermediate.issue(below);
    let signature = below.issue(node("node2")).sign(MESSAGE);
    site.refuses("below an intermediate of pathLen 0", &signature, Untrusted::UnknownIssuer);

    let mut params = node("node1");
    params.distinguished_name.push(DnType::CommonName, "node1");
    let leaf = site.root.issue(params);
    let signature = leaf.issue(node("node2")).sign(MESSAGE);
    site.refuses("node2 by node1", &signature, Untrusted::UnknownIssuer);

    // An intermediate may take the root's name for its own; the key tells them apart.
    let namesake = site.root.issue(authority(TD, BasicConstraints::Constrained(0)));
    let signature = namesake.issue(node("node2")).sign(MESSAGE);
    site.refuses("an intermediate of the root's name", &signature, Untrusted::UnknownIssuer);
}

#[test]
fn somebody_elses_certificate() {
    let site = site();
    let (own, other) = (site.root.issue(node("node1")), site.root.issue(node("node2")));
    let signature = own.sign_as(&other.der, MESSAGE);
    site.refuses("node1 with the certificate of node2", &signature, Untrusted::BadSignature);
}

#[test]
fn what_is_signed_for_another_purpose_is_no_table() {
    let site = site();
    let signer = site.root.issue(node("node1"));
    let check = |case: &str, bytes: &[u8]| {
        site.refuses(case, &signer.sign_raw(&signer.der, bytes), Untrusted::BadSignature);
    };
    check("the message alone", MESSAGE);
    check("its hash alone", ring::digest::digest(&ring::digest::SHA256, MESSAGE).as_ref());
    let mut handshake = vec![b' '; 64];
    handshake.extend(b"TLS 1.3, server CertificateVerify\0");
    handshake.extend(ring::digest::digest(&ring::digest::SHA256, MESSAGE).as_ref());
    check("a handshake of TLS 1.3", &handshake);
    let mut other = crate::identity::signature::signed_form(MESSAGE);
    other[13] = b'2';
    check("another context", &other);
}

#[test]
fn names_constrained_by_the_root() {
    let constrained = Party::root_with(TD, &PKCS_ECDSA_P256_SHA256, |params| {
        params.name_constraints = Some(rcgen::NameConstraints {
            permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName("other.test".to_owned())],
            excluded_subtrees: Vec::new(),
        });
    });
    let bundle = bundle(&[&constrained]);
    let mut params = node("node1");
    params.subject_alt_names = vec![uri("spiffe://mesh.test/node/node1")];
    params.subject_alt_names.push(SanType::DnsName("node1.mesh.test".try_into().expect("ASCII")));
    let verdict = bundle.verify(hours(0), MESSAGE, &constrained.issue(params).sign(MESSAGE));
    assert_eq!(verdict, Err(Untrusted::Constrained));
}

#[test]
fn reasons_have_names_of_their_own() {
    let names: std::collections::BTreeSet<&str> = Untrusted::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(names.len(), Untrusted::ALL.len());
    for name in names {
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
    }
}
