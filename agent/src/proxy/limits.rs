//! Rate limits on the way of a request: which hold for it, what it is counted by, and what it gets where it is refused.

use std::hash::Hasher;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::http::caller::Caller;
use super::http::plan::{Plan, Planned};
use crate::compile::{InFlight, LimitCounter, LimitPolicy, RoutingTable, limit_time};
use crate::http::FieldSink;
use crate::http::h1::RequestHead;
use crate::limit::Verdict;
use crate::model::{HostPattern, KeyPart, Missing, ObjectName, Quota, Workload};
use crate::route::{RequestView, query_parameter};
use crate::telemetry::Origin;

/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;

/// A refusal: the limit that holds longest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limited<'t> {
    /// The document.
    pub policy: &'t LimitPolicy,
    /// The limit.
    limit: &'t LimitCounter,
    /// Nanoseconds until the same would be let through; 0: when one in flight ends.
    wait: u64,
}

/// What requests in flight hold of limits.
pub(super) type Held = Vec<InFlight>;

impl Limited<'_> {
    /// The fields that tell of the limit: `Retry-After` (RFC 9110 section 10.2.3), `RateLimit` and `RateLimit-Policy`
    /// (draft-ietf-httpapi-ratelimit-headers-10).
    pub fn write_fields(&self, out: &mut impl FieldSink) {
        let seconds = self.wait.div_ceil(SECOND).max(1);
        out.field(b"retry-after", seconds.to_string().as_bytes());
        let name = &self.limit.limit.name;
        let (policy, state) = match self.limit.limit.quota {
            Quota::Rate { requests, window_ns, .. } | Quota::Window { requests, window_ns } => {
                let window = window_ns.div_ceil(SECOND);
                (format!("\"{name}\";q={requests};w={window}"), format!("\"{name}\";r=0;t={seconds}"))
            }
            Quota::InFlight { requests } => {
                (format!("\"{name}\";q={requests};qu=\"concurrent-requests\""), format!("\"{name}\";r=0"))
            }
        };
        out.field(b"ratelimit-policy", policy.as_bytes());
        out.field(b"ratelimit", state.as_bytes());
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        &self.policy.answer.body
    }
}

/// A request as limits ask about it.
struct Asking<'a> {
    head: &'a RequestHead,
    client: IpAddr,
    source: Option<&'a Workload>,
    route: Option<(&'a ObjectName, &'a str)>,
    now: u64,
}

impl Caller<'_> {
    /// Holds a request to the limits that are about it. `kept`: what it then holds until it is over.
    pub(super) fn limit<'t>(
        &self,
        planned: Planned<'t>,
        (table, head): (&'t RoutingTable, &RequestHead),
        (source, now): (Option<&Arc<Workload>>, tokio::time::Instant),
        kept: &mut Held,
    ) -> Planned<'t> {
        if table.limits.is_empty() || matches!(planned.plan, Plan::Fail(_)) {
            return planned;
        }
        let asking = Asking {
            head,
            client: self.peer.ip().to_canonical(),
            source: source.map(|source| &**source),
            route: planned.route.map(|matched| (&matched.route.name.source, &*matched.route.name.rule)),
            now: limit_time(now.into_std()),
        };
        let policies = self.policies(table, &planned, head);
        let (shadows, enforced): (Vec<_>, Vec<_>) = policies.into_iter().partition(|policy| policy.shadow);
        for policy in shadows {
            // What it would hold is held too, so that it counts what it would count.
            let _ = admit(&[policy], &asking, kept);
        }
        match admit(&enforced, &asking, kept) {
            Ok(()) => planned,
            Err(limited) => planned.limited(limited),
        }
    }

    fn policies<'t>(
        &self,
        table: &'t RoutingTable,
        planned: &Planned<'t>,
        head: &RequestHead,
    ) -> Vec<&'t LimitPolicy> {
        let mut found: Vec<&'t LimitPolicy> = Vec::new();
        let limits = &table.limits;
        if let Origin::Gateway(name) = self.origin
            && limits.ask_for_listeners()
            && let Some(listener) = super::http::plan::gateway(table, name, self.original_destination)
        {
            let owner = listener.owner(&HostPattern::Exact(head.host().into()));
            found.extend(limits.of_listener(owner).map(|policy| &**policy));
        }
        if let Some(matched) = planned.route {
            let name = &matched.route.name;
            found.extend(limits.of_route(name.kind, &name.source, &name.rule).map(|policy| &**policy));
        }
        let service = match planned.plan {
            Plan::Forward { cluster } => Some(&cluster.key.service),
            Plan::Original { .. } => {
                table.frontends.get(&self.original_destination).map(|frontend| &frontend.service)
            }
            _ => None,
        };
        found.extend(
            service.into_iter().flat_map(|service| limits.of_service(service)).map(|policy| &**policy),
        );
        // A document that is about it in two ways counts it once.
        let mut seen = 0;
        while seen < found.len() {
            let policy = found[seen];
            seen += 1;
            let mut position = 0;
            found.retain(|other| {
                position += 1;
                position <= seen || !std::ptr::eq(*other, policy)
            });
        }
        found
    }
}

