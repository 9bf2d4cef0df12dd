//! One request, from its head to the last byte of its answer.

use std::cell::Cell;
use std::sync::Arc;

use tokio::io::AsyncReadExt;
use tokio::time::Instant;

use super::caller::{Wire, deadline};
use super::changes::Changes;
use super::connection::{Connection, Ending};
use super::exchange::{self, Finished, Progress, Terms, take_direct};
use super::heads::Fate;
use super::pace::BODY_TOO_LONG;
use super::plan::{Plan, Planned};
use super::record::Trail;
use super::silence::silent;
use super::upstream::{Deadline, Goal, UpstreamConnection, Wanted};
use super::vet::vet;
use super::wire::write_parts;
use super::worker::{Buffers, make_room};
use crate::http::body::{BodyTransfer, Framing};
use crate::http::h1::Version;
use crate::pool::Liveness;
use crate::proxy::answer::{Answer, AnswerTo, Problem};
use crate::proxy::limits::{Limited, Limiting};
use crate::route::{RequestView, redirect_location};

/// One try's terms.
#[derive(Clone, Copy)]
struct Turn<'a> {
    progress: &'a Progress,
    deadline: Deadline,
    /// Since when the upstream can have been silent.
    since: Instant,
}

impl Connection {
    /// Answers the request in `buffers.head`. What most requests do not come to is boxed: the rest then fits the allocator's
    /// small sizes, of which it keeps many at hand.
    ///
    /// Gives how the connection ends, or nothing where it goes on.
    pub(super) async fn respond(&mut self) -> Option<Ending> {
        let start = Instant::now();
        let table = self.ctx.tables.load_full();
        self.served = self.served.saturating_add(1);
        self.quiet_since = None;
        let mut request_id = std::mem::take(&mut self.buffers.request_id);
        self.caller().choose_request_id(&self.buffers.head, &mut request_id);
        self.buffers.request_id = request_id;
        let mut trail = Trail::new(start, self.caller().ends(&table));
        let slot = self.ctx.http.admit(&self.origin);
        let planned = match vet(&mut self.buffers.head, &self.settings, self.tls.is_some()) {
            Ok(()) => self.caller().plan(&table, &self.buffers.head, &slot, trail.source),
            Err(refusal) => Planned::refused(refusal),
        };
        let asked = (trail.source, trail.start);
        let limiting = self.caller().limit(planned, (&table, &self.buffers.head), asked, &mut trail.held);
        let planned = match limiting {
            Limiting::Known(planned) => planned,
            Limiting::Asked(asked) => Box::pin(asked.settle(&mut trail.held)).await,
        };
        trail.slot = slot.ok();
        trail.entering = self.caller().entering(&table);
        trail.route = planned.route.map(|matched| &**matched.route);
        let ending = match planned.plan {
            Plan::Forward { cluster, .. } => {
                trail.cluster = Some(cluster);
                self.forward(Goal::Cluster(cluster), &planned, &mut trail).await
            }
            Plan::Original { .. } => {
                let goal = self.caller().original(&planned);
                // The client's next connection shall go past us.
                self.unknown = matches!(goal, Goal::Unknown(_));
                self.forward(goal, &planned, &mut trail).await
            }
            Plan::Redirect(redirect) => {
                let location = planned.route.map(|matched| {
                    redirect_location(
                        &matched,
                        redirect,
                        &self.buffers.head,
                        self.original_destination.port(),
                    )
                });
                let answer =
                    Answer { status: redirect.status, location: location.as_deref(), ..Answer::default() };
                Box::pin(self.answer(answer, planned.response_changes(), &mut trail)).await
            }
            Plan::Respond(response) => {
                let answer = Answer { status: response.status, body: &response.body, ..Answer::default() };
                Box::pin(self.answer(answer, planned.response_changes(), &mut trail)).await
            }
            Plan::Limited(limited) => {
                self.caller().refused_by(&limited, trail.start);
                Box::pin(self.limited(limited, &mut trail)).await
            }
            Plan::Fail(problem) => Box::pin(self.fail(problem, &mut trail)).await,
        };
        self.caller().record(&trail, Some(&self.buffers.head), &self.buffers.request_id);
        ending
    }

