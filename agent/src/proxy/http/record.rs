//! What is remembered of a request until its record is made.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::time::Instant;

use super::caller::{Caller, is_grpc};
use super::upstream::Unreached;
use crate::compile::{Cluster, Denied, Route, Upstream};
use crate::http::grpc::GrpcStatus;
use crate::http::h1::{Known, RequestHead, Version};
use crate::model::Workload;
use crate::proxy::Handshaken;
use crate::proxy::admission::Slot;
use crate::proxy::answer::Problem;
use crate::proxy::limits::{Entering, Held, Limited};
use crate::route::RequestView;
use crate::telemetry::{LimitedBy, RequestRecord, ResponseFlags};

/// A request's way so far.
#[derive(Debug)]
pub(in crate::proxy) struct Trail<'t> {
    /// When it began.
    pub start: Instant,
    /// When its answer was with the client, where that has been looked at; else it ends when it is recorded.
    pub end: Option<Instant>,
    /// Its place among the requests in flight.
    pub slot: Option<Slot>,
    /// The client's pod.
    pub source: Option<&'t Arc<Workload>>,
    /// The pod that the client dialled, where the request was on its way into one.
    pub receiver: Option<&'t Arc<Workload>>,
    /// The route that took it.
    pub route: Option<&'t Route>,
    /// The cluster that it was sent to.
    pub cluster: Option<&'t Cluster>,
    /// The endpoint that it was sent to.
    pub endpoint: Option<Arc<Upstream>>,
    /// The address that it was sent to.
    pub upstream: Option<SocketAddr>,
    /// The version that the client speaks.
    pub version: Version,
    /// The status that the client got; 0 for none.
    pub status: u16,
    /// The gRPC status that the client got.
    pub grpc_status: Option<GrpcStatus>,
    /// Why it ended so.
    pub flags: ResponseFlags,
    /// What exactly was wrong.
    pub details: &'static str,
    /// The policy that refused it.
    pub denied: Option<Denied>,
    /// The limit that refused it.
    pub limited: Option<LimitedBy<'t>>,
    /// What it holds of limits on requests in flight.
    pub held: Held,
    /// The limits of pods that it may enter; `None`: none are asked where it is sent on.
    pub entering: Option<Entering<'t>>,
    /// Body bytes from the client.
    pub request_bytes: u64,
    /// Body bytes to the client.
    pub response_bytes: u64,
}

impl<'t> Trail<'t> {
    /// The trail of a request that has just been read. `ends`: as [`Caller::ends`] has them.
    pub fn new(start: Instant, ends: [Option<&'t Arc<Workload>>; 2]) -> Self {
        let [source, receiver] = ends;
        Self {
            start,
            end: None,
            slot: None,
            source,
            receiver,
            route: None,
            cluster: None,
            endpoint: None,
            upstream: None,
            version: Version::Http11,
            status: 0,
            grpc_status: None,
            flags: ResponseFlags::default(),
            details: "",
            denied: None,
            limited: None,
            held: Held::new(),
            entering: None,
            request_bytes: 0,
            response_bytes: 0,
        }
    }

    /// Notes where it could not be sent; gives why.
    pub fn unreached(&mut self, unreached: Unreached) -> Problem {
        (self.upstream, self.endpoint) = unreached.last.map_or((None, None), |(at, to)| (Some(at), to));
        self.denied = unreached.denied;
        unreached.problem
    }

    /// Notes that a limit refuses it.
    pub fn limited(&mut self, limited: &Limited<'t>) {
        self.fail(limited.problem());
        self.limited = Some(limited.by());
    }

    /// Notes what went wrong. The details are those of the first problem, as those that follow are its consequence: a client
    /// that was refused and has left before its answer was refused.
    pub fn fail(&mut self, problem: Problem) {
        if self.details.is_empty() {
            self.details = problem.details();
        }
        self.flags.insert(problem.flag());
    }
}

impl Caller<'_> {
    /// Hands the record over. `head` is `None` where it could not be read.
    pub fn record(self, trail: &Trail<'_>, head: Option<&RequestHead>, request_id: &str) {
        let user_agent = head.and_then(|head| head.fields().first(Known::UserAgent)).unwrap_or_default();
        let endpoint = trail.endpoint.as_ref().and_then(|endpoint| endpoint.workload.as_ref());
        self.ctx.recorder.request(&RequestRecord {
            duration: trail.end.unwrap_or_else(Instant::now).duration_since(trail.start),
            origin: self.origin,
            peer: self.peer,
            original_destination: self.original_destination,
            tls: self.tls.map(Handshaken::record),
            source: trail.source,
            cluster: trail.cluster.map(|cluster| &cluster.key),
            upstream: trail.upstream,
            destination: endpoint.or(trail.receiver),
            route: trail.route.map(|route| &route.name),
            method: head.map_or("-", RequestHead::method),
            authority: head.map_or("", RequestHead::authority),
            path: head.map_or("", RequestHead::raw_target),
            protocol: head.map_or(trail.version.as_str(), |head| head.version().as_str()),
            status: trail.status,
            grpc: head.is_some_and(is_grpc),
            grpc_status: trail.grpc_status,
            flags: trail.flags,
            details: trail.details,
            denied: trail.denied.as_ref(),
            limited: trail.limited,
            request_bytes: trail.request_bytes,
            response_bytes: trail.response_bytes,
            request_id,
            user_agent,
        });
    }
}
