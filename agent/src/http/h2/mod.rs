//! HTTP/2 heads and trailers (RFC 9113) as the values that both codecs share. The `h2` crate owns frames, HPACK, flow
//! control and stream states, and refuses what it can tell from a field alone: connection-specific fields, `te` other
//! than `trailers`, upper case, unknown or misplaced pseudo-header fields, lengths that the data belies. The rest is
//! checked here, by the rules that HTTP/1 texts are checked by.

mod request;
mod response;
mod trailers;

pub use request::{read_request, request_uri};
pub use response::read_response;
pub use trailers::{from_lines, request_trailers, response_trailers, to_lines};
