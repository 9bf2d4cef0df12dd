//! What can stop capture, each with what to do about it.

use std::io;
use std::net::SocketAddr;

/// Capture can't start, or can't go on as asked.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The process lacks a privilege.
    #[error(
        "capture needs root (CAP_NET_ADMIN, and CAP_BPF with CAP_PERFMON or else CAP_SYS_ADMIN): run as root, or use \
         --capture off"
    )]
    Privilege,
    /// Another agent has the node.
    #[error(
        "another agent captures on this node already; stop it first, or start this one with --capture off"
    )]
    Claimed,
    /// The kernel refused the programs. The verifier's words are kept.
    #[error("the kernel refused program {program}: {source}")]
    Load {
        /// The program.
        program: &'static str,
        /// The loader's error, verifier log included.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A map could not be used.
    #[error("BPF map {map}: {source}")]
    Map {
        /// The map.
        map: &'static str,
        /// The error.
        source: aya::maps::MapError,
    },
    /// The embedded object could not be read or loaded.
    #[error("the kernel programs cannot be loaded: {0}")]
    Object(#[from] aya::EbpfError),
    /// An interface could not be hooked.
    #[error("interface {interface}: {reason}")]
    Interface {
        /// The interface.
        interface: String,
        /// Why.
        reason: String,
    },
    /// No cgroup v2 hierarchy is mounted.
    #[error(
        "no cgroup v2 is mounted: `mount -t cgroup2 none /sys/fs/cgroup`, or name a directory with --cgroup"
    )]
    NoCgroup,
    /// Programs could not be attached to a cgroup.
    #[error("cgroup {}: {reason}", path.display())]
    Cgroup {
        /// Its directory.
        path: std::path::PathBuf,
        /// Why.
        reason: String,
    },
    /// Somebody else's rule gives our marks a meaning.
    #[error("{0}: choose others with --deliver-mark and --own-mark")]
    MarkTaken(String),
    /// A named uplink is not there.
    #[error("uplink {0} does not exist; `ip link` lists the interfaces")]
    UnknownUplink(String),
    /// A guarded interface is not there.
    #[error("--guard {0}: there is no such interface; `ip link` lists them")]
    UnknownGuard(String),
    /// An interface can't be guarded.
    #[error("interface {interface} is not guarded: {reason}")]
    Guard {
        /// The interface.
        interface: String,
        /// Why.
        reason: String,
    },
    /// Netlink failed.
    #[error("netlink, {doing}: {source}")]
    Netlink {
        /// What was being done.
        doing: &'static str,
        /// The error.
        source: rtnetlink::Error,
    },
    /// The capture port is in use.
    #[error("capture listener: {address} is taken by another process; {flag} sets another port")]
    PortTaken {
        /// The port, at one of the addresses that are listened on.
        address: SocketAddr,
        /// What sets it.
        flag: &'static str,
    },
    /// A socket could not be made.
    #[error("capture listener, {doing}: {source}")]
    Listener {
        /// What was being done.
        doing: &'static str,
        /// The error.
        source: io::Error,
    },
    /// Pins can't be kept where they shall be.
    #[error("--bpffs, {path}: {reason}")]
    Bpffs {
        /// The file or directory.
        path: std::path::PathBuf,
        /// Why not.
        reason: String,
    },
    /// Programs of an agent are at work after a cleanup.
    #[error("programs of an agent stay: {0}; another directory holds their pins, which --bpffs names")]
    StillAttached(String),
    /// What shall stay after the agent has nothing to hold it.
    #[error(
        "--on-stop keep needs pins, and nothing is pinned: {0}; --bpffs names a directory on a BPF file system"
    )]
    KeepWithoutPins(&'static str),
    /// `nft` is missing or failed.
    #[error("nft: {0}")]
    Nft(String),
}

impl CaptureError {
    pub(super) fn listener(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::Privilege,
            _ => Self::Listener { doing, source },
        }
    }

    pub(super) fn netlink(doing: &'static str) -> impl FnOnce(rtnetlink::Error) -> Self {
        move |source| match &source {
            rtnetlink::Error::NetlinkError(message) if message.raw_code() == -libc::EPERM => Self::Privilege,
            _ => Self::Netlink { doing, source },
        }
    }
}
