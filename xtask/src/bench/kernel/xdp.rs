//! The XDP guard against a program that drops everything: on a veth in native mode, where each packet costs the sender, the
//! driver and the program; and alone, as the kernel's test run calls it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Instant;

use agent::capture::{Guard, GuardOptions, OBJECT};
use agent::compile::{GuardPolicy, GuardRule};
use anyhow::{Context, Result, ensure};
use aya::programs::{TestRun, TestRunOptions, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use ipnet::IpNet;
use lab::ethernet::{Wire, udp};
use lab::netns::Netns;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::Measure;

/// Denied addresses, all of them sources of the traffic.
const DENIED: usize = 100_000;
/// Packets of one measurement: each source several times.
const REPEATS: usize = 5;
/// Calls of one measurement without a driver.
const CALLS: u32 = 1_000_000;
const BARE: &str = "xdp_bare_drop";
const GUARD: &str = "xdp_guard";
const OUTSIDE: &str = "out";
const INSIDE: &str = "in";
/// What every frame carries.
const PAYLOAD: &[u8] = b"eighteen bytes long";

/// Both programs, and the guard with its list.
struct Programs {
    ebpf: Ebpf,
    guard: Guard,
}

impl Programs {
    fn load(sources: &[IpAddr]) -> Result<Self> {
        let options = GuardOptions {
            interfaces: Vec::new(),
            entries: GuardOptions::DEFAULT_ENTRIES,
            sources: GuardOptions::DEFAULT_SOURCES,
        };
        let mut loader = EbpfLoader::new();
        Guard::size_maps(&mut loader, Some(&options));
        let mut ebpf = loader.load(OBJECT).context("loading the kernel programs")?;
        let mut guard = Guard::load(&mut ebpf, options)?;
        let deny = sources.iter().map(|source| IpNet::from(*source)).collect();
        let rules = vec![GuardRule { name: "bench".into(), deny }];
        guard.apply(&Arc::new(GuardPolicy { rules, ..GuardPolicy::default() }))?;
        let mut programs = Self { ebpf, guard };
        programs.program(BARE)?.load()?;
        Ok(programs)
    }

    fn program(&mut self, name: &str) -> Result<&mut Xdp> {
        Ok(self.ebpf.program_mut(name).with_context(|| format!("the object has no {name}"))?.try_into()?)
    }

    /// Frames that the guard has denied.
    fn denied(&self) -> u64 {
        let counts = self.guard.counters().by_reason();
        counts.iter().filter(|(reason, _)| reason.as_str() == "denied").map(|(_, count)| count).sum()
    }
}

/// A veth between two namespaces of its own, and the traffic over it.
struct OnVeth {
    programs: Programs,
    wire: Wire,
    frames: Vec<Vec<u8>>,
    inside: Netns,
    outside: Netns,
}

impl Drop for OnVeth {
    fn drop(&mut self) {
        for netns in [&self.outside, &self.inside] {
            if let Err(error) = netns.remove() {
                eprintln!("{} is left behind: {error:#}", netns.name());
            }
        }
    }
}

/// IPv4.
pub(super) fn veth_v4() -> Result<Box<dyn Measure>> {
    on_veth(|n| IpAddr::V4(Ipv4Addr::from_bits(scattered(n))), Ipv4Addr::new(10, 88, 0, 1).into())
}

/// IPv6.
pub(super) fn veth_v6() -> Result<Box<dyn Measure>> {
    let address = |n| {
        let bits = u128::from(scattered(n)) << 80 | u128::from(scattered(n.wrapping_add(7))) << 32;
        IpAddr::V6(Ipv6Addr::from_bits(0x2000 << 112 | bits | 1))
    };
    on_veth(address, Ipv6Addr::new(0xfd00, 0x88, 0, 0, 0, 0, 0, 1).into())
}

/// Addresses that share no more than chance wants, below the class of multicast.
fn scattered(n: u32) -> u32 {
    n.wrapping_mul(0x9e37_79b1) % 0xdfff_ffff + 1
}

/// So many different sources.
fn sources(address: impl Fn(u32) -> IpAddr) -> Vec<IpAddr> {
    let mut seen = BTreeSet::new();
    (1..).map(address).filter(|address| seen.insert(*address)).take(DENIED).collect()
}

fn on_veth(address: impl Fn(u32) -> IpAddr, destination: IpAddr) -> Result<Box<dyn Measure>> {
    // Sender, driver and program share one processor, so that the time is the sum of their work.
    let mut one = CpuSet::new();
    one.set(0).context("a set of processors")?;
    sched_setaffinity(Pid::from_raw(0), &one).context("staying on one processor")?;
    let sources = sources(address);
    let programs = Programs::load(&sources)?;
    let name = |side| Netns::named(format!("sluice_bench_{}_{side}", std::process::id()));
    let (outside, inside) = (name(OUTSIDE), name(INSIDE));
    outside.create()?;
    inside.create()?;
    for netns in [&outside, &inside] {
        // Nobody else shall speak on the link.
        netns.sysctls(&[("ipv6/conf/default/disable_ipv6", "1")])?;
    }
    outside.ip_batch(&format!(
        "link add {OUTSIDE} type veth peer name {INSIDE} netns {}\nlink set {OUTSIDE} up\n",
        inside.name()
    ))?;
    inside.ip_batch(&format!("link set {INSIDE} up\n"))?;
    let wire = outside.enter(|| Wire::sender(OUTSIDE))??;
    let frames = sources.iter().map(|source| udp((*source, destination), PAYLOAD)).collect();
    Ok(Box::new(OnVeth { programs, wire, frames, inside, outside }))
}

impl OnVeth {
    /// Nanoseconds per packet with a program in place.
    fn send(&mut self, program: &'static str) -> Result<f64> {
        let Self { programs, inside, .. } = self;
        let attached = inside.enter(|| {
            programs.program(program)?.attach(INSIDE, XdpMode::Driver).map_err(anyhow::Error::from)
        });
        let link = attached?.context("native XDP on a veth")?;
        let since = Instant::now();
        for _ in 0..REPEATS {
            self.wire.send_all(&self.frames)?;
        }
        let elapsed = since.elapsed();
        self.programs.program(program)?.detach(link)?;
        let sent = u32::try_from(self.frames.len() * REPEATS).context("a count of packets")?;
        Ok(elapsed.as_secs_f64() * 1e9 / f64::from(sent))
    }
}

impl Measure for OnVeth {
    fn baseline(&mut self) -> Result<f64> {
        self.send(BARE)
    }

    fn subject(&mut self) -> Result<f64> {
        let before = self.programs.denied();
        let figure = self.send(GUARD)?;
        let denied = usize::try_from(self.programs.denied() - before)?;
        ensure!(denied == self.frames.len() * REPEATS, "only {denied} frames reached the guard in time");
        Ok(figure)
    }
}

/// The programs without a driver.
struct Alone {
    programs: Programs,
    frame: Vec<u8>,
}

/// The programs as the kernel's test run calls them, on one frame.
pub(super) fn alone() -> Result<Box<dyn Measure>> {
    let sources = sources(|n| IpAddr::V4(Ipv4Addr::from_bits(scattered(n))));
    let first = *sources.first().context("there are sources")?;
    let frame = udp((first, Ipv4Addr::new(10, 88, 0, 1).into()), PAYLOAD);
    Ok(Box::new(Alone { programs: Programs::load(&sources)?, frame }))
}

impl Alone {
    fn call(&mut self, program: &str) -> Result<f64> {
        let frame = self.frame.clone();
        let options = TestRunOptions { data_in: Some(&frame), repeat: CALLS, ..TestRunOptions::default() };
        let ran = self.programs.program(program)?.test_run(options)?;
        ensure!(ran.return_value == 1, "{program} answered {}, not XDP_DROP", ran.return_value);
        // The kernel tells the time of one call in whole nanoseconds.
        Ok(ran.duration.as_secs_f64() * 1e9)
    }
}

impl Measure for Alone {
    fn baseline(&mut self) -> Result<f64> {
        self.call(BARE)
    }

    fn subject(&mut self) -> Result<f64> {
        self.call(GUARD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_scattered_and_different() {
        let sources = sources(|n| IpAddr::V4(Ipv4Addr::from_bits(scattered(n))));
        assert_eq!(sources.iter().collect::<BTreeSet<_>>().len(), DENIED);
        assert!(sources.iter().all(|source| !source.is_multicast() && !source.is_unspecified()));
    }
}
