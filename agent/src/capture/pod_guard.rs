//! The guard on pods' interfaces: policy in the kernel. Its programs are attached only while some pod is under policy.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use aya::Ebpf;
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, qdisc_add_clsact, qdisc_detach_program,
};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};

use super::CaptureError;
use super::kernel_policy::{KernelPolicy, PolicyDrops, PolicyStatus};
use super::pins::innermost;
use super::programs::{Attach, load_error};
use crate::compile::RoutingTable;

/// Where the filters of the clsact qdisc sit: after capture at ingress, whose packets need no note.
const CLSACT_PRIORITY: u16 = 2;
/// The programs and their hooks, in the order in which they are attached: notes first, then verdicts.
pub const HOOKS: [(&str, TcAttachType); 2] =
    [("watch_pod", TcAttachType::Ingress), ("guard_pod", TcAttachType::Egress)];

/// Programs, maps and attachments of policy.
pub struct PodGuard {
    policy: KernelPolicy,
    attach: Attach,
    links: BTreeMap<u32, Guarded>,
    /// Interfaces that were looked at for filters of an agent that was killed.
    swept: BTreeSet<u32>,
    failed: BTreeMap<u32, (String, String)>,
    status: PolicyStatus,
}

/// An interface with both programs. Dropping it takes them off.
struct Guarded {
    interface: String,
    _links: Vec<SchedClassifierLink>,
}

impl PodGuard {
    /// Loads the programs, for a node of this name; nothing is attached yet.
    pub fn load(ebpf: &mut Ebpf, attach: Attach, node: &str) -> Result<Self, CaptureError> {
        for (name, _) in HOOKS {
            program(ebpf, name).load().map_err(|source| load_error(name, source))?;
        }
        Ok(Self {
            policy: KernelPolicy::new(ebpf, node)?,
            attach,
            links: BTreeMap::new(),
            swept: BTreeSet::new(),
            failed: BTreeMap::new(),
            status: PolicyStatus::default(),
        })
    }

    /// Puts a table's policies in force.
    pub fn apply(&mut self, table: &RoutingTable) -> Result<(), CaptureError> {
        self.status = self.policy.apply(table)?;
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
    pub fn follow(&mut self, ebpf: &mut Ebpf, pods: &BTreeMap<u32, String>) {
        let wanted = |index: &u32, name: &String| pods.get(index) == Some(name);
        let active = self.policy.is_active();
        self.links.retain(|index, guarded| active && wanted(index, &guarded.interface));
        self.failed.retain(|index, (name, _)| active && wanted(index, name));
        self.swept.retain(|index| pods.contains_key(index));
        for (index, name) in pods {
            if self.swept.insert(*index) && self.attach == Attach::Clsact {
                sweep(name);
            }
            if active && !self.links.contains_key(index) {
                self.guard(ebpf, *index, name);
            }
        }
    }

    /// Takes every program off.
    pub fn detach_all(&mut self) {
        self.links.clear();
    }

    /// Interfaces of pods that should be guarded and are not, with the reason.
    pub fn failed(&self) -> impl Iterator<Item = &(String, String)> {
        self.failed.values()
    }

    /// What is enforced.
    pub fn status(&self) -> PolicyStatus {
        self.status
    }

    /// Pods of this node whose requests the agent judges.
    pub fn captured(&self) -> Vec<IpAddr> {
        self.policy.captured().iter().copied().collect()
    }

    /// What was refused, readable from anywhere.
    pub fn drops(&self) -> PolicyDrops {
        self.policy.drops()
    }

    fn guard(&mut self, ebpf: &mut Ebpf, index: u32, interface: &str) {
        let links = HOOKS.into_iter().map(|(name, hook)| self.attach_one(ebpf, interface, (name, hook)));
        match links.collect::<Result<Vec<_>, _>>() {
            Ok(links) => {
                self.failed.remove(&index);
                self.links.insert(index, Guarded { interface: interface.to_owned(), _links: links });
                tracing::info!(interface, "guarded");
            }
            Err(reason) => {
                let reason = format!("policy is not enforced: {reason}");
                let known = self.failed.insert(index, (interface.to_owned(), reason.clone()));
                if known.is_none_or(|(_, before)| before != reason) {
                    tracing::error!(interface, reason, "interface not guarded");
                }
            }
        }
    }

    fn attach_one(
        &self,
        ebpf: &mut Ebpf,
        interface: &str,
        (name, hook): (&str, TcAttachType),
    ) -> Result<SchedClassifierLink, String> {
        let options = match self.attach {
            Attach::Tcx => TcAttachOptions::TcxOrder(LinkOrder::first()),
            Attach::Clsact => {
                // The qdisc may be there already; if it could not be made, attaching says so.
                let _ = qdisc_add_clsact(interface);
                TcAttachOptions::Netlink(NlOptions { priority: CLSACT_PRIORITY, ..NlOptions::default() })
            }
        };
        let program = program(ebpf, name);
        let link = program.attach_with_options(interface, hook, options);
        link.and_then(|link| program.take_link(link)).map_err(|error| innermost(&error))
    }
}

/// Takes off the filters that a killed agent has left.
fn sweep(interface: &str) {
    for (name, hook) in HOOKS {
        // Nothing there is the ordinary case.
        let _ = qdisc_detach_program(interface, hook, name);
    }
}

fn program<'e>(ebpf: &'e mut Ebpf, name: &str) -> &'e mut SchedClassifier {
    let program = ebpf.program_mut(name).expect("the object holds the program");
    program.try_into().expect("the program is a classifier")
}
