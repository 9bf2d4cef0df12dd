//! What agents count on, as their records say, beside what the store holds: nothing is built upon a store that has lost it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use tokio::time::{Instant, sleep};

use super::sealing::{SealArgs, Spoilt, texts};
use super::store::all;
use crate::cluster::documents::sealed::generation;
use crate::cluster::registry::{self, NodeRecord};
use crate::cluster::{Documents, RedisStore, Store as _, StoreError};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Within the life of a lease somebody leads, and gives back what is missing; so much longer is waited for that.
const GRACE: Duration = Duration::from_secs(5);
/// The life of a lease where no record says it, and the longest that is believed.
const TTL: Duration = Duration::from_secs(30);
const TTL_MAX: Duration = Duration::from_mins(10);
/// So many nodes are named.
const NAMED: usize = 3;

/// The members that live and have a record that can be read, and which of them leads.
pub(super) struct Members {
    live: Vec<(Arc<str>, NodeRecord)>,
    leader: Option<Arc<str>>,
    /// There is one at least, dead or alive.
    any: bool,
}

impl Members {
    pub(super) async fn of(store: &RedisStore) -> Result<Self, StoreError> {
        let leader = match store.lease().await {
            Ok(lease) => lease.held.map(|(lease, _)| lease.node),
            // Somebody has put something else there: nobody leads before that is gone.
            Err(StoreError::Foreign { .. }) => None,
            Err(error) => return Err(error),
        };
        let members = registry::read(store.members().await?);
        let any = !members.is_empty();
        let live = members.into_iter().filter(|node| node.alive);
        let live = live.filter_map(|node| Some((node.name, node.record.ok()?))).collect();
        Ok(Self { live, leader, any })
    }

    /// Whether there are any, dead or alive: who is dead may come back with what it counts on.
    pub(super) fn any(&self) -> bool {
        self.any
    }

    /// The one that leads, where it lives.
    pub(super) fn leader(&self) -> Option<(&Arc<str>, &NodeRecord)> {
        let leader = self.leader.as_ref()?;
        self.live.iter().find(|(name, _)| name == leader).map(|(name, record)| (name, record))
    }

    /// Who refused the seal of a generation, and why: whoever leads decides, and where nobody does each of them may.
    pub(super) fn refused(&self, generation: u64) -> Option<(&Arc<str>, String)> {
        let leader = self.leader().map(|(name, _)| name);
        let judges = self.live.iter().filter(|(name, _)| leader.is_none_or(|leader| leader == name));
        let mut refused = judges.filter_map(|(name, record)| {
            let seal = record.sealing.refused_seal.as_ref().filter(|seal| seal.generation == generation)?;
            // Nobody has signed it.
            Some((name, seal.why.replace(char::is_control, "\u{fffd}")))
        });
        refused.next()
    }

    /// What agents count on and a store with a seal of this generation lacks; 0: it has none.
    fn lacks(&self, there: u64) -> Option<String> {
        let later = || self.live.iter().filter(|(_, record)| record.sealing.generation > there);
        if let Some(highest) = later().map(|(_, record)| record.sealing.generation).max() {
            let mut names = later().take(NAMED).map(|(name, _)| &**name).collect::<Vec<_>>().join(", ");
            if later().count() > NAMED {
                names = format!("{names} and {} more", later().count() - NAMED);
            }
            let holds =
                if there == 0 { "none that are sealed".to_owned() } else { format!("generation {there}") };
            let count = if later().count() == 1 { "counts" } else { "count" };
            return Some(format!(
                "{names} {count} on documents of generation {highest}, and the store holds {holds}"
            ));
        }
        let (name, why) = self.refused(there).filter(|_| there > 0)?;
        // Who has nothing gives nothing back.
        let refuses = |record: &NodeRecord| record.sealing.refused.is_some() && record.sealing.generation > 0;
        let still = self.live.iter().any(|(node, record)| node == name && refuses(record));
        still.then(|| format!("{name} refuses the documents that the store holds: {why}"))
    }

    /// Who leads and refuses what is there, without anything to give back.
    fn refuses_for_good(&self, there: u64) -> Option<String> {
        let (leader, record) = self.leader().filter(|_| there > 0)?;
        let nothing = record.sealing.refused.is_some() && record.sealing.generation == 0;
        let (_, why) = self.refused(there).filter(|(name, _)| nothing && *name == leader)?;
        Some(format!(
            "nothing was changed: {leader}, which leads, refuses the documents that the store holds, and has no others: {why}. `sluice \
             apply --prune -f` with all documents puts those in their place"
        ))
    }

    /// Whether whoever leads has a set of this generation, or a later one.
    fn takes(&self, generation: u64) -> bool {
        self.leader().is_some_and(|(_, record)| record.sealing.generation >= generation)
    }

