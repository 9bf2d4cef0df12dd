//! Removes what an agent that is gone has left in the caller's network namespace.

use std::fmt;

use aya::programs::TcAttachType;
use aya::programs::tc::qdisc_detach_program;

use super::interfaces::Hooked;
use super::netlink::Netlink;
use super::pins::{self, Bpffs};
use super::plumbing::{Plumbing, has_ipv6};
use super::pod_guard;
use super::{CaptureError, Marks};

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

/// Removes programs, pins, filters, rules, routes and the nft table. Programs go first: whatever they mark is still led
/// to the agent's sockets, and nothing is marked that is led nowhere. What is not there is no error.
pub async fn clean(marks: Marks, bpffs: &Bpffs) -> Result<Vec<Cleaned>, CaptureError> {
    let (netlink, _) = Netlink::open()?;
    let mut broom = Broom::default();
    remove_pins(&mut broom, bpffs);
    remove_filters(&mut broom, &netlink).await;
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

/// Filters stay behind a killed agent where the kernel has no tcx.
async fn remove_filters(broom: &mut Broom, netlink: &Netlink) {
    let Some(snapshot) = broom.note(netlink.snapshot().await) else { return };
    for (index, link) in snapshot.links {
        let mut removed = false;
        let capture = Hooked::ALL.map(|hook| (hook.program(), TcAttachType::Ingress));
        for (program, hook) in
            capture.into_iter().chain(pod_guard::HOOKS.map(|(program, place)| (program, place.side)))
        {
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
