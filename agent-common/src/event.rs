//! Flow events: what the kernel programs tell of connections, from the first packet to the last.

use crate::balance::ConnectReason;
use crate::capture::Reason;
use crate::guard;

/// Bytes of the ring buffer between the programs and the agent: some 5,000 events.
pub const RING_BYTES: u32 = 512 * 1024;
/// From this many unread bytes on, only one event in [`SAMPLE`] is told.
pub const PRESSURE_BYTES: u64 = RING_BYTES as u64 / 2;
/// See [`PRESSURE_BYTES`]; a power of two.
pub const SAMPLE: u64 = 16;
/// A drop is an event for each packet, so that somebody who is refused could fill the ring alone: each processor tells of
/// this many in one window.
pub const DROPS_PER_WINDOW: u64 = 64;
/// The window is this power of two in nanoseconds: some 134 ms.
pub const DROP_WINDOW_BITS: u32 = 27;

/// What an event is about; the value of [`FlowEvent::kind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum EventKind {
    /// A pod's first packet, and whether the agent takes it. `reason` is one of [`Reason`].
    Verdict = 0,
    /// A packet that policy keeps out of a pod. `rule` is the slot in which the rule's drops are counted.
    Refused = 1,
    /// A frame that the guard drops. `reason` is one of [`guard::Reason`], `rule` the number of the object that denies it.
    Guarded = 2,
    /// A socket that is led to an endpoint. `reason` is one of [`ConnectReason`].
    Balanced = 3,
    /// A connection that stands, told by the end that dialled.
    Opened = 4,
    /// A connection that is over, told by each end below the cgroup. `reason` is one of [`SocketEnd`].
    Closed = 5,
    /// A packet that a limit refuses. `rule` is the slot in which the limit is counted.
    Limited = 6,
}

impl EventKind {
    const ALL: [Self; 7] = [
        Self::Verdict,
        Self::Refused,
        Self::Guarded,
        Self::Balanced,
        Self::Opened,
        Self::Closed,
        Self::Limited,
    ];
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum SocketEnd {
    /// This end has closed, and the other one knows.
    Closed = 0,
    /// Cut off: by a reset of either end, or for want of answers.
    Reset = 1,
}

impl SocketEnd {
    /// The name that is shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Reset => "reset",
        }
    }
}

/// [`FlowEvent::flags`]: same-node acceleration had joined the connection, so that TCP has not counted its bytes.
pub const ACCELERATED: u8 = 1;
/// [`FlowEvent::flags`]: told by the end that was dialled, so that the destination is the one that tells.
pub const BY_SERVER: u8 = 2;

/// One event. What a kind says nothing of is zero.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FlowEvent {
    /// The dialling end's address in network byte order; IPv4 in the first four bytes.
    pub source: [u8; 16],
    /// The address that was dialled, likewise.
    pub destination: [u8; 16],
    /// The endpoint that a socket was led to, likewise.
    pub endpoint: [u8; 16],
    /// The dialling end's port in network byte order.
    pub source_port: [u8; 2],
    /// The port that was dialled, likewise.
    pub destination_port: [u8; 2],
    /// The endpoint's port; 0: there is none.
    pub endpoint_port: [u8; 2],
    /// 4 or 6.
    pub family: u8,
    /// One of [`EventKind`].
    pub kind: u8,
    /// Bytes from the dialling end to the other one.
    pub sent_bytes: u64,
    /// Bytes back.
    pub received_bytes: u64,
    /// How long a connection stood, in nanoseconds.
    pub lasted_ns: u64,
    /// The interface by which a packet came or went.
    pub interface: u32,
    /// Depends on the kind.
    pub reason: u32,
    /// Depends on the kind.
    pub rule: u32,
    /// The smoothed round-trip time in microseconds.
    pub rtt_us: u32,
    /// The process that dialled, where no address is known of it yet.
    pub process: u32,
    /// The IP protocol.
    pub protocol: u8,
    /// [`ACCELERATED`], [`BY_SERVER`].
    pub flags: u8,
    /// Spelled out.
    pub padding: [u8; 2],
}

const _: () = assert!(size_of::<FlowEvent>() == 104 && align_of::<FlowEvent>() == 8);

