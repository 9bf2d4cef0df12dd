//! The scripts that Redis runs: every change is one of them, and so happens as a whole or not at all.

use std::fmt::Write as _;
use std::sync::LazyLock;

use ::redis::Cmd;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

/// A script with the name that Redis knows it by.
pub(super) struct Script {
    source: &'static str,
    sha1: String,
}

macro_rules! scripts {
    ($($name:ident = $file:literal;)+) => {$(
        pub(super) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new(concat!(include_str!("scripts/prelude.lua"), include_str!($file))));
    )+};
}

scripts! {
    ACQUIRE = "scripts/acquire.lua";
    RENEW = "scripts/renew.lua";
    RELEASE = "scripts/release.lua";
    LEASE = "scripts/lease.lua";
    BEAT = "scripts/beat.lua";
    LEAVE = "scripts/leave.lua";
    MEMBERS = "scripts/members.lua";
    DOCUMENTS = "scripts/documents.lua";
    WRITE = "scripts/write.lua";
    PUBLISH = "scripts/publish.lua";
    APPEND = "scripts/append.lua";
    SNAPSHOT = "scripts/snapshot.lua";
    DELTAS = "scripts/deltas.lua";
    FITNESS = "scripts/fitness.lua";
    TAKE = "scripts/take.lua";
    GIVE = "scripts/give.lua";
    SHARERS = "scripts/sharers.lua";
}

impl Script {
    fn new(source: &'static str) -> Self {
        let sum = digest(&SHA1_FOR_LEGACY_USE_ONLY, source.as_bytes());
        let sha1 = sum.as_ref().iter().fold(String::new(), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        });
        Self { source, sha1 }
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