/// Takes from all limits, or from none: what was taken before one refused is given back.
fn admit<'t>(policies: &[&'t LimitPolicy], asking: &Asking<'_>, held: &mut Held) -> Result<(), Limited<'t>> {
    let before = held.len();
    let mut taken: Vec<(&LimitCounter, u64)> = Vec::new();
    let mut limits = policies.iter().flat_map(|policy| policy.limits.iter().map(|limit| (*policy, &**limit)));
    let mut refused: Option<Limited<'t>> = None;
    for (policy, limit) in limits.by_ref() {
        let wait = match asking.key(limit) {
            Key::Exempt => continue,
            Key::Of(key) => match limit.take(key, asking.now) {
                (Verdict::Admitted { .. }, in_flight) => {
                    held.extend(in_flight);
                    taken.push((limit, key));
                    continue;
                }
                (Verdict::Refused { wait }, _) => wait,
            },
            Key::Refused => SECOND,
        };
        limit.count(false);
        refused = Some(Limited { policy, limit, wait });
        break;
    }
    let Some(mut refused) = refused else {
        for (limit, _) in taken {
            limit.count(true);
        }
        return Ok(());
    };
    held.truncate(before);
    for (limit, key) in taken {
        limit.give_back(key, asking.now);
    }
    // The one that holds longest is told.
    for (policy, limit) in limits {
        if let Key::Of(key) = asking.key(limit)
            && let Verdict::Refused { wait } = limit.peek(key, asking.now)
            && wait > refused.wait
        {
            refused = Limited { policy, limit, wait };
        }
    }
    Err(refused)
}

/// What a request is counted by.
enum Key {
    /// The limit does not hold for it.
    Exempt,
    /// It lacks a value without which it is refused.
    Refused,
    /// This hash.
    Of(u64),
}

/// What begins a key, so that keys of one kind are never those of another.
#[derive(Clone, Copy)]
enum Beginning {
    Whole = 0,
    Missing = 1,
    Shared = 2,
}

impl Asking<'_> {
    fn key(&self, limit: &LimitCounter) -> Key {
        let rule = &limit.limit;
        if rule.exempt.iter().any(|net| net.contains(&self.client)) {
            return Key::Exempt;
        }
        let mut hasher = limit.hasher();
        hasher.write_u8(Beginning::Whole as u8);
        if rule.key.iter().all(|part| self.write(part, &mut hasher)) {
            return Key::Of(hasher.finish());
        }
        let mut hasher = limit.hasher();
        match rule.missing {
            Missing::Exempt => return Key::Exempt,
            Missing::Refuse => return Key::Refused,
            Missing::Shared => hasher.write_u8(Beginning::Shared as u8),
            Missing::SourceAddress => {
                hasher.write_u8(Beginning::Missing as u8);
                write_address(self.client, (32, 64), &mut hasher);
            }
        }
        Key::Of(hasher.finish())
    }

    /// Writes a part of a key; false where the request has no such value.
    fn write(&self, part: &KeyPart, hasher: &mut impl Hasher) -> bool {
        let mut text = |value: &[u8]| {
            hasher.write_usize(value.len());
            hasher.write(value);
        };
        match part {
            KeyPart::SourceAddress { v4, v6 } => write_address(self.client, (*v4, *v6), hasher),
            KeyPart::SourceIdentity => {
                let Some(source) = self.source else { return false };
                text(source.name.namespace.as_bytes());
                text(source.service_account.as_bytes());
            }
            KeyPart::Header(name) => return self.write_header(name, hasher),
            KeyPart::Cookie(name) => {
                let fields =
                    self.head.fields().iter().filter(|field| field.name.eq_ignore_ascii_case(b"cookie"));
                let Some(value) = fields.flat_map(|field| cookies(field.value, name.as_bytes())).next()
                else {
                    return false;
                };
                text(value);
            }
            KeyPart::Query(name) => {
                let Some(value) = self.head.query().and_then(|query| query_parameter(query, name)) else {
                    return false;
                };
                text(&value);
            }
            KeyPart::Path => text(self.head.path().as_bytes()),
            KeyPart::Method => text(self.head.method().as_bytes()),
            KeyPart::Host => text(self.head.host().as_bytes()),
            KeyPart::Route => {
                let Some((source, rule)) = self.route else { return false };
                text(source.namespace.as_bytes());
                text(source.name.as_bytes());
                text(rule.as_bytes());
            }
        }
        true
    }

    /// All values count, so that nobody gets a key of its own by putting another value beside the one that the server heeds.
    fn write_header(&self, name: &str, hasher: &mut impl Hasher) -> bool {
        let mut found = false;
        for field in
            self.head.fields().iter().filter(|field| field.name.eq_ignore_ascii_case(name.as_bytes()))
        {
            found = true;
            hasher.write_usize(field.value.len());
            hasher.write(field.value);
        }
        found
    }
}

/// Writes the network of an address.
fn write_address(address: IpAddr, (v4, v6): (u8, u8), hasher: &mut impl Hasher) {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(v4)).unwrap_or(0);
            hasher.write(&Ipv4Addr::from_bits(address.to_bits() & mask).octets());
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(v6)).unwrap_or(0);
            hasher.write(&Ipv6Addr::from_bits(address.to_bits() & mask).octets());
        }
    }
}

/// The values of a cookie in a field (RFC 6265 section 4.2.1).
fn cookies<'a>(field: &'a [u8], name: &[u8]) -> impl Iterator<Item = &'a [u8]> {
    field.split(|byte| *byte == b';').filter_map(move |pair| {
        let pair = pair.trim_ascii();
        let at = pair.iter().position(|byte| *byte == b'=')?;
        (pair[..at] == *name).then(|| &pair[at + 1..])
    })
}
