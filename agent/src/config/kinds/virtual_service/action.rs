//! What a rule of a VirtualService does.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::super::field::Field;
use super::super::super::object::Notes;
use super::super::{header, regex, service_of_host};
use super::RuleContext;
use super::schema::{
    Delegate, HeaderOperations, Headers, HttpDirectResponse, HttpRedirect, HttpRoute, Rewrite,
    RouteDestination,
};
use crate::model::{
    Destination, DirectResponse, HeaderChange, HeaderOp, MatchPath, PathRewrite, Redirect, RedirectPath,
    RedirectPort, RequestMatch, RewriteRegex, RouteAction, WeightedDestination,
};

/// The redirect target that means the matched prefix.
const PREFIX_PLACEHOLDER: &str = "%PREFIX()%";

/// Changes of header fields, and the authority where a change of `Host` means it.
#[derive(Default)]
pub(super) struct HeaderChanges {
    pub request: Vec<HeaderOp>,
    pub response: Vec<HeaderOp>,
    pub authority: Option<Arc<str>>,
}

/// The rule's action, once for each way in which its alternatives need the path rewritten. `None` after an error is
/// noted, or where the rule takes nothing in the mesh.
pub(super) fn actions(
    rule: &HttpRoute,
    headers: &HeaderChanges,
    matches: Option<Vec<RequestMatch>>,
    context: &RuleContext<'_>,
    notes: &mut Notes<'_>,
) -> Option<Vec<(Vec<RequestMatch>, RouteAction)>> {
    let field = &context.field;
    // Leaving the rule out would give its requests to the rules after it.
    if let Some(Delegate { name, namespace }) = &rule.delegate {
        let separator = if namespace.is_empty() { "" } else { "/" };
        let text =
            format!("delegates are not supported yet: write the rules of {namespace}{separator}{name} here");
        notes.error(&field.key("delegate"), text);
        return None;
    }
    let kinds = [!rule.route.is_empty(), rule.redirect.is_some(), rule.direct_response.is_some()];
    if kinds.iter().filter(|kind| **kind).count() > 1 {
        notes.error(field, "route, redirect and directResponse exclude each other");
        return None;
    }
    let action = if let Some(redirect) = &rule.redirect {
        RouteAction::Redirect(redirect_of(redirect, &field.key("redirect"), notes))
    } else if let Some(response) = &rule.direct_response {
        RouteAction::Respond(response_of(response, &field.key("directResponse"), notes)?)
    } else if !rule.route.is_empty() {
        let destinations = destinations(&rule.route, context, notes);
        let Some(rewrite) = &rule.rewrite else {
            let rewrite = PathRewrite { authority: headers.authority.clone(), path: None };
            return Some(vec![(matches?, RouteAction::Forward { destinations, rewrite })]);
        };
        let rewrites = rewrites(rewrite, headers, matches?, &field.key("rewrite"), notes)?;
        let action = |rewrite| RouteAction::Forward { destinations: destinations.clone(), rewrite };
        return Some(rewrites.into_iter().map(|(matches, rewrite)| (matches, action(rewrite))).collect());
    } else {
        notes.error(field, "a rule needs one of route, redirect and directResponse");
        return None;
    };
    if rule.rewrite.is_some() {
        notes.error(&field.key("rewrite"), "only a rule with a route can rewrite");
    }
    Some(vec![(matches?, action)])
}

fn destinations(
    written: &[RouteDestination],
    context: &RuleContext<'_>,
    notes: &mut Notes<'_>,
) -> Vec<WeightedDestination> {
    let field = context.field.key("route");
    let mut destinations = Vec::with_capacity(written.len());
    let mut sum = 0_u64;
    for (index, route) in written.iter().enumerate() {
        let field = field.index(index);
        // The weight of a single destination does not matter; a missing one among several is zero, as in Istio.
        let weight = if written.len() == 1 { 1 } else { route.weight.unwrap_or(0) };
        let weight = u32::try_from(weight).unwrap_or_else(|_| {
            notes.error(&field.key("weight"), format!("{weight} is no weight"));
            0
        });
        if route.weight.is_some_and(|weight| weight < 0) {
            notes.error(&field.key("weight"), "a weight can't be negative");
        }
        sum += u64::from(weight);
        let headers = header_changes(route.headers.as_ref(), &field.key("headers"), notes);
        if headers.authority.is_some() {
            notes.error(
                &field.key("headers"),
                "the host of one destination can't be changed: use rewrite.authority",
            );
        }
        destinations.push(WeightedDestination {
            destination: destination(route, context.namespace, &field.key("destination"), notes),
            weight,
            request_headers: headers.request,
            response_headers: headers.response,
        });
    }
    if sum == 0 {
        notes.error(&field, "the weights add up to zero");
    } else if sum > u64::from(u32::MAX) {
        notes.error(&field, "the weights add up to more than 4294967295");
    }
    destinations
}

