//! Whom policies take a sender for, once somebody has proven it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::TextPattern;

/// Whose workload a sender is, by a certificate or because this node runs it: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity<'a> {
    /// The mesh's.
    pub trust_domain: &'a str,
    /// The namespace.
    pub namespace: &'a str,
    /// The service account.
    pub service_account: &'a str,
}

/// In a principal it stands for the mesh's own trust domain, whatever that is, as in Istio.
const OWN_TRUST_DOMAIN: &str = "cluster.local";

impl Identity<'_> {
    /// Whether a principal names it: `TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT`, with `*` at one end at most.
    pub fn is(&self, principal: &TextPattern) -> bool {
        let own = match principal {
            TextPattern::Exact(text) | TextPattern::Prefix(text) => {
                text.strip_prefix(OWN_TRUST_DOMAIN).is_some_and(|rest| rest.starts_with('/'))
            }
            TextPattern::Present | TextPattern::Suffix(_) => false,
        };
        self.reads(principal) || (own && Self { trust_domain: OWN_TRUST_DOMAIN, ..*self }.reads(principal))
    }

    fn reads(&self, pattern: &TextPattern) -> bool {
        match pattern {
            TextPattern::Present => true,
            TextPattern::Exact(text) => self.text().eq(text.bytes()),
            TextPattern::Prefix(start) => begins(self.text(), start.bytes()),
            TextPattern::Suffix(end) => begins(self.text().rev(), end.bytes().rev()),
        }
    }

    /// The SPIFFE id.
    pub fn uri(&self) -> String {
        format!("spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }

    fn text(&self) -> impl DoubleEndedIterator<Item = u8> {
        let parts = [self.trust_domain, "/ns/", self.namespace, "/sa/", self.service_account];
        parts.into_iter().flat_map(str::bytes)
    }
}

fn begins(mut text: impl Iterator<Item = u8>, mut start: impl Iterator<Item = u8>) -> bool {
    start.all(|byte| text.next() == Some(byte))
}

/// A service account of a namespace, in whatever trust domain.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Account {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The service account.
    pub name: Arc<str>,
}

impl Account {
    /// Whether a sender is of it.
    pub fn has(&self, identity: &Identity<'_>) -> bool {
        *self.namespace == *identity.namespace && *self.name == *identity.service_account
    }
}

#[cfg(test)]
mod tests {
    use super::super::request::tests::text;
    use super::*;

    #[test]
    fn principals_name_identities_with_a_star_at_one_end() {
        let identity = Identity { trust_domain: "mesh.test", namespace: "shop", service_account: "cart" };
        let cases = [
            ("mesh.test/ns/shop/sa/cart", true),
            ("mesh.test/ns/shop/sa/car", false),
            ("mesh.test/ns/shop/sa/cart2", false),
            ("mesh.test/ns/shop/sa/*", true),
            ("mesh.test/ns/sho*", true),
            ("mesh.test/ns/shopper/*", false),
            ("*/sa/cart", true),
            ("*/ns/shop/sa/cart", true),
            ("*/cart", true),
            ("*art", true),
            ("*/sa/art", false),
            ("*", true),
            ("other.test/ns/shop/sa/cart", false),
            ("other.test/*", false),
            ("spiffe://mesh.test/ns/shop/sa/cart", false),
            // The mesh's own trust domain, whatever its name is.
            ("cluster.local/ns/shop/sa/cart", true),
            ("cluster.local/ns/shop/*", true),
            ("cluster.local/*", true),
            ("cluster.local/ns/back/*", false),
            ("cluster.local*", false),
            ("cluster*", false),
            ("", false),
        ];
        for (principal, expected) in cases {
            assert_eq!(identity.is(&text(principal)), expected, "{principal}");
        }
        let account =
            |namespace: &str, name: &str| Account { namespace: namespace.into(), name: name.into() };
        for (of, expected) in
            [(("shop", "cart"), true), (("shop", "other"), false), (("back", "cart"), false)]
        {
            assert_eq!(account(of.0, of.1).has(&identity), expected, "{of:?}");
        }
    }
}
