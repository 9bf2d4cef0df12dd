//! `sluice get`: the documents that the cluster keeps.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::json;

use super::store::{StoreClientArgs, all};
use super::{Format, OutputArgs, output};
use crate::cluster::Document;
use crate::cluster::documents::RESERVED;
use crate::config::shown;

#[derive(Debug, Args)]
pub(super) struct GetArgs {
    #[command(flatten)]
    store: StoreClientArgs,
    /// One document, as `KIND/NAMESPACE/NAME` or `KIND/NAME` (in the namespace `default`): its text is printed. A kind alone
    /// lists those of it. Default: all are listed.
    document: Option<String>,
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
    match args.document.as_deref() {
        Some(name) if name.contains('/') => one(&there, name, args.output.output)?,
        kind => {
            let prefix = kind.map(|kind| format!("{kind}/"));
            there
                .retain(|(_, document)| prefix.as_ref().is_none_or(|prefix| document.id.starts_with(prefix)));
            list(&there, args.output.output)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn one(there: &[(Arc<str>, Document)], name: &str, format: Format) -> anyhow::Result<()> {
    let id = full_id(name)?;
    let found = there.iter().find(|(_, document)| document.id == id);
    let (text, document) = found.with_context(|| format!("{id} is not there"))?;
    match format {
        Format::Table => output::text(text.trim_end()),
        Format::Json => output::json(&json!({"id": &*id, "revision": document.revision, "text": &**text})),
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

/// `KIND/NAMESPACE/NAME` of what a user wrote.
pub(super) fn full_id(name: &str) -> anyhow::Result<Arc<str>> {
    match name.split('/').collect::<Vec<_>>()[..] {
        [kind, name] if !kind.is_empty() && !name.is_empty() => Ok(format!("{kind}/default/{name}").into()),
        [kind, _, last] if !kind.is_empty() && !last.is_empty() => Ok(name.into()),
        _ => bail!("'{name}' names no document: KIND/NAMESPACE/NAME"),
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
