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
}

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// What its packets begin with.
    pub header: Header,
    /// The index of the interface that it is a port of.
    pub master: Option<u32>,
    /// Whether it is a bridge.
    pub is_bridge: bool,
}

/// What an interface's packets begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// An Ethernet header.
    Ethernet,
    /// The IP header: tun, `WireGuard`, IP in IP and their kind.
    Network,
    /// Something that the programs can't read.
    Other,
}

/// Which program an interface has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hooked {
    /// It leads to a pod.
    Pod,
    /// Replies to the agent may come in by it.
    Uplink,
    /// As an uplink, without Ethernet headers.
    UplinkL3,
}

impl Hooked {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Pod, Self::Uplink, Self::UplinkL3];
}

/// The interfaces that shall be hooked, by index: an interface that vanishes and comes back is another one.
pub type Desired = BTreeMap<u32, (String, Hooked)>;

impl Snapshot {
    /// What shall be hooked: pods' interfaces, and all others unless some are named. A pod pattern wins over an uplink name.
    pub fn desired(&self, settings: &CaptureSettings) -> Desired {
        let is_pod = |link: &Link| settings.pod_interfaces.matches(&link.name);
        let is_port = |link: &Link| {
            link.master.and_then(|master| self.links.get(&master)).is_some_and(|master| master.is_bridge)
        };
        let hook = |link: &Link| {
            let pod = is_pod(link);
            let uplink = settings.uplinks.is_empty() || settings.uplinks.contains(&link.name);
            match link.header {
                _ if link.name == "lo" => None,
                // A bridge switches frames past the stack, where the mark means nothing: its pods go direct.
                Header::Ethernet if pod && is_port(link) => None,
                Header::Ethernet if pod => Some(Hooked::Pod),
                Header::Ethernet if uplink => Some(Hooked::Uplink),
                Header::Network if uplink && !pod => Some(Hooked::UplinkL3),
                Header::Ethernet | Header::Network | Header::Other => None,
            }
        };
        self.links
            .iter()
            .filter_map(|(index, link)| Some((*index, (link.name.clone(), hook(link)?))))
            .collect()
    }

    /// Refuses to start where a named uplink is missing. Without it, replies from other nodes would pass the agent by.
    pub fn check_uplinks(&self, settings: &CaptureSettings) -> Result<(), CaptureError> {
        let names: BTreeSet<&str> = self.links.values().map(|link| link.name.as_str()).collect();
        match settings.uplinks.iter().find(|name| !names.contains(name.as_str())) {
            Some(missing) => Err(CaptureError::UnknownUplink(missing.clone())),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::capture::{Bpffs, DESTINATIONS_DEFAULT, Marks, OnStop};

    pub fn settings(pods: &str, uplinks: &[&str]) -> CaptureSettings {
        CaptureSettings {
            pod_interfaces: pods.parse().unwrap(),
            uplinks: uplinks.iter().map(ToString::to_string).collect(),
            marks: Marks::default(),
            workers: 1,
            bpffs: Bpffs::Off,
            on_stop: OnStop::Remove,
            destinations_max: DESTINATIONS_DEFAULT,
            limit_sources: 1,
            cgroup: None,
            acceleration: crate::capture::AccelerationMode::Off,
            node: String::new(),
            tunnels: false,
            guard: None,
            socket_events: true,
            flows: crate::telemetry::FlowLog::default(),
        }
    }

    fn link(name: &str, header: Header) -> Link {
        Link { name: name.to_owned(), header, master: None, is_bridge: false }
    }

    fn snapshot() -> Snapshot {
        use Header::{Ethernet, Network, Other};
        let links = [
            ("lo", Ethernet),
            ("eth0", Ethernet),
            ("eth1", Ethernet),
            ("veth1", Ethernet),
            ("tun0", Network),
            ("veth2", Ethernet),
            ("ib0", Other),
        ];
        let links = links.map(|(name, header)| link(name, header));
        Snapshot { links: (1u32..).zip(links).collect(), addresses: BTreeSet::new() }
    }

    #[test]
    fn pods_and_uplinks_are_told_apart() {
        let names = |settings: &CaptureSettings, hook: Hooked| {
            let desired = snapshot().desired(settings).into_values();
            desired.filter(|(_, h)| *h == hook).map(|(name, _)| name).collect::<Vec<_>>()
        };
        let automatic = settings("veth*", &[]);
        assert_eq!(names(&automatic, Hooked::Pod), ["veth1", "veth2"]);
        assert_eq!(names(&automatic, Hooked::Uplink), ["eth0", "eth1"]);
        assert_eq!(names(&automatic, Hooked::UplinkL3), ["tun0"]);
        let given = settings("veth*", &["eth1"]);
        assert_eq!(names(&given, Hooked::Uplink), ["eth1"]);
        assert_eq!(names(&given, Hooked::UplinkL3), [""; 0]);
        assert_eq!(names(&settings("veth*", &["tun0"]), Hooked::UplinkL3), ["tun0"]);
        let all = settings("*", &["eth1", "tun0"]);
        assert_eq!(names(&all, Hooked::Pod), ["eth0", "eth1", "veth1", "veth2"]);
        assert_eq!(names(&all, Hooked::UplinkL3), [""; 0], "a pod's interface has Ethernet headers");
    }

    #[test]
    fn only_named_uplinks_can_be_missing() {
        assert!(snapshot().check_uplinks(&settings("veth*", &[])).is_ok());
        let unknown = snapshot().check_uplinks(&settings("veth*", &["eth9"])).unwrap_err();
        assert!(unknown.to_string().contains("eth9"));
    }

    #[test]
    fn pods_at_a_bridge_go_direct() {
        let bridge = Link { is_bridge: true, ..link("br0", Header::Ethernet) };
        let port = |master| Link { master: Some(master), ..link("veth1", Header::Ethernet) };
        let links =
            BTreeMap::from([(1, bridge), (2, port(1)), (3, port(4)), (4, link("bond0", Header::Ethernet))]);
        let desired = Snapshot { links, addresses: BTreeSet::new() }.desired(&settings("veth*", &["eth0"]));
        assert_eq!(desired, BTreeMap::from([(3, ("veth1".to_owned(), Hooked::Pod))]));
    }
}
