//! `sluice.dev/v1alpha1` EdgeGuard: whom the guard at the node's edge keeps out, and what it lets one source send. Without a
//! namespace: it holds for whatever comes in by the guarded interfaces.

use std::net::IpAddr;
use std::sync::Arc;

use agent_common::guard::Limit;
use ipnet::IpNet;
use serde::Deserialize;

use super::super::field::Field;
use super::super::node::{DecodeError, Extra};
use super::super::object::Notes;
use super::super::report::Code;
use super::{DOCUMENT, Source, decode_spec};
use crate::model::{EdgeGuard, SourceRate};

const EXTRAS: &[&[Extra]] = &[DOCUMENT];
/// Wrong entries of one list that are named one by one.
const NAMED_MAX: usize = 20;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct EdgeGuardSpec {
    deny: Vec<String>,
    allow: Vec<String>,
    per_source: PerSource,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct PerSource {
    packets_per_second: Option<u32>,
    packets_burst: Option<u32>,
    syns_per_second: Option<u32>,
    syns_burst: Option<u32>,
}

/// Decodes an EdgeGuard.
pub(super) fn decode(source: &Source<'_>, notes: &mut Notes<'_>) -> Result<EdgeGuard, DecodeError> {
    let spec: EdgeGuardSpec = decode_spec(source, EXTRAS, notes)?;
    let field = Field::spec();
    let deny = networks(&spec.deny, &field.key("deny"), notes);
    let allow = networks(&spec.allow, &field.key("allow"), notes);
    for (index, net) in deny.iter().enumerate().filter(|(_, net)| net.prefix_len() == 0) {
        let text = format!("`{net}` denies everyone whom no `allow` names");
        notes.warning(Code::Ignored, &field.key("deny").index(index), text);
    }
    let per_source = field.key("perSource");
    let PerSource { packets_per_second, packets_burst, syns_per_second, syns_burst } = spec.per_source;
    let packets =
        rate((packets_per_second, packets_burst), ("packetsPerSecond", "packetsBurst"), &per_source, notes);
    let syns = rate((syns_per_second, syns_burst), ("synsPerSecond", "synsBurst"), &per_source, notes);
    Ok(EdgeGuard { name: source.name.clone(), deny, allow, packets, syns })
}

fn networks(texts: &[String], field: &Field, notes: &mut Notes<'_>) -> Arc<[IpNet]> {
    let mut wrong = 0;
    let mut nets = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        match network(text) {
            Ok(net) => nets.push(net),
            Err(why) => {
                wrong += 1;
                if wrong <= NAMED_MAX {
                    notes.error(&field.index(index), why);
                }
            }
        }
    }
    if wrong > NAMED_MAX {
        notes.error(field, format!("{} more entries are no networks", wrong - NAMED_MAX));
    }
    nets.into()
}

/// A network, or a single address.
fn network(text: &str) -> Result<IpNet, String> {
    let net = match text.parse::<IpNet>() {
        Ok(net) => net,
        Err(_) => text.parse::<IpAddr>().map(IpNet::from).map_err(|_| {
            format!("`{text}` is neither a network such as 192.0.2.0/24 or 2001:db8::/32 nor an address")
        })?,
    };
    if net != net.trunc() {
        return Err(format!("`{text}` has bits set beyond its prefix; the network is {}", net.trunc()));
    }
    if let IpNet::V6(v6) = net
        && v6.addr().to_ipv4_mapped().is_some()
    {
        return Err(format!(
            "`{text}` is an IPv4 address in IPv6 form, which no packet has; write it as IPv4"
        ));
    }
    Ok(net)
}

/// A rate with its burst, which is one second's worth where none is given.
fn rate(
    (per_second, burst): (Option<u32>, Option<u32>),
    (rate_name, burst_name): (&str, &str),
    field: &Field,
    notes: &mut Notes<'_>,
) -> Option<SourceRate> {
    if burst == Some(0) {
        notes.error(&field.key(burst_name), "a burst of 0 would let nothing through; the least is 1");
    }
    match per_second {
        Some(rate @ 1..=Limit::MAX_PER_SECOND) => {
            Some(SourceRate { per_second: rate, burst: burst.unwrap_or(rate) })
        }
        Some(other) => {
            let most = Limit::MAX_PER_SECOND;
            let text = format!("{other} is not from 1 to {most}; leave it out where there is no limit");
            notes.error(&field.key(rate_name), text);
            None
        }
        None => {
            if burst.is_some() {
                notes.error(
                    &field.key(burst_name),
                    format!("there is no `{rate_name}` that it could belong to"),
                );
            }
            None
        }
    }
}