    /// How long it may take until what is missing is back.
    fn patience(&self) -> Duration {
        let told = self.live.iter().map(|(_, record)| record.ttl).max().filter(|ttl| *ttl > 0);
        told.map_or(TTL, Duration::from_millis).min(TTL_MAX) + GRACE
    }
}

/// All documents of the store. Where they are to be sealed, those upon which something may be built: what agents count on is waited
/// for, until whoever leads has given it back.
pub(super) async fn documents(
    store: &RedisStore,
    seal: &SealArgs,
    spoilt: Spoilt,
) -> anyhow::Result<Documents> {
    let mut found = all(store).await?;
    let mut end: Option<Instant> = None;
    let mut lacked: Option<(u64, String)> = None;
    while seal.builds_upon_what_counts() {
        let members = Members::of(store).await?;
        let there = generation(&texts(&found));
        // Whoever replaces all documents builds upon none.
        if let Some(why) = members.refuses_for_good(there).filter(|_| spoilt == Spoilt::Refuse) {
            bail!(why);
        }
        // Who said so may have gone before it gave anything back, and who leads now may not have looked yet.
        let still =
            || lacked.take_if(|(of, _)| *of == there && !members.takes(there)).map(|(_, lacks)| lacks);
        let Some(lacks) = members.lacks(there).or_else(still) else { break };
        lacked = Some((there, lacks.clone()));
        let patience = members.patience();
        if end.is_none() {
            eprintln!(
                "{lacks}: it is waited for up to {patience:?} until whoever leads gives back what counts"
            );
        }
        if *end.get_or_insert_with(|| Instant::now() + patience) <= Instant::now() {
            bail!(
                "nothing was changed: {lacks}, and nobody has given back what counts within {patience:?} (`sluice status` of an \
                 agent may say why). --anew begins anew with what the store and the files have; what else agents have is lost"
            );
        }
        sleep(LOOK_EVERY).await;
        let now = store.sums(&[]).await?;
        if (&now.store, now.revision) != (&found.store, found.revision) {
            found = store.documents("", 0).await?;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn members(leader: Option<&str>, records: &serde_json::Value) -> Members {
        let record = |(name, sealing): (&String, &serde_json::Value)| {
            let record =
                json!({"nonce": 1, "version": "1", "state": "serving", "ttl": 2000, "sealing": sealing});
            (name.as_str().into(), serde_json::from_value(record).expect("is a record"))
        };
        let live = records.as_object().expect("by name").iter().map(record).collect();
        Members { live, leader: leader.map(Into::into), any: true }
    }

    #[test]
    fn what_agents_count_on_is_missed() {
        let refusing = |generation: u64, refused: Option<&str>| json!({"generation": generation, "refused": refused, "refused_seal": {"generation": 9, "why": "revoked"}});
        let cases = [
            (json!({}), None, 0, None),
            (json!({"a": {"generation": 0}}), Some("a"), 0, None),
            (
                json!({"a": {"generation": 7}, "b": {}}),
                None,
                0,
                Some("a counts on documents of generation 7"),
            ),
            (json!({"a": {"generation": 7}}), Some("a"), 6, Some("the store holds generation 6")),
            (json!({"a": {"generation": 7}}), Some("a"), 7, None),
            (json!({"a": {"generation": 7}}), Some("a"), 8, None),
            (json!({"a": refusing(7, Some("x"))}), Some("a"), 9, Some("a refuses the documents")),
            // It was so once; it has nothing itself; another one leads, and that one takes them.
            (json!({"a": refusing(7, None)}), Some("a"), 9, None),
            (json!({"a": refusing(0, Some("x"))}), Some("a"), 9, None),
            (json!({"a": refusing(7, Some("x")), "b": {"generation": 9}}), Some("b"), 9, None),
        ];
        for (records, leader, there, expected) in cases {
            let said = members(leader, &records).lacks(there);
            let fits = match expected {
                None => said.is_none(),
                Some(part) => said.as_ref().is_some_and(|said| said.contains(part)),
            };
            assert!(fits, "{records} {leader:?} {there}: {said:?}");
        }
        for (generation, there, expected) in [(0, 9, true), (7, 9, false), (0, 8, false), (0, 0, false)] {
            let records = json!({"a": refusing(generation, Some("x")), "b": {}});
            let said = members(Some("a"), &records).refuses_for_good(there);
            assert_eq!(said.is_some_and(|said| said.contains("revoked")), expected, "{generation} {there}");
            assert_eq!(members(Some("b"), &records).refuses_for_good(there), None, "another one leads");
        }
        assert_eq!(members(None, &json!({"a": {}})).patience(), Duration::from_secs(7));
        assert_eq!(members(None, &json!({})).patience(), TTL + GRACE);
    }
}
