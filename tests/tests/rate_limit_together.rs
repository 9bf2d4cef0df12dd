//! Several limits of one document, some of which all nodes count together, through real agents and a real Redis: a request is within all of
//! them or spends nothing, and each `fail` does what it says where Redis is killed under load.

#[path = "cluster/site.rs"]
mod site;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::http::{Connection, Response};
use lab::load::{Load, Plan, Report};
use lab::{unprivileged, wait_for};
use serde_json::Value;
use site::{NODES, Site};

const LIMIT: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(5);

fn document(limits: &str, rest: &str) -> String {
    format!(
        "apiVersion: sluice.dev/v1alpha1\nkind: RateLimit\nmetadata: {{name: calm, namespace: default}}\nspec:\n\
         \x20 targetRefs: [{{kind: Service, name: {}}}]\n  limits: {limits}\n{rest}",
        site::HOST
    )
}

fn service(site: &Site) -> Result<SocketAddr> {
    Ok(SocketAddr::new(IpAddr::from(site.lab.cluster_ip(site::HOST)?.v4), 80))
}

/// What a pod of a node is answered to so many requests.
fn ask(
    site: &Site,
    node: &str,
    (path, headers): (&str, &[(&str, &str)]),
    times: usize,
) -> Result<Vec<Response>> {
    let to = service(site)?;
    let pod = site.lab.pod(&format!("client-{node}"))?;
    pod.in_netns(|| -> Result<Vec<Response>> {
        let mut connection = Connection::open(to, TIMEOUT)?;
        (0..times).map(|_| Ok(connection.request("GET", site::HOST, path, headers)?)).collect()
    })?
}

fn limits(site: &Site, node: &str) -> Result<Value> {
    let text = site.sluice_plain(node, &["limits", "-o", "json"])?;
    serde_json::from_str(&text).with_context(|| text.clone())
}

/// A limit, as a node shows it.
fn shown(site: &Site, node: &str, name: &str) -> Result<Value> {
    let all = limits(site, node)?;
    let all = all["limits"].as_array().context("no list")?;
    all.iter().find(|limit| limit["limit"] == name).cloned().with_context(|| format!("{node} has no {name}"))
}

/// Applies it, and waits until all nodes have a limit of this name, count by Redis and know of each other.
fn apply(site: &Site, document: String, name: &str) -> Result<()> {
    site.sluice_with("node1", &["apply", "-f", "-"], document)?;
    for node in NODES {
        wait_for("the limit to be in force", LIMIT, || {
            shown(site, node, name).is_ok()
                && limits(site, node).is_ok_and(|all| {
                    all["store"]["nodes"] == 3 && all["store"]["state"] == "up"
                        || !all.to_string().contains("cluster, ")
                })
        })
        .with_context(|| format!("{node}: {:?}", limits(site, node)))?;
    }
    Ok(())
}

/// Where a limit is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tier {
    Node,
    Exact,
    Leased,
}

impl Tier {
    /// Whoever is in doubt refuses, so that a slow machine is told from a wrong count.
    fn words(self) -> &'static str {
        match self {
            Self::Node => "",
            Self::Exact => ", cluster: {mode: Exact, fail: Closed}",
            Self::Leased => ", cluster: {mode: Leased, fail: Closed}",
        }
    }
}

/// Four of all, and one of each user, in this order or the other.
struct Pair {
    wide: Tier,
    narrow: Tier,
    narrow_first: bool,
    /// Tells its limits from those of other pairs.
    number: usize,
}

impl Pair {
    fn apply(&self, site: &Site) -> Result<()> {
        let Self { wide, narrow, number, .. } = self;
        let wide = format!("{{name: wide-{number}, window: {{requests: 4, per: 15m}}{}}}", wide.words());
        let narrow = format!(
            "{{name: narrow-{number}, key: [{{type: Header, name: x-user}}], window: {{requests: 1, per: 15m}}{}}}",
            narrow.words()
        );
        let both = if self.narrow_first { [narrow, wide] } else { [wide, narrow] };
        let document = document(&format!("[{}]", both.join(", ")), "  response: {fields: Always}\n");
        apply(site, document, &format!("wide-{number}"))
    }

