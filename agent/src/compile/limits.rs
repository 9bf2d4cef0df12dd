//! RateLimits of the model -> limits with their counters, by what they are about.
//!
//! A limit whose meaning is unchanged keeps its counters through every change of documents: the same document, name, key and
//! quota. What is answered, and whether it only counts, may change under it.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use crate::limit::counters::KeyWriter;
use crate::limit::quota::{SharedLimit, SharedQuota, SharedSettings, WhenAway, shared_rate};
use crate::limit::{Concurrency, Permit, Rate, Store, Verdict, Window};
use crate::model::{
    ClusterMode, DirectResponse, FailMode, Limit, LimitTarget, LimitedRoute, ObjectName, Quota, RateLimit,
};

/// How many limits there were.
static LIMITS: AtomicU64 = AtomicU64::new(0);

/// Keys that a limit remembers, whatever another agent asks for.
const KEYS_MAX: u32 = 4_194_304;

/// All limits, by what they are about.
#[derive(Debug, Default)]
pub struct LimitTable {
    all: Vec<Arc<LimitPolicy>>,
    services: HashMap<ObjectName, Policies>,
    gateways: HashMap<ObjectName, Vec<Part>>,
    routes: HashMap<(LimitedRoute, ObjectName), Vec<Part>>,
}

type Policies = Vec<Arc<LimitPolicy>>;
/// A policy, and the listener or the rule that it is about where that is not the whole.
type Part = (Option<Arc<str>>, Arc<LimitPolicy>);

/// A document's limits in force.
#[derive(Debug)]
pub struct LimitPolicy {
    /// The document.
    pub name: ObjectName,
    /// What it is about.
    pub targets: Vec<LimitTarget>,
    /// Whether it only counts.
    pub shadow: bool,
    /// What a refused request gets.
    pub answer: DirectResponse,
    /// Whether requests that are let through are told what is left.
    pub tells: bool,
    /// The limits.
    pub limits: Vec<Arc<LimitCounter>>,
}

/// A limit with its counters.
#[derive(Debug)]
pub struct LimitCounter {
    /// What it says.
    pub limit: Limit,
    /// The secret of its keys.
    hasher: RandomState,
    keys: Keys,
    /// Tells it from all others that there ever were.
    id: u64,
    admitted: AtomicU64,
    refused: AtomicU64,
    pushed: AtomicU64,
}

#[derive(Debug)]
enum Keys {
    Rate(Store<Rate>),
    Window(Store<Window>),
    InFlight(Arc<Store<Concurrency>>),
    /// All nodes count together.
    Shared(Arc<SharedLimit>),
}

/// What a request holds while it is in flight.
#[derive(Debug)]
pub struct InFlight(
    #[expect(dead_code, reason = "dropping it gives back what was taken")] Permit<Concurrency>,
);

/// What is known of a limit's use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitUse {
    /// Requests that were let through.
    pub admitted: u64,
    /// Requests that were refused, or would have been.
    pub refused: u64,
    /// Keys that are known.
    pub keys: usize,
    /// Keys that were forgotten although they counted something.
    pub evicted: u64,
    /// Requests that were let through uncounted.
    pub uncounted: u64,
    /// Sources that the guard was told to keep out.
    pub pushed: u64,
}

/// Nanoseconds since the first look: the time of all counters.
pub fn limit_time(now: Instant) -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    // A moment that was looked at before the first use counts as it.
    u64::try_from(now.saturating_duration_since(*START).as_nanos()).unwrap_or(u64::MAX)
}

impl LimitTable {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// All documents, sorted by name.
    pub fn policies(&self) -> &[Arc<LimitPolicy>] {
        &self.all
    }

    /// Whether all nodes count together for any.
    pub fn are_shared(&self) -> bool {
        let mut limits = self.all.iter().flat_map(|policy| &policy.limits);
        limits.any(|limit| limit.shared().is_some())
    }

