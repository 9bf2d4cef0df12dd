//! The ends of an exchange: the client's and the upstream's, each in both versions.

use std::cell::Cell;
use std::future::{pending, poll_fn};
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use h2::client::ResponseFuture;
use h2::server::SendResponse;
use http::{HeaderMap, Response, StatusCode};
use tokio::io::AsyncRead;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::body::{BodySink, Http1Sink, Http1Source, Http2Sink, Http2Source};
use super::exchange::{Answers, Progress, Responder};
use super::fault::{Failed, Side, before_answer};
use crate::http::body::{BodyTransfer, Framing};
use crate::http::h1::{Limits, RequestHead, ResponseHead, Version};
use crate::http::h2::read_response;
use crate::net::WriteHalf;
use crate::proxy::answer::Problem;
use crate::proxy::http::HttpSettings;
use crate::proxy::http::changes::Changes;
use crate::proxy::http::exchange::HeadReading;
use crate::proxy::http::heads::{Fate, ResponseWriter};
use crate::proxy::http::pace::Pace;
use crate::proxy::http::worker::HttpWorker;

/// An HTTP/2 client that waits for its answer.
pub(super) struct Http2Client<'a> {
    pub respond: &'a mut SendResponse<Bytes>,
    pub worker: &'a HttpWorker,
    /// How long it may take nothing.
    pub patience: Option<Duration>,
    pub changes: Changes<'a>,
    pub progress: &'a Progress,
}

impl Http2Client<'_> {
    fn response(&self, head: &ResponseHead) -> Response<()> {
        let changes = if head.is_interim() { Changes::default() } else { self.changes };
        let writer = ResponseWriter {
            head,
            client: Version::Http2,
            framing: Framing::None,
            fate: Fate::Keep,
            changes,
        };
        response(head.status(), writer.write_map(self.worker))
    }
}

/// A response's head for HTTP/2.
pub(super) fn response(status: u16, fields: HeaderMap) -> Response<()> {
    let mut response = Response::new(());
    // Both codecs take only statuses of three digits.
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
    *response.headers_mut() = fields;
    response
}

impl<'a> Responder for Http2Client<'a> {
    type Sink = Http2Sink<'a>;

    async fn interim(&mut self, head: &ResponseHead) -> Result<(), Problem> {
        let response = self.response(head);
        self.respond.send_informational(response).map_err(|_| Problem::ClientClosed)
    }

    async fn start(self, head: &ResponseHead, ends: bool) -> Result<Http2Sink<'a>, Problem> {
        let response = self.response(head);
        let stream = self.respond.send_response(response, ends).map_err(|_| Problem::ClientClosed)?;
        let taken = &self.progress.delivered;
        Ok(Http2Sink { stream, side: Side::Client, patience: self.patience, taken })
    }

    async fn gone(&mut self) {
        let _ = poll_fn(|cx| self.respond.poll_reset(cx)).await;
    }
}

/// An HTTP/1 client that waits for the answer of an HTTP/2 upstream.
pub(super) struct Http1Client<'a> {
    pub io: WriteHalf<'a>,
    pub out: &'a mut BytesMut,
    pub head: &'a RequestHead,
    pub worker: &'a HttpWorker,
    pub settings: &'a HttpSettings,
    pub changes: Changes<'a>,
    /// Whether the connection may be kept, but for a drain.
    pub may_keep: bool,
    /// Whether the agent drains, asked when the response comes.
    pub drain: &'a watch::Receiver<bool>,
    pub progress: &'a Progress,
    /// What becomes of the client's connection; told by the response's head.
    pub fate: &'a Cell<Fate>,
}

impl<'a> Http1Client<'a> {
    fn write(&mut self, head: &ResponseHead, framing: Framing, fate: Fate) {
        let changes = if head.is_interim() { Changes::default() } else { self.changes };
        ResponseWriter { head, client: self.head.version(), framing, fate, changes }
            .write(self.worker, self.out);
    }

    fn sink(self, chunked: bool) -> Http1Sink<'a, WriteHalf<'a>> {
        let patience = self.settings.body_timeout;
        let (io, out, written) = (self.io, self.out, &self.progress.delivered);
        Http1Sink { io, out, chunked, side: Side::Client, patience, written, reset: None }
    }

    /// A client that waits for 100 and gets its answer instead may send the body or not; only closing tells its next
    /// request from the body's bytes.
    fn body_in_doubt(&self) -> bool {
        self.head.expects_continue() && !self.progress.continued.get() && !self.progress.uploaded.get()
    }
}

