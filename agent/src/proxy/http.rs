//! HTTP (placeholder until the engine is merged).
use super::{Context, Downstream};

pub(super) async fn serve(_context: Context, _downstream: Downstream) {}
