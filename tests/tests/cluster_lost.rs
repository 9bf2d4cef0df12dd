//! A store that has lost what agents count on, and documents that they don't take: whoever applies is told, and nobody else's
//! documents are lost by it.

mod common;

#[path = "cluster/site.rs"]
mod site;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use lab::{unprivileged, wait_for};
use site::{NODES, Site, many_routes, service_to};

const LIMIT: Duration = Duration::from_secs(40);
const ROUTE: &str = "HTTPRoute/default/web";
/// Of others, who apply nothing meanwhile; so few that their end is held back by nobody.
const OTHERS: usize = 5;

/// The documents of the store.
fn ids(site: &Site) -> Result<BTreeSet<String>> {
    let said = String::from_utf8(site.redis_cli(&["HKEYS", &Site::key("config")])?)?;
    Ok(said
        .lines()
        .filter(|id| !id.starts_with("sluice.dev/") && !id.is_empty())
        .map(str::to_owned)
        .collect())
}

/// Waits until store and agents have all of these again, and steer as they did.
fn all_back(site: &Site, all: &BTreeSet<String>, version: &str) -> Result<()> {
    let counts = |node: &&str| {
        site.cluster(node).is_ok_and(|cluster| {
            let seal = cluster["seal"]["generation"]
                == site.cluster("node1").unwrap_or_default()["seal"]["generation"];
            cluster["documents"]["count"] == all.len() && cluster["documents_refused"].is_null() && seal
        })
    };
    let back = || ids(site).is_ok_and(|there| there == *all) && NODES.iter().all(counts);
    wait_for("all documents to be there", LIMIT, back)
        .with_context(|| format!("{:?}\n{:?}\n{:?}", ids(site), all, NODES.map(|node| site.cluster(node))))?;
    site.wait_answers("what was sealed last", version)?;
    for node in NODES {
        ensure!(site.routes(node)? >= OTHERS as u64, "{node} has lost others' routes");
    }
    Ok(())
}

/// Applies upon a store that has just lost something. It goes on when that is back, or agents refuse it and it says so.
fn applied_or_refused(site: &Site, arguments: &[&str], input: &str) -> Result<String> {
    let (code, said) = site.try_sluice_with("node1", arguments, input)?;
    if code == 0 {
        return Ok(said);
    }
    ensure!(code == 3 && said.contains("REFUSED by"), "{code}: {said}");
    site.sluice_with("node1", arguments, input.to_owned()).context(said)
}

