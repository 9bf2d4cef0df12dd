//! What roots take back: lists as they are made and read, whom they end, and that nobody unsays them.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateRevocationListParams, CrlDistributionPoint, CrlIssuingDistributionPoint, CrlScope, Issuer,
    KeyIdMethod, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, RevokedCertParams, SerialNumber,
};
use tempfile::TempDir;

use super::forge::{MESSAGE, Party, TD, at, bundle, hours, node, operator, pem, with_uris};
use crate::identity::certificate::Serial;
use crate::identity::error::{Content, ListFault};
use crate::identity::peer::{self, Expected, PeerRole};
use crate::identity::{
    Authority, DirectorySource, IdentityError, LeftBehind, NodeDirectory, OperatorIdentity, PeerRefusal,
    Reload, Replace, Target, Term, TrustBundle, Untrusted, WorkloadCertificates, inventory, next_step,
};

const DAY: Duration = Duration::from_hours(24);

/// A root that may sign lists.
fn root(name: &str) -> Party {
    Party::root_with(TD, &PKCS_ECDSA_P256_SHA256, |params| {
        params.key_usages.push(KeyUsagePurpose::CrlSign);
        params.distinguished_name.push(rcgen::DnType::OrganizationName, name);
    })
}

fn list(number: u64, revoked: &[&[u8]]) -> CertificateRevocationListParams {
    let entry = |der: &&[u8]| RevokedCertParams {
        serial_number: SerialNumber::from_slice(&Serial::read(der).expect("a certificate").number),
        revocation_time: at(-1),
        reason_code: None,
        invalidity_date: None,
    };
    CertificateRevocationListParams {
        this_update: at(-1),
        next_update: at(1),
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs: revoked.iter().map(entry).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    }
}

fn signed(root: &Party, list: &CertificateRevocationListParams) -> Vec<u8> {
    let issuer = Issuer::from_params(&root.params, &root.key);
    list.signed_by(&issuer).expect("a list").der().to_vec()
}

fn text(root: &Party, params: &CertificateRevocationListParams) -> String {
    pem("X509 CRL", &signed(root, params))
}

fn with(roots: &[&Party], text: &str) -> TrustBundle {
    bundle(roots).revoking(text.as_bytes()).expect("good lists")
}

#[test]
fn what_a_root_has_taken_back_is_believed_nowhere() {
    let (root, other) = (root("a"), root("b"));
    let [one, two] = ["node1", "node2"].map(|name| root.issue(node(name)));
    let person = root.issue(operator("alice"));
    let bundle = with(&[&root, &other], &text(&root, &list(1, &[&one.der, &person.der])));
    let verdict = |party: &Party| bundle.verify(hours(0), MESSAGE, &party.sign(MESSAGE)).map(|_| ());
    assert_eq!(verdict(&one), Err(Untrusted::Revoked));
    assert_eq!(verdict(&two), Ok(()));
    // Whoever took the key could set the time of the seal back, so it does not matter.
    for hour in [-1, 0] {
        let seal = person.seal_as(&person.der, MESSAGE);
        assert_eq!(bundle.verify_seal(hours(hour), MESSAGE, &seal), Err(Untrusted::Revoked), "{hour}");
    }
    // The same number from another root is another certificate.
    let bundle = with(&[&root, &other], &text(&other, &list(1, &[&one.der])));
    assert!(bundle.verify(hours(0), MESSAGE, &one.sign(MESSAGE)).is_ok());
    // A list that is past its next update goes on counting.
    let bundle = with(&[&root], &text(&root, &list(1, &[&two.der])));
    let mut late = node("node2");
    late.not_after = at(20);
    assert!(bundle.has_revoked(&Serial::read(&two.der).expect("a certificate")));
    assert!(bundle.verify(hours(10), MESSAGE, &root.issue(late).sign(MESSAGE)).is_ok());
}

