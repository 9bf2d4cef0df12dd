//! A request as its endpoint gets to see it, which is how policies ask about it: what a route rewrites or adds counts.

use std::cell::OnceCell;

use http::HeaderMap;

use super::caller::{Caller, Outgoing};
use super::plan::Planned;
use crate::http::h1::RequestHead;
use crate::model::PolicyRequest;
use crate::route::{EscapedSlashes, Normalisation, PathPolicy, RequestView, normalise};

/// How the most lenient of servers reads a path.
const BY_OTHERS: PathPolicy = PathPolicy {
    normalisation: Normalisation::MergeSlashes,
    escaped_slashes: EscapedSlashes::Decode,
    strict: false,
};

/// A request that is about to be sent on. Made up only as far as a policy asks.
pub(in crate::proxy) struct Passed<'a> {
    caller: Caller<'a>,
    planned: Planned<'a>,
    head: &'a RequestHead,
    request_id: &'a str,
    outgoing: OnceCell<Outgoing<'a>>,
    fields: OnceCell<HeaderMap>,
}

impl<'a> Passed<'a> {
    /// A request with what its route makes of it.
    pub fn new(
        caller: Caller<'a>,
        planned: &Planned<'a>,
        head: &'a RequestHead,
        request_id: &'a str,
    ) -> Self {
        let (outgoing, fields) = (OnceCell::new(), OnceCell::new());
        Self { caller, planned: *planned, head, request_id, outgoing, fields }
    }

    /// The host that the client asks for, without a port.
    pub fn asked_host(&self) -> &str {
        self.head.host()
    }

    fn outgoing(&self) -> &Outgoing<'a> {
        self.outgoing.get_or_init(|| self.caller.outgoing(&self.planned, self.head))
    }

    fn fields(&self) -> &HeaderMap {
        self.fields.get_or_init(|| {
            self.caller.writer(&self.planned, self.outgoing(), self.head, self.request_id).write_map()
        })
    }
}

impl PolicyRequest for Passed<'_> {
    fn method(&self) -> &str {
        self.head.method()
    }

    fn read_paths(&self, each: &mut dyn FnMut(&str)) {
        let path = match &self.outgoing().target {
            Some(target) => target.split_once('?').map_or(&**target, |(path, _)| path),
            None => self.head.path(),
        };
        each(path);
        match normalise(path, BY_OTHERS) {
            Ok(other) if *other != *path => each(&other),
            _ => {}
        }
    }

    fn authority(&self) -> &str {
        &self.outgoing().authority
    }

    fn read_field(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        // These two are no fields of the map.
        match name {
            "host" => return each(self.authority().as_bytes()),
            "upgrade" => return self.caller.upgrade(self.head).into_iter().for_each(each),
            _ => {}
        }
        let values: Vec<&[u8]> = self.fields().get_all(name).iter().map(AsRef::as_ref).collect();
        // What HTTP/2 cuts into several fields is one in HTTP/1 (RFC 9113 section 8.2.3).
        let comma = if name == "cookie" { &b"; "[..] } else { b"," };
        for value in &values {
            each(value);
        }
        if values.len() > 1 {
            each(&values.join(comma));
        }
    }
}