#[test]
fn a_store_that_was_lost_costs_nobody_their_documents_whatever_is_applied() -> Result<()> {
    if unprivileged("a_store_that_was_lost_costs_nobody_their_documents_whatever_is_applied") {
        return Ok(());
    }
    let mut site = Site::up("cluster_lost")?;
    site.start_all()?;
    let documents = site.path("documents");
    site.sluice_with("node1", &["apply", "-f", "-"], many_routes(OTHERS))?;
    site.sluice_with("node1", &["apply", "-f", "-"], service_to("v2"))?;
    site.wait_answers("the route to steer", "v2")?;
    let all = ids(&site)?;

    // Texts alone are gone, and their seal with them.
    site.redis_cli(&["DEL", &Site::key("config")])?;
    let said = applied_or_refused(&site, &["apply", "-f", &documents], "")?;
    ensure!(said.contains(" on documents of generation") && said.contains("holds none"), "{said}");
    all_back(&site, &all, "v2").context("`config` was deleted")?;

    // Everything is gone, who is there as well.
    site.redis_cli(&["FLUSHALL"])?;
    applied_or_refused(&site, &["apply", "-f", "-"], &service_to("v1"))?;
    all_back(&site, &all, "v1").context("FLUSHALL")?;

    // Two after each other: the second builds upon what the first has made of nothing.
    site.redis_cli(&["FLUSHALL"])?;
    for input in [many_routes(1), service_to("v1")] {
        let (code, said) = site.try_sluice_with("node1", &["apply", "-f", "-"], &input)?;
        ensure!([0, 3].contains(&code), "{code}: {said}");
    }
    all_back(&site, &all, "v1").context("FLUSHALL and two of them")?;

    // Somebody watches files of some of them.
    let path = site.path("said");
    let said = || std::fs::read_to_string(&path).unwrap_or_default();
    let watch = site.start_verb("node2", &["apply", "--watch", "-f", &documents], "said")?;
    wait_for("the first round", LIMIT, || said().contains("unchanged"))?;
    site.stop_redis()?;
    site.start_redis()?;
    wait_for("the documents to be back", LIMIT, || ids(&site).is_ok_and(|there| there == all))
        .with_context(said)?;
    all_back(&site, &all, "v1").with_context(said)?;
    ensure!(watch.terminate()?.success(), "{}", said());

    // An older state is there again, and what is written upon it brings it to the revision that agents have.
    site.dump()?;
    site.sluice_with("node1", &["apply", "-f", "-"], service_to("v2"))?;
    site.wait_answers("the later change", "v2")?;
    site.restore_redis()?;
    applied_or_refused(&site, &["apply", "-f", "-"], &many_routes(OTHERS + 1))?;
    let more = &all | &BTreeSet::from([format!("HTTPRoute/default/r{OTHERS}")]);
    all_back(&site, &more, "v2").context("an old dump")?;

    // Who means it says so.
    site.redis_cli(&["FLUSHALL"])?;
    let said = site.sluice("node1", &["apply", "--anew", "-f", &documents])?;
    ensure!(said.contains("created"), "{said}");
    wait_for("what was begun anew to count", LIMIT, || {
        NODES.iter().all(|node| site.routes(node).is_ok_and(|routes| routes < OTHERS as u64))
    })
    .with_context(|| format!("{:?}", NODES.map(|node| site.cluster(node))))?;
    ensure!(!ids(&site)?.contains(ROUTE), "it is there still");

    let empty = site.path("empty");
    std::fs::create_dir(&empty)?;
    for (more, expected) in [(&["--prune"][..], 1), (&[], 0)] {
        let (code, said) = site.try_sluice_with("node1", &[&["apply", "-f", &empty], more].concat(), "")?;
        ensure!(code == expected && said.contains("has no files"), "{more:?}: {code}: {said}");
    }
    let (code, said) = site.try_sluice_with("node1", &["apply", "--prune", "-f", "-"], "# none\n")?;
    ensure!(code == 1 && said.contains("have no documents"), "{code}: {said}");
    Ok(())
}

#[test]
fn who_change_other_documents_at_once_give_way_to_each_other() -> Result<()> {
    if unprivileged("who_change_other_documents_at_once_give_way_to_each_other") {
        return Ok(());
    }
    let mut site = Site::up("cluster_at_once")?;
    site.start("node1")?;
    let all = many_routes(OTHERS);
    let routes: Vec<&str> = all.split("---").filter(|text| !text.trim().is_empty()).collect();
    ensure!(routes.len() == OTHERS, "{all}");
    let at_once = |verb: &(dyn Fn(usize) -> Result<String> + Sync)| -> Result<()> {
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..OTHERS).map(|number| scope.spawn(move || verb(number))).collect();
            all.into_iter().try_for_each(|one| one.join().map_err(|_| anyhow!("it panicked"))?.map(drop))
        })
    };
    let before = ids(&site)?;
    at_once(&|number| site.sluice_with("node1", &["apply", "-f", "-"], routes[number].to_owned()))?;
    ensure!(ids(&site)?.len() == before.len() + OTHERS, "{:?}", ids(&site)?);
    at_once(&|number| site.sluice("node1", &["delete", &format!("HTTPRoute/r{number}")]))?;
    ensure!(ids(&site)? == before, "{:?}", ids(&site)?);
    Ok(())
}

