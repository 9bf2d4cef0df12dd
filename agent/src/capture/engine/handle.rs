//! The handle by which others steer the engine and read from it.

use tokio::sync::{oneshot, watch};

use crate::capture::CaptureStatus;
use crate::capture::parts::Readings;
use crate::capture::programs::Counters;

/// Steers a running engine.
pub struct EngineHandle {
    pub(super) stop: oneshot::Sender<oneshot::Sender<()>>,
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

    /// New connections go direct from now on; established ones stay. Done when the receiver fires; the engine then waits
    /// for [`Engine::end`].
    pub async fn stop_capturing(self) {
        let (done, fired) = oneshot::channel();
        if self.stop.send(done).is_ok() {
            let _ = fired.await;
        }
    }
}
