//! Heads as they are passed on: written anew from what was parsed, hop-by-hop fields left out, ours added.

use std::io::Write as _;
use std::net::IpAddr;
use std::time::SystemTime;

use bytes::{BufMut, BytesMut};
use http::HeaderMap;

use super::changes::Changes;
use super::worker::HttpWorker;
use crate::http::body::Framing;
use crate::http::h1::{ConnectionOptions, Field, Fields, Known, RequestHead, ResponseHead, Version};
use crate::http::{FieldSink, hop};
use crate::route::RequestView;

/// What a request's head becomes.
#[derive(Debug)]
pub(in crate::proxy) struct RequestWriter<'a> {
    /// The head as received.
    pub head: &'a RequestHead,
    /// The new path and query, where a rewrite gives one.
    pub target: Option<&'a str>,
    /// The authority that the upstream sees.
    pub authority: &'a str,
    /// The route's changes.
    pub changes: Changes<'a>,
    /// The client's address, where it is added to those that the request names.
    pub client: Option<IpAddr>,
    /// The request's id.
    pub request_id: &'a str,
    /// Whether the client is believed about whom it speaks for.
    pub trust_forwarded: bool,
    /// The protocol to switch to.
    pub upgrade: Option<&'a [u8]>,
    /// What becomes of [`CLIENT_CERTIFICATE`].
    pub client_certificate: ForwardedCertificate<'a>,
}

/// The field that tells upstreams of a client's certificate.
const CLIENT_CERTIFICATE: &[u8] = b"x-forwarded-client-cert";

/// What becomes of the field that tells of a client's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::proxy) enum ForwardedCertificate<'a> {
    /// It is a field like others that only a trusted proxy may send.
    Foreign,
    /// It is taken away: the client was asked for a certificate, and has no valid one.
    Removed,
    /// It says this and nothing else.
    Set(&'a str),
}

