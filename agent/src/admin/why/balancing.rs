//! Balancing at `connect()`: sockets that are led to an endpoint before there is a packet.

use std::sync::Arc;

use agent_common::balance::{ConnectReason, Tier};

use super::{View, inbound};
use crate::compile::{Frontend, PolicyClient};

/// Where sockets are led to an endpoint before there is a packet; the reason where the source's are.
pub(super) fn led(
    view: &View<'_>,
    frontend: Option<&Arc<Frontend>>,
    step: &mut impl FnMut(&str, String),
) -> Option<&'static str> {
    let View { asked, table, status, .. } = *view;
    let cgroup = status.capture.connect.cgroup.as_ref()?;
    let frontend = frontend.filter(|_| view.elsewhere().is_none())?;
    let (tier, why) = frontend.tier(asked.destination.is_ipv4());
    if tier != Tier::Balance {
        step("connect", format!("left to what follows: {} ({})", tier.as_str(), why.as_str()));
        return None;
    }
    step("connect", format!("sockets below {cgroup} go straight to an endpoint ({})", why.as_str()));
    let own = status.capture.local_addresses.contains(&asked.source);
    if !view.is_from_here() && !own {
        return None;
    }
    // Their packets have the endpoint's address, which the programs may know as well.
    let endpoints = frontend.tcp.endpoints.iter().map(|one| one.address);
    for to in endpoints.filter(|to| to.is_ipv4() == asked.destination.is_ipv4()) {
        if let Some(headless) = table.frontends.get(&to) {
            let service = &headless.service;
            let found = format!("{to} is an endpoint of headless service {service} too: the agent takes it");
            step("DESTINATIONS", found);
        } else if status.capture.inbound.contains(&to.ip())
            && let Some(why) = inbound::judged(PolicyClient::direct(asked.source), to, table)
        {
            step("POLICY_RULES", format!("{to}: {why}: the agent takes the connection"));
        }
    }
    Some(match frontend.affinity {
        Some(_) => ConnectReason::Affinity.as_str(),
        None => ConnectReason::Balanced.as_str(),
    })
}
