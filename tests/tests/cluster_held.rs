//! What goes on while the leader holds a change back, and what comes of a table in the store that is deleted or spoilt.

mod common;

#[path = "cluster/site.rs"]
mod site;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{unprivileged, wait_for, wait_until};
use site::{NODES, Site};

const LIMIT: Duration = Duration::from_secs(30);
const ROUTES: usize = 20;

/// The same of all nodes.
fn one_epoch(site: &Site) -> Option<u64> {
    let epochs: Vec<u64> = NODES.into_iter().filter_map(|node| site.epoch(node).ok()).collect();
    let same = epochs.len() == NODES.len() && epochs.iter().all(|epoch| *epoch == epochs[0]);
    same.then(|| epochs[0])
}

/// Who leads, once node1 has heard of it: it may have started a moment ago.
fn leading(site: &Site) -> Result<String> {
    wait_until("a leader", LIMIT, || site.leader().ok())
        .with_context(|| format!("{:?}", site.cluster("node1")))
}

/// The node that dies is one that does not lead.
fn off_node3(site: &mut Site) -> Result<()> {
    if leading(site)? == "node3" {
        ensure!(site.terminate("node3")?.success());
        site.start("node3")?;
        wait_for("another to lead", LIMIT, || site.leader().is_ok_and(|leader| leader != "node3"))?;
    }
    Ok(())
}

/// What `sluice delete` says of all routes, with its exit code.
fn delete_routes(site: &Site, more: &[&str]) -> Result<(i32, String)> {
    let names: Vec<String> = (0..ROUTES).map(|number| format!("HTTPRoute/default/r{number}")).collect();
    let words = ["delete"].into_iter().chain(more.iter().copied());
    let words: Vec<&str> = words.chain(names.iter().map(String::as_str)).collect();
    site.try_sluice_with("node1", &words, "")
}

#[test]
fn nodes_die_and_leaders_restart_while_a_change_is_held_back() -> Result<()> {
    if unprivileged("nodes_die_and_leaders_restart_while_a_change_is_held_back") {
        return Ok(());
    }
    let mut site = Site::up("cluster_held")?;
    site.start_all()?;
    site.sluice_with("node1", &["apply", "-f", "-"], site::many_routes(ROUTES))?;
    for node in NODES {
        wait_for("the routes", LIMIT, || site.routes(node).is_ok_and(|routes| routes >= ROUTES as u64))?;
    }
    off_node3(&mut site)?;
    // What was allowed to shrink it shrank nothing: that holds for nothing that comes later.
    let (code, said) =
        site.try_sluice_with("node1", &["apply", "--allow-shrink", "-f", "-"], &site::many_routes(ROUTES))?;
    ensure!(code == 0 && said.contains("unchanged"), "{code}: {said}");
    let (code, said) = delete_routes(&site, &[])?;
    ensure!(code == 3 && said.contains("HELD BACK by"), "{code}: {said}");

    // What becomes of nodes is published all the same.
    let ready = |site: &Site, count: usize| {
        site.ready_endpoints("node1", "web").is_ok_and(|ready| ready.len() == count)
    };
    ensure!(ready(&site, 2), "{:?}", site.ready_endpoints("node1", "web"));
    site.kill9("node3")?;
    wait_for("the dead node's endpoint to go", LIMIT, || ready(&site, 1))
        .with_context(|| format!("{:?}", NODES.map(|node| site.cluster(node))))?;
    let leader = leading(&site)?;
    ensure!(site.cluster(&leader)?["unpublished"].is_string(), "it is held back no more");
    for node in ["node1", "node2"] {
        let held_back: u64 = site.metric(node, "sluice_cluster_change_held_back ")?;
        ensure!(held_back == u64::from(node == leader), "{node}: {held_back}");
    }
    ensure!(site.routes("node1")? >= ROUTES as u64, "what was held back is in force");
    site.start("node3")?;
    wait_for("it to come back", LIMIT, || ready(&site, 2))?;

    // A leader that dies and comes back takes the next one's table, though it knows the documents that were held back.
    let before = site.epoch(&leader)?;
    site.kill9(&leader)?;
    site.start(&leader)?;
    wait_for("all to have one table", LIMIT, || one_epoch(&site).is_some_and(|epoch| epoch > before))
        .with_context(|| format!("{:?}", NODES.map(|node| site.cluster(node))))?;
    // Terms that began meanwhile know no documents of the table in force: they take nodes out of that all the same, and give
    // work again to one that was out when the term began.
    off_node3(&mut site)?;
    site.kill9("node3")?;
    wait_for("a dead node's endpoint to go in a later term", LIMIT, || ready(&site, 1))
        .with_context(|| format!("{:?}", NODES.map(|node| site.cluster(node))))?;
    let (leader, before) = (leading(&site)?, site.epoch("node2")?);
    ensure!(site.terminate(&leader)?.success());
    site.start(&leader)?;
    wait_for("the next term", LIMIT, || {
        ["node1", "node2"].iter().all(|node| site.epoch(node).is_ok_and(|epoch| epoch > before))
    })?;
    ensure!(ready(&site, 1), "{:?}", site.ready_endpoints("node1", "web"));
    site.start("node3")?;
    wait_for("it to come back in that term", LIMIT, || ready(&site, 2))
        .with_context(|| format!("{:?}", NODES.map(|node| site.cluster(node))))?;
    ensure!(site.cluster(&leading(&site)?)?["unpublished"].is_string(), "it is held back no more");
    ensure!(site.routes("node1")? >= ROUTES as u64, "what was held back is in force");

    let (code, said) = delete_routes(&site, &["--allow-shrink"])?;
    ensure!(code == 0 && said.contains("HTTPRoute/default/r7 was not there"), "{code}: {said}");
    for node in NODES {
        wait_for("the routes to go", LIMIT, || site.routes(node).is_ok_and(|routes| routes < ROUTES as u64))
            .with_context(|| format!("{node}: {:?}", site.cluster(node)))?;
        let held_back: u64 = site.metric(node, "sluice_cluster_change_held_back ")?;
        ensure!(held_back == 0, "{node} holds back what is in force");
    }
    Ok(())
}

