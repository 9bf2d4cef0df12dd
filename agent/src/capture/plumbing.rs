//! The mark's way to the agent: one `ip rule` and one `local` route per family, and the nft table that keeps connection
//! tracking off marked packets.
//!
//! A captured packet still passes PREROUTING, where kube-proxy's DNAT would change the destination under the listener; an
//! untracked packet is never translated.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::{Command, Stdio};

use futures_util::stream::TryStreamExt;
use netlink_packet_route::route::{RouteAttribute, RouteFlags, RouteMessage, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

use super::{CaptureError, Marks};
use crate::net::lacks_ipv6;

/// The nft table's name.
pub const NFT_TABLE: &str = "sluice";
/// The loopback interface's index is 1 in every network namespace.
const LOOPBACK: u32 = 1;

/// What is installed for a node: its numbers, and whether it has IPv6.
#[derive(Debug, Clone, Copy)]
pub struct Plumbing {
    /// The numbers.
    pub marks: Marks,
    /// Whether IPv6 has a rule and a route too.
    pub ipv6: bool,
}

impl Plumbing {
    /// Installs the nft table anew, in one transaction; what was there is replaced.
    pub fn install_notrack(self) -> Result<(), CaptureError> {
        nft(&nft_rules(self.marks)).map(drop)
    }

    /// Whether the nft table still is as it was installed. An error says that nft could not be asked.
    pub fn has_notrack() -> Result<bool, CaptureError> {
        match nft(&format!("list table inet {NFT_TABLE}\n")) {
            Ok(table) => Ok(table.matches("notrack").count() == 2),
            // With its position in the script before it, unlike the error of a missing program.
            Err(CaptureError::Nft(words)) if words.contains("Error: No such file") => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Installs the rules and routes anew; what an earlier run left is replaced.
    pub async fn install_routing(self, handle: &Handle) -> Result<(), CaptureError> {
        self.remove_routing(handle).await?;
        for route in self.local_routes() {
            let added = handle.route().add(route).replace().execute().await;
            added.map_err(CaptureError::netlink("adding the local route"))?;
        }
        let rule = || {
            let rule = handle.rule().add().fw_mark(self.marks.deliver).priority(self.marks.rule_priority);
            rule.table_id(self.marks.table).action(RuleAction::ToTable)
        };
        rule().v4().execute().await.map_err(CaptureError::netlink("adding the mark's rule"))?;
        if self.ipv6 {
            rule().v6().execute().await.map_err(CaptureError::netlink("adding the mark's IPv6 rule"))?;
        }
        Ok(())
    }

    /// Whether a packet with the deliver mark is led to the agent: the rules and routes are there, and nobody's rule comes
    /// before them.
    pub async fn delivers(self, handle: &Handle) -> bool {
        for version in self.versions() {
            let answer: Result<Vec<RouteMessage>, _> =
                handle.route().get(probe(&version, self.marks)).execute().try_collect().await;
            let ours = |route: &RouteMessage| {
                route.header.kind == RouteType::Local
                    && route.attributes.contains(&RouteAttribute::Table(self.marks.table))
            };
            if !answer.is_ok_and(|routes| routes.iter().any(ours)) {
                return false;
            }
        }
        true
    }

    /// Removes rules, routes and the nft table. What is not there is no error; what can't be removed does not keep the
    /// rest, and the first failure is told.
    pub async fn remove(self, handle: &Handle) -> Result<(), CaptureError> {
        let routing = self.remove_routing(handle).await;
        let notrack = nft(&nft_removal()).map(drop);
        routing.and(notrack)
    }

    /// What of this is there: kinds and names.
    pub async fn installed(self, handle: &Handle) -> Result<Vec<(&'static str, String)>, CaptureError> {
        let mut found = Vec::new();
        for version in self.versions() {
            let ours = rules(handle, version).await?.into_iter().filter(|rule| is_ours(rule, self.marks));
            found.extend(ours.map(|rule| ("rule", describe(&rule))));
        }
        let ours = RouteAttribute::Table(self.marks.table);
        for route in self.local_routes() {
            let routes = handle.route().get(every(&route)).execute();
            let routes: Vec<RouteMessage> =
                routes.try_collect().await.map_err(CaptureError::netlink("listing routes"))?;
            let local = |route: &&RouteMessage| {
                route.header.kind == RouteType::Local && route.attributes.contains(&ours)
            };
            let name = || ("route", format!("local default in table {}", self.marks.table));
            found.extend(routes.iter().filter(local).map(|_| name()));
        }
        // Asked for by name, a table that is not there is an error of nft's.
        if nft(&format!("list table inet {NFT_TABLE}\n")).is_ok() {
            found.push(("nft", format!("table inet {NFT_TABLE}")));
        }
        Ok(found)
    }

    async fn remove_routing(self, handle: &Handle) -> Result<(), CaptureError> {
        let mut outcome = Ok(());
        for version in self.versions() {
            match rules(handle, version).await {
                Err(error) => outcome = outcome.and(Err(error)),
                Ok(rules) => {
                    for rule in rules.into_iter().filter(|rule| is_ours(rule, self.marks)) {
                        let deleted = handle.rule().del(rule).execute().await;
                        outcome = outcome.and(gone(deleted, "removing the mark's rule"));
                    }
                }
            }
        }
        for route in self.local_routes() {
            let deleted = handle.route().del(route).execute().await;
            outcome = outcome.and(gone(deleted, "removing the local route"));
        }
        outcome
    }

    /// Whether somebody else's rule already gives our marks a meaning; the rule's words for the report.
    pub async fn clash(self, handle: &Handle) -> Result<Option<String>, CaptureError> {
        for version in self.versions() {
            let rules = rules(handle, version).await?;
            let theirs = rules.iter().find(|rule| !is_ours(rule, self.marks) && takes(rule, self.marks));
            if let Some(rule) = theirs {
                return Ok(Some(describe(rule)));
            }
        }
        Ok(None)
    }

    fn versions(self) -> impl Iterator<Item = IpVersion> {
        std::iter::once(IpVersion::V4).chain(self.ipv6.then_some(IpVersion::V6))
    }

    fn local_routes(self) -> impl Iterator<Item = RouteMessage> {
        self.versions().map(move |version| match version {
            IpVersion::V4 => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(Ipv4Addr::UNSPECIFIED, 0)
                .output_interface(LOOPBACK)
                .kind(RouteType::Local)
                .scope(RouteScope::Host)
                .table_id(self.marks.table)
                .build(),
            IpVersion::V6 => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(Ipv6Addr::UNSPECIFIED, 0)
                .output_interface(LOOPBACK)
                .kind(RouteType::Local)
                .table_id(self.marks.table)
                .build(),
        })
    }
}

/// Whether this namespace can listen on IPv6's loopback.
pub fn has_ipv6() -> bool {
    let probe = std::net::TcpListener::bind(SocketAddr::new(LISTEN_ADDRESSES[1], 0));
    !probe.is_err_and(|error| lacks_ipv6(&error))
}

async fn rules(handle: &Handle, version: IpVersion) -> Result<Vec<RuleMessage>, CaptureError> {
    let listed = handle.rule().get(version).execute().try_collect().await;
    listed.map_err(CaptureError::netlink("listing rules"))
}

/// Asks for all routes of a route's family.
fn every(route: &RouteMessage) -> RouteMessage {
    let mut question = RouteMessage::default();
    question.header.address_family = route.header.address_family;
    question
}

/// Asks where a packet with the deliver mark goes. The addresses are those of documentation (RFC 5737, RFC 3849), which
/// no node has.
fn probe(version: &IpVersion, marks: Marks) -> RouteMessage {
    let mut question = match version {
        IpVersion::V4 => {
            RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(Ipv4Addr::new(192, 0, 2, 1), 32).build()
        }
        IpVersion::V6 => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 128)
            .build(),
    };
    question.header.flags = RouteFlags::LookupTable;
    question.attributes.push(RouteAttribute::Mark(marks.deliver));
    question
}

/// The outcome of a deletion; what was not there is deleted.
fn gone(outcome: Result<(), rtnetlink::Error>, doing: &'static str) -> Result<(), CaptureError> {
    match outcome {
        Err(rtnetlink::Error::NetlinkError(message))
            if matches!(-message.raw_code(), libc::ESRCH | libc::ENOENT | libc::ENODEV) =>
        {
            Ok(())
        }
        result => result.map_err(CaptureError::netlink(doing)),
    }
}

/// A rule of ours is known by its mark and table together.
fn is_ours(rule: &RuleMessage, marks: Marks) -> bool {
    rule.attributes.contains(&RuleAttribute::FwMark(marks.deliver))
        && (rule.attributes.contains(&RuleAttribute::Table(marks.table))
            || u32::from(rule.header.table) == marks.table)
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

/// Gives a script to nft, which applies it as one transaction, and returns what it says.
fn nft(script: &str) -> Result<String, CaptureError> {
    let spawned = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
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
        written.map_err(|error| CaptureError::Nft(error.to_string()))?;
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    if words.contains("Operation not permitted") {
        return Err(CaptureError::Privilege);
    }
    Err(CaptureError::Nft(words.lines().next().unwrap_or("failed without a message").to_owned()))
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
