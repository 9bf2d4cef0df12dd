//! Which documents name a service most closely. One look-up per service, however many documents there are: only
//! wildcards are gone through.

use std::collections::HashMap;

use crate::model::{HostPattern, ObjectName};

/// Documents by the services that their hosts name.
#[derive(Default)]
pub(super) struct HostIndex<'a> {
    exact: HashMap<&'a ObjectName, Vec<usize>>,
    wildcards: Vec<(&'a HostPattern, usize)>,
}

impl<'a> HostIndex<'a> {
    /// Adds a host of a document; documents are added in order of precedence.
    pub fn add(&mut self, document: usize, service: Option<&'a ObjectName>, pattern: &'a HostPattern) {
        match (pattern, service) {
            (HostPattern::Exact(_), Some(service)) => {
                let documents = self.exact.entry(service).or_default();
                // Two spellings of one name are one host.
                if documents.last() != Some(&document) {
                    documents.push(document);
                }
            }
            (HostPattern::Exact(_), None) => {}
            (wildcard, _) => self.wildcards.push((wildcard, document)),
        }
    }

    /// The documents that name a service most closely, in order of precedence: by its own name, else by the longest
    /// wildcard.
    pub fn closest(&self, service: &ObjectName) -> Vec<usize> {
        if let Some(documents) = self.exact.get(service) {
            return documents.clone();
        }
        let fqdn = service.fqdn();
        let mut longest = 0;
        let mut documents = Vec::new();
        for (pattern, document) in &self.wildcards {
            let Some(length) = wildcard_len(pattern, &fqdn).filter(|length| *length >= longest) else {
                continue;
            };
            if length > longest {
                longest = length;
                documents.clear();
            }
            if documents.last() != Some(document) {
                documents.push(*document);
            }
        }
        documents
    }
}

/// Whether a wildcard holds the name of a service.
pub(super) fn holds(pattern: &HostPattern, service: &ObjectName) -> bool {
    wildcard_len(pattern, &service.fqdn()).is_some()
}

/// The length of a wildcard that holds a name; `*` is shorter than any other.
fn wildcard_len(pattern: &HostPattern, fqdn: &str) -> Option<usize> {
    match pattern {
        HostPattern::Any => Some(0),
        HostPattern::Suffix(suffix) => fqdn.ends_with(&**suffix).then_some(suffix.len()),
        HostPattern::Exact(_) => None,
    }
}
