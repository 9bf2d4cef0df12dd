//! Several agents as one cluster, on a real Redis: who leads, what is published and applied, and what traffic sees of it when
//! parts go.

mod common;

#[path = "cluster/site.rs"]
mod site;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{unprivileged, wait_for};
use nix::sys::signal::Signal;
use site::{NODES, Site, service_to};

/// Nothing waits longer for what follows from an event.
const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn what_is_applied_on_one_node_steers_traffic_on_all() -> Result<()> {
    if unprivileged("what_is_applied_on_one_node_steers_traffic_on_all") {
        return Ok(());
    }
    let mut site = Site::up("cluster_applied")?;
    site.start_all()?;
    let leader = site.leader()?;
    for node in NODES {
        let cluster = site.cluster(node)?;
        ensure!(cluster["leader"]["node"] == *leader, "{node}: {cluster}");
        ensure!(
            cluster["signed"] == true
                && cluster["role"] == if *node == *leader { "leader" } else { "follower" }
        );
        ensure!(site.answer(node)? == "v1", "{node}");
    }
    // The route that leads to v2 is applied where nobody leads.
    let follower = NODES.into_iter().find(|node| *node != leader).context("there are three")?;
    let said = site.sluice_with(follower, &["apply", "-f", "-"], service_to("v2"))?;
    ensure!(said.contains("HTTPRoute/default/web created"), "{said}");
    site.wait_answers("the route to steer", "v2")?;
    let said = site.sluice_with(follower, &["apply", "-f", "-"], service_to("v2"))?;
    ensure!(said.contains("HTTPRoute/default/web unchanged"), "{said}");
    // What is there is shown, and what would change.
    let said = site.sluice(follower, &["get", "HTTPRoute/web"])?;
    ensure!(said.trim() == service_to("v2").trim(), "{said}");
    let (code, said) = site.try_sluice_with(follower, &["diff", "-f", "-"], &service_to("v1"))?;
    ensure!(
        code == 1 && said.contains("-    - {name: web-v2") && said.contains("+    - {name: web,"),
        "{said}"
    );
    let said = site.sluice(follower, &["delete", "HTTPRoute/default/web"])?;
    ensure!(said.contains("deleted"), "{said}");
    site.wait_answers("the service's own endpoints", "v1")?;
    Ok(())
}

/// Files that somebody keeps applying: what becomes of them is followed, and what others make of them in the store is put back.
#[test]
fn a_directory_is_followed_and_whoever_contradicts_it_is_named() -> Result<()> {
    if unprivileged("a_directory_is_followed_and_whoever_contradicts_it_is_named") {
        return Ok(());
    }
    let mut site = Site::up("cluster_watched")?;
    site.start_all()?;
    let documents = site.path("documents");
    let route = format!("{documents}/route.yaml");
    let said = || std::fs::read_to_string(site.path("said")).unwrap_or_default();
    let says = |what: &str| {
        wait_for(what, LIMIT, || said().contains(what)).with_context(|| format!("it said:\n{}", said()))
    };
    let watch = site.start_verb("node2", &["apply", "--watch", "--prune", "-f", &documents], "said")?;
    says("unchanged")?;
    std::fs::write(&route, service_to("v2"))?;
    says("HTTPRoute/default/web created")?;
    site.wait_answers("the file to steer", "v2")?;
    // Somebody else, who has the same right, sees it put back.
    site.sluice_with("node1", &["apply", "-f", "-"], service_to("v1"))?;
    says("HTTPRoute/default/web: somebody else changed it in the store")?;
    site.wait_answers("what the file says", "v2")?;
    site.sluice("node1", &["delete", "HTTPRoute/web"])?;
    says("HTTPRoute/default/web: somebody else deleted it in the store")?;
    let more = service_to("v1").replace("name: web, namespace", "name: other, namespace");
    site.sluice_with("node1", &["apply", "-f", "-"], more)?;
    says("HTTPRoute/default/other: somebody else put it into the store")?;
    site.wait_answers("what the file says, again", "v2")?;
    // Somebody who writes slowly has emptied the file first. One that was never filled says nothing, and holds up nothing.
    std::fs::write(format!("{documents}/later.yaml"), "")?;
    std::fs::write(&route, "")?;
    says("route.yaml: the file is empty, and --prune would delete all documents that it had")?;
    ensure!(site.answer("node1")? == "v2", "what the file does not have at the moment was deleted");
    std::fs::write(&route, service_to("v2"))?;
    says("the store is as the files say again")?;
    ensure!(!said().contains("default/web deleted"), "it was deleted:\n{}", said());
    // A file that is gone takes its documents with it.
    std::fs::remove_file(&route)?;
    says("HTTPRoute/default/web deleted")?;
    std::fs::write(&route, service_to("v2"))?;
    site.wait_answers("the file that came back to steer", "v2")?;
    // What can't be applied changes nothing, and what can be goes on.
    std::fs::write(&route, service_to("v1").replace("port: 80", "port: eighty"))?;
    says("route.yaml:8")?;
    says("error: nothing was changed")?;
    std::fs::write(&route, service_to("v1"))?;
    let mended = || said().matches("the store is as the files say again").count() == 2;
    wait_for("the mended file to be taken", LIMIT, mended).with_context(said)?;
    site.wait_answers("the mended file to steer", "v1")?;
    std::fs::rename(&documents, site.path("elsewhere"))?;
    std::fs::create_dir(&documents)?;
    says("--prune would delete all documents that it had")?;
    ensure!(site.answer("node1")? == "v1", "what was not there any more was deleted");
    ensure!(watch.terminate()?.success(), "it did not end well:\n{}", said());
    Ok(())
}