fn destination(
    route: &RouteDestination,
    namespace: &str,
    field: &Field,
    notes: &mut Notes<'_>,
) -> Destination {
    let target = &route.destination;
    if target.host.is_empty() || target.host.contains('*') {
        notes.error(&field.key("host"), format!("`{}` is no host name", target.host));
    }
    if target.port.as_ref().is_some_and(|port| port.number == 0) {
        notes.error(&field.key("port").key("number"), "0 is no port");
    }
    match service_of_host(&target.host, namespace) {
        Some(service) => Destination::Service {
            service,
            port: target.port.as_ref().map(|port| port.number),
            subset: target.subset.as_deref().filter(|subset| !subset.is_empty()).map(Into::into),
        },
        // Reported when references are looked up, like every host that is no service.
        None => Destination::Invalid { status: 503 },
    }
}

/// How the path is rewritten, by alternatives: a prefix is replaced where the path matched by prefix, the whole path
/// where it matched as a whole.
fn rewrites(
    rewrite: &Rewrite,
    headers: &HeaderChanges,
    matches: Vec<RequestMatch>,
    field: &Field,
    notes: &mut Notes<'_>,
) -> Option<Vec<(Vec<RequestMatch>, PathRewrite)>> {
    let authority = rewrite.authority.as_deref().filter(|authority| !authority.is_empty());
    let authority = authority.map(Into::into).or_else(|| headers.authority.clone());
    if let Some(authority) = &authority
        && !is_authority(authority)
    {
        notes.error(&field.key("authority"), format!("`{authority}` is no host"));
    }
    let with = |path| PathRewrite { authority: authority.clone(), path };
    let uri = rewrite.uri.as_deref().filter(|uri| !uri.is_empty());
    match (uri, &rewrite.by_regex) {
        (Some(_), Some(_)) => {
            notes.error(field, "uri and uriRegexRewrite exclude each other");
            None
        }
        (None, None) => Some(vec![(matches, with(None))]),
        (None, Some(by_regex)) => match regex::part(&by_regex.expression) {
            Ok((regex, text)) => {
                let path =
                    RedirectPath::Regex(RewriteRegex(regex, text), by_regex.substitution.as_str().into());
                Some(vec![(matches, with(Some(path)))])
            }
            Err(reason) => {
                notes.error(&field.key("uriRegexRewrite").key("match"), reason);
                None
            }
        },
        (Some(uri), None) => {
            check_path(uri, &field.key("uri"), notes);
            Some(
                split_by_path(matches)
                    .into_iter()
                    .map(|(is_prefix, matches)| {
                        let path = if is_prefix {
                            RedirectPath::Prefix(uri.into())
                        } else {
                            RedirectPath::Full(uri.into())
                        };
                        (matches, with(Some(path)))
                    })
                    .collect(),
            )
        }
    }
}

/// Runs of alternatives that match the path by prefix, or as a whole. An alternative without a condition on the path
/// is one with the prefix `/`, which a rewrite replaces.
fn split_by_path(mut matches: Vec<RequestMatch>) -> Vec<(bool, Vec<RequestMatch>)> {
    if matches.is_empty() {
        matches.push(RequestMatch::default());
    }
    let mut runs: Vec<(bool, Vec<RequestMatch>)> = Vec::new();
    for mut request in matches {
        let path = request.path.get_or_insert_with(|| MatchPath::Prefix("/".into()));
        let is_prefix =
            matches!(path, MatchPath::Prefix(_) | MatchPath::PrefixIgnoreCase(_) | MatchPath::PathPrefix(_));
        match runs.last_mut().filter(|(last, _)| *last == is_prefix) {
            Some((_, run)) => run.push(request),
            None => runs.push((is_prefix, vec![request])),
        }
    }
    runs
}

