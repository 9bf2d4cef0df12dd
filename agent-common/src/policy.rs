//! Policy: which packets may enter a pod, and what the agent tells the kernel programs about it.
//!
//! The agent has decided beforehand what each class of sources may do with each port of a pod; the programs only look it up.
//! What opens a connection is always judged. What belongs to one that the pod itself has opened passes. Where a pod comes under
//! policy in the midst of a conversation by datagrams, nobody has seen who began it: it is the pod's where its port is one that
//! kernels choose, and otherwise the peer's, until it has been silent for a while.

mod reading;

pub use reading::read;

use crate::packet::PROTOCOL_TCP;

/// Pods' addresses that can be under policy.
pub const POLICY_PODS_MAX: u32 = 65_536;
/// Sources that can be told apart, two generations of them.
pub const POLICY_SOURCES_MAX: u32 = 262_144;
/// Verdicts that can be kept, two generations of them.
pub const POLICY_RULES_MAX: u32 = 262_144;
/// Conversations that pods have begun and that are remembered; the one that was longest unused makes way.
pub const POLICY_FLOWS_MAX: u32 = 32_768;
/// Rules that are counted apart; what others refuse is counted as slot 0.
pub const POLICY_SLOTS: u32 = 4096;
/// Where packets are counted that hide their ports, whatever the rules are.
pub const HIDDEN_SLOT: u32 = POLICY_SLOTS - 1;

/// [`PolicyPod::set`] of a pod whose verdicts found no room: nobody may open anything to it.
pub const CLOSED: u32 = u32::MAX;
/// The first port of those that a pod's kernel chooses for connections of its own (`net.ipv4.ip_local_port_range`).
const EPHEMERAL_FIRST: u16 = 32_768;

/// Set in the family of a source's address: it came by the interface that leads to it, and its class is that of the pod behind
/// that, whom the node itself has started.
pub const PROVEN: u8 = 0x80;

/// An address of either family.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyAddress {
    /// 4 or 6; of proven sources with [`PROVEN`].
    pub family: u8,
    /// Network byte order; IPv4 in the first four bytes, the rest zero.
    pub address: [u8; 16],
}

const _: () = assert!(size_of::<PolicyAddress>() == 17 && align_of::<PolicyAddress>() == 1);

/// An address as the maps keep it.
pub fn policy_address(address: core::net::IpAddr) -> PolicyAddress {
    match address {
        core::net::IpAddr::V4(v4) => {
            let mut wide = [0; 16];
            wide[..4].copy_from_slice(&v4.octets());
            PolicyAddress { family: 4, address: wide }
        }
        core::net::IpAddr::V6(v6) => PolicyAddress { family: 6, address: v6.octets() },
    }
}

/// What a source's class is looked up by, with the longest prefix: the bits that all have in common come first.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PolicySourceKey {
    /// Which generation; the agent fills one while the programs read another.
    pub side: u8,
    /// The source.
    pub source: PolicyAddress,
}

/// Bits of a [`PolicySourceKey`] before its address.
pub const SOURCE_HEAD_BITS: u32 = 16;
/// All bits of a [`PolicySourceKey`].
pub const SOURCE_BITS: u32 = 144;

const _: () = assert!(size_of::<PolicySourceKey>() == SOURCE_BITS as usize / 8);

/// What is known of a pod under policy.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyPod {
    /// Which verdicts are its; [`CLOSED`]: none.
    pub set: u32,
    /// Which generation of sources they are about.
    pub side: u8,
    /// Whether connections to it may be handed to the agent here; 0: they go on, to the node that has the pod.
    pub captured: u8,
    /// Whether sources have classes of their own once they are proven; 0: nobody asks for that.
    pub proofs: u8,
    /// Spelled out.
    pub padding: u8,
    /// Since when it is under policy, in [`TENTHS`]; 0: for longer than anybody remembers.
    pub since: u32,
}

const _: () = assert!(size_of::<PolicyPod>() == 12);