impl RequestWriter<'_> {
    /// Writes the whole head.
    pub fn write(&self, out: &mut BytesMut) {
        out.reserve(1024);
        self.write_request_line(out);
        out.field(b"host", self.authority.as_bytes());
        self.write_fields(out);
        self.write_http1(out);
        self.changes.write(out);
        out.extend_from_slice(b"\r\n");
    }

    /// The head as HTTP/2 has it: fields without the authority, which is a pseudo-header field there.
    pub fn write_map(&self) -> HeaderMap {
        let mut out = HeaderMap::with_capacity(self.head.fields().len() + 8);
        self.write_fields(&mut out);
        if self.takes_trailers() {
            out.field(b"te", b"trailers");
        }
        self.changes.write(&mut out);
        out
    }

    /// What both versions have in common: the fields as received and our own.
    fn write_fields(&self, out: &mut impl FieldSink) {
        let fields = self.head.fields();
        let named = self.head.connection().names_fields;
        for field in fields.iter() {
            let skip = hop::ends_here(field.known)
                || self.is_ours(&field)
                || (named && is_named(fields, field.name))
                || self.changes.replaces(field.name);
            if !skip {
                out.received(&field);
            }
        }
        self.write_own(out);
    }

    fn write_request_line(&self, out: &mut BytesMut) {
        out.extend_from_slice(self.head.method().as_bytes());
        out.put_u8(b' ');
        if let Some(target) = self.target {
            out.extend_from_slice(target.as_bytes());
        } else {
            out.extend_from_slice(self.head.path().as_bytes());
            if let Some(query) = self.head.query() {
                out.put_u8(b'?');
                out.extend_from_slice(query.as_bytes());
            }
        }
        out.extend_from_slice(b" HTTP/1.1\r\n");
    }

    /// Whether a field is not passed on as it came: we write it ourselves, or the client has no say in it.
    fn is_ours(&self, field: &Field<'_>) -> bool {
        match field.known {
            Known::Host | Known::XRequestId => true,
            Known::XForwardedFor => self.client.is_some(),
            Known::XForwardedProto | Known::XForwardedHost => !self.trust_forwarded,
            // An expectation in HTTP/1.0 means nothing; passed on in HTTP/1.1 it would.
            Known::Expect => !self.head.expects_continue(),
            Known::Other => {
                !self.trust_forwarded && hop::is_vouched_for(field.name)
                    || self.client_certificate != ForwardedCertificate::Foreign
                        && field.name.eq_ignore_ascii_case(CLIENT_CERTIFICATE)
            }
            _ => false,
        }
    }

    fn write_own(&self, out: &mut impl FieldSink) {
        let fields = self.head.fields();
        if let Some(client) = self.client
            && !self.changes.replaces(b"x-forwarded-for")
        {
            let before = fields.all(Known::XForwardedFor).filter(|value| !value.is_empty());
            let before = before.flat_map(|value| [value, b", "]);
            let mut text = [0; MAX_ADDRESS_BYTES];
            let client = address_text(client, &mut text);
            out.joined(b"x-forwarded-for", before.chain([client]));
        }
        let kept_proto = self.trust_forwarded && fields.has(Known::XForwardedProto);
        if !kept_proto && !self.changes.replaces(b"x-forwarded-proto") {
            out.field(b"x-forwarded-proto", self.head.scheme().as_bytes());
        }
        // Only a host that a route replaced: else `Host` says the same, and every upstream would read it twice.
        let asked = self.head.authority();
        let kept_host = self.trust_forwarded && fields.has(Known::XForwardedHost);
        if asked != self.authority
            && !kept_host
            && !asked.is_empty()
            && !self.changes.replaces(b"x-forwarded-host")
        {
            out.field(b"x-forwarded-host", asked.as_bytes());
        }
        if let ForwardedCertificate::Set(element) = self.client_certificate
            && !self.changes.replaces(CLIENT_CERTIFICATE)
        {
            out.field(CLIENT_CERTIFICATE, element.as_bytes());
        }
        if !self.changes.replaces(b"x-request-id") {
            out.field(b"x-request-id", self.request_id.as_bytes());
        }
        out.field(b"via", via(self.head.version()));
    }

    fn takes_trailers(&self) -> bool {
        self.head.fields().all(Known::Te).any(|value| value.eq_ignore_ascii_case(b"trailers"))
    }

    /// What only HTTP/1 says in fields.
    fn write_http1(&self, out: &mut BytesMut) {
        if self.head.framing() == Framing::Chunked {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
        }
        let trailers = self.takes_trailers();
        if trailers {
            out.extend_from_slice(b"te: trailers\r\n");
        }
        if let Some(protocol) = self.upgrade {
            out.field(b"upgrade", protocol);
        }
        match (self.upgrade.is_some(), trailers) {
            (true, true) => out.extend_from_slice(b"connection: upgrade, te\r\n"),
            (true, false) => out.extend_from_slice(b"connection: upgrade\r\n"),
            (false, true) => out.extend_from_slice(b"connection: te\r\n"),
            (false, false) => {}
        }
    }
}

/// What becomes of the client's connection after a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::proxy) enum Fate {
    /// It is kept.
    Keep,
    /// It is closed.
    Close,
    /// It becomes a tunnel.
    Switch,
}

/// What a response's head becomes.
#[derive(Debug)]
pub(in crate::proxy) struct ResponseWriter<'a> {
    /// The head as received.
    pub head: &'a ResponseHead,
    /// The version that the client speaks.
    pub client: Version,
    /// How the client is told the body's end.
    pub framing: Framing,
    /// What becomes of the client's connection.
    pub fate: Fate,
    /// The route's changes.
    pub changes: Changes<'a>,
}

