//! The HTTP/1.1 codec (RFC 9112): start lines by httparse, field lines and chunks by strict parsers of its own.
//!
//! Nothing is repaired: a message that two parsers could read in two ways is refused, with its own reason code.

mod authority;
mod chunked;
mod fields;
mod framing;
mod head;
mod lines;
mod request;
mod response;
mod target;

pub use chunked::{ChunkDecoder, Piece, write_chunk, write_hex, write_last_chunk};
pub use fields::{Field, Fields, Known};
pub use framing::ConnectionOptions;
pub use head::{HeadScan, Limits, MAX_FIELDS, Version};
pub use request::{RequestHead, RequestParts};
pub use response::ResponseHead;

pub(crate) use head::is_token;
