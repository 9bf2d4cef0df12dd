//! Holds a start back while the kernel knows more of policies than the documents tell: an earlier agent's rules are in force,
//! and nobody knows what a file says that can't be read. To begin without it could open pods.

use anyhow::Context as _;

use super::{DocumentSource, Settings};
use crate::capture::policies_left;
use crate::config::{self, State};

/// Waits until an agent with these settings would not lift policies of an earlier one by not knowing them. Nothing is changed
/// meanwhile: the last rules stay in force, and nothing is captured.
pub async fn wait_for_documents(settings: &Settings) -> anyhow::Result<()> {
    let Some(capture) = &settings.capture else { return Ok(()) };
    // Who is in a cluster waits for its table in any case.
    let DocumentSource::Directory(dir) = &settings.documents else { return Ok(()) };
    if !policies_left(&capture.bpffs)? {
        return Ok(());
    }
    let (mut state, mut changes) = config::watch(dir.clone()).context("--config")?;
    let mut told = Vec::new();
    while !state.unread().is_empty() {
        report(&state, &mut told);
        state = changes.recv().await.context("the documents can no longer be watched")?;
    }
    Ok(())
}

/// Names the files, whenever they are others than those that were told before.
fn report(state: &State, told: &mut Vec<String>) {
    let unread = state.unread();
    if *told != unread {
        let files = unread.join(", ");
        tracing::warn!(
            files,
            "policies of an earlier agent are in force, and these files can't be read: nobody knows what policies they hold. The \
             start waits until they are mended; `sluice analyze` says what is wrong, `sluice cleanup` lifts the policies"
        );
        *told = unread;
    }
}