    /// Those about a service.
    pub fn of_service(&self, service: &ObjectName) -> &[Arc<LimitPolicy>] {
        self.services.get(service).map_or(&[], Vec::as_slice)
    }

    /// Whether any is about a Gateway.
    pub fn ask_for_listeners(&self) -> bool {
        !self.gateways.is_empty()
    }

    /// Those about a listener, `namespace/gateway/listener`.
    pub fn of_listener<'a>(&'a self, listener: &'a str) -> impl Iterator<Item = &'a Arc<LimitPolicy>> {
        let mut parts = listener.splitn(3, '/');
        let mut named = || Some((ObjectName::new(parts.next()?, parts.next()?), parts.next()?));
        named().into_iter().flat_map(|(gateway, section)| of_part(self.gateways.get(&gateway), section))
    }

    /// Those about a rule of a route.
    pub fn of_route<'a>(
        &'a self,
        kind: &str,
        source: &ObjectName,
        rule: &'a str,
    ) -> impl Iterator<Item = &'a Arc<LimitPolicy>> {
        let kinds = [LimitedRoute::HttpRoute, LimitedRoute::VirtualService];
        let kind = kinds.into_iter().find(|known| known.as_str() == kind && !self.routes.is_empty());
        let parts = kind.and_then(|kind| self.routes.get(&(kind, source.clone())));
        of_part(parts, rule)
    }
}

fn of_part<'a>(parts: Option<&'a Vec<Part>>, wanted: &'a str) -> impl Iterator<Item = &'a Arc<LimitPolicy>> {
    let parts = parts.map_or(&[][..], Vec::as_slice);
    let about = move |part: &&'a Part| part.0.as_deref().is_none_or(|section| section == wanted);
    parts.iter().filter(about).map(|(_, policy)| policy)
}

impl LimitCounter {
    fn new(document: &ObjectName, limit: &Limit) -> Self {
        let size = usize::try_from(limit.max_keys.min(KEYS_MAX)).unwrap_or(1);
        let shared = shared_limit(document, limit, size).map(|shared| Keys::Shared(Arc::new(shared)));
        let keys = shared.unwrap_or_else(|| Self::of_node(limit.quota, size));
        let (admitted, refused, pushed) = Default::default();
        let id = LIMITS.fetch_add(1, Ordering::Relaxed);
        Self { limit: limit.clone(), hasher: RandomState::new(), keys, id, admitted, refused, pushed }
    }

    /// What tells it from all others that there ever were.
    pub fn id(&self) -> u64 {
        self.id
    }

    fn of_node(quota: Quota, size: usize) -> Keys {
        match quota {
            // What came from documents was checked; what another agent sent in another form holds to the least.
            Quota::Rate { requests, window_ns, burst } => {
                let rate = Rate::new(requests.into(), window_ns, burst.into());
                let rate = rate.or_else(|_| Rate::new(1, window_ns.max(1), 1));
                match rate {
                    Ok(rate) => Keys::Rate(Store::new(rate, size)),
                    Err(_) => {
                        Keys::Window(Store::new(Window { requests: 1, window: window_ns.max(1) }, size))
                    }
                }
            }
            Quota::Window { requests, window_ns } => {
                Keys::Window(Store::new(Window { requests, window: window_ns }, size))
            }
            Quota::InFlight { requests } => {
                Keys::InFlight(Arc::new(Store::new(Concurrency { most: requests }, size)))
            }
        }
    }

    /// What all nodes count by, where they do.
    pub fn shared(&self) -> Option<&Arc<SharedLimit>> {
        match &self.keys {
            Keys::Shared(shared) => Some(shared),
            Keys::Rate(_) | Keys::Window(_) | Keys::InFlight(_) => None,
        }
    }

    /// A key's hash: that of its parts in order, each behind its length.
    pub fn hasher(&self) -> impl std::hash::Hasher + use<> {
        self.hasher.build_hasher()
    }

