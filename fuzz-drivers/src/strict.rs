//! A reader of HTTP/1 messages that shares nothing with the agent's codec: written from RFC 9112, simple, whole input
//! at once, and without mercy. What the agent passes on is read with it again.

/// Why bytes are no message.
pub type Fault = &'static str;

/// One field; the name in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// The name.
    pub name: String,
    /// The value without the space around it.
    pub value: Vec<u8>,
}

/// A message's start line and fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// What the start line says.
    pub start: Start,
    /// The minor version: 0 or 1.
    pub minor: u8,
    /// The fields in their order.
    pub fields: Vec<Field>,
    /// Bytes, the empty line included.
    pub len: usize,
}

/// A start line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// A request line.
    Request {
        /// The method.
        method: String,
        /// The target as it is written.
        target: Vec<u8>,
    },
    /// A status line.
    Status(u16),
}

/// How a body's end is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// So many bytes; none where there is no body.
    Length(u64),
    /// Chunks.
    Chunked,
    /// The end of the connection.
    UntilClose,
}

/// A body, the trailer fields, and the bytes of both with their framing.
pub type Body = (Vec<u8>, Vec<Field>, usize);

/// A whole message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its head.
    pub head: Head,
    /// The body, without its framing.
    pub body: Vec<u8>,
    /// The trailer fields.
    pub trailers: Vec<Field>,
    /// Bytes of all of it.
    pub len: usize,
}

/// What follows the last whole message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tail {
    /// Nothing.
    Clean,
    /// A message that is not all there, with its head where that is.
    Partial(Option<Head>),
    /// What no message begins with, with the head whose body is broken where it is that.
    Broken(Fault, Option<Head>),
}

impl Tail {
    /// The head of the message that has not come to its end.
    pub fn head(&self) -> Option<&Head> {
        match self {
            Self::Clean => None,
            Self::Partial(head) | Self::Broken(_, head) => head.as_ref(),
        }
    }
}

impl Head {
    /// The method; empty for a response.
    pub fn method(&self) -> &str {
        if let Start::Request { method, .. } = &self.start { method } else { "" }
    }

    /// The target; empty for a response.
    pub fn target(&self) -> &[u8] {
        if let Start::Request { target, .. } = &self.start { target } else { b"" }
    }

    /// The status; 0 for a request.
    pub fn status(&self) -> u16 {
        if let Start::Status(status) = self.start { status } else { 0 }
    }

    /// All values of a field.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.fields.iter().filter(move |field| field.name == name).map(|field| &field.value[..])
    }

    /// Section 6.3. `to_head`: this answers a HEAD request.
    pub fn framing(&self, to_head: bool) -> Result<Framing, Fault> {
        let codings: Vec<_> = self.values("transfer-encoding").collect();
        let lengths: Vec<_> = self.values("content-length").collect();
        let declared = match (&codings[..], &lengths[..]) {
            ([], []) => None,
            ([coding], []) if self.minor == 1 && coding.eq_ignore_ascii_case(b"chunked") => {
                Some(Framing::Chunked)
            }
            ([], [length]) => Some(Framing::Length(decimal(length)?)),
            _ => return Err("framing that two readers could take differently"),
        };
        let status = self.status();
        if status != 0 && (to_head || status < 200 || status == 204 || status == 304) {
            return Ok(Framing::Length(0));
        }
        Ok(declared.unwrap_or(if status == 0 { Framing::Length(0) } else { Framing::UntilClose }))
    }
}

fn decimal(digits: &[u8]) -> Result<u64, Fault> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err("a content-length that is no number");
    }
    std::str::from_utf8(digits)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or("a content-length without bounds")
}

/// The line that `input` starts with, without its CRLF; nothing where it is not all there.
fn line(input: &[u8]) -> Result<Option<&[u8]>, Fault> {
    let Some(feed) = input.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
    let line = input[..feed].strip_suffix(b"\r").ok_or("a bare LF")?;
    if line.iter().any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f) {
        return Err("a control byte in a line");
    }
    Ok(Some(line))
}

fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty()
        && bytes.iter().all(|byte| {
            matches!(byte, b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-')
                || matches!(byte, b'.' | b'^' | b'_' | b'`' | b'|' | b'~')
        })
}

