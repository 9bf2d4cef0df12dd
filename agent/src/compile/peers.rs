//! What PeerAuthentications say of a pod: which of its ports take mutual TLS alone, and which document says so.
//!
//! The order is Istio's: of a port, of the pod's labels, of its namespace, of the mesh. What one of them leaves open the next
//! wider one says; where all do, both are taken. Of several of one level the oldest counts, then the first by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::{MtlsMode, ObjectName, PeerAuthentication, PeerLevel, Workload};

/// What holds for the ports of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodMtls {
    /// For those without an entry of their own; `None`: nobody says anything.
    others: Option<PeerMode>,
    /// For single ports.
    ports: BTreeMap<u16, PeerMode>,
}

/// A mode, and the document that says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerMode {
    /// The mode.
    pub mode: MtlsMode,
    /// The PeerAuthentication.
    pub by: ObjectName,
}

impl PodMtls {
    /// What those that count for a pod say together, the widest first.
    pub(super) fn of(counting: &[&Arc<PeerAuthentication>]) -> Self {
        let mut mtls = Self::default();
        for one in counting {
            let said = |mode: Option<MtlsMode>| mode.map(|mode| PeerMode { mode, by: one.name.clone() });
            mtls.others = said(one.mode).or(mtls.others);
            let others = mtls.others.clone();
            let port =
                |(port, mode): (&u16, &Option<MtlsMode>)| Some((*port, said(*mode).or(others.clone())?));
            mtls.ports = one.ports.iter().filter_map(port).collect();
        }
        mtls
    }

    /// What holds for the ports of a pod.
    pub fn of_pod<'m>(peers: impl Iterator<Item = &'m PeerAuthentication>, pod: &Workload) -> Self {
        let peers = by_age(peers);
        let counting: Vec<_> = counting(&peers, pod).into_iter().map(|at| &peers[at]).collect();
        Self::of(&counting)
    }

    /// What holds for a port; `None`: nobody says anything, and both are taken. `port`: `None` is any that has no entry of its own.
    pub fn on(&self, port: Option<u16>) -> Option<&PeerMode> {
        port.and_then(|port| self.ports.get(&port)).or(self.others.as_ref())
    }

    /// The document by which plaintext is refused at a port.
    pub fn strict_on(&self, port: Option<u16>) -> Option<&ObjectName> {
        self.on(port).filter(|mode| mode.mode == MtlsMode::Strict).map(|mode| &mode.by)
    }

    /// Whether plaintext is refused at some port.
    pub fn is_strict(&self) -> bool {
        self.others.iter().chain(self.ports.values()).any(|one| one.mode == MtlsMode::Strict)
    }

    /// The ports with entries of their own.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        self.ports.keys().copied()
    }
}

/// The positions of those that count for a pod, one of each level at most, the widest first. `peers` is sorted by age and name.
pub(super) fn counting(peers: &[Arc<PeerAuthentication>], pod: &Workload) -> Vec<usize> {
    let levels = [PeerLevel::Mesh, PeerLevel::Namespace, PeerLevel::Workload];
    let oldest = |level| {
        peers.iter().position(|one| one.level() == level && one.selects(&pod.name.namespace, &pod.labels))
    };
    levels.into_iter().filter_map(oldest).collect()
}

/// Sorted so that of equals the first counts.
pub(super) fn by_age<'m>(
    peers: impl Iterator<Item = &'m PeerAuthentication>,
) -> Arc<[Arc<PeerAuthentication>]> {
    let mut peers: Vec<_> = peers.cloned().map(Arc::new).collect();
    peers.sort_by(|a, b| (&a.created, &a.name).cmp(&(&b.created, &b.name)));
    peers.into()
}
