//! Crafted packets and what becomes of them.

use std::collections::{HashMap, HashSet};

use super::reading::PROTOCOL_UDP;
use super::*;
use crate::packet::{PROTOCOL_TCP, TCP_ACK, TCP_SYN, widen};

const CLIENT: [u8; 4] = [10, 10, 1, 2];
const POD: [u8; 4] = [10, 10, 1, 3];
const CLIENT6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
const POD6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3];
const ACK: u8 = TCP_ACK;
/// The pod's interface.
const VETH: u32 = 12;
const SYN: u8 = TCP_SYN;

fn ethernet(ethertype: [u8; 2]) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend(ethertype);
    frame
}

/// IPv4 from the client to the pod; `fragment` is flags and offset, `options` a multiple of 4 bytes.
fn ipv4(protocol: u8, fragment: u16, options: usize, payload: &[u8]) -> Vec<u8> {
    let mut frame = ethernet([0x08, 0]);
    let len = u8::try_from(5 + options / 4).expect("15 words at most");
    frame.extend([0x40 | len, 0, 0, 0, 0, 0]);
    frame.extend(fragment.to_be_bytes());
    frame.extend([64, protocol, 0, 0]);
    frame.extend(CLIENT);
    frame.extend(POD);
    frame.extend(vec![1; options]);
    frame.extend(payload);
    frame
}

/// IPv6 from the client to the pod; `headers` are extension headers with their own numbers.
fn ipv6(protocol: u8, headers: &[(u8, Vec<u8>)], payload: &[u8]) -> Vec<u8> {
    let mut frame = ethernet([0x86, 0xdd]);
    let first = headers.first().map_or(protocol, |(number, _)| *number);
    frame.extend([0x60, 0, 0, 0, 0, 0, first, 64]);
    frame.extend(CLIENT6);
    frame.extend(POD6);
    for (index, (_, bytes)) in headers.iter().enumerate() {
        let next = headers.get(index + 1).map_or(protocol, |(number, _)| *number);
        frame.push(next);
        frame.extend(&bytes[1..]);
    }
    frame.extend(payload);
    frame
}

fn tcp(source: u16, destination: u16, flags: u8) -> Vec<u8> {
    let mut header = Vec::from(source.to_be_bytes());
    header.extend(destination.to_be_bytes());
    header.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    header
}

fn udp(source: u16, destination: u16) -> Vec<u8> {
    let mut header = Vec::from(source.to_be_bytes());
    header.extend(destination.to_be_bytes());
    header.extend([0, 8, 0, 0]);
    header
}

