//! Events as bytes, their names, how many are told, and TCP's counters.

use proptest::prelude::*;

use super::*;

fn bytes(kind: u8, family: u8, reason: u32) -> [u8; 104] {
    let mut bytes = [0u8; 104];
    bytes[..4].copy_from_slice(&[10, 0, 0, 1]);
    bytes[16..20].copy_from_slice(&[10, 96, 0, 1]);
    bytes[32..36].copy_from_slice(&[10, 0, 0, 2]);
    bytes[48..54].copy_from_slice(&[0x9c, 0x40, 0, 80, 0x1f, 0x90]);
    bytes[54] = family;
    bytes[55] = kind;
    bytes[56..64].copy_from_slice(&1_000_000_000_000u64.to_ne_bytes());
    bytes[64..72].copy_from_slice(&7u64.to_ne_bytes());
    for (at, number) in [(80, 3), (84, reason), (88, 5), (92, 120), (96, 4711u32)] {
        bytes[at..at + 4].copy_from_slice(&number.to_ne_bytes());
    }
    bytes[72..80].copy_from_slice(&9u64.to_ne_bytes());
    bytes[100..102].copy_from_slice(&[6, ACCELERATED]);
    bytes
}

#[test]
fn an_event_reads_as_it_was_written() {
    let event =
        FlowEvent::read(&bytes(EventKind::Verdict as u8, 4, Reason::NoRoute as u32)).expect("an event");
    assert_eq!((&event.source[..4], &event.destination[..4]), (&[10, 0, 0, 1][..], &[10, 96, 0, 1][..]));
    assert_eq!((&event.endpoint[..4], event.endpoint_port), (&[10, 0, 0, 2][..], [0x1f, 0x90]));
    assert_eq!((event.source_port, event.destination_port), ([0x9c, 0x40], [0, 80]));
    assert_eq!((event.sent_bytes, event.received_bytes, event.lasted_ns), (1_000_000_000_000, 7, 9));
    assert_eq!((event.interface, event.rule, event.rtt_us, event.process), (3, 5, 120, 4711));
    assert_eq!((event.protocol, event.family, event.reason()), (6, 4, Some("no_route")));
    assert!(event.has(ACCELERATED) && !event.has(BY_SERVER));
}

#[test]
fn what_is_no_event_is_refused() {
    let good = bytes(EventKind::Verdict as u8, 4, 0);
    assert!(FlowEvent::read(&good).is_some());
    assert_eq!(FlowEvent::read(&bytes(0, 5, 0)), None, "a family");
    assert_eq!(FlowEvent::read(&bytes(7, 4, 0)), None, "a kind");
    assert_eq!(FlowEvent::read(&good[..103]), None, "too short");
    assert_eq!(FlowEvent::read(&[]), None, "nothing");
}

#[test]
fn each_kind_has_its_own_reasons() {
    // (kind, number, its name)
    let cases = [
        (EventKind::Verdict, Reason::Captured as u32, Some("captured")),
        (EventKind::Verdict, 9999, None),
        (EventKind::Refused, 9999, Some("rbac_access_denied")),
        (EventKind::Guarded, guard::Reason::PushedDown as u32, Some("pushed_down")),
        (EventKind::Guarded, guard::Reason::RateLimited as u32, Some("rate_limited")),
        (EventKind::Guarded, 19, None),
        (EventKind::Balanced, ConnectReason::Affinity as u32, Some("affinity")),
        (EventKind::Balanced, 9, None),
        (EventKind::Opened, 1, Some("established")),
        (EventKind::Closed, 0, Some("closed")),
        (EventKind::Limited, 9999, Some("rate_limited")),
        (EventKind::Closed, 1, Some("reset")),
        (EventKind::Closed, 2, None),
    ];
    for (kind, number, expected) in cases {
        let event = FlowEvent { kind: kind as u8, reason: number, ..FlowEvent::default() };
        assert_eq!(event.reason(), expected, "{kind:?} {number}");
    }
}

#[test]
fn under_pressure_one_of_some_is_told() {
    let count = |unread| (0..160).filter(|number| told(unread, *number)).count();
    assert_eq!((count(0), count(PRESSURE_BYTES - 1), count(PRESSURE_BYTES)), (160, 160, 10));
}

#[test]
fn counters_are_read_without_what_is_no_byte() {
    use SocketEnd::{Closed as Ended, Reset};
    // (last state, dialled, acked, received, received when this end's FIN was acknowledged) -> (end, sent, received)
    let cases = [
        ((LAST_ACK, 1, 102, 51, 0), (Ended, 100, 50)),
        ((LAST_ACK, 0, 101, 51, 0), (Ended, 100, 50)),
        ((CLOSING, 0, 101, 51, 0), (Ended, 100, 50)),
        // This end closed first; the other one's FIN came, with and without bytes before it, or was not waited for.
        ((FIN_WAIT2, 1, 102, 51, 50), (Ended, 100, 50)),
        ((FIN_WAIT2, 1, 102, 51, 20), (Ended, 100, 50)),
        ((FIN_WAIT2, 1, 102, 50, 50), (Ended, 100, 50)),
        // Established, and cut.
        ((1, 1, 101, 50, 0), (Reset, 100, 50)),
        ((CLOSE_WAIT, 0, 100, 51, 0), (Reset, 100, 50)),
        ((1, 1, 0, 0, 0), (Reset, 0, 0)),
    ];
    for ((state, dialled, acked, received, received_at_fin), expected) in cases {
        let socket = OpenSocket { since_ns: 0, received_at_fin, dialled, padding: 0 };
        let found = closed(&socket, state, acked, received);
        assert_eq!((found.end, found.sent, found.received), expected, "{state} {dialled} {received_at_fin}");
    }
}

proptest! {
    /// However drops come, no window tells of more than its share, and one that comes alone is always told.
    #[test]
    fn a_flood_of_drops_has_its_budget(gaps in proptest::collection::vec(0u64..1 << 22, 1..2000), start in any::<u64>()) {
        let mut now = start >> 8;
        let mut budget = DropBudget { window: u64::MAX, told: DROPS_PER_WINDOW };
        let mut windows = std::collections::BTreeMap::<u64, (u64, u64)>::new();
        for gap in gaps {
            now += gap;
            let (next, told) = spend(budget, now);
            budget = next;
            let seen = windows.entry(now >> DROP_WINDOW_BITS).or_default();
            seen.0 += 1;
            seen.1 += u64::from(told);
        }
        for (window, (came, told)) in windows {
            prop_assert!(told == came.min(DROPS_PER_WINDOW), "{window}: {told} of {came}");
        }
    }
}
