//! Request heads.

use std::borrow::Cow;

use super::authority::{self, AuthorityError};
use super::fields::{Fields, Known, Span};
use super::framing::{ConnectionOptions, DeclaredLength, declared_length, list_items};
use super::head::{Limits, Version, check_field, explain_fields, is_token, start_line};
use super::lines::Lines;
use super::target::{self, Target};
use crate::http::Refusal;
use crate::http::body::Framing;
use crate::route::{PathPolicy, RequestView, normalise};

/// The longest method; the registered ones have at most 17 letters.
const MAX_METHOD_BYTES: usize = 32;

/// A request head, reused from request to request: one copy of its bytes and ranges into it.
#[derive(Debug, Default)]
pub struct RequestHead {
    fields: Fields,
    method: Span,
    raw_target: Span,
    target: Target,
    version: Version,
    framing: Framing,
    connection: ConnectionOptions,
    expects_continue: bool,
    /// Whether it came in TLS.
    in_tls: bool,
    /// Lower case, no port, no trailing dot; the buffer is reused.
    host: String,
    /// As the client wrote it; the buffer is reused.
    authority: String,
}

/// A head that did not come as HTTP/1 text; its texts are free of control bytes.
#[derive(Debug, Clone, Copy)]
pub struct RequestParts<'a> {
    /// The method.
    pub method: &'a str,
    /// Path and query, or `*`.
    pub target: &'a str,
    /// The authority, where one is given beside the fields.
    pub authority: Option<&'a str>,
    /// Whether the message ends with its head.
    pub ends: bool,
}

