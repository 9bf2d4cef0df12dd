//! A change, read: what becomes of which values.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::WireError;
use super::chain::{ChainChange, Put, predecessor};
use super::change::Change;
use super::key::{EndpointKey, Key, ListenerKey, NameKey, RouteKey};
use super::record::{
    AuthorizationRecord, EndpointRecord, GuardRecord, LimitRecord, ListenerRecord, PeerRecord, PolicyRecord,
    RouteRecord, ServiceRecord, WorkloadRecord, read,
};
use crate::model::{
    AuthorizationPolicy, EdgeGuard, Endpoint, HttpRule, Listener, ObjectName, PeerAuthentication, RateLimit,
    RouteTable, Service, TrafficPolicy, Workload,
};

/// What becomes of values; `None`: they are removed.
pub(super) type Edits<K, V> = Vec<(K, Option<V>)>;

/// What becomes of the routes in one order of precedence.
pub(super) type RouteEdits = ChainChange<RouteKey, Arc<RouteTable>>;

/// A change, read.
#[derive(Default)]
pub(super) struct Edit {
    pub(super) services: Edits<NameKey, Service>,
    pub(super) endpoints: Edits<EndpointKey, Endpoint>,
    pub(super) datagrams: Edits<EndpointKey, Endpoint>,
    pub(super) workloads: Edits<NameKey, Workload>,
    pub(super) policies: Edits<NameKey, TrafficPolicy>,
    pub(super) authorization: Edits<NameKey, AuthorizationPolicy>,
    pub(super) peers: Edits<NameKey, PeerAuthentication>,
    pub(super) guards: Edits<NameKey, EdgeGuard>,
    pub(super) limits: Edits<NameKey, RateLimit>,
    pub(super) routes: RouteEdits,
    pub(super) listeners: ChainChange<ListenerKey, Listener>,
    pub(super) attached: BTreeMap<ListenerKey, RouteEdits>,
}

impl Edit {
    /// Reads all records. Kinds that this version does not know are passed over.
    pub(super) fn of(change: &Change) -> Result<Self, WireError> {
        let mut edit = Self::default();
        for (text, json) in change.puts() {
            if let Some(key) = parse(text)? {
                edit.put(key, Source { text, json })?;
            }
        }
        for text in change.removals() {
            if let Some(key) = parse(text)? {
                edit.remove(key);
            }
        }
        Ok(edit)
    }

    fn put(&mut self, key: Key, source: Source<'_>) -> Result<(), WireError> {
        match key {
            Key::Service(key) => {
                named(&mut self.services, key, source, ServiceRecord::named)?;
            }
            Key::Endpoint(key) => {
                let endpoint = source.read::<EndpointRecord>()?.at(key.clone());
                self.endpoints.push((key, Some(endpoint)));
            }
            Key::Datagram(key) => {
                let endpoint = source.read::<EndpointRecord>()?.at(key.clone());
                self.datagrams.push((key, Some(endpoint)));
            }
            Key::Workload(key) => named(&mut self.workloads, key, source, WorkloadRecord::named)?,
            Key::Policy(key) => named(&mut self.policies, key, source, PolicyRecord::of)?,
            Key::Authorization(key) => {
                named(&mut self.authorization, key, source, AuthorizationRecord::named)?;
            }
            Key::Peer(key) => named(&mut self.peers, key, source, PeerRecord::named)?,
            Key::Guard(key) => named(&mut self.guards, key, source, GuardRecord::named)?,
            Key::Limit(key) => named(&mut self.limits, key, source, LimitRecord::named)?,
            Key::Route(key) => self.routes.puts.push(source.route(key)?),
            Key::Listener(key) => {
                let (after, listener) = source.read::<ListenerRecord>()?.keyed(&key);
                let after = predecessor(after, &source.text)?;
                self.listeners.puts.push((key, (after, listener)));
            }
            Key::Attached(listener, key) => {
                let put = source.route(key)?;
                self.attached.entry(listener).or_default().puts.push(put);
            }
        }
        Ok(())
    }

    fn remove(&mut self, key: Key) {
        match key {
            Key::Service(key) => self.services.push((key, None)),
            Key::Endpoint(key) => self.endpoints.push((key, None)),
            Key::Datagram(key) => self.datagrams.push((key, None)),
            Key::Workload(key) => self.workloads.push((key, None)),
            Key::Policy(key) => self.policies.push((key, None)),
            Key::Authorization(key) => self.authorization.push((key, None)),
            Key::Peer(key) => self.peers.push((key, None)),
            Key::Guard(key) => self.guards.push((key, None)),
            Key::Limit(key) => self.limits.push((key, None)),
            Key::Route(key) => self.routes.removals.push(key),
            Key::Listener(key) => self.listeners.removals.push(key),
            Key::Attached(listener, key) => self.attached.entry(listener).or_default().removals.push(key),
        }
    }
}

fn parse(text: &str) -> Result<Option<Key>, WireError> {
    Key::parse(text).map_err(|_| WireError::Key { key: text.to_owned() })
}

fn named<R: DeserializeOwned, V>(
    edits: &mut Edits<NameKey, V>,
    key: NameKey,
    source: Source<'_>,
    value: impl Fn(R, ObjectName) -> V,
) -> Result<(), WireError> {
    let value = value(source.read()?, key.name.clone());
    edits.push((key, Some(value)));
    Ok(())
}

/// A record as it came.
#[derive(Clone, Copy)]
struct Source<'a> {
    text: &'a str,
    json: &'a [u8],
}

impl Source<'_> {
    fn read<R: DeserializeOwned>(self) -> Result<R, WireError> {
        read(self.text, self.json)
    }

    fn route(self, key: RouteKey) -> Result<Put<RouteKey, Arc<RouteTable>>, WireError> {
        let (after, table) = self.read::<RouteRecord<Vec<HttpRule>>>()?.keyed(&key);
        Ok((key, (predecessor(after, &self.text)?, Arc::new(table))))
    }
}
