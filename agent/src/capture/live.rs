//! The connections that only the kernel knows of: sockets that were led to an endpoint, and same-node pairs that are joined;
//! and what TCP has counted of the agent's own.
//!
//! Asked for by people, not by the data path: everything is read at the time of the question.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use agent_common::acceleration::{EndKey, EndValue};
use agent_common::balance::{ConnectReason, End, SocketKey, SocketValue};
use aya::Ebpf;
use aya::maps::{HashMap as KernelMap, MapData};
use nix::sched::{CloneFlags, setns};

use super::CaptureError;
use super::connect::Sockets;
use super::kernel_call::netns_cookie;
use super::programs::another_handle;
use super::sock_diag::{Detailed, Kind, ask_detailed, read_detailed};
use super::vanished::{ENTRIES_MAX, KINDS, end, exchange, open_sock_diag, peer};
use crate::net::TcpInfo;

/// A socket that was led to an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balanced {
    /// Its own address.
    pub source: SocketAddr,
    /// What it asked for.
    pub dialled: SocketAddr,
    /// Where it was led.
    pub endpoint: SocketAddr,
    /// TCP or UDP, by its number.
    pub protocol: u8,
    /// `balanced` or `affinity`.
    pub reason: &'static str,
    /// What TCP has counted.
    pub counted: Option<TcpInfo>,
}

/// A connection whose ends are joined, or were before the agent led it back to TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Joined {
    /// The end that has dialled.
    pub source: SocketAddr,
    /// The end that it dialled.
    pub destination: SocketAddr,
    /// Whether the agent has dialled, on behalf of a connection of its own.
    pub by_agent: bool,
}

/// Asks the kernel.
#[derive(Clone)]
pub struct Live(Arc<Maps>);

struct Maps {
    sockets: Sockets,
    ends: KernelMap<MapData, EndKey, EndValue>,
    waiting: KernelMap<MapData, EndKey, u8>,
    node_cookie: u64,
}

impl Live {
    /// Of a loaded object, before others take its maps. The calling thread is in the node's namespace.
    pub fn new(ebpf: &Ebpf) -> Result<Self, CaptureError> {
        let map = |name| another_handle(ebpf, name);
        let error = |map| move |source| CaptureError::Map { map, source };
        let node_cookie =
            netns_cookie().map_err(CaptureError::listener("asking for the network namespace's cookie"))?;
        Ok(Self(Arc::new(Maps {
            sockets: KernelMap::try_from(aya::maps::Map::LruHashMap(map("SOCKETS")?))
                .map_err(error("SOCKETS"))?,
            ends: KernelMap::try_from(aya::maps::Map::HashMap(map("ENDS")?)).map_err(error("ENDS"))?,
            waiting: KernelMap::try_from(aya::maps::Map::HashMap(map("WAITING")?))
                .map_err(error("WAITING"))?,
            node_cookie,
        })))
    }

    /// Sockets that were led to an endpoint and are still there.
    pub fn balanced(&self) -> Vec<Balanced> {
        let mut known = HashMap::new();
        for (key, value) in self.0.sockets.iter().take(ENTRIES_MAX).flatten() {
            known.insert(key, value);
        }
        let processes: HashSet<u32> = known.values().map(|value| value.process).collect();
        let mut namespaces = HashMap::new();
        for process in processes {
            // Most processes that are gone took their sockets along.
            let namespace = File::open(format!("/proc/{process}/ns/net"));
            if let Some((number, file)) =
                namespace.ok().and_then(|file| file.metadata().ok().map(|metadata| (metadata.ino(), file)))
            {
                namespaces.entry(number).or_insert(file);
            }
        }
        let sockets =
            namespaces.into_values().flat_map(|namespace| sockets_in(&namespace).unwrap_or_default());
        sockets.filter_map(|(kind, socket)| read_balanced(kind, &socket, &known)).collect()
    }

