//! What `sluice check` looks at: everything that capture will ask of the node, without changing it.

use std::fs;
use std::process::Command;

use serde::Serialize;

use super::acceleration::{AccelerationMode, TrialReport, self_test};
use super::connect::{self, CgroupChoice};
use super::features::{features, pinning};
use super::foreign;
use super::glob::Glob;
use super::guard::{Guard, GuardOptions};
use super::interfaces::{Desired, Hooked};
use super::limits::PodLimits;
use super::netlink::Netlink;
use super::plumbing::{Plumbing, has_ipv6};
use super::pod_guard::PodGuard;
use super::privilege::Privileges;
use super::programs::Programs;
use super::{Bpffs, CaptureError, CaptureSettings};

/// One thing looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it stands.
    pub outcome: Outcome,
    /// What was seen, or what to do about it.
    pub detail: String,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// Capture runs, with the drawback that the detail names.
    Warning,
    /// Capture can't run.
    Failed,
}

impl Check {
    fn new(name: &'static str, outcome: Outcome, detail: impl Into<String>) -> Self {
        Self { name, outcome, detail: detail.into() }
    }

    fn of<T>(name: &'static str, result: Result<T, impl ToString>, seen: impl FnOnce(T) -> String) -> Self {
        match result {
            Ok(value) => Self::new(name, Outcome::Ok, seen(value)),
            Err(error) => Self::new(name, Outcome::Failed, error.to_string()),
        }
    }
}

/// Looks at everything.
pub async fn checks(settings: &CaptureSettings) -> Vec<Check> {
    let mut checks = vec![
        kernel(),
        privileges(Privileges::own()),
        programs(settings),
        nft(),
        forwarding("ipv4/ip_forward", "IPv4 forwarding"),
    ];
    checks.push(if has_ipv6() {
        forwarding("ipv6/conf/all/forwarding", "IPv6 forwarding")
    } else {
        Check::new("IPv6", Outcome::Warning, "this node has none, or none on loopback: only IPv4 is captured")
    });
    checks.push(pinning(&settings.bpffs, settings.on_stop));
    checks.extend(features());
    checks.extend(settings.cgroup.as_ref().map(|choice| balancing(settings, choice)));
    checks.push(socket_events(settings));
    checks.push(acceleration(settings));
    match Netlink::open() {
        Ok((netlink, _)) => {
            checks.push(interfaces(settings, &netlink).await);
            if let Some(guard) = &settings.guard {
                checks.push(edge(guard, &netlink).await);
            }
            checks.push(others(settings, &netlink).await);
            checks.push(marks(settings, &netlink).await);
        }
        Err(error) => checks.push(Check::new("netlink", Outcome::Failed, error.to_string())),
    }
    checks
}

fn kernel() -> Check {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let attach = match aya::util::KernelVersion::current() {
        Ok(version) if version >= aya::util::KernelVersion::new(6, 6, 0) => "programs attach by tcx",
        Ok(version) if version >= aya::util::KernelVersion::new(6, 1, 0) => "programs attach by clsact",
        _ => {
            return Check::new(
                "kernel",
                Outcome::Warning,
                format!("{}: older than 6.1, not tested", release.trim()),
            );
        }
    };
    Check::new("kernel", Outcome::Ok, format!("{}: {attach}", release.trim()))
}

/// What the process may do, and what is done without where it may not.
fn privileges(held: Privileges) -> Check {
    let name = "privileges";
    let missing = held.missing();
    if !missing.is_empty() {
        let text = format!("{} missing; {}", missing.join(" and "), CaptureError::Privilege);
        return Check::new(name, Outcome::Failed, text);
    }
    if !held.sees_everything() {
        let text = "no CAP_SYS_ADMIN: no acceleration, open connections that policy comes to refuse are not reset in \
                    their pods, and programs of others are not seen";
        return Check::new(name, Outcome::Warning, text);
    }
    Check::new(name, Outcome::Ok, "all that the agent has a use for")
}

/// Programs of others where ours are, or would be.
async fn others(settings: &CaptureSettings, netlink: &Netlink) -> Check {
    let name = "others' programs";
    if !Privileges::own().sees_everything() {
        return Check::new(name, Outcome::Warning, "cannot be looked for without CAP_SYS_ADMIN");
    }
    let interfaces = match netlink.snapshot().await {
        Ok(snapshot) => snapshot.desired(settings),
        Err(error) => return Check::new(name, Outcome::Warning, format!("could not be looked for: {error}")),
    };
    let interfaces: Vec<_> =
        interfaces.into_iter().map(|(index, (interface, _))| (index, interface)).collect();
    let cgroup = settings.cgroup.as_ref().and_then(|choice| choice.find().ok());
    let seen = foreign::look(netlink.handle(), &interfaces, cgroup.as_deref()).await;
    let found = foreign::not_an_agents(&seen, &foreign::names());
    if found.is_empty() {
        return Check::new(name, Outcome::Ok, "none on the hooks that ours use");
    }
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    Check::new(name, Outcome::Warning, found.join("; "))
}