#[test]
fn a_document_that_is_wrong_is_refused_with_its_place() -> Result<()> {
    if unprivileged("a_document_that_is_wrong_is_refused_with_its_place") {
        return Ok(());
    }
    let mut site = Site::up("cluster_refused")?;
    site.start("node1")?;
    let wrong = service_to("v2").replace("port: 80", "port: many");
    let (code, said) = site.try_sluice_with("node1", &["apply", "-f", "-"], &wrong)?;
    ensure!(code == 1 && said.contains("<stdin>:") && said.contains("port"), "{code}: {said}");
    ensure!(said.contains("nothing was changed"), "{said}");
    let limit = |target: &str, limit: &str| {
        format!(
            "apiVersion: sluice.dev/v1alpha1\nkind: RateLimit\nmetadata: {{name: calm}}\nspec:\n\
             \x20 targetRefs: [{target}]\n  limits: [{{name: a, {limit}}}]\n"
        )
    };
    let route = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: gone}";
    for (wrong, place) in [
        (limit("{kind: Service, name: web}", "rate: {requests: 5, per: 0s}"), "spec.limits[0].rate.per: "),
        (
            limit("{kind: Service, name: web}", "inFlight: 1, key: [{type: Colour}]"),
            "spec.limits[0].key[0].type: ",
        ),
        (
            limit("{kind: Service, name: gone}", "inFlight: 1"),
            "spec.targetRefs[0]: there is no Service default/gone",
        ),
        (limit(route, "inFlight: 1"), "spec.targetRefs[0]: there is no HTTPRoute default/gone"),
    ] {
        let (code, said) = site.try_sluice_with("node1", &["apply", "-f", "-"], &wrong)?;
        ensure!(code == 1 && said.contains("<stdin>:") && said.contains(place), "{code}: {said}");
        ensure!(said.contains("nothing was changed"), "{said}");
    }
    let (code, said) = site.try_sluice_with("node1", &["get", "HTTPRoute/web"], "")?;
    ensure!(code == 1 && said.contains("HTTPRoute/default/web is not there"), "{said}");
    for (words, exit, words_of_it) in [
        (&["get", "NoKind"][..], 1, "there is no kind 'NoKind'"),
        (&["get", "RateLimit"], 0, "KIND"),
        (&["get", "a/b/c/d"], 2, "names no document"),
        (&["delete", "web"], 2, "names no document"),
    ] {
        let (code, said) = site.try_sluice_with("node1", words, "")?;
        ensure!(code == exit && said.contains(words_of_it), "{words:?}: {code}: {said}");
    }
    // Somebody who holds an old version does not overwrite a newer one unknowingly: tested where writes are compared.
    ensure!(site.answer("node1")? == "v1");
    Ok(())
}

