//! What a CA writes is what an agent reads; what does not belong together is refused.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::forge::{MESSAGE, TD, hours};
use crate::identity::{
    Authority, DirectorySource, IdentityError, NodeDirectory, NodeIdentity, Reload, Replace, Term,
    TrustBundle, Untrusted, inventory,
};

const DAY: Duration = Duration::from_hours(24);

fn term(life: Duration) -> Term {
    Term { now: hours(0), life }
}

struct Site {
    root: TempDir,
}

impl Site {
    /// A CA in `ca`.
    fn new() -> Self {
        let root = tempfile::tempdir().expect("a directory");
        let site = Self { root };
        site.create("ca", Replace::Never).expect("a CA");
        site
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.root.path().join(name)
    }

    fn create(&self, ca: &str, replace: Replace) -> Result<Authority, IdentityError> {
        let trust_domain = TD.parse().expect("a trust domain");
        Authority::create(&self.path(ca), &trust_domain, term(DAY * 100), replace)
    }

    fn node(&self, ca: &str, name: &str, out: &str, replace: Replace) -> Result<(), IdentityError> {
        let ca = Authority::load(&self.path(ca))?;
        let name = name.parse().expect("a node's name");
        ca.issue_node(&name, &self.path(out), term(DAY), replace).map(|_| ())
    }
}

fn mode(file: &Path) -> u32 {
    fs::metadata(file).expect("a file").mode() & 0o7777
}

#[test]
fn what_a_ca_writes_an_agent_reads() {
    let site = Site::new();
    site.node("ca", "node1", "one", Replace::Never).expect("a node");
    site.node("ca", "node2", "two", Replace::Never).expect("another node");
    let identity = NodeIdentity::load(&site.path("one"), hours(0)).expect("an identity");
    assert_eq!((&**identity.name(), identity.not_after()), ("node1", hours(24)));
    let bundle = TrustBundle::load(&site.path("two/bundle.pem")).expect("a bundle");
    assert_eq!((&**bundle.trust_domain(), bundle.not_after()), (TD, hours(2400)));
    let by = bundle.verify(hours(0), MESSAGE, &identity.sign(MESSAGE)).expect("a good signature");
    assert_eq!((&*by.node, &*by.trust_domain), ("node1", TD));
    let verdict = bundle.verify(hours(25), MESSAGE, &identity.sign(MESSAGE));
    assert_eq!(verdict, Err(Untrusted::Expired));
    for (file, expected) in [
        ("ca", 0o700),
        ("ca/root.key", 0o600),
        ("ca/root.pem", 0o644),
        ("ca/bundle.pem", 0o644),
        ("one", 0o700),
        ("one/node.key", 0o600),
        ("one/node.pem", 0o644),
        ("one/intermediate.key", 0o600),
        ("one/intermediate.pem", 0o644),
        ("one/bundle.pem", 0o644),
    ] {
        assert_eq!(mode(&site.path(file)), expected, "{file}");
    }
    let names = |directory: &str| fs::read_dir(site.path(directory)).expect("a directory").count();
    assert_eq!((names("ca"), names("one")), (4, 5), "nothing else is left behind");
}

#[test]
fn nothing_is_replaced_unasked() {
    let site = Site::new();
    let before = fs::read(site.path("ca/root.key")).expect("a key");
    for name in ["root.key", "root.pem", "bundle.pem"] {
        let other = site.path(name).with_extension("");
        fs::create_dir(&other).expect("a directory");
        fs::copy(site.path("ca").join(name), other.join(name)).expect("copied");
        let error = site.create(name.split_once('.').expect("a suffix").0, Replace::Never);
        let error = error.expect_err("something is there").to_string();
        assert!(
            error.contains(&format!("{name} is there already")) && error.contains("--replace"),
            "{error}"
        );
        assert_eq!(fs::read_dir(&other).expect("a directory").count(), 1, "{name}");
        fs::remove_dir_all(other).expect("removed");
    }
    site.create("ca", Replace::Never).expect_err("all are there");
    assert_eq!(fs::read(site.path("ca/root.key")).expect("a key"), before);
    site.create("ca", Replace::Asked).expect("it was asked for");
    assert_ne!(fs::read(site.path("ca/root.key")).expect("a key"), before);
    assert_eq!(mode(&site.path("ca/root.key")), 0o600);
}

