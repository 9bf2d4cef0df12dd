//! Reading a frame as the guard does: who sends it, where to, whether it asks for a connection, and whether it contradicts itself.

use super::Reason;
use crate::packet::{Family, Frame, TCP_ACK, TCP_SYN, widen};

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Tags of customer and provider (802.1Q, 802.1ad), and the one that providers used before the standard.
const ETHERTYPES_VLAN: [u16; 3] = [0x8100, 0x88a8, 0x9100];
/// Tags that are read: 802.1ad has two.
const VLAN_TAGS_MAX: u32 = 2;
/// IPv6 extension headers that are read. Real packets have two at most.
const EXTENSIONS_MAX: u32 = 6;
const ETHERNET_LEN: u32 = 14;
const IPV4_LEN: u32 = 20;
const IPV6_LEN: u32 = 40;
const TCP_LEN: u32 = 20;
const UDP_LEN: u32 = 8;
/// The largest datagram that length fields can tell; merged ones inside a host may be larger, and then say nothing.
const DATAGRAM_MAX: u32 = 65_535;

const TCP: u8 = 6;
const UDP: u8 = 17;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
const MOBILITY: u8 = 135;

const TCP_FIN: u8 = 0x01;
const TCP_RST: u8 = 0x04;

/// A frame whose length is known.
pub trait SizedFrame: Frame {
    /// Its bytes, from the first header to the end of its payload.
    fn frame_len(&self) -> u32;
}

impl SizedFrame for [u8] {
    fn frame_len(&self) -> u32 {
        u32::try_from(self.len()).unwrap_or(u32::MAX)
    }
}

/// What the guard needs to know of a frame that does not contradict itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inspected {
    /// The network protocol.
    pub family: Family,
    /// The sender's address, network byte order; IPv4 in the first four bytes.
    pub source: [u8; 16],
    /// To whom it is sent, as the above.
    pub destination: [u8; 16],
    /// To which port, and what it asks for.
    pub sent: Sent,
}

/// What a frame says of its ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sent {
    /// TCP or UDP, by the IP protocol number; zero where there are no ports: in later fragments and other protocols.
    pub protocol: u8,
    /// The sender's port in network byte order.
    pub from_be: [u8; 2],
    /// The receiver's port in network byte order.
    pub port_be: [u8; 2],
    /// Whether it asks for a new TCP connection.
    pub opens: bool,
}

/// What an IP header leads to.
struct Payload {
    protocol: u8,
    /// Where the datagram's payload begins.
    start: u32,
    /// Where the datagram ends.
    end: u32,
    fragment: Fragment,
}

/// Which part of a datagram a packet is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fragment {
    Whole,
    First,
    Later,
}

/// Reads a frame; else the reason why it passes unread, or is dropped ([`Reason::drops`]).
#[inline(always)]
pub fn inspect(frame: &(impl SizedFrame + ?Sized)) -> Result<Inspected, Reason> {
    let header: [u8; 14] = frame.bytes(0).ok_or(Reason::Truncated)?;
    let mut ethertype = u16::from_be_bytes([header[12], header[13]]);
    let mut start = ETHERNET_LEN;
    for _ in 0..VLAN_TAGS_MAX {
        if !is_tag(ethertype) {
            break;
        }
        let tag: [u8; 4] = frame.bytes(start).ok_or(Reason::Truncated)?;
        ethertype = u16::from_be_bytes([tag[2], tag[3]]);
        start += 4;
    }
    match ethertype {
        ETHERTYPE_IPV4 => inspect_ipv4(frame, start),
        ETHERTYPE_IPV6 => inspect_ipv6(frame, start),
        _ => Err(Reason::NotIp),
    }
}

#[inline(always)]
fn is_tag(ethertype: u16) -> bool {
    ethertype == ETHERTYPES_VLAN[0] || ethertype == ETHERTYPES_VLAN[1] || ethertype == ETHERTYPES_VLAN[2]
}

