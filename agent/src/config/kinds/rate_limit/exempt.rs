//! Whom a limit does not hold for: by address, or as whom it is proven.

use std::net::IpAddr;

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

/// A network or an address.
pub(super) fn network(text: &str) -> Result<IpNet, &'static str> {
    let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    match net.map(|net| net.trunc()) {
        Ok(IpNet::V6(v6)) if v6.addr().to_ipv4_mapped().is_some() => {
            Err("is an IPv4 address in IPv6 form, which no packet has; write it as IPv4")
        }
        Ok(net) => Ok(net),
        Err(_) => Err("is neither a network such as 192.0.2.0/24 or 2001:db8::/32 nor an address"),
    }
}

pub(super) fn exempt(texts: &[String], field: &Field, notes: &mut Notes<'_>) -> Vec<IpNet> {
    let mut nets = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        match network(text) {
            Ok(net) => nets.push(net),
            Err(problem) => notes.error(&field.index(index), format!("`{text}` {problem}")),
        }
    }
    nets
}
