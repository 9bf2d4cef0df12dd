//! One question to one pod. It is sent from the node's own address, as the kubelet's are, and with the agent's mark, so that
//! nothing of ours takes it for a client's.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::grpc;
use super::roster::Job;
use crate::http::grpc::GrpcStatus;
use crate::http::h1::{HeadScan, Limits, ResponseHead};
use crate::model::ProbeCheck;
use crate::net::finish_connect;

const USER_AGENT: &str = concat!("sluice-probe/", env!("CARGO_PKG_VERSION"));
/// The largest head of an answer that is read.
const HEAD_MAX: usize = 16 << 10;
/// How much of a body is read after the head, and for how long: a server whose answer is cut off may log an error.
const BODY_MAX: u64 = 64 << 10;
const GOODBYE: Duration = Duration::from_millis(100);

/// Why a pod does not pass.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// It could not be reached, or went away.
    #[error("{0}")]
    Connection(String),
    /// It took too long.
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// It answered with this status.
    #[error("HTTP {0}")]
    Status(u16),
    /// What it answers is not in order.
    #[error("{0}")]
    Malformed(&'static str),
    /// It does not speak HTTP/2, or not well.
    #[error("HTTP/2: {0}")]
    Http2(#[from] h2::Error),
    /// The call failed.
    #[error("gRPC status {0}")]
    Grpc(&'static str),
    /// It says that it does not serve.
    #[error("gRPC health {0}")]
    NotServing(&'static str),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Connection(match error.kind() {
            io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
            _ => error.to_string(),
        })
    }
}

/// Asks; an answer that is not there in time is none. `mark`: that of the agent's own sockets.
pub async fn probe(job: &Job, mark: Option<u32>) -> Result<(), Failed> {
    let asked = async {
        let stream = connect(job.address, mark).await?;
        match &job.check {
            ProbeCheck::Tcp { .. } => Ok(()),
            ProbeCheck::Http { path, headers, .. } => {
                let host = headers.iter().find(|(name, _)| &**name == "host");
                let host = host.map_or_else(|| job.address.to_string(), |(_, value)| value.to_string());
                let mut request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
                let given = |name: &str| headers.iter().any(|(known, _)| &**known == name);
                for (name, value) in [("user-agent", USER_AGENT), ("accept", "*/*")] {
                    if !given(name) {
                        // Writing into a String cannot fail.
                        let _ = write!(request, "{name}: {value}\r\n");
                    }
                }
                for (name, value) in headers.iter().filter(|(name, _)| !OURS.contains(&&**name)) {
                    let _ = write!(request, "{name}: {value}\r\n");
                }
                request.push_str("\r\n");
                get(stream, &request).await
            }
            ProbeCheck::Grpc { service, .. } => call(stream, job.address, service).await,
        }
    };
    tokio::time::timeout(job.timeout, asked).await.unwrap_or(Err(Failed::TimedOut(job.timeout)))
}

/// Header fields that a request has once, whatever documents say.
const OURS: [&str; 2] = ["host", "connection"];

async fn connect(address: SocketAddr, mark: Option<u32>) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    socket.set_tcp_nodelay(true)?;
    finish_connect(socket, address).await
}

async fn get(mut stream: TcpStream, request: &str) -> Result<(), Failed> {
    stream.write_all(request.as_bytes()).await?;
    let limits = Limits { head_bytes: HEAD_MAX, ..Limits::default() };
    let mut buffer = Vec::with_capacity(1024);
    let status = loop {
        let mut scan = HeadScan::default();
        let end = loop {
            match scan.find_end(&buffer, &limits) {
                Ok(Some(end)) => break end,
                Ok(None) => {}
                Err(refusal) => return Err(Failed::Malformed(refusal.reason)),
            }
            if stream.read_buf(&mut buffer).await? == 0 {
                return Err(Failed::Connection("it closes without an answer".to_owned()));
            }
        };
        let mut head = ResponseHead::default();
        head.parse(&buffer[..end], false, &limits).map_err(|refusal| Failed::Malformed(refusal.reason))?;
        if !head.is_interim() {
            break head.status();
        }
        buffer.drain(..end);
    };
    let rest = async {
        let mut body = stream.take(BODY_MAX);
        // Whatever comes of it, the answer has been read.
        let _ = tokio::io::copy(&mut body, &mut tokio::io::sink()).await;
    };
    let _ = tokio::time::timeout(GOODBYE, rest).await;
    if (200..400).contains(&status) { Ok(()) } else { Err(Failed::Status(status)) }
}

async fn call(stream: TcpStream, address: SocketAddr, service: &str) -> Result<(), Failed> {
    let (send, mut connection) = h2::client::handshake(stream).await?;
    let mut checking = std::pin::pin!(check(send, address, service));
    let answer = tokio::select! {
        biased;
        answer = &mut checking => {
            // Says goodbye, now that nothing is sent any more.
            let _ = tokio::time::timeout(GOODBYE, connection).await;
            answer?
        }
        // Its last bytes may have been the answer.
        ended = &mut connection => match (checking.await, ended) {
            (Ok(answer), _) => answer,
            (Err(failed), Ok(())) => return Err(failed),
            (Err(_), Err(error)) => return Err(error.into()),
        },
    };
    grpc::answer(&answer)
}

async fn check(
    send: h2::client::SendRequest<Bytes>,
    address: SocketAddr,
    service: &str,
) -> Result<Vec<u8>, Failed> {
    let request = http::Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", USER_AGENT)
        .body(())
        .map_err(|_| Failed::Malformed("the address makes no request"))?;
    let mut send = send.ready().await?;
    let (response, mut body) = send.send_request(request, false)?;
    body.send_data(grpc::request(service).into(), true)?;
    let response = response.await?;
    if response.status() != http::StatusCode::OK {
        return Err(Failed::Status(response.status().as_u16()));
    }
    let at_once = response.headers().get("grpc-status").cloned();
    let mut stream = response.into_body();
    let mut answer = Vec::new();
    while let Some(piece) = stream.data().await {
        let piece = piece?;
        // What is counted here is given back as a window, so that a server with much to say can come to its end.
        stream.flow_control().release_capacity(piece.len())?;
        if answer.len() + piece.len() > grpc::ANSWER_MAX {
            return Err(Failed::Malformed("the answer is too long"));
        }
        answer.extend_from_slice(&piece);
    }
    let trailers = stream.trailers().await?;
    let status = trailers.and_then(|trailers| trailers.get("grpc-status").cloned()).or(at_once);
    match status.map(|status| GrpcStatus::parse(status.as_bytes())) {
        Some(GrpcStatus(0)) => Ok(answer),
        Some(other) => Err(Failed::Grpc(other.name())),
        None => Err(Failed::Malformed("the answer has no grpc-status")),
    }
}

#[cfg(test)]
mod tests;
