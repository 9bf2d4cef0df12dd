//! What may befall a cluster: nodes that are cut off, a store that is emptied, full or went back in time, a cold start of all, a
//! disk that is full. After each the nodes agree on the newest table, and nothing that was in force is lost.

mod common;

#[path = "cluster/site.rs"]
mod site;

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{exec, unprivileged, wait_for};
use site::{NODES, Site, service_to};

const LIMIT: Duration = Duration::from_secs(30);

/// A cluster whose route leads to v2 on every node.
fn at_v2(name: &str) -> Result<Site> {
    let mut site = Site::up(name)?;
    site.start_all()?;
    site.sluice_with("node1", &["apply", "-f", "-"], service_to("v2"))?;
    site.wait_answers("the route to steer", "v2")?;
    Ok(site)
}

/// Waits until all nodes have a table of a term after `epoch`, and serve what they are asked.
fn converged(site: &Site, epoch: u64, version: &str) -> Result<()> {
    for node in NODES {
        wait_for("a table of a later term", LIMIT, || {
            site.epoch(node).is_ok_and(|now| now > epoch)
                && site.answer(node).is_ok_and(|answer| answer == version)
        })
        .with_context(|| format!("{node}: {:?} {:?}", site.cluster(node), site.answer(node)))?;
    }
    let tables: Vec<_> = NODES.iter().map(|node| site.epoch(node)).collect::<Result<_>>()?;
    ensure!(tables.windows(2).all(|pair| pair[0] == pair[1]), "the nodes differ: {tables:?}");
    Ok(())
}

#[test]
fn a_leader_that_is_cut_off_leads_no_more() -> Result<()> {
    if unprivileged("a_leader_that_is_cut_off_leads_no_more") {
        return Ok(());
    }
    let site = at_v2("chaos_cut")?;
    let (first, epoch) = (site.leader()?, site.epoch("node1")?);
    let witness = NODES.into_iter().find(|node| *node != first).context("there are three")?;
    site.cut(&first, true)?;
    // It knows by its own clock, before anybody else can lead.
    wait_for("it to step down", LIMIT, || {
        site.cluster(&first).is_ok_and(|cluster| cluster["yielded"] == "timed_out")
    })?;
    wait_for("another leader", LIMIT, || {
        site.cluster(witness)
            .is_ok_and(|cluster| cluster["leader"]["node"].as_str().is_some_and(|node| node != first))
    })?;
    site.sluice_with(witness, &["apply", "-f", "-"], service_to("v1"))?;
    wait_for("the others to follow", LIMIT, || site.answer(witness).is_ok_and(|answer| answer == "v1"))?;
    ensure!(site.answer(&first)? == "v2", "a node that is cut off has a table that it can't know");
    site.cut(&first, false)?;
    converged(&site, epoch, "v1")
}

#[test]
fn a_store_that_is_emptied_gets_everything_back() -> Result<()> {
    if unprivileged("a_store_that_is_emptied_gets_everything_back") {
        return Ok(());
    }
    let site = at_v2("chaos_flush")?;
    let epoch = site.epoch("node1")?;
    site.redis_cli(&["FLUSHALL"])?;
    converged(&site, epoch, "v2")?;
    let said = site.sluice("node2", &["get"])?;
    ensure!(said.contains("HTTPRoute") && said.lines().count() > 10, "documents are missing: {said}");
    Ok(())
}

#[test]
fn a_store_that_went_back_in_time_is_brought_forward() -> Result<()> {
    if unprivileged("a_store_that_went_back_in_time_is_brought_forward") {
        return Ok(());
    }
    let mut site = Site::up("chaos_dump")?;
    site.start_all()?;
    site.dump()?;
    let epoch = site.epoch("node1")?;
    site.sluice_with("node1", &["apply", "-f", "-"], service_to("v2"))?;
    site.wait_answers("the route to steer", "v2")?;
    site.restore_redis()?;
    // The restored store knows nothing of the route. Who leads may lead on, if its lease was in the dump and is still good.
    wait_for("the route to be back in the store", LIMIT, || {
        site.sluice("node2", &["get", "HTTPRoute/web"]).is_ok_and(|said| said.contains("web-v2"))
    })?;
    for node in NODES {
        ensure!(site.answer(node)? == "v2" && site.epoch(node)? >= epoch, "{node} went back");
    }
    // One that knows nothing but what the store has is served the newest as well.
    site.kill9("node3")?;
    std::fs::remove_dir_all(site.state_of("node3")).context("node3's state")?;
    site.start("node3")?;
    wait_for("the newest table", LIMIT, || site.answer("node3").is_ok_and(|answer| answer == "v2"))
}

#[test]
fn a_cold_start_on_an_empty_store_serves_what_was_in_force() -> Result<()> {
    if unprivileged("a_cold_start_on_an_empty_store_serves_what_was_in_force") {
        return Ok(());
    }
    let mut site = at_v2("chaos_cold")?;
    let epoch = site.epoch("node1")?;
    for node in NODES {
        site.wait_kept(node)?;
    }
    for node in NODES {
        site.kill9(node)?;
    }
    site.redis_cli(&["FLUSHALL"])?;
    // One that has lost its disk comes first, and finds nobody who knows better. It must not lead the others into nothing.
    std::fs::remove_dir_all(site.state_of("node3")).context("node3's state")?;
    site.start("node3")?;
    wait_for("it to lead", LIMIT, || site.cluster("node3").is_ok_and(|cluster| cluster["role"] == "leader"))?;
    for node in ["node1", "node2"] {
        site.start(node)?;
        ensure!(site.answer(node)? == "v2", "{node} serves something else than before");
    }
    converged(&site, epoch, "v2")
}

