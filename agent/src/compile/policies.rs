//! Who may reach which pods: the policies that select each pod, and what they say of a connection to it.
//!
//! The order is Istio's: plaintext is refused where a PeerAuthentication says so; else a DENY rule that matches refuses; else,
//! where any ALLOW policy selects the pod, one of their rules must match; else everything is let through.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::RoutingTable;
use super::peers::{self, PodMtls};
use super::realm::PolicyClient;
use super::watched::{Observed, Watched};
use crate::model::{
    Asked, AuthorizationPolicy, LimitTarget, ObjectName, PeerAuthentication, PolicyAction, PolicySource,
    RateLimit, Workload,
};

/// The policies of every pod that has any, by the pod's addresses.
#[derive(Debug, Default)]
pub struct PolicyTable {
    by_address: Arc<HashMap<IpAddr, Arc<PodPolicy>>>,
    /// Whether one of them could refuse somebody.
    refuses: bool,
    documents: Documents,
}

/// The policies that there are, and what those that select some pod say together, by their positions.
#[derive(Debug, Clone, Default)]
struct Documents {
    policies: Arc<[Arc<AuthorizationPolicy>]>,
    /// The oldest first.
    peers: Arc<[Arc<PeerAuthentication>]>,
    limits: Arc<[Entered]>,
    groups: Arc<Groups>,
}

/// A document that limits what enters pods.
#[derive(Debug)]
struct Entered {
    name: ObjectName,
    /// It refuses nobody.
    shadow: bool,
    targets: Vec<LimitTarget>,
}

/// What pods have by the documents that select them.
type Groups = HashMap<Selected, Arc<PodPolicy>>;

/// The documents that select a pod, by their positions.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Selected {
    policies: Vec<usize>,
    peers: Vec<usize>,
    /// The first that limits what enters it, of those that refuse where there are any.
    limit: Option<usize>,
    /// The pod's, where one of them asks for that.
    address: Option<IpAddr>,
}

impl Documents {
    fn is_empty(&self) -> bool {
        self.policies.is_empty() && self.peers.is_empty() && self.limits.is_empty()
    }
}

/// The policies that select a pod; pods that the same ones select share one value.
#[derive(Debug, PartialEq, Eq)]
pub struct PodPolicy {
    /// They are asked first.
    deny: Vec<Arc<AuthorizationPolicy>>,
    /// Where there are any, one of them must agree.
    allow: Vec<Arc<AuthorizationPolicy>>,
    /// Whether plaintext is taken.
    mtls: PodMtls,
    /// What limits what enters the pods, whose agent has to count it.
    limit: Option<EntryLimit>,
    /// They are asked beside.
    watched: Watched,
}

/// What is done about connections to a pod that are to be counted.
#[derive(Debug, Clone, PartialEq, Eq)]
enum EntryLimit {
    /// None gets in past the agent that counts, by this document.
    Enforced(ObjectName),
    /// The agent takes those that it can.
    Shadow,
}

/// Why a connection is refused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Denied {
    /// The document that says so.
    pub policy: ObjectName,
    /// How it does.
    pub by: DeniedBy,
}

/// How a document refuses a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeniedBy {
    /// A DENY policy's rule at this position matches.
    Rule(usize),
    /// No rule of any ALLOW policy matches; the document is the first of them.
    NoRule,
    /// A PeerAuthentication lets nobody in who has not proven who it is.
    Plaintext,
    /// A RateLimit has to count it, which only the agent does, and it did not come by the agent.
    Uncounted,
}

impl Denied {
    /// The rule as metrics show it: its position, `none` where no rule of any ALLOW policy matches,
    /// `plaintext`, or `uncounted`.
    pub fn rule_label(&self) -> String {
        match self.by {
            DeniedBy::Rule(rule) => rule.to_string(),
            DeniedBy::NoRule => "none".to_owned(),
            DeniedBy::Plaintext => "plaintext".to_owned(),
            DeniedBy::Uncounted => "uncounted".to_owned(),
        }
    }

    /// The reason as logs and events have it.
    pub fn reason(&self) -> &'static str {
        match self.by {
            DeniedBy::Rule(_) | DeniedBy::NoRule => ACCESS_DENIED,
            DeniedBy::Plaintext => MTLS_REQUIRED,
            DeniedBy::Uncounted => UNCOUNTED,
        }
    }
}

/// What it is called that an AuthorizationPolicy refuses.
pub const ACCESS_DENIED: &str = "rbac_access_denied";
/// What it is called that a PeerAuthentication refuses plaintext.
pub const MTLS_REQUIRED: &str = "mtls_required";
/// What it is called that a pod under a limit of what enters it gets no connection past the agent.
pub const UNCOUNTED: &str = "rate_limit_uncounted";

