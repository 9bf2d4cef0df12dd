//! Whoever can write to Redis and is no operator moves no traffic: what such a one writes is refused by every agent and named, and
//! what was sealed is given back.

mod common;

#[path = "cluster/site.rs"]
mod site;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use agent::cluster::documents::sealed::{Head, SEAL};
use agent::identity::{NodeIdentity, OperatorIdentity};
use agent::model::SharedMap;
use anyhow::{Context, Result, ensure};
use lab::{unprivileged, wait_for};
use site::{NODES, Site, service_to};

const LIMIT: Duration = Duration::from_secs(30);
const ROUTE: &str = "HTTPRoute/default/web";
const CLUSTER: &str = "shop";

/// Texts by id, each with a revision.
type Texts = SharedMap<Arc<str>, (u64, Arc<str>)>;

/// Writes as whoever has the password could, past all scripts, and tells everybody.
struct Raw<'a>(&'a Site);

impl Raw<'_> {
    fn revision(&self) -> Result<String> {
        let said = self.0.redis_cli(&["INCR", &Site::key("revision")])?;
        Ok(String::from_utf8(said)?.trim().to_owned())
    }

    fn put(&self, id: &str, text: &str) -> Result<()> {
        let revision = self.revision()?;
        self.0.redis_cli(&["HSET", &Site::key("config"), id, text])?;
        self.0.redis_cli(&["ZADD", &Site::key("revisions"), &revision, id])?;
        self.0.redis_cli(&["ZREM", &Site::key("deleted"), id]).map(drop)
    }

    fn delete(&self, id: &str) -> Result<()> {
        let revision = self.revision()?;
        self.0.redis_cli(&["HDEL", &Site::key("config"), id])?;
        self.0.redis_cli(&["ZREM", &Site::key("revisions"), id])?;
        self.0.redis_cli(&["ZADD", &Site::key("deleted"), &revision, id]).map(drop)
    }

    /// Puts it among the deleted ones as well.
    fn also_deleted(&self, id: &str, revision: &str) -> Result<()> {
        self.0.redis_cli(&["ZADD", &Site::key("deleted"), revision, id]).map(drop)
    }

    fn is_deleted(&self, id: &str) -> Result<bool> {
        let said = self.0.redis_cli(&["ZSCORE", &Site::key("deleted"), id])?;
        Ok(!said.trim_ascii().is_empty())
    }

    fn tell(&self) -> Result<()> {
        self.0.redis_cli(&["PUBLISH", &Site::key("events"), "documents"]).map(drop)
    }

    fn get(&self, id: &str) -> Result<String> {
        let text = String::from_utf8(self.0.redis_cli(&["HGET", &Site::key("config"), id])?)?;
        Ok(text.strip_suffix('\n').unwrap_or(&text).to_owned())
    }

    /// All documents, by id.
    fn all(&self) -> Result<Texts> {
        let ids = String::from_utf8(self.0.redis_cli(&["HKEYS", &Site::key("config")])?)?;
        ids.lines().map(|id| Ok((id.into(), (0, self.get(id)?.into())))).collect()
    }
}

/// A route that takes the service's traffic elsewhere.
fn evil() -> String {
    service_to("v1").replace("name: web, namespace", "name: a-evil, namespace")
}

fn refusals(site: &Site, node: &str, reason: &str) -> u64 {
    let cluster = site.cluster(node).unwrap_or_default();
    cluster["document_refusals"][reason].as_u64().unwrap_or(0)
}

/// Waits until no node refuses anything, and the store has what was sealed.
fn healed(site: &Site, route: &str) -> Result<()> {
    let good = || -> Result<bool> {
        let there = Raw(site).all()?;
        let route = there.get(ROUTE).is_some_and(|(_, text)| text.trim() == route.trim());
        let calm =
            |node: &&str| site.cluster(node).is_ok_and(|cluster| cluster["documents_refused"].is_null());
        Ok(route && !there.contains_key("HTTPRoute/default/a-evil") && NODES.iter().all(calm))
    };
    wait_for("what was sealed to be back", LIMIT, || good().unwrap_or(false))
        .with_context(|| format!("{:?}", NODES.map(|node| site.cluster(node))))
}

/// A site whose agents steer to v2, because an operator said so.
fn at_v2(name: &str) -> Result<Site> {
    let mut site = Site::up(name)?;
    site.start_all()?;
    site.sluice_with("node1", &["apply", "-f", "-"], service_to("v2"))?;
    site.wait_answers("the route to steer", "v2")?;
    Ok(site)
}

