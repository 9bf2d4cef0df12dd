//! `security.istio.io` AuthorizationPolicy: what of it addresses, proven identities, ports and requests can decide.
//!
//! What nobody here can tell errs on the side of refusing: an ALLOW rule with such a field never matches, a DENY rule
//! applies as if the field were absent. Each such field is named in the report.

mod requests;
mod schema;

use std::net::IpAddr;
use std::sync::Arc;

use super::super::field::Field;
use super::super::node::DecodeError;
use super::super::object::Notes;
use super::super::report::Code;
use super::{Source, decode_spec, meta};
use crate::model::{
    Account, Cidr, Labels, NamespacePattern, PolicyAction, PolicyMatch, PolicyRule, TextPattern,
};
use schema::{Condition, Operation, PolicySpec, Rule, SourceSpec};

/// A checked AuthorizationPolicy.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AuthorizationPolicy {
    /// Labels of the pods that it is about.
    pub selector: Labels,
    /// What it does; `None`: something that is not enforced.
    pub action: Option<PolicyAction>,
    /// Whether it only says what it would do.
    pub dry_run: bool,
    /// The rules that can be decided.
    pub rules: Vec<PolicyRule>,
}

/// Decodes an AuthorizationPolicy.
pub(super) fn decode(source: &Source<'_>, notes: &mut Notes<'_>) -> Result<AuthorizationPolicy, DecodeError> {
    let spec: PolicySpec = decode_spec(source, schema::EXTRAS, notes)?;
    let field = Field::spec();
    let selector = spec.selector.map(|selector| selector.match_labels).unwrap_or_default();
    for (key, value) in &selector {
        if key.contains('*') || value.contains('*') {
            let field = field.key("selector").key("matchLabels").key(key);
            notes.error(&field, "labels are compared as they are: `*` stands for nothing else");
        }
    }
    let mut action = action(spec.action.as_deref(), &field.key("action"), notes);
    let refers = spec.target_refs.is_some_and(|refs| !refs.is_empty());
    for (name, given) in [("targetRef", spec.target_ref.is_some()), ("targetRefs", refers)] {
        if given {
            let text = "policies that are attached to a Gateway or a Service are not enforced";
            notes.warning(Code::NotYetEnforced, &field.key(name), text);
            action = None;
        }
    }
    if spec.provider.is_some() && action.is_some() {
        notes.error(&field.key("provider"), "only the action CUSTOM has a provider");
    }
    let dry_run = dry_run(source, notes);
    let reader = Reader { action, namespace: &source.name.namespace, notes };
    let rules = reader.rules(&spec.rules.unwrap_or_default(), &field.key("rules"));
    Ok(AuthorizationPolicy { selector: meta::labels(&selector), action, dry_run, rules })
}

/// The annotation by which a policy only says what it would do.
pub(in crate::config) const DRY_RUN: &str = "istio.io/dry-run";

fn dry_run(source: &Source<'_>, notes: &mut Notes<'_>) -> bool {
    // As Istio reads it.
    match source.meta.annotation(DRY_RUN) {
        None | Some("0" | "f" | "F" | "false" | "FALSE" | "False") => false,
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => true,
        Some(other) => {
            let field = Field::root().key("metadata").key("annotations").key(DRY_RUN);
            notes.error(&field, format!("`{other}` is neither true nor false"));
            false
        }
    }
}

fn action(written: Option<&str>, field: &Field, notes: &mut Notes<'_>) -> Option<PolicyAction> {
    match written {
        None | Some("ALLOW") => Some(PolicyAction::Allow),
        Some("DENY") => Some(PolicyAction::Deny),
        Some("AUDIT") => Some(PolicyAction::Audit),
        Some("CUSTOM") => {
            let text = "the action CUSTOM is not enforced, and neither is this policy";
            notes.warning(Code::NotYetEnforced, field, text);
            None
        }
        Some(other) => {
            notes.error(field, format!("`{other}` is none of ALLOW, DENY, AUDIT, CUSTOM"));
            None
        }
    }
}

/// Reads rules and notes what is wrong with them.
struct Reader<'n, 's> {
    /// `None`: the policy is left out as a whole, and its rules are only checked.
    action: Option<PolicyAction>,
    /// Where service accounts are that name no other namespace.
    namespace: &'n Arc<str>,
    notes: &'n mut Notes<'s>,
}

impl Reader<'_, '_> {
    fn rules(mut self, written: &[Rule], field: &Field) -> Vec<PolicyRule> {
        let rules = written.iter().enumerate();
        rules.filter_map(|(index, rule)| self.rule(index, rule, &field.index(index))).collect()
    }