/// What can be said of a connection before there is a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Foreseen {
    /// Everything is let through.
    Allowed,
    /// Everything is refused.
    Denied(Denied),
    /// It depends on the request; without requests it is refused for this reason.
    ByRequest(Denied),
    /// Everything is let through, but connections by the agent alone, which counts; others are refused for this reason.
    Counted(Denied),
    /// Everything is let through; the agent takes the connections that it can, and counts.
    Watched,
}

impl PodPolicy {
    /// Whether a source may have what it asks for of a port of the pod. `port`: as [`PolicyMatch::matches`] has it.
    ///
    /// [`PolicyMatch::matches`]: crate::model::PolicyMatch::matches
    pub fn check(&self, source: PolicySource<'_>, port: Option<u16>, asked: Asked<'_>) -> Result<(), Denied> {
        if source.identity.is_none()
            && let Some(peer) = self.mtls.strict_on(port)
        {
            return Err(Denied { policy: peer.clone(), by: DeniedBy::Plaintext });
        }
        for policy in &self.deny {
            if let Some(rule) = policy.rule_of(source, port, asked) {
                return Err(Denied { policy: policy.name.clone(), by: DeniedBy::Rule(rule) });
            }
        }
        let Some(first) = self.allow.first() else { return Ok(()) };
        if self.allow.iter().any(|policy| policy.rule_of(source, port, asked).is_some()) {
            return Ok(());
        }
        Err(Denied { policy: first.name.clone(), by: DeniedBy::NoRule })
    }

    /// What can be said of a source and a port before there is a request.
    pub fn foresee(&self, source: PolicySource<'_>, port: Option<u16>) -> Foreseen {
        if let Err(denied) = self.check(source, port, Asked::Unread) {
            return Foreseen::Denied(denied);
        }
        // Both extremes let through is let through, whatever the request.
        match self.check(source, port, Asked::Opaque) {
            Ok(()) => match &self.limit {
                None => Foreseen::Allowed,
                Some(EntryLimit::Enforced(limit)) => {
                    Foreseen::Counted(Denied { policy: limit.clone(), by: DeniedBy::Uncounted })
                }
                Some(EntryLimit::Shadow) => Foreseen::Watched,
            },
            Err(denied) => Foreseen::ByRequest(denied),
        }
    }

    /// What policies that refuse nobody say.
    pub fn observe(&self, source: PolicySource<'_>, port: Option<u16>, asked: Asked<'_>) -> Vec<Observed> {
        self.watched.observe(source, port, asked)
    }

    /// Whether somebody could be refused, or has to come by the agent.
    pub fn refuses(&self) -> bool {
        !self.deny.is_empty() || !self.allow.is_empty() || self.mtls.is_strict() || self.limit.is_some()
    }

    /// Whether plaintext is taken.
    pub fn mtls(&self) -> &PodMtls {
        &self.mtls
    }

    /// Both kinds of those that refuse, those that are asked first before the others.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<AuthorizationPolicy>> {
        self.deny.iter().chain(&self.allow)
    }
}

impl PolicyTable {
    /// Whether no pod refuses anybody.
    pub fn is_empty(&self) -> bool {
        !self.refuses
    }

    /// Whether this is that table, in which nothing was compiled anew.
    pub fn is_same(&self, other: &Self) -> bool {
        let same_documents = Arc::ptr_eq(&self.documents.policies, &other.documents.policies)
            || (self.documents.policies.is_empty() && other.documents.policies.is_empty());
        same_documents
            && (Arc::ptr_eq(&self.by_address, &other.by_address) || (self.is_empty() && other.is_empty()))
    }

    /// Pods with their policies, one entry for each address.
    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, &Arc<PodPolicy>)> {
        self.by_address.iter().map(|(address, policy)| (*address, policy))
    }

    fn new(by_address: HashMap<IpAddr, Arc<PodPolicy>>, documents: Documents) -> Self {
        let refuses = by_address.values().any(|policy| policy.refuses());
        Self { by_address: Arc::new(by_address), refuses, documents }
    }

    /// The policies of the pod with this address.
    pub fn of(&self, address: IpAddr) -> Option<&Arc<PodPolicy>> {
        self.by_address.get(&address)
    }
}

