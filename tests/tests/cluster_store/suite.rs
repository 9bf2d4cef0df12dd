//! What every store promises, written once: each check begins with an empty store and is run on every kind of them.

use std::collections::{BTreeMap, HashSet};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::cluster::{
    Acquired, BYTES_MAX, Candidate, DELETED_MAX, DELTAS_MAX, Delta, DocumentWrite, Documents, Event,
    HISTORY_MAX, Lease, NODE_NAME_MAX, Published, Snapshot, Store, StoreError, Written, sum_of,
};
use anyhow::{Context, Result, bail, ensure};
use tokio::sync::broadcast;

pub const TTL: Duration = Duration::from_mins(1);
const SHORT: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(20);

/// Where a store is tried.
pub trait Site: Sync {
    type Store: Store + Clone;

    /// One more client, which is connected.
    fn client(&self) -> impl Future<Output = Result<Self::Store>> + Send;

    /// Lets the store forget everything.
    fn lose(&self) -> impl Future<Output = Result<()>> + Send;

    /// Lets some milliseconds pass for the store.
    fn moment(&self) -> impl Future<Output = ()> + Send;
}

/// Bytes of something large.
const LARGE: usize = 40 << 20;

/// Runs all of it.
pub async fn run(site: &impl Site) -> Result<()> {
    macro_rules! checks {
        ($($check:ident),+ $(,)?) => {$(
            site.lose().await?;
            $check(site).await.context(stringify!($check))?;
        )+};
    }
    checks!(
        one_of_many_candidates_gets_the_lease,
        epochs_rise_above_all_that_is_known,
        nobody_acts_for_another_term,
        a_term_that_ran_out_is_over,
        terms_are_remembered_newest_first,
        nodes_come_and_go,
        documents_are_told_since_a_revision,
        many_documents_are_told_as_they_were_at_one_moment,
        texts_are_told_apart_by_their_sums,
        a_conflict_writes_nothing,
        deleted_documents_are_forgotten_at_last,
        a_store_that_lost_everything_is_another_one,
        deltas_follow_each_other,
        a_log_that_is_full_wants_a_snapshot,
        what_is_too_large_is_refused,
        what_is_large_is_read_back,
        everybody_is_told,
    );
    Ok(())
}

/// Waits until something is so, letting time pass.
pub async fn until<F: Future<Output = Result<bool>>>(
    site: &impl Site,
    what: &str,
    mut look: impl FnMut() -> F,
) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !look().await? {
        ensure!(Instant::now() < end, "waited in vain: {what}");
        site.moment().await;
    }
    Ok(())
}

