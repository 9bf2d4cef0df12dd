//! The store as it is explored: the rules of [`crate::cluster::Store`] for the lease and the table.

use std::sync::Arc;

use super::Flaw;
use super::world::TTL;
use crate::cluster::election::Millis;
use crate::cluster::seal::{Form, Position};
use crate::cluster::store::Lease;
use crate::compile::Token;

/// A table, or a change of one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Table {
    pub(super) at: Position,
    pub(super) form: Form,
}

/// What the store holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Shared {
    lease: Option<(Lease, Millis)>,
    epoch: u64,
    /// The snapshot, and the changes that follow it.
    tables: Vec<Table>,
}

impl Shared {
    pub(super) fn new(epoch: u64) -> Self {
        Self { lease: None, epoch, tables: Vec::new() }
    }

    fn holder(&self, now: Millis) -> Option<&Lease> {
        self.lease.as_ref().filter(|(_, until)| *until > now).map(|(lease, _)| lease)
    }

    /// The new lease, or the one that is held.
    pub(super) fn acquire(
        &mut self,
        node: &Arc<str>,
        nonce: u64,
        above: u64,
        now: Millis,
    ) -> Result<Lease, Lease> {
        if let Some(lease) = self.holder(now) {
            return Err(lease.clone());
        }
        self.epoch = self.epoch.max(above) + 1;
        let lease = Lease { token: Token { epoch: self.epoch, nonce }, node: Arc::clone(node) };
        self.lease = Some((lease.clone(), now.after(TTL)));
        Ok(lease)
    }

    pub(super) fn renew(&mut self, lease: &Lease, now: Millis) -> bool {
        let held = self.holder(now) == Some(lease);
        if held {
            self.lease = Some((lease.clone(), now.after(TTL)));
        }
        held
    }

    pub(super) fn release(&mut self, lease: &Lease, now: Millis, flaw: Flaw) {
        if self.holder(now) == Some(lease) || flaw == Flaw::ReleasesWithoutComparing {
            self.lease = None;
        }
    }

    /// Whether it was taken.
    pub(super) fn publish(&mut self, lease: &Lease, table: &Table, now: Millis) -> bool {
        if self.holder(now) != Some(lease) {
            return false;
        }
        match table.form {
            Form::Snapshot { .. } => self.tables.clear(),
            Form::Delta { previous } if self.head().is_none_or(|head| head.chain != previous) => {
                return false;
            }
            Form::Delta { .. } => {}
        }
        self.tables.push(table.clone());
        true
    }

    /// The last of its tables.
    pub(super) fn head(&self) -> Option<Position> {
        self.tables.last().map(|table| table.at)
    }

    pub(super) fn tables(&self) -> impl Iterator<Item = &Table> {
        self.tables.iter()
    }

    /// What whoever stands there reads next.
    pub(super) fn after(&self, at: Option<Position>) -> Option<&Table> {
        match self.tables.iter().position(|table| at == Some(table.at)) {
            Some(here) => self.tables.get(here + 1),
            None => self.tables.first(),
        }
    }
}