impl RequestHead {
    /// Takes over a head from HTTP/2. What is refused of a text is refused here; a `Host` that differs from the authority
    /// too, as two recipients could then route by two names.
    pub fn assemble<'f>(
        &mut self,
        parts: RequestParts<'_>,
        fields: impl Iterator<Item = (&'f [u8], &'f [u8])>,
        limits: &Limits,
    ) -> Result<(), Refusal> {
        if parts.method.len() > MAX_METHOD_BYTES {
            return Err(Refusal::with(501, "method_too_long"));
        }
        if parts.target.len() > limits.target_bytes {
            return Err(Refusal::with(414, "target_too_long"));
        }
        let [method, target] = self.fields.restart([parts.method, parts.target]);
        (self.method, self.raw_target, self.version) = (method, target, Version::Http2);
        if parts.method != "CONNECT" && !parts.target.starts_with('/') && parts.target != "*" {
            return Err(Refusal::bad("target_form"));
        }
        self.target = target::parse(parts.method, parts.target, parts.method.len())?;
        if let Some(authority) = parts.authority {
            self.fields.push(b"host", authority.as_bytes());
        }
        for (name, value) in fields {
            let repeats_authority = parts
                .authority
                .is_some_and(|authority| name == b"host" && value.eq_ignore_ascii_case(authority.as_bytes()));
            if repeats_authority {
                continue;
            }
            if name == b"host" && parts.authority.is_some() {
                return Err(Refusal::bad("host_conflict"));
            }
            if self.fields.len() == limits.fields {
                return Err(Refusal::with(431, "header_too_many"));
            }
            check_field(name, value, limits)?;
            self.fields.push(name, value);
        }
        self.read_fields()?;
        self.framing = match self.framing {
            Framing::None | Framing::Length(0) if parts.ends => Framing::None,
            Framing::None if !parts.ends => Framing::Chunked,
            framing => framing,
        };
        Ok(())
    }

    /// Reads the head that `input` starts with; gives its length. `None` where it is not all there, too large, or not in
    /// order, which [`super::HeadScan`] and [`Self::parse`] then tell.
    pub fn read(&mut self, input: &[u8], limits: &Limits) -> Result<Option<usize>, Refusal> {
        let Some(line) = start_line(input) else { return Ok(None) };
        let mut parsed = httparse::Request::new(&mut []);
        // The line alone is no whole head to it.
        if !parsed.parse(line).is_ok_and(|status| status.is_partial()) {
            return Ok(None);
        }
        let Some(end) = self.fields.read_within(input, line.len(), limits)? else { return Ok(None) };
        let (method, raw_target) = (parsed.method.unwrap_or_default(), parsed.path.unwrap_or_default());
        if method.len() > MAX_METHOD_BYTES {
            return Err(Refusal::with(501, "method_too_long"));
        }
        if raw_target.len() > limits.target_bytes {
            return Err(Refusal::with(414, "target_too_long"));
        }
        self.method = Span::within(input, method.as_bytes());
        self.raw_target = Span::within(input, raw_target.as_bytes());
        let target_at = raw_target.as_ptr().addr().saturating_sub(input.as_ptr().addr());
        self.target = target::parse(method, raw_target, target_at)?;
        self.version = Version::from_minor(parsed.version);
        self.read_fields()?;
        Ok(Some(end))
    }

    /// Parses a whole head, as [`super::HeadScan`] delimits it.
    pub fn parse(&mut self, head: &[u8], limits: &Limits) -> Result<(), Refusal> {
        match self.read(head, limits)? {
            Some(end) if end == head.len() => Ok(()),
            _ => Err(self.explain(head, limits)),
        }
    }

    /// Why a head is not taken. Slow and exact.
    fn explain(&mut self, head: &[u8], limits: &Limits) -> Refusal {
        let first = start_line(head).unwrap_or(head);
        match httparse::Request::new(&mut []).parse(first) {
            Err(error) => {
                let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
                // A line end in the wrong place belongs to the fields unless the request line goes on after the version.
                let ends = line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0");
                if error == httparse::Error::NewLine && ends {
                    explain_fields(head)
                } else {
                    explain_line(line, limits)
                }
            }
            Ok(_) if self.fields.read(head, first.len()) == Lines::TooMany => {
                Refusal::with(431, "header_too_many")
            }
            Ok(_) => explain_fields(head),
        }
    }

    fn read_fields(&mut self) -> Result<(), Refusal> {
        self.framing = match declared_length(&self.fields, self.version)? {
            DeclaredLength::Nothing => Framing::None,
            DeclaredLength::Length(length) => Framing::Length(length),
            DeclaredLength::Chunked => Framing::Chunked,
        };
        self.connection = ConnectionOptions::read(&self.fields);
        self.expects_continue = self.read_expect()?;
        self.read_host()
    }

    /// `Expect` has one value; in HTTP/1.0 it means nothing (RFC 9110 section 10.1.1).
    fn read_expect(&self) -> Result<bool, Refusal> {
        let mut expectations = self.fields.all(Known::Expect).flat_map(list_items);
        if self.version == Version::Http10 {
            return Ok(false);
        }
        match (expectations.next(), expectations.next()) {
            (None, _) => Ok(false),
            (Some(value), None) if value.eq_ignore_ascii_case(b"100-continue") => Ok(true),
            _ => Err(Refusal::with(417, "expect_unknown")),
        }
    }

    /// One valid Host (RFC 9112 section 3.2), which an absolute-form target overrides.
    fn read_host(&mut self) -> Result<(), Refusal> {
        let mut hosts = self.fields.all(Known::Host);
        let field = hosts.next();
        if hosts.next().is_some() {
            return Err(Refusal::bad("host_repeated"));
        }
        let value = match field {
            Some(value) => value,
            None if self.version != Version::Http10 => return Err(Refusal::bad("host_missing")),
            None => b"",
        };
        // Most requests of a connection name the host of the one before.
        if self.target.authority.is_none() && !value.is_empty() && value == self.authority.as_bytes() {
            return Ok(());
        }
        let parsed = match authority::parse(value) {
            Ok(parsed) => Some(parsed.host),
            Err(AuthorityError::Empty) if field.is_none() || self.target.authority.is_some() => None,
            Err(AuthorityError::Empty) => return Err(Refusal::bad("host_empty")),
            Err(AuthorityError::Userinfo) => return Err(Refusal::bad("host_userinfo")),
            Err(AuthorityError::Malformed) => return Err(Refusal::bad("host_malformed")),
        };
        self.host.clear();
        self.authority.clear();
        if let Some(span) = self.target.authority {
            let text = text(span.of(self.fields.bytes()));
            self.authority.push_str(text);
            // The target's parser has taken this very text.
            self.host.push_str(authority::parse(text.as_bytes()).map_or("", |authority| authority.host));
        } else {
            self.authority.push_str(text(value));
            self.host.push_str(parsed.unwrap_or_default());
        }
        self.host.make_ascii_lowercase();
        Ok(())
    }

    /// The fields.
    pub fn fields(&self) -> &Fields {
        &self.fields
    }

    /// The version that the client declared.
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

    /// Whether the client waits for 100 before it sends its body.
    pub fn expects_continue(&self) -> bool {
        self.expects_continue
    }

    /// The authority as the client wrote it: from an absolute-form target, else from Host; empty where there is none.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The target as the client wrote it, or path and query where the path was normalised.
    pub fn raw_target(&self) -> &str {
        text(self.raw_target.of(self.fields.bytes()))
    }

    /// Gives the path the form that `policy` asks for; the query stays as it is. A head that is refused stays as it was.
    pub fn normalise_path(&mut self, policy: PathPolicy) -> Result<(), Refusal> {
        let path = self.path();
        if path == "*" {
            return Ok(());
        }
        let normalised = match normalise(path, policy) {
            Ok(Cow::Borrowed(_)) => return Ok(()),
            Ok(Cow::Owned(path)) => path,
            Err(invalid) => return Err(Refusal::bad(invalid.reason())),
        };
        let query = self.query().map(|query| format!("?{query}"));
        self.target.path = self.fields.append(normalised.as_bytes());
        let query = self.fields.append(query.unwrap_or_default().as_bytes());
        self.raw_target = self.target.path.until(query);
        Ok(())
    }

    /// Whether an absolute-form target and `Host` name different authorities, of which the target's is the one that counts
    /// (RFC 9112 section 3.2.2).
    pub fn has_two_authorities(&self) -> bool {
        let (Some(target), Some(host)) = (self.target.authority, self.fields.first(Known::Host)) else {
            return false;
        };
        !target.of(self.fields.bytes()).eq_ignore_ascii_case(host)
    }

    /// Whether an absolute-form target is one of `https`; `None`: it is in another form, and names no scheme.
    pub fn names_https(&self) -> Option<bool> {
        self.target.authority?;
        let scheme = self.raw_target().as_bytes().get(..5);
        Some(scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"https")))
    }

    /// Says whether it came in TLS, which its bytes do not.
    pub fn came_in_tls(&mut self, in_tls: bool) {
        self.in_tls = in_tls;
    }

    /// How many proxies that call themselves `pseudonym` say that they have passed the request on (RFC 9110 section 7.6.3).
    pub fn passed_by(&self, pseudonym: &str) -> usize {
        let by = |item: &&[u8]| {
            // A comment may follow.
            item.split(|byte| *byte == b' ')
                .nth(1)
                .is_some_and(|by| by.eq_ignore_ascii_case(pseudonym.as_bytes()))
        };
        self.fields.all(Known::Via).flat_map(list_items).filter(by).count()
    }

    /// Whether sending the request twice does what sending it once does (RFC 9110 section 9.2.2).
    pub fn is_idempotent(&self) -> bool {
        matches!(self.method(), "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE")
    }

    /// The one protocol that the client asks to switch to; `None` where it asks for none, for several, for HTTP/2, or
    /// sends a body along.
    pub fn upgrade(&self) -> Option<&[u8]> {
        if !self.connection.upgrade || self.version == Version::Http10 || !self.framing.is_empty() {
            return None;
        }
        let mut protocols = self.fields.all(Known::Upgrade).flat_map(list_items);
        let (first, second) = (protocols.next()?, protocols.next());
        // Its drafts too (`h2-14`), and whatever version is put behind it.
        let name = first.split(|byte| matches!(byte, b'/' | b'-')).next().unwrap_or_default();
        let http2 = name.eq_ignore_ascii_case(b"h2c") || name.eq_ignore_ascii_case(b"h2");
        let valid = first.iter().all(|byte| is_token(*byte) || *byte == b'/');
        (second.is_none() && !http2 && valid).then_some(first)
    }
}

