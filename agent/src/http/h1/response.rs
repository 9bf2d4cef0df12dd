//! Response heads.

use http::StatusCode;

use super::fields::{Fields, Span};
use super::framing::{ConnectionOptions, DeclaredLength, declared_length};
use super::head::{Limits, Version, check_field, explain_fields, start_line};
use super::lines::Lines;
use crate::http::Refusal;
use crate::http::body::{Framing, ResponseFacts, response_framing};

/// A response head, reused from response to response.
#[derive(Debug, Default)]
pub struct ResponseHead {
    fields: Fields,
    status: u16,
    reason: Span,
    version: Version,
    framing: Framing,
    connection: ConnectionOptions,
}

impl ResponseHead {
    /// Reads the head that `input` starts with and that answers a HEAD request or another one; gives its length. `None`
    /// where it is not all there, too large, or not in order, which [`super::HeadScan`] and [`Self::parse`] then tell.
    pub fn read(&mut self, input: &[u8], to_head: bool, limits: &Limits) -> Result<Option<usize>, Refusal> {
        let Some(line) = start_line(input) else { return Ok(None) };
        let mut parsed = httparse::Response::new(&mut []);
        // The line alone is no whole head to it.
        if !parsed.parse(line).is_ok_and(|status| status.is_partial()) {
            return Ok(None);
        }
        let Some(end) = self.fields.read_within(input, line.len(), limits)? else { return Ok(None) };
        self.status = parsed.code.unwrap_or_default();
        if !(100..=599).contains(&self.status) {
            return Err(Refusal::bad("status_out_of_range"));
        }
        let reason = parsed.reason.unwrap_or_default();
        self.reason =
            if reason.is_empty() { Span::default() } else { Span::within(input, reason.as_bytes()) };
        self.version = Version::from_minor(parsed.version);
        self.settle(to_head)?;
        Ok(Some(end))
    }

    /// Parses a whole head, as [`super::HeadScan`] delimits it.
    pub fn parse(&mut self, head: &[u8], to_head: bool, limits: &Limits) -> Result<(), Refusal> {
        match self.read(head, to_head, limits)? {
            Some(end) if end == head.len() => Ok(()),
            _ => Err(self.explain(head)),
        }
    }

    /// Why a head is not taken. Slow and exact.
    fn explain(&mut self, head: &[u8]) -> Refusal {
        let first = start_line(head).unwrap_or(head);
        match httparse::Response::new(&mut []).parse(first) {
            Err(httparse::Error::Version) => Refusal::bad("version_malformed"),
            Err(httparse::Error::Status | httparse::Error::Token) => Refusal::bad("status_malformed"),
            Ok(_) if self.fields.read(head, first.len()) == Lines::TooMany => Refusal::bad("header_too_many"),
            _ => explain_fields(head),
        }
    }

    fn settle(&mut self, to_head: bool) -> Result<(), Refusal> {
        let declared = declared_length(&self.fields, self.version)?;
        self.framing = response_framing(ResponseFacts {
            to_head,
            status: self.status,
            content_length: if let DeclaredLength::Length(length) = declared { Some(length) } else { None },
            chunked: declared == DeclaredLength::Chunked,
        });
        self.connection = ConnectionOptions::read(&self.fields);
        Ok(())
    }

    /// Takes over a head from HTTP/2, that answers a HEAD request or another one. The body's end is told by the stream, so
    /// that a body without a declared length reads as one that lasts until its sender is done.
    pub fn assemble<'f>(
        &mut self,
        status: u16,
        fields: impl Iterator<Item = (&'f [u8], &'f [u8])>,
        to_head: bool,
        limits: &Limits,
    ) -> Result<(), Refusal> {
        // HTTP/2 has no phrases, and HTTP/1 clients may be surprised by a status without one.
        let phrase = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
        let [reason] = self.fields.restart([phrase.unwrap_or_default()]);
        (self.status, self.reason, self.version) = (status, reason, Version::Http2);
        if !(100..=599).contains(&status) || status == 101 {
            return Err(Refusal::bad("status_out_of_range"));
        }
        for (name, value) in fields {
            if self.fields.len() == limits.fields {
                return Err(Refusal::bad("header_too_many"));
            }
            check_field(name, value, limits)?;
            self.fields.push(name, value);
        }
        self.settle(to_head)
    }

    /// The fields.
    pub fn fields(&self) -> &Fields {
        &self.fields
    }

    /// The status.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The reason phrase; may be empty.
    pub fn reason(&self) -> &[u8] {
        self.reason.of(self.fields.bytes())
    }

    /// The version that the upstream declared.
    pub fn version(&self) -> Version {
        self.version
    }

    /// How the body's end is told.
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// The connection's options.
    pub fn connection(&self) -> ConnectionOptions {
        self.connection
    }

    /// Whether another response follows for the same request: 1xx but 101.
    pub fn is_interim(&self) -> bool {
        self.status < 200 && self.status != 101
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(input: &str) -> Result<(u16, Framing, String), &'static str> {
        let mut head = ResponseHead::default();
        head.parse(input.as_bytes(), false, &Limits::default()).map_err(|refusal| refusal.reason)?;
        Ok((head.status(), head.framing(), String::from_utf8_lossy(head.reason()).into_owned()))
    }

    #[test]
    fn good_heads() {
        let check = |input: &str, status, framing, reason: &str| {
            assert_eq!(parse(input), Ok((status, framing, reason.to_owned())), "{input:?}");
        };
        check("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 200, Framing::Length(5), "OK");
        check("HTTP/1.1 200 \r\ntransfer-encoding: chunked\r\n\r\n", 200, Framing::Chunked, "");
        check("HTTP/1.1 200\r\n\r\n", 200, Framing::UntilClose, "");
        check("HTTP/1.0 404 Not Found\r\n\r\n", 404, Framing::UntilClose, "Not Found");
        check("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", 204, Framing::None, "No Content");
        check("HTTP/1.1 100 Continue\r\n\r\n", 100, Framing::None, "Continue");
    }

    #[test]
    fn hostile_heads() {
        let check = |input: &str, reason| assert_eq!(parse(input), Err(reason), "{input:?}");
        check("HTTP/2.0 200 OK\r\n\r\n", "version_malformed");
        check("hello\r\n\r\n", "version_malformed");
        check("HTTP/1.1 20 OK\r\n\r\n", "status_malformed");
        check("HTTP/1.1 2000 OK\r\n\r\n", "status_malformed");
        check("HTTP/1.1 abc OK\r\n\r\n", "status_malformed");
        check("HTTP/1.1 099 Low\r\n\r\n", "status_out_of_range");
        check("HTTP/1.1 600 High\r\n\r\n", "status_out_of_range");
        check("HTTP/1.1 200 OK\r\na : b\r\n\r\n", "header_space_before_colon");
        check("HTTP/1.1 200 OK\r\na: b\r\n c\r\n\r\n", "header_obs_fold");
        check("HTTP/1.1 200 OK\r\na: b\0\r\n\r\n", "header_control_byte");
        check("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", "content_length_repeated");
        check("HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", "content_length_malformed");
        check("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "transfer_encoding_in_http10");
        check(
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "transfer_encoding_with_content_length",
        );
        check("HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n", "transfer_encoding_not_chunked");
    }
}
