//! What nodes have leased of limits and not used: each tells it to the store, from where whoever is asked reads what all have told.
//!
//! It is for those who look, and decides nothing: what can't be told or read is unknown, and sends no store away.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use ::redis::Value;
use tokio::time::{sleep, timeout};

use super::{CALL_MAX, Inner, RedisCounters, UP};
use crate::cluster::StoreError;
use crate::cluster::redis::{reply, scripts};
use crate::limit::counters::Away;
use crate::limit::holdings::Holdings;

/// How often a node tells what it holds: a portion lasts for a second at most.
const EVERY: Duration = Duration::from_millis(500);
/// How often one that goes on holding nothing does.
const EVERY_IDLE: Duration = Duration::from_secs(5);
/// Of the time, looking through all keys of all limits takes one part of so many, unless that comes to a longer time than that of
/// one who holds nothing.
const PARTS: u32 = 100;
/// For how long it is kept.
const KEPT: Duration = Duration::from_secs(15);
/// The most bytes of what one node tells that are read, and of what all tell.
const BYTES_MAX: usize = 128 << 10;
const BYTES_ALL_MAX: usize = 4 << 20;

/// What this node tells.
#[derive(Clone)]
pub(super) struct Telling {
    node: String,
    /// `None`: there is no limit that nodes lease of.
    read: Arc<dyn Fn() -> Option<Holdings> + Send + Sync>,
}

/// What is known of a node that is alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeHolds {
    /// The node.
    pub node: String,
    /// What it has told last, and how long ago; `None`: nothing of late that can be read.
    pub told: Option<(Holdings, Duration)>,
}

impl fmt::Debug for Telling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telling").field("node", &self.node).finish_non_exhaustive()
    }
}

impl RedisCounters {
    /// From now on, the other nodes are told what this one holds; `None`: there is nothing to be leased. It is read on a thread
    /// that may be kept busy.
    pub fn tell(&self, node: &str, read: impl Fn() -> Option<Holdings> + Send + Sync + 'static) {
        self.inner.telling.send_replace(Some(Telling { node: node.to_owned(), read: Arc::new(read) }));
    }

    /// What the nodes that are alive hold, by name. It waits for the store, but no longer than a call may take.
    pub fn held(&self) -> Result<Vec<NodeHolds>, Away> {
        if self.inner.state.load(Ordering::Acquire) != UP {
            return Err(Away);
        }
        let (answer, answered) = mpsc::sync_channel(1);
        let inner = Arc::clone(&self.inner);
        self.inner.runtime.spawn(async move {
            // Whoever asked may have gone.
            let _ = answer.send(inner.held().await);
        });
        // The thread may have much to do.
        answered.recv_timeout(CALL_MAX * 2).unwrap_or(Err(Away))
    }
}

/// Tells the store what this node holds, for as long as it answers.
pub(super) async fn tell(inner: &Inner) {
    let mut tellings = inner.telling.subscribe();
    let mut told: Option<(Holdings, Instant)> = None;
    loop {
        let telling = tellings.wait_for(Option::is_some).await.map(|telling| telling.clone());
        let Ok(Some(Telling { node, read })) = telling else { return };
        let begun = Instant::now();
        let mut took = Duration::ZERO;
        if inner.state.load(Ordering::Acquire) == UP {
            let read = tokio::task::spawn_blocking(move || read()).await;
            took = begun.elapsed();
            // A panic is a fault that whoever asks for the limits themselves sees.
            let holdings = read.ok().flatten();
            let is_news = |now: &Holdings| {
                let same = told.as_ref().filter(|(before, at)| before == now && at.elapsed() < EVERY_IDLE);
                same.is_none() || !now.limits.is_empty()
            };
            if let Some(holdings) = holdings.filter(is_news) {
                let heard = inner.hold(&node, &holdings).await;
                told = heard.is_ok().then_some((holdings, begun));
            }
        } else {
            // It may come back without what it was told.
            told = None;
        }
        sleep(EVERY.max((took * PARTS).min(EVERY_IDLE))).await;
    }
}

impl Inner {
    async fn hold(&self, node: &str, holdings: &Holdings) -> Result<(), Away> {
        let text = serde_json::to_vec(holdings).expect("what a node holds is JSON");
        let kept = KEPT.as_millis().to_string();
        let key = format!("{}{node}", self.keys.leased);
        self.aside(&scripts::HOLD, &key, &[&text, kept.as_bytes()]).await.map(drop)
    }

    async fn held(&self) -> Result<Vec<NodeHolds>, Away> {
        let (most, all) = (BYTES_MAX.to_string(), BYTES_ALL_MAX.to_string());
        let arguments = [self.keys.leased.as_bytes(), most.as_bytes(), all.as_bytes()];
        let answer = self.aside(&scripts::HELD, &self.keys.nodes, &arguments).await?;
        let mut nodes = read(answer).map_err(|_| Away)?;
        nodes.sort_by(|one, other| one.node.cmp(&other.node));
        Ok(nodes)
    }

    /// Runs a script of which nothing depends: it is not counted, and what fails has no consequence.
    async fn aside(&self, script: &scripts::Script, key: &str, arguments: &[&[u8]]) -> Result<Value, Away> {
        let mut line = self.line.borrow().clone().ok_or(Away)?;
        let answer = timeout(CALL_MAX, line.call(script, key, arguments)).await;
        answer.map_err(|_| Away)?.map_err(|_| Away)
    }
}

fn read(answer: Value) -> Result<Vec<NodeHolds>, StoreError> {
    let node = |value| {
        let [node, says, left] = reply::fields(value)?;
        let node = reply::text(node)?.ok_or_else(reply::odd)?;
        // What somebody else has put there says nothing, nor does what never runs out.
        let age = reply::number(&left).ok().and_then(|left| KEPT.checked_sub(Duration::from_millis(left)));
        let holdings = reply::bytes(says)?.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Ok(NodeHolds { node, told: holdings.zip(age) })
    };
    reply::list(answer)?.into_iter().map(node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nodes_tell_is_read_and_what_they_do_not_is_unknown() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let node = |says, left| Value::Array(vec![text("a"), says, Value::Int(left)]);
        let good = || text(r#"{"limits": [{"policy": "d/p", "limit": "l", "units": 3}]}"#);
        let cases = [
            (node(good(), 14_800), Some((3, 200))),
            (node(text("{}"), 15_000), Some((0, 0))),
            (node(Value::Nil, -2), None),
            (node(text("[1"), 14_800), None),
            (node(good(), -1), None),
            (node(good(), 15_001), None),
        ];
        for (said, expected) in cases {
            let nodes = read(Value::Array(vec![said.clone()])).expect("is read");
            let told = nodes[0].told.as_ref();
            let told = told.map(|(held, age)| (held.of("d/p", "l").expect("all are told"), age.as_millis()));
            assert_eq!((nodes.len(), &*nodes[0].node, told), (1, "a", expected), "{said:?}");
        }
        assert!(read(Value::Nil).is_err() && read(Value::Array(vec![Value::Int(1)])).is_err());
    }
}