#[test]
fn peers_are_refused_in_both_roles_whichever_of_their_certificates_it_is() {
    let root = root("a");
    let mut params = super::forge::authority(TD, rcgen::BasicConstraints::Constrained(0));
    params.distinguished_name.push(rcgen::DnType::CommonName, "node1");
    params.subject_alt_names.push(rcgen::SanType::DnsName("node1".try_into().expect("ASCII")));
    let between = root.issue(params);
    let id = "spiffe://mesh.test/ns/shop/sa/cart";
    let (leaf, direct) = (between.issue(with_uris(&[id])), root.issue(with_uris(&[id])));
    let expected = Expected { id: id.parse().expect("an id"), node: "node1".into() };
    let cases = [
        ("nothing", vec![], Ok(()), Ok(())),
        ("the intermediate", vec![&between.der[..]], Err(PeerRefusal::Revoked), Ok(())),
        ("what the root issued", vec![&direct.der[..]], Ok(()), Err(PeerRefusal::Revoked)),
        // A root takes back what it issued itself, and a leaf of an intermediate is not.
        ("the leaf", vec![&leaf.der[..]], Ok(()), Ok(())),
    ];
    for (what, revoked, by_intermediate, by_root) in cases {
        let bundle = with(&[&root], &text(&root, &list(1, &revoked)));
        for role in [PeerRole::Client, PeerRole::Server] {
            let check = |leaf: &Party, behind: &[&Party]| {
                let behind: Vec<_> = behind.iter().map(|party| party.der.clone().into()).collect();
                let leaf = leaf.der.clone().into();
                peer::check(&bundle, &expected, (&leaf, &behind), role, hours(0)).map(|_| ())
            };
            assert_eq!(check(&leaf, &[&between]), by_intermediate, "{what}, {role:?}");
            assert_eq!(check(&direct, &[]), by_root, "{what}, {role:?}");
        }
    }
}

#[test]
fn lists_that_are_not_good_are_named() {
    let (root, stranger) = (root("a"), root("b"));
    let refused = |text: &str| bundle(&[&root]).revoking(text.as_bytes()).expect_err("refused");
    let good = signed(&root, &list(1, &[]));
    let mut bent = good.clone();
    *bent.last_mut().expect("not empty") ^= 1;
    // A forger has the name, and not the key.
    let forger = Party { params: root.params.clone(), ..super::revocations::root("a") };
    let mut part = list(1, &[]);
    part.issuing_distribution_point = Some(CrlIssuingDistributionPoint {
        distribution_point: CrlDistributionPoint { uris: vec!["http://a.test/crl".to_owned()] },
        scope: Some(CrlScope::UserCertsOnly),
    });
    let cases = [
        ("bent", bent, ListFault::Signature),
        ("forged", signed(&forger, &list(1, &[])), ListFault::Signature),
        ("a part", signed(&root, &part), ListFault::Critical),
        ("short", good[..good.len() - 9].to_vec(), ListFault::Der),
        ("more behind it", [&good[..], &[0]].concat(), ListFault::Der),
        ("no list", root.der.clone(), ListFault::Der),
    ];
    for (what, der, fault) in cases {
        assert_eq!(refused(&pem("X509 CRL", &der)), Content::List(1, fault), "{what}");
    }
    let twice = pem("X509 CRL", &good).repeat(2);
    assert_eq!(refused(&twice), Content::List(2, ListFault::Second));
    let many = text(&stranger, &list(1, &[])).repeat(33);
    assert_eq!(refused(&many), Content::TooManyLists { max: 32 });
    assert!(matches!(refused("-----BEGIN X509 CRL-----\n*\n-----END X509 CRL-----\n"), Content::Pem(_)));
    // A root that has left the bundle has no say, and nobody minds its list.
    assert_eq!(with(&[&root], &text(&stranger, &list(1, &[&root.der]))).revoked_count(), 0);
    assert_eq!(with(&[&root], "").revoked_count(), 0);
}

/// A CA with two nodes and an operator, by files.
struct Site {
    directory: TempDir,
    authority: Authority,
}

impl Site {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let td = TD.parse().expect("a trust domain");
        let ca = directory.path().join("ca");
        let authority = Authority::create(&ca, &td, term(DAY * 30), Replace::Never).expect("a CA");
        let site = Self { directory, authority };
        site.node("one", Replace::Never);
        site.node("two", Replace::Never);
        let (alice, out) = ("alice".parse().expect("a name"), site.path("alice"));
        site.authority.issue_operator(&alice, &out, term(DAY), Replace::Never).expect("an operator");
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn node(&self, name: &str, replace: Replace) {
        let (node, out) = (name.parse().expect("a name"), self.path(name));
        self.authority.issue_node(&node, &out, term(DAY), replace).expect("a node");
    }

