//! A small HTTP/1.1 client that hides nothing: one request, one answer, over a stream that the caller keeps.
//!
//! Serves readiness checks, admin look-ups and the load generator. It is strict about framing, because an answer
//! that is cut short must count as a failure.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// No header line of a test's server is longer.
const LINE_MAX: u64 = 64 * 1024;
/// No answer that is read whole is larger.
const BODY_MAX: usize = 64 * 1024 * 1024;

/// An answer, read whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The headers, names in lower case, in order.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// The first header of that lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn closes(&self) -> bool {
        self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

/// A connection that carries one request after another.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
    reusable: bool,
}

impl Connection {
    /// Connects; every later read and write is bounded by `timeout` too.
    pub fn open(address: SocketAddr, timeout: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream), reusable: true })
    }

    /// Sends a GET and reads the whole answer.
    pub fn get(&mut self, host: &str, path: &str, headers: &[(&str, &str)]) -> io::Result<Response> {
        self.request("GET", host, path, headers)
    }

    /// Sends a request without a body, of any method but HEAD, and reads the whole answer.
    pub fn request(
        &mut self,
        method: &str,
        host: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> io::Result<Response> {
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n");
        for (name, value) in headers {
            // Writing to a String cannot fail.
            let _ = write!(request, "{name}: {value}\r\n");
        }
        request.push_str("\r\n");
        self.stream.get_mut().write_all(request.as_bytes())?;
        let response = read_response(&mut self.stream)?;
        self.reusable = !response.closes();
        Ok(response)
    }

    /// Whether another request may follow.
    pub fn is_reusable(&self) -> bool {
        self.reusable
    }
}

/// One GET on a connection of its own.
pub fn get(address: SocketAddr, host: &str, path: &str, timeout: Duration) -> io::Result<Response> {
    Connection::open(address, timeout)?.get(host, path, &[("Connection", "close")])
}

pub(crate) fn read_response(stream: &mut impl BufRead) -> io::Result<Response> {
    let status_line = read_line(stream)?;
    let status = status_line
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1))
        .and_then(|code| code.parse().ok())
        .ok_or_else(|| malformed(&format!("status line {status_line:?}")))?;
    let mut response = Response { status, headers: Vec::new(), body: Vec::new() };
    loop {
        let line = read_line(stream)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or_else(|| malformed(&format!("header {line:?}")))?;
        response.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    response.body = read_body(stream, &response)?;
    Ok(response)
}

fn read_body(stream: &mut impl BufRead, head: &Response) -> io::Result<Vec<u8>> {
    if head.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        return read_chunks(stream);
    }
    if matches!(head.status, 100..=199 | 204 | 304) {
        return Ok(Vec::new());
    }
    let Some(length) = head.header("content-length") else {
        let mut body = Vec::new();
        stream.take(BODY_MAX as u64).read_to_end(&mut body)?;
        return Ok(body);
    };
    let length: usize = length.parse().map_err(|_| malformed(&format!("content-length {length:?}")))?;
    let mut body = Vec::new();
    read_exactly(stream, length, &mut body)?;
    Ok(body)
}

pub(crate) fn read_chunks(stream: &mut impl BufRead) -> io::Result<Vec<u8>> {
    read_chunks_and_trailers(stream).map(|(body, _)| body)
}

/// The body, and its trailers as lines.
pub(crate) fn read_chunks_and_trailers(stream: &mut impl BufRead) -> io::Result<(Vec<u8>, Vec<String>)> {
    let (mut body, mut trailers) = (Vec::new(), Vec::new());
    loop {
        let line = read_line(stream)?;
        let size = line.split(';').next().unwrap_or_default();
        let size = usize::from_str_radix(size, 16).map_err(|_| malformed(&format!("chunk size {line:?}")))?;
        if size == 0 {
            break;
        }
        read_exactly(stream, size, &mut body)?;
        if !read_line(stream)?.is_empty() {
            return Err(malformed("a chunk longer than it said"));
        }
    }
    loop {
        let line = read_line(stream)?;
        if line.is_empty() {
            return Ok((body, trailers));
        }
        trailers.push(line);
    }
}

/// A length that is too large is found out by reading: who announces much and sends little is not broken off.
pub(crate) fn read_exactly(stream: &mut impl BufRead, length: usize, body: &mut Vec<u8>) -> io::Result<()> {
    let room = BODY_MAX - body.len().min(BODY_MAX);
    let wanted = length.min(room);
    let read = stream.take(wanted as u64).read_to_end(body)?;
    if read < wanted {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed before a body was complete"));
    }
    if length > room {
        return Err(malformed("a body too large to read whole"));
    }
    Ok(())
}

pub(crate) fn read_line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut line = Vec::new();
    stream.take(LINE_MAX).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed before an answer was complete"));
    }
    let text = line.strip_suffix(b"\r\n").ok_or_else(|| malformed("a line without CRLF"))?;
    Ok(String::from_utf8_lossy(text).into_owned())
}

pub(crate) fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed answer: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &str) -> io::Result<Response> {
        read_response(&mut bytes.as_bytes())
    }

    #[test]
    fn bodies_of_every_framing() {
        let check = |bytes: &str, status: u16, body: &str| {
            let response = read(bytes).unwrap_or_else(|error| panic!("{bytes:?}: {error}"));
            assert_eq!((response.status, response.text().as_str()), (status, body), "{bytes:?}");
        };
        check("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiX", 200, "hi");
        check("HTTP/1.1 200 OK\r\n\r\nto the end", 200, "to the end");
        check("HTTP/1.0 204 No Content\r\n\r\n", 204, "");
        check("HTTP/1.1 503 \r\ncontent-length:0\r\n\r\n", 503, "");
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        check(
            &format!("{chunked}3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\nT: 1\r\n\r\n"),
            200,
            "abc0123456789",
        );
    }

    #[test]
    fn answers_that_are_cut_or_wrong_are_errors() {
        for bytes in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 200 OK\n\n",
            "HTTP/1.1 abc OK\r\n\r\n",
            "SSH-2.0-server\r\n\r\n",
            "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhi",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        ] {
            assert!(read(bytes).is_err(), "{bytes:?} was taken for an answer");
        }
    }
}
