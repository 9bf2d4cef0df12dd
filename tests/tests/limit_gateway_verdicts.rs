//! The limits of Gateways on crafted frames through the kernel's test run of the guard: for each it must say and count what the
//! shared functions say of the same bytes on the host.

use std::collections::HashSet;
use std::net::IpAddr;

use agent::capture::{Guard, GuardOptions, OBJECT};
use agent_common::capture::AddressKey;
use agent_common::guard::{GatewayMaps, Reason, inspect};
use agent_common::limit::{
    Apart, COUNTS_PACKETS, HAS_EXEMPT, KernelLimit, LimitEnd, LimitSet, SHADOW, judge,
};
use agent_common::policy::policy_address;
use anyhow::{Context, Result, ensure};
use aya::maps::HashMap as KernelMap;
use aya::programs::{TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use lab::ethernet::{datagram, patched, tagged, tcp, udp};
use lab::limit_host::{KernelCounts, LimitHost, address, limit, unless_refused};
use lab::random::Random;
use lab::unprivileged;

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const SYN: u8 = 2;
const ACK: u8 = 16;
/// Frames that are made of each seed.
const MUTATIONS: u64 = 30;

/// The last one is exempt.
const SOURCES: [[&str; 4]; 2] = [
    ["192.0.2.1", "192.0.2.2", "192.0.3.1", "192.0.4.1"],
    ["2001:db8::1", "2001:db8::2", "2001:db8:0:3::1", "2001:db8:0:4::1"],
];
/// An address with a listener of its own, two more of the node, of which one has a listener without limits, and somebody else's.
const TARGETS: [[&str; 4]; 2] = [
    ["198.51.100.1", "198.51.100.2", "198.51.100.3", "203.0.113.1"],
    ["2001:db8:1::1", "2001:db8:1::2", "2001:db8:1::3", "2001:db8:2::1"],
];

fn octets(text: &str) -> [u8; 16] {
    policy_address(address(text)).address
}

/// The port of all frames, at an address.
fn end(octets: [u8; 16], family: u8) -> LimitEnd {
    LimitEnd { address: octets, port_be: [0, 9], family, protocol: 6 }
}

/// What the maps hold, on the host.
#[derive(Default)]
struct Host {
    limits: LimitHost,
    own: HashSet<[u8; 16]>,
}

impl GatewayMaps for Host {
    type Limits = LimitSet;

    fn limits(&self, end: &LimitEnd) -> Option<LimitSet> {
        self.limits.ends.get(end).copied()
    }

    fn is_own(&self, address: &[u8; 16]) -> bool {
        self.own.contains(address)
    }
}

impl Host {
    fn new() -> Self {
        let mut host = Self::default();
        for (family, number) in [4, 6].into_iter().enumerate() {
            let together = KernelLimit { apart: Apart::together(), ..limit(2, 8, SHADOW) };
            let all = [limit(0, 6, 0), limit(1, 60, COUNTS_PACKETS | HAS_EXEMPT), together];
            let [own, other, apart, _] = TARGETS[family].map(octets);
            host.limits.insert(end(own, number), &all);
            host.limits.insert(end([0; 16], number), &[limit(3, 9, 0)]);
            host.limits.insert(end(apart, number), &[]);
            host.own.extend([own, other, apart]);
            host.limits.exempt(address(SOURCES[family][3]));
        }
        host
    }

    fn says(&self, frame: &[u8]) -> Reason {
        let seen = match inspect(frame) {
            Ok(seen) => seen,
            Err(reason) => return reason,
        };
        let set = seen.gateway_limits(self);
        let refused = set.and_then(|set| judge(&set, &seen.sender(), seen.sent.opens, &self.limits));
        if refused.is_some() { Reason::RateLimited } else { Reason::Passed }
    }
}

/// The program, on maps that hold what the host's do.
struct Kernel {
    ebpf: Ebpf,
    guard: Guard,
    counts: KernelCounts,
}

impl Kernel {
    fn load(host: &Host) -> Result<Self> {
        let options = GuardOptions { interfaces: Vec::new(), entries: 16, sources: 16 };
        let mut loader = EbpfLoader::new();
        Guard::size_maps(&mut loader, Some(&options));
        loader.map_max_entries("LIMIT_BUCKETS", 4096);
        let mut ebpf = loader.load(OBJECT).context("loading the object")?;
        let mut guard = Guard::load(&mut ebpf, options).context("loading the guard")?;
        guard.set_limited(true)?;
        host.limits.write(&mut ebpf, "LIMIT_GATEWAYS")?;
        let mut own: KernelMap<_, AddressKey, u32> =
            KernelMap::try_from(ebpf.map_mut("LOCAL_ADDRESSES").context("no addresses")?)?;
        host.own.iter().try_for_each(|address| own.insert(AddressKey { address: *address }, 1, 0))?;
        let counts = KernelCounts::take(&mut ebpf)?;
        Ok(Self { ebpf, guard, counts })
    }

    /// The verdict on a frame, and the reason that was counted; `None` where the test run itself refuses the frame.
    fn run(&self, frame: &[u8]) -> Result<Option<(u32, Reason)>> {
        let program: &Xdp = self.ebpf.program("xdp_guard").context("no program")?.try_into()?;
        let before = self.guard.counters().by_reason();
        let options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::default() };
        let Some(ran) = unless_refused(program.test_run(options))? else { return Ok(None) };
        let verdict = ran.return_value;
        let after = self.guard.counters().by_reason();
        let mut grown = before.iter().zip(&after).filter(|((_, was), (_, is))| is > was);
        let ((reason, _), _) = grown.next().context("nothing was counted")?;
        Ok(Some((verdict, *reason)))
    }

    /// Fails unless program and functions say the same. False where the test run refuses the frame.
    fn agrees(&self, host: &Host, frame: &[u8]) -> Result<bool> {
        let Some((verdict, reason)) = self.run(frame)? else { return Ok(false) };
        let expected = host.says(frame);
        ensure!(reason == expected, "the program says {reason:?}, the functions {expected:?}: {frame:02x?}");
        let action = if expected.drops() { XDP_DROP } else { XDP_PASS };
        ensure!(verdict == action, "{expected:?} ended in {verdict}");
        Ok(true)
    }
}

