//! `sluice get`: the documents that the cluster keeps.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use clap::Args;
use serde_json::json;

use super::store::{StoreClientArgs, all};
use super::{Format, OutputArgs, output};
use crate::cluster::Document;
use crate::cluster::documents::RESERVED;
use crate::config::{is_kind, shown};

/// What is asked for.
#[derive(Debug, Clone)]
enum Wanted {
    One(Arc<str>),
    Kind(String),
}

#[derive(Debug, Args)]
pub(super) struct GetArgs {
    #[command(flatten)]
    store: StoreClientArgs,
    /// One document, as `KIND/NAMESPACE/NAME` or `KIND/NAME` (in the namespace `default`): its text is printed. A kind alone
    /// lists those of it. Default: all are listed.
    #[arg(value_parser = wanted)]
    document: Option<Wanted>,
    /// Shows what Secrets hold, which is left out else.
    #[arg(long)]
    show_secrets: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn run(args: &GetArgs) -> anyhow::Result<ExitCode> {
    let found = args.store.with(async |store| all(store).await)?;
    let there = found.changed.into_iter().filter(|document| !document.id.starts_with(RESERVED));
    let text = |document: &Document| {
        let text = document.text.as_ref()?;
        Some(if args.show_secrets { Arc::clone(text) } else { shown(&document.id, text) })
    };
    let mut there: Vec<_> = there.filter_map(|document| Some((text(&document)?, document))).collect();
    there.sort_by(|(_, a), (_, b)| a.id.cmp(&b.id));
    match &args.document {
        Some(Wanted::One(id)) => one(&there, id, args.output.output)?,
        Some(Wanted::Kind(kind)) => {
            let is_it = |id: &str| id.split('/').next() == Some(kind);
            there.retain(|(_, document)| is_it(&document.id));
            // A store may have more kinds than this version knows.
            ensure!(!there.is_empty() || is_kind(kind), "there is no kind '{kind}', and no document of it");
            list(&there, args.output.output)?;
        }
        None => list(&there, args.output.output)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn one(there: &[(Arc<str>, Document)], id: &Arc<str>, format: Format) -> anyhow::Result<()> {
    let found = there.iter().find(|(_, document)| document.id == *id);
    let (text, document) = found.with_context(|| format!("{id} is not there"))?;
    match format {
        Format::Table => output::text(text.trim_end()),
        Format::Json => output::json(&json!({"id": **id, "revision": document.revision, "text": &**text})),
    }
}

fn list(there: &[(Arc<str>, Document)], format: Format) -> anyhow::Result<()> {
    match format {
        Format::Json => {
            let all: Vec<_> = there
                .iter()
                .map(|(text, document)| json!({"id": &*document.id, "revision": document.revision, "text": &**text}))
                .collect();
            output::json(&all)
        }
        Format::Table => {
            let row = |(_, document): &(_, Document)| {
                let mut parts = document.id.splitn(3, '/').map(str::to_owned);
                let mut next = || parts.next().unwrap_or_default();
                [next(), next(), next(), document.revision.to_string()]
            };
            output::table(
                ["kind", "namespace", "name", "revision"],
                &there.iter().map(row).collect::<Vec<_>>(),
            )
        }
    }
}

fn wanted(name: &str) -> Result<Wanted, String> {
    if name.contains('/') { full_id(name).map(Wanted::One) } else { Ok(Wanted::Kind(name.to_owned())) }
}

/// `KIND/NAMESPACE/NAME` of what a user wrote.
pub(super) fn full_id(name: &str) -> Result<Arc<str>, String> {
    match name.split('/').collect::<Vec<_>>()[..] {
        [kind, name] if !kind.is_empty() && !name.is_empty() => Ok(format!("{kind}/default/{name}").into()),
        [kind, _, last] if !kind.is_empty() && !last.is_empty() => Ok(name.into()),
        _ => Err(format!("'{name}' names no document: KIND/NAMESPACE/NAME")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_named_as_users_write_them() {
        for (written, id) in [
            ("Service/web", "Service/default/web"),
            ("Service/shop/web", "Service/shop/web"),
            ("EdgeGuard//edge", "EdgeGuard//edge"),
        ] {
            assert_eq!(&*full_id(written).expect("is a name"), id);
        }
        for wrong in ["", "web", "/web", "Service/", "a/b/c/d", "//"] {
            assert!(full_id(wrong).is_err(), "{wrong}");
        }
    }
}
