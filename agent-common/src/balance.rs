//! Balancing at `connect()`: what the agent tells the kernel programs of services, and how both choose a backend.
//!
//! A service that needs nothing of the agent is balanced where its clients dial it: a socket that is told a ClusterIP is
//! led to an endpoint before its first packet. What is here is the layout of the maps and the pure arithmetic; the agent
//! fills the maps, the programs look up.

use crate::acceleration::joined;

/// One end of a socket: an address, a port and what is spoken between ends.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct End {
    /// The address in network byte order; IPv4 in the first word, the rest zero.
    pub address_be: [u32; 4],
    /// The port in network byte order.
    pub port_be: u16,
    /// 4 or 6. An IPv4 address that is written as an IPv6 one is an IPv4 address.
    pub family: u8,
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
}

const _: () = assert!(size_of::<End>() == 20 && align_of::<End>() == 4);

/// The protocol number of TCP.
pub const TCP: u8 = 6;
/// The protocol number of UDP.
pub const UDP: u8 = 17;
/// What stands before an IPv4 address that is written as an IPv6 one (`::ffff:0:0/96`), in network byte order.
const MAPPED_BE: u32 = 0xffff_u32.to_be();

impl End {
    /// An IPv4 end.
    #[inline(always)]
    pub const fn v4(address_be: u32, port_be: u16, protocol: u8) -> Self {
        Self { address_be: [address_be, 0, 0, 0], port_be, family: 4, protocol }
    }

    /// An end of an IPv6 socket, which may be an IPv4 one in disguise.
    #[inline(always)]
    pub const fn v6(address_be: [u32; 4], port_be: u16, protocol: u8) -> Self {
        if address_be[0] == 0 && address_be[1] == 0 && address_be[2] == MAPPED_BE {
            return Self::v4(address_be[3], port_be, protocol);
        }
        Self { address_be, port_be, family: 6, protocol }
    }

    /// The address as an IPv6 socket has it.
    #[inline(always)]
    pub const fn as_v6(&self) -> [u32; 4] {
        if self.family == 4 { [0, 0, MAPPED_BE, self.address_be[0]] } else { self.address_be }
    }

    /// The address as bytes; IPv4 in the first four.
    #[inline(always)]
    pub const fn octets(&self) -> [u8; 16] {
        joined(&self.address_be)
    }
}

/// The lowest place that satisfies what is asked of a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Tier {
    /// Nothing is done: it goes as if the agent were not there.
    Direct = 0,
    /// An endpoint is chosen at `connect()`; no packet is touched.
    Balance = 1,
    /// The agent relays bytes.
    AgentL4 = 2,
    /// The agent reads requests.
    AgentL7 = 3,
}

impl Tier {
    /// The name that dumps show.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Balance => "balance",
            Self::AgentL4 => "agent_l4",
            Self::AgentL7 => "agent_l7",
        }
    }
}

/// Why a destination has its [`Tier`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum TierReason {
    /// Declared to be opaque, and no rule needs more.
    Opaque = 0,
    /// UDP, of which the agent relays none.
    Datagrams = 1,
    /// No endpoint has the client's address family.
    NoEndpoint = 2,
    /// A headless service: its clients choose the endpoint.
    Headless = 3,
    /// Declared to be HTTP.
    DeclaredHttp = 4,
    /// Nothing is declared: the first bytes decide.
    DetectsProtocol = 5,
    /// The kernel's maps have no room for its endpoints.
    NoRoom = 6,
    /// An endpoint is reached through a tunnel, which the agent makes.
    Tunnelled = 7,
    /// A rule asks for TLS that the agent makes.
    Secured = 8,
}

impl TierReason {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Opaque,
        Self::Datagrams,
        Self::NoEndpoint,
        Self::Headless,
        Self::DeclaredHttp,
        Self::DetectsProtocol,
        Self::NoRoom,
        Self::Tunnelled,
        Self::Secured,
    ];

    /// The name that dumps show.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Opaque => "opaque",
            Self::Datagrams => "datagrams",
            Self::NoEndpoint => "no_endpoint",
            Self::Headless => "headless",
            Self::DeclaredHttp => "declared_http",
            Self::DetectsProtocol => "detects_protocol",
            Self::NoRoom => "no_room",
            Self::Tunnelled => "tunnelled",
            Self::Secured => "secured",
        }
    }
}

/// By what a backend is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Choice {
    /// Chance, for each connection anew.
    Random = 0,
    /// The socket: all its datagrams go to one backend.
    Socket = 1,
    /// The client's network namespace, which is the pod: its sockets all go to one backend.
    Client = 2,
}

/// What is done with sockets that are told to go to an end; the key is that [`End`].
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrontendValue {
    /// One of [`Tier`]; all that follows but `why` is only read for [`Tier::Balance`].
    pub tier: u32,
    /// One of [`TierReason`].
    pub why: u32,
    /// The service's port in one address family; stays while its backends change.
    pub pool: u32,
    /// The slots that are in force. Each change of the backends makes a new table, and then points to it from here.
    pub table: u32,
    /// How many slots the table has, at least one.
    pub slots: u32,
    /// One of [`Choice`].
    pub choice: u32,
    /// How long after its last connection a client is led to the same backend, in seconds; 0: it is not.
    pub affinity_seconds: u32,
    /// Keeps the choices of different nodes apart.
    pub seed: u32,
}

