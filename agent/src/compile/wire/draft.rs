//! Model -> the records that a change puts and removes.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

use super::change::Change;
use super::key::{EndpointKey, Key, ListenerKey, NameKey, Place, RouteKey};
use super::record::{
    AuthorizationRecord, EndpointRecord, GuardRecord, LimitRecord, ListenerRecord, PeerRecord, PolicyRecord,
    RouteRecord, ServiceRecord, WorkloadRecord, write,
};
use crate::model::{Endpoint, Endpoints, Listener, Model, ObjectName, RouteTable, SharedList};

/// How a value with a name is written: its key, and itself.
type Written<T> = (fn(NameKey) -> Key, fn(&T) -> Box<[u8]>);

/// A change in the making.
#[derive(Default)]
pub(super) struct Draft {
    puts: Vec<(Box<str>, Box<[u8]>)>,
    removals: Vec<Box<str>>,
}

impl Draft {
    pub(super) fn whole(model: &Model) -> Self {
        Self::between(&Model::default(), model)
    }

    pub(super) fn between(before: &Model, after: &Model) -> Self {
        let mut draft = Self::default();
        draft.named(
            (&before.services, &after.services),
            |service| &service.name,
            (Key::Service, |service| write(&ServiceRecord::from(service))),
        );
        draft.endpoints(&before.endpoints, &after.endpoints, Key::Endpoint);
        draft.endpoints(&before.datagram_endpoints, &after.datagram_endpoints, Key::Datagram);
        draft.named(
            (&before.workloads, &after.workloads),
            |workload| &workload.name,
            (Key::Workload, |workload| write(&WorkloadRecord::from(workload))),
        );
        draft.named(
            (&before.policies, &after.policies),
            |policy| &policy.service,
            (Key::Policy, |policy| write(&PolicyRecord::from(policy))),
        );
        draft.named(
            (&before.authorization, &after.authorization),
            |policy| &policy.name,
            (Key::Authorization, |policy| write(&AuthorizationRecord::from(policy))),
        );
        draft.named(
            (&before.peers, &after.peers),
            |peer| &peer.name,
            (Key::Peer, |peer| write(&PeerRecord::from(peer))),
        );
        draft.named(
            (&before.guards, &after.guards),
            |guard| &guard.name,
            (Key::Guard, |guard| write(&GuardRecord::from(guard))),
        );
        draft.named(
            (&before.limits, &after.limits),
            |limit| &limit.name,
            (Key::Limit, |limit| write(&LimitRecord::from(limit))),
        );
        if !before.mesh_routes.is(&after.mesh_routes) {
            draft.routes(&before.mesh_routes, &after.mesh_routes, &Key::Route);
        }
        if !before.listeners.is(&after.listeners) {
            draft.listeners(&before.listeners, &after.listeners);
        }
        draft
    }

    pub(super) fn between_endpoints(before: &Model, after: &Model, services: &BTreeSet<ObjectName>) -> Self {
        let mut draft = Self::default();
        for name in services {
            draft.of_service(before.endpoints.of(name), after.endpoints.of(name), Key::Endpoint);
            let datagrams = (before.datagram_endpoints.of(name), after.datagram_endpoints.of(name));
            draft.of_service(datagrams.0, datagrams.1, Key::Datagram);
        }
        draft
    }

    pub(super) fn finish(self) -> Change {
        Change::new(self.puts, self.removals)
    }

    fn put(&mut self, key: &Key, value: Box<[u8]>) {
        self.puts.push((key.to_string().into(), value));
    }

    fn remove(&mut self, key: &Key) {
        self.removals.push(key.to_string().into());
    }

    fn named<T: PartialEq>(
        &mut self,
        (before, after): (&SharedList<T>, &SharedList<T>),
        name: fn(&T) -> &ObjectName,
        (key, value): Written<T>,
    ) {
        if before.is(after) {
            return;
        }
        let order = |a: &T, b: &T| name(a).cmp(name(b));
        let key = |of: &T, nth| key(NameKey { name: name(of).clone(), nth });
        self.sorted((before, after), order, key, value);
    }

    fn endpoints(&mut self, before: &Endpoints, after: &Endpoints, key: fn(EndpointKey) -> Key) {
        before.differences(after, |before, after| self.of_service(before, after, key));
    }

    fn of_service(&mut self, before: &[Endpoint], after: &[Endpoint], key: fn(EndpointKey) -> Key) {
        let order = |a: &Endpoint, b: &Endpoint| {
            let place = |of: &Endpoint| (of.service_port, of.address);
            a.service.cmp(&b.service).then_with(|| place(a).cmp(&place(b)))
        };
        let key = |of: &Endpoint, nth| {
            let place = Place { port: of.service_port, address: of.address, nth };
            key(EndpointKey { service: of.service.clone(), place })
        };
        self.sorted((before, after), order, key, |endpoint| write(&EndpointRecord::from(endpoint)));
    }

    fn sorted<T: PartialEq>(
        &mut self,
        (before, after): (&[T], &[T]),
        order: impl Fn(&T, &T) -> Ordering,
        key: impl Fn(&T, u32) -> Key,
        value: impl Fn(&T) -> Box<[u8]>,
    ) {
        let (before, after) = (numbered(before, &order), numbered(after, &order));
        let order = |a: &(&T, u32), b: &(&T, u32)| order(a.0, b.0).then(a.1.cmp(&b.1));
        compare(&before, &after, order, PartialEq::eq, |difference| match difference {
            Difference::New((new, nth)) => self.put(&key(new, *nth), value(new)),
            Difference::Gone((old, nth)) => self.remove(&key(old, *nth)),
        });
    }

