//! HTTP/2 frames that break RFC 9113 or that would smuggle something into HTTP/1.1, from clients and from upstreams, with
//! what each earns.
#![allow(dead_code, reason = "every test binary uses its own part of this")]

mod connections;
mod floods;
mod heads;
mod upstreams;

use lab::frames::{END_STREAM, Said, headers};

pub use connections::{connections, openings};
pub use floods::{borne, floods};
pub use heads::heads;
pub use upstreams::{Answering, Gets, answerings};

/// The error codes of RFC 9113 section 7.
pub const PROTOCOL_ERROR: u32 = 1;
/// See [`PROTOCOL_ERROR`].
pub const FLOW_CONTROL_ERROR: u32 = 3;
/// See [`PROTOCOL_ERROR`].
pub const STREAM_CLOSED: u32 = 5;
/// See [`PROTOCOL_ERROR`].
pub const FRAME_SIZE_ERROR: u32 = 6;
/// See [`PROTOCOL_ERROR`].
pub const REFUSED_STREAM: u32 = 7;
/// See [`PROTOCOL_ERROR`].
pub const CANCEL: u32 = 8;
/// See [`PROTOCOL_ERROR`].
pub const COMPRESSION_ERROR: u32 = 9;
/// See [`PROTOCOL_ERROR`].
pub const ENHANCE_YOUR_CALM: u32 = 11;
/// See [`PROTOCOL_ERROR`].
pub const HTTP_1_1_REQUIRED: u32 = 13;

/// A request that every row begins with or varies.
pub const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":authority", "web"), (":path", "/")];

/// One hostile exchange. A stream that is answered or reset leaves its connection in
/// use; what ends a connection ends it for good.
#[derive(Debug, Clone)]
pub struct Row {
    /// What it is about.
    pub what: String,
    /// What is sent behind the preface.
    pub bytes: Vec<u8>,
    /// The stream that it is about.
    pub stream: u32,
    /// What is said.
    pub says: Said,
    /// The reason under which it is counted; none for what a frame layer may do without a word.
    pub reason: Option<&'static str>,
    /// What reaches the upstream, as [`lab::witness::Witness`] writes it.
    pub reaches: Vec<&'static str>,
}

impl Row {
    fn new(what: impl Into<String>, bytes: Vec<u8>, says: Said) -> Self {
        Self { what: what.into(), bytes, stream: 1, says, reason: None, reaches: Vec::new() }
    }

    fn because(self, reason: &'static str) -> Self {
        Self { reason: Some(reason), ..self }
    }

    fn reaching(self, seen: &'static str) -> Self {
        Self { reaches: vec![seen], ..self }
    }
}

/// A GET on stream 1 with further fields.
fn get_with(more: &[(&str, &str)]) -> Vec<u8> {
    headers(1, END_STREAM, &[&GET[..], more].concat())
}

/// A GET on stream 1 with another value of one of its fields.
fn get_but(name: &str, value: &str) -> Vec<u8> {
    let fields = GET.map(|field| if field.0 == name { (name, value) } else { field });
    headers(1, END_STREAM, &fields)
}
