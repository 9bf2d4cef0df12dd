//! A request's key as operators are shown it: addresses, names, paths and methods as they are, whatever may be a secret by its
//! fingerprint.

use ipnet::IpNet;

use super::Asking;
use crate::compile::LimitCounter;
use crate::limit::top::{Sample, fingerprint, shown};
use crate::model::{KeyPart, Missing};

impl Asking<'_> {
    /// What the limit's keys are told by, where this request is one of those that are counted for it.
    pub(super) fn sample(&self, limit: &LimitCounter, key: u64) -> Option<Sample> {
        let weight = limit.top_weight(self.now)?;
        Some(Sample::new(weight, key, self.label(limit)))
    }

    fn label(&self, limit: &LimitCounter) -> String {
        let parts = limit.limit.key.iter().map(|part| self.shown_part(part));
        if let Some(parts) = parts.collect::<Option<Vec<_>>>() {
            return parts.join(", ");
        }
        match limit.limit.missing {
            Missing::SourceAddress => format!("without a value, {}", self.shown_address((32, 64))),
            Missing::Shared | Missing::Exempt | Missing::Refuse => "without a value".to_owned(),
        }
    }

    fn shown_part(&self, part: &KeyPart) -> Option<String> {
        Some(match part {
            KeyPart::SourceAddress { v4, v6 } => self.shown_address((*v4, *v6)),
            KeyPart::SourceIdentity => {
                let source = self.source?;
                format!("{}/{}", source.name.namespace, source.service_account)
            }
            KeyPart::Header(name) => {
                let values: Vec<String> = self.values(name).map(fingerprint).collect();
                Some(values).filter(|values| !values.is_empty())?.join("+")
            }
            KeyPart::Cookie(name) => fingerprint(self.cookie(name)?),
            KeyPart::Query(name) => fingerprint(&self.query(name)?),
            KeyPart::Path | KeyPart::Method | KeyPart::Host => shown(self.line(part)?),
            KeyPart::PathTemplate(part) => shown(self.templated(part)?),
            KeyPart::Route => {
                let (source, rule) = self.route?;
                format!("{source}/{rule}")
            }
        })
    }

    fn shown_address(&self, (v4, v6): (u8, u8)) -> String {
        let length = if self.client.is_ipv4() { v4 } else { v6 };
        match IpNet::new(self.client, length) {
            Ok(net) if net.prefix_len() < net.max_prefix_len() => net.trunc().to_string(),
            _ => self.client.to_string(),
        }
    }
}
