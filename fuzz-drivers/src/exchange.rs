//! Whole HTTP/1.1 connections through the engine, read again by the strict reader on both sides.
//!
//! Covered: heads, bodies, pipelining, kept upstream connections, retries, refusals, the agent's own answers; whole and
//! in pieces. Not covered: upgrades (off here), HTTP/2 upstreams, timeouts, drain.

use crate::engine::{self, Outcome, SERVICE, Script, Served};
use crate::pieces::{Sizes, sections};
use crate::strict::{self, Field, Head, Message, Tail};
use crate::target;

/// Request fields that the agent writes itself, and so need not be the client's.
pub const OWN_REQUEST_FIELDS: &[&str] = &[
    "host",
    "via",
    "te",
    "connection",
    "transfer-encoding",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-request-id",
    "max-forwards",
];
/// The same for responses.
pub const OWN_RESPONSE_FIELDS: &[&str] = &["via", "date", "connection", "transfer-encoding"];

/// The first section is what the client sends, each other one is what an upstream answers to one request.
pub fn h1_exchange(input: &[u8]) {
    let sections = sections(input);
    let (client, answers) =
        sections.split_first().map_or((&b""[..], &[][..]), |(first, rest)| (*first, rest));
    if speaks_http2(client) {
        return;
    }
    let whole = engine::run(&Script { client, answers, sizes: Sizes::whole() });
    let pieces = engine::run(&Script { client, answers, sizes: Sizes::of(input) });
    let (requests, tail) = strict::requests(client, true);
    let sent = Sent { requests, tail };
    let whole = check(&sent, &whole);
    let pieces = check(&sent, &pieces);
    if let (Some(whole), Some(pieces)) = (whole, pieces) {
        assert_eq!(whole, pieces, "pieces change the outcome");
    }
}

/// The preface hands the connection to another engine.
fn speaks_http2(mut client: &[u8]) -> bool {
    while let Some(rest) = client.strip_prefix(b"\r\n") {
        client = rest;
    }
    client.starts_with(b"PRI * HTTP/2.0")
}

/// The client's bytes as the strict reader takes them.
struct Sent {
    requests: Vec<Message>,
    tail: Tail,
}

impl Sent {
    fn head(&self, number: usize) -> Option<&Head> {
        let whole = self.requests.get(number).map(|request| &request.head);
        whole.or_else(|| self.tail.head().filter(|_| number == self.requests.len()))
    }
}

/// What two runs of one input must have in common: the requests that were passed on, and the responses.
type Summary = (Vec<(String, Vec<u8>, Vec<u8>)>, Vec<(u16, Vec<u8>)>);

/// Checks a run; gives its summary where every message in it is whole, so that nothing depends on what came when.
fn check(sent: &Sent, outcome: &Outcome) -> Option<Summary> {
    for received in &outcome.upstreams {
        let (requests, tail) = strict::requests(received, false);
        assert!(!matches!(tail, Tail::Broken(..)), "an upstream got no request: {tail:?}");
        for head in requests.iter().map(|request| &request.head).chain(tail.head()) {
            check_passed_head(head);
            assert!(
                (0..=sent.requests.len())
                    .any(|number| sent.head(number).is_some_and(|from| same_head(from, head))),
                "an upstream got a request that nobody sent: {head:?}"
            );
        }
    }
    let origins = match_requests(sent, &outcome.served);
    let sound = check_responses(sent, outcome, &origins)?;
    let requests = outcome.served.iter().map(|served| {
        let Served { request, .. } = served;
        (request.head.method().to_owned(), request.head.target().to_vec(), request.body.clone())
    });
    Some((requests.collect(), sound))
}

/// What holds for every head that leaves the agent towards an upstream.
fn check_passed_head(head: &Head) {
    assert_eq!((head.minor, head.values("host").count()), (1, 1), "{head:?}");
    let target = head.target();
    assert!(target.starts_with(b"/") || target == b"*", "{head:?}");
    assert!(!matches!(head.method(), "CONNECT" | "PRI"), "{head:?}");
    for hop in ["keep-alive", "proxy-connection", "upgrade", "http2-settings"] {
        assert_eq!(head.values(hop).count(), 0, "{hop} ends at this hop: {head:?}");
    }
}

/// Which of the client's requests each one is that an upstream got: in order, and sent again only as it was.
fn match_requests(sent: &Sent, served: &[Served]) -> Vec<usize> {
    let (mut origins, mut next) = (Vec::new(), 0);
    for Served { request, .. } in served {
        let again = origins.last().copied().filter(|last| is_same(&sent.requests[*last], request));
        let found = (next..sent.requests.len()).find(|number| is_same(&sent.requests[*number], request));
        let origin = found.or(again);
        let origin =
            origin.unwrap_or_else(|| panic!("an upstream got a request that nobody sent: {request:?}"));
        origins.push(origin);
        next = next.max(origin + 1);
    }
    origins
}

fn is_same(sent: &Message, passed: &Message) -> bool {
    same_head(&sent.head, &passed.head)
        && sent.body == passed.body
        && within(&passed.trailers, &sent.trailers, &[])
}

fn same_head(sent: &Head, passed: &Head) -> bool {
    let (authority, target) = target::split(sent.target());
    let host = authority.or_else(|| sent.values("host").next()).unwrap_or_default();
    let service = SERVICE.to_string();
    let host = if host.is_empty() { service.as_bytes() } else { host };
    sent.method() == passed.method()
        && target::same(target, passed.target())
        && passed.values("host").next() == Some(host)
        && within(&passed.fields, &sent.fields, OWN_REQUEST_FIELDS)
}

