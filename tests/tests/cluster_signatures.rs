//! A node that comes gets the table, whatever has become of the certificates by which it and what follows it were signed.

mod common;

#[path = "cluster/site.rs"]
mod site;

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use agent::identity::NodeIdentity;
use anyhow::{Context, Result, ensure};
use lab::{unprivileged, wait_for};
use site::{NODES, Site, service_to};

const LIMIT: Duration = Duration::from_mins(1);

/// A node's files made anew, as `sluice ca` does it; the certificate that it had.
fn renew(site: &Site, node: &str, life: &str) -> Result<String> {
    let (ca, out, before) = (site.path("ca"), site.ca_of(node), site.path("before.pem"));
    fs::copy(Path::new(&out).join("node.pem"), &before).context("the certificate so far")?;
    let anew = ["ca", "node", "--dir", &ca, "--name", node, "--out", &out, "--life", life, "--renew"];
    site.sluice_plain(node, &anew)?;
    Ok(before)
}

/// Gives all nodes a file of the CA, in one step.
fn hand_out(site: &Site, file: &str) -> Result<()> {
    for node in NODES {
        let there = Path::new(&site.ca_of(node)).join(file);
        fs::copy(Path::new(&site.path("ca")).join(file), there.with_extension("new"))?;
        fs::rename(there.with_extension("new"), there)?;
    }
    Ok(())
}

/// A node that follows begins with nothing.
fn comes_anew(site: &mut Site, leader: &str) -> Result<()> {
    let node = NODES.into_iter().find(|node| *node != leader).context("there are others")?;
    site.kill9(node)?;
    fs::remove_dir_all(site.state_of(node)).context("what it has kept")?;
    // It is ready with a table in force alone.
    site.start(node).with_context(|| format!("{:?}", site.cluster(leader)))?;
    let cluster = site.cluster(node)?;
    ensure!(cluster["refused"].is_null(), "{node} refuses the table: {cluster}");
    wait_for("its pods to be served", LIMIT, || site.answer(node).is_ok_and(|answer| answer == "v2"))
}

#[test]
fn who_comes_believes_the_table_whatever_became_of_its_signer() -> Result<()> {
    if unprivileged("who_comes_believes_the_table_whatever_became_of_its_signer") {
        return Ok(());
    }
    let mut site = Site::up("cluster_signers")?;
    site.start_all()?;
    site.sluice_with("node1", &["apply", "-f", "-"], service_to("v2"))?;
    site.wait_answers("the route to steer", "v2")?;

    let leader = site.leader()?;
    let before = renew(&site, &leader, "90d")?;
    site.sluice_plain(&leader, &["ca", "revoke", "--dir", &site.path("ca"), "--certificate", &before])?;
    hand_out(&site, "revoked.crl")?;
    comes_anew(&mut site, &leader).context("the certificate that signed it is revoked")?;

    // One that ends soon signs, and is renewed in time.
    let leader = site.leader()?;
    renew(&site, &leader, "25s")?;
    let ends = NodeIdentity::load(Path::new(&site.ca_of(&leader)), SystemTime::now())?.not_after();
    let signed =
        || site.log(&leader).is_ok_and(|log| log.matches("certificates were read again").count() >= 2);
    wait_for("the new certificate to be read", LIMIT, signed)?;
    for version in ["v1", "v2"] {
        site.sluice_with("node1", &["apply", "-f", "-"], service_to(version))?;
        site.wait_answers("the route to steer", version)?;
    }
    renew(&site, &leader, "90d")?;
    wait_for("the one between to end", LIMIT, || SystemTime::now() > ends + Duration::from_secs(1))?;
    comes_anew(&mut site, &leader).context("the certificate that signed it has ended")
}
