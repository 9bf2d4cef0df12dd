//! Whether a node that comes now believes the table in the store. Whoever signed it, or a change that follows it, may have ended since,
//! be revoked, or be of a root that is gone: nodes that have the table never ask again, and those that come get none.

use std::time::{Duration, Instant, SystemTime};

use super::{Shared, until};
use crate::cluster::seal::Sealed;
use crate::cluster::store::{Store, StoreError};
use crate::identity::Signature;

/// Between two looks at the store, and how long before signatures end they are replaced.
const LOOK_EVERY: Duration = Duration::from_secs(30);
const AHEAD: Duration = Duration::from_mins(1);

/// When it is looked at next.
pub(super) struct Signatures(Option<Instant>);

impl Signatures {
    /// A term begins.
    pub(super) fn of<S: Store>(shared: &Shared<S>) -> Self {
        // Without signatures there is nothing to look at.
        Self(shared.trust.operators().map(|_| Instant::now() + LOOK_EVERY))
    }

    /// Waits until it is time to look.
    pub(super) async fn due<S: Store>(&self, shared: &Shared<S>) {
        tokio::select! {
            () = shared.trusts_anew.notified(), if self.0.is_some() => {}
            () = until(self.0) => {}
        }
    }

    /// Looks whether the table has to be signed anew.
    pub(super) async fn have_ended<S: Store>(&mut self, shared: &Shared<S>) -> bool {
        self.0 = Some(Instant::now() + LOOK_EVERY);
        let Ok(signatures) = shared.signatures().await else { return false };
        let now = SystemTime::now();
        let why = [now, now + AHEAD].into_iter().find_map(|at| shared.trust.outlived(at, &signatures));
        if let Some(why) = why {
            tracing::info!("the table is signed anew: nodes that come would not believe it: {why}");
        }
        why.is_some()
    }
}

impl<S: Store> Shared<S> {
    /// The signatures of the table in the store and of the changes that follow it. What can't be read is found by others.
    async fn signatures(&self) -> Result<Vec<Signature>, StoreError> {
        let Some((sealed, mut position)) = self.store.snapshot().await? else { return Ok(Vec::new()) };
        let mut signatures: Vec<_> = signature(&sealed).into_iter().collect();
        loop {
            let deltas = self.store.deltas(&position).await?;
            if deltas.sealed.is_empty() {
                return Ok(signatures);
            }
            signatures.extend(deltas.sealed.iter().filter_map(|sealed| signature(sealed)));
            position = deltas.position;
        }
    }
}

fn signature(sealed: &[u8]) -> Option<Signature> {
    Signature::from_bytes(Sealed::open(sealed).ok()?.signature).ok()
}
