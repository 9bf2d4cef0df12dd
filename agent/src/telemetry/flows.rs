//! The last flow events, of the kernel programs and of the agent itself, with the names that their ends had at the time.

use std::collections::VecDeque;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agent_common::capture::Reason;
use arc_swap::ArcSwap;

use crate::compile::{Denied, RoutingTable};
use crate::model::{AppProtocol, ObjectName};

/// How many are kept.
const HISTORY_MAX: usize = 8192;

/// How many are copied before another may be kept.
const PIECE: usize = 256;

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowKind {
    /// A pod's first packet: who takes it.
    Verdict,
    /// A packet, request or connection that is refused.
    Drop,
    /// A socket that is led to an endpoint.
    Connect,
    /// A connection that stands.
    Open,
    /// A connection that is over.
    Close,
}

impl FlowKind {
    /// The name that is shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Verdict => "verdict",
            Self::Drop => "drop",
            Self::Connect => "connect",
            Self::Open => "open",
            Self::Close => "close",
        }
    }
}

/// Whose the connection is by a verdict; else who tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowTier {
    /// The XDP guard at the edge.
    Guard,
    /// The programs at pods' interfaces and on sockets.
    Kernel,
    /// The agent, of a connection whose protocol it has not told yet or that it refuses.
    Agent,
    /// The agent, of opaque bytes.
    AgentL4,
    /// The agent, of requests.
    AgentL7,
}

impl FlowTier {
    /// Who takes connections to a port of which this is said.
    pub fn of(protocol: AppProtocol) -> Self {
        match protocol {
            AppProtocol::Http | AppProtocol::Http2 | AppProtocol::Grpc => Self::AgentL7,
            AppProtocol::Tcp => Self::AgentL4,
            AppProtocol::Undeclared => Self::Agent,
        }
    }

    /// The name that is shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Guard => "guard",
            Self::Kernel => "kernel",
            Self::Agent => "agent",
            Self::AgentL4 => "agent L4",
            Self::AgentL7 => "agent L7",
        }
    }
}

/// What decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FlowRule {
    /// An AuthorizationPolicy.
    Policy(Denied),
    /// A pod is closed to everybody, as its verdicts found no room in the kernel's maps.
    NoRoom,
    /// The guard of a pod: the packet hides its ports.
    HiddenPorts,
    /// An EdgeGuard, by its name.
    Guard(String),
    /// A limit of a RateLimit, by both names.
    Limit(ObjectName, Arc<str>),
}

/// One event, as its teller knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowEvent {
    /// What it is about.
    pub kind: FlowKind,
    /// Who tells.
    pub tier: FlowTier,
    /// What becomes of the connection: `agent`, `direct`, `balanced`, `dropped`, `refused`, `accelerated`, `plain`.
    pub verdict: &'static str,
    /// Why, as metrics and access logs name it.
    pub reason: &'static str,
    /// Who dialled; port 0 where it is not known.
    pub source: SocketAddr,
    /// What was dialled.
    pub destination: SocketAddr,
    /// The endpoint that it leads to.
    pub endpoint: Option<SocketAddr>,
    /// The IP protocol's number.
    pub protocol: u8,
    /// The rule that decided.
    pub rule: Option<FlowRule>,
    /// Bytes from the dialling end, and back; `None` where nobody has counted them.
    pub bytes: Option<(u64, u64)>,
    /// The round-trip time.
    pub rtt: Option<Duration>,
    /// How long the connection lasted.
    pub lasted: Option<Duration>,
    /// Whether the dialled end tells.
    pub by_server: bool,
    /// The index of the interface.
    pub interface: u32,
    /// The process that dialled, where no address is known of it.
    pub process: u32,
}

