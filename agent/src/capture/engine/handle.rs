//! The handle by which others steer the engine and read from it.

use tokio::sync::{mpsc, oneshot, watch};

use crate::capture::CaptureStatus;
use crate::capture::parts::Readings;
use crate::capture::programs::Counters;

/// What the engine lets go of, and who is told when it has.
pub type Letting = (Released, oneshot::Sender<()>);

/// New connections that the agent takes no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Released {
    /// Those that pods dial: they go direct.
    Outbound,
    /// All: tunnels to pods, and what a policy would have to judge by its requests, are dropped, as they can't go direct.
    All,
}

/// Steers a running engine.
pub struct EngineHandle {
    pub(super) releases: mpsc::UnboundedSender<Letting>,
    pub(super) status: watch::Receiver<CaptureStatus>,
    pub(super) counters: Counters,
    pub(super) readings: Readings,
}

impl EngineHandle {
    /// What the programs count.
    pub fn counters(&self) -> Counters {
        self.counters.clone()
    }

    /// What the parts beside capture count.
    pub fn readings(&self) -> Readings {
        self.readings.clone()
    }

    /// What capture looks like now.
    pub fn status(&self) -> watch::Receiver<CaptureStatus> {
        self.status.clone()
    }

    /// Takes no such new connections from now on; established ones stay. After [`Released::All`] the engine waits for
    /// [`Engine::end`].
    ///
    /// [`Engine::end`]: super::Engine::end
    pub async fn release(&self, what: Released) {
        let (done, fired) = oneshot::channel();
        if self.releases.send((what, done)).is_ok() {
            let _ = fired.await;
        }
    }
}
