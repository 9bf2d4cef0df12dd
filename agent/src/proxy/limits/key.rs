//! What a request is counted by, and what it costs.

use std::borrow::Cow;
use std::hash::Hasher;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Asking;
use crate::compile::{LimitCounter, Numbers, write_text};
use crate::http::h1::Field;
use crate::limit::counters::SharedKey;
use crate::limit::quota::SharedLimit;
use crate::model::{CostSource, Identity, KeyPart, Limit, Missing, PathTemplates};
use crate::route::{RequestView, query_parameter};

/// What a request is counted by; `K` is how the limit knows keys.
pub(super) enum Key<K> {
    /// The limit does not hold for it.
    Exempt,
    /// It lacks a value without which it is refused.
    Refused,
    /// This key.
    Of(K),
}

/// What begins a key, so that keys of one kind are never those of another.
#[derive(Clone, Copy)]
enum Beginning {
    Whole = 0,
    Missing = 1,
    Shared = 2,
}

impl Beginning {
    /// What tells hashes apart that begin with nothing.
    fn spread(self) -> u64 {
        (self as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

impl Asking<'_> {
    /// The key of a limit of this node.
    pub(super) fn key(&self, limit: &LimitCounter) -> Key<u64> {
        self.written(limit, |_| limit.hasher(), |hasher, beginning| hasher.finish() ^ beginning.spread())
    }

    /// The key of a limit of the cluster.
    pub(super) fn shared_key(&self, limit: &LimitCounter, shared: &SharedLimit) -> Key<SharedKey> {
        let begun = |beginning: Beginning| {
            let mut writer = shared.writer();
            writer.write_u8(beginning as u8);
            writer
        };
        self.written(limit, begun, |writer, _| writer.key())
    }

    /// What the request costs of a limit, whose numbers for its key these are.
    pub(super) fn cost(&self, limit: &LimitCounter, numbers: &Numbers) -> u32 {
        let cost = &limit.limit.cost;
        let Some(said) = &cost.said else { return cost.units.max(1) };
        let number = match &said.by {
            CostSource::Header(name) => self.values(name).filter_map(number).max(),
            CostSource::Query(name) => self.query(name).and_then(|value| number(&value)),
        };
        let max = said.max.unwrap_or_else(|| numbers.quota.most_of_one());
        number.map_or(cost.units, |number| number.min(max)).max(1)
    }

    /// What the request's key is held to.
    pub(super) fn numbers<'l>(&self, limit: &'l LimitCounter) -> &'l Numbers {
        if !limit.has_overrides() {
            return limit.numbers();
        }
        let mut hasher = limit.hasher();
        let mut values = limit.limit.key.iter().filter(|part| !matches!(part, KeyPart::SourceAddress { .. }));
        if !values.all(|part| self.write(part, &mut hasher)) {
            return limit.numbers();
        }
        limit.numbers_of(hasher.finish(), self.client)
    }

    fn written<H: Hasher, K>(
        &self,
        limit: &LimitCounter,
        fresh: impl Fn(Beginning) -> H,
        finish: impl FnOnce(H, Beginning) -> K,
    ) -> Key<K> {
        let rule = &limit.limit;
        if self.is_exempt(rule) {
            return Key::Exempt;
        }
        let mut hasher = fresh(Beginning::Whole);
        if rule.key.iter().all(|part| self.write(part, &mut hasher)) {
            return Key::Of(finish(hasher, Beginning::Whole));
        }
        match rule.missing {
            Missing::Exempt => Key::Exempt,
            Missing::Refuse => Key::Refused,
            Missing::Shared => Key::Of(finish(fresh(Beginning::Shared), Beginning::Shared)),
            Missing::SourceAddress => {
                let mut hasher = fresh(Beginning::Missing);
                write_address(self.client, (32, 64), &mut hasher);
                Key::Of(finish(hasher, Beginning::Missing))
            }
        }
    }

    /// Whether a limit does not hold for the client: by its address, or as whom it is proven. Who is not proven is nobody.
    fn is_exempt(&self, rule: &Limit) -> bool {
        let listed = rule.exempt.iter().any(|net| net.contains(&self.client));
        if listed || rule.exempt_principals.is_empty() {
            return listed;
        }
        let (table, client) = self.proof;
        let named = |identity: Identity<'_>| rule.exempt_principals.iter().any(|one| identity.is(one));
        client.proven(table).is_some_and(named)
    }

