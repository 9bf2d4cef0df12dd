//! Three agents as one cluster: a route that is applied once steers traffic on all nodes, the leader and the store die, and
//! no request fails.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::load::{Load, Plan, Report};
use lab::wait::wait_until;
use lab::wait_for;

use super::ledger::{Ledger, headline, millis};
use super::lifecycle::Agents;
use super::shop::{self, NODES};
use super::site::Site;

/// Requests a second from each pod that asks.
const RATE: u32 = 100;
/// Requests of each of them that end while something is away.
const MEANWHILE: usize = 200;
/// Nothing that follows from an event takes longer.
const LIMIT: Duration = Duration::from_secs(30);
/// Connections of pods whose agent is gone.
const DIRECT: usize = 20;

/// Every node has registered, and all know of each other and of one leader.
pub fn show_registered(site: &Site<'_>, ledger: &mut Ledger) -> Result<()> {
    headline("One cluster: each agent registers in Redis, one of them leads and publishes signed tables");
    let expected = format!("{} on each", NODES.join(" "));
    for node in NODES {
        // What this waits for is checked below, where it shows what is there instead.
        let _ = wait_for("all to be known", LIMIT, || alive(site, node).is_ok_and(|all| all == NODES));
    }
    let known: Vec<_> = NODES.iter().map(|node| alive(site, node)).collect::<Result<_>>()?;
    let holds = known.iter().all(|known| *known == NODES);
    let seen = if holds { expected.clone() } else { format!("{known:?}") };
    ledger.check("nodes that each node knows", expected, seen, holds);
    let (leader, epoch) = leader(site, NODES[0])?;
    let same = NODES.iter().all(|node| {
        site.view(node).is_ok_and(|view| view["leader"]["node"] == *leader && view["signed"] == true)
    });
    let seen = format!("{leader}, epoch {epoch}");
    ledger.check("the leader, as each node has it", "the same, tables signed", seen, same);
    Ok(())
}

/// A route, the death of the leader, and that of the store.
pub fn show(site: &mut Site<'_>, agents: &mut Agents, ledger: &mut Ledger) -> Result<()> {
    show_applied(site, ledger)?;
    show_leader_killed(site, agents, ledger)?;
    show_store_killed(site, agents, ledger)
}

fn show_applied(site: &Site<'_>, ledger: &mut Ledger) -> Result<()> {
    headline("sluice apply on a node that does not lead: an HTTPRoute sends everybody's cart to v2");
    let (leader, _) = leader(site, NODES[0])?;
    let at = other_than(&[&leader]);
    check_all(site, &NODES, "v1", "before, from a pod on each node", ledger);
    let begin = Instant::now();
    site.apply_text(at, &shop::cart_to("cart-v2"))?;
    let steered = wait_steered(site, &NODES, "v2", begin)?;
    let what = format!("applied on {at}, steers on every node");
    ledger.check(&what, "v2, v2, v2", format!("v2, v2, v2 (after {})", millis(steered)), true);
    Ok(())
}

fn show_leader_killed(site: &Site<'_>, agents: &mut Agents, ledger: &mut Ledger) -> Result<()> {
    let (first, before) = leader(site, NODES[0])?;
    let others: Vec<&str> = NODES.into_iter().filter(|node| *node != first).collect();
    headline(&format!("kill -9 of the leader, {first}, under load from pods on {}", others.join(" and ")));
    let loads = Loads::start(site, &others)?;
    loads.wait(MEANWHILE / 2)?;
    let killed = Instant::now();
    agents.kill(&first)?;
    let look = || leader(site, others[0]).ok().filter(|(node, epoch)| *node != first && *epoch > before);
    let (second, epoch) = wait_until("another leader", LIMIT, look)?;
    let seen = format!("{second}, epoch {epoch} (after {})", millis(killed.elapsed()));
    ledger.check("another node leads", format!("another, epoch over {before}"), seen, true);

    let begin = Instant::now();
    site.apply_text(others[0], &shop::cart_to(shop::CART))?;
    let steered = wait_steered(site, &others, "v1", begin)?;
    ledger.check(
        "a route applied then",
        "v1, v1",
        format!("v1, v1 (after {})", millis(steered)),
        others.iter().all(|node| site.epoch(node).is_ok_and(|now| now >= epoch)),
    );
    let answered = (0..DIRECT).filter(|_| site.cart(&first).is_ok()).count();
    let what = format!("new connections of {first}'s pod, directly");
    ledger.equal(&what, &format!("{DIRECT} answered"), &format!("{answered} answered"));
    agents.start_missing(site.lab)?;
    let begin = Instant::now();
    let followed = wait_until("the killed one to follow", LIMIT, || {
        site.epoch(&first).is_ok_and(|now| now >= epoch).then(|| begin.elapsed())
    })?;
    let seen = format!("epoch {} ({} after it was ready)", site.epoch(&first)?, millis(followed));
    ledger.check(&format!("{first} is back and follows"), format!("epoch {epoch}"), seen, true);
    loads.wait(MEANWHILE / 2)?;
    loads.check(ledger)
}