/// Whether all `fields` but for `own` are among `origin`, in its order.
pub fn within(fields: &[Field], origin: &[Field], own: &[&str]) -> bool {
    let mut rest = origin.iter();
    fields.iter().filter(|field| !own.contains(&&*field.name)).all(|field| rest.any(|other| other == field))
}

/// Reads what the client got: one final response for each request, and each one its own.
fn check_responses(sent: &Sent, outcome: &Outcome, origins: &[usize]) -> Option<Vec<(u16, Vec<u8>)>> {
    let to_head = |number| sent.head(number).is_some_and(|head| head.method() == "HEAD");
    let (responses, tail) = strict::responses(&outcome.client, to_head);
    assert!(!matches!(tail, Tail::Broken(..)), "the client got no response: {tail:?}");
    let mut sound = tail == Tail::Clean && sent.tail == Tail::Clean;
    let mut summary = Vec::new();
    let finals = responses.iter().filter(|response| response.head.status() >= 200);
    for (number, response) in finals.enumerate() {
        let status = response.head.status();
        assert_eq!(response.head.minor, 1);
        let answers = outcome.served.iter().zip(origins).filter(|(_, origin)| **origin == number);
        let mut answers = answers.map(|(served, _)| engine::final_answer(&served.answer, to_head(number)));
        if is_own(&response.head.fields) {
            assert!(status >= 400 || response.head.values("grpc-status").count() == 1, "{response:?}");
            // The only clock of these runs is a gRPC client's own timeout.
            sound &= status != 504 && response.head.values("grpc-status").all(|status| status != b"4");
            summary.push((status, Vec::new()));
            continue;
        }
        assert!(
            answers.any(|(answer, tail)| came_from(response, answer.as_ref(), &tail)),
            "response {number} is not the answer to its request: {response:?}"
        );
        summary.push((status, response.body.clone()));
    }
    // Empty lines may be one too many, which is no request to the strict reader and a bad one to the agent.
    let last_is_own = responses.last().is_some_and(|last| is_own(&last.head.fields));
    let most = sent.requests.len() + usize::from(sent.tail != Tail::Clean || last_is_own);
    assert!(summary.len() <= most, "{} responses for {most} requests", summary.len());
    for served in &outcome.served {
        let end = engine::answer_end(&served.answer, served.request.head.method() == "HEAD");
        sound &= end == Some(served.answer.len());
    }
    sound.then_some(summary)
}

/// Whether the agent says that an answer is its own.
pub fn is_own(fields: &[Field]) -> bool {
    let has =
        |name, start: &[u8]| fields.iter().any(|field| field.name == name && field.value.starts_with(start));
    // gRPC's errors are told in fields of a good response.
    has("server", b"sluice") && (has("proxy-status", b"sluice; error=") || has("grpc-status", b""))
}

/// A body that ends with its connection looks whole where it was cut: sockets of these runs can't be reset.
fn came_from(response: &Message, answer: Option<&Message>, tail: &Tail) -> bool {
    let until_close = response.head.framing(false) == Ok(strict::Framing::UntilClose);
    let head = answer.map(|answer| &answer.head).or_else(|| tail.head().filter(|_| until_close));
    let same_rest = answer.is_none_or(|answer| {
        response.body == answer.body && within(&response.trailers, &answer.trailers, &[])
    });
    same_rest
        && head.is_some_and(|head| {
            response.head.status() == head.status()
                && within(&response.head.fields, &head.fields, OWN_RESPONSE_FIELDS)
        })
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    const GET: &str = "GET /a HTTP/1.1\r\nhost: a\r\n\r\n";
    const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

    /// Whether the checks let an engine pass that makes `upstream` and `response` of `client`.
    fn passes(client: &str, upstream: &str, response: &str) -> bool {
        let (requests, tail) = strict::requests(client.as_bytes(), true);
        let (served, _) = strict::requests(upstream.as_bytes(), false);
        let served = served.into_iter().map(|request| Served { request, answer: OK.into() }).collect();
        let outcome = Outcome { client: response.into(), upstreams: vec![upstream.into()], served };
        catch_unwind(|| check(&Sent { requests, tail }, &outcome)).is_ok()
    }

    #[test]
    fn wrong_engines_are_found_out() {
        assert!(passes(GET, GET, OK));
        assert!(passes(&[GET, GET].concat(), GET, OK), "a connection may close early");
        let own = "HTTP/1.1 400 Bad Request\r\nserver: sluice\r\nproxy-status: sluice; error=x\r\ncontent-length: 0\r\n\r\n";
        assert!(passes(&[GET, "x"].concat(), GET, &[OK, own].concat()));
        let check = |upstream: &str, response: &str| {
            assert!(!passes(GET, upstream, response), "{upstream}{response}");
        };
        check(&[GET, GET, GET].concat().replacen("/a", "/b", 1), OK);
        check(&GET.replace("/a", "/b"), OK);
        check(&GET.replace("GET", "PUT"), OK);
        check(&GET.replace("host: a", "host: b"), OK);
        check(&GET.replace("\r\n\r\n", "\r\nx: y\r\n\r\n"), OK);
        check(&GET.replace("\r\n\r\n", "\r\ncontent-length: 1\r\n\r\nx"), OK);
        check(&GET.replace("host", "keep-alive: 1\r\nhost"), OK);
        check("GET /a\r\n\r\n", OK);
        check(GET, &[OK, OK].concat());
        check(GET, &OK.replace("ok", "no"));
        check(GET, &OK.replace("200", "201"));
        check(GET, &OK.replace("OK\r\n", "OK\r\nset-cookie: a\r\n"));
        check(GET, &OK.replace("length: 2", "length: 1"));
    }
}
