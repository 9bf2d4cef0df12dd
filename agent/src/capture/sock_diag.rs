//! The kernel's `sock_diag`, as bytes: asking for all sockets of a kind, and for the end of one (`linux/inet_diag.h`).
//!
//! Pure; who sends the bytes is [`super::vanished`], [`super::expel`] and acceleration's watch.

use crate::net::{TcpInfo, read_tcp_info};

/// `SOCK_DIAG_BY_FAMILY`.
const ASK: u16 = 20;
/// `SOCK_DESTROY`.
const DESTROY: u16 = 21;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
/// `NLM_F_ROOT | NLM_F_MATCH`.
const NLM_F_DUMP: u16 = 0x300;
/// `NLMSG_ERROR` and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// A message's header, and what follows it in a request: `inet_diag_req_v2`.
const HEADER: usize = 16;
const REQUEST: usize = 72;
const _: () = assert!(REQUEST == HEADER + 8 + ID);
/// `inet_diag_sockid`: ports, addresses, interface, cookie.
pub const ID: usize = 48;
/// `INET_DIAG_MEMINFO`; its first word is what the receiver holds.
const MEMORY: u16 = 1;
/// `INET_DIAG_INFO`.
const INFO: u16 = 2;
/// `inet_diag_msg`.
const MESSAGE: usize = 4 + ID + 20;
/// All states but those of connections that are over, and of listeners.
const STATES: u32 = !((1 << 6) | (1 << 7) | LISTENERS);
const LISTENERS: u32 = 1 << 10;

/// Sockets of one family and protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// `AF_INET` or `AF_INET6`.
    pub family: u8,
    /// TCP or UDP.
    pub protocol: u8,
}

/// One socket, as the kernel names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketId(pub [u8; ID]);

impl SocketId {
    /// The socket's cookie.
    pub fn cookie(&self) -> u64 {
        let half = |at: usize| u64::from(word(&self.0[at..]));
        half(40) | (half(44) << 32)
    }

    /// Its own port and address, as they lie in memory. IPv4 is in the first word.
    pub fn own(&self) -> (u16, [u32; 4]) {
        let port = u16::from_ne_bytes([self.0[0], self.0[1]]);
        (port, [4, 8, 12, 16].map(|at| word(&self.0[at..])))
    }

    /// The other end's port and address, as they lie in memory. IPv4 is in the first word.
    pub fn peer(&self) -> (u16, [u32; 4]) {
        let port = u16::from_ne_bytes([self.0[2], self.0[3]]);
        (port, [20, 24, 28, 32].map(|at| word(&self.0[at..])))
    }
}

/// What one datagram of answers said.
#[derive(Debug, PartialEq, Eq)]
pub enum Answers<T = SocketId> {
    /// These sockets, and more will follow.
    More(Vec<T>),
    /// These are the last; the error number, where it was one.
    Last(Vec<T>, Option<i32>),
}

/// A socket with what TCP has counted of it.
pub type Detailed = (SocketId, Option<TcpInfo>);

/// A socket with how much memory its unread bytes take.
pub type Held = (SocketId, u32);

/// Asks for all sockets of a kind.
pub fn ask(kind: Kind) -> [u8; REQUEST] {
    request(ASK, NLM_F_DUMP, kind, &SocketId([0; ID]))
}

/// Asks for all listeners of a kind.
pub fn ask_listeners(kind: Kind) -> [u8; REQUEST] {
    let mut bytes = ask(kind);
    bytes[HEADER + 4..HEADER + 8].copy_from_slice(&LISTENERS.to_ne_bytes());
    bytes
}

/// Asks for all sockets of a kind, with what TCP has counted.
pub fn ask_detailed(kind: Kind) -> [u8; REQUEST] {
    ask_with(kind, INFO)
}

/// Asks for all sockets of a kind, with the memory that they take.
pub fn ask_memory(kind: Kind) -> [u8; REQUEST] {
    ask_with(kind, MEMORY)
}

/// Asks for one socket, with the memory that it takes.
pub fn ask_memory_of(kind: Kind, socket: &SocketId) -> [u8; REQUEST] {
    with(request(ASK, NLM_F_ACK, kind, socket), MEMORY)
}

fn ask_with(kind: Kind, attribute: u16) -> [u8; REQUEST] {
    with(ask(kind), attribute)
}

fn with(mut request: [u8; REQUEST], attribute: u16) -> [u8; REQUEST] {
    request[HEADER + 2] = 1 << (attribute - 1);
    request
}

