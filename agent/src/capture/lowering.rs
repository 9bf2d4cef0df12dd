//! The policies of a table -> what the kernel programs look up. Pure.
//!
//! Sources are cut into classes of which all members are treated alike: by the lists of ranges that policies have, and by the
//! namespaces of pods. Each set of policies is then asked once for every class and port that could matter.

mod ranges;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use agent_common::policy::{
    Access, CLOSED, POLICY_RULES_MAX, POLICY_SOURCES_MAX, PROVEN, PolicyAddress, PolicyRuleKey,
    policy_address,
};

use crate::compile::{Denied, Foreseen, PodPolicy, RoutingTable};
use crate::model::{Account, Cidr, NamespacePattern, PolicyMatch, PolicySource, TextPattern};
use ranges::{Lists, Ranges};

/// How much of the kernel's maps one generation may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Sources.
    pub sources: usize,
    /// Verdicts.
    pub rules: usize,
}

impl Default for Room {
    fn default() -> Self {
        // Two generations are there while one replaces the other.
        Self { sources: POLICY_SOURCES_MAX as usize / 2, rules: POLICY_RULES_MAX as usize / 2 }
    }
}

/// What found no room.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Sources.
    pub sources: usize,
    /// Verdicts.
    pub rules: usize,
}

/// What the kernel shall hold. Numbers of sets and classes mean something within one value alone.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Lowered {
    /// The set of each pod's address; [`CLOSED`] where its verdicts found no room.
    pub pods: BTreeMap<IpAddr, u32>,
    /// The class of each range; what is in none is of class 0.
    pub sources: BTreeMap<Cidr, u32>,
    /// The class of each pod of this node, where that is another once it is known to be the sender.
    pub proven: BTreeMap<IpAddr, u32>,
    /// How many of the pods refuse plaintext at some port.
    pub strict: usize,
    /// Verdicts; as the programs look them up.
    pub rules: HashMap<PolicyRuleKey, Verdict>,
    /// What the pods that are closed for lack of room would have taken.
    pub left_out: LeftOut,
}

/// What a class may do with a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it gets through.
    pub access: Access,
    /// Why not; of what the agent decides, why not without a request.
    pub denied: Option<Denied>,
}

/// What of all that policies name holds of a source: lists of ranges; namespaces, principals, accounts; and whether it is
/// proven, where they ask for that.
type Signature = (Lists, [BTreeSet<usize>; 3], bool);

/// All that policies name.
#[derive(Default)]
struct Named<'t> {
    ranges: Ranges,
    patterns: BTreeSet<&'t NamespacePattern>,
    principals: BTreeSet<&'t TextPattern>,
    accounts: BTreeSet<&'t Account>,
    /// Whether plaintext is refused somewhere.
    strict: bool,
    /// Whether somebody asks for proof.
    proof: bool,
}

/// Classes with one member each, by number.
type Classes<'t> = Vec<PolicySource<'t>>;

/// Lowers a table's policies for the pods of `node`, as Pod documents call it: nobody asks here about those of others. What
/// exceeds the `room` is closed.
pub fn lower(table: &RoutingTable, node: &str, room: Room) -> Lowered {
    if table.policies.is_empty() {
        return Lowered::default();
    }
    let mut sets: Vec<&Arc<PodPolicy>> = Vec::new();
    let mut numbers: HashMap<*const PodPolicy, u32> = HashMap::new();
    let mut lowered = Lowered::default();
    // A node that no document names may have been given another name than it has there; then all pods may be its own.
    let known = table.workloads.iter().any(|(_, pod)| pod.node.as_deref() == Some(node));
    let policies = table.policies.iter();
    // By address, so that the same table gives the same numbers.
    let pods: BTreeMap<IpAddr, &Arc<PodPolicy>> = policies
        .filter(|(address, policy)| policy.refuses() && (!known || is_here(table, address, node)))
        .collect();
    for (address, policy) in pods {
        let set = *numbers.entry(Arc::as_ptr(policy)).or_insert_with(|| {
            sets.push(policy);
            u32::try_from(sets.len() - 1).expect("there are fewer sets than addresses of pods")
        });
        lowered.pods.insert(address, set);
        lowered.strict += usize::from(policy.mtls().is_strict());
    }
    let Classified { sources, proven, classes } = classify(table, &sets);
    if sources.len() + proven.len() > room.sources {
        lowered.pods.values_mut().for_each(|set| *set = CLOSED);
        lowered.left_out.sources = sources.len() + proven.len();
        return lowered;
    }
    (lowered.sources, lowered.proven) = (sources, proven);
    for (number, policy) in (0u32..).zip(sets) {
        let rules = verdicts(number, policy, &classes);
        if lowered.rules.len() + rules.len() <= room.rules {
            lowered.rules.extend(rules);
        } else {
            lowered.pods.values_mut().filter(|set| **set == number).for_each(|set| *set = CLOSED);
            lowered.left_out.rules += rules.len();
        }
    }
    lowered
}

