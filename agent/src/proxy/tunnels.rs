//! Streams of tunnels that come in for this node's pods: who dials whom is proven by certificates, whether they may is for the
//! pod's policies, and then each stream is a connection to the pod in its client's name.

use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use h2::server::SendResponse;
use http::{Response, StatusCode};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::spawn_local;

use super::access::{self, ACCESS_DENIED, Client};
use super::tcp;
use super::{Context, Downstream, Protocol, captured};
use crate::hbone::{self, Mesh, Role, Standing, StreamEnd};
use crate::identity::{PeerRefusal, SpiffeId};
use crate::model::Asked;
use crate::net::{ConnectSource, ConnectTarget, linger_refused};
use crate::telemetry::{ConnectionRecord, Flag, Origin, Recorder, ResponseFlags};

/// How long a tunnel may take to say that it is over.
const ENDING: Duration = Duration::from_secs(1);
/// How long one that comes in a drain takes streams: where each took but one, peers with many to open would dial in vain.
const BRIEFLY: Duration = Duration::from_secs(1);

/// Serves one connection of tunnels to its end.
pub(super) async fn serve(
    context: Context,
    (io, peer): (TcpStream, SocketAddr),
    listener: SocketAddr,
    mesh: Arc<Mesh>,
) {
    let start = (SystemTime::now(), Instant::now());
    let Ok(pod) = io.local_addr() else { return };
    if pod == listener {
        tracing::debug!(%peer, "connection to the tunnels' listener refused");
        return;
    }
    let Some((mut tunnel, standing)) = accept(&context, &mesh, (io, peer, pod), start).await else { return };
    let standing = Rc::new(standing);
    let origin = Origin::Tunnel(mesh.gateway(peer.ip(), standing.peer()));
    let lost = watch::Sender::new(None);
    let mut losing = pin!(standing.lost(&mesh));
    let mut drain = context.drain.clone();
    let mut leaving = pin!(async move {
        let _ = drain.wait_for(|draining| *draining).await;
        tokio::time::sleep(BRIEFLY.saturating_sub(start.1.elapsed())).await;
    });
    let mut draining = false;
    loop {
        let next = tokio::select! {
            next = tunnel.accept() => next,
            why = &mut losing => {
                mesh.counts().ended.refused(Role::Server, why);
                tracing::warn!(%peer, %pod, id = %standing.peer().id, reason = why.name(), "an open tunnel was ended");
                lost.send_replace(Some(why));
                return end(tunnel).await;
            }
            () = &mut leaving, if !draining => {
                draining = true;
                tunnel.graceful_shutdown();
                continue;
            }
        };
        match next {
            // Its address may have become another's since; that one has proven nothing here.
            Some(Ok((_, mut respond))) if !mesh.is_still(peer.ip(), standing.peer()) => {
                let why = PeerRefusal::OtherIdentity;
                refuse_stream(&context, &mesh, ((peer, pod), &standing.peer().id), why);
                answer_only(&mut respond, StatusCode::UNAUTHORIZED);
            }
            Some(Ok((request, respond))) if hbone::is_proof(&request) => {
                let (standing, mesh) = (Rc::clone(&standing), Arc::clone(&mesh));
                spawn_local(async move { standing.answer(&mesh, request, respond).await });
            }
            Some(Ok((request, mut respond))) => match hbone::destination(&request, pod.ip()) {
                Ok(to) => {
                    let (stop, standing) = (stopped(lost.subscribe()), Rc::clone(&standing));
                    let from = Asking { peer, origin: origin.clone(), standing };
                    spawn_local(stream(context.clone(), (from, to), (request.into_body(), respond), stop));
                }
                Err(why) => {
                    refuse_stream(&context, &mesh, ((peer, pod), &standing.peer().id), why);
                    answer_only(&mut respond, StatusCode::BAD_REQUEST);
                }
            },
            Some(Err(error)) => return tracing::debug!(%peer, %error, "a tunnel broke"),
            None => return,
        }
    }
}

