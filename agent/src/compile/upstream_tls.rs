//! TLS to a port's endpoints, for those who come by a Gateway.

use std::sync::{Arc, OnceLock};

use rustls::ClientConfig;

use crate::model::BackendTls;

/// How the endpoints of a port are dialled.
#[derive(Debug)]
pub struct UpstreamTls {
    /// What its documents say.
    pub terms: Arc<BackendTls>,
    /// The same for the TLS library, with the sessions that can be resumed; `None`: nobody is believed.
    made: OnceLock<Option<Arc<ClientConfig>>>,
}

/// Two are the same when they believe the same.
impl PartialEq for UpstreamTls {
    fn eq(&self, other: &Self) -> bool {
        self.terms == other.terms
    }
}

impl Eq for UpstreamTls {}

impl UpstreamTls {
    /// That of the table before, where it says the same.
    pub(super) fn keep(terms: &Arc<BackendTls>, before: Option<&Arc<Self>>) -> Arc<Self> {
        match before {
            Some(before) if before.terms == *terms => Arc::clone(before),
            _ => Arc::new(Self { terms: Arc::clone(terms), made: OnceLock::new() }),
        }
    }

    /// For the TLS library; `make` makes it where that has not been done.
    pub fn config(
        &self,
        make: impl FnOnce(&BackendTls) -> Option<Arc<ClientConfig>>,
    ) -> Option<&Arc<ClientConfig>> {
        self.made.get_or_init(|| make(&self.terms)).as_ref()
    }
}