#[test]
fn who_has_lost_changes_says_so_and_is_given_the_table_in_force() -> Result<()> {
    if unprivileged("who_has_lost_changes_says_so_and_is_given_the_table_in_force") {
        return Ok(());
    }
    let mut site = at_v2("chaos_lost")?;
    site.wait_kept("node3")?;
    let kept =
        |site: &Site, name: &str| (site.state_of("node3").join(name), site.path(&format!("kept-{name}")));
    for name in ["table", "changes"] {
        let (there, aside) = kept(&site, name);
        std::fs::copy(there, aside).with_context(|| name.to_owned())?;
    }
    // Two terms go on with the table as it is, so that the store has changes of both.
    for version in ["v1", "v2"] {
        let (leader, epoch) = (site.leader()?, site.epoch("node3")?);
        ensure!(site.terminate(&leader)?.success());
        site.start(&leader)?;
        for node in NODES {
            wait_for("another term", LIMIT, || site.epoch(node).is_ok_and(|now| now > epoch))?;
        }
        site.sluice_with("node1", &["apply", "-f", "-"], service_to(version))?;
        site.wait_answers("the route to steer", version)?;
    }
    let epoch = site.epoch("node3")?;
    site.kill9("node3")?;
    for name in ["table", "changes"] {
        let (there, aside) = kept(&site, name);
        std::fs::copy(aside, there).with_context(|| name.to_owned())?;
    }
    site.start("node3")?;
    ensure!(site.log("node3")?.contains("it lacks what was in force last"), "what is lost is not told");
    wait_for("the table in force", LIMIT, || site.epoch("node3").is_ok_and(|now| now >= epoch))
        .with_context(|| format!("{:?}", site.cluster("node3")))?;
    ensure!(site.answer("node3")? == "v2");
    Ok(())
}

#[test]
fn a_store_that_takes_no_writes_costs_no_traffic() -> Result<()> {
    if unprivileged("a_store_that_takes_no_writes_costs_no_traffic") {
        return Ok(());
    }
    let site = at_v2("chaos_full")?;
    let load = site.load("node1")?;
    site.redis_cli(&["CONFIG", "SET", "maxmemory", "1"])?;
    wait_for("it to be told", LIMIT, || {
        site.cluster("node2").is_ok_and(|cluster| {
            cluster["store_error"].as_str().is_some_and(|error| error.contains("takes no writes"))
        })
    })?;
    let (code, said) = site.try_sluice_with("node1", &["apply", "-f", "-"], &service_to("v1"))?;
    ensure!(code == 1 && said.contains("takes no writes"), "{code}: {said}");
    ensure!(site.answer("node3")? == "v2");
    site.redis_cli(&["CONFIG", "SET", "maxmemory", "0"])?;
    wait_for("writes to be taken", LIMIT, || {
        site.sluice_with("node1", &["apply", "-f", "-"], service_to("v1")).is_ok()
    })?;
    site.wait_answers("the route to steer", "v1")?;
    let failed = load.stop()?;
    ensure!(failed.is_empty(), "requests failed: {failed:?}");
    Ok(())
}

#[test]
fn a_full_disk_is_told_and_costs_no_traffic() -> Result<()> {
    if unprivileged("a_full_disk_is_told_and_costs_no_traffic") {
        return Ok(());
    }
    let mut site = Site::up("chaos_disk")?;
    let state = site.state_of("node1");
    std::fs::create_dir_all(&state).context("node1's state")?;
    let small = Mount::tmpfs(&state)?;
    site.start_all()?;
    site.wait_kept("node1")?;
    let filler = state.join("filler");
    exec::run(
        Command::new("dd")
            .args(["if=/dev/zero", "bs=4k", "count=1000"])
            .arg(format!("of={}", filler.display())),
    )
    .ok();
    site.sluice_with("node1", &["apply", "-f", "-"], service_to("v2"))?;
    wait_for("the route to steer", LIMIT, || site.answer("node1").is_ok_and(|answer| answer == "v2"))?;
    wait_for("the full disk to be told", LIMIT, || {
        site.cluster("node1").is_ok_and(|cluster| {
            cluster["disk_error"].as_str().is_some_and(|error| error.contains("No space left"))
        })
    })?;
    std::fs::remove_file(&filler).context("the filler")?;
    site.sluice_with("node1", &["apply", "-f", "-"], service_to("v1"))?;
    wait_for("the disk to be written again", LIMIT, || {
        site.cluster("node1").is_ok_and(|cluster| cluster["disk_error"].is_null())
    })?;
    site.kill9("node1")?;
    site.stop_redis()?;
    site.start("node1")?;
    ensure!(site.answer("node1")? == "v1", "what was in force is not there after a restart");
    drop(site);
    drop(small);
    Ok(())
}

/// A file system of 256 KiB that ends with it.
struct Mount(std::path::PathBuf);

impl Mount {
    fn tmpfs(at: &std::path::Path) -> Result<Self> {
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), at, Some("tmpfs"), flags, Some("size=256k"))
            .context("a small file system")?;
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Whatever still uses it ends with the test.
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}
