//! The mark's way to the agent: one `ip rule` and one `local` route per family, and the nft table that keeps connection
//! tracking off marked packets.
//!
//! A captured packet still passes PREROUTING, where kube-proxy's DNAT would change the destination under the listener; an
//! untracked packet is never translated.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Command, Stdio};

use futures_util::stream::TryStreamExt;
use netlink_packet_route::route::{RouteMessage, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

use super::{CaptureError, Marks};

/// The nft table's name.
pub const NFT_TABLE: &str = "sluice";
/// The loopback interface's index is 1 in every network namespace.
const LOOPBACK: u32 = 1;

/// Installs the nft table anew, in one transaction; what an earlier run left is replaced.
pub fn install_notrack(marks: Marks) -> Result<(), CaptureError> {
    nft(&nft_rules(marks))
}

/// Installs the rules and routes anew; what an earlier run left is replaced.
pub async fn install_routing(handle: &Handle, marks: Marks) -> Result<(), CaptureError> {
    remove_routing(handle, marks).await?;
    for route in local_routes(marks) {
        handle
            .route()
            .add(route)
            .replace()
            .execute()
            .await
            .map_err(CaptureError::netlink("adding the local route"))?;
    }
    let rule = || {
        let rule = handle.rule().add().fw_mark(marks.deliver).priority(marks.rule_priority);
        rule.table_id(marks.table).action(RuleAction::ToTable)
    };
    rule().v4().execute().await.map_err(CaptureError::netlink("adding the mark's rule"))?;
    rule().v6().execute().await.map_err(CaptureError::netlink("adding the mark's IPv6 rule"))
}

/// Removes rules, routes and the nft table. What is not there is no error.
pub async fn remove(handle: &Handle, marks: Marks) -> Result<(), CaptureError> {
    remove_routing(handle, marks).await?;
    nft(&nft_removal())
}

async fn remove_routing(handle: &Handle, marks: Marks) -> Result<(), CaptureError> {
    for version in [IpVersion::V4, IpVersion::V6] {
        let rules: Vec<RuleMessage> = handle
            .rule()
            .get(version)
            .execute()
            .try_collect()
            .await
            .map_err(CaptureError::netlink("listing rules"))?;
        for rule in rules.into_iter().filter(|rule| is_ours(rule, marks)) {
            handle
                .rule()
                .del(rule)
                .execute()
                .await
                .map_err(CaptureError::netlink("removing the mark's rule"))?;
        }
    }
    for route in local_routes(marks) {
        match handle.route().del(route).execute().await {
            Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -libc::ESRCH => {}
            result => result.map_err(CaptureError::netlink("removing the local route"))?,
        }
    }
    Ok(())
}

/// A rule of ours is known by its mark and table together.
fn is_ours(rule: &RuleMessage, marks: Marks) -> bool {
    rule.attributes.contains(&RuleAttribute::FwMark(marks.deliver))
        && (rule.attributes.contains(&RuleAttribute::Table(marks.table))
            || u32::from(rule.header.table) == marks.table)
}

fn local_routes(marks: Marks) -> [RouteMessage; 2] {
    let v4 = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(Ipv4Addr::UNSPECIFIED, 0)
        .output_interface(LOOPBACK)
        .kind(RouteType::Local)
        .scope(RouteScope::Host)
        .table_id(marks.table);
    let v6 = RouteMessageBuilder::<Ipv6Addr>::new()
        .destination_prefix(Ipv6Addr::UNSPECIFIED, 0)
        .output_interface(LOOPBACK)
        .kind(RouteType::Local)
        .table_id(marks.table);
    [v4.build(), v6.build()]
}

/// Creating before deleting makes the deletion succeed whether or not the table is there.
fn nft_removal() -> String {
    format!("add table inet {NFT_TABLE}\ndelete table inet {NFT_TABLE}\n")
}

fn nft_rules(marks: Marks) -> String {
    let Marks { deliver, own, .. } = marks;
    format!(
        "{}table inet {NFT_TABLE} {{\n\
         \tchain prerouting {{\n\
         \t\ttype filter hook prerouting priority raw; policy accept;\n\
         \t\tmeta mark {deliver:#x} notrack\n\
         \t}}\n\
         \tchain output {{\n\
         \t\ttype filter hook output priority raw; policy accept;\n\
         \t\tmeta mark {own:#x} notrack\n\
         \t}}\n}}\n",
        nft_removal()
    )
}

/// Gives a script to nft, which applies it as one transaction.
fn nft(script: &str) -> Result<(), CaptureError> {
    let spawned = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = spawned.map_err(|error| {
        CaptureError::Nft(format!("{error}; install the nftables package, or add its directory to PATH"))
    })?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let written = stdin.write_all(script.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().map_err(|error| CaptureError::Nft(error.to_string()))?;
    if output.status.success() {
        return written.map_err(|error| CaptureError::Nft(error.to_string()));
    }
    let words = String::from_utf8_lossy(&output.stderr);
    if words.contains("Operation not permitted") {
        return Err(CaptureError::Privilege);
    }
    Err(CaptureError::Nft(words.lines().next().unwrap_or("failed without a message").to_owned()))
}

/// Whether somebody else's rule already gives our mark a meaning; the rule's words for the report.
pub async fn clash(handle: &Handle, marks: Marks) -> Result<Option<String>, CaptureError> {
    let rules: Vec<RuleMessage> = handle
        .rule()
        .get(IpVersion::V4)
        .execute()
        .try_collect()
        .await
        .map_err(CaptureError::netlink("listing rules"))?;
    Ok(rules.iter().find(|rule| !is_ours(rule, marks) && takes(rule, marks)).map(describe))
}

fn takes(rule: &RuleMessage, marks: Marks) -> bool {
    let number = |pick: fn(&RuleAttribute) -> Option<u32>| rule.attributes.iter().find_map(pick);
    let wanted = number(|a| if let RuleAttribute::FwMark(mark) = a { Some(*mark) } else { None });
    let mask =
        number(|a| if let RuleAttribute::FwMask(mask) = a { Some(*mask) } else { None }).unwrap_or(u32::MAX);
    wanted.is_some_and(|wanted| [marks.deliver, marks.own].iter().any(|ours| ours & mask == wanted))
}

fn describe(rule: &RuleMessage) -> String {
    let number =
        |pick: fn(&RuleAttribute) -> Option<u32>| rule.attributes.iter().find_map(pick).unwrap_or_default();
    let mark = number(|a| if let RuleAttribute::FwMark(mark) = a { Some(*mark) } else { None });
    let table = number(|a| if let RuleAttribute::Table(table) = a { Some(*table) } else { None });
    format!("ip rule with fwmark {mark:#x} leads to table {table}")
}

/// The addresses of the capture listeners: loopback, so that nobody but the kernel programs can reach them.
pub const LISTEN_ADDRESSES: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_replaces_itself() {
        let rules = nft_rules(Marks::default());
        assert!(rules.starts_with("add table inet sluice\ndelete table inet sluice\ntable inet sluice {"));
        assert!(rules.contains("meta mark 0x1510 notrack") && rules.contains("meta mark 0x1520 notrack"));
    }

    #[test]
    fn foreign_rules_on_our_marks_are_seen() {
        let marks = Marks::default();
        let rule = |mark, mask, table| {
            let mut rule = RuleMessage::default();
            rule.attributes =
                vec![RuleAttribute::FwMark(mark), RuleAttribute::FwMask(mask), RuleAttribute::Table(table)];
            rule
        };
        let cases = [
            (rule(0x1510, u32::MAX, 100), true),
            (rule(0x0500, 0x0f00, 100), true),
            (rule(0x4000, 0x4000, 100), false),
            (rule(0x1510, u32::MAX, 1510), true),
        ];
        for (rule, expected) in cases {
            assert_eq!(takes(&rule, marks), expected, "{rule:?}");
        }
        assert!(is_ours(&rule(0x1510, u32::MAX, 1510), marks));
        assert!(!is_ours(&rule(0x1510, u32::MAX, 100), marks));
    }
}
