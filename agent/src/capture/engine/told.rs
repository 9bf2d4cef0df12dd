//! What of a table the kernel need not be told again: what the table before had as well. Pure.

use std::sync::Arc;

use crate::compile::{GatewayListener, RoutingTable};

/// The table that the kernel was told last, and how the one before it differed.
#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is the answer to another question")]
pub struct Told {
    /// With whether nothing was captured; `None`: nothing is known of what the kernel has.
    table: Option<(Arc<RoutingTable>, bool)>,
    policies: bool,
    destinations: bool,
    pods: bool,
    limits: bool,
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
            limits: !(same_pods && before.is_some_and(|before| has_same_limits(before, table))),
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

    /// Whether limits, or whom they are about, differ.
    pub const fn limits_changed(&self) -> bool {
        self.limits
    }

    /// Whether other pods take part in acceleration, as far as is known.
    pub const fn pods_changed(&self) -> bool {
        self.pods || self.table.is_none()
    }
}

fn has_same_limits(before: &RoutingTable, after: &RoutingTable) -> bool {
    let mut same = Arc::ptr_eq(&before.limits, &after.limits);
    same &= before.gateways.len() == after.gateways.len()
        && before.gateways.iter().zip(&after.gateways).all(|(was, is)| listen_alike(was, is));
    before.clusters.differences(&after.clusters, Arc::ptr_eq, |_, _, _| same = false);
    before.datagrams.differences(&after.datagrams, Arc::ptr_eq, |_, _, _| same = false);
    // An address may come, go, or pass to another service, without anything else changing.
    before.frontends.differences(&after.frontends, Arc::ptr_eq, |_, was, is| {
        same &= matches!((was, is), (Some(was), Some(is)) if was.service == is.service);
    });
    same
}

fn listen_alike(was: &Arc<GatewayListener>, is: &Arc<GatewayListener>) -> bool {
    Arc::ptr_eq(was, is)
        || was.port == is.port && was.addresses == is.addresses && was.listeners == is.listeners
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
    use crate::model::{
        AppProtocol, Endpoint, HostPattern, Listener, ListenerProtocol, Model, ObjectName, Service,
        ServicePort, Workload,
    };

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

    #[test]
    fn limits_are_told_again_when_they_or_those_they_are_about_change() {
        let mut documents = model();
        let table =
            |model: &Model, before: &RoutingTable| Arc::new(compile(model, before, TableVersion::default()));
        let first = table(&documents, &RoutingTable::default());
        let now = Told::default().next(&first, false);
        assert!(now.limits_changed());
        let now = now.next(&first, true);
        assert!(!now.limits_changed(), "a pause changes nothing at pods");
        let shared = |table: RoutingTable| {
            let (limits, workloads) = (Arc::clone(&first.limits), Arc::clone(&first.workloads));
            Arc::new(RoutingTable { workloads, limits, ..table })
        };
        let same = shared(compile(&documents, &first, TableVersion::default()));
        let now = now.next(&same, true);
        assert!(!now.limits_changed());
        documents.endpoints.edit(|all| all[0].address = "10.0.0.9:8080".parse().expect("is an address"));
        let before = shared(compile(&documents, &first, TableVersion::default()));
        let now = now.next(&before, true);
        assert!(now.limits_changed(), "another endpoint");
        documents.services[0].cluster_ips.push("10.96.0.2".parse().expect("is an address"));
        let after = shared(compile(&documents, &before, TableVersion::default()));
        let mut clusters_differ = false;
        before.clusters.differences(&after.clusters, Arc::ptr_eq, |_, _, _| clusters_differ = true);
        assert!(
            !clusters_differ && now.next(&after, true).limits_changed(),
            "another address of the service"
        );
    }

    #[test]
    fn limits_are_told_again_when_listeners_of_gateways_change() {
        let listener = |port, addresses: &[&str]| Listener {
            gateway: ObjectName::new("infra", "edge"),
            name: "http".into(),
            addresses: addresses.iter().map(|address| address.parse().expect("is an address")).collect(),
            port,
            protocol: ListenerProtocol::Http,
            hostname: HostPattern::Any,
            tls: None,
            routes: Vec::new(),
        };
        let first = Arc::new(RoutingTable::default());
        let table = |listener: Listener| {
            let model = Model { listeners: vec![listener].into(), ..Model::default() };
            let (limits, workloads) = (Arc::clone(&first.limits), Arc::clone(&first.workloads));
            let compiled = compile(&model, &RoutingTable::default(), TableVersion::default());
            Arc::new(RoutingTable { workloads, limits, ..compiled })
        };
        let mut now = Told::default().next(&first, false);
        for (next, changed, what) in [
            (listener(80, &[]), true, "one comes"),
            (listener(80, &[]), false, "it is compiled anew"),
            (listener(81, &[]), true, "its port changes"),
            (listener(81, &["192.0.2.1"]), true, "it gets an address"),
            (
                Listener { name: "other".into(), ..listener(81, &["192.0.2.1"]) },
                true,
                "another has its place",
            ),
        ] {
            now = now.next(&table(next), false);
            assert_eq!(now.limits_changed(), changed, "{what}");
        }
        assert!(now.next(&first, false).limits_changed(), "it goes");
    }
}
