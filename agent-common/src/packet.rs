//! Reading a frame: which TCP connection, if any, it belongs to.
//!
//! What is not plain TCP over IPv4 or IPv6 is passed, never guessed at: a wrong reading would steal someone's packet.

use crate::acceleration::EndKey;
use crate::capture::Reason;

/// `EtherType` of IPv4.
const ETHERTYPE_IPV4: u16 = 0x0800;
/// `EtherType` of IPv6.
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Bytes of an Ethernet header without VLAN tags.
const ETHERNET_LEN: u32 = 14;
/// Bytes of an IPv4 header without options.
const IPV4_LEN: u32 = 20;
/// Bytes of the fixed IPv6 header.
const IPV6_LEN: u32 = 40;
/// Bytes of a TCP header without options.
const TCP_LEN: u32 = 20;
/// The protocol number of TCP, in IPv4 and IPv6 alike.
pub const PROTOCOL_TCP: u8 = 6;
/// IPv4: more-fragments flag and offset; either set means that this is part of a datagram.
const FRAGMENT_MASK: u16 = 0x3fff;

/// TCP flag bits.
pub const TCP_SYN: u8 = 0x02;
/// TCP flag bits.
pub const TCP_RST: u8 = 0x04;
/// TCP flag bits.
pub const TCP_ACK: u8 = 0x10;

/// Bounds-checked access to a frame's bytes, from its first header on.
pub trait Frame {
    /// `N` bytes at `offset`; `None` where the frame is shorter.
    fn bytes<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;
}

impl Frame for [u8] {
    fn bytes<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let start = offset as usize;
        self.get(start..start.checked_add(N)?)?.try_into().ok()
    }
}

/// The network protocol of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A TCP segment's ends and flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// The network protocol; addresses of IPv4 sit in the first four bytes.
    pub family: Family,
    /// The sender's address, network byte order.
    pub source: [u8; 16],
    /// The receiver's address, network byte order.
    pub destination: [u8; 16],
    /// The sender's port, network byte order.
    pub source_port: [u8; 2],
    /// The receiver's port, network byte order.
    pub destination_port: [u8; 2],
    /// The TCP flags.
    pub flags: u8,
}

impl Segment {
    /// Whether it asks for a new connection: SYN without ACK.
    #[inline(always)]
    pub fn opens(&self) -> bool {
        self.flags & (TCP_SYN | TCP_ACK) == TCP_SYN
    }

    /// Whether it breaks its connection off.
    #[inline(always)]
    pub fn resets(&self) -> bool {
        self.flags & TCP_RST != 0
    }

    /// The sender's end of the connection, whose namespace a packet does not tell.
    #[inline(always)]
    pub fn sender(&self) -> EndKey {
        EndKey {
            cookie: 0,
            local: self.source,
            remote: self.destination,
            local_port_be: self.source_port,
            remote_port_be: self.destination_port,
            family: match self.family {
                Family::V4 => 4,
                Family::V6 => 6,
            },
            padding: [0; 3],
        }
    }
}

/// Reads a frame, or says why it is passed unread.
#[inline(always)]
pub fn parse(frame: &(impl Frame + ?Sized)) -> Result<Segment, Reason> {
    let ethertype = u16::from_be_bytes(frame.bytes(12).ok_or(Reason::Truncated)?);
    parse_network(frame, ethertype, ETHERNET_LEN)
}

/// Reads a packet whose network header is at `start`; of an interface without Ethernet headers that is 0, and the kernel
/// says the `ethertype`.
#[inline(always)]
pub fn parse_network(frame: &(impl Frame + ?Sized), ethertype: u16, start: u32) -> Result<Segment, Reason> {
    match ethertype {
        ETHERTYPE_IPV4 => parse_ipv4(frame, start),
        ETHERTYPE_IPV6 => parse_ipv6(frame, start),
        // VLAN tags (0x8100, 0x88a8) included: what the tag isolates is not ours to join.
        _ => Err(Reason::NotIp),
    }
}

