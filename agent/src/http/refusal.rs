//! Why a message is not taken.

/// A message that is refused: the status it earns and the reason that logs and metrics carry.
///
/// For a response the status has no meaning: every refused response is a bad gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The status that the client is answered with.
    pub status: u16,
    /// The reason code, e.g. `header_obs_fold`.
    pub reason: &'static str,
}

impl Refusal {
    /// A plain 400.
    pub const fn bad(reason: &'static str) -> Self {
        Self { status: 400, reason }
    }

    /// A refusal with a status of its own.
    pub const fn with(status: u16, reason: &'static str) -> Self {
        Self { status, reason }
    }
}
