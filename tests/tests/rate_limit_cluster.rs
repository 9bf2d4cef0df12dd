//! Limits that all nodes of a cluster count together, through real agents, a real Redis and real traffic.

#[path = "cluster/site.rs"]
mod site;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::http::Connection;
use lab::{unprivileged, wait_for, wait_until};
use serde_json::Value;
use site::{NODES, Site};

const LIMIT: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(5);

/// A RateLimit of the service that the lab's clients ask, counted by `x-user`; `quota` may go on with what requests cost.
fn document(quota: &str, cluster: &str) -> String {
    format!(
        "apiVersion: sluice.dev/v1alpha1\nkind: RateLimit\nmetadata: {{name: calm, namespace: default}}\nspec:\n\
         \x20 targetRefs: [{{kind: Service, name: {}}}]\n\
         \x20 limits: [{{name: each, key: [{{type: Header, name: x-user}}], {quota}, cluster: {cluster}}}]\n",
        site::HOST
    )
}

/// The statuses that a pod of a node gets for so many requests of a user.
fn statuses(site: &Site, node: &str, user: &str, times: usize) -> Result<BTreeMap<u16, usize>> {
    let to = SocketAddr::new(IpAddr::from(site.lab.cluster_ip(site::HOST)?.v4), 80);
    let pod = site.lab.pod(&format!("client-{node}"))?;
    pod.in_netns(|| -> Result<BTreeMap<u16, usize>> {
        let mut connection = Connection::open(to, TIMEOUT)?;
        let mut seen = BTreeMap::new();
        for _ in 0..times {
            let response = connection.request("GET", site::HOST, "/", &[("x-user", user)])?;
            *seen.entry(response.status).or_default() += 1;
        }
        Ok(seen)
    })?
}

/// What a user who has used up his limit is told to wait, asked again at once.
fn told_to_wait(site: &Site, node: &str, user: &str) -> Result<Vec<u64>> {
    let to = SocketAddr::new(IpAddr::from(site.lab.cluster_ip(site::HOST)?.v4), 80);
    site.lab.pod(&format!("client-{node}"))?.in_netns(|| -> Result<Vec<u64>> {
        let mut connection = Connection::open(to, TIMEOUT)?;
        (0..3)
            .map(|_| {
                let response = connection.request("GET", site::HOST, "/", &[("x-user", user)])?;
                response.header("retry-after").context("no wait")?.parse().context("no number")
            })
            .collect()
    })?
}

/// The same on all nodes at once, together.
fn on_all(site: &Site, user: &str, times: usize) -> Result<BTreeMap<u16, usize>> {
    let seen: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            NODES.iter().map(|node| scope.spawn(move || statuses(site, node, user, times))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a client")).collect()
    });
    let mut sum = BTreeMap::new();
    for statuses in seen {
        for (status, count) in statuses? {
            *sum.entry(status).or_default() += count;
        }
    }
    Ok(sum)
}

fn limits(site: &Site, node: &str) -> Result<Value> {
    let text = site.sluice_plain(node, &["limits", "-o", "json"])?;
    serde_json::from_str(&text).with_context(|| text.clone())
}

/// Applies it, and waits until all nodes hold requests to it, count by Redis and know of each other.
fn apply(site: &Site, document: String) -> Result<()> {
    site.sluice_with("node1", &["apply", "-f", "-"], document)?;
    for node in NODES {
        wait_for("the limit to be in force", LIMIT, || {
            limits(site, node).is_ok_and(|shown| {
                shown["limits"].as_array().is_some_and(|limits| limits.len() == 1)
                    && shown["store"]["state"] == "up"
                    && shown["store"]["nodes"] == 3
            })
        })
        .with_context(|| format!("{node}: {:?}", limits(site, node)))?;
    }
    Ok(())
}

#[test]
fn one_client_spread_over_three_nodes_gets_exactly_a_hundred() -> Result<()> {
    if unprivileged("one_client_spread_over_three_nodes_gets_exactly_a_hundred") {
        return Ok(());
    }
    let mut site = Site::up("limit_exact")?;
    site.start_all()?;
    // Whoever is in doubt refuses, so that a slow machine is told from a wrong count.
    apply(&site, document("window: {requests: 100, per: 15m}", "{mode: Exact, fail: Closed}"))?;
    for run in 0..20 {
        let seen = on_all(&site, &format!("user-{run}"), 50)?;
        ensure!(seen == BTreeMap::from([(200, 100), (429, 50)]), "run {run}: {seen:?}");
    }
    for node in NODES {
        let waits = told_to_wait(&site, node, "user-19")?;
        ensure!(waits.iter().all(|wait| (800..=900).contains(wait)), "{node}: {waits:?}");
        let shown = limits(&site, node)?;
        let limit = &shown["limits"][0];
        ensure!(limit["tier"] == "cluster, exact", "{node}: {shown}");
        ensure!(limit["why"] == "`cluster.mode` is `Exact`: Redis decides each request", "{node}: {shown}");
        ensure!(limit["cluster"]["asked"].as_u64() > Some(600), "{node}: {shown}");
    }
    Ok(())
}