    /// `None`: an ALLOW rule that asks for what can't be decided here.
    fn rule(&mut self, index: usize, rule: &Rule, field: &Field) -> Option<PolicyRule> {
        let mut undecided = false;
        let mut clauses = Vec::new();
        let from = rule.from.iter().enumerate().map(|(at, from)| {
            self.source(from.source.as_ref(), &field.key("from").index(at).key("source"), &mut undecided)
        });
        clauses.push(from.collect::<Vec<_>>());
        let to = rule.to.iter().enumerate().map(|(at, to)| {
            self.operation(to.operation.as_ref(), &field.key("to").index(at).key("operation"))
        });
        clauses.push(to.collect());
        for (at, condition) in rule.when.iter().enumerate() {
            clauses.push(vec![self.condition(condition, &field.key("when").index(at), &mut undecided)]);
        }
        clauses.retain(|clause| !clause.is_empty());
        let decided = !undecided || self.action == Some(PolicyAction::Deny);
        decided.then_some(PolicyRule { index, clauses })
    }

    fn source(&mut self, written: Option<&SourceSpec>, field: &Field, undecided: &mut bool) -> PolicyMatch {
        let Some(source) = written else {
            self.notes.error(field, "the source is missing");
            return PolicyMatch::default();
        };
        let others = source.undecided();
        *undecided |= self.note_undecided(&others, field);
        if source.names_twice() {
            let text =
                "serviceAccounts stand for themselves: beside them there are no namespaces and no principals";
            self.notes.error(&field.key("serviceAccounts"), text);
        }
        let mut not_cidrs = self.cidrs(&source.not_ip_blocks, &field.key("notIpBlocks"));
        not_cidrs.extend(self.cidrs(&source.not_remote_ip_blocks, &field.key("notRemoteIpBlocks")));
        let found = PolicyMatch {
            cidrs: self.cidrs(&source.ip_blocks, &field.key("ipBlocks")),
            remote_cidrs: self.cidrs(&source.remote_ip_blocks, &field.key("remoteIpBlocks")),
            not_cidrs,
            principals: self.principals(&source.principals, &field.key("principals")),
            not_principals: self.principals(&source.not_principals, &field.key("notPrincipals")),
            accounts: self.accounts(&source.service_accounts, &field.key("serviceAccounts")),
            not_accounts: self.accounts(&source.not_service_accounts, &field.key("notServiceAccounts")),
            namespaces: self.namespaces(&source.namespaces, &field.key("namespaces")),
            not_namespaces: self.namespaces(&source.not_namespaces, &field.key("notNamespaces")),
            ..PolicyMatch::default()
        };
        self.check_not_empty(&found, &others, field);
        found
    }

    fn operation(&mut self, written: Option<&Operation>, field: &Field) -> PolicyMatch {
        let Some(operation) = written else {
            self.notes.error(field, "the operation is missing");
            return PolicyMatch::default();
        };
        let found = PolicyMatch {
            ports: self.ports(&operation.ports, &field.key("ports")),
            not_ports: self.ports(&operation.not_ports, &field.key("notPorts")),
            request: self.request(operation, field),
            ..PolicyMatch::default()
        };
        self.check_not_empty(&found, &[], field);
        found
    }

    fn condition(&mut self, written: &Condition, field: &Field, undecided: &mut bool) -> PolicyMatch {
        let (values, not_values) = (field.key("values"), field.key("notValues"));
        if written.values.is_empty() && written.not_values.is_empty() {
            self.notes.error(field, "a condition needs values or notValues");
        }
        match written.key.as_str() {
            "source.ip" | "remote.ip" => PolicyMatch {
                cidrs: self.cidrs(&written.values, &values),
                not_cidrs: self.cidrs(&written.not_values, &not_values),
                ..PolicyMatch::default()
            },
            "source.namespace" => PolicyMatch {
                namespaces: self.namespaces(&written.values, &values),
                not_namespaces: self.namespaces(&written.not_values, &not_values),
                ..PolicyMatch::default()
            },
            "source.principal" => PolicyMatch {
                principals: self.principals(&written.values, &values),
                not_principals: self.principals(&written.not_values, &not_values),
                ..PolicyMatch::default()
            },
            "source.serviceAccount" => PolicyMatch {
                accounts: self.accounts(&written.values, &values),
                not_accounts: self.accounts(&written.not_values, &not_values),
                ..PolicyMatch::default()
            },
            "destination.ip" => PolicyMatch {
                destinations: self.cidrs(&written.values, &values),
                not_destinations: self.cidrs(&written.not_values, &not_values),
                ..PolicyMatch::default()
            },
            "destination.port" => PolicyMatch {
                ports: self.ports(&written.values, &values),
                not_ports: self.ports(&written.not_values, &not_values),
                ..PolicyMatch::default()
            },
            key if key.starts_with(requests::FIELD_KEY) => self.header(key, written, field),
            _ => {
                *undecided |= self.note_undecided(&["key"], field);
                PolicyMatch::default()
            }
        }
    }

