//! Other numbers for some keys.

use std::collections::{BTreeMap, HashSet};

use serde::Deserialize;

use super::super::super::field::Field;
use super::super::super::object::Notes;
use super::exempt;
use super::quota::{QuotaSpec, RateSpec, WindowSpec, quota};
use crate::limit::quota::shared_rate;
use crate::model::{KeyPart, Override, OverrideValue, Quota};
use crate::route::canonical_escapes;

/// Overrides of one limit.
const OVERRIDES_MAX: usize = 256;
/// Different numbers among them, each of which remembers `maxKeys` keys.
const NUMBERS_MAX: usize = 16;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct OverrideSpec {
    values: Vec<String>,
    rate: Option<RateSpec>,
    window: Option<WindowSpec>,
    in_flight: Option<u32>,
}

/// How many different numbers there are among them.
pub(super) fn different(overrides: &[Override]) -> usize {
    overrides.iter().map(|other| other.quota).collect::<HashSet<Quota>>().len()
}

/// `limit`: its key, its numbers, what a request costs that says nothing, and whether all nodes count together.
pub(super) fn overrides(
    specs: &[OverrideSpec],
    limit: (&[KeyPart], Quota, u32, bool),
    list: &Field,
    notes: &mut Notes<'_>,
) -> Vec<Override> {
    if specs.len() > OVERRIDES_MAX {
        notes.error(list, format!("{} overrides are more than {OVERRIDES_MAX}", specs.len()));
        return Vec::new();
    }
    let (key, ..) = limit;
    let mut found: Vec<Override> = Vec::with_capacity(specs.len());
    let mut seen: BTreeMap<Vec<String>, usize> = BTreeMap::new();
    for (index, spec) in specs.iter().enumerate() {
        let field = list.index(index);
        let values = values(&spec.values, key, &field.key("values"), notes);
        let asked =
            QuotaSpec { rate: spec.rate.as_ref(), window: spec.window.as_ref(), in_flight: spec.in_flight };
        let numbers = quota(asked, &field, notes).filter(|quota| fits(*quota, limit, &field, notes));
        let (Some(values), Some(quota)) = (values, numbers) else { continue };
        let text = values.iter().map(OverrideValue::to_string).collect();
        if let Some(first) = seen.insert(text, index) {
            notes.error(&field.key("values"), format!("the override {first} is about the same key"));
        }
        found.push(Override { values, quota });
    }
    let numbers = different(&found);
    if numbers > NUMBERS_MAX {
        let text = format!("{numbers} different numbers are more than {NUMBERS_MAX}");
        notes.error(list, text);
    }
    found
}

/// Whether an override's numbers can stand for those of its limit.
fn fits(
    quota: Quota,
    (_, of_limit, cost, shared): (&[KeyPart], Quota, u32, bool),
    field: &Field,
    notes: &mut Notes<'_>,
) -> bool {
    if std::mem::discriminant(&quota) != std::mem::discriminant(&of_limit) {
        notes.error(
            field,
            "an override has other numbers of what its limit has: `rate`, `window` or `inFlight`",
        );
        return false;
    }
    if cost > quota.at_once() {
        let text = format!("no request of {cost}, which one costs, would ever be let through");
        notes.error(field, text);
        return false;
    }
    if let Quota::Rate { requests, window_ns, burst } = quota
        && shared
        && shared_rate(requests, window_ns, burst).is_none()
    {
        notes.error(field, "the burst is too large for this rate to be counted in whole numbers by Redis");
        return false;
    }
    true
}

fn values(
    texts: &[String],
    key: &[KeyPart],
    field: &Field,
    notes: &mut Notes<'_>,
) -> Option<Vec<OverrideValue>> {
    if key.is_empty() || texts.len() != key.len() {
        let text = match key.len() {
            0 => "without a key no request is told from another".to_owned(),
            parts => format!("{} values for the {parts} parts of the key", texts.len()),
        };
        notes.error(field, text);
        return None;
    }
    let mut values = Vec::with_capacity(key.len());
    for (index, (text, part)) in texts.iter().zip(key).enumerate() {
        match value(text, part) {
            Ok(value) => values.push(value),
            Err(problem) => notes.error(&field.index(index), format!("`{text}` {problem}")),
        }
    }
    (values.len() == key.len()).then_some(values)
}

/// A value as requests have it.
fn value(text: &str, part: &KeyPart) -> Result<OverrideValue, &'static str> {
    let parts = |count| text.split('/').count() == count && text.split('/').all(|part| !part.is_empty());
    let text_if = |fits: bool, problem| {
        if fits { Ok(OverrideValue::Text(text.into())) } else { Err(problem) }
    };
    match part {
        KeyPart::SourceAddress { .. } => exempt::network(text).map(OverrideValue::Network),
        KeyPart::SourceIdentity => text_if(parts(2), "is no NAMESPACE/SERVICEACCOUNT"),
        KeyPart::Route => text_if(parts(3), "is no NAMESPACE/ROUTE/RULE"),
        KeyPart::Path if text.starts_with('/') && !text.contains(['?', '#']) => {
            Ok(OverrideValue::Text(canonical_escapes(text).into()))
        }
        KeyPart::PathTemplate(part) if part.name.is_some() => {
            let one = canonical_escapes(text);
            text_if(!one.is_empty() && !one.contains('/'), "is no element of a path")
                .map(|_| OverrideValue::Text(one.into()))
        }
        KeyPart::PathTemplate(part) => text_if(
            part.templates.iter().any(|template| *template.text == *text),
            "is none of the part's templates",
        ),
        KeyPart::Path => Err("is no path: from its `/` on, without query"),
        KeyPart::Host => text_if(
            !text.is_empty() && !text.contains(':') && !text.bytes().any(|byte| byte.is_ascii_uppercase()),
            "is no host in lower case, without port",
        ),
        KeyPart::Method => {
            text_if(!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()), "is no method")
        }
        KeyPart::Header(_) => {
            text_if(text.trim_ascii() == text, "has space at an end, which is no part of a field's value")
        }
        KeyPart::Cookie(_) | KeyPart::Query(_) => Ok(OverrideValue::Text(text.into())),
    }
}