fn redirect_of(written: &HttpRedirect, field: &Field, notes: &mut Notes<'_>) -> Redirect {
    let status = written.redirect_code.unwrap_or(301);
    if !matches!(status, 301 | 302 | 303 | 307 | 308) {
        notes.error(&field.key("redirectCode"), format!("{status} is none of 301, 302, 303, 307, 308"));
    }
    let scheme = written.scheme.as_deref().filter(|scheme| !scheme.is_empty());
    if scheme.is_some_and(|scheme| !matches!(scheme, "http" | "https")) {
        notes.error(
            &field.key("scheme"),
            format!("`{}` is no scheme: http or https", scheme.unwrap_or_default()),
        );
    }
    let by_scheme = if scheme == Some("https") { 443 } else { 80 };
    let port = match (written.port, written.derive_port.as_deref()) {
        (Some(_), Some(_)) => {
            notes.error(field, "port and derivePort exclude each other");
            None
        }
        (Some(port), None) => Some(RedirectPort::Number(port)),
        (None, Some("FROM_PROTOCOL_DEFAULT")) => Some(RedirectPort::Number(by_scheme)),
        (None, Some("FROM_REQUEST_PORT")) => Some(RedirectPort::Request),
        (None, Some(other)) => {
            let text = format!("`{other}` is neither FROM_PROTOCOL_DEFAULT nor FROM_REQUEST_PORT");
            notes.error(&field.key("derivePort"), text);
            None
        }
        // A new scheme brings its own port.
        (None, None) => scheme.map(|_| RedirectPort::Number(by_scheme)),
    };
    let authority = written.authority.as_deref().filter(|authority| !authority.is_empty());
    if authority.is_some_and(|authority| !is_authority(authority)) {
        notes.error(&field.key("authority"), format!("`{}` is no host", authority.unwrap_or_default()));
    }
    let uri = written.uri.as_deref().filter(|uri| !uri.is_empty());
    let path = uri.map(|uri| {
        if let Some(prefix) = uri.strip_prefix(PREFIX_PLACEHOLDER) {
            return RedirectPath::Prefix(prefix.into());
        }
        check_path(uri, &field.key("uri"), notes);
        RedirectPath::Full(uri.into())
    });
    Redirect { status, scheme: scheme.map(Into::into), authority: authority.map(Into::into), port, path }
}

fn response_of(written: &HttpDirectResponse, field: &Field, notes: &mut Notes<'_>) -> Option<DirectResponse> {
    if !(200..600).contains(&written.status) {
        notes.error(&field.key("status"), format!("{} is no status from 200 to 599", written.status));
    }
    let body = match &written.body {
        None => Vec::new(),
        Some(body) if body.bytes.is_some() => {
            notes.error(&field.key("body").key("bytes"), "a binary body is not supported: use `string`");
            return None;
        }
        Some(body) => body.string.clone().unwrap_or_default().into_bytes(),
    };
    Some(DirectResponse { status: written.status, body: body.into() })
}

/// The changes of a rule or of one destination: removals first, as Envoy orders them.
pub(super) fn header_changes(
    written: Option<&Headers>,
    field: &Field,
    notes: &mut Notes<'_>,
) -> HeaderChanges {
    let Some(written) = written else { return HeaderChanges::default() };
    let mut authority = None;
    let request = operations(&written.request, &field.key("request"), Some(&mut authority), notes);
    let response = operations(&written.response, &field.key("response"), None, notes);
    HeaderChanges { request, response, authority }
}

fn operations(
    written: &HeaderOperations,
    field: &Field,
    mut authority: Option<&mut Option<Arc<str>>>,
    notes: &mut Notes<'_>,
) -> Vec<HeaderOp> {
    let mut operations = Vec::new();
    for (index, name) in written.remove.iter().enumerate() {
        operations.extend(header::change(
            name,
            HeaderChange::Remove,
            &field.key("remove").index(index),
            notes,
        ));
    }
    let mut values =
        |name: &str, written: &BTreeMap<String, String>, change: fn(Arc<str>) -> HeaderChange| {
            let field = field.key(name);
            for (key, value) in written {
                let is_host = matches!(key.to_ascii_lowercase().as_str(), "host" | ":authority");
                match authority.as_deref_mut().filter(|_| is_host && name == "set") {
                    Some(authority) => *authority = Some(value.as_str().into()),
                    None => {
                        operations.extend(header::change(
                            key,
                            change(value.as_str().into()),
                            &field.key(key),
                            notes,
                        ));
                    }
                }
            }
        };
    values("set", &written.set, HeaderChange::Set);
    values("add", &written.add, HeaderChange::Add);
    operations
}

fn check_path(path: &str, field: &Field, notes: &mut Notes<'_>) {
    if !path.starts_with('/') || path.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
        notes.error(field, format!("`{path}` is no path: it begins with `/` and has no spaces"));
    }
}

fn is_authority(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"/?#@\\".contains(&byte))
}
