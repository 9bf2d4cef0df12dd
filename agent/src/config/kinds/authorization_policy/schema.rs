//! The fields of AuthorizationPolicy as they are written.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::super::super::node::Extra;
use super::super::DOCUMENT;

pub(super) const EXTRAS: &[&[Extra]] = &[DOCUMENT];

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct PolicySpec {
    pub selector: Option<Selector>,
    pub target_ref: Option<BTreeMap<String, String>>,
    pub target_refs: Option<Vec<BTreeMap<String, String>>>,
    pub action: Option<String>,
    pub provider: Option<Provider>,
    pub rules: Option<Vec<Rule>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Selector {
    pub match_labels: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Provider {
    #[serde(rename = "name")]
    _name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Rule {
    pub from: Vec<From>,
    pub to: Vec<To>,
    pub when: Vec<Condition>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct From {
    pub source: Option<SourceSpec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct To {
    pub operation: Option<Operation>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct SourceSpec {
    pub principals: Vec<String>,
    pub not_principals: Vec<String>,
    request_principals: Vec<String>,
    not_request_principals: Vec<String>,
    pub service_accounts: Vec<String>,
    pub not_service_accounts: Vec<String>,
    pub remote_ip_blocks: Vec<String>,
    pub not_remote_ip_blocks: Vec<String>,
    pub namespaces: Vec<String>,
    pub not_namespaces: Vec<String>,
    pub ip_blocks: Vec<String>,
    pub not_ip_blocks: Vec<String>,
}

impl SourceSpec {
    /// The given fields that a request's own token would tell.
    pub fn undecided(&self) -> Vec<&'static str> {
        given(&[
            ("requestPrincipals", &self.request_principals),
            ("notRequestPrincipals", &self.not_request_principals),
        ])
    }

    /// Whether service accounts are named beside namespaces or principals, which name them as well.
    pub fn names_twice(&self) -> bool {
        let given = |lists: &[&Vec<String>]| lists.iter().any(|list| !list.is_empty());
        given(&[&self.service_accounts, &self.not_service_accounts])
            && given(&[&self.principals, &self.not_principals, &self.namespaces, &self.not_namespaces])
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Operation {
    pub hosts: Vec<String>,
    pub not_hosts: Vec<String>,
    pub methods: Vec<String>,
    pub not_methods: Vec<String>,
    pub paths: Vec<String>,
    pub not_paths: Vec<String>,
    pub ports: Vec<String>,
    pub not_ports: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Condition {
    pub key: String,
    pub values: Vec<String>,
    pub not_values: Vec<String>,
}

fn given(fields: &[(&'static str, &Vec<String>)]) -> Vec<&'static str> {
    fields.iter().filter(|(_, values)| !values.is_empty()).map(|(name, _)| *name).collect()
}