#[test]
fn packets_are_told_apart() {
    use PacketKind::{Accepting, Continuing, Control, Datagram, Fragment, Opening, Other, Unread};
    let hop = |units: u8| (0, vec![0; 8 * (usize::from(units) + 1)]).with_len(units);
    let auth = (51, vec![0; 16]).with_len(2);
    let first = (44, vec![0, 0, 0, 1, 0, 0, 0, 9]);
    let later = (44, vec![0, 0, 0, 9, 0, 0, 0, 9]);
    let cases: &[(&str, Vec<u8>, PacketKind, u16)] = &[
        ("syn", ipv4(6, 0, 0, &tcp(4000, 80, SYN)), Opening, 80),
        ("syn with ecn", ipv4(6, 0, 0, &tcp(4000, 80, 0xc2)), Opening, 80),
        ("syn+ack", ipv4(6, 0, 0, &tcp(80, 4000, SYN | ACK)), Accepting, 4000),
        ("ack", ipv4(6, 0, 0, &tcp(4000, 80, ACK)), Continuing, 80),
        ("rst", ipv4(6, 0, 0, &tcp(4000, 80, 4)), Continuing, 80),
        ("no flags at all", ipv4(6, 0, 0, &tcp(4000, 80, 0)), Continuing, 80),
        ("options", ipv4(6, 0, 40, &tcp(4000, 80, SYN)), Opening, 80),
        ("first fragment", ipv4(6, 0x2000, 0, &tcp(4000, 80, ACK)), Continuing, 80),
        ("first fragment without flags", ipv4(6, 0x2000, 0, &tcp(4000, 80, ACK)[..8]), Opening, 80),
        ("first fragment without ports", ipv4(6, 0x2000, 0, &tcp(4000, 80, ACK)[..3]), Other, 0),
        ("later fragment", ipv4(6, 0x0001, 0, &tcp(4000, 80, SYN)), Fragment, 0),
        ("last fragment of many", ipv4(17, 0x1fff, 0, &[]), Fragment, 0),
        ("udp", ipv4(17, 0, 0, &udp(53, 4000)), Datagram, 4000),
        ("echo", ipv4(1, 0, 0, &[8, 0, 0, 0]), Other, 0),
        ("echo reply", ipv4(1, 0, 0, &[0, 0, 0, 0]), Control, 0),
        ("unreachable", ipv4(1, 0, 0, &[3, 4, 0, 0]), Control, 0),
        ("icmp without a type", ipv4(1, 0, 0, &[]), Other, 0),
        ("sctp", ipv4(132, 0, 0, &udp(80, 80)), Other, 0),
        ("v6 syn", ipv6(6, &[], &tcp(4000, 80, SYN)), Opening, 80),
        ("v6 hop-by-hop", ipv6(6, &[hop(1)], &tcp(4000, 80, SYN)), Opening, 80),
        ("v6 authentication", ipv6(6, std::slice::from_ref(&auth), &tcp(4000, 80, ACK)), Continuing, 80),
        ("v6 first fragment", ipv6(17, &[hop(0), first.clone()], &udp(1, 53)), Datagram, 53),
        ("v6 later fragment", ipv6(6, &[later], &tcp(4000, 80, SYN)), Fragment, 0),
        ("v6 all that is walked", ipv6(6, &vec![hop(0); 6], &tcp(4000, 80, ACK)), Continuing, 80),
        ("v6 more than is walked", ipv6(6, &vec![hop(0); 7], &tcp(4000, 80, ACK)), Unread, 0),
        ("v6 header cut off", ipv6(6, &[first], &[])[..57].to_vec(), Unread, 0),
        ("v6 echo", ipv6(58, &[], &[128, 0]), Other, 0),
        ("v6 neighbour", ipv6(58, &[], &[135, 0]), Control, 0),
    ];
    for (what, frame, kind, port) in cases {
        let packet = read(frame.as_slice()).expect(what);
        assert_eq!((packet.kind, u16::from_be_bytes(packet.destination_port)), (*kind, *port), "{what}");
        let v6 = frame[12] == 0x86;
        let (source, pod) = if v6 { (CLIENT6, POD6) } else { (widen(CLIENT), widen(POD)) };
        let family = if v6 { 6 } else { 4 };
        assert_eq!(packet.source, PolicyAddress { family, address: source }, "{what}");
        assert_eq!(packet.destination, PolicyAddress { family, address: pod }, "{what}");
    }
    for other in [&[0u8; 5][..], &ethernet([0x08, 0x06]), &ethernet([0x81, 0]), &ethernet([0x08, 0])] {
        assert_eq!(read(other), None);
    }
}

trait WithLen {
    fn with_len(self, units: u8) -> Self;
}

impl WithLen for (u8, Vec<u8>) {
    fn with_len(mut self, units: u8) -> Self {
        self.1[1] = units;
        self
    }
}

/// A class, a port and what the one may do with the other.
type Rule = (u32, u32, Access);

/// What a packet is called in the table, the verdicts it meets, the packet, and the slot of the one that refuses it.
type Case<'a> = (&'a str, &'a [Rule], Vec<u8>, Option<u32>);

/// What is in the maps; sources by their whole address.
#[derive(Default)]
struct Maps {
    pods: HashMap<PolicyAddress, PolicyPod>,
    classes: HashMap<PolicySourceKey, u32>,
    rules: HashMap<PolicyRuleKey, PolicyRuleValue>,
    flows: HashSet<PolicyFlow>,
    proven: bool,
}

impl PolicyMaps for Maps {
    fn pod(&self, address: &PolicyAddress) -> Option<PolicyPod> {
        self.pods.get(address).copied()
    }
    fn class(&self, key: &PolicySourceKey) -> u32 {
        self.classes.get(key).copied().unwrap_or(0)
    }
    fn rule(&self, key: &PolicyRuleKey) -> Option<PolicyRuleValue> {
        self.rules.get(key).copied()
    }
    fn began(&self, flow: &PolicyFlow) -> bool {
        self.flows.contains(flow)
    }
    fn proves(&self, _: &PolicyAddress, _: &PolicyAddress) -> bool {
        self.proven
    }
}