    /// Takes one request; in-flight ones are held by what is returned beside. What all nodes count is not taken here.
    pub fn take(&self, key: u64, now: u64) -> (Verdict, Option<InFlight>) {
        match &self.keys {
            Keys::Rate(store) => (store.take(key, now), None),
            Keys::Window(store) => (store.take(key, now), None),
            Keys::InFlight(store) => {
                let verdict = store.take(key, now);
                let taken = matches!(verdict, Verdict::Admitted { .. });
                (verdict, taken.then(|| InFlight(Permit::new(store, key, now))))
            }
            Keys::Shared(_) => (Verdict::Admitted { remaining: 0 }, None),
        }
    }

    /// What [`Self::take`] would say.
    pub fn peek(&self, key: u64, now: u64) -> Verdict {
        match &self.keys {
            Keys::Rate(store) => store.peek(key, now),
            Keys::Window(store) => store.peek(key, now),
            Keys::InFlight(store) => store.peek(key, now),
            Keys::Shared(_) => Verdict::Admitted { remaining: 0 },
        }
    }

    /// Gives back what was taken at `now` and is not held.
    pub fn give_back(&self, key: u64, now: u64) {
        match &self.keys {
            Keys::Rate(store) => store.give_back(key, now),
            Keys::Window(store) => store.give_back(key, now),
            Keys::InFlight(_) | Keys::Shared(_) => {}
        }
    }

    /// Counts an outcome.
    pub fn count(&self, admitted: bool) {
        let counter = if admitted { &self.admitted } else { &self.refused };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a source that the guard was told to keep out.
    pub fn count_pushed(&self) {
        self.pushed.fetch_add(1, Ordering::Relaxed);
    }

    /// How it is used.
    pub fn usage(&self) -> LimitUse {
        let (keys, evicted, uncounted) = match &self.keys {
            Keys::Rate(store) => (store.len(), store.evicted(), store.uncounted()),
            Keys::Window(store) => (store.len(), store.evicted(), store.uncounted()),
            Keys::InFlight(store) => (store.len(), store.evicted(), store.uncounted()),
            Keys::Shared(shared) => {
                let usage = shared.usage(limit_time(Instant::now()));
                (usage.keys, usage.evicted, usage.uncounted)
            }
        };
        let (admitted, refused) =
            (self.admitted.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed));
        let pushed = self.pushed.load(Ordering::Relaxed);
        LimitUse { admitted, refused, keys, evicted, uncounted, pushed }
    }
}

/// What all nodes count by; `None` where each counts for itself, as it does for a form that only another agent's documents have.
fn shared_limit(document: &ObjectName, limit: &Limit, size: usize) -> Option<SharedLimit> {
    let cluster = limit.cluster?;
    let quota = match limit.quota {
        Quota::Rate { requests, window_ns, burst } => {
            let rate = Rate::new(requests.into(), window_ns, burst.into()).ok()?;
            SharedQuota::Rate(rate, shared_rate(requests, window_ns, burst)?)
        }
        Quota::Window { requests, window_ns } => SharedQuota::Window(Window { requests, window: window_ns }),
        Quota::InFlight { .. } => return None,
    };
    let settings = SharedSettings {
        leased: cluster.mode == ClusterMode::Leased,
        away: match cluster.fail {
            FailMode::Open => WhenAway::Open,
            FailMode::Closed => WhenAway::Closed,
            FailMode::Share => WhenAway::Share,
        },
    };
    // How nodes come by it means nothing to what is counted; where the sources are that it does not hold for, neither.
    let meaning = (&document.namespace, &document.name, &limit.name, &limit.key, limit.missing, limit.quota);
    let meaning = serde_json::to_vec(&meaning).ok()?;
    Some(SharedLimit::new(settings, quota, KeyWriter::new(&meaning), size))
}