#[test]
fn when_the_leader_dies_another_one_leads_and_traffic_does_not_notice() -> Result<()> {
    if unprivileged("when_the_leader_dies_another_one_leads_and_traffic_does_not_notice") {
        return Ok(());
    }
    let mut site = Site::up("cluster_killed")?;
    site.start_all()?;
    let first = site.leader()?;
    let epoch = site.epoch(&first)?;
    let witness = NODES.into_iter().find(|node| *node != first).context("there are three")?;
    let load = site.load(witness)?;
    site.kill9(&first)?;
    let other = |site: &Site| {
        site.cluster(witness)
            .is_ok_and(|cluster| cluster["leader"]["node"].as_str().is_some_and(|node| node != first))
    };
    wait_for("another leader", LIMIT, || other(&site))?;
    site.sluice_with(witness, &["apply", "-f", "-"], service_to("v2"))?;
    for node in NODES.into_iter().filter(|node| *node != first) {
        wait_for("the new leader's table", LIMIT, || site.answer(node).is_ok_and(|answer| answer == "v2"))?;
        ensure!(site.epoch(node)? > epoch, "{node} has applied no later term's table");
    }
    // It comes back and follows.
    site.start(&first)?;
    wait_for("the first leader to follow", LIMIT, || site.answer(&first).is_ok_and(|answer| answer == "v2"))?;
    let failed = load.stop()?;
    ensure!(failed.is_empty(), "requests failed: {failed:?}");
    Ok(())
}

#[test]
fn a_leader_that_ends_hands_over() -> Result<()> {
    if unprivileged("a_leader_that_ends_hands_over") {
        return Ok(());
    }
    let mut site = Site::up("cluster_handover")?;
    site.start_all()?;
    let first = site.leader()?;
    ensure!(site.terminate(&first)?.success(), "the leader did not end well");
    let witness = NODES.into_iter().find(|node| *node != first).context("there are three")?;
    // Nobody waits for the lease to run out: it lives for half a minute here.
    wait_for("another leader", Duration::from_secs(10), || {
        site.cluster(witness)
            .is_ok_and(|cluster| cluster["leader"]["node"].as_str().is_some_and(|node| node != first))
    })?;
    wait_for("it to have left", LIMIT, || {
        site.cluster(witness).is_ok_and(|cluster| {
            let nodes = cluster["nodes"].as_array().cloned().unwrap_or_default();
            nodes.len() == 2 && nodes.iter().all(|node| node["node"] != *first)
        })
    })
}

#[test]
fn a_leader_that_slept_publishes_nothing_any_more() -> Result<()> {
    if unprivileged("a_leader_that_slept_publishes_nothing_any_more") {
        return Ok(());
    }
    let mut site = Site::up("cluster_paused")?;
    site.start_all()?;
    let first = site.leader()?;
    let witness = NODES.into_iter().find(|node| *node != first).context("there are three")?;
    site.signal(&first, Signal::SIGSTOP)?;
    wait_for("another leader", LIMIT, || {
        site.cluster(witness)
            .is_ok_and(|cluster| cluster["leader"]["node"].as_str().is_some_and(|node| node != first))
    })?;
    site.sluice_with(witness, &["apply", "-f", "-"], service_to("v2"))?;
    wait_for("the new leader's table", LIMIT, || site.answer(witness).is_ok_and(|answer| answer == "v2"))?;
    let epoch = site.epoch(witness)?;
    site.signal(&first, Signal::SIGCONT)?;
    wait_for("the first leader to follow", LIMIT, || {
        site.answer(&first).is_ok_and(|answer| answer == "v2")
            && site.epoch(&first).is_ok_and(|now| now >= epoch)
    })?;
    let cluster = site.cluster(&first)?;
    ensure!(cluster["role"] == "follower" && cluster["yielded"] == "timed_out", "{cluster}");
    Ok(())
}

