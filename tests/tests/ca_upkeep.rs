//! `sluice ca revoke`, `rotate` and `show` on the built binary, with openssl as the outside judge.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use anyhow::{Context, Result, anyhow, ensure};
use lab::built_binary;
use serde_json::Value;
use tempfile::TempDir;

struct Site(TempDir);

impl Site {
    /// A CA, two nodes and an operator.
    fn new() -> Result<Self> {
        let site = Self(tempfile::tempdir()?);
        site.ca(&["init", "--dir", "ca", "--trust-domain", "mesh.example"])?;
        for node in ["node1", "node2"] {
            site.ca(&["node", "--dir", "ca", "--name", node, "--out", node])?;
        }
        site.ca(&["operator", "--dir", "ca", "--name", "alice", "--out", "alice"])?;
        Ok(site)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, mut command: Command) -> Result<Output> {
        command.current_dir(self.0.path()).output().with_context(|| format!("running {command:?}"))
    }

    fn tried(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(built_binary()?);
        command.arg("ca").args(arguments);
        self.run(command)
    }

    fn ca(&self, arguments: &[&str]) -> Result<String> {
        let output = self.tried(arguments)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{arguments:?}: {}:\n{said}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    }

    fn json(&self, arguments: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&self.ca(&[arguments, &["-o", "json"]].concat())?)?)
    }

    fn refused(&self, code: i32, arguments: &[&str], words: &str) -> Result<()> {
        let output = self.tried(arguments)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(code), "{arguments:?}: {}:\n{said}", output.status);
        ensure!(said.contains(words), "{arguments:?}: no {words:?} in {said}");
        Ok(())
    }

    fn openssl(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new("openssl");
        command.args(arguments);
        self.run(command)
    }

    /// The states of what a directory holds, by file and whom it names.
    fn states(&self, directory: &str) -> Result<Vec<String>> {
        let shown = self.json(&["show", "--dir", directory])?;
        let held = shown["holdings"].as_array().context("no holdings")?;
        let word = |held: &Value, key: &str| held[key].as_str().unwrap_or_default().to_owned();
        Ok(held
            .iter()
            .map(|held| format!("{} {}: {}", word(held, "file"), word(held, "who"), word(held, "state")))
            .collect())
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// Each waits until the others are done with the CA, and nobody's word is lost.
#[test]
fn who_change_a_ca_at_once_wait_for_each_other() -> Result<()> {
    let site = Site::new()?;
    let nodes: Vec<String> = (1..=6).map(|number| format!("node{number}")).collect();
    let at_once = |verb: &(dyn Fn(&str) -> Result<Output> + Sync)| -> Result<usize> {
        std::thread::scope(|scope| {
            let all: Vec<_> = nodes.iter().map(|node| scope.spawn(move || verb(node))).collect();
            let ended = all.into_iter().map(|one| one.join().map_err(|_| anyhow!("it panicked"))?);
            Ok(ended.collect::<Result<Vec<_>>>()?.iter().filter(|output| output.status.success()).count())
        })
    };
    // Two of them are there.
    let made = at_once(&|node| site.tried(&["node", "--dir", "ca", "--name", node, "--out", node]))?;
    ensure!(made == 4, "{made} were made");
    let revoked = at_once(&|node| site.tried(&["revoke", "--dir", "ca", "--node", node]))?;
    let listed = site.json(&["revoke", "--dir", "ca", "--node", "node1"])?;
    ensure!(revoked == 6 && listed["count"] == 12, "{revoked}, {listed}");
    let list = text(&site.openssl(&["crl", "-in", "ca/revoked.crl", "-noout", "-crlnumber"])?);
    ensure!(list.trim().ends_with('6'), "{list}");
    let prepared = at_once(&|_| site.tried(&["rotate", "--dir", "ca", "prepare"]))?;
    ensure!(prepared == 1, "{prepared} have prepared a root");
    Ok(())
}

#[test]
fn openssl_takes_the_list_and_refuses_what_is_on_it() -> Result<()> {
    let site = Site::new()?;
    let revoked = site.json(&["revoke", "--dir", "ca", "--node", "node1"])?;
    ensure!(revoked["count"] == 2 && revoked["file"] == "ca/revoked.crl", "{revoked}");
    let list = text(&site.openssl(&[
        "crl",
        "-in",
        "ca/revoked.crl",
        "-CAfile",
        "ca/root.pem",
        "-noout",
        "-text",
    ])?);
    ensure!(list.contains("verify OK"), "{list}");
    let mut on_it = 0;
    for added in revoked["added"].as_array().context("nothing was added")? {
        ensure!(list.contains(added.as_str().context("a number")?), "{added} is not in {list}");
        on_it += 1;
    }
    ensure!(on_it == 2 && list.contains("X509v3 CRL Number: \n                1"), "{list}");
    for (file, good) in [
        ("node1/node.pem", false),
        ("node1/intermediate.pem", false),
        ("node2/node.pem", true),
        ("node2/intermediate.pem", true),
    ] {
        let check = ["verify", "-crl_check", "-CAfile", "ca/root.pem", "-CRLfile", "ca/revoked.crl", file];
        let said = text(&site.openssl(&check)?);
        ensure!(said.contains(if good { ": OK" } else { "certificate revoked" }), "{file}: {said}");
    }
    // More of it: the number rises, and nothing is said twice.
    let again = site.json(&["revoke", "--dir", "ca", "--certificate", "node1/node.pem"])?;
    ensure!(again["added"] == Value::Array(vec![]) && again["count"] == 2, "{again}");
    let more = site.json(&["revoke", "--dir", "ca", "--operator", "alice"])?;
    ensure!(more["count"] == 3, "{more}");
    let list = text(&site.openssl(&["crl", "-in", "ca/revoked.crl", "-noout", "-crlnumber"])?);
    ensure!(list.trim().ends_with('2'), "{list}");
    for words in [
        &["issued node node1: revoked"][..],
        &["issued node node2: valid"],
        &["issued operator alice: revoked"],
        &["revoked.crl 3 of CN=sluice root", ": list"],
    ] {
        let states = site.states("ca")?;
        let found = states.iter().any(|state| words.iter().all(|word| state.contains(word)));
        ensure!(found, "{words:?} is not in {states:#?}");
    }
    site.refused(2, &["revoke", "--dir", "ca"], "--node")?;
    site.refused(2, &["revoke", "--dir", "ca", "--node", "node1", "--serial", "01"], "cannot be used with")?;
    site.refused(1, &["revoke", "--dir", "ca", "--node", "node9"], "names no certificate of node node9")?;
    site.refused(1, &["revoke", "--dir", "node1", "--node", "node1"], "is no CA that `sluice ca init` made")
}

#[test]
fn a_rotation_goes_step_by_step_and_openssl_follows() -> Result<()> {
    let site = Site::new()?;
    let rotate = |step: &str| ["rotate", step, "--dir", "ca"].map(str::to_owned);
    let words = |step: &str| rotate(step);
    let done = |step: &str| {
        let words = words(step);
        site.ca(&words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let verified = |file: &str| -> Result<bool> {
        Ok(text(&site.openssl(&["verify", "-CAfile", "ca/bundle.pem", file])?).contains(": OK"))
    };
    site.refused(1, &["rotate", "sign", "--dir", "ca"], "`sluice ca rotate prepare` comes before")?;
    done("prepare")?;
    ensure!(site.json(&["show", "--dir", "ca"])?["next_step"] == "sign");
    ensure!(verified("node1/node.pem")?, "the old root is in the bundle");
    let roots = fs::read_to_string(site.path("ca/bundle.pem"))?.matches("BEGIN CERTIFICATE").count();
    ensure!(roots == 2, "{roots} roots in the bundle");
    done("sign")?;
    for node in ["node1", "node2"] {
        site.ca(&["node", "--dir", "ca", "--name", node, "--out", node, "--renew"])?;
        ensure!(verified(&format!("{node}/node.pem"))? && verified(&format!("{node}/intermediate.pem"))?);
    }
    ensure!(verified("alice/operator.pem")?, "both roots are in the bundle");
    site.refused(1, &["rotate", "finish", "--dir", "ca"], "the only certificates of operator alice")?;
    site.ca(&["operator", "--dir", "ca", "--name", "alice", "--out", "alice", "--renew"])?;
    done("finish")?;
    let shown = site.json(&["show", "--dir", "ca"])?;
    ensure!(shown["next_step"] == Value::Null, "{shown}");
    let table = site.ca(&["show", "--dir", "ca"])?;
    ensure!(table.lines().next().is_some_and(|line| line.starts_with("FILE ")), "{table}");
    ensure!(verified("node1/node.pem")? && verified("alice/operator.pem")?);
    let left: Vec<_> = fs::read_dir(site.path("ca"))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    ensure!(!left.iter().any(|name| name.starts_with("old-") || name.starts_with("next-")), "{left:?}");
    Ok(())
}

#[test]
fn a_directory_that_is_broken_is_told_by_the_exit_code() -> Result<()> {
    let site = Site::new()?;
    let shown = |directory: &str| site.tried(&["show", "--dir", directory]);
    for good in ["ca", "node1", "alice"] {
        let output = shown(good)?;
        ensure!(output.status.code() == Some(0), "{good}: {}", text(&output));
    }
    // What was given out may be revoked.
    site.ca(&["revoke", "--dir", "ca", "--operator", "alice"])?;
    ensure!(shown("ca")?.status.code() == Some(0), "{}", text(&shown("ca")?));
    fs::write(site.path("junk"), "junk")?;
    site.ca(&["init", "--dir", "other", "--trust-domain", "mesh.example"])?;
    // (what is done to which file, what is shown of it)
    let cases = [
        ("node1/bundle.pem", None, "bundle.pem"),
        ("node1/node.pem", Some("junk"), "holds no PEM block"),
        ("node1/node.key", Some("node2/node.key"), "node.key is another one's"),
        ("node1/node.key", None, "without node.key"),
        ("node1/bundle.pem", Some("other/bundle.pem"), "unknown_issuer"),
        ("alice/operator.pem", Some("junk"), "holds no PEM block"),
        ("ca/root.key", None, "without root.key"),
        ("ca/issued.jsonl", Some("junk"), "issued.jsonl"),
    ];
    for (file, by, words) in cases {
        let (at, directory) = (site.path(file), file.split('/').next().context("a directory")?);
        fs::rename(&at, site.path("aside"))?;
        if let Some(by) = by {
            fs::copy(site.path(by), &at)?;
        }
        let output = shown(directory)?;
        ensure!(output.status.code() == Some(1), "{file} by {by:?}: {}", text(&output));
        ensure!(text(&output).contains(words), "{file} by {by:?}: no {words:?} in {}", text(&output));
        fs::rename(site.path("aside"), &at)?;
        ensure!(shown(directory)?.status.code() == Some(0), "{file}, mended: {}", text(&shown(directory)?));
    }
    ensure!(shown("none")?.status.code() == Some(1), "a directory that is not there");
    Ok(())
}