/// Field lines up to the empty one, and their bytes with it.
fn fields(input: &[u8]) -> Result<Option<(Vec<Field>, usize)>, Fault> {
    let (mut fields, mut at) = (Vec::new(), 0);
    loop {
        let Some(line) = line(&input[at..])? else { return Ok(None) };
        at += line.len() + 2;
        if line.is_empty() {
            return Ok(Some((fields, at)));
        }
        let colon = line.iter().position(|byte| *byte == b':').ok_or("a field without a colon")?;
        if !is_token(&line[..colon]) {
            return Err("a field name that is no token");
        }
        let name = String::from_utf8_lossy(&line[..colon]).to_ascii_lowercase();
        let value = line[colon + 1..].trim_ascii().to_vec();
        fields.push(Field { name, value });
    }
}

fn head(input: &[u8], start: impl Fn(&[u8]) -> Result<(Start, u8), Fault>) -> Result<Option<Head>, Fault> {
    let Some(first) = line(input)? else { return Ok(None) };
    let (start, minor) = start(first)?;
    let after = first.len() + 2;
    let Some((fields, len)) = fields(&input[after..])? else { return Ok(None) };
    Ok(Some(Head { start, minor, fields, len: after + len }))
}

/// The request's head that `input` starts with; nothing where it is not all there.
pub fn request_head(input: &[u8]) -> Result<Option<Head>, Fault> {
    head(input, |line| {
        let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let [method, target, version] = words[..] else { return Err("a request line without three words") };
        let method_fits = is_token(method);
        let minor = minor_version(version)?;
        if !method_fits || target.is_empty() || target.contains(&b'\t') {
            return Err("a request line with a bad method or target");
        }
        let method = String::from_utf8_lossy(method).into_owned();
        Ok((Start::Request { method, target: target.to_vec() }, minor))
    })
}

/// The response's head that `input` starts with; nothing where it is not all there.
pub fn response_head(input: &[u8]) -> Result<Option<Head>, Fault> {
    head(input, |line| {
        let (version, rest) = line.split_at_checked(9).ok_or("a short status line")?;
        let minor = minor_version(version.strip_suffix(b" ").ok_or("a status line without its space")?)?;
        let (digits, reason) = rest.split_at_checked(3).ok_or("a status of less than three digits")?;
        // The space before an absent reason is left out by many a server.
        if !(reason.is_empty() || reason[0] == b' ') || !digits.iter().all(u8::is_ascii_digit) {
            return Err("a status that is no number");
        }
        Ok((Start::Status(digits.iter().fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'))), minor))
    })
}

fn minor_version(text: &[u8]) -> Result<u8, Fault> {
    match text {
        b"HTTP/1.0" => Ok(0),
        b"HTTP/1.1" => Ok(1),
        _ => Err("a version that is not HTTP/1"),
    }
}

/// A body and its bytes with framing; nothing where it is not all there. `UntilClose` takes everything.
pub fn body(framing: Framing, input: &[u8]) -> Result<Option<Body>, Fault> {
    match framing {
        Framing::Length(length) => {
            let length = usize::try_from(length).ok().filter(|length| *length <= input.len());
            Ok(length.map(|length| (input[..length].to_vec(), Vec::new(), length)))
        }
        Framing::UntilClose => Ok(Some((input.to_vec(), Vec::new(), input.len()))),
        Framing::Chunked => chunks(input),
    }
}

/// Section 7.1.
fn chunks(input: &[u8]) -> Result<Option<Body>, Fault> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let Some(line) = line(&input[at..])? else { return Ok(None) };
        at += line.len() + 2;
        let digits = line.iter().position(|byte| *byte == b';').map_or(line, |end| &line[..end]);
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err("a chunk size that is no number");
        }
        let text = std::str::from_utf8(digits).map_err(|_| "a chunk size that is no text")?;
        let size = u64::from_str_radix(text, 16).map_err(|_| "a chunk size without bounds")?;
        if size == 0 {
            let Some((trailers, len)) = fields(&input[at..])? else { return Ok(None) };
            return Ok(Some((body, trailers, at + len)));
        }
        let Some(end) = usize::try_from(size).ok().and_then(|size| at.checked_add(size)) else {
            return Ok(None);
        };
        let Some(data) = input.get(at..end) else { return Ok(None) };
        body.extend_from_slice(data);
        match input.get(end..end + 2) {
            Some(b"\r\n") => at = end + 2,
            Some(_) => return Err("a chunk that goes on after its end"),
            None if input.get(end).is_some_and(|byte| *byte != b'\r') => {
                return Err("a chunk that goes on after its end");
            }
            None => return Ok(None),
        }
    }
}