impl FlowEvent {
    /// An event that says no more than what became of whose connection to where, by TCP.
    pub fn new(
        (kind, tier): (FlowKind, FlowTier),
        (verdict, reason): (&'static str, &'static str),
        (source, destination): (SocketAddr, SocketAddr),
    ) -> Self {
        Self {
            kind,
            tier,
            verdict,
            reason,
            source,
            destination,
            endpoint: None,
            protocol: 6,
            rule: None,
            bytes: None,
            rtt: None,
            lasted: None,
            by_server: false,
            interface: 0,
            process: 0,
        }
    }
}

/// An event that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// Its number; they rise by one.
    pub number: u64,
    /// When the agent heard of it.
    pub at: SystemTime,
    /// What was told.
    pub event: FlowEvent,
    /// The source's pod.
    pub source_pod: Option<ObjectName>,
    /// The service or pod that was dialled.
    pub destination_name: Option<ObjectName>,
    /// The endpoint's pod.
    pub endpoint_pod: Option<ObjectName>,
}

/// Tells how many events could not be told.
type Lost = Box<dyn Fn() -> u64 + Send + Sync>;

/// Takes events from all threads, and gives the last ones.
#[derive(Clone, Default)]
pub struct FlowLog(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// Milliseconds since 1970.
    began_ms: u64,
    tables: Arc<ArcSwap<RoutingTable>>,
    history: Mutex<History>,
    lost: OnceLock<Lost>,
    /// Events of the agent's own that were left out.
    left_out: AtomicU64,
}

#[derive(Debug, Default)]
struct History {
    next: u64,
    flows: VecDeque<Flow>,
}

impl FlowLog {
    /// An empty one; names come from the table in force when an event is told.
    pub fn new(tables: Arc<ArcSwap<RoutingTable>>) -> Self {
        let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let began_ms = u64::try_from(began).unwrap_or(u64::MAX);
        Self(Arc::new(Shared { began_ms, tables, ..Shared::default() }))
    }

    /// When it was empty; tells one agent's events from those of the next.
    pub fn began(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.0.began_ms)
    }

    /// Keeps an event. Called for connections and drops, never for a request that is served.
    pub fn tell(&self, event: FlowEvent) {
        let at = SystemTime::now();
        // Dual-stack listeners see IPv4 clients as IPv6 ones in disguise.
        let canonical = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
        let event = FlowEvent {
            source: canonical(event.source),
            destination: canonical(event.destination),
            endpoint: event.endpoint.map(canonical),
            ..event
        };
        let table = self.0.tables.load();
        let pod = |ip: IpAddr| table.workloads.get(&ip).map(|pod| pod.name.clone());
        let to = event.destination;
        let frontend = table.frontends.get(&to);
        let service = || {
            let stream = frontend.map(|frontend| &frontend.service);
            stream.or_else(|| table.datagrams.get(&to).map(|frontend| &frontend.service)).cloned()
        };
        let taken = event.kind == FlowKind::Verdict && event.verdict == "agent";
        let tier = match frontend {
            _ if !taken => event.tier,
            // The agent takes it for the sake of its requests.
            _ if event.reason == Reason::CapturedInbound.as_str() => FlowTier::AgentL7,
            Some(frontend) => FlowTier::of(frontend.protocol),
            None => event.tier,
        };
        let flow = Flow {
            number: 0,
            at,
            source_pod: pod(event.source.ip()),
            destination_name: service().or_else(|| pod(to.ip())),
            endpoint_pod: event.endpoint.and_then(|endpoint| pod(endpoint.ip())),
            event: FlowEvent { tier, ..event },
        };
        // The oldest is freed after the lock.
        let _oldest = self.history().push(flow);
    }

    /// The flows from this number on that are still kept, and the number of the next one.
    ///
    /// They are copied a piece at a time, so that no worker waits for more than that to tell of a connection.
    pub fn since(&self, number: u64) -> (Vec<Flow>, u64) {
        let mut copied = Vec::new();
        let (mut wanted, end) = (number, self.history().next);
        while wanted < end {
            copied.reserve(PIECE);
            wanted = self.history().copy(wanted, end, &mut copied);
        }
        (copied, end)
    }

    /// Who counts the events that could not be told. Only the first is taken.
    pub fn watch_lost(&self, lost: impl Fn() -> u64 + Send + Sync + 'static) {
        let _ = self.0.lost.set(Box::new(lost));
    }

    /// Counts an event that is not told, as there are too many of its kind.
    pub fn leave_out(&self) {
        self.0.left_out.fetch_add(1, Ordering::Relaxed);
    }

    /// Events that could not be told until now.
    pub fn lost(&self) -> u64 {
        self.0.lost.get().map_or(0, |lost| lost()) + self.0.left_out.load(Ordering::Relaxed)
    }

    fn history(&self) -> std::sync::MutexGuard<'_, History> {
        self.0.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for FlowLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowLog").field("next", &self.history().next).finish_non_exhaustive()
    }
}