#[test]
fn what_one_may_shrink_no_other_one_may() -> Result<()> {
    if unprivileged("what_one_may_shrink_no_other_one_may") {
        return Ok(());
    }
    let mut site = Site::up("cluster_allowed")?;
    site.start_all()?;
    site.sluice_with("node1", &["apply", "-f", "-"], site::many_routes(ROUTES))?;
    for node in NODES {
        wait_for("the routes", LIMIT, || site.routes(node).is_ok_and(|routes| routes >= ROUTES as u64))?;
    }
    // Nobody makes a table of what is allowed here before somebody else writes, who has not said so.
    for node in NODES {
        site.kill9(node)?;
    }
    let mark = |site: &Site| site.redis_cli(&["HGET", &Site::key("config"), "sluice.dev/allow-shrink"]);
    let (code, said) = site.try_sluice_with(
        "node1",
        &["apply", "--allow-shrink", "-f", "-"],
        &site::many_routes(ROUTES + 1),
    )?;
    ensure!(code == 0 && !mark(&site)?.trim_ascii().is_empty(), "{code}: {said}");
    let (code, said) = delete_routes(&site, &[])?;
    ensure!(
        said.contains("HTTPRoute/default/r7 deleted") && mark(&site)?.trim_ascii().is_empty(),
        "{code}: {said}"
    );
    for node in NODES {
        site.start(node)?;
    }
    let held_back = |site: &Site| {
        let leader = site.leader().ok()?;
        site.cluster(&leader).ok()?["unpublished"].as_str().map(str::to_owned)
    };
    let why = wait_until("it to be held back", LIMIT, || held_back(&site))
        .with_context(|| format!("{:?}", NODES.map(|node| site.cluster(node))))?;
    ensure!(why.contains("--allow-shrink"), "{why}");
    ensure!(site.routes("node1")? >= ROUTES as u64, "what nobody allowed is in force");

    let (code, said) = delete_routes(&site, &["--allow-shrink"])?;
    ensure!(code == 0, "{code}: {said}");
    wait_for("the routes to go", LIMIT, || site.routes("node1").is_ok_and(|routes| routes < ROUTES as u64))
}