    fn revoke(&self, target: &Target) -> Result<usize, IdentityError> {
        self.authority.revoke(target, SystemTime::now()).map(|listed| listed.added.len())
    }

    fn hand_out(&self, file: &str, to: &str) {
        copy(&self.path("ca").join(file), &self.path(to).join(file));
    }

    fn states(&self, directory: &str) -> Vec<(String, String)> {
        let held = inventory(&self.path(directory), SystemTime::now()).expect("a directory");
        held.into_iter().map(|held| (format!("{} {}", held.file, held.who), held.state)).collect()
    }
}

fn term(life: Duration) -> Term {
    Term { now: SystemTime::now(), life }
}

/// As files are put on nodes: under another name, and then renamed.
fn copy(from: &Path, to: &Path) {
    let between = to.with_extension("new");
    fs::copy(from, &between).expect("copied");
    fs::rename(&between, to).expect("renamed");
}

fn of_node(name: &str) -> Target {
    Target::Node(name.parse().expect("a name"))
}

#[test]
fn a_node_is_taken_back_without_its_files_and_everybody_notices() {
    let site = Site::new();
    let now = SystemTime::now();
    let keeper = |name: &str| {
        let source = DirectorySource::open(&site.path(name)).expect("a good directory");
        WorkloadCertificates::new(Box::new(source), DAY)
    };
    let (one, two) = (keeper("one"), keeper("two"));
    let ids =
        ["b", "c", "d"].map(|name| format!("spiffe://mesh.test/ns/a/sa/{name}").parse().expect("an id"));
    let wanted = HashSet::from(ids);
    for keeper in [&one, &two] {
        assert_eq!(keeper.turn(&wanted, now, || 0).minted, 3);
    }
    let signer = NodeDirectory::open(&site.path("one")).expect("a node");
    let reader = NodeDirectory::open(&site.path("two")).expect("a node");
    let signature = signer.current().identity.sign(MESSAGE);
    assert!(reader.current().bundle.verify(now, MESSAGE, &signature).is_ok());
    assert_eq!(site.revoke(&of_node("one")).expect("revoked"), 2, "its own and its intermediate");
    assert_eq!(site.revoke(&of_node("one")).expect("revoked"), 0, "it was on the list already");
    let changes = one.changes();
    for name in ["one", "two"] {
        site.hand_out("revoked.crl", name);
    }
    for directory in [&reader, &signer] {
        assert_eq!(directory.reload(now).expect("good files"), Reload::Changed);
        let verdict = directory.current().bundle.verify(now, MESSAGE, &signature);
        assert_eq!(verdict, Err(Untrusted::Revoked));
    }
    assert_eq!(signer.current().check(now), Err(Untrusted::Revoked), "it knows that it can't sign");
    assert_eq!(reader.current().check(now), Ok(()));
    let turned = one.turn(&wanted, now, || 0);
    let revoked = |(_, why): &(_, Arc<_>)| matches!(**why, IdentityError::IssuerRevoked { .. });
    assert!(turned.failed.len() == 3 && turned.failed.iter().all(revoked), "{turned:?}");
    assert!(turned.forgot(), "{turned:?}");
    let told = one.alerts(now);
    assert!(told.iter().any(|told| told.contains(" and 2 others: ")), "{told:?}");
    // Before they are tried again, too.
    assert_eq!((one.turn(&wanted, now, || 0).minted, one.alerts(now)), (0, told));
    assert!(one.list().is_empty(), "what it made is gone");
    assert!(changes.has_changed().expect("the keeper lives"));
    assert_eq!(two.turn(&wanted, now, || 0).failed.len(), 0);
    // New files end it.
    site.node("one", Replace::Asked);
    assert_eq!(one.turn(&wanted, now, || 0).minted, 3);
    assert_eq!(signer.reload(now).expect("good files"), Reload::Changed);
    assert_eq!(signer.current().check(now), Ok(()));
}