#[inline(always)]
fn inspect_ipv4(frame: &(impl SizedFrame + ?Sized), start: u32) -> Result<Inspected, Reason> {
    let h: [u8; IPV4_LEN as usize] = frame.bytes(start).ok_or(Reason::Truncated)?;
    let header_len = u32::from(h[0] & 0x0f) * 4;
    if h[0] >> 4 != 4 || header_len < IPV4_LEN {
        return Err(Reason::BadHeader);
    }
    let end = datagram_end(frame, start, u32::from(u16::from_be_bytes([h[2], h[3]])))?;
    if end - start < header_len {
        return Err(Reason::BadLength);
    }
    let source = u32::from_be_bytes([h[12], h[13], h[14], h[15]]);
    let destination = u32::from_be_bytes([h[16], h[17], h[18], h[19]]);
    // Class D and E and the broadcast address are nobody's; a node never meets its own packets on the wire.
    if source >= 0xe000_0000 || source == destination {
        return Err(Reason::BadSource);
    }
    let word = u16::from_be_bytes([h[6], h[7]]);
    let payload = end - start - header_len;
    let fragment = fragment_of(u32::from(word & 0x1fff) * 8, word & 0x2000 != 0, payload, h[9])?;
    let payload = Payload { protocol: h[9], start: start + header_len, end, fragment };
    let sent = sent(frame, &payload)?;
    let (source, destination) = (widen([h[12], h[13], h[14], h[15]]), widen([h[16], h[17], h[18], h[19]]));
    Ok(Inspected { family: Family::V4, source, destination, sent })
}

#[inline(always)]
fn inspect_ipv6(frame: &(impl SizedFrame + ?Sized), start: u32) -> Result<Inspected, Reason> {
    let h: [u8; IPV6_LEN as usize] = frame.bytes(start).ok_or(Reason::Truncated)?;
    if h[0] >> 4 != 6 {
        return Err(Reason::BadHeader);
    }
    let payload_len = u32::from(u16::from_be_bytes([h[4], h[5]]));
    // A jumbogram says its length in an option; it is taken to reach to the end of its frame.
    let jumbo = payload_len == 0 && h[6] == HOP_BY_HOP;
    let end = if jumbo { frame.frame_len() } else { datagram_end(frame, start, IPV6_LEN + payload_len)? };
    let (mut source, mut destination) = ([0; 16], [0; 16]);
    source.copy_from_slice(&h[8..24]);
    destination.copy_from_slice(&h[24..40]);
    if source[0] == 0xff || u128::from_ne_bytes(source) == u128::from_ne_bytes(destination) {
        return Err(Reason::BadSource);
    }
    let sent = match walk_extensions(frame, h[6], start + IPV6_LEN, end)? {
        Some(payload) => sent(frame, &payload)?,
        None => Sent::default(),
    };
    Ok(Inspected { family: Family::V6, source, destination, sent })
}

/// Where a datagram of a length ends. Frames may be padded, but not shorter.
#[inline(always)]
fn datagram_end(frame: &(impl SizedFrame + ?Sized), start: u32, len: u32) -> Result<u32, Reason> {
    let whole = frame.frame_len();
    if whole > start + DATAGRAM_MAX {
        return Ok(whole);
    }
    if start + len > whole { Err(Reason::Truncated) } else { Ok(start + len) }
}

/// Follows the extension headers to the payload; `None` where it can't be told, which is no fault of the packet.
#[inline(always)]
fn walk_extensions(
    frame: &(impl SizedFrame + ?Sized),
    first: u8,
    start: u32,
    end: u32,
) -> Result<Option<Payload>, Reason> {
    let (mut next, mut at, mut fragment) = (first, start, Fragment::Whole);
    for index in 0..EXTENSIONS_MAX {
        match next {
            // Only the first may be looked at by every hop (RFC 8200 section 4.1).
            HOP_BY_HOP if index > 0 => return Err(Reason::BadExtension),
            HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION | AUTHENTICATION | MOBILITY => {}
            protocol => return Ok(Some(Payload { protocol, start: at, end, fragment })),
        }
        if at + 8 > end {
            return Err(Reason::BadExtension);
        }
        let h: [u8; 8] = frame.bytes(at).ok_or(Reason::Truncated)?;
        let len = match next {
            FRAGMENT => {
                let word = u16::from_be_bytes([h[2], h[3]]);
                fragment = fragment_of(u32::from(word & 0xfff8), word & 1 != 0, end - at - 8, h[0])?;
                8
            }
            AUTHENTICATION => (u32::from(h[1]) + 2) * 4,
            _ => (u32::from(h[1]) + 1) * 8,
        };
        if at + len > end {
            return Err(Reason::BadExtension);
        }
        if fragment == Fragment::Later {
            return Ok(None);
        }
        next = h[0];
        at += len;
    }
    Ok(None)
}