#[test]
fn traffic_and_restarts_outlive_the_store() -> Result<()> {
    if unprivileged("traffic_and_restarts_outlive_the_store") {
        return Ok(());
    }
    let mut site = Site::up("cluster_outlives")?;
    site.start_all()?;
    site.sluice_with("node1", &["apply", "-f", "-"], service_to("v2"))?;
    for node in NODES {
        wait_for("the route to steer", LIMIT, || site.answer(node).is_ok_and(|answer| answer == "v2"))?;
        site.wait_kept(node)?;
    }
    let load = site.load("node1")?;
    let epoch = site.epoch("node1")?;
    site.stop_redis()?;
    wait_for("the outage to be told", LIMIT, || {
        site.cluster("node2").is_ok_and(|cluster| cluster["store_error"].is_string())
    })?;
    // Of others it knows what was, of itself what is.
    for there in site.cluster("node2")?["nodes"].as_array().context("the nodes")? {
        let (name, state) = (there["node"].as_str().unwrap_or(""), there["state"].as_str().unwrap_or(""));
        let expected = if name == "node2" { "serving" } else { "unknown, as the store does not answer" };
        ensure!(state.starts_with(expected), "{name}: {state}");
    }
    let unknown: u64 = site.metric("node2", "sluice_nodes{state=\"unknown\"} ")?;
    ensure!(unknown == 2, "{unknown} of 2 others are unknown");
    site.kill9("node3")?;
    site.start("node3")?;
    ensure!(site.answer("node3")? == "v2", "a restart without the store serves something else");
    // It comes back with nothing.
    site.start_redis()?;
    for node in NODES {
        wait_for("a table of a later term", LIMIT, || site.epoch(node).is_ok_and(|now| now > epoch))
            .with_context(|| format!("{node}: {:?}", site.cluster(node)))?;
        ensure!(site.answer(node)? == "v2", "{node} lost the route");
    }
    let said = site.sluice("node1", &["get"])?;
    ensure!(said.contains("HTTPRoute") && said.contains("Service"), "the documents are not back: {said}");
    let failed = load.stop()?;
    ensure!(failed.is_empty(), "requests failed: {failed:?}");
    Ok(())
}

#[test]
fn a_table_that_no_leader_made_is_refused_and_named() -> Result<()> {
    if unprivileged("a_table_that_no_leader_made_is_refused_and_named") {
        return Ok(());
    }
    let mut site = Site::up("cluster_forged")?;
    site.start_all()?;
    let good = site.stored_table()?;
    let mut altered = good.clone();
    let middle = altered.len() / 2;
    altered[middle] ^= 1;
    let cases = [
        ("altered", altered, "bad_signature"),
        ("cut", good[..good.len() / 2].to_vec(), "malformed"),
        ("of an unknown signer", site.signed_by_a_stranger(&good)?, "unknown_issuer"),
    ];
    for (what, bytes, reason) in cases {
        site.store_table(&bytes)?;
        for node in NODES {
            wait_for("the refusal to be told", LIMIT, || {
                site.cluster(node).is_ok_and(|cluster| cluster["refusals"][reason].as_u64() > Some(0))
            })
            .with_context(|| format!("a table that is {what}, at {node}: {:?}", site.cluster(node)))?;
            ensure!(site.answer(node)? == "v1", "a table that is {what} was applied");
        }
    }
    // What a leader publishes then counts again.
    site.sluice_with("node1", &["apply", "-f", "-"], service_to("v2"))?;
    site.wait_answers("the leader's table", "v2")?;
    // And the one before it does not, although it is signed: it is older.
    site.store_table(&good)?;
    // Whoever leads sees that the store went back, and writes the newest one again.
    wait_for("the newest table to be back", LIMIT, || site.stored_table().is_ok_and(|table| table != good))?;
    for node in NODES {
        ensure!(site.answer(node)? == "v2", "an older table was applied");
    }
    Ok(())
}

#[test]
fn endpoints_go_with_their_node() -> Result<()> {
    if unprivileged("endpoints_go_with_their_node") {
        return Ok(());
    }
    let mut site = Site::up("cluster_node")?;
    site.start_all()?;
    let ready = |site: &Site| -> Result<Vec<String>> { site.ready_endpoints("node1", "web") };
    wait_for("both endpoints", LIMIT, || ready(&site).is_ok_and(|ready| ready.len() == 2))
        .with_context(|| format!("{:?}", ready(&site)))?;
    site.kill9("node3")?;
    wait_for("the dead node's endpoint to go", LIMIT, || ready(&site).is_ok_and(|ready| ready.len() == 1))?;
    site.start("node3")?;
    wait_for("it to come back", LIMIT, || ready(&site).is_ok_and(|ready| ready.len() == 2))?;
    // One that says that it leaves takes nothing along: its pods are as they were.
    ensure!(site.terminate("node3")?.success());
    wait_for("the node to have left", LIMIT, || {
        site.cluster("node1")
            .is_ok_and(|cluster| cluster["nodes"].as_array().is_some_and(|nodes| nodes.len() == 2))
    })?;
    ensure!(ready(&site)?.len() == 2, "{:?}", ready(&site)?);
    Ok(())
}

