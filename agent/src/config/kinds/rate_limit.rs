//! `sluice.dev/v1alpha1` RateLimit: how many requests are let through to services, by Gateways and by routes.

mod cost;
mod exempt;
mod kernel;
mod key;
mod overrides;
mod quota;
mod response;
mod targets;
mod tiers;

use std::collections::BTreeSet;

use serde::Deserialize;

use super::super::field::Field;
use super::super::node::{DecodeError, Extra};
use super::super::object::Notes;
use super::name::is_object_name;
use super::{DOCUMENT, Source, decode_spec};
use crate::model::{Cost, Limit, LimitTarget, RateLimit};
use cost::{CostSpec, cost};
use exempt::{exempt, exempt_principals};
use key::{KeyKind, KeySpec, key};
use overrides::{OverrideSpec, different, overrides};
use quota::{QuotaSpec, RateSpec, WindowSpec, quota, window_of};
use response::ResponseSpec;
use targets::{About, DirectionSpec, SelectorSpec, TargetSpec, reach_gateways, targets};
use tiers::{ClusterSpec, PushDownSpec, cluster_count, push_down};

const EXTRAS: &[&[Extra]] = &[DOCUMENT];
/// Limits of one document.
const LIMITS_MAX: usize = 16;
const KEYS_DEFAULT: u32 = 65_536;
const KEYS_MAX: u32 = 4_194_304;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RateLimitSpec {
    #[serde(default)]
    target_refs: Vec<TargetSpec>,
    selector: Option<SelectorSpec>,
    direction: Option<DirectionSpec>,
    #[serde(default)]
    mode: Mode,
    limits: Vec<LimitSpec>,
    #[serde(default)]
    response: ResponseSpec,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
enum Mode {
    #[default]
    Enforce,
    Shadow,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct LimitSpec {
    name: String,
    #[serde(default)]
    key: Vec<KeySpec>,
    if_missing: Option<MissingSpec>,
    rate: Option<RateSpec>,
    window: Option<WindowSpec>,
    in_flight: Option<u32>,
    #[serde(default)]
    counts: CountsSpec,
    cost: Option<CostSpec>,
    #[serde(default)]
    overrides: Vec<OverrideSpec>,
    #[serde(default)]
    exempt: Vec<String>,
    #[serde(default)]
    exempt_principals: Vec<String>,
    max_keys: Option<u32>,
    cluster: Option<ClusterSpec>,
    push_down: Option<PushDownSpec>,
    kernel: Option<kernel::KernelSpec>,
}

/// What a limit counts.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
enum CountsSpec {
    #[default]
    Requests,
    Connections,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
enum MissingSpec {
    #[default]
    SourceAddress,
    Shared,
    Exempt,
    Refuse,
}

impl LimitSpec {
    /// Whether it is one of requests, which get answers.
    fn asks_requests(&self) -> bool {
        self.kernel.is_none() && self.counts == CountsSpec::Requests
    }
}

pub(super) fn decode(source: &Source<'_>, notes: &mut Notes<'_>) -> Result<RateLimit, DecodeError> {
    let spec: RateLimitSpec = decode_spec(source, EXTRAS, notes)?;
    let about =
        About { refs: &spec.target_refs, selector: spec.selector.as_ref(), direction: spec.direction };
    let targets = targets(&about, source.name, notes);
    let list = Field::spec().key("limits");
    if spec.limits.is_empty() || spec.limits.len() > LIMITS_MAX {
        notes.error(&list, format!("{} limits are not from 1 to {LIMITS_MAX}", spec.limits.len()));
    }
    let mut names = BTreeSet::new();
    let (mut limits, mut connections, mut kernel) =
        (Vec::with_capacity(spec.limits.len()), Vec::new(), Vec::new());
    for (index, limit) in spec.limits.iter().enumerate() {
        let field = list.index(index);
        if !is_object_name(&limit.name) {
            notes.error(&field.key("name"), format!("`{}` is no name in lower case", limit.name));
        } else if !names.insert(&limit.name) {
            notes.error(&field.key("name"), format!("another limit is called `{}` too", limit.name));
        }
        match (&limit.kernel, limit.counts) {
            (Some(asked), _) => kernel.extend(kernel::read(limit, asked, &field, notes)),
            (None, CountsSpec::Requests) => {
                if limit.push_down.is_some() && !reach_gateways(&targets) {
                    let text = "pods are never kept out of their node, nor who is refused by one: it is refused, and no more";
                    notes.error(&field.key("pushDown"), text);
                }
                routed(limit, &targets, &field, notes);
                limits.extend(read_limit(limit, &field, notes));
            }
            (None, CountsSpec::Connections) => {
                countable(limit, &targets, &field, notes);
                connections.extend(read_limit(limit, &field, notes));
            }
        }
    }
    kernel::check(&spec.limits, &targets, notes);
    if !spec.limits.iter().any(LimitSpec::asks_requests) && spec.response.is_set() {
        let text =
            "who is refused a connection or a packet gets no answer: a response needs a limit of requests";
        notes.error(&Field::spec().key("response"), text);
    }
    let shadow = matches!(spec.mode, Mode::Shadow);
    let tells = spec.response.tells();
    let (answer, headers) = spec.response.read(notes);
    let name = source.name.clone();
    Ok(RateLimit { name, targets, shadow, limits, connections, kernel, answer, headers, tells })
}

/// Says what can't be told of a request that enters a pod.
fn routed(spec: &LimitSpec, targets: &[LimitTarget], field: &Field, notes: &mut Notes<'_>) {
    let by_route = spec.key.iter().position(|part| matches!(part.kind, KeyKind::Route));
    if let Some(index) = by_route.filter(|_| targets.iter().any(LimitTarget::enters)) {
        let text =
            "where a request enters a pod nobody knows the route that another node's agent took for it";
        notes.error(&field.key("key").index(index).key("type"), text);
    }
}

/// Says what can't be told of a connection without requests.
fn countable(spec: &LimitSpec, targets: &[LimitTarget], field: &Field, notes: &mut Notes<'_>) {
    if targets.iter().any(|target| !matches!(target, LimitTarget::Service(_)) && !target.enters()) {
        let text = "connections are counted on their way to a Service, or `Inbound` where they enter pods; all targets have to be so";
        notes.error(&field.key("counts"), text);
    }
    for (index, part) in spec.key.iter().enumerate() {
        if !matches!(part.kind, KeyKind::SourceAddress | KeyKind::SourceIdentity) {
            let text = "a connection has only a SourceAddress and a SourceIdentity";
            notes.error(&field.key("key").index(index), text);
        }
    }
    if spec.cost.is_some() {
        notes.error(&field.key("cost"), "each connection is one");
    }
    if spec.push_down.is_some() {
        notes.error(&field.key("pushDown"), "only who is refused requests is kept out");
    }
}

fn read_limit(spec: &LimitSpec, field: &Field, notes: &mut Notes<'_>) -> Option<Limit> {
    let key = key(&spec.key, &field.key("key"), notes);
    let missing = spec.if_missing.unwrap_or_default().read();
    let exempt = exempt(&spec.exempt, &field.key("exempt"), notes);
    let exempt_principals = exempt_principals(&spec.exempt_principals, &field.key("exemptPrincipals"), notes);
    let max_keys = spec.max_keys.unwrap_or(KEYS_DEFAULT);
    if !(1..=KEYS_MAX).contains(&max_keys) {
        notes.error(&field.key("maxKeys"), format!("{max_keys} is not from 1 to {KEYS_MAX}"));
    }
    let quota = quota(QuotaSpec::of(spec), field, notes)?;
    let cost =
        spec.cost.as_ref().map_or_else(Cost::default, |spec| cost(spec, (quota, &field.key("cost")), notes));
    let held = (&key[..], quota, cost.units, spec.cluster.is_some());
    let overrides = overrides(&spec.overrides, held, &field.key("overrides"), notes);
    let numbers = 1 + u64::try_from(different(&overrides)).unwrap_or(u64::MAX);
    if numbers > 1 && u64::from(max_keys) * numbers > KEYS_MAX.into() {
        let text =
            format!("{max_keys} keys for each of {numbers} different numbers are more than {KEYS_MAX}");
        notes.error(&field.key("maxKeys"), text);
    }
    let cluster =
        spec.cluster.as_ref().map(|cluster| cluster_count(cluster, (quota, &field.key("cluster")), notes));
    let push_down =
        spec.push_down.as_ref().and_then(|spec| push_down(spec, (&key, &field.key("pushDown")), notes));
    let name = spec.name.as_str().into();
    Some(Limit {
        name,
        key,
        missing,
        quota,
        cost,
        overrides,
        exempt,
        exempt_principals,
        max_keys,
        cluster,
        push_down,
    })
}
