//! Response flags: why a request or connection ended as it did, in Envoy's letters.

use std::fmt;

/// One reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flag {
    /// `UH`: no ready endpoint in the cluster.
    NoHealthyUpstream,
    /// `UF`: connecting to the upstream failed.
    UpstreamConnectFailure,
    /// `UT`: the upstream did not answer in time.
    UpstreamTimeout,
    /// `UC`: the upstream closed or reset the connection.
    UpstreamClosed,
    /// `UPE`: the upstream's answer broke the protocol.
    UpstreamProtocol,
    /// `UR`: the upstream reset the stream.
    UpstreamReset,
    /// `NR`: no route for the request.
    NoRoute,
    /// `NC`: the route's destination does not exist.
    NoCluster,
    /// `DC`: the client closed or reset the connection.
    DownstreamClosed,
    /// `DPE`: the client's bytes broke the protocol.
    DownstreamProtocol,
    /// `UO`: a limit of the upstream's connection pool.
    UpstreamOverflow,
    /// `SI`: a stream or connection sat idle too long.
    IdleTimeout,
    /// `OM`: the agent has as much to do as it takes on.
    Overload,
    /// `DO`: the connection was dropped because the agent was draining.
    Draining,
    /// `UAEX`: a policy refuses the client.
    AccessDenied,
    /// `RL`: a rate limit refuses the request.
    RateLimited,
}

impl Flag {
    /// All flags, in the order in which they are printed.
    pub const ALL: [Self; 16] = [
        Self::NoHealthyUpstream,
        Self::UpstreamConnectFailure,
        Self::UpstreamTimeout,
        Self::UpstreamClosed,
        Self::UpstreamProtocol,
        Self::UpstreamReset,
        Self::NoRoute,
        Self::NoCluster,
        Self::DownstreamClosed,
        Self::DownstreamProtocol,
        Self::UpstreamOverflow,
        Self::IdleTimeout,
        Self::Overload,
        Self::Draining,
        Self::AccessDenied,
        Self::RateLimited,
    ];

    /// The letters.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoHealthyUpstream => "UH",
            Self::UpstreamConnectFailure => "UF",
            Self::UpstreamTimeout => "UT",
            Self::UpstreamClosed => "UC",
            Self::UpstreamProtocol => "UPE",
            Self::UpstreamReset => "UR",
            Self::NoRoute => "NR",
            Self::NoCluster => "NC",
            Self::DownstreamClosed => "DC",
            Self::DownstreamProtocol => "DPE",
            Self::UpstreamOverflow => "UO",
            Self::IdleTimeout => "SI",
            Self::Overload => "OM",
            Self::Draining => "DO",
            Self::AccessDenied => "UAEX",
            Self::RateLimited => "RL",
        }
    }
}

/// A set of reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ResponseFlags(u16);

impl ResponseFlags {
    /// Adds a reason.
    pub fn insert(&mut self, flag: Flag) {
        self.0 |= 1 << flag as u16;
    }

    /// Whether a reason is there.
    pub fn contains(self, flag: Flag) -> bool {
        self.0 & (1 << flag as u16) != 0
    }
}

impl From<Flag> for ResponseFlags {
    fn from(flag: Flag) -> Self {
        let mut flags = Self::default();
        flags.insert(flag);
        flags
    }
}

/// Comma-separated letters; `-` for none.
impl fmt::Display for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        for flag in Flag::ALL.into_iter().filter(|flag| self.contains(*flag)) {
            if !first {
                f.write_str(",")?;
            }
            first = false;
            f.write_str(flag.as_str())?;
        }
        if first { f.write_str("-") } else { Ok(()) }
    }
}
