//! Removes what an agent that is gone has left in the caller's network namespace.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, Instant};

use aya::programs::TcAttachType;
use aya::programs::tc::qdisc_detach_program;

use super::foreign::{self, Foreign};
use super::interfaces::Hooked;
use super::netlink::Netlink;
use super::pins::{self, Bpffs};
use super::plumbing::{Plumbing, has_ipv6};
use super::{CaptureError, Marks};
use super::{limits, pod_guard};

/// The kernel lets go of links a moment after their pins.
const LET_GO: Duration = Duration::from_secs(1);

/// Something that was there and is removed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Cleaned {
    /// `pin`, `filter`, `rule`, `route` or `nft`.
    pub kind: &'static str,
    /// Which one.
    pub name: String,
}

impl fmt::Display for Cleaned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// What was found, and the first thing that could not be removed; that one does not keep the rest.
#[derive(Debug, Default)]
struct Broom {
    cleaned: Vec<Cleaned>,
    failed: Option<CaptureError>,
}

impl Broom {
    fn found(&mut self, kind: &'static str, name: impl Into<String>) {
        self.cleaned.push(Cleaned { kind, name: name.into() });
    }

    fn note<T>(&mut self, result: Result<T, CaptureError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                if let Some(second) = self.failed.replace(error) {
                    tracing::error!(error = %second, "cleaning up");
                }
                None
            }
        }
    }
}

/// Whether an agent captures while it is cleaned up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Under {
    /// None does, and none starts meanwhile.
    Nobody,
    /// One does: its filters are let be, as it would not miss them. What else it has, it puts back.
    Agent,
}

/// Removes programs, pins, filters, rules, routes and the nft table. Programs go first: whatever they mark is still led
/// to the agent's sockets, and nothing is marked that is led nowhere. What is not there is no error.
pub async fn clean(marks: Marks, bpffs: &Bpffs, under: Under) -> Result<Vec<Cleaned>, CaptureError> {
    let (netlink, _) = Netlink::open()?;
    let mut broom = Broom::default();
    remove_pins(&mut broom, bpffs);
    if under == Under::Nobody {
        remove_filters(&mut broom, &netlink).await;
        let left = still_attached(&netlink).await;
        broom.note(left);
    }
    let plumbing = Plumbing { marks, ipv6: has_ipv6() };
    if let Some(found) = broom.note(plumbing.installed(netlink.handle()).await) {
        for (kind, name) in found {
            broom.found(kind, name);
        }
    }
    broom.note(plumbing.remove(netlink.handle()).await);
    match broom.failed {
        Some(error) => Err(error),
        None => Ok(broom.cleaned),
    }
}

fn remove_pins(broom: &mut Broom, bpffs: &Bpffs) {
    let Some(Some((pins, names))) = broom.note(pins::left_behind(bpffs)) else { return };
    for name in names {
        broom.found("pin", name);
    }
    broom.note(pins.remove(None));
}

/// Refuses to call clean what has programs of an agent at work: links that are pinned in a directory that nobody named.
async fn still_attached(netlink: &Netlink) -> Result<(), CaptureError> {
    let snapshot = netlink.snapshot().await?;
    let interfaces: Vec<_> = snapshot.links.into_iter().map(|(index, link)| (index, link.name)).collect();
    let end = Instant::now() + LET_GO;
    loop {
        let seen = foreign::look(netlink.handle(), &interfaces, None).await;
        let packets: Vec<_> = seen.into_iter().filter(|seen| seen.hook != "cgroup").collect();
        let left = left_of_agents(foreign::not_ours(&packets, &BTreeSet::new(), foreign::names));
        let Some(left) = left else { return Ok(()) };
        if Instant::now() > end {
            return Err(CaptureError::StillAttached(left));
        }
        tokio::time::sleep(LET_GO / 20).await;
    }
}

/// Names the programs of agents among others.
fn left_of_agents(seen: Vec<Foreign>) -> Option<String> {
    let own = seen.into_iter().filter(|one| foreign::is_an_agents(&one.name));
    let names: Vec<_> =
        own.map(|Foreign { seen, name, .. }| format!("{name} on {} {}", seen.hook, seen.place)).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// Filters stay behind a killed agent where the kernel has no tcx.
async fn remove_filters(broom: &mut Broom, netlink: &Netlink) {
    let Some(snapshot) = broom.note(netlink.snapshot().await) else { return };
    for (index, link) in snapshot.links {
        let mut removed = false;
        let capture = Hooked::ALL.map(|hook| (hook.program(), TcAttachType::Ingress));
        let pods = pod_guard::HOOKS.into_iter().chain(limits::HOOKS);
        let pods = pods.map(|(program, place)| (program, place.side));
        for (program, hook) in capture.into_iter().chain(pods) {
            // An interface without the qdisc, or without a filter of ours, is an error here.
            if qdisc_detach_program(&link.name, hook, program).is_ok() {
                broom.found("filter", format!("{} {program}", link.name));
                removed = true;
            }
        }
        if removed && let Err(error) = netlink.remove_idle_clsact(index).await {
            tracing::debug!(index, %error, "removing the clsact qdisc");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::Sighting;

    #[test]
    fn only_an_agents_programs_are_left_of_an_agent() {
        let on = |name: &str, hook| Foreign {
            seen: Sighting { hook, place: "pod-a egress".to_owned(), program: 7 },
            name: name.to_owned(),
            before_ours: false,
        };
        assert_eq!(left_of_agents(vec![on("cil_from_pod", "tcx"), on("", "clsact")]), None);
        let left = left_of_agents(vec![on("cil_from_pod", "tcx"), on("guard_pod", "tcx")]);
        assert_eq!(left.as_deref(), Some("guard_pod on tcx pod-a egress"));
    }
}