impl FlowEvent {
    /// Reads what the programs have written; `None` where it is not an event of this layout.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 104] = bytes.try_into().ok()?;
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let address = |at: usize| core::array::from_fn(|index| bytes[at + index]);
        let long = |at: usize| u64::from_ne_bytes(core::array::from_fn(|index| bytes[at + index]));
        let event = Self {
            source: address(0),
            destination: address(16),
            endpoint: address(32),
            source_port: [bytes[48], bytes[49]],
            destination_port: [bytes[50], bytes[51]],
            endpoint_port: [bytes[52], bytes[53]],
            family: bytes[54],
            kind: bytes[55],
            sent_bytes: long(56),
            received_bytes: long(64),
            lasted_ns: long(72),
            interface: word(80),
            reason: word(84),
            rule: word(88),
            rtt_us: word(92),
            process: word(96),
            protocol: bytes[100],
            flags: bytes[101],
            padding: [0; 2],
        };
        (matches!(event.family, 4 | 6) && event.reason().is_some()).then_some(event)
    }

    /// What it is about.
    pub fn kind(&self) -> Option<EventKind> {
        EventKind::ALL.into_iter().find(|kind| *kind as u8 == self.kind)
    }

    /// Why, as metrics name it; `None` where the kind or the reason is none.
    pub fn reason(&self) -> Option<&'static str> {
        let number = self.reason as usize;
        match self.kind()? {
            EventKind::Verdict => Reason::ALL.get(number).map(|reason| reason.as_str()),
            EventKind::Refused => Some("rbac_access_denied"),
            EventKind::Limited => Some("rate_limited"),
            EventKind::Guarded => guard::Reason::ALL.get(number).map(|reason| reason.as_str()),
            EventKind::Balanced => ConnectReason::ALL.get(number).map(|reason| reason.as_str()),
            EventKind::Opened => Some("established"),
            EventKind::Closed => {
                [SocketEnd::Closed, SocketEnd::Reset].get(number).map(|reason| reason.as_str())
            }
        }
    }

    /// Whether a flag is set.
    pub const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Whether an event is told, given the bytes that nobody has read yet and a number that differs from packet to packet.
#[inline(always)]
pub fn told(unread: u64, number: u64) -> bool {
    unread < PRESSURE_BYTES || number & (SAMPLE - 1) == 0
}

/// How many drops one processor has told of in which window.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DropBudget {
    /// The window's number.
    pub window: u64,
    /// Drops that were told in it.
    pub told: u64,
}

/// Whether a drop is told, and what is left of the budget after it.
#[inline(always)]
pub fn spend(budget: DropBudget, now_ns: u64) -> (DropBudget, bool) {
    let window = now_ns >> DROP_WINDOW_BITS;
    let told = if budget.window == window { budget.told } else { 0 };
    if told < DROPS_PER_WINDOW {
        (DropBudget { window, told: told + 1 }, true)
    } else {
        (DropBudget { window, told }, false)
    }
}

/// Settings of the programs that tell of sockets; written into their read-only data.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketEvents {
    /// The network namespace of the node, whose own sockets are not told of.
    pub node_cookie: u64,
    /// 1: sockets are told of.
    pub on: u32,
    /// Spelled out.
    pub padding: u32,
}

const _: () = assert!(size_of::<SocketEvents>() == 16);

/// What is remembered of a connection that stands, by its socket's cookie.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenSocket {
    /// When it stood, in the kernel's monotonic nanoseconds.
    pub since_ns: u64,
    /// What TCP had counted as received when the other end had acknowledged that this one closes.
    pub received_at_fin: u64,
    /// 1: this end has dialled.
    pub dialled: u32,
    /// Spelled out.
    pub padding: u32,
}

const _: () = assert!(size_of::<OpenSocket>() == 24);

/// Connections that are remembered. Of those beyond it only the opening is told.
pub const OPEN_SOCKETS_MAX: u32 = 131_072;

/// The state of a TCP socket whose end has closed and which waits for the other end, as the kernel numbers it.
pub const FIN_WAIT2: u32 = 5;
/// The state of one that is closed for good.
pub const CLOSE: u32 = 7;
const CLOSE_WAIT: u32 = 8;
const LAST_ACK: u32 = 9;
const CLOSING: u32 = 11;

/// What a socket's last change of state says of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// How it ended.
    pub end: SocketEnd,
    /// Bytes that this socket has sent, as far as the other end has them.
    pub sent: u64,
    /// Bytes that it has received.
    pub received: u64,
}

/// Reads TCP's counters at the end of a connection that leaves `state`. `acked` and `received` are
/// `tcpEStatsAppHCThruOctetsAcked` and `-Received` of RFC 4898 as Linux counts them: with one more for each SYN and FIN.
#[inline(always)]
pub fn closed(socket: &OpenSocket, state: u32, acked: u64, received: u64) -> Closed {
    let own_fin = matches!(state, FIN_WAIT2 | LAST_ACK | CLOSING);
    let their_fin = match state {
        CLOSE_WAIT | LAST_ACK | CLOSING => true,
        // Left at once where nobody waits for the other end any more, else with its FIN.
        FIN_WAIT2 => received > socket.received_at_fin,
        _ => false,
    };
    let dialled = socket.dialled != 0;
    Closed {
        end: if own_fin { SocketEnd::Closed } else { SocketEnd::Reset },
        sent: acked.saturating_sub(u64::from(dialled) + u64::from(own_fin)),
        received: received.saturating_sub(u64::from(their_fin)),
    }
}

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya's marker for types that are plain bytes")]
mod pod {
    use super::SocketEvents;

    // SAFETY: repr(C), integers only, padding spelled out, every bit pattern valid.
    unsafe impl aya::Pod for SocketEvents {}
}

#[cfg(test)]
mod tests;
