//! What works beside capture's own programs, each with programs and maps of its own: balancing at `connect()`, policy at
//! the pods' interfaces, the guard at the edge, same-node acceleration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_common::acceleration::AccelerationConfig;
use aya::Ebpf;
use tokio::sync::mpsc;

use super::acceleration::{self, Acceleration, AccelerationCounters, AccelerationStatus};
use super::connect::{CgroupChoice, ConnectBalancer, ConnectCounters, ConnectStatus};
use super::guard::{Guard, GuardCounters, GuardHandle, Push};
use super::held::Held;
use super::limits::{LimitCounters, PodLimits};
use super::live::Live;
use super::pins::{Left, Pins};
use super::pod_guard::PodGuard;
use super::programs::Programs;
use super::socket_events::SocketEvents;
use super::{CaptureError, CaptureSettings, Fill, MapUse, PolicyDrops};
use crate::compile::RoutingTable;
use crate::net::Bridges;

/// All of them.
pub struct Parts {
    /// Balancing at `connect()`, or what there is to say of it.
    pub connect: Result<ConnectBalancer, ConnectStatus>,
    /// Policy at the pods' interfaces.
    pub pod_guard: PodGuard,
    /// Limits at the pods' interfaces and at the guard.
    pub limits: PodLimits,
    /// The XDP guard, where some interface has it.
    pub guard: Option<Guard>,
    /// Sources that shall be pushed down to the guard; none come without one.
    pub pushes: mpsc::Receiver<Push>,
    /// Same-node acceleration, or why there is none.
    pub acceleration: Result<Acceleration, String>,
    /// Events of sockets, or why there are none.
    pub socket_events: Result<SocketEvents, String>,
}

/// What they count, readable from anywhere.
#[derive(Clone)]
pub struct Readings {
    /// Of balancing, where it is on.
    pub connects: Option<ConnectCounters>,
    /// What policy has refused in the kernel.
    pub drops: PolicyDrops,
    /// What limits of the kernel have let through and refused.
    pub limits: LimitCounters,
    /// Of acceleration, where it is on.
    pub acceleration: Option<AccelerationCounters>,
    /// Lets relays' bytes go past the agent, where acceleration is on.
    pub bridges: Option<Arc<dyn Bridges>>,
    /// The guard's ear and its counters, where there is a guard.
    pub guard: Option<(GuardHandle, GuardCounters)>,
    /// The connections that the programs know of.
    pub live: Live,
    /// What the maps hold.
    pub held: Held,
}

impl Parts {
    /// Loads them. `accelerated`: the cgroup whose sockets are accelerated, or why none are.
    pub fn load(
        settings: &CaptureSettings,
        programs: &mut Programs,
        accelerated: Result<PathBuf, String>,
    ) -> Result<(Self, Readings), CaptureError> {
        let attach = programs.attach_kind();
        let live = Live::new(programs.ebpf())?;
        let guard =
            settings.guard.clone().map(|options| Guard::load(programs.ebpf(), options)).transpose()?;
        let pod_guard = PodGuard::load(programs.ebpf_and_pins(), attach, &settings.node)?;
        let limits = PodLimits::load(programs.ebpf(), attach, guard.is_some())?;
        let connect = start_balancing(settings, programs)?;
        let socket_events = SocketEvents::start(settings, programs.ebpf());
        let acceleration =
            accelerated.and_then(|cgroup| accelerate(programs.ebpf(), &cgroup, settings.marks.own));
        let bridges = acceleration.as_ref().ok().map(|acceleration| acceleration.counters().bridges());
        let (ear, pushes) = GuardHandle::channel();
        let readings = Readings {
            connects: connect.as_ref().ok().map(ConnectBalancer::counters),
            drops: pod_guard.drops(),
            limits: limits.counters(),
            acceleration: acceleration.as_ref().ok().map(Acceleration::counters),
            bridges: bridges.map(|bridges| Arc::new(bridges) as Arc<dyn Bridges>),
            guard: guard.as_ref().map(|guard| (ear, guard.counters())),
            live,
            held: programs.held(),
        };
        Ok((Self { connect, pod_guard, limits, guard, pushes, acceleration, socket_events }, readings))
    }

    /// Says what is on.
    pub fn report(&self) {
        match &self.acceleration {
            Ok(_) => tracing::info!("same-node connections are accelerated"),
            Err(reason) => tracing::info!(reason, "same-node connections are not accelerated"),
        }
    }

    /// Puts a table's policies and lists in force.
    pub fn protect(&mut self, table: &RoutingTable) -> Result<(), CaptureError> {
        let guarded = self.pod_guard.apply(table);
        if let Some(guard) = &mut self.guard {
            guard.apply(&table.guard)?;
        }
        guarded
    }

    /// Puts a table's limits in force. The guard is told of them once they are there.
    pub fn limit(&mut self, table: &RoutingTable) -> Result<(), CaptureError> {
        let limited = self.limits.apply(table);
        let any = self.limits.limits_gateways();
        let told = self.guard.as_mut().map_or(Ok(()), |guard| guard.set_limited(any));
        limited.and(told)
    }

