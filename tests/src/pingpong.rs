//! A client that sends a byte every millisecond and wants it back, and knows how long it ever had to wait: the longest
//! time between two answers is the longest time that an application was cut off.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::lab::Pod;
use crate::wait::wait_for;

const BEAT: Duration = Duration::from_millis(1);
/// Between two connections, so that those that are remembered after their end leave ports for new ones.
const PAUSE: Duration = Duration::from_millis(5);
/// Longer than any gap that a test would call good.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);

/// Whether a client keeps its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeps {
    /// For as long as it goes; then it makes another one at once, as any client would.
    One,
    /// A new one for each byte.
    None,
}

/// A client at work.
#[derive(Debug)]
pub struct PingPong {
    shared: Arc<Shared>,
    thread: JoinHandle<Rhythm>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    answers: AtomicU64,
}

/// How it went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rhythm {
    /// Bytes that came back.
    pub answers: u64,
    /// When connections failed, counted from the start, and how.
    pub failures: Vec<(Duration, String)>,
    /// The longest time between two answers.
    pub longest: Duration,
    /// The longest time that a thread which only sleeps had to wait for its turn, beyond what it asked for: no answer can
    /// come sooner on such a machine.
    pub machine: Duration,
}

/// Answers every byte in a pod, for as long as the test lives.
pub fn echo(pod: &Pod<'_>, address: SocketAddr) -> Result<()> {
    let listener = pod.in_netns(|| TcpListener::bind(address))?.context("binding the echo")?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(stream));
        }
    });
    Ok(())
}

fn answer(mut stream: TcpStream) {
    let mut byte = [0];
    while matches!(stream.read(&mut byte), Ok(1)) {
        if stream.write_all(&byte).is_err() {
            return;
        }
    }
}

impl PingPong {
    /// Starts a client in a pod.
    pub fn start(pod: &Pod<'_>, to: SocketAddr, keeps: Keeps) -> Result<Self> {
        let netns = pod.netns().open()?;
        let shared = Arc::new(Shared::default());
        let ours = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("ping".to_owned())
            .spawn(move || {
                setns(&netns, CloneFlags::CLONE_NEWNET).expect("the namespace was opened");
                run(to, keeps, &ours)
            })
            .context("starting a client")?;
        Ok(Self { shared, thread })
    }

    /// Waits until so many more bytes have come back.
    pub fn wait_answers(&self, count: u64, limit: Duration) -> Result<()> {
        let from = self.shared.answers.load(Ordering::Relaxed);
        wait_for("answers to come back", limit, || {
            self.shared.answers.load(Ordering::Relaxed) >= from + count
        })
    }

    /// Ends it.
    pub fn stop(self) -> Result<Rhythm> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the client panicked"))
    }
}

fn run(to: SocketAddr, keeps: Keeps, shared: &Arc<Shared>) -> Rhythm {
    let (sleeper, mut rhythm) = (sleep_along(shared), Rhythm::default());
    let (mut kept, mut last, began) = (None, None::<Instant>, Instant::now());
    let pause = if keeps == Keeps::One { BEAT } else { PAUSE };
    while !shared.stop.load(Ordering::Relaxed) {
        match exchange(to, kept.take()) {
            Ok(stream) => {
                let now = Instant::now();
                rhythm.longest = rhythm.longest.max(last.map_or(Duration::ZERO, |last| now - last));
                last = Some(now);
                rhythm.answers += 1;
                shared.answers.fetch_add(1, Ordering::Relaxed);
                kept = (keeps == Keeps::One).then_some(stream);
            }
            // Few enough to keep: each takes a beat or more.
            Err(error) => rhythm.failures.push((began.elapsed(), error.to_string())),
        }
        std::thread::sleep(pause);
    }
    // Whoever is still waiting waited until now.
    rhythm.longest = rhythm.longest.max(last.map_or(Duration::ZERO, |last| last.elapsed()));
    rhythm.machine = sleeper.join().unwrap_or_default();
    rhythm
}

/// One byte there and back.
fn exchange(to: SocketAddr, kept: Option<TcpStream>) -> std::io::Result<TcpStream> {
    let mut stream = if let Some(stream) = kept {
        stream
    } else {
        let stream = TcpStream::connect_timeout(&to, ANSWER_TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream
    };
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

fn sleep_along(shared: &Arc<Shared>) -> JoinHandle<Duration> {
    let shared = Arc::clone(shared);
    std::thread::spawn(move || {
        let mut longest = Duration::ZERO;
        while !shared.stop.load(Ordering::Relaxed) {
            let start = Instant::now();
            std::thread::sleep(BEAT);
            longest = longest.max(start.elapsed().saturating_sub(BEAT));
        }
        longest
    })
}
