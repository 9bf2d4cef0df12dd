//! Counters that all nodes share, as limits see them: what is asked and answered, and how keys are named.

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::LazyLock;
use std::time::Duration;

use ring::digest::{Context, SHA256};

/// A key, as all nodes name it: 128 bits of a SHA-256 of the limit and the key's values. Nobody can choose two that are the same, and
/// the store learns no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SharedKey(pub [u8; 16]);

/// Writes a key.
#[derive(Clone)]
pub struct KeyWriter(Context);

/// How the store counts. Times are in microseconds, as those of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SharedRule {
    /// A level that each unit raises by `unit`, up to `capacity`, and each microsecond lowers by `leak`.
    Rate {
        /// Of one unit.
        unit: u64,
        /// Of one microsecond.
        leak: u64,
        /// The highest level.
        capacity: u64,
    },
    /// At most so many units in any span.
    Window {
        /// How many.
        requests: u64,
        /// Microseconds.
        span: u64,
    },
}

/// What the store is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// Of which key.
    pub key: SharedKey,
    /// How it is counted.
    pub rule: SharedRule,
    /// For how many units.
    pub count: u32,
    /// Only a multiple of this is of use.
    pub step: u32,
}

/// What the store answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// How many units are let through.
    pub granted: u32,
    /// How many more would be.
    pub remaining: u64,
    /// Microseconds until one more step would be, where fewer are than were asked for.
    pub wait: u64,
    /// The store's time.
    pub at: u64,
}

/// The store could not be asked, or what it said is none of its answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Away;

/// How the store stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Whether it can be asked.
    pub up: bool,
    /// How many nodes share limits; at least 1.
    pub nodes: u32,
    /// When it came back without what it had counted, as the limits' time has it.
    pub forgot: Option<u64>,
}

/// What is done with an answer; called on any thread.
pub type OnAnswer = Box<dyn FnOnce(Result<Answer, Away>) + Send>;

/// Counters that all nodes share. No method waits.
pub trait Counters: Send + Sync {
    /// How they stand.
    fn standing(&self) -> Standing;

    /// Asks; `done` is called within a bounded time.
    fn take(&self, ask: Ask, done: OnAnswer);

    /// Gives back what was taken at that time of the store.
    fn give_back(&self, ask: Ask, at: u64);

    /// Calls `then` after so much time.
    fn later(&self, after: Duration, then: Box<dyn FnOnce() + Send>);
}

impl fmt::Debug for KeyWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyWriter")
    }
}

impl KeyWriter {
    /// For a limit whose meaning these bytes are.
    pub fn new(meaning: &[u8]) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(&(meaning.len() as u64).to_le_bytes());
        context.update(meaning);
        Self(context)
    }

    /// The key.
    pub fn key(self) -> SharedKey {
        let digest = self.0.finish();
        let mut key = [0; 16];
        key.copy_from_slice(&digest.as_ref()[..16]);
        SharedKey(key)
    }
}

impl std::hash::Hasher for KeyWriter {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The same on every machine.
    fn write_usize(&mut self, number: usize) {
        self.0.update(&(number as u64).to_le_bytes());
    }

    /// Not what a key is known by; see [`KeyWriter::key`].
    fn finish(&self) -> u64 {
        self.clone().key().local()
    }
}

impl SharedKey {
    /// What the node's own memory knows it by: with a secret of this process, as who finds keys that fall together could make it
    /// forget another one.
    pub fn local(self) -> u64 {
        static SECRET: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        SECRET.hash_one(self)
    }
}