impl<'a> Responder for Http1Client<'a> {
    type Sink = Http1Sink<'a, WriteHalf<'a>>;

    /// HTTP/1.0 knows no interim responses.
    async fn interim(&mut self, head: &ResponseHead) -> Result<(), Problem> {
        if self.head.version() == Version::Http10 {
            return Ok(());
        }
        self.write(head, Framing::None, Fate::Keep);
        let (io, patience) = (&mut self.io, self.settings.body_timeout);
        let mut sink = Http1Sink {
            io,
            out: &mut *self.out,
            chunked: false,
            side: Side::Client,
            patience,
            written: &self.progress.delivered,
            reset: None,
        };
        sink.flush(b"", b"").await
    }

    async fn start(mut self, head: &ResponseHead, ends: bool) -> Result<Self::Sink, Problem> {
        let framing = match (head.framing(), self.head.version()) {
            (Framing::UntilClose, Version::Http11 | Version::Http2) => Framing::Chunked,
            (framing, _) => framing,
        };
        let keep =
            self.may_keep && !*self.drain.borrow() && framing != Framing::UntilClose && !self.body_in_doubt();
        let fate = if keep { Fate::Keep } else { Fate::Close };
        self.fate.set(fate);
        self.write(head, framing, fate);
        let mut sink = self.sink(framing == Framing::Chunked);
        if ends {
            sink.finish(None).await?;
        } else {
            sink.flush(b"", b"").await?;
        }
        Ok(sink)
    }

    /// The connection's reading half tells.
    async fn gone(&mut self) {
        pending::<()>().await;
    }
}

/// An HTTP/2 upstream that was asked.
pub(super) struct Http2Upstream<'a> {
    pub response: ResponseFuture,
    pub body: Option<RecvStream>,
    pub to_head: bool,
    pub limits: &'a Limits,
}

impl Answers for Http2Upstream<'_> {
    type Source = Http2Source;

    async fn next_head(&mut self, into: &mut ResponseHead) -> Result<(), Failed> {
        let Self { response, body, .. } = self;
        let (status, fields) = poll_fn(|cx| {
            if let Poll::Ready(Some(interim)) = response.poll_informational(cx) {
                return Poll::Ready(
                    interim.map(|interim| (interim.status(), interim.into_parts().0.headers)),
                );
            }
            std::pin::Pin::new(&mut *response).poll(cx).map_ok(|answer| {
                let (parts, stream) = answer.into_parts();
                *body = Some(stream);
                (parts.status, parts.headers)
            })
        })
        .await
        .map_err(|error| before_answer(&error))?;
        read_response(into, status, &fields, self.to_head, self.limits)
            .map_err(|refusal| Problem::UpstreamProtocol(refusal.reason).into())
    }

    fn ends(&self, _head: &ResponseHead) -> bool {
        self.body.as_ref().is_none_or(RecvStream::is_end_stream)
    }

    fn into_body(self, _head: &ResponseHead) -> Result<Http2Source, Problem> {
        let body = self.body.ok_or(Problem::UpstreamTruncated)?;
        let pace = Pace::leisurely();
        Ok(Http2Source { body, side: Side::Upstream, pace, left: None, underscores: true })
    }
}

/// An HTTP/1.1 upstream that was asked.
pub(super) struct Http1Upstream<'a, R> {
    pub io: R,
    pub input: &'a mut BytesMut,
    pub staged: &'a mut BytesMut,
    pub reading: HeadReading<'a>,
    /// The response's body, once its head has been read.
    pub transfer: &'a mut BodyTransfer,
    /// Whether the request's direction has met a reset.
    pub reset: &'a Cell<bool>,
}

impl<'a, R: AsyncRead + AsRef<TcpStream> + Unpin> Answers for Http1Upstream<'a, R> {
    type Source = Http1Source<'a, R>;

    async fn next_head(&mut self, into: &mut ResponseHead) -> Result<(), Failed> {
        Ok(self.reading.read(&mut self.io, self.input, into).await?)
    }

    fn ends(&self, head: &ResponseHead) -> bool {
        head.framing().is_empty()
    }

    fn into_body(self, head: &ResponseHead) -> Result<Http1Source<'a, R>, Problem> {
        let Self { io, input, staged, transfer, reset, .. } = self;
        *transfer = BodyTransfer::new(head.framing(), Framing::UntilClose);
        Ok(Http1Source {
            io,
            input,
            staged,
            transfer,
            side: Side::Upstream,
            pace: Pace::leisurely(),
            most: None,
            ahead: 0,
            reset: Some(reset),
        })
    }
}
