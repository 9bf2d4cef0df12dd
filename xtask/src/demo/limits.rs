//! Rate limits: one that all nodes count together, applied while traffic flows, and a flood that ends in the kernel.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::http::{Connection, Response};
use lab::netns::Netns;
use lab::wait_for;

use super::ledger::{Ledger, headline, millis};
use super::shop::{self, NODES};
use super::site::Site;

/// Nothing that follows from an event takes longer.
const LIMIT: Duration = Duration::from_secs(30);
/// How long one answer may take, and how long whoever is cut off waits for one.
const TIMEOUT: Duration = Duration::from_secs(5);
const BRIEF: Duration = Duration::from_millis(500);
/// What one user may ask, and what he asks on each node.
const QUOTA: usize = 100;
const EACH: usize = 50;
/// Where the Gateway listens that is flooded, and after how many refusals the flood is cut off.
const PORT: u16 = 8088;
const REFUSALS: usize = 100;
/// The node whose edge is guarded.
pub const GUARDED: &str = "node1";

/// What one user may ask of the cart, whichever node he comes by.
fn per_user() -> String {
    format!(
        "apiVersion: sluice.dev/v1alpha1\nkind: RateLimit\nmetadata: {{name: per-user}}\nspec:\n\
         \x20 targetRefs: [{{kind: Service, name: {}}}]\n  limits:\n\
         \x20 - name: per-user\n    key: [{{type: Header, name: x-user}}]\n    ifMissing: Exempt\n\
         \x20   window: {{requests: {QUOTA}, per: 15m}}\n    cluster: {{mode: Exact, fail: Share}}\n",
        shop::CART
    )
}

/// A Gateway to the cart, and what strangers may ask of it.
fn edge() -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: edge}}\nspec:\n  gatewayClassName: sluice\n\
         \x20 listeners: [{{name: http, port: {PORT}, protocol: HTTP}}]\n---\n\
         apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: edge}}\nspec:\n\
         \x20 parentRefs: [{{name: edge}}]\n  rules: [{{backendRefs: [{{name: {}, port: 80}}]}}]\n---\n\
         apiVersion: sluice.dev/v1alpha1\nkind: RateLimit\nmetadata: {{name: strangers}}\nspec:\n\
         \x20 targetRefs: [{{group: gateway.networking.k8s.io, kind: Gateway, name: edge}}]\n  limits:\n\
         \x20 - name: strangers\n    key: [{{type: SourceAddress, prefixLengthV6: 64}}]\n\
         \x20   rate: {{requests: 50, per: 1s}}\n    pushDown: {{after: {REFUSALS}, within: 10s, for: 3s}}\n",
        shop::CART
    )
}

/// Shows both; nothing of them is left.
pub fn show(site: &Site<'_>, ledger: &mut Ledger) -> Result<()> {
    show_per_user(site, ledger)?;
    show_flood(site, ledger)
}

fn show_per_user(site: &Site<'_>, ledger: &mut Ledger) -> Result<()> {
    headline(
        "sluice apply of a RateLimit: 100 requests of each user in 15 minutes, counted by all nodes together",
    );
    site.apply_text("node2", &per_user())?;
    for node in NODES {
        wait_for("the limit to be in force", LIMIT, || {
            site.look(node, "/limits").is_ok_and(|shown| {
                shown["limits"].as_array().is_some_and(|all| !all.is_empty())
                    && shown["store"]["state"] == "up"
                    && shown["store"]["nodes"] == NODES.len()
            })
        })?;
    }
    let mut seen: BTreeMap<u16, usize> = BTreeMap::new();
    let mut last = None;
    for node in NODES {
        let to = site.cart_address()?;
        let pod = site.lab.pod(shop::client_of(node))?;
        let answers = pod.in_netns(|| ask(to, shop::CART, &[("x-user", "ann")]))??;
        for answer in answers {
            *seen.entry(answer.status).or_default() += 1;
            last = Some(answer);
        }
    }
    let asked = NODES.len() * EACH;
    let expected = format!("{{200: {QUOTA}, 429: {}}}", asked - QUOTA);
    let counts = format!("{seen:?}");
    let holds = counts == expected;
    ledger.check(&format!("{asked} requests of one user by {} nodes", NODES.len()), expected, counts, holds);
    let last = last.context("nobody answered")?;
    let field = |name: &str| last.header(name).unwrap_or_default().to_owned();
    for name in ["retry-after", "ratelimit", "ratelimit-policy"] {
        println!("   {name}: {}", field(name));
    }
    let told = field("ratelimit-policy") == "\"per-user\";q=100;w=900" && !field("retry-after").is_empty();
    ledger.check("a refused request is told of the limit", "q=100;w=900", field("ratelimit-policy"), told);
    site.delete("node2", "RateLimit/default/per-user")
}

