//! The socket rows: round trips, streams, HTTP and `connect()` between two pods of one node, each beside the same without what
//! is of interest. After every measurement the agent's counters must say that the traffic took the way that the row names.

use anyhow::{Context, Result, ensure};

use super::ground::{Ground, Presence, Target, Way};
use super::{Goal, Measure, Row, Setup};

const REDIRECTED: &str = "sluice_acceleration_messages_total{reason=\"redirected\"}";
/// Likewise: those that went past the agent.
const BRIDGED: &str = "sluice_acceleration_messages_total{reason=\"bridged\"}";
const BALANCED: &str = "sluice_connect_decisions_total{reason=\"balanced\"}";
const CAPTURED: &str = "sluice_connect_decisions_total{reason=\"agent_l7\"}";
/// Calls of one measurement of `connect()`.
const CALLS: &str = "4000";
/// Each way, in a bulk transfer.
const BULK_BYTES: u64 = 10 << 30;

/// What the client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    /// 64 bytes there and back, as often as it goes.
    Ping,
    /// Writes of 64 KiB.
    Stream,
    /// wrk with so many connections.
    Wrk(&'static str),
    /// Calls of `connect()`.
    Connect,
    /// A transfer of which every byte is checked.
    Bulk,
}

/// One of the two that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Case {
    presence: Presence,
    way: Way,
    /// The server has the client's core, and the other one is the agent's.
    beside: bool,
}

const PLAIN_POD: Case = Case { presence: Presence::Absent, way: Way::Pod, beside: false };
const FAST_POD: Case = Case { presence: Presence::Accelerating, way: Way::Pod, beside: false };
const PLAIN_BESIDE: Case = Case { beside: true, ..PLAIN_POD };
const FAST_BESIDE: Case = Case { beside: true, ..FAST_POD };
const AGENT: Case = Case { presence: Presence::Plain, way: Way::Agent, beside: true };
const FAST_AGENT: Case = Case { presence: Presence::Accelerating, way: Way::Agent, beside: true };
const DIRECT: Case = Case { presence: Presence::Plain, way: Way::Pod, beside: false };
const BALANCE: Case = Case { presence: Presence::Plain, way: Way::Balanced, beside: false };

const VETH: (&str, &str) = ("accelerated", "plain veth");
const LEGS: (&str, &str) = ("through the agent, accelerated", "through the agent");
const DETOUR: (&str, &str) = ("through the agent, accelerated", "plain veth");

/// The rows that a run takes.
pub const ROWS: &[Row] = &[
    row("rtt-pod", "trips/s", VETH, Goal::AtLeast(1.4), |s| pair(s, Load::Ping, FAST_POD, PLAIN_POD)),
    row("rtt-l4", "trips/s", LEGS, Goal::Shown, |s| pair(s, Load::Ping, FAST_AGENT, AGENT)),
    row("rtt-beside", "trips/s", VETH, Goal::Shown, |s| pair(s, Load::Ping, FAST_BESIDE, PLAIN_BESIDE)),
    row("rtt-detour", "trips/s", DETOUR, Goal::Shown, |s| pair(s, Load::Ping, FAST_AGENT, PLAIN_BESIDE)),
    row("stream-pod", "MB/s", VETH, Goal::AtLeast(1.15), |s| pair(s, Load::Stream, FAST_POD, PLAIN_POD)),
    row("stream-l4", "MB/s", LEGS, Goal::Shown, |s| pair(s, Load::Stream, FAST_AGENT, AGENT)),
    row("http-pod-32", "req/s", VETH, Goal::AtLeast(1.6), |s| pair(s, Load::Wrk("32"), FAST_POD, PLAIN_POD)),
    row("http-pod-1", "req/s", VETH, Goal::Shown, |s| pair(s, Load::Wrk("1"), FAST_POD, PLAIN_POD)),
    row("http-l7-32", "req/s", LEGS, Goal::AtLeast(1.3), |s| pair(s, Load::Wrk("32"), FAST_AGENT, AGENT)),
    row("http-l7-1", "req/s", LEGS, Goal::Shown, |s| pair(s, Load::Wrk("1"), FAST_AGENT, AGENT)),
    row("connect-balanced", "us", ("ClusterIP, balanced", "the endpoint itself"), Goal::AtMost(1.1), |s| {
        pair(s, Load::Connect, BALANCE, DIRECT)
    }),
    row("connect-captured", "us", ("ClusterIP, captured", "the endpoint itself"), Goal::Shown, |s| {
        pair(s, Load::Connect, AGENT, DIRECT)
    }),
    row("connect-joined", "us", ("with acceleration", "plain veth"), Goal::Shown, |s| {
        pair(s, Load::Connect, FAST_POD, PLAIN_POD)
    }),
];

