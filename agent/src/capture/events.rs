//! Reads the kernel's flow events and gives them the names of rules.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use agent_common::capture::Reason;
use agent_common::event::{ACCELERATED, BY_SERVER, EventKind, FlowEvent as KernelEvent};
use aya::maps::{MapData, PerCpuArray, RingBuf};
use tokio::io::unix::AsyncFd;

use super::guard::GuardCounters;
use super::kernel_policy::{DropCause, PolicyDrops};
use super::limits::LimitCounters;
use crate::telemetry::{FlowEvent, FlowKind, FlowLog, FlowRule, FlowTier};

/// The kernel's ring, who counts what found no room in it, and who knows the rules' names.
pub struct KernelEvents {
    log: FlowLog,
    names: Names,
}

/// Who knows the names behind the numbers that events have.
pub struct Names {
    /// Of policies.
    pub drops: PolicyDrops,
    /// Of limits.
    pub limits: LimitCounters,
    /// Of EdgeGuards, where something is guarded.
    pub guard: Option<GuardCounters>,
}

impl KernelEvents {
    /// Tells `log` of what comes.
    pub fn new(log: FlowLog, lost: PerCpuArray<MapData, u64>, names: Names) -> Self {
        log.watch_lost(move || lost.get(&0, 0).map_or(0, |values| values.iter().sum()));
        Self { log, names }
    }

    /// Reads events beside the caller, whose work must not make them wait.
    pub fn follow_beside(self, ring: RingBuf<MapData>) {
        tokio::spawn(async move {
            if let Err(error) = self.follow(ring).await {
                tracing::error!(%error, "flow events can no longer be read");
            }
        });
    }

    /// Reads events for as long as the kernel's ring is there.
    async fn follow(self, ring: RingBuf<MapData>) -> io::Result<()> {
        #[expect(unsafe_code, reason = "tokio asks for a promise about the descriptor")]
        // SAFETY: the ring owns its descriptor, which is neither replaced nor closed while it is registered.
        let mut ring = unsafe { AsyncFd::register(ring)? };
        loop {
            let mut ready = ring.readable_mut().await?;
            let events = ready.get_inner_mut();
            while let Some(bytes) = events.next() {
                if let Some(event) = KernelEvent::read(&bytes).and_then(|event| read(&event)) {
                    self.log.tell(self.named(event));
                }
            }
            ready.clear_ready();
        }
    }

    /// With the rule's name instead of its number.
    fn named(&self, (kind, rule, mut event): (EventKind, u32, FlowEvent)) -> FlowEvent {
        let rule = match kind {
            EventKind::Limited => {
                self.names.limits.name(rule).map(|(policy, limit)| FlowRule::Limit(policy, limit))
            }
            EventKind::Refused => Some(match self.names.drops.cause(rule) {
                DropCause::Rule(denied) => {
                    event.reason = denied.reason();
                    FlowRule::Policy(denied)
                }
                DropCause::NoRoom => FlowRule::NoRoom,
                DropCause::HiddenPorts => FlowRule::HiddenPorts,
            }),
            EventKind::Guarded if event.reason == agent_common::guard::Reason::Denied.as_str() => {
                self.names.guard.as_ref().and_then(|guard| guard.rule(rule)).map(FlowRule::Guard)
            }
            _ => None,
        };
        FlowEvent { rule, ..event }
    }
}

/// What an event says, with the number of its rule.
fn read(told: &KernelEvent) -> Option<(EventKind, u32, FlowEvent)> {
    let (kind, reason) = (told.kind()?, told.reason()?);
    let accelerated = told.has(ACCELERATED);
    let (what, tier, verdict) = match kind {
        EventKind::Verdict
            if [Reason::Captured, Reason::CapturedInbound].map(Reason::as_str).contains(&reason) =>
        {
            (FlowKind::Verdict, FlowTier::Kernel, "agent")
        }
        EventKind::Verdict => (FlowKind::Verdict, FlowTier::Kernel, "direct"),
        EventKind::Refused | EventKind::Limited => (FlowKind::Drop, FlowTier::Kernel, "dropped"),
        EventKind::Guarded => (FlowKind::Drop, FlowTier::Guard, "dropped"),
        EventKind::Balanced => (FlowKind::Connect, FlowTier::Kernel, "balanced"),
        EventKind::Opened | EventKind::Closed => {
            let what = if kind == EventKind::Opened { FlowKind::Open } else { FlowKind::Close };
            let verdict = match (accelerated, told.endpoint_port != [0; 2]) {
                (true, _) => "accelerated",
                (false, true) => "balanced",
                (false, false) => "plain",
            };
            (what, FlowTier::Kernel, verdict)
        }
    };
    let ends = (
        end(told.family, told.source, told.source_port),
        end(told.family, told.destination, told.destination_port),
    );
    let is_closed = kind == EventKind::Closed;
    let event = FlowEvent {
        endpoint: (told.endpoint_port != [0; 2]).then(|| end(told.family, told.endpoint, told.endpoint_port)),
        protocol: told.protocol,
        // TCP has seen none of what acceleration hands over.
        bytes: (is_closed && !accelerated).then_some((told.sent_bytes, told.received_bytes)),
        rtt: (told.rtt_us > 0).then(|| Duration::from_micros(told.rtt_us.into())),
        lasted: is_closed.then(|| Duration::from_nanos(told.lasted_ns)),
        by_server: told.has(BY_SERVER),
        interface: told.interface,
        process: told.process,
        ..FlowEvent::new((what, tier), (verdict, reason), ends)
    };
    Some((kind, told.rule, event))
}

