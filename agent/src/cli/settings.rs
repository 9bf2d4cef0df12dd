//! `sluice settings`: what can be set about the data path.

use std::fmt::Write;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::output;
use crate::proxy::{ProxySettings, Setting};

#[derive(Debug, Args)]
pub(super) struct SettingsArgs {
    /// How the list is printed.
    #[arg(short, long, value_enum, default_value_t = Form::Table)]
    output: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// For the documentation.
    Markdown,
}

/// What the documentation says before the table.
const INTRODUCTION: &str = "# Settings\n\n\
    Limits and timeouts of the data path. `sluice agent --set NAME=VALUE` sets one (several times, or `SLUICE_SET` with \
    commas between); `sluice settings` prints this list, which is made from the same table.\n\n\
    Durations are written `500ms`, `10s`, `5m`, `1h`; sizes `65536`, `64KiB`, `8MiB`, `1GiB`. `gateway.http.*` holds for \
    connections of Gateway listeners, whose clients are strangers; `captured.http.*` for those of captured pods, which \
    shall see what they would see without an agent.\n\n\
    `docs/limits.md` says what happens at each limit; those that have a reason there are counted in \
    `sluice_limit_hits_total{limit=\"...\"}` and named in the access log (`response_flags`, `response_code_details`).\n\n\
    | name | default | values | meaning |\n| --- | --- | --- | --- |\n";

pub(super) fn run(args: &SettingsArgs) -> anyhow::Result<ExitCode> {
    let settings = ProxySettings::default().list();
    match args.output {
        Form::Table => output::table(["name", "default", "values", "meaning"], &rows(&settings))?,
        Form::Json => output::json(&settings)?,
        Form::Markdown => output::text(markdown(&settings).trim_end())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn rows(settings: &[Setting]) -> Vec<[String; 4]> {
    let row = |setting: &Setting| {
        [setting.name.clone(), setting.default.clone(), values(setting), setting.meaning.to_owned()]
    };
    settings.iter().map(row).collect()
}

fn values(setting: &Setting) -> String {
    match (setting.unit, setting.off) {
        ("choice", _) => setting.choices.join(", "),
        ("switch", _) => "on, off".to_owned(),
        (_, true) => format!("{} to {}, off", setting.min, setting.max),
        (_, false) => format!("{} to {}", setting.min, setting.max),
    }
}

fn markdown(settings: &[Setting]) -> String {
    let mut text = INTRODUCTION.to_owned();
    for setting in settings {
        let Setting { name, default, meaning, .. } = setting;
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| `{name}` | {default} | {} | {meaning} |", values(setting));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_is_the_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/settings.md");
        let written = std::fs::read_to_string(path).expect("docs/settings.md");
        let made = markdown(&ProxySettings::default().list());
        assert!(written == made, "make it anew: sluice settings -o markdown > docs/settings.md");
    }
}