#[inline(always)]
fn parse_ipv4(frame: &(impl Frame + ?Sized), start: u32) -> Result<Segment, Reason> {
    let [version_and_len] = frame.bytes(start).ok_or(Reason::Truncated)?;
    match version_and_len {
        0x45 => {}
        0x46..=0x4f => return Err(Reason::IpOptions),
        _ => return Err(Reason::Malformed),
    }
    let fragment = u16::from_be_bytes(frame.bytes(start + 6).ok_or(Reason::Truncated)?);
    if fragment & FRAGMENT_MASK != 0 {
        return Err(Reason::Fragment);
    }
    let [protocol] = frame.bytes(start + 9).ok_or(Reason::Truncated)?;
    if protocol != PROTOCOL_TCP {
        return Err(Reason::NotTcp);
    }
    let total = u16::from_be_bytes(frame.bytes(start + 2).ok_or(Reason::Truncated)?);
    if u32::from(total) < IPV4_LEN + TCP_LEN {
        return Err(Reason::Truncated);
    }
    let source: [u8; 4] = frame.bytes(start + 12).ok_or(Reason::Truncated)?;
    let destination: [u8; 4] = frame.bytes(start + 16).ok_or(Reason::Truncated)?;
    parse_tcp(frame, start + IPV4_LEN, Family::V4, (widen(source), widen(destination)))
}

#[inline(always)]
fn parse_ipv6(frame: &(impl Frame + ?Sized), start: u32) -> Result<Segment, Reason> {
    let [version] = frame.bytes(start).ok_or(Reason::Truncated)?;
    if version >> 4 != 6 {
        return Err(Reason::Malformed);
    }
    let [next_header] = frame.bytes(start + 6).ok_or(Reason::Truncated)?;
    match next_header {
        PROTOCOL_TCP => {}
        44 => return Err(Reason::Fragment),
        // Hop-by-hop, routing, authentication, destination options, mobility, HIP, shim6.
        0 | 43 | 51 | 60 | 135 | 139 | 140 => return Err(Reason::IpOptions),
        _ => return Err(Reason::NotTcp),
    }
    let payload = u16::from_be_bytes(frame.bytes(start + 4).ok_or(Reason::Truncated)?);
    // Zero is what GRO writes into packets over 64 KiB (BIG TCP, RFC 2675 without the option).
    if payload != 0 && u32::from(payload) < TCP_LEN {
        return Err(Reason::Truncated);
    }
    let source: [u8; 16] = frame.bytes(start + 8).ok_or(Reason::Truncated)?;
    let destination: [u8; 16] = frame.bytes(start + 24).ok_or(Reason::Truncated)?;
    parse_tcp(frame, start + IPV6_LEN, Family::V6, (source, destination))
}

#[inline(always)]
fn parse_tcp(
    frame: &(impl Frame + ?Sized),
    offset: u32,
    family: Family,
    (source, destination): ([u8; 16], [u8; 16]),
) -> Result<Segment, Reason> {
    let ports: [u8; 4] = frame.bytes(offset).ok_or(Reason::Truncated)?;
    // The data offset and the flags; the whole fixed header must be there.
    let [data_offset, flags] = frame.bytes(offset + 12).ok_or(Reason::Truncated)?;
    let _: [u8; 4] = frame.bytes(offset + TCP_LEN - 4).ok_or(Reason::Truncated)?;
    if data_offset >> 4 < 5 {
        return Err(Reason::Malformed);
    }
    Ok(Segment {
        family,
        source,
        destination,
        source_port: [ports[0], ports[1]],
        destination_port: [ports[2], ports[3]],
        flags,
    })
}