/// The addresses of pods of `node`, or of no node that is known, that the agent takes connections for: for some source and
/// port the request decides, or everything is counted.
pub fn captured(table: &RoutingTable, lowered: &Lowered, node: &str) -> BTreeSet<IpAddr> {
    let by_agent = lowered.rules.iter().filter(|(_, verdict)| Access::is_taken(verdict.access as u32));
    let sets: BTreeSet<u32> = by_agent.map(|(key, _)| key.set).collect();
    let pods = lowered.pods.iter();
    let pods = pods.filter(|(address, set)| sets.contains(set) && is_here(table, address, node));
    pods.map(|(address, _)| *address).collect()
}

/// Whether an address is that of a pod of `node`, or of no node that is known.
fn is_here(table: &RoutingTable, address: &IpAddr, node: &str) -> bool {
    table.workloads.get(address).is_some_and(|pod| pod.node.as_deref().is_none_or(|on| on == node))
}

/// Sources in classes.
struct Classified<'t> {
    sources: BTreeMap<Cidr, u32>,
    proven: BTreeMap<IpAddr, u32>,
    classes: Classes<'t>,
}

/// The class of every range and pod that is not treated like everybody else around it.
fn classify<'t>(table: &'t RoutingTable, sets: &[&'t Arc<PodPolicy>]) -> Classified<'t> {
    let named = Named::of(sets);
    // All of a family is in no narrower range. Where policies name all of both, nobody is left to be of class 0.
    let [v4, v6] = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)]
        .map(|first| Cidr::new(first, 0).expect("no prefix is longer than an address"));
    let rest = if named.ranges.contains(&v6) { v4 } else { v6 };
    let nobody = |addresses| PolicySource { addresses, namespace: None, identity: None };
    let mut classes = vec![nobody(rest)];
    let mut numbers: HashMap<Signature, u32> = HashMap::from([(Signature::default(), 0)]);
    let mut number = |source: PolicySource<'t>| {
        let next = u32::try_from(classes.len()).expect("there are fewer classes than sources");
        *numbers.entry(named.signature(source)).or_insert_with(|| {
            classes.push(source);
            next
        })
    };
    let mut sources = BTreeMap::new();
    for cidr in named.ranges.iter() {
        sources.insert(*cidr, number(nobody(*cidr)));
    }
    let mut proven = BTreeMap::new();
    for (address, workload) in table.workloads.iter() {
        let addresses = Cidr::host(*address);
        let pod = PolicySource { namespace: Some(&workload.name.namespace), ..nobody(addresses) };
        let class = number(pod);
        // The class that it has by the ranges alone.
        let around = named.ranges.around(&addresses).map_or(0, |range| sources[range]);
        if class != around {
            sources.insert(addresses, class);
        }
        if named.proof && table.realm.runs(workload) {
            let itself = number(PolicySource { identity: Some(table.realm.identity(workload)), ..pod });
            if itself != class {
                proven.insert(*address, itself);
            }
        }
    }
    Classified { sources, proven, classes }
}

