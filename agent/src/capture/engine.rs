//! The life of capture: start, follow interfaces and tables, stop.

mod handle;
mod publish;
mod told;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{Stream, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use super::acceleration;
use super::events::{KernelEvents, Names};
use super::expel::Expeller;
use super::foreign::{self, Foreign, Sighting};
use super::guard::Guard;
use super::interfaces::{Hooked, Snapshot};
use super::listener::CaptureListeners;
use super::netlink::Netlink;
use super::parts::Parts;
use super::plumbing::Plumbing;
use super::programs::{Attach, Captured, Programs};
use super::upkeep::Upkeep;
use super::{CaptureError, CaptureSettings, CaptureStatus, LocalAddresses, OnStop};
use crate::compile::RoutingTable;
use told::Told;

pub use handle::{EngineHandle, Letting, Released};

/// Netlink may drop messages under pressure; everything is read anew this often.
const RESYNC: Duration = Duration::from_secs(5);
/// How often others' programs are looked for.
const FOREIGN: Duration = Duration::from_secs(10);
/// Changes that arrive together are answered by one reading.
const SETTLE: Duration = Duration::from_millis(5);
/// Changes that never end are answered all the same.
const SETTLE_MAX: Duration = Duration::from_millis(100);

/// As many times as it took to bring a table into the kernel pass before the next: a cluster that changes all the time takes a
/// third of a core of it, and one change alone does not wait.
const TABLE_REST: u32 = 2;

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
    parts: Parts,
    netlink: Netlink,
    changes: Changes,
    local: LocalAddresses,
    tables: watch::Receiver<Arc<RoutingTable>>,
    plumbing: Plumbing,
    upkeep: Upkeep,
    /// Whether new connections go direct because captured packets would be lost.
    paused: bool,
    captured: Captured,
    /// The node's addresses that found no room in the kernel's map.
    addresses_left_out: usize,
    failed: BTreeMap<u32, (String, String)>,
    /// Interfaces of pods, whether or not they could be hooked: policy holds there all the same.
    pods: BTreeMap<u32, String>,
    /// Whether something of the last table is not in the kernel, for another reason than room.
    unapplied: bool,
    /// The table that the kernel was told last, and what of it need not be told again.
    told: Told,
    /// When the next table may be brought into the kernel.
    rested: Instant,
    /// Programs of others on our hooks.
    foreign: Vec<Foreign>,
    expeller: Expeller,
    status: watch::Sender<CaptureStatus>,
    releases: mpsc::UnboundedReceiver<Letting>,
    /// What is let go of already.
    released: Option<Released>,
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
        let ipv6 = listeners.iter().all(CaptureListeners::has_ipv6);
        let plumbing = check(&netlink, &settings, ipv6).await?;
        let expeller = Expeller::start(tables.clone(), settings.flows.clone())?;
        let accelerated = acceleration::wanted(&settings).await;
        let mut programs = Programs::load(&settings, accelerated.is_ok())?;
        if let (OnStop::Keep, Err(reason)) = (settings.on_stop, programs.pins().directory()) {
            return Err(CaptureError::KeepWithoutPins(reason));
        }
        let (parts, readings) = match Parts::load(&settings, &mut programs, accelerated) {
            Ok(loaded) => loaded,
            Err(error) => {
                programs.abandon();
                return Err(error);
            }
        };
        // One transaction, or nothing: where nft is missing there is nothing to undo yet.
        if let Err(error) = plumbing.install_notrack() {
            programs.abandon();
            return Err(error);
        }
        let (releasing, releases) = mpsc::unbounded_channel();
        let (status, status_receiver) = watch::channel(CaptureStatus::default());
        let counters = programs.counters();
        let events = programs.events();
        let guard = readings.guard.as_ref().map(|(_, counters)| counters.clone());
        let names = Names { drops: readings.drops.clone(), limits: readings.limits.clone(), guard };
        let mut engine = Self {
            settings,
            programs,
            parts,
            netlink,
            changes: Box::pin(changes),
            local,
            tables,
            plumbing,
            upkeep: Upkeep::new(plumbing),
            paused: false,
            captured: Captured::default(),
            addresses_left_out: 0,
            failed: BTreeMap::new(),
            pods: BTreeMap::new(),
            unapplied: false,
            told: Told::default(),
            rested: Instant::now(),
            foreign: Vec::new(),
            expeller,
            status,
            releases,
            released: None,
        };
        if let Err(error) = engine.install(listeners).await {
            // What an earlier agent has left is still its own; without one, nothing is to stay.
            if !engine.programs.pins().adopted() {
                engine.settings.on_stop = OnStop::Remove;
            }
            engine.end().await;
            return Err(error);
        }
        if let Some((lost, ring)) = events {
            KernelEvents::new(engine.settings.flows.clone(), lost, names).follow_beside(ring);
        }
        Ok((engine, EngineHandle { releases: releasing, status: status_receiver, counters, readings }))
    }

    async fn install(&mut self, listeners: &[CaptureListeners]) -> Result<(), CaptureError> {
        self.plumbing.install_routing(self.netlink.handle()).await?;
        // An earlier agent's programs may be at work: ours come with their maps filled.
        self.apply_table()?;
        // Uplinks come before the listeners, so that no reply is ever missed.
        let Reconciled { hooked, failed } = self.reconcile().await?;
        if let Some(error) = failed.into_iter().next() {
            return Err(foreign::name_holder(self.netlink.handle(), error).await);
        }
        self.follow_pods(false).await;
        self.programs.sweep();
        self.expel();
        self.programs.set_listeners(listeners)?;
        report_hooked(&hooked);
        match self.programs.pins().directory() {
            Ok(directory) => {
                let adopted = self.programs.pins().adopted();
                tracing::info!(directory = %directory.display(), adopted, "maps and links are pinned");
            }
            Err(reason) => tracing::info!(reason, "maps and links are not pinned"),
        }
        self.parts.report();
        self.publish();
        Ok(())
    }

    /// Follows the world until told to stop; then only [`Engine::end`] is left to do.
    pub async fn run(mut self) -> Self {
        let mut foreign = tokio::time::interval(FOREIGN);
        foreign.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut resync = tokio::time::interval(RESYNC);
        resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(()) = self.changes.next() => {
                    self.settle().await;
                    self.reconcile_or_report().await;
                    self.keep_up(false).await;
                    self.follow_pods(true).await;
                }
                Some(push) = self.parts.pushes.recv() => self.parts.push_or_report(push),
                _ = resync.tick() => {
                    self.reconcile_or_report().await;
                    self.keep_up(true).await;
                    self.parts.look_again();
                    if self.unapplied {
                        self.apply_table_or_report();
                    }
                    self.follow_pods(true).await;
                }
                _ = foreign.tick() => self.look_for_others().await,
                Ok(()) = next_table(&mut self.tables, self.rested) => {
                    let begin = Instant::now();
                    self.apply_table_or_report();
                    if self.told.pods_changed() {
                        self.follow_pods(false).await;
                    }
                    self.rested = Instant::now() + begin.elapsed() * TABLE_REST;
                }
                asked = self.releases.recv() => {
                    let what = asked.as_ref().map_or(Released::All, |(what, _)| *what);
                    if let Err(error) = self.programs.clear_listeners(self.settings.workers, what) {
                        tracing::error!(%error, "capture listeners could not be taken from the kernel");
                    }
                    self.released = Some(what);
                    self.publish();
                    if let Some((_, done)) = asked {
                        let _ = done.send(());
                    }
                    if what == Released::All {
                        return self;
                    }
                }
            }
            self.expel();
            self.publish();
        }
    }

    /// Removes programs, pins, rules, routes and the nft table, or leaves them to the next agent.
    pub async fn end(mut self) {
        if self.settings.on_stop == OnStop::Keep {
            self.programs.keep();
            tracing::info!(
                "programs, maps and routes stay for the next agent; `sluice cleanup` removes them"
            );
            return;
        }
        let left = self.parts.detach_all(self.programs.pins());
        let hooked: Vec<u32> = self.programs.attached().map(|(index, ..)| index).collect();
        let attach = self.programs.attach_kind();
        if let Err(error) = self.programs.remove(left) {
            tracing::error!(%error, "pins could not be removed");
        }
        if attach == Attach::Clsact {
            for index in hooked {
                if let Err(error) = self.netlink.remove_idle_clsact(index).await {
                    tracing::debug!(index, %error, "removing the clsact qdisc");
                }
            }
        }
        if let Err(error) = self.plumbing.remove(self.netlink.handle()).await {
            tracing::error!(%error, "capture could not be removed completely");
        }
    }

    /// Lets a burst of changes end.
    async fn settle(&mut self) {
        let burst =
            async { while let Ok(Some(())) = tokio::time::timeout(SETTLE, self.changes.next()).await {} };
        // Past the limit the rest of the burst is the next change.
        let _ = tokio::time::timeout(SETTLE_MAX, burst).await;
    }

    /// Sees to it that captured packets reach the agent, or else that none are captured. `thorough` looks at the nft table
    /// too, and tries once more what could not be repaired.
    async fn keep_up(&mut self, thorough: bool) {
        self.upkeep.look_at_routing(self.netlink.handle(), thorough).await;
        if thorough {
            self.upkeep.look_at_notrack().await;
            self.upkeep.look_at_pins(self.programs.ebpf_and_pins().1);
        }
        let broken = self.upkeep.broken().is_some();
        if broken != self.paused {
            self.paused = broken;
            self.apply_table_or_report();
        }
    }

    /// Says which programs of others are new on our hooks.
    async fn look_for_others(&mut self) {
        let hooked = self.programs.attached().map(|(index, name, _)| (index, name.to_owned()));
        let hooked: Vec<_> = hooked.collect();
        let cgroup = self.settings.cgroup.as_ref().and_then(|choice| choice.find().ok());
        let seen = foreign::look(self.netlink.handle(), &hooked, cgroup.as_deref()).await;
        let found = foreign::not_ours(&seen, &self.programs.own_ids(), foreign::names);
        for Foreign { seen, name, before_ours } in found.iter().filter(|one| !self.foreign.contains(one)) {
            let Sighting { hook, place, program } = seen;
            tracing::warn!(
                hook,
                place,
                program,
                name,
                before_ours,
                "somebody else's program is on a hook that ours use"
            );
        }
        self.foreign = found;
    }

    async fn reconcile_or_report(&mut self) {
        match self.reconcile().await {
            Ok(Reconciled { hooked, failed }) => {
                report_hooked(&hooked);
                for error in failed {
                    tracing::error!(%error, "interface not hooked");
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
        self.follow_addresses(&snapshot)?;
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
        let pods = desired.iter().filter(|(_, (_, hook))| *hook == Hooked::Pod);
        let mut pods: BTreeMap<_, _> = pods.map(|(index, (name, _))| (*index, name.clone())).collect();
        let mut reconciled = Reconciled::default();
        if let Some(guard) = &mut self.parts.guard {
            reconciled.failed.extend(guard.follow(self.programs.ebpf_and_pins(), &snapshot));
        }
        for (index, (name, hook)) in desired.into_iter().filter(|(index, _)| !present.contains(index)) {
            match self.programs.attach(index, &name, hook) {
                Ok(()) => {
                    self.failed.remove(&index);
                    reconciled.hooked.push((name, hook));
                }
                // It went while we looked.
                Err(_) if !self.netlink.has_link(index).await => drop(pods.remove(&index)),
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
        self.pods = pods;
        self.guard_pods();
        Ok(reconciled)
    }

    /// Brings the guard in line with the pods' interfaces.
    fn guard_pods(&mut self) {
        self.parts.follow_pods(self.programs.ebpf_and_pins(), &self.pods);
    }

    /// Brings the map of addresses in line, and what the connectors know.
    fn follow_addresses(&mut self, snapshot: &Snapshot) -> Result<(), CaptureError> {
        let left_out = self.programs.set_addresses(snapshot.addresses.iter().copied())?;
        if self.addresses_left_out != left_out {
            self.addresses_left_out = left_out;
            tracing::error!(left_out, "so many of the node's addresses found no room in the kernel's map");
        }
        if self.local.load().iter().copied().collect::<BTreeSet<_>>() != snapshot.addresses {
            self.local.store(Arc::new(snapshot.addresses.iter().copied().collect()));
        }
        Ok(())
    }

    /// Tells acceleration which pods there are, and where.
    async fn follow_pods(&mut self, again: bool) {
        let Ok(acceleration) = &mut self.parts.acceleration else { return };
        let pods = self.programs.attached().filter(|(.., hook)| *hook == Hooked::Pod);
        let interfaces = pods.map(|(index, ..)| index).collect();
        let table = self.tables.borrow().clone();
        let handle = self.netlink.handle();
        let followed = acceleration.follow_pods(&self.settings.node, &table, (handle, interfaces), again);
        if let Err(error) = followed.await {
            tracing::error!(%error, "what acceleration knows of pods could not be updated; the last state stays");
        }
    }

    /// Closes what policies refuse and the guard lets be, after acceleration has heard of them.
    fn expel(&mut self) {
        if let Some(pods) = self.parts.pod_guard.unjudged() {
            self.expeller.look_behind(pods);
        }
    }

    fn apply_table_or_report(&mut self) {
        let applied = self.apply_table();
        self.unapplied = applied.is_err();
        if let Err(error) = applied {
            tracing::error!(%error, "the kernel's maps could not all be updated; it is tried again");
        }
    }

    fn apply_table(&mut self) -> Result<(), CaptureError> {
        let table = self.tables.borrow_and_update().clone();
        // Where something of it fails, all of the next one is told.
        let told = std::mem::take(&mut self.told).next(&table, self.paused);
        // Policy comes before what it is about, and whether or not anything is captured.
        let mut protected = Ok(());
        if told.policies_changed() {
            protected = self.parts.protect(&table);
            self.guard_pods();
        }
        if told.limits_changed() && self.parts.limits.concerns(&table) {
            let limited = self.parts.limit(&table);
            protected = protected.and(limited);
            self.guard_pods();
        }
        // Without destinations everything goes direct.
        if told.destinations_changed() {
            let wanted = super::tunnels::destinations(&table, &self.settings);
            self.captured = self.programs.set_destinations(wanted.filter(|_| !self.paused))?;
        }
        if self.captured.over_capacity > 0 {
            tracing::error!(
                left_out = self.captured.over_capacity,
                "more destinations than the kernel map holds; those go direct"
            );
        }
        protected.and(self.parts.balance(&table))?;
        self.told = told;
        Ok(())
    }
}

/// Waits for a table that is new, and until then.
async fn next_table(
    tables: &mut watch::Receiver<Arc<RoutingTable>>,
    rested: Instant,
) -> Result<(), watch::error::RecvError> {
    tokio::time::sleep_until(rested.into()).await;
    tables.changed().await
}

/// Whether the node is as the settings say; answers what is to be laid.
async fn check(netlink: &Netlink, settings: &CaptureSettings, ipv6: bool) -> Result<Plumbing, CaptureError> {
    let snapshot = netlink.snapshot().await?;
    snapshot.check_uplinks(settings)?;
    if let Some(guard) = &settings.guard {
        Guard::check_interfaces(guard, &snapshot)?;
    }
    let plumbing = Plumbing { marks: settings.marks, ipv6 };
    match plumbing.clash(netlink.handle()).await? {
        Some(rule) => Err(CaptureError::MarkTaken(rule)),
        None => Ok(plumbing),
    }
}

fn report_hooked(hooked: &[(String, Hooked)]) {
    for (interface, hook) in hooked {
        tracing::info!(interface, ?hook, "hooked");
    }
}