/// Maps that hold the pod, the client as class 1 of side 1 and these verdicts (class, port, access); slots are port + 1.
fn maps(rules: &[Rule]) -> Maps {
    let mut maps = Maps::default();
    for (family, pod, client) in [(4, widen(POD), widen(CLIENT)), (6, POD6, CLIENT6)] {
        maps.pods.insert(
            PolicyAddress { family, address: pod },
            PolicyPod { set: 7, side: 1, captured: 0, proofs: 0, padding: 0, since: 0 },
        );
        let source = PolicyAddress { family, address: client };
        maps.classes.insert(PolicySourceKey { side: 1, source }, 1);
    }
    for (class, port, access) in rules {
        let key = PolicyRuleKey { set: 7, class: *class, port: *port };
        maps.rules.insert(key, PolicyRuleValue { access: *access as u32, slot: port + 1 });
    }
    maps
}

#[test]
fn verdicts() {
    use Access::{Allowed, Denied, DeniedEverywhere};
    let syn = |port| ipv4(6, 0, 0, &tcp(4000, port, SYN));
    let ack = |port| ipv4(6, 0, 0, &tcp(4000, port, ACK));
    let later = ipv4(6, 0x0001, 0, &[0; 20]);
    let echo = ipv4(1, 0, 0, &[8, 0, 0, 0]);
    let all = &[(1, 0, DeniedEverywhere)][..];
    let port = &[(1, 80, Denied), (1, 0, Allowed)][..];
    let but = &[(1, 80, Allowed), (1, 0, Denied)][..];
    let fallback = &[(0, 80, Denied), (0, 0, Allowed)][..];
    let over = &[(0, 80, Denied), (0, 0, Denied), (1, 0, Allowed)][..];
    let cases: &[Case<'_>] = &[
        ("no verdict", &[], syn(80), Some(0)),
        ("everything", all, syn(80), Some(1)),
        ("everything, v6", all, ipv6(6, &[], &tcp(1, 80, SYN)), Some(1)),
        ("established", all, ack(80), Some(1)),
        ("established on a port of the kernel's choice", all, ack(40000), None),
        ("new on a port of the kernel's choice", all, syn(40000), Some(1)),
        ("an answer to the pod", all, ipv4(6, 0, 0, &tcp(80, 1000, SYN | ACK)), None),
        ("udp", all, ipv4(17, 0, 0, &udp(1, 40000)), Some(1)),
        ("echo", all, echo.clone(), Some(1)),
        ("later fragment", all, later.clone(), Some(1)),
        ("the port", port, syn(80), Some(81)),
        ("another port", port, syn(81), None),
        ("echo beside a port", port, echo.clone(), None),
        ("later fragment beside a port", port, later.clone(), None),
        ("the one port", but, syn(80), None),
        ("not the one port", but, syn(81), Some(1)),
        ("echo but the port", but, echo, Some(1)),
        ("later fragment but the port", but, later, None),
        ("nothing of its own", fallback, syn(80), Some(81)),
        ("nothing of its own, other port", fallback, syn(81), None),
        ("its own goes before", over, syn(80), None),
    ];
    for (what, rules, frame, expected) in cases {
        let packet = read(frame.as_slice()).expect(what);
        assert_eq!(refuses(&packet, VETH, &maps(rules)), *expected, "{what}");
    }
}

