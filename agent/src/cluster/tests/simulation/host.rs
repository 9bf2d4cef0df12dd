//! A machine of the simulation: its clock, its disk, its link to the store, and the process on it.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::broadcast;

use super::TTL;
use super::agent::{Agent, Disk, Question};
use crate::cluster::election::Millis;
use crate::cluster::store::Event;
use crate::cluster::{LocalStore, Store as _};
use crate::compile::TableVersion;

/// A way to the store.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    pub(super) cut: bool,
    pub(super) loss_percent: u64,
    /// The longest that a message is under way.
    pub(super) delay_max: u64,
}

impl Default for Link {
    fn default() -> Self {
        Self { cut: false, loss_percent: 0, delay_max: 10 }
    }
}

/// A clock that goes faster or slower than time does, and may leap.
#[derive(Debug, Clone, Copy)]
struct Clock {
    since: u64,
    local: u64,
    percent: u64,
}

#[derive(Debug)]
pub(super) struct Host {
    pub(super) name: Arc<str>,
    pub(super) client: LocalStore,
    pub(super) events: broadcast::Receiver<Event>,
    pub(super) link: Link,
    pub(super) paused_until: u64,
    pub(super) agent: Option<Agent>,
    /// Counts processes.
    pub(super) boot: u64,
    /// Questions whose answer the process awaits.
    pub(super) pending: BTreeMap<u64, Question>,
    /// When the process is to be woken.
    pub(super) wake: Option<u64>,
    /// The highest that was applied here since the disk was new.
    pub(super) applied: TableVersion,
    clock: Clock,
    disk: Disk,
}

impl Host {
    pub(super) fn new(number: u64, store: &LocalStore) -> Self {
        let client = store.client();
        Self {
            name: format!("node{number}").into(),
            events: client.events(),
            client,
            link: Link::default(),
            paused_until: 0,
            agent: None,
            boot: 0,
            pending: BTreeMap::new(),
            wake: None,
            applied: TableVersion::default(),
            clock: Clock { since: 0, local: 1000 * number, percent: 100 },
            disk: Disk::default(),
        }
    }

    pub(super) fn local(&self, now: u64) -> Millis {
        let Clock { since, local, percent } = self.clock;
        Millis(local + (now - since) * percent / 100)
    }

    pub(super) fn leap(&mut self, far: u64) {
        self.clock.local += far;
    }

    pub(super) fn go_at(&mut self, percent: u64, now: u64) {
        self.clock = Clock { since: now, local: self.local(now).0, percent };
    }

    pub(super) fn leads(&self, now: u64) -> bool {
        self.agent.as_ref().is_some_and(|agent| agent.election.leads(self.local(now)).is_some())
    }

    pub(super) fn awaits(&self, boot: u64, id: u64) -> bool {
        self.boot == boot && self.pending.contains_key(&id)
    }

    /// What is on its disk, whether or not a process has it open.
    pub(super) fn disk_mut(&mut self) -> &mut Disk {
        self.agent.as_mut().map_or(&mut self.disk, |agent| &mut agent.disk)
    }

    /// A process begins, unless one runs.
    pub(super) fn start(&mut self, nonce: u64, now: u64) -> bool {
        if self.agent.is_some() {
            return false;
        }
        self.boot += 1;
        let (disk, now) = (std::mem::take(&mut self.disk), self.local(now));
        self.agent = Some(Agent::new(Arc::clone(&self.name), nonce, TTL, disk, now));
        true
    }

    /// The process is killed; without its disk the machine is a new one.
    pub(super) fn kill(&mut self, keeps_disk: bool) {
        if let Some(agent) = self.agent.take() {
            self.disk = agent.disk;
        }
        self.pending.clear();
        (self.wake, self.paused_until) = (None, 0);
        if !keeps_disk {
            (self.disk, self.applied) = (Disk::default(), TableVersion::default());
        }
    }

    /// When the process is to be woken, if that is earlier than it is now.
    pub(super) fn wakes(&mut self, now: u64) -> Option<u64> {
        let wake = self.agent.as_ref()?.election.wake_at()?;
        let left = wake.0.saturating_sub(self.local(now).0);
        let at = now + (left * 100).div_ceil(self.clock.percent);
        let earlier = self.wake.is_none_or(|known| at < known);
        if earlier {
            self.wake = Some(at);
        }
        earlier.then_some(at)
    }
}