/// The first fragment of a segment that asks for a connection, and a later one.
fn fragments(ends: (IpAddr, IpAddr)) -> [Vec<u8>; 2] {
    let v4 = ends.0.is_ipv4();
    let start = if v4 { 34 } else { 54 };
    let segment = [&tcp(ends, SYN)[start..], &[0; 4]].concat();
    if v4 {
        let whole = datagram(ends, 6, &segment);
        return [patched(&whole, &[(20, 0x20)]), patched(&whole, &[(21, 3)])];
    }
    let part = |word: u8, more: u8| [&[6, 0, word, more, 0, 0, 0, 9][..], &segment].concat();
    [datagram(ends, 44, &part(0, 1)), datagram(ends, 44, &part(0, 0x18))]
}

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for family in 0..2 {
        for source in SOURCES[family] {
            for target in TARGETS[family] {
                let ends = (address(source), address(target));
                seeds.extend([SYN, SYN | ACK, ACK].map(|flags| tcp(ends, flags)));
                seeds.push(udp(ends, b"hello"));
                seeds.push(tagged(&tcp(ends, SYN), &[0x8100]));
                seeds.extend(fragments(ends));
            }
        }
    }
    seeds
}

#[test]
fn the_guard_says_of_gateways_what_the_functions_say() -> Result<()> {
    if unprivileged("the_guard_says_of_gateways_what_the_functions_say") {
        return Ok(());
    }
    let host = Host::new();
    let kernel = Kernel::load(&host)?;
    let (mut judged, mut unjudged) = (0, 0);
    for (index, seed) in seeds().iter().enumerate() {
        ensure!(kernel.agrees(&host, seed)?, "the test run refuses seed {index}");
        for mutation in 1..=MUTATIONS {
            let number = mutation + 1000 * u64::try_from(index)?;
            let mut random = Random(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let mut frame = seed.clone();
            random.disturb(&mut frame)?;
            let agreed = kernel.agrees(&host, &frame);
            let agreed = agreed.with_context(|| format!("seed {index}, mutation {mutation}"))?;
            if agreed { judged += 1 } else { unjudged += 1 }
        }
    }
    ensure!(judged > unjudged * 20, "{judged} judged, {unjudged} refused by the test run");
    host.limits.agrees(&kernel.counts, 4)
}

/// What is said above in numbers, in words: who is cut, who goes on, and what is none of the limits' business.
#[test]
fn a_source_beyond_the_limit_is_cut_and_nothing_else() -> Result<()> {
    if unprivileged("a_source_beyond_the_limit_is_cut_and_nothing_else") {
        return Ok(());
    }
    for family in 0..2 {
        let mut host = Host::new();
        let alone = KernelLimit { apart: Apart::by_prefix(32, 128), ..limit(0, 2, HAS_EXEMPT) };
        let key = KernelLimit { id: 8, ..alone };
        host.limits.ends.values_mut().filter(|set| set.limits[0].is_set()).for_each(|set| {
            *set = LimitSet::default();
            set.limits[0] = key;
        });
        let kernel = Kernel::load(&host)?;
        let [one, other, _, exempt] = SOURCES[family].map(address);
        let [own, any, apart, foreign] = TARGETS[family].map(address);
        let [first, later] = fragments((one, own));
        let syn = |source, target| tcp((source, target), SYN);
        let (cut, passes) = ((XDP_DROP, Reason::RateLimited), (XDP_PASS, Reason::Passed));
        for (what, frame, expected) in [
            ("the first", syn(one, own), passes),
            ("the second, at another address of the node", syn(one, any), passes),
            ("the third", syn(one, own), cut),
            ("the fourth", syn(one, any), cut),
            ("with a VLAN tag", tagged(&syn(one, own), &[0x8100]), cut),
            ("in fragments", first, cut),
            ("a later fragment", later, passes),
            ("of a connection that is there", tcp((one, own), ACK), passes),
            ("a datagram", udp((one, own), b"hello"), passes),
            ("another port", patched(&syn(one, own), &[(if family == 0 { 37 } else { 57 }, 80)]), passes),
            ("a listener of its own without limits", syn(one, apart), passes),
            ("what is sent on to others", syn(one, foreign), passes),
            ("another source", syn(other, own), passes),
            ("an exempt source", syn(exempt, own), passes),
            ("its second", syn(exempt, own), passes),
            ("its third", syn(exempt, own), passes),
        ] {
            let judged = kernel.run(&frame)?;
            ensure!(judged == Some(expected), "family {family}, {what}: {judged:?}");
        }
    }
    Ok(())
}