impl History {
    fn push(&mut self, flow: Flow) -> Option<Flow> {
        if self.flows.capacity() == 0 {
            // Never again for an event.
            self.flows.reserve_exact(HISTORY_MAX);
        }
        let oldest = if self.flows.len() == HISTORY_MAX { self.flows.pop_front() } else { None };
        self.flows.push_back(Flow { number: self.next, ..flow });
        self.next += 1;
        oldest
    }

    /// Copies a piece of the flows from a number to another; gives the number that the next piece begins with.
    fn copy(&self, number: u64, end: u64, to: &mut Vec<Flow>) -> u64 {
        let known = self.flows.partition_point(|flow| flow.number < number);
        let piece = self.flows.range(known..).take_while(|flow| flow.number < end).take(PIECE);
        let before = to.len();
        to.extend(piece.cloned());
        to[before..].last().map_or(end, |flow| flow.number + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(port: u16) -> FlowEvent {
        FlowEvent::new(
            (FlowKind::Verdict, FlowTier::Kernel),
            ("direct", "no_route"),
            (SocketAddr::new([10, 0, 0, 1].into(), port), "10.0.0.2:80".parse().unwrap()),
        )
    }

    #[test]
    fn the_last_flows_are_kept_and_nobody_sees_one_twice() {
        let log = FlowLog::new(Arc::default());
        let total = u16::try_from(HISTORY_MAX + 10).unwrap();
        (0..total).for_each(|port| log.tell(event(port)));
        let (flows, next) = log.since(0);
        assert_eq!((flows.len(), flows[0].number, next), (HISTORY_MAX, 10, u64::from(total)));
        assert_eq!(flows[0].event.source, "10.0.0.1:10".parse().unwrap());
        assert_eq!(log.since(next), (Vec::new(), next));
        assert_eq!(log.since(next - 2).0.len(), 2);
        assert_eq!(log.since(next + 5).0.len(), 0);
    }

    #[test]
    fn ends_are_told_as_what_they_are() {
        let log = FlowLog::new(Arc::default());
        let disguised = |text: &str| text.parse::<SocketAddr>().expect(text);
        log.tell(FlowEvent {
            endpoint: Some(disguised("[::ffff:10.0.0.3]:8080")),
            ..FlowEvent::new(
                (FlowKind::Verdict, FlowTier::Kernel),
                ("agent", "captured_inbound"),
                (disguised("[::ffff:10.0.0.1]:1"), disguised("[::ffff:10.0.0.2]:80")),
            )
        });
        let (flows, _) = log.since(0);
        let event = &flows[0].event;
        let ends = [event.source, event.destination, event.endpoint.expect("an endpoint")];
        assert_eq!(ends.map(|end| end.to_string()), ["10.0.0.1:1", "10.0.0.2:80", "10.0.0.3:8080"]);
        assert_eq!(event.tier, FlowTier::AgentL7);
    }

    #[test]
    fn what_is_lost_is_told_by_who_counts_it() {
        let log = FlowLog::new(Arc::default());
        assert_eq!(log.lost(), 0);
        log.watch_lost(|| 7);
        log.watch_lost(|| 8);
        assert_eq!(log.lost(), 7);
        log.leave_out();
        assert_eq!(log.lost(), 8);
    }
}
