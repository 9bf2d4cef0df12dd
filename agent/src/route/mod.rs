//! Matching: which rule takes a request. Pure; time does not grow with the number of hosts or of plain paths.

mod conditions;
mod hosts;
mod path;
mod prefixes;
mod query;
mod rewrite;
mod rules;

use std::sync::Arc;

use crate::compile::Route;
use crate::model::Workload;

pub use hosts::HostTable;
pub use path::{EscapedSlashes, InvalidPath, Normalisation, PathPolicy, canonical_escapes, normalise};
pub use query::query_parameter;
pub use rewrite::{redirect_location, rewrite_climbs, rewrite_path};
pub use rules::{Rule, RuleSet};

/// A request as the matchers see it. Implemented by the HTTP codecs over their own buffers.
pub trait RequestView {
    /// The method, case kept.
    fn method(&self) -> &str;
    /// The path without the query; starts with `/` (or is `*` for `OPTIONS *`).
    fn path(&self) -> &str;
    /// The query, without `?`.
    fn query(&self) -> Option<&str>;
    /// The host without port, lower case.
    fn host(&self) -> &str;
    /// `http` or `https`.
    fn scheme(&self) -> &str;
    /// The first value of a header field, by lower-case name.
    fn header(&self, name: &str) -> Option<&[u8]>;
}

/// What is known of a request beside itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct RequestOrigin<'a> {
    /// The calling pod, where known.
    pub source: Option<&'a Workload>,
    /// The port that the client dialled.
    pub port: u16,
}

/// The route that took a request and how it fitted.
#[derive(Debug, Clone, Copy)]
pub struct RouteMatch<'a> {
    /// The route.
    pub route: &'a Arc<Route>,
    /// Bytes of the path that a prefix match took; 0 for other matches. What a prefix rewrite replaces. A rule without
    /// a condition on the path counts as one on the prefix `/`, as both kinds of route mean it.
    pub prefix_len: usize,
    /// Whether the prefix is one of whole path elements (HTTPRoute) and not a plain string (VirtualService).
    pub by_element: bool,
}

impl<'a> RouteMatch<'a> {
    /// A route that takes every request.
    pub fn unconditional(route: &'a Arc<Route>) -> Self {
        let (prefix_len, by_element) = conditions::prefix_taken(None);
        Self { route, prefix_len, by_element }
    }
}

#[cfg(test)]
mod tests;
