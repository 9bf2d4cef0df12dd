//! What the kernel's maps hold, asked at the time of the question: what found no room in them is in the documents all the same.

use std::net::{IpAddr, SocketAddr};

use agent_common::guard::Reason as GuardReason;

/// What is held of a connection's ends. `None`: nobody could be asked, so the documents are believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// Whether what is dialled is among the destinations that the programs take.
    pub destination: Option<bool>,
    /// What the guard does with frames of the source, limits aside: `Passed`, `Allowed`, `Denied` or `PushedDown`.
    pub source: Option<GuardReason>,
    /// The same of what is dialled, for its answers.
    pub answers: Option<GuardReason>,
}

impl Held {
    /// Asks for a connection.
    pub fn ask(
        (source, destination): (IpAddr, SocketAddr),
        takes: impl Fn(SocketAddr) -> Option<bool>,
        guards: impl Fn(IpAddr) -> Option<GuardReason>,
    ) -> Self {
        Self { destination: takes(destination), source: guards(source), answers: guards(destination.ip()) }
    }
}