/// A verdict's key.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PolicyRuleKey {
    /// As in [`PolicyPod`].
    pub set: u32,
    /// The source's class.
    pub class: u32,
    /// The pod's port in host byte order; 0: any port that has no entry of its own.
    pub port: u32,
}

/// A verdict.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyRuleValue {
    /// One of [`Access`].
    pub access: u32,
    /// Where what it refuses is counted.
    pub slot: u32,
}

/// The values of [`PolicyRuleValue::access`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Access {
    /// Let through.
    Allowed = 0,
    /// Refused.
    Denied = 1,
    /// Refused, and so is every other port; only in entries of port 0.
    DeniedEverywhere = 2,
    /// The agent decides, request by request: it takes connections, and nothing else gets in.
    ByRequest = 3,
    /// Let through, but for TCP connections: the agent takes them to count them, and none is opened past it.
    Counted = 4,
    /// Let through; the agent takes TCP connections to count them where it can.
    Watched = 5,
}

impl Access {
    /// Whether the agent takes a connection with this [`PolicyRuleValue::access`].
    #[inline(always)]
    pub fn is_taken(access: u32) -> bool {
        access == Self::ByRequest as u32 || access == Self::Counted as u32 || access == Self::Watched as u32
    }
}

/// A conversation that a pod began. What is noted at one interface says nothing about another: a pod can send whatever
/// source address it likes, but only from its own interface.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PolicyFlow {
    /// The index of the pod's interface in the node's namespace.
    pub interface: u32,
    /// The pod.
    pub pod: PolicyAddress,
    /// Whom it spoke to.
    pub peer: PolicyAddress,
    /// The pod's port, network byte order.
    pub pod_port: [u8; 2],
    /// The peer's port, network byte order.
    pub peer_port: [u8; 2],
    /// TCP or UDP, by its IP protocol number.
    pub protocol: u8,
    /// Spelled out.
    pub padding: u8,
}

const _: () = assert!(size_of::<PolicyFlow>() == 44 && align_of::<PolicyFlow>() == 4);

/// A conversation's value where the pod has begun it.
pub const BEGUN_BY_POD: u32 = 0;
/// A conversation's value where its peer has.
pub const BEGUN_BY_PEER: u32 = 1;
/// A conversation's value where nobody knows, and above it when one of the two sent last, in [`TENTHS`].
pub const BEGUN_UNSEEN: u32 = 1 << 31;
/// What times are counted in here: tenths of a second since the machine started, in nanoseconds.
pub const TENTHS: u64 = 100_000_000;
/// For how long a pod's datagrams, once it is under policy, may answer what came before: a second.
pub const ANSWERS_FOR: u32 = 10;
/// For how long what comes to a pod may go on with what was there before, and after which silence a conversation that nobody saw
/// begin is over: half a minute.
pub const UNSEEN_FOR: u32 = 300;

/// What a packet that begins a conversation or goes on with one, sent by a pod under policy, says of who began it, where
/// `before` is what was noted of it; `None`: nothing new. `now` says the time in [`TENTHS`].
#[inline(always)]
pub fn noted(
    before: Option<u32>,
    packet: &PolicyPacket,
    pod: &PolicyPod,
    now: impl FnOnce() -> u32,
) -> Option<u32> {
    let Some(before) = before else {
        if packet.kind != PacketKind::Datagram || is_ephemeral(packet.source_port) || pod.since == 0 {
            return Some(BEGUN_BY_POD);
        }
        let now = now();
        let answers = now.saturating_sub(pod.since) <= ANSWERS_FOR;
        return Some(if answers { BEGUN_UNSEEN | now } else { BEGUN_BY_POD });
    };
    if before < BEGUN_UNSEEN {
        return None;
    }
    let now = now();
    let over = now.saturating_sub(before & !BEGUN_UNSEEN) > UNSEEN_FOR;
    Some(if over { BEGUN_BY_POD } else { BEGUN_UNSEEN | now })
}