#[test]
fn a_node_is_renewed_as_itself() {
    let site = Site::new();
    site.node("ca", "node1", "one", Replace::Never).expect("a node");
    let error = site.node("ca", "node1", "one", Replace::Never).expect_err("it is there").to_string();
    assert!(error.contains("--renew"), "{error}");
    let error = site.node("ca", "node2", "one", Replace::Asked).expect_err("another node").to_string();
    assert!(error.contains("certificate of node node1, not of node2"), "{error}");

    let node = NodeDirectory::open(&site.path("one")).expect("a node's directory");
    let old = node.current();
    assert_eq!(node.reload(hours(0)).expect("nothing new"), Reload::Unchanged);
    site.node("ca", "node1", "one", Replace::Asked).expect("renewed");
    assert_eq!(node.reload(hours(0)).expect("new files"), Reload::Changed);
    assert_eq!(node.reload(hours(0)).expect("nothing new"), Reload::Unchanged);
    let new = node.current();
    assert!(!std::sync::Arc::ptr_eq(&old, &new));
    for identity in [&old.identity, &new.identity] {
        assert!(new.bundle.verify(hours(0), MESSAGE, &identity.sign(MESSAGE)).is_ok());
    }
}

#[test]
fn what_is_wrong_leaves_what_is_there() {
    let site = Site::new();
    site.node("ca", "node1", "one", Replace::Never).expect("a node");
    site.node("ca", "node1", "again", Replace::Never).expect("the same node");
    let node = NodeDirectory::open(&site.path("one")).expect("a node's directory");
    let before = node.current();
    let replace = |name: &str, with: &[u8]| {
        let staged = site.path("staged");
        fs::write(&staged, with).expect("a file");
        fs::set_permissions(&staged, Permissions::from_mode(0o600)).expect("a mode");
        fs::rename(staged, site.path("one").join(name)).expect("renamed");
    };
    let (certificate, key) = (
        fs::read(site.path("one/node.pem")).expect("a certificate"),
        fs::read(site.path("one/node.key")).expect("a key"),
    );
    let (new_certificate, new_key) = (
        fs::read(site.path("again/node.pem")).expect("a certificate"),
        fs::read(site.path("again/node.key")).expect("a key"),
    );
    let refused = |expected: &str| {
        let error = node.reload(hours(0)).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
        assert!(std::sync::Arc::ptr_eq(&before, &node.current()));
    };
    replace("node.pem", b"");
    refused("node.pem: it holds no PEM block CERTIFICATE");
    replace("node.pem", &new_certificate);
    refused("node.key is not the key of");
    replace("node.key", b"-----BEGIN EC PRIVATE KEY-----\n");
    refused("node.key: it holds no PEM block PRIVATE KEY");
    fs::remove_file(site.path("one/node.key")).expect("removed");
    refused("node.key: No such file");
    replace("node.key", &new_key);
    assert_eq!(node.reload(hours(0)).expect("both are new"), Reload::Changed);
    replace("node.pem", &certificate);
    replace("node.key", &key);
    let error = node.reload(hours(25)).expect_err("over").to_string();
    assert!(error.contains("does not verify against") && error.contains("expired"), "{error}");
}

