//! The life of capture: start, follow interfaces and tables, stop.

use std::collections::{BTreeMap, HashSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{Stream, StreamExt};
use tokio::sync::{oneshot, watch};
use tokio::time::MissedTickBehavior;

use super::interfaces::Hooked;
use super::listener::CaptureListeners;
use super::netlink::Netlink;
use super::programs::{Attach, Captured, Counters, Programs};
use super::{CaptureError, CaptureSettings, CaptureStatus, LocalAddresses, plumbing};
use crate::compile::RoutingTable;

/// Netlink may drop messages under pressure; everything is read anew this often.
const RESYNC: Duration = Duration::from_secs(5);
/// Changes that arrive together are answered by one reading.
const SETTLE: Duration = Duration::from_millis(5);

/// Yields once for each change that netlink reports.
type Changes = Pin<Box<dyn Stream<Item = ()> + Send>>;

/// What one look at the interfaces changed.
#[derive(Default)]
struct Reconciled {
    hooked: Vec<(String, Hooked)>,
    /// Failures that are new, or have a new reason.
    failed: Vec<CaptureError>,
}

/// Capture, installed and running on the caller's task.
pub struct Engine {
    settings: CaptureSettings,
    programs: Programs,
    netlink: Netlink,
    changes: Changes,
    local: LocalAddresses,
    tables: watch::Receiver<Arc<RoutingTable>>,
    captured: Captured,
    failed: BTreeMap<u32, (String, String)>,
    status: watch::Sender<CaptureStatus>,
    stop: oneshot::Receiver<oneshot::Sender<()>>,
}

/// Steers a running engine.
pub struct EngineHandle {
    stop: oneshot::Sender<oneshot::Sender<()>>,
    status: watch::Receiver<CaptureStatus>,
    counters: Counters,
}

impl EngineHandle {
    /// What the programs count.
    pub fn counters(&self) -> Counters {
        self.counters.clone()
    }

    /// What capture looks like now.
    pub fn status(&self) -> watch::Receiver<CaptureStatus> {
        self.status.clone()
    }

    /// New connections go direct from now on; established ones stay. Done when the receiver fires; the engine then waits
    /// for [`Engine::remove`].
    pub async fn stop_capturing(self) {
        let (done, fired) = oneshot::channel();
        if self.stop.send(done).is_ok() {
            let _ = fired.await;
        }
    }
}

impl Engine {
    /// Installs everything. On an error nothing stays behind.
    pub async fn start(
        settings: CaptureSettings,
        listeners: &[CaptureListeners],
        local: LocalAddresses,
        tables: watch::Receiver<Arc<RoutingTable>>,
    ) -> Result<(Self, EngineHandle), CaptureError> {
        let (netlink, changes) = Netlink::open()?;
        netlink.snapshot().await?.check_uplinks(&settings)?;
        let programs = Programs::load(settings.marks, settings.workers)?;
        // One transaction, or nothing: where nft is missing there is nothing to undo yet.
        plumbing::install_notrack(settings.marks)?;
        let (stop_sender, stop) = oneshot::channel();
        let (status, status_receiver) = watch::channel(CaptureStatus::default());
        let counters = programs.counters();
        let mut engine = Self {
            settings,
            programs,
            netlink,
            changes: Box::pin(changes),
            local,
            tables,
            captured: Captured::default(),
            failed: BTreeMap::new(),
            status,
            stop,
        };
        if let Err(error) = engine.install(listeners).await {
            engine.remove().await;
            return Err(error);
        }
        Ok((engine, EngineHandle { stop: stop_sender, status: status_receiver, counters }))
    }

    async fn install(&mut self, listeners: &[CaptureListeners]) -> Result<(), CaptureError> {
        plumbing::install_routing(self.netlink.handle(), self.settings.marks).await?;
        // Uplinks come before the listeners, so that no reply is ever missed.
        let Reconciled { hooked, failed } = self.reconcile().await?;
        if let Some(error) = failed.into_iter().next() {
            return Err(error);
        }
        self.apply_table()?;
        self.programs.set_listeners(listeners)?;
        report_hooked(&hooked);
        self.publish();
        Ok(())
    }

    /// Follows the world until told to stop; then only [`Engine::remove`] is left to do.
    pub async fn run(mut self) -> Self {
        let mut resync = tokio::time::interval(RESYNC);
        resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(()) = self.changes.next() => {
                    self.settle().await;
                    self.reconcile_or_report().await;
                }
                _ = resync.tick() => self.reconcile_or_report().await,
                Ok(()) = self.tables.changed() => {
                    if let Err(error) = self.apply_table() {
                        tracing::error!(%error, "the kernel's destinations could not be updated; the last ones stay");
                    }
                }
                stopped = &mut self.stop => {
                    if let Err(error) = self.programs.clear_listeners(self.settings.workers) {
                        tracing::error!(%error, "capture listeners could not be taken from the kernel");
                    }
                    if let Ok(done) = stopped {
                        let _ = done.send(());
                    }
                    return self;
                }
            }
            self.publish();
        }
    }

    /// Removes programs, rules, routes and the nft table.
    pub async fn remove(mut self) {
        let hooked: Vec<u32> = self.programs.attached().map(|(index, ..)| index).collect();
        self.programs.detach_all();
        if self.programs.attach_kind() == Attach::Clsact {
            for index in hooked {
                if let Err(error) = self.netlink.remove_idle_clsact(index).await {
                    tracing::debug!(index, %error, "removing the clsact qdisc");
                }
            }
        }
        if let Err(error) = plumbing::remove(self.netlink.handle(), self.settings.marks).await {
            tracing::error!(%error, "capture could not be removed completely");
        }
    }

    /// Lets a burst of changes end.
    async fn settle(&mut self) {
        while let Ok(Some(())) = tokio::time::timeout(SETTLE, self.changes.next()).await {}
    }

    async fn reconcile_or_report(&mut self) {
        match self.reconcile().await {
            Ok(Reconciled { hooked, failed }) => {
                report_hooked(&hooked);
                for error in failed {
                    tracing::error!(%error, "interface not captured");
                }
            }
            Err(error) => {
                tracing::error!(%error, "interfaces could not be read; the hooks stay as they are");
            }
        }
    }

    /// Brings hooks and addresses in line with the interfaces that are there.
    async fn reconcile(&mut self) -> Result<Reconciled, CaptureError> {
        let snapshot = self.netlink.snapshot().await?;
        let addresses: HashSet<_> = snapshot.addresses.iter().copied().collect();
        self.programs.set_addresses(&addresses)?;
        if self.local.load().len() != addresses.len()
            || !self.local.load().iter().all(|a| addresses.contains(a))
        {
            self.local.store(Arc::new(addresses.into_iter().collect()));
        }
        let desired = snapshot.desired(&self.settings);
        let gone: Vec<u32> = self
            .programs
            .attached()
            .filter(|(index, name, hook)| desired.get(index).is_none_or(|(n, h)| n != name || h != hook))
            .map(|(index, ..)| index)
            .collect();
        for index in gone {
            self.programs.detach(index);
        }
        self.failed.retain(|index, _| desired.contains_key(index));
        let present: HashSet<u32> = self.programs.attached().map(|(index, ..)| index).collect();
        let mut reconciled = Reconciled::default();
        for (index, (name, hook)) in desired.into_iter().filter(|(index, _)| !present.contains(index)) {
            match self.programs.attach(index, &name, hook) {
                Ok(()) => {
                    self.failed.remove(&index);
                    reconciled.hooked.push((name, hook));
                }
                Err(error) => {
                    let reason = match &error {
                        CaptureError::Interface { reason, .. } => reason.clone(),
                        other => other.to_string(),
                    };
                    let known = self.failed.insert(index, (name, reason.clone()));
                    if known.is_none_or(|(_, before)| before != reason) {
                        reconciled.failed.push(error);
                    }
                }
            }
        }
        Ok(reconciled)
    }

    fn apply_table(&mut self) -> Result<(), CaptureError> {
        let table = self.tables.borrow_and_update().clone();
        let wanted: HashSet<_> = table.frontends.keys().copied().collect();
        self.captured = self.programs.set_destinations(&wanted)?;
        if self.captured.over_capacity > 0 {
            tracing::error!(
                left_out = self.captured.over_capacity,
                "more destinations than the kernel map holds; those go direct"
            );
        }
        Ok(())
    }

    fn publish(&self) {
        let names = |hook| {
            let hooked = self.programs.attached().filter(|(.., h)| *h == hook);
            hooked.map(|(_, name, _)| name.to_owned()).collect()
        };
        self.status.send_replace(CaptureStatus {
            attach: self.programs.attach_kind().as_str(),
            pod_interfaces: names(Hooked::Pod),
            uplinks: names(Hooked::Uplink),
            failed: self.failed.values().cloned().collect(),
            destinations: self.captured.destinations,
            destinations_over_capacity: self.captured.over_capacity,
        });
    }
}

fn report_hooked(hooked: &[(String, Hooked)]) {
    for (interface, hook) in hooked {
        tracing::info!(interface, ?hook, "hooked");
    }
}
