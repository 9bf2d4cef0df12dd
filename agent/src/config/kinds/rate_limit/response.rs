//! What requests get that a limit refuses.

use std::sync::Arc;

use serde::Deserialize;

use super::super::super::field::Field;
use super::super::super::object::Notes;
use super::super::header;
use crate::model::{AnswerHeader, DirectResponse};

/// What the body of an answer may have.
const BODY_MAX: usize = 64 * 1024;
const BODY_DEFAULT: &str = "Too many requests";
/// Fields that a document may add, and the bytes of their names and values: clients take a head of some 8 KiB.
const HEADERS_MAX: usize = 16;
const HEADER_BYTES_MAX: usize = 4096;
/// Fields that the agent writes itself, beside those of every message.
const OWN: &[&str] = &["date", "http2-settings", "proxy-status", "retry-after", "server"];
/// How the names of further ones begin: those that tell of the limit, and of the outcome of a gRPC call.
const OWN_PREFIXES: &[&str] = &["ratelimit", "grpc-"];

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct ResponseSpec {
    status: Option<u16>,
    body: Option<String>,
    headers: Vec<HeaderSpec>,
    fields: FieldsSpec,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct HeaderSpec {
    name: String,
    value: String,
}

/// Whose answers have the fields that tell of the limit.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
enum FieldsSpec {
    #[default]
    Refused,
    Always,
}

impl ResponseSpec {
    pub(super) fn is_set(&self) -> bool {
        self.status.is_some() || self.body.is_some() || !self.headers.is_empty() || self.tells()
    }

    /// Whether requests that are let through are told of their limit.
    pub(super) fn tells(&self) -> bool {
        self.fields == FieldsSpec::Always
    }

    /// The answer, and the fields that are added to it.
    pub(super) fn read(self, notes: &mut Notes<'_>) -> (DirectResponse, Arc<[AnswerHeader]>) {
        let field = Field::spec().key("response");
        let status = self.status.unwrap_or(429);
        if !(400..=599).contains(&status) {
            notes.error(&field.key("status"), format!("{status} is not from 400 to 599"));
        }
        let body = self.body.unwrap_or_else(|| BODY_DEFAULT.to_owned());
        if body.len() > BODY_MAX {
            notes.error(&field.key("body"), format!("more than {BODY_MAX} bytes"));
        }
        let headers = headers(&self.headers, &field.key("headers"), notes);
        (DirectResponse { status, body: body.into_bytes().into() }, headers)
    }
}

fn headers(specs: &[HeaderSpec], field: &Field, notes: &mut Notes<'_>) -> Arc<[AnswerHeader]> {
    let bytes: usize = specs.iter().map(|spec| spec.name.len() + spec.value.len()).sum();
    if specs.len() > HEADERS_MAX || bytes > HEADER_BYTES_MAX {
        let text = format!("more than {HEADERS_MAX} fields or {HEADER_BYTES_MAX} bytes");
        notes.error(field, text);
    }
    let mut headers: Vec<AnswerHeader> = Vec::with_capacity(specs.len());
    for (index, spec) in specs.iter().enumerate() {
        let field = field.index(index);
        let Some(name) = header::name(&spec.name, &field.key("name"), notes) else { continue };
        let typed = |header: &AnswerHeader| &*header.name == "content-type";
        let problem = if header::is_reserved(&name) {
            Some("belongs to the connection or the framing")
        } else if OWN.contains(&&*name) || OWN_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
            Some("is written by the agent itself")
        } else if &*name == "content-type" && headers.iter().any(typed) {
            Some("is there already, and a body has one type")
        } else {
            None
        };
        if let Some(problem) = problem {
            notes.error(&field.key("name"), format!("`{name}` {problem}"));
        }
        // HTTP/2 has no values with spaces around them (RFC 9113, 8.2.1).
        if !header::is_value(&spec.value) || spec.value.trim_matches([' ', '\t']) != spec.value {
            let text = format!("the value of `{name}` has control characters, or spaces around it");
            notes.error(&field.key("value"), text);
        }
        headers.push(AnswerHeader { name, value: spec.value.as_str().into() });
    }
    headers.into()
}