    fn check(&self, site: &Site) -> Result<()> {
        let Self { number, .. } = self;
        let user = |node: &str, name: &str, times| ask(site, node, ("/", &[("x-user", name)]), times);
        let told =
            |answer: &Response| (answer.status, answer.header("ratelimit").unwrap_or_default().to_owned());
        let first = told(&user("node1", "a", 1)?[0]);
        ensure!(first == (200, format!("\"narrow-{number}\";r=0")), "the tightest is told: {first:?}");
        for answer in user("node1", "a", 5)? {
            let (status, field) = told(&answer);
            let by_narrow = field.starts_with(&format!("\"narrow-{number}\";r=0;t="));
            ensure!(status == 429 && by_narrow, "its second: {status}, {field}");
        }
        let elsewhere = |node| if self.wide == Tier::Node { "node1" } else { node };
        for (name, node) in [("b", "node2"), ("c", "node3"), ("d", "node1")] {
            let seen = told(&user(elsewhere(node), name, 1)?[0]);
            ensure!(seen.0 == 200, "{name}: what was refused has spent: {seen:?}");
        }
        let (status, field) = told(&user(elsewhere("node2"), "e", 1)?[0]);
        let by_wide = field.starts_with(&format!("\"wide-{number}\";r=0;t="));
        ensure!(status == 429 && by_wide, "the fifth of all: {status}, {field}");
        ensure!(user("node1", "a", 1)?[0].status == 429, "refused by both");
        Ok(())
    }

    /// Whether a machine that is slow has sent Redis away meanwhile.
    fn was_away(&self, site: &Site) -> Result<bool> {
        let mut away = 0;
        for node in NODES {
            for name in ["wide", "narrow"] {
                let limit = shown(site, node, &format!("{name}-{}", self.number))?;
                away += limit["cluster"]["away"].as_u64().unwrap_or_default();
            }
        }
        Ok(away > 0)
    }
}

#[test]
fn a_request_that_one_limit_refuses_spends_nothing_of_those_of_the_cluster() -> Result<()> {
    if unprivileged("a_request_that_one_limit_refuses_spends_nothing_of_those_of_the_cluster") {
        return Ok(());
    }
    let mut site = Site::up("limit_pairs")?;
    site.start_all()?;
    let pairs = [
        (Tier::Exact, Tier::Exact),
        (Tier::Exact, Tier::Leased),
        (Tier::Leased, Tier::Exact),
        (Tier::Leased, Tier::Leased),
        (Tier::Node, Tier::Exact),
        (Tier::Exact, Tier::Node),
    ];
    let mut number = 0;
    for ((wide, narrow), narrow_first) in pairs.into_iter().flat_map(|pair| [(pair, true), (pair, false)]) {
        for last in [false, false, true] {
            number += 1;
            let pair = Pair { wide, narrow, narrow_first, number };
            pair.apply(&site)?;
            let checked = pair.check(&site);
            if checked.is_ok() || last || !pair.was_away(&site)? {
                let what = || format!("wide {wide:?}, narrow {narrow:?}, narrow first: {narrow_first}");
                checked.with_context(what)?;
                break;
            }
        }
    }
    Ok(())
}

/// The limits of the outage: so many of each, of which this is a node's share.
const MODES: [&str; 3] = ["share", "closed", "open"];
const MOST: usize = 300;
const SHARE: usize = MOST / 3;
/// Requests to each node of each mode while nothing changes.
const ASKED: usize = 250;

/// What was let through, by node and mode.
type Counts = BTreeMap<(&'static str, &'static str), usize>;

fn path(mode: &str) -> String {
    format!("/?{mode}=a")
}

fn load(site: &Site) -> Result<Vec<(&'static str, Load)>> {
    let plan = Plan {
        address: service(site)?,
        host: site::HOST.to_owned(),
        paths: MODES.iter().map(|mode| path(mode)).collect(),
        rate: 200,
    };
    let one = |node: &'static str| {
        Ok((node, Load::start(&site.lab.pod(&format!("client-{node}"))?.netns(), &plan)?))
    };
    NODES.into_iter().map(one).collect()
}

