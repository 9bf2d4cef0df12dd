//! Sockets whose backend is gone: they are closed where the kernel can, so that their programs notice at once. A UDP socket
//! would wait for answers that never come, and a TCP connection for its last retransmission.
//!
//! Only sockets that the programs led to such a backend are touched: they are found in the programs' own map, and named to
//! the kernel by their cookie. The kernel shows and closes sockets of one network namespace at a time (`SOCK_DESTROY`, 4.9,
//! `CONFIG_INET_DIAG_DESTROY`), which is found by the process that dialled.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use agent_common::balance::{End, TCP, UDP};
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Protocol, Socket, Type};

use super::connect::Sockets;
use super::sock_diag::{self, Answers, Kind, SocketId};

/// `NETLINK_SOCK_DIAG`.
const NETLINK_SOCK_DIAG: i32 = 4;
/// The kernel answers at once; this only keeps a thread from waiting for ever.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The most that one datagram of answers holds.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// The map's entries; it may change under the reader, who would then begin anew.
pub(super) const ENTRIES_MAX: usize = 2 * 65_536;

/// What is asked for.
pub(super) const KINDS: [Kind; 4] = [
    Kind { family: 2, protocol: TCP },
    Kind { family: 10, protocol: TCP },
    Kind { family: 2, protocol: UDP },
    Kind { family: 10, protocol: UDP },
];

/// What became of sockets whose backend was gone.
#[derive(Debug, Default)]
pub struct Sought {
    closed: AtomicU64,
    not_closed: AtomicU64,
    unreachable: AtomicU64,
}

impl Sought {
    /// Counts by what became of them.
    pub fn read(&self) -> [(&'static str, u64); 3] {
        [
            ("closed", self.closed.load(Ordering::Relaxed)),
            ("not_closed", self.not_closed.load(Ordering::Relaxed)),
            ("unreachable", self.unreachable.load(Ordering::Relaxed)),
        ]
    }
}

/// Finds and closes them, on threads of their own.
pub struct Vanished {
    sockets: Arc<Sockets>,
    sought: Arc<Sought>,
    last: BTreeSet<End>,
}

impl Vanished {
    /// By the programs' map.
    pub fn new(sockets: Sockets, sought: Arc<Sought>) -> Self {
        Self { sockets: Arc::new(sockets), sought, last: BTreeSet::new() }
    }

    /// Closes the sockets of these backends.
    pub fn seek(&mut self, gone: BTreeSet<End>) {
        self.last.extend(gone.iter().copied());
        self.start(gone);
    }

    /// Looks a second and last time for those of backends that went since.
    pub fn seek_again(&mut self) {
        let gone = std::mem::take(&mut self.last);
        self.start(gone);
    }

