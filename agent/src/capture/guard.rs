//! The guard at the edge: an XDP program on the interfaces that the user named, and the maps that tell it whom to keep out.
//!
//! It attaches in native mode where the driver can, else in the kernel's generic one, which runs later and costs more. Pinned,
//! it outlives the agent; the next one's program comes with maps of its own, filled, in one step. Where a trie is full the narrowest deny entries are left out and reported; their sources pass.

mod lower;
mod pushed;
mod trie;

pub use lower::RuleNumbers;
pub use pushed::{GuardHandle, Push, kernel_now_ns, source_key};
pub use trie::Fill;

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};

use agent_common::guard::{GuardSettings, Limit, MAX_RULES, Reason};
use aya::maps::{Array, Map, MapData, MapError, PerCpuArray, PerCpuValues};
use aya::programs::links::FdLink;
use aya::programs::{Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};

use super::interfaces::{Header, Snapshot};
use super::pins::{Link, Pins, innermost};
use super::{CaptureError, limits};
use crate::compile::GuardPolicy;
use crate::model::SourceRate;
use crate::telemetry::{GuardReading, MapReading};
use lower::lower;
use pushed::Pushed;
use trie::Trie;

/// The program's name.
pub const PROGRAM: &str = "xdp_guard";
/// The modes in the order in which they are tried, by the names that `status` shows and pins have.
const MODES: [(&str, XdpMode); 2] = [("native", XdpMode::Driver), ("generic", XdpMode::Skb)];

/// Where the guard stands, and how much it can remember.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardOptions {
    /// The interfaces, by name.
    pub interfaces: Vec<String>,
    /// Networks on the lists, of each family.
    pub entries: u32,
    /// Sources whose limits are held at once.
    pub sources: u32,
}

impl GuardOptions {
    /// Room for so many networks and sources unless something else is said.
    pub const DEFAULT_ENTRIES: u32 = 131_072;
    /// As above, for sources.
    pub const DEFAULT_SOURCES: u32 = 131_072;
}

/// What `status` shows of the guard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuardStatus {
    /// Interfaces with the program: name, and `native` or `generic`.
    pub interfaces: Vec<(String, &'static str)>,
    /// Interfaces without it, with the reason.
    pub failed: Vec<(String, String)>,
    /// How full its maps are.
    pub maps: Vec<Fill>,
    /// The policy in force.
    pub policy: Arc<GuardPolicy>,
}

struct Attached {
    interface: String,
    mode: &'static str,
    link: Link,
}

/// The loaded program with its maps and attachments.
pub struct Guard {
    options: GuardOptions,
    attached: BTreeMap<u32, Attached>,
    failed: BTreeMap<String, String>,
    v4: Trie<[u8; 4]>,
    v6: Trie<[u8; 16]>,
    pushed: Pushed,
    settings: Array<MapData, GuardSettings>,
    in_kernel: GuardSettings,
    /// Whether limits are about any Gateway.
    limited: bool,
    numbers: RuleNumbers,
    policy: Arc<GuardPolicy>,
    counters: GuardCounters,
}

impl Guard {
    /// Gives the maps their size; without a guard they have the least that there is. The tries have one place more than is
    /// ever used: older kernels need it to change an entry of a full one.
    pub fn size_maps(loader: &mut EbpfLoader<'_>, options: Option<&GuardOptions>) {
        if let Some(options) = options {
            let entries = options.entries.saturating_add(1);
            loader.map_max_entries("GUARD_V4", entries).map_max_entries("GUARD_V6", entries);
            loader.map_max_entries("GUARD_SOURCES", options.sources);
        } else {
            for map in ["GUARD_PUSHED", "GUARD_HITS", limits::GATEWAYS] {
                loader.map_max_entries(map, 1);
            }
        }
    }

    /// Loads the program and takes its maps; nothing is attached, and everything would pass.
    pub fn load(ebpf: &mut Ebpf, options: GuardOptions) -> Result<Self, CaptureError> {
        let loaded = program(ebpf).load();
        loaded.map_err(|source| CaptureError::Load { program: PROGRAM, source: Box::new(source) })?;
        let capacity = usize::try_from(options.entries).unwrap_or(usize::MAX);
        Ok(Self {
            attached: BTreeMap::new(),
            failed: BTreeMap::new(),
            v4: Trie::new("GUARD_V4", map(ebpf, "GUARD_V4")?, capacity),
            v6: Trie::new("GUARD_V6", map(ebpf, "GUARD_V6")?, capacity),
            pushed: Pushed::new(map(ebpf, "GUARD_PUSHED")?),
            settings: map(ebpf, "GUARD_SETTINGS")?,
            in_kernel: GuardSettings::default(),
            limited: false,
            numbers: RuleNumbers::default(),
            policy: Arc::default(),
            counters: GuardCounters::new(map(ebpf, "GUARD_COUNTERS")?, map(ebpf, "GUARD_HITS")?),
            options,
        })
    }

