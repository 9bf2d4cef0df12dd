//! The loaded kernel programs and their maps.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use agent_common::capture::{Action, AddressKey, CaptureConfig, DestinationKey, DestinationValue, Reason};
use aya::maps::{MapData, MapError, PerCpuArray, SockMap};
use aya::programs::tc::{
    NlOptions, SchedClassifierLinkId, TcAttachOptions, qdisc_add_clsact, qdisc_detach_program,
};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfError, EbpfLoader};

use super::guard::{Guard, GuardOptions};
use super::interfaces::Hooked;
use super::listener::CaptureListeners;
use super::mirror::Mirror;
use super::{CaptureError, Marks};

/// The object that the build script made, aligned as the ELF reader asks.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sluice-ebpf.o"));
/// Where clsact filters of ours sit; low numbers run first.
const CLSACT_PRIORITY: u16 = 1;

/// Programs, maps and attachments. Dropping it detaches whatever the kernel ties to file descriptors (tcx links); clsact
/// filters need [`Programs::detach`].
pub struct Programs {
    ebpf: Ebpf,
    attach: Attach,
    links: BTreeMap<u32, Attached>,
    destinations: Mirror<DestinationKey, DestinationValue>,
    addresses: Mirror<AddressKey, u32>,
    listeners: SockMap<MapData>,
    counters: Counters,
}