fn programs(settings: &CaptureSettings) -> Check {
    // On maps of its own: what an agent has pinned stays out of it.
    let settings = CaptureSettings { bpffs: Bpffs::Off, cgroup: None, ..settings.clone() };
    let loaded = Programs::load(&settings, false).and_then(|mut programs| {
        let attach = programs.attach_kind();
        PodGuard::load(programs.ebpf_and_pins(), attach, &settings.node)?;
        PodLimits::load(programs.ebpf(), attach, settings.guard.is_some())?;
        settings.guard.clone().map(|options| Guard::load(programs.ebpf(), options)).transpose()
    });
    Check::of("programs", loaded, |_| "the kernel accepts every program".to_owned())
}

/// Whether the kernel takes the program that tells of sockets.
fn socket_events(settings: &CaptureSettings) -> Check {
    let name = "socket events";
    if !settings.socket_events {
        return Check::new(name, Outcome::Ok, "off, as asked");
    }
    let less = |reason: String| {
        Check::new(
            name,
            Outcome::Warning,
            format!("off, only the agent's own connections are told: {reason}"),
        )
    };
    match settings.cgroup.as_ref().map(CgroupChoice::find) {
        None => return less("no --cgroup names the pods' cgroup v2 directory".to_owned()),
        Some(Err(error)) => return less(error.to_string()),
        Some(Ok(_)) => {}
    }
    let settings = CaptureSettings { bpffs: Bpffs::Off, ..settings.clone() };
    let loaded =
        Programs::load(&settings, false).and_then(|mut programs| super::socket_events::load(programs.ebpf()));
    match loaded {
        Ok(()) => Check::new(name, Outcome::Ok, "the kernel accepts the program"),
        Err(error) => less(error.to_string()),
    }
}

/// Runs the same self-test that the agent runs at its start.
fn acceleration(settings: &CaptureSettings) -> Check {
    let name = "acceleration";
    let off = |reason: String| {
        Check::new(name, Outcome::Warning, format!("off, same-node traffic uses TCP: {reason}"))
    };
    let (mode, choice) = match (settings.acceleration, &settings.cgroup) {
        (AccelerationMode::Off, _) => return Check::new(name, Outcome::Ok, "off, as asked"),
        (_, None) => return off("no --cgroup names the pods' cgroup v2 directory".to_owned()),
        (mode, Some(choice)) => (mode, choice),
    };
    if let Some(lack) = Privileges::own().missing_for_acceleration() {
        return off(lack);
    }
    let cgroup = match choice.find() {
        Ok(cgroup) => cgroup,
        Err(error) => return off(error.to_string()),
    };
    match self_test(&cgroup, mode) {
        Ok(reports) => {
            let fault = |report: &TrialReport| report.fault.as_ref().map_or("", |_| " (FAILS, done without)");
            let lines: Vec<_> =
                reports.iter().map(|report| format!("{}{}", report.name, fault(report))).collect();
            Check::new(name, Outcome::Ok, format!("the kernel passes: {}", lines.join(", ")))
        }
        Err(error) => off(error.to_string()),
    }
}

/// Balancing at `connect()`. Capture runs without it, but a directory that was named must be right.
fn balancing(settings: &CaptureSettings, choice: &CgroupChoice) -> Check {
    let found = choice.find();
    if let (Err(error), CgroupChoice::Path(_)) = (&found, choice) {
        return Check::new("balancing", Outcome::Failed, error.to_string());
    }
    let loaded = found.and_then(|cgroup| {
        connect::load(
            Programs::load(&CaptureSettings { bpffs: Bpffs::Off, ..settings.clone() }, false)?.ebpf(),
        )?;
        Ok(cgroup)
    });
    match loaded {
        Ok(cgroup) => {
            Check::new("balancing", Outcome::Ok, format!("sockets below {} at connect()", cgroup.display()))
        }
        Err(error) => {
            let text = format!("not at connect(), the packet programs take its place: {error}");
            Check::new("balancing", Outcome::Warning, text)
        }
    }
}

fn nft() -> Check {
    let version = Command::new("nft").arg("--version").output();
    Check::of("nft", version.map_err(|error| format!("{error}; install the nftables package")), |output| {
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    })
}