    /// Refuses to start where a named interface is missing.
    pub fn check_interfaces(options: &GuardOptions, snapshot: &Snapshot) -> Result<(), CaptureError> {
        let missing = |name: &&String| !snapshot.links.values().any(|link| link.name == **name);
        match options.interfaces.iter().find(missing) {
            Some(name) => Err(CaptureError::UnknownGuard(name.clone())),
            None => Ok(()),
        }
    }

    /// Puts the program on the named interfaces that are there and takes note of the others. Answers the failures that are
    /// new, or have a new reason.
    pub fn follow(&mut self, (ebpf, pins): (&mut Ebpf, &mut Pins), snapshot: &Snapshot) -> Vec<CaptureError> {
        let gone = self.attached.extract_if(.., |index, attached| {
            snapshot.links.get(index).is_none_or(|link| link.name != attached.interface)
        });
        gone.for_each(|(_, attached)| attached.link.detach());
        let mut failures = Vec::new();
        for name in self.options.interfaces.clone() {
            let reason = match snapshot.links.iter().find(|(_, link)| link.name == name) {
                None => "the interface is not there".to_owned(),
                Some((index, _)) if self.attached.contains_key(index) => {
                    self.failed.remove(&name);
                    continue;
                }
                Some((_, link)) if link.header != Header::Ethernet => {
                    "its packets have no Ethernet header, which the guard reads".to_owned()
                }
                Some((index, _)) => match attach((&mut *ebpf, &mut *pins), *index) {
                    Ok((link, mode)) => {
                        tracing::info!(interface = name, mode, "guarded");
                        self.failed.remove(&name);
                        self.attached.insert(*index, Attached { interface: name, mode, link });
                        continue;
                    }
                    Err(reason) => reason,
                },
            };
            if self.failed.insert(name.clone(), reason.clone()).as_ref() != Some(&reason) {
                failures.push(CaptureError::Guard { interface: name, reason });
            }
        }
        failures
    }

    /// Takes the program off every interface.
    pub fn detach_all(&mut self) {
        for attached in std::mem::take(&mut self.attached).into_values() {
            attached.link.detach();
        }
    }

    /// Makes a policy the one in force.
    pub fn apply(&mut self, policy: &Arc<GuardPolicy>) -> Result<(), CaptureError> {
        if Arc::ptr_eq(&self.policy, policy) {
            return Ok(());
        }
        for number in self.numbers.assign(policy.rules.iter().map(|rule| &rule.name)) {
            self.counters.forget(number)?;
        }
        let lowered =
            lower(policy, &self.numbers, usize::try_from(self.options.entries).unwrap_or(usize::MAX));
        self.v4.set(&lowered.v4)?;
        self.v6.set(&lowered.v6)?;
        self.policy = Arc::clone(policy);
        self.write_settings()?;
        self.publish();
        let left_out = lowered.v4.left_out + lowered.v6.left_out;
        if left_out > 0 {
            tracing::error!(
                left_out,
                capacity = self.options.entries,
                "more networks than the guard has room for (--guard-entries); the narrowest are not denied"
            );
        }
        Ok(())
    }

    /// Has the program look for limits of Gateways, or not.
    pub fn set_limited(&mut self, limited: bool) -> Result<(), CaptureError> {
        self.limited = limited;
        self.write_settings()
    }

    /// Keeps a source out for a while.
    pub fn push(&mut self, push: Push) -> Result<(), CaptureError> {
        self.pushed.push(push, kernel_now_ns())?;
        tracing::info!(source = %push.source, seconds = push.lasts.as_secs(), "pushed down to the guard");
        self.write_settings()?;
        self.publish();
        Ok(())
    }

    /// Forgets pushed sources whose time is over.
    pub fn expire(&mut self) -> Result<(), CaptureError> {
        self.pushed.expire(kernel_now_ns())?;
        self.write_settings()?;
        self.publish();
        Ok(())
    }

    /// What the guard looks like now.
    pub fn status(&self) -> GuardStatus {
        let attached = self.attached.values();
        GuardStatus {
            interfaces: attached.map(|attached| (attached.interface.clone(), attached.mode)).collect(),
            failed: self.failed.clone().into_iter().collect(),
            maps: self.fills(),
            policy: Arc::clone(&self.policy),
        }
    }

    /// What the program counts, readable from anywhere.
    pub fn counters(&self) -> GuardCounters {
        self.counters.clone()
    }

    fn fills(&self) -> Vec<Fill> {
        vec![self.v4.fill(), self.v6.fill(), self.pushed.fill()]
    }

