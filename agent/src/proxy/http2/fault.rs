//! What an HTTP/2 error means for a request.

use h2::{Error, Reason};

use crate::proxy::answer::Problem;

/// Whose connection it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The client's.
    Client,
    /// The upstream's.
    Upstream,
}

impl Side {
    /// An error once a message has begun.
    pub fn in_body(self, error: &Error) -> Problem {
        match self {
            Self::Client => Problem::ClientClosed,
            Self::Upstream if error.is_library() => Problem::UpstreamProtocol(protocol_details(error)),
            Self::Upstream => match error.reason() {
                Some(code) if error.is_reset() => Problem::UpstreamReset(code.into()),
                _ => Problem::UpstreamTruncated,
            },
        }
    }

    /// The peer takes no more.
    pub fn closed(self) -> Problem {
        match self {
            Self::Client => Problem::ClientClosed,
            Self::Upstream => Problem::UpstreamClosed,
        }
    }
}

/// An upstream's error before its answer.
pub(super) fn before_answer(error: &Error) -> Failed {
    let problem = match error.reason() {
        _ if error.is_library() => Problem::UpstreamProtocol(protocol_details(error)),
        Some(code) if error.is_reset() => Problem::UpstreamReset(code.into()),
        _ => Problem::UpstreamClosed,
    };
    // A peer's GOAWAY ends only streams that it has not looked at; others it lets go on (RFC 9113 section 6.8).
    let unprocessed = error.is_remote()
        && (error.is_go_away() || error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM));
    Failed { problem, unprocessed }
}

/// A request that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failed {
    /// Why.
    pub problem: Problem,
    /// Whether the upstream says that it has done nothing about it, so that it may be sent again.
    pub unprocessed: bool,
}

impl Failed {
    /// As [`Problem::or_refused`] has it.
    pub fn or_refused(self, alerted: bool) -> Self {
        Self { problem: self.problem.or_refused(alerted), ..self }
    }
}

impl From<Problem> for Failed {
    fn from(problem: Problem) -> Self {
        Self { problem, unprocessed: false }
    }
}

/// What an upstream did wrong, as this side's frame layer saw it.
fn protocol_details(error: &Error) -> &'static str {
    match error.reason() {
        Some(Reason::FRAME_SIZE_ERROR) => "h2_frame_size",
        Some(Reason::FLOW_CONTROL_ERROR) => "h2_flow_control",
        Some(Reason::COMPRESSION_ERROR) => "h2_compression",
        Some(Reason::ENHANCE_YOUR_CALM) => "h2_enhance_your_calm",
        Some(Reason::STREAM_CLOSED) => "h2_stream_closed",
        _ => "h2_protocol_error",
    }
}
