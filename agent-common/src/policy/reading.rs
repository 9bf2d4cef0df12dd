//! What policy reads of a frame.

use super::{PacketKind, PolicyAddress, PolicyPacket};
use crate::packet::{Family, Frame, PROTOCOL_TCP, TCP_ACK, TCP_SYN, widen};

/// IPv6 extension headers that are walked; real packets have two at most.
const EXTENSIONS_MAX: u32 = 6;
const PROTOCOL_ICMP: u8 = 1;
pub(super) const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_ICMPV6: u8 = 58;

/// Reads a frame with an Ethernet header; `None`: it is neither IPv4 nor IPv6, or too short to have addresses.
#[inline(always)]
pub fn read(frame: &(impl Frame + ?Sized)) -> Option<PolicyPacket> {
    match frame.bytes(12)? {
        [0x08, 0x00] => read_ipv4(frame, 14),
        [0x86, 0xdd] => read_ipv6(frame, 14),
        _ => None,
    }
}

#[inline(always)]
fn read_ipv4(frame: &(impl Frame + ?Sized), start: u32) -> Option<PolicyPacket> {
    let source: [u8; 4] = frame.bytes(start + 12)?;
    let destination: [u8; 4] = frame.bytes(start + 16)?;
    let [version_and_len] = frame.bytes(start)?;
    let [protocol] = frame.bytes(start + 9)?;
    let fragment = u16::from_be_bytes(frame.bytes(start + 6)?);
    let mut packet = unread(Family::V4, (widen(source), widen(destination)), protocol);
    if fragment & 0x1fff != 0 {
        packet.kind = PacketKind::Fragment;
        return Some(packet);
    }
    let len = u32::from(version_and_len & 0x0f) * 4;
    // A header that lies about its length is nobody's packet; it is judged as a whole.
    if len >= 20 {
        read_transport(frame, start + len, &mut packet);
    }
    Some(packet)
}

#[inline(always)]
fn read_ipv6(frame: &(impl Frame + ?Sized), start: u32) -> Option<PolicyPacket> {
    let source: [u8; 16] = frame.bytes(start + 8)?;
    let destination: [u8; 16] = frame.bytes(start + 24)?;
    let [mut protocol] = frame.bytes(start + 6)?;
    let mut offset = start + 40;
    for _ in 0..EXTENSIONS_MAX {
        let Some(units) = extension_units(protocol) else { break };
        let Some([next, len]) = frame.bytes::<2>(offset) else { break };
        if units == 0 {
            let Some(place) = frame.bytes::<2>(offset + 2) else { break };
            if u16::from_be_bytes(place) & 0xfff8 != 0 {
                let mut packet = unread(Family::V6, (source, destination), next);
                packet.kind = PacketKind::Fragment;
                return Some(packet);
            }
        }
        offset += match units {
            0 => 8,
            4 => (u32::from(len) + 2) * 4,
            _ => (u32::from(len) + 1) * 8,
        };
        protocol = next;
    }
    let mut packet = unread(Family::V6, (source, destination), protocol);
    if extension_units(protocol).is_some() {
        packet.kind = PacketKind::Unread;
    } else {
        read_transport(frame, offset, &mut packet);
    }
    Some(packet)
}

/// The unit of an IPv6 extension header's length; 0: a fragment header, which has one length; `None`: it is no extension.
#[inline(always)]
fn extension_units(protocol: u8) -> Option<u32> {
    match protocol {
        // Hop-by-hop, routing, destination options, mobility, HIP, shim6: units of 8 bytes beyond the first.
        0 | 43 | 60 | 135 | 139 | 140 => Some(8),
        // Authentication: units of 4 bytes beyond the first two.
        51 => Some(4),
        44 => Some(0),
        _ => None,
    }
}

/// Fills in ports and kind; what can't be read stays what it is without them.
#[inline(always)]
fn read_transport(frame: &(impl Frame + ?Sized), offset: u32, packet: &mut PolicyPacket) {
    match packet.protocol {
        PROTOCOL_TCP | PROTOCOL_UDP => {
            let Some(ports) = frame.bytes::<4>(offset) else { return };
            packet.source_port = [ports[0], ports[1]];
            packet.destination_port = [ports[2], ports[3]];
            if packet.protocol == PROTOCOL_UDP {
                packet.kind = PacketKind::Datagram;
                return;
            }
            // Flags that are cut off might ask for anything.
            let flags = frame.bytes::<1>(offset + 13).map_or(TCP_SYN, |[flags]| flags);
            packet.kind = match (flags & TCP_SYN != 0, flags & TCP_ACK != 0) {
                (true, false) => PacketKind::Opening,
                (true, true) => PacketKind::Accepting,
                (false, _) => PacketKind::Continuing,
            };
        }
        PROTOCOL_ICMP | PROTOCOL_ICMPV6 => {
            let echo = if packet.protocol == PROTOCOL_ICMP { 8 } else { 128 };
            if let Some([kind]) = frame.bytes::<1>(offset)
                && kind != echo
            {
                packet.kind = PacketKind::Control;
            }
        }
        _ => {}
    }
}

#[inline(always)]
fn unread(family: Family, (source, destination): ([u8; 16], [u8; 16]), protocol: u8) -> PolicyPacket {
    let family = match family {
        Family::V4 => 4,
        Family::V6 => 6,
    };
    PolicyPacket {
        source: PolicyAddress { family, address: source },
        destination: PolicyAddress { family, address: destination },
        protocol,
        source_port: [0; 2],
        destination_port: [0; 2],
        kind: PacketKind::Other,
    }
}
