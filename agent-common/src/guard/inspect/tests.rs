//! Frames as bytes, and what the guard reads in them.

use proptest::prelude::*;

use super::*;

const MACS: [u8; 12] = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
const SYN: u8 = TCP_SYN;
const ACK: u8 = TCP_ACK;

fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&MACS[..], &ethertype.to_be_bytes(), payload].concat()
}

fn tagged(tags: &[u16], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = MACS.to_vec();
    for tag in tags {
        frame.extend([tag.to_be_bytes(), [0, 7]].concat());
    }
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A datagram from 192.0.2.1 to 198.51.100.2. `fragment`: the word of flags and offset.
fn ipv4(protocol: u8, fragment: u16, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let header_len = 20 + options.len();
    let total = u16::try_from(header_len + payload.len()).unwrap().to_be_bytes();
    let [f0, f1] = fragment.to_be_bytes();
    let first = 0x40 | u8::try_from(header_len / 4).unwrap();
    let head = [first, 0, total[0], total[1], 0, 1, f0, f1, 64, protocol, 0, 0];
    [&head[..], &[192, 0, 2, 1], &[198, 51, 100, 2], options, payload].concat()
}

/// A datagram from 2001:db8::1 to 2001:db8::2.
fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let address = |last| [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
    [&[0x60, 0, 0, 0, len[0], len[1], next, 64][..], &address(1), &address(2), payload].concat()
}

fn tcp(flags: u8) -> Vec<u8> {
    vec![0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]
}

fn udp(says: u16) -> Vec<u8> {
    let [a, b] = says.to_be_bytes();
    vec![0x9c, 0x40, 0, 53, a, b, 0, 0, 1, 2, 3, 4]
}

fn patched(mut bytes: Vec<u8>, patches: &[(usize, u8)]) -> Vec<u8> {
    for (at, byte) in patches {
        bytes[*at] = *byte;
    }
    bytes
}

fn over_ipv4(payload: &[u8], protocol: u8) -> Vec<u8> {
    ethernet(ETHERTYPE_IPV4, &ipv4(protocol, 0, &[], payload))
}

fn over_ipv6(payload: &[u8], next: u8) -> Vec<u8> {
    ethernet(ETHERTYPE_IPV6, &ipv6(next, payload))
}

/// An extension header of 8 bytes and `more` times 8.
fn extension(next: u8, more: u8) -> Vec<u8> {
    let mut header = vec![0; 8 + usize::from(more) * 8];
    header[..2].copy_from_slice(&[next, more]);
    header
}

fn check(name: &str, frame: &[u8], expected: Result<bool, Reason>) {
    assert_eq!(inspect(frame).map(|seen| seen.sent.opens), expected, "{name}: {frame:02x?}");
}

#[test]
fn who_sends_it() {
    let seen = inspect(&over_ipv4(&tcp(SYN), TCP)[..]).unwrap();
    assert_eq!((seen.family, &seen.source[..5]), (Family::V4, &[192, 0, 2, 1, 0][..]));
    let seen = inspect(&over_ipv6(&tcp(ACK), TCP)[..]).unwrap();
    assert_eq!((seen.family, seen.source[0], seen.source[15]), (Family::V6, 0x20, 1));
}

#[test]
fn where_it_is_sent() {
    let sent = |protocol, to: u8, opens| Sent { protocol, from_be: [0x9c, 0x40], port_be: [0, to], opens };
    let first = [vec![TCP, 0, 0, 1, 0, 0, 0, 9], tcp(SYN), vec![0; 4]].concat();
    for (name, frame, expected) in [
        ("a SYN", over_ipv4(&tcp(SYN), TCP), sent(TCP, 80, true)),
        ("a segment", over_ipv6(&tcp(ACK), TCP), sent(TCP, 80, false)),
        ("a datagram", over_ipv6(&udp(12), UDP), sent(UDP, 53, false)),
        ("a first fragment", over_ipv6(&first, FRAGMENT), sent(TCP, 80, true)),
        ("a later one", ethernet(ETHERTYPE_IPV4, &ipv4(UDP, 3, &[], &[0; 5])), Sent::default()),
        ("ICMP", over_ipv4(&[8, 0, 0, 0], 1), Sent::default()),
    ] {
        let seen = inspect(&frame[..]).unwrap();
        assert_eq!(seen.sent, expected, "{name}");
        let to =
            if seen.family == Family::V4 { vec![198, 51, 100, 2, 0] } else { vec![0x20, 1, 0xd, 0xb8, 0] };
        assert_eq!(seen.destination[..5], to, "{name}");
    }
}

#[test]
fn good_frames_pass() {
    let syn = tcp(SYN);
    let over_two = [extension(DESTINATION, 1), extension(TCP, 0), syn.clone()].concat();
    let options = ipv4(TCP, 0, &[1; 40], &syn);
    let padded = [over_ipv4(&syn, TCP), vec![0; 6]].concat();
    let ipv6_first = [vec![TCP, 0, 0, 1, 0, 0, 0, 9], tcp(SYN), vec![0; 4]].concat();
    let ipv6_later = [vec![TCP, 0, 0, 0x18, 0, 0, 0, 9], vec![0; 5]].concat();
    let seven = [(0..6).flat_map(|_| extension(DESTINATION, 0)).collect(), syn.clone()].concat();
    for (name, frame, opens) in [
        ("a SYN", over_ipv4(&syn, TCP), true),
        ("a SYN with ECN", over_ipv4(&tcp(0xc2), TCP), true),
        ("a SYN ACK", over_ipv4(&tcp(SYN | ACK), TCP), false),
        ("a bare RST", over_ipv4(&tcp(TCP_RST), TCP), false),
        ("options", ethernet(ETHERTYPE_IPV4, &options), true),
        ("padding", padded, true),
        ("one tag", tagged(&[0x8100], ETHERTYPE_IPV4, &ipv4(TCP, 0, &[], &syn)), true),
        ("two tags", tagged(&[0x88a8, 0x8100], ETHERTYPE_IPV6, &ipv6(TCP, &syn)), true),
        ("UDP", over_ipv4(&udp(12), UDP), false),
        ("UDP from port 0", over_ipv4(&patched(udp(12), &[(0, 0), (1, 0)]), UDP), false),
        ("IPv6", over_ipv6(&syn, TCP), true),
        ("two extension headers", over_ipv6(&over_two, ROUTING), true),
        ("IPsec after a hop-by-hop header", over_ipv6(&extension(50, 0), HOP_BY_HOP), false),
        ("more extension headers than are read", over_ipv6(&seven, DESTINATION), false),
        ("ICMP", over_ipv4(&[8, 0, 0, 0], 1), false),
        ("no next header", over_ipv6(&[], 59), false),
        (
            "a first fragment",
            ethernet(ETHERTYPE_IPV4, &ipv4(UDP, 0x2000, &[], &[&udp(1000)[..], &[0; 4]].concat())),
            false,
        ),
        ("a later fragment", ethernet(ETHERTYPE_IPV4, &ipv4(UDP, 3, &[], &[0; 5])), false),
        ("an IPv6 first fragment", over_ipv6(&ipv6_first, FRAGMENT), true),
        ("an IPv6 later fragment", over_ipv6(&ipv6_later, FRAGMENT), false),
    ] {
        check(name, &frame, Ok(opens));
    }
}

#[test]
fn what_is_not_known_passes() {
    let syn = ipv4(TCP, 0, &[], &tcp(SYN));
    for (name, frame) in [
        ("ARP", ethernet(0x0806, &[0; 28])),
        ("a length instead of a type", ethernet(0x0026, &[0x42; 38])),
        ("three tags", tagged(&[0x88a8, 0x8100, 0x8100], ETHERTYPE_IPV4, &syn)),
    ] {
        check(name, &frame, Err(Reason::NotIp));
        assert!(!Reason::NotIp.drops());
    }
}

#[test]
fn contradictions_are_named() {
    use Reason::{
        BadExtension, BadFlags, BadFragment, BadHeader, BadLength, BadSource, BadTransport, PortZero,
    };
    let syn = tcp(SYN);
    let v4 = || over_ipv4(&tcp(SYN), TCP);
    let v6 = || over_ipv6(&tcp(SYN), TCP);
    let frag4 =
        |protocol, word, payload: &[u8]| ethernet(ETHERTYPE_IPV4, &ipv4(protocol, word, &[], payload));
    let mut cases = vec![
        ("IPv4 of version 5", patched(v4(), &[(14, 0x55)]), BadHeader),
        ("IPv4 with a header of 16 bytes", patched(v4(), &[(14, 0x44)]), BadHeader),
        ("IPv6 of version 4", patched(v6(), &[(14, 0x45)]), BadHeader),
        ("a total length below the header", patched(v4(), &[(17, 19)]), BadLength),
        ("a total length of zero", patched(v4(), &[(17, 0)]), BadLength),
        ("options beyond the total length", patched(v4(), &[(14, 0x4f)]), BadLength),
        ("a longer total length", patched(v4(), &[(17, 41)]), Reason::Truncated),
        ("a longer payload length", patched(v6(), &[(19, 21)]), Reason::Truncated),
        ("multicast sends", patched(v4(), &[(26, 224)]), BadSource),
        ("broadcast sends", patched(v4(), &[(26, 255), (27, 255), (28, 255), (29, 255)]), BadSource),
        ("IPv6 multicast sends", patched(v6(), &[(22, 0xff)]), BadSource),
        ("land", patched(v4(), &[(26, 198), (27, 51), (28, 100), (29, 2)]), BadSource),
        ("IPv6 land", patched(v6(), &[(37, 2)]), BadSource),
        ("a TCP fragment over the flags", frag4(TCP, 1, &[0; 8]), BadFragment),
        ("a tiny first fragment", frag4(TCP, 0x2000, &syn[..16]), BadFragment),
        ("an uneven fragment", frag4(UDP, 0x2001, &[0; 9]), BadFragment),
        ("an empty fragment", frag4(UDP, 1, &[]), BadFragment),
        ("a fragment beyond the largest datagram", frag4(1, 0x1fff, &[0; 8]), BadFragment),
        (
            "a late hop-by-hop header",
            over_ipv6(&[extension(0, 0), extension(TCP, 0)].concat(), DESTINATION),
            BadExtension,
        ),
        ("an extension beyond the end", over_ipv6(&extension(TCP, 0), HOP_BY_HOP), BadTransport),
        (
            "an extension that is cut",
            over_ipv6(&patched(extension(TCP, 0), &[(1, 1)]), ROUTING),
            BadExtension,
        ),
        ("an extension without room", over_ipv6(&[TCP, 0, 0, 0], ROUTING), BadExtension),
        ("TCP of 19 bytes", over_ipv4(&syn[..19], TCP), BadTransport),
        ("UDP of 7 bytes", over_ipv4(&udp(7)[..7], UDP), BadTransport),
        ("UDP that says 7", over_ipv4(&udp(7), UDP), BadTransport),
        ("UDP that says 13 of 12", over_ipv4(&udp(13), UDP), BadTransport),
        ("TCP with a header of 16 bytes", over_ipv4(&patched(syn.clone(), &[(12, 0x40)]), TCP), BadTransport),
        ("TCP options beyond the end", over_ipv4(&patched(syn.clone(), &[(12, 0x60)]), TCP), BadTransport),
        ("TCP from port 0", over_ipv4(&patched(syn.clone(), &[(0, 0), (1, 0)]), TCP), PortZero),
        ("TCP to port 0", over_ipv6(&patched(syn.clone(), &[(3, 0)]), TCP), PortZero),
        ("UDP to port 0", over_ipv4(&patched(udp(12), &[(3, 0)]), UDP), PortZero),
    ];
    // null, FIN, FIN PSH URG, SYN FIN, SYN RST, all, URG.
    for flags in [0, TCP_FIN, 0x29, SYN | TCP_FIN, SYN | TCP_RST, 0xff, 0x20] {
        cases.push(("flags", over_ipv4(&tcp(flags), TCP), BadFlags));
    }
    for (name, frame, reason) in cases {
        check(name, &frame, Err(reason));
        assert!(reason.drops(), "{name}");
    }
}

#[test]
fn every_truncation_is_dropped() {
    for whole in [
        over_ipv4(&tcp(SYN), TCP),
        over_ipv6(&udp(12), UDP),
        tagged(&[0x8100], ETHERTYPE_IPV4, &ipv4(TCP, 0, &[], &tcp(ACK))),
    ] {
        for len in 0..whole.len() {
            check("cut", &whole[..len], Err(Reason::Truncated));
        }
    }
}

/// What the stack merges on its way may be longer than length fields can say.
#[test]
fn merged_datagrams_pass() {
    let mut v4 = patched(over_ipv4(&tcp(ACK), TCP), &[(16, 0), (17, 0)]);
    v4.resize(100_000, 7);
    check("IPv4", &v4, Ok(false));
    let mut v6 = patched(over_ipv6(&[extension(TCP, 0), tcp(ACK)].concat(), HOP_BY_HOP), &[(18, 0), (19, 0)]);
    v6.resize(100_000, 7);
    check("IPv6", &v6, Ok(false));
}

proptest! {
    /// Reading ends, and what passes is a frame that the next reader finds whole.
    #[test]
    fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..200), ethertype in 0..4usize) {
        let mut bytes = bytes;
        if bytes.len() >= 14 {
            let ethertype = [ETHERTYPE_IPV4, ETHERTYPE_IPV6, 0x8100, 0x88a8][ethertype];
            bytes[12..14].copy_from_slice(&ethertype.to_be_bytes());
        }
        if inspect(&bytes[..]).is_ok() {
            prop_assert!(bytes.len() >= 34);
        }
    }
}