#[test]
fn whoever_was_away_while_a_table_shrank_takes_what_came_of_it() -> Result<()> {
    if unprivileged("whoever_was_away_while_a_table_shrank_takes_what_came_of_it") {
        return Ok(());
    }
    let mut site = Site::up("cluster_away")?;
    site.start_all()?;
    site.sluice_with("node1", &["apply", "-f", "-"], site::many_routes(ROUTES))?;
    for node in NODES {
        wait_for("the routes", LIMIT, || site.routes(node).is_ok_and(|routes| routes >= ROUTES as u64))?;
    }
    off_node3(&mut site)?;
    site.kill9("node3")?;
    let (code, said) = delete_routes(&site, &["--allow-shrink"])?;
    ensure!(code == 0, "{code}: {said}");
    // What follows is of nobody's leave, and written whole by a later term.
    site.sluice_with("node1", &["apply", "-f", "-"], site::many_routes(2))?;
    let leader = leading(&site)?;
    let before = site.epoch(&leader)?;
    site.kill9(&leader)?;
    site.start(&leader)?;
    wait_for("the next term", LIMIT, || {
        ["node1", "node2"].iter().all(|node| site.epoch(node).is_ok_and(|epoch| epoch > before))
    })?;
    site.redis_cli(&["DEL", &Site::key("table")])?;
    wait_for("the table to be written anew", LIMIT, || site.stored_table().is_ok())?;

    site.start("node3")?;
    for node in NODES {
        wait_for("two routes and no more", LIMIT, || site.routes(node).is_ok_and(|routes| routes < 8))
            .with_context(|| format!("{node}: {:?}", site.cluster(node)))?;
    }
    wait_for("all to have one table", LIMIT, || one_epoch(&site).is_some())
}

#[test]
fn a_table_that_is_deleted_or_spoilt_in_the_store_is_written_anew() -> Result<()> {
    if unprivileged("a_table_that_is_deleted_or_spoilt_in_the_store_is_written_anew") {
        return Ok(());
    }
    let mut site = Site::up("cluster_anew")?;
    site.start_all()?;
    let load = site.load("node1")?;
    wait_for("the first table", LIMIT, || site.stored_table().is_ok())?;
    site.redis_cli(&["DEL", &Site::key("table")])?;
    wait_for("the table that was deleted", LIMIT, || site.stored_table().is_ok())?;

    // Whoever has a table never reads it again: it is found by one who comes without.
    site.redis_cli(&["HSET", &Site::key("table"), "body", "garbage!"])?;
    ensure!(site.terminate("node3")?.success());
    std::fs::remove_dir_all(site.state_of("node3")).context("the state of node3")?;
    site.start("node3")?;
    ensure!(site.stored_table().is_ok(), "it is spoilt still");
    ensure!(site.answer("node3")? == "v1");

    // Nor does one that has an older table, and can't follow to the one in force.
    site.kill9("node3")?;
    site.redis_cli(&["HSET", &Site::key("table"), "body", "garbage!"])?;
    site.sluice_with("node1", &["apply", "-f", "-"], site::many_routes(3))?;
    site.redis_cli(&["DEL", &Site::key("log")])?;
    site.start("node3")?;
    wait_for("what it missed", LIMIT, || site.routes("node3").is_ok_and(|routes| routes > 3))
        .with_context(|| format!("{:?}", NODES.map(|node| site.cluster(node))))?;

    // What is foreign stays, and who applies meanwhile is told why nothing comes of it.
    site.redis_cli(&["DEL", &Site::key("table")])?;
    wait_for("the table to be back", LIMIT, || site.stored_table().is_ok())?;
    site.redis_cli(&["SET", &Site::key("table"), "mine"])?;
    site.redis_cli(&["SET", &Site::key("log"), "mine"]).context("a log of another type")?;
    let (code, said) = site.try_sluice_with("node1", &["apply", "-f", "-"], &site::many_routes(ROUTES))?;
    ensure!(
        code == 3 && said.contains("HELD BACK by") && said.contains("holds something foreign"),
        "{code}: {said}"
    );
    site.redis_cli(&["DEL", &Site::key("table"), &Site::key("log")])?;
    for node in NODES {
        wait_for("the routes", LIMIT, || site.routes(node).is_ok_and(|routes| routes >= ROUTES as u64))
            .with_context(|| format!("{node}: {:?}", site.cluster(node)))?;
    }
    let leader = leading(&site)?;
    wait_for("nothing to be held back", LIMIT, || {
        site.cluster(&leader).is_ok_and(|cluster| cluster["unpublished"].is_null())
    })?;
    let failures = load.stop()?;
    ensure!(failures.is_empty(), "{failures:?}");
    Ok(())
}
