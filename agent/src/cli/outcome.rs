//! What becomes of documents that were written: whoever leads says in its record whether it publishes what they say.

use std::process::ExitCode;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::counted::Members;
use crate::cluster::RedisStore;
use crate::cluster::registry::DocumentsOutcome;

/// Written, and held back or refused by whoever leads.
const HELD_BACK: u8 = 3;
/// How long whoever leads is waited for: it reads what is new within a second, unless there is very much of it.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What was written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wrote {
    /// The documents' revision then.
    pub revision: u64,
    /// The generation of its seal; `None`: it has none.
    pub generation: Option<u64>,
    /// The store had nothing before, which may be a loss that agents have not told of yet.
    pub first: bool,
}

/// What became of it.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It counts, or nobody is there to say.
    Counts,
    /// It counts, and what follows from it is not published.
    HeldBack(String),
    /// Agents don't take it, and whoever leads puts back what was there.
    Refused(String),
    /// Whoever leads has not said it.
    Unsaid(String),
}

impl Outcome {
    /// Says it, where it is not as it should be.
    pub(super) fn told(&self) -> ExitCode {
        match self {
            Self::Counts => return ExitCode::SUCCESS,
            Self::HeldBack(why) | Self::Refused(why) | Self::Unsaid(why) => eprintln!("{why}"),
        }
        if matches!(self, Self::Unsaid(_)) { ExitCode::SUCCESS } else { ExitCode::from(HELD_BACK) }
    }
}

/// Waits until whoever leads has looked at what was written. Where nobody leads, and nobody is known, there is nothing to wait for,
/// unless the store may have been emptied under agents that say so in a moment; the documents are written whatever comes of asking.
pub(super) async fn of(store: &RedisStore, wrote: Wrote) -> Outcome {
    let end = Instant::now() + PATIENCE;
    loop {
        let Ok(members) = Members::of(store).await else { return Outcome::Counts };
        if let Some((name, why)) = wrote.generation.and_then(|generation| members.refused(generation)) {
            return Outcome::Refused(format!(
                "written, and REFUSED by {name}: {why}. Agents go on with what they have, and whoever leads puts that back"
            ));
        }
        let late = Instant::now() >= end;
        let Some((name, record)) = members.leader() else {
            // Nobody has ever been there, most likely.
            if wrote.generation.is_none() || late && wrote.first && !members.any() {
                return Outcome::Counts;
            }
            if late {
                return Outcome::Unsaid(
                    "written; nobody leads, so that nobody says what becomes of it: agents that come back with later documents refuse it"
                        .to_owned(),
                );
            }
            sleep(LOOK_EVERY).await;
            continue;
        };
        match &record.outcome {
            Some(DocumentsOutcome { revision, held_back }) if *revision >= wrote.revision => {
                // What it has looked at is what it has put back.
                let dropped =
                    wrote.generation.is_some_and(|generation| record.sealing.generation < generation);
                if dropped && record.sealing.demanded {
                    return Outcome::Refused(format!(
                        "written, and REFUSED by {name}, which leads and has put back what was there: its log says why"
                    ));
                }
                // Nobody has signed it.
                return held_back.as_ref().map_or(Outcome::Counts, |why| {
                    let why = why.replace(char::is_control, "\u{fffd}");
                    Outcome::HeldBack(format!("written, and HELD BACK by {name}, which leads: {why}"))
                });
            }
            _ if late => {
                return Outcome::Unsaid(format!(
                    "written; {name}, which leads, did not say within {PATIENCE:?} what becomes of it: see `sluice status`"
                ));
            }
            _ => sleep(LOOK_EVERY).await,
        }
    }
}
