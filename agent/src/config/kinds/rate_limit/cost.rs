//! What a request costs of a limit.

use serde::Deserialize;

use super::super::super::field::Field;
use super::super::super::object::Notes;
use crate::model::{Cost, CostSource, Quota, SaidCost};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct CostSpec {
    units: Option<u32>,
    header: Option<String>,
    query: Option<String>,
    max: Option<u32>,
}

pub(super) fn cost(spec: &CostSpec, (quota, field): (Quota, &Field), notes: &mut Notes<'_>) -> Cost {
    let units = spec.units.unwrap_or(1);
    let most = quota.at_once();
    for (name, asked) in [("units", units), ("max", spec.max.unwrap_or_default())] {
        if matches!(quota, Quota::Window { .. }) && asked > Quota::WINDOW_COST_MAX {
            let most = Quota::WINDOW_COST_MAX;
            let text = format!(
                "{asked} is over {most}: an exact window keeps the time of each unit; `rate` has no such bound"
            );
            notes.error(&field.key(name), text);
        }
    }
    if units == 0 {
        notes.error(&field.key("units"), "0 would cost nothing; the least is 1");
    } else if units > most {
        let text = format!("no request of {units} would ever be let through: at most {most} are at once");
        notes.error(&field.key("units"), text);
    }
    let named = |text: &Option<String>, name: &str, notes: &mut Notes<'_>| {
        if text.as_ref().is_some_and(String::is_empty) {
            notes.error(&field.key(name), "a name is missing");
        }
    };
    named(&spec.header, "header", notes);
    named(&spec.query, "query", notes);
    let by = match (&spec.header, &spec.query) {
        (Some(_), Some(_)) => {
            notes.error(field, "either `header` or `query` says what a request costs");
            None
        }
        (Some(name), None) => Some(CostSource::Header(name.to_ascii_lowercase().into())),
        (None, Some(name)) => Some(CostSource::Query(name.as_str().into())),
        (None, None) => None,
    };
    if by.is_none() && spec.max.is_some() {
        notes.error(&field.key("max"), "without `header` or `query` every request costs the same");
    }
    if let Some(max) = spec.max
        && max < units
    {
        notes.error(
            &field.key("max"),
            format!("{max} is less than the {units} of a request that says nothing"),
        );
    }
    Cost { units, said: by.map(|by| SaidCost { by, max: spec.max }) }
}
