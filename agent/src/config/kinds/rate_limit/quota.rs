//! How much is let through.

use std::time::Duration;

use serde::Deserialize;

use super::super::super::field::Field;
use super::super::super::object::Notes;
use super::super::duration;
use super::LimitSpec;
use crate::limit::{Rate, RateError};
use crate::model::Quota;

/// What an exact window keeps the time of.
const WINDOW_REQUESTS_MAX: u32 = 10_000;
const WINDOW_MAX: Duration = Duration::from_hours(24);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RateSpec {
    requests: u32,
    per: String,
    burst: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct WindowSpec {
    requests: u32,
    per: String,
}

/// What a limit, or an override, says of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct QuotaSpec<'a> {
    pub rate: Option<&'a RateSpec>,
    pub window: Option<&'a WindowSpec>,
    pub in_flight: Option<u32>,
}

impl<'a> QuotaSpec<'a> {
    pub fn of(limit: &'a LimitSpec) -> Self {
        Self { rate: limit.rate.as_ref(), window: limit.window.as_ref(), in_flight: limit.in_flight }
    }
}

pub(super) fn quota(spec: QuotaSpec<'_>, field: &Field, notes: &mut Notes<'_>) -> Option<Quota> {
    match (spec.rate, spec.window, spec.in_flight) {
        (Some(rate), None, None) => rate_quota(rate, &field.key("rate"), notes),
        (None, Some(window), None) => window_quota(window, &field.key("window"), notes),
        (None, None, Some(0)) => {
            notes.error(&field.key("inFlight"), "0 would let nothing through; the least is 1");
            None
        }
        (None, None, Some(requests)) => Some(Quota::InFlight { requests }),
        _ => {
            notes.error(field, "exactly one of `rate`, `window` and `inFlight` says how much is let through");
            None
        }
    }
}

pub(super) fn rate_quota(rate: &RateSpec, field: &Field, notes: &mut Notes<'_>) -> Option<Quota> {
    let window_ns = window_of(&rate.per, &field.key("per"), notes)?;
    let burst = rate.burst.unwrap_or(rate.requests);
    for (name, value) in [("requests", Some(rate.requests)), ("burst", rate.burst)] {
        if value == Some(0) {
            notes.error(&field.key(name), "0 would let nothing through; the least is 1");
            return None;
        }
    }
    match Rate::new(rate.requests.into(), window_ns, burst.into()) {
        Ok(_) => Some(Quota::Rate { requests: rate.requests, window_ns, burst }),
        Err(error @ (RateError::Zero | RateError::Burst { .. })) => {
            notes.error(&field.key("burst"), error.to_string());
            None
        }
    }
}

fn window_quota(window: &WindowSpec, field: &Field, notes: &mut Notes<'_>) -> Option<Quota> {
    let window_ns = window_of(&window.per, &field.key("per"), notes)?;
    if !(1..=WINDOW_REQUESTS_MAX).contains(&window.requests) {
        let text = format!(
            "{} is not from 1 to {WINDOW_REQUESTS_MAX}: an exact window keeps the time of each request; `rate` \
             has no such bound",
            window.requests
        );
        notes.error(&field.key("requests"), text);
        return None;
    }
    Some(Quota::Window { requests: window.requests, window_ns })
}

/// A span in nanoseconds.
pub(super) fn window_of(text: &str, field: &Field, notes: &mut Notes<'_>) -> Option<u64> {
    let window = duration::gateway(text).filter(|window| !window.is_zero() && *window <= WINDOW_MAX);
    if window.is_none() {
        notes.error(field, format!("`{text}` is no span from 1ms to 24h, such as 1s, 15m or 1h30m"));
    }
    u64::try_from(window?.as_nanos()).ok()
}
