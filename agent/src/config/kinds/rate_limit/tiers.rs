//! Where a limit is held: by all nodes together, and by the guard at the edge.

use serde::Deserialize;

use super::super::super::field::Field;
use super::super::super::object::Notes;
use super::window_of;
use crate::limit::quota::shared_rate;
use crate::model::{ClusterCount, ClusterMode, FailMode, KeyPart, PushDown, Quota};

/// Refusals after which a source is kept out, where the document does not say.
const PUSH_DOWN_AFTER: u32 = 100;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct PushDownSpec {
    after: Option<u32>,
    within: Option<String>,
    #[serde(rename = "for")]
    lasts: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct ClusterSpec {
    mode: ModeSpec,
    #[serde(default)]
    fail: FailSpec,
}

#[derive(Debug, Clone, Copy, Deserialize)]
enum ModeSpec {
    Exact,
    Leased,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
enum FailSpec {
    Open,
    Closed,
    #[default]
    Share,
}

pub(super) fn push_down(
    spec: &PushDownSpec,
    (key, field): (&[KeyPart], &Field),
    notes: &mut Notes<'_>,
) -> Option<PushDown> {
    // Whom the guard keeps out must be whom the limit counts, or strangers would go with them.
    if *key != [KeyPart::SourceAddress { v4: 32, v6: 64 }] {
        let text = "the guard keeps out an IPv4 address or an IPv6 /64, so the key has to be that alone: \
                    `{type: SourceAddress, prefixLengthV6: 64}`";
        notes.error(field, text);
    }
    let after = spec.after.unwrap_or(PUSH_DOWN_AFTER);
    if after == 0 {
        notes.error(&field.key("after"), "0 would keep out whoever was never refused; the least is 1");
    }
    let within_ns = window_of(spec.within.as_deref().unwrap_or("10s"), &field.key("within"), notes)?;
    let lasts_ns = window_of(spec.lasts.as_deref().unwrap_or("1m"), &field.key("for"), notes)?;
    Some(PushDown { after, within_ns, lasts_ns })
}

pub(super) fn cluster_count(
    spec: &ClusterSpec,
    (quota, field): (Quota, &Field),
    notes: &mut Notes<'_>,
) -> ClusterCount {
    match quota {
        Quota::InFlight { .. } => {
            notes.error(field, "requests in flight are counted by each node for itself");
        }
        Quota::Rate { requests, window_ns, burst } => {
            if shared_rate(requests, window_ns, burst).is_none() {
                notes.error(
                    field,
                    "the burst is too large for this rate to be counted in whole numbers by Redis",
                );
            }
        }
        Quota::Window { .. } => {}
    }
    let mode = match spec.mode {
        ModeSpec::Exact => ClusterMode::Exact,
        ModeSpec::Leased => ClusterMode::Leased,
    };
    let fail = match spec.fail {
        FailSpec::Open => FailMode::Open,
        FailSpec::Closed => FailMode::Closed,
        FailSpec::Share => FailMode::Share,
    };
    ClusterCount { mode, fail }
}
