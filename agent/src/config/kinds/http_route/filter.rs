//! `filters` of an HTTPRoute.

use super::super::super::field::Field;
use super::super::super::object::Notes;
use super::super::{header, host_pattern};
use super::schema::{
    FilterSpec, FilterType, HeaderModifier, ModifierType, PathModifier, RedirectSpec, RewriteSpec,
};
use crate::model::{
    HeaderChange, HeaderOp, HostPattern, MatchPath, PathRewrite, Redirect, RedirectPath, RedirectPort,
    RequestMatch,
};

/// What the filters of a rule or a backend do together.
#[derive(Debug, Default)]
pub(super) struct Filters {
    pub request_headers: Vec<HeaderOp>,
    pub response_headers: Vec<HeaderOp>,
    pub redirect: Option<Redirect>,
    pub rewrite: PathRewrite,
}

impl Filters {
    /// Reads filters; each type may occur once.
    pub fn read(written: &[FilterSpec], field: &Field, notes: &mut Notes<'_>) -> Self {
        let mut filters = Self::default();
        let mut seen: Vec<FilterType> = Vec::new();
        for (index, filter) in written.iter().enumerate() {
            let field = field.index(index);
            let repeats = matches!(filter.filter_type, FilterType::RequestMirror | FilterType::ExtensionRef);
            if !repeats && seen.contains(&filter.filter_type) {
                notes.error(&field.key("type"), "a filter of this type is given twice");
            }
            seen.push(filter.filter_type);
            // Without the check that it asks for, the rule would let everybody in.
            if filter.filter_type == FilterType::ExternalAuth {
                notes.error(&field.key("type"), "ExternalAuth is not supported yet");
            }
            filters.add(filter, &field, notes);
        }
        if seen.contains(&FilterType::RequestRedirect) && seen.contains(&FilterType::UrlRewrite) {
            notes.error(field, "RequestRedirect and URLRewrite exclude each other");
        }
        filters
    }

    fn add(&mut self, filter: &FilterSpec, field: &Field, notes: &mut Notes<'_>) {
        if !is_complete(filter, field, notes) {
            return;
        }
        if let Some(modifier) = &filter.request_header_modifier {
            self.request_headers = header_ops(modifier, &field.key("requestHeaderModifier"), notes);
        }
        if let Some(modifier) = &filter.response_header_modifier {
            self.response_headers = header_ops(modifier, &field.key("responseHeaderModifier"), notes);
        }
        if let Some(redirect) = &filter.request_redirect {
            self.redirect = Some(redirect_of(redirect, &field.key("requestRedirect"), notes));
        }
        if let Some(rewrite) = &filter.url_rewrite {
            self.rewrite = rewrite_of(rewrite, &field.key("urlRewrite"), notes);
        }
        if let Some(extension) = &filter.extension_ref {
            let text =
                format!("no extension {} of {} called {}", extension.kind, extension.group, extension.name);
            notes.error(&field.key("extensionRef"), text);
        }
    }

    /// Refuses a prefix replacement where a path is not matched by prefix: there is nothing to replace.
    pub fn check_prefix(&self, matches: &[RequestMatch], field: &Field, notes: &mut Notes<'_>) {
        let paths =
            [self.redirect.as_ref().and_then(|redirect| redirect.path.as_ref()), self.rewrite.path.as_ref()];
        let replaces_prefix = paths.into_iter().flatten().any(|path| matches!(path, RedirectPath::Prefix(_)));
        let by_prefix = |one: &RequestMatch| matches!(one.path, Some(MatchPath::PathPrefix(_)));
        if replaces_prefix && !matches.iter().all(by_prefix) {
            notes.error(field, "ReplacePrefixMatch needs matches of type PathPrefix alone");
        }
    }

    /// Refuses filters that make no sense for one of several backends, and lists those that come later.
    pub fn check_backend(&self, field: &Field, notes: &mut Notes<'_>) {
        if self.redirect.is_some() {
            notes.error(field, "one backend can't redirect: the filter belongs to the rule");
        }
        if self.rewrite != PathRewrite::default() {
            notes.later(field);
        }
    }
}

