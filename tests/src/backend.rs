//! Servers inside the test's own process: one that answers HTTP/1.1 by a function, and one that says whatever bytes a
//! script says. Each connection has a thread, which ends with its connection or with the process.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::http::{malformed, read_chunks_and_trailers, read_exactly, read_line};

/// A request, read whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The method.
    pub method: String,
    /// The target as received.
    pub target: String,
    /// The headers, names in lower case, in order.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// The trailers as lines.
    pub trailers: Vec<String>,
}

impl Request {
    /// The first header of that lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// What a server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// Headers beyond the length.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

/// Listens on loopback at a free port.
pub fn listen() -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
}

/// A loopback address at which nobody listens.
pub fn dead_address() -> io::Result<SocketAddr> {
    listen()?.local_addr()
}

/// Answers every request with what it was, as JSON, and `x-pod: NAME`.
pub fn echo(name: &str) -> io::Result<SocketAddr> {
    let name = name.to_owned();
    http(listen()?, move |request| echo_reply(&name, request))
}

/// The answer of [`echo`].
pub fn echo_reply(name: &str, request: &Request) -> Reply {
    let headers: Vec<Value> = request.headers.iter().map(|(name, value)| json!([name, value])).collect();
    let body = json!({
        "backend": name,
        "method": request.method,
        "target": request.target,
        "headers": headers,
        "body": String::from_utf8_lossy(&request.body),
    });
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    Reply {
        status: 200,
        headers: vec![header("x-pod", name), header("x-backend", name)],
        body: body.to_string().into_bytes(),
    }
}

/// Serves HTTP/1.1 on a listener; connections are kept.
pub fn http(
    listener: TcpListener,
    answer: impl Fn(&Request) -> Reply + Send + Sync + 'static,
) -> io::Result<SocketAddr> {
    raw(listener, move |stream| {
        // A client that goes away ends its own connection and nothing else.
        let _ = serve(&stream, &answer);
    })
}

/// Hands each connection of a listener to a script on a thread of its own.
pub fn raw(
    listener: TcpListener,
    script: impl Fn(TcpStream) + Send + Sync + 'static,
) -> io::Result<SocketAddr> {
    let address = listener.local_addr()?;
    let script = Arc::new(script);
    std::thread::Builder::new().name(format!("backend-{}", address.port())).spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let script = Arc::clone(&script);
            std::thread::spawn(move || script(stream));
        }
    })?;
    Ok(address)
}

/// Reads one request's head, empty last line included, as the scripts of raw servers need it.
pub fn read_head(stream: &mut impl BufRead) -> io::Result<String> {
    let mut head = String::new();
    loop {
        let line = read_line(stream)?;
        head.push_str(&line);
        head.push_str("\r\n");
        if line.is_empty() {
            return Ok(head);
        }
    }
}

fn serve(stream: &TcpStream, answer: &impl Fn(&Request) -> Reply) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    while !reader.fill_buf()?.is_empty() {
        let request = read_request(&mut reader)?;
        let reply = answer(&request);
        let mut head = format!("HTTP/1.1 {} Said\r\ncontent-length: {}\r\n", reply.status, reply.body.len());
        for (name, value) in &reply.headers {
            // Writing to a String cannot fail.
            let _ = write!(head, "{name}: {value}\r\n");
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        if request.method != "HEAD" {
            bytes.extend_from_slice(&reply.body);
        }
        (&mut &*stream).write_all(&bytes)?;
    }
    Ok(())
}

fn read_request(reader: &mut impl BufRead) -> io::Result<Request> {
    let head = read_head(reader)?;
    let mut lines = head.lines();
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Err(malformed("a request line"));
    };
    let mut request = Request {
        method: method.to_owned(),
        target: target.to_owned(),
        headers: Vec::new(),
        body: Vec::new(),
        trailers: Vec::new(),
    };
    for line in lines.filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').ok_or_else(|| malformed(line))?;
        request.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    if request.header("transfer-encoding").is_some() {
        (request.body, request.trailers) = read_chunks_and_trailers(reader)?;
    } else if let Some(length) = request.header("content-length") {
        let length = length.parse().map_err(|_| malformed("content-length"))?;
        read_exactly(reader, length, &mut request.body)?;
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::http::Connection;

    #[test]
    fn requests_are_told_back_over_one_connection() {
        let address = echo("one").expect("listens");
        let mut connection = Connection::open(address, Duration::from_secs(5)).expect("connects");
        for path in ["/a?b=1", "/c"] {
            let response = connection.request("PUT", "web", path, &[("X-Y", "z")]).expect("answers");
            let seen: Value = serde_json::from_slice(&response.body).expect("JSON");
            assert_eq!(
                (&seen["backend"], &seen["method"], &seen["target"]),
                (&json!("one"), &json!("PUT"), &json!(path))
            );
            assert_eq!(seen["headers"], json!([["host", "web"], ["x-y", "z"]]));
        }
    }

    #[test]
    fn bodies_of_either_framing_are_read() {
        let check = |framing: &str, body: &str| {
            let text = format!("POST / HTTP/1.1\r\n{framing}\r\n\r\n{body}");
            let request = read_request(&mut text.as_bytes()).expect("a request");
            assert_eq!(request.body, b"hello", "{framing}");
        };
        check("Content-Length: 5", "hello");
        check("Transfer-Encoding: chunked", "2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n");
    }
}