    /// Follows these interfaces of pods, by index, and no others.
    pub fn follow_pods(&mut self, (ebpf, pins): (&mut Ebpf, &mut Pins), pods: &BTreeMap<u32, String>) {
        // Policy comes before limits, so that what it refuses takes nothing from them.
        self.pod_guard.follow((&mut *ebpf, &mut *pins), pods);
        self.limits.follow((ebpf, pins), pods);
    }

    /// Balances as a table says. What the packet programs cannot deliver now does not matter to sockets that need them not.
    pub fn balance(&mut self, table: &Arc<RoutingTable>) -> Result<(), CaptureError> {
        self.connect.as_mut().map_or(Ok(()), |balancer| balancer.apply(table))
    }

    /// Does what is due from time to time.
    pub fn look_again(&mut self) {
        if let Ok(balancer) = &mut self.connect {
            balancer.look_again();
        }
        self.limits.look_again();
        if let Some(Err(error)) = self.guard.as_mut().map(Guard::expire) {
            tracing::error!(%error, "pushed sources could not be forgotten; the kernel lets them pass in time");
        }
    }

    /// Pushes a source down to the guard.
    pub fn push_or_report(&mut self, push: Push) {
        if let Some(Err(error)) = self.guard.as_mut().map(|guard| guard.push(push)) {
            tracing::error!(%error, source = %push.source, "a source could not be pushed down to the guard");
        }
    }

    /// How balancing stands.
    pub fn connect_status(&self) -> ConnectStatus {
        self.connect.as_ref().map_or_else(Clone::clone, ConnectBalancer::status)
    }

    /// Why no events of sockets are told; `None`: they are.
    pub fn socket_events_off(&self) -> Option<String> {
        self.socket_events.as_ref().err().cloned()
    }

    /// How full the maps are that the agent writes; none of those that are off.
    pub fn map_use(&self) -> impl Iterator<Item = MapUse> {
        let fills = self.guard.as_ref().map(|guard| guard.status().maps).unwrap_or_default();
        let guarding = fills.into_iter().map(|Fill { map, entries, capacity, left_out }| MapUse {
            name: map,
            entries,
            capacity,
            left_out,
        });
        let balancing = self.connect.iter().flat_map(ConnectBalancer::map_use);
        let accelerating = self.acceleration.iter().map(Acceleration::map_use);
        guarding
            .chain(balancing)
            .chain(self.pod_guard.map_use())
            .chain(self.limits.map_use())
            .chain(accelerating)
    }

    /// How acceleration stands.
    pub fn acceleration_status(&self) -> AccelerationStatus {
        match &self.acceleration {
            Ok(acceleration) => acceleration.status(),
            Err(reason) => AccelerationStatus { off: Some(reason.clone()), ..AccelerationStatus::default() },
        }
    }

    /// Takes every program off, but what refuses on behalf of policies and outlives the agent: that is left, as answered.
    /// Connections that are accelerated are let be: the kernel keeps what they need as long as they last.
    pub fn detach_all(&mut self, pins: &Pins) -> Option<Left> {
        self.acceleration = Err("the agent is stopping".to_owned());
        let left = self.pod_guard.end(pins);
        self.limits.detach_all();
        self.socket_events = Err("the agent is stopping".to_owned());
        if let Some(guard) = &mut self.guard {
            guard.detach_all();
        }
        self.connect = Err(ConnectStatus::default());
        left
    }
}

/// Attaches the programs of balancing where it is wanted. A directory that was named must be right; a kernel that refuses
/// leaves the sockets to the packet programs, and is told of in the status.
fn start_balancing(
    settings: &CaptureSettings,
    programs: &mut Programs,
) -> Result<Result<ConnectBalancer, ConnectStatus>, CaptureError> {
    let Some(choice) = &settings.cgroup else { return Ok(Err(ConnectStatus::default())) };
    let attached = match (choice.find(), choice) {
        (Err(error), CgroupChoice::Path(_)) => return Err(error),
        (Err(error), CgroupChoice::Auto) => Err(error),
        (Ok(cgroup), _) => ConnectBalancer::attach(programs.ebpf(), &cgroup),
    };
    Ok(attached.map_err(|error| {
        tracing::error!(%error, "sockets are not balanced at connect(); the packet programs take its place");
        ConnectStatus { unavailable: Some(error.to_string()), ..ConnectStatus::default() }
    }))
}

/// Turns acceleration on; a failure is its reason to stay off.
fn accelerate(ebpf: &mut Ebpf, cgroup: &Path, own_mark: u32) -> Result<Acceleration, String> {
    let cookie = acceleration::node_cookie().map_err(|error| error.to_string())?;
    let config = AccelerationConfig { node_cookie: cookie, own_mark, everyone: 0 };
    Acceleration::start(ebpf, cgroup, config).map_err(|error| error.to_string())
}
