//! The loaded kernel programs and their maps.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use agent_common::capture::{
    Action, AddressKey, CaptureConfig, DestinationKey, DestinationValue, INBOUND_LISTENERS, Reason,
    TUNNEL_LISTENERS,
};
use aya::maps::{MapData, MapError, PerCpuArray, RingBuf, SockMap};
use aya::programs::{ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfError, EbpfLoader, Pod};

use super::guard::Guard;
use super::held;
use super::hook::{CAPTURE, Held, attach_clsact, attach_tcx};
use super::interfaces::Hooked;
use super::layout::layout;
use super::listener::CaptureListeners;
use super::mirror::Mirror;
use super::pins::{Left, Pins};
use super::privilege::Privileges;
use super::{CaptureError, CaptureSettings, MapUse, Released};
use super::{acceleration, connect, limits, socket_events};

/// The object that the build script made, aligned as the ELF reader asks.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sluice-ebpf.o"));
/// Maps whose contents the next agent carries on.
pub const PINNED: [&str; 9] = [
    "DESTINATIONS",
    "LOCAL_ADDRESSES",
    "LISTENERS",
    "COUNTERS",
    "POLICY_PODS",
    "POLICY_SOURCES",
    "POLICY_RULES",
    "POLICY_FLOWS",
    limits::BUCKETS,
];
/// How many destinations can be captured unless something else is said.
pub const DESTINATIONS_DEFAULT: u32 = 65_536;

/// Programs, maps and attachments. Dropped, what is pinned stays and all else goes; [`Programs::remove`] takes both.
pub struct Programs {
    ebpf: Ebpf,
    pins: Pins,
    attach: Attach,
    links: BTreeMap<u32, Attached>,
    maps: Maps,
}

/// The maps that capture reads or writes.
struct Maps {
    /// Reads them for people who ask.
    held: held::Held,
    destinations: Mirror<DestinationKey, DestinationValue>,
    addresses: Mirror<AddressKey, u32>,
    listeners: SockMap<MapData>,
    counters: Counters,
    /// Flow events, and how many found no room; taken by whoever reads them.
    events: Option<(PerCpuArray<MapData, u64>, RingBuf<MapData>)>,
}

/// How programs are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attach {
    /// Links on the interface, from 6.6 on; they go with the process where they are not pinned.
    Tcx,
    /// Filters of the clsact qdisc; they stay until removed.
    Clsact,
}

impl Attach {
    /// As `status` shows it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

struct Attached {
    interface: String,
    hook: Hooked,
    held: Held,
}

/// How many of the wanted destinations are in the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Captured {
    /// In the map.
    pub destinations: usize,
    /// Left out because the map is full; traffic to them goes direct.
    pub over_capacity: usize,
}

impl Programs {
    /// Loads capture's programs, on an earlier agent's maps where they fit; nothing is attached yet. The maps of what is off
    /// take no room.
    pub fn load(settings: &CaptureSettings, accelerated: bool) -> Result<Self, CaptureError> {
        let mut capacities =
            vec![("DESTINATIONS", settings.destinations_max), (limits::BUCKETS, settings.limit_sources)];
        if settings.cgroup.is_none() {
            capacities.extend(connect::MAPS.map(|map| (map, 1)));
        }
        if accelerated {
            capacities.push(acceleration::BRIDGES);
        } else {
            capacities.extend(acceleration::MAPS.map(|map| (map, 1)));
        }
        if !socket_events::wanted(settings) {
            capacities.push((socket_events::MAP, 1));
        }
        let mut pins = Pins::open(&settings.bpffs, &layout(OBJECT, &PINNED, &capacities)?)?;
        match Self::load_object(settings, &capacities, &mut pins) {
            Ok((ebpf, maps)) => Ok(Self::of(ebpf, maps, pins)),
            Err(error) => {
                pins.abandon();
                Err(error)
            }
        }
    }