#[test]
fn the_only_node_that_knows_the_last_documents_gives_them_back() -> Result<()> {
    if unprivileged("the_only_node_that_knows_the_last_documents_gives_them_back") {
        return Ok(());
    }
    let mut site = Site::up("cluster_only_one")?;
    site.start_all()?;
    site.dump()?;
    site.sluice_with("node1", &["apply", "-f", "-"], many_routes(OTHERS))?;
    site.sluice_with("node1", &["apply", "-f", "-"], service_to("v2"))?;
    site.wait_answers("the route to steer", "v2")?;
    let all = ids(&site)?;
    // The store loses writes, and all nodes but one their disks: one of those leads. That one has written what it has.
    ensure!(site.terminate("node3")?.success());
    for node in ["node1", "node2"] {
        site.kill9(node)?;
        std::fs::remove_dir_all(site.state_of(node)).context("the state")?;
    }
    site.restore_redis()?;
    for node in ["node1", "node2"] {
        site.start(node)?;
    }
    wait_for("one of them to lead", LIMIT, || {
        site.cluster("node1").is_ok_and(|cluster| cluster["leader"]["node"].is_string())
    })?;
    site.start("node3")?;
    all_back(&site, &all, "v2")
}

#[test]
fn what_nobody_gives_back_is_not_built_over() -> Result<()> {
    if unprivileged("what_nobody_gives_back_is_not_built_over") {
        return Ok(());
    }
    let mut site = Site::up("cluster_ungiven")?;
    site.start("node1")?;
    wait_for("the first table", LIMIT, || site.answer("node1").is_ok_and(|answer| answer == "v1"))?;
    // It can't give back what it has, and its record is there for as long as it can say so.
    site.redis_cli(&["SET", &Site::key("leader"), "9/0000000000000001/nobody", "PX", "60000"])?;
    wait_for("it to lead no more", LIMIT, || {
        site.cluster("node1").is_ok_and(|cluster| cluster["role"] == "follower")
    })?;
    site.redis_cli(&["DEL", &Site::key("config")])?;
    for verb in [&["apply", "-f", &site.path("documents")][..], &["delete", "Service/web"]] {
        let (code, said) = site.try_sluice_with("node1", verb, "")?;
        let fits = said.contains("node1 counts on documents") && said.contains("--anew");
        ensure!(code == 1 && fits && said.contains("nothing was changed"), "{verb:?}: {code}: {said}");
    }
    ensure!(ids(&site)?.is_empty(), "something was written");
    Ok(())
}

#[test]
fn who_is_no_operator_any_more_is_told_so() -> Result<()> {
    if unprivileged("who_is_no_operator_any_more_is_told_so") {
        return Ok(());
    }
    let mut site = Site::up("cluster_revoked_operator")?;
    site.start_all()?;
    let follower = NODES.into_iter().find(|node| site.leader().is_ok_and(|leader| leader != *node));
    let said = site.sluice_plain(follower.context("there are three")?, &["status"])?;
    ensure!(said.contains("documents    are read by whoever leads"), "{said}");
    let (ca, bob) = (site.path("ca"), site.path("bob"));
    site.sluice_plain("node1", &["ca", "operator", "--dir", &ca, "--name", "bob", "--out", &bob])?;
    site.sluice_with("node1", &["apply", "--ca", &bob, "-f", "-"], service_to("v2"))?;
    site.wait_answers("the route to steer", "v2")?;
    site.sluice_with("node1", &["apply", "-f", "-"], many_routes(1))?;
    // A good seal of somebody else stays, while there is nothing to change.
    let seal = || site.redis_cli(&["HGET", &Site::key("config"), "sluice.dev/seal"]);
    let before = seal()?;
    let (documents, said) = (site.path("documents"), site.path("followed"));
    let watch =
        site.start_verb("node2", &["apply", "--watch", "--ca", &bob, "-f", &documents], "followed")?;
    wait_for("bob to follow", LIMIT, || {
        std::fs::read_to_string(&said).is_ok_and(|said| said.contains("unchanged"))
    })?;
    ensure!(watch.terminate()?.success() && seal()? == before, "bob sealed what alice has sealed");
    site.sluice_plain("node1", &["ca", "revoke", "--dir", &ca, "--operator", "bob"])?;
    for node in NODES {
        std::fs::copy(format!("{ca}/revoked.crl"), format!("{}/revoked.crl", site.ca_of(node)))?;
    }
    // Who leads reads the list at its next heartbeat; before that bob is an operator still.
    let route = site.path("route.yaml");
    std::fs::write(&route, service_to("v1"))?;
    wait_for("bob to be refused", LIMIT, || {
        let wanted = if site.answer("node1").is_ok_and(|answer| answer == "v1") { "v2" } else { "v1" };
        let apply = ["apply", "--ca", &bob, "-f", "-"];
        site.try_sluice_with("node1", &apply, &service_to(wanted))
            .is_ok_and(|(code, said)| code == 3 && said.contains("REFUSED by") && said.contains("revoked"))
    })?;
    site.sluice_with("node1", &["apply", "-f", "-"], service_to("v2"))?;
    site.wait_answers("alice's word", "v2")?;
    // Who follows files says why nothing comes of them, once, and leaves the store alone.
    let said = || std::fs::read_to_string(site.path("said")).unwrap_or_default();
    let watch = site.start_verb("node2", &["apply", "--watch", "--ca", &bob, "-f", &route], "said")?;
    let times = || said().matches("REFUSED by").count();
    wait_for("it to be told", LIMIT, || times() > 0).with_context(said)?;
    let healed = || {
        let text = site.redis_cli(&["HGET", &Site::key("config"), ROUTE]).unwrap_or_default();
        String::from_utf8_lossy(&text).contains("name: web-v2, port: 80")
    };
    // A second try builds upon what was put back; then it is left.
    wait_for("the first try to be put back", LIMIT, healed)?;
    let revision = || site.redis_cli(&["GET", &Site::key("revision")]);
    let (mut before, mut since) = (revision()?, Instant::now());
    wait_for("the store to be left alone", LIMIT, || {
        let now = revision().unwrap_or_default();
        if now != before {
            (before, since) = (now, Instant::now());
        }
        since.elapsed() > Duration::from_secs(5)
    })
    .with_context(said)?;
    ensure!(healed() && site.answer("node1")? == "v2", "bob moved something");
    ensure!(times() <= 2 && !said().contains("somebody else"), "{}", said());
    ensure!(watch.terminate()?.success(), "{}", said());
    Ok(())
}

