//! How much the sockets of a network namespace hold that nobody has read, as the kernel's `sock_diag` tells it: what was handed
//! over counts as the receiver's memory, which TCP's own counters do not show.

use std::fs::File;
use std::io;

use agent_common::acceleration::EndKey;
use agent_common::balance::TCP;
use nix::sched::{CloneFlags, setns};
use socket2::Socket;

use crate::capture::sock_diag::{self, Kind, SocketId};
use crate::capture::vanished::{KINDS, end, exchange, open_sock_diag};

/// A socket that holds unread bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backlog {
    /// As the programs know it.
    pub key: EndKey,
    /// How many bytes.
    pub unread: u64,
    kind: Kind,
    socket: SocketId,
}

impl Backlog {
    fn of(cookie: u64, kind: Kind, (socket, unread): (SocketId, u32)) -> Self {
        let (own, remote) = (end(kind, socket.own()), end(kind, socket.peer()));
        let key = EndKey {
            cookie,
            local: own.octets(),
            remote: remote.octets(),
            local_port_be: own.port_be.to_ne_bytes(),
            remote_port_be: remote.port_be.to_ne_bytes(),
            family: own.family,
            padding: [0; 3],
        };
        Self { key, unread: unread.into(), kind, socket }
    }
}

/// The sockets of a network namespace, which is the calling thread's for as long as nobody enters another.
pub struct Sockets(Socket);

impl Sockets {
    /// Enters the namespace.
    pub fn enter(namespace: &File) -> io::Result<Self> {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        open_sock_diag().map(Self)
    }

    /// The TCP sockets that hold unread bytes; the cookie is the namespace's.
    pub fn unread(&self, cookie: u64) -> io::Result<Vec<Backlog>> {
        let mut found = Vec::new();
        for kind in KINDS.into_iter().filter(|kind| kind.protocol == TCP) {
            let sockets = exchange(&self.0, &sock_diag::ask_memory(kind), sock_diag::read_memory)?;
            let unread = sockets.into_iter().filter(|(_, unread)| *unread > 0);
            found.extend(unread.map(|socket| Backlog::of(cookie, kind, socket)));
        }
        Ok(found)
    }

    /// How much one of them holds now. `ENOENT`: it is gone.
    pub fn unread_of(&self, socket: &Backlog) -> io::Result<u64> {
        let request = sock_diag::ask_memory_of(socket.kind, &socket.socket);
        let found = exchange(&self.0, &request, sock_diag::read_memory)?;
        found.first().map(|(_, unread)| (*unread).into()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Breaks the connection: both ends are told by an error.
    pub fn abort(&self, socket: &Backlog) -> io::Result<()> {
        exchange(&self.0, &sock_diag::destroy(socket.kind, &socket.socket), sock_diag::read).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(last: u8) -> [u8; 16] {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, last]
    }

    fn narrow(last: u8) -> [u8; 16] {
        [10, 0, 0, last, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    }

    #[test]
    fn sockets_are_told_as_the_programs_know_them() {
        let v6 = |last| [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
        // (family of the socket, own, remote) -> (family of the packets, own, remote)
        let cases = [
            ((2, narrow(1), narrow(2)), (4, narrow(1), narrow(2))),
            ((10, mapped(1), mapped(2)), (4, narrow(1), narrow(2))),
            ((10, v6(1), v6(2)), (6, v6(1), v6(2))),
        ];
        for ((number, own, remote), (family, local, far)) in cases {
            let kind = Kind { family: number, protocol: TCP };
            let id = [&[0x1f, 0x90, 0xc0, 0x01][..], &own, &remote, &[0; 12]].concat();
            let socket = SocketId(id.try_into().expect("the id's length"));
            let backlog = Backlog::of(7, kind, (socket, 4711));
            let key = EndKey {
                cookie: 7,
                local,
                remote: far,
                local_port_be: [0x1f, 0x90],
                remote_port_be: [0xc0, 0x01],
                family,
                padding: [0; 3],
            };
            assert_eq!(backlog, Backlog { key, unread: 4711, kind, socket }, "{number}");
        }
    }
}