impl RoutingTable {
    /// Whether `client` may have what it asks for of an endpoint. Endpoints that are no pods have no policies.
    pub fn check_access(
        &self,
        client: PolicyClient,
        endpoint: SocketAddr,
        asked: Asked<'_>,
    ) -> Result<(), Denied> {
        let pod = endpoint.ip().to_canonical();
        let Some(policy) = self.policies.of(pod) else { return Ok(()) };
        policy.check(self.policy_source(client, pod), Some(endpoint.port()), asked)
    }

    /// What can be said of a connection of `client` to an endpoint before there is a request.
    pub fn foresee_access(&self, client: PolicyClient, endpoint: SocketAddr) -> Foreseen {
        let pod = endpoint.ip().to_canonical();
        self.policies.of(pod).map_or(Foreseen::Allowed, |policy| {
            policy.foresee(self.policy_source(client, pod), Some(endpoint.port()))
        })
    }

    /// The rules that ask of requests and are about a connection of `client` to an endpoint, those that refuse first.
    pub fn rules_of_requests(
        &self,
        client: PolicyClient,
        endpoint: SocketAddr,
    ) -> Vec<(&AuthorizationPolicy, usize)> {
        let pod = endpoint.ip().to_canonical();
        let source = self.policy_source(client, pod);
        let policies = self.policies.of(pod).into_iter().flat_map(|pod| pod.policies());
        let rules = |policy: &Arc<AuthorizationPolicy>| policy.rules_of_requests(source, endpoint.port());
        policies.flat_map(|policy| rules(policy).into_iter().map(|rule| (&**policy, rule))).collect()
    }
}

/// Finds the policies of each pod; equal ones of the table before are kept.
pub(super) fn compile<'m>(
    policies: impl Iterator<Item = &'m AuthorizationPolicy>,
    peers: impl Iterator<Item = &'m PeerAuthentication>,
    limits: impl Iterator<Item = &'m RateLimit>,
    workloads: impl Iterator<Item = &'m Workload>,
    previous: &RoutingTable,
) -> PolicyTable {
    let policies = policies.cloned().map(Arc::new).collect();
    let limits = limits.filter(|limit| enters(limit));
    let limits = limits.map(|limit| Entered {
        name: limit.name.clone(),
        shadow: limit.shadow,
        targets: limit.targets.clone(),
    });
    let (peers, limits) = (peers::by_age(peers), limits.collect());
    let documents = Documents { policies, peers, limits, groups: Arc::default() };
    if documents.is_empty() {
        return PolicyTable::default();
    }
    let mut groups = Groups::new();
    let mut by_address = HashMap::new();
    for workload in workloads.filter(|workload| !workload.addresses.is_empty()) {
        let selected = Selected::of(workload, &documents);
        for address in &workload.addresses {
            let Some(group) = group_of((workload, *address), &selected, &documents, (&mut groups, previous))
            else {
                continue;
            };
            // As with workloads, the first by name has an address that two claim.
            by_address.entry(*address).or_insert(group);
        }
    }
    PolicyTable::new(by_address, Documents { groups: Arc::new(groups), ..documents })
}

/// Whether a document limits what enters pods.
fn enters(limit: &RateLimit) -> bool {
    limit.targets.iter().any(LimitTarget::enters)
}

/// Whether pods have to be looked at again once the limits are these.
pub(super) fn concerns<'m>(mut limits: impl Iterator<Item = &'m RateLimit>, previous: &PolicyTable) -> bool {
    !previous.documents.limits.is_empty() || limits.any(enters)
}

/// The table before, but for these addresses: their pods changed, the policies did not. `claimants`: the pods that have an
/// address, the first one first.
pub(super) fn recompile<'m, P: Iterator<Item = &'m Arc<Workload>>>(
    addresses: &BTreeSet<IpAddr>,
    claimants: impl Fn(IpAddr) -> P,
    previous: &RoutingTable,
) -> PolicyTable {
    let before = &previous.policies;
    let documents = &before.documents;
    if documents.is_empty() || addresses.is_empty() {
        return PolicyTable {
            by_address: Arc::clone(&before.by_address),
            refuses: before.refuses,
            documents: documents.clone(),
        };
    }
    let mut by_address = HashMap::clone(&before.by_address);
    let mut groups = Groups::clone(&documents.groups);
    for address in addresses {
        let group = claimants(*address).find_map(|pod| {
            let selected = Selected::of(pod, documents);
            group_of((pod, *address), &selected, documents, (&mut groups, previous))
        });
        match group {
            Some(group) => by_address.insert(*address, group),
            None => by_address.remove(address),
        };
    }
    // Each set of policies that pods had once is kept, but for when most are of the past.
    if groups.len() > 2 * by_address.len() + 16 {
        let used: HashSet<*const PodPolicy> = by_address.values().map(Arc::as_ptr).collect();
        groups.retain(|_, group| used.contains(&Arc::as_ptr(group)));
    }
    let documents = Documents { groups: Arc::new(groups), ..documents.clone() };
    PolicyTable::new(by_address, documents)
}

