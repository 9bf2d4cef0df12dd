//! Policies that refuse nobody: AUDIT, and those that their annotation makes a dry run. What they say is told and counted.

use std::net::SocketAddr;
use std::sync::Arc;

use super::{PolicyClient, RoutingTable};
use crate::model::{Asked, AuthorizationPolicy, ObjectName, PolicyAction, PolicySource};

/// What such a policy says of a connection or request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Observed {
    /// The document.
    pub policy: ObjectName,
    /// The rule that matches; `None`: none of a dry run's ALLOW policies does.
    pub rule: Option<usize>,
    /// What is made of it.
    pub outcome: Outcome,
}

/// What is made of what a policy says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// A rule of an AUDIT policy matches.
    Audited,
    /// Were the dry run's policies in force, it would be refused.
    WouldDeny,
}

impl Outcome {
    /// Its name in logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Audited => "audited",
            Self::WouldDeny => "would_deny",
        }
    }
}

impl Observed {
    /// The rule as metrics show it.
    pub fn rule_label(&self) -> String {
        self.rule.map_or_else(|| "none".to_owned(), |rule| rule.to_string())
    }
}

/// The policies of a pod that refuse nobody.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Watched {
    audit: Vec<Arc<AuthorizationPolicy>>,
    /// Of dry runs.
    deny: Vec<Arc<AuthorizationPolicy>>,
    /// Of dry runs.
    allow: Vec<Arc<AuthorizationPolicy>>,
}

impl Watched {
    pub(super) fn new(policies: Vec<Arc<AuthorizationPolicy>>) -> Self {
        let mut watched = Self::default();
        for policy in policies {
            let of = match policy.action {
                PolicyAction::Audit => &mut watched.audit,
                PolicyAction::Deny => &mut watched.deny,
                PolicyAction::Allow => &mut watched.allow,
            };
            of.push(policy);
        }
        watched
    }

    /// What they say. The order of a dry run is that of policies in force: DENY, then ALLOW.
    pub(super) fn observe(
        &self,
        source: PolicySource<'_>,
        port: Option<u16>,
        asked: Asked<'_>,
    ) -> Vec<Observed> {
        let said = |policy: &AuthorizationPolicy, outcome| {
            let rule = policy.rule_of(source, port, asked)?;
            Some(Observed { policy: policy.name.clone(), rule: Some(rule), outcome })
        };
        let mut observed: Vec<_> =
            self.audit.iter().filter_map(|policy| said(policy, Outcome::Audited)).collect();
        let denied = self.deny.iter().find_map(|policy| said(policy, Outcome::WouldDeny));
        let allowed = self.allow.iter().any(|policy| policy.rule_of(source, port, asked).is_some());
        let first = self.allow.first().filter(|_| !allowed).map(|policy| Observed {
            policy: policy.name.clone(),
            rule: None,
            outcome: Outcome::WouldDeny,
        });
        observed.extend(denied.or(first));
        observed
    }
}

impl RoutingTable {
    /// What policies that refuse nobody say of what a client asks an endpoint for.
    pub fn observe_access(
        &self,
        client: PolicyClient,
        endpoint: SocketAddr,
        asked: Asked<'_>,
    ) -> Vec<Observed> {
        let pod = endpoint.ip().to_canonical();
        let Some(policy) = self.policies.of(pod) else { return Vec::new() };
        policy.observe(self.policy_source(client, pod), Some(endpoint.port()), asked)
    }
}
