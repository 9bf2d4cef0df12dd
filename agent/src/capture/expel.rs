//! Connections that a policy refuses and that the hooks let be: they are closed in the pod's own namespace.
//!
//! The guard judges packets, and must let some be that may belong to what the pod has begun itself: those to high ports. Bytes
//! of connections that acceleration has joined pass no hook at all, and what came by an interface before it was guarded has
//! been seen by none. So whenever pods get other rules, and whenever an interface is guarded, the sockets of the pods are
//! looked at: what came to a listener of a pod from somebody who is refused now is reset (`SOCK_DESTROY`, 4.9,
//! `CONFIG_INET_DIAG_DESTROY`). Sockets of the node itself reach every pod, and the pod's own reach it without a hook; the
//! agent's ask the policy themselves. What can't be looked at is looked at again.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use agent_common::balance::TCP;
use nix::sched::{CloneFlags, setns};
use rtnetlink::{Handle, new_connection};
use socket2::Socket;
use tokio::sync::{mpsc, oneshot, watch};

use super::CaptureError;
use super::acceleration::namespaces;
use super::sock_diag::{self, Kind, SocketId};
use super::vanished::{self, exchange};
use crate::compile::{Denied, PolicyClient, RoutingTable};
use crate::model::Asked;
use crate::telemetry::{FlowEvent, FlowKind, FlowLog, FlowRule, FlowTier};

/// Before what failed is tried again; twice as long each time, up to the longest.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_mins(1);
const KINDS: [Kind; 2] = [Kind { family: 2, protocol: TCP }, Kind { family: 10, protocol: TCP }];

/// The two ends of a connection, as the socket that is named first sees them.
type Ends = (SocketAddr, SocketAddr);

/// Asks for pods to be looked at. Looks come one after another; what is asked for during one is one more.
pub struct Expeller {
    asked: mpsc::UnboundedSender<BTreeSet<u32>>,
}

impl Expeller {
    /// Starts the task that looks, beside the caller, for as long as the answer lives. `flows` is told of what it closes.
    pub fn start(tables: watch::Receiver<Arc<RoutingTable>>, flows: FlowLog) -> Result<Self, CaptureError> {
        // Of its own: the kernel lists for one at a time on a connection, and refuses the other (EBUSY).
        let (connection, handle, _) =
            new_connection().map_err(CaptureError::listener("opening a netlink socket"))?;
        let (asked, mut waiting) = mpsc::unbounded_channel::<BTreeSet<u32>>();
        tokio::spawn(connection);
        tokio::spawn(async move {
            while let Some(mut interfaces) = waiting.recv().await {
                let mut pause = AGAIN;
                while !look(&handle, &interfaces, (&tables, &flows)).await {
                    // What is asked for meanwhile comes along, and at once.
                    match tokio::time::timeout(pause, waiting.recv()).await {
                        Ok(Some(more)) => interfaces.extend(more),
                        Ok(None) => return,
                        Err(_) => pause = (2 * pause).min(AGAIN_MAX),
                    }
                }
            }
        });
        Ok(Self { asked })
    }

    /// Closes what is refused in the namespaces behind these interfaces.
    pub fn look_behind(&self, interfaces: BTreeSet<u32>) {
        // The task ends only with the runtime.
        let _ = self.asked.send(interfaces);
    }
}

/// Whether all could be looked at.
async fn look(
    handle: &Handle,
    interfaces: &BTreeSet<u32>,
    (tables, flows): (&watch::Receiver<Arc<RoutingTable>>, &FlowLog),
) -> bool {
    let pods = match namespaces::files_behind(handle, interfaces).await {
        Ok(pods) => pods,
        Err(error) => {
            tracing::error!(%error, "pods' namespaces were not found; refused connections may go on until they are");
            return false;
        }
    };
    let (tables, flows) = (tables.clone(), flows.clone());
    let (done, ended) = oneshot::channel();
    // The thread enters the namespaces and ends in the last one.
    let started = std::thread::Builder::new().name("expel".to_owned()).spawn(move || {
        // Whoever waits may be gone.
        let _ = done.send(expel_all(&pods, &tables, &flows));
    });
    match started {
        // A thread that panics has let go of its end.
        Ok(_) => ended.await.unwrap_or(false),
        Err(error) => {
            tracing::error!(%error, "refused connections may go on until a thread can look at them");
            false
        }
    }
}

/// Whether all could be looked at.
fn expel_all(pods: &[File], tables: &watch::Receiver<Arc<RoutingTable>>, flows: &FlowLog) -> bool {
    // It stays in the node's namespace, whichever the thread goes to.
    let node = match vanished::open_sock_diag() {
        Ok(node) => node,
        Err(error) => {
            tracing::error!(%error, "the node's sockets can't be listed; refused connections may go on until they can");
            return false;
        }
    };
    let (mut closed, mut all) = (0, true);
    for pod in pods {
        // What a later table allows is let be.
        let table = tables.borrow().clone();
        match expel_in(pod, &table, &node, flows) {
            Ok(count) => closed += count,
            Err(error) => {
                tracing::warn!(%error, "connections that policies refuse may go on in a pod for now");
                all = false;
            }
        }
    }
    if closed > 0 {
        tracing::info!(closed, "connections that policies refuse were reset");
    }
    all
}

