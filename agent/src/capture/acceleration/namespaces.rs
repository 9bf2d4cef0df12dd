//! Which network namespace is a pod's: the one that is behind the pod's interface on the node.
//!
//! Addresses prove nothing, as any process can make a namespace and take any address in it. What it cannot make is an
//! interface of the node that leads there: the kernel says which namespace the other end of each pod interface is in.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use futures_util::stream::{StreamExt, TryStreamExt};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use nix::sched::{CloneFlags, setns};
use rtnetlink::Handle;
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};

use crate::capture::kernel_call::netns_cookie;

/// A node has a few hundred pods; beyond that, something else makes namespaces.
const NAMESPACES_MAX: usize = 4096;
/// Where container runtimes keep the namespaces that they made.
const NAMED: &str = "/run/netns";

/// A network namespace of this machine.
pub struct Namespace {
    /// What stands for it.
    pub file: File,
    /// Its cookie.
    pub cookie: u64,
    addresses: Vec<IpAddr>,
}

/// The namespaces behind the pod interfaces of these indexes, by the addresses in them. An address that two of them have is
/// nobody's.
pub async fn behind(
    handle: &Handle,
    interfaces: &BTreeSet<u32>,
) -> Result<HashMap<IpAddr, u64>, rtnetlink::Error> {
    let mut found = HashMap::new();
    let mut contested = HashSet::new();
    for namespace in those_behind(handle, interfaces).await? {
        for address in namespace.addresses {
            if found.insert(address, namespace.cookie).is_some_and(|other| other != namespace.cookie) {
                contested.insert(address);
            }
        }
    }
    found.retain(|address, _| !contested.contains(address));
    Ok(found)
}

/// The namespaces behind the pod interfaces of these indexes.
pub async fn files_behind(
    handle: &Handle,
    interfaces: &BTreeSet<u32>,
) -> Result<Vec<File>, rtnetlink::Error> {
    let found = those_behind(handle, interfaces).await?;
    Ok(found.into_iter().map(|namespace| namespace.file).collect())
}

async fn those_behind(
    handle: &Handle,
    interfaces: &BTreeSet<u32>,
) -> Result<Vec<Namespace>, rtnetlink::Error> {
    let ids = ids_behind(handle, interfaces).await?;
    let namespaces = tokio::task::spawn_blocking(namespaces).await.unwrap_or_default();
    let mut found = Vec::new();
    for namespace in namespaces {
        if id_of(handle, &namespace.file).await.is_some_and(|id| ids.contains(&id)) {
            found.push(namespace);
        }
    }
    Ok(found)
}

/// The node's numbers for the namespaces in which the interfaces' other ends are.
async fn ids_behind(handle: &Handle, interfaces: &BTreeSet<u32>) -> Result<HashSet<i32>, rtnetlink::Error> {
    let links: Vec<_> = handle.link().get().execute().try_collect().await?;
    let links = links.iter().filter(|link| interfaces.contains(&link.header.index));
    let id = |attribute: &LinkAttribute| match attribute {
        LinkAttribute::LinkNetNsId(id) => Some(*id),
        _ => None,
    };
    Ok(links.filter_map(|link| link.attributes.iter().find_map(id)).filter(|id| *id >= 0).collect())
}

/// The node's number for a namespace; `None` where it has none, as no interface leads there.
async fn id_of(handle: &Handle, namespace: &File) -> Option<i32> {
    let mut message = NsidMessage::default();
    message.attributes.push(NsidAttribute::Fd(u32::try_from(namespace.as_raw_fd()).ok()?));
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(message));
    request.header.flags = NLM_F_REQUEST;
    let answer = handle.clone().request(request).ok()?.next().await?;
    let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(answer)) = answer.payload else {
        return None;
    };
    answer.attributes.iter().find_map(|attribute| match attribute {
        NsidAttribute::Id(id) if *id >= 0 => Some(*id),
        _ => None,
    })
}

/// Every namespace that has a name or a process, but the caller's own.
pub fn namespaces() -> Vec<Namespace> {
    let own = fs::metadata("/proc/self/ns/net").map(|own| own.ino()).unwrap_or_default();
    let mut seen = HashSet::from([own]);
    let mut namespaces = Vec::new();
    for path in named().into_iter().chain(of_processes()) {
        // Processes end while they are looked at.
        let Ok(inode) = fs::metadata(&path).map(|namespace| namespace.ino()) else { continue };
        if seen.len() < NAMESPACES_MAX && seen.insert(inode) {
            namespaces.extend(File::open(path).ok().and_then(look_into));
        }
    }
    namespaces
}

fn named() -> Vec<PathBuf> {
    let entries = fs::read_dir(NAMED).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn of_processes() -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = entries.filter(|entry| entry.file_name().as_encoded_bytes()[0].is_ascii_digit());
    processes.map(|process| process.path().join("ns/net"))
}

/// Enters a namespace on a thread that ends with the look.
fn look_into(file: File) -> Option<Namespace> {
    let look = || {
        setns(&file, CloneFlags::CLONE_NEWNET).ok()?;
        let addresses = nix::ifaddrs::getifaddrs().ok()?.filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        });
        let addresses = addresses.filter(|address| !address.is_loopback() && !is_link_local(address));
        Some((netns_cookie().ok()?, addresses.collect()))
    };
    let (cookie, addresses) = std::thread::scope(|scope| scope.spawn(look).join()).ok().flatten()?;
    Some(Namespace { file, cookie, addresses })
}

/// An address that means something else in every namespace.
fn is_link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}
