//! Bridges: a sender's messages go past the agent, straight to the far end of the agent's other connection.
//!
//! A captured connection that the agent only copies has two legs, each of them joined (see [`crate::acceleration`]):
//!
//! ```text
//! sender ══▶ the agent's receiving end ── copies ──▶ its sending end ══▶ far end
//!    └──────────────────────────── bridge ─────────────────────────────────▲
//! ```
//!
//! Each direction has a bridge of its own, and that one way to go:
//!
//! ```text
//!            all that was handed to the agent has been forwarded,
//!            and the agent's sending end is joined
//! RELAYED ────────────────────────────────────────────────────────▶ BRIDGED: messages go to the far end
//!                                                                      │
//!            the far end is another one or gone, or the relay is over  │
//!    OVER ◀────────────────────────────────────────────────────────────┘
//!    messages go to the agent, as before the bridge
//! ```
//!
//! **No byte is overtaken.** The sender's lock makes its messages come one after the other, and `handed` counts them before they
//! are on their way. The agent publishes in `forwarded` how many of the sender's bytes its sending end has handed over, after the
//! call that did it has returned: by then they are in the far end's queue. So where the two are equal, and the sender has never
//! sent by TCP (it is joined, which is decided before its first byte), nothing is in the agent's queue nor in its buffer. And
//! where the agent's sending end is joined then, all of its bytes went into the same queue as the bridge's do, in front of them.
//! An end that was led back to TCP is not joined: what it sent may wait in TCP's queue, which is read after the other, so there
//! no bridge begins. The way back is safe at any time: all that went over the bridge is in the far end's queue, and what the
//! agent is handed afterwards comes behind it, by handing over or by TCP.
//!
//! **No byte goes astray.** A connection is known by its birth, not by its addresses alone, which another one may have a moment
//! later: the bridge holds for the connection for which it was declared, and the far end's birth is looked at after the kernel has
//! found its socket.

use crate::acceleration::EndKey;

/// Directions that can have a bridge at once.
pub const BRIDGES_MAX: u32 = 32_768;

/// In [`BridgeValue::forwarded`]: the bridge is not in force. No sender hands over so much.
pub const CUT: u64 = u64::MAX;

/// In [`BridgeValue::state`]: messages go to the agent, until it has forwarded all of them.
pub const RELAYED: u64 = 0;
/// Messages go to the far end.
pub const BRIDGED: u64 = 1;
/// Messages go to the agent for good.
pub const OVER: u64 = 2;

/// One direction, in memory that the agent and the programs share. Each field has one writer.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BridgeValue {
    /// The end that messages go to. Written by the agent while the bridge is not in force, as are the next two.
    pub far: EndKey,
    /// The birth of the sender's connection.
    pub born: u64,
    /// The birth of the far end's connection.
    pub far_born: u64,
    /// How many of the sender's bytes the agent has handed over to the far end, or [`CUT`]. Written by the agent.
    pub forwarded: u64,
    /// Where messages go. Written by the program under the sender's lock.
    pub state: u64,
    /// Bytes that went over the bridge. Written by the program as well.
    pub moved: u64,
}

const _: () = assert!(size_of::<BridgeValue>() == 88 && align_of::<BridgeValue>() == 8);

/// Where a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// To the agent.
    Relay,
    /// Over the bridge from now on, if the agent's sending end is joined; else to the agent.
    Switch,
    /// Over the bridge.
    Straight,
    /// To the agent from now on.
    End,
}

/// Where a message goes of a joined sender that has handed over so much before it.
#[inline(always)]
#[must_use]
pub const fn route(state: u64, forwarded: u64, handed: u64) -> Route {
    match state {
        RELAYED if forwarded == handed => Route::Switch,
        BRIDGED if forwarded == CUT => Route::End,
        BRIDGED => Route::Straight,
        _ => Route::Relay,
    }
}

