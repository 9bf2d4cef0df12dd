//! The certificates of this node's workloads as they are now: made, renewed, and kept while no newer one can be had.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::{
    CaSource, Ending, IdentityError, Reload, Rotation, ShownCertificate, SpiffeId, TrustBundle,
    WorkloadCertificate,
};

/// Certificates by identity; shared by all workers.
#[derive(Debug)]
pub struct WorkloadCertificates {
    source: Box<dyn CaSource>,
    life: Duration,
    current: ArcSwap<HashMap<SpiffeId, Arc<WorkloadCertificate>>>,
    rotation: Mutex<Rotation>,
    /// What live connections may have to look at.
    changes: watch::Sender<Changes>,
    /// Why those that are wanted and could not be made could not, until they are.
    failed: Mutex<BTreeMap<SpiffeId, Arc<IdentityError>>>,
    /// Why the last turn did not leave all as it should be.
    trouble: Mutex<Option<String>>,
}

/// How often something has changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    /// Whom to believe, or what makes certificates.
    pub source: u64,
    /// Certificates.
    pub certificates: u64,
}

/// What came of one turn.
#[derive(Debug, Default)]
pub struct Turned {
    /// How many were made.
    pub minted: usize,
    /// Which could not be made, now or when that was tried last, and why.
    pub failed: Vec<(SpiffeId, Arc<IdentityError>)>,
    /// Why the source could not be read again; what was read before is used.
    pub reload: Option<IdentityError>,
    /// When the next turn is due; `None`: nothing is wanted.
    pub next: Option<SystemTime>,
}

impl Turned {
    /// Whether certificates that there were are held no more, and not only as they were.
    pub fn forgot(&self) -> bool {
        self.failed.iter().any(|(_, error)| error.takes_back())
    }

    /// What went wrong, in one line.
    pub fn trouble(&self) -> Option<String> {
        // A source that can't be read is why its certificates can't be made.
        let reload = self.reload.as_ref().map(ToString::to_string);
        reload.or_else(|| {
            let ((id, error), others) = self.failed.split_first()?;
            // They have one source, and mostly one reason.
            let others = match others.len() {
                0 => String::new(),
                1 => " and one other".to_owned(),
                more => format!(" and {more} others"),
            };
            Some(format!("{id}{others}: {error}"))
        })
    }
}

impl WorkloadCertificates {
    /// Nobody's yet. Each will live for `life`, or until its issuer ends.
    pub fn new(source: Box<dyn CaSource>, life: Duration) -> Self {
        let (current, rotation) = (ArcSwap::default(), Mutex::default());
        let (changes, trouble) = (watch::Sender::new(Changes::default()), Mutex::default());
        Self { source, life, current, rotation, changes, failed: Mutex::default(), trouble }
    }

    /// Tells of every change.
    pub fn changes(&self) -> watch::Receiver<Changes> {
        self.changes.subscribe()
    }

    /// The certificate of a workload, where it holds.
    pub fn get(&self, id: &SpiffeId, now: SystemTime) -> Option<Arc<WorkloadCertificate>> {
        let current = self.current.load();
        current.get(id).filter(|held| held.validity.check(now).is_ok()).map(Arc::clone)
    }

    /// The certificate of a workload that is new here, made now if it has to be. `None`: it can't be made, which the next turn
    /// tells of.
    pub fn obtain(&self, id: &SpiffeId, now: SystemTime) -> Option<Arc<WorkloadCertificate>> {
        if let Some(held) = self.get(id, now) {
            return Some(held);
        }
        let mut rotation = self.rotation.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody else may have been faster.
        if let Some(held) = self.get(id, now) {
            return Some(held);
        }
        if !rotation.add(id, now) {
            return None;
        }
        let fresh = match self.source.mint(id, now, self.life) {
            Ok(fresh) => fresh,
            Err(error) => {
                rotation.failed(id, now, 0);
                self.failed().insert(id.clone(), Arc::new(error));
                return None;
            }
        };
        rotation.minted(id, (now, fresh.not_after()), u8::MAX / 2);
        self.failed().remove(id);
        let fresh = Arc::new(fresh);
        let mut current = HashMap::clone(&self.current.load());
        current.insert(id.clone(), Arc::clone(&fresh));
        self.current.store(Arc::new(current));
        Some(fresh)
    }

