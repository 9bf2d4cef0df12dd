//! What goes wrong in the simulation.

use super::host::Link;
use super::{HEAL, Happening, LAST_WRITE, Simulation, TTL_MS, Told, store};
use crate::cluster::LocalState;
use crate::cluster::store::StoreError;

/// How many kinds of faults there are.
pub(super) const KINDS: usize = 15;

impl Simulation {
    /// Something goes wrong, and the next thing does before long.
    pub(super) fn fault(&mut self) {
        let host = usize::try_from(self.random.next() % self.hosts.len() as u64).expect("is small");
        let end = self.now + 1 + self.below(2 * TTL_MS);
        // Where the store's data and clocks are left alone, the last kinds do not come.
        let kinds = if self.steady { 9 } else { KINDS as u64 };
        let kind = match self.below(kinds) {
            0 => self.pause(host, end),
            1 => self.kill(host, true, end),
            2 => self.kill(host, false, end),
            3 => self.link(host, Link { cut: true, ..Link::default() }, end),
            4 => self.link(host, Link { loss_percent: 10 + self.below(60), ..Link::default() }, end),
            5 => self.link(host, Link { delay_max: TTL_MS, ..Link::default() }, end),
            6 => self.refuse(host, StoreError::ReadOnly("no memory".to_owned()), end),
            7 => self.refuse_all(end),
            8 => self.fill_disk(host, end),
            9 => self.lose_data(),
            10 => {
                self.saved = Some(self.store.state());
                "a copy of the store"
            }
            11 => self.restore(),
            12 => {
                let far = 1 + self.below(2 * TTL_MS);
                self.hosts[host].leap(far);
                "a clock leaps"
            }
            13 => {
                let percent = 50 + self.below(151);
                self.hosts[host].go_at(percent, self.now);
                "a clock goes at another rate"
            }
            _ => self.leap_of_the_store(),
        };
        *self.tally.faults.entry(kind).or_default() += 1;
        if self.trace {
            println!("{:6} node{host}: {kind}", self.now);
        }
        let next = self.now + 1 + self.below(TTL_MS / 2);
        if next < HEAL {
            self.at(next, Happening::Fault);
        }
    }

    fn pause(&mut self, host: usize, end: u64) -> &'static str {
        self.hosts[host].paused_until = end;
        "a process stands still"
    }

    fn kill(&mut self, host: usize, keeps_disk: bool, end: u64) -> &'static str {
        self.hosts[host].kill(keeps_disk);
        // At once, or after a time.
        let start = if self.one_in(2) { self.now + 1 } else { end };
        self.at(start, Happening::Start(host));
        if keeps_disk { "a process is killed" } else { "a machine is replaced" }
    }

    fn link(&mut self, host: usize, link: Link, end: u64) -> &'static str {
        self.hosts[host].link = link;
        self.at(end, Happening::LinkUp(host));
        match link {
            Link { cut: true, .. } => "a link is cut",
            Link { loss_percent: 0, .. } => "a link is slow",
            Link { .. } => "a link loses messages",
        }
    }

    pub(super) fn link_up(&mut self, host: usize) {
        self.hosts[host].link = Link::default();
        let (at, boot) = (self.now + 1, self.hosts[host].boot);
        self.at(at, Happening::Told { host, boot, what: Told::Notice(store::Event::Connected) });
    }

    fn refuse(&mut self, host: usize, error: StoreError, end: u64) -> &'static str {
        self.hosts[host].client.fail(Some(error));
        self.at(end, Happening::StoreUp(host));
        "the store takes nothing from one"
    }

    fn refuse_all(&mut self, end: u64) -> &'static str {
        for host in 0..self.hosts.len() {
            self.refuse(host, StoreError::Unreachable("it is gone".to_owned()), end);
        }
        "the store is gone"
    }

    fn fill_disk(&mut self, host: usize, end: u64) -> &'static str {
        self.hosts[host].disk_mut().full = true;
        self.at(end, Happening::DiskFree(host));
        "a disk is full"
    }

    fn lose_data(&mut self) -> &'static str {
        self.store.restore(LocalState::default());
        self.tell_all();
        "the store is empty"
    }

    fn restore(&mut self) -> &'static str {
        if let Some(saved) = &self.saved {
            self.store.restore(saved.clone());
            self.tell_all();
        }
        "the store is what it was"
    }

    fn leap_of_the_store(&mut self) -> &'static str {
        let far = self.below(2 * TTL_MS);
        // Back and forth, and never to before all began.
        self.server_ahead =
            if self.one_in(2) { self.server_ahead + far } else { self.server_ahead - far / 2 };
        self.server_ahead = self.server_ahead.max(5 * TTL_MS);
        "the store's clock leaps"
    }

    /// All is well from now on; a document is written when that has had its time to show.
    pub(super) fn heal(&mut self) {
        self.healed = true;
        for host in 0..self.hosts.len() {
            self.hosts[host].paused_until = self.now;
            self.hosts[host].go_at(100, self.now);
            self.hosts[host].disk_mut().full = false;
            self.hosts[host].client.fail(None);
            self.link_up(host);
            self.at(self.now, Happening::Start(host));
        }
        self.tell_all();
        self.at(LAST_WRITE, Happening::Write);
    }
}