/// Asks for the end of a socket.
pub fn destroy(kind: Kind, socket: &SocketId) -> [u8; REQUEST] {
    request(DESTROY, NLM_F_ACK, kind, socket)
}

fn request(message: u16, flags: u16, kind: Kind, socket: &SocketId) -> [u8; REQUEST] {
    let mut bytes = [0; REQUEST];
    bytes[..4].copy_from_slice(&72_u32.to_ne_bytes());
    bytes[4..6].copy_from_slice(&message.to_ne_bytes());
    bytes[6..8].copy_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
    bytes[HEADER] = kind.family;
    bytes[HEADER + 1] = kind.protocol;
    bytes[HEADER + 4..HEADER + 8].copy_from_slice(&STATES.to_ne_bytes());
    bytes[HEADER + 8..].copy_from_slice(&socket.0);
    bytes
}

/// Reads a datagram of answers. What is cut short ends it.
pub fn read(bytes: &[u8]) -> Answers {
    read_each(bytes, read_id)
}

/// Likewise, with what TCP has counted of each.
pub fn read_detailed(bytes: &[u8]) -> Answers<Detailed> {
    read_each(bytes, |body| {
        Some((read_id(body)?, attribute(body.get(MESSAGE..)?, INFO).and_then(read_tcp_info)))
    })
}

/// Likewise, with the memory that each one's unread bytes take.
pub fn read_memory(bytes: &[u8]) -> Answers<Held> {
    read_each(bytes, |body| {
        let held = attribute(body.get(MESSAGE..)?, MEMORY)?.first_chunk()?;
        Some((read_id(body)?, u32::from_ne_bytes(*held)))
    })
}

/// `inet_diag_msg`: family, state, timer, retransmissions, then the socket.
fn read_id(body: &[u8]) -> Option<SocketId> {
    body.get(4..4 + ID).and_then(|id| id.try_into().ok()).map(SocketId)
}

