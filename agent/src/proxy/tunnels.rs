//! Streams of tunnels that come in for this node's pods: who dials whom is proven by certificates, whether they may is for the
//! pod's policies, and then each stream is a connection to the pod in its client's name.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use h2::server::SendResponse;
use http::{Request, Response, StatusCode};
use tokio::net::TcpStream;
use tokio::task::spawn_local;

use super::access::{self, ACCESS_DENIED};
use super::tcp;
use super::{Context, Downstream, Protocol, captured};
use crate::hbone::{self, Mesh, Role, StreamEnd};
use crate::identity::PeerRefusal;
use crate::model::Asked;
use crate::net::{ConnectSource, ConnectTarget};
use crate::telemetry::{ConnectionRecord, Flag, Origin, ResponseFlags};

/// Serves one connection of tunnels to its end.
pub(super) async fn serve(
    context: Context,
    (io, peer): (TcpStream, SocketAddr),
    listener: SocketAddr,
    mesh: Arc<Mesh>,
) {
    let Ok(pod) = io.local_addr() else { return };
    if pod == listener {
        tracing::debug!(%peer, "connection to the tunnels' listener refused");
        return;
    }
    let terms = match mesh.arrival(peer.ip(), pod.ip()) {
        Ok(terms) => terms,
        Err(why) => {
            mesh.counts().refused(Role::Server, why);
            let _ = io.set_zero_linger();
            return refused(peer, pod, why);
        }
    };
    let mut tunnel = match Box::pin(hbone::accept(&mesh, io, terms)).await {
        Ok(tunnel) => tunnel,
        Err(why) => return refused(peer, pod, why),
    };
    let mut drain = context.drain.clone();
    let mut draining = false;
    loop {
        let next = tokio::select! {
            next = tunnel.accept() => next,
            _ = drain.wait_for(|draining| *draining), if !draining => {
                draining = true;
                tunnel.graceful_shutdown();
                continue;
            }
        };
        match next {
            Some(Ok((request, respond))) => {
                spawn_local(stream(context.clone(), (peer, pod), request, respond));
            }
            Some(Err(error)) => return tracing::debug!(%peer, %error, "a tunnel broke"),
            None => return,
        }
    }
}

fn refused(peer: SocketAddr, pod: SocketAddr, why: PeerRefusal) {
    tracing::debug!(%peer, %pod, reason = why.name(), "a tunnel was refused");
}

async fn stream(
    context: Context,
    (peer, pod): (SocketAddr, SocketAddr),
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let to = match hbone::destination(&request, pod.ip()) {
        Ok(to) => to,
        Err(status) => return answer_only(&mut respond, status),
    };
    let receive = request.into_body();
    if access::depends_on_request(&context, peer.ip(), to) {
        by_request(context, (peer, to), receive, respond).await;
    } else {
        Box::pin(opaque(&context, (peer, to), receive, respond)).await;
    }
}

fn answer(status: StatusCode) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    response
}

fn answer_only(respond: &mut SendResponse<Bytes>, status: StatusCode) {
    // A peer that is gone needs no answer.
    let _ = respond.send_response(answer(status), true);
}

/// Each request is judged, as for a connection that was captured on its way to the pod.
async fn by_request(
    context: Context,
    (peer, to): (SocketAddr, SocketAddr),
    receive: RecvStream,
    mut respond: SendResponse<Bytes>,
) {
    let Ok((mut near, io)) = hbone::pair().await else {
        return answer_only(&mut respond, StatusCode::SERVICE_UNAVAILABLE);
    };
    let Ok(send) = respond.send_response(answer(StatusCode::OK), false) else { return };
    spawn_local(async move {
        hbone::relay(&mut near, (send, receive), std::future::pending()).await;
    });
    let shown = context.open.show(peer, to, (&Origin::Inbound, SystemTime::now()));
    let (read, origin) = (BytesMut::new(), Origin::Inbound);
    let (early, tls) = (None, None);
    let downstream = Downstream { io, read, peer, original_destination: to, origin, early, shown, tls };
    captured::serve_inbound(context, downstream).await;
}

/// No request is looked at.
async fn opaque(
    context: &Context,
    (peer, to): (SocketAddr, SocketAddr),
    receive: RecvStream,
    mut respond: SendResponse<Bytes>,
) {
    let start = (SystemTime::now(), Instant::now());
    let shown = context.open.show(peer, to, (&Origin::Inbound, start.0));
    shown.is(Protocol::Opaque, Some(to));
    let source = ConnectSource::Pod(peer.ip());
    let record = |ended: &Ended| {
        let table = context.tables.load();
        context.recorder.connection(&ConnectionRecord {
            start: start.0,
            duration: start.1.elapsed(),
            origin: &Origin::Inbound,
            peer,
            original_destination: to,
            source: table.workloads.get(&peer.ip()),
            cluster: None,
            upstream: Some(to),
            destination: table.workloads.get(&to.ip()),
            flags: ended.flags,
            details: ended.details,
            sent_bytes: ended.moved.to_socket,
            received_bytes: ended.moved.to_tunnel,
            rtt: None,
        });
    };
    let failed = |flag: Flag, details| Ended { flags: flag.into(), details, ..Ended::default() };
    let ended = if access::check(context, peer, to, Asked::Opaque).is_err() {
        answer_only(&mut respond, StatusCode::UNAUTHORIZED);
        failed(Flag::AccessDenied, ACCESS_DENIED)
    } else {
        match tcp::connect(context, ConnectTarget { address: to, source }).await {
            Err(undialled) => {
                answer_only(&mut respond, StatusCode::SERVICE_UNAVAILABLE);
                failed(Flag::UpstreamConnectFailure, undialled.details())
            }
            Ok(mut io) => match respond.send_response(answer(StatusCode::OK), false) {
                Err(_) => failed(Flag::DownstreamClosed, "downstream_reset"),
                Ok(send) => {
                    let stop = access::until_refused(context, peer, (to, source), Asked::Opaque);
                    Ended::of(hbone::relay(&mut io, (send, receive), stop).await)
                }
            },
        }
    };
    record(&ended);
}

/// How a stream went.
#[derive(Default)]
struct Ended {
    moved: StreamEnd,
    flags: ResponseFlags,
    details: &'static str,
}

impl Ended {
    fn of(moved: StreamEnd) -> Self {
        let (flags, details) = match moved.broken {
            None => (ResponseFlags::default(), ""),
            Some(hbone::Broken::Tunnel) => (Flag::DownstreamClosed.into(), "downstream_reset"),
            Some(hbone::Broken::Socket) => (Flag::UpstreamClosed.into(), "upstream_reset"),
            Some(hbone::Broken::Stopped) => (Flag::AccessDenied.into(), ACCESS_DENIED),
        };
        Self { moved, flags, details }
    }
}
