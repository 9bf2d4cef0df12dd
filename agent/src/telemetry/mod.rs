//! What is seen from outside: metrics, access log. Records are made by the proxies; nothing here decides.

mod flags;
mod record;

pub use flags::{Flag, ResponseFlags};
pub use record::{ConnectionRecord, Origin, Recorder, RequestRecord};