fn end(family: u8, address: [u8; 16], port: [u8; 2]) -> SocketAddr {
    let [a, b, c, d, ..] = address;
    let ip = match family {
        4 => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        _ => IpAddr::V6(Ipv6Addr::from(address)),
    };
    SocketAddr::new(ip, u16::from_be_bytes(port))
}

#[cfg(test)]
mod tests {
    use agent_common::balance::ConnectReason;
    use agent_common::event::SocketEnd;

    use super::*;

    fn told(kind: EventKind, reason: u32) -> KernelEvent {
        let mut event = KernelEvent {
            source_port: 40_000u16.to_be_bytes(),
            destination_port: 80u16.to_be_bytes(),
            family: 4,
            kind: kind as u8,
            reason,
            protocol: 6,
            sent_bytes: 5,
            received_bytes: 6,
            rtt_us: 120,
            ..KernelEvent::default()
        };
        event.source[..4].copy_from_slice(&[10, 0, 0, 1]);
        event.destination[..4].copy_from_slice(&[10, 96, 0, 1]);
        event
    }

    fn led(event: KernelEvent) -> KernelEvent {
        let mut event = KernelEvent { endpoint_port: 8080u16.to_be_bytes(), ..event };
        event.endpoint[..4].copy_from_slice(&[10, 0, 0, 2]);
        event
    }

    #[test]
    fn each_kind_says_who_tells_and_what_became_of_it() {
        use FlowKind::{Close, Connect, Drop, Open, Verdict};
        use FlowTier::{Guard, Kernel};
        let balanced = ConnectReason::Affinity as u32;
        let closed = told(EventKind::Closed, SocketEnd::Closed as u32);
        let joined = KernelEvent { flags: ACCELERATED, ..closed };
        // event -> (kind, tier, verdict, reason, whether it has an endpoint, bytes)
        let cases = [
            (
                told(EventKind::Verdict, Reason::Captured as u32),
                (Verdict, Kernel, "agent", "captured", false, None),
            ),
            (
                told(EventKind::Verdict, Reason::NoListener as u32),
                (Verdict, Kernel, "direct", "no_listener", false, None),
            ),
            (told(EventKind::Refused, 0), (Drop, Kernel, "dropped", "rbac_access_denied", false, None)),
            (told(EventKind::Limited, 0), (Drop, Kernel, "dropped", "rate_limited", false, None)),
            (told(EventKind::Guarded, 4), (Drop, Guard, "dropped", "denied", false, None)),
            (led(told(EventKind::Balanced, balanced)), (Connect, Kernel, "balanced", "affinity", true, None)),
            (told(EventKind::Opened, 0), (Open, Kernel, "plain", "established", false, None)),
            (led(told(EventKind::Opened, 0)), (Open, Kernel, "balanced", "established", true, None)),
            (closed, (Close, Kernel, "plain", "closed", false, Some((5, 6)))),
            (joined, (Close, Kernel, "accelerated", "closed", false, None)),
            (
                told(EventKind::Closed, SocketEnd::Reset as u32),
                (Close, Kernel, "plain", "reset", false, Some((5, 6))),
            ),
        ];
        for (told, expected) in cases {
            let (.., event) = read(&told).expect("an event");
            let FlowEvent { kind, tier, verdict, reason, endpoint, bytes, .. } = event;
            assert_eq!((kind, tier, verdict, reason, endpoint.is_some(), bytes), expected, "{told:?}");
        }
        assert_eq!(read(&told(EventKind::Verdict, 999)), None);
    }

    #[test]
    fn ends_of_either_family_are_read() {
        let mut v6 = [0; 16];
        v6[15] = 1;
        assert_eq!(end(6, v6, [0, 80]), "[::1]:80".parse().unwrap());
        assert_eq!(
            end(4, [10, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [1, 0]),
            "10.1.2.3:256".parse().unwrap()
        );
    }
}