/// Spoils the store, and waits until every node has named it and what was sealed is back.
fn refused_everywhere(
    site: &Site,
    (what, reason): (&str, &str),
    spoil: impl FnOnce(&Raw<'_>) -> Result<()>,
) -> Result<()> {
    let before = NODES.map(|node| refusals(site, node, reason));
    spoil(&Raw(site)).with_context(|| what.to_owned())?;
    Raw(site).tell()?;
    for (node, before) in NODES.into_iter().zip(before) {
        wait_for("the refusal to be told", LIMIT, || refusals(site, node, reason) > before)
            .with_context(|| format!("{what}, at {node}: {:?}", site.cluster(node)))?;
        ensure!(site.answer(node)? == "v2", "{what}: {node} was moved");
        let series = format!("sluice_documents_refused_total{{reason=\"{reason}\"}}");
        let counted: u64 = site.metric(node, &series)?;
        ensure!(counted > before, "{what}: {node} counts {counted}");
    }
    healed(site, &service_to("v2")).with_context(|| what.to_owned())?;
    for node in NODES {
        ensure!(site.answer(node)? == "v2", "{what}: {node} was moved");
    }
    Ok(())
}

#[test]
fn who_can_only_write_to_redis_moves_no_traffic() -> Result<()> {
    if unprivileged("who_can_only_write_to_redis_moves_no_traffic") {
        return Ok(());
    }
    let mut site = Site::up("sealed_refused")?;
    site.start_all()?;
    let old = Raw(&site).get(SEAL)?;
    site.sluice_with("node1", &["apply", "-f", "-"], service_to("v2"))?;
    site.wait_answers("the route to steer", "v2")?;
    let load = site.load("node2")?;
    refused_everywhere(&site, ("a document is added", "altered"), |raw| {
        raw.put("HTTPRoute/default/a-evil", &evil())
    })?;
    refused_everywhere(&site, ("a document is added that is among the deleted", "altered"), |raw| {
        raw.put("HTTPRoute/default/a-evil", &evil())?;
        raw.also_deleted("HTTPRoute/default/a-evil", "99999")
    })?;
    refused_everywhere(&site, ("a document is changed", "altered"), |raw| raw.put(ROUTE, &service_to("v1")))?;
    refused_everywhere(&site, ("a document is deleted", "altered"), |raw| raw.delete(ROUTE))?;
    refused_everywhere(&site, ("a set is brought back that was sealed before", "outdated"), |raw| {
        raw.delete(ROUTE)?;
        raw.put(SEAL, &old)
    })?;
    refused_everywhere(&site, ("the seal is taken away", "unsigned"), |raw| raw.delete(SEAL))?;
    let failed = load.stop()?;
    ensure!(failed.is_empty(), "requests failed: {failed:?}");
    // The next proper one counts.
    site.sluice_with("node3", &["apply", "-f", "-"], service_to("v1"))?;
    site.wait_answers("the route to steer", "v1")?;
    Ok(())
}

/// Nobody is told, and there is nothing new by its number: it is found by looking.
#[test]
fn a_text_that_was_changed_without_a_new_revision_is_noticed() -> Result<()> {
    if unprivileged("a_text_that_was_changed_without_a_new_revision_is_noticed") {
        return Ok(());
    }
    let site = at_v2("sealed_by_hand")?;
    let altered = || NODES.iter().map(|node| refusals(&site, node, "altered")).sum::<u64>();
    let before = altered();
    site.redis_cli(&["HSET", &Site::key("config"), ROUTE, &service_to("v1")])?;
    wait_for("somebody to refuse it", LIMIT, || altered() > before)
        .with_context(|| format!("{:?}", NODES.map(|node| site.cluster(node))))?;
    healed(&site, &service_to("v2"))?;
    for node in NODES {
        ensure!(site.answer(node)? == "v2", "{node} was moved");
    }
    Ok(())
}

/// One key says that a document is there, and another one that it was deleted.
#[test]
fn a_store_that_contradicts_itself_is_named_mended_and_holds_up_nobody() -> Result<()> {
    if unprivileged("a_store_that_contradicts_itself_is_named_mended_and_holds_up_nobody") {
        return Ok(());
    }
    let site = at_v2("sealed_at_odds")?;
    let raw = Raw(&site);
    let leader = site.leader()?;
    // Below all revisions, so that nobody reads it by its number; and above. It is mended soon after it was named.
    for (times, revision) in [(1, "1"), (2, "99999")] {
        raw.also_deleted(ROUTE, revision)?;
        let said = || site.sluice_plain(&leader, &["status"]).unwrap_or_default();
        let named =
            format!("the store contradicts itself about documents: {ROUTE} is there and among the deleted");
        wait_for("the leader to name it", LIMIT, || {
            site.log(&leader).is_ok_and(|log| log.matches(&named).count() >= times)
        })
        .with_context(|| format!("{revision}: {}", said()))?;
        wait_for("it to be mended", LIMIT, || {
            !said().contains("AT ODDS") && raw.is_deleted(ROUTE).is_ok_and(|deleted| !deleted)
        })
        .with_context(|| format!("{revision}: {}", said()))?;
        let counted: usize = site.metric(&leader, "sluice_documents_at_odds_total ")?;
        let at_odds: usize = site.metric(&leader, "sluice_cluster_documents_at_odds ")?;
        ensure!(counted >= times && at_odds == 0, "{revision}: {counted}, {at_odds}");
    }
    // Who applies needs not wait for that.
    for (version, arguments) in
        [("v1", &["apply", "-f", "-"][..]), ("v2", &["apply", "--allow-shrink", "-f", "-"][..])]
    {
        for id in [ROUTE, SEAL, "Service/default/web"] {
            raw.also_deleted(id, "99999")?;
        }
        let said = site.sluice_with("node1", arguments, service_to(version))?;
        ensure!(said.contains("web configured"), "{said}");
        for id in [ROUTE, SEAL, "Service/default/web"] {
            ensure!(!raw.is_deleted(id)?, "{id} is among the deleted ones still");
        }
        site.wait_answers("the route to steer", version)?;
    }
    raw.also_deleted(ROUTE, "99999")?;
    site.sluice("node1", &["delete", "HTTPRoute/web"])?;
    site.wait_answers("the route to be gone", "v1")?;
    Ok(())
}

/// Whoever has the wrong directory blames nobody else, and leaves no trace.
#[test]
fn who_applies_with_the_wrong_ca_is_told_so_and_writes_nothing() -> Result<()> {
    if unprivileged("who_applies_with_the_wrong_ca_is_told_so_and_writes_nothing") {
        return Ok(());
    }
    let site = at_v2("sealed_wrong_ca")?;
    let (ca, out) = (site.path("strange-ca"), site.path("strange-operator"));
    site.sluice_plain("node1", &["ca", "init", "--dir", &ca, "--trust-domain", "shop.example"])?;
    site.sluice_plain("node1", &["ca", "operator", "--dir", &ca, "--name", "alice", "--out", &out])?;
    let before = Raw(&site).all()?;
    let documents = site.path("documents");
    for verb in [
        &["apply", "-f", &documents][..],
        &["apply", "--prune", "-f", &documents],
        &["delete", "HTTPRoute/web"],
    ] {
        let arguments = [verb, &["--ca", &out]].concat();
        let (code, said) = site.try_sluice_with("node1", &arguments, "")?;
        let fits = said.contains(&format!("--ca {out} does not fit this cluster"))
            && said.matches("sluice root ").count() == 2;
        ensure!(code == 1 && fits && said.contains("nothing was changed"), "{verb:?}: {code}: {said}");
    }
    ensure!(Raw(&site).all()? == before, "something was written");
    for node in NODES {
        let said = site.sluice_plain(node, &["status"])?;
        ensure!(!said.contains("REFUSE"), "{node}: {said}");
    }
    Ok(())
}

#[test]
fn who_seals_without_being_an_operator_of_this_cluster_moves_no_traffic() -> Result<()> {
    if unprivileged("who_seals_without_being_an_operator_of_this_cluster_moves_no_traffic") {
        return Ok(());
    }
    let site = at_v2("sealed_forged")?;
    let now = SystemTime::now();
    let (ca, out) = (site.path("strange-ca"), site.path("strange-operator"));
    site.sluice_plain("node1", &["ca", "init", "--dir", &ca, "--trust-domain", "shop.example"])?;
    site.sluice_plain("node1", &["ca", "operator", "--dir", &ca, "--name", "alice", "--out", &out])?;
    let stranger = OperatorIdentity::load(&PathBuf::from(out), now)?;
    let node = NodeIdentity::load(&PathBuf::from(site.ca_of("node1")), now)?;
    let mut wanted = Raw(&site).all()?;
    wanted.insert(ROUTE.into(), (0, service_to("v1").into()));
    let head = || Head::new(CLUSTER, &wanted, None, SystemTime::now());
    refused_everywhere(&site, ("an operator of another root seals", "unknown_issuer"), |raw| {
        raw.put(ROUTE, &service_to("v1"))?;
        raw.put(SEAL, &head().sealed(|bytes| stranger.seal(bytes)))
    })?;
    refused_everywhere(&site, ("a node seals", "wrong_usage"), |raw| {
        raw.put(ROUTE, &service_to("v1"))?;
        raw.put(SEAL, &head().sealed(|bytes| node.sign(bytes)))
    })?;
    Ok(())
}

#[test]
fn who_applies_learns_at_once_what_is_missing() -> Result<()> {
    if unprivileged("who_applies_learns_at_once_what_is_missing") {
        return Ok(());
    }
    let site = Site::up("sealed_apply")?;
    let apply = ["apply", "-f", "-"];
    let (code, said) = site.try_unsealed("node1", &apply, &service_to("v2"))?;
    ensure!(
        code == 1 && said.contains("SLUICE_CA") && said.contains("nothing was changed"),
        "{code}: {said}"
    );
    let (code, said) = site.try_unsealed("node1", &["delete", "Service/web"], "")?;
    ensure!(code == 1 && said.contains("SLUICE_CA"), "{code}: {said}");
    let of_node = site.ca_of("node1");
    let (code, said) =
        site.try_unsealed("node1", &["apply", "--ca", &of_node, "-f", "-"], &service_to("v2"))?;
    ensure!(code == 1 && said.contains("sluice ca operator"), "{code}: {said}");
    // Nothing is built upon what nobody sealed, or it would be sealed by that.
    Raw(&site).put("HTTPRoute/default/a-evil", &evil())?;
    let (code, said) = site.try_sluice_with("node1", &apply, &service_to("v2"))?;
    ensure!(code == 1 && said.contains("altered") && said.contains("sealed by alice"), "{code}: {said}");
    let (code, said) = site.try_sluice_with("node1", &["delete", "Service/web"], "")?;
    ensure!(code == 1 && said.contains("altered"), "{code}: {said}");
    // Who has all documents puts them in its place.
    let documents = site.path("documents");
    let said = site.sluice("node1", &["apply", "--prune", "-f", &documents])?;
    ensure!(said.contains("a-evil deleted") && said.contains("unchanged"), "{said}");
    let said = site.sluice_with("node1", &apply, service_to("v2"))?;
    ensure!(said.contains("web created"), "{said}");
    ensure!(site.sluice("node1", &["delete", "HTTPRoute/web"])?.contains("deleted"));
    Ok(())
}

#[test]
fn documents_that_nobody_ever_sealed_are_taken_by_nobody() -> Result<()> {
    if unprivileged("documents_that_nobody_ever_sealed_are_taken_by_nobody") {
        return Ok(());
    }
    let mut site = Site::up("sealed_never")?;
    let documents = site.path("documents");
    site.redis_cli(&["FLUSHALL"])?;
    let (code, said) = site.try_unsealed("node1", &["apply", "-f", &documents], "")?;
    ensure!(code == 0, "nobody asks for a seal yet: {said}");
    site.start_all()?;
    for node in NODES {
        wait_for("the refusal to be told", LIMIT, || {
            site.sluice_plain(node, &["status"]).is_ok_and(|said| said.contains("DOCUMENTS REFUSED unsigned"))
        })
        .with_context(|| format!("{node}: {:?}", site.cluster(node)))?;
        ensure!(site.routes(node)? == 0, "{node} has a table of documents that nobody sealed");
        ensure!(site.metric::<u64>(node, "sluice_cluster_documents_refused ")? == 1, "{node}");
    }
    // Now the agents ask for one.
    let (code, said) = site.try_unsealed("node1", &["apply", "-f", "-"], &service_to("v2"))?;
    ensure!(code == 1 && said.contains("SLUICE_CA"), "{code}: {said}");
    let (code, said) = site.try_sluice_with("node1", &["apply", "-f", "-"], &service_to("v2"))?;
    ensure!(code == 1 && said.contains("unsigned") && said.contains("--prune"), "{code}: {said}");
    site.sluice("node1", &["apply", "--prune", "-f", &documents])?;
    for node in NODES {
        wait_for("the table", LIMIT, || site.answer(node).is_ok_and(|answer| answer == "v1"))
            .with_context(|| format!("{node}: {:?}", site.cluster(node)))?;
        wait_for("the refusal to be over", LIMIT, || {
            site.sluice_plain(node, &["status"])
                .is_ok_and(|said| said.contains("documents sealed by alice") && !said.contains("REFUSED"))
        })
        .with_context(|| format!("{node}: {:?}", site.cluster(node)))?;
        ensure!(site.metric::<u64>(node, "sluice_cluster_documents_refused ")? == 0, "{node}");
    }
    Ok(())
}
