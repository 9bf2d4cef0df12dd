//! A stream to an endpoint: on a connection that is there, or on a new one. Each request chooses its endpoint, so that the
//! calls of one gRPC connection are spread over all of them.

use std::borrow::Cow;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;

use bytes::Bytes;
use h2::client;
use h2::server::SendResponse;
use http::{Method, Request, Version};

use crate::balance::Pick;
use crate::compile::{Security, Within};
use crate::http::Refusal;
use crate::http::h1::RequestHead;
use crate::http::h2::request_uri;
use crate::model::Asked;
use crate::pool::{Lease, PoolKey, Turn, is_open};
use crate::proxy::Early;
use crate::proxy::access;
use crate::proxy::answer::Problem;
use crate::proxy::http::HttpSettings;
use crate::proxy::http::caller::{Caller, Outgoing};
use crate::proxy::http::passed::Passed;
use crate::proxy::http::plan::Planned;
use crate::proxy::http::upstream::{Deadline, Goal, Unreached, take_early};
use crate::route::RequestView;

/// A place for one request on a connection to an endpoint.
#[derive(Debug)]
pub(super) struct UpstreamStream {
    /// The place.
    pub lease: Lease,
    /// Where it leads.
    pub address: SocketAddr,
    /// The endpoint's load; `None` for an address that no table names.
    pub pick: Option<Pick>,
}

impl Caller<'_> {
    /// A stream for a request.
    pub(super) async fn acquire_http2(
        self,
        goal: Goal<'_>,
        deadline: Deadline,
        early: Option<Early>,
        passed: &Passed<'_>,
    ) -> Result<UpstreamStream, Unreached> {
        let (security, server_name) = self.security(goal, passed.asked_host());
        let early = early.filter(|_| security == Security::Way);
        if let Some((Early { io, pick }, address)) = take_early(early, goal, is_open)
            && access::may_reach(self.ctx, self.client(), address, Asked::Request(passed))
        {
            let key = self.pool_key(goal, address, pick.as_ref(), (security, server_name));
            let (builder, keepalive) = (builder(self.settings), self.settings.http2.upstream_keepalive());
            if let Ok(mut lease) = self.ctx.http.http2().add_unasked(&key, io, &builder, keepalive).await {
                // It may have been closed meanwhile, like one that has served before.
                lease.reused = true;
                return Ok(UpstreamStream { lease, address: key.address, pick });
            }
        }
        let connect = async |key: PoolKey| Ok((self.lease(&key, deadline).await?, key.address));
        let reached = self.reach(goal, passed, connect).await;
        reached.map(|((lease, address), pick)| UpstreamStream { lease, address, pick })
    }

    async fn lease(self, key: &PoolKey, deadline: Deadline) -> Result<Lease, Problem> {
        let mut by = None;
        loop {
            match self.ctx.http.http2().take(key) {
                Turn::Stream(lease) => return Ok(lease),
                Turn::Full => return Err(Problem::UpstreamFull),
                Turn::Wait(dialled) => {
                    let (until, late) = *by.get_or_insert_with(|| self.connect_by(deadline));
                    tokio::time::timeout_at(until, dialled.notified()).await.map_err(|_| late)?;
                }
                Turn::Dial(turn) => {
                    let io = self.dial(key, Within::Http2, deadline).await?;
                    let keepalive = self.settings.http2.upstream_keepalive();
                    let added = turn.add(io, &builder(self.settings), keepalive).await;
                    return added.map_err(|_| Problem::UpstreamClosed);
                }
            }
        }
    }

    /// The request's head for an HTTP/2 upstream.
    pub(super) fn http2_request(
        self,
        planned: &Planned<'_>,
        head: &RequestHead,
        request_id: &str,
    ) -> Result<Request<()>, Refusal> {
        let outgoing = self.outgoing(planned, head);
        let mut request = Request::new(());
        *request.version_mut() = Version::HTTP_2;
        *request.method_mut() = Method::from_bytes(head.method().as_bytes())
            .map_err(|_| Refusal::bad("method_untranslatable"))?;
        *request.uri_mut() =
            request_uri(self.upstream_scheme(planned), &outgoing.authority, &target(&outgoing, head))?;
        *request.headers_mut() = self.writer(planned, &outgoing, head, request_id).write_map();
        Ok(request)
    }
}

/// Waits for what the client's request needs, unless the client resets it.
pub(super) async fn unless_reset<T>(
    send: &mut SendResponse<Bytes>,
    acquiring: impl Future<Output = T>,
) -> Result<T, Problem> {
    tokio::select! {
        biased;
        acquired = acquiring => Ok(acquired),
        _ = poll_fn(|cx| send.poll_reset(cx)) => Err(Problem::ClientClosed),
    }
}

/// Path and query, which all but an absolute-form target are already.
fn target<'a>(outgoing: &'a Outgoing<'_>, head: &'a RequestHead) -> Cow<'a, str> {
    match (&outgoing.target, head.query()) {
        (Some(target), _) => target.into(),
        (None, _) if head.raw_target().starts_with('/') => head.raw_target().into(),
        (None, Some(query)) => format!("{}?{query}", head.path()).into(),
        (None, None) => head.path().into(),
    }
}

/// How connections to upstreams are set up. Nothing may be pushed to us.
fn builder(settings: &HttpSettings) -> client::Builder {
    let http2 = &settings.http2;
    let mut builder = client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(http2.stream_window)
        .initial_connection_window_size(http2.connection_window)
        .max_header_list_size(u32::try_from(settings.response.head_bytes).unwrap_or(u32::MAX))
        .max_send_buffer_size(http2.send_buffer)
        .initial_max_send_streams(usize::try_from(http2.max_streams).unwrap_or(100));
    builder
}
