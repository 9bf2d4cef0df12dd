//! Heads of requests and responses: pieces never change what is read, and what is taken reads the same to the strict
//! reader.

use agent::http::Refusal;
use agent::http::body::Framing;
use agent::http::h1::{Fields, HeadScan, Limits, RequestHead, ResponseHead, Version};
use agent::route::RequestView;

use crate::pieces::Sizes;
use crate::strict;

/// Small, so that short inputs reach them.
const LIMITS: Limits = Limits { head_bytes: 1024, target_bytes: 256, fields: 20, underscores: true };

/// The first byte says whose head follows: `<` a response, `(` one to a HEAD request, anything else a request.
pub fn h1_head(input: &[u8]) {
    match input {
        [b'<', response @ ..] => check_response(response, false),
        [b'(', response @ ..] => check_response(response, true),
        request => check_request(request),
    }
}

/// Where the head ends, read in pieces as a connection reads it.
fn find_end(input: &[u8], mut sizes: Sizes) -> Result<Option<usize>, Refusal> {
    let mut scan = HeadScan::default();
    let mut have = 0;
    while have < input.len() {
        have = have.saturating_add(sizes.take()).min(input.len());
        if let Some(len) = scan.find_end(&input[..have], &LIMITS)? {
            return Ok(Some(len));
        }
    }
    Ok(None)
}

/// The same, and whether the head is one; `parse` is given all of it.
fn read(
    input: &[u8],
    sizes: Sizes,
    parse: impl FnOnce(&[u8]) -> Result<(), Refusal>,
) -> Result<Option<usize>, Refusal> {
    let Some(len) = find_end(input, sizes)? else { return Ok(None) };
    parse(&input[..len])?;
    Ok(Some(len))
}

fn same_outcome(whole: Result<Option<usize>, Refusal>, pieces: Result<Option<usize>, Refusal>) {
    match (whole, pieces) {
        // Which fault is seen first may depend on where a piece ends, not that there is one.
        (Err(_), Err(_)) => {}
        (whole, pieces) => assert_eq!(whole, pieces, "pieces change the outcome"),
    }
}

fn check_request(input: &[u8]) {
    let (mut head, mut again) = (RequestHead::default(), RequestHead::default());
    let whole = read(input, Sizes::whole(), |bytes| head.parse(bytes, &LIMITS));
    same_outcome(whole, read(input, Sizes::of(input), |bytes| again.parse(bytes, &LIMITS)));
    let Ok(Some(len)) = whole else { return };
    let strict = strict::request_head(input).expect("what is taken is a head").expect("all of it");
    assert_eq!(strict.len, len);
    assert_eq!((strict.method(), strict.target()), (head.method(), head.raw_target().as_bytes()));
    same_version(&strict, head.version());
    same_fields(&strict, head.fields());
    same_framing(strict.framing(false).expect("framing that is taken"), head.framing());
    assert_eq!(format!("{head:?}"), format!("{again:?}"), "pieces change what is read");
    assert!(head.path().starts_with('/') || head.path() == "*");
    assert!(!head.path().contains(['?', '#', ' ']) && !head.query().unwrap_or_default().contains([' ', '#']));
    assert!(strict.values("host").count() <= 1);
    assert_eq!(head.host(), head.host().to_ascii_lowercase());
    let authority = head.authority().as_bytes();
    let absolute = head.raw_target().contains("://") && !head.raw_target().starts_with('/');
    if !absolute {
        assert_eq!(authority, strict.values("host").next().unwrap_or_default());
    }
    assert!(!authority.iter().any(|byte| b" \t/?#@\\,".contains(byte)), "{authority:?}");
    let _ = (head.upgrade(), head.expects_continue(), head.is_idempotent(), head.connection());
    // The same value is used for the next head.
    head.parse(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", &LIMITS).expect("a head is reused");
    assert_eq!((head.method(), head.path(), head.query(), head.host()), ("GET", "/", None, "a"));
    assert_eq!((head.framing(), head.expects_continue(), head.upgrade()), (Framing::None, false, None));
}

fn check_response(input: &[u8], to_head: bool) {
    let (mut head, mut again) = (ResponseHead::default(), ResponseHead::default());
    let whole = read(input, Sizes::whole(), |bytes| head.parse(bytes, to_head, &LIMITS));
    same_outcome(whole, read(input, Sizes::of(input), |bytes| again.parse(bytes, to_head, &LIMITS)));
    let Ok(Some(len)) = whole else { return };
    let strict = strict::response_head(input).expect("what is taken is a head").expect("all of it");
    assert_eq!((strict.len, strict.status()), (len, head.status()));
    same_version(&strict, head.version());
    same_fields(&strict, head.fields());
    same_framing(strict.framing(to_head).expect("framing that is taken"), head.framing());
    assert_eq!(format!("{head:?}"), format!("{again:?}"), "pieces change what is read");
    assert_eq!(head.is_interim(), head.status() < 200 && head.status() != 101);
}

fn same_version(strict: &strict::Head, version: Version) {
    assert_eq!(version, if strict.minor == 0 { Version::Http10 } else { Version::Http11 });
}

fn same_fields(strict: &strict::Head, fields: &Fields) {
    assert_eq!(strict.fields.len(), fields.len());
    for (strict, field) in strict.fields.iter().zip(fields.iter()) {
        assert!(field.name.eq_ignore_ascii_case(strict.name.as_bytes()), "{strict:?} {field:?}");
        assert_eq!(field.value, strict.value, "{strict:?}");
    }
}

fn same_framing(strict: strict::Framing, framing: Framing) {
    let expected = match framing {
        Framing::None => strict::Framing::Length(0),
        Framing::Length(length) => strict::Framing::Length(length),
        Framing::Chunked => strict::Framing::Chunked,
        Framing::UntilClose => strict::Framing::UntilClose,
    };
    assert_eq!(strict, expected);
}
