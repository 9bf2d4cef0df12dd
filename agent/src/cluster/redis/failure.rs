//! What an error of the client or the server means.

use ::redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::cluster::StoreError;

/// An error, and whether the connection that it came by is of no use any more.
pub(super) struct Failure {
    pub error: StoreError,
    pub fatal: bool,
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self { error, fatal: true }
    }
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Self {
        Self { fatal: error.is_unrecoverable_error() || error.is_io_error(), error: meaning(&error) }
    }
}

type Kind = fn(String) -> StoreError;

/// What a server says within the text of an error, where scripts wrap the code; the first that is found counts.
const SAID: [(&str, Kind); 13] = [
    ("READONLY", StoreError::ReadOnly),
    ("OOM", StoreError::ReadOnly),
    ("MISCONF", StoreError::ReadOnly),
    ("NOREPLICAS", StoreError::ReadOnly),
    ("WRONGPASS", StoreError::Denied),
    ("NOAUTH", StoreError::Denied),
    ("NOPERM", StoreError::Denied),
    ("can't run this command", StoreError::Denied),
    ("LOADING", StoreError::Unreachable),
    ("MASTERDOWN", StoreError::Unreachable),
    ("CLUSTERDOWN", StoreError::Unreachable),
    ("TRYAGAIN", StoreError::Unreachable),
    ("BUSY", StoreError::Unreachable),
];

fn meaning(error: &RedisError) -> StoreError {
    let text = said(error);
    match error.kind() {
        ErrorKind::Extension if error.code() == Some("FOREIGN") => {
            foreign(error.detail().unwrap_or_default())
        }
        ErrorKind::AuthenticationFailed => StoreError::Denied(text),
        ErrorKind::RESP3NotSupported => StoreError::Unfit("it is older than Redis 6.0".to_owned()),
        ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask | ServerErrorKind::CrossSlot) => {
            StoreError::Unfit(format!("it is a node of a Redis Cluster (use redis+cluster://): {text}"))
        }
        ErrorKind::Io => transport(text),
        ErrorKind::ClusterConnectionNotFound => StoreError::Unreachable(text),
        _ => match SAID.iter().find(|(code, _)| text.contains(code)) {
            Some((_, kind)) => kind(text),
            None => StoreError::Unfit(text),
        },
    }
}

/// TLS that fails is told from a server that is not there.
fn transport(text: String) -> StoreError {
    if text.contains("received fatal alert") {
        return StoreError::Denied(format!("TLS: {text}"));
    }
    let tls = ["invalid peer certificate", "corrupt message", "PEM", "trust anchors"];
    if tls.iter().any(|words| text.contains(words)) {
        return StoreError::Unfit(format!("TLS: {text}"));
    }
    StoreError::Unreachable(text)
}

fn foreign(detail: &str) -> StoreError {
    let (key, what) = detail.split_once(' ').unwrap_or((detail, ""));
    StoreError::Foreign { key: key.to_owned(), what: what.to_owned() }
}

/// One line: the server's own words where they are its words.
fn said(error: &RedisError) -> String {
    let text = match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        _ => error.to_string(),
    };
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