/// An IPv4 address in the first bytes of a field that fits both families.
#[inline(always)]
pub(crate) const fn widen(address: [u8; 4]) -> [u8; 16] {
    [address[0], address[1], address[2], address[3], 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ethernet + IPv4 + TCP SYN from 10.10.1.2:40000 to 10.96.0.1:80.
    fn ipv4() -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00]);
        frame.extend([0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 10, 1, 2, 10, 96, 0, 1]);
        frame.extend(tcp());
        frame
    }

    fn ipv6() -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]);
        frame.extend([0xfd; 16]);
        frame.extend([0xfc; 16]);
        frame.extend(tcp());
        frame
    }

    fn tcp() -> [u8; 20] {
        [0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, TCP_SYN, 0xff, 0xff, 0, 0, 0, 0]
    }

    fn patched(mut frame: Vec<u8>, patches: &[(usize, u8)]) -> Vec<u8> {
        for (at, byte) in patches {
            frame[*at] = *byte;
        }
        frame
    }

    #[test]
    fn reads_the_ends_of_both_families() {
        let v4 = parse(ipv4().as_slice()).unwrap();
        assert_eq!(
            (v4.family, &v4.source[..4], &v4.destination[..4]),
            (Family::V4, &[10, 10, 1, 2][..], &[10, 96, 0, 1][..])
        );
        assert_eq!(
            (u16::from_be_bytes(v4.source_port), u16::from_be_bytes(v4.destination_port)),
            (40000, 80)
        );
        assert!(v4.opens());
        let v6 = parse(ipv6().as_slice()).unwrap();
        assert_eq!((v6.family, v6.source, v6.destination), (Family::V6, [0xfd; 16], [0xfc; 16]));
        assert!(v6.opens());
    }

    #[test]
    fn passes_what_it_does_not_read() {
        let cases: &[(&str, Vec<u8>, Reason)] = &[
            ("vlan", patched(ipv4(), &[(12, 0x81), (13, 0x00)]), Reason::NotIp),
            ("arp", patched(ipv4(), &[(13, 0x06)]), Reason::NotIp),
            ("options", patched(ipv4(), &[(14, 0x46)]), Reason::IpOptions),
            ("header of 16 bytes", patched(ipv4(), &[(14, 0x44)]), Reason::Malformed),
            ("version 6 in an IPv4 frame", patched(ipv4(), &[(14, 0x65)]), Reason::Malformed),
            ("first fragment", patched(ipv4(), &[(20, 0x20)]), Reason::Fragment),
            ("later fragment", patched(ipv4(), &[(20, 0), (21, 1)]), Reason::Fragment),
            ("udp", patched(ipv4(), &[(23, 17)]), Reason::NotTcp),
            ("total length below the headers", patched(ipv4(), &[(17, 39)]), Reason::Truncated),
            ("tcp header of 16 bytes", patched(ipv4(), &[(46, 0x40)]), Reason::Malformed),
            ("v6 fragment", patched(ipv6(), &[(20, 44)]), Reason::Fragment),
            ("v6 hop-by-hop", patched(ipv6(), &[(20, 0)]), Reason::IpOptions),
            ("v6 destination options", patched(ipv6(), &[(20, 60)]), Reason::IpOptions),
            ("v6 udp", patched(ipv6(), &[(20, 17)]), Reason::NotTcp),
            ("v6 payload below a header", patched(ipv6(), &[(19, 19)]), Reason::Truncated),
            ("v6 with another version", patched(ipv6(), &[(14, 0x45)]), Reason::Malformed),
        ];
        for (what, frame, reason) in cases {
            assert_eq!(parse(frame.as_slice()), Err(*reason), "{what}");
        }
    }

    #[test]
    fn without_an_ethernet_header_the_same_is_read() {
        for (frame, ethertype) in [(ipv4(), ETHERTYPE_IPV4), (ipv6(), ETHERTYPE_IPV6)] {
            let packet = &frame[ETHERNET_LEN as usize..];
            assert_eq!(parse_network(packet, ethertype, 0), parse(frame.as_slice()));
            for len in 0..packet.len() {
                assert_eq!(
                    parse_network(&packet[..len], ethertype, 0),
                    Err(Reason::Truncated),
                    "{len} bytes"
                );
            }
            assert_eq!(parse_network(packet, 0x8100, 0), Err(Reason::NotIp));
            let other = if ethertype == ETHERTYPE_IPV4 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
            assert_eq!(parse_network(packet, other, 0), Err(Reason::Malformed));
        }
    }

    #[test]
    fn every_truncation_is_passed() {
        for whole in [ipv4(), ipv6()] {
            for len in 0..whole.len() {
                assert_eq!(parse(&whole[..len]), Err(Reason::Truncated), "{len} bytes");
            }
        }
    }

    #[test]
    fn only_a_bare_syn_opens() {
        for (flags, opens) in
            [(TCP_SYN, true), (TCP_SYN | TCP_ACK, false), (TCP_ACK, false), (0x04, false), (0xc2, true)]
        {
            assert_eq!(
                parse(patched(ipv4(), &[(47, flags)]).as_slice()).unwrap().opens(),
                opens,
                "{flags:#x}"
            );
        }
    }
}
