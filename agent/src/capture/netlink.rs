//! Reading links and addresses, and hearing when they change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use futures_util::stream::{Stream, StreamExt, TryStreamExt};
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage};
use netlink_packet_route::tc::{TcAttribute, TcHandle};
use rtnetlink::{Handle, MulticastGroup, new_multicast_connection};

use super::CaptureError;
use super::interfaces::{Header, Link, Snapshot};

/// A connection to the kernel's routing socket.
pub struct Netlink {
    handle: Handle,
}

impl Netlink {
    /// Opens it in the caller's network namespace. The stream yields once for each change and ends with the socket.
    pub fn open() -> Result<(Self, impl Stream<Item = ()> + Send + use<>), CaptureError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
        ];
        let (connection, handle, messages) = new_multicast_connection(&groups)
            .map_err(|source| CaptureError::Listener { doing: "opening a netlink socket", source })?;
        tokio::spawn(connection);
        Ok((Self { handle }, messages.map(|_| ())))
    }

    /// For changing rules and routes.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Reads everything anew.
    pub async fn snapshot(&self) -> Result<Snapshot, CaptureError> {
        Ok(Snapshot { links: self.links().await?, addresses: self.addresses().await? })
    }

    /// Whether an interface is there; one that the kernel can't be asked about counts as there.
    pub async fn has_link(&self, index: u32) -> bool {
        let answer: Result<Vec<_>, _> =
            self.handle.link().get().match_index(index).execute().try_collect().await;
        !matches!(answer, Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -libc::ENODEV)
    }

    /// Takes the clsact qdisc off an interface on which nobody has a filter. An interface that is gone is no error.
    pub async fn remove_idle_clsact(&self, index: u32) -> Result<(), rtnetlink::Error> {
        // The kernel's own numbers are positive.
        let Ok(index) = i32::try_from(index) else { return Ok(()) };
        let filters = || self.handle.traffic_filter(index).get();
        for side in [filters().ingress(), filters().egress()] {
            let filters: Vec<_> = side.execute().try_collect().await?;
            if !filters.is_empty() {
                return Ok(());
            }
        }
        let mut request = self.handle.qdisc().del(index);
        let message = request.message_mut();
        message.header.parent = TcHandle::CLSACT;
        message.header.handle = TcHandle { major: 0xffff, minor: 0 };
        message.attributes.push(TcAttribute::Kind("clsact".to_owned()));
        request.execute().await
    }

    async fn links(&self) -> Result<BTreeMap<u32, Link>, CaptureError> {
        let links = self.handle.link().get().execute();
        let read = links.try_filter_map(|message| async move { Ok(link(&message)) }).try_collect();
        read.await.map_err(CaptureError::netlink("listing interfaces"))
    }

    async fn addresses(&self) -> Result<BTreeSet<IpAddr>, CaptureError> {
        let messages: Vec<_> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(CaptureError::netlink("listing addresses"))?;
        // `Local` is this node's end of a point-to-point link, where `Address` is the other one.
        let own = |attributes: &[AddressAttribute]| {
            let local = attributes
                .iter()
                .find_map(|a| if let AddressAttribute::Local(ip) = a { Some(*ip) } else { None });
            local.or_else(|| {
                attributes
                    .iter()
                    .find_map(|a| if let AddressAttribute::Address(ip) = a { Some(*ip) } else { None })
            })
        };
        Ok(messages.iter().filter_map(|message| own(&message.attributes)).collect())
    }
}

fn link(message: &LinkMessage) -> Option<(u32, Link)> {
    let attributes = &message.attributes;
    let name = attributes
        .iter()
        .find_map(|a| if let LinkAttribute::IfName(name) = a { Some(name.clone()) } else { None })?;
    let master = attributes
        .iter()
        .find_map(|a| if let LinkAttribute::Controller(index) = a { Some(*index) } else { None });
    let is_bridge = attributes.iter().any(
        |a| matches!(a, LinkAttribute::LinkInfo(infos) if infos.contains(&LinkInfo::Kind(InfoKind::Bridge))),
    );
    let header = header(message.header.link_layer_type);
    Some((message.header.index, Link { name, header, master, is_bridge }))
}

/// Loopback has Ethernet headers too.
fn header(kind: LinkLayerType) -> Header {
    match kind {
        LinkLayerType::Ether | LinkLayerType::Loopback => Header::Ethernet,
        LinkLayerType::None
        | LinkLayerType::Rawip
        | LinkLayerType::Ppp
        | LinkLayerType::Tunnel
        | LinkLayerType::Tunnel6
        | LinkLayerType::Sit
        | LinkLayerType::Ipgre
        | LinkLayerType::Ip6gre => Header::Network,
        _ => Header::Other,
    }
}