    fn start(&self, gone: BTreeSet<End>) {
        if gone.is_empty() {
            return;
        }
        let (sockets, sought) = (Arc::clone(&self.sockets), Arc::clone(&self.sought));
        // The thread enters other namespaces and ends in the last one.
        let started = std::thread::Builder::new().name("vanished".to_owned()).spawn(move || {
            close_all(&sockets, &gone, &sought);
        });
        if let Err(error) = started {
            tracing::error!(%error, "sockets of vanished backends stay open");
        }
    }
}

/// Sockets that were led to one of the backends, by the process that dialled.
type Found = HashMap<u32, HashSet<(u64, End)>>;

/// Sockets by the number of the namespace in which they are, with the namespace.
type Namespaces<N> = HashMap<u64, (N, HashSet<(u64, End)>)>;

fn close_all(sockets: &Sockets, gone: &BTreeSet<End>, sought: &Sought) {
    let namespace = |process: u32| {
        let file = File::open(format!("/proc/{process}/ns/net"))?;
        file.metadata().map(|metadata| (metadata.ino(), file))
    };
    let (namespaces, unreachable) = by_namespace(find(sockets, gone), namespace);
    sought.unreachable.fetch_add(unreachable, Ordering::Relaxed);
    for (file, found) in namespaces.into_values() {
        if let Err(error) = close_in(&file, &found, sought) {
            tracing::warn!(%error, sockets = found.len(), "sockets of vanished backends stay open");
            sought.not_closed.fetch_add(found.len() as u64, Ordering::Relaxed);
        }
    }
}

fn find(sockets: &Sockets, gone: &BTreeSet<End>) -> Found {
    let mut found = Found::new();
    for key in sockets.keys().take(ENTRIES_MAX).flatten().filter(|key| gone.contains(&key.backend)) {
        if let Ok(value) = sockets.get(&key, 0) {
            found.entry(value.process).or_default().insert((key.cookie, key.backend));
        }
    }
    found
}

/// Sorts sockets by the namespaces of the processes that dialled; answers how many are where nobody may look.
///
/// A process that is gone took its sockets along, unless another one has them: they are looked for where the others' are.
fn by_namespace<N>(found: Found, open: impl Fn(u32) -> io::Result<(u64, N)>) -> (Namespaces<N>, u64) {
    let mut namespaces = Namespaces::new();
    let (mut orphans, mut unreachable) = (HashSet::new(), 0);
    for (process, found) in found {
        match open(process) {
            Ok((number, namespace)) => {
                namespaces.entry(number).or_insert_with(|| (namespace, HashSet::new())).1.extend(found);
            }
            Err(error) if is_gone(&error) => orphans.extend(found),
            Err(_) => unreachable += found.len() as u64,
        }
    }
    for (_, found) in namespaces.values_mut() {
        found.extend(&orphans);
    }
    (namespaces, unreachable)
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

fn close_in(namespace: &File, found: &HashSet<(u64, End)>, sought: &Sought) -> io::Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    let netlink = open_sock_diag()?;
    for kind in KINDS {
        if !found.iter().any(|(_, backend)| backend.protocol == kind.protocol) {
            continue;
        }
        let there = exchange(&netlink, &sock_diag::ask(kind), sock_diag::read)?;
        for socket in there.iter().filter(|socket| found.contains(&(socket.cookie(), peer(kind, socket)))) {
            let (counter, outcome) =
                match exchange(&netlink, &sock_diag::destroy(kind, socket), sock_diag::read) {
                    Ok(_) => (&sought.closed, Ok(())),
                    // It closed by itself meanwhile.
                    Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
                    Err(error) => (&sought.not_closed, Err(error)),
                };
            counter.fetch_add(1, Ordering::Relaxed);
            if let Err(error) = outcome {
                tracing::warn!(%error, "a socket of a vanished backend stays open");
            }
        }
    }
    Ok(())
}

/// A socket that the kernel answers about the sockets of the calling thread's namespace.
pub(super) fn open_sock_diag() -> io::Result<Socket> {
    let protocol = Some(Protocol::from(NETLINK_SOCK_DIAG));
    let netlink = Socket::new(Domain::from(libc::AF_NETLINK), Type::DGRAM, protocol)?;
    netlink.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    Ok(netlink)
}

/// Sends a request and collects the sockets of its answers.
pub(super) fn exchange<T>(
    netlink: &Socket,
    request: &[u8],
    read: impl Fn(&[u8]) -> Answers<T>,
) -> io::Result<Vec<T>> {
    let mut netlink = netlink;
    netlink.send(request)?;
    let mut sockets = Vec::new();
    let mut buffer = vec![0; ANSWER_BYTES_MAX];
    loop {
        let length = netlink.read(&mut buffer)?;
        match read(&buffer[..length]) {
            Answers::More(more) => sockets.extend(more),
            Answers::Last(_, Some(number)) => return Err(io::Error::from_raw_os_error(number)),
            Answers::Last(more, None) => {
                sockets.extend(more);
                return Ok(sockets);
            }
        }
    }
}

/// A socket's peer, as the programs name it.
pub(super) fn peer(kind: Kind, socket: &SocketId) -> End {
    end(kind, socket.peer())
}

/// One end of a socket of this kind.
pub(super) fn end(kind: Kind, (port_be, address_be): (u16, [u32; 4])) -> End {
    if i32::from(kind.family) == libc::AF_INET {
        End::v4(address_be[0], port_be, kind.protocol)
    } else {
        End::v6(address_be, port_be, kind.protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_processes_that_are_gone_are_not_counted_as_open() {
        let end = End::v4(0, 0, TCP);
        let found = |cookies: &[u64]| cookies.iter().map(|cookie| (*cookie, end)).collect::<HashSet<_>>();
        let open = |process: u32| match process {
            1 | 2 => Ok((7, ())),
            3 => Err(io::ErrorKind::NotFound.into()),
            _ => Err(io::ErrorKind::PermissionDenied.into()),
        };
        let all = Found::from([(1, found(&[1])), (2, found(&[2])), (3, found(&[3, 4])), (4, found(&[5]))]);
        let (namespaces, unreachable) = by_namespace(all, open);
        assert_eq!(unreachable, 1);
        assert_eq!(namespaces, Namespaces::from([(7, ((), found(&[1, 2, 3, 4])))]));
        let (namespaces, unreachable) = by_namespace(Found::from([(3, found(&[3]))]), open);
        assert_eq!((namespaces.len(), unreachable), (0, 0));
    }
}