/// The birth of a connection whose ends are joined by this CPU at this time of the kernel's clock: no two are the same.
#[inline(always)]
#[must_use]
pub const fn birth(now_ns: u64, cpu: u32) -> u64 {
    const CPUS: u64 = 1024;
    now_ns.wrapping_mul(CPUS).wrapping_add(cpu as u64 % CPUS)
}

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya's marker for types that are plain bytes")]
mod pod {
    // SAFETY: repr(C), integers only, padding spelled out, every bit pattern valid.
    unsafe impl aya::Pod for super::BridgeValue {}
}

#[cfg(test)]
mod tests {
    use std::collections::{HashSet, VecDeque};

    use super::*;

    #[test]
    fn messages_go_where_the_bridge_stands() {
        // (state, forwarded, handed) -> where
        let cases = [
            ((RELAYED, 0, 0), Route::Switch),
            ((RELAYED, 7, 7), Route::Switch),
            ((RELAYED, 7, 8), Route::Relay),
            ((RELAYED, 8, 7), Route::Relay),
            ((RELAYED, CUT, 0), Route::Relay),
            ((BRIDGED, 7, 7), Route::Straight),
            ((BRIDGED, 7, 99), Route::Straight),
            ((BRIDGED, CUT, 99), Route::End),
            ((OVER, 7, 7), Route::Relay),
            ((OVER, CUT, 7), Route::Relay),
            ((3, 7, 7), Route::Relay),
        ];
        for ((state, forwarded, handed), expected) in cases {
            assert_eq!(route(state, forwarded, handed), expected, "{state} {forwarded} {handed}");
        }
    }

    #[test]
    fn births_differ_by_time_and_cpu() {
        let births = [birth(1, 0), birth(1, 1), birth(2, 0), birth(2, 1023), birth(3, 0)];
        assert_eq!(births.iter().collect::<HashSet<_>>().len(), births.len());
    }

    /// A receiver's bytes: what was handed over is read before what came by TCP.
    #[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
    struct Queue {
        handed: VecDeque<u8>,
        tcp: VecDeque<u8>,
    }

    impl Queue {
        fn read(&mut self) -> Option<u8> {
            self.handed.pop_front().or_else(|| self.tcp.pop_front())
        }
    }