/// Which part of its datagram a packet is, unless it can't be one.
#[inline(always)]
fn fragment_of(offset: u32, more: bool, payload: u32, protocol: u8) -> Result<Fragment, Reason> {
    if offset == 0 && !more {
        return Ok(Fragment::Whole);
    }
    // All but the last are in units of eight bytes, none is empty, none reaches beyond the largest datagram, and none writes
    // over the ports or flags of its first (RFC 1858, RFC 8200 section 4.5).
    let uneven = more && !payload.is_multiple_of(8);
    let overlaps = protocol == TCP && (offset == 8 || offset == 0 && payload < TCP_LEN);
    if payload == 0 || uneven || overlaps || offset + payload > DATAGRAM_MAX {
        return Err(Reason::BadFragment);
    }
    Ok(if offset == 0 { Fragment::First } else { Fragment::Later })
}

/// Where a payload is sent and whether it asks for a new TCP connection, unless its header contradicts itself.
#[inline(always)]
fn sent(frame: &(impl SizedFrame + ?Sized), payload: &Payload) -> Result<Sent, Reason> {
    if payload.fragment == Fragment::Later {
        return Ok(Sent::default());
    }
    match payload.protocol {
        TCP => sent_by_tcp(frame, payload),
        UDP => sent_by_udp(frame, payload),
        _ => Ok(Sent::default()),
    }
}

#[inline(always)]
fn sent_by_tcp(frame: &(impl SizedFrame + ?Sized), payload: &Payload) -> Result<Sent, Reason> {
    let len = payload.end - payload.start;
    if len < TCP_LEN {
        return Err(Reason::BadTransport);
    }
    let h: [u8; 14] = frame.bytes(payload.start).ok_or(Reason::Truncated)?;
    let header_len = u32::from(h[12] >> 4) * 4;
    if header_len < TCP_LEN || payload.fragment == Fragment::Whole && header_len > len {
        return Err(Reason::BadTransport);
    }
    if h[0] | h[1] == 0 || h[2] | h[3] == 0 {
        return Err(Reason::PortZero);
    }
    let flags = h[13];
    let (syn, ack) = (flags & TCP_SYN != 0, flags & TCP_ACK != 0);
    let ends = flags & (TCP_FIN | TCP_RST) != 0;
    // No segment both opens and ends, and every one but the first and a reset acknowledges (RFC 9293 section 3.10).
    let none = flags & (TCP_SYN | TCP_ACK | TCP_RST) == 0;
    if syn && ends || none {
        return Err(Reason::BadFlags);
    }
    Ok(Sent { protocol: TCP, from_be: [h[0], h[1]], port_be: [h[2], h[3]], opens: syn && !ack })
}

#[inline(always)]
fn sent_by_udp(frame: &(impl SizedFrame + ?Sized), payload: &Payload) -> Result<Sent, Reason> {
    let len = payload.end - payload.start;
    if len < UDP_LEN {
        return Err(Reason::BadTransport);
    }
    let h: [u8; 8] = frame.bytes(payload.start).ok_or(Reason::Truncated)?;
    // The sender's port may be zero: it then wants no answer (RFC 768).
    if h[2] | h[3] == 0 {
        return Err(Reason::PortZero);
    }
    let says = u32::from(u16::from_be_bytes([h[4], h[5]]));
    // The first fragment says the length of the whole datagram; a jumbogram and a merged one say zero.
    let whole = payload.fragment == Fragment::Whole && len <= DATAGRAM_MAX;
    if whole && (says < UDP_LEN || says > len) {
        return Err(Reason::BadTransport);
    }
    Ok(Sent { protocol: UDP, from_be: [h[0], h[1]], port_be: [h[2], h[3]], opens: false })
}

#[cfg(test)]
mod tests;
