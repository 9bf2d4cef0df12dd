//! A call of gRPC that streams answers, over HTTP/2 on a Unix socket: all of gRPC that a Workload API needs.

use bytes::Bytes;
use h2::RecvStream;
use h2::client::SendRequest;
use http::{HeaderMap, Method, Request, StatusCode};
use thiserror::Error;
use tokio::net::UnixStream;
use zeroize::Zeroizing;

use super::wire::WireError;

/// Compression and length come before each message.
const PREFIX_BYTES: usize = 5;
/// The longest message, as gRPC's libraries have it by default: a thousand identities have less.
const MESSAGE_MAX_BYTES: usize = 4 * 1024 * 1024;
/// A request without fields.
const EMPTY: &[u8] = &[0; PREFIX_BYTES];

/// Why a call came to an end.
#[derive(Debug, Error)]
pub(super) enum CallError {
    /// The socket.
    #[error("the socket: {0}")]
    Socket(#[from] std::io::Error),
    /// HTTP/2.
    #[error("HTTP/2: {0}")]
    Http(#[from] h2::Error),
    /// An answer that is not of gRPC.
    #[error("the answer is none of gRPC: status {0}")]
    NotGrpc(StatusCode),
    /// The server's word for it.
    #[error("the server answers {name} ({code}): {message}", name = status_name(*code))]
    Status {
        /// As gRPC numbers them.
        code: u32,
        /// What it says about it.
        message: String,
    },
    /// A message that is compressed, too long or cut.
    #[error("a message is compressed, longer than {MESSAGE_MAX_BYTES} bytes, or cut")]
    Framing,
    /// A message that is none.
    #[error("{0}")]
    Message(#[from] WireError),
    /// The server has nothing more to say.
    #[error("the server ended the stream")]
    Ended,
}

impl CallError {
    /// Whether the server does not know that call.
    pub(super) fn is_unimplemented(&self) -> bool {
        matches!(self, Self::Status { code: 12, .. })
    }
}

/// The name of a status that a Workload API answers.
fn status_name(code: u32) -> &'static str {
    match code {
        0 => "OK",
        3 => "InvalidArgument",
        7 => "PermissionDenied",
        12 => "Unimplemented",
        13 => "Internal",
        14 => "Unavailable",
        _ => "an error",
    }
}

/// Opens a connection; the future drives it.
pub(super) async fn connect(
    socket: &std::path::Path,
) -> Result<(SendRequest<Bytes>, impl Future<Output = Result<(), h2::Error>> + use<>), CallError> {
    let io = UnixStream::connect(socket).await?;
    Ok(h2::client::handshake(io).await?)
}

/// The messages of one call.
pub(super) struct Messages {
    body: RecvStream,
    read: Zeroizing<Vec<u8>>,
}

/// Calls a method that streams answers to an empty request.
pub(super) async fn call(requests: &SendRequest<Bytes>, path: &str) -> Result<Messages, CallError> {
    let mut requests = requests.clone().ready().await?;
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("http://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        // Proves that the request was not led here by a page in somebody's browser (SPIFFE Workload Endpoint, section 4).
        .header("workload.spiffe.io", "true")
        .header("user-agent", concat!("sluice/", env!("CARGO_PKG_VERSION")))
        .body(())
        .expect("constants");
    let (answer, mut send) = requests.send_request(request, false)?;
    send.send_data(Bytes::from_static(EMPTY), true)?;
    let answer = answer.await?;
    if answer.status() != StatusCode::OK {
        return Err(CallError::NotGrpc(answer.status()));
    }
    if let Some(error) = status(answer.headers()) {
        return Err(error);
    }
    Ok(Messages { body: answer.into_body(), read: Zeroizing::new(Vec::new()) })
}

impl Messages {
    /// The next message. Its buffer is wiped when it is dropped: it may hold keys.
    pub(super) async fn next(&mut self) -> Result<Zeroizing<Vec<u8>>, CallError> {
        loop {
            if let Some(message) = take(&mut self.read)? {
                return Ok(message);
            }
            match self.body.data().await {
                Some(piece) => {
                    let piece = piece?;
                    self.body.flow_control().release_capacity(piece.len())?;
                    append(&mut self.read, &piece);
                }
                None if self.read.is_empty() => {
                    let trailers = self.body.trailers().await?;
                    return Err(trailers.as_ref().and_then(status).unwrap_or(CallError::Ended));
                }
                None => return Err(CallError::Framing),
            }
        }
    }
}

/// Growing in place could leave a copy in memory that is given back.
fn append(read: &mut Zeroizing<Vec<u8>>, piece: &[u8]) {
    let mut longer = Zeroizing::new(Vec::with_capacity(read.len() + piece.len()));
    longer.extend_from_slice(read);
    longer.extend_from_slice(piece);
    *read = longer;
}

/// Takes one message off the front, where all of it is there.
fn take(read: &mut Zeroizing<Vec<u8>>) -> Result<Option<Zeroizing<Vec<u8>>>, CallError> {
    let Some((prefix, rest)) = read.split_first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
    let [compressed, length @ ..] = *prefix;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if compressed != 0 || length > MESSAGE_MAX_BYTES {
        return Err(CallError::Framing);
    }
    let Some((message, rest)) = rest.split_at_checked(length) else { return Ok(None) };
    let (message, rest) = (Zeroizing::new(message.to_vec()), Zeroizing::new(rest.to_vec()));
    *read = rest;
    Ok(Some(message))
}

/// The error that fields tell of; `None`: there is none.
fn status(fields: &HeaderMap) -> Option<CallError> {
    let code = fields.get("grpc-status")?.to_str().ok()?.parse().unwrap_or(2);
    let message = fields.get("grpc-message").and_then(|text| text.to_str().ok()).unwrap_or_default();
    (code != 0).then(|| CallError::Status { code, message: message.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_one_by_one_however_they_are_cut() {
        let bytes = [&[0, 0, 0, 0, 2][..], b"ab", &[0, 0, 0, 0, 0], &[0, 0, 0, 0, 1], b"c"].concat();
        for cut in 1..=bytes.len() {
            let mut read = Zeroizing::new(Vec::new());
            let mut messages = Vec::new();
            for piece in bytes.chunks(cut) {
                append(&mut read, piece);
                while let Some(message) = take(&mut read).expect("good framing") {
                    messages.push(message.to_vec());
                }
            }
            assert_eq!(messages, [b"ab".to_vec(), vec![], b"c".to_vec()], "in pieces of {cut}");
            assert!(read.is_empty());
        }
        for bad in [&[1, 0, 0, 0, 1][..], &[0, 0xff, 0, 0, 0]] {
            assert!(take(&mut Zeroizing::new(bad.to_vec())).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_the_server_says_is_told() {
        let fields = |pairs: &[(&'static str, &'static str)]| {
            pairs
                .iter()
                .map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value")))
                .collect()
        };
        let told = |pairs| status(&fields(pairs)).map(|error| error.to_string());
        assert_eq!(told(&[]), None);
        assert_eq!(told(&[("grpc-status", "0")]), None);
        let denied = "the server answers PermissionDenied (7): no identity issued";
        assert_eq!(
            told(&[("grpc-status", "7"), ("grpc-message", "no identity issued")]).as_deref(),
            Some(denied)
        );
        assert_eq!(told(&[("grpc-status", "x")]).as_deref(), Some("the server answers an error (2): "));
    }
}
