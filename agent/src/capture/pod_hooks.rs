//! Programs on pods' interfaces that are there only while somebody needs them: attached to all of them or to none.
//!
//! What an interface refuses is told once and tried again whenever interfaces are looked at. An earlier agent's programs then stay
//! where they are: better the last rules than none.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::ManuallyDrop;

use aya::Ebpf;
use aya::programs::tc::{SchedClassifierLink, qdisc_detach_program};
use aya::programs::{LinkOrder, SchedClassifier};

use super::CaptureError;
use super::hook::{self, Place, attach_clsact, attach_tcx};
use super::pins::{Link, Pins};
use super::programs::{Attach, load_error};

/// A program of the object, and where it sits.
pub type PodHook = (&'static str, Place);

/// Loaded programs with their attachments.
pub struct PodHooks {
    hooks: &'static [PodHook],
    /// What is not so where they can't be attached.
    otherwise: &'static str,
    attach: Attach,
    links: BTreeMap<u32, Hooked>,
    /// Interfaces that were looked at for filters of an agent that was killed.
    swept: BTreeSet<u32>,
    failed: BTreeMap<u32, (String, String)>,
}

/// An interface with all programs.
struct Hooked {
    interface: String,
    held: Vec<Held>,
}

/// What holds a program in its place. Dropped, it stays there unless it is a link that is not pinned.
enum Held {
    Link(Link),
    Filter(ManuallyDrop<SchedClassifierLink>),
}

impl Hooked {
    /// Takes all off, the last first.
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

impl PodHooks {
    /// Loads the programs; nothing is attached yet.
    pub fn load(
        ebpf: &mut Ebpf,
        hooks: &'static [PodHook],
        attach: Attach,
        otherwise: &'static str,
    ) -> Result<Self, CaptureError> {
        for (name, _) in hooks {
            program(ebpf, name).load().map_err(|source| load_error(name, source))?;
        }
        let (links, swept, failed) = Default::default();
        Ok(Self { hooks, otherwise, attach, links, swept, failed })
    }

    /// Attaches to these interfaces of pods, by index, and no others; to none while that is not `active`. Answers whether any came
    /// to it.
    pub fn follow(
        &mut self,
        (ebpf, pins): (&mut Ebpf, &mut Pins),
        pods: &BTreeMap<u32, String>,
        active: bool,
    ) -> bool {
        let wanted = |index: &u32, name: &String| pods.get(index) == Some(name);
        for (_, gone) in self.links.extract_if(.., |index, held| !active || !wanted(index, &held.interface)) {
            gone.detach();
        }
        self.failed.retain(|index, (name, _)| active && wanted(index, name));
        self.swept.retain(|index| pods.contains_key(index));
        let mut came = false;
        for (index, name) in pods {
            let first_look = self.swept.insert(*index);
            if active && !self.links.contains_key(index) {
                came |= self.hook((ebpf, pins), *index, name);
            } else if first_look && !active && self.attach == Attach::Clsact {
                self.sweep(name);
            }
        }
        came
    }

    /// Takes all programs off.
    pub fn detach_all(&mut self) {
        std::mem::take(&mut self.links).into_values().for_each(Hooked::detach);
    }

    /// The interfaces with the programs, by index.
    pub fn interfaces(&self) -> impl ExactSizeIterator<Item = u32> {
        self.links.keys().copied()
    }

    /// Interfaces that should have the programs and do not, with the reason.
    pub fn failed(&self) -> impl Iterator<Item = &(String, String)> {
        self.failed.values()
    }

    fn hook(&mut self, (ebpf, pins): (&mut Ebpf, &mut Pins), index: u32, interface: &str) -> bool {
        let mut held = Vec::new();
        let program = self.hooks.first().map_or("", |(name, _)| name);
        let attached = self.hooks.iter().try_for_each(|hook| {
            held.push(self.attach_one((&mut *ebpf, &mut *pins), (index, interface), hook)?);
            Ok(())
        });
        let hooked = Hooked { interface: interface.to_owned(), held };
        let error = match attached {
            Ok(()) => {
                self.failed.remove(&index);
                self.links.insert(index, hooked);
                tracing::info!(interface, program, "attached");
                return true;
            }
            Err(CaptureError::Interface { reason, .. }) => reason,
            Err(other) => other.to_string(),
        };
        for (_, place) in self.hooks {
            pins.spare(place.pin_of(index));
        }
        let reason = format!("{}: {error}", self.otherwise);
        let known = self.failed.insert(index, (interface.to_owned(), reason.clone()));
        if known.is_none_or(|(_, before)| before != reason) {
            tracing::error!(interface, program, reason, "not attached");
        }
        false
    }

    fn attach_one(
        &self,
        (ebpf, pins): (&mut Ebpf, &mut Pins),
        (index, interface): (u32, &str),
        &(name, place): &PodHook,
    ) -> Result<Held, CaptureError> {
        let after = place.after.and_then(|before| LinkOrder::after_program(program(ebpf, before)).ok());
        let program = program(ebpf, name);
        let held = match self.attach {
            Attach::Tcx => attach_tcx(program, pins, place, (index, interface), after),
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

    /// Takes off the filters that a killed agent has left.
    fn sweep(&self, interface: &str) {
        for (name, place) in self.hooks {
            // Nothing there is the ordinary case.
            let _ = qdisc_detach_program(interface, place.side, name);
        }
    }
}

fn program<'e>(ebpf: &'e mut Ebpf, name: &str) -> &'e mut SchedClassifier {
    let program = ebpf.program_mut(name).expect("the object holds the program");
    program.try_into().expect("the program is a classifier")
}