impl RequestView for RequestHead {
    fn method(&self) -> &str {
        match self.method.of(self.fields.bytes()) {
            b"GET" => "GET",
            b"POST" => "POST",
            other => text(other),
        }
    }

    fn path(&self) -> &str {
        if self.target.path.is_empty() { "/" } else { text(self.target.path.of(self.fields.bytes())) }
    }

    fn query(&self) -> Option<&str> {
        self.target.query.map(|query| text(query.of(self.fields.bytes())))
    }

    fn host(&self) -> &str {
        &self.host
    }

    fn scheme(&self) -> &'static str {
        if self.in_tls { "https" } else { "http" }
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        self.fields.find(name.as_bytes())
    }
}

/// Parts that the parser has checked to be UTF-8.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

/// What is wrong with a request line.
fn explain_line(line: &[u8], limits: &Limits) -> Refusal {
    let mut words = line.split(|byte| *byte == b' ');
    let (method, target, version) = (words.next(), words.next(), words.next());
    let method_fits = method.is_some_and(|method| !method.is_empty() && method.iter().copied().all(is_token));
    let version_shape = version.is_some_and(|version| {
        matches!(version, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit())
    });
    let target = target.unwrap_or_default();
    if !method_fits {
        Refusal::bad("method_malformed")
    } else if target.len() > limits.target_bytes {
        Refusal::with(414, "target_too_long")
    } else if target.is_empty() || words.next().is_some() {
        Refusal::bad("request_line_malformed")
    } else if target.iter().any(|byte| *byte < b' ' || *byte == 0x7f) {
        Refusal::bad("target_control_byte")
    } else if std::str::from_utf8(target).is_err() {
        Refusal::bad("target_encoding")
    } else if version_shape {
        Refusal::with(505, "version_unsupported")
    } else {
        Refusal::bad("version_malformed")
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
