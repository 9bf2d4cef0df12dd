//! `sluice delete`: documents that are there no more.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::ensure;
use clap::Args;

use super::super::get::full_id;
use super::super::outcome::Wrote;
use super::super::sealing::{SealArgs, Spoilt};
use super::super::store::StoreClientArgs;
use super::super::{counted, outcome, output};
use super::{by_id, giving_way, write};
use crate::cluster::documents::RESERVED;
use crate::cluster::{Document, DocumentWrite, RedisStore};
use crate::config::{consequences, stored_files};

#[derive(Debug, Args)]
pub(in crate::cli) struct DeleteArgs {
    #[command(flatten)]
    store: StoreClientArgs,
    /// Documents, as `KIND/NAMESPACE/NAME` or `KIND/NAME` (in the namespace `default`).
    #[arg(required = true, value_name = "DOCUMENT", value_parser = full_id)]
    documents: Vec<Arc<str>>,
    #[command(flatten)]
    seal: SealArgs,
    /// Lets the table lose all endpoints, or, of eight or more, all that are ready or over half of its routes: otherwise that is
    /// taken for a mistake and held back.
    #[arg(long)]
    allow_shrink: bool,
}

pub(in crate::cli) fn delete(args: &DeleteArgs) -> anyhow::Result<ExitCode> {
    args.store.with(async |store| {
        let wrote = giving_way(async || delete_from(args, store).await).await?;
        Ok(outcome::of(store, wrote).await.told())
    })
}

async fn delete_from(args: &DeleteArgs, store: &RedisStore) -> anyhow::Result<Wrote> {
    let found = counted::documents(store, &args.seal, Spoilt::Refuse).await?;
    let sealer = args.seal.sealer((store, args.store.cluster()), &found, Spoilt::Refuse).await?;
    let there = by_id(&found);
    let (mut writes, mut gone) = (Vec::new(), Vec::new());
    for id in &args.documents {
        let id = Arc::clone(id);
        // What is left of one goes as well.
        let left = found.odd.iter().any(|odd| odd.id == id);
        let revision = there.get(&id).map(|document| document.revision).or(left.then_some(0));
        let Some(revision) = revision else {
            // It may be what is held back that the same command deleted before.
            ensure!(args.allow_shrink, "{id} is not there");
            gone.push(id);
            continue;
        };
        writes.push(DocumentWrite { id, text: None, expected: Some(revision) });
    }
    let ids: Vec<_> = writes.iter().map(|write| Arc::clone(&write.id)).collect();
    let wrote = write(store, sealer.as_ref(), &found, (writes, args.allow_shrink)).await?;
    for id in &ids {
        output::text(&format!("{id} deleted"))?;
    }
    for line in missing(&there, &ids) {
        eprintln!("{line}");
    }
    for id in gone {
        output::text(&format!("{id} was not there"))?;
    }
    Ok(wrote)
}

/// What those that stay say now of what they refer to.
fn missing(there: &BTreeMap<Arc<str>, Document>, gone: &[Arc<str>]) -> Vec<String> {
    let about_traffic = || there.iter().filter(|(id, _)| !id.starts_with(RESERVED));
    let texts = about_traffic().filter_map(|(id, document)| Some((id, document.text.as_ref()?)));
    let before = stored_files(texts);
    let after = before.iter().filter(|file| !gone.contains(&file.path)).cloned().collect();
    consequences(before, after)
}