/// Makes a tunnel of a connection; `None`: it became none, which has been counted, logged and recorded.
async fn accept(
    context: &Context,
    mesh: &Mesh,
    (io, peer, pod): (TcpStream, SocketAddr, SocketAddr),
    start: (SystemTime, Instant),
) -> Option<(hbone::Tunnel, Standing)> {
    let (expected, shaken) = match mesh.arrival(peer.ip(), pod.ip()) {
        Ok(terms) => (Some(terms.peer.clone()), Box::pin(hbone::accept(mesh, io, terms)).await),
        Err(PeerRefusal::NoOwnCertificate) => (None, Err(Box::pin(hbone::refuse(mesh, io)).await)),
        Err(why) => {
            let _ = io.set_zero_linger();
            (None, Err(why.into()))
        }
    };
    match shaken {
        Ok(made) => Some(made),
        Err(hbone::Unmade { refused, told }) => {
            mesh.refused(Role::Server, (peer, pod), expected.as_ref(), &refused);
            record_refused(context, ((peer, pod), None), start, refused.why);
            if let Some(mut io) = told {
                Box::pin(linger_refused(&mut io)).await;
            }
            None
        }
    }
}

/// A stream of a tunnel for which nothing is dialled; who asks for it has proven to be somebody.
fn refuse_stream(
    context: &Context,
    mesh: &Mesh,
    (ends, id): ((SocketAddr, SocketAddr), &SpiffeId),
    why: PeerRefusal,
) {
    mesh.refused_stream(ends, id, why);
    record_refused(context, (ends, Some(id)), (SystemTime::now(), Instant::now()), why);
}

/// A connection that does not become a tunnel, or a stream that leads nowhere. One who only looks whether somebody listens leaves no record.
fn record_refused(
    context: &Context,
    ((peer, pod), identity): ((SocketAddr, SocketAddr), Option<&SpiffeId>),
    (start, since): (SystemTime, Instant),
    why: PeerRefusal,
) {
    let flag = match why {
        PeerRefusal::Closed => return,
        PeerRefusal::Timeout => Flag::IdleTimeout,
        _ => Flag::DownstreamProtocol,
    };
    let table = context.tables.load();
    // What has proven nothing came by no tunnel.
    let proven = identity.is_some() && why != PeerRefusal::OtherIdentity;
    let origin = if proven { Origin::Tunnel(None) } else { Origin::Inbound };
    let record = ConnectionRecord {
        start,
        duration: since.elapsed(),
        origin: &origin,
        peer,
        original_destination: pod,
        source: table.workloads.get(&peer.ip()),
        identity,
        cluster: None,
        upstream: None,
        destination: table.workloads.get(&pod.ip()),
        flags: flag.into(),
        details: why.name(),
        limited: None,
        sent_bytes: 0,
        received_bytes: 0,
        rtt: None,
    };
    context.recorder.turned_away(why.name(), peer, pod);
    context.recorder.connection_opened(&record);
    context.recorder.connection(&record);
}

/// Tells the peer that a tunnel is over, and why as far as HTTP/2 can. Streams have been reset; nobody waits for a peer that
/// does not read.
async fn end(mut tunnel: hbone::Tunnel) {
    tunnel.abrupt_shutdown(hbone::LOST);
    let closed = async { while let Some(Ok(_)) = tunnel.accept().await {} };
    let _ = tokio::time::timeout(ENDING, closed).await;
}

/// Waits until the tunnel is lost; answers why.
async fn stopped(mut lost: watch::Receiver<Option<PeerRefusal>>) -> &'static str {
    match lost.wait_for(Option::is_some).await.map(|why| *why) {
        Ok(Some(why)) => why.name(),
        // The tunnel has ended by itself, which the stream learns from it.
        _ => std::future::pending().await,
    }
}

/// Who asks for a stream.
struct Asking {
    peer: SocketAddr,
    origin: Origin,
    /// As whom its tunnel has proven it.
    standing: Rc<Standing>,
}