    fn write_settings(&mut self) -> Result<(), CaptureError> {
        let limit = |rate: Option<SourceRate>| {
            rate.map_or_else(Limit::default, |r| Limit::per_second(r.per_second, r.burst))
        };
        let wanted = GuardSettings {
            packets: limit(self.policy.packets),
            syns: limit(self.policy.syns),
            pushed: u32::from(self.pushed.fill().entries > 0),
            limited: self.limited.into(),
        };
        if wanted != self.in_kernel {
            let written = self.settings.set(0, wanted, 0);
            written.map_err(|source| CaptureError::Map { map: "GUARD_SETTINGS", source })?;
            self.in_kernel = wanted;
        }
        Ok(())
    }

    fn publish(&self) {
        *self.counters.known() = Known { names: self.numbers.names(), fills: self.fills() };
    }
}

/// What metrics show besides the counters.
#[derive(Default)]
struct Known {
    names: BTreeMap<u32, Arc<str>>,
    fills: Vec<Fill>,
}

/// Frames that the guard saw, by reason and by rule.
#[derive(Clone)]
pub struct GuardCounters {
    reasons: Arc<PerCpuArray<MapData, u64>>,
    hits: Arc<Mutex<PerCpuArray<MapData, u64>>>,
    known: Arc<Mutex<Known>>,
}

impl GuardCounters {
    fn new(reasons: PerCpuArray<MapData, u64>, hits: PerCpuArray<MapData, u64>) -> Self {
        Self { reasons: Arc::new(reasons), hits: Arc::new(Mutex::new(hits)), known: Arc::default() }
    }

    /// Frames by reason, summed over all CPUs; in the order of [`Reason::ALL`].
    pub fn by_reason(&self) -> Vec<(Reason, u64)> {
        Reason::ALL.into_iter().map(|reason| (reason, sum(&self.reasons, reason as u32))).collect()
    }

    /// Everything that metrics show.
    pub fn read(&self) -> GuardReading {
        let hits = self.hits.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.known();
        let verdict = |reason: Reason| if reason.drops() { "drop" } else { "pass" };
        GuardReading {
            packets: self
                .by_reason()
                .into_iter()
                .map(|(reason, count)| (verdict(reason), reason.as_str(), count))
                .collect(),
            hits: known.names.iter().map(|(number, name)| (name.to_string(), sum(&hits, *number))).collect(),
            maps: known
                .fills
                .iter()
                .map(|fill| MapReading {
                    map: fill.map,
                    entries: fill.entries,
                    capacity: fill.capacity,
                    left_out: fill.left_out,
                })
                .collect(),
        }
    }

    /// The EdgeGuard that denies under a number.
    pub(super) fn rule(&self, number: u32) -> Option<String> {
        self.known().names.get(&number).map(ToString::to_string)
    }

    /// Begins to count hits under a number anew.
    fn forget(&self, number: u32) -> Result<(), CaptureError> {
        debug_assert!(number < MAX_RULES, "numbers are given below it");
        let error = |source| CaptureError::Map { map: "GUARD_HITS", source };
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error_of(error)).map_err(error)?;
        let zeros = PerCpuValues::try_from(vec![0; cpus]).map_err(error_of).map_err(error)?;
        self.hits.lock().unwrap_or_else(PoisonError::into_inner).set(number, zeros, 0).map_err(error)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn error_of(error: std::io::Error) -> MapError {
    MapError::IoError(error)
}

fn sum(counters: &PerCpuArray<MapData, u64>, index: u32) -> u64 {
    counters.get(&index, 0).map_or(0, |values| values.iter().sum())
}

/// Takes over the place of an earlier agent's program; else attaches in native mode, else in generic mode. The reason why
/// neither goes is that of the native one.
fn attach((ebpf, pins): (&mut Ebpf, &mut Pins), index: u32) -> Result<(Link, &'static str), String> {
    let program = program(ebpf);
    let pin = |mode: &str| format!("xdp-{mode}-{index}");
    let own =
        program.fd().map_err(|error| innermost(&error))?.try_clone().map_err(|error| error.to_string())?;
    if let Some(taken) =
        MODES.into_iter().find_map(|(mode, _)| Some((pins.take_over(&pin(mode), own.as_fd())?, mode)))
    {
        return Ok(taken);
    }
    let mut refused = None;
    for (mode, flags) in MODES {
        let made = program.attach_to_if_index(index, flags).and_then(|id| program.take_link(id));
        match made {
            Ok(link) => {
                let link = FdLink::try_from(link).map_err(|error| innermost(&error))?;
                let kept = pins.link(&pin(mode), link).map_err(|error| error.to_string())?;
                return Ok((kept, mode));
            }
            Err(error) => drop(refused.get_or_insert_with(|| innermost(&error))),
        }
    }
    Err(refused.unwrap_or_default())
}

fn program(ebpf: &mut Ebpf) -> &mut Xdp {
    let program = ebpf.program_mut(PROGRAM).expect("the object holds the program");
    program.try_into().expect("the program is an XDP one")
}

fn map<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, CaptureError> {
    let map = ebpf.take_map(name).expect("the object holds the map");
    T::try_from(map).map_err(|source| CaptureError::Map { map: name, source })
}