    fn load_object(
        settings: &CaptureSettings,
        capacities: &[(&str, u32)],
        pins: &mut Pins,
    ) -> Result<(Ebpf, Maps), CaptureError> {
        let CaptureSettings { marks, workers, .. } = *settings;
        let config = CaptureConfig { deliver_mark: marks.deliver, own_mark: marks.own, workers, padding: 0 };
        let mut loader = EbpfLoader::new();
        loader.override_global("CONFIG", &config, true);
        let sockets = socket_events::config(settings)?;
        loader.override_global("SOCKET_EVENTS", &sockets, true);
        for (name, entries) in capacities {
            loader.map_max_entries(name, *entries);
        }
        Guard::size_maps(&mut loader, settings.guard.as_ref());
        for name in PINNED {
            if let Some(path) = pins.map(name) {
                loader.map_pin_path(name, path);
            }
        }
        let mut ebpf = loader.load(OBJECT).map_err(object_error)?;
        pins.keep_maps(&PINNED)?;
        for hook in Hooked::ALL {
            let program = classifier(&mut ebpf, hook);
            program.load().map_err(|source| load_error(hook.program(), source))?;
        }
        let maps = Maps {
            held: held::Held::new(&ebpf, settings.guard.is_some())?,
            destinations: mirror(&mut ebpf, "DESTINATIONS")?,
            addresses: mirror(&mut ebpf, "LOCAL_ADDRESSES")?,
            listeners: map(&mut ebpf, "LISTENERS")?,
            counters: Counters(Arc::new(map(&mut ebpf, "COUNTERS")?)),
            events: Some((map(&mut ebpf, "EVENTS_LOST")?, map(&mut ebpf, "EVENTS")?)),
        };
        Ok((ebpf, maps))
    }

    fn of(ebpf: Ebpf, maps: Maps, pins: Pins) -> Self {
        let tcx =
            aya::util::KernelVersion::current().is_ok_and(|v| v >= aya::util::KernelVersion::new(6, 6, 0));
        Self {
            attach: if tcx { Attach::Tcx } else { Attach::Clsact },
            links: BTreeMap::new(),
            pins,
            maps,
            ebpf,
        }
    }

    /// Where maps and links are pinned.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Lets go of what an earlier agent left and this one did not take over.
    pub fn sweep(&self) {
        self.pins.sweep();
    }

    /// Undoes the loading, before anything was attached.
    pub fn abandon(self) {
        self.pins.abandon();
    }

    /// Leaves everything as it is for the next agent.
    pub fn keep(self) {
        // Dropped, filters of the clsact qdisc would be taken off.
        std::mem::forget(self);
    }

    /// Takes every program off and removes the pins; `but`: what is left to the next agent.
    pub fn remove(mut self, but: Option<Left>) -> Result<(), CaptureError> {
        self.detach_all();
        self.pins.remove(but)
    }

    /// The object, for those who load and own further programs of it.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// As above, with the pins for what they attach.
    pub fn ebpf_and_pins(&mut self) -> (&mut Ebpf, &mut Pins) {
        (&mut self.ebpf, &mut self.pins)
    }

    /// How programs are attached.
    pub fn attach_kind(&self) -> Attach {
        self.attach
    }

    /// Gives the workers' listeners to the programs: from now on new connections are captured.
    pub fn set_listeners(&mut self, listeners: &[CaptureListeners]) -> Result<(), CaptureError> {
        for (worker, pair) in (0u32..).zip(listeners) {
            let lists =
                [(0, &pair.sockets), (INBOUND_LISTENERS, &pair.inbound), (TUNNEL_LISTENERS, &pair.tunnels)];
            for (first, sockets) in lists {
                for (family, socket) in (0u32..).zip(sockets) {
                    self.maps
                        .listeners
                        .set(first + worker * 2 + family, &socket.as_raw_fd(), 0)
                        .map_err(|source| CaptureError::Map { map: "LISTENERS", source })?;
                }
            }
        }
        Ok(())
    }