/// An agent that starts after its certificate has ended still follows the others, and signs again once renewed.
#[test]
fn a_node_that_has_expired_still_believes_others() {
    let site = Site::new();
    site.node("ca", "node1", "one", Replace::Never).expect("a node");
    let node = NodeDirectory::open(&site.path("one")).expect("a node's directory");
    let trust = node.current();
    assert_eq!(trust.identity.check(hours(24)), Ok(()));
    assert_eq!(trust.identity.check(hours(25)), Err(Untrusted::Expired));
    assert_eq!(trust.identity.check(hours(-1)), Err(Untrusted::NotYetValid));
    let error = NodeIdentity::load(&site.path("one"), hours(25)).expect_err("over").to_string();
    assert!(error.contains("node.pem does not verify against") && error.contains("expired"), "{error}");

    let renew = |out: &str, hour: i64| {
        let term = Term { now: hours(hour), life: DAY };
        let ca = Authority::load(&site.path("ca")).expect("a CA");
        let name = "node1".parse().expect("a node's name");
        ca.issue_node(&name, &site.path(out), term, Replace::Asked).expect("issued");
    };
    renew("other", 25);
    let other = NodeIdentity::load(&site.path("other"), hours(26)).expect("an identity");
    let verdict = trust.bundle.verify(hours(26), MESSAGE, &other.sign(MESSAGE));
    assert!(verdict.is_ok(), "{verdict:?}");
    renew("one", 25);
    assert_eq!(node.reload(hours(26)).expect("new files"), Reload::Changed);
    assert_eq!(node.current().identity.check(hours(26)), Ok(()));
}

#[test]
fn files_that_do_not_belong_together() {
    let site = Site::new();
    site.create("other", Replace::Never).expect("another CA");
    site.node("ca", "node1", "one", Replace::Never).expect("a node");
    site.node("other", "node1", "two", Replace::Never).expect("a node of the other CA");
    let says = |expected: &str| {
        let error = NodeIdentity::load(&site.path("one"), hours(0)).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
        let error = NodeDirectory::open(&site.path("one")).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    };
    let copy = |from: &str, to: &str| fs::copy(site.path(from), site.path(to)).expect("copied");
    copy("two/bundle.pem", "one/bundle.pem");
    says("bundle.pem: no root of the bundle has issued the certificate");
    copy("ca/bundle.pem", "one/bundle.pem");
    copy("one/intermediate.pem", "one/node.pem");
    says("node.pem: its certificate is not that of a node: the certificate is one of a CA");
    copy("two/node.pem", "one/node.pem");
    says("node.key is not the key of");
    fs::set_permissions(site.path("one/node.key"), Permissions::from_mode(0o644)).expect("a mode");
    says("node.key can be read by everybody (mode 0644): chmod 600 it");
    fs::write(site.path("one/bundle.pem"), vec![b'a'; 300_000]).expect("a file");
    says("bundle.pem has more than 262144 bytes");
    fs::remove_file(site.path("one/bundle.pem")).expect("removed");
    says("bundle.pem: No such file");
}

#[test]
fn a_ca_that_cannot_issue_says_why() {
    let site = Site::new();
    let says = |life: Duration, hour: i64, expected: &str| {
        let ca = Authority::load(&site.path("ca")).expect("a CA");
        let term = Term { now: hours(hour), life };
        let name = "node1".parse().expect("a node's name");
        let error = ca.issue_node(&name, &site.path("out"), term, Replace::Never).expect_err(expected);
        assert!(error.to_string().contains(expected), "{error}");
        assert!(!site.path("out").exists(), "nothing is written");
    };
    says(DAY * 101, 0, "root.pem ends at");
    says(DAY, 2401, "root.pem is not valid now");
    says(DAY, -1, "root.pem is not valid now");
    says(Duration::from_secs(u64::MAX), 0, "after the year 9999");
    fs::write(site.path("ca/bundle.pem"), Site::new().bundle()).expect("a file");
    says(DAY, 0, "bundle.pem does not hold");
}

impl Site {
    fn bundle(&self) -> Vec<u8> {
        fs::read(self.path("ca/bundle.pem")).expect("a bundle")
    }
}