fn show_store_killed(site: &mut Site<'_>, agents: &mut Agents, ledger: &mut Ledger) -> Result<()> {
    let restarted = NODES[2];
    let asking = [NODES[0], NODES[1]];
    headline("kill -9 of Redis under load, an agent restarted meanwhile, and Redis back empty");
    let documents = site.documents(NODES[0])?;
    site.apply_text(NODES[0], &shop::cart_to("cart-v2"))?;
    wait_steered(site, &NODES, "v2", Instant::now())?;
    let before = site.epoch(NODES[0])?;
    let loads = Loads::start(site, &asking)?;
    loads.wait(MEANWHILE / 2)?;
    site.store.stop()?;
    for node in NODES {
        wait_for("the outage to be told", LIMIT, || {
            site.view(node).is_ok_and(|view| view["store_error"].is_string())
        })?;
    }
    agents.kill(restarted)?;
    let begin = Instant::now();
    agents.start_missing(site.lab)?;
    let ready = millis(begin.elapsed());
    let seen = site.cart(restarted).unwrap_or_else(|error| format!("{error:#}"));
    let holds = seen == "v2";
    let what = format!("{restarted}'s agent restarted without Redis");
    ledger.check(&what, "v2, from disk", format!("{seen} (ready after {ready})"), holds);
    loads.wait(MEANWHILE)?;

    let begin = Instant::now();
    site.store.start_again(site.lab)?;
    let mut epochs = Vec::new();
    for node in NODES {
        epochs.push(wait_until("a table of a later term", LIMIT, || {
            site.epoch(node).ok().filter(|now| *now > before)
        })?);
    }
    let seen = format!("{epochs:?} (after {})", millis(begin.elapsed()));
    ledger.check("Redis is back, empty: tables' epochs", format!("over {before} on each"), seen, true);
    let again = site.documents(NODES[0])?;
    let expected = format!("the same {}", documents.len());
    let seen = if again == documents { expected.clone() } else { format!("{} documents", again.len()) };
    ledger.equal("documents in it", &expected, &seen);
    check_all(site, &NODES, "v2", "from a pod on each node", ledger);
    loads.wait(MEANWHILE / 2)?;
    loads.check(ledger)
}

/// The nodes that a node knows to be alive.
fn alive(site: &Site<'_>, node: &str) -> Result<Vec<String>> {
    let view = site.view(node)?;
    let nodes = view["nodes"].as_array().context("no nodes are told")?;
    let alive = nodes.iter().filter(|node| node["alive"] == true);
    let mut names: Vec<String> = alive.filter_map(|node| Some(node["node"].as_str()?.to_owned())).collect();
    names.sort();
    Ok(names)
}

/// Who leads as a node knows it, and its term.
fn leader(site: &Site<'_>, node: &str) -> Result<(String, u64)> {
    let view = site.view(node)?;
    let leader = &view["leader"];
    let name = leader["node"].as_str().with_context(|| format!("nobody leads: {view}"))?;
    Ok((name.to_owned(), leader["epoch"].as_u64().context("the leader has no epoch")?))
}

fn other_than(nodes: &[&str]) -> &'static str {
    NODES.into_iter().find(|node| !nodes.contains(node)).expect("there are more nodes")
}

/// Waits until a version of the cart answers on each of these nodes; how long that took.
fn wait_steered(site: &Site<'_>, nodes: &[&str], version: &str, begin: Instant) -> Result<Duration> {
    for node in nodes {
        wait_for(&format!("{version} on {node}"), LIMIT, || {
            site.cart(node).is_ok_and(|seen| seen == version)
        })?;
    }
    Ok(begin.elapsed())
}

fn check_all(site: &Site<'_>, nodes: &[&str], version: &str, what: &str, ledger: &mut Ledger) {
    let seen = nodes.iter().map(|node| site.cart(node).unwrap_or_else(|error| format!("{error:#}")));
    let seen = seen.collect::<Vec<_>>().join(", ");
    ledger.equal(what, &vec![version; nodes.len()].join(", "), &seen);
}

/// Load from pods of several nodes.
struct Loads(Vec<Load>);

impl Loads {
    fn start(site: &Site<'_>, nodes: &[&str]) -> Result<Self> {
        let plan = Plan {
            address: site.cart_address()?,
            host: shop::CART.to_owned(),
            paths: vec!["/".to_owned()],
            rate: RATE,
        };
        let start = |node: &&str| Load::start(&site.lab.pod(shop::client_of(node))?.netns(), &plan);
        nodes.iter().map(start).collect::<Result<_>>().map(Self)
    }

    fn wait(&self, requests: usize) -> Result<()> {
        self.0.iter().try_for_each(|load| load.wait_requests(requests, LIMIT))
    }

    /// Ends it; nothing may have failed.
    fn check(self, ledger: &mut Ledger) -> Result<()> {
        let mut all = Report::default();
        for load in self.0 {
            all.samples.extend(load.stop()?.samples);
        }
        ledger.none_failed(&all);
        Ok(())
    }
}
