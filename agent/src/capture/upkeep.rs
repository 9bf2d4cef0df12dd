//! Keeps the mark's way to the agent in place. Rules, routes and nft tables belong to nobody: a network manager that
//! restarts, or a flushed ruleset, takes ours along. The same goes for pins, which are files.

use rtnetlink::Handle;

use super::CaptureError;
use super::pins::Pins;
use super::plumbing::Plumbing;

/// What is known of the way.
pub struct Upkeep {
    plumbing: Plumbing,
    /// Why rule and route do not lead to the agent.
    routing: Option<String>,
    /// Why connection tracking is not kept off.
    notrack: Option<String>,
    /// Why something that shall outlive the agent is not pinned.
    unpinned: Option<String>,
    /// nft could not be asked, which is said once.
    unasked: bool,
}

/// What a look at the nft table found and did.
enum Notrack {
    InPlace,
    Reinstalled,
    Broken(CaptureError),
    Unknown(CaptureError),
}

impl Upkeep {
    /// Of a way that has just been installed.
    pub fn new(plumbing: Plumbing) -> Self {
        Self { plumbing, routing: None, notrack: None, unpinned: None, unasked: false }
    }

    /// Why captured packets would be lost; `None`: they would not.
    pub fn broken(&self) -> Option<&str> {
        self.routing.as_deref().or(self.notrack.as_deref())
    }

    /// Why something that shall outlive the agent would not; `None`: it would.
    pub fn unpinned(&self) -> Option<&str> {
        self.unpinned.as_deref()
    }

    /// Puts back the pins that somebody has removed.
    pub fn look_at_pins(&mut self, pins: &mut Pins) {
        let unpinned = match pins.restore() {
            Ok(0) => None,
            Ok(restored) => {
                tracing::warn!(restored, "pins were taken away; pinned again");
                None
            }
            Err(error) => Some(error.to_string()),
        };
        match (&self.unpinned, &unpinned) {
            (before, Some(reason)) if before.as_ref() != Some(reason) => {
                tracing::error!(reason, "what is no longer pinned ends with the agent, policies too");
            }
            (Some(_), None) => tracing::info!("everything is pinned again"),
            _ => {}
        }
        self.unpinned = unpinned;
    }

    /// Looks at rules and routes, and puts back what is missing. What could not be repaired before is only tried again
    /// where `again` says so: each try is itself a change that is heard of.
    pub async fn look_at_routing(&mut self, handle: &Handle, again: bool) {
        let broken = if self.plumbing.delivers(handle).await {
            None
        } else if self.routing.is_none() || again {
            self.reinstall_routing(handle).await
        } else {
            return;
        };
        note("ip rule and route", &mut self.routing, broken);
    }

    async fn reinstall_routing(&self, handle: &Handle) -> Option<String> {
        if let Err(error) = self.plumbing.install_routing(handle).await {
            return Some(error.to_string());
        }
        if self.plumbing.delivers(handle).await {
            if self.routing.is_none() {
                tracing::warn!("the ip rule or route was taken away; installed again");
            }
            return None;
        }
        let mark = self.plumbing.marks.deliver;
        Some(format!("packets with mark {mark:#x} are led elsewhere; `ip rule` lists by whom"))
    }

    /// Looks at the nft table, and puts it back where it is missing.
    pub async fn look_at_notrack(&mut self) {
        let plumbing = self.plumbing;
        let look = move || match Plumbing::has_notrack() {
            Ok(true) => Notrack::InPlace,
            Ok(false) => match plumbing.install_notrack() {
                Ok(()) => Notrack::Reinstalled,
                Err(error) => Notrack::Broken(error),
            },
            Err(error) => Notrack::Unknown(error),
        };
        // nft is a program of its own, and takes its time.
        let Ok(found) = tokio::task::spawn_blocking(look).await else { return };
        let broken = match found {
            Notrack::InPlace => None,
            Notrack::Reinstalled => {
                tracing::warn!("the nft table was taken away; installed again");
                None
            }
            Notrack::Broken(error) => Some(error.to_string()),
            Notrack::Unknown(error) => {
                if !std::mem::replace(&mut self.unasked, true) {
                    tracing::warn!(%error, "the nft table could not be looked at");
                }
                return;
            }
        };
        self.unasked = false;
        note("nft table", &mut self.notrack, broken);
    }
}

/// Says what changed.
fn note(what: &'static str, known: &mut Option<String>, now: Option<String>) {
    match (&*known, &now) {
        (before, Some(reason)) if before.as_ref() != Some(reason) => {
            tracing::error!(what, reason, "capture pauses, new connections go direct");
        }
        (Some(_), None) => tracing::info!(what, "in place again"),
        _ => {}
    }
    *known = now;
}
