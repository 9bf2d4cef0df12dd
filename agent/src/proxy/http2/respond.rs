//! One stream, from its head to the end of its answer.

mod entering;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, Request};
use tokio::time::Instant;

use super::body::{Http1Sink, Http2Sink, Http2Source};
use super::connection::Session;
use super::exchange::{self, Bounds, Progress};
use super::fault::{Failed, Side, before_answer};
use super::from_http1::may_retry;
use super::sides::{Http1Upstream, Http2Client, Http2Upstream, response};
use super::upstream::{UpstreamStream, unless_reset};
use crate::http::body::{BodyTransfer, Framing};
use crate::http::h1::{RequestHead, Version};
use crate::http::h2::read_request;
use crate::pool::Liveness;
use crate::proxy::Early;
use crate::proxy::answer::{Answer, Problem};
use crate::proxy::http::caller::{Caller, Wire, deadline, is_grpc};
use crate::proxy::http::changes::Changes;
use crate::proxy::http::exchange::HeadReading;
use crate::proxy::http::pace::Pace;
use crate::proxy::http::plan::{Plan, Planned};
use crate::proxy::http::record::Trail;
use crate::proxy::http::silence::Timer;
use crate::proxy::http::upstream::{Deadline, Goal, UpstreamConnection, Wanted};
use crate::proxy::http::vet::vet;
use crate::proxy::http::worker::{Buffers, Held};
use crate::proxy::limits::Limiting;
use crate::route::{RequestView, redirect_location};

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamEnd {
    /// With an answer.
    Answered,
    /// In a reset that the client sent or earned.
    Reset,
    /// With an answer after which the connection is of no more use: its Gateway listener is gone.
    Last,
}

/// Answers one request.
pub(super) async fn respond(
    session: Rc<Session>,
    request: Request<RecvStream>,
    send: SendResponse<Bytes>,
) -> StreamEnd {
    let start = Instant::now();
    // For the first stream or for none: it does not grow old here.
    let early = session.early.take();
    let table = session.ctx.tables.load_full();
    let (parts, body) = request.into_parts();
    let mut buffers = session.ctx.http.take_buffers();
    let read = read_request(&mut buffers.head, &parts, body.is_end_stream(), &session.settings.request);
    let to_head = parts.method == http::Method::HEAD;
    drop(parts);
    let mut trail = Trail::new(start, session.caller().ends(&table));
    trail.version = Version::Http2;
    let left = session.settings.body_max;
    let underscores = session.settings.request.underscores;
    let body = Http2Source { body, side: Side::Client, pace: Pace::leisurely(), left, underscores };
    let mut stream = Stream { session: &session, buffers, send, body, early };
    match read {
        Ok(()) => {
            // A gRPC call may be silent in one direction for as long as it likes; PINGs tell whether its client lives.
            if !is_grpc(&stream.buffers.head) {
                stream.body.pace = Pace::of(&session.settings, &stream.buffers.head);
            }
            stream.serve(&table, &mut trail).await;
        }
        Err(refusal) => stream.refuse(Problem::Refused(refusal), to_head, &mut trail),
    }
    session.ctx.http.keep_buffers(stream.buffers);
    if trail.flags.contains(Problem::ClientClosed.flag()) {
        StreamEnd::Reset
    } else if trail.details == Problem::NoListener.details() {
        StreamEnd::Last
    } else {
        StreamEnd::Answered
    }
}

/// A stream whose request's head has been read.
struct Stream<'s> {
    session: &'s Session,
    buffers: Held,
    send: SendResponse<Bytes>,
    body: Http2Source,
    early: Option<Early>,
}

/// One try's terms.
#[derive(Clone, Copy)]
struct Turn<'a> {
    planned: &'a Planned<'a>,
    deadline: Deadline,
    progress: &'a Progress,
}

impl<'a> Turn<'a> {
    /// The client's end of the answer. A gRPC client may take nothing of it for as long as it likes: PINGs tell whether it
    /// lives.
    fn client(
        &self,
        session: &'a Session,
        respond: &'a mut SendResponse<Bytes>,
        head: &RequestHead,
    ) -> Http2Client<'a> {
        Http2Client {
            respond,
            worker: &session.ctx.http,
            patience: session.settings.body_timeout.filter(|_| !is_grpc(head)),
            changes: self.planned.response_changes(),
            progress: self.progress,
        }
    }

    fn bounds<'b>(&self, caller: &Caller<'_>, head: &RequestHead, timer: &'b mut Timer) -> Bounds<'b>
    where
        'a: 'b,
    {
        let patience = caller.patience(self.planned, head, self.deadline);
        Bounds { deadline: self.deadline, patience, progress: self.progress, timer }
    }
}