/// Compiles the documents; counters of limits that mean the same go on.
pub(super) fn compile<'m>(
    documents: impl Iterator<Item = &'m RateLimit>,
    previous: &LimitTable,
) -> Arc<LimitTable> {
    let known: HashMap<(&ObjectName, &str), &Arc<LimitCounter>> = previous
        .all
        .iter()
        .flat_map(|policy| {
            policy.limits.iter().map(|counter| ((&policy.name, &*counter.limit.name), counter))
        })
        .collect();
    let mut table = LimitTable::default();
    for document in documents {
        let counter = |limit: &Limit| match known.get(&(&document.name, &*limit.name)) {
            Some(counter) if counter.limit == *limit => Arc::clone(counter),
            _ => Arc::new(LimitCounter::new(&document.name, limit)),
        };
        table.add(Arc::new(LimitPolicy {
            name: document.name.clone(),
            targets: document.targets.clone(),
            shadow: document.shadow,
            answer: document.answer.clone(),
            tells: document.tells,
            limits: document.limits.iter().map(counter).collect(),
        }));
    }
    Arc::new(table)
}

impl LimitTable {
    fn add(&mut self, policy: Arc<LimitPolicy>) {
        for target in &policy.targets {
            let policy = Arc::clone(&policy);
            match target {
                LimitTarget::Service(name) => self.services.entry(name.clone()).or_default().push(policy),
                LimitTarget::Gateway(name, section) => {
                    self.gateways.entry(name.clone()).or_default().push((section.clone(), policy));
                }
                LimitTarget::Route(kind, name, rule) => {
                    self.routes.entry((*kind, name.clone())).or_default().push((rule.clone(), policy));
                }
            }
        }
        self.all.push(policy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Missing;

    fn document(requests: u32, body: &str) -> RateLimit {
        let service = ObjectName::new("default", "shop");
        RateLimit {
            name: ObjectName::new("default", "limits"),
            targets: vec![
                LimitTarget::Service(service),
                LimitTarget::Gateway(ObjectName::new("default", "edge"), Some("web".into())),
                LimitTarget::Route(LimitedRoute::HttpRoute, ObjectName::new("default", "all"), None),
            ],
            shadow: false,
            limits: vec![Limit {
                name: "one".into(),
                key: Vec::new(),
                missing: Missing::default(),
                quota: Quota::Window { requests, window_ns: 1000 },
                exempt: Vec::new(),
                max_keys: 8,
                cluster: None,
                push_down: None,
            }],
            answer: DirectResponse { status: 429, body: body.as_bytes().into() },
            tells: false,
        }
    }

    #[test]
    fn what_means_the_same_keeps_its_counters() {
        let first = compile([&document(1, "a")].into_iter(), &LimitTable::default());
        let counter = &first.policies()[0].limits[0];
        assert!(matches!(counter.take(7, 0).0, Verdict::Admitted { .. }));
        let second = compile([&document(1, "b")].into_iter(), &first);
        let kept = &second.policies()[0].limits[0];
        assert!(matches!(kept.take(7, 1).0, Verdict::Refused { .. }), "another body is no other limit");
        let third = compile([&document(2, "b")].into_iter(), &second);
        assert!(matches!(third.policies()[0].limits[0].take(7, 1).0, Verdict::Admitted { .. }));
    }

    #[test]
    fn limits_are_found_by_what_they_are_about() {
        let table = compile([&document(1, "a")].into_iter(), &LimitTable::default());
        assert_eq!(table.of_service(&ObjectName::new("default", "shop")).len(), 1);
        assert_eq!(table.of_service(&ObjectName::new("other", "shop")).len(), 0);
        assert_eq!(table.of_listener("default/edge/web").count(), 1);
        assert_eq!(table.of_listener("default/edge/other").count(), 0);
        assert_eq!(table.of_listener("default/other/web").count(), 0);
        let of_route = |kind, rule| table.of_route(kind, &ObjectName::new("default", "all"), rule).count();
        assert_eq!((of_route("HTTPRoute", "rule-0"), of_route("VirtualService", "rule-0")), (1, 0));
    }
}
