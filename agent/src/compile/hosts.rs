//! Rules of several documents -> one virtual host.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use super::routes::{Dialled, Scope, share};
use super::{Route, RouteName, VirtualHost};
use crate::model::{HttpRule, MatchPath, RequestMatch, RouteKind, RouteTable};
use crate::route::{Rule, RuleSet};

/// Compiles the rules of route tables, in order of precedence of the tables.
pub(super) struct HostCompiler<'a> {
    scope: &'a Scope<'a>,
    dialled: Dialled<'a>,
    previous: Option<&'a Arc<VirtualHost>>,
    known: HashMap<&'a RouteName, &'a Arc<Route>>,
}

impl<'a> HostCompiler<'a> {
    pub(super) fn new(
        scope: &'a Scope<'a>,
        dialled: Dialled<'a>,
        previous: Option<&'a Arc<VirtualHost>>,
    ) -> Self {
        let routes = previous.into_iter().flat_map(|host| host.rules());
        let known = routes.map(|(_, route)| (&route.name, route)).collect();
        Self { scope, dialled, previous, known }
    }

    /// The rules of one document. The port is known here, so conditions on it are decided here, and a rule that is for
    /// other ports alone is left out.
    pub(super) fn table(&self, table: &RouteTable) -> Vec<Rule> {
        let rules = table.rules.iter().filter_map(|rule| {
            let matches = self.alternatives(rule)?;
            let route = self.scope.route(table, rule, self.dialled);
            Some((matches, self.share(route)))
        });
        match table.kind {
            RouteKind::VirtualService | RouteKind::TlsRoute => rules.collect(),
            RouteKind::HttpRoute => rules.flat_map(split).collect(),
        }
    }

    /// A route, or its equal from the previous table.
    pub(super) fn share(&self, route: Route) -> Arc<Route> {
        let previous = self.known.get(&route.name).copied();
        share(route, previous)
    }

    /// The host, or its equal from the previous table.
    pub(super) fn finish(
        &self,
        name: impl Into<Arc<str>>,
        layers: Vec<RuleSet>,
        default: Option<Arc<Route>>,
    ) -> Arc<VirtualHost> {
        let host = VirtualHost { name: name.into(), layers, default };
        match self.previous {
            Some(before) if same(before, &host) => Arc::clone(before),
            _ => Arc::new(host),
        }
    }

    fn alternatives(&self, rule: &HttpRule) -> Option<Vec<RequestMatch>> {
        let matches: Vec<RequestMatch> = rule
            .matches
            .iter()
            .filter(|conditions| conditions.port.is_none_or(|port| port == self.dialled.port))
            .map(|conditions| RequestMatch { port: None, ..conditions.clone() })
            .collect();
        (rule.matches.is_empty() || !matches.is_empty()).then_some(matches)
    }
}

/// The Gateway API ranks alternatives, not rules: each becomes a rule of its own.
fn split((matches, route): Rule) -> Vec<Rule> {
    if matches.len() < 2 {
        return vec![(matches, route)];
    }
    matches.into_iter().map(|conditions| (vec![conditions], Arc::clone(&route))).collect()
}

/// Sorts rules of HTTPRoutes by specificity; what is even stays in the order of the documents.
pub(super) fn sort_by_precedence(rules: &mut [Rule]) {
    rules.sort_by_key(|(matches, _)| Reverse(matches.first().map(precedence).unwrap_or_default()));
}

/// How specific an alternative is, by the Gateway API's order: exact path, longest prefix, method, number of headers,
/// number of query parameters. The standard leaves the place of expressions open; they come after prefixes, as in Istio.
pub(super) type Precedence = (u8, usize, bool, usize, usize);

fn precedence(conditions: &RequestMatch) -> Precedence {
    let (kind, length) = match &conditions.path {
        Some(MatchPath::Exact(path) | MatchPath::ExactIgnoreCase(path)) => (3, path.len()),
        Some(
            MatchPath::Prefix(prefix) | MatchPath::PathPrefix(prefix) | MatchPath::PrefixIgnoreCase(prefix),
        ) if prefix.len() > 1 => (2, prefix.len()),
        Some(MatchPath::Regex(_, text)) => (1, text.len()),
        // The prefix `/` says no more than no condition.
        Some(_) | None => (0, 0),
    };
    (kind, length, conditions.method.is_some(), conditions.headers.len(), conditions.query.len())
}

fn same(before: &VirtualHost, after: &VirtualHost) -> bool {
    before.name == after.name
        && before.default.as_ref().map(Arc::as_ptr) == after.default.as_ref().map(Arc::as_ptr)
        && before.layers.len() == after.layers.len()
        && before.layers.iter().zip(&after.layers).all(|(a, b)| same_rules(a.rules(), b.rules()))
}

fn same_rules(before: &[Rule], after: &[Rule]) -> bool {
    before.len() == after.len()
        && before.iter().zip(after).all(|(a, b)| Arc::ptr_eq(&a.1, &b.1) && a.0 == b.0)
}