/// What a datagram says of its conversation that a pod under policy may not get: as [`noted`]. Its sender may have spoken with the pod
/// before, and the pod go on with that.
#[inline(always)]
pub fn noted_refused(
    before: Option<u32>,
    packet: &PolicyPacket,
    pod: &PolicyPod,
    now: impl FnOnce() -> u32,
) -> Option<u32> {
    if packet.kind != PacketKind::Datagram || is_ephemeral(packet.destination_port) || pod.since == 0 {
        return None;
    }
    let now = now();
    let goes_on = match before {
        None => now.saturating_sub(pod.since) <= UNSEEN_FOR,
        Some(before) => before >= BEGUN_UNSEEN,
    };
    if goes_on { Some(BEGUN_UNSEEN | now) } else { None }
}

/// Whether a port, in network byte order, is one that kernels choose.
#[inline(always)]
fn is_ephemeral(port: [u8; 2]) -> bool {
    u16::from_be_bytes(port) >= EPHEMERAL_FIRST
}

/// What a packet is to its receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketKind {
    /// Asks for a TCP connection, or cannot be told from one that does.
    Opening,
    /// Answers a request for a TCP connection: it does nothing where there was no request.
    Accepting,
    /// Of a TCP connection that is there already: it does nothing where there is none.
    Continuing,
    /// UDP.
    Datagram,
    /// A later part of a packet, which is nothing without the first.
    Fragment,
    /// ICMP that the network itself needs: errors, neighbours, answers.
    Control,
    /// Anything else, echo requests among them.
    Other,
    /// Behind more headers than are walked, or behind one that is cut off: nobody's honest packet.
    Unread,
}

/// A packet as far as policy is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyPacket {
    /// The sender.
    pub source: PolicyAddress,
    /// The receiver.
    pub destination: PolicyAddress,
    /// The IP protocol.
    pub protocol: u8,
    /// The sender's port, network byte order; 0 without ports.
    pub source_port: [u8; 2],
    /// The receiver's port, network byte order; 0 without ports.
    pub destination_port: [u8; 2],
    /// What it is to the receiver.
    pub kind: PacketKind,
}

impl PolicyPacket {
    /// The conversation, if the receiver is the pod behind this interface and began it.
    #[inline(always)]
    pub fn flow_of_receiver(&self, interface: u32) -> PolicyFlow {
        PolicyFlow {
            interface,
            pod: self.destination,
            peer: self.source,
            pod_port: self.destination_port,
            peer_port: self.source_port,
            protocol: self.protocol,
            padding: 0,
        }
    }

    /// The conversation that the sender, which is behind this interface, begins with it; `None` where it begins none.
    #[inline(always)]
    pub fn flow_of_sender(&self, interface: u32) -> Option<PolicyFlow> {
        match self.kind {
            PacketKind::Opening | PacketKind::Datagram => Some(PolicyFlow {
                interface,
                pod: self.source,
                peer: self.destination,
                pod_port: self.source_port,
                peer_port: self.destination_port,
                protocol: self.protocol,
                padding: 0,
            }),
            _ => None,
        }
    }
}

/// The maps, as the verdict asks them.
pub trait PolicyMaps {
    /// What is known of a pod; `None`: it is under no policy.
    fn pod(&self, address: &PolicyAddress) -> Option<PolicyPod>;
    /// The class of a source; 0 for those that no policy tells apart.
    fn class(&self, key: &PolicySourceKey) -> u32;
    /// A verdict.
    fn rule(&self, key: &PolicyRuleKey) -> Option<PolicyRuleValue>;
    /// Whether the pod began this conversation.
    fn began(&self, flow: &PolicyFlow) -> bool;
    /// Whether [`Self::proves`] could say yes to anything; asked first.
    fn may_prove(&self) -> bool {
        true
    }
    /// Whether the packet came by the interface that leads to its source.
    fn proves(&self, source: &PolicyAddress, destination: &PolicyAddress) -> bool;
}