#[test]
fn what_was_taken_back_is_not_unsaid_by_an_older_list_or_none() {
    let site = Site::new();
    let now = SystemTime::now();
    // Somebody takes back other things with a copy of the CA: the same numbers, and less of what the CA itself takes back.
    let fork = site.path("fork");
    fs::create_dir(&fork).expect("a directory");
    for file in fs::read_dir(site.path("ca")).expect("the CA") {
        let file = file.expect("a file");
        fs::copy(file.path(), fork.join(file.file_name())).expect("copied");
    }
    let forked = Authority::load(&fork).expect("a CA");
    for target in [of_node("two"), Target::Operator("alice".parse().expect("a name"))] {
        forked.revoke(&target, now).expect("revoked");
    }
    site.revoke(&of_node("one")).expect("revoked");
    fs::copy(site.path("ca/revoked.crl"), site.path("older")).expect("copied");
    let person = Target::Operator("alice".parse().expect("a name"));
    assert_eq!(site.revoke(&person).expect("revoked"), 1);
    site.hand_out("revoked.crl", "two");
    let directory = NodeDirectory::open(&site.path("two")).expect("a node");
    let source = DirectorySource::open(&site.path("two")).expect("a node");
    let keeper = WorkloadCertificates::new(Box::new(source), DAY);
    let list = site.path("two/revoked.crl");
    let gone = |result: Option<IdentityError>| {
        assert!(matches!(result, Some(IdentityError::ListWentBack { .. })), "{result:?}");
    };
    copy(&site.path("older"), &list);
    gone(directory.reload(now).err());
    gone(keeper.turn(&HashSet::new(), now, || 0).reload);
    copy(&site.path("fork/revoked.crl"), &list);
    gone(directory.reload(now).err());
    fs::remove_file(&list).expect("there");
    gone(directory.reload(now).err());
    assert_eq!(directory.current().bundle.revoked_count(), 3, "what was read goes on");
    fs::write(&list, "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n").expect("written");
    let error = directory.reload(now).expect_err("refused").to_string();
    assert!(error.contains("two/revoked.crl: its list number 1 is not DER"), "{error}");
    let error = OperatorIdentity::load(&site.path("alice"), now).map(|_| "believes itself");
    assert_eq!(error.expect("no list there"), "believes itself");
    site.hand_out("revoked.crl", "alice");
    let error = OperatorIdentity::load(&site.path("alice"), now).expect_err("refused").to_string();
    assert!(error.contains("revoked"), "{error}");
}

#[test]
fn only_what_was_issued_here_is_taken_back() {
    let (site, other) = (Site::new(), Site::new());
    let refused = |target: Target| site.revoke(&target).expect_err("refused").to_string();
    assert!(refused(of_node("three")).contains("names no certificate of node three"));
    assert!(refused(of_node("alice")).contains("names no certificate of node alice"));
    let foreign = refused(Target::Certificate(other.path("one/node.pem")));
    assert!(foreign.contains("no root of this directory has issued"), "{foreign}");
    let root = refused(Target::Certificate(site.path("ca/root.pem")));
    assert!(root.contains("`sluice ca rotate`"), "{root}");
    assert!(refused(Target::Certificate(site.path("one/node.key"))).contains("no PEM block CERTIFICATE"));
    assert!(refused(Target::Serial("xyz".to_owned())).contains("no serial number"));
    assert!(!site.path("ca/revoked.crl").exists());
    assert_eq!(site.revoke(&Target::Certificate(site.path("one/intermediate.pem"))).expect("revoked"), 1);
    let held = inventory(&site.path("ca"), SystemTime::now()).expect("a directory");
    let two = held.iter().find(|held| held.who == "node two").expect("issued");
    assert_eq!(site.revoke(&Target::Serial(two.serial.to_lowercase())).expect("revoked"), 1);
    let states = site.states("ca");
    let state = |who: &str| states.iter().find(|(what, _)| what == who).map(|(_, state)| &**state);
    assert_eq!(state("issued intermediate one"), Some("revoked"));
    assert_eq!(state("issued node one"), Some("valid"));
    assert_eq!(state("issued node two"), Some("revoked"));
    // Whoever gets files from now on gets the list.
    site.node("three", Replace::Never);
    assert_eq!(
        fs::read(site.path("three/revoked.crl")).expect("there"),
        fs::read(site.path("ca/revoked.crl")).expect("there")
    );
    let has_issued = |serial: &str| site.authority.has_issued(serial).expect("it is written down");
    assert!(has_issued(&two.serial) && !has_issued("0A0B"));
    fs::write(site.path("ca/issued.jsonl"), "{}\n").expect("written");
    assert!(refused(of_node("two")).contains("issued.jsonl: its line 1"));
    // What needs none of its lines goes on.
    assert_eq!(site.revoke(&Target::Serial("0A0B".to_owned())).expect("revoked"), 1);
}