/// How programs are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attach {
    /// Links on the interface, from 6.6 on; they go with the process.
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
    link: SchedClassifierLinkId,
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
    /// Loads everything; nothing is attached yet.
    pub fn load(marks: Marks, workers: u32, guard: Option<&GuardOptions>) -> Result<Self, CaptureError> {
        let config = CaptureConfig { deliver_mark: marks.deliver, own_mark: marks.own, workers, padding: 0 };
        let mut loader = EbpfLoader::new();
        Guard::size_maps(&mut loader, guard);
        let mut ebpf = loader.override_global("CONFIG", &config, true).load(OBJECT).map_err(object_error)?;
        for hook in Hooked::ALL {
            let program = classifier(&mut ebpf, hook);
            program.load().map_err(|source| load_error(hook.program(), source))?;
        }
        Ok(Self {
            attach: if aya::util::KernelVersion::current()
                .is_ok_and(|v| v >= aya::util::KernelVersion::new(6, 6, 0))
            {
                Attach::Tcx
            } else {
                Attach::Clsact
            },
            links: BTreeMap::new(),
            destinations: Mirror::new("DESTINATIONS", map(&mut ebpf, "DESTINATIONS")?),
            addresses: Mirror::new("LOCAL_ADDRESSES", map(&mut ebpf, "LOCAL_ADDRESSES")?),
            listeners: map(&mut ebpf, "LISTENERS")?,
            counters: Counters(Arc::new(map(&mut ebpf, "COUNTERS")?)),
            ebpf,
        })
    }

    /// The loaded object, for the parts that own their programs and maps.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// How programs are attached.
    pub fn attach_kind(&self) -> Attach {
        self.attach
    }

    /// Gives the workers' listeners to the programs: from now on new connections are captured.
    pub fn set_listeners(&mut self, listeners: &[CaptureListeners]) -> Result<(), CaptureError> {
        for (worker, pair) in (0u32..).zip(listeners) {
            for (family, socket) in (0u32..).zip(&pair.sockets) {
                self.listeners
                    .set(worker * 2 + family, &socket.as_raw_fd(), 0)
                    .map_err(|source| CaptureError::Map { map: "LISTENERS", source })?;
            }
        }
        Ok(())
    }

    /// Takes the listeners away: new connections go direct, established ones stay with the agent.
    pub fn clear_listeners(&mut self, workers: u32) -> Result<(), CaptureError> {
        for index in 0..workers * 2 {
            match self.listeners.clear_index(&index) {
                Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EINVAL) => {
                }
                Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => {
                }
                result => result.map_err(|source| CaptureError::Map { map: "LISTENERS", source })?,
            }
        }
        Ok(())
    }

    /// Puts a program on an interface; with [`Attach::Tcx`] refused by the kernel, on its clsact qdisc.
    pub fn attach(&mut self, index: u32, interface: &str, hook: Hooked) -> Result<(), CaptureError> {
        let failed = |error: &dyn std::fmt::Display| CaptureError::Interface {
            interface: interface.to_owned(),
            reason: error.to_string(),
        };
        let program = classifier(&mut self.ebpf, hook);
        let options = match self.attach {
            Attach::Tcx => TcAttachOptions::TcxOrder(LinkOrder::first()),
            Attach::Clsact => {
                prepare_clsact(interface, hook).map_err(|error| failed(&error))?;
                TcAttachOptions::Netlink(NlOptions { priority: CLSACT_PRIORITY, ..NlOptions::default() })
            }
        };
        let link = program
            .attach_with_options(interface, TcAttachType::Ingress, options)
            .map_err(|error| failed(&innermost(&error)))?;
        self.links.insert(index, Attached { interface: interface.to_owned(), hook, link });
        Ok(())
    }

    /// Takes the program off an interface; the interface may be gone already.
    pub fn detach(&mut self, index: u32) {
        if let Some(attached) = self.links.remove(&index)
            && let Err(error) = classifier(&mut self.ebpf, attached.hook).detach(attached.link)
        {
            tracing::debug!(interface = attached.interface, %error, "detaching a program");
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
        wanted: impl Iterator<Item = SocketAddr>,
    ) -> Result<Captured, CaptureError> {
        let value = DestinationValue { action: Action::Agent as u32 };
        let over_capacity =
            self.destinations.set(&wanted.map(|to| (destination_key(to), value)).collect())?;
        Ok(Captured { destinations: self.destinations.len(), over_capacity })
    }

    /// Makes the node's own addresses these. Answers how many found no room.
    pub fn set_addresses(&mut self, wanted: impl Iterator<Item = IpAddr>) -> Result<usize, CaptureError> {
        self.addresses.set(&wanted.map(|ip| (AddressKey { address: octets(ip) }, 1)).collect())
    }

    /// The programs' counters, readable from anywhere.
    pub fn counters(&self) -> Counters {
        self.counters.clone()
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
    fn program(self) -> &'static str {
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

fn map<T: TryFrom<aya::maps::Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, CaptureError> {
    let map = ebpf.take_map(name).expect("the object holds the map");
    T::try_from(map).map_err(|source| CaptureError::Map { map: name, source })
}

fn object_error(error: EbpfError) -> CaptureError {
    match &error {
        EbpfError::MapError(MapError::CreateError { io_error, .. })
            if io_error.raw_os_error() == Some(libc::EPERM) =>
        {
            CaptureError::Privilege
        }
        _ => CaptureError::Object(error),
    }
}

fn load_error(program: &'static str, source: ProgramError) -> CaptureError {
    match &source {
        ProgramError::LoadError { io_error, .. } if io_error.raw_os_error() == Some(libc::EPERM) => {
            CaptureError::Privilege
        }
        _ => CaptureError::Load { program, source: Box::new(source) },
    }
}

/// Adds the qdisc where it is missing, and takes off filters that a killed agent left.
fn prepare_clsact(interface: &str, hook: Hooked) -> Result<(), aya::programs::tc::TcError> {
    // The qdisc may be there already; if it could not be made, attaching says so.
    let _ = qdisc_add_clsact(interface);
    match qdisc_detach_program(interface, TcAttachType::Ingress, hook.program()) {
        Err(aya::programs::tc::TcError::IoError(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            Ok(())
        }
        result => result,
    }
}

/// The cause that says something: aya wraps the kernel's errno in layers that only name the call.
pub(super) fn innermost(error: &ProgramError) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    format!("the program cannot be attached: {cause}; `bpftool net` lists what is attached there already")
}

fn destination_key(address: SocketAddr) -> DestinationKey {
    DestinationKey {
        address: octets(address.ip()),
        port_be: address.port().to_be_bytes(),
        family: if address.is_ipv4() { 4 } else { 6 },
        padding: 0,
    }
}

/// An address as the maps keep it.
fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => {
            let mut wide = [0; 16];
            wide[..4].copy_from_slice(&v4.octets());
            wide
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}
