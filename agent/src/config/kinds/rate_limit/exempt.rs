//! Whom a limit does not hold for: by address, or as whom it is proven.

use ipnet::IpNet;

use super::super::super::field::Field;
use super::super::super::object::Notes;
use super::super::authorization_policy;
use crate::model::TextPattern;

/// Principals of one limit: each request that the limit is about is held against all of them.
const PRINCIPALS_MAX: usize = 64;

pub(super) fn exempt_principals(texts: &[String], field: &Field, notes: &mut Notes<'_>) -> Vec<TextPattern> {
    if texts.len() > PRINCIPALS_MAX {
        notes.error(field, format!("{} principals are more than {PRINCIPALS_MAX}", texts.len()));
    }
    authorization_policy::principals(texts, field, notes)
}

pub(super) fn exempt(texts: &[String], field: &Field, notes: &mut Notes<'_>) -> Vec<IpNet> {
    let mut nets = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        let net = text.parse::<IpNet>().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from));
        match net {
            Ok(net) => nets.push(net.trunc()),
            Err(_) => notes.error(
                &field.index(index),
                format!("`{text}` is neither a network such as 192.0.2.0/24 or 2001:db8::/32 nor an address"),
            ),
        }
    }
    nets
}
