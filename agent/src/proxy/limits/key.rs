//! What a request is counted by.

use std::hash::Hasher;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Asking;
use crate::compile::LimitCounter;
use crate::limit::counters::{KeyWriter, SharedKey};
use crate::limit::quota::SharedLimit;
use crate::model::{KeyPart, Missing};
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

impl Asking<'_> {
    /// The key of a limit of this node.
    pub(super) fn key(&self, limit: &LimitCounter) -> Key<u64> {
        self.written(limit, || limit.hasher(), |hasher| hasher.finish())
    }

    /// The key of a limit of the cluster.
    pub(super) fn shared_key(&self, limit: &LimitCounter, shared: &SharedLimit) -> Key<SharedKey> {
        self.written(limit, || shared.writer(), KeyWriter::key)
    }

    fn written<H: Hasher, K>(
        &self,
        limit: &LimitCounter,
        fresh: impl Fn() -> H,
        finish: impl FnOnce(H) -> K,
    ) -> Key<K> {
        let rule = &limit.limit;
        if rule.exempt.iter().any(|net| net.contains(&self.client)) {
            return Key::Exempt;
        }
        let mut hasher = fresh();
        hasher.write_u8(Beginning::Whole as u8);
        if rule.key.iter().all(|part| self.write(part, &mut hasher)) {
            return Key::Of(finish(hasher));
        }
        let mut hasher = fresh();
        match rule.missing {
            Missing::Exempt => return Key::Exempt,
            Missing::Refuse => return Key::Refused,
            Missing::Shared => hasher.write_u8(Beginning::Shared as u8),
            Missing::SourceAddress => {
                hasher.write_u8(Beginning::Missing as u8);
                write_address(self.client, (32, 64), &mut hasher);
            }
        }
        Key::Of(finish(hasher))
    }

    /// Writes a part of a key; false where the request has no such value.
    fn write(&self, part: &KeyPart, hasher: &mut impl Hasher) -> bool {
        let mut text = |value: &[u8]| {
            hasher.write_usize(value.len());
            hasher.write(value);
        };
        match part {
            KeyPart::SourceAddress { v4, v6 } => write_address(self.client, (*v4, *v6), hasher),
            KeyPart::SourceIdentity => {
                let Some(source) = self.source else { return false };
                text(source.name.namespace.as_bytes());
                text(source.service_account.as_bytes());
            }
            KeyPart::Header(name) => return self.write_header(name, hasher),
            KeyPart::Cookie(name) => {
                let fields =
                    self.head.fields().iter().filter(|field| field.name.eq_ignore_ascii_case(b"cookie"));
                let Some(value) = fields.flat_map(|field| cookies(field.value, name.as_bytes())).next()
                else {
                    return false;
                };
                text(value);
            }
            KeyPart::Query(name) => {
                let Some(value) = self.head.query().and_then(|query| query_parameter(query, name)) else {
                    return false;
                };
                text(&value);
            }
            KeyPart::Path => text(self.head.path().as_bytes()),
            KeyPart::Method => text(self.head.method().as_bytes()),
            KeyPart::Host => text(self.head.host().as_bytes()),
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
        for field in
            self.head.fields().iter().filter(|field| field.name.eq_ignore_ascii_case(name.as_bytes()))
        {
            found = true;
            hasher.write_usize(field.value.len());
            hasher.write(field.value);
        }
        found
    }
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