#[test]
fn who_would_take_everything_away_has_to_say_so() -> Result<()> {
    if unprivileged("who_would_take_everything_away_has_to_say_so") {
        return Ok(());
    }
    let mut site = Site::up("cluster_shrink")?;
    site.start_all()?;
    site.sluice_with("node1", &["apply", "-f", "-"], site::many_routes(20))?;
    wait_for("the routes", LIMIT, || site.routes("node2").is_ok_and(|routes| routes >= 20))?;
    let names: Vec<String> = (0..20).map(|number| format!("HTTPRoute/default/r{number}")).collect();
    let delete: Vec<&str> = ["delete"].into_iter().chain(names.iter().map(String::as_str)).collect();
    let (code, said) = site.try_sluice_with("node1", &delete, "")?;
    ensure!(code == 3 && said.contains("HELD BACK by") && said.contains("--allow-shrink"), "{code}: {said}");
    let leader = site.leader()?;
    wait_for("the leader to say so", LIMIT, || {
        site.cluster(&leader).is_ok_and(|cluster| {
            cluster["unpublished"].as_str().is_some_and(|why| why.contains("--allow-shrink"))
        })
    })?;
    ensure!(site.routes("node2")? >= 20, "they are gone");
    // What was meant after all is published as it was, and is held back no more: nothing else has to change for that.
    let (code, _) = site.try_sluice_with("node1", &["apply", "-f", "-"], &site::many_routes(20))?;
    ensure!(code == 0, "{code}");
    wait_for("the leader to say so no more", LIMIT, || {
        site.cluster(&leader).is_ok_and(|cluster| cluster["unpublished"].is_null())
    })?;
    let (code, said) = site.try_sluice_with("node1", &delete, "")?;
    ensure!(code == 3, "{code}: {said}");
    // Nor is it by a node that leads no more.
    site.signal(&leader, Signal::SIGSTOP)?;
    let others = || NODES.into_iter().filter(|node| *node != leader);
    let led_by_another =
        || others().any(|node| site.cluster(node).is_ok_and(|cluster| cluster["role"] == "leader"));
    wait_for("another to lead", LIMIT, led_by_another)?;
    site.signal(&leader, Signal::SIGCONT)?;
    wait_for("the one before to be silent", LIMIT, || {
        site.cluster(&leader)
            .is_ok_and(|cluster| cluster["role"] == "follower" && cluster["unpublished"].is_null())
    })
    .with_context(|| format!("{:?}", site.cluster(&leader)))?;
    site.sluice_with("node1", &["apply", "--allow-shrink", "-f", "-"], service_to("v2"))?;
    for node in NODES {
        wait_for("them to go", LIMIT, || site.routes(node).is_ok_and(|routes| routes < 20))?;
    }
    ensure!(site.cluster(&leader)?["unpublished"].is_null());
    Ok(())
}

#[test]
fn what_is_wrong_with_the_store_is_one_clear_line() -> Result<()> {
    if unprivileged("what_is_wrong_with_the_store_is_one_clear_line") {
        return Ok(());
    }
    let site = Site::up("cluster_wrong")?;
    let (code, said) = site.try_agent("node1", &["--redis", "redis://x"], &[])?;
    ensure!(code == 1 && said.contains("--insecure-unsigned"), "{code}: {said}");
    let (code, said) = site.try_agent("node1", &["--redis", "http://x", "--insecure-unsigned"], &[])?;
    ensure!(code == 1 && said.contains("--redis"), "{code}: {said}");
    let (code, said) = site.try_agent(
        "node1",
        &["--redis", &site.redis_url(), "--config", "/tmp", "--insecure-unsigned"],
        &[],
    )?;
    ensure!(code == 2 && said.contains("--config"), "{code}: {said}");
    let ca = site.ca_of("node2");
    let (code, said) = site.try_agent("node1", &["--redis", &site.redis_url(), "--ca", &ca], &[])?;
    ensure!(code == 1 && said.contains("node2") && said.contains("node1"), "{code}: {said}");
    let wrong = site.redis_url().replace(lab::store::PASSWORD, "guess");
    let (code, said) = site.try_sluice_at(&wrong, "node1", &["get"])?;
    ensure!(code == 1 && said.contains("refuses access") && !said.contains("guess"), "{code}: {said}");
    ensure!(said.lines().count() == 1, "{said}");
    Ok(())
}
