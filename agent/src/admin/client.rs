//! Asks a running agent, for the command line.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::header::HOST;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Largest answer that is taken: dumps of large clusters have some ten megabytes.
const ANSWER_MAX_BYTES: usize = 256 << 20;

/// Time for the whole exchange.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("no agent answers at {address} (is `sluice agent` running, and is --admin right?)")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// It took too long.
    #[error("the agent at {address} did not answer within {} s", TIMEOUT.as_secs())]
    Timeout {
        /// Where.
        address: SocketAddr,
    },
    /// The exchange broke off.
    #[error("the agent at {address} broke off its answer: {reason}")]
    Broken {
        /// Where.
        address: SocketAddr,
        /// What happened.
        reason: String,
    },
    /// The path cannot be asked for.
    #[error("`{path}` is no path: {source}")]
    Path {
        /// As it was given.
        path: String,
        /// What is wrong with it.
        source: hyper::http::Error,
    },
    /// The agent refused.
    #[error("the agent at {address} answered {status}: {body}")]
    Refused {
        /// Where.
        address: SocketAddr,
        /// The status.
        status: StatusCode,
        /// What it said.
        body: String,
    },
}

/// Asks for a path, such as `/routes`.
pub async fn get(address: SocketAddr, path: &str) -> Result<Bytes, ClientError> {
    exchange(address, Method::GET, path).await
}

/// Changes something, such as `/logging?level=debug`.
pub async fn post(address: SocketAddr, path: &str) -> Result<Bytes, ClientError> {
    exchange(address, Method::POST, path).await
}

async fn exchange(address: SocketAddr, method: Method, path: &str) -> Result<Bytes, ClientError> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, address.to_string())
        .body(Empty::<Bytes>::new())
        .map_err(|source| ClientError::Path { path: path.to_owned(), source })?;
    let (status, body) =
        timeout(TIMEOUT, send(address, request)).await.map_err(|_| ClientError::Timeout { address })??;
    if status.is_success() {
        return Ok(body);
    }
    let body = String::from_utf8_lossy(&body).trim_end().to_owned();
    Err(ClientError::Refused { address, status, body })
}

async fn send(
    address: SocketAddr,
    request: Request<Empty<Bytes>>,
) -> Result<(StatusCode, Bytes), ClientError> {
    let broken = |reason: String| ClientError::Broken { address, reason };
    let stream =
        TcpStream::connect(address).await.map_err(|source| ClientError::Connect { address, source })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| broken(error.to_string()))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| broken(error.to_string()))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_MAX_BYTES).collect().await;
        let body = body.map_err(|error| broken(error.to_string()))?;
        Ok((status, body.to_bytes()))
    };
    // The connection only has to be driven while the exchange lasts; an error of it shows in the exchange too.
    tokio::pin!(exchange);
    tokio::select! {
        result = &mut exchange => result,
        _ = connection => exchange.await,
    }
}
