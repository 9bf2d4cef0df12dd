//! A signature as bytes, what remembering a certificate must not change, and bundles.

use proptest::prelude::*;

use super::forge::{MESSAGE, Party, TD, at, bundle, hours, node, pem, roots_text};
use crate::identity::Untrusted;
use crate::identity::error::{Content, RootFault};
use crate::identity::signature::Signature;
use crate::identity::trust::TrustBundle;

#[test]
fn a_signature_reads_back_in_every_format() {
    let signature = Party::root(TD).issue(node("node1")).sign(MESSAGE);
    let bytes = signature.to_bytes();
    assert_eq!(Signature::from_bytes(&bytes), Ok(signature.clone()));
    let text = serde_json::to_string(&signature).expect("a string");
    assert!(text.len() < bytes.len() * 4 / 3 + 8, "{text}");
    assert_eq!(serde_json::from_str::<Signature>(&text).expect("a signature"), signature);
    for bad in ["\"\"", "\"!\"", "\"AQAA\"", "[1,2]", "7"] {
        assert!(serde_json::from_str::<Signature>(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_signature_is_small() {
    let root = Party::root(TD);
    let (short, long) = (root.issue(node("node1")).sign(MESSAGE), root.issue(node(&"n".repeat(253))));
    assert!(short.to_bytes().len() < 640, "{}", short.to_bytes().len());
    assert!(long.sign(MESSAGE).to_bytes().len() < 900, "{}", long.der.len());
    const { assert!(Signature::MAX_BYTES < 1331) };
}

#[test]
fn bytes_that_are_no_signature() {
    let root = Party::root(TD);
    let bundle = bundle(&[&root]);
    let signer = root.issue(node("node1"));
    let bytes = signer.sign(MESSAGE).to_bytes();
    for length in 0..bytes.len() {
        assert_eq!(Signature::from_bytes(&bytes[..length]), Err(Untrusted::Malformed), "{length} bytes");
    }
    let longer = [&bytes[..], &[0]].concat();
    assert_eq!(Signature::from_bytes(&longer), Err(Untrusted::Malformed));
    for length in 1..signer.der.len() {
        let verdict = bundle.verify(hours(0), MESSAGE, &signer.sign_as(&signer.der[..length], MESSAGE));
        assert_eq!(verdict, Err(Untrusted::Malformed), "a certificate of {length} bytes");
    }
    let behind = signer.sign_as(&[&signer.der[..], &[0]].concat(), MESSAGE);
    assert_eq!(bundle.verify(hours(0), MESSAGE, &behind), Err(Untrusted::Malformed));
    assert_eq!(Signature::new(&[0; 1217], &[0; 64]), None);
}

#[test]
fn an_altered_message_or_signature() {
    let root = Party::root(TD);
    let bundle = bundle(&[&root]);
    let signature = root.issue(node("node1")).sign(MESSAGE);
    let verify = |message: &[u8]| bundle.verify(hours(0), message, &signature).map(|by| by.node.to_string());
    assert_eq!(verify(MESSAGE), Ok("node1".to_owned()));
    for message in [&b"a tablf"[..], b"a tabl", b"a table ", b"", b"A table"] {
        assert_eq!(verify(message), Err(Untrusted::BadSignature), "{message:?}");
    }
    for scalars in [[0; 64], [0xff; 64]] {
        let forged = Signature::new(signature.certificate(), &scalars).expect("sizes fit");
        assert_eq!(bundle.verify(hours(0), MESSAGE, &forged), Err(Untrusted::BadSignature));
    }
}

/// One signer, made once: keys are what takes time here.
struct Signed {
    bundle: TrustBundle,
    message: Vec<u8>,
    bytes: Vec<u8>,
}

fn signed() -> Signed {
    let root = Party::root(TD);
    let message = (0..=255).collect::<Vec<u8>>();
    let bytes = root.issue(node("node1")).sign(&message).to_bytes();
    Signed { bundle: bundle(&[&root]), message, bytes }
}

fn verify(signed: &Signed, message: &[u8], bytes: &[u8]) -> Result<(), Untrusted> {
    let signature = Signature::from_bytes(bytes)?;
    signed.bundle.verify(hours(0), message, &signature).map(|_| ())
}

#[test]
fn any_flipped_bit_is_refused() {
    let signed = signed();
    assert_eq!(verify(&signed, &signed.message, &signed.bytes), Ok(()));
    for bit in 0..signed.bytes.len() * 8 {
        let mut bytes = signed.bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(verify(&signed, &signed.message, &bytes).is_err(), "bit {bit} of the signature");
    }
    for bit in 0..signed.message.len() * 8 {
        let mut message = signed.message.clone();
        message[bit / 8] ^= 1 << (bit % 8);
        let verdict = verify(&signed, &message, &signed.bytes);
        assert_eq!(verdict, Err(Untrusted::BadSignature), "bit {bit} of the message");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever is done to a signature or its message, it is not believed, and nothing panics.
    #[test]
    fn damage_is_refused(
        flips in proptest::collection::vec((any::<proptest::sample::Index>(), 1..=255_u8), 1..6),
        cut in proptest::option::of(any::<proptest::sample::Index>()),
        in_message in any::<bool>(),
    ) {
        let signed = signed();
        let (mut message, mut bytes) = (signed.message.clone(), signed.bytes.clone());
        let target = if in_message { &mut message } else { &mut bytes };
        let original = target.clone();
        for (index, bits) in flips {
            let at = index.index(target.len());
            target[at] ^= bits;
        }
        if let Some(cut) = cut {
            target.truncate(cut.index(original.len()));
        }
        prop_assume!(*target != original);
        prop_assert!(verify(&signed, &message, &bytes).is_err());
    }

    /// Anything at all is either read or refused.
    #[test]
    fn anything_is_no_signature(bytes in proptest::collection::vec(any::<u8>(), 0..400), head in any::<bool>()) {
        let mut bytes = bytes;
        if head && bytes.len() > 67 {
            let length = u16::try_from(bytes.len() - 67).expect("short");
            bytes[0] = 1;
            bytes[1..3].copy_from_slice(&length.to_be_bytes());
            prop_assert!(Signature::from_bytes(&bytes).is_ok());
        }
        if let Ok(signature) = Signature::from_bytes(&bytes) {
            prop_assert_eq!(signature.to_bytes(), bytes);
            let bundle = bundle(&[&Party::root(TD)]);
            prop_assert!(bundle.verify(hours(0), MESSAGE, &signature).is_err());
        }
    }
}

#[test]
fn what_is_remembered_ends_with_its_time() {
    let root = Party::root(TD);
    let bundle = bundle(&[&root]);
    let signature = root.issue(node("node1")).sign(MESSAGE);
    let verify = |hour| bundle.verify(hours(hour), MESSAGE, &signature).map(|_| ());
    assert_eq!(verify(0), Ok(()));
    assert_eq!(verify(1), Ok(()), "the last second counts");
    assert_eq!(verify(2), Err(Untrusted::Expired));
    assert_eq!(verify(-2), Err(Untrusted::NotYetValid));
    assert_eq!(verify(0), Ok(()), "a clock that is set back");
}

#[test]
fn a_certificate_ends_with_its_root() {
    let root = Party::root_with(TD, &rcgen::PKCS_ECDSA_P256_SHA256, |params| params.not_after = at(5));
    let bundle = bundle(&[&root]);
    let mut params = node("node1");
    params.not_after = at(100);
    let signature = root.issue(params).sign(MESSAGE);
    let verify = |hour| bundle.verify(hours(hour), MESSAGE, &signature).map(|_| ());
    assert_eq!(verify(6), Err(Untrusted::RootNotValid), "not remembered yet");
    assert_eq!(verify(5), Ok(()));
    assert_eq!(verify(6), Err(Untrusted::RootNotValid), "remembered");
    assert_eq!(verify(101), Err(Untrusted::Expired));
}

#[test]
fn two_roots_overlap() {
    let (old, new) = (Party::root(TD), Party::root(TD));
    let (by_old, by_new) = (old.issue(node("node1")).sign(MESSAGE), new.issue(node("node2")).sign(MESSAGE));
    let signer = |bundle: &TrustBundle, signature: &Signature| {
        bundle.verify(hours(0), MESSAGE, signature).map(|by| by.node.to_string())
    };
    let both = bundle(&[&old, &new]);
    assert_eq!(signer(&both, &by_old), Ok("node1".to_owned()));
    assert_eq!(signer(&both, &by_new), Ok("node2".to_owned()));
    let only_new = bundle(&[&new]);
    assert_eq!(signer(&only_new, &by_old), Err(Untrusted::UnknownIssuer));
    assert_eq!(signer(&only_new, &by_new), Ok("node2".to_owned()));
}

/// A root made anew with its old key and name: whichever of the two comes first in the bundle.
#[test]
fn an_expired_root_hides_no_valid_one() {
    let old = Party::root_with(TD, &rcgen::PKCS_ECDSA_P256_SHA256, |params| params.not_after = at(-1));
    let mut params = old.params.clone();
    params.not_after = at(1000);
    let der = params.self_signed(&old.key).expect("a certificate").der().to_vec();
    let signature = old.issue(node("node1")).sign(MESSAGE);
    for order in [[&old.der, &der], [&der, &old.der]] {
        let text: String = order.iter().map(|der| pem("CERTIFICATE", der)).collect();
        let bundle = TrustBundle::from_pem(text.as_bytes()).expect("good roots");
        assert!(bundle.verify(hours(0), MESSAGE, &signature).is_ok());
    }
}

#[test]
fn bundles_that_are_none() {
    let check = |text: &str, expected: &Content| {
        let error = TrustBundle::from_pem(text.as_bytes()).expect_err("no bundle");
        assert_eq!(&error, expected, "{text}");
    };
    let root = Party::root(TD);
    let good = root.pem();
    check("", &Content::NoCertificate);
    check("nothing", &Content::NoCertificate);
    check(&pem("PRIVATE KEY", root.key.serialized_der()), &Content::NoCertificate);
    check(&format!("{good}{}", pem("CERTIFICATE", &root.der[..99])), &Content::Root(2, RootFault::Der));
    check(&root.issue(node("node1")).pem(), &Content::Root(1, RootFault::NotCa));
    let edwards = Party::root_with(TD, &rcgen::PKCS_ED25519, |_| {});
    check(&roots_text(&[&root, &edwards]), &Content::Root(2, RootFault::Key));
    let nameless = Party::root_with(TD, &rcgen::PKCS_ECDSA_P256_SHA256, |params| {
        params.subject_alt_names.clear();
    });
    check(&nameless.pem(), &Content::Root(1, RootFault::NoTrustDomain));
    let mixed = roots_text(&[&root, &Party::root("other.test")]);
    check(&mixed, &Content::MixedTrustDomains(TD.to_owned(), "other.test".to_owned()));
    check(&good.repeat(17), &Content::TooManyRoots { count: 17, max: 16 });
    let broken = good.replace("-----END", "-----FIN");
    assert!(matches!(TrustBundle::from_pem(broken.as_bytes()), Err(Content::Pem(_))));
}