    /// Says which fields can't be decided; whether there are any.
    fn note_undecided(&mut self, names: &[&str], field: &Field) -> bool {
        let outcome = match self.action {
            Some(PolicyAction::Allow) => "the rule allows nothing",
            Some(PolicyAction::Audit) => "the rule audits nothing",
            Some(PolicyAction::Deny) => "the rule denies as if it were absent",
            None => return false,
        };
        for name in names {
            let text = format!("nothing that is known of connections and requests tells this: {outcome}");
            self.notes.warning(Code::NotYetEnforced, &field.key(name), text);
            self.notes.later(&field.key(name));
        }
        !names.is_empty()
    }

    fn check_not_empty(&mut self, found: &PolicyMatch, others: &[&str], field: &Field) {
        if *found == PolicyMatch::default() && others.is_empty() && !self.notes.failed() {
            self.notes.error(field, "at least one field must be given");
        }
    }

    fn cidrs(&mut self, written: &[String], field: &Field) -> Vec<Cidr> {
        self.each(written, field, cidr)
    }

    fn principals(&mut self, written: &[String], field: &Field) -> Vec<TextPattern> {
        principals(written, field, self.notes)
    }

    fn accounts(&mut self, written: &[String], field: &Field) -> Vec<Account> {
        let own = self.namespace;
        self.each(written, field, |text| account(text, own).ok_or(NO_ACCOUNT))
    }

    fn ports(&mut self, written: &[String], field: &Field) -> Vec<u16> {
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
        self.each(written, field, |text| port(text).ok_or("is no port from 1 to 65535"))
    }

    fn namespaces(&mut self, written: &[String], field: &Field) -> Vec<NamespacePattern> {
        self.each(written, field, |text| {
            namespace(text).ok_or("is no namespace, with `*` at one end at most")
        })
    }

    fn each<T>(
        &mut self,
        written: &[String],
        field: &Field,
        read: impl Fn(&str) -> Result<T, &'static str>,
    ) -> Vec<T> {
        each(written, field, self.notes, read)
    }
}

/// Reads principals, of this kind or another that names them.
pub(super) fn principals(written: &[String], field: &Field, notes: &mut Notes<'_>) -> Vec<TextPattern> {
    for (index, text) in written.iter().enumerate().filter(|(_, text)| text.starts_with(SCHEME)) {
        let text = format!("`{text}` is nobody: principals are written without `{SCHEME}`");
        notes.warning(Code::Ignored, &field.index(index), text);
    }
    each(written, field, notes, requests::text)
}

fn each<T>(
    written: &[String],
    field: &Field,
    notes: &mut Notes<'_>,
    read: impl Fn(&str) -> Result<T, &'static str>,
) -> Vec<T> {
    let mut values = Vec::with_capacity(written.len());
    for (index, text) in written.iter().enumerate() {
        match read(text) {
            Ok(value) => values.push(value),
            Err(reason) => notes.error(&field.index(index), format!("`{text}` {reason}")),
        }
    }
    values
}

fn cidr(text: &str) -> Result<Cidr, &'static str> {
    let (address, prefix) =
        text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
    let address: IpAddr = address.parse().map_err(|_| NO_RANGE)?;
    if address.to_canonical() != address {
        return Err("is an IPv4 address in IPv6 form, which no packet has; write it as IPv4");
    }
    match prefix {
        Some(prefix) => prefix.parse().ok().and_then(|prefix| Cidr::new(address, prefix)).ok_or(NO_RANGE),
        None => Ok(Cidr::host(address)),
    }
}

/// What begins a SPIFFE id, and no principal.
const SCHEME: &str = "spiffe://";
const NO_RANGE: &str = "is no IP address or range of them";

const NO_ACCOUNT: &str =
    "is no service account, NAMESPACE/NAME or NAME, in which `*` stands for nothing else";

fn account(text: &str, own: &Arc<str>) -> Option<Account> {
    let (namespace, name) = match text.split_once('/') {
        Some((namespace, name)) => (namespace.into(), name),
        None => (Arc::clone(own), text),
    };
    let plain = |part: &str| !part.is_empty() && !part.contains(['*', '/']);
    (plain(&namespace) && plain(name)).then(|| Account { namespace, name: name.into() })
}

fn namespace(text: &str) -> Option<NamespacePattern> {
    let plain = |part: &str| (!part.is_empty() && !part.contains('*')).then(|| part.into());
    match (text.strip_prefix('*'), text.strip_suffix('*')) {
        (Some(""), _) => Some(NamespacePattern::Any),
        (Some(end), None) => plain(end).map(NamespacePattern::Suffix),
        (None, Some(start)) => plain(start).map(NamespacePattern::Prefix),
        (None, None) => plain(text).map(NamespacePattern::Exact),
        (Some(_), Some(_)) => None,
    }
}
