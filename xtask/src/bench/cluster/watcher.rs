//! Looks at an agent all the time, and notes when it had which table in force.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use agent::admin::{ClusterDump, InForceDump};
use anyhow::{Context, Result};
use lab::agent::ADMIN;
use lab::http::Connection;
use lab::netns::Netns;
use lab::wait::wait_until;
use nix::sched::{CloneFlags, setns};

/// Between two looks: how exact times are, and few enough looks to cost the agent little.
const LOOK_EVERY: Duration = Duration::from_millis(3);
/// How long one look may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// A table that was in force.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// When it was first seen.
    pub at: Instant,
    /// Which it was.
    pub table: InForceDump,
}

/// A thread that looks at one agent, whichever process that is.
pub struct Watcher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    node: String,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    seen: Mutex<Vec<Seen>>,
    last: Mutex<ClusterDump>,
}

impl Watcher {
    /// Looks at the agent of a node, in its namespace.
    pub fn start(node: &str, netns: &Netns) -> Result<Self> {
        let namespace = netns.open()?;
        let shared = Arc::new(Shared::default());
        let looking = Arc::clone(&shared);
        let look = move || {
            if setns(namespace, CloneFlags::CLONE_NEWNET).is_ok() {
                looking.run();
            }
        };
        let thread = std::thread::Builder::new().name(format!("watch-{node}")).spawn(look)?;
        Ok(Self { shared, thread: Some(thread), node: node.to_owned() })
    }

    /// The first look, at or after that time, at a table for which this holds.
    pub fn wait(&self, since: Instant, limit: Duration, is: impl Fn(InForceDump) -> bool) -> Result<Instant> {
        let find = || {
            let seen = self.shared.seen();
            let current = seen.partition_point(|seen| seen.at < since).saturating_sub(1);
            seen[current..].iter().find(|seen| is(seen.table)).map(|seen| seen.at.max(since))
        };
        wait_until("a table", limit, find).with_context(|| {
            format!("{} has {:?}; it says {:?}", self.node, self.seen().last(), self.shared.last())
        })
    }

    /// All that was seen.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen().clone()
    }

    /// What the agent said last.
    pub fn last(&self) -> ClusterDump {
        self.shared.last().clone()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It says nothing.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn seen(&self) -> std::sync::MutexGuard<'_, Vec<Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn last(&self) -> std::sync::MutexGuard<'_, ClusterDump> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut connection = None;
        while !self.stop.load(Ordering::Relaxed) {
            let dump = look(&mut connection);
            let at = Instant::now();
            if let Some(dump) = dump {
                let mut seen = self.seen();
                if let Some(table) = dump.in_force
                    && seen.last().is_none_or(|last| last.table != table)
                {
                    seen.push(Seen { at, table });
                }
                *self.last() = dump;
            }
            // Looking at a steady pace is this thread's purpose; it waits for no other party.
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// One look, over the connection of the one before; `None`: the agent is away.
fn look(connection: &mut Option<Connection>) -> Option<ClusterDump> {
    let mut open = match connection.take() {
        Some(open) => open,
        None => Connection::open(ADMIN, LOOK_TIMEOUT).ok()?,
    };
    let response = open.get("localhost", "/cluster", &[]).ok()?;
    if open.is_reusable() {
        *connection = Some(open);
    }
    serde_json::from_slice(&response.body).ok()
}