fn ask(to: SocketAddr, host: &str, headers: &[(&str, &str)]) -> Result<Vec<Response>> {
    let mut connection = Connection::open(to, TIMEOUT)?;
    (0..EACH).map(|_| Ok(connection.request("GET", host, "/", headers)?)).collect()
}

fn show_flood(site: &Site<'_>, ledger: &mut Ledger) -> Result<()> {
    headline(
        "A source floods a Gateway beyond its limit: the guard at the edge drops it, another client goes on",
    );
    site.apply_text("node3", &edge())?;
    let to = SocketAddr::new(site.lab.node(GUARDED)?.address().v4.into(), PORT);
    // A node that is cut off from another does without what it has of it, as the store would: the flood comes from outside.
    let calm = site.lab.node("node2")?;
    let (flooding, other) = (site.lab.underlay(), calm.netns());
    wait_for("the Gateway", LIMIT, || answers(&other, to).unwrap_or_default())?;
    let (refused, late) = flooding.enter(|| flood(to))??;
    let what = format!("a flood ends after {REFUSALS} refusals, in the kernel");
    let seen = format!("after {refused} refusals, {} after it had them", millis(late));
    let cut = refused >= REFUSALS && late < Duration::from_secs(1);
    ledger.check(&what, "within 1 s", seen, cut);
    let shown = site.look(GUARDED, "/limits")?;
    let mut limits = shown["limits"].as_array().into_iter().flatten();
    let pushed =
        limits.find(|limit| limit["limit"] == "strangers").and_then(|one| one["pushed_down"].as_u64());
    let pushed = pushed.unwrap_or_default();
    let seen = format!("{pushed} times");
    ledger.check("the guard was told, as sluice limits says", "at least once", seen, pushed >= 1);
    let goes_on = answers(&other, to)?;
    ledger.check(
        &format!("another client, {}", calm.address().v4),
        "200",
        if goes_on { "200" } else { "nothing" },
        goes_on,
    );
    let back = wait_for("it to be let in again", LIMIT, || answers(&flooding, to).unwrap_or_default());
    let seen = if back.is_ok() { "let in" } else { "kept out" };
    ledger.check("the source after its time", "let in", seen, back.is_ok());
    for name in ["RateLimit/default/strangers", "HTTPRoute/default/edge", "Gateway/default/edge"] {
        site.delete("node3", name)?;
    }
    Ok(())
}

/// Asks until nobody answers: the refusals, and the time from the one after which it shall be cut off to the last answer.
fn flood(to: SocketAddr) -> Result<(usize, Duration)> {
    let mut connection = Connection::open(to, BRIEF)?;
    let (begun, mut refused, mut reached, mut late) = (Instant::now(), 0, None, Duration::ZERO);
    while begun.elapsed() < LIMIT {
        let Ok(response) = connection.request("GET", "shop", "/", &[]) else { break };
        refused += usize::from(response.status == 429);
        if refused == REFUSALS {
            reached.get_or_insert_with(Instant::now);
        }
        late = reached.map_or(Duration::ZERO, |reached| reached.elapsed());
    }
    Ok((refused, late))
}

fn answers(from: &Netns, to: SocketAddr) -> Result<bool> {
    let answered = from.enter(|| Connection::open(to, BRIEF)?.request("GET", "shop", "/", &[]))?;
    Ok(answered.is_ok_and(|response| response.status == 200))
}
