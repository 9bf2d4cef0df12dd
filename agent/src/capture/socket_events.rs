//! Flow events of the sockets below the cgroup: connections that stand and those that are over, with bytes and round-trip
//! time.
//!
//! The program goes with the process. Fail-open: without it traffic flows as ever, and fewer events are told.

use agent_common::event::SocketEvents as Config;
use aya::Ebpf;
use aya::programs::sock_ops::SockOpsLink;
use aya::programs::{CgroupAttachMode, SockOps};

use super::kernel_call::netns_cookie;
use super::pins::innermost;
use super::programs::load_error;
use super::{CaptureError, CaptureSettings};

/// The map that is of no use where sockets are not told of.
pub const MAP: &str = "OPEN_SOCKETS";
/// The program.
pub const PROGRAM: &str = "tell_sockets";

/// Whether sockets are to be told of.
pub fn wanted(settings: &CaptureSettings) -> bool {
    settings.socket_events && settings.cgroup.is_some()
}

/// What the programs are loaded with.
pub fn config(settings: &CaptureSettings) -> Result<Config, CaptureError> {
    let node_cookie = if wanted(settings) {
        netns_cookie().map_err(CaptureError::listener("asking for the network namespace's cookie"))?
    } else {
        0
    };
    Ok(Config { node_cookie, on: u32::from(wanted(settings)), padding: 0 })
}

/// Told as long as this is held.
pub struct SocketEvents {
    _link: SockOpsLink,
}

impl SocketEvents {
    /// Attaches the program; on an error, which is the reason that `status` gives, sockets are not told of.
    pub fn start(settings: &CaptureSettings, ebpf: &mut Ebpf) -> Result<Self, String> {
        let cgroup = match &settings.cgroup {
            _ if !settings.socket_events => return Err("--socket-events off".to_owned()),
            None => return Err("no --cgroup names the pods' cgroup v2 directory".to_owned()),
            Some(cgroup) => cgroup.find().map_err(|error| error.to_string())?,
        };
        let directory = std::fs::File::open(cgroup).map_err(|error| error.to_string())?;
        load(ebpf).map_err(|error| error.to_string())?;
        let program = program(ebpf);
        // A link lets others attach theirs beside it, whatever the mode is called.
        let link = program.attach(directory, CgroupAttachMode::Single);
        let link = link.and_then(|id| program.take_link(id)).map_err(|error| innermost(&error))?;
        Ok(Self { _link: link })
    }
}

/// Loads the program; it is not attached yet.
pub fn load(ebpf: &mut Ebpf) -> Result<(), CaptureError> {
    program(ebpf).load().map_err(|source| load_error(PROGRAM, source))
}

fn program(ebpf: &mut Ebpf) -> &mut SockOps {
    let program = ebpf.program_mut(PROGRAM).expect("the object holds the program");
    program.try_into().expect("the program is one of socket operations")
}
