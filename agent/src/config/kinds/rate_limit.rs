//! `sluice.dev/v1alpha1` RateLimit: how many requests are let through to services, by Gateways and by routes.

mod tiers;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;

use super::super::field::Field;
use super::super::node::{DecodeError, Extra};
use super::super::object::Notes;
use super::name::is_object_name;
use super::{DOCUMENT, GATEWAY_API, ISTIO, Source, decode_spec, duration};
use crate::limit::{Rate, RateError};
use crate::model::{
    DirectResponse, KeyPart, Limit, LimitTarget, LimitedRoute, Missing, ObjectName, Quota, RateLimit,
};
use tiers::{ClusterSpec, PushDownSpec, cluster_count, push_down};

const EXTRAS: &[&[Extra]] = &[DOCUMENT];
/// Limits of one document.
const LIMITS_MAX: usize = 16;
/// Parts of one key.
const KEY_MAX: usize = 8;
/// What an exact window keeps the time of.
const WINDOW_REQUESTS_MAX: u32 = 10_000;
const WINDOW_MAX: Duration = Duration::from_hours(24);
const KEYS_DEFAULT: u32 = 65_536;
const KEYS_MAX: u32 = 4_194_304;
/// What the body of an answer may have.
const BODY_MAX: usize = 64 * 1024;
const BODY_DEFAULT: &str = "Too many requests";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RateLimitSpec {
    target_refs: Vec<TargetSpec>,
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
struct TargetSpec {
    #[serde(default)]
    group: String,
    kind: String,
    name: String,
    section_name: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct LimitSpec {
    name: String,
    #[serde(default)]
    key: Vec<KeySpec>,
    #[serde(default)]
    if_missing: MissingSpec,
    rate: Option<RateSpec>,
    window: Option<WindowSpec>,
    in_flight: Option<u32>,
    #[serde(default)]
    exempt: Vec<String>,
    max_keys: Option<u32>,
    cluster: Option<ClusterSpec>,
    push_down: Option<PushDownSpec>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct KeySpec {
    #[serde(rename = "type")]
    kind: KeyKind,
    name: Option<String>,
    prefix_length_v4: Option<u8>,
    prefix_length_v6: Option<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum KeyKind {
    SourceAddress,
    SourceIdentity,
    Header,
    Cookie,
    Query,
    Path,
    Method,
    Host,
    Route,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
enum MissingSpec {
    #[default]
    SourceAddress,
    Shared,
    Exempt,
    Refuse,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RateSpec {
    requests: u32,
    per: String,
    burst: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct WindowSpec {
    requests: u32,
    per: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct ResponseSpec {
    status: Option<u16>,
    body: Option<String>,
    fields: FieldsSpec,
}

/// Whose answers have the fields that tell of the limit.
#[derive(Debug, Default, Clone, Copy, Deserialize)]
enum FieldsSpec {
    #[default]
    Refused,
    Always,
}

/// Decodes a RateLimit.
pub(super) fn decode(source: &Source<'_>, notes: &mut Notes<'_>) -> Result<RateLimit, DecodeError> {
    let spec: RateLimitSpec = decode_spec(source, EXTRAS, notes)?;
    let targets = targets(&spec.target_refs, source.name, notes);
    let list = Field::spec().key("limits");
    if spec.limits.is_empty() || spec.limits.len() > LIMITS_MAX {
        notes.error(&list, format!("{} limits are not from 1 to {LIMITS_MAX}", spec.limits.len()));
    }
    let mut names = BTreeSet::new();
    let mut limits = Vec::with_capacity(spec.limits.len());
    for (index, limit) in spec.limits.iter().enumerate() {
        let field = list.index(index);
        if !is_object_name(&limit.name) {
            notes.error(&field.key("name"), format!("`{}` is no name in lower case", limit.name));
        } else if !names.insert(&limit.name) {
            notes.error(&field.key("name"), format!("another limit is called `{}` too", limit.name));
        }
        limits.extend(read_limit(limit, &field, notes));
    }
    let shadow = matches!(spec.mode, Mode::Shadow);
    let tells = matches!(spec.response.fields, FieldsSpec::Always);
    let answer = answer(spec.response, notes);
    Ok(RateLimit { name: source.name.clone(), targets, shadow, limits, answer, tells })
}

fn targets(specs: &[TargetSpec], document: &ObjectName, notes: &mut Notes<'_>) -> Vec<LimitTarget> {
    let list = Field::spec().key("targetRefs");
    if specs.is_empty() {
        notes.error(&list, "without a target the limit would be about nothing");
    }
    let mut targets = Vec::with_capacity(specs.len());
    for (index, spec) in specs.iter().enumerate() {
        let field = list.index(index);
        // As policies of the Gateway API, it is about objects of its own namespace.
        let name = ObjectName::new(&document.namespace, &spec.name);
        let section = spec.section_name.as_deref().map(Arc::from);
        let target = match (spec.group.as_str(), spec.kind.as_str()) {
            ("" | "core", "Service") => {
                if section.is_some() {
                    notes.error(&field.key("sectionName"), "a limit holds for all ports of a Service");
                }
                LimitTarget::Service(name)
            }
            (GATEWAY_API, "Gateway") => LimitTarget::Gateway(name, section),
            (GATEWAY_API, "HTTPRoute") => LimitTarget::Route(LimitedRoute::HttpRoute, name, section),
            (ISTIO, "VirtualService") => LimitTarget::Route(LimitedRoute::VirtualService, name, section),
            (group, kind) => {
                let text = format!(
                    "`{group}` `{kind}` is none of Service (core), Gateway and HTTPRoute ({GATEWAY_API}) and \
                     VirtualService ({ISTIO})"
                );
                notes.error(&field, text);
                continue;
            }
        };
        targets.push(target);
    }
    targets
}

fn read_limit(spec: &LimitSpec, field: &Field, notes: &mut Notes<'_>) -> Option<Limit> {
    let key = key(&spec.key, &field.key("key"), notes);
    let missing = match spec.if_missing {
        MissingSpec::SourceAddress => Missing::SourceAddress,
        MissingSpec::Shared => Missing::Shared,
        MissingSpec::Exempt => Missing::Exempt,
        MissingSpec::Refuse => Missing::Refuse,
    };
    let exempt = exempt(&spec.exempt, &field.key("exempt"), notes);
    let max_keys = spec.max_keys.unwrap_or(KEYS_DEFAULT);
    if !(1..=KEYS_MAX).contains(&max_keys) {
        notes.error(&field.key("maxKeys"), format!("{max_keys} is not from 1 to {KEYS_MAX}"));
    }
    let quota = quota(spec, field, notes)?;
    let cluster =
        spec.cluster.as_ref().map(|cluster| cluster_count(cluster, (quota, &field.key("cluster")), notes));
    let push_down =
        spec.push_down.as_ref().and_then(|spec| push_down(spec, (&key, &field.key("pushDown")), notes));
    Some(Limit { name: spec.name.as_str().into(), key, missing, quota, exempt, max_keys, cluster, push_down })
}

fn quota(spec: &LimitSpec, field: &Field, notes: &mut Notes<'_>) -> Option<Quota> {
    match (&spec.rate, &spec.window, spec.in_flight) {
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

fn rate_quota(rate: &RateSpec, field: &Field, notes: &mut Notes<'_>) -> Option<Quota> {
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
fn window_of(text: &str, field: &Field, notes: &mut Notes<'_>) -> Option<u64> {
    let window = duration::gateway(text).filter(|window| !window.is_zero() && *window <= WINDOW_MAX);
    if window.is_none() {
        notes.error(field, format!("`{text}` is no span from 1ms to 24h, such as 1s, 15m or 1h30m"));
    }
    u64::try_from(window?.as_nanos()).ok()
}

fn key(specs: &[KeySpec], field: &Field, notes: &mut Notes<'_>) -> Vec<KeyPart> {
    if specs.len() > KEY_MAX {
        notes.error(field, format!("more than {KEY_MAX} parts"));
    }
    let mut parts = Vec::with_capacity(specs.len());
    for (index, spec) in specs.iter().enumerate() {
        let field = field.index(index);
        let named = matches!(spec.kind, KeyKind::Header | KeyKind::Cookie | KeyKind::Query);
        let name = spec.name.as_deref().filter(|name| !name.is_empty());
        if named != name.is_some() {
            let text = if named { "a name is missing" } else { "this part has no name" };
            notes.error(&field.key("name"), text);
            continue;
        }
        let lengths = (spec.prefix_length_v4, spec.prefix_length_v6);
        if spec.kind != KeyKind::SourceAddress && lengths != (None, None) {
            notes.error(&field, "only a SourceAddress has prefix lengths");
        }
        let name = name.unwrap_or_default();
        parts.push(match spec.kind {
            KeyKind::SourceAddress => {
                let (v4, v6) = (lengths.0.unwrap_or(32), lengths.1.unwrap_or(128));
                if !(1..=32).contains(&v4) || !(1..=128).contains(&v6) {
                    notes.error(&field, format!("/{v4} is not from /1 to /32, or /{v6} not to /128"));
                }
                KeyPart::SourceAddress { v4: v4.min(32), v6: v6.min(128) }
            }
            KeyKind::SourceIdentity => KeyPart::SourceIdentity,
            KeyKind::Header => KeyPart::Header(name.to_ascii_lowercase().into()),
            KeyKind::Cookie => KeyPart::Cookie(name.into()),
            KeyKind::Query => KeyPart::Query(name.into()),
            KeyKind::Path => KeyPart::Path,
            KeyKind::Method => KeyPart::Method,
            KeyKind::Host => KeyPart::Host,
            KeyKind::Route => KeyPart::Route,
        });
    }
    parts
}

fn exempt(texts: &[String], field: &Field, notes: &mut Notes<'_>) -> Vec<IpNet> {
    let mut nets = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        let net = text.parse::<IpNet>().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from));
        match net {
            Ok(net) => nets.push(net.trunc()),
            Err(_) => notes.error(
                &field.index(index),
                format!("`{text}` is neither a network such as 192.0.2.0/24 or 2001:db8::/32 nor an address"),
            ),
        }
    }
    nets
}

fn answer(spec: ResponseSpec, notes: &mut Notes<'_>) -> DirectResponse {
    let field = Field::spec().key("response");
    let status = spec.status.unwrap_or(429);
    if !(400..=599).contains(&status) {
        notes.error(&field.key("status"), format!("{status} is not from 400 to 599"));
    }
    let body = spec.body.unwrap_or_else(|| BODY_DEFAULT.to_owned());
    if body.len() > BODY_MAX {
        notes.error(&field.key("body"), format!("more than {BODY_MAX} bytes"));
    }
    DirectResponse { status, body: body.into_bytes().into() }
}
