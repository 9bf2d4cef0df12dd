//! The scripts that Redis runs: every change is one of them, and so happens as a whole or not at all.

use std::fmt::Write as _;
use std::sync::LazyLock;

use ::redis::Cmd;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

/// Which of a connection's lines a call takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// Its question and its answer are short, and what is not in time is of no use.
    Prompt,
    /// Either may be as large as a table.
    Bulk,
}

/// A script with the name that Redis knows it by.
pub(super) struct Script {
    pub lane: Lane,
    source: &'static str,
    sha1: String,
}

macro_rules! scripts {
    ($($name:ident: $lane:ident = $file:literal;)+) => {$(
        pub(super) static $name: LazyLock<Script> = LazyLock::new(|| {
            Script::new(Lane::$lane, concat!(include_str!("scripts/prelude.lua"), include_str!($file)))
        });
    )+};
}

scripts! {
    ACQUIRE: Prompt = "scripts/acquire.lua";
    RENEW: Prompt = "scripts/renew.lua";
    RELEASE: Prompt = "scripts/release.lua";
    LEASE: Prompt = "scripts/lease.lua";
    BEAT: Prompt = "scripts/beat.lua";
    LEAVE: Prompt = "scripts/leave.lua";
    MEMBERS: Prompt = "scripts/members.lua";
    DOCUMENTS: Bulk = "scripts/documents.lua";
    SUMS: Bulk = "scripts/sums.lua";
    WRITE: Bulk = "scripts/write.lua";
    PUBLISH: Bulk = "scripts/publish.lua";
    APPEND: Bulk = "scripts/append.lua";
    SNAPSHOT: Bulk = "scripts/snapshot.lua";
    DELTAS: Bulk = "scripts/deltas.lua";
    FITNESS: Prompt = "scripts/fitness.lua";
    TAKE: Prompt = "scripts/take.lua";
    GIVE: Prompt = "scripts/give.lua";
    SHARERS: Prompt = "scripts/sharers.lua";
    HOLD: Prompt = "scripts/hold.lua";
    HELD: Prompt = "scripts/held.lua";
}

impl Script {
    fn new(lane: Lane, source: &'static str) -> Self {
        let sum = digest(&SHA1_FOR_LEGACY_USE_ONLY, source.as_bytes());
        let sha1 = sum.as_ref().iter().fold(String::new(), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        });
        Self { lane, source, sha1 }
    }

    /// The call by name, or with the whole text for a server that does not know it yet.
    pub fn call(&self, known: bool, keys: &[&str], arguments: &[&[u8]]) -> Cmd {
        let mut command = ::redis::cmd(if known { "EVALSHA" } else { "EVAL" });
        command.arg(if known { self.sha1.as_str() } else { self.source }).arg(keys.len()).arg(keys);
        for argument in arguments {
            command.arg(*argument);
        }
        command
    }
}
