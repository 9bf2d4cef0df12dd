//! What an AuthorizationPolicy asks of requests, read from its operations and conditions.

use std::sync::Arc;

use super::schema::{Condition, Operation};
use super::{Code, Field, PolicyMatch, Reader};
use crate::model::{FieldTerm, PathPart, PathPattern, RequestTerms, TextPattern};
use crate::route::canonical_escapes;

/// What a condition on a header field begins with.
pub(super) const FIELD_KEY: &str = "request.headers[";

const NO_TEXT: &str = "is empty, or has a `*` elsewhere than at one end";

impl Reader<'_, '_> {
    pub(super) fn request(&mut self, operation: &Operation, field: &Field) -> RequestTerms {
        RequestTerms {
            methods: self.methods(&operation.methods, &field.key("methods")),
            not_methods: self.methods(&operation.not_methods, &field.key("notMethods")),
            paths: self.each(&operation.paths, &field.key("paths"), path),
            not_paths: self.each(&operation.not_paths, &field.key("notPaths"), path),
            hosts: self.each(&operation.hosts, &field.key("hosts"), host),
            not_hosts: self.each(&operation.not_hosts, &field.key("notHosts"), host),
            field: None,
        }
    }

    /// Methods are told apart by case (RFC 9110 section 9.1), and those that there are have capitals alone.
    fn methods(&mut self, written: &[String], field: &Field) -> Vec<TextPattern> {
        let small = |text: &String| text.bytes().any(|byte| byte.is_ascii_lowercase());
        for (index, text) in written.iter().enumerate().filter(|(_, text)| small(text)) {
            let upper = text.to_ascii_uppercase();
            let text = format!(
                "`{text}` is no method that anybody uses: methods are written in capitals, `{upper}`"
            );
            self.notes.warning(Code::Ignored, &field.index(index), text);
        }
        self.each(written, field, text)
    }

    pub(super) fn header(&mut self, key: &str, written: &Condition, field: &Field) -> PolicyMatch {
        let name = key.strip_prefix(FIELD_KEY).and_then(|rest| rest.strip_suffix(']')).unwrap_or_default();
        if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
            let text = format!("`{key}`: no header field's name stands between the brackets");
            self.notes.error(&field.key("key"), text);
        }
        let term = FieldTerm {
            name: name.to_ascii_lowercase().into(),
            values: self.each(&written.values, &field.key("values"), text),
            not_values: self.each(&written.not_values, &field.key("notValues"), text),
        };
        let request = RequestTerms { field: Some(term), ..RequestTerms::default() };
        PolicyMatch { request, ..PolicyMatch::default() }
    }
}

pub(super) fn text(written: &str) -> Result<TextPattern, &'static str> {
    let plain = |part: &str| {
        if part.is_empty() || part.contains('*') { Err(NO_TEXT) } else { Ok(Arc::from(part)) }
    };
    match (written.strip_prefix('*'), written.strip_suffix('*')) {
        (Some(""), _) => Ok(TextPattern::Present),
        (Some(end), None) => plain(end).map(TextPattern::Suffix),
        (None, Some(start)) => plain(start).map(TextPattern::Prefix),
        (None, None) => plain(written).map(TextPattern::Exact),
        (Some(_), Some(_)) => Err(NO_TEXT),
    }
}

/// Hosts are compared in lower case.
fn host(written: &str) -> Result<TextPattern, &'static str> {
    text(&written.to_ascii_lowercase())
}

/// A path with its escapes spelled as those of normalised paths are.
fn path(written: &str) -> Result<PathPattern, &'static str> {
    if written.contains(['{', '}']) {
        return template(written).map(PathPattern::Template);
    }
    text(&canonical_escapes(written)).map(PathPattern::Text)
}

fn template(written: &str) -> Result<Vec<PathPart>, &'static str> {
    const NO_TEMPLATE: &str =
        "is no template: `{*}` and `{**}` stand for whole elements, `{**}` once and after all `{*}`";
    let parts = written.strip_prefix('/').ok_or(NO_TEMPLATE)?.split('/').map(|element| match element {
        "{*}" => Ok(PathPart::One),
        "{**}" => Ok(PathPart::Many),
        plain if plain.contains(['{', '}', '*']) => Err(NO_TEMPLATE),
        plain => Ok(PathPart::Text(canonical_escapes(plain).into())),
    });
    let parts = parts.collect::<Result<Vec<_>, _>>()?;
    let many = parts.iter().position(|part| *part == PathPart::Many);
    let later = many.map_or(&[][..], |many| &parts[many + 1..]);
    let sound = later.iter().all(|part| matches!(part, PathPart::Text(_)));
    if sound { Ok(parts) } else { Err(NO_TEMPLATE) }
}
