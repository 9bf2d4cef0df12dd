//! `sluice ca` on the built binary, with openssl as the outside judge of what it makes.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::SystemTime;

use agent::identity::{NodeDirectory, OperatorIdentity, TrustBundle, Untrusted};
use anyhow::{Context, Result, bail, ensure};
use lab::built_binary;
use tempfile::TempDir;

const TD: &str = "mesh.example";

struct Site {
    directory: TempDir,
}

impl Site {
    fn new() -> Result<Self> {
        Ok(Self { directory: tempfile::tempdir()? })
    }

    /// One with a CA in `ca` and the files of node1 in `node1`.
    fn with_node() -> Result<Self> {
        let site = Self::new()?;
        site.done(&["init", "--dir", "ca", "--trust-domain", TD])?;
        site.done(&["node", "--dir", "ca", "--name", "node1", "--out", "node1"])?;
        Ok(site)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn run(&self, mut command: Command) -> Result<Output> {
        command.current_dir(self.directory.path()).env_remove("SLUICE_TRUST_DOMAIN");
        command.output().with_context(|| format!("running {command:?}"))
    }

    fn ca(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(built_binary()?);
        command.arg("ca").args(arguments);
        self.run(command)
    }

    /// Runs a shell before which the verb's words stand as `"$@"`.
    fn shell(&self, script: &str, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).arg(built_binary()?).arg("ca").args(arguments);
        self.run(command)
    }

    fn done(&self, arguments: &[&str]) -> Result<String> {
        succeeded(&format!("{arguments:?}"), self.ca(arguments)?)
    }

    fn openssl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("openssl");
        command.args(arguments);
        succeeded(&format!("openssl {arguments:?}"), self.run(command)?)
    }

    /// Runs what must fail: its exit code, words of its one line (of its first, where it is about usage), and every
    /// file as it was.
    fn refuses(&self, code: i32, arguments: &[&str], words: &[&str]) -> Result<()> {
        let before = contents(self.directory.path())?;
        let output = self.ca(arguments)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(code), "{arguments:?}: {}:\n{said}", output.status);
        ensure!(output.stdout.is_empty(), "{arguments:?} printed something");
        ensure!(code == 2 || said.lines().count() == 1, "{arguments:?}: not one line:\n{said}");
        for word in words {
            ensure!(said.contains(word), "{arguments:?}: no {word:?} in {said:?}");
        }
        ensure!(contents(self.directory.path())? == before, "{arguments:?} changed files");
        Ok(())
    }
}

fn succeeded(what: &str, output: Output) -> Result<String> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{what}: {}:\n{said}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// Every file below a directory, with its mode and content.
fn contents(directory: &Path) -> Result<BTreeMap<PathBuf, (u32, Vec<u8>)>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let mode = fs::symlink_metadata(&path)?.mode();
        if path.is_dir() {
            found.extend(contents(&path)?);
            found.insert(path, (mode, Vec::new()));
        } else {
            found.insert(path.clone(), (mode, fs::read(&path)?));
        }
    }
    Ok(found)
}

fn modes(directory: &Path) -> Result<Vec<(String, u32)>> {
    let relative = |path: &Path| path.strip_prefix(directory).unwrap_or(path).display().to_string();
    let found = contents(directory)?;
    Ok(found.iter().map(|(path, (mode, _))| (relative(path), mode & 0o7777)).collect())
}

#[test]
fn modes_do_not_depend_on_the_umask() -> Result<()> {
    for (umask, public) in [("000", 0o644), ("022", 0o644), ("077", 0o600)] {
        let site = Site::new()?;
        let script = format!("umask {umask}; exec \"$@\"");
        let init = site.shell(&script, &["init", "--dir", "a/ca", "--trust-domain", TD])?;
        succeeded("init", init)?;
        let node = site.shell(&script, &["node", "--dir", "a/ca", "--name", "node1", "--out", "b"])?;
        succeeded("node", node)?;
        let expected = [
            ("a", 0o700),
            ("a/ca", 0o700),
            ("a/ca/bundle.pem", public),
            ("a/ca/issued.jsonl", public),
            ("a/ca/root.key", 0o600),
            ("a/ca/root.pem", public),
            ("b", 0o700),
            ("b/bundle.pem", public),
            ("b/intermediate.key", 0o600),
            ("b/intermediate.pem", public),
            ("b/node.key", 0o600),
            ("b/node.pem", public),
        ];
        let expected: Vec<_> = expected.map(|(name, mode)| (name.to_owned(), mode)).into();
        assert_eq!(modes(site.directory.path())?, expected, "umask {umask}");
    }
    Ok(())
}

