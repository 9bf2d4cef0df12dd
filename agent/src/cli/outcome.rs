//! What becomes of documents that were written: whoever leads says in its record whether it publishes what they say.

use std::process::ExitCode;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::cluster::registry::{self, DocumentsOutcome, Node};
use crate::cluster::{RedisStore, Store as _, StoreError};

/// Written, and held back by whoever leads.
const HELD_BACK: u8 = 3;
/// How long whoever leads is waited for: it reads what is new within a second, unless there is very much of it.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Waits until whoever leads has looked at the documents up to a revision, and says so where it holds back what they say. Where
/// nobody leads there is nothing to wait for; the documents are written whatever comes of asking.
pub(super) async fn of(store: &RedisStore, revision: u64) -> anyhow::Result<ExitCode> {
    let end = Instant::now() + PATIENCE;
    while let Some(leader) = leader(store).await.unwrap_or_default() {
        match told(&leader) {
            Some(DocumentsOutcome { revision: seen, held_back }) if *seen >= revision => {
                let Some(why) = held_back else { return Ok(ExitCode::SUCCESS) };
                // Nobody has signed it.
                let why = why.replace(char::is_control, "\u{fffd}");
                eprintln!("written, and HELD BACK by {}, which leads: {why}", leader.name);
                return Ok(ExitCode::from(HELD_BACK));
            }
            _ if Instant::now() < end => sleep(LOOK_EVERY).await,
            _ => {
                eprintln!(
                    "written; {}, which leads, did not say within {PATIENCE:?} what becomes of it: see `sluice status`",
                    leader.name
                );
                break;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The node that leads, where it lives.
async fn leader(store: &RedisStore) -> Result<Option<Node>, StoreError> {
    let Some((lease, _)) = store.lease().await?.held else { return Ok(None) };
    let mut nodes = registry::read(store.members().await?).into_iter();
    Ok(nodes.find(|node| node.name == lease.node && node.alive))
}

fn told(leader: &Node) -> Option<&DocumentsOutcome> {
    leader.record.as_ref().ok()?.outcome.as_ref()
}
