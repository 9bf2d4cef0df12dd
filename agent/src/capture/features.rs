//! What the kernel has of what the agent can use, and what is done instead where it lacks something.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use aya::maps::MapType;
use aya::programs::tc::{SchedClassifier, TcAttachType};
use aya::programs::{ProgramError, ProgramType};
use aya::sys::{is_map_supported, is_program_supported};

use super::listener::has_port_range;
use super::pins::{Bpffs, is_bpffs};
use super::self_check::{Check, Outcome};
use super::{CaptureError, OnStop};

/// Something that a kernel may lack without capture failing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// Links at TC.
    Tcx,
    /// A range of source ports for one socket.
    PortRange,
    /// A cgroup v2 hierarchy.
    Cgroup2,
    /// Programs at the driver.
    Xdp,
    /// Programs at a socket's life.
    SockOps,
    /// Programs at a socket's messages.
    SkMsg,
    /// A ring buffer.
    RingBuffer,
    /// The kernel's own types.
    Btf,
}

impl Feature {
    const ALL: [Self; 8] = [
        Self::Tcx,
        Self::PortRange,
        Self::Cgroup2,
        Self::Xdp,
        Self::SockOps,
        Self::SkMsg,
        Self::RingBuffer,
        Self::Btf,
    ];

    /// Its name, and what is done where it is missing.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Tcx => ("tcx", "before 6.6: filters of the clsact qdisc are used"),
            Self::PortRange => {
                ("IP_LOCAL_PORT_RANGE", "source ports of spoofed connections are chosen by the agent")
            }
            Self::Cgroup2 => {
                ("cgroup v2", "not mounted: nothing is decided at sockets, all of it at packets")
            }
            Self::Xdp => ("XDP", "nothing is decided at the driver, all of it at TC"),
            Self::SockOps => (
                "sock_ops",
                "same-node traffic takes the ordinary path, and the ends of sockets are not told",
            ),
            Self::SkMsg => ("sk_msg", "same-node traffic takes the ordinary path"),
            Self::RingBuffer => ("ring buffer", "there are no flow events; counters go on"),
            Self::Btf => ("BTF", "no /sys/kernel/btf/vmlinux: dumps of maps show bytes"),
        }
    }

    fn present(self) -> Result<bool, String> {
        let program = |kind| is_program_supported(kind).map_err(|error| error.to_string());
        match self {
            Self::Tcx => has_tcx(SchedClassifier::query_tcx("lo", TcAttachType::Ingress).map(drop)),
            Self::PortRange => {
                let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0));
                let socket = socket.map_err(|error| error.to_string())?;
                Ok(has_port_range(socket.as_raw_fd()))
            }
            Self::Cgroup2 => {
                let mounts = fs::read_to_string("/proc/mounts").map_err(|error| error.to_string())?;
                Ok(cgroup2_mount(&mounts).is_some())
            }
            Self::Xdp => program(ProgramType::Xdp),
            Self::SockOps => program(ProgramType::SockOps),
            Self::SkMsg => program(ProgramType::SkMsg),
            Self::RingBuffer => is_map_supported(MapType::RingBuf).map_err(|error| error.to_string()),
            Self::Btf => Ok(Path::new("/sys/kernel/btf/vmlinux").exists()),
        }
    }
}

/// What the kernel's answer says: one that refuses to say has not said that it lacks it.
fn has_tcx(asked: Result<(), ProgramError>) -> Result<bool, String> {
    match asked {
        Ok(()) => Ok(true),
        Err(ProgramError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EPERM) => {
            Err(error.io_error.to_string())
        }
        Err(_) => Ok(false),
    }
}

/// Asks the kernel for every feature.
pub fn features() -> Vec<Check> {
    Feature::ALL.into_iter().map(|feature| check(feature, feature.present())).collect()
}

fn check(feature: Feature, present: Result<bool, String>) -> Check {
    let (name, instead) = feature.words();
    let (outcome, detail) = match present {
        Ok(true) => (Outcome::Ok, "the kernel has it".to_owned()),
        Ok(false) => (Outcome::Warning, instead.to_owned()),
        Err(error) => (Outcome::Warning, format!("could not be asked for: {error}")),
    };
    Check { name, outcome, detail }
}

