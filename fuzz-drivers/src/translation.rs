//! Requests of HTTP/2 through the engine to an HTTP/1.1 upstream, and the responses back.
//!
//! Covered: one stream with any fields, body and trailers, its translation, and that of the answer. Not covered: several
//! streams, flow control, frames out of order (the `h2` crate's own ground), HTTP/2 upstreams.

use http::Method;

use crate::engine::{self, Outcome, Script, Served};
use crate::exchange::{OWN_REQUEST_FIELDS, OWN_RESPONSE_FIELDS, is_own};
use crate::frames::{self, Response};
use crate::pieces::{Sizes, sections};
use crate::strict::{self, Field, Message, Tail};
use crate::target;

/// The sections: the request's fields, a line each, pseudo-header fields among them; the upstream's answer; the
/// request's body; its trailers. `\r`, `\n`, `\0` and `\\` stand for the bytes that lines can't hold.
pub fn h2_translation(input: &[u8]) {
    let mut sections = sections(input).into_iter();
    let fields = lines(sections.next().unwrap_or_default());
    let answer = sections.next().filter(|answer| !answer.is_empty());
    let body = sections.next();
    let trailers = sections.next().map(lines);
    let client = frames::connection(&fields, body, trailers.as_deref());
    let sent = Sent { fields, body: body.unwrap_or_default(), trailers: trailers.unwrap_or_default() };
    for sizes in [Sizes::whole(), Sizes::of(input)] {
        let outcome = engine::run(&Script { client: &client, answers: answer.as_slice(), sizes });
        check_request(&sent, &outcome);
        check_response(&sent, &outcome);
    }
}

/// The client's request.
struct Sent<'a> {
    fields: Vec<Field>,
    body: &'a [u8],
    trailers: Vec<Field>,
}

impl Sent<'_> {
    fn values<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'s [u8]> {
        self.fields.iter().filter(move |field| field.name == name).map(|field| &field.value[..])
    }
}

fn lines(section: &[u8]) -> Vec<Field> {
    section.split(|byte| *byte == b'\n').map(line).collect()
}

/// `name: value`, where the name may begin with a colon.
fn line(line: &[u8]) -> Field {
    let colon = line.iter().skip(1).position(|byte| *byte == b':').map_or(line.len(), |at| at + 1);
    let value = line.get(colon + 1..).unwrap_or_default();
    let value = unescape(value.strip_prefix(b" ").unwrap_or(value));
    Field { name: String::from_utf8_lossy(&unescape(&line[..colon])).into_owned(), value }
}

fn unescape(text: &[u8]) -> Vec<u8> {
    let mut bytes = text.iter().copied();
    let mut plain = Vec::new();
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            b'\\' => match bytes.next() {
                Some(b'r') => b'\r',
                Some(b'n') => b'\n',
                Some(b'0') => 0,
                Some(other) => other,
                None => b'\\',
            },
            other => other,
        });
    }
    plain
}

/// The upstream got this one request, or none.
fn check_request(sent: &Sent<'_>, outcome: &Outcome) {
    let mut heads = 0;
    for received in &outcome.upstreams {
        let (requests, tail) = strict::requests(received, false);
        assert!(!matches!(tail, Tail::Broken(..)), "the upstream got no request: {tail:?}");
        heads += requests.len() + usize::from(tail.head().is_some());
    }
    assert!(heads <= 1, "one request became {heads}");
    for Served { request, .. } in &outcome.served {
        assert!(is_same(sent, request), "the upstream got another request: {request:?} of {:?}", sent.fields);
    }
}

fn is_same(sent: &Sent<'_>, passed: &Message) -> bool {
    let host = sent.values(":authority").chain(sent.values("host")).next();
    sent.values(":method").eq([passed.head.method().as_bytes()])
        && sent.values(":path").count() <= 1
        && target::same(path_seen(sent), passed.head.target())
        && passed.head.values("host").count() == 1
        && passed.head.values("host").next() == host
        && cookies(sent.values("cookie")) == cookies(passed.head.values("cookie"))
        && passed.head.values("cookie").count() <= 1
        && among(&passed.head.fields, &sent.fields, OWN_REQUEST_FIELDS)
        && (passed.body == sent.body || is_done_at_once(sent) && passed.body.is_empty())
        && among(&passed.trailers, &sent.trailers, &[])
}

