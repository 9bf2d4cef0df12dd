//! A server that writes down every whole request that reached it, so that a test can say what a proxy let through.

use std::fmt::Write as _;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};

use crate::backend::{Request, echo_reply, http};

/// Fields that every proxied request has and that say nothing of what its client sent.
const OWN_FIELDS: &[&str] =
    &["via", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-request-id"];

/// What a server has seen.
#[derive(Debug, Clone, Default)]
pub struct Witness {
    seen: Arc<Mutex<Vec<String>>>,
}

impl Witness {
    /// Serves a listener as an echo of that name. Requests with the field `unseen` are answered and not written down.
    pub fn serve(name: &str, listener: TcpListener, unseen: &str) -> io::Result<(Self, SocketAddr)> {
        let witness = Self::default();
        let (seen, name, unseen) = (Arc::clone(&witness.seen), name.to_owned(), unseen.to_owned());
        let address = http(listener, move |request| {
            if request.header(&unseen).is_none() {
                seen.lock().unwrap_or_else(PoisonError::into_inner).push(written(request));
            }
            echo_reply(&name, request)
        })?;
        Ok((witness, address))
    }

    /// The requests since the last call, each as `METHOD TARGET [field: value; ..] BODY {trailer: value; ..}`. Left out
    /// are a Host of `web`, what the proxy itself adds, and parts that are empty but for the fields.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn written(request: &Request) -> String {
    let told = |(name, value): &&(String, String)| {
        !OWN_FIELDS.contains(&name.as_str()) && (name.as_str(), value.as_str()) != ("host", "web")
    };
    let fields: Vec<String> =
        request.headers.iter().filter(told).map(|(name, value)| format!("{name}: {value}")).collect();
    let mut text = format!("{} {} [{}]", request.method, request.target, fields.join("; "));
    if !request.body.is_empty() {
        text.push(' ');
        text.push_str(&String::from_utf8_lossy(&request.body));
    }
    if !request.trailers.is_empty() {
        // Writing to a String cannot fail.
        let _ = write!(text, " {{{}}}", request.trailers.join("; "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_written_in_one_line() {
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mut request = Request {
            method: "POST".to_owned(),
            target: "/a".to_owned(),
            headers: vec![header("host", "web"), header("x-a", "1"), header("via", "1.1 sluice")],
            body: b"hello".to_vec(),
            trailers: vec!["x-sum: 1".to_owned()],
        };
        assert_eq!(written(&request), "POST /a [x-a: 1] hello {x-sum: 1}");
        request.headers = vec![header("host", "other")];
        (request.body, request.trailers) = (Vec::new(), Vec::new());
        assert_eq!(written(&request), "POST /a [host: other]");
    }
}