/// Whether maps and links can outlive an agent, as what it leaves at its stop may ask for.
pub fn pinning(bpffs: &Bpffs, on_stop: OnStop) -> Check {
    let gone = "nothing is pinned: the policies of pods and all that is captured end with the agent, and the next one \
                starts anew";
    let unpinned = match bpffs {
        Bpffs::Off => Some(Bpffs::OFF),
        Bpffs::Usual if !is_bpffs(Path::new("/sys/fs/bpf")) => Some(Bpffs::NOT_MOUNTED),
        Bpffs::Usual | Bpffs::At(_) => None,
    };
    if let (Some(reason), OnStop::Keep) = (unpinned, on_stop) {
        let detail = CaptureError::KeepWithoutPins(reason).to_string();
        return Check { name: "bpffs", outcome: Outcome::Failed, detail };
    }
    let (outcome, detail) = match bpffs {
        Bpffs::Off => (Outcome::Ok, format!("off: {gone}")),
        Bpffs::Usual if is_bpffs(Path::new("/sys/fs/bpf")) => {
            (Outcome::Ok, "maps and links are pinned below /sys/fs/bpf/sluice".to_owned())
        }
        Bpffs::Usual => {
            (Outcome::Warning, format!("not mounted: {gone}; `mount -t bpf bpf /sys/fs/bpf` mounts it"))
        }
        Bpffs::At(path) if path.ancestors().find(|path| path.exists()).is_some_and(is_bpffs) => {
            (Outcome::Ok, format!("maps and links are pinned below {}", path.display()))
        }
        Bpffs::At(path) => (Outcome::Failed, format!("{} is not on a BPF file system", path.display())),
    };
    Check { name: "bpffs", outcome, detail }
}

/// Where cgroup v2 is mounted, as `/proc/mounts` tells. With several mounts the first is taken.
pub fn cgroup2_mount(mounts: &str) -> Option<PathBuf> {
    let mut mounted = mounts.lines().map(|line| line.split(' '));
    mounted.find_map(|mut words| {
        let (_, path, kind) = (words.next()?, words.next()?, words.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path.replace("\\040", " ")))
    })
}

#[cfg(test)]
mod tests {
    use aya::sys::SyscallError;

    use super::*;

    #[test]
    fn what_is_missing_is_named_with_what_is_used_instead() {
        for feature in Feature::ALL {
            let has = check(feature, Ok(true));
            assert_eq!((has.outcome, has.detail.as_str()), (Outcome::Ok, "the kernel has it"));
            let lacks = check(feature, Ok(false));
            assert_eq!((lacks.name, lacks.outcome), (has.name, Outcome::Warning));
            assert!(lacks.detail.len() > 15, "{lacks:?} says nothing");
            let unknown = check(feature, Err("EPERM".to_owned()));
            assert_eq!(unknown.outcome, Outcome::Warning);
            assert!(unknown.detail.contains("EPERM"));
        }
    }

    #[test]
    fn a_kernel_that_may_not_be_asked_is_not_said_to_lack_tcx() {
        let refused = |number| {
            let io_error = std::io::Error::from_raw_os_error(number);
            Err(ProgramError::SyscallError(SyscallError { call: "bpf_prog_query", io_error }))
        };
        assert_eq!(has_tcx(Ok(())), Ok(true));
        assert_eq!(has_tcx(refused(libc::EINVAL)), Ok(false));
        assert!(has_tcx(refused(libc::EPERM)).is_err());
    }

    #[test]
    fn the_mount_of_cgroup_v2_is_found_wherever_it_is() {
        let cases = [
            ("cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n", Some("/sys/fs/cgroup")),
            (
                "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\nnone /sys/fs/cgroup/unified cgroup2 rw 0 0\n",
                Some("/sys/fs/cgroup/unified"),
            ),
            ("x /a\\040b cgroup2 rw 0 0\n", Some("/a b")),
            ("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n", None),
            ("cgroup2\n\ncgroup2 /x\n", None),
            ("", None),
        ];
        for (mounts, expected) in cases {
            assert_eq!(cgroup2_mount(mounts), expected.map(PathBuf::from), "{mounts:?}");
        }
    }

    #[test]
    fn a_directory_for_pins_is_looked_at_and_not_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pins");
        let seen = pinning(&Bpffs::At(path.clone()), OnStop::Keep);
        assert_eq!(seen.outcome, Outcome::Failed, "{seen:?}");
        assert!(!path.exists());
    }

    #[test]
    fn what_ends_with_the_agent_is_said_and_refused_where_it_shall_stay() {
        let off = pinning(&Bpffs::Off, OnStop::Remove);
        assert_eq!(off.outcome, Outcome::Ok, "{off:?}");
        assert!(
            off.detail.contains("policies of pods") && off.detail.contains("end with the agent"),
            "{off:?}"
        );
        let kept = pinning(&Bpffs::Off, OnStop::Keep);
        assert_eq!(kept.outcome, Outcome::Failed, "{kept:?}");
        assert!(
            kept.detail.contains("--on-stop keep needs pins") && kept.detail.contains("--bpffs off"),
            "{kept:?}"
        );
    }
}