#[test]
fn what_was_made_is_said() -> Result<()> {
    let site = Site::new()?;
    let table = site.done(&["init", "--dir", "ca", "--trust-domain", TD])?;
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    ensure!(rows[0] == ["ID", "DIRECTORY", "NOT", "AFTER"], "{table}");
    ensure!(rows[1][..2] == ["spiffe://mesh.example", "ca"], "{table}");
    let json =
        site.done(&["node", "--dir", "ca", "--name", "n.1", "--out", "n", "--life", "60s", "-o", "json"])?;
    let made: serde_json::Value = serde_json::from_str(&json)?;
    assert_eq!(made["id"], "spiffe://mesh.example/node/n.1");
    assert_eq!(made["directory"], "n");
    let until = made["not_after"].as_str().context("a time")?;
    let dates = site.openssl(&["x509", "-in", "n/node.pem", "-noout", "-enddate", "-dateopt", "iso_8601"])?;
    let said = until.replace('T', " ").replace(".000Z", "Z");
    ensure!(dates.trim() == format!("notAfter={said}"), "{dates} is not {said}");
    Ok(())
}

#[test]
fn nothing_is_overwritten_unasked() -> Result<()> {
    let site = Site::with_node()?;
    let init = ["init", "--dir", "ca", "--trust-domain", TD];
    site.refuses(1, &init, &["ca/root.key is there already", "--replace"])?;
    let node = ["node", "--dir", "ca", "--name", "node1", "--out", "node1"];
    site.refuses(1, &node, &["node1/bundle.pem is there already", "--renew"])?;
    let other = ["node", "--dir", "ca", "--name", "node2", "--out", "node1", "--renew"];
    site.refuses(1, &other, &["node1/node.pem is the certificate of node node1, not of node2"])?;
    let into_ca = ["node", "--dir", "ca", "--name", "node1", "--out", "ca", "--renew"];
    site.refuses(1, &into_ca, &["ca/root.key", "give the node a directory of its own"])?;
    let over_node = ["init", "--dir", "node1", "--trust-domain", TD, "--replace"];
    site.refuses(1, &over_node, &["node1/node.pem", "give the CA a directory of its own"])?;

    let before = contents(&site.path("node1"))?;
    site.done(&[&node[..], &["--renew"]].concat())?;
    let after = contents(&site.path("node1"))?;
    for (path, (mode, content)) in &before {
        let same = path.is_dir() || path.ends_with("bundle.pem");
        assert_eq!(after[path].1 == *content, same, "{}", path.display());
        assert_eq!(after[path].0, *mode, "{}", path.display());
    }
    ensure!(before.len() == after.len(), "files were left behind");
    site.done(&[&init[..], &["--replace"]].concat())?;
    let bundle = TrustBundle::load(&site.path("ca/bundle.pem"))?;
    let node = NodeDirectory::open(&site.path("node1"))?.current();
    let verdict = bundle.verify(SystemTime::now(), b"table", &node.identity.sign(b"table"));
    assert_eq!(verdict, Err(Untrusted::UnknownIssuer), "the CA that was replaced is not believed");
    Ok(())
}

#[test]
fn usage_is_checked_before_anything_is_done() -> Result<()> {
    let site = Site::with_node()?;
    let init = |td: &str, words: &[&str]| {
        site.refuses(
            2,
            &["init", "--dir", "new", "--trust-domain", td],
            &[&["--trust-domain"], words].concat(),
        )
    };
    init("Mesh.example", &["'M' is not allowed at byte 1"])?;
    init("spiffe://mesh", &["':' is not allowed at byte 7"])?;
    init("", &["it is empty"])?;
    init(&"a".repeat(256), &["256 bytes, at most 255"])?;
    let node = |name: &str, words: &[&str]| {
        let arguments = ["node", "--dir", "ca", "--out", "new", "--name", name];
        site.refuses(2, &arguments, &[&["--name"], words].concat())
    };
    node("Node1", &["'N' is not allowed at byte 1"])?;
    node("node_1", &["'_' is not allowed at byte 5"])?;
    node("../node1", &["'/' is not allowed at byte 3"])?;
    node("node1.", &["must begin and end with a lower-case letter or a digit"])?;
    node(&"n".repeat(254), &["254 bytes, at most 253"])?;
    for life in ["0s", "1w", "-1d", "1.5h", "90"] {
        let life = format!("--life={life}");
        let arguments = ["node", "--dir", "ca", "--out", "new", "--name", "node2", &life];
        site.refuses(2, &arguments, &["--life", "60s, 12h, 90d"])?;
    }
    for missing in
        [&["init", "--dir", "new"][..], &["node", "--dir", "ca", "--name", "node2"], &["init"], &[]]
    {
        site.refuses(2, missing, &["Usage"])?;
    }
    Ok(())
}