/// What a limit counts is let by, but for connections that the agent has not taken.
#[test]
fn only_new_connections_are_refused_where_all_are_counted() {
    let mut maps = maps(&[(0, 0, Access::Counted), (1, 81, Access::Denied)]);
    let cases: &[(&str, Vec<u8>, Option<u32>)] = &[
        ("new", ipv4(6, 0, 0, &tcp(4000, 80, SYN)), Some(1)),
        ("new, v6", ipv6(6, &[], &tcp(4000, 80, SYN)), Some(1)),
        ("what may be new", ipv4(6, 0x2000, 0, &tcp(4000, 80, ACK)[..8]), Some(1)),
        ("what does not show it", ipv4(6, 0x2000, 0, &tcp(4000, 80, ACK)[..3]), Some(1)),
        ("refused by a policy", ipv4(6, 0, 0, &tcp(4000, 81, SYN)), Some(82)),
        ("established", ipv4(6, 0, 0, &tcp(4000, 80, ACK)), None),
        ("later fragment", ipv4(6, 0x0001, 0, &[0; 20]), None),
        ("udp", ipv4(17, 0, 0, &udp(1, 53)), None),
        ("echo", ipv4(1, 0, 0, &[8, 0, 0, 0]), None),
        ("sctp", ipv4(132, 0, 0, &udp(80, 80)), None),
    ];
    for captured in [1, 0] {
        maps.pods.values_mut().for_each(|pod| pod.captured = captured);
        for (what, frame, expected) in cases {
            let packet = read(frame.as_slice()).expect(what);
            let expected = expected.filter(|slot| captured == 1 || *slot == 82);
            assert_eq!(refuses(&packet, VETH, &maps), expected, "{what}, captured: {captured}");
        }
    }
}

#[test]
fn what_is_only_watched_is_let_by() {
    let maps = maps(&[(0, 0, Access::Watched), (1, 81, Access::Denied)]);
    for (what, frame, expected) in [
        ("new", ipv4(6, 0, 0, &tcp(4000, 80, SYN)), None),
        ("what does not show it", ipv4(6, 0x2000, 0, &tcp(4000, 80, ACK)[..3]), None),
        ("udp", ipv4(17, 0, 0, &udp(1, 53)), None),
        ("refused by a policy", ipv4(6, 0, 0, &tcp(4000, 81, SYN)), Some(82)),
    ] {
        let packet = read(frame.as_slice()).expect(what);
        assert_eq!(refuses(&packet, VETH, &maps), expected, "{what}");
    }
}

#[test]
fn conversations_that_the_pod_began_go_on() {
    let mut maps = maps(&[(1, 0, Access::DeniedEverywhere)]);
    for protocol in [PROTOCOL_TCP, PROTOCOL_UDP] {
        let pod = PolicyAddress { family: 4, address: widen(POD) };
        let peer = PolicyAddress { family: 4, address: widen(CLIENT) };
        let (pod_port, peer_port) = (1000u16.to_be_bytes(), 53u16.to_be_bytes());
        maps.flows.insert(PolicyFlow {
            interface: VETH,
            pod,
            peer,
            pod_port,
            peer_port,
            protocol,
            padding: 0,
        });
    }
    let cases: &[(&str, Vec<u8>, bool)] = &[
        ("the answer", ipv4(17, 0, 0, &udp(53, 1000)), false),
        ("from another port", ipv4(17, 0, 0, &udp(54, 1000)), true),
        ("to another port", ipv4(17, 0, 0, &udp(53, 1001)), true),
        ("its segments", ipv4(6, 0, 0, &tcp(53, 1000, ACK)), false),
        ("segments of another", ipv4(6, 0, 0, &tcp(53, 1001, ACK)), true),
        ("a new one with the same ends", ipv4(6, 0, 0, &tcp(53, 1000, SYN)), true),
    ];
    for (what, frame, refused) in cases {
        let packet = read(frame.as_slice()).expect(what);
        assert_eq!(refuses(&packet, VETH, &maps).is_some(), *refused, "{what}");
        // What somebody behind another interface claims to have begun is nothing to this pod, and the other way round.
        assert!(refuses(&packet, VETH + 1, &maps).is_some(), "{what}, by another interface");
    }
    let from_pod = read(ipv4(17, 0, 0, &udp(1000, 53)).as_slice()).expect("a packet");
    let flow = from_pod.flow_of_sender(VETH).expect("it begins one");
    assert_eq!((flow.interface, flow.pod), (VETH, from_pod.source));
    assert_eq!(flow.pod_port, 1000u16.to_be_bytes());
    let answer = read(ipv4(6, 0, 0, &tcp(80, 4000, SYN | ACK)).as_slice()).expect("a packet");
    assert_eq!(answer.flow_of_sender(VETH), None);
}

