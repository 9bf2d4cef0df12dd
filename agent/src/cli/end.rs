//! Filters by the ends of a connection, for all verbs that show connections.

use std::net::SocketAddr;

use clap::Args;

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
    #[arg(long, visible_alias = "to-port")]
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

/// Whether an end is meant by its address, its name, its name in the namespace `default`, or its namespace.
fn is(wanted: &str, (address, name): End<'_>) -> bool {
    let ip = address.parse().ok().map(|end: SocketAddr| end.ip().to_string());
    let named = name.is_some_and(|name| {
        name == wanted
            || name.strip_prefix("default/") == Some(wanted)
            || wanted.ends_with('/') && name.starts_with(wanted)
    });
    address == wanted || ip.as_deref() == Some(wanted) || named
}

#[cfg(test)]
mod tests {
    use super::*;

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
            (EndFilter { port: Some(80), ..EndFilter::default() }, true),
            (EndFilter { port: Some(81), ..EndFilter::default() }, false),
            (EndFilter { from: text("client"), port: Some(81), ..EndFilter::default() }, false),
        ];
        for (filter, expected) in cases {
            assert_eq!(filter.fits(&ends), expected, "{filter:?}");
        }
    }
}
