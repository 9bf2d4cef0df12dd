//! Values that others left under the store's keys: named where they are in the way, and never in the way for ever.

use std::time::Duration;

use agent::cluster::{Acquired, DocumentWrite, Published, Store, StoreError, Written};
use anyhow::{Context, Result, ensure};

use crate::redis::Servers;
use crate::suite::{Site, TTL, candidate, delta, put, snapshot, taken, until};

fn key(name: &str) -> String {
    format!("{{sluice:x}}:{name}")
}

fn names<T: std::fmt::Debug>(found: &Result<T, StoreError>, name: &str) -> Result<()> {
    let named = matches!(found, Err(StoreError::Foreign { key: named, .. }) if *named == key(name));
    ensure!(named, "{name} holds something foreign, and the store says {found:?}");
    Ok(())
}

#[tokio::test]
async fn a_foreign_lease_is_waited_for_if_it_runs_out_and_overwritten_if_not() -> Result<()> {
    let site = Servers::one("")?;
    let (store, redis) = (site.client().await?, &site.servers[0]);
    let leader = key("leader");
    redis.ask(&["SET", &leader, "somebody", "PX", "400"])?;
    names(&store.lease().await, "leader")?;
    ensure!(store.acquire(&candidate("a", 1, 0), TTL).await? == Acquired::Held(None));
    until(&site, "it to run out", || async { Ok(store.lease().await.is_ok()) }).await?;
    let mut last = taken(&store, &candidate("a", 1, 0), TTL).await?;

    let large = "x".repeat(100_000);
    let forged = "7/00000000000000ab/a";
    for words in [&["SET", &leader, "somebody"][..], &["SET", &leader, &large], &["SET", &leader, forged]] {
        redis.ask(words)?;
        names(&store.lease().await, "leader")?;
        ensure!(!store.renew(&last, TTL).await? && !store.release(&last).await?);
        let published = store.publish(&last, &snapshot("d", b"table")).await?;
        ensure!(matches!(published, Published::NotLeader(_)), "{published:?}");
        let next = taken(&store, &candidate("a", 1, 0), TTL).await?;
        ensure!(next.token.epoch == last.token.epoch + 1, "{last}, then {next}");
        last = next;
    }
    for words in
        [&["RPUSH", &leader, "x"][..], &["HSET", &leader, "x", "x"], &["XADD", &leader, "*", "x", "x"]]
    {
        redis.ask(&["DEL", &leader])?;
        redis.ask(words)?;
        names(&store.lease().await, "leader")?;
        ensure!(!store.renew(&last, TTL).await? && !store.release(&last).await?);
        redis.ask(&["PEXPIRE", &leader, "60000"])?;
        ensure!(store.acquire(&candidate("a", 1, 0), TTL).await? == Acquired::Held(None), "{words:?}");
        redis.ask(&["PERSIST", &leader])?;
        last = taken(&store, &candidate("a", 1, 0), TTL).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_foreign_epoch_counts_as_none_and_a_foreign_history_begins_anew() -> Result<()> {
    let site = Servers::one("")?;
    let (store, redis) = (site.client().await?, &site.servers[0]);
    let (epoch, terms) = (key("epoch"), key("terms"));
    for value in ["", "many", "-4", "1e3", " 7", "9007199254740991", "99999999999999999999999999"] {
        redis.ask(&["SET", &epoch, value])?;
        let lease = taken(&store, &candidate("a", 1, 40), TTL).await?;
        ensure!(lease.token.epoch == 41, "{value:?} gives {lease}");
        ensure!(redis.ask(&["GET", &epoch])? == "41");
        store.release(&lease).await?;
    }
    redis.ask(&["DEL", &epoch, &terms])?;
    redis.ask(&["RPUSH", &epoch, "7"])?;
    redis.ask(&["SET", &terms, "x"])?;
    ensure!(store.lease().await?.history.is_empty());
    let lease = taken(&store, &candidate("a", 1, 0), TTL).await?;
    ensure!(lease.token.epoch == 1, "{lease}");
    redis.ask(&["RPUSH", &terms, "x", "1 2", "1 2/3/4", "\u{ff}"])?;
    let history = store.lease().await?.history;
    ensure!(history.len() == 1 && history[0].0 == lease, "{history:?}");
    Ok(())
}

#[tokio::test]
async fn foreign_nodes_and_documents_are_named() -> Result<()> {
    let site = Servers::one("")?;
    let (store, redis) = (site.client().await?, &site.servers[0]);
    redis.ask(&["SET", &key("nodes"), "x"])?;
    names(&store.members().await, "nodes")?;
    names(&store.beat("a", b"", TTL, true).await, "nodes")?;
    names(&store.leave("a").await, "nodes")?;
    redis.ask(&["DEL", &key("nodes")])?;
    redis.ask(&["RPUSH", &key("node:a"), "x"])?;
    redis.ask(&["ZADD", &key("nodes"), "inf", "a", "-inf", "b", "1", ""])?;
    let members = store.members().await?;
    ensure!(members.len() == 1 && &*members[0].node == "a" && members[0].record.is_none(), "{members:?}");
    store.beat("a", b"record", TTL, true).await?;
    ensure!(
        store.members().await?[0].record.as_deref() == Some(b"record"),
        "the foreign record is still there"
    );

    for (name, other) in [
        ("store", "RPUSH"),
        ("revision", "RPUSH"),
        ("config", "SET"),
        ("revisions", "SET"),
        ("deleted", "SET"),
    ] {
        site.lose().await?;
        redis.ask(&[other, &key(name), "x"])?;
        names(&store.documents("", 0).await, name)?;
        names(&store.write(&[put("a", "1", None)]).await, name)?;
    }
    for number in ["x", "-1", "1.5", "1e300", "nan"] {
        site.lose().await?;
        redis.ask(&["SET", &key("revision"), number])?;
        names(&store.documents("", 0).await, "revision")?;
        names(&store.write(&[put("a", "1", None)]).await, "revision")?;
    }
    Ok(())
}

/// What the store says of `a`: its text and revision, and what is odd.
async fn said_of_a(store: &impl Store) -> Result<(Option<String>, u64, Vec<String>)> {
    let found = store.documents("", 0).await?;
    ensure!(found.changed.iter().any(|document| &*document.id == "b"), "another one is gone: {found:?}");
    let a = found.changed.iter().find(|document| &*document.id == "a" && document.text.is_some());
    let text = a.and_then(|document| document.text.as_deref().map(str::to_owned));
    let odd = found.odd.iter().map(ToString::to_string).collect();
    Ok((text, a.map_or(0, |document| document.revision), odd))
}

/// What was done to a document, by which command, what is read of it then, and what is odd about it.
type Case<'a> = (&'a str, &'a [&'a str], Option<&'a str>, &'a [&'a str]);

/// Whoever reads and whoever writes agree on what is there, whatever somebody has put under which key: what was read can be changed
/// and deleted, and nothing odd is left.
#[tokio::test]
async fn documents_about_which_keys_contradict_each_other_hold_up_no_write() -> Result<()> {
    let site = Servers::one("")?;
    let (store, redis) = (site.client().await?, &site.servers[0]);
    let (config, revisions, deleted) = (key("config"), key("revisions"), key("deleted"));
    let bytes = ["EVAL", "return redis.call('HSET', KEYS[1], 'a', '\\255')", "1", &config];
    let (both, none) = ("a is there and among the deleted ones", "a has a revision and no text");
    let cases: [Case<'_>; 12] = [
        ("deleted before it was written", &["ZADD", &deleted, "0", "a"], Some("1"), &[both]),
        ("deleted with it", &["ZADD", &deleted, "1", "a"], Some("1"), &[both]),
        ("deleted after", &["ZADD", &deleted, "99", "a"], Some("1"), &[both]),
        ("deleted at no time", &["ZADD", &deleted, "-inf", "a"], Some("1"), &[both]),
        ("without a text", &["HDEL", &config, "a"], None, &[none]),
        ("without a revision", &["ZREM", &revisions, "a"], None, &[]),
        ("with half a revision", &["ZADD", &revisions, "1.5", "a"], Some("1"), &[]),
        ("with the highest revision", &["ZADD", &revisions, "inf", "a"], Some("1"), &[]),
        ("with the lowest revision", &["ZADD", &revisions, "-inf", "a"], Some("1"), &[]),
        ("with a revision of none", &["ZADD", &revisions, "0", "a"], Some("1"), &[]),
        ("with a revision beyond all numbers", &["ZADD", &revisions, "1e300", "a"], Some("1"), &[]),
        ("with bytes", &bytes, Some("\u{fffd}"), &["a has bytes that are no text"]),
    ];
    for (what, words, text, odd) in cases {
        for change in [Some("2"), None] {
            site.lose().await?;
            store.write(&[put("a", "1", None), put("b", "1", None)]).await?;
            redis.ask(words)?;
            let (found, revision, said) = said_of_a(&store).await?;
            ensure!(found.as_deref() == text && said == odd, "{what}: {found:?}, {said:?}");
            let sums = store.sums(&["a".into()]).await?.sums;
            ensure!(sums[0].is_some() == (text.is_some() && odd != [both]), "{what}: {sums:?}");
            let write =
                DocumentWrite { id: "a".into(), text: change.map(Into::into), expected: Some(revision) };
            let written = store.write(&[write]).await?;
            ensure!(matches!(written, Written::At(_)), "{what}: {change:?} is held up: {written:?}");
            let (found, _, said) = said_of_a(&store).await?;
            ensure!(found.as_deref() == change && said.is_empty(), "{what}: {found:?}, {said:?}");
        }
    }
    // One that was deleted, and whose text somebody has put back.
    site.lose().await?;
    store.write(&[put("a", "1", None), put("b", "1", None)]).await?;
    store.write(&[DocumentWrite { id: "a".into(), text: None, expected: Some(1) }]).await?;
    redis.ask(&["HSET", &config, "a", "3"])?;
    ensure!(said_of_a(&store).await? == (None, 0, vec!["a was deleted and has a text".to_owned()]));
    store.write(&[DocumentWrite { id: "a".into(), text: None, expected: Some(0) }]).await?;
    ensure!(said_of_a(&store).await? == (None, 0, vec![]));
    ensure!(redis.ask(&["HGET", &config, "a"])?.is_empty(), "its text is there still");
    Ok(())
}

#[tokio::test]
async fn a_foreign_table_is_named_and_a_foreign_log_needs_a_snapshot() -> Result<()> {
    let site = Servers::one("")?;
    let (store, redis) = (site.client().await?, &site.servers[0]);
    let lease = taken(&store, &candidate("a", 1, 0), TTL).await?;
    for (name, words) in [("table", ["SET", "x"]), ("log", ["RPUSH", "x"])] {
        let key = key(name);
        redis.ask(&[words[0], &key, words[1]])?;
        names(&store.publish(&lease, &snapshot("d", b"table")).await, name)?;
        names(&store.append(&lease, &delta("d", "e", b"delta")).await, name)?;
        if name == "table" {
            names(&store.snapshot().await, name)?;
        } else {
            names(&store.deltas("").await, name)?;
        }
        redis.ask(&["DEL", &key])?;
    }
    redis.ask(&["HSET", &key("table"), "x", "x"])?;
    names(&store.snapshot().await, "table")?;
    ensure!(store.append(&lease, &delta("", "e", b"delta")).await? == Published::NeedsSnapshot);

    ensure!(store.publish(&lease, &snapshot("d", b"table")).await? == Published::Yes);
    ensure!(store.append(&lease, &delta("d", "e", b"delta")).await? == Published::Yes);
    redis.ask(&["XADD", &key("log"), "*", "x", "x"])?;
    let (_, position) = store.snapshot().await?.context("no table")?;
    ensure!(store.deltas(&position).await?.sealed == [b"delta"], "what is foreign in the log is passed over");
    ensure!(store.append(&lease, &delta("e", "f", b"delta")).await? == Published::NeedsSnapshot);
    ensure!(store.publish(&lease, &snapshot("f", b"table")).await? == Published::Yes);
    ensure!(store.append(&lease, &delta("f", "g", b"delta")).await? == Published::Yes);
    redis.ask(&["DEL", &key("log")])?;
    ensure!(store.append(&lease, &delta("g", "h", b"delta")).await? == Published::NeedsSnapshot);
    for position in ["99999999999999999999999-0", "1-1-1", "x", "-"] {
        ensure!(store.deltas(position).await?.sealed.is_empty(), "{position}");
    }
    Ok(())
}

/// Others may put any number of documents at one revision: they are read to their end.
#[tokio::test]
async fn more_documents_than_come_at_a_time_are_read_wherever_they_are() -> Result<()> {
    let site = Servers::one("")?;
    let (store, redis) = (site.client().await?, &site.servers[0]);
    let (config, revisions) = (key("config"), key("revisions"));
    let plant = "for i = 1, 1001 do \
                 redis.call('ZADD', KEYS[1], ARGV[1], 'x' .. i) redis.call('HSET', KEYS[2], 'x' .. i, 't') end";
    for score in ["0", "-0", "-1", "-inf", "1", "inf"] {
        site.lose().await?;
        store.write(&[put("a", "1", None)]).await?;
        redis.ask(&["EVAL", plant, "2", &revisions, &config, score])?;
        let reading = tokio::time::timeout(Duration::from_secs(20), store.documents("", 0));
        let read = reading.await.with_context(|| format!("{score}: without end"))??;
        ensure!(read.changed.len() == 1002, "{score}: {} documents", read.changed.len());
    }
    Ok(())
}