/// Whether a packet may enter, by this interface, the pod that it is sent to; `Some`: it may not, counted in this slot.
#[inline(always)]
pub fn refuses(packet: &PolicyPacket, interface: u32, maps: &impl PolicyMaps) -> Option<u32> {
    let pod = maps.pod(&packet.destination)?;
    match packet.kind {
        PacketKind::Accepting | PacketKind::Control => return None,
        PacketKind::Continuing => {
            // The pod may have begun it before anybody took notes.
            if is_ephemeral(packet.destination_port) || maps.began(&packet.flow_of_receiver(interface)) {
                return None;
            }
        }
        PacketKind::Datagram => {
            if maps.began(&packet.flow_of_receiver(interface)) {
                return None;
            }
        }
        // What is behind them would be judged as another packet than the pod takes it for.
        PacketKind::Unread => return Some(HIDDEN_SLOT),
        PacketKind::Opening | PacketKind::Fragment | PacketKind::Other => {}
    }
    if pod.set == CLOSED {
        return Some(0);
    }
    let class = class_of(&pod, (&packet.source, &packet.destination), maps);
    // Every set has a verdict on everybody else; without one, nothing is known.
    let Some(value) = verdict(pod.set, class, packet.destination_port, maps) else { return Some(0) };
    if value.access == Access::Counted as u32 {
        // TCP that does not show its ports may open one; what nobody takes for a pod is counted nowhere, and not closed for it.
        let opens = match packet.kind {
            PacketKind::Opening => true,
            PacketKind::Other => packet.protocol == PROTOCOL_TCP,
            _ => false,
        };
        return if opens && pod.captured != 0 { Some(value.slot) } else { None };
    }
    let refused = match packet.kind {
        // The rest of something that may well have been let through.
        PacketKind::Fragment => value.access == Access::DeniedEverywhere as u32,
        _ => value.access != Access::Allowed as u32 && value.access != Access::Watched as u32,
    };
    if refused { Some(value.slot) } else { None }
}

/// The class of what a source sends to a pod.
#[inline(always)]
pub(crate) fn class_of(
    pod: &PolicyPod,
    (source, destination): (&PolicyAddress, &PolicyAddress),
    maps: &impl PolicyMaps,
) -> u32 {
    let mut key = PolicySourceKey { side: pod.side, source: *source };
    if pod.proofs != 0 && maps.may_prove() {
        key.source.family |= PROVEN;
        let class = maps.class(&key);
        if class != 0 && maps.proves(source, destination) {
            return class;
        }
        key.source.family &= !PROVEN;
    }
    maps.class(&key)
}

/// The most exact verdict on a class and port. What is not kept for a class is as for class 0.
#[inline(always)]
pub(crate) fn verdict(
    set: u32,
    class: u32,
    port: [u8; 2],
    maps: &impl PolicyMaps,
) -> Option<PolicyRuleValue> {
    let port = u32::from(u16::from_be_bytes(port));
    let mut found = None;
    if class != 0 {
        found = by_port(set, class, port, maps);
    }
    if found.is_none() {
        found = by_port(set, 0, port, maps);
    }
    found
}

#[inline(always)]
fn by_port(set: u32, class: u32, port: u32, maps: &impl PolicyMaps) -> Option<PolicyRuleValue> {
    let mut found = None;
    if port != 0 {
        found = maps.rule(&PolicyRuleKey { set, class, port });
    }
    if found.is_none() {
        found = maps.rule(&PolicyRuleKey { set, class, port: 0 });
    }
    found
}

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya's marker for types that are plain bytes")]
mod pod {
    use super::{PolicyAddress, PolicyFlow, PolicyPod, PolicyRuleKey, PolicyRuleValue, PolicySourceKey};

    // SAFETY: repr(C), integers only, no padding, every bit pattern valid.
    unsafe impl aya::Pod for PolicyAddress {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PolicyFlow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PolicySourceKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PolicyPod {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PolicyRuleKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PolicyRuleValue {}
}

#[cfg(test)]
mod tests;
