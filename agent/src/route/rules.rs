//! The compiled rules of one virtual host.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::conditions::{fits, origin_fits, prefix_taken};
use super::path::canonical_escapes;
use super::prefixes::PrefixIndex;
use super::{RequestOrigin, RequestView, RouteMatch};
use crate::compile::Route;
use crate::model::{MatchPath, RequestMatch};

/// A rule as it was given: its alternatives (empty: always) and its route.
pub type Rule = (Vec<RequestMatch>, Arc<Route>);

/// Compiled rules of one virtual host.
///
/// Every alternative of every rule has a rank, in order of precedence. The indexes name the alternatives whose path
/// can fit; of these the one with the lowest rank whose conditions all hold wins.
#[derive(Default)]
pub struct RuleSet {
    rules: Vec<Rule>,
    /// By rank: the rule, and the alternative within it.
    ranks: Vec<(usize, Option<usize>)>,
    exact: HashMap<Arc<str>, Vec<u32>>,
    prefixes: PrefixIndex,
    /// By lower-case path, for conditions that ignore case.
    folded_exact: HashMap<Arc<str>, Vec<u32>>,
    folded_prefixes: PrefixIndex,
    /// Alternatives with an expression, and those without a condition on the path; ascending.
    others: Vec<u32>,
    /// Whether some alternative has no condition on the origin.
    of_everyone: bool,
}

impl RuleSet {
    /// Compiles rules, in order of precedence: each has its alternatives (empty: always) and its route.
    pub fn new(mut rules: Vec<Rule>) -> Self {
        rules.iter_mut().flat_map(|(matches, _)| matches).for_each(spell_path);
        let ranks: Vec<_> = rules
            .iter()
            .enumerate()
            .flat_map(|(rule, (matches, _))| {
                let always = matches.is_empty().then_some((rule, None));
                always.into_iter().chain((0..matches.len()).map(move |index| (rule, Some(index))))
            })
            .collect();
        let of_everyone =
            rules.iter().any(|(matches, _)| matches.is_empty() || matches.iter().any(is_of_everyone));
        let mut set = Self { rules, ranks, of_everyone, ..Self::default() };
        set.index();
        set
    }

    fn index(&mut self) {
        let (mut prefixes, mut folded_prefixes) = (Vec::new(), Vec::new());
        for (rank, (rule, alternative)) in (0..).zip(&self.ranks) {
            let path = alternative.and_then(|index| self.rules[*rule].0[index].path.as_ref());
            match path {
                Some(MatchPath::Exact(path)) => self.exact.entry(Arc::clone(path)).or_default().push(rank),
                Some(MatchPath::ExactIgnoreCase(path)) => {
                    self.folded_exact.entry(path.to_ascii_lowercase().into()).or_default().push(rank);
                }
                Some(MatchPath::Prefix(prefix) | MatchPath::PathPrefix(prefix)) => {
                    prefixes.push((Arc::clone(prefix), rank));
                }
                Some(MatchPath::PrefixIgnoreCase(prefix)) => {
                    folded_prefixes.push((prefix.to_ascii_lowercase().into(), rank));
                }
                Some(MatchPath::Regex(..)) | None => self.others.push(rank),
            }
        }
        self.prefixes = PrefixIndex::new(prefixes);
        self.folded_prefixes = PrefixIndex::new(folded_prefixes);
    }

    /// The first rule, in order of precedence, that fits.
    pub fn find(&self, request: &impl RequestView, origin: &RequestOrigin<'_>) -> Option<RouteMatch<'_>> {
        let path = request.path();
        let mut best = u32::MAX;
        let mut consider = |ranks: &[u32]| {
            let better = ranks.iter().take_while(|rank| **rank < best);
            let fit =
                better.copied().find(|rank| self.conditions(*rank).is_none_or(|c| fits(c, request, origin)));
            best = fit.unwrap_or(best);
        };
        if let Some(ranks) = self.exact.get(path) {
            consider(ranks);
        }
        self.prefixes.find(path).for_each(&mut consider);
        if !self.folded_exact.is_empty() || !self.folded_prefixes.is_empty() {
            let folded = fold(path);
            if let Some(ranks) = self.folded_exact.get(&*folded) {
                consider(ranks);
            }
            self.folded_prefixes.find(&folded).for_each(&mut consider);
        }
        // Last, so that expressions are tried only where they could still win.
        consider(&self.others);
        self.route_match(best)
    }

    /// Whether any rule can take a request of this origin, whatever the request is.
    pub fn concerns(&self, origin: &RequestOrigin<'_>) -> bool {
        self.of_everyone
            || self.rules.iter().flat_map(|(matches, _)| matches).any(|one| origin_fits(one, origin))
    }

    /// Whether some rule can take a request of whatever origin.
    pub fn concerns_everyone(&self) -> bool {
        self.of_everyone
    }

    /// The routes, in order of precedence, for dumps.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.rules.iter().map(|(_, route)| route)
    }

    /// The rules, in order of precedence, for dumps and to compare tables.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    fn conditions(&self, rank: u32) -> Option<&RequestMatch> {
        let (rule, alternative) = self.ranks[rank as usize];
        alternative.map(|index| &self.rules[rule].0[index])
    }

    fn route_match(&self, rank: u32) -> Option<RouteMatch<'_>> {
        let (rule, _) = *self.ranks.get(rank as usize)?;
        let path = self.conditions(rank).and_then(|conditions| conditions.path.as_ref());
        let (prefix_len, by_element) = prefix_taken(path);
        Some(RouteMatch { route: &self.rules[rule].1, prefix_len, by_element })
    }
}

impl fmt::Debug for RuleSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.rules).finish()
    }
}

/// Spells a condition's path as those of requests are spelled; expressions stay as they are.
fn spell_path(conditions: &mut RequestMatch) {
    use MatchPath::{Exact, ExactIgnoreCase, PathPrefix, Prefix, PrefixIgnoreCase, Regex};
    match &mut conditions.path {
        Some(
            Exact(path) | Prefix(path) | PathPrefix(path) | ExactIgnoreCase(path) | PrefixIgnoreCase(path),
        ) => {
            if let Cow::Owned(spelled) = canonical_escapes(path) {
                *path = spelled.into();
            }
        }
        Some(Regex(..)) | None => {}
    }
}

fn is_of_everyone(conditions: &RequestMatch) -> bool {
    let RequestMatch { source_labels, source_namespace, port, .. } = conditions;
    source_labels.is_empty() && source_namespace.is_none() && port.is_none()
}

/// The path in lower case; allocates only where it is not.
fn fold(path: &str) -> Cow<'_, str> {
    if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(path.to_ascii_lowercase())
    } else {
        Cow::Borrowed(path)
    }
}