const _: () = assert!(size_of::<FrontendValue>() == 32);

/// One slot of a table.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SlotKey {
    /// [`FrontendValue::table`].
    pub table: u32,
    /// From 0.
    pub slot: u32,
}

/// Whom a slot leads to: one backend, or two that share it (Walker's alias method), so that any weights take one look.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotValue {
    /// Who has coins below the threshold.
    pub own: End,
    /// Who has all others; the same as `own` where the slot is not shared.
    pub other: End,
    /// The share of `own`, of 2^32.
    pub threshold: u32,
}

const _: () = assert!(size_of::<SlotValue>() == 44);

impl SlotValue {
    /// Whom a coin falls to.
    #[inline(always)]
    pub const fn pick(&self, coin: u32) -> End {
        if coin < self.threshold { self.own } else { self.other }
    }
}

/// Who keeps coming back to one backend of a pool.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AffinityKey {
    /// The cookie of the client's network namespace.
    pub client: u64,
    /// [`FrontendValue::pool`].
    pub pool: u32,
    /// Spelled out.
    pub padding: u32,
}

/// Where a client was led last, and when.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AffinityValue {
    /// The backend.
    pub backend: End,
    /// Spelled out.
    pub padding: u32,
    /// Seconds since the machine started.
    pub used_seconds: u64,
}

const _: () = assert!(size_of::<AffinityKey>() == 16 && size_of::<AffinityValue>() == 32);

/// Whether a client still belongs to the backend that it was led to before.
#[inline(always)]
pub fn holds(used_seconds: u64, now_seconds: u64, affinity_seconds: u32) -> bool {
    now_seconds.saturating_sub(used_seconds) < u64::from(affinity_seconds)
}

/// A backend that belongs to a pool whose clients come back; only such pools have entries.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MemberKey {
    /// [`FrontendValue::pool`].
    pub pool: u32,
    /// The backend.
    pub backend: End,
}

const _: () = assert!(size_of::<MemberKey>() == 24);

/// A balanced socket, or one of those that an unconnected UDP socket talks to.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SocketKey {
    /// The socket's cookie.
    pub cookie: u64,
    /// Where it was led to.
    pub backend: End,
    /// Spelled out.
    pub padding: u32,
}

/// What a balanced socket asked for.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketValue {
    /// Where it wanted to go, and what it is told of its peer.
    pub dialled: End,
    /// The process that dialled, by which its network namespace is found.
    pub process: u32,
    /// Why it was led there, one of [`ConnectReason`].
    pub reason: u32,
}

const _: () = assert!(size_of::<SocketKey>() == 32 && size_of::<SocketValue>() == 28);

/// What became of a socket's wish; the index into the per-CPU counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum ConnectReason {
    /// Led to a backend.
    Balanced = 0,
    /// Led to the backend that its client was led to before.
    Affinity = 1,
    /// No address of a service.
    NotAService = 2,
    /// Left to the packet programs, which give it to the agent.
    AgentL4 = 3,
    /// As before, for the agent to read its requests.
    AgentL7 = 4,
    /// A service of which nothing is done here.
    Direct = 5,
    /// Neither TCP nor UDP.
    OtherProtocol = 6,
    /// The table was taken away while it was read: left to the packet programs.
    TableChanged = 7,
    /// Could not be remembered, so that its client would see answers from a stranger: left alone.
    NotRemembered = 8,
}

impl ConnectReason {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Balanced,
        Self::Affinity,
        Self::NotAService,
        Self::AgentL4,
        Self::AgentL7,
        Self::Direct,
        Self::OtherProtocol,
        Self::TableChanged,
        Self::NotRemembered,
    ];

    /// The name that metrics and dumps show.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Balanced => "balanced",
            Self::Affinity => "affinity",
            Self::NotAService => "not_a_service",
            Self::AgentL4 => "agent_l4",
            Self::AgentL7 => "agent_l7",
            Self::Direct => "direct",
            Self::OtherProtocol => "other_protocol",
            Self::TableChanged => "table_changed",
            Self::NotRemembered => "not_remembered",
        }
    }
}

/// Whether a frontend is balanced, or what is done with it instead.
#[inline(always)]
pub const fn left_to(tier: u32) -> Option<ConnectReason> {
    const BALANCE: u32 = Tier::Balance as u32;
    const AGENT_L4: u32 = Tier::AgentL4 as u32;
    const AGENT_L7: u32 = Tier::AgentL7 as u32;
    match tier {
        BALANCE => None,
        AGENT_L4 => Some(ConnectReason::AgentL4),
        AGENT_L7 => Some(ConnectReason::AgentL7),
        _ => Some(ConnectReason::Direct),
    }
}