fn forwarding(key: &str, name: &'static str) -> Check {
    match fs::read_to_string(format!("/proc/sys/net/{key}")) {
        Ok(value) if value.trim() == "1" => Check::new(name, Outcome::Ok, "on"),
        Ok(_) => {
            let sysctl = key.replace('/', ".");
            Check::new(
                name,
                Outcome::Warning,
                format!("off: pods cannot reach other nodes; `sysctl -w net.{sysctl}=1`"),
            )
        }
        Err(error) => Check::new(name, Outcome::Warning, format!("unknown: {error}")),
    }
}

async fn interfaces(settings: &CaptureSettings, netlink: &Netlink) -> Check {
    let seen = async {
        let snapshot = netlink.snapshot().await?;
        snapshot.check_uplinks(settings)?;
        if let Some(guard) = &settings.guard {
            Guard::check_interfaces(guard, &snapshot)?;
        }
        Ok::<_, CaptureError>(snapshot.desired(settings))
    };
    match seen.await {
        Ok(desired) => hooks(desired, &settings.pod_interfaces),
        Err(error) => Check::new("interfaces", Outcome::Failed, error.to_string()),
    }
}

/// What would be hooked. No pod may have come yet; but a pattern that is wrong looks the same, and makes uplinks of pods.
fn hooks(desired: Desired, pods: &Glob) -> Check {
    let any = desired.values().any(|(_, hook)| *hook == Hooked::Pod);
    let names: Vec<String> = desired.into_values().map(|(name, hook)| format!("{name} ({hook:?})")).collect();
    let names = names.join(", ").to_lowercase();
    if any {
        return Check::new("interfaces", Outcome::Ok, names);
    }
    let text = format!("none matches --pod-interfaces {pods}, so no pod is captured now: {names}");
    Check::new("interfaces", Outcome::Warning, text)
}

/// Whether the guard finds its place free.
async fn edge(guard: &GuardOptions, netlink: &Netlink) -> Check {
    for interface in &guard.interfaces {
        let holder = foreign::xdp_holder(netlink.handle(), interface).await;
        if let Some(holder) = holder.filter(|holder| !foreign::is_an_agents(&holder.name)) {
            let text = format!("{interface}: {}", foreign::held_by(interface, &holder));
            return Check::new("guard", Outcome::Failed, text);
        }
    }
    let there = |name: &&str| nix::net::if_::if_nametoindex(*name).is_ok();
    let names = guard.interfaces.iter().map(String::as_str).filter(there).collect::<Vec<_>>().join(", ");
    if names.is_empty() {
        return Check::new("guard", Outcome::Failed, "none of its interfaces is there".to_owned());
    }
    Check::new("guard", Outcome::Ok, format!("nobody else has the XDP hook of {names}"))
}

async fn marks(settings: &CaptureSettings, netlink: &Netlink) -> Check {
    let plumbing = Plumbing { marks: settings.marks, ipv6: has_ipv6() };
    match plumbing.clash(netlink.handle()).await {
        Ok(None) => Check::new("marks", Outcome::Ok, "no other rule uses ours"),
        Ok(Some(rule)) => Check::new("marks", Outcome::Failed, CaptureError::MarkTaken(rule).to_string()),
        Err(error) => Check::new("marks", Outcome::Failed, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(cgroup: Option<CgroupChoice>) -> CaptureSettings {
        CaptureSettings { cgroup, ..crate::capture::interfaces::tests::settings("veth*", &[]) }
    }

    #[test]
    fn a_cgroup_that_is_none_is_refused_as_the_agent_refuses_it() {
        let choice = CgroupChoice::Path("/nonexistent".into());
        let settings = settings(Some(choice.clone()));
        let balanced = balancing(&settings, &choice);
        assert_eq!(balanced.outcome, Outcome::Failed, "{balanced:?}");
        assert!(balanced.detail.contains("/nonexistent"), "{balanced:?}");
        let told = socket_events(&settings);
        assert_eq!(told.outcome, Outcome::Warning, "{told:?}");
        assert!(told.detail.contains("/nonexistent"), "{told:?}");
    }

    #[test]
    fn a_pattern_that_fits_no_interface_is_told() {
        let uplink = (1, ("eth0".to_owned(), Hooked::Uplink));
        let pod = (2, ("veth1".to_owned(), Hooked::Pod));
        let glob: Glob = "veth*".parse().unwrap();
        let none = hooks(Desired::from([uplink.clone()]), &glob);
        assert_eq!(none.outcome, Outcome::Warning);
        assert!(none.detail.contains("veth*") && none.detail.contains("eth0 (uplink)"), "{none:?}");
        assert_eq!(hooks(Desired::from([uplink, pod]), &glob).outcome, Outcome::Ok);
    }
}
