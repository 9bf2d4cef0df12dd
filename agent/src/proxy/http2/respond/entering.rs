//! A stream that limits refuse, or hold to those of the pod that it is about to enter.

use super::Stream;
use crate::proxy::answer::Answer;
use crate::proxy::http::changes::Changes;
use crate::proxy::http::plan::Planned;
use crate::proxy::http::record::Trail;
use crate::proxy::limits::Limited;

impl Stream<'_> {
    /// Holds the request to the limits of the pod that it is about to be sent to; `None`: one refuses, and it is answered.
    pub(super) async fn enter<'p, 't: 'p>(
        &mut self,
        planned: &Planned<'p>,
        trail: &mut Trail<'t>,
    ) -> Option<Planned<'p>> {
        if trail.entering.is_none() {
            return Some(*planned);
        }
        let caller = self.session.caller();
        match Box::pin(caller.enter(&self.buffers.head, planned, trail)).await {
            Ok(planned) => Some(planned),
            Err(limited) => {
                self.limited(limited, trail);
                None
            }
        }
    }

    /// Answers a request that a limit refuses.
    pub(super) fn limited<'t>(&mut self, limited: Limited<'t>, trail: &mut Trail<'t>) {
        trail.limited(&limited);
        self.answer(Answer::limited(limited), Changes::default(), trail);
    }
}