/// Documents outlive their operator, whom nobody believes any more, and the count of changes whoever deletes it.
#[test]
fn what_a_revoked_operator_sealed_last_is_given_back() -> Result<()> {
    if unprivileged("what_a_revoked_operator_sealed_last_is_given_back") {
        return Ok(());
    }
    let mut site = Site::up("cluster_last_word")?;
    site.start_all()?;
    site.sluice_with("node1", &["apply", "-f", "-"], many_routes(OTHERS))?;
    let (ca, bob) = (site.path("ca"), site.path("bob"));
    site.sluice_plain("node1", &["ca", "operator", "--dir", &ca, "--name", "bob", "--out", &bob])?;
    site.sluice_with("node1", &["apply", "--ca", &bob, "-f", "-"], service_to("v2"))?;
    site.wait_answers("the route to steer", "v2")?;
    let all = ids(&site)?;
    site.sluice_plain("node1", &["ca", "revoke", "--dir", &ca, "--operator", "bob"])?;
    for node in NODES {
        std::fs::copy(format!("{ca}/revoked.crl"), format!("{}/revoked.crl", site.ca_of(node)))?;
    }
    // All of them look at it every 5 s.
    let brought = Instant::now();
    wait_for("the list to be read", LIMIT, || brought.elapsed() > Duration::from_secs(7))?;
    let (code, said) =
        site.try_sluice_with("node1", &["apply", "--ca", &bob, "-f", "-"], &service_to("v1"))?;
    ensure!(code == 3 && said.contains("revoked"), "{code}: {said}");
    all_back(&site, &all, "v2").context("after a write that was refused")?;
    site.redis_cli(&["FLUSHALL"])?;
    all_back(&site, &all, "v2").context("FLUSHALL")?;
    site.sluice_with("node1", &["apply", "-f", "-"], service_to("v1"))?;
    site.wait_answers("alice's word", "v1")?;

    let revision = || -> Result<u64> {
        let said = site.redis_cli(&["GET", &Site::key("revision")])?;
        String::from_utf8(said)?.trim().parse().context("the revision")
    };
    let before = revision()?;
    site.redis_cli(&["DEL", &Site::key("revision")])?;
    site.sluice_with("node1", &["apply", "-f", "-"], service_to("v2"))?;
    ensure!(revision()? > before, "{} after {before}", revision()?);
    site.wait_answers("what came after", "v2")
}
