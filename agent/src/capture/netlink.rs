//! Reading links, addresses and routes, and hearing when they change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use futures_util::stream::{Stream, StreamExt, TryStreamExt};
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{LinkAttribute, LinkLayerType, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::tc::{TcAttribute, TcHandle};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder, new_multicast_connection};

use super::CaptureError;
use super::interfaces::{Link, Snapshot};

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
        Ok(Snapshot {
            links: self.links().await?,
            addresses: self.addresses().await?,
            gateways: self.gateways().await?,
        })
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

    async fn gateways(&self) -> Result<BTreeSet<u32>, CaptureError> {
        let mut found = BTreeSet::new();
        let v4 = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
        for family in [v4, v6] {
            let routes: Vec<RouteMessage> = self
                .handle
                .route()
                .get(family)
                .execute()
                .try_collect()
                .await
                .map_err(CaptureError::netlink("listing routes"))?;
            found.extend(
                routes.iter().filter(|route| route.header.kind == RouteType::Unicast).flat_map(gateway_links),
            );
        }
        Ok(found)
    }
}

fn link(message: &LinkMessage) -> Option<(u32, Link)> {
    let name = message
        .attributes
        .iter()
        .find_map(|a| if let LinkAttribute::IfName(name) = a { Some(name.clone()) } else { None })?;
    Some((
        message.header.index,
        Link { name, ethernet: message.header.link_layer_type == LinkLayerType::Ether },
    ))
}

/// The interfaces through which a route reaches a gateway.
fn gateway_links(route: &RouteMessage) -> Vec<u32> {
    let mut links = Vec::new();
    let has_gateway = |attributes: &[RouteAttribute]| {
        attributes.iter().any(|a| matches!(a, RouteAttribute::Gateway(_) | RouteAttribute::Via(_)))
    };
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) if has_gateway(&route.attributes) => links.push(*index),
            RouteAttribute::MultiPath(hops) => {
                links.extend(
                    hops.iter().filter(|hop| has_gateway(&hop.attributes)).map(|hop| hop.interface_index),
                );
            }
            _ => {}
        }
    }
    links
}
