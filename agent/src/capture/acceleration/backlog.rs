//! How much the sockets of a network namespace hold that nobody has read, as the kernel's `sock_diag` tells it: what was handed
//! over counts as the receiver's memory, which TCP's own counters do not show.

use std::fs::File;
use std::io::{self, Read};
use std::time::Duration;

use agent_common::acceleration::{EndKey, is_mapped, joined, wide};
use agent_common::balance::TCP;
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Protocol, Socket, Type};

use crate::capture::sock_diag::{Kind, ask};

/// `NETLINK_SOCK_DIAG`.
const NETLINK_SOCK_DIAG: i32 = 4;
/// The kernel answers at once; this only keeps a thread from waiting for ever.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The most that one datagram of answers holds.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// `nlmsghdr`; in it the length, then the kind.
const HEADER: usize = 16;
/// `NLMSG_ERROR` and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `inet_diag_msg`, behind which the attributes are.
const SOCKET: usize = 72;
/// `INET_DIAG_MEMINFO`: first the receiver's memory. It is asked for by a bit, as the first of the extensions.
const MEMINFO: u16 = 1;
const ASK_MEMINFO: u8 = 1;
/// Where a request has its extensions: behind the family and the protocol.
const EXTENSIONS: usize = HEADER + 2;

/// A socket, and how many bytes it holds.
pub type Unread = (EndKey, u64);

/// The TCP sockets of a namespace that hold unread bytes. The calling thread stays in the namespace.
pub fn unread_in(namespace: &File, cookie: u64) -> io::Result<Vec<Unread>> {
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    let mut netlink =
        Socket::new(Domain::from(libc::AF_NETLINK), Type::DGRAM, Some(Protocol::from(NETLINK_SOCK_DIAG)))?;
    netlink.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let (mut found, mut buffer) = (Vec::new(), vec![0; ANSWER_BYTES_MAX]);
    for family in [2, 10] {
        let mut request = ask(Kind { family, protocol: TCP });
        request[EXTENSIONS] = ASK_MEMINFO;
        netlink.send(&request)?;
        loop {
            let length = netlink.read(&mut buffer)?;
            if !read(&buffer[..length], cookie, &mut found)? {
                break;
            }
        }
    }
    Ok(found)
}

/// Reads a datagram of answers; whether more will follow.
fn read(mut bytes: &[u8], cookie: u64, into: &mut Vec<Unread>) -> io::Result<bool> {
    while bytes.len() >= HEADER {
        let length = usize::try_from(word(bytes, 0)).unwrap_or(usize::MAX);
        let body = bytes.get(HEADER..length).ok_or(io::ErrorKind::InvalidData)?;
        match half(bytes, 4) {
            DONE => return Ok(false),
            ERROR => {
                let number = if body.len() < 4 { libc::EBADMSG } else { -word(body, 0).cast_signed() };
                return if number == 0 { Ok(false) } else { Err(io::Error::from_raw_os_error(number)) };
            }
            _ => into.extend(socket(body, cookie).filter(|(_, unread)| *unread > 0)),
        }
        // Messages begin at multiples of four.
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(true)
}

/// `inet_diag_msg`: family, state, timer, retransmissions; ports, own and remote address; then the attributes.
fn socket(body: &[u8], cookie: u64) -> Option<Unread> {
    let (head, mut rest) = body.split_at_checked(SOCKET)?;
    let unread = loop {
        let length = usize::from(half(rest.get(..4)?, 0));
        if half(rest, 2) == MEMINFO {
            break word(rest.get(4..8)?, 0);
        }
        rest = rest.get(length.max(4).next_multiple_of(4)..)?;
    };
    let words = |at: usize| [0, 4, 8, 12].map(|more| word(head, at + more));
    let (own, remote) = (words(8), words(24));
    let v6 = i32::from(head[0]) == libc::AF_INET6 && !is_mapped(&remote);
    // IPv4 is in the first word, or in the last one of an IPv6 socket.
    let v4 = if i32::from(head[0]) == libc::AF_INET6 { 3 } else { 0 };
    let address = |words: &[u32; 4]| if v6 { joined(words) } else { wide(words[v4]) };
    let key = EndKey {
        cookie,
        local: address(&own),
        remote: address(&remote),
        local_port_be: [head[4], head[5]],
        remote_port_be: [head[6], head[7]],
        family: if v6 { 6 } else { 4 },
        padding: [0; 3],
    };
    Some((key, u64::from(unread)))
}

/// Numbers in the machine's byte order; the caller has seen that they are there.
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER + body.len()).expect("is short");
        [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], body].concat()
    }

    fn listed(family: u8, own: [u8; 16], remote: [u8; 16], unread: u32) -> Vec<u8> {
        let ports = [0x1f, 0x90, 0xc0, 0x01];
        let other = [8_u16.to_ne_bytes(), 5_u16.to_ne_bytes()].concat();
        let memory = [20_u16.to_ne_bytes(), MEMINFO.to_ne_bytes()].concat();
        let body = [
            &[family, 1, 0, 0][..],
            &ports,
            &own,
            &remote,
            &[0; 32],
            &other,
            &[9; 4],
            &memory,
            &unread.to_ne_bytes(),
            &[7; 12],
        ];
        message(20, &body.concat())
    }

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
        for ((kind, own, remote), (family, local, far)) in cases {
            let mut found = Vec::new();
            let more = read(&listed(kind, own, remote, 4711), 7, &mut found).expect("well-formed");
            let expected = EndKey {
                cookie: 7,
                local,
                remote: far,
                local_port_be: [0x1f, 0x90],
                remote_port_be: [0xc0, 0x01],
                family,
                padding: [0; 3],
            };
            assert_eq!((more, found), (true, vec![(expected, 4711)]), "{kind}");
        }
    }

    #[test]
    fn ends_errors_and_broken_answers() {
        let mut found = Vec::new();
        let empty = [listed(2, narrow(1), narrow(2), 0), message(DONE, &[0; 4])].concat();
        assert!(!read(&empty, 1, &mut found).expect("an end") && found.is_empty());
        let refused = (-libc::EPERM).to_ne_bytes();
        let error = read(&message(ERROR, &refused), 1, &mut found).expect_err("refused");
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        assert!(read(&message(ERROR, &[]), 1, &mut found).is_err());
        // Cut anywhere, with a length that says so or not.
        let whole = listed(2, narrow(1), narrow(2), 9);
        for cut in HEADER..whole.len() {
            let _ = read(&whole[..cut], 1, &mut found);
            let _ = read(&message(20, &whole[HEADER..cut]), 1, &mut found);
        }
        let mut endless = listed(2, narrow(1), narrow(2), 9);
        endless[HEADER + SOCKET..HEADER + SOCKET + 2].copy_from_slice(&[0, 0]);
        assert!(read(&endless, 1, &mut found).is_ok());
    }
}