#[test]
fn a_limit_goes_on_by_shares_while_redis_is_away_and_nobody_gets_more_when_it_is_back() -> Result<()> {
    if unprivileged("a_limit_goes_on_by_shares_while_redis_is_away_and_nobody_gets_more_when_it_is_back") {
        return Ok(());
    }
    let mut site = Site::up("limit_away")?;
    site.start_all()?;
    apply(&site, document("window: {requests: 90, per: 15m}", "{mode: Exact, fail: Share}"))?;
    let seen = statuses(&site, "node1", "ann", 30)?;
    ensure!(seen == BTreeMap::from([(200, 30)]), "{seen:?}");
    site.stop_redis()?;
    // Nobody waits for long, from the first request on.
    let asked = Instant::now();
    let seen = statuses(&site, "node2", "bob", 1)?;
    ensure!(seen == BTreeMap::from([(200, 1)]) && asked.elapsed() < Duration::from_secs(1), "{seen:?}");
    for node in NODES {
        let away = || limits(&site, node).is_ok_and(|shown| shown["store"]["state"] == "away");
        wait_for("the nodes to miss Redis", LIMIT, || {
            let _ = statuses(&site, node, "cid", 1);
            away()
        })?;
    }
    let seen = on_all(&site, "ann", 60)?;
    ensure!(seen == BTreeMap::from([(200, 60), (429, 120)]), "thirty for each node in all: {seen:?}");
    // It comes back empty.
    site.start_redis()?;
    for node in NODES {
        wait_for("the nodes to reach Redis", LIMIT, || {
            limits(&site, node).is_ok_and(|shown| shown["store"]["state"] == "up")
        })?;
    }
    let seen = on_all(&site, "ann", 30)?;
    ensure!(seen == BTreeMap::from([(429, 90)]), "{seen:?}");
    Ok(())
}

#[test]
fn requests_of_five_units_are_let_through_a_fifth_as_often_by_all_nodes_together() -> Result<()> {
    if unprivileged("requests_of_five_units_are_let_through_a_fifth_as_often_by_all_nodes_together") {
        return Ok(());
    }
    let mut site = Site::up("limit_costs")?;
    site.start_all()?;
    let quota = "window: {requests: 100, per: 15m}, cost: {units: 5}";
    apply(&site, document(quota, "{mode: Exact, fail: Closed}"))?;
    for run in 0..5 {
        let seen = on_all(&site, &format!("user-{run}"), 20)?;
        ensure!(seen == BTreeMap::from([(200, 20), (429, 40)]), "run {run}: {seen:?}");
    }
    Ok(())
}

/// What each node has leased of the limit, as a node shows it.
fn leased_by_node(site: &Site, node: &str) -> Result<Vec<Value>> {
    let shown = limits(site, node)?;
    shown["limits"][0]["cluster"]["leased_by_node"].as_array().cloned().with_context(|| shown.to_string())
}

/// All units that Redis has given out and not got back.
fn given_out(site: &Site) -> Result<u64> {
    let count = "local n = 0 for _, k in ipairs(redis.call('KEYS', 'sluice:*:limit:*')) do n = n + redis.call('LLEN', k) end return n";
    Ok(String::from_utf8(site.redis_cli(&["--raw", "EVAL", count, "0"])?)?.trim().parse()?)
}

/// A node that has leased nothing shows what the others have, and that is no more than Redis has given out and nobody has spent.
fn shows_what_others_have_leased(site: &Site) -> Result<()> {
    let before = given_out(site)?;
    let (mut spent, begun) = (0, Instant::now());
    loop {
        for node in ["node2", "node3"] {
            spent += statuses(site, node, "bob", 20)?.get(&200).copied().unwrap_or_default() as u64;
        }
        let ended = Instant::now();
        let most = given_out(site)?.saturating_sub(before + spent);
        let shown = || {
            // Of what was told after the last request, and before it ran out.
            let after = u64::try_from(ended.elapsed().as_millis()).ok()?;
            let nodes = leased_by_node(site, "node1").ok()?;
            let told = nodes[1..].iter().all(|node| node["age_ms"].as_u64().is_some_and(|age| age <= after));
            let units: Vec<u64> = nodes.iter().filter_map(|node| node["leased"].as_u64()).collect();
            matches!(units[..], [0, second, third] if told && second > 0 && third > 0).then_some(units)
        };
        if let Ok(units) = wait_until("what others have leased", Duration::from_secs(1), shown) {
            ensure!(units.iter().sum::<u64>() <= most, "{units:?} of {most}");
            break;
        }
        ensure!(begun.elapsed() < LIMIT, "{:?}", leased_by_node(site, "node1"));
    }
    let text = site.sluice_plain("node1", &["limits"])?;
    ensure!(text.contains("LEASED BY NODE") && text.contains("node1 0, node2 "), "{text}");
    Ok(())
}

#[test]
fn leases_hold_a_client_to_its_limit_too() -> Result<()> {
    if unprivileged("leases_hold_a_client_to_its_limit_too") {
        return Ok(());
    }
    let mut site = Site::up("limit_leased")?;
    site.start_all()?;
    apply(&site, document("window: {requests: 600, per: 15m}", "{mode: Leased}"))?;
    let seen = on_all(&site, "ann", 400)?;
    let admitted = seen.get(&200).copied().unwrap_or_default();
    ensure!((540..=600).contains(&admitted), "of six hundred in the first window: {seen:?}");
    let mut asked = 0;
    for node in NODES {
        let shown = limits(&site, node)?;
        asked += shown["limits"][0]["cluster"]["asked"].as_u64().context("no count")?;
        ensure!(shown["limits"][0]["cluster"]["leased_on_this_node"].is_u64(), "{node}: {shown}");
    }
    ensure!(asked < 400, "{asked} questions for 1,200 requests");
    shows_what_others_have_leased(&site)?;
    site.stop_redis()?;
    wait_for("the other nodes' to be unknown", LIMIT, || {
        leased_by_node(&site, "node1").is_ok_and(|nodes| {
            nodes.len() == 3
                && nodes[0]["leased"].is_u64()
                && nodes[1..]
                    .iter()
                    .all(|node| node["leased"].is_null() && node["unknown"] == "Redis does not answer")
        })
    })
    .with_context(|| format!("{:?}", leased_by_node(&site, "node1")))
}
