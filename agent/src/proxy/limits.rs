//! Rate limits on the way of a request: which hold for it, what it is counted by, and what it gets where it is refused.

mod client;
mod connection;
mod entering;
mod key;
mod label;
mod question;

use std::net::IpAddr;
use std::sync::Arc;

use smallvec::SmallVec;

use super::access::Client;
use super::answer::Problem;
use super::http::caller::Caller;
use super::http::plan::{Plan, Planned};
use crate::compile::{InFlight, LimitCounter, LimitPolicy, RoutingTable, limit_time};
use crate::http::FieldSink;
use crate::http::h1::RequestHead;
use crate::limit::{NEVER, Verdict};
use crate::model::{HostPattern, ObjectName, Quota, Workload};
use crate::route::RequestView;
use crate::telemetry::{LimitedBy, Origin};
pub(super) use connection::{RATE_LIMITED, RefusedBy, admit_connection};
pub(super) use entering::{Entering, enter_connection};
use key::Key;
pub(super) use question::Limiting;
use question::{Group, SharedAsk, Taken};

/// The field that is the body's, and no client's of gRPC.
const CONTENT_TYPE: &str = "content-type";
/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;

/// A refusal: the limit that holds longest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limited<'t> {
    /// The document.
    pub policy: &'t LimitPolicy,
    /// The limit.
    limit: &'t LimitCounter,
    /// What the request's key is held to.
    quota: Quota,
    /// Nanoseconds until the same would be let through; 0: when one in flight ends; [`NEVER`]: never.
    wait: u64,
}

/// What is left of a limit for a client that is let through.
#[derive(Debug, Clone, Copy)]
pub(super) struct Left<'t> {
    limit: &'t LimitCounter,
    quota: Quota,
    /// So many units would be let through at once.
    remaining: u64,
}

impl<'t> Left<'t> {
    /// Of two limits, the one that leaves less.
    pub(super) fn least(of: Option<Self>, other: Self) -> Self {
        of.filter(|of| of.remaining <= other.remaining).unwrap_or(other)
    }

    /// What a document's limit tells those that it lets through.
    fn told(policy: &LimitPolicy, (limit, quota): (&'t LimitCounter, Quota), remaining: u64) -> Option<Self> {
        policy.tells.then_some(Self { limit, quota, remaining })
    }

    /// `RateLimit-Policy` and `RateLimit`, without a time: nothing has to be waited for.
    pub fn write_fields(&self, out: &mut impl FieldSink) {
        let state = format!("\"{}\";r={}", self.limit.limit.name, self.remaining);
        out.field(b"ratelimit-policy", policy_field(self.limit, self.quota).as_bytes());
        out.field(b"ratelimit", state.as_bytes());
    }
}

/// What a limit is, as `RateLimit-Policy` has it.
fn policy_field(limit: &LimitCounter, quota: Quota) -> String {
    let name = &limit.limit.name;
    match quota {
        Quota::Rate { requests, window_ns, .. } | Quota::Window { requests, window_ns } => {
            format!("\"{name}\";q={requests};w={}", window_ns.div_ceil(SECOND))
        }
        Quota::InFlight { requests } => format!("\"{name}\";q={requests};qu=\"concurrent-requests\""),
    }
}

/// What requests in flight hold of limits.
pub(super) type Held = SmallVec<[InFlight; 1]>;

impl<'t> Limited<'t> {
    /// What refuses, by its names.
    pub fn by(&self) -> LimitedBy<'t> {
        LimitedBy { policy: &self.policy.name, limit: &self.limit.limit.name }
    }

    /// The fields that tell of the limit, and those that its document adds but for the [body's type](Self::content_type).
    pub fn write_fields(&self, out: &mut impl FieldSink) {
        self.write_state(out);
        for header in self.policy.headers.iter().filter(|header| &*header.name != CONTENT_TYPE) {
            out.field(header.name.as_bytes(), header.value.as_bytes());
        }
    }

