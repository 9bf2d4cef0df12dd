//! Certificates of workloads from a node's directory: made, believed, renewed, and kept when there is no newer one.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::time_provider::DefaultTimeProvider;
use tokio::io::duplex;

use crate::identity::tls::{self, Terms};
use crate::identity::{
    Authority, DirectorySource, Expected, IdentityError, PeerRefusal, Replace, SpiffeId, Term, TrustDomain,
    WorkloadCertificates,
};

const DAY: Duration = Duration::from_hours(24);

fn term(life: Duration) -> Term {
    Term { now: SystemTime::now(), life }
}

fn ca(directory: &Path) -> Authority {
    let td: TrustDomain = "mesh.test".parse().expect("a trust domain");
    Authority::create(directory, &td, term(DAY * 30), Replace::Asked).expect("a CA")
}

fn node(authority: &Authority, name: &str, out: &Path, life: Duration) {
    let name = name.parse().expect("a name");
    authority.issue_node(&name, out, term(life), Replace::Asked).expect("a node's directory");
}

fn id(account: &str) -> SpiffeId {
    let td = "mesh.test".parse().expect("a trust domain");
    SpiffeId::of_workload(&td, "shop", account).expect("an id")
}

fn keeper(directory: &Path, life: Duration) -> WorkloadCertificates {
    WorkloadCertificates::new(Box::new(DirectorySource::open(directory).expect("a good directory")), life)
}

/// What two workloads say of each other, the one that dials first.
async fn meet(
    (dialling, on): (&WorkloadCertificates, &str),
    (dialled, there): (&WorkloadCertificates, &str),
) -> [Option<PeerRefusal>; 2] {
    let now = SystemTime::now();
    let terms = |keeper: &WorkloadCertificates, own: &str, peer: &str, node: &str| Terms {
        own: keeper.get(&id(own), now).expect("a certificate"),
        bundle: keeper.bundle(),
        peer: Expected { id: id(peer), node: node.into() }.into(),
    };
    let (near, far) = duplex(64 * 1024);
    let clock = || Arc::new(DefaultTimeProvider);
    let client = tls::connect(near, terms(dialling, "cart", "pay", there), clock());
    let server = async {
        let accepted = tls::accept(far, terms(dialled, "pay", "cart", on), clock()).await;
        accepted.map_err(|(refused, _)| refused)
    };
    let (client, server) = tokio::join!(client, server);
    [client.err(), server.err()].map(|refused| refused.map(|refused| refused.why))
}

#[tokio::test]
async fn workloads_of_two_nodes_believe_each_other_and_no_third_node() {
    let dir = tempfile::tempdir().expect("a directory");
    let [root, one, two] = ["ca", "one", "two"].map(|name| dir.path().join(name));
    let authority = ca(&root);
    node(&authority, "node1", &one, DAY);
    node(&authority, "node2", &two, DAY);
    let (one, two) = (keeper(&one, DAY), keeper(&two, DAY));
    for keeper in [&one, &two] {
        let turned = keeper.turn(&HashSet::from([id("cart"), id("pay")]), SystemTime::now(), || 0);
        assert_eq!((turned.minted, turned.failed.len()), (2, 0));
    }
    assert_eq!(meet((&one, "node1"), (&two, "node2")).await, [None, None]);
    let [client, _] = meet((&one, "node1"), (&two, "node3")).await;
    assert_eq!(client, Some(PeerRefusal::WrongNode));
    let [_, server] = meet((&one, "node3"), (&two, "node2")).await;
    assert_eq!(server, Some(PeerRefusal::WrongNode));
}

#[tokio::test]
async fn who_has_no_certificate_says_so() {
    let dir = tempfile::tempdir().expect("a directory");
    let [root, one] = ["ca", "one"].map(|name| dir.path().join(name));
    node(&ca(&root), "node1", &one, DAY);
    let keeper = keeper(&one, DAY);
    let own = keeper.obtain(&id("cart"), SystemTime::now()).expect("a certificate");
    let peer = Expected { id: id("pay"), node: "node2".into() }.into();
    let (near, far) = duplex(64 * 1024);
    let clock = || Arc::new(DefaultTimeProvider);
    let client = tls::connect(near, Terms { own, bundle: keeper.bundle(), peer }, clock());
    let (client, server) = tokio::join!(client, tls::refuse(far, clock()));
    assert_eq!(client.err().map(|refused| refused.why), Some(PeerRefusal::Refused));
    assert!(server.is_some(), "it is to linger");
}

#[test]
fn nothing_outlives_its_issuer_and_nothing_secret_is_shown() {
    let dir = tempfile::tempdir().expect("a directory");
    let [root, one] = ["ca", "one"].map(|name| dir.path().join(name));
    node(&ca(&root), "node1", &one, Duration::from_hours(1));
    let keeper = keeper(&one, DAY);
    keeper.turn(&HashSet::from([id("cart")]), SystemTime::now(), || 0);
    let held = keeper.get(&id("cart"), SystemTime::now()).expect("made");
    assert!(held.not_after() <= SystemTime::now() + Duration::from_hours(1));
    assert_eq!(format!("{held:?}"), "WorkloadCertificate(spiffe://mesh.test/ns/shop/sa/cart)");
    assert!(!format!("{keeper:?}").contains("key"), "{keeper:?}");
}

