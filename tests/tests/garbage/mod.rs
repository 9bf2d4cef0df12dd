//! Bytes that break HTTP/1.1, from clients and from upstreams, with what each earns. The rows follow RFC 9110 and 9112 and
//! the public record of request smuggling.
#![allow(dead_code, reason = "every test binary uses its own part of this")]

mod bodies;
mod clients;
mod framings;
mod passed;
mod upstreams;

pub use clients::{from_clients, from_strangers};
#[allow(unused_imports, reason = "one test binary only counts the rows")]
pub use passed::{PROBE, passed};
pub use upstreams::{from_slow_upstreams, from_upstreams, poisons};

/// Where an exchange is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// In `sluice_protocol_errors_total`, under a reason.
    Protocol(&'static str),
    /// In `istio_requests_total`, under a response flag.
    Flag(&'static str),
}

/// What the client gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gets {
    /// One answer with this status, and the end.
    Status(u16),
    /// An end without any answer.
    Close,
    /// A 200 whose body is cut.
    Cut,
}

/// One hostile exchange. No whole request of it reaches an upstream, and its connection is closed.
#[derive(Debug)]
pub struct Case {
    /// What is sent.
    pub bytes: Vec<u8>,
    /// Whether the sender then closes its side.
    pub closes: bool,
    /// What the client gets.
    pub gets: Gets,
    /// Where that is counted.
    pub counted: Counted,
}

fn case(bytes: impl AsRef<[u8]>, status: u16, reason: &'static str) -> Case {
    Case {
        bytes: bytes.as_ref().to_vec(),
        closes: false,
        gets: Gets::Status(status),
        counted: Counted::Protocol(reason),
    }
}

/// A request that must never be answered, behind every hostile one.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: web\r\n\r\n";

fn request_line(line: impl AsRef<[u8]>, status: u16, reason: &'static str) -> Case {
    case([line.as_ref(), b"\r\nHost: web\r\n\r\n", SMUGGLED.as_bytes()].concat(), status, reason)
}

fn field(field: impl AsRef<[u8]>, status: u16, reason: &'static str) -> Case {
    let bytes = [b"GET / HTTP/1.1\r\nHost: web\r\n", field.as_ref(), b"\r\n\r\n", SMUGGLED.as_bytes()];
    case(bytes.concat(), status, reason)
}

fn host(fields: &str, reason: &'static str) -> Case {
    case(format!("GET / HTTP/1.1\r\n{fields}\r\n{SMUGGLED}"), 400, reason)
}

fn framed(fields: &str, status: u16, reason: &'static str) -> Case {
    case(format!("POST / HTTP/1.1\r\nHost: web\r\n{fields}\r\n0\r\n\r\n{SMUGGLED}"), status, reason)
}

fn chunks(body: &str, status: u16, reason: &'static str) -> Case {
    let head = "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n";
    case(format!("{head}{body}{SMUGGLED}"), status, reason)
}