    /// Writes a part of a key; false where the request has no such value.
    fn write(&self, part: &KeyPart, hasher: &mut impl Hasher) -> bool {
        let mut text = |value: &[u8]| write_text(value, hasher);
        match part {
            KeyPart::SourceAddress { v4, v6 } => write_address(self.client, (*v4, *v6), hasher),
            KeyPart::SourceIdentity => {
                let Some(source) = self.source else { return false };
                text(source.name.namespace.as_bytes());
                text(source.service_account.as_bytes());
            }
            KeyPart::Header(name) => return self.write_header(name, hasher),
            KeyPart::Cookie(name) => {
                let Some(value) = self.cookie(name) else { return false };
                text(value);
            }
            KeyPart::Query(name) => {
                let Some(value) = self.query(name) else { return false };
                text(&value);
            }
            KeyPart::Path | KeyPart::Method | KeyPart::Host => {
                let Some(value) = self.line(part) else { return false };
                text(value.as_bytes());
            }
            KeyPart::PathTemplate(part) => {
                let Some(value) = self.templated(part) else { return false };
                text(value.as_bytes());
            }
            KeyPart::Route => {
                let Some((source, rule)) = self.route else { return false };
                text(source.namespace.as_bytes());
                text(source.name.as_bytes());
                text(rule.as_bytes());
            }
        }
        true
    }

    /// All values count, so that nobody gets a key of its own by putting another value beside the one that the server heeds.
    fn write_header(&self, name: &str, hasher: &mut impl Hasher) -> bool {
        let mut found = false;
        for value in self.values(name) {
            found = true;
            write_text(value, hasher);
        }
        found
    }

    /// What the request's line says of a part of the key.
    pub(super) fn line(&self, part: &KeyPart) -> Option<&str> {
        let head = self.head?;
        match part {
            KeyPart::Path => Some(head.path()),
            KeyPart::Method => Some(head.method()),
            KeyPart::Host => Some(head.host()),
            _ => None,
        }
    }

    /// What the path is counted by, in the form in which routes are matched.
    pub(super) fn templated<'a>(&'a self, part: &'a PathTemplates) -> Option<&'a str> {
        part.value(self.head?.path())
    }

    /// The first value of a parameter of the query, decoded.
    pub(super) fn query(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        query_parameter(self.head?.query()?, name)
    }

    /// The first value of a cookie.
    pub(super) fn cookie(&self, name: &str) -> Option<&[u8]> {
        self.values("cookie").flat_map(|field| cookies(field, name.as_bytes())).next()
    }

    /// All values of a field.
    pub(super) fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let named = move |field: &Field<'_>| field.name.eq_ignore_ascii_case(name.as_bytes());
        let fields = self.head.into_iter().flat_map(|head| head.fields().iter());
        fields.filter(named).map(|field| field.value)
    }
}

/// A number of units in digits; one that is too large for an integer is the largest. 0 is none: nothing is for nothing.
fn number(value: &[u8]) -> Option<u32> {
    let digits = value.trim_ascii();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let add = |number: u32, digit: &u8| number.saturating_mul(10).saturating_add(u32::from(digit - b'0'));
    Some(digits.iter().fold(0, add)).filter(|number| *number > 0)
}

/// Writes the network of an address.
fn write_address(address: IpAddr, (v4, v6): (u8, u8), hasher: &mut impl Hasher) {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(v4)).unwrap_or(0);
            hasher.write(&Ipv4Addr::from_bits(address.to_bits() & mask).octets());
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(v6)).unwrap_or(0);
            hasher.write(&Ipv6Addr::from_bits(address.to_bits() & mask).octets());
        }
    }
}

/// The values of a cookie in a field (RFC 6265 section 4.2.1).
fn cookies<'a>(field: &'a [u8], name: &[u8]) -> impl Iterator<Item = &'a [u8]> {
    field.split(|byte| *byte == b';').filter_map(move |pair| {
        let pair = pair.trim_ascii();
        let at = pair.iter().position(|byte| *byte == b'=')?;
        (pair[..at] == *name).then(|| &pair[at + 1..])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_whole_numbers_above_zero() {
        for (value, expected) in [
            ("1", Some(1)),
            (" 07 ", Some(7)),
            ("4294967295", Some(u32::MAX)),
            ("99999999999999999999999", Some(u32::MAX)),
            ("0", None),
            ("000", None),
            ("", None),
            ("+5", None),
            ("-5", None),
            ("5.0", None),
            ("5, 6", None),
            ("0x5", None),
            ("\u{0665}", None),
        ] {
            assert_eq!(number(value.as_bytes()), expected, "{value:?}");
        }
    }
}