impl ResponseWriter<'_> {
    /// Writes the whole head.
    pub fn write(&self, worker: &HttpWorker, out: &mut BytesMut) {
        out.reserve(1024);
        write_status_line(out, self.head.status(), self.head.reason());
        self.write_fields(worker, out);
        self.write_http1(out);
        self.changes.write(out);
        out.extend_from_slice(b"\r\n");
    }

    /// The fields as HTTP/2 has them.
    pub fn write_map(&self, worker: &HttpWorker) -> HeaderMap {
        let mut out = HeaderMap::with_capacity(self.head.fields().len() + 4);
        self.write_fields(worker, &mut out);
        self.changes.write(&mut out);
        out
    }

    /// What both versions have in common.
    fn write_fields(&self, worker: &HttpWorker, out: &mut impl FieldSink) {
        let fields = self.head.fields();
        let named = self.head.connection().names_fields;
        let no_length = self.head.status() < 200 || self.head.status() == 204;
        for field in fields.iter() {
            let skip = hop::ends_here(field.known)
                || (no_length && field.known == Known::ContentLength)
                || (named && is_named(fields, field.name))
                || self.changes.replaces(field.name);
            if !skip {
                out.received(&field);
            }
        }
        if self.head.status() >= 200 && !fields.has(Known::Date) && !self.changes.replaces(b"date") {
            write_date(worker, out);
        }
        out.field(b"via", via(self.head.version()));
    }

    fn write_http1(&self, out: &mut BytesMut) {
        if self.framing == Framing::Chunked {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
        }
        if self.fate == Fate::Switch {
            for value in self.head.fields().all(Known::Upgrade) {
                out.field(b"upgrade", value);
            }
        }
        if !self.head.is_interim() {
            write_fate(out, self.fate, self.client);
        }
    }
}

/// Writes a status line.
pub(in crate::proxy) fn write_status_line(out: &mut BytesMut, status: u16, reason: &[u8]) {
    out.extend_from_slice(b"HTTP/1.1 ");
    let digit = |place: u16| b'0' + u8::try_from(status / place % 10).unwrap_or_default();
    out.extend_from_slice(&[digit(100), digit(10), digit(1), b' ']);
    out.extend_from_slice(reason);
    out.extend_from_slice(b"\r\n");
}

/// Writes the `Date` field.
pub(in crate::proxy) fn write_date(worker: &HttpWorker, out: &mut impl FieldSink) {
    worker.with_date(SystemTime::now(), |date| out.field(b"date", date.as_bytes()));
}

/// Writes the `Connection` field where the version's default does not say it.
pub(in crate::proxy) fn write_fate(out: &mut BytesMut, fate: Fate, client: Version) {
    match (fate, client) {
        (Fate::Switch, _) => out.extend_from_slice(b"connection: upgrade\r\n"),
        (Fate::Close, _) => out.extend_from_slice(b"connection: close\r\n"),
        (Fate::Keep, Version::Http10) => out.extend_from_slice(b"connection: keep-alive\r\n"),
        (Fate::Keep, Version::Http11 | Version::Http2) => {}
    }
}

/// What the agents call themselves in `Via`.
pub(super) const PSEUDONYM: &str = "sluice";

fn via(received: Version) -> &'static [u8] {
    match received {
        Version::Http10 => b"1.0 sluice",
        Version::Http11 => b"1.1 sluice",
        Version::Http2 => b"2 sluice",
    }
}

/// More than the longest address: an IPv4-mapped IPv6 one has 45 letters.
const MAX_ADDRESS_BYTES: usize = 48;

/// An address as text in `buffer`; v4 clients of a v6 socket as v4, digit by digit, as most are.
fn address_text(address: IpAddr, buffer: &mut [u8; MAX_ADDRESS_BYTES]) -> &[u8] {
    let mut rest = &mut buffer[..];
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            write_octet(&mut rest, a);
            for octet in [b, c, d] {
                rest.put_u8(b'.');
                write_octet(&mut rest, octet);
            }
        }
        // The buffer holds every address.
        IpAddr::V6(v6) => drop(write!(rest, "{v6}")),
    }
    let left = rest.len();
    &buffer[..MAX_ADDRESS_BYTES - left]
}

/// Writes a number without leading zeros.
fn write_octet(out: &mut impl BufMut, octet: u8) {
    if octet >= 100 {
        out.put_u8(b'0' + octet / 100);
    }
    if octet >= 10 {
        out.put_u8(b'0' + octet / 10 % 10);
    }
    out.put_u8(b'0' + octet % 10);
}

/// Whether `Connection` takes a field away, and may.
fn is_named(fields: &Fields, name: &[u8]) -> bool {
    ConnectionOptions::names(fields, name) && !hop::is_protected(name)
}
