//! Connections that the agent does not take, as there are too many: a stranger at a Gateway listener is told so in plain
//! HTTP/1.1, a captured pod sees its connection closed. Nothing waits for either.

use std::mem::MaybeUninit;
use std::net::SocketAddr;

use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::Context;
use super::admission::Crowded;
use super::answer::{AnswerTo, Problem};
use super::http::caller::Caller;
use super::http::heads::Fate;
use super::http::record::Trail;
use super::tls;
use crate::http::h1::Version;
use crate::telemetry::Origin;

/// What is read of a request that will not be answered otherwise: what stays unread makes the kernel reset the connection,
/// which may overtake the answer.
const READ_BYTES: usize = 4096;

/// Turns a connection away, which its owner then closes: one read, one write, each of what the kernel takes at once.
pub(super) fn refuse(context: &Context, io: &TcpStream, peer: SocketAddr, (origin, why): (Origin, Crowded)) {
    let Ok(original_destination) = io.local_addr() else { return };
    let problem = Problem::Crowded(why);
    let table = context.tables.load_full();
    let settings = context.http.settings(&origin);
    let caller =
        Caller { ctx: context, settings: &settings, origin: &origin, peer, original_destination, tls: None };
    let mut trail = Trail::new(Instant::now(), caller.ends(&table));
    trail.fail(problem);
    // A client that awaits TLS could not read it.
    if matches!(origin, Origin::Gateway(_))
        && tls::wanted(context, &origin, original_destination).is_none()
        && let Some(answer) = problem.answer()
    {
        let to = AnswerTo { client: Version::Http11, to_head: false, fate: Fate::Close };
        let mut out = BytesMut::new();
        answer.start(to, &context.http, &mut out);
        let bytes = answer.finish(to, &mut out);
        let socket = socket2::SockRef::from(io);
        // A new socket's buffers are empty: the answer fits, and a client that has gone away misses nothing.
        let _ = socket.recv(&mut [MaybeUninit::uninit(); READ_BYTES]);
        if socket.send(&out).is_ok_and(|sent| sent == out.len()) {
            (trail.status, trail.response_bytes) = (answer.status, bytes);
        }
    }
    context.recorder.turned_away(problem.details(), peer, original_destination);
    caller.record(&trail, None, "");
}
