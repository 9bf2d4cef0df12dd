//! The request's direction of an exchange.

use std::future::pending;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, Interest};
use tokio::net::TcpStream;

use super::exchange::{Progress, Terms, client_body_problem, is_reset, take_direct};
use super::pace::{BODY_TOO_LONG, Pace};
use super::wire::{Fairness, write_parts};
use super::worker::{ReadSize, make_room};
use crate::http::body::BodyTransfer;
use crate::net::{ReadHalf, WriteHalf};
use crate::proxy::answer::Problem;

/// The request's direction.
pub(super) struct Upload<'a> {
    /// What binds the exchange.
    pub terms: Terms<'a>,
    /// What both directions tell.
    pub progress: &'a Progress,
    /// How fast the client must send.
    pub pace: Pace,
    /// Where the body comes from.
    pub client: ReadHalf<'a>,
    /// Where it goes.
    pub upstream: WriteHalf<'a>,
    /// What has been read of the client.
    pub client_in: &'a mut BytesMut,
    /// What is to be written before anything of `client_in`.
    pub upstream_out: &'a mut BytesMut,
}

impl Upload<'_> {
    /// Sends the request; ends only with a problem of the client's. An upstream that takes no more is left to the other
    /// direction, which may still get its answer.
    pub async fn run(mut self, request: &[u8], body: &mut BodyTransfer) -> Problem {
        let mut head = request;
        let settings = self.terms.settings;
        let mut size = ReadSize::new(settings.read_buffer, self.terms.load);
        let mut fair = Fairness::default();
        loop {
            if let Err(error) = body.stage(self.client_in, self.upstream_out) {
                return client_body_problem(error);
            }
            if settings.body_max.is_some_and(|most| body.bytes() > most) {
                return BODY_TOO_LONG;
            }
            let parts = [head, &self.upstream_out[..], &self.client_in[..body.direct()]];
            if let Err(error) = write_parts(&mut self.upstream, parts, None, &self.progress.sent).await {
                self.progress.upstream_reset.set(is_reset(&error));
                return pending().await;
            }
            head = &[];
            take_direct(body, self.client_in);
            self.upstream_out.clear();
            if body.is_done() {
                self.progress.uploaded.set(true);
                size.settle(self.client_in);
                return self.watch_client().await;
            }
            size.make_room(self.client_in);
            fair.turn(body.bytes()).await;
            let read = self.client.read_buf(self.client_in);
            match self.pace.wait_told(&self.progress.continued, read).await {
                Ok(Ok(bytes @ 1..)) => {
                    size.learn(bytes);
                    self.pace.took(bytes);
                }
                Ok(Ok(0) | Err(_)) => return Problem::ClientClosed,
                Err(problem) => return problem,
            }
        }
    }

    /// Reads ahead while the client is answered, which also tells when it is gone.
    async fn watch_client(&mut self) -> Problem {
        read_ahead(&mut self.client, self.client_in, self.terms.settings.ahead_bytes).await
    }
}

/// Reads up to `most` bytes of what follows a request; ends once the client is gone. One that has only closed its sending
/// side still waits for its answer: it is gone once its kernel answers ours (the next bytes, or a keepalive probe) with a
/// reset, which only an error of the socket tells where nothing is read any more.
pub(in crate::proxy) async fn read_ahead<R>(client: &mut R, input: &mut BytesMut, most: usize) -> Problem
where
    R: AsyncRead + AsRef<TcpStream> + Unpin,
{
    while input.len() < most {
        make_room(input);
        match client.read_buf(input).await {
            Ok(0) => break,
            Ok(_) => {}
            Err(_) => return Problem::ClientClosed,
        }
    }
    // Fails only where the runtime ends.
    let _ = client.as_ref().ready(Interest::ERROR).await;
    Problem::ClientClosed
}
