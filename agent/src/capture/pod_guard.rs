//! The guard on pods' interfaces: policy in the kernel. Its programs are attached only while some pod is under policy.
//!
//! Fail-closed: pinned, it outlives the agent however that ends, with the last rules. Only an agent whose table has no such
//! policies takes it off, or `sluice cleanup`.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::ManuallyDrop;
use std::net::IpAddr;

use aya::Ebpf;
use aya::programs::tc::{SchedClassifierLink, qdisc_detach_program};
use aya::programs::{SchedClassifier, TcAttachType};

use super::hook::{self, Place, attach_clsact, attach_tcx};
use super::kernel_policy::{self, KernelPolicy, PolicyDrops, PolicyStatus};
use super::pins::{Left, Link, Pins};
use super::programs::{Attach, load_error};
use super::{CaptureError, MapUse};
use crate::compile::RoutingTable;

/// What the names of pinned links begin with.
const PIN: &str = "policy-";
/// Notes of what the pod begins. As a clsact filter it comes after capture's, whose packets need no note.
const WATCH: Place = Place { side: TcAttachType::Ingress, pin: "policy-ingress", priority: 2 };
/// Verdicts on what enters the pod.
const GUARD: Place = Place { side: TcAttachType::Egress, pin: "policy-egress", priority: 2 };
/// The programs and their hooks, in the order in which they are attached: notes first, then verdicts.
pub const HOOKS: [(&str, Place); 2] = [("watch_pod", WATCH), ("guard_pod", GUARD)];

/// Programs, maps and attachments of policy.
pub struct PodGuard {
    policy: KernelPolicy,
    attach: Attach,
    links: BTreeMap<u32, Guarded>,
    /// Interfaces that were looked at for filters of an agent that was killed.
    swept: BTreeSet<u32>,
    failed: BTreeMap<u32, (String, String)>,
    status: PolicyStatus,
    /// Whether the programs stay when the agent is gone.
    outlives: bool,
    /// Whether connections may be open that the rules now refuse.
    unjudged: bool,
}

/// An interface with both programs.
struct Guarded {
    interface: String,
    held: Vec<Held>,
}

/// What holds a program in its place. Dropped, it stays there unless it is a link that is not pinned.
enum Held {
    Link(Link),
    Filter(ManuallyDrop<SchedClassifierLink>),
}

impl Guarded {
    /// Takes both off, verdicts first.
    fn detach(self) {
        for held in self.held.into_iter().rev() {
            match held {
                Held::Link(link) => link.detach(),
                // It goes with the value; the interface may be gone already.
                Held::Filter(link) => drop(ManuallyDrop::into_inner(link)),
            }
        }
    }
}

impl PodGuard {
    /// Loads the programs, for a node of this name; nothing is attached yet.
    pub fn load(
        (ebpf, pins): (&mut Ebpf, &mut Pins),
        attach: Attach,
        node: &str,
    ) -> Result<Self, CaptureError> {
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
        let wanted = |index: &u32, name: &String| pods.get(index) == Some(name);
        let active = self.policy.is_active();
        for (_, gone) in self.links.extract_if(.., |index, held| !active || !wanted(index, &held.interface)) {
            gone.detach();
        }
        self.failed.retain(|index, (name, _)| active && wanted(index, name));
        self.swept.retain(|index| pods.contains_key(index));
        for (index, name) in pods {
            let first_look = self.swept.insert(*index);
            if active && !self.links.contains_key(index) {
                self.guard((ebpf, pins), *index, name);
            } else if first_look && !active && self.attach == Attach::Clsact {
                sweep(name);
            }
        }
    }

    /// The agent stops: what is pinned is left to the next one, all else taken off.
    pub fn end(&mut self, pins: &Pins) -> Option<Left> {
        let left = match self.attach {
            // An agent that could not start may have taken over nothing of an earlier one's.
            Attach::Tcx => pins.has_link(PIN),
            Attach::Clsact => self.outlives && !self.links.is_empty(),
        };
        if left {
            tracing::info!(
                "policies stay in force at this node's pods; an agent without them lifts them, or `sluice cleanup`"
            );
            return Some(Left { links: PIN, maps: &kernel_policy::MAPS });
        }
        if !self.links.is_empty() {
            tracing::warn!("nothing is pinned: policies at this node's pods end with the agent");
        }
        std::mem::take(&mut self.links).into_values().for_each(Guarded::detach);
        None
    }

    /// The guarded interfaces, where connections may be open that their pods' rules refuse by now; told once.
    pub fn unjudged(&mut self) -> Option<BTreeSet<u32>> {
        let due = std::mem::take(&mut self.unjudged) && !self.links.is_empty();
        due.then(|| self.links.keys().copied().collect())
    }

    /// Interfaces of pods that should be guarded and are not, with the reason.
    pub fn failed(&self) -> impl Iterator<Item = &(String, String)> {
        self.failed.values()
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

    fn guard(&mut self, (ebpf, pins): (&mut Ebpf, &mut Pins), index: u32, interface: &str) {
        let mut held = Vec::new();
        let attached = HOOKS.into_iter().try_for_each(|hook| {
            held.push(self.attach_one((&mut *ebpf, &mut *pins), (index, interface), hook)?);
            Ok(())
        });
        let guarded = Guarded { interface: interface.to_owned(), held };
        match attached {
            Ok(()) => {
                self.failed.remove(&index);
                self.links.insert(index, guarded);
                self.unjudged = true;
                tracing::info!(interface, "guarded");
            }
            Err(error) => {
                // An earlier agent's programs stay where they are: better the last rules than none.
                for (_, place) in HOOKS {
                    pins.spare(place.pin_of(index));
                }
                let reason = match error {
                    CaptureError::Interface { reason, .. } => reason,
                    other => other.to_string(),
                };
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
        (ebpf, pins): (&mut Ebpf, &mut Pins),
        (index, interface): (u32, &str),
        (name, place): (&str, Place),
    ) -> Result<Held, CaptureError> {
        let program = program(ebpf, name);
        let held = match self.attach {
            Attach::Tcx => attach_tcx(program, pins, place, (index, interface)),
            Attach::Clsact => attach_clsact(program, place, (interface, name)),
        }?;
        match held {
            hook::Held::Tcx(link) => Ok(Held::Link(link)),
            hook::Held::Clsact(link) => {
                let link = program.take_link(link).map_err(|error| hook::refused(interface, &error))?;
                Ok(Held::Filter(ManuallyDrop::new(link)))
            }
        }
    }
}

/// Takes off the filters that a killed agent has left.
fn sweep(interface: &str) {
    for (name, place) in HOOKS {
        // Nothing there is the ordinary case.
        let _ = qdisc_detach_program(interface, place.side, name);
    }
}

fn program<'e>(ebpf: &'e mut Ebpf, name: &str) -> &'e mut SchedClassifier {
    let program = ebpf.program_mut(name).expect("the object holds the program");
    program.try_into().expect("the program is a classifier")
}
