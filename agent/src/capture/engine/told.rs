//! What of a table the kernel need not be told again: what the table before had as well. Pure.

use std::sync::Arc;

use crate::compile::RoutingTable;

/// The table that the kernel was told last, and how the one before it differed.
#[derive(Default)]
pub struct Told {
    /// With whether nothing was captured; `None`: nothing is known of what the kernel has.
    table: Option<(Arc<RoutingTable>, bool)>,
    policies: bool,
    destinations: bool,
    pods: bool,
}

impl Told {
    /// What is to be told of the next table. `paused`: whether nothing is captured.
    pub fn next(self, table: &Arc<RoutingTable>, paused: bool) -> Self {
        let before = self.table.as_ref().map(|(table, _)| &**table);
        let same_pods = before.is_some_and(|before| Arc::ptr_eq(&before.workloads, &table.workloads));
        let same_policies = before.is_some_and(|before| before.policies.is_same(&table.policies));
        let same_guard = before.is_some_and(|before| Arc::ptr_eq(&before.guard, &table.guard));
        let same_pause = self.table.as_ref().is_some_and(|(_, before)| *before == paused);
        let same_frontends = before.is_some_and(|before| has_same_addresses(before, table));
        Self {
            // Who is meant by a policy depends on which pods there are.
            policies: !(same_pods && same_policies && same_guard),
            destinations: !(same_frontends && same_pods && same_pause),
            pods: !(same_pods && same_policies),
            table: Some((Arc::clone(table), paused)),
        }
    }

    /// Whether policies, or the pods that they are about, differ.
    pub const fn policies_changed(&self) -> bool {
        self.policies
    }

    /// Whether other destinations are captured.
    pub const fn destinations_changed(&self) -> bool {
        self.destinations
    }

    /// Whether other pods take part in acceleration, as far as is known.
    pub const fn pods_changed(&self) -> bool {
        self.pods || self.table.is_none()
    }
}

fn has_same_addresses(before: &RoutingTable, after: &RoutingTable) -> bool {
    let mut same = true;
    before
        .frontends
        .differences(&after.frontends, Arc::ptr_eq, |_, was, is| same &= was.is_some() && is.is_some());
    same
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::{TableVersion, compile};
    use crate::model::{AppProtocol, Endpoint, Model, ObjectName, Service, ServicePort, Workload};

    fn model() -> Model {
        let (service, pod) = (ObjectName::new("default", "web"), ObjectName::new("default", "web-1"));
        let address = "10.0.0.1:8080".parse().expect("is an address");
        Model {
            services: vec![Service {
                name: service.clone(),
                cluster_ips: vec!["10.96.0.1".parse().expect("is an address")],
                headless: false,
                ports: vec![ServicePort {
                    name: "p".into(),
                    port: 80,
                    protocol: AppProtocol::Tcp,
                    tls: None,
                }],
                datagram_ports: Vec::new(),
                affinity: None,
            }]
            .into(),
            endpoints: vec![Endpoint {
                service,
                service_port: 80,
                address,
                ready: true,
                pod: Some(pod.clone()),
                uid: "u".into(),
                node: None,
                labels: Arc::default(),
            }]
            .into(),
            workloads: vec![Workload {
                name: pod,
                uid: "u".into(),
                workload: "web".into(),
                node: None,
                service_account: "web".into(),
                addresses: vec![address.ip()],
                labels: Arc::default(),
                accelerated: true,
                ready: true,
                probes: Vec::new(),
            }]
            .into(),
            ..Model::default()
        }
    }

    #[test]
    fn what_a_table_shares_with_the_one_before_is_not_told_again() {
        let mut documents = model();
        let table =
            |model: &Model, before: &RoutingTable| Arc::new(compile(model, before, TableVersion::default()));
        let told = |told: &Told| (told.policies_changed(), told.destinations_changed(), told.pods_changed());
        let first = table(&documents, &RoutingTable::default());
        let now = Told::default().next(&first, false);
        assert_eq!(told(&now), (true, true, true));
        let now = now.next(&first, false);
        assert_eq!(told(&now), (false, false, false));
        let now = now.next(&first, true);
        assert_eq!(told(&now), (false, true, false), "nothing is captured any more");
        documents.services[0].ports[0].port = 81;
        documents.endpoints.edit(|all| all[0].service_port = 81);
        let second = Arc::new(RoutingTable {
            workloads: Arc::clone(&first.workloads),
            guard: Arc::clone(&first.guard),
            ..compile(&documents, &first, TableVersion::default())
        });
        let now = now.next(&second, true);
        assert_eq!(told(&now), (false, true, false), "another port is captured");
        let pods = Arc::new(RoutingTable {
            frontends: second.frontends.clone(),
            guard: Arc::clone(&first.guard),
            workloads: Arc::default(),
            ..RoutingTable::default()
        });
        assert_eq!(told(&now.next(&pods, true)), (true, true, true), "other pods");
        assert!(Told::default().pods_changed(), "after a failure nothing is known");
    }
}
