//! Filters by the ends of a connection, for all verbs that show connections.

use std::net::{IpAddr, SocketAddr};

use clap::Args;
use serde::Deserialize;

use super::{ClientArgs, ask};

/// Which ends are meant; what is not given fits all.
#[derive(Debug, Default, Args)]
pub(super) struct EndFilter {
    /// Only those of this address, pod or namespace (`NAMESPACE/`).
    #[arg(long, value_name = "IP|POD|NAMESPACE/", visible_aliases = ["source", "from-ip", "from-pod"])]
    pub(super) from: Option<String>,
    /// Only those to this address, service, pod or namespace (`NAMESPACE/`); the endpoint counts too.
    #[arg(long, value_name = "IP|NAME|NAMESPACE/", visible_aliases = ["destination", "to-ip", "to-pod"])]
    pub(super) to: Option<String>,
    /// Only those with this address, pod or namespace at either end.
    #[arg(long, value_name = "IP|POD|NAMESPACE/", visible_alias = "ip")]
    pub(super) pod: Option<String>,
    /// Only those to this port.
    #[arg(long, visible_alias = "to-port", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) port: Option<u16>,
}

/// One end: its address with port, and its name.
pub(super) type End<'a> = (&'a str, Option<&'a str>);

/// The ends of a connection.
#[derive(Debug)]
pub(super) struct Ends<'a> {
    pub(super) source: End<'a>,
    pub(super) destination: End<'a>,
    pub(super) endpoint: Option<End<'a>>,
}

impl EndFilter {
    /// The names and namespaces among what is wanted: what is no address.
    fn names(&self) -> impl Iterator<Item = &str> {
        let wanted = [&self.from, &self.to, &self.pod].into_iter().flatten().map(String::as_str);
        wanted.filter(|wanted| wanted.parse::<IpAddr>().is_err() && wanted.parse::<SocketAddr>().is_err())
    }

    /// Whether these ends are meant.
    pub(super) fn fits(&self, ends: &Ends<'_>) -> bool {
        let port = ends.destination.0.parse().ok().map(|to: SocketAddr| to.port());
        let to =
            |wanted: &str| is(wanted, ends.destination) || ends.endpoint.is_some_and(|end| is(wanted, end));
        self.from.as_ref().is_none_or(|wanted| is(wanted, ends.source))
            && self.to.as_ref().is_none_or(|wanted| to(wanted))
            && self.pod.as_ref().is_none_or(|wanted| is(wanted, ends.source) || to(wanted))
            && self.port.is_none_or(|wanted| port == Some(wanted))
    }
}

/// A pod or service that the agent knows.
#[derive(Debug, Deserialize)]
struct Known {
    namespace: String,
    name: String,
}

#[derive(Debug, Deserialize)]
struct Table {
    workloads: Vec<Known>,
    services: Vec<Known>,
}

/// What is wrong with a name that neither the agent's table has nor what is shown (which may be of pods that are gone).
pub(super) fn unknown<'a>(
    client: &ClientArgs,
    filter: &EndFilter,
    shown: impl Iterator<Item = &'a String>,
) -> anyhow::Result<Option<String>> {
    let mut missing: Vec<_> = filter.names().collect();
    if missing.is_empty() {
        return Ok(None);
    }
    for name in shown {
        missing.retain(|wanted| !is(wanted, ("", Some(name))));
    }
    if missing.is_empty() {
        return Ok(None);
    }
    let Table { workloads, services } = ask(client, "/config_dump")?;
    for Known { namespace, name } in workloads.iter().chain(&services) {
        let name = format!("{namespace}/{name}");
        missing.retain(|wanted| !is(wanted, ("", Some(&name))));
    }
    Ok(missing.first().map(|wanted| {
        if wanted.ends_with('/') {
            return format!("`{wanted}`: the agent knows no pod or service in this namespace");
        }
        format!("`{wanted}`: the agent knows no pod or service of this name; say IP, NAME or NAMESPACE/NAME")
    }))
}