    /// Connections whose ends are joined, or were.
    pub fn joined(&self) -> Vec<Joined> {
        let joined = self.0.ends.iter().take(ENTRIES_MAX).flatten().filter(|(_, value)| value.was_joined());
        let dialled = joined.filter(|(key, _)| self.0.waiting.get(key, 0).is_ok());
        dialled
            .map(|(key, _)| Joined {
                source: address(key.family, key.local, key.local_port_be),
                destination: address(key.family, key.remote, key.remote_port_be),
                by_agent: key.cookie == self.0.node_cookie,
            })
            .collect()
    }
}

/// What TCP has counted of this process's namespace's sockets, by their own address and their peer's.
pub fn counted() -> io::Result<HashMap<(SocketAddr, SocketAddr), TcpInfo>> {
    let mut counted = HashMap::new();
    for (kind, (id, info)) in all_sockets()? {
        if let Some(info) = info {
            counted.insert((socket_address(&end(kind, id.own())), socket_address(&peer(kind, &id))), info);
        }
    }
    Ok(counted)
}

/// The sockets of another namespace; the thread that enters it ends with the look.
fn sockets_in(namespace: &File) -> Option<Vec<(Kind, Detailed)>> {
    let look = || {
        setns(namespace, CloneFlags::CLONE_NEWNET).ok()?;
        all_sockets().ok()
    };
    std::thread::scope(|scope| scope.spawn(look).join()).ok().flatten()
}

fn all_sockets() -> io::Result<Vec<(Kind, Detailed)>> {
    let netlink = open_sock_diag()?;
    let mut all = Vec::new();
    for kind in KINDS {
        let found = exchange(&netlink, &ask_detailed(kind), read_detailed)?;
        all.extend(found.into_iter().map(|socket| (kind, socket)));
    }
    Ok(all)
}

fn read_balanced(
    kind: Kind,
    (id, counted): &Detailed,
    known: &HashMap<SocketKey, SocketValue>,
) -> Option<Balanced> {
    let backend = peer(kind, id);
    let value = known.get(&SocketKey { cookie: id.cookie(), backend, padding: 0 })?;
    let reason = ConnectReason::ALL.get(usize::try_from(value.reason).ok()?)?;
    Some(Balanced {
        source: socket_address(&end(kind, id.own())),
        dialled: socket_address(&value.dialled),
        endpoint: socket_address(&backend),
        protocol: kind.protocol,
        reason: reason.as_str(),
        counted: *counted,
    })
}

fn socket_address(end: &End) -> SocketAddr {
    address(end.family, end.octets(), end.port_be.to_ne_bytes())
}

fn address(family: u8, octets: [u8; 16], port_be: [u8; 2]) -> SocketAddr {
    let [a, b, c, d, ..] = octets;
    let ip = match family {
        4 => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        _ => IpAddr::V6(Ipv6Addr::from(octets)),
    };
    SocketAddr::new(ip, u16::from_be_bytes(port_be))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use agent_common::balance::TCP;

    use super::*;

    #[test]
    fn own_sockets_are_counted_by_their_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let to = listener.local_addr().expect("bound");
        let client = std::net::TcpStream::connect(to).expect("connects");
        let from = client.local_addr().expect("bound");
        let counted = counted().expect("the kernel answers");
        assert!(counted.contains_key(&(from, to)), "{from} to {to}");
        assert!(!counted.contains_key(&(to, to)));
    }

    #[test]
    fn addresses_of_either_family_and_disguised_ones() {
        let kind = |family: i32| Kind { family: u8::try_from(family).expect("is small"), protocol: TCP };
        let v4 = u32::from_ne_bytes([10, 0, 0, 1]);
        let mapped = [0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]), v4];
        let cases = [
            (kind(libc::AF_INET), [v4, 0, 0, 0], "10.0.0.1:80"),
            (kind(libc::AF_INET6), mapped, "10.0.0.1:80"),
            (kind(libc::AF_INET6), [0, 0, 0, u32::from_ne_bytes([0, 0, 0, 1])], "[::1]:80"),
        ];
        for (kind, words, expected) in cases {
            assert_eq!(socket_address(&end(kind, (80_u16.to_be(), words))).to_string(), expected);
        }
    }
}
