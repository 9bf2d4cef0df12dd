//! A request of an HTTP/1 client for an HTTP/2 upstream.

use std::cell::Cell;
use std::sync::Arc;

use super::body::{Http1Source, Http2Sink};
use super::exchange::{self, Bounds, Progress};
use super::fault::{Failed, Side, before_answer};
use super::sides::{Http1Client, Http2Upstream};
use super::upstream::UpstreamStream;
use crate::http::body::{BodyTransfer, Framing};
use crate::proxy::answer::Problem;
use crate::proxy::http::caller::{Caller, deadline};
use crate::proxy::http::connection::{Connection, Ending};
use crate::proxy::http::exchange::Progress as Delivered;
use crate::proxy::http::heads::Fate;
use crate::proxy::http::pace::Pace;
use crate::proxy::http::plan::Planned;
use crate::proxy::http::record::Trail;
use crate::proxy::http::upstream::{Deadline, Goal};
use crate::proxy::http::worker::Buffers;
use crate::route::RequestView;

impl Connection {
    /// Sends the request on, once more where the upstream says that it has not looked at it.
    pub(in crate::proxy) async fn forward_http2(
        &mut self,
        goal: Goal<'_>,
        planned: &Planned<'_>,
        trail: &mut Trail<'_>,
    ) -> Option<Ending> {
        let mut body = BodyTransfer::new(self.buffers.head.framing(), Framing::UntilClose)
            .of_client(self.settings.request.underscores);
        let deadline = deadline(planned, &self.buffers.head, trail.start);
        let delivered = Delivered::default();
        let fate = Cell::new(Fate::Close);
        let mut again = true;
        loop {
            let early = self.early.take();
            let passed = self.passed(planned);
            let acquired = self.caller().acquire_http2(goal, deadline, early, &passed).await;
            drop(passed);
            let stream = match acquired {
                Ok(stream) => stream,
                Err(unreached) => {
                    let problem = trail.unreached(unreached);
                    return self.fail(problem, trail).await;
                }
            };
            trail.upstream = Some(stream.address);
            trail.endpoint = stream.pick.as_ref().map(|pick| Arc::clone(pick.upstream()));
            let planned = &match self.caller().enter(&self.buffers.head, planned, trail).await {
                Ok(entered) => entered,
                Err(limited) => return self.limited(limited, trail).await,
            };
            let progress = Progress::new(self.ctx.http.load(&self.origin), &self.settings.http2);
            let turn = Turn { planned, deadline, progress: &progress, fate: &fate };
            let result = self.exchange_http2(&stream, &mut body, turn).await;
            delivered.delivered.set(delivered.delivered.get() + progress.delivered.get());
            trail.request_bytes = body.bytes();
            trail.response_bytes = progress.response_bytes.get();
            trail.grpc_status = progress.grpc_status.get();
            match result {
                Ok(()) => {
                    trail.status = progress.status.get();
                    return self.settle(fate.get(), body).await;
                }
                Err(failed)
                    if again && may_retry(failed, &progress, &stream, self.buffers.head.is_idempotent()) =>
                {
                    again = false;
                }
                Err(failed) => {
                    delivered.status.set(progress.status.get());
                    let refused = !progress.answered.get() && stream.lease.is_alerted();
                    let problem = failed.problem.or_refused(refused);
                    return self.give_up(problem, &delivered, body, trail).await;
                }
            }
        }
    }

    async fn exchange_http2(
        &mut self,
        stream: &UpstreamStream,
        transfer: &mut BodyTransfer,
        turn: Turn<'_>,
    ) -> Result<(), Failed> {
        let may_keep = self.may_serve_more();
        let Self { ctx, settings, io, buffers, origin, peer, original_destination, idle, tls, .. } = self;
        let Buffers { head, response, client_in, client_out, upstream_out, request_id, .. } = &mut **buffers;
        let head = &*head;
        let caller = Caller {
            ctx,
            settings,
            origin,
            peer: *peer,
            original_destination: *original_destination,
            tls: tls.as_deref(),
        };
        let request = caller.http2_request(turn.planned, head, request_id).map_err(Problem::Refused)?;
        let ends = head.framing().is_empty();
        let sent = stream.lease.sender().send_request(request, ends);
        let (answer, upload) = sent.map_err(|error| before_answer(&error))?;
        let (client_read, client_write) = io.split();
        let responder = Http1Client {
            io: client_write,
            out: client_out,
            head,
            worker: &ctx.http,
            settings,
            changes: turn.planned.response_changes(),
            may_keep,
            drain: &ctx.drain,
            progress: turn.progress,
            fate: turn.fate,
        };
        let to_head = head.method() == "HEAD";
        let answers = Http2Upstream { response: answer, body: None, to_head, limits: &settings.response };
        let mut source = Http1Source {
            io: client_read,
            input: client_in,
            staged: upstream_out,
            transfer,
            side: Side::Client,
            pace: Pace::of(settings, head),
            most: settings.body_max,
            ahead: settings.ahead_bytes,
            reset: None,
        };
        let sink =
            Http2Sink { stream: upload, side: Side::Upstream, patience: None, taken: &turn.progress.sent };
        let upload = exchange::upload(&mut source, sink, ends, turn.progress);
        let download = exchange::download(responder, answers, response, turn.progress);
        let patience = caller.patience(turn.planned, head, turn.deadline);
        let bounds = Bounds { deadline: turn.deadline, patience, progress: turn.progress, timer: idle };
        exchange::run(upload, download, bounds).await
    }
}

/// One try's terms.
#[derive(Clone, Copy)]
struct Turn<'a> {
    planned: &'a Planned<'a>,
    deadline: Deadline,
    progress: &'a Progress,
    fate: &'a Cell<Fate>,
}

/// Whether a request may be sent again: all of it is still here, and the upstream has not looked at it, or has gone while
/// it was idle and may get it twice.
pub(super) fn may_retry(
    failed: Failed,
    progress: &Progress,
    stream: &UpstreamStream,
    idempotent: bool,
) -> bool {
    let whole = !progress.taken.get() && progress.status.get() == 0;
    let gone = failed.problem == Problem::UpstreamClosed
        && stream.lease.reused
        && idempotent
        && !progress.answered.get();
    whole && (failed.unprocessed || gone)
}