    /// `Retry-After` (RFC 9110 section 10.2.3), `RateLimit` and `RateLimit-Policy`
    /// (draft-ietf-httpapi-ratelimit-headers-10).
    fn write_state(&self, out: &mut impl FieldSink) {
        out.field(b"ratelimit-policy", policy_field(self.limit, self.quota).as_bytes());
        if self.wait == NEVER {
            return;
        }
        let seconds = self.wait.div_ceil(SECOND).max(1);
        out.field(b"retry-after", seconds.to_string().as_bytes());
        let time = match self.quota {
            Quota::Rate { .. } | Quota::Window { .. } => format!(";t={seconds}"),
            Quota::InFlight { .. } => String::new(),
        };
        let state = format!("\"{}\";r=0{time}", self.limit.limit.name);
        out.field(b"ratelimit", state.as_bytes());
    }

    /// What is wrong with the request.
    pub fn problem(&self) -> Problem {
        if self.wait == NEVER { Problem::RateLimitCost } else { Problem::RateLimited }
    }

    /// What the document says that the body is.
    pub fn content_type(&self) -> Option<&[u8]> {
        let own = self.policy.headers.iter().find(|header| &*header.name == CONTENT_TYPE);
        own.map(|header| header.value.as_bytes())
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        &self.policy.answer.body
    }
}

/// A request, or a connection without one, as limits ask about it.
struct Asking<'a> {
    head: Option<&'a RequestHead>,
    client: IpAddr,
    source: Option<&'a Workload>,
    /// Who can be proven to be somebody, by this table. Looked up where a limit asks.
    proof: (&'a RoutingTable, Client<'a>),
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
        let source = source.map(|source| &**source);
        let policies = self.policies((table, source), &planned, head);
        if policies.is_empty() {
            return Limiting::Known(planned);
        }
        let asking = Asking {
            head: Some(head),
            client: client::forwarded(head, self.settings.trusted_hops)
                .unwrap_or_else(|| self.peer.ip().to_canonical()),
            source,
            proof: (table, self.client()),
            route: planned.route.map(|matched| (&matched.route.name.source, &*matched.route.name.rule)),
            now: limit_time(now.into_std()),
        };
        let shadows = shadows(&policies, &asking, |policy| &policy.limits);
        let mut enforced = Group::default();
        let planned = match enforced.admit(enforcing(&policies), &asking, |policy| &policy.limits) {
            Ok(()) => planned,
            // Shadows go on by themselves where the request does not.
            Err(limited) => planned.limited(limited),
        };
        Limiting::of(planned, (shadows, &mut enforced), (&self.ctx.counters, asking.now), kept)
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
        (table, source): (&'t RoutingTable, Option<&Workload>),
        planned: &Planned<'t>,
        head: &RequestHead,
    ) -> Policies<'t> {
        let mut found = Policies::new();
        // A document that is about it in two ways counts it once.
        let mut add = |policy: &'t Arc<LimitPolicy>| {
            if !found.iter().any(|other| std::ptr::eq(*other, &raw const **policy)) {
                found.push(policy);
            }
        };
        let limits = &table.limits;
        if let Origin::Gateway(name) = self.origin
            && limits.ask_for_listeners()
            && let Some(listener) = super::http::plan::gateway(table, name, self.original_destination)
        {
            let owner = listener.owner(&HostPattern::Exact(head.host().into()));
            limits.of_listener(owner).for_each(&mut add);
        }
        // Only where it leaves its pod, or two agents would count it.
        if limits.ask_for_senders() && matches!(self.origin, Origin::Outbound) {
            limits.of_sender(source, &table.realm.node).for_each(&mut add);
        }
        // Other endpoints are not chosen yet.
        if limits.ask_for_receivers()
            && self.origin.is_inbound()
            && let Some(pod) = table.receiver(self.original_destination.ip())
        {
            limits.of_receiver(pod, &table.realm.node).for_each(&mut add);
        }
        if let Some(matched) = planned.route {
            limits.of_rule(matched.route).iter().for_each(&mut add);
        }
        let of_service = match planned.plan {
            Plan::Forward { cluster } => limits.of_cluster(cluster),
            Plan::Original { .. } => {
                let frontend = table.frontends.get(&self.original_destination);
                frontend.map_or(&[][..], |frontend| limits.of_service(&frontend.service))
            }
            _ => &[],
        };
        of_service.iter().for_each(add);
        found
    }
}