/// The rows that are only run when they are asked for: 10 GiB each way, every byte checked.
pub const BULK_ROWS: &[Row] = &[
    row("bulk-pod", "MB/s", VETH, Goal::Shown, |s| pair(s, Load::Bulk, FAST_POD, PLAIN_POD)),
    row("bulk-l4", "MB/s", LEGS, Goal::Shown, |s| pair(s, Load::Bulk, FAST_AGENT, AGENT)),
];

type Make = fn(&Setup) -> Result<Box<dyn Measure>>;

const fn row(
    name: &'static str,
    unit: &'static str,
    compared: (&'static str, &'static str),
    goal: Goal,
    make: Make,
) -> Row {
    Row { name, unit, compared, goal, make }
}

/// One side of a pair, laid.
struct Side {
    case: Case,
    load: Load,
    seconds: u32,
    ground: Ground,
}

struct Pair {
    subject: Side,
    baseline: Side,
}

fn pair(setup: &Setup, load: Load, subject: Case, baseline: Case) -> Result<Box<dyn Measure>> {
    let lay = |name, case: Case| -> Result<Side> {
        let ground = Ground::lay(setup, name, case.presence, case.beside)?;
        Ok(Side { case, load, seconds: setup.seconds, ground })
    };
    Ok(Box::new(Pair { subject: lay("subject", subject)?, baseline: lay("baseline", baseline)? }))
}

impl Measure for Pair {
    fn baseline(&mut self) -> Result<f64> {
        self.baseline.take()
    }

    fn subject(&mut self) -> Result<f64> {
        self.subject.take()
    }
}

impl Side {
    /// One value, and the proof that it is of the way that the row names.
    fn take(&self) -> Result<f64> {
        let counts = || -> Result<[f64; 3]> {
            let handed_over = self.ground.count(REDIRECTED)? + self.ground.count(BRIDGED)?;
            Ok([handed_over, self.ground.count(BALANCED)?, self.ground.count(CAPTURED)?])
        };
        let before = counts()?;
        let value = self.run()?;
        let after = counts()?;
        let grown = [0, 1, 2].map(|at| after[at] - before[at]);
        self.prove(grown).with_context(|| format!("{:?} {:?}", self.case, self.load))?;
        Ok(value)
    }

    fn prove(&self, [handed_over, balanced, captured]: [f64; 3]) -> Result<()> {
        // A connection that sends nothing has nothing to hand over.
        let speaks = self.load != Load::Connect;
        let accelerates = self.case.presence == Presence::Accelerating && speaks;
        ensure!((handed_over > 100.0) == accelerates, "{handed_over} messages went past TCP");
        ensure!((balanced > 0.5) == (self.case.way == Way::Balanced), "{balanced} connects were balanced");
        ensure!((captured > 0.5) == (self.case.way == Way::Agent), "{captured} connects went to the agent");
        Ok(())
    }

    fn run(&self) -> Result<f64> {
        let target = if matches!(self.load, Load::Wrk(_)) { Target::Nginx } else { Target::Peer };
        let to = self.ground.address(target, self.case.way)?.to_string();
        let seconds = self.seconds.to_string();
        match self.load {
            Load::Wrk(connections) => {
                let words = ["wrk", "-t1", "-c", connections, "-d", &seconds, &format!("http://{to}/")]
                    .map(str::to_owned);
                Ok(super::super::load::read_wrk(&self.ground.client(&words)?)?.per_second)
            }
            Load::Ping => self.peer(["ping", &to, &seconds], 1.0),
            Load::Stream => self.peer(["stream", &to, &seconds], 1e6),
            Load::Bulk => self.peer(["bulk", &to, &BULK_BYTES.to_string()], 1e6),
            Load::Connect => self.peer(["connect", &to, CALLS], 1e3),
        }
    }

    /// What a client of `peer.rs` prints, in so many of its units.
    fn peer(&self, words: [&str; 3], unit: f64) -> Result<f64> {
        let own = std::env::current_exe().context("finding the running binary")?;
        let mut argv = vec![own.display().to_string(), "bench".to_owned(), "peer".to_owned()];
        argv.extend(words.map(str::to_owned));
        let said = self.ground.client(&argv)?;
        let number: f64 = said.trim().parse().with_context(|| format!("{words:?} said {said:?}"))?;
        Ok(number / unit)
    }
}