/// The connections of the node's own sockets, those of the agent in pods' names among them.
fn node_sockets(netlink: &Socket) -> io::Result<HashSet<Ends>> {
    let mut found = HashSet::new();
    for kind in KINDS {
        found.extend(
            exchange(netlink, &sock_diag::ask(kind), sock_diag::read)?
                .iter()
                .map(|socket| ends(kind, socket)),
        );
    }
    Ok(found)
}

fn expel_in(pod: &File, table: &RoutingTable, node: &Socket, flows: &FlowLog) -> io::Result<usize> {
    setns(pod, CloneFlags::CLONE_NEWNET)?;
    let netlink = vanished::open_sock_diag()?;
    let (mut listening, mut there) = (BTreeSet::new(), Vec::new());
    for kind in KINDS {
        let listeners = exchange(&netlink, &sock_diag::ask_listeners(kind), sock_diag::read)?;
        listening.extend(listeners.iter().map(|socket| ends(kind, socket).0.port()));
        let sockets = exchange(&netlink, &sock_diag::ask(kind), sock_diag::read)?;
        there.extend(sockets.into_iter().map(|socket| (kind, ends(kind, &socket), socket)));
    }
    let own: HashSet<Ends> = there.iter().map(|(_, ends, _)| *ends).collect();
    // What has both ends in the pod is the pod's own affair.
    there.retain(|(_, (here, peer), _)| listening.contains(&here.port()) && !own.contains(&(*peer, *here)));
    let refused = |(kind, ends, socket)| Some((kind, ends, socket, refusal(table, ends)?));
    let there: Vec<_> = there.into_iter().filter_map(refused).collect();
    if there.is_empty() {
        return Ok(0);
    }
    // Asked after the pod, or a connection that the agent makes meanwhile would look like somebody else's.
    let spared = node_sockets(node)?;
    let mut closed = 0;
    for (kind, (here, peer), socket, denied) in there {
        if spared.contains(&(peer, here)) {
            continue;
        }
        match exchange(&netlink, &sock_diag::destroy(kind, &socket), sock_diag::read) {
            Ok(_) => {
                closed += 1;
                flows.tell(FlowEvent {
                    rule: Some(FlowRule::Policy(denied.clone())),
                    ..FlowEvent::new(
                        (FlowKind::Drop, FlowTier::Kernel),
                        ("refused", denied.reason()),
                        (peer, here),
                    )
                });
            }
            // It closed by itself meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(closed)
}

/// Why a pod's policies refuse what came to it over a connection with these ends, its own first. What the agent does not carry
/// shows nobody its requests.
fn refusal(table: &RoutingTable, (own, peer): Ends) -> Option<Denied> {
    table.check_access(PolicyClient::direct(peer.ip()), own, Asked::Opaque).err()
}

fn ends(kind: Kind, socket: &SocketId) -> Ends {
    let address = |(port_be, words): (u16, [u32; 4])| {
        let ip = if i32::from(kind.family) == libc::AF_INET {
            IpAddr::V4(Ipv4Addr::from(words[0].to_ne_bytes()))
        } else {
            let mut octets = [0; 16];
            for (four, word) in octets.chunks_exact_mut(4).zip(words) {
                four.copy_from_slice(&word.to_ne_bytes());
            }
            IpAddr::V6(Ipv6Addr::from(octets)).to_canonical()
        };
        SocketAddr::new(ip, u16::from_be(port_be))
    };
    (address(socket.own()), address(socket.peer()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(family: u8, own: &str, peer: &str) -> (Kind, SocketId) {
        let mut id = [0; sock_diag::ID];
        let [own, peer]: [SocketAddr; 2] = [own, peer].map(|text| text.parse().expect("an address"));
        for (end, port_at, ip_at) in [(own, 0, 4), (peer, 2, 20)] {
            id[port_at..port_at + 2].copy_from_slice(&end.port().to_be_bytes());
            match end.ip() {
                IpAddr::V4(v4) => id[ip_at..ip_at + 4].copy_from_slice(&v4.octets()),
                IpAddr::V6(v6) => id[ip_at..ip_at + 16].copy_from_slice(&v6.octets()),
            }
        }
        (Kind { family, protocol: TCP }, SocketId(id))
    }

    #[test]
    fn ends_are_read_in_either_family() {
        for (family, (own, peer), (own_read, peer_read)) in [
            (2, ("10.0.0.1:40000", "10.0.0.2:1"), ("10.0.0.1:40000", "10.0.0.2:1")),
            (10, ("[fd00::1]:80", "[fd00::2]:65535"), ("[fd00::1]:80", "[fd00::2]:65535")),
            (10, ("[::ffff:10.0.0.1]:80", "[::ffff:10.0.0.2]:2"), ("10.0.0.1:80", "10.0.0.2:2")),
        ] {
            let (kind, id) = socket(family, own, peer);
            let expected = (own_read.parse().expect("an address"), peer_read.parse().expect("an address"));
            assert_eq!(ends(kind, &id), expected);
        }
    }
}
