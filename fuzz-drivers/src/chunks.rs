//! Chunked bodies: pieces never change what is read, what is written reads back as the same bytes, and what is passed
//! on has one meaning only.

use agent::http::body::{BodyError, BodyTransfer, Framing};
use agent::http::h1::{write_chunk, write_last_chunk};
use bytes::{Buf, BytesMut};

use crate::pieces::Sizes;
use crate::strict;

/// What a transfer came to.
#[derive(Debug, PartialEq, Eq)]
struct Passed {
    /// What the receiver got.
    received: Vec<u8>,
    /// Bytes of the input behind the body.
    left: usize,
    /// The body's bytes by the transfer's own count.
    bytes: u64,
}

/// Takes the input for a chunked body with what may follow it, and as the content of one.
pub fn h1_chunked(input: &[u8]) {
    let plain = pass(Framing::Chunked, Framing::UntilClose, input, Sizes::whole());
    let pieces = pass(Framing::Chunked, Framing::UntilClose, input, Sizes::of(input));
    same_outcome(&plain, &pieces);
    let chunked = pass(Framing::Chunked, Framing::Chunked, input, Sizes::of(input));
    same_outcome(&nothing(&plain), &nothing(&chunked));
    if let (Ok(plain), Ok(chunked)) = (&plain, &chunked) {
        check(input, plain, chunked);
    }
    check_encoding(input);
}

fn same_outcome<T: PartialEq + std::fmt::Debug>(one: &Result<T, BodyError>, other: &Result<T, BodyError>) {
    match (one, other) {
        // Which fault is seen first may depend on where a piece ends, not that there is one.
        (Err(BodyError::Malformed(_)), Err(BodyError::Malformed(_))) => {}
        _ => assert_eq!(one, other, "pieces change the outcome"),
    }
}

fn nothing(result: &Result<Passed, BodyError>) -> Result<(), BodyError> {
    result.as_ref().map(drop).map_err(|error| *error)
}

/// What was taken and passed on, read again by the strict reader.
fn check(input: &[u8], plain: &Passed, chunked: &Passed) {
    let (body, trailers, used) =
        strict::body(strict::Framing::Chunked, input).expect("what is taken is a body").expect("all of it");
    assert_eq!((&body, input.len() - used), (&plain.received, plain.left));
    assert_eq!((plain.bytes, chunked.bytes), (body.len() as u64, body.len() as u64));
    let (again, kept, used) = strict::body(strict::Framing::Chunked, &chunked.received)
        .expect("what is passed on is a body")
        .expect("all of it");
    assert_eq!((&again, used), (&body, chunked.received.len()), "nothing but the body is passed on");
    let mut rest = trailers.iter();
    for field in &kept {
        assert!(rest.any(|trailer| trailer == field), "a trailer out of nowhere: {field:?}");
        let framing = ["content-length", "transfer-encoding", "host", "connection", "trailer", "te"];
        assert!(!framing.contains(&field.name.as_str()), "{field:?}");
    }
}

/// The input as a body, in chunks as they come, and as a body without framing.
fn check_encoding(input: &[u8]) {
    let mut encoded = BytesMut::new();
    let (mut sizes, mut rest) = (Sizes::of(input), input);
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at(sizes.take().min(rest.len()));
        write_chunk(&mut encoded, chunk);
        rest = after;
    }
    write_last_chunk(&mut encoded, b"");
    encoded.extend_from_slice(b"next");
    for sizes in [Sizes::whole(), Sizes::of(&encoded)] {
        let back = pass(Framing::Chunked, Framing::UntilClose, &encoded, sizes).expect("own chunks");
        assert_eq!(back, Passed { received: input.to_vec(), left: 4, bytes: input.len() as u64 });
    }
    let chunked = pass(Framing::UntilClose, Framing::Chunked, input, Sizes::of(input)).expect("any bytes");
    let (body, _, _) =
        strict::body(strict::Framing::Chunked, &chunked.received).expect("a body").expect("all of it");
    assert_eq!(body, input);
}

/// Passes a body on as an exchange does; `Truncated` where the input ends before it.
fn pass(from: Framing, to: Framing, input: &[u8], mut sizes: Sizes) -> Result<Passed, BodyError> {
    let mut transfer = BodyTransfer::new(from, to);
    let (mut buffer, mut staged, mut received) = (BytesMut::new(), BytesMut::new(), Vec::new());
    let mut fed = 0;
    while !transfer.is_done() {
        if fed == input.len() {
            transfer.close(&mut staged)?;
            received.extend_from_slice(&staged);
            break;
        }
        let next = fed.saturating_add(sizes.take()).min(input.len());
        buffer.extend_from_slice(&input[fed..next]);
        fed = next;
        transfer.stage(&mut buffer, &mut staged)?;
        received.extend_from_slice(&staged);
        staged.clear();
        let direct = transfer.direct();
        received.extend_from_slice(&buffer[..direct]);
        buffer.advance(direct);
        transfer.direct_written(direct);
    }
    Ok(Passed { received, left: buffer.len() + input.len() - fed, bytes: transfer.bytes() })
}