#[test]
fn a_root_is_replaced_under_way() {
    let site = Site::new();
    site.create("new", Replace::Never).expect("a new CA");
    let both = [site.bundle(), fs::read(site.path("new/root.pem")).expect("a root")].concat();
    site.node("ca", "node1", "one", Replace::Never).expect("a node");
    site.node("ca", "node2", "two", Replace::Never).expect("another node");
    fs::write(site.path("ca/bundle.pem"), &both).expect("a file");
    fs::write(site.path("new/bundle.pem"), &both).expect("a file");
    let load = |name: &str| NodeDirectory::open(&site.path(name)).expect("a node's directory").current();
    let meet = || {
        for (signer, verifier) in [("one", "two"), ("two", "one")] {
            let signature = load(signer).identity.sign(MESSAGE);
            let verdict = load(verifier).bundle.verify(hours(0), MESSAGE, &signature);
            assert!(verdict.is_ok(), "{signer} to {verifier}: {verdict:?}");
        }
    };
    for (name, out) in [("node1", "one"), ("node2", "two")] {
        fs::write(site.path(out).join("bundle.pem"), &both).expect("a file");
        meet();
        let _ = name;
    }
    for (name, out) in [("node1", "one"), ("node2", "two")] {
        site.node("new", name, out, Replace::Asked).expect("renewed by the new CA");
        meet();
    }
    for out in ["one", "two"] {
        fs::copy(site.path("new/root.pem"), site.path(out).join("bundle.pem")).expect("copied");
        meet();
    }
}

#[test]
fn a_ca_and_a_node_share_no_directory() {
    let site = Site::new();
    site.node("ca", "node1", "one", Replace::Never).expect("a node");
    let error = site.node("ca", "node1", "ca", Replace::Asked).expect_err("a CA is there").to_string();
    assert!(error.contains("root.key") && error.contains("a directory of its own"), "{error}");
    let error = site.create("one", Replace::Asked).expect_err("a node is there").to_string();
    assert!(error.contains("node.pem") && error.contains("a directory of its own"), "{error}");
}

#[test]
fn nothing_is_put_where_others_write() {
    let site = Site::new();
    fs::create_dir(site.path("open")).expect("a directory");
    fs::set_permissions(site.path("open"), Permissions::from_mode(0o777)).expect("a mode");
    let error = site.node("ca", "node1", "open", Replace::Never).expect_err("open").to_string();
    assert!(error.contains("may be written by others (mode 0777)"), "{error}");
    assert_eq!(fs::read_dir(site.path("open")).expect("a directory").count(), 0);
}

#[test]
fn nothing_is_read_where_others_may_replace_it() {
    let site = Site::new();
    site.node("ca", "node1", "one", Replace::Never).expect("a node");
    for (mode, expected) in [
        (0o700, None),
        (0o755, None),
        (0o1777, None),
        (0o3777, None),
        (0o777, Some("may be written by others (mode 0777)")),
        (0o775, Some("may be written by others (mode 0775)")),
        (0o702, Some("may be written by others (mode 0702)")),
    ] {
        for directory in ["ca", "one"] {
            fs::set_permissions(site.path(directory), Permissions::from_mode(mode)).expect("a mode");
        }
        let (ca, one) = (site.path("ca"), site.path("one"));
        let shown = inventory(&one, SystemTime::UNIX_EPOCH).expect("what is there");
        let broken = shown.into_iter().map(|held| held.state).find(|state| state.contains("by others"));
        for (what, error) in [
            ("a CA", Authority::load(&ca).err().map(|error| error.to_string())),
            ("a node", NodeDirectory::open(&one).err().map(|error| error.to_string())),
            ("its workloads", DirectorySource::open(&one).err().map(|error| error.to_string())),
            ("what it shows", broken),
        ] {
            let is_it = match (&error, expected) {
                (Some(error), Some(expected)) => error.contains(expected),
                (error, expected) => error.is_none() && expected.is_none(),
            };
            assert!(is_it, "{what}, {mode:o}: {error:?}");
        }
    }
}

#[test]
fn keys_are_in_no_debug_output() {
    let site = Site::new();
    site.node("ca", "node1", "one", Replace::Never).expect("a node");
    let ca = Authority::load(&site.path("ca")).expect("a CA");
    let node = NodeDirectory::open(&site.path("one")).expect("a node's directory");
    assert_eq!(format!("{ca:?}"), "Authority(mesh.test)");
    let trust = node.current();
    assert_eq!(format!("{:?}", trust.identity), "NodeIdentity(spiffe://mesh.test/node/node1)");
    assert_eq!(format!("{:?}", trust.bundle), "TrustBundle(mesh.test, 1 roots)");
}