#[test]
fn a_closed_pod_takes_nothing_new_and_others_are_left_alone() {
    let mut maps = maps(&[]);
    let pod = PolicyAddress { family: 4, address: widen(POD) };
    maps.pods.insert(pod, PolicyPod { set: CLOSED, side: 0, captured: 0, proofs: 0, padding: 0, since: 0 });
    let syn = read(ipv4(6, 0, 0, &tcp(4000, 80, SYN)).as_slice()).expect("a packet");
    assert_eq!(refuses(&syn, VETH, &maps), Some(0));
    maps.pods.clear();
    assert_eq!(refuses(&syn, VETH, &maps), None);
}

#[test]
fn a_proven_source_has_a_class_of_its_own_where_somebody_asks_for_proof() {
    use Access::{Allowed, DeniedEverywhere};
    let syn = read(ipv4(6, 0, 0, &tcp(4000, 80, SYN)).as_slice()).expect("a packet");
    let pod = PolicyAddress { family: 4, address: widen(POD) };
    let itself = PolicyAddress { family: 4 | PROVEN, address: widen(CLIENT) };
    // (whether proof is asked for, given, and known of) -> let in
    for (asked, given, known) in
        [(1, true, true), (1, true, false), (1, false, true), (0, true, true), (0, false, false)]
    {
        let mut maps = maps(&[(0, 0, DeniedEverywhere), (1, 0, DeniedEverywhere), (2, 0, Allowed)]);
        maps.pods
            .insert(pod, PolicyPod { set: 7, side: 1, captured: 0, proofs: asked, padding: 0, since: 0 });
        maps.proven = given;
        if known {
            maps.classes.insert(PolicySourceKey { side: 1, source: itself }, 2);
        }
        let expected = asked == 1 && given && known;
        assert_eq!(refuses(&syn, VETH, &maps).is_none(), expected, "{asked} {given} {known}");
    }
}

#[test]
fn who_began_what_is_noted() {
    use PacketKind::{Datagram, Opening};
    let pod = |since| PolicyPod { set: 7, side: 1, captured: 0, proofs: 0, padding: 0, since };
    let unseen = |time: u32| Some(BEGUN_UNSEEN | time);
    let (answered, over) = (100 + ANSWERS_FOR, 100 + UNSEEN_FOR);
    let (by_pod, by_peer) = (Some(BEGUN_BY_POD), Some(BEGUN_BY_PEER));
    // (noted before, kind, the pod's port, since when it is under policy, now) -> noted when the pod sends, when it gets nothing
    let cases = [
        // It may be an answer, and the other way round.
        ((None, Datagram, 53, 100, 100), (unseen(100), unseen(100))),
        ((None, Datagram, 32_767, 100, answered), (unseen(answered), unseen(answered))),
        ((None, Datagram, 53, 100, answered + 1), (by_pod, unseen(answered + 1))),
        ((None, Datagram, 53, 100, over), (by_pod, unseen(over))),
        ((None, Datagram, 53, 100, over + 1), (by_pod, None)),
        // Under policy for longer than anybody remembers.
        ((None, Datagram, 53, 0, 5), (by_pod, None)),
        // Chosen by the pod's kernel.
        ((None, Datagram, 32_768, 100, 100), (by_pod, None)),
        // A request for a connection is nobody's answer.
        ((None, Opening, 53, 100, 100), (by_pod, None)),
        // What is known stays.
        ((by_pod, Datagram, 53, 100, 100), (None, None)),
        ((by_peer, Datagram, 53, 100, 900), (None, None)),
        // It goes on, or begins anew after a while.
        ((unseen(100), Datagram, 53, 100, over), (unseen(over), unseen(over))),
        ((unseen(100), Datagram, 53, 100, over + 1), (by_pod, unseen(over + 1))),
        // Clocks of two processors.
        ((unseen(100), Datagram, 53, 100, 99), (unseen(99), unseen(99))),
    ];
    for ((before, kind, port, since, now), expected) in cases {
        let packet = |source: u16, destination: u16| PolicyPacket {
            source: PolicyAddress { family: 4, address: widen(POD) },
            destination: PolicyAddress { family: 4, address: widen(CLIENT) },
            protocol: 17,
            source_port: source.to_be_bytes(),
            destination_port: destination.to_be_bytes(),
            kind,
        };
        let sends = noted(before, &packet(port, 1), &pod(since), || now);
        let gets = noted_refused(before, &packet(1, port), &pod(since), || now);
        assert_eq!((sends, gets), expected, "{before:x?} {kind:?} {port} {since} {now}");
    }
}
