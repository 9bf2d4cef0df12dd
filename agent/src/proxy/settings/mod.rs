//! Everything that can be set about the data path: one table of names, defaults, ranges and meanings drives the command
//! line and the documentation.

mod rows;
mod value;

use rows::{AGENT, HTTP, Row};
use value::Stored;
pub use value::Unit;

use super::admission::AdmissionSettings;
use super::http::HttpSettings;
use crate::pool::PoolLimits;

/// The longest distance at which a name is taken for a slip of another.
const MAX_SLIPS: usize = 8;

/// All settings of the data path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxySettings {
    /// Of captured connections.
    pub captured: HttpSettings,
    /// Of connections of Gateway listeners.
    pub gateway: HttpSettings,
    /// Of each worker's unused upstream connections.
    pub pool: PoolLimits,
    /// Of the whole agent.
    pub admission: AdmissionSettings,
}

impl Default for ProxySettings {
    fn default() -> Self {
        Self {
            captured: HttpSettings::captured(),
            gateway: HttpSettings::gateway(),
            pool: PoolLimits::default(),
            admission: AdmissionSettings::default(),
        }
    }
}

/// A setting as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Setting {
    /// Its name.
    pub name: String,
    /// What its values are: `duration`, `bytes`, `count`, `switch`, `choice`.
    pub unit: &'static str,
    /// The value that it has unless it is set.
    pub default: String,
    /// The least value.
    pub min: String,
    /// The greatest value.
    pub max: String,
    /// The names that it takes, where it takes names.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub choices: &'static [&'static str],
    /// Whether it takes `off`.
    pub off: bool,
    /// What it means.
    pub meaning: &'static str,
}

/// A setting that can't be set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSetting {
    /// There is no `=`.
    #[error("a setting is given as NAME=VALUE; `sluice settings` lists them")]
    NoValue,
    /// There is no such setting.
    #[error("there is no setting `{name}`{}; `sluice settings` lists them", suggest(nearest.as_deref()))]
    Unknown {
        /// What was asked for.
        name: String,
        /// A setting of almost that name.
        nearest: Option<String>,
    },
    /// The value is written in a wrong way.
    #[error("`{value}` is no value of {name}: it takes {}{}", unit.example(), or_off(*off))]
    Value {
        /// The setting.
        name: String,
        /// What was given.
        value: String,
        /// What it takes.
        unit: Unit,
        /// Whether it takes `off`, too.
        off: bool,
    },
    /// The value is too small or too great.
    #[error("{value} is out of the range of {name}: {min} to {max}{}", or_off(*off))]
    Range {
        /// The setting.
        name: String,
        /// What was given.
        value: String,
        /// The least value.
        min: String,
        /// The greatest value.
        max: String,
        /// Whether it takes `off`, too.
        off: bool,
    },
}

fn suggest(nearest: Option<&str>) -> String {
    nearest.map(|name| format!(", did you mean `{name}`?")).unwrap_or_default()
}

fn or_off(off: bool) -> &'static str {
    if off { ", or off" } else { "" }
}

type Part = fn(&mut ProxySettings) -> &mut HttpSettings;

/// Client connections of either kind: the prefix of their settings, and where these are.
const KINDS: [(&str, Part); 2] = [
    ("gateway.http.", |settings| &mut settings.gateway),
    ("captured.http.", |settings| &mut settings.captured),
];

impl ProxySettings {
    /// Puts a value into the place of a name.
    pub fn set(&mut self, assignment: &str) -> Result<(), InvalidSetting> {
        let (name, value) = assignment.split_once('=').ok_or(InvalidSetting::NoValue)?;
        let (name, value) = (name.trim(), value.trim());
        for (prefix, part) in KINDS {
            let row = name.strip_prefix(prefix).and_then(|rest| HTTP.iter().find(|row| row.name == rest));
            if let Some(row) = row {
                return row.set(part(self), name, value);
            }
        }
        match AGENT.iter().find(|row| row.name == name) {
            Some(row) => row.set(self, name, value),
            None => Err(InvalidSetting::Unknown { name: name.to_owned(), nearest: nearest(name) }),
        }
    }

    /// All settings, with the values that they have here as defaults.
    pub fn list(&self) -> Vec<Setting> {
        let mut settings = self.clone();
        let mut list: Vec<Setting> = AGENT.iter().map(|row| row.describe(&mut settings, "")).collect();
        for (prefix, part) in KINDS {
            list.extend(HTTP.iter().map(|row| row.describe(part(&mut settings), prefix)));
        }
        list
    }
}

impl<S> Row<S> {
    fn set(&self, part: &mut S, name: &str, value: &str) -> Result<(), InvalidSetting> {
        let place: &mut dyn Stored = (self.at)(part);
        let off = place.may_be_off();
        if off && value == "off" {
            place.store(None);
            return Ok(());
        }
        let Some(number) = self.unit.parse(value) else {
            let (name, value) = (name.to_owned(), value.to_owned());
            return Err(InvalidSetting::Value { name, value, unit: self.unit, off });
        };
        let (least, most) = self.range;
        if (least..=most).contains(&number) && place.store(Some(number)) {
            return Ok(());
        }
        Err(InvalidSetting::Range {
            name: name.to_owned(),
            value: value.to_owned(),
            min: self.unit.show(least),
            max: self.unit.show(most),
            off,
        })
    }

    fn describe(&self, part: &mut S, prefix: &str) -> Setting {
        let place = (self.at)(part);
        Setting {
            name: format!("{prefix}{}", self.name),
            unit: self.unit.as_str(),
            default: place.load().map_or_else(|| "off".to_owned(), |value| self.unit.show(value)),
            min: self.unit.show(self.range.0),
            max: self.unit.show(self.range.1),
            choices: if let Unit::Choice(names) = self.unit { names } else { &[] },
            off: place.may_be_off(),
            meaning: self.meaning,
        }
    }
}

/// The setting whose name is least far from `name`, if any is near.
fn nearest(name: &str) -> Option<String> {
    let names = ProxySettings::default().list().into_iter().map(|setting| setting.name);
    let by_distance = names.map(|known| (distance(name, &known), known));
    by_distance.min().filter(|(slips, _)| *slips <= MAX_SLIPS.min(name.len() / 2)).map(|(_, known)| known)
}

/// How many letters must be changed, left out or added to make one text of the other.
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (index, letter) in from.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = index + 1;
        for (column, other) in to.bytes().enumerate() {
            let changed = diagonal + usize::from(letter != other);
            diagonal = row[column + 1];
            row[column + 1] = changed.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests;