    /// Where a message that has met its program is put.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    enum To {
        Agent,
        AgentByTcp,
        Far,
        FarByTcp,
    }

    /// One direction through the agent. Messages are numbered, and one byte long.
    #[derive(Debug, Clone, PartialEq, Eq, Hash)]
    struct Direction {
        declared: bool,
        joined: bool,
        handed: u64,
        forwarded: u64,
        state: u64,
        sender_joined: bool,
        sends: u8,
        sending: Option<(u8, To)>,
        at_agent: Queue,
        /// What the agent has read, then what its sending end is handing over.
        read: Option<u8>,
        writing: Option<(u8, To)>,
        written: u64,
        at_far: Queue,
        received: Vec<u8>,
    }

    const MESSAGES: u8 = 5;

    #[derive(Debug, Clone, Copy)]
    enum Event {
        Send,
        Sent,
        Declare,
        AgentReads,
        AgentWrites,
        AgentWrote,
        FarReads,
        SenderLedBack,
        AgentLedBack,
        FarSeemsAnother,
        Cut,
    }

    const EVENTS: [Event; 11] = [
        Event::Send,
        Event::Sent,
        Event::Declare,
        Event::AgentReads,
        Event::AgentWrites,
        Event::AgentWrote,
        Event::FarReads,
        Event::SenderLedBack,
        Event::AgentLedBack,
        Event::FarSeemsAnother,
        Event::Cut,
    ];

    impl Direction {
        fn new() -> Self {
            Self {
                declared: false,
                joined: true,
                handed: 0,
                forwarded: CUT,
                state: RELAYED,
                sender_joined: true,
                sends: 0,
                sending: None,
                at_agent: Queue::default(),
                read: None,
                writing: None,
                written: 0,
                at_far: Queue::default(),
                received: Vec::new(),
            }
        }

        /// What the program of the sender does, under the sender's lock. `another`: the far end is not the one that it was.
        fn verdict(&mut self, another: bool) -> To {
            if !self.sender_joined {
                return To::AgentByTcp;
            }
            let route = route(self.state, self.forwarded, self.handed);
            self.handed += 1;
            match route {
                Route::Switch if self.joined && !another => {
                    self.state = BRIDGED;
                    To::Far
                }
                Route::Straight if !another => To::Far,
                Route::Straight | Route::End => {
                    self.state = OVER;
                    To::Agent
                }
                Route::Switch | Route::Relay => To::Agent,
            }
        }

        fn put(&mut self, message: u8, to: To) {
            match to {
                To::Agent => self.at_agent.handed.push_back(message),
                To::AgentByTcp => self.at_agent.tcp.push_back(message),
                To::Far => self.at_far.handed.push_back(message),
                To::FarByTcp => self.at_far.tcp.push_back(message),
            }
        }

        /// What comes of an event; `None`: it can't happen now.
        fn after(&self, event: Event) -> Option<Self> {
            let mut next = self.clone();
            match event {
                Event::Send | Event::FarSeemsAnother if self.sending.is_none() && self.sends < MESSAGES => {
                    next.sends += 1;
                    let to = next.verdict(matches!(event, Event::FarSeemsAnother));
                    next.sending = Some((self.sends, to));
                }
                Event::Sent => {
                    let (message, to) = next.sending.take()?;
                    next.put(message, to);
                }
                Event::Declare if !self.declared => {
                    (next.declared, next.forwarded) = (true, self.written);
                }
                Event::AgentReads if self.read.is_none() && self.writing.is_none() => {
                    next.read = Some(next.at_agent.read()?);
                }
                Event::AgentWrites => {
                    next.writing =
                        Some((next.read.take()?, if self.joined { To::Far } else { To::FarByTcp }));
                }
                Event::AgentWrote => {
                    let (message, to) = next.writing.take()?;
                    next.put(message, to);
                    next.written += 1;
                    if next.forwarded != CUT {
                        next.forwarded = next.written;
                    }
                }
                Event::FarReads => next.received.push(next.at_far.read()?),
                Event::SenderLedBack if self.sender_joined => next.sender_joined = false,
                Event::AgentLedBack if self.joined => next.joined = false,
                // The relay goes on here, so that what was sent is missed if it is lost.
                Event::Cut if self.forwarded != CUT => next.forwarded = CUT,
                _ => return None,
            }
            Some(next)
        }
    }

    /// Whatever happens in whatever order, the far end reads all messages, each once, in their order.
    #[test]
    fn no_order_of_events_changes_the_order_of_bytes() {
        let (mut seen, mut open) = (HashSet::new(), vec![Direction::new()]);
        let (mut bridged, mut returned) = (0, 0);
        while let Some(direction) = open.pop() {
            if !seen.insert(direction.clone()) {
                continue;
            }
            let expected: Vec<u8> = (0..).take(direction.received.len()).collect();
            assert_eq!(direction.received, expected, "{direction:?}");
            let steps = EVENTS.into_iter().filter_map(|event| direction.after(event));
            let before = open.len();
            open.extend(steps);
            let at_rest = direction.sends == MESSAGES
                && direction.sending.is_none()
                && (direction.read, direction.writing) == (None, None)
                && direction.at_agent == Queue::default()
                && direction.at_far == Queue::default();
            if at_rest {
                assert_eq!(direction.received.len(), usize::from(MESSAGES), "{direction:?}");
                bridged += usize::from(direction.state == BRIDGED);
                returned += usize::from(direction.state == OVER);
            } else {
                assert!(open.len() > before, "stuck at {direction:?}");
            }
        }
        assert!(bridged > 0 && returned > 0, "{bridged} were bridged in the end, {returned} returned");
    }
}
