//! Which interfaces shall have which program: a pure function of what netlink shows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{CaptureError, CaptureSettings};

/// The kernel's view of the node's network, as far as it concerns capture.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Interfaces by index.
    pub links: BTreeMap<u32, Link>,
    /// The node's own addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Indexes of interfaces that carry a route through a gateway.
    pub gateways: BTreeSet<u32>,
}

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Whether its frames have Ethernet headers.
    pub ethernet: bool,
}

/// Which program an interface has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hooked {
    /// It leads to a pod.
    Pod,
    /// It leads off the node.
    Uplink,
}

/// The interfaces that shall be hooked, by index: an interface that vanishes and comes back is another one.
pub type Desired = BTreeMap<u32, (String, Hooked)>;

impl Snapshot {
    /// What shall be hooked. A pod pattern wins over an uplink name.
    pub fn desired(&self, settings: &CaptureSettings) -> Desired {
        let hook = |index: &u32, link: &Link| {
            if !link.ethernet || link.name == "lo" {
                None
            } else if settings.pod_interfaces.matches(&link.name) {
                Some(Hooked::Pod)
            } else if settings.uplinks.contains(&link.name)
                || settings.uplinks.is_empty() && self.gateways.contains(index)
            {
                Some(Hooked::Uplink)
            } else {
                None
            }
        };
        self.links
            .iter()
            .filter_map(|(index, link)| Some((*index, (link.name.clone(), hook(index, link)?))))
            .collect()
    }

    /// Refuses to start where an uplink is missing. Without one, replies from other nodes would pass the agent by.
    pub fn check_uplinks(&self, settings: &CaptureSettings) -> Result<(), CaptureError> {
        let names: BTreeSet<&str> = self.links.values().map(|link| link.name.as_str()).collect();
        if let Some(missing) = settings.uplinks.iter().find(|name| !names.contains(name.as_str())) {
            return Err(CaptureError::UnknownUplink(missing.clone()));
        }
        let mut desired = self.desired(settings).into_values();
        if desired.any(|(_, hook)| hook == Hooked::Uplink) { Ok(()) } else { Err(CaptureError::NoUplink) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::Marks;

    fn settings(pods: &str, uplinks: &[&str]) -> CaptureSettings {
        CaptureSettings {
            pod_interfaces: pods.parse().unwrap(),
            uplinks: uplinks.iter().map(ToString::to_string).collect(),
            marks: Marks::default(),
            workers: 1,
        }
    }

    fn snapshot() -> Snapshot {
        let links =
            [("lo", true), ("eth0", true), ("eth1", true), ("veth1", true), ("tun0", false), ("veth2", true)];
        Snapshot {
            links: (1u32..).zip(links.map(|(name, ethernet)| Link { name: name.into(), ethernet })).collect(),
            addresses: BTreeSet::new(),
            gateways: BTreeSet::from([2, 5]),
        }
    }

    #[test]
    fn pods_and_uplinks_are_told_apart() {
        let names = |settings: &CaptureSettings, hook: Hooked| {
            let desired = snapshot().desired(settings).into_values();
            desired.filter(|(_, h)| *h == hook).map(|(name, _)| name).collect::<Vec<_>>()
        };
        let automatic = settings("veth*", &[]);
        assert_eq!(names(&automatic, Hooked::Pod), ["veth1", "veth2"]);
        assert_eq!(
            names(&automatic, Hooked::Uplink),
            ["eth0"],
            "an interface without Ethernet headers is left out"
        );
        assert_eq!(names(&settings("veth*", &["eth1"]), Hooked::Uplink), ["eth1"]);
        assert_eq!(names(&settings("*", &["eth1"]), Hooked::Pod), ["eth0", "eth1", "veth1", "veth2"]);
    }

    #[test]
    fn missing_uplinks_are_named() {
        assert!(snapshot().check_uplinks(&settings("veth*", &[])).is_ok());
        let unknown = snapshot().check_uplinks(&settings("veth*", &["eth9"])).unwrap_err();
        assert!(unknown.to_string().contains("eth9"));
        let none = Snapshot { gateways: BTreeSet::new(), ..snapshot() };
        assert!(matches!(none.check_uplinks(&settings("veth*", &[])), Err(CaptureError::NoUplink)));
    }
}