/// The requests that `input` consists of, and what is left. `empty_lines`: whether lines before a request are passed
/// over, which a server does (section 2.2) and no client asks for.
pub fn requests(input: &[u8], empty_lines: bool) -> (Vec<Message>, Tail) {
    let (mut whole, mut at) = (Vec::new(), 0);
    loop {
        while empty_lines && input[at..].starts_with(b"\r\n") {
            at += 2;
        }
        let rest = &input[at..];
        if rest.is_empty() {
            return (whole, Tail::Clean);
        }
        match message(rest, request_head(rest), false) {
            Ok(message) => {
                at += message.len;
                whole.push(message);
            }
            Err(tail) => return (whole, tail),
        }
    }
}

/// The responses that `input` consists of until the connection ends, interim ones among them, and what is left.
/// `to_head` tells of the n-th final response whether it answers a HEAD request.
pub fn responses(input: &[u8], to_head: impl Fn(usize) -> bool) -> (Vec<Message>, Tail) {
    let (mut whole, mut at, mut finals): (Vec<Message>, _, _) = (Vec::new(), 0, 0);
    while at < input.len() {
        match message(&input[at..], response_head(&input[at..]), to_head(finals)) {
            Ok(message) => {
                finals += usize::from(message.head.status() >= 200);
                at += message.len;
                whole.push(message);
            }
            Err(tail) => return (whole, tail),
        }
    }
    (whole, Tail::Clean)
}

fn message(input: &[u8], head: Result<Option<Head>, Fault>, to_head: bool) -> Result<Message, Tail> {
    let head = match head {
        Ok(Some(head)) => head,
        Ok(None) => return Err(Tail::Partial(None)),
        Err(fault) => return Err(Tail::Broken(fault, None)),
    };
    let framing = head.framing(to_head).map_err(|fault| Tail::Broken(fault, None))?;
    match body(framing, &input[head.len..]) {
        Ok(Some((body, trailers, len))) => {
            let len = head.len + len;
            Ok(Message { head, body, trailers, len })
        }
        Ok(None) => Err(Tail::Partial(Some(head))),
        Err(fault) => Err(Tail::Broken(fault, Some(head))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_apart() {
        let check = |input: &str, methods: &[&str], bodies: &[&str], clean: bool| {
            let (whole, tail) = requests(input.as_bytes(), true);
            let seen: Vec<&str> = whole.iter().map(|request| request.head.method()).collect();
            assert_eq!(seen, methods, "{input:?}");
            let seen: Vec<_> = whole.iter().map(|request| String::from_utf8_lossy(&request.body)).collect();
            assert_eq!(seen, bodies, "{input:?}");
            assert_eq!(tail == Tail::Clean, clean, "{input:?} {tail:?}");
        };
        check("GET / HTTP/1.1\r\n\r\n\r\nPUT /a HTTP/1.0\r\n\r\n", &["GET", "PUT"], &["", ""], true);
        check("PUT / HTTP/1.1\r\ncontent-length: 2\r\n\r\nokGET", &["PUT"], &["ok"], false);
        let chunked = "PUT / HTTP/1.1\r\ntransfer-encoding: Chunked\r\n\r\n";
        check(&format!("{chunked}2;a=b\r\nok\r\n0\r\na: b\r\n\r\n"), &["PUT"], &["ok"], true);
        check(&format!("{chunked}2\r\nok\r0\r\n\r\n"), &[], &[], false);
        check(&format!("{chunked}+2\r\nok\r\n0\r\n\r\n"), &[], &[], false);
        for bad in
            ["content-length: 1\r\ncontent-length: 1", "content-length: +1", "a : b", "a", " a: b", "a: \0"]
        {
            check(&format!("GET / HTTP/1.1\r\n{bad}\r\n\r\n1"), &[], &[], false);
        }
    }

    #[test]
    fn responses_end_as_their_requests_say() {
        let input = b"HTTP/1.1 103 \r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nHTTP/1.0 204\r\n\r\nHTTP/1.1 200 OK\r\n\r\nrest";
        let (whole, tail) = responses(input, |number| number == 0);
        let seen: Vec<_> =
            whole.iter().map(|response| (response.head.status(), response.body.len())).collect();
        assert_eq!((seen, tail), (vec![(103, 0), (200, 0), (204, 0), (200, 4)], Tail::Clean));
        let (whole, tail) = responses(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab", |_| false);
        assert!(whole.is_empty() && matches!(tail, Tail::Partial(Some(_))), "{tail:?}");
    }
}
