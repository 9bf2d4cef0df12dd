//! The HTTP servers of the three listeners.

use std::convert::Infallible;
use std::io;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Source;
use super::answer::{Answer, Question, answer};

/// Connections that one listener serves at a time; more wait in the kernel's backlog.
const CONNECTIONS_MAX: usize = 64;

/// Time for one connection, which carries one request: a slow or silent peer holds its place no longer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// Pause after an accept that failed for want of something (file descriptors) that does not come back at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a listener is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Everything, and changes to the log; on loopback.
    Admin,
    /// Metrics alone.
    Metrics,
    /// Liveness and readiness alone.
    Health,
}

/// Serves a bound listener until `stop` is true or gone. The three roles share nothing that blocks, so each can run on
/// a runtime of its own.
pub async fn serve(
    listener: StdListener,
    role: Role,
    source: Arc<Source>,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stopped(&mut stop) => return Ok(()),
            _ = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, role, Arc::clone(&source)));
                }
                Err(error) => {
                    tracing::warn!(%error, ?role, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

/// Returns once the server is to stop, or nobody is left to say so.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn connection(stream: TcpStream, role: Role, source: Arc<Source>) {
    let service = service_fn(move |request| {
        let response = respond(role, &request, &source);
        async move { Ok::<_, Infallible>(response) }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(CONNECTION_TIMEOUT, serving).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, ?role, "a connection broke off"),
        Err(_) => tracing::debug!(?role, "a connection took too long"),
    }
}

fn respond(role: Role, request: &Request<Incoming>, source: &Source) -> Response<Full<Bytes>> {
    let method = request.method();
    let answer = if [Method::GET, Method::HEAD, Method::POST].contains(method) {
        let (path, query) = (request.uri().path(), request.uri().query());
        answer(role, Question { post: method == Method::POST, path, query }, source)
    } else {
        Answer { status: 405, content_type: "text/plain", body: "use GET or POST\n".to_owned() }
    };
    let mut response = Response::new(Full::from(answer.body));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if answer.status == 405 {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST"));
    }
    response
}
