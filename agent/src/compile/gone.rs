//! Endpoints that a table no longer has.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Cluster, RoutingTable};

/// The uids of endpoints and pods that a table had and the next has not. What both share is passed over unread; only where
/// something may be gone is the rest of the next one asked whether it has it elsewhere.
pub fn gone(before: &RoutingTable, after: &RoutingTable) -> HashSet<Arc<str>> {
    let (mut old, mut new) = (Vec::new(), Vec::new());
    before.clusters.differences(&after.clusters, Arc::ptr_eq, |_, was, is| {
        old.extend(was);
        new.extend(is);
    });
    let mut gone: HashSet<Arc<str>> = old.into_iter().flat_map(uids).cloned().collect();
    if !Arc::ptr_eq(&before.workloads, &after.workloads) {
        let stays = |address| after.workloads.get(address);
        let left = before.workloads.iter();
        let left = left.filter(|(address, pod)| stays(address).is_none_or(|now| now.uid != pod.uid));
        gone.extend(left.map(|(_, pod)| Arc::clone(&pod.uid)));
    }
    for uid in new.into_iter().flat_map(uids) {
        gone.remove(uid);
    }
    if !gone.is_empty() {
        for uid in after.clusters.values().flat_map(uids).chain(after.workloads.values().map(|pod| &pod.uid))
        {
            gone.remove(uid);
        }
    }
    gone
}

fn uids(cluster: &Arc<Cluster>) -> impl Iterator<Item = &Arc<str>> {
    cluster.endpoints.iter().chain(&cluster.unready).map(|endpoint| &endpoint.uid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::{TableVersion, compile};
    use crate::model::{AppProtocol, Endpoint, Model, ObjectName, Service, ServicePort, Workload};

    /// Services with endpoints of these uids, those in capitals not ready, and pods of these.
    fn table(services: &[&[&str]], pods: &[&str], before: &RoutingTable) -> RoutingTable {
        let mut model = Model::default();
        for (index, uids) in (0_u8..).zip(services) {
            let name = ObjectName::new("default", &format!("s{index}"));
            model.services.push(Service {
                name: name.clone(),
                cluster_ips: vec![[10, 96, 0, index].into()],
                headless: false,
                ports: vec![ServicePort {
                    name: "p".into(),
                    port: 80,
                    protocol: AppProtocol::Http,
                    tls: None,
                }],
                datagram_ports: Vec::new(),
                affinity: None,
            });
            let endpoints = (0_u8..).zip(*uids).map(|(nth, uid)| Endpoint {
                service: name.clone(),
                service_port: 80,
                address: ([10, 0, index, nth], 80).into(),
                ready: uid.chars().all(char::is_lowercase),
                pod: None,
                uid: uid.to_lowercase().into(),
                node: None,
                labels: Arc::default(),
            });
            model.endpoints.edit(|all| all.extend(endpoints));
        }
        model.workloads = (0_u8..).zip(pods).map(|(nth, uid)| pod(uid, nth)).collect();
        compile(&model, before, TableVersion::default())
    }

    fn pod(uid: &str, nth: u8) -> Workload {
        Workload {
            name: ObjectName::new("default", uid),
            uid: uid.into(),
            workload: uid.into(),
            node: None,
            service_account: uid.into(),
            addresses: vec![[10, 1, 0, nth].into()],
            labels: Arc::default(),
            accelerated: true,
            ready: true,
            probes: Vec::new(),
        }
    }

    #[test]
    fn what_is_nowhere_any_more_is_gone() {
        type Tables<'a> = (&'a [&'a [&'a str]], &'a [&'a str]);
        let check = |before: Tables<'_>, after: Tables<'_>, expected: &[&str]| {
            let first = table(before.0, before.1, &RoutingTable::default());
            let second = table(after.0, after.1, &first);
            let gone: HashSet<Arc<str>> = gone(&first, &second);
            let expected: HashSet<Arc<str>> = expected.iter().map(|&uid| uid.into()).collect();
            assert_eq!(gone, expected, "{before:?} -> {after:?}");
        };
        check((&[&["a", "b"], &["c"]], &["p"]), (&[&["a", "b"], &["c"]], &["p"]), &[]);
        check((&[&["a", "b"], &["c"]], &["p"]), (&[&["a"], &["c"]], &["p"]), &["b"]);
        // It takes no new work, and what is under way goes on.
        check((&[&["a", "b"]], &[]), (&[&["a", "B"]], &[]), &[]);
        check((&[&["a", "B"]], &[]), (&[&["a"]], &[]), &["b"]);
        check((&[&["a", "b"], &["c"]], &[]), (&[&["a"], &["c", "b"]], &[]), &[]);
        check((&[&["a", "b"], &["c"], &["b"]], &[]), (&[&["a"], &["c"], &["b"]], &[]), &[]);
        check((&[&["a"], &["c"]], &[]), (&[&["a"]], &[]), &["c"]);
        check((&[&["a"]], &["p", "q"]), (&[&["a"]], &["q"]), &["p"]);
        check((&[&["a", "p"]], &["p"]), (&[&["a"]], &["p"]), &[]);
        check((&[&["a", "p"]], &["p"]), (&[&["a", "p"]], &[]), &[]);
        check((&[], &[]), (&[&["a"]], &["p"]), &[]);
    }
}
