//! The limits that requests and connections are held to, by the reason codes that name them in the access log.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A pod has no source port left for an endpoint, or for the tunnels of a pod.
pub(super) const NO_SOURCE_PORT: &str = "connect_no_source_port";

/// All of them. A closed set: each is a value of the label `limit`.
pub(super) const LIMITS: [&str; 24] = [
    "connections",
    "connections_per_source",
    "requests_in_flight",
    "buffered_bytes",
    "method_too_long",
    "target_too_long",
    "header_too_long",
    "header_too_many",
    "trailers_too_long",
    "trailers_too_many",
    "header_timeout",
    "body_timeout",
    "body_too_slow",
    "body_too_long",
    "upstream_full",
    "h2_reset_flood",
    "h2_provoked_reset_flood",
    "h2_settings_flood",
    "h2_ping_flood",
    "h2_window_update_flood",
    "h2_other_frame_flood",
    "h2_data_flood",
    "h2_continuation_flood",
    NO_SOURCE_PORT,
];

/// Lines about ports that are lacking are so far apart.
const PAUSE: Duration = Duration::from_secs(10);

/// Lines of the log about source ports that are lacking: not one for each try.
#[derive(Default)]
pub(super) struct PortShortage(Mutex<Option<(Instant, u64)>>);

impl PortShortage {
    /// Logs it, where it is due.
    pub(super) fn tell(&self, peer: SocketAddr, endpoint: Option<SocketAddr>) {
        let Some(left_out) = self.due(Instant::now()) else { return };
        let source = peer.ip();
        tracing::warn!(%source, ?endpoint, left_out, "no source port is left to dial an endpoint from a pod's address");
    }

    /// Whether it is told now; how many were not since the last one that was.
    fn due(&self, now: Instant) -> Option<u64> {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *told {
            Some((at, left_out)) if now.saturating_duration_since(*at) < PAUSE => {
                *left_out += 1;
                None
            }
            last => last.replace((now, 0)).map_or(Some(0), |(_, left_out)| Some(left_out)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_of_ports_is_told_once_in_ten_seconds_with_how_many_there_were() {
        let (shortage, start) = (PortShortage::default(), Instant::now());
        for (second, expected) in
            [(0, Some(0)), (0, None), (9, None), (10, Some(2)), (19, None), (40, Some(1)), (50, Some(0))]
        {
            assert_eq!(shortage.due(start + Duration::from_secs(second)), expected, "{second} s");
        }
    }
}