impl Selected {
    fn of(workload: &Workload, documents: &Documents) -> Self {
        let Documents { policies, peers, limits, .. } = documents;
        let enters = |limit: &Entered| limit.targets.iter().any(|target| target.is_entered(workload));
        let enforced = limits.iter().position(|limit| !limit.shadow && enters(limit));
        Self {
            policies: selecting(policies, workload),
            peers: peers::counting(peers, workload),
            limit: enforced.or_else(|| limits.iter().position(enters)),
            address: None,
        }
    }

    /// The same for one address of the pod, where that makes a difference.
    fn at(&self, address: IpAddr, policies: &[Arc<AuthorizationPolicy>]) -> Self {
        let asked = self.policies.iter().any(|index| policies[*index].asks_of_destinations());
        Self { address: asked.then_some(address), ..self.clone() }
    }
}

fn group_of(
    (workload, address): (&Workload, IpAddr),
    selected: &Selected,
    documents: &Documents,
    (groups, previous): (&mut Groups, &RoutingTable),
) -> Option<Arc<PodPolicy>> {
    let Documents { policies, peers, limits, .. } = documents;
    let selected = selected.at(address, policies);
    if selected.policies.is_empty() && selected.peers.is_empty() && selected.limit.is_none() {
        return None;
    }
    let before = workload.addresses.iter().find_map(|address| previous.policies.of(*address));
    let group = groups.entry(selected).or_insert_with_key(|selected| {
        let counting: Vec<_> = selected.peers.iter().map(|index| &peers[*index]).collect();
        let policies = selected.policies.iter().map(|index| match selected.address {
            Some(address) => Arc::new(policies[*index].at(address)),
            None => Arc::clone(&policies[*index]),
        });
        let limit = selected.limit.map(|index| match &limits[index] {
            Entered { shadow: true, .. } => EntryLimit::Shadow,
            Entered { name, .. } => EntryLimit::Enforced(name.clone()),
        });
        let made = PodPolicy { limit, ..group(policies, PodMtls::of(&counting)) };
        before.filter(|before| ***before == made).map_or_else(|| Arc::new(made), Arc::clone)
    });
    Some(Arc::clone(group))
}

fn selecting(policies: &[Arc<AuthorizationPolicy>], workload: &Workload) -> Vec<usize> {
    let selects = |policy: &AuthorizationPolicy| policy.selects(&workload.name.namespace, &workload.labels);
    (0..policies.len()).filter(|index| selects(&policies[*index])).collect()
}

