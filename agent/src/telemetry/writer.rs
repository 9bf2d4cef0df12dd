//! Lines to a pipe or file that may be slow, blocked or gone, without ever holding up the threads that make them.

use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fmt, io, thread};

/// Bytes that wait for the sink; lines that do not fit are dropped and counted.
const BUFFER_MAX_BYTES: usize = 4 << 20;

/// How long the writer waits for a sink that is in non-blocking mode and full.
const FULL_SINK_PAUSE: Duration = Duration::from_millis(10);

/// Appends lines to a buffer that a thread of its own writes out. Clones share the buffer; the thread ends after the
/// last of them is gone and the buffer is written.
#[derive(Clone)]
pub struct LineWriter {
    owner: Arc<Owner>,
}

struct Owner {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// The buffer is not empty any more, or the writer is closed.
    filled: Condvar,
    /// Everything has been written.
    drained: Condvar,
    dropped: AtomicU64,
}

#[derive(Default)]
struct State {
    buffer: Vec<u8>,
    /// The thread holds bytes that it has not written yet.
    writing: bool,
    closed: bool,
}

impl LineWriter {
    /// Starts the thread. Fails where no thread can be started.
    pub fn new(sink: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            filled: Condvar::new(),
            drained: Condvar::new(),
            dropped: AtomicU64::new(0),
        });
        let of_thread = Arc::clone(&shared);
        thread::Builder::new().name("log-writer".into()).spawn(move || of_thread.run(sink))?;
        Ok(Self { owner: Arc::new(Owner { shared }) })
    }

    /// Appends one line, newline included. Never blocks on the sink: the lock is held for a copy alone.
    pub fn append(&self, line: &[u8]) {
        let shared = &self.owner.shared;
        let mut state = shared.lock();
        if state.buffer.len() + line.len() > BUFFER_MAX_BYTES {
            shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let was_empty = state.buffer.is_empty();
        state.buffer.extend_from_slice(line);
        drop(state);
        if was_empty {
            shared.filled.notify_one();
        }
    }

    /// Waits until all lines are written, for `limit` at most; whether they are.
    pub fn flush(&self, limit: Duration) -> bool {
        let shared = &self.owner.shared;
        let (state, _) = shared
            .drained
            .wait_timeout_while(shared.lock(), limit, |state| !state.is_drained())
            .unwrap_or_else(PoisonError::into_inner);
        state.is_drained()
    }

    /// Lines dropped because the sink did not keep up.
    pub fn dropped(&self) -> u64 {
        self.owner.shared.dropped.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for LineWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LineWriter").field("dropped", &self.dropped()).finish_non_exhaustive()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.filled.notify_one();
    }
}

impl State {
    fn is_drained(&self) -> bool {
        self.buffer.is_empty() && !self.writing
    }
}

impl Shared {
    /// A panic while the lock was held leaves whole bytes behind, so the state is good to go on with.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, mut sink: impl Write) {
        let mut batch = Vec::new();
        loop {
            let mut state = self
                .filled
                .wait_while(self.lock(), |state| state.buffer.is_empty() && !state.closed)
                .unwrap_or_else(PoisonError::into_inner);
            if state.buffer.is_empty() {
                return;
            }
            std::mem::swap(&mut state.buffer, &mut batch);
            state.writing = true;
            drop(state);
            // A sink that fails for good (a closed pipe) loses the batch; there is nowhere left to report it to.
            let lost = if write_out(&mut sink, &batch).is_err() { count_lines(&batch) } else { 0 };
            self.dropped.fetch_add(lost, Ordering::Relaxed);
            batch.clear();
            self.lock().writing = false;
            self.drained.notify_all();
        }
    }
}

fn count_lines(batch: &[u8]) -> u64 {
    batch.split_inclusive(|byte| *byte == b'\n').count() as u64
}

/// Writes everything, also to a sink that another process has put into non-blocking mode.
fn write_out(sink: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match sink.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(FULL_SINK_PAUSE),
            Err(error) => return Err(error),
        }
    }
    sink.flush()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    /// Hands over what it gets.
    struct Channel(mpsc::SyncSender<Vec<u8>>);

    impl Write for Channel {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(|_| io::Error::from(ErrorKind::BrokenPipe))?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_arrive_in_order() {
        let (sender, receiver) = mpsc::sync_channel(64);
        let writer = LineWriter::new(Channel(sender)).expect("starts");
        for line in ["a\n", "b\n", "c\n"] {
            writer.append(line.as_bytes());
        }
        assert!(writer.flush(LIMIT));
        drop(writer);
        assert_eq!(receiver.iter().flatten().collect::<Vec<u8>>(), b"a\nb\nc\n");
    }

    #[test]
    fn a_blocked_sink_blocks_nobody_and_drops_are_counted() {
        // A rendezvous: nothing is taken until somebody receives.
        let (sender, receiver) = mpsc::sync_channel(0);
        let writer = LineWriter::new(Channel(sender)).expect("starts");
        let line = vec![b'\n'; BUFFER_MAX_BYTES / 4];
        for _ in 0..12 {
            writer.append(&line);
        }
        assert!(!writer.flush(Duration::from_millis(1)));
        // Four lines fit, and up to four more went to the thread before it blocked.
        assert!((4..=8).contains(&writer.dropped()), "{}", writer.dropped());
        drop(receiver);
    }

    #[test]
    fn a_broken_sink_counts_its_lines_as_dropped() {
        let (sender, receiver) = mpsc::sync_channel(0);
        drop(receiver);
        let writer = LineWriter::new(Channel(sender)).expect("starts");
        writer.append(b"a\n");
        assert!(writer.flush(LIMIT));
        assert_eq!(writer.dropped(), 1);
    }
}