    fn routes(&mut self, before: &[RouteTable], after: &[RouteTable], key: &impl Fn(RouteKey) -> Key) {
        let name = |table: &RouteTable, nth| RouteKey { kind: table.kind, source: table.source.clone(), nth };
        let (before, after) = (linked(before, name), linked(after, name));
        compare(&before, &after, Link::order, PartialEq::eq, |difference| match difference {
            Difference::New(link) => {
                let record = RouteRecord::new(link.value, link.after.as_ref());
                self.put(&key(link.key.clone()), write(&record));
            }
            Difference::Gone(link) => self.remove(&key(link.key.clone())),
        });
    }

    fn listeners(&mut self, before: &[Listener], after: &[Listener]) {
        let name =
            |of: &Listener, nth| ListenerKey { gateway: of.gateway.clone(), name: of.name.clone(), nth };
        let (before, after) = (linked(before, name), linked(after, name));
        let same = |a: &Link<'_, _, _>, b: &Link<'_, _, _>| {
            a.after == b.after && same_apart_from_routes(a.value, b.value)
        };
        compare(&before, &after, Link::order, same, |difference| match difference {
            Difference::New(link) => {
                let record = ListenerRecord::new(link.value, link.after.as_ref());
                self.put(&Key::Listener(link.key.clone()), write(&record));
            }
            Difference::Gone(link) => self.remove(&Key::Listener(link.key.clone())),
        });
        for link in &after {
            let key = |route| Key::Attached(link.key.clone(), route);
            self.routes(routes_of(&before, &link.key), &link.value.routes, &key);
        }
        for link in before.iter().filter(|link| after.binary_search_by(|new| new.key.cmp(&link.key)).is_err())
        {
            self.routes(&link.value.routes, &[], &|route| Key::Attached(link.key.clone(), route));
        }
    }
}

fn same_apart_from_routes(a: &Listener, b: &Listener) -> bool {
    a.gateway == b.gateway
        && a.name == b.name
        && a.addresses == b.addresses
        && a.port == b.port
        && a.protocol == b.protocol
        && a.hostname == b.hostname
        && a.tls == b.tls
}

fn routes_of<'m>(links: &[Link<'m, ListenerKey, Listener>], key: &ListenerKey) -> &'m [RouteTable] {
    let found = links.binary_search_by(|link| link.key.cmp(key));
    found.map_or(&[], |index| &links[index].value.routes)
}

/// The values in their order, equal ones numbered. A model has them so; one that was made otherwise is sorted here.
fn numbered<'m, T>(values: &'m [T], order: &impl Fn(&T, &T) -> Ordering) -> Vec<(&'m T, u32)> {
    let mut numbered: Vec<(&T, u32)> = values.iter().map(|value| (value, 0)).collect();
    if !values.is_sorted_by(|a, b| order(a, b) != Ordering::Greater) {
        numbered.sort_by(|a, b| order(a.0, b.0));
    }
    for index in 1..numbered.len() {
        let (before, nth) = numbered[index - 1];
        if order(before, numbered[index].0) == Ordering::Equal {
            numbered[index].1 = nth + 1;
        }
    }
    numbered
}

/// A value with its place in the order of precedence.
struct Link<'m, K, T> {
    key: K,
    after: Option<K>,
    value: &'m T,
}

impl<K: Ord, T> Link<'_, K, T> {
    fn order(&self, other: &Self) -> Ordering {
        self.key.cmp(&other.key)
    }
}

impl<K: PartialEq, T: PartialEq> PartialEq for Link<'_, K, T> {
    fn eq(&self, other: &Self) -> bool {
        self.after == other.after && self.value == other.value
    }
}

/// The values sorted by their keys.
fn linked<T, K: Clone + Ord + Hash>(values: &[T], name: impl Fn(&T, u32) -> K) -> Vec<Link<'_, K, T>> {
    let mut seen: HashMap<K, u32> = HashMap::with_capacity(values.len());
    let mut last = None;
    let mut links: Vec<Link<'_, K, T>> = Vec::with_capacity(values.len());
    for value in values {
        let count = seen.entry(name(value, 0)).or_default();
        let key = name(value, *count);
        *count += 1;
        links.push(Link { after: last.replace(key.clone()), key, value });
    }
    links.sort_unstable_by(Link::order);
    links
}

enum Difference<T> {
    /// It is in the first list alone.
    Gone(T),
    /// It is in the second list alone, or another one there.
    New(T),
}

/// Walks two sorted lists side by side.
fn compare<'a, T>(
    before: &'a [T],
    after: &'a [T],
    order: impl Fn(&T, &T) -> Ordering,
    same: impl Fn(&T, &T) -> bool,
    mut found: impl FnMut(Difference<&'a T>),
) {
    let (mut before, mut after) = (before.iter().peekable(), after.iter().peekable());
    loop {
        let which = match (before.peek(), after.peek()) {
            (None, None) => return,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            // Most are the same, which takes one comparison to see.
            (Some(old), Some(new)) if same(old, new) && order(old, new) == Ordering::Equal => {
                before.next();
                after.next();
                continue;
            }
            (Some(old), Some(new)) => order(old, new),
        };
        if which == Ordering::Equal {
            before.next();
        }
        let difference = match which {
            Ordering::Less => before.next().map(Difference::Gone),
            Ordering::Equal | Ordering::Greater => after.next().map(Difference::New),
        };
        difference.into_iter().for_each(&mut found);
    }
}