fn group(policies: impl Iterator<Item = Arc<AuthorizationPolicy>>, mtls: PodMtls) -> PodPolicy {
    let (enforced, watched): (Vec<_>, Vec<_>) = policies.partition(|policy| policy.is_enforced());
    let (deny, allow) = enforced.into_iter().partition(|policy| policy.action == PolicyAction::Deny);
    PodPolicy { deny, allow, mtls, limit: None, watched: Watched::new(watched) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::{TableVersion, compile as compile_table};
    use crate::model::{Model, NamespacePattern, PolicyMatch, PolicyRule, PolicyScope};

    fn pod(name: (&str, &str), addresses: &[&str], app: &str) -> Workload {
        Workload {
            name: ObjectName::new(name.0, name.1),
            uid: name.1.into(),
            workload: name.1.into(),
            node: None,
            service_account: "default".into(),
            addresses: addresses.iter().map(|text| text.parse().expect("an address")).collect(),
            labels: Arc::new([("app".into(), app.into())].into()),
            ready: true,
            probes: Vec::new(),
            accelerated: true,
        }
    }

    fn policy(
        namespace: &str,
        name: &str,
        action: PolicyAction,
        rules: &[PolicyMatch],
    ) -> AuthorizationPolicy {
        let rule = |(index, alternative): (usize, &PolicyMatch)| PolicyRule {
            index,
            clauses: vec![vec![alternative.clone()]],
        };
        AuthorizationPolicy {
            name: ObjectName::new(namespace, name),
            scope: if namespace == "istio-system" { PolicyScope::Mesh } else { PolicyScope::Namespace },
            selector: [("app".into(), "web".into())].into(),
            action,
            dry_run: false,
            rules: rules.iter().enumerate().map(rule).collect(),
        }
    }

    fn table(policies: &[AuthorizationPolicy], previous: &RoutingTable) -> RoutingTable {
        let workloads = vec![
            pod(("bad", "foe"), &["10.0.1.2"], "foe"),
            pod(("default", "web"), &["10.0.0.1", "fd00::1"], "web"),
            pod(("default", "web2"), &["10.0.0.2"], "web"),
            pod(("good", "friend"), &["10.0.1.1"], "web"),
        ];
        let model = Model {
            workloads: workloads.into(),
            authorization: policies.to_vec().into(),
            ..Model::default()
        };
        compile_table(&model, previous, TableVersion::default())
    }

    fn check(table: &RoutingTable, client: &str, endpoint: &str) -> String {
        let (client, endpoint): (IpAddr, SocketAddr) =
            (client.parse().expect("an address"), endpoint.parse().expect("an endpoint"));
        match table.check_access(PolicyClient::direct(client), endpoint, Asked::Opaque) {
            Ok(()) => "ok".to_owned(),
            Err(denied) => format!("{} {}", denied.policy, denied.rule_label()),
        }
    }

    #[test]
    fn deny_comes_before_allow_and_any_allow_refuses_the_rest() {
        use PolicyAction::{Allow, Deny};
        let any = [PolicyMatch::default()];
        let good = [PolicyMatch {
            namespaces: vec![NamespacePattern::Exact("good".into())],
            ..PolicyMatch::default()
        }];
        let ports = [81, 80].map(|port| PolicyMatch { ports: vec![port], ..PolicyMatch::default() });
        let allow = policy("default", "a", Allow, &good);
        let alone = std::slice::from_ref(&allow);
        let web = "10.0.0.1:80";
        let cases: &[(&[AuthorizationPolicy], &str, &str, &str)] = &[
            (&[], "10.0.1.2", web, "ok"),
            (alone, "10.0.1.1", web, "ok"),
            (alone, "10.0.1.2", web, "default/a none"),
            (alone, "10.0.1.2", "[fd00::1]:80", "default/a none"),
            (alone, "::ffff:10.0.1.1", "[::ffff:10.0.0.1]:80", "ok"),
            (alone, "10.0.1.2", "10.0.1.1:80", "ok"),
            (alone, "8.8.8.8", web, "default/a none"),
            (&[allow.clone(), policy("default", "b", Deny, &any)], "10.0.1.1", web, "default/b 0"),
            (&[allow.clone(), policy("default", "n", Deny, &ports)], "10.0.1.1", web, "default/n 1"),
            (&[allow.clone(), policy("default", "n", Deny, &ports)], "10.0.1.1", "10.0.0.1:443", "ok"),
            (&[policy("bad", "a", Deny, &any)], "10.0.1.1", web, "ok"),
            (&[policy("istio-system", "a", Deny, &any)], "10.0.1.2", "10.0.1.1:1", "istio-system/a 0"),
            (&[policy("istio-system", "a", Deny, &any)], "10.0.1.1", "10.0.1.2:1", "ok"),
            (&[policy("default", "a", Allow, &[])], "10.0.1.1", "10.0.0.2:1", "default/a none"),
            (&[policy("default", "a", Deny, &[])], "10.0.1.1", "10.0.0.2:1", "ok"),
            (&[policy("default", "0", Allow, &[]), allow.clone()], "10.0.1.1", web, "ok"),
        ];
        for (policies, client, endpoint, expected) in cases {
            let table = table(policies, &RoutingTable::default());
            assert_eq!(check(&table, client, endpoint), *expected, "{policies:?} {client} {endpoint}");
        }
    }

    #[test]
    fn pods_share_their_policies_and_so_do_tables() {
        let deny = |rules: &[PolicyMatch]| [policy("default", "a", PolicyAction::Deny, rules)];
        let any = PolicyMatch::default();
        let of = |table: &RoutingTable, address: &str| {
            Arc::clone(table.policies.of(address.parse().expect("an address")).expect("a policy"))
        };
        let first = table(&deny(std::slice::from_ref(&any)), &RoutingTable::default());
        assert!(Arc::ptr_eq(&of(&first, "10.0.0.1"), &of(&first, "10.0.0.2")));
        let second = table(&deny(std::slice::from_ref(&any)), &first);
        assert!(Arc::ptr_eq(&of(&first, "fd00::1"), &of(&second, "10.0.0.2")));
        let other = table(&deny(&[any.clone(), any]), &second);
        assert!(!Arc::ptr_eq(&of(&second, "fd00::1"), &of(&other, "fd00::1")));
    }
}
