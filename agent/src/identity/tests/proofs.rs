//! Certificates shown anew within a connection: of that connection, by that end, and by whoever has the key.

use std::sync::Arc;

use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::duplex;

use super::forge::{Party, TD, bundle, hours, with_uris};
use super::handshakes::Present;
use crate::identity::certificate::WorkloadLeaf;
use crate::identity::peer::{Expected, PeerRole};
use crate::identity::tls::{self, Terms};
use crate::identity::{Binding, PROOF_MAX_BYTES, PeerRefusal, WorkloadCertificate};

const CART: &str = "spiffe://mesh.test/ns/shop/sa/cart";

fn workload(root: &Party) -> Arc<WorkloadCertificate> {
    let leaf = root.issue(with_uris(&[CART]));
    let said = WorkloadLeaf::read(&leaf.der).expect("a good leaf");
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf.key.serialized_der().to_vec()));
    let key = rustls::crypto::ring::sign::any_ecdsa_type(&key).expect("a P-256 key");
    let key = Arc::new(CertifiedKey::new(vec![CertificateDer::from(leaf.der)], key));
    Arc::new(WorkloadCertificate { id: said.id, validity: said.validity, key })
}

/// What both ends of a new connection are bound to: of the one that dialled, and of the one that was.
async fn connection(root: &Party) -> [Binding; 2] {
    let terms = || Terms {
        own: workload(root),
        bundle: Arc::new(bundle(&[root])),
        peer: Expected { id: CART.parse().expect("an id"), node: "node1".into() }.into(),
    };
    let (near, far) = duplex(64 * 1024);
    let dialling = tls::connect(near, terms(), Arc::new(Present));
    let answering = tls::accept(far, terms(), Arc::new(Present));
    let (client, server) = tokio::join!(dialling, answering);
    let (client, server) = (client.expect("a good server"), server.expect("a good client"));
    [Binding::of(client.get_ref().1), Binding::of(server.get_ref().1)]
        .map(|binding| binding.expect("TLS 1.3"))
}

#[tokio::test]
async fn a_proof_is_of_one_connection_one_end_and_one_key() {
    let root = Party::root(TD);
    let [client, server] = connection(&root).await;
    let [other, _] = connection(&root).await;
    let held = workload(&root);
    for (prover, verifier, role) in
        [(&client, &server, PeerRole::Client), (&server, &client, PeerRole::Server)]
    {
        let proof = prover.prove(role, &held).expect("a key of P-256");
        assert_eq!(verifier.proven(role, &proof), Ok(held.key.cert.clone()));
        assert!(proof.len() < PROOF_MAX_BYTES);
        let refused = Err(PeerRefusal::BadSignature);
        assert_eq!(other.proven(role, &proof), refused, "of another connection");
        let back = if role == PeerRole::Client { PeerRole::Server } else { PeerRole::Client };
        assert_eq!(verifier.proven(back, &proof), refused, "sent back");
        // Somebody else's certificate, with one's own signature.
        let stranger = workload(&root);
        let theirs = WorkloadCertificate {
            id: held.id.clone(),
            validity: held.validity,
            key: Arc::new(CertifiedKey::new(held.key.cert.clone(), Arc::clone(&stranger.key.key))),
        };
        let forged = prover.prove(role, &theirs).expect("a key of P-256");
        assert_eq!(verifier.proven(role, &forged), refused, "without the key");
        for length in 0..proof.len() {
            assert!(verifier.proven(role, &proof[..length]).is_err(), "{length} bytes of it");
        }
        assert_eq!(verifier.proven(role, &[&proof[..], &[0]].concat()), Err(PeerRefusal::Malformed));
        let mut bent = proof.clone();
        bent[20] ^= 1;
        assert!(verifier.proven(role, &bent).is_err());
    }
}

#[tokio::test]
async fn what_is_proven_is_looked_at_like_in_a_handshake() {
    let (root, stranger) = (Party::root(TD), Party::root(TD));
    let [client, server] = connection(&root).await;
    let expected = Expected { id: CART.parse().expect("an id"), node: "node1".into() };
    for (by, verdict) in [(&root, Ok(())), (&stranger, Err(PeerRefusal::UnknownIssuer))] {
        let proof = client.prove(PeerRole::Client, &workload(by)).expect("a key of P-256");
        let chain = server.proven(PeerRole::Client, &proof).expect("it has the key");
        let checked = tls::check(&bundle(&[&root]), &expected, &chain, PeerRole::Client, hours(0));
        assert_eq!(checked.map(|_| ()), verdict);
    }
    assert_eq!(server.proven(PeerRole::Client, &[1, 0, 0, 0]), Err(PeerRefusal::NoCertificate));
}
