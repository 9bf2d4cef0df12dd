//! One routing table after another -> what changes of what the kernel is told of services. Entries that two tables share are
//! passed over unread, so that a change costs what it is about and not the whole table. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use agent_common::balance::End;

use super::{Decision, Lowered, Pool, PoolName, Told, everything, lower, of_datagrams, of_stream};
use crate::compile::RoutingTable;

/// What changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// What is not named here is to be gone.
    pub whole: bool,
    /// By the address that clients dial; `None`: it is gone.
    pub frontends: BTreeMap<End, Option<Decision>>,
    /// `None`: no frontend leads there any more.
    pub pools: BTreeMap<PoolName, Option<Pool>>,
    /// Backends that were there and are not.
    pub gone: BTreeSet<End>,
}

/// What the kernel was told last.
#[derive(Default)]
pub struct Follower {
    table: Option<Arc<RoutingTable>>,
    /// How many frontends have a backend, ready or not.
    known: HashMap<End, u32>,
    /// How many frontends lead to a pool.
    users: HashMap<PoolName, u32>,
}

impl Follower {
    /// Takes over a table. `whole`: the kernel may have something else than it was told last, and is told everything.
    pub fn follow(&mut self, table: &Arc<RoutingTable>, whole: bool) -> Changes {
        match self.table.replace(Arc::clone(table)).filter(|_| !whole) {
            Some(before) => self.change(&before, table),
            None => self.begin(table),
        }
    }

    fn begin(&mut self, table: &RoutingTable) -> Changes {
        let Lowered { frontends, pools, known } = lower(table);
        let gone = self.known.keys().filter(|end| !known.contains(end)).copied().collect();
        (self.known, self.users) = Default::default();
        everything(table).for_each(|told| self.learn(&told));
        Changes {
            whole: true,
            frontends: frontends.into_iter().map(|(at, decision)| (at, Some(decision))).collect(),
            pools: pools.into_iter().map(|(name, pool)| (name, Some(pool))).collect(),
            gone,
        }
    }

    fn change(&mut self, before: &RoutingTable, after: &RoutingTable) -> Changes {
        let (mut gone, mut new) = (Vec::new(), Vec::new());
        before.frontends.differences(&after.frontends, Arc::ptr_eq, |at, was, is| {
            gone.extend(was.map(|one| of_stream(*at, one)));
            new.extend(is.map(|one| of_stream(*at, one)));
        });
        before.datagrams.differences(&after.datagrams, Arc::ptr_eq, |at, was, is| {
            gone.extend(was.map(|one| of_datagrams(*at, one)));
            new.extend(is.map(|one| of_datagrams(*at, one)));
        });
        let mut changes = Changes::default();
        for told in gone {
            changes.gone.extend(told.backends.iter().copied());
            self.forget(&told);
            if let Some(name) = told.decision.pool {
                changes.pools.insert(name, None);
            }
            changes.frontends.insert(told.at, None);
        }
        for told in new {
            self.learn(&told);
            if let Some((name, pool)) = told.decision.pool.clone().zip(told.pool) {
                changes.pools.insert(name, Some(pool));
            }
            changes.frontends.insert(told.at, Some(told.decision));
        }
        changes.gone.retain(|end| !self.known.contains_key(end));
        // One that others still lead to is as it was.
        changes.pools.retain(|name, pool| pool.is_some() || !self.users.contains_key(name));
        changes
    }

    fn learn(&mut self, told: &Told) {
        for backend in &told.backends {
            *self.known.entry(*backend).or_default() += 1;
        }
        if let Some(name) = &told.decision.pool {
            *self.users.entry(name.clone()).or_default() += 1;
        }
    }

    fn forget(&mut self, told: &Told) {
        for backend in &told.backends {
            release(&mut self.known, backend);
        }
        if let Some(name) = &told.decision.pool {
            release(&mut self.users, name);
        }
    }
}