impl Stream<'_> {
    async fn serve<'t>(&mut self, table: &'t crate::compile::RoutingTable, trail: &mut Trail<'t>) {
        let caller = self.session.caller();
        let Buffers { head, request_id, .. } = &mut *self.buffers;
        caller.choose_request_id(head, request_id);
        let slot = self.session.ctx.http.admit(&self.session.origin);
        let planned = match vet(&mut self.buffers.head, &self.session.settings, self.session.tls.is_some()) {
            Ok(()) => caller.plan(table, &self.buffers.head, &slot, trail.source),
            Err(refusal) => Planned::refused(refusal),
        };
        let asked = (trail.source, trail.start);
        let limiting = caller.limit(planned, (table, &self.buffers.head), asked, &mut trail.held);
        let planned = match limiting {
            Limiting::Known(planned) => planned,
            Limiting::Asked(asked) => Box::pin(asked.settle(&mut trail.held)).await,
        };
        trail.route = planned.route.map(|matched| &**matched.route);
        trail.entering = caller.entering(table);
        match planned.plan {
            Plan::Forward { cluster, .. } => {
                trail.cluster = Some(cluster);
                self.forward(Goal::Cluster(cluster), &planned, trail).await;
            }
            Plan::Original { .. } => {
                let goal = self.session.caller().original(&planned);
                self.forward(goal, &planned, trail).await;
            }
            Plan::Redirect(redirect) => {
                let port = self.session.original_destination.port();
                let location = planned
                    .route
                    .map(|matched| redirect_location(&matched, redirect, &self.buffers.head, port));
                let answer =
                    Answer { status: redirect.status, location: location.as_deref(), ..Answer::default() };
                self.answer(answer, planned.response_changes(), trail);
            }
            Plan::Respond(response) => {
                let answer = Answer { status: response.status, body: &response.body, ..Answer::default() };
                self.answer(answer, planned.response_changes(), trail);
            }
            Plan::Limited(limited) => {
                self.session.caller().refused_by(&limited, trail.start);
                self.limited(limited, trail);
            }
            Plan::Fail(problem) => self.fail(problem, trail),
        }
        caller.record(trail, Some(&self.buffers.head), &self.buffers.request_id);
    }

    /// Answers a head that is not taken, and records it.
    fn refuse(&mut self, problem: Problem, to_head: bool, trail: &mut Trail<'_>) {
        trail.fail(problem);
        if let Some(answer) = problem.answer() {
            self.send_answer(answer, Changes::default(), trail, (to_head, false));
        }
        self.session.caller().record(trail, None, "");
    }

    /// Sends the request on, once more where that can do no harm.
    async fn forward(&mut self, goal: Goal<'_>, planned: &Planned<'_>, trail: &mut Trail<'_>) {
        let wire = self.session.caller().wire(planned.protocol(), Version::Http2);
        let deadline = deadline(planned, &self.buffers.head, trail.start);
        let mut again = true;
        loop {
            let progress =
                Progress::new(self.session.ctx.http.load(&self.session.origin), &self.session.settings.http2);
            let turn = Turn { planned, deadline, progress: &progress };
            let (result, may_retry) = match wire {
                Wire::Http1 => self.try_http1(goal, turn, again, trail).await,
                Wire::Http2 => self.try_http2(goal, turn, trail).await,
            };
            if trail.limited.is_some() {
                // It has its answer, and nothing was sent on.
                return;
            }
            trail.request_bytes = progress.request_bytes.get();
            trail.response_bytes = progress.response_bytes.get();
            trail.grpc_status = progress.grpc_status.get();
            match result {
                Ok(()) => {
                    trail.status = progress.status.get();
                    return;
                }
                Err(_) if again && may_retry => again = false,
                Err(failed) => return self.give_up(failed.problem, &progress, trail),
            }
        }
    }

    async fn try_http2(
        &mut self,
        goal: Goal<'_>,
        turn: Turn<'_>,
        trail: &mut Trail<'_>,
    ) -> (Result<(), Failed>, bool) {
        let early = self.early.take();
        let acquired = {
            let passed = self.session.passed(turn.planned, &self.buffers);
            let acquiring = self.session.caller().acquire_http2(goal, turn.deadline, early, &passed);
            unless_reset(&mut self.send, acquiring).await
        };
        let stream = match acquired {
            Err(problem) => return (Err(problem.into()), false),
            Ok(Ok(stream)) => stream,
            Ok(Err(unreached)) => return (Err(trail.unreached(unreached).into()), false),
        };
        trail.upstream = Some(stream.address);
        trail.endpoint = stream.pick.as_ref().map(|pick| Arc::clone(pick.upstream()));
        let Some(planned) = self.enter(turn.planned, trail).await else { return (Ok(()), false) };
        let turn = Turn { planned: &planned, ..turn };
        let result = self.over_http2(&stream, turn).await;
        let idempotent = self.buffers.head.is_idempotent();
        let retry = result.is_err_and(|failed| may_retry(failed, turn.progress, &stream, idempotent));
        let refused = !turn.progress.answered.get() && stream.lease.is_alerted();
        (result.map_err(|failed| failed.or_refused(refused)), retry)
    }

    async fn over_http2(&mut self, stream: &UpstreamStream, turn: Turn<'_>) -> Result<(), Failed> {
        let Self { session, buffers, send, body, .. } = self;
        let Buffers { head, response, request_id, .. } = &mut **buffers;
        let (caller, settings) = (session.caller(), &session.settings);
        let request = caller.http2_request(turn.planned, head, request_id).map_err(Problem::Refused)?;
        let ends = body.body.is_end_stream();
        let sent = stream.lease.sender().send_request(request, ends);
        let (answer, upload) = sent.map_err(|error| before_answer(&error))?;
        let client = turn.client(session, send, head);
        let to_head = head.method() == "HEAD";
        let upstream = Http2Upstream { response: answer, body: None, to_head, limits: &settings.response };
        let sink =
            Http2Sink { stream: upload, side: Side::Upstream, patience: None, taken: &turn.progress.sent };
        let upload = exchange::upload(body, sink, ends, turn.progress);
        let download = exchange::download(client, upstream, response, turn.progress);
        let mut spare = session.timers.take();
        exchange::run(upload, download, turn.bounds(&caller, head, &mut spare.timer)).await
    }

    /// `fresh`: whether this is the first try, for which a kept connection will do.
    async fn try_http1(
        &mut self,
        goal: Goal<'_>,
        turn: Turn<'_>,
        fresh: bool,
        trail: &mut Trail<'_>,
    ) -> (Result<(), Failed>, bool) {
        let framing = self.buffers.head.framing();
        let repeatable = framing.is_empty() && self.buffers.head.is_idempotent();
        let liveness = if repeatable { Liveness::Heard } else { Liveness::Asked };
        let wanted = Wanted { kept: fresh.then_some(liveness), deadline: turn.deadline, start: trail.start };
        let early = self.early.take();
        let acquired = {
            let passed = self.session.passed(turn.planned, &self.buffers);
            let acquiring = self.session.caller().acquire(goal, wanted, early, &passed);
            unless_reset(&mut self.send, acquiring).await
        };
        let mut upstream = match acquired {
            Err(problem) => return (Err(problem.into()), false),
            Ok(Ok(upstream)) => upstream,
            Ok(Err(unreached)) => return (Err(trail.unreached(unreached).into()), false),
        };
        trail.upstream = Some(upstream.key.address);
        trail.endpoint = upstream.pick.as_ref().map(|pick| Arc::clone(pick.upstream()));
        let Some(planned) = self.enter(turn.planned, trail).await else {
            upstream.keep(self.session.ctx.http.pool(), Instant::now());
            return (Ok(()), false);
        };
        let turn = Turn { planned: &planned, ..turn };
        let result = self.over_http1(&mut upstream, turn).await;
        let progress = turn.progress;
        let reusable = result == Ok(true) && progress.uploaded.get() && self.buffers.upstream_in.is_empty();
        let head = &self.buffers.head;
        let untouched = progress.sent.get() == 0 || head.is_idempotent();
        let retry = result == Err(Problem::UpstreamClosed.into())
            && upstream.reused
            && untouched
            && !progress.taken.get()
            && !progress.answered.get();
        if reusable {
            upstream.keep(self.session.ctx.http.pool(), Instant::now());
            return (result.map(drop), retry);
        }
        let refused = !progress.answered.get() && upstream.io.peer_alert().is_heard();
        (result.map(drop).map_err(|failed| failed.or_refused(refused)), retry)
    }

    /// Gives whether the upstream's connection is between two messages, as far as its response tells.
    async fn over_http1(
        &mut self,
        upstream: &mut UpstreamConnection,
        turn: Turn<'_>,
    ) -> Result<bool, Failed> {
        let Self { session, buffers, send, body, .. } = self;
        let (caller, settings) = (session.caller(), &session.settings);
        let Buffers { head, response, request_id, upstream_in, upstream_out, client_out, .. } =
            &mut **buffers;
        let outgoing = caller.outgoing(turn.planned, head);
        upstream_in.clear();
        upstream_out.clear();
        caller.writer(turn.planned, &outgoing, head, request_id).write(upstream_out);
        let (read, write) = upstream.io.split();
        let client = turn.client(session, send, head);
        let (answered, reset) = (Cell::new(false), Cell::new(false));
        let reading =
            HeadReading { limits: &settings.response, to_head: head.method() == "HEAD", answered: &answered };
        let mut transfer = BodyTransfer::new(Framing::None, Framing::UntilClose);
        let answers = Http1Upstream {
            io: read,
            input: upstream_in,
            staged: client_out,
            reading,
            transfer: &mut transfer,
            reset: &reset,
        };
        let mut sink = Http1Sink {
            io: write,
            out: upstream_out,
            chunked: head.framing() == Framing::Chunked,
            side: Side::Upstream,
            patience: None,
            written: &turn.progress.sent,
            reset: Some(&reset),
        };
        let ends = head.framing().is_empty();
        let upload = async {
            // The other direction may still get an answer from an upstream that takes nothing.
            if sink.flush(b"", b"").await.is_err() {
                return std::future::pending().await;
            }
            exchange::upload(body, sink, ends, turn.progress).await
        };
        let download = exchange::download(client, answers, response, turn.progress);
        let mut spare = session.timers.take();
        let result = exchange::run(upload, download, turn.bounds(&caller, head, &mut spare.timer)).await;
        if answered.get() {
            turn.progress.answered.set(true);
        }
        result?;
        // An upstream that answers without having asked for the body may take what was sent of it for its next request.
        let in_doubt = head.expects_continue() && !ends && !turn.progress.continued.get();
        let persistent = response.version() == Version::Http11
            && response.connection().persistent(response.version())
            && response.framing() != Framing::UntilClose;
        Ok(persistent && transfer.is_done() && !in_doubt)
    }

    /// The exchange failed: answers where nothing has been sent to the client, else resets the stream.
    fn give_up(&mut self, problem: Problem, progress: &Progress, trail: &mut Trail<'_>) {
        trail.status = progress.status.get();
        if trail.status == 0 {
            return self.fail(problem, trail);
        }
        trail.fail(problem);
        self.send.send_reset(problem.reset_code());
    }

    fn fail(&mut self, problem: Problem, trail: &mut Trail<'_>) {
        trail.fail(problem);
        match problem.answer() {
            Some(answer) => self.answer(answer, Changes::default(), trail),
            None => self.send.send_reset(problem.reset_code()),
        }
    }

    /// Gives an answer of our own.
    fn answer(&mut self, answer: Answer<'_>, changes: Changes<'_>, trail: &mut Trail<'_>) {
        let head = &self.buffers.head;
        let kind = (head.method() == "HEAD", is_grpc(head));
        self.send_answer(answer, changes, trail, kind);
    }

    fn send_answer(
        &mut self,
        answer: Answer<'_>,
        changes: Changes<'_>,
        trail: &mut Trail<'_>,
        (to_head, grpc): (bool, bool),
    ) {
        let worker = &self.session.ctx.http;
        let mut fields = HeaderMap::with_capacity(8);
        let mut body = BytesMut::new();
        let status = if grpc && answer.status >= 400 {
            trail.grpc_status = Some(answer.write_grpc(worker, &mut fields));
            200
        } else {
            answer.write_fields(worker, &mut fields);
            answer.write_body(to_head, &mut body);
            answer.status
        };
        changes.write(&mut fields);
        let sent =
            self.send.send_response(response(status, fields), body.is_empty()).and_then(|mut stream| {
                let bytes = body.len() as u64;
                // Small: a page of our own or of the route's document. It waits for the client's window without us.
                if bytes > 0 { stream.send_data(body.freeze(), true).map(|()| bytes) } else { Ok(0) }
            });
        match sent {
            Ok(bytes) => (trail.status, trail.response_bytes) = (status, bytes),
            Err(_) => trail.fail(Problem::ClientClosed),
        }
    }
}