/// A request that declares no body is with the upstream before a body that comes in spite of it resets the stream.
fn is_done_at_once(sent: &Sent<'_>) -> bool {
    sent.values("content-length").any(|length| length.iter().all(|digit| *digit == b'0'))
}

/// The path that `h2` gives us, in the `http` crate's type: that drops a fragment and whatever is in it, and does not tell
/// a path that is missing from `/`.
fn path_seen<'a>(sent: &'a Sent<'_>) -> &'a [u8] {
    let path = sent.values(":path").next().unwrap_or(b"/");
    path.split(|byte| *byte == b'#').next().unwrap_or_default()
}

/// All crumbs, however they are spread over fields.
fn cookies<'a>(values: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    values.filter(|value| !value.is_empty()).collect::<Vec<_>>().join(&b"; "[..])
}

/// Whether all `fields` but for `own` and cookies are among `origin`, in any order, and none oftener than there.
fn among(fields: &[Field], origin: &[Field], own: &[&str]) -> bool {
    let count = |all: &[Field], one: &Field| {
        all.iter().filter(|field| field.name == one.name && field.value.trim_ascii() == one.value).count()
    };
    fields
        .iter()
        .filter(|field| !own.contains(&&*field.name) && field.name != "cookie")
        .all(|field| count(fields, field) <= count(origin, field))
}

/// The client got the upstream's answer or one of the agent's own, or a reset.
fn check_response(sent: &Sent<'_>, outcome: &Outcome) {
    let to_head = sent.values(":method").eq([b"HEAD"]);
    let method = if to_head { Method::HEAD } else { Method::GET };
    let Some(response) = engine::block_on(frames::response(&outcome.client, method)) else { return };
    if is_own(&response.fields) {
        let in_field = response.fields.iter().chain(&response.trailers).any(|f| f.name == "grpc-status");
        assert!(response.status >= 400 || in_field, "{response:?}");
        return;
    }
    let answers = outcome.served.iter().map(|served| engine::final_answer(&served.answer, to_head).0);
    let found = answers.flatten().any(|answer| came_from(&response, &answer));
    assert!(found, "the client got another answer: {response:?} of {:?}", outcome.served);
}

fn came_from(response: &Response, answer: &Message) -> bool {
    response.status == answer.head.status()
        && response.body == answer.body
        && among(&response.fields, &answer.head.fields, OWN_RESPONSE_FIELDS)
        && among(&response.trailers, &answer.trailers, &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_lines() {
        let check = |text: &str, name: &str, value: &str| {
            let expected = Field { name: name.into(), value: value.into() };
            assert_eq!(line(text.as_bytes()), expected, "{text:?}");
        };
        check(":method: GET", ":method", "GET");
        check("x:  a", "x", " a");
        check("x\\r\\n: \\0\\\\", "x\r\n", "\0\\");
        check("", "", "");
    }

    /// The runs do go through the engine, and the checks see when it does something else.
    #[test]
    fn requests_are_translated_and_answers_come_back() {
        let fields =
            lines(b":method: PUT\n:scheme: http\n:authority: a\n:path: /a\nx: y\ncookie: a\ncookie: b");
        let client = frames::connection(&fields, Some(b"body"), None);
        let answers = [&b"HTTP/1.1 404 No\r\ncontent-length: 1\r\nx: z\r\n\r\nx"[..]];
        let outcome = engine::run(&Script { client: &client, answers: &answers, sizes: Sizes::whole() });
        let mut sent = Sent { fields, body: b"body", trailers: Vec::new() };
        assert!(is_same(&sent, &outcome.served[0].request), "{outcome:?}");
        let response = engine::block_on(frames::response(&outcome.client, Method::GET)).expect("a response");
        assert_eq!((response.status, &response.body[..]), (404, &b"x"[..]));
        let answer = engine::final_answer(answers[0], false).0.expect("whole");
        assert!(came_from(&response, &answer));
        assert!(!came_from(&Response { body: b"y".to_vec(), ..response }, &answer));
        sent.body = b"other";
        assert!(!is_same(&sent, &outcome.served[0].request));
        sent.body = b"body";
        sent.fields.pop();
        assert!(!is_same(&sent, &outcome.served[0].request), "a cookie out of nowhere");
    }
}
