//! Who seals documents: operators alone, who sign nothing else.

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose};

use super::forge::{MESSAGE, Party, TD, bundle, hours, node, operator, uri};
use crate::identity::Untrusted;

/// What becomes of a seal by whoever has a certificate of these parameters.
fn sealed(params: CertificateParams, at: i64) -> Result<String, Untrusted> {
    let root = Party::root(TD);
    let by = root.issue(params);
    let bundle = bundle(&[&root]);
    let seal = by.seal_as(&by.der, MESSAGE);
    // What was looked at once says nothing else the second time.
    let verdicts = [0; 2].map(|_| bundle.verify_seal(hours(at), MESSAGE, &seal).map(|by| by.to_string()));
    assert_eq!(verdicts[0], verdicts[1]);
    verdicts[0].clone()
}

#[test]
fn an_operator_is_believed_while_the_certificate_held() {
    assert_eq!(sealed(operator("alice"), 0), Ok("alice".to_owned()));
    assert_eq!(sealed(operator("alice"), 2), Err(Untrusted::Expired));
    assert_eq!(sealed(operator("alice"), -2), Err(Untrusted::NotYetValid));
}

#[test]
fn nobody_else_seals() {
    assert_eq!(sealed(node("node1"), 0), Err(Untrusted::WrongUsage));
    let mut of_node = node("node1");
    of_node.extended_key_usages = operator("alice").extended_key_usages;
    assert_eq!(sealed(of_node, 0), Err(Untrusted::NotAnOperator));
    let mut for_tls = operator("alice");
    for_tls.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    assert_eq!(sealed(for_tls, 0), Err(Untrusted::WrongUsage));
    let mut elsewhere = operator("alice");
    elsewhere.subject_alt_names = vec![uri("spiffe://elsewhere/operator/alice")];
    assert_eq!(sealed(elsewhere, 0), Err(Untrusted::WrongTrustDomain));
    let mut both = operator("alice");
    both.subject_alt_names.push(uri(&format!("spiffe://{TD}/node/node1")));
    assert_eq!(sealed(both, 0), Err(Untrusted::SeveralIdentities));
    let (root, stranger) = (Party::root(TD), Party::root(TD));
    let by = stranger.issue(operator("alice"));
    let verdict = bundle(&[&root]).verify_seal(hours(0), MESSAGE, &by.seal_as(&by.der, MESSAGE));
    assert_eq!(verdict, Err(Untrusted::UnknownIssuer));
}

#[test]
fn a_seal_is_no_table_and_a_table_no_seal() {
    let root = Party::root(TD);
    let bundle = bundle(&[&root]);
    let (alice, node) = (root.issue(operator("alice")), root.issue(node("node1")));
    // Each with what it may sign first, so that its certificate is known.
    assert!(bundle.verify_seal(hours(0), MESSAGE, &alice.seal_as(&alice.der, MESSAGE)).is_ok());
    assert!(bundle.verify(hours(0), MESSAGE, &node.sign(MESSAGE)).is_ok());
    assert_eq!(bundle.verify(hours(0), MESSAGE, &alice.sign(MESSAGE)), Err(Untrusted::WrongUsage));
    let by_node = node.seal_as(&node.der, MESSAGE);
    assert_eq!(bundle.verify_seal(hours(0), MESSAGE, &by_node), Err(Untrusted::WrongUsage));
    // The right certificate under what was signed for the other purpose.
    assert_eq!(bundle.verify_seal(hours(0), MESSAGE, &alice.sign(MESSAGE)), Err(Untrusted::BadSignature));
    let table = node.seal_as(&node.der, MESSAGE);
    assert_eq!(bundle.verify(hours(0), MESSAGE, &table), Err(Untrusted::BadSignature));
}