    /// Takes listeners away: new connections go direct, or are dropped where the agent alone could take them; established ones stay
    /// with the agent.
    pub fn clear_listeners(&mut self, workers: u32, what: Released) -> Result<(), CaptureError> {
        let lists: &[u32] = match what {
            Released::Outbound => &[0],
            Released::All => &[0, INBOUND_LISTENERS, TUNNEL_LISTENERS],
        };
        for index in (0..workers * 2).flat_map(|index| lists.iter().map(move |first| first + index)) {
            match self.maps.listeners.clear_index(&index) {
                Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EINVAL) => {
                }
                Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => {
                }
                result => result.map_err(|source| CaptureError::Map { map: "LISTENERS", source })?,
            }
        }
        Ok(())
    }

    /// Puts a program on an interface; one of an earlier agent there makes way in one step.
    pub fn attach(&mut self, index: u32, interface: &str, hook: Hooked) -> Result<(), CaptureError> {
        let program = classifier(&mut self.ebpf, hook);
        let held = match self.attach {
            Attach::Tcx => attach_tcx(program, &mut self.pins, CAPTURE, (index, interface), None),
            Attach::Clsact => attach_clsact(program, CAPTURE, (interface, hook.program())),
        }?;
        self.links.insert(index, Attached { interface: interface.to_owned(), hook, held });
        Ok(())
    }

    /// Takes the program off an interface; the interface may be gone already.
    pub fn detach(&mut self, index: u32) {
        let Some(Attached { interface, hook, held }) = self.links.remove(&index) else { return };
        match held {
            Held::Tcx(link) => link.detach(),
            Held::Clsact(link) => {
                if let Err(error) = classifier(&mut self.ebpf, hook).detach(link) {
                    tracing::debug!(interface, %error, "detaching a program");
                }
            }
        }
    }

    /// Takes every program off.
    pub fn detach_all(&mut self) {
        for index in self.links.keys().copied().collect::<Vec<_>>() {
            self.detach(index);
        }
    }

    /// The hooked interfaces.
    pub fn attached(&self) -> impl Iterator<Item = (u32, &str, Hooked)> {
        self.links.iter().map(|(index, attached)| (*index, attached.interface.as_str(), attached.hook))
    }

    /// Makes the captured destinations these; what is already right is not touched.
    pub fn set_destinations(
        &mut self,
        wanted: impl Iterator<Item = (SocketAddr, Action)>,
    ) -> Result<Captured, CaptureError> {
        let entry = |(to, action)| (destination_key(to), DestinationValue { action: action as u32 });
        let over_capacity = self.maps.destinations.set(&wanted.map(entry).collect())?;
        Ok(Captured { destinations: self.maps.destinations.len(), over_capacity })
    }

    /// Makes the node's own addresses these. Answers how many found no room.
    pub fn set_addresses(&mut self, wanted: impl Iterator<Item = IpAddr>) -> Result<usize, CaptureError> {
        self.maps.addresses.set(&wanted.map(|ip| (AddressKey { address: octets(ip) }, 1)).collect())
    }

    /// How full the maps are.
    pub fn map_use(&self) -> Vec<MapUse> {
        vec![self.maps.destinations.usage(), self.maps.addresses.usage()]
    }

    /// What the maps hold, readable from anywhere.
    pub fn held(&self) -> held::Held {
        self.maps.held.clone()
    }

    /// The numbers that the kernel gave our programs.
    pub fn own_ids(&self) -> BTreeSet<u32> {
        self.ebpf.programs().filter_map(|(_, program)| program.info().ok()).map(|info| info.id()).collect()
    }

    /// The count of flow events that were lost, and the kernel's ring of those that were not; for whoever asks first.
    pub fn events(&mut self) -> Option<(PerCpuArray<MapData, u64>, RingBuf<MapData>)> {
        self.maps.events.take()
    }

    /// The programs' counters, readable from anywhere.
    pub fn counters(&self) -> Counters {
        self.maps.counters.clone()
    }
}

/// Packets that the programs saw, by reason.
#[derive(Clone)]
pub struct Counters(Arc<PerCpuArray<MapData, u64>>);