/// The number that decides on a socket.
#[inline(always)]
pub fn number(frontend: &FrontendValue, random: u64, socket: u64, client: u64) -> u64 {
    const SOCKET: u32 = Choice::Socket as u32;
    const CLIENT: u32 = Choice::Client as u32;
    let seed = (u64::from(frontend.seed) << 32) | u64::from(frontend.pool);
    match frontend.choice {
        SOCKET => mix(socket ^ seed),
        CLIENT => mix(client ^ seed),
        _ => random,
    }
}

/// The slot, and the coin that is thrown over it. `slots` is at least one.
#[inline(always)]
pub fn draw(number: u64, slots: u32) -> (u32, u32) {
    let slot = ((number & 0xffff_ffff) * u64::from(slots)) >> 32;
    (slot as u32, (number >> 32) as u32)
}

/// Spreads a number over all 64 bits (the last step of SplitMix64): cookies count up from 1.
#[inline(always)]
pub const fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya's marker for types that are plain bytes")]
mod pod {
    use super::{
        AffinityKey, AffinityValue, End, FrontendValue, MemberKey, SlotKey, SlotValue, SocketKey, SocketValue,
    };

    // SAFETY: repr(C), integers only, padding spelled out, every bit pattern valid.
    unsafe impl aya::Pod for End {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FrontendValue {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SlotKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SlotValue {}
    // SAFETY: as above.
    unsafe impl aya::Pod for AffinityKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for AffinityValue {}
    // SAFETY: as above.
    unsafe impl aya::Pod for MemberKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SocketKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SocketValue {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_numbered_in_order() {
        for (index, reason) in ConnectReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
        for (index, reason) in TierReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
    }

    #[test]
    fn disguised_addresses_are_seen_through_and_put_back() {
        let v4 = u32::from_ne_bytes([10, 96, 0, 1]);
        let mapped = [0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]), v4];
        assert_eq!(End::v6(mapped, 5, TCP), End::v4(v4, 5, TCP));
        assert_eq!(End::v6(mapped, 5, TCP).as_v6(), mapped);
        // Not `::ffff:0:0/96`: an address of its own, the deprecated compatible form included.
        for plain in [[0, 0, 0, v4], [0, 1, mapped[2], v4], [1, 0, mapped[2], v4], [0, 0, mapped[2] ^ 1, v4]]
        {
            assert_eq!(End::v6(plain, 5, UDP).family, 6, "{plain:?}");
            assert_eq!(End::v6(plain, 5, UDP).as_v6(), plain);
        }
    }

    #[test]
    fn only_balanced_frontends_are_not_left_to_others() {
        assert_eq!(left_to(Tier::Balance as u32), None);
        assert_eq!(left_to(Tier::AgentL4 as u32), Some(ConnectReason::AgentL4));
        assert_eq!(left_to(Tier::AgentL7 as u32), Some(ConnectReason::AgentL7));
        for tier in [Tier::Direct as u32, 4, u32::MAX] {
            assert_eq!(left_to(tier), Some(ConnectReason::Direct), "{tier}");
        }
    }

    #[test]
    fn affinity_lasts_its_time_and_no_longer() {
        // (used, now, seconds) -> holds
        let cases = [
            ((100, 100, 1), true),
            ((100, 101, 1), false),
            ((100, 10_899, 10_800), true),
            ((100, 10_900, 10_800), false),
            // Another CPU was faster: the use lies in the future.
            ((101, 100, 1), true),
            ((0, u64::MAX, u32::MAX), false),
            ((100, 100, 0), false),
        ];
        for ((used, now, seconds), expected) in cases {
            assert_eq!(holds(used, now, seconds), expected, "{used} {now} {seconds}");
        }
    }

    #[test]
    fn draws_stay_inside_and_reach_every_slot() {
        for slots in [1, 2, 3, 1021, u32::MAX] {
            assert_eq!(draw(0, slots).0, 0);
            assert_eq!(draw(u64::MAX, slots).0, slots - 1);
            assert_eq!(draw(u64::MAX, slots).1, u32::MAX);
        }
        let mut seen = [0_u32; 7];
        for cookie in 0..7_000 {
            seen[draw(mix(cookie), 7).0 as usize] += 1;
        }
        assert!(seen.iter().all(|count| (850..1150).contains(count)), "{seen:?}");
    }

    #[test]
    fn a_choice_follows_what_it_is_made_by() {
        let frontend = |choice: Choice, seed| FrontendValue {
            tier: Tier::Balance as u32,
            why: 0,
            pool: 3,
            table: 9,
            slots: 5,
            choice: choice as u32,
            affinity_seconds: 0,
            seed,
        };
        let random = frontend(Choice::Random, 1);
        assert_eq!(number(&random, 77, 1, 2), 77);
        let socket = frontend(Choice::Socket, 1);
        assert_eq!(number(&socket, 1, 5, 2), number(&socket, 2, 5, 3));
        assert_ne!(number(&socket, 1, 5, 2), number(&socket, 1, 6, 2));
        let client = frontend(Choice::Client, 1);
        assert_eq!(number(&client, 1, 5, 2), number(&client, 2, 6, 2));
        assert_ne!(number(&client, 1, 5, 2), number(&frontend(Choice::Client, 2), 1, 5, 2));
    }
}
