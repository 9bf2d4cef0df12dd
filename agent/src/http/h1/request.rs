//! Request heads.

use std::borrow::Cow;
use std::mem::MaybeUninit;

use super::authority::{self, AuthorityError};
use super::fields::{Fields, Known, Span};
use super::framing::{ConnectionOptions, DeclaredLength, declared_length, list_items};
use super::head::{Limits, MAX_FIELDS, Version, check_field, check_fields, explain_fields, is_token};
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
    /// Lower case, no port, no trailing dot; the buffer is reused.
    host: String,
    authority: Span,
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

    /// Parses a whole head, as [`super::HeadScan`] delimits it. After a refusal the head is as before or empty.
    pub fn parse(&mut self, head: &[u8], limits: &Limits) -> Result<(), Refusal> {
        let mut slots = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut parsed = httparse::Request::new(&mut []);
        match parsed.parse_with_uninit_headers(head, &mut slots) {
            Ok(httparse::Status::Complete(used)) if used == head.len() => {}
            Ok(_) => return Err(Refusal::bad("head_malformed")),
            Err(error) => return Err(explain(error, head, limits)),
        }
        check_fields(parsed.headers, limits)?;
        let (method, raw_target) = (parsed.method.unwrap_or_default(), parsed.path.unwrap_or_default());
        if method.len() > MAX_METHOD_BYTES {
            return Err(Refusal::with(501, "method_too_long"));
        }
        if raw_target.len() > limits.target_bytes {
            return Err(Refusal::with(414, "target_too_long"));
        }
        self.method = Span::within(head, method.as_bytes());
        self.raw_target = Span::within(head, raw_target.as_bytes());
        let target_at = raw_target.as_ptr().addr().saturating_sub(head.as_ptr().addr());
        self.target = target::parse(method, raw_target, target_at)?;
        self.version = Version::from_minor(parsed.version);
        self.fields.assign(head, parsed.headers);
        self.read_fields()
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
        let parsed = match authority::parse(value) {
            Ok(parsed) => Some(parsed.host),
            Err(AuthorityError::Empty) if field.is_none() || self.target.authority.is_some() => None,
            Err(AuthorityError::Empty) => return Err(Refusal::bad("host_empty")),
            Err(AuthorityError::Userinfo) => return Err(Refusal::bad("host_userinfo")),
            Err(AuthorityError::Malformed) => return Err(Refusal::bad("host_malformed")),
        };
        let bytes = self.fields.bytes();
        self.host.clear();
        if let Some(span) = self.target.authority {
            self.authority = span;
            // The target's parser has taken this very text.
            self.host.push_str(authority::parse(span.of(bytes)).map_or("", |authority| authority.host));
        } else {
            self.authority = if field.is_some() { Span::within(bytes, value) } else { Span::default() };
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
        text(self.authority.of(self.fields.bytes()))
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

    /// Whether an absolute-form target is one of `https`.
    pub fn is_for_https(&self) -> bool {
        let scheme = self.raw_target().as_bytes().get(..5);
        self.target.authority.is_some() && scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"https"))
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
        text(self.method.of(self.fields.bytes()))
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
        "http"
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        self.fields.find(name.as_bytes())
    }
}

/// Parts that the parser has checked to be UTF-8.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

/// The reason behind httparse's refusal.
fn explain(error: httparse::Error, head: &[u8], limits: &Limits) -> Refusal {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    match error {
        httparse::Error::TooManyHeaders => return Refusal::with(431, "header_too_many"),
        httparse::Error::HeaderName | httparse::Error::HeaderValue => return explain_fields(head),
        // A line end in the wrong place belongs to the fields unless the request line goes on after the version.
        httparse::Error::NewLine if line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0") => {
            return explain_fields(head);
        }
        _ => {}
    }
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
