//! Rate limits on the way of a request: which hold for it, what it is counted by, and what it gets where it is refused.

mod client;
mod key;
mod question;

use std::net::IpAddr;
use std::sync::Arc;

use super::http::caller::Caller;
use super::http::plan::{Plan, Planned};
use crate::compile::{InFlight, LimitCounter, LimitPolicy, RoutingTable, limit_time};
use crate::http::FieldSink;
use crate::http::h1::RequestHead;
use crate::limit::Verdict;
use crate::model::{HostPattern, ObjectName, Quota, Workload};
use crate::route::RequestView;
use crate::telemetry::Origin;
use key::Key;
pub(super) use question::Limiting;
use question::{Group, SharedAsk};

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

/// What is left of a limit for a client that is let through.
#[derive(Debug, Clone, Copy)]
pub(super) struct Left<'t> {
    limit: &'t LimitCounter,
    /// So many requests would be let through at once.
    remaining: u64,
}

impl<'t> Left<'t> {
    /// Of two limits, the one that leaves less.
    fn least(of: Option<Self>, other: Self) -> Self {
        of.filter(|of| of.remaining <= other.remaining).unwrap_or(other)
    }

    /// What a document's limit tells those that it lets through.
    fn told(policy: &LimitPolicy, limit: &'t LimitCounter, remaining: u64) -> Option<Self> {
        policy.tells.then_some(Self { limit, remaining })
    }

    /// `RateLimit-Policy` and `RateLimit`, without a time: nothing has to be waited for.
    pub fn write_fields(&self, out: &mut impl FieldSink) {
        let state = format!("\"{}\";r={}", self.limit.limit.name, self.remaining);
        out.field(b"ratelimit-policy", policy_field(self.limit).as_bytes());
        out.field(b"ratelimit", state.as_bytes());
    }
}

/// What a limit is, as `RateLimit-Policy` has it.
fn policy_field(limit: &LimitCounter) -> String {
    let name = &limit.limit.name;
    match limit.limit.quota {
        Quota::Rate { requests, window_ns, .. } | Quota::Window { requests, window_ns } => {
            format!("\"{name}\";q={requests};w={}", window_ns.div_ceil(SECOND))
        }
        Quota::InFlight { requests } => format!("\"{name}\";q={requests};qu=\"concurrent-requests\""),
    }
}

/// What requests in flight hold of limits.
pub(super) type Held = Vec<InFlight>;

impl Limited<'_> {
    /// The fields that tell of the limit: `Retry-After` (RFC 9110 section 10.2.3), `RateLimit` and `RateLimit-Policy`
    /// (draft-ietf-httpapi-ratelimit-headers-10).
    pub fn write_fields(&self, out: &mut impl FieldSink) {
        let seconds = self.wait.div_ceil(SECOND).max(1);
        out.field(b"retry-after", seconds.to_string().as_bytes());
        let time = match self.limit.limit.quota {
            Quota::Rate { .. } | Quota::Window { .. } => format!(";t={seconds}"),
            Quota::InFlight { .. } => String::new(),
        };
        let state = format!("\"{}\";r=0{time}", self.limit.limit.name);
        out.field(b"ratelimit-policy", policy_field(self.limit).as_bytes());
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
    ) -> Limiting<'t> {
        if table.limits.is_empty() || matches!(planned.plan, Plan::Fail(_)) {
            return Limiting::Known(planned);
        }
        let asking = Asking {
            head,
            client: client::forwarded(head, self.settings.trusted_hops)
                .unwrap_or_else(|| self.peer.ip().to_canonical()),
            source: source.map(|source| &**source),
            route: planned.route.map(|matched| (&matched.route.name.source, &*matched.route.name.rule)),
            now: limit_time(now.into_std()),
        };
        let policies = self.policies(table, &planned, head);
        let (shadows, enforced): (Vec<_>, Vec<_>) = policies.into_iter().partition(|policy| policy.shadow);
        // What shadows would hold is held too, so that they count what they would count.
        let shadows =
            shadows.into_iter().filter_map(|policy| admit(&[policy], &asking).ok()).collect::<Vec<_>>();
        match admit(&enforced, &asking) {
            Ok(enforced) => {
                Limiting::of(planned, (shadows, enforced), (&self.ctx.counters, asking.now), kept)
            }
            Err(limited) => {
                // They go on by themselves where the request does not.
                Limiting::of(
                    planned.limited(limited),
                    (shadows, Group::default()),
                    (&self.ctx.counters, asking.now),
                    kept,
                )
            }
        }
    }

    /// A request was refused by a limit. Clients of Gateways that go on may be kept out by the guard; pods never are: the guard
    /// stands where strangers come in. Nor are proxies that are trusted: packets of all their clients come from them.
    pub(super) fn refused_by(&self, limited: &Limited<'_>, now: tokio::time::Instant) {
        let is_stranger = matches!(self.origin, Origin::Gateway(_)) && self.settings.trusted_hops == 0;
        if limited.limit.limit.push_down.is_some() && is_stranger {
            let refusals = self.ctx.http.admission().refusals();
            refusals.limited(limited.limit, self.peer.ip(), now.into_std());
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

/// Takes from all limits of this node, or from none: what was taken before one refused is given back. Those of the cluster are asked
/// after them.
fn admit<'t>(policies: &[&'t LimitPolicy], asking: &Asking<'_>) -> Result<Group<'t>, Limited<'t>> {
    let mut group = Group::default();
    let mut limits = policies.iter().flat_map(|policy| policy.limits.iter().map(|limit| (*policy, &**limit)));
    let mut refused: Option<Limited<'t>> = None;
    for (policy, limit) in limits.by_ref() {
        let wait = match limit.shared() {
            Some(shared) => match asking.shared_key(limit, shared) {
                Key::Exempt => continue,
                Key::Of(key) => {
                    group.asks.push(SharedAsk { policy, limit, shared, key });
                    continue;
                }
                Key::Refused => SECOND,
            },
            None => match asking.key(limit) {
                Key::Exempt => continue,
                Key::Of(key) => match limit.take(key, asking.now) {
                    (Verdict::Admitted { remaining }, in_flight) => {
                        group.held.extend(in_flight);
                        group.tell(Left::told(policy, limit, remaining));
                        group.taken.push((limit, key));
                        continue;
                    }
                    (Verdict::Refused { wait }, _) => wait,
                },
                Key::Refused => SECOND,
            },
        };
        limit.count(false);
        refused = Some(Limited { policy, limit, wait });
        break;
    }
    let Some(mut refused) = refused else { return Ok(group) };
    group.give_back(asking.now);
    // The one that holds longest is told.
    for (policy, limit) in limits.filter(|(_, limit)| limit.shared().is_none()) {
        if let Key::Of(key) = asking.key(limit)
            && let Verdict::Refused { wait } = limit.peek(key, asking.now)
            && wait > refused.wait
        {
            refused = Limited { policy, limit, wait };
        }
    }
    Err(refused)
}