fn release<K: Hash + Eq>(counts: &mut HashMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::compile::{TableVersion, compile};
    use crate::model::{AppProtocol, Endpoint, Model, ObjectName, Service, ServicePort};

    /// A service: how it is spoken to, how many ClusterIPs it has (0: it is headless), which of its endpoints are there, and
    /// which are ready.
    type Sketch = (u8, u8, u8, u8);

    fn model(sketches: &[Sketch]) -> Model {
        let mut model = Model::default();
        for (index, (kind, addresses, there, ready)) in (0_u8..).zip(sketches) {
            let name = ObjectName::new("default", &format!("s{index}"));
            let protocol = [AppProtocol::Tcp, AppProtocol::Http][usize::from(kind % 2)];
            let port = |port| ServicePort { name: "p".into(), port, protocol, tls: None };
            model.services.push(Service {
                name: name.clone(),
                cluster_ips: (0..*addresses).map(|nth| [10, 96, index, nth].into()).collect(),
                headless: *addresses == 0,
                ports: vec![port(80)],
                datagram_ports: if *kind >= 2 { vec![port(53)] } else { Vec::new() },
                affinity: None,
            });
            for nth in (0..8_u8).filter(|nth| there >> nth & 1 == 1) {
                // Endpoints of two services may be one pod's.
                let ip = [10, 0, index / 2, nth];
                let endpoint = |service_port, port| Endpoint {
                    service: name.clone(),
                    service_port,
                    address: (ip, port).into(),
                    ready: ready >> nth & 1 == 1,
                    pod: None,
                    uid: format!("{index}-{nth}").into(),
                    node: None,
                    labels: Arc::default(),
                };
                model.endpoints.edit(|all| all.push(endpoint(80, 8080)));
                if *kind >= 2 {
                    model.datagram_endpoints.edit(|all| all.push(endpoint(53, 5353)));
                }
            }
        }
        model.endpoints.edit(|all| all.sort());
        model.datagram_endpoints.edit(|all| all.sort());
        model
    }

    /// What the kernel has after changes of what it had.
    fn told(before: Lowered, changes: Changes) -> Lowered {
        let mut now =
            if changes.whole { Lowered { known: before.known, ..Lowered::default() } } else { before };
        for (at, decision) in changes.frontends {
            match decision {
                Some(decision) => now.frontends.insert(at, decision),
                None => Some(now.frontends.remove(&at).expect("what goes was there")),
            };
        }
        for (name, pool) in changes.pools {
            match pool {
                Some(pool) => now.pools.insert(name, pool),
                None => Some(now.pools.remove(&name).expect("what goes was there")),
            };
        }
        now
    }

    proptest! {
        #[test]
        fn what_changes_makes_of_the_last_what_the_next_says(
            tables in prop::collection::vec((prop::collection::vec((0_u8..4, 0_u8..3, any::<u8>(), any::<u8>()), 0..6), any::<bool>()), 1..8)
        ) {
            let mut follower = Follower::default();
            let (mut before, mut kernel) = (Arc::new(RoutingTable::default()), Lowered::default());
            for (version, (sketches, whole)) in (1..).zip(tables) {
                let table = Arc::new(compile(&model(&sketches), &before, TableVersion::alone(version)));
                let changes = follower.follow(&table, whole);
                let expected = lower(&table);
                let gone: BTreeSet<End> = kernel.known.difference(&expected.known).copied().collect();
                prop_assert_eq!(&changes.gone, &gone);
                kernel = Lowered { known: expected.known.clone(), ..told(kernel, changes) };
                prop_assert_eq!(&kernel, &expected);
                before = table;
            }
        }
    }

    #[test]
    fn one_endpoint_changes_one_service() {
        let mut sketches = [(0, 2, 0b111, 0b111); 6];
        let first = Arc::new(compile(&model(&sketches), &RoutingTable::default(), TableVersion::alone(1)));
        sketches[3].3 = 0b011;
        let second = Arc::new(compile(&model(&sketches), &first, TableVersion::alone(2)));
        let mut follower = Follower::default();
        assert!(follower.follow(&first, false).whole);
        let changes = follower.follow(&second, false);
        assert_eq!((changes.whole, changes.frontends.len(), changes.pools.len()), (false, 2, 1));
        assert_eq!(changes.gone, BTreeSet::new(), "what is not ready is still there");
        assert_eq!(follower.follow(&second, false), Changes::default());
        assert_eq!(follower.follow(&second, true).frontends.len(), 12);
    }
}
