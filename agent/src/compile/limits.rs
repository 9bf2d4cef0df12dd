//! RateLimits of the model -> limits with their counters, by what they are about.
//!
//! A limit whose meaning is unchanged keeps its counters through every change of documents: the same document, name, key and
//! quota. What is answered, what requests cost, and whether it only counts may change under it.

mod counter;
mod ends;
mod lists;
mod overrides;
mod pods;

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::{Cluster, Route, RouteName};
use crate::model::{
    AnswerHeader, DirectResponse, KernelLimit, Limit, LimitTarget, ObjectName, RateLimit, Workload,
};
pub use counter::{InFlight, LimitCounter, LimitUse, Numbers, limit_time};
pub use lists::LimitMemo;
use lists::Lists;
pub use overrides::write_text;
use pods::OfPods;

/// All limits, by what they are about.
#[derive(Debug, Default)]
pub struct LimitTable {
    all: Vec<Arc<LimitPolicy>>,
    /// By namespace and name, as listeners' names begin.
    gateways: HashMap<Box<str>, Vec<Part>, RandomState>,
    /// By services and rules of routes.
    lists: Lists,
    senders: OfPods,
    receivers: OfPods,
}

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
    /// Fields that are added to it.
    pub headers: Arc<[AnswerHeader]>,
    /// Whether requests that are let through are told what is left.
    pub tells: bool,
    /// Those of requests.
    pub limits: Vec<Arc<LimitCounter>>,
    /// Those of opaque connections.
    pub connections: Vec<Arc<LimitCounter>>,
    /// Those that the kernel holds to.
    pub kernel: Vec<KernelLimit>,
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

    /// Those of which the kernel holds to some limit.
    pub fn of_kernel(&self) -> impl Iterator<Item = &Arc<LimitPolicy>> {
        self.all.iter().filter(|policy| !policy.kernel.is_empty())
    }

    /// Whether all nodes count together for any.
    pub fn are_shared(&self) -> bool {
        let mut limits = self.all.iter().flat_map(|policy| policy.all());
        limits.any(|limit| limit.is_shared())
    }

    /// Those about a service.
    pub fn of_service(&self, service: &ObjectName) -> &[Arc<LimitPolicy>] {
        self.lists.get(self.lists.of_service(service))
    }

    /// Those about a cluster's service.
    pub fn of_cluster(&self, cluster: &Cluster) -> &[Arc<LimitPolicy>] {
        self.lists.remembered(&cluster.limits, |lists| lists.of_service(&cluster.key.service))
    }

    /// Whether any is about a Gateway.
    pub fn ask_for_listeners(&self) -> bool {
        !self.gateways.is_empty()
    }

    /// Those about a listener, `namespace/gateway/listener`.
    pub fn of_listener<'a>(&'a self, listener: &'a str) -> impl Iterator<Item = &'a Arc<LimitPolicy>> {
        let named = listener.rsplit_once('/');
        let parts = named.and_then(|(gateway, section)| Some((self.gateways.get(gateway)?, section)));
        parts
            .into_iter()
            .flat_map(|(parts, section)| parts.iter().filter_map(move |part| of_part(part, section)))
    }

    /// Whether any is about what pods send.
    pub fn ask_for_senders(&self) -> bool {
        !self.senders.is_empty()
    }

    /// Those about what a pod of a node sends, which is this one; `None`: a pod that no document names.
    pub fn of_sender<'a>(
        &'a self,
        pod: Option<&Workload>,
        node: &str,
    ) -> impl Iterator<Item = &'a Arc<LimitPolicy>> {
        self.senders.of(pod, node)
    }

    /// Whether any is about what enters pods.
    pub fn ask_for_receivers(&self) -> bool {
        !self.receivers.is_empty()
    }

    /// Those about what enters a pod of a node.
    pub fn of_receiver<'a>(
        &'a self,
        pod: &Workload,
        node: &str,
    ) -> impl Iterator<Item = &'a Arc<LimitPolicy>> {
        self.receivers.of(Some(pod), node)
    }

    /// Those about a rule of a route.
    pub fn of_route(&self, kind: &str, source: &ObjectName, rule: &str) -> &[Arc<LimitPolicy>] {
        self.lists.get(self.lists.of_rule(kind, source, rule))
    }

    /// Those about a rule.
    pub fn of_rule(&self, rule: &Route) -> &[Arc<LimitPolicy>] {
        let RouteName { kind, source, rule: name } = &rule.name;
        self.lists.remembered(&rule.limits, |lists| lists.of_rule(kind, source, name))
    }
}

fn of_part<'a>((section, policy): &'a Part, wanted: &str) -> Option<&'a Arc<LimitPolicy>> {
    section.as_deref().is_none_or(|section| section == wanted).then_some(policy)
}

impl LimitPolicy {
    /// All its limits, whatever they count.
    pub fn all(&self) -> impl Iterator<Item = &Arc<LimitCounter>> {
        self.limits.iter().chain(&self.connections)
    }

    /// What it is about where requests and connections meet it: never what the kernel alone holds to.
    fn asked(&self) -> &[LimitTarget] {
        if self.all().next().is_some() { &self.targets } else { &[] }
    }
}

/// Limits by their document, their name, and whether they count connections.
type Known<'t> = HashMap<(&'t ObjectName, &'t str, bool), &'t Arc<LimitCounter>>;

fn known(table: &LimitTable) -> Known<'_> {
    let mut known = Known::new();
    for policy in &table.all {
        let requests = policy.limits.iter().map(|counter| (counter, false));
        for (counter, connections) in requests.chain(policy.connections.iter().map(|counter| (counter, true)))
        {
            known.insert((&policy.name, &counter.limit.name, connections), counter);
        }
    }
    known
}

/// Compiles the documents; counters of limits that mean the same go on.
pub(super) fn compile<'m>(
    documents: impl Iterator<Item = &'m RateLimit>,
    previous: &LimitTable,
) -> Arc<LimitTable> {
    let known = known(previous);
    let mut table = LimitTable::default();
    for document in documents {
        let counter =
            |limit: &Limit, connections| match known.get(&(&document.name, &*limit.name, connections)) {
                Some(counter) if counter.limit == *limit => Arc::clone(counter),
                previous => {
                    Arc::new(LimitCounter::new(&document.name, limit, previous.map(|known| &***known)))
                }
            };
        table.add(Arc::new(LimitPolicy {
            name: document.name.clone(),
            targets: document.targets.clone(),
            shadow: document.shadow,
            answer: document.answer.clone(),
            headers: Arc::clone(&document.headers),
            tells: document.tells,
            limits: document.limits.iter().map(|limit| counter(limit, false)).collect(),
            connections: document.connections.iter().map(|limit| counter(limit, true)).collect(),
            kernel: document.kernel.clone(),
        }));
    }
    table.lists = Lists::new(&table.all);
    Arc::new(table)
}

impl LimitTable {
    fn add(&mut self, policy: Arc<LimitPolicy>) {
        for target in policy.asked() {
            match target {
                LimitTarget::Gateway(name, section) => {
                    let gateway = name.to_string().into();
                    self.gateways.entry(gateway).or_default().push((section.clone(), Arc::clone(&policy)));
                }
                LimitTarget::SentBy(_) | LimitTarget::SentFrom(_) => self.senders.add(target, &policy),
                LimitTarget::Enters(_) | LimitTarget::EntersNode(_) => self.receivers.add(target, &policy),
                LimitTarget::Service(_) | LimitTarget::Route(..) => {}
            }
        }
        self.all.push(policy);
    }
}

#[cfg(test)]
mod tests;
