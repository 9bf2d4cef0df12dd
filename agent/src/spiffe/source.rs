//! What a Workload API has handed out last, as the source of certificates.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;

use super::wire::{BundlesResponse, Svid, SvidResponse};
use crate::identity::{
    CaSource, Ending, HandedFault, IdentityError, Reload, SpiffeId, TrustBundle, TrustDomain,
    WorkloadCertificate,
};

/// A Workload API at a socket, and what it has said until now.
#[derive(Debug)]
pub struct WorkloadApi {
    socket: PathBuf,
    trust_domain: TrustDomain,
    handed: ArcSwap<Handed>,
    /// Counts what was handed out; the second one is how much of that the keeper has seen.
    generation: AtomicU64,
    seen: AtomicU64,
    trouble: Mutex<Option<Arc<str>>>,
}

#[derive(Debug, Clone)]
struct Handed {
    bundle: Arc<TrustBundle>,
    /// What the bundle was read from.
    roots: Vec<u8>,
    lists: Vec<Vec<u8>>,
    svids: HashMap<SpiffeId, Arc<WorkloadCertificate>>,
}

impl WorkloadApi {
    /// The API at this socket, of which nothing is known yet: nobody is believed, and nobody has a certificate.
    pub fn new(socket: &Path, trust_domain: TrustDomain) -> Self {
        let bundle = Arc::new(TrustBundle::nobody(trust_domain.clone()));
        let (roots, lists, svids) = (Vec::new(), Vec::new(), HashMap::new());
        let handed = ArcSwap::from_pointee(Handed { bundle, roots, lists, svids });
        let (generation, seen) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { socket: socket.to_owned(), trust_domain, handed, generation, seen, trouble: Mutex::default() }
    }

    /// Where it is.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Remembers why it does not answer as it should, or that it does.
    pub(super) fn tell(&self, trouble: Option<String>) {
        let trouble = trouble.map(Arc::from);
        let mut told = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(what) = trouble.as_ref().filter(|_| trouble != *told) {
            tracing::warn!(socket = %self.socket.display(), what = &**what, "the Workload API");
        }
        *told = trouble;
    }

    /// Takes all identities that it hands out now; those that are not among them are gone. One that is not good is named, and
    /// the one before it stays.
    pub(super) fn take_svids(&self, response: &SvidResponse, now: SystemTime) -> Result<(), HandedFault> {
        let before = self.handed.load_full();
        let mut handed = Handed::clone(&before);
        if let Some(ours) = response.svids.iter().find(|svid| self.is_ours(&svid.id)) {
            handed.believe(&self.trust_domain, &ours.bundle, &response.crls)?;
        }
        let (mut svids, mut fault) = (HashMap::new(), None);
        for svid in response.svids.iter().filter(|svid| self.is_ours(&svid.id)) {
            match read(svid, &handed.bundle, now) {
                Ok(held) => {
                    svids.insert(held.id().clone(), Arc::new(held));
                }
                Err(why) => {
                    let id = svid.id.parse().ok();
                    let kept = id.and_then(|id: SpiffeId| before.svids.get_key_value(&id));
                    svids.extend(kept.map(|(id, held)| (id.clone(), Arc::clone(held))));
                    fault.get_or_insert(HandedFault::Svid { id: svid.id.clone(), why: Box::new(why) });
                }
            }
        }
        handed.svids = svids;
        self.hand_out(handed);
        fault.map_or(Ok(()), Err)
    }

    /// Takes the roots of the trust domain; those of others are not this mesh's.
    pub(super) fn take_bundles(&self, response: &BundlesResponse) -> Result<(), HandedFault> {
        let ours = response.bundles.iter().find(|(id, _)| self.is_ours(id));
        let Some((_, roots)) = ours else {
            return Err(HandedFault::NoBundle { trust_domain: self.trust_domain.to_string() });
        };
        let mut handed = Handed::clone(&self.handed.load());
        // Each connection begins with what is known already.
        if handed.believe(&self.trust_domain, roots, &response.crls)? == Reload::Changed {
            self.hand_out(handed);
        }
        Ok(())
    }

    fn is_ours(&self, id: &str) -> bool {
        id.parse::<SpiffeId>().is_ok_and(|id| *id.trust_domain() == self.trust_domain)
    }

    /// Only the task that follows the API does that.
    fn hand_out(&self, handed: Handed) {
        self.handed.store(Arc::new(handed));
        self.generation.fetch_add(1, Ordering::Release);
    }
}

impl Handed {
    /// Takes over a bundle, where it is another one.
    fn believe(
        &mut self,
        trust_domain: &TrustDomain,
        roots: &[u8],
        lists: &[Vec<u8>],
    ) -> Result<Reload, HandedFault> {
        if self.roots == roots && self.lists == lists {
            return Ok(Reload::Unchanged);
        }
        self.bundle = Arc::new(TrustBundle::attested(trust_domain.clone(), roots, lists)?);
        (self.roots, self.lists) = (roots.to_vec(), lists.to_vec());
        Ok(Reload::Changed)
    }
}

fn read(svid: &Svid, bundle: &TrustBundle, now: SystemTime) -> Result<WorkloadCertificate, HandedFault> {
    WorkloadCertificate::attested(&svid.id, (&svid.chain, &svid.key), bundle, now)
}

impl CaSource for WorkloadApi {
    fn bundle(&self) -> Arc<TrustBundle> {
        Arc::clone(&self.handed.load().bundle)
    }

    /// The one that was handed out: its life is the server's to say.
    fn mint(
        &self,
        id: &SpiffeId,
        now: SystemTime,
        _: Duration,
    ) -> Result<WorkloadCertificate, IdentityError> {
        let handed = self.handed.load();
        let held = handed.svids.get(id).filter(|held| held.not_after() >= now);
        let none = || IdentityError::NotHandedOut { socket: self.socket.clone(), id: id.to_string() };
        held.map(|held| WorkloadCertificate::clone(held)).ok_or_else(none)
    }

    fn endings(&self) -> Vec<Ending> {
        self.handed.load().bundle.ending("the trust bundle").into_iter().collect()
    }

    fn reload(&self, _: SystemTime) -> Result<Reload, IdentityError> {
        let generation = self.generation.load(Ordering::Acquire);
        if self.seen.swap(generation, Ordering::AcqRel) != generation {
            return Ok(Reload::Changed);
        }
        match self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            Some(what) => Err(IdentityError::WorkloadApi { socket: self.socket.clone(), what }),
            None => Ok(Reload::Unchanged),
        }
    }
}
