//! HTTP/2 frames by hand, so that a client can say what no library lets it say, and back: what a client's library makes
//! of the frames that come for it.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::client::{self, ResponseFuture};
use http::{HeaderMap, Method, Request};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::strict::Field;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// The largest frame that every peer takes.
const MAX_FRAME_BYTES: usize = 16 * 1024;

/// A client's connection with one request on it.
pub fn connection(fields: &[Field], body: Option<&[u8]>, trailers: Option<&[Field]>) -> Vec<u8> {
    let mut out = PREFACE.to_vec();
    frame(&mut out, SETTINGS, 0, 0, b"");
    let ends = |last: bool| if last { END_STREAM } else { 0 };
    frame(&mut out, HEADERS, END_HEADERS | ends(body.is_none() && trailers.is_none()), 1, &block(fields));
    if let Some(body) = body {
        frame(&mut out, DATA, ends(trailers.is_none()), 1, body);
    }
    if let Some(trailers) = trailers {
        frame(&mut out, HEADERS, END_HEADERS | END_STREAM, 1, &block(trailers));
    }
    out
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let payload = &payload[..payload.len().min(MAX_FRAME_BYTES)];
    let length = u32::try_from(payload.len()).unwrap_or_default();
    out.extend_from_slice(&length.to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// Literal fields with literal names, neither indexed nor Huffman coded (RFC 7541 section 6.2.2).
fn block(fields: &[Field]) -> Vec<u8> {
    let mut out = Vec::new();
    for field in fields {
        out.push(0);
        string(&mut out, field.name.as_bytes());
        string(&mut out, &field.value);
    }
    out
}

fn string(out: &mut Vec<u8>, text: &[u8]) {
    let Some(mut rest) = text.len().checked_sub(127) else {
        out.push(u8::try_from(text.len()).unwrap_or_default());
        return out.extend_from_slice(text);
    };
    out.push(127);
    while rest >= 128 {
        out.push(u8::try_from(rest % 128).unwrap_or_default() | 128);
        rest /= 128;
    }
    out.push(u8::try_from(rest).unwrap_or_default());
    out.extend_from_slice(text);
}

/// A response as a client's library sees it.
#[derive(Debug)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// The fields.
    pub fields: Vec<Field>,
    /// The body.
    pub body: Vec<u8>,
    /// The trailers.
    pub trailers: Vec<Field>,
}

/// Reads what came for the request of [`connection`]. An error that the library raises itself means that the frames are
/// no HTTP/2; nothing: the peer did not answer with a whole response.
pub async fn response(frames: &[u8], method: Method) -> Option<Response> {
    let open = Rc::new(Cell::new(false));
    let (mut send, connection) =
        client::handshake(Replay { frames, open: Rc::clone(&open) }).await.expect("writing to nobody");
    let mut connection = pin!(connection);
    let request = Request::builder().method(method).uri("http://a/").body(()).expect("a request");
    let (response, _) = send.send_request(request, true).expect("a stream");
    // The library must have sent its request before it is shown what came for it.
    let early = poll_fn(|cx| Poll::Ready(connection.as_mut().poll(cx))).await;
    assert!(early.is_pending(), "nothing has come yet");
    open.set(true);
    let mut reading = pin!(whole(response));
    let mut over = false;
    let read = poll_fn(|cx| {
        if !over && let Poll::Ready(ended) = connection.as_mut().poll(cx) {
            over = true;
            check_fault(ended.as_ref().err());
        }
        reading.as_mut().poll(cx)
    })
    .await;
    check_fault(read.as_ref().err());
    read.ok()
}

fn check_fault(error: Option<&h2::Error>) {
    assert!(!error.is_some_and(h2::Error::is_library), "the client got no HTTP/2: {error:?}");
}

async fn whole(response: ResponseFuture) -> Result<Response, h2::Error> {
    let (parts, mut incoming) = response.await?.into_parts();
    let mut body = Vec::new();
    while let Some(data) = incoming.data().await {
        let data: Bytes = data?;
        // Only fails for more than was received.
        let _ = incoming.flow_control().release_capacity(data.len());
        body.extend_from_slice(&data);
    }
    let trailers = incoming.trailers().await?.unwrap_or_default();
    let status = parts.status.as_u16();
    Ok(Response { status, fields: fields(&parts.headers), body, trailers: fields(&trailers) })
}

fn fields(map: &HeaderMap) -> Vec<Field> {
    let field = |(name, value): (&http::HeaderName, &http::HeaderValue)| Field {
        name: name.as_str().to_owned(),
        value: value.as_bytes().to_vec(),
    };
    map.iter().map(field).collect()
}

/// A connection on which everything has come already, and nobody reads.
struct Replay<'a> {
    frames: &'a [u8],
    open: Rc<Cell<bool>>,
}

impl AsyncRead for Replay<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.open.get() {
            // Polled again by hand once it is open.
            return Poll::Pending;
        }
        let (now, later) = self.frames.split_at(self.frames.len().min(buffer.remaining()));
        buffer.put_slice(now);
        self.frames = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Replay<'_> {
    fn poll_write(self: Pin<&mut Self>, _cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
