//! Moving opaque bytes where TLS is spoken on either side.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::{PumpError, RelayFailure, Relayed, SCRATCH, STEPS_MAX, Step, end};
use crate::net::Stream;

/// As [`super::relay`] does it for sockets. A peer that leaves without saying so in TLS has been cut off, and so is the other.
pub async fn relay_stream(
    downstream: &mut Stream,
    upstream: &mut Stream,
    stop: impl Future<Output = ()>,
) -> Relayed {
    if let (Stream::Plain(downstream), Stream::Plain(upstream)) = (&mut *downstream, &mut *upstream) {
        return super::relay(downstream, upstream, stop).await;
    }
    let mut relayed = Relayed::default();
    let result = {
        let (client_read, client_write) = downstream.split();
        let (server_read, server_write) = upstream.split();
        let up = pump(client_read, server_write, &mut relayed.sent);
        let down = pump(server_read, client_write, &mut relayed.received);
        let both = async {
            tokio::try_join!(
                async { end(up.await, RelayFailure::Downstream, RelayFailure::Upstream) },
                async { end(down.await, RelayFailure::Upstream, RelayFailure::Downstream) },
            )
        };
        tokio::select! {
            biased;
            () = stop => Err(RelayFailure::Stopped),
            ended = both => ended,
        }
    };
    relayed.failure = match result {
        Ok((up, down)) => up.or(down),
        Err(failure) => Some(failure),
    };
    if relayed.failure.is_some() {
        let _ = downstream.set_zero_linger();
        let _ = upstream.set_zero_linger();
    }
    relayed
}

/// Copies one direction to its end and closes the writer's side after it.
async fn pump(
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    copied: &mut u64,
) -> Result<(), PumpError> {
    let mut moved = 0;
    loop {
        let stepped = std::future::poll_fn(|cx| poll_step(cx, &mut reader, &mut writer, copied)).await?;
        match stepped {
            Step::End => return writer.shutdown().await.map_err(PumpError::Write),
            Step::Rest(rest) => {
                writer.write_all(&rest).await.map_err(PumpError::Write)?;
                *copied += rest.len() as u64;
            }
            Step::Moved | Step::Idle => {}
        }
        // A session takes more than its socket does.
        writer.flush().await.map_err(PumpError::Write)?;
        moved += 1;
        if moved > STEPS_MAX {
            moved = 0;
            tokio::task::yield_now().await;
        }
    }
}

/// One read, once there is something, and one write.
fn poll_step(
    cx: &mut Context<'_>,
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    copied: &mut u64,
) -> Poll<Result<Step, PumpError>> {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut buf = ReadBuf::new(scratch);
        let read: io::Result<()> = ready!(Pin::new(reader).poll_read(cx, &mut buf));
        if let Err(error) = read {
            return Poll::Ready(Err(PumpError::Read(error)));
        }
        let bytes = buf.filled();
        if bytes.is_empty() {
            return Poll::Ready(Ok(Step::End));
        }
        let written = match Pin::new(writer).poll_write(cx, bytes) {
            Poll::Ready(Ok(written)) => written,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(PumpError::Write(error))),
            Poll::Pending => 0,
        };
        *copied += written as u64;
        let rest = &bytes[written..];
        Poll::Ready(Ok(if rest.is_empty() { Step::Moved } else { Step::Rest(rest.to_vec()) }))
    })
}
