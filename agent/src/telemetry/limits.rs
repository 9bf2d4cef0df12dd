//! The limits that requests and connections are held to, by the reason codes that name them in the access log.

/// All of them. A closed set: each is a value of the label `limit`.
pub(super) const LIMITS: [&str; 23] = [
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
];