/// Whether the filter has the field that its type names, and no other.
fn is_complete(filter: &FilterSpec, field: &Field, notes: &mut Notes<'_>) -> bool {
    let present = [
        (
            FilterType::RequestHeaderModifier,
            "requestHeaderModifier",
            filter.request_header_modifier.is_some(),
        ),
        (
            FilterType::ResponseHeaderModifier,
            "responseHeaderModifier",
            filter.response_header_modifier.is_some(),
        ),
        (FilterType::RequestRedirect, "requestRedirect", filter.request_redirect.is_some()),
        (FilterType::UrlRewrite, "urlRewrite", filter.url_rewrite.is_some()),
        (FilterType::ExtensionRef, "extensionRef", filter.extension_ref.is_some()),
    ];
    let mut complete = true;
    for (filter_type, name, is_present) in present {
        if is_present != (filter_type == filter.filter_type) {
            let text = if is_present { "does not belong to the filter's type" } else { "is missing" };
            notes.error(&field.key(name), format!("{name} {text}"));
            complete = false;
        }
    }
    complete
}

fn header_ops(modifier: &HeaderModifier, field: &Field, notes: &mut Notes<'_>) -> Vec<HeaderOp> {
    let mut operations = Vec::new();
    for (index, name) in modifier.remove.iter().enumerate() {
        operations.extend(header::change(
            name,
            HeaderChange::Remove,
            &field.key("remove").index(index),
            notes,
        ));
    }
    for (index, value) in modifier.set.iter().enumerate() {
        let change = HeaderChange::Set(value.value.as_str().into());
        operations.extend(header::change(&value.name, change, &field.key("set").index(index), notes));
    }
    for (index, value) in modifier.add.iter().enumerate() {
        let change = HeaderChange::Add(value.value.as_str().into());
        operations.extend(header::change(&value.name, change, &field.key("add").index(index), notes));
    }
    operations
}

fn redirect_of(written: &RedirectSpec, field: &Field, notes: &mut Notes<'_>) -> Redirect {
    let status = written.status_code.unwrap_or(302);
    if !matches!(status, 301 | 302 | 303 | 307 | 308) {
        notes.error(&field.key("statusCode"), format!("{status} is none of 301, 302, 303, 307, 308"));
    }
    let scheme = written.scheme.as_deref();
    if scheme.is_some_and(|scheme| !matches!(scheme, "http" | "https")) {
        notes.error(
            &field.key("scheme"),
            format!("`{}` is no scheme: http or https", scheme.unwrap_or_default()),
        );
    }
    if written.port == Some(0) {
        notes.error(&field.key("port"), "0 is no port");
    }
    // Without a port, a scheme that is given brings its own one.
    let by_scheme = scheme.map(|scheme| if scheme == "https" { 443 } else { 80 });
    Redirect {
        status,
        scheme: scheme.map(Into::into),
        authority: hostname(written.hostname.as_deref(), field, notes),
        port: written.port.or(by_scheme).map(RedirectPort::Number),
        path: written.path.as_ref().and_then(|path| modifier_of(path, &field.key("path"), notes)),
    }
}

fn rewrite_of(written: &RewriteSpec, field: &Field, notes: &mut Notes<'_>) -> PathRewrite {
    PathRewrite {
        authority: hostname(written.hostname.as_deref(), field, notes),
        path: written.path.as_ref().and_then(|path| modifier_of(path, &field.key("path"), notes)),
    }
}

fn hostname(written: Option<&str>, field: &Field, notes: &mut Notes<'_>) -> Option<std::sync::Arc<str>> {
    let written = written?;
    let Some(HostPattern::Exact(host)) = host_pattern(written) else {
        notes.error(&field.key("hostname"), format!("`{written}` is no host name"));
        return None;
    };
    Some(host)
}

fn modifier_of(written: &PathModifier, field: &Field, notes: &mut Notes<'_>) -> Option<RedirectPath> {
    let (name, value) = match written.modifier {
        ModifierType::ReplaceFullPath => ("replaceFullPath", &written.replace_full_path),
        ModifierType::ReplacePrefixMatch => ("replacePrefixMatch", &written.replace_prefix_match),
    };
    let Some(value) = value else {
        notes.error(&field.key(name), format!("{name} is missing"));
        return None;
    };
    if value.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
        notes.error(&field.key(name), format!("`{value}` is no path"));
        return None;
    }
    Some(match written.modifier {
        ModifierType::ReplaceFullPath => RedirectPath::Full(value.as_str().into()),
        ModifierType::ReplacePrefixMatch => RedirectPath::Prefix(value.as_str().into()),
    })
}