#[test]
fn another_nodes_files_are_not_taken_for_new_ones() {
    let site = Site::new();
    let now = SystemTime::now();
    let directory = NodeDirectory::open(&site.path("one")).expect("a node");
    let source = DirectorySource::open(&site.path("one")).expect("a node");
    let keeper = WorkloadCertificates::new(Box::new(source), DAY);
    let put = |from: &str, to: &str| {
        for file in ["node.pem", "node.key", "intermediate.pem", "intermediate.key"] {
            copy(&site.path(from).join(file), &site.path(to).join(file));
        }
    };
    fs::create_dir(site.path("kept")).expect("a directory");
    put("one", "kept");
    put("two", "one");
    let is_told = |error: Option<IdentityError>| {
        let told = error.as_ref().map(ToString::to_string).unwrap_or_default();
        assert!(told.contains("is the certificate of node two, not of one"), "{told}");
    };
    is_told(directory.reload(now).err());
    is_told(keeper.turn(&HashSet::new(), now, || 0).reload);
    assert_eq!(&*directory.current().identity.name().shared(), "one", "what was read goes on");
    put("kept", "one");
    assert_eq!(directory.reload(now).expect("good files"), Reload::Changed);
    assert!(keeper.turn(&HashSet::new(), now, || 0).reload.is_none());
}

#[test]
fn who_sealed_documents_is_taken_back_for_good() {
    let site = Site::new();
    let later = SystemTime::now() + DAY * 3;
    let alice = || Target::Operator("alice".parse().expect("a name"));
    assert_eq!(site.revoke(&of_node("one")).expect("revoked"), 2);
    // The certificate has ended, and what it sealed has not.
    assert_eq!(
        site.authority.revoke(&alice(), later).expect("revoked").count,
        1,
        "nodes' go with their time"
    );
    let listed = site.authority.revoke(&Target::Serial("0A0B".to_owned()), later).expect("revoked");
    assert_eq!(listed.count, 2);
    assert_eq!(site.authority.revoke(&alice(), later).expect("revoked").added.len(), 0);
}