#[test]
fn certificates_are_renewed_and_kept_while_they_cannot_be() {
    let dir = tempfile::tempdir().expect("a directory");
    let [root, one] = ["ca", "one"].map(|name| dir.path().join(name));
    let authority = ca(&root);
    node(&authority, "node1", &one, DAY);
    let keeper = keeper(&one, Duration::from_mins(10));
    let wanted = HashSet::from([id("cart")]);
    let now = SystemTime::now();
    let turned = keeper.turn(&wanted, now, || 0);
    // Certificates know whole seconds.
    let next = turned.next.expect("wanted");
    assert!(next <= now + Duration::from_mins(5) && next > now + Duration::from_secs(299), "{next:?}");
    let first = keeper.get(&id("cart"), now).expect("made");
    assert_eq!(keeper.turn(&wanted, now + Duration::from_mins(4), || 0).minted, 0);
    // The source breaks: what is there goes on, to its end.
    fs::remove_file(one.join("intermediate.key")).expect("there");
    let half = now + Duration::from_mins(5);
    let turned = keeper.turn(&wanted, half, || 0);
    assert!(matches!(turned.reload, Some(IdentityError::Read { .. })), "{:?}", turned.reload);
    assert_eq!(turned.minted, 1, "what was read goes on issuing");
    let second = keeper.get(&id("cart"), half).expect("made");
    assert!(second.not_after() > first.not_after());
    assert!(keeper.get(&id("cart"), second.not_after() + Duration::from_secs(1)).is_none());
    // Another issuer: everything is made anew, at once.
    node(&authority, "node1", &one, DAY * 2);
    assert_eq!(keeper.turn(&wanted, half, || 0).minted, 1);
    // Nobody wants it any more.
    keeper.turn(&HashSet::new(), half, || 0);
    assert!(keeper.list().is_empty());
}

#[test]
fn an_expired_intermediate_issues_nothing_and_is_tried_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let [root, one] = ["ca", "one"].map(|name| dir.path().join(name));
    node(&ca(&root), "node1", &one, Duration::from_hours(1));
    let keeper = keeper(&one, DAY);
    let later = SystemTime::now() + Duration::from_hours(2);
    let wanted = HashSet::from([id("cart")]);
    // The second turn comes before the next try: it goes on telling why.
    for _ in 0..2 {
        let turned = keeper.turn(&wanted, later, || 0);
        let not_valid = |why: &IdentityError| matches!(why, IdentityError::IssuerNotValid { .. });
        assert!(matches!(&turned.failed[..], [(_, why)] if not_valid(why)), "{turned:?}");
        assert!(!turned.forgot(), "{turned:?}");
        assert_eq!(turned.next, Some(later + Duration::from_secs(1)));
        assert!(keeper.alerts(later).iter().any(|told| told.contains("/sa/cart: ")), "{turned:?}");
    }
    assert!(keeper.obtain(&id("pay"), later).is_none());
    assert_eq!(keeper.turn(&HashSet::from([id("cart"), id("pay")]), later, || 0).failed.len(), 2);
    assert!(keeper.turn(&HashSet::new(), later, || 0).failed.is_empty(), "nobody wants them any more");
}

#[test]
fn a_directory_that_does_not_fit_together_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let [root, other, one, two] = ["ca", "ca2", "one", "two"].map(|name| dir.path().join(name));
    let authority = ca(&root);
    node(&authority, "node1", &one, DAY);
    node(&authority, "node2", &two, DAY);
    let open = || DirectorySource::open(&one).map(|_| ()).expect_err("refused").to_string();
    let good = fs::read(one.join("intermediate.key")).expect("there");
    fs::copy(two.join("intermediate.key"), one.join("intermediate.key")).expect("copied");
    assert!(open().contains("intermediate.key is not the key of"), "{}", open());
    // Another node's, both of it.
    let own = fs::read(one.join("intermediate.pem")).expect("there");
    fs::copy(two.join("intermediate.pem"), one.join("intermediate.pem")).expect("copied");
    assert!(open().contains("intermediate.pem is the certificate of node node2, not of node1"), "{}", open());
    fs::write(one.join("intermediate.pem"), own).expect("written");
    fs::write(one.join("intermediate.key"), good).expect("written");
    fs::write(one.join("revoked.crl"), "junk").expect("written");
    assert!(open().contains("revoked.crl") && open().contains("no PEM block X509 CRL"), "{}", open());
    fs::remove_file(one.join("revoked.crl")).expect("removed");
    ca(&other);
    fs::copy(other.join("bundle.pem"), one.join("bundle.pem")).expect("copied");
    assert!(open().contains("no root of the bundle"), "{}", open());
    fs::copy(one.join("node.pem"), one.join("intermediate.pem")).expect("copied");
    assert!(open().contains("intermediate.pem may issue no certificate"), "{}", open());
}
