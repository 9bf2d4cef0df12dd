//! Matching: which rule takes a request. Pure; time does not grow with the number of hosts or of plain paths.

use std::fmt;
use std::sync::Arc;

use crate::compile::Route;
use crate::model::{HostPattern, RequestMatch, Workload};

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
    /// Bytes of the path that a prefix match took; 0 for other matches. What a prefix rewrite replaces.
    pub prefix_len: usize,
}

/// Compiled rules of one virtual host.
#[derive(Default)]
pub struct RuleSet {}

impl RuleSet {
    /// Compiles rules, in order of precedence: each has its alternatives (empty: always) and its route.
    pub fn new(_rules: Vec<(Vec<RequestMatch>, Arc<Route>)>) -> Self {
        todo!("route")
    }

    /// The first rule, in order of precedence, that fits.
    pub fn find(&self, _request: &impl RequestView, _origin: &RequestOrigin<'_>) -> Option<RouteMatch<'_>> {
        todo!("route")
    }

    /// The routes, in order of precedence, for dumps.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        std::iter::empty()
    }
}

impl fmt::Debug for RuleSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RuleSet").finish_non_exhaustive()
    }
}

/// Values by host name: exact first, then the longest wildcard suffix, then any.
#[derive(Debug)]
pub struct HostTable<T>(std::marker::PhantomData<T>);

impl<T> HostTable<T> {
    /// Builds the table; of two entries with one pattern the first is kept.
    pub fn new(_entries: impl IntoIterator<Item = (HostPattern, T)>) -> Self {
        todo!("route")
    }

    /// The value for a lower-case host without port.
    pub fn find(&self, _host: &str) -> Option<&T> {
        todo!("route")
    }

    /// All values with their patterns, for dumps.
    pub fn iter(&self) -> impl Iterator<Item = (HostPattern, &T)> {
        std::iter::empty()
    }
}