/// The payload of an attribute (`struct rtattr`: length, kind, payload).
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let [a, b, c, d, ..] = *bytes {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let payload = bytes.get(4..length)?;
        if u16::from_ne_bytes([c, d]) == wanted {
            return Some(payload);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
    None
}

fn read_each<T>(mut bytes: &[u8], read: impl Fn(&[u8]) -> Option<T>) -> Answers<T> {
    let mut sockets = Vec::new();
    while bytes.len() >= HEADER {
        let length = usize::try_from(word(bytes)).unwrap_or(usize::MAX);
        let Some(body) = bytes.get(HEADER..length) else {
            return Answers::Last(sockets, Some(libc::EBADMSG));
        };
        match u16::from_ne_bytes([bytes[4], bytes[5]]) {
            DONE => return Answers::Last(sockets, None),
            ERROR => {
                let number =
                    body.get(..4).map_or(libc::EBADMSG, |error| word(error).cast_signed().wrapping_neg());
                return Answers::Last(sockets, (number != 0).then_some(number));
            }
            _ => sockets.extend(read(body)),
        }
        // Messages begin at multiples of four.
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Answers::More(sockets)
}

/// The first four bytes as a number; the caller has seen that they are there.
fn word(bytes: &[u8]) -> u32 {
    u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: Kind = Kind { family: 2, protocol: 17 };

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER + body.len()).expect("is short");
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn socket(cookie: u64) -> SocketId {
        let mut id = [0; ID];
        id[2..4].copy_from_slice(&[0x14, 0xe9]);
        id[20..24].copy_from_slice(&[10, 0, 0, 1]);
        id[40..48].copy_from_slice(&cookie.to_ne_bytes());
        SocketId(id)
    }

    fn listed(socket: &SocketId) -> Vec<u8> {
        message(ASK, &[&[2, 1, 0, 0][..], &socket.0, &[0; 20]].concat())
    }

    #[test]
    fn requests_are_as_the_kernel_lays_them_out() {
        let bytes = destroy(KIND, &socket(7));
        assert_eq!(bytes.len(), 72);
        assert_eq!(bytes[..8], [72, 0, 0, 0, 21, 0, 5, 0]);
        assert_eq!(bytes[16..18], [2, 17]);
        assert_eq!(SocketId(bytes[24..72].try_into().expect("48 bytes")), socket(7));
        assert_eq!(ask(KIND)[4..8], [20, 0, 1, 3]);
        assert_eq!(ask(KIND)[20..24], 0xffff_fb3f_u32.to_ne_bytes());
        assert_eq!(ask_listeners(KIND)[20..24], 0x400_u32.to_ne_bytes());
    }

    #[test]
    fn a_socket_tells_its_cookie_and_its_peer() {
        let id = socket(0x1_0000_0002);
        assert_eq!(id.cookie(), 0x1_0000_0002);
        assert_eq!(id.peer(), (5353_u16.to_be(), [u32::from_ne_bytes([10, 0, 0, 1]), 0, 0, 0]));
        let mut own = [0; ID];
        own[..8].copy_from_slice(&[0, 80, 0, 0, 10, 0, 0, 9]);
        assert_eq!(SocketId(own).own(), (80_u16.to_be(), [u32::from_ne_bytes([10, 0, 0, 9]), 0, 0, 0]));
    }

    fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + payload.len()).expect("is short");
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn memory_comes_with_the_socket() {
        assert_eq!(ask_memory(KIND)[16..20], [2, 17, 1, 0]);
        let memory = [&4711_u32.to_ne_bytes()[..], &[7; 12]].concat();
        let head = [&[2, 1, 0, 0][..], &socket(7).0, &[0; 20]].concat();
        let whole = [&head[..], &attribute(8, &[5]), &attribute(1, &memory)].concat();
        assert_eq!(read_memory(&message(ASK, &whole)), Answers::More(vec![(socket(7), 4711)]));
        // What is cut tells nothing.
        for cut in 0..whole.len() - 12 {
            assert_eq!(read_memory(&message(ASK, &whole[..cut])), Answers::More(vec![]), "{cut}");
        }
        for rest in [vec![], attribute(2, &memory), attribute(1, &[1, 2, 3]), vec![0, 0, 2, 0]] {
            let bytes = message(ASK, &[&head[..], &rest].concat());
            assert_eq!(read_memory(&bytes), Answers::More(vec![]), "{rest:?}");
        }
    }

    #[test]
    fn counters_come_with_the_socket() {
        assert_eq!(ask_detailed(KIND)[16..20], [2, 17, 2, 0]);
        let mut info = [0; 216];
        info[128..136].copy_from_slice(&77_u64.to_ne_bytes());
        info[200..208].copy_from_slice(&99_u64.to_ne_bytes());
        let head = [&[2, 1, 0, 0][..], &socket(7).0, &[0; 20]].concat();
        let whole = [&head[..], &attribute(1, &[1, 2, 3]), &attribute(2, &info)].concat();
        let Answers::More(found) = read_detailed(&message(ASK, &whole)) else { panic!("more follow") };
        assert_eq!(found[0].0, socket(7));
        assert_eq!(found[0].1.map(|info| (info.sent, info.received)), Some((99, 77)));
        // UDP sockets have none, and what is cut tells nothing.
        for rest in [vec![], attribute(1, &[1, 2, 3]), vec![9, 0, 2, 0, 1], vec![2, 0, 2, 0]] {
            let Answers::More(found) = read_detailed(&message(ASK, &[&head[..], &rest].concat())) else {
                panic!("more follow")
            };
            assert_eq!(found, [(socket(7), None)], "{rest:?}");
        }
    }

    #[test]
    fn answers_whole_and_broken() {
        let (one, two) = (socket(1), socket(2));
        let both = [listed(&one), listed(&two)].concat();
        assert_eq!(read(&both), Answers::More(vec![one, two]));
        let ended = [listed(&one), message(DONE, &[0; 4])].concat();
        assert_eq!(read(&ended), Answers::Last(vec![one], None));
        assert_eq!(read(&message(ERROR, &[0; 20])), Answers::Last(vec![], None));
        let refused = (-libc::EOPNOTSUPP).to_ne_bytes();
        assert_eq!(read(&message(ERROR, &refused)), Answers::Last(vec![], Some(libc::EOPNOTSUPP)));
        assert_eq!(read(&message(ERROR, &[])), Answers::Last(vec![], Some(libc::EBADMSG)));
        assert_eq!(read(&[]), Answers::More(vec![]));
        // A length that lies, in either direction.
        for length in [0_u32, 15, 17, u32::MAX] {
            let mut broken = message(ASK, &[]);
            broken[..4].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(read(&broken), Answers::Last(vec![], Some(libc::EBADMSG)), "{length}");
        }
    }
}
