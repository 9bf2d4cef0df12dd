//! Reading and writing halves of connections: gathered writes, and patience that costs a timer only once one waits.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Writes all `parts`, in one call where the socket takes them, and sees them to the socket; `written` counts along. Waits
/// at most `patience` for each call.
pub(in crate::proxy) async fn write_parts(
    io: &mut (impl AsyncWrite + Unpin),
    parts: [&[u8]; 3],
    patience: Option<Duration>,
    written: &Cell<u64>,
) -> io::Result<()> {
    let whole: usize = parts.iter().map(|part| part.len()).sum();
    let mut done = 0;
    while done < whole {
        let (slices, count) = remaining(parts, done);
        let wrote = if count == 1 {
            patient(patience, io.write(&slices[0])).await?
        } else {
            patient(patience, io.write_vectored(&slices[..count])).await?
        };
        if wrote == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        done += wrote;
        written.set(written.get() + wrote as u64);
    }
    patient(patience, io.flush()).await
}

/// What is left of `parts` after `done` bytes, and in how many slices.
fn remaining(parts: [&[u8]; 3], mut done: usize) -> ([IoSlice<'_>; 3], usize) {
    let mut slices = [IoSlice::new(&[]), IoSlice::new(&[]), IoSlice::new(&[])];
    let mut count = 0;
    for part in parts {
        let skipped = done.min(part.len());
        done -= skipped;
        if skipped < part.len() {
            slices[count] = IoSlice::new(&part[skipped..]);
            count += 1;
        }
    }
    (slices, count)
}

/// Bytes of one body after which others of the worker get their turn. The runtime's own budget counts operations, and lets
/// a fast peer move tens of MiB with them.
const TURN_BYTES: u64 = 1024 * 1024;

/// Lets others run while a body moves without ever having to wait.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Fairness {
    yielded_at: u64,
}

impl Fairness {
    /// Yields where enough has moved since the last time; `moved`: bytes of the body so far.
    pub async fn turn(&mut self, moved: u64) {
        if moved - self.yielded_at >= TURN_BYTES {
            self.yielded_at = moved;
            tokio::task::yield_now().await;
        }
    }
}

/// Waits at most `patience`, else fails with `TimedOut`. The timer is only made if the operation is not ready at once.
pub(in crate::proxy) async fn patient<T>(
    patience: Option<Duration>,
    operation: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    let mut operation = pin!(operation);
    let Some(patience) = patience else { return operation.await };
    let first = poll_fn(|cx| Poll::Ready(operation.as_mut().poll(cx))).await;
    match first {
        Poll::Ready(result) => result,
        // Boxed, as few wait: the futures of all that write would be larger by a timer.
        Poll::Pending => match Box::pin(tokio::time::timeout(patience, operation)).await {
            Ok(result) => result,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_gathered_parts() {
        let parts: [&[u8]; 3] = [b"ab", b"", b"cde"];
        let check = |done, expected: &[&[u8]]| {
            let (slices, count) = remaining(parts, done);
            let seen: Vec<&[u8]> = slices[..count].iter().map(|slice| &**slice).collect();
            assert_eq!(seen, expected, "after {done}");
        };
        check(0, &[b"ab", b"cde"]);
        check(1, &[b"b", b"cde"]);
        check(2, &[b"cde"]);
        check(4, &[b"e"]);
        check(5, &[]);
    }

    #[tokio::test]
    async fn patience_ends() {
        let never = std::future::pending::<io::Result<()>>();
        let error = patient(Some(Duration::from_millis(1)), never).await.expect_err("nothing came");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let at_once = patient(Some(Duration::ZERO), std::future::ready(Ok(1))).await;
        assert_eq!(at_once.expect("ready"), 1);
    }
}