fn admitted(reports: &[(&'static str, Report)]) -> Counts {
    let mut counts = Counts::new();
    for (node, report) in reports {
        for sample in report.samples.iter().filter(|sample| sample.outcome.is_ok()) {
            let mode = MODES.into_iter().find(|mode| sample.path == path(mode));
            *counts.entry((*node, mode.unwrap_or_default())).or_default() += 1;
        }
    }
    counts
}

fn stop(load: Vec<(&'static str, Load)>) -> Result<Counts> {
    let reports: Vec<_> =
        load.into_iter().map(|(node, load)| Ok((node, load.stop()?))).collect::<Result<_>>()?;
    Ok(admitted(&reports))
}

/// So many requests of each mode to each node.
fn each(site: &Site) -> Result<Counts> {
    let mut counts = Counts::new();
    for node in NODES {
        for mode in MODES {
            let answers = ask(site, node, (&path(mode), &[]), ASKED)?;
            counts.insert((node, mode), answers.iter().filter(|answer| answer.status == 200).count());
        }
    }
    Ok(counts)
}

fn of(counts: &Counts, node: &'static str, mode: &'static str) -> usize {
    counts.get(&(node, mode)).copied().unwrap_or_default()
}

fn all(counts: &Counts, mode: &str) -> usize {
    counts.iter().filter(|((_, of), _)| *of == mode).map(|(_, count)| count).sum()
}

fn wait_store(site: &Site, state: &str) -> Result<()> {
    for node in NODES {
        wait_for("the store's state", LIMIT, || {
            limits(site, node).is_ok_and(|all| all["store"]["state"] == state)
        })
        .with_context(|| format!("{state} on {node}"))?;
    }
    Ok(())
}

/// Requests that all nodes decided without Redis of the limit that is open.
fn open_without(site: &Site) -> Result<usize> {
    let one = |node: &&str| {
        let away = shown(site, node, "open")?["cluster"]["away"].as_u64().context("no count")?;
        Ok(usize::try_from(away)?)
    };
    NODES.iter().map(one).sum()
}

#[test]
fn a_redis_that_is_killed_under_load_leaves_each_limit_what_it_says() -> Result<()> {
    if unprivileged("a_redis_that_is_killed_under_load_leaves_each_limit_what_it_says") {
        return Ok(());
    }
    let mut site = Site::up("limit_killed")?;
    site.start_all()?;
    let limit = |mode: &&str| {
        let fail = mode[..1].to_uppercase() + &mode[1..];
        format!(
            "{{name: {mode}, key: [{{type: Query, name: {mode}}}], ifMissing: Exempt, \
             window: {{requests: {MOST}, per: 15m}}, cluster: {{mode: Leased, fail: {fail}}}}}"
        )
    };
    let all_three: Vec<_> = MODES.iter().map(limit).collect();
    apply(&site, document(&format!("[{}]", all_three.join(", ")), ""), "open")?;

    let running = load(&site)?;
    wait_for("a third of the limits", LIMIT, || {
        let so_far: Vec<_> = running.iter().map(|(node, load)| (*node, load.so_far())).collect();
        MODES.iter().all(|mode| all(&admitted(&so_far), mode) >= MOST / 3)
    })?;
    site.stop_redis()?;
    wait_store(&site, "away")?;
    let before = stop(running)?;
    let away = each(&site)?;
    let without = open_without(&site)?;
    let running = load(&site)?;
    // It comes back empty.
    site.start_redis()?;
    wait_store(&site, "up")?;
    let (mut after, more) = (stop(running)?, each(&site)?);
    let without = open_without(&site)? - without;
    for (of, count) in more {
        *after.entry(of).or_default() += count;
    }

    let said = format!("{before:?}, then {away:?}, then {after:?}; {without} without Redis");
    for node in NODES {
        let had = of(&before, node, "share");
        ensure!(of(&away, node, "share") == SHARE.saturating_sub(had), "{node}'s share: {said}");
        let had = of(&before, node, "closed");
        ensure!(had + of(&after, node, "closed") <= SHARE.max(had), "{node}'s share, closed: {said}");
        ensure!(of(&away, node, "open") == ASKED, "{node} is open: {said}");
    }
    ensure!(all(&away, "closed") == 0, "closed: {said}");
    ensure!(all(&after, "share") == 0, "shares hold until the span is over: {said}");
    for mode in ["share", "closed"] {
        let total = all(&before, mode) + all(&away, mode) + all(&after, mode);
        ensure!(total <= 2 * MOST + MOST / 10, "{mode}: {said}");
    }
    ensure!(all(&after, "open") - without <= MOST + MOST / 10, "as Redis counts from then on: {said}");
    Ok(())
}