    /// Answers a head that could not be read, and records it.
    pub(super) async fn refuse(&mut self, problem: Problem) -> Ending {
        let table = self.ctx.tables.load_full();
        let mut trail = Trail::new(Instant::now(), self.caller().ends(&table));
        trail.fail(problem);
        trail.status = problem.status();
        if let Some(answer) = problem.answer() {
            // The refused head is still unread.
            let to_head = self.buffers.client_in.starts_with(b"HEAD ");
            let to = AnswerTo { client: Version::Http11, to_head, fate: Fate::Close };
            trail.response_bytes =
                self.write_answer(answer, to, Changes::default()).await.unwrap_or_default();
        }
        self.caller().record(&trail, None, &self.buffers.request_id);
        Ending::Linger
    }

    /// Answers a request that a limit refuses.
    pub(in crate::proxy) async fn limited<'t>(
        &mut self,
        limited: Limited<'t>,
        trail: &mut Trail<'t>,
    ) -> Option<Ending> {
        trail.limited(&limited);
        self.answer(Answer::limited(limited), Changes::default(), trail).await
    }

    /// Whether the client's connection may be kept after this request.
    pub(in crate::proxy) fn may_keep(&self) -> bool {
        self.may_serve_more() && !self.draining()
    }

    /// The same but for a drain, which may begin before the response does.
    pub(in crate::proxy) fn may_serve_more(&self) -> bool {
        let head = &self.buffers.head;
        let more = self.settings.max_requests.is_none_or(|max| self.served < max);
        head.connection().persistent(head.version()) && more && !self.unknown
    }

    /// Sends the request on, once more on a new connection where a kept one turned out to be closed.
    async fn forward(
        &mut self,
        goal: Goal<'_>,
        planned: &Planned<'_>,
        trail: &mut Trail<'_>,
    ) -> Option<Ending> {
        if self.caller().wire(planned.protocol(), self.buffers.head.version()) == Wire::Http2 {
            return Box::pin(self.forward_http2(goal, planned, trail)).await;
        }
        self.write_request(planned);
        let framing = self.buffers.head.framing();
        let mut body = BodyTransfer::new(framing, framing).of_client(self.settings.request.underscores);
        let deadline = deadline(planned, &self.buffers.head, trail.start);
        // A request that can't be sent twice asks the kernel whether the connection still lives.
        let repeatable = framing.is_empty() && self.buffers.head.is_idempotent();
        let liveness = if repeatable { Liveness::Heard } else { Liveness::Asked };
        let mut wanted = Wanted { kept: Some(liveness), deadline, start: trail.start };
        loop {
            let mut upstream = match self.acquire(goal, wanted, planned).await {
                Ok(upstream) => upstream,
                Err(unreached) => {
                    let problem = trail.unreached(unreached);
                    return Box::pin(self.fail(problem, trail)).await;
                }
            };
            trail.upstream = Some(upstream.key.address);
            trail.endpoint = upstream.pick.as_ref().map(|pick| Arc::clone(pick.upstream()));
            let told;
            let planned = if trail.entering.is_none() {
                planned
            } else {
                match Box::pin(self.caller().enter(&self.buffers.head, planned, trail)).await {
                    Ok(entered) => told = entered,
                    Err(limited) => {
                        upstream.keep(self.ctx.http.pool(), Instant::now());
                        return Box::pin(self.limited(limited, trail)).await;
                    }
                }
                &told
            };
            let progress = Progress::default();
            // The time that a connection took to be made is not the upstream's silence.
            let since = if upstream.at_once { trail.start } else { Instant::now() };
            let turn = Turn { progress: &progress, deadline, since };
            let result = self.exchange(&mut upstream, &mut body, planned, turn).await;
            trail.request_bytes = body.bytes();
            trail.response_bytes = progress.response_bytes.get();
            match result {
                Ok(finished) => {
                    trail.status = progress.status.get();
                    return self.finish((upstream, planned), finished, body, trail).await;
                }
                Err(Problem::UpstreamClosed) if upstream.reused && self.may_retry(&progress) => {
                    wanted.kept = None;
                    self.buffers.upstream_in.clear();
                }
                Err(problem) => {
                    let refused = !progress.answered.get() && upstream.io.peer_alert().is_heard();
                    let problem = problem.or_refused(refused);
                    return Box::pin(self.give_up(problem, &progress, body, trail)).await;
                }
            }
        }
    }

    /// Whether a request that a kept connection did not answer may be sent again: nothing of it was taken, or it may be
    /// run twice and is still whole here.
    fn may_retry(&self, progress: &Progress) -> bool {
        let head = &self.buffers.head;
        let untouched = progress.sent.get() == 0 || head.is_idempotent();
        head.framing().is_empty() && untouched && !progress.answered.get()
    }

    fn write_request(&mut self, planned: &Planned<'_>) {
        let mut request = std::mem::take(&mut self.buffers.request);
        let Buffers { head, request_id, .. } = &*self.buffers;
        let outgoing = self.caller().outgoing(planned, head);
        self.caller().writer(planned, &outgoing, head, request_id).write(&mut request);
        self.buffers.request = request;
    }

    async fn exchange(
        &mut self,
        upstream: &mut UpstreamConnection,
        body: &mut BodyTransfer,
        planned: &Planned<'_>,
        turn: Turn<'_>,
    ) -> Result<Finished, Problem> {
        let Turn { progress, deadline, since } = turn;
        let patience = self.caller().patience(planned, &self.buffers.head, deadline);
        let terms = Terms {
            worker: &self.ctx.http,
            load: self.ctx.http.load(&self.origin),
            settings: &self.settings,
            changes: planned.response_changes(),
            may_keep: self.may_serve_more(),
            drain: &self.ctx.drain,
            may_switch: self.caller().upgrade(&self.buffers.head).is_some(),
            deadline,
        };
        let ends = (&mut self.io, &mut upstream.io);
        tokio::select! {
            biased;
            finished = exchange::run(terms, &mut self.buffers, body, progress, ends) => finished,
            problem = silent(patience, since, &mut self.idle, || progress.moved()) => Err(problem),
        }
    }

    /// The response is with the client: keeps what can be kept.
    async fn finish(
        &mut self,
        (upstream, planned): (UpstreamConnection, &Planned<'_>),
        finished: Finished,
        body: BodyTransfer,
        trail: &mut Trail<'_>,
    ) -> Option<Ending> {
        if finished.fate == Fate::Switch {
            return Some(Box::pin(self.tunnel(upstream, planned, trail)).await);
        }
        let now = Instant::now();
        (trail.end, self.quiet_since) = (Some(now), Some(now));
        if finished.reusable {
            upstream.keep(self.ctx.http.pool(), now);
        }
        self.settle(finished.fate, body).await
    }

    /// The request's answer is out; decides about the connection. What is left of the body is read and dropped within
    /// bounds, else its bytes would be taken for the next request.
    pub(in crate::proxy) async fn settle(&mut self, fate: Fate, mut body: BodyTransfer) -> Option<Ending> {
        // An upload that was cut short leaves its last piece staged: it is taken from the sender, and must go before what
        // follows it in the buffer is read as the next request.
        take_direct(&mut body, &mut self.buffers.client_in);
        let done = body.is_done();
        if fate != Fate::Keep {
            let quiet = done && self.buffers.client_in.is_empty();
            return Some(if quiet { Ending::Now } else { Ending::Linger });
        }
        if done {
            return None;
        }
        let time = self.settings.discard_time;
        let discard = Box::pin(tokio::time::timeout(time, self.discard(&mut body))).await;
        if discard.unwrap_or(false) { None } else { Some(Ending::Linger) }
    }

    async fn discard(&mut self, body: &mut BodyTransfer) -> bool {
        let limit = body.bytes().saturating_add(self.settings.discard_bytes);
        let Buffers { client_in, upstream_out, .. } = &mut *self.buffers;
        loop {
            take_direct(body, client_in);
            upstream_out.clear();
            if body.is_done() {
                return true;
            }
            if body.bytes() > limit || body.stage(client_in, upstream_out).is_err() {
                return false;
            }
            if body.is_done() || body.direct() > 0 {
                continue;
            }
            make_room(client_in);
            if !matches!(self.io.read_buf(client_in).await, Ok(1..)) {
                return false;
            }
        }
    }

    /// The exchange failed: answers where nothing has been sent to the client, else cuts the connection.
    pub(in crate::proxy) async fn give_up(
        &mut self,
        problem: Problem,
        progress: &Progress,
        body: BodyTransfer,
        trail: &mut Trail<'_>,
    ) -> Option<Ending> {
        trail.fail(problem);
        trail.status = progress.status.get();
        let interim_cut = progress.delivered.get() > 0 && !self.buffers.client_out.is_empty();
        if trail.status != 0 || interim_cut {
            return Some(self.cut(problem));
        }
        self.buffers.client_out.clear();
        let Some(answer) = problem.answer() else { return Some(Ending::Now) };
        trail.status = answer.status;
        // A body whose end is not known can't be told from the next request.
        let sound = !matches!(problem, Problem::Refused(_) | Problem::BodyTimeout | Problem::BodyTooSlow);
        let in_doubt = !body.is_done() && self.buffers.head.expects_continue();
        let fate = if self.may_keep() && sound && !in_doubt { Fate::Keep } else { Fate::Close };
        match self.send(answer, fate, Changes::default()).await {
            Some(bytes) => trail.response_bytes = bytes,
            None => return Some(Ending::Now),
        }
        self.settle(fate, body).await
    }

    /// How to end a connection whose answer has begun and will not come to its end. Closing tells that of every framing
    /// but one, and what the client has not read yet still reaches it. The body that ends with the connection needs a
    /// reset; only HTTP/1.0 clients get it, who may take any body for whole.
    fn cut(&self, problem: Problem) -> Ending {
        let stuck = matches!(problem, Problem::BodyTimeout | Problem::ClientClosed);
        if stuck || self.buffers.head.version() == Version::Http10 { Ending::Abort } else { Ending::Linger }
    }

    /// Answers a request that found no upstream; its body has not been touched.
    pub(in crate::proxy) async fn fail(&mut self, problem: Problem, trail: &mut Trail<'_>) -> Option<Ending> {
        trail.fail(problem);
        let Some(answer) = problem.answer() else { return Some(Ending::Now) };
        self.answer(answer, Changes::default(), trail).await
    }

    /// Gives an answer of our own to a request whose body has not been touched.
    async fn answer(
        &mut self,
        answer: Answer<'_>,
        changes: Changes<'_>,
        trail: &mut Trail<'_>,
    ) -> Option<Ending> {
        let framing = self.buffers.head.framing();
        let body = BodyTransfer::new(framing, Framing::Chunked);
        let in_doubt = !framing.is_empty() && self.buffers.head.expects_continue();
        let useless = matches!(answer.problem, Some(Problem::NoListener | BODY_TOO_LONG));
        let fate = if self.may_keep() && !in_doubt && !useless { Fate::Keep } else { Fate::Close };
        let Some(bytes) = self.send(answer, fate, changes).await else {
            trail.fail(Problem::ClientClosed);
            return Some(Ending::Now);
        };
        (trail.status, trail.response_bytes) = (answer.status, bytes);
        self.settle(fate, body).await
    }

    async fn send(&mut self, answer: Answer<'_>, fate: Fate, changes: Changes<'_>) -> Option<u64> {
        let head = &self.buffers.head;
        let to = AnswerTo { client: head.version(), to_head: head.method() == "HEAD", fate };
        self.write_answer(answer, to, changes).await
    }

    async fn write_answer(&mut self, answer: Answer<'_>, to: AnswerTo, changes: Changes<'_>) -> Option<u64> {
        let out = &mut self.buffers.client_out;
        answer.start(to, &self.ctx.http, out);
        changes.write(out);
        let bytes = answer.finish(to, out);
        let patience = self.settings.body_timeout;
        let sent = write_parts(&mut self.io, [&out[..], &[], &[]], patience, &Cell::new(0)).await;
        out.clear();
        sent.ok().map(|()| bytes)
    }
}