#[test]
fn one_root_follows_another_and_both_are_believed_in_between() {
    let mut site = Site::new();
    let now = SystemTime::now();
    let step = |site: &Site| next_step(&site.path("ca"));
    let advice = |error: Result<(), IdentityError>, words: &str| {
        let error = error.expect_err("refused").to_string();
        assert!(error.contains(words), "{error}");
    };
    assert_eq!(step(&site), None);
    advice(site.authority.promote_next().map(|_| ()), "`sluice ca rotate prepare` comes before");
    advice(site.authority.retire_old(now, LeftBehind::Asked), "`sluice ca rotate sign` comes before");
    assert_eq!(site.revoke(&of_node("one")).expect("revoked"), 2);
    site.authority.prepare_next(term(DAY * 60)).expect("prepared");
    assert_eq!(step(&site), Some("sign"));
    advice(site.authority.prepare_next(term(DAY * 60)).map(|_| ()), "prepared already");
    let td = TD.parse().expect("a trust domain");
    let again = Authority::create(&site.path("ca"), &td, term(DAY), Replace::Asked).map(|_| ());
    advice(again, "a rotation of the root is under way");
    // Nodes learn of both, and what the first has issued goes on.
    site.hand_out("bundle.pem", "two");
    let two = NodeDirectory::open(&site.path("two")).expect("a node");
    let old = two.current().identity.sign(MESSAGE);
    assert!(two.current().bundle.verify(now, MESSAGE, &old).is_ok());
    let before = site.authority.own_number();
    site.authority = site.authority.promote_next().expect("the next issues");
    assert_ne!(site.authority.own_number(), before);
    assert_eq!(step(&site), Some("finish"));
    advice(site.authority.prepare_next(term(DAY * 60)).map(|_| ()), "still in bundles");
    // What the old root has issued is taken back by the old root.
    assert_eq!(site.revoke(&of_node("two")).expect("revoked"), 2);
    site.node("two", Replace::Asked);
    assert_eq!(two.reload(now).expect("good files"), Reload::Changed);
    let new = two.current().identity.sign(MESSAGE);
    assert!(two.current().bundle.verify(now, MESSAGE, &new).is_ok());
    assert_eq!(two.current().bundle.verify(now, MESSAGE, &old), Err(Untrusted::Revoked));
    assert_eq!(two.current().bundle.revoked_count(), 4);
    // Alice has nothing of the new root, and from node one all was taken back.
    advice(site.authority.retire_old(now, LeftBehind::Nobody), "certificates of operator alice: ");
    // Nobody waits for one from whom all was taken back.
    site.revoke(&Target::Operator("alice".parse().expect("a name"))).expect("revoked");
    site.authority.retire_old(now, LeftBehind::Nobody).expect("finished");
    assert_eq!(step(&site), None);
    assert!(!site.path("ca/old-root.key").exists() && !site.path("ca/revoked.crl").exists());
    site.hand_out("bundle.pem", "two");
    assert_eq!(two.reload(now).expect("good files"), Reload::Changed);
    assert!(two.current().bundle.verify(now, MESSAGE, &new).is_ok());
    assert_eq!(two.current().bundle.verify(now, MESSAGE, &old), Err(Untrusted::UnknownIssuer));
    let states = site.states("ca");
    assert!(states.contains(&("issued operator alice".to_owned(), "of a root that is gone".to_owned())));
}

#[test]
fn who_lost_what_the_new_root_gave_is_waited_for() {
    let mut site = Site::new();
    let now = SystemTime::now();
    let left = |site: &Site| site.authority.left_behind(now).expect("all is written down");
    site.authority.prepare_next(term(DAY * 60)).expect("prepared");
    site.authority = site.authority.promote_next().expect("the next issues");
    site.node("one", Replace::Asked);
    assert!(!left(&site).contains("node one"), "{:?}", left(&site));
    let revoke = |site: &Site, file| {
        assert_eq!(site.revoke(&Target::Certificate(site.path(file))).expect("revoked"), 1);
        assert!(left(site).contains("node one"), "{file}: {:?}", left(site));
    };
    for files in [["one/node.pem", "one/intermediate.pem"], ["one/intermediate.pem", "one/node.pem"]] {
        for file in files {
            revoke(&site, file);
        }
        site.node("one", Replace::Asked);
        assert!(!left(&site).contains("node one"), "{:?}", left(&site));
    }
}

#[test]
fn what_is_shown_of_a_directory_names_what_is_wrong() {
    let site = Site::new();
    let names = |directory: &str| {
        let states = site.states(directory);
        states.into_iter().map(|(what, state)| format!("{what}: {state}")).collect::<Vec<_>>()
    };
    assert_eq!(
        names("one"),
        [
            "bundle.pem spiffe://mesh.test: valid",
            "node.pem spiffe://mesh.test/node/one: valid",
            "intermediate.pem spiffe://mesh.test one: valid",
        ]
    );
    fs::copy(site.path("two/node.key"), site.path("one/node.key")).expect("copied");
    fs::remove_file(site.path("one/intermediate.key")).expect("there");
    fs::write(site.path("one/bundle.pem"), "").expect("written");
    let found = names("one");
    assert!(found[0].contains("it holds no PEM block CERTIFICATE"), "{found:?}");
    assert!(
        found.contains(&"node.pem spiffe://mesh.test/node/one: valid, node.key is another one's".to_owned())
    );
    assert!(found.iter().any(|line| line.ends_with("valid, without intermediate.key")), "{found:?}");
    let later = inventory(&site.path("two"), SystemTime::now() + DAY * 2).expect("a directory");
    assert!(later.iter().filter(|held| held.state == "expired").count() == 2, "{later:?}");
    let none = inventory(&site.path("none"), SystemTime::now()).expect_err("no directory").to_string();
    assert!(none.contains("none"), "{none}");
}
