//! What is seen from outside: metrics, access log, the agent's own log. Records are made by the proxies; nothing here
//! decides.

mod acceleration;
mod access;
mod cluster;
mod flags;
mod flows;
mod guard;
mod json;
mod labels;
mod limits;
pub mod log;
mod metrics;
mod rate_limits;
mod record;
mod recorder;
mod series;
mod time;
mod tls;
mod writer;

pub use acceleration::AccelerationCounts;
pub use access::AccessLog;
pub use cluster::{ClusterReading, ProbeReading};
pub use flags::{Flag, ResponseFlags};
pub use flows::{Flow, FlowEvent, FlowKind, FlowLog, FlowRule, FlowTier};
pub use guard::{GuardReading, MapReading};
pub use metrics::{BuildInfo, ConfigState, KernelGauges, Metrics, MetricsError};
pub use rate_limits::{KernelLimitReading, LimitStoreReading, RateLimitReading};
pub use record::{ConnectionRecord, LimitedBy, Origin, Recorder, RequestRecord, ServedRecord, TlsRecord};
pub use time::rfc3339;
pub use tls::TlsReading;
pub use writer::LineWriter;

#[cfg(test)]
mod tests;