impl<'t> Named<'t> {
    fn of(sets: &[&'t Arc<PodPolicy>]) -> Self {
        let strict = sets.iter().any(|set| set.mtls().is_strict());
        let all = || sets.iter().flat_map(|set| alternatives(set));
        let lists = all().flat_map(|one| [&one.cidrs[..], &one.not_cidrs, &one.remote_cidrs]);
        let mut named = Self { ranges: Ranges::of(lists), strict, proof: strict, ..Self::default() };
        for alternative in all() {
            named.patterns.extend(alternative.namespaces.iter().chain(&alternative.not_namespaces));
            named.principals.extend(alternative.principals.iter().chain(&alternative.not_principals));
            named.accounts.extend(alternative.accounts.iter().chain(&alternative.not_accounts));
        }
        named.proof |= !named.principals.is_empty() || !named.accounts.is_empty();
        named
    }

    fn signature(&self, source: PolicySource<'_>) -> Signature {
        let (within, namespace) = (source.addresses, source.namespace);
        let identity = source.identity.filter(|_| self.proof);
        let holding = [
            holding(&self.patterns, |pattern| namespace.is_some_and(|name| pattern.matches(name))),
            holding(&self.principals, |principal| identity.is_some_and(|identity| identity.is(principal))),
            holding(&self.accounts, |account| identity.is_some_and(|identity| account.has(&identity))),
        ];
        (self.ranges.lists(&within), holding, self.strict && identity.is_some())
    }
}

/// The positions of those that hold.
fn holding<T>(named: &BTreeSet<T>, holds: impl Fn(&T) -> bool) -> BTreeSet<usize> {
    named.iter().enumerate().filter(|(_, one)| holds(one)).map(|(index, _)| index).collect()
}

fn alternatives(policy: &Arc<PodPolicy>) -> impl Iterator<Item = &PolicyMatch> {
    policy.policies().flat_map(|policy| &policy.rules).flat_map(|rule| rule.clauses.iter().flatten())
}

/// A set's verdicts: all of class 0, and of other classes those that differ from it.
fn verdicts(
    set: u32,
    policy: &Arc<PodPolicy>,
    classes: &[PolicySource<'_>],
) -> HashMap<PolicyRuleKey, Verdict> {
    let named = alternatives(policy).flat_map(|one| one.ports.iter().chain(&one.not_ports));
    let ports: BTreeSet<u16> = named.copied().chain(policy.mtls().ports()).collect();
    let ask = |source: PolicySource<'_>| {
        let mut answers: BTreeMap<u16, Foreseen> =
            ports.iter().map(|port| (*port, policy.foresee(source, Some(*port)))).collect();
        let others = policy.foresee(source, None);
        // What is as on any other port needs no entry.
        let refused = |answer: &Foreseen| matches!(answer, Foreseen::Denied(_));
        let everywhere = refused(&others) && answers.values().all(refused);
        answers.retain(|_, answer| *answer != others);
        (answers, others, everywhere)
    };
    let everybody = ask(classes[0]);
    let mut rules = HashMap::new();
    for (class, source) in (0u32..).zip(classes) {
        let (answers, others, everywhere) = ask(*source);
        if class != 0 && (&answers, &others, everywhere) == (&everybody.0, &everybody.1, everybody.2) {
            continue;
        }
        for (port, answer) in answers {
            let key = PolicyRuleKey { set, class, port: u32::from(port) };
            rules.insert(key, Verdict::of(answer, false));
        }
        rules.insert(PolicyRuleKey { set, class, port: 0 }, Verdict::of(others, everywhere));
    }
    rules
}

impl Verdict {
    fn of(answer: Foreseen, everywhere: bool) -> Self {
        let (access, denied) = match answer {
            Foreseen::Allowed => (Access::Allowed, None),
            Foreseen::Denied(denied) if everywhere => (Access::DeniedEverywhere, Some(denied)),
            Foreseen::Denied(denied) => (Access::Denied, Some(denied)),
            Foreseen::ByRequest(denied) => (Access::ByRequest, Some(denied)),
            Foreseen::Counted(denied) => (Access::Counted, Some(denied)),
            Foreseen::Watched => (Access::Watched, None),
        };
        Self { access, denied }
    }
}

/// A pod's address as the maps keep it where it is known to be the sender.
pub fn proven_address(address: IpAddr) -> PolicyAddress {
    let PolicyAddress { family, address } = policy_address(address);
    PolicyAddress { family: family | PROVEN, address }
}

/// The address that the maps keep so.
pub fn ip_address(kept: PolicyAddress) -> IpAddr {
    let PolicyAddress { family, address } = kept;
    if family == 4 {
        let [a, b, c, d, ..] = address;
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    } else {
        IpAddr::V6(address.into())
    }
}

#[cfg(test)]
mod tests;