async fn stream(
    context: Context,
    (from, to): (Asking, SocketAddr),
    halves: (RecvStream, SendResponse<Bytes>),
    stop: impl Future<Output = &'static str> + 'static,
) {
    let client = Client { peer: from.peer, origin: &from.origin };
    if access::depends_on_request(&context, client, to) {
        by_request(context, ((from.peer, from.origin), to), halves, stop).await;
    } else {
        Box::pin(opaque(&context, (&from, to), halves, stop)).await;
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
    ((peer, origin), to): ((SocketAddr, Origin), SocketAddr),
    (receive, mut respond): (RecvStream, SendResponse<Bytes>),
    stop: impl Future<Output = &'static str> + 'static,
) {
    let Ok((mut near, io)) = hbone::pair().await else {
        return answer_only(&mut respond, StatusCode::SERVICE_UNAVAILABLE);
    };
    let Ok(send) = respond.send_response(answer(StatusCode::OK), false) else { return };
    spawn_local(async move {
        hbone::relay(&mut near, (send, receive), stop).await;
    });
    let shown = context.open.show(peer, to, (&origin, SystemTime::now()));
    let (read, early, tls) = (BytesMut::new(), None, None);
    let downstream = Downstream { io, read, peer, original_destination: to, origin, early, shown, tls };
    captured::serve_inbound(context, downstream).await;
}

/// No request is looked at.
async fn opaque(
    context: &Context,
    (from, to): (&Asking, SocketAddr),
    (receive, mut respond): (RecvStream, SendResponse<Bytes>),
    stop: impl Future<Output = &'static str> + 'static,
) {
    let Asking { peer, origin, standing } = from;
    let (peer, start) = (*peer, (SystemTime::now(), Instant::now()));
    let shown = context.open.show(peer, to, (origin, start.0));
    shown.is(Protocol::Opaque, Some(to));
    let source = ConnectSource::Pod(peer.ip());
    let client = Client { peer, origin };
    let tell = |ended: &Ended, told: fn(&dyn Recorder, &ConnectionRecord<'_>)| {
        let table = context.tables.load();
        let record = ConnectionRecord {
            start: start.0,
            duration: start.1.elapsed(),
            origin,
            peer,
            original_destination: to,
            source: table.workloads.get(&peer.ip()),
            identity: Some(&standing.peer().id),
            cluster: None,
            upstream: Some(to),
            destination: table.workloads.get(&to.ip()),
            flags: ended.flags,
            details: ended.details,
            limited: None,
            sent_bytes: ended.moved.to_socket,
            received_bytes: ended.moved.to_tunnel,
            rtt: None,
        };
        told(&*context.recorder, &record);
    };
    let failed = |flag: Flag, details| Ended { flags: flag.into(), details, ..Ended::default() };
    let mut opened = false;
    let ended = if let Err(refused) = access::check(context, client, to, Asked::Opaque) {
        answer_only(&mut respond, StatusCode::UNAUTHORIZED);
        failed(Flag::AccessDenied, refused.details())
    } else {
        match tcp::connect(context, ConnectTarget { address: to, source }).await {
            Err(undialled) => {
                answer_only(&mut respond, StatusCode::SERVICE_UNAVAILABLE);
                failed(Flag::UpstreamConnectFailure, undialled.details())
            }
            Ok(mut io) => match respond.send_response(answer(StatusCode::OK), false) {
                Err(_) => failed(Flag::DownstreamClosed, "downstream_reset"),
                Ok(send) => {
                    opened = true;
                    tell(&Ended::default(), |recorder, record| recorder.connection_opened(record));
                    let refused = access::until_refused(context, client, (to, source), Asked::Opaque);
                    let stop = async {
                        tokio::select! {
                            () = refused => ACCESS_DENIED,
                            why = stop => why,
                        }
                    };
                    Ended::of(hbone::relay(&mut io, (send, receive), stop).await)
                }
            },
        }
    };
    if !opened {
        tell(&ended, |recorder, record| recorder.connection_opened(record));
    }
    tell(&ended, |recorder, record| recorder.connection(record));
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
            Some(hbone::Broken::Stopped(why)) => (Flag::AccessDenied.into(), why),
        };
        Self { moved, flags, details }
    }
}
