//! The guard on pods' interfaces: policy in the kernel. Its programs are attached only while some pod is under policy.
//!
//! Fail-closed: pinned, it outlives the agent however that ends, with the last rules. Only an agent whose table has no such
//! policies takes it off, or `sluice cleanup`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use aya::Ebpf;
use aya::programs::TcAttachType;

use super::hook::Place;
use super::kernel_policy::{self, KernelPolicy, PolicyDrops, PolicyStatus};
use super::pins::{Left, Pins};
use super::pod_hooks::{PodHook, PodHooks};
use super::programs::Attach;
use super::{CaptureError, MapUse};
use crate::compile::RoutingTable;

/// What the names of pinned links begin with.
const PIN: &str = "policy-";
/// Notes of what the pod begins. As a clsact filter it comes after capture's, whose packets need no note.
const WATCH: Place = Place { side: TcAttachType::Ingress, pin: "policy-ingress", priority: 2, after: None };
/// Verdicts on what enters the pod.
const GUARD: Place = Place { side: TcAttachType::Egress, pin: "policy-egress", priority: 2, after: None };
/// The programs and their hooks, in the order in which they are attached: notes first, then verdicts.
pub const HOOKS: [PodHook; 2] = [("watch_pod", WATCH), ("guard_pod", GUARD)];

/// Programs, maps and attachments of policy.
pub struct PodGuard {
    policy: KernelPolicy,
    hooks: PodHooks,
    attach: Attach,
    status: PolicyStatus,
    /// Whether the programs stay when the agent is gone.
    outlives: bool,
    /// Whether connections may be open that the rules now refuse.
    unjudged: bool,
}

impl PodGuard {
    /// Loads the programs, for a node of this name; nothing is attached yet.
    pub fn load(
        (ebpf, pins): (&mut Ebpf, &mut Pins),
        attach: Attach,
        node: &str,
    ) -> Result<Self, CaptureError> {
        Ok(Self {
            policy: KernelPolicy::new(ebpf, node)?,
            hooks: PodHooks::load(ebpf, &HOOKS, attach, "policy is not enforced")?,
            attach,
            status: PolicyStatus::default(),
            outlives: pins.directory().is_ok(),
            unjudged: false,
        })
    }

    /// Puts a table's policies in force.
    pub fn apply(&mut self, table: &RoutingTable) -> Result<(), CaptureError> {
        let before = self.policy.revision();
        let applied = self.policy.apply(table);
        self.unjudged |= self.policy.revision() != before;
        self.status = applied?;
        let PolicyStatus { closed, left_out, .. } = self.status;
        if closed > 0 {
            tracing::error!(
                closed,
                "policies ask for more verdicts than the kernel's maps hold; these pods are closed"
            );
        }
        if left_out > 0 {
            tracing::error!(
                left_out,
                "more pods under policy than the kernel's map holds; only the agent refuses there"
            );
        }
        Ok(())
    }

    /// Guards these interfaces of pods, by index, and no others.
    pub fn follow(&mut self, (ebpf, pins): (&mut Ebpf, &mut Pins), pods: &BTreeMap<u32, String>) {
        let active = self.policy.is_active();
        self.unjudged |= self.hooks.follow((ebpf, pins), pods, active);
    }

    /// The agent stops: what is pinned is left to the next one, all else taken off.
    pub fn end(&mut self, pins: &Pins) -> Option<Left> {
        let left = match self.attach {
            // An agent that could not start may have taken over nothing of an earlier one's.
            Attach::Tcx => pins.has_link(PIN),
            Attach::Clsact => self.outlives && self.hooks.interfaces().len() > 0,
        };
        if left {
            tracing::info!(
                "policies stay in force at this node's pods; an agent without them lifts them, or `sluice cleanup`"
            );
            return Some(Left { links: PIN, maps: &kernel_policy::MAPS });
        }
        if self.hooks.interfaces().len() > 0 {
            tracing::warn!("nothing is pinned: policies at this node's pods end with the agent");
        }
        self.hooks.detach_all();
        None
    }

    /// The guarded interfaces, where connections may be open that their pods' rules refuse by now; told once.
    pub fn unjudged(&mut self) -> Option<BTreeSet<u32>> {
        let due = std::mem::take(&mut self.unjudged) && self.hooks.interfaces().len() > 0;
        due.then(|| self.hooks.interfaces().collect())
    }

    /// Interfaces of pods that should be guarded and are not, with the reason.
    pub fn failed(&self) -> impl Iterator<Item = &(String, String)> {
        self.hooks.failed()
    }

    /// What is enforced.
    pub fn status(&self) -> PolicyStatus {
        PolicyStatus { outlives: self.outlives, ..self.status }
    }

    /// How full the maps of policy are.
    pub fn map_use(&self) -> [MapUse; 3] {
        self.policy.map_use()
    }

    /// Pods of this node whose requests the agent judges.
    pub fn captured(&self) -> Vec<IpAddr> {
        self.policy.captured().iter().copied().collect()
    }

    /// What was refused, readable from anywhere.
    pub fn drops(&self) -> PolicyDrops {
        self.policy.drops()
    }
}
