//! Limits that the kernel holds to: what it can count, and what it can't.

use agent_common::limit::LIMITS_PER_END;
use serde::Deserialize;

use super::super::super::field::Field;
use super::super::super::object::Notes;
use super::quota::rate_quota;
use super::{CountsSpec, KeyKind, LimitSpec, MissingSpec, exempt, key};
use crate::model::{KernelCount, KernelKey, KernelLimit, KeyPart, LimitTarget, Quota};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct KernelSpec {
    count: CountSpec,
}

#[derive(Debug, Clone, Copy, Deserialize)]
enum CountSpec {
    Connections,
    Packets,
}

/// What a document asks of the kernel as a whole.
pub(super) fn check(limits: &[LimitSpec], targets: &[LimitTarget], notes: &mut Notes<'_>) {
    let list = Field::spec().key("limits");
    let ours = limits.iter().enumerate().filter(|(_, limit)| limit.kernel.is_some());
    let count = ours.clone().count();
    let Some((first, _)) = ours.clone().next() else { return };
    let field = list.index(first).key("kernel");
    if count > LIMITS_PER_END {
        notes.error(
            &list,
            format!("{count} limits are the kernel's, which holds to {LIMITS_PER_END} at most"),
        );
    }
    if targets.iter().any(|target| matches!(target, LimitTarget::Route(..))) {
        notes.error(
            &field,
            "which route takes a request is not known before it is read, which the kernel does not",
        );
    }
    if targets.iter().any(LimitTarget::is_of_pods) {
        notes.error(
            &field,
            "what pods send or get is counted where it is read: the kernel counts at Services and Gateways",
        );
    }
    if targets.iter().any(|target| matches!(target, LimitTarget::Gateway(..))) {
        for (index, limit) in ours {
            let parts = limit.key.iter().enumerate();
            for (part, _) in parts.filter(|(_, part)| matches!(part.kind, KeyKind::SourceIdentity)) {
                notes.error(
                    &list.index(index).key("key").index(part).key("type"),
                    "who sends is not known where it comes in from outside: at a Gateway the kernel counts by SourceAddress, \
                     or all together",
                );
            }
        }
    }
}

/// A limit of the kernel.
pub(super) fn read(
    spec: &LimitSpec,
    kernel: &KernelSpec,
    field: &Field,
    notes: &mut Notes<'_>,
) -> Option<KernelLimit> {
    for (given, name, text) in [
        (spec.window.is_some(), "window", "the kernel keeps no times of what it lets through: only a `rate`"),
        (
            spec.in_flight.is_some(),
            "inFlight",
            "the kernel does not know when what it let through is over: only a `rate`",
        ),
        (spec.counts != CountsSpec::Requests, "counts", "`kernel.count` says what the kernel counts"),
        (spec.cost.is_some(), "cost", "each connection or packet is one"),
        (!spec.overrides.is_empty(), "overrides", "the kernel has the same numbers for all keys of a limit"),
        (
            !spec.exempt_principals.is_empty(),
            "exemptPrincipals",
            "the kernel tells sources by their addresses, which prove nothing: only `exempt`",
        ),
        (spec.cluster.is_some(), "cluster", "the kernel of each node counts for itself"),
        (spec.push_down.is_some(), "pushDown", "what it refuses is refused in the kernel already"),
        (
            spec.max_keys.is_some(),
            "maxKeys",
            "all limits of the kernel keep their keys together, as many as the agent is started with (--limit-sources)",
        ),
    ] {
        if given {
            notes.error(&field.key(name), text);
        }
    }
    let kept = kernel_key(spec, field, notes);
    let exempt = exempt(&spec.exempt, &field.key("exempt"), notes);
    let Some(rate) = &spec.rate else {
        notes.error(&field.key("rate"), "a limit of the kernel needs it");
        return None;
    };
    let field = field.key("rate");
    let Quota::Rate { requests, window_ns, burst } = rate_quota(rate, &field, notes)? else { return None };
    let limit = KernelLimit {
        name: spec.name.as_str().into(),
        count: match kernel.count {
            CountSpec::Connections => KernelCount::Connections,
            CountSpec::Packets => KernelCount::Packets,
        },
        key: kept?,
        missing: spec.if_missing.unwrap_or_default().read(),
        amount: requests,
        window_ns,
        burst,
        exempt,
    };
    if limit.intervals().is_none() {
        let text = "the kernel counts up to 10000000 in a second, and a burst that comes back within a year";
        notes.error(&field, text);
    }
    Some(limit)
}

fn kernel_key(spec: &LimitSpec, field: &Field, notes: &mut Notes<'_>) -> Option<KernelKey> {
    let list = field.key("key");
    for (index, part) in spec.key.iter().enumerate() {
        if !matches!(part.kind, KeyKind::SourceAddress | KeyKind::SourceIdentity) {
            let text = format!("{:?} is part of a request, which the kernel does not read", part.kind);
            notes.error(&list.index(index).key("type"), text);
            return None;
        }
    }
    if spec.key.len() > 1 {
        notes.error(&list.index(1), "a limit of the kernel has one part at most");
    }
    let kept = match key(&spec.key, &list, notes).first() {
        None => KernelKey::Together,
        Some(KeyPart::SourceAddress { v4, v6 }) => KernelKey::SourceAddress { v4: *v4, v6: *v6 },
        Some(_) => KernelKey::SourceIdentity,
    };
    if spec.if_missing.is_some() && kept != KernelKey::SourceIdentity {
        notes.error(&field.key("ifMissing"), "every packet has what this limit is counted by");
    }
    Some(kept)
}

impl MissingSpec {
    pub(super) fn read(self) -> crate::model::Missing {
        use crate::model::Missing;
        match self {
            Self::SourceAddress => Missing::SourceAddress,
            Self::Shared => Missing::Shared,
            Self::Exempt => Missing::Exempt,
            Self::Refuse => Missing::Refuse,
        }
    }
}