impl Counters {
    /// Reads them, summed over all CPUs; in the order of [`Reason::ALL`].
    pub fn read(&self) -> Vec<(&'static str, u64)> {
        let sum = |reason: Reason| match self.0.get(&(reason as u32), 0) {
            Ok(values) => values.iter().sum(),
            Err(_) => 0,
        };
        Reason::ALL.into_iter().map(|reason| (reason.as_str(), sum(reason))).collect()
    }
}

impl Hooked {
    /// The program's name in the object.
    pub fn program(self) -> &'static str {
        match self {
            Self::Pod => "from_pod",
            Self::Uplink => "from_uplink",
            Self::UplinkL3 => "from_uplink_l3",
        }
    }
}

fn classifier(ebpf: &mut Ebpf, hook: Hooked) -> &mut SchedClassifier {
    let program = ebpf.program_mut(hook.program()).expect("the object holds the program");
    program.try_into().expect("the program is a classifier")
}

pub(super) fn map<T: TryFrom<aya::maps::Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, CaptureError> {
    let map = ebpf.take_map(name).expect("the object holds the map");
    T::try_from(map).map_err(|source| CaptureError::Map { map: name, source })
}

/// A hash map that the agent writes.
pub(super) fn mirror<K: Pod + Eq + Hash, V: Pod + PartialEq>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<Mirror<K, V>, CaptureError> {
    let capacity = capacity(ebpf, name)?;
    Mirror::new(name, capacity, map(ebpf, name)?)
}

/// How many entries a hash map can hold; that of an earlier agent may differ from what the object says.
fn capacity(ebpf: &Ebpf, name: &'static str) -> Result<u32, CaptureError> {
    let Some(aya::maps::Map::HashMap(map)) = ebpf.map(name) else { return Ok(0) };
    map.info().map(|info| info.max_entries()).map_err(|source| CaptureError::Map { map: name, source })
}

/// A handle of its own of a map that somebody else may take as well.
pub(super) fn another_handle(ebpf: &Ebpf, name: &'static str) -> Result<MapData, CaptureError> {
    let error = |source| CaptureError::Map { map: name, source };
    let map = ebpf.map(name).expect("the object holds the map, and nobody has taken it yet");
    let (aya::maps::Map::HashMap(data) | aya::maps::Map::LruHashMap(data) | aya::maps::Map::LpmTrie(data)) =
        map
    else {
        return Err(error(MapError::InvalidMapType { map_type: 0 }));
    };
    let fd = data.fd().as_fd().try_clone_to_owned().map_err(|io| error(MapError::IoError(io)))?;
    MapData::from_fd(fd).map_err(error)
}

pub(super) fn object_error(error: EbpfError) -> CaptureError {
    match &error {
        EbpfError::MapError(MapError::CreateError { io_error, .. })
            if io_error.raw_os_error() == Some(libc::EPERM) =>
        {
            CaptureError::Privilege
        }
        _ => CaptureError::Object(error),
    }
}

pub(super) fn load_error(program: &'static str, source: ProgramError) -> CaptureError {
    match &source {
        ProgramError::LoadError { io_error, .. } if io_error.raw_os_error() == Some(libc::EPERM) => {
            CaptureError::Privilege
        }
        // The verifier's answer to programs that it would let the privileged load.
        ProgramError::LoadError { io_error, .. }
            if io_error.raw_os_error() == Some(libc::EACCES) && !Privileges::own().loads_programs() =>
        {
            CaptureError::Privilege
        }
        _ => CaptureError::Load { program, source: Box::new(source) },
    }
}

/// A destination as the map keeps it.
pub(super) fn destination_key(address: SocketAddr) -> DestinationKey {
    DestinationKey {
        address: octets(address.ip()),
        port_be: address.port().to_be_bytes(),
        family: if address.is_ipv4() { 4 } else { 6 },
        padding: 0,
    }
}

/// An address as the maps keep it.
pub(super) fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => {
            let mut wide = [0; 16];
            wide[..4].copy_from_slice(&v4.octets());
            wide
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}