#[test]
fn a_ca_that_is_broken_says_where() -> Result<()> {
    let site = Site::with_node()?;
    let node = ["node", "--dir", "ca", "--name", "node2", "--out", "node2"];
    let damaged = |file: &str, damage: &dyn Fn(&Path) -> Result<()>, words: &[&str]| -> Result<()> {
        let path = site.path("ca").join(file);
        let (content, mode) = (fs::read(&path)?, fs::metadata(&path)?.permissions());
        damage(&path)?;
        site.refuses(1, &node, words).with_context(|| format!("{file} damaged"))?;
        fs::write(&path, content)?;
        Ok(fs::set_permissions(&path, mode)?)
    };
    let gone = |path: &Path| Ok(fs::remove_file(path)?);
    let words = ["ca is no CA that `sluice ca init` made", "ca/root.pem: No such file or directory"];
    damaged("root.pem", &gone, &words)?;
    damaged("root.key", &gone, &["ca/root.key: No such file or directory"])?;
    damaged("bundle.pem", &gone, &["ca/bundle.pem: No such file or directory"])?;
    let empty = |path: &Path| Ok(fs::write(path, "")?);
    damaged("root.pem", &empty, &["ca/root.pem: it holds no PEM block CERTIFICATE"])?;
    damaged("root.key", &empty, &["ca/root.key: it holds no PEM block PRIVATE KEY"])?;
    let halved = |path: &Path| {
        let text = fs::read_to_string(path)?;
        let lines: Vec<&str> = text.lines().collect();
        let kept = [&lines[..2], &lines[lines.len() - 1..]].concat();
        Ok(fs::write(path, kept.join("\n"))?)
    };
    damaged("root.pem", &halved, &["ca/root.pem: its certificate number 1 is not DER"])?;
    damaged("root.key", &halved, &["ca/root.key: its key is none for ECDSA P-256"])?;
    let open = |path: &Path| Ok(fs::set_permissions(path, Permissions::from_mode(0o644))?);
    damaged("root.key", &open, &["ca/root.key can be read by everybody (mode 0644)"])?;
    let swapped = |path: &Path| Ok(fs::copy(site.path("node1/node.key"), path).map(|_| ())?);
    damaged("root.key", &swapped, &["ca/root.key is not the key of ca/root.pem"])?;
    let leaf = |path: &Path| Ok(fs::copy(site.path("node1/node.pem"), path).map(|_| ())?);
    damaged("root.pem", &leaf, &["ca/root.pem: its certificate number 1 is not one of a CA"])?;
    let long = [&node[..], &["--life", "4000d"]].concat();
    site.refuses(1, &long, &["ca/root.pem ends at", "a shorter --life"])?;
    site.done(&node)?;
    Ok(())
}

/// Files of any size are beyond what this process may write, as on a full disk.
#[test]
fn a_full_disk_changes_nothing() -> Result<()> {
    let site = Site::with_node()?;
    let before = contents(site.directory.path())?;
    let arguments = ["node", "--dir", "ca", "--name", "node1", "--out", "node1", "--renew"];
    let output = site.shell("trap '' XFSZ; ulimit -f 0; exec \"$@\"", &arguments)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{}: {said}", output.status);
    ensure!(said.contains("writing node1/bundle.pem: File too large"), "{said}");
    ensure!(contents(site.directory.path())? == before, "files have changed");
    Ok(())
}