/// Whether an end is meant by its address, its name, its name in the namespace `default`, or its namespace. An IPv4 address
/// in disguise is that address.
fn is(wanted: &str, (address, name): End<'_>) -> bool {
    let canonical = |end: SocketAddr| (end.ip().to_canonical(), end.port());
    let is_address = address.parse().is_ok_and(|end: SocketAddr| {
        wanted.parse().is_ok_and(|wanted: IpAddr| wanted.to_canonical() == end.ip().to_canonical())
            || wanted.parse().is_ok_and(|wanted: SocketAddr| canonical(wanted) == canonical(end))
    });
    let named = name.is_some_and(|name| {
        name == wanted
            || name.strip_prefix("default/") == Some(wanted)
            || wanted.ends_with('/') && name.starts_with(wanted)
    });
    address == wanted || is_address || named
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_namespaces_are_told_from_addresses() {
        let text = |text: &str| Some(text.to_owned());
        let filter = EndFilter { from: text("client"), to: text("fd00::1"), pod: text("shop/"), port: None };
        assert_eq!(filter.names().collect::<Vec<_>>(), ["client", "shop/"]);
        let filter =
            EndFilter { from: text("10.0.0.1:80"), to: text("shop/web"), pod: text("10.0.0.1"), port: None };
        assert_eq!(filter.names().collect::<Vec<_>>(), ["shop/web"]);
    }

    #[test]
    fn every_filter_can_fit_and_not_fit() {
        let ends = Ends {
            source: ("10.0.0.1:40000", Some("default/client")),
            destination: ("[fd00::1]:80", Some("shop/web")),
            endpoint: Some(("10.0.0.9:8080", Some("shop/web-1"))),
        };
        let text = |text: &str| Some(text.to_owned());
        let cases = [
            (EndFilter::default(), true),
            (EndFilter { from: text("10.0.0.1"), ..EndFilter::default() }, true),
            (EndFilter { from: text("10.0.0.1:40000"), ..EndFilter::default() }, true),
            (EndFilter { from: text("client"), ..EndFilter::default() }, true),
            (EndFilter { from: text("default/"), ..EndFilter::default() }, true),
            (EndFilter { from: text("default/clien"), ..EndFilter::default() }, false),
            (EndFilter { from: text("10.0.0.11"), ..EndFilter::default() }, false),
            (EndFilter { to: text("shop/web"), ..EndFilter::default() }, true),
            (EndFilter { to: text("web"), ..EndFilter::default() }, false),
            (EndFilter { to: text("fd00::1"), ..EndFilter::default() }, true),
            (EndFilter { to: text("10.0.0.9"), ..EndFilter::default() }, true),
            (EndFilter { to: text("shop/web-1"), ..EndFilter::default() }, true),
            (EndFilter { pod: text("default/client"), ..EndFilter::default() }, true),
            (EndFilter { pod: text("shop/web-1"), ..EndFilter::default() }, true),
            (EndFilter { pod: text("shop/web-2"), ..EndFilter::default() }, false),
            (EndFilter { from: text("::ffff:10.0.0.1"), ..EndFilter::default() }, true),
            (EndFilter { from: text("[::ffff:10.0.0.1]:40000"), ..EndFilter::default() }, true),
            (EndFilter { from: text("[::ffff:10.0.0.1]:40001"), ..EndFilter::default() }, false),
            (EndFilter { to: text("fd00:0::1"), ..EndFilter::default() }, true),
            (EndFilter { port: Some(80), ..EndFilter::default() }, true),
            (EndFilter { port: Some(81), ..EndFilter::default() }, false),
            (EndFilter { from: text("client"), port: Some(81), ..EndFilter::default() }, false),
        ];
        for (filter, expected) in cases {
            assert_eq!(filter.fits(&ends), expected, "{filter:?}");
        }
    }
}
