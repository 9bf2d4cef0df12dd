//! What is compiled of a change's own is what is compiled of the whole.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::made;
use crate::compile::wire::{Change, Parts, Touched};
use crate::compile::{
    Action, Backend, RoutingTable, TableVersion, VirtualHost, compile, compile_parts, recompile,
};
use crate::model::{Endpoints, Model};

/// A table, readable and in a fixed order.
fn described(table: &RoutingTable) -> BTreeMap<String, String> {
    let mut lines = BTreeMap::new();
    let mut line = |what: String, value: &dyn Debug| {
        assert!(lines.insert(what.clone(), format!("{value:?}")).is_none(), "{what} twice");
    };
    let host = |host: &VirtualHost| {
        let rules: Vec<_> = host.layers.iter().map(|layer| format!("{:?}", layer.rules())).collect();
        (host.name.clone(), rules, format!("{:?}", host.default))
    };
    for (address, one) in table.frontends.iter() {
        let head = (&one.service, one.port, one.protocol, one.headless, one.affinity, &one.tcp);
        line(format!("frontend {address}"), &(head, host(&one.http)));
    }
    for (address, one) in table.datagrams.iter() {
        line(format!("datagrams {address}"), one);
    }
    for (address, one) in table.workloads.iter() {
        line(format!("workload {address}"), one);
    }
    for (address, one) in table.policies.iter() {
        line(format!("policy {address}"), one);
    }
    for (key, one) in table.clusters.iter() {
        line(format!("cluster {key:?}"), one);
    }
    for (index, one) in table.gateways.iter().enumerate() {
        let hosts: Vec<_> = one.hosts.iter().map(|(pattern, one)| (pattern, host(one))).collect();
        let head = (&one.name, &one.listeners, &one.addresses, one.port, one.protocol);
        line(format!("gateway {index}"), &(head, hosts));
    }
    line("guard".to_owned(), &table.guard);
    lines
}

fn check_equal(left: &RoutingTable, right: &RoutingTable) {
    let (left, right) = (described(left), described(right));
    for (what, value) in &left {
        assert_eq!(Some(value), right.get(what), "{what}");
    }
    assert_eq!(left.keys().collect::<Vec<_>>(), right.keys().collect::<Vec<_>>());
}

/// Every cluster that a table's rules lead to is the one that the table has.
fn check_consistent(table: &RoutingTable) {
    let hosts = table.frontends.values().map(|frontend| &frontend.http);
    let of_gateways = table.gateways.iter().flat_map(|gateway| gateway.hosts.iter().map(|(_, host)| host));
    let rules = hosts.chain(of_gateways).flat_map(|host| host.rules());
    let backends = rules.flat_map(|(_, route)| match &route.action {
        Action::Forward(forward) => forward.backends.as_slice(),
        _ => &[],
    });
    let routed = backends.filter_map(|weighted| match &weighted.backend {
        Backend::Cluster(cluster) => Some(cluster),
        Backend::Original | Backend::Invalid { .. } => None,
    });
    for cluster in routed.chain(table.frontends.values().map(|frontend| &frontend.tcp)) {
        let own = table.clusters.get(&cluster.key);
        assert!(own.is_some_and(|own| Arc::ptr_eq(own, cluster)), "{:?} is of another table", cluster.key);
    }
}

/// What a whole compilation shares with the table before, a partial one does as well.
fn check_sharing(whole: &RoutingTable, partial: &RoutingTable, previous: &RoutingTable) {
    fn entries<'a, K: Debug + Ord, V: 'a, I: Iterator<Item = (K, &'a Arc<V>)>>(tables: [I; 3]) {
        let [whole, partial, previous] = tables.map(Iterator::collect::<BTreeMap<K, _>>);
        for (key, one) in whole {
            let is_kept =
                |table: &BTreeMap<K, &Arc<V>>| table.get(&key).is_some_and(|it| Arc::ptr_eq(it, one));
            assert!(!is_kept(&previous) || is_kept(&partial), "{key:?} is a copy");
        }
    }
    let tables = [whole, partial, previous];
    entries(tables.map(|table| table.frontends.iter()));
    entries(tables.map(|table| table.datagrams.iter()));
    entries(tables.map(|table| table.clusters.iter()));
    entries(tables.map(|table| table.policies.iter()));
    entries(tables.map(|table| table.gateways.iter().map(|gateway| (&gateway.name, gateway))));
}