/// The documents that hold for a request, in their order. Few have more than these.
type Policies<'t> = SmallVec<[&'t LimitPolicy; 4]>;

/// What those say that only count, each by itself. What they would hold is held, so that they count what they would count.
fn shadows<'t>(
    policies: &[&'t LimitPolicy],
    asking: &Asking<'_>,
    counting: impl Fn(&'t LimitPolicy) -> &'t [Arc<LimitCounter>],
) -> Vec<Group<'t>> {
    let mut groups = Vec::new();
    for policy in policies.iter().filter(|policy| policy.shadow) {
        let mut group = Group::default();
        if group.admit(std::iter::once(*policy), asking, &counting).is_ok() {
            groups.push(group);
        }
    }
    groups
}

/// The others.
fn enforcing<'t>(policies: &[&'t LimitPolicy]) -> impl Iterator<Item = &'t LimitPolicy> + Clone {
    policies.iter().copied().filter(|policy| !policy.shadow)
}

impl<'t> Group<'t> {
    /// Takes from all limits of this node, or from none: what was taken before one refused is given back, and the group is empty. Those
    /// of the cluster are asked after them. `counting`: those limits of a document that count what is asked about.
    fn admit(
        &mut self,
        policies: impl Iterator<Item = &'t LimitPolicy> + Clone,
        asking: &Asking<'_>,
        counting: impl Fn(&'t LimitPolicy) -> &'t [Arc<LimitCounter>],
    ) -> Result<(), Limited<'t>> {
        for policy in policies.clone() {
            for limit in counting(policy) {
                if let Some(refused) = self.take(policy, limit, asking) {
                    std::mem::take(self).give_back(asking.now);
                    let limits = policies
                        .flat_map(|policy| counting(policy).iter().map(move |limit| (policy, &**limit)));
                    return Err(limits.fold(refused, |refused, other| refused.or_longer(other, asking)));
                }
            }
        }
        Ok(())
    }

    /// Takes from a limit; `Some`: it refuses.
    fn take(
        &mut self,
        policy: &'t LimitPolicy,
        limit: &'t LimitCounter,
        asking: &Asking<'_>,
    ) -> Option<Limited<'t>> {
        let numbers = asking.numbers(limit);
        let (cost, quota) = (asking.cost(limit, numbers), numbers.quota);
        let refused = |wait, sample| {
            limit.count(false, sample, asking.now);
            Some(Limited { policy, limit, quota, wait })
        };
        if let Some(shared) = numbers.shared() {
            return match asking.shared_key(limit, shared) {
                Key::Exempt => None,
                Key::Of(key) => {
                    let sample = asking.sample(limit, key.local());
                    self.asks.push(SharedAsk { policy, limit, quota, shared, key, cost, sample });
                    None
                }
                Key::Refused => refused(SECOND, None),
            };
        }
        match asking.key(limit) {
            Key::Exempt => None,
            Key::Of(key) => match numbers.take(key, asking.now, cost) {
                (Verdict::Admitted { remaining }, in_flight) => {
                    if let Some(in_flight) = in_flight {
                        self.held.push(in_flight);
                    }
                    if policy.tells {
                        self.tell(Left::told(policy, (limit, quota), remaining));
                    }
                    let sample = asking.sample(limit, key);
                    self.taken.push(Taken { limit, numbers, key, cost, sample });
                    None
                }
                (Verdict::Refused { wait }, _) => refused(wait, asking.sample(limit, key)),
            },
            Key::Refused => refused(SECOND, None),
        }
    }
}

impl<'t> Limited<'t> {
    /// What refuses, or another limit of this node that refuses for longer: that is the one to tell.
    fn or_longer(self, (policy, limit): (&'t LimitPolicy, &'t LimitCounter), asking: &Asking<'_>) -> Self {
        let numbers = asking.numbers(limit);
        if limit.is_shared() {
            return self;
        }
        let Key::Of(key) = asking.key(limit) else { return self };
        match numbers.peek(key, asking.now, asking.cost(limit, numbers)) {
            Verdict::Refused { wait } if wait > self.wait => {
                Self { policy, limit, quota: numbers.quota, wait }
            }
            _ => self,
        }
    }
}