fn extensions(site: &Site, file: &str) -> Result<String> {
    let names = "basicConstraints,keyUsage,extendedKeyUsage,subjectAltName";
    let text = site.openssl(&["x509", "-in", file, "-noout", "-ext", names])?;
    Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[test]
fn openssl_takes_what_was_made() -> Result<()> {
    let site = Site::with_node()?;
    for (file, expected) in [
        (
            "ca/root.pem",
            "X509v3 Subject Alternative Name: URI:spiffe://mesh.example X509v3 Key Usage: critical Certificate Sign, \
             CRL Sign X509v3 Basic Constraints: critical CA:TRUE, pathlen:1",
        ),
        (
            "node1/intermediate.pem",
            "X509v3 Subject Alternative Name: URI:spiffe://mesh.example, DNS:node1 X509v3 Key Usage: critical \
             Certificate Sign, CRL Sign X509v3 Basic Constraints: critical CA:TRUE, pathlen:0",
        ),
        (
            "node1/node.pem",
            "X509v3 Subject Alternative Name: critical URI:spiffe://mesh.example/node/node1 X509v3 Key Usage: \
             critical Digital Signature X509v3 Extended Key Usage: TLS Web Server Authentication, TLS Web Client \
             Authentication X509v3 Basic Constraints: critical CA:FALSE",
        ),
    ] {
        assert_eq!(extensions(&site, file)?, expected, "{file}");
        let text = site.openssl(&["x509", "-in", file, "-noout", "-text"])?;
        ensure!(text.contains("NIST CURVE: P-256") && text.contains("ecdsa-with-SHA256"), "{file}: {text}");
    }
    let verify = ["verify", "-x509_strict", "-CAfile", "node1/bundle.pem"];
    for purpose in ["sslclient", "sslserver"] {
        site.openssl(&[&verify[..], &["-purpose", purpose, "node1/node.pem"]].concat())?;
    }
    site.openssl(&[&verify[..], &["node1/intermediate.pem"]].concat())?;
    for key in ["ca/root.key", "node1/node.key", "node1/intermediate.key"] {
        site.openssl(&["pkey", "-in", key, "-check", "-noout"])?;
    }
    Ok(())
}

/// Lets a key of ours issue a certificate through openssl.
fn issue(site: &Site, issuer: &str, name: &str, extensions: &str) -> Result<()> {
    let (key, request, out) = (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"));
    fs::write(site.path("extensions"), extensions)?;
    let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=x"];
    site.openssl(&[&["req", "-new", "-keyout", &key, "-out", &request][..], &curve].concat())?;
    let (certificate, issuer_key) = (format!("{issuer}.pem"), format!("{issuer}.key"));
    let by = ["-CA", &certificate, "-CAkey", &issuer_key, "-extfile", "extensions", "-days", "1"];
    site.openssl(&[&["x509", "-req", "-in", &request, "-out", &out][..], &by].concat())?;
    Ok(())
}

/// A node's intermediate issues certificates of workloads, no further CAs, and no nodes that anybody believes.
#[test]
fn what_an_intermediate_can_do() -> Result<()> {
    let site = Site::with_node()?;
    let leaf = |id: &str| {
        format!(
            "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nsubjectAltName=URI:{id}\n"
        )
    };
    issue(&site, "node1/intermediate", "workload", &leaf("spiffe://mesh.example/ns/shop/sa/web"))?;
    let verify =
        ["verify", "-x509_strict", "-CAfile", "ca/bundle.pem", "-untrusted", "node1/intermediate.pem"];
    site.openssl(&[&verify[..], &["workload.pem"]].concat())?;

    let ca = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\nsubjectKeyIdentifier=hash\n";
    issue(&site, "node1/intermediate", "below", ca)?;
    issue(&site, "below", "deep", &leaf("spiffe://mesh.example/ns/shop/sa/web"))?;
    let deep = [&verify[..], &["-untrusted", "below.pem", "deep.pem"]].concat();
    let Err(error) = site.openssl(&deep) else { bail!("openssl took a chain beyond pathLen 0") };
    ensure!(error.to_string().contains("path length constraint exceeded"), "{error}");

    issue(&site, "node1/intermediate", "forged", &leaf("spiffe://mesh.example/node/node2"))?;
    site.openssl(&[&verify[..], &["forged.pem"]].concat())?;
    fs::create_dir(site.path("forged"))?;
    for (from, to) in
        [("forged.pem", "node.pem"), ("forged.key", "node.key"), ("ca/bundle.pem", "bundle.pem")]
    {
        fs::copy(site.path(from), site.path("forged").join(to))?;
    }
    let error = NodeDirectory::open(&site.path("forged"));
    let error = error.err().context("a forged node was taken")?.to_string();
    ensure!(error.contains("no root of the bundle has issued the certificate"), "{error}");
    Ok(())
}

/// An operator's certificate seals documents and is none for TLS; its directory is nobody else's.
#[test]
fn an_operator_is_no_node() -> Result<()> {
    let site = Site::with_node()?;
    let alice = ["operator", "--dir", "ca", "--name", "alice", "--out", "alice"];
    let said = site.done(&alice)?;
    ensure!(said.contains("spiffe://mesh.example/operator/alice"), "{said}");
    let modes: BTreeMap<_, _> = contents(&site.path("alice"))?
        .into_iter()
        .filter_map(|(path, (mode, _))| Some((path.file_name()?.to_str()?.to_owned(), mode & 0o777)))
        .collect();
    let expected = [("bundle.pem", 0o644), ("operator.key", 0o600), ("operator.pem", 0o644)];
    ensure!(modes == expected.map(|(name, mode)| (name.to_owned(), mode)).into(), "{modes:?}");
    site.openssl(&["verify", "-x509_strict", "-CAfile", "ca/bundle.pem", "alice/operator.pem"])?;
    let text = site.openssl(&["x509", "-in", "alice/operator.pem", "-noout", "-ext", "extendedKeyUsage"])?;
    ensure!(text.contains("1.3.6.1.5.5.7.3.36") && !text.contains("TLS"), "{text}");
    for purpose in ["sslclient", "sslserver"] {
        let tls = ["verify", "-purpose", purpose, "-CAfile", "ca/bundle.pem", "alice/operator.pem"];
        ensure!(site.openssl(&tls).is_err(), "it is a certificate for {purpose}");
    }
    let operator = OperatorIdentity::load(&site.path("alice"), SystemTime::now())?;
    let node = NodeDirectory::open(&site.path("node1"))?.current();
    let seal = operator.seal(b"documents");
    ensure!(node.bundle.verify_seal(SystemTime::now(), b"documents", &seal).as_deref() == Ok("alice"));
    let by_node = node.identity.sign(b"documents");
    ensure!(node.bundle.verify_seal(SystemTime::now(), b"documents", &by_node) == Err(Untrusted::WrongUsage));

    site.refuses(1, &alice, &["alice/", "is there already", "--renew"])?;
    let bob = ["operator", "--dir", "ca", "--name", "bob", "--out", "alice", "--renew"];
    site.refuses(1, &bob, &["alice/operator.pem is the certificate of operator alice, not of bob"])?;
    for there in ["node1", "ca"] {
        let into = ["operator", "--dir", "ca", "--name", "alice", "--out", there, "--renew"];
        site.refuses(1, &into, &["give the operator a directory of its own"])?;
    }
    let node = ["node", "--dir", "ca", "--name", "node2", "--out", "alice", "--renew"];
    site.refuses(1, &node, &["give the node a directory of its own"])?;
    site.refuses(
        2,
        &["operator", "--dir", "ca", "--name", "Alice", "--out", "other"],
        &["'A' is not allowed"],
    )?;
    site.done(&[&alice[..], &["--renew"]].concat())?;
    ensure!(!operator.made(&OperatorIdentity::load(&site.path("alice"), SystemTime::now())?.seal(b"")));
    Ok(())
}

/// The two scalars of a signature as openssl reads them.
fn scalars_as_asn1(scalars: &[u8]) -> Vec<u8> {
    let integer = |scalar: &[u8]| {
        let zeros = scalar.iter().take_while(|byte| **byte == 0).count();
        let mut digits = scalar[zeros..].to_vec();
        if digits.first().is_some_and(|byte| byte & 0x80 != 0) {
            digits.insert(0, 0);
        }
        [&[2, u8::try_from(digits.len()).expect("at most 33")][..], &digits].concat()
    };
    let body = [integer(&scalars[..32]), integer(&scalars[32..])].concat();
    [&[0x30, u8::try_from(body.len()).expect("at most 70")][..], &body].concat()
}

/// What is signed, and the form it travels in, are what the documentation says: openssl agrees.
#[test]
fn openssl_verifies_a_table() -> Result<()> {
    let site = Site::with_node()?;
    let node = NodeDirectory::open(&site.path("node1"))?.current();
    fs::write(site.path("message"), b"a table")?;
    let digest = Command::new("openssl")
        .args(["dgst", "-sha256", "-binary"])
        .arg(site.path("message"))
        .output()?
        .stdout;
    let mut signed = b"sluice table v1\0".to_vec();
    signed.resize(64, b'.');
    signed.extend(digest);
    fs::write(site.path("signed"), signed)?;
    let bytes = node.identity.sign(b"a table").to_bytes();
    let length = usize::from(u16::from_be_bytes([bytes[1], bytes[2]]));
    let (certificate, scalars) = bytes[3..].split_at(length);
    fs::write(site.path("certificate.der"), certificate)?;
    fs::write(site.path("signature.der"), scalars_as_asn1(scalars))?;
    let key = site.openssl(&["x509", "-inform", "DER", "-in", "certificate.der", "-noout", "-pubkey"])?;
    fs::write(site.path("public.pem"), key)?;
    let verify = ["dgst", "-sha256", "-verify", "public.pem", "-signature", "signature.der"];
    site.openssl(&[&verify[..], &["signed"]].concat())?;
    ensure!(
        site.openssl(&[&verify[..], &["message"]].concat()).is_err(),
        "the message alone is not what is signed"
    );
    Ok(())
}