/// How a list of one model becomes more like that of another.
#[derive(Debug, Clone, Copy)]
enum Step {
    Keep,
    Replace,
    /// Its last value goes.
    Shorten,
    /// A value of the other comes, or takes the place of the one with its name.
    Take(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Keep),
        1 => Just(Step::Replace),
        2 => Just(Step::Shorten),
        3 => (0..4_usize).prop_map(Step::Take),
    ]
}

fn take<T: Clone, K: Ord>(list: &mut Vec<T>, other: &[T], step: Step, key: impl Fn(&T) -> K) {
    match step {
        Step::Keep => {}
        Step::Replace => *list = other.to_vec(),
        Step::Shorten => drop(list.pop()),
        Step::Take(index) => {
            let Some(value) = other.get(index) else { return };
            list.retain(|own| key(own) != key(value));
            list.push(value.clone());
            list.sort_by_key(|value| key(value));
        }
    }
}

fn changed(model: &Model, other: &Model, steps: &[Step]) -> Model {
    let mut next = model.clone();
    take(&mut next.services, &other.services, steps[0], |one| one.name.clone());
    let place = |one: &crate::model::Endpoint| (one.service.clone(), one.service_port, one.address);
    let all = |endpoints: &Endpoints| endpoints.iter().cloned().collect::<Vec<_>>();
    next.endpoints.edit(|own| take(own, &all(&other.endpoints), steps[1], place));
    next.datagram_endpoints.edit(|own| take(own, &all(&other.datagram_endpoints), steps[2], place));
    take(&mut next.workloads, &other.workloads, steps[3], |one| one.name.clone());
    take(&mut next.policies, &other.policies, steps[4], |one| one.service.clone());
    take(&mut next.authorization, &other.authorization, steps[5], |one| one.name.clone());
    take(&mut next.guards, &other.guards, steps[6], |one| one.name.clone());
    take(&mut next.peers, &other.peers, steps[9], |one| one.name.clone());
    // These have an order of their own, which a constant key leaves as it is.
    match steps[7] {
        Step::Take(index) => next.mesh_routes.extend(other.mesh_routes.get(index).cloned()),
        step => take(&mut next.mesh_routes, &other.mesh_routes, step, |_| ()),
    }
    match steps[8] {
        Step::Take(index) => next.listeners.extend(other.listeners.get(index).cloned()),
        step => take(&mut next.listeners, &other.listeners, step, |_| ()),
    }
    next
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_part_is_compiled_as_the_whole_is(
        start in made::model(),
        changes in vec((made::model(), vec(step(), 10), any::<bool>()), 1..8),
    ) {
        let mut model = start;
        let mut parts = Parts::default();
        parts.apply(&Change::whole(&model)).expect("fits");
        let mut table = compile_parts(&parts, &RoutingTable::default(), TableVersion::alone(1));
        check_equal(&table, &compile(&model, &RoutingTable::default(), TableVersion::alone(1)));
        check_consistent(&table);
        let mut touched = Touched::default();
        for (other, steps, at_once) in changes {
            let next = changed(&model, &other, &steps);
            touched.extend(parts.apply(&Change::between(&model, &next)).expect("fits"));
            model = next;
            if !at_once {
                continue;
            }
            let whole = compile(&model, &table, TableVersion::alone(2));
            let partial = recompile(&parts, &std::mem::take(&mut touched), &table, TableVersion::alone(2));
            check_equal(&partial, &whole);
            check_consistent(&partial);
            check_sharing(&whole, &partial, &table);
            let of_parts = compile_parts(&parts, &table, TableVersion::alone(2));
            check_equal(&of_parts, &whole);
            check_sharing(&whole, &of_parts, &table);
            table = partial;
        }
    }
}