/// Waits for an event, whatever comes before it.
pub async fn told(events: &mut broadcast::Receiver<Event>, wanted: Event) -> Result<()> {
    let wait = async {
        loop {
            match events.recv().await {
                Ok(event) if event == wanted => return Ok(()),
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => bail!("the store tells nothing any more"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.with_context(|| format!("{wanted:?} did not come"))?
}

pub fn candidate(node: &str, nonce: u64, above: u64) -> Candidate {
    Candidate { node: node.into(), nonce, above }
}

/// Takes the lease, which must be free.
pub async fn taken(store: &impl Store, candidate: &Candidate, ttl: Duration) -> Result<Lease> {
    match store.acquire(candidate, ttl).await? {
        Acquired::Yes(lease) => Ok(lease),
        Acquired::Held(holder) => bail!("the lease is {holder:?}'s"),
    }
}

pub fn snapshot(digest: &str, sealed: &[u8]) -> Snapshot {
    Snapshot { digest: digest.to_owned(), sealed: sealed.to_vec() }
}

pub fn delta(previous: &str, digest: &str, sealed: &[u8]) -> Delta {
    Delta { previous: previous.to_owned(), digest: digest.to_owned(), sealed: sealed.to_vec() }
}

pub fn put(id: &str, text: &str, expected: Option<u64>) -> DocumentWrite {
    DocumentWrite { id: id.into(), text: Some(text.into()), expected }
}

fn gone(id: &str, expected: Option<u64>) -> DocumentWrite {
    DocumentWrite { id: id.into(), text: None, expected }
}

async fn one_of_many_candidates_gets_the_lease(site: &impl Site) -> Result<()> {
    for round in 0..5 {
        let mut tries = tokio::task::JoinSet::new();
        for nonce in 0..16 {
            let store = site.client().await?;
            tries.spawn(async move { store.acquire(&candidate(&format!("n{nonce}"), nonce, 0), TTL).await });
        }
        let mut winners = Vec::new();
        let mut holders = HashSet::new();
        while let Some(tried) = tries.join_next().await {
            match tried?? {
                Acquired::Yes(lease) => winners.push(lease),
                Acquired::Held(holder) => _ = holders.insert(holder),
            }
        }
        ensure!(winners.len() == 1, "round {round}: {winners:?} all got it");
        let told: HashSet<_> = [Some(winners[0].clone())].into();
        ensure!(holders == told, "round {round}: {winners:?} has it, and others were told {holders:?}");
        ensure!(site.client().await?.release(&winners[0]).await?, "round {round}: it can't be released");
    }
    Ok(())
}

async fn epochs_rise_above_all_that_is_known(site: &impl Site) -> Result<()> {
    let store = site.client().await?;
    let mut last = 0;
    // What a candidate knows is above, below and equal to what is stored.
    for (nonce, above) in [(1, 0), (2, 40), (3, 7), (4, 42), (u64::MAX, 0), (6, 1 << 31), (7, 0)] {
        let lease = taken(&store, &candidate("a", nonce, above), TTL).await?;
        ensure!(lease.token.nonce == nonce && &*lease.node == "a", "{lease}");
        ensure!(lease.token.epoch > above.max(last), "{lease} after {last}, above {above}");
        last = lease.token.epoch;
        ensure!(store.release(&lease).await?, "{lease} can't be released");
    }
    let refused = store.acquire(&candidate("a", 8, (1 << 53) - 1), TTL).await;
    ensure!(matches!(refused, Err(StoreError::Unfit(_))), "an epoch that can't be counted: {refused:?}");
    ensure!(taken(&store, &candidate("a", 9, 0), TTL).await?.token.epoch == last + 1, "it was counted");
    Ok(())
}

async fn nobody_acts_for_another_term(site: &impl Site) -> Result<()> {
    let (store, other) = (site.client().await?, site.client().await?);
    let lease = taken(&store, &candidate("a", 1, 0), TTL).await?;
    let mut forged = [lease.clone(), lease.clone(), lease.clone()];
    forged[0].token.epoch += 1;
    forged[1].token.nonce += 1;
    forged[2].node = "b".into();
    for forged in &forged {
        ensure!(!other.renew(forged, TTL).await?, "{forged} was renewed");
        ensure!(!other.release(forged).await?, "{forged} was released");
        let expected = Published::NotLeader(Some(lease.clone()));
        ensure!(other.publish(forged, &snapshot("x", b"x")).await? == expected, "{forged} published");
        ensure!(other.append(forged, &delta("", "x", b"x")).await? == expected, "{forged} appended");
    }
    let (held, left) = store.lease().await?.held.context("nobody holds it")?;
    ensure!(held == lease && left <= TTL && left > TTL / 2, "{held} for {left:?}");
    ensure!(store.renew(&lease, TTL * 10).await?, "it can't be renewed");
    let (_, left) = other.lease().await?.held.context("nobody holds it")?;
    ensure!(left > TTL * 9, "it was renewed and has {left:?}");
    ensure!(store.release(&lease).await?, "it can't be released");
    ensure!(!store.release(&lease).await?, "it was released twice");
    ensure!(other.lease().await?.held.is_none(), "it is held still");
    Ok(())
}

async fn a_term_that_ran_out_is_over(site: &impl Site) -> Result<()> {
    let (old, new) = (site.client().await?, site.client().await?);
    let first = taken(&old, &candidate("a", 1, 0), SHORT).await?;
    until(site, "the lease to run out", || async { Ok(new.lease().await?.held.is_none()) }).await?;
    ensure!(!old.renew(&first, TTL).await?, "what ran out was renewed");
    ensure!(!old.release(&first).await?, "what ran out was released");
    ensure!(
        old.publish(&first, &snapshot("x", b"x")).await? == Published::NotLeader(None),
        "it was published"
    );
    let second = taken(&new, &candidate("b", 2, 0), TTL).await?;
    ensure!(second.token.epoch == first.token.epoch + 1, "{first}, then {second}");
    let expected = Published::NotLeader(Some(second.clone()));
    ensure!(old.publish(&first, &snapshot("x", b"x")).await? == expected, "the old leader published");
    ensure!(old.append(&first, &delta("x", "y", b"y")).await? == expected, "the old leader appended");
    ensure!(!old.release(&first).await?, "the old leader released the new one's lease");
    ensure!(new.snapshot().await?.is_none(), "something is published");
    ensure!(new.renew(&second, TTL).await?, "the new leader can't renew");
    Ok(())
}

async fn terms_are_remembered_newest_first(site: &impl Site) -> Result<()> {
    let store = site.client().await?;
    let mut terms = Vec::new();
    for nonce in 0..40 {
        let lease = taken(&store, &candidate("a/b c", nonce, 0), TTL).await?;
        ensure!(store.release(&lease).await?, "{lease} can't be released");
        terms.insert(0, lease);
    }
    let history = store.lease().await?.history;
    ensure!(history.len() == HISTORY_MAX, "{} terms", history.len());
    for ((found, _), lease) in history.iter().zip(&terms) {
        ensure!(found == lease, "{found} instead of {lease}");
    }
    ensure!(history.is_sorted_by(|one, other| one.1 >= other.1), "their times: {history:?}");
    Ok(())
}

/// A member: its name, whether it is alive, its record.
type Seen = (String, bool, Option<Vec<u8>>);

async fn nodes_come_and_go(site: &impl Site) -> Result<()> {
    let (store, other) = (site.client().await?, site.client().await?);
    ensure!(store.members().await?.is_empty(), "an empty store has members");
    store.beat("b", b"\x00\xffrecord", TTL, true).await?;
    store.beat("a", b"", TTL, true).await?;
    store.beat("c", b"short", SHORT, true).await?;
    let look = async || -> Result<Vec<Seen>> {
        let members = other.members().await?;
        Ok(members.into_iter().map(|member| (member.node.to_string(), member.alive, member.record)).collect())
    };
    let a = ("a".to_owned(), true, Some(Vec::new()));
    let b = ("b".to_owned(), true, Some(b"\x00\xffrecord".to_vec()));
    ensure!(look().await? == [a.clone(), b.clone(), ("c".to_owned(), true, Some(b"short".to_vec()))]);
    let dead = [a.clone(), b.clone(), ("c".to_owned(), false, Some(b"short".to_vec()))];
    until(site, "a heartbeat to run out", || async { Ok(look().await? == dead) }).await?;
    let forgotten = [a.clone(), b.clone(), ("c".to_owned(), false, None)];
    until(site, "a record to be forgotten", || async { Ok(look().await? == forgotten) }).await?;
    store.beat("c", b"back", TTL, true).await?;
    ensure!(look().await?[2] == ("c".to_owned(), true, Some(b"back".to_vec())), "it did not come back");
    store.leave("b").await?;
    store.leave("nobody").await?;
    let names: Vec<_> = look().await?.into_iter().map(|member| member.0).collect();
    ensure!(names == ["a", "c"], "{names:?}");
    Ok(())
}

/// What changed: `ID=TEXT@REVISION`, or `ID@REVISION` for what is gone.
async fn changes(store: &impl Store, name: &str, after: u64) -> Result<(Arc<str>, u64, Vec<String>)> {
    let found = store.documents(name, after).await?;
    let line = |document: &agent::cluster::Document| match &document.text {
        Some(text) => format!("{}={text}@{}", document.id, document.revision),
        None => format!("{}@{}", document.id, document.revision),
    };
    Ok((found.store, found.revision, found.changed.iter().map(line).collect()))
}

async fn documents_are_told_since_a_revision(site: &impl Site) -> Result<()> {
    let (store, other) = (site.client().await?, site.client().await?);
    ensure!(changes(&store, "", 0).await? == ("".into(), 0, vec![]), "an empty store has documents");
    ensure!(changes(&store, "another", 9).await? == ("".into(), 0, vec![]), "an empty store has documents");
    ensure!(
        store.write(&[put("K/n/b", "1", None), put("K/n/a", "2\n\u{e9}", Some(0))]).await? == Written::At(1)
    );
    ensure!(store.write(&[put("K/n/c", "", None)]).await? == Written::At(2));
    let (name, revision, all) = changes(&other, "", 0).await?;
    ensure!(!name.is_empty() && revision == 2, "{name} at {revision}");
    ensure!(all == ["K/n/a=2\n\u{e9}@1", "K/n/b=1@1", "K/n/c=@2"], "{all:?}");
    ensure!(changes(&other, &name, 1).await?.2 == ["K/n/c=@2"]);
    ensure!(changes(&other, &name, 2).await?.2.is_empty());
    ensure!(changes(&other, &name, 77).await?.2.is_empty());
    ensure!(changes(&other, "another", 2).await?.2.len() == 3, "another store's revision counts here");
    let change = [gone("K/n/b", Some(1)), put("K/n/a", "3", Some(1)), gone("K/n/none", None)];
    ensure!(store.write(&change).await? == Written::At(3));
    ensure!(
        changes(&other, &name, 2).await? == (name.clone(), 3, vec!["K/n/a=3@3".into(), "K/n/b@3".into()])
    );
    ensure!(store.write(&[gone("K/n/b", None), gone("K/n/none", Some(0))]).await? == Written::At(3));
    ensure!(store.write(&[]).await? == Written::At(3));
    ensure!(
        store.write(&[put("K/n/b", "again", Some(0))]).await? == Written::At(4),
        "it can't be made again"
    );
    ensure!(changes(&other, &name, 3).await? == (name, 4, vec!["K/n/b=again@4".into()]));
    Ok(())
}

async fn texts_are_told_apart_by_their_sums(site: &impl Site) -> Result<()> {
    let (store, other) = (site.client().await?, site.client().await?);
    let ids = ["K/n/b", "K/n/none", "K/n/a", "K/n/gone"].map(Arc::<str>::from);
    let nothing = other.sums(&ids).await?;
    ensure!((&*nothing.store, nothing.revision, nothing.sums) == ("", 0, vec![None; 4]));
    store
        .write(&[put("K/n/b", "1", None), put("K/n/a", "2\n\u{e9}", None), put("K/n/gone", "", None)])
        .await?;
    store.write(&[gone("K/n/gone", None)]).await?;
    let found = other.sums(&ids).await?;
    let (name, ..) = changes(&other, "", 0).await?;
    ensure!((&*found.store, found.revision) == (&*name, 2), "{found:?}");
    let expected = vec![Some(sum_of("1")), None, Some(sum_of("2\n\u{e9}")), None];
    ensure!(found.sums == expected, "{found:?}");
    ensure!(sum_of("1") == "356a192b7913b04c54574d18c28d46e6395428ab");
    ensure!(other.sums(&[]).await?.sums.is_empty());
    Ok(())
}

/// More than are read at a time, some of them written at once, and others changed meanwhile.
async fn many_documents_are_told_as_they_were_at_one_moment(site: &impl Site) -> Result<()> {
    let (store, other) = (site.client().await?, site.client().await?);
    let mut expected = BTreeMap::new();
    for (write, count) in [3_usize, 700, 1, 499, 500, 1].into_iter().enumerate() {
        let ids: Vec<String> = (0..count).map(|number| format!("d{write}-{number:03}")).collect();
        let revision = write as u64 + 1;
        let writes: Vec<_> = ids.iter().map(|id| put(id, "x", None)).collect();
        ensure!(store.write(&writes).await? == Written::At(revision));
        expected.extend(ids.into_iter().map(|id| (id, revision)));
    }
    store.write(&[gone("d1-007", None), put("d0-001", "y", None)]).await?;
    expected.remove("d1-007");
    expected.insert("d0-001".to_owned(), 7);
    let found = other.documents("", 0).await?;
    let there = |found: &Documents| -> BTreeMap<String, u64> {
        let live = found.changed.iter().filter(|one| one.text.is_some());
        live.map(|one| (one.id.to_string(), one.revision)).collect()
    };
    ensure!(
        found.revision == 7 && there(&found) == expected,
        "{} at {}",
        found.changed.len(),
        found.revision
    );
    let order: Vec<_> = found.changed.iter().map(|one| (one.revision, &one.id)).collect();
    ensure!(order.is_sorted(), "they come in another order than they were written");
    let later = other.documents(&found.store, 2).await?;
    expected.retain(|_, revision| *revision > 2);
    ensure!(
        later.changed.len() == expected.len() + 1 && there(&later) == expected,
        "{}",
        later.changed.len()
    );

    // Two that are always written together are never read apart.
    let writing = async {
        for number in 0..100 {
            let text = number.to_string();
            store.write(&[put("d0-000", &text, None), put("d4-000", &text, None)]).await?;
        }
        anyhow::Ok(())
    };
    let reading = async {
        for _ in 0..20 {
            let found = other.documents("", 0).await?;
            let of = |id: &str| {
                found.changed.iter().find(|one| &*one.id == id).map(|one| (one.revision, one.text.clone()))
            };
            let (one, two) = (of("d0-000"), of("d4-000"));
            ensure!(one == two || found.revision == 7, "{one:?} and {two:?}");
        }
        Ok(())
    };
    let (written, read) = tokio::join!(writing, reading);
    written.and(read)
}

async fn a_conflict_writes_nothing(site: &impl Site) -> Result<()> {
    let store = site.client().await?;
    store.write(&[put("a", "1", None)]).await?;
    store.write(&[put("b", "1", None)]).await?;
    store.write(&[gone("b", None)]).await?;
    let before = store.documents("", 0).await?;
    let change = [
        put("new", "x", None),
        put("a", "x", Some(7)),
        put("b", "x", Some(2)),
        gone("none", Some(1)),
        gone("a", Some(1)),
    ];
    let conflict = Written::Conflict(vec![("a".into(), 1), ("b".into(), 0), ("none".into(), 0)]);
    ensure!(store.write(&change).await? == conflict);
    ensure!(store.documents("", 0).await? == before, "a conflict wrote something");
    let mut tries = tokio::task::JoinSet::new();
    for number in 0..16 {
        let store = site.client().await?;
        tries.spawn(async move { store.write(&[put("a", &number.to_string(), Some(1))]).await });
    }
    let mut written = 0;
    while let Some(tried) = tries.join_next().await {
        match tried?? {
            Written::At(revision) => {
                ensure!(revision == 4, "it is at {revision}");
                written += 1;
            }
            Written::Conflict(found) => ensure!(found == [("a".into(), 4)], "{found:?}"),
        }
    }
    ensure!(written == 1, "{written} wrote over the same revision");
    Ok(())
}

async fn deleted_documents_are_forgotten_at_last(site: &impl Site) -> Result<()> {
    let store = site.client().await?;
    let ids: Vec<String> = (0..=DELETED_MAX).map(|number| format!("K/n/{number}")).collect();
    let all: Vec<_> = ids.iter().map(|id| put(id, "x", None)).chain([put("kept", "x", None)]).collect();
    store.write(&all).await?;
    let first = store.documents("", 0).await?.store;
    let most: Vec<_> = ids[1..].iter().map(|id| gone(id, None)).collect();
    store.write(&most).await?;
    let full = store.documents(&first, 1).await?;
    ensure!(full.store == first && full.changed.len() == DELETED_MAX, "{} are known", full.changed.len());
    ensure!(store.write(&[gone(&ids[0], None)]).await? == Written::At(3));
    let (name, revision, left) = changes(&store, &first, 3).await?;
    ensure!(name != first && revision == 3 && left == ["kept=x@1"], "{name} at {revision}: {left:?}");
    Ok(())
}

async fn a_store_that_lost_everything_is_another_one(site: &impl Site) -> Result<()> {
    let store = site.client().await?;
    store.write(&[put("a", "1", None)]).await?;
    store.write(&[put("a", "2", None)]).await?;
    let before = store.documents("", 0).await?;
    site.lose().await?;
    ensure!(changes(&store, &before.store, 2).await? == ("".into(), 0, vec![]), "something is left");
    store.write(&[put("b", "1", None)]).await?;
    let after = store.documents(&before.store, 2).await?;
    ensure!(after.store != before.store && after.revision == 1 && after.changed.len() == 1, "{after:?}");
    Ok(())
}

async fn deltas_follow_each_other(site: &impl Site) -> Result<()> {
    let (store, other) = (site.client().await?, site.client().await?);
    let lease = taken(&store, &candidate("a", 1, 0), TTL).await?;
    ensure!(other.snapshot().await?.is_none(), "an empty store has a table");
    ensure!(other.deltas("").await?.sealed.is_empty(), "an empty store has deltas");
    ensure!(store.append(&lease, &delta("", "d1", b"1")).await? == Published::NeedsSnapshot);
    ensure!(store.publish(&lease, &snapshot("d0", b"\x00table")).await? == Published::Yes);
    let (table, start) = other.snapshot().await?.context("no table")?;
    ensure!(table == b"\x00table" && other.deltas(&start).await?.sealed.is_empty());
    ensure!(store.append(&lease, &delta("other", "d1", b"1")).await? == Published::NeedsSnapshot);
    ensure!(store.append(&lease, &delta("d0", "d1", b"1\xff")).await? == Published::Yes);
    ensure!(store.append(&lease, &delta("d0", "d2", b"2")).await? == Published::NeedsSnapshot);
    ensure!(store.append(&lease, &delta("d1", "d2", b"2")).await? == Published::Yes);
    let both = other.deltas(&start).await?;
    ensure!(both.sealed == [b"1\xff".to_vec(), b"2".to_vec()], "{both:?}");
    ensure!(other.deltas(&both.position).await?.sealed.is_empty(), "the same deltas again");
    ensure!(other.deltas("no position").await?.sealed == both.sealed, "from nowhere, all follow");
    ensure!(store.append(&lease, &delta("d2", "d3", b"3")).await? == Published::Yes);
    ensure!(other.deltas(&both.position).await?.sealed == [b"3"]);
    ensure!(other.snapshot().await?.context("no table")? == (table, start.clone()), "the table changed");
    ensure!(store.publish(&lease, &snapshot("d3", b"table 3")).await? == Published::Yes);
    let (table, next) = other.snapshot().await?.context("no table")?;
    ensure!(table == b"table 3" && other.deltas(&next).await?.sealed.is_empty());
    ensure!(other.deltas(&start).await?.sealed.is_empty(), "what the snapshot holds is still in the log");
    ensure!(store.append(&lease, &delta("d3", "d4", b"4")).await? == Published::Yes);
    ensure!(other.deltas(&next).await?.sealed == [b"4"]);
    ensure!(other.deltas(&start).await?.sealed == [b"4"]);
    ensure!(store.release(&lease).await?);
    let next = taken(&other, &candidate("b", 2, 0), TTL).await?;
    ensure!(other.append(&next, &delta("d4", "d5", b"5")).await? == Published::Yes, "a new term goes on");
    Ok(())
}

async fn a_log_that_is_full_wants_a_snapshot(site: &impl Site) -> Result<()> {
    let store = site.client().await?;
    let lease = taken(&store, &candidate("a", 1, 0), TTL).await?;
    store.publish(&lease, &snapshot("0", b"table")).await?;
    for number in 0..DELTAS_MAX {
        let delta = delta(&number.to_string(), &(number + 1).to_string(), b"x");
        ensure!(store.append(&lease, &delta).await? == Published::Yes, "delta {number}");
    }
    let last = DELTAS_MAX.to_string();
    ensure!(store.append(&lease, &delta(&last, "over", b"x")).await? == Published::NeedsSnapshot);
    let (_, start) = store.snapshot().await?.context("no table")?;
    ensure!(store.deltas(&start).await?.sealed.len() == DELTAS_MAX, "some are missing");
    ensure!(store.publish(&lease, &snapshot("0", b"table")).await? == Published::Yes);
    let most = vec![7; BYTES_MAX - 10];
    ensure!(store.append(&lease, &delta("0", "1", &most)).await? == Published::Yes);
    ensure!(store.append(&lease, &delta("1", "2", &[7; 11])).await? == Published::NeedsSnapshot);
    ensure!(store.append(&lease, &delta("1", "2", &[7; 10])).await? == Published::Yes);
    Ok(())
}

/// More than Redis lets wait for whoever is subscribed to something.
async fn what_is_large_is_read_back(site: &impl Site) -> Result<()> {
    let store = site.client().await?;
    let lease = taken(&store, &candidate("a", 1, 0), TTL).await?;
    let large = vec![7; LARGE];
    ensure!(store.publish(&lease, &snapshot("d", &large)).await? == Published::Yes);
    let read = store.snapshot().await?.context("no table")?;
    ensure!(read.0 == large, "another table of {} bytes", read.0.len());
    let text = "x".repeat(LARGE / 8);
    for number in 0..8 {
        store.write(&[put(&format!("d{number}"), &text, None)]).await?;
    }
    let read = store.documents("", 0).await?.changed;
    let bytes: usize = read.iter().filter_map(|one| one.text.as_ref()).map(|text| text.len()).sum();
    ensure!(bytes == LARGE && read.len() == 8, "{} documents of {bytes} bytes", read.len());
    Ok(())
}

async fn what_is_too_large_is_refused(site: &impl Site) -> Result<()> {
    let store = site.client().await?;
    let lease = taken(&store, &candidate(&"a".repeat(NODE_NAME_MAX), 1, 0), TTL).await?;
    ensure!(store.lease().await?.held.is_some_and(|(held, _)| held == lease), "a long name is not read back");
    let large = vec![0; BYTES_MAX + 1];
    let table = store.publish(&lease, &snapshot("d", &large)).await;
    ensure!(
        matches!(&table, Err(StoreError::ReadOnly(why)) if why.contains("67108865")),
        "a table: {table:?}"
    );
    let added = store.append(&lease, &delta("", "d", &large)).await;
    ensure!(matches!(added, Err(StoreError::ReadOnly(_))), "a delta: {added:?}");
    let beat = store.beat("a", &large, TTL, false).await;
    ensure!(matches!(beat, Err(StoreError::ReadOnly(_))), "a record: {beat:?}");
    let text = "x".repeat(BYTES_MAX);
    let written = store.write(&[put("a", &text, None)]).await;
    ensure!(matches!(written, Err(StoreError::ReadOnly(_))), "a document: {written:?}");
    for name in [String::new(), "a".repeat(NODE_NAME_MAX + 1)] {
        let acquired = store.acquire(&candidate(&name, 1, 0), TTL).await;
        ensure!(matches!(acquired, Err(StoreError::Unfit(_))), "a candidate's name: {acquired:?}");
        let beat = store.beat(&name, b"", TTL, false).await;
        ensure!(matches!(beat, Err(StoreError::Unfit(_))), "a node's name: {beat:?}");
    }
    Ok(())
}

async fn everybody_is_told(site: &impl Site) -> Result<()> {
    let (store, other) = (site.client().await?, site.client().await?);
    let mut events = other.events();
    let lease = taken(&store, &candidate("a", 1, 0), TTL).await?;
    told(&mut events, Event::Leader).await?;
    store.publish(&lease, &snapshot("d", b"table")).await?;
    told(&mut events, Event::Table).await?;
    store.append(&lease, &delta("d", "e", b"delta")).await?;
    told(&mut events, Event::Table).await?;
    store.write(&[put("a", "b", None)]).await?;
    told(&mut events, Event::Documents).await?;
    store.beat("a", b"", TTL, true).await?;
    told(&mut events, Event::Nodes).await?;
    store.beat("a", b"", TTL, false).await?;
    store.leave("a").await?;
    told(&mut events, Event::Nodes).await?;
    store.release(&lease).await?;
    told(&mut events, Event::Leader).await?;
    ensure!(events.is_empty(), "{} events more than there were changes", events.len());
    Ok(())
}