    /// The roots that are trusted now.
    pub fn bundle(&self) -> Arc<TrustBundle> {
        self.source.bundle()
    }

    /// Whose there are and when they end, sorted.
    pub fn list(&self) -> Vec<(String, SystemTime)> {
        let current = self.current.load();
        let mut list: Vec<_> = current.values().map(|held| (held.id.to_string(), held.not_after())).collect();
        list.sort();
        list
    }

    /// What each shows, by its identity, sorted.
    pub fn shown(&self) -> Vec<(String, Vec<ShownCertificate>)> {
        let current = self.current.load();
        let mut shown: Vec<_> = current.values().map(|held| (held.id.to_string(), held.shown())).collect();
        shown.sort_by(|one, other| one.0.cmp(&other.0));
        shown
    }

    /// What else ends: what certificates are made with, and whom they are believed by.
    pub fn endings(&self) -> Vec<Ending> {
        self.source.endings()
    }

    /// What somebody has to look at: what ends soon, and why it was not renewed.
    pub fn alerts(&self, now: SystemTime) -> Vec<String> {
        let current = self.current.load();
        let held = current.values().map(|held| Ending::new(held.id.to_string(), held.validity));
        let mut alerts: Vec<_> = held.chain(self.endings()).filter_map(|ending| ending.alert(now)).collect();
        alerts.sort();
        alerts.extend(self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone());
        alerts
    }

    /// Makes what is due of what is wanted. `draw` gives chance.
    pub fn turn(&self, wanted: &HashSet<SpiffeId>, now: SystemTime, mut draw: impl FnMut() -> u8) -> Turned {
        let mut rotation = self.rotation.lock().unwrap_or_else(PoisonError::into_inner);
        let mut turned = Turned::default();
        let mut changed = false;
        match self.source.reload(now) {
            Ok(Reload::Unchanged) => {}
            Ok(Reload::Changed) => {
                rotation.issuer_changed(now);
                changed = true;
            }
            Err(error) => turned.reload = Some(error),
        }
        let gone = rotation.want(wanted, now);
        let due = rotation.due(now);
        let mut failed = self.failed();
        failed.retain(|id, _| wanted.contains(id));
        if !gone.is_empty() || !due.is_empty() {
            let mut current = HashMap::clone(&self.current.load());
            current.retain(|id, _| !gone.contains(id));
            for id in due {
                match self.source.mint(&id, now, self.life) {
                    Ok(fresh) => {
                        rotation.minted(&id, (now, fresh.not_after()), draw());
                        failed.remove(&id);
                        current.insert(id, Arc::new(fresh));
                        turned.minted += 1;
                    }
                    Err(error) => {
                        rotation.failed(&id, now, draw());
                        if error.takes_back() {
                            current.remove(&id);
                        }
                        failed.insert(id, Arc::new(error));
                    }
                }
            }
            self.current.store(Arc::new(current));
        }
        turned.failed = failed.iter().map(|(id, error)| (id.clone(), Arc::clone(error))).collect();
        drop(failed);
        if changed || turned.minted > 0 {
            self.changes.send_modify(|changes| {
                changes.source += u64::from(changed);
                changes.certificates += u64::from(turned.minted > 0);
            });
        }
        turned.next = rotation.next();
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = turned.trouble();
        turned
    }

    /// To be taken after [`Self::rotation`].
    fn failed(&self) -> MutexGuard<'_, BTreeMap<SpiffeId, Arc<IdentityError>>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
