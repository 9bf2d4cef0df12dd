//! The limits of pods on crafted frames through the kernel's test run: for each the program must say and count what the shared
//! function says of the same bytes on the host. And what becomes of sources that find no room.

use std::net::Ipv4Addr;

use agent::capture::OBJECT;
use agent_common::capture::CaptureConfig;
use agent_common::limit::{
    Apart, BY_IDENTITY, COUNTS_PACKETS, HAS_EXEMPT, KernelLimit, LimitEnd, LimitKey, Outcome, SHADOW, judge,
};
use agent_common::policy::{PacketKind, PolicyAddress, policy_address, read};
use anyhow::{Context, Result, ensure};
use aya::maps::HashMap as KernelMap;
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use lab::ethernet::{ETHERNET_LEN, patched, tagged, tcp, udp};
use lab::limit_host::{KernelCounts, LimitHost, address, limit, unless_refused};
use lab::random::Random;
use lab::unprivileged;

/// `TCX_NEXT` and `TC_ACT_SHOT`.
const NEXT: u32 = u32::MAX;
const DROP: u32 = 2;
const OWN_MARK: u32 = 0x1520;
const SYN: u8 = 2;
/// Buckets that the kernel has room for.
const ROOM: u32 = 4096;
/// Frames that are made of each seed.
const MUTATIONS: u64 = 20;

const SOURCES: [[&str; 4]; 2] = [
    ["10.1.0.1", "10.1.0.2", "10.2.0.1", "10.3.0.1"],
    ["fd00::1:1", "fd00::1:2", "fd00:0:0:2::1", "fd00:0:0:3::1"],
];
/// The pod of many limits, one of a single limit, and one of none.
const PODS: [[&str; 3]; 2] = [["10.9.0.1", "10.9.0.2", "10.9.0.3"], ["fd00::9:1", "fd00::9:2", "fd00::9:3"]];

fn end(pod: &str, protocol: u8) -> LimitEnd {
    let PolicyAddress { family, address } = policy_address(address(pod));
    LimitEnd { address, port_be: [0, 9], family, protocol }
}

/// What the maps hold, on the host.
fn host() -> LimitHost {
    let mut host = LimitHost::default();
    for family in 0..2 {
        let [many, one, _] = PODS[family];
        let together = Apart::together();
        let all = [
            limit(0, 6, 0),
            limit(1, 60, COUNTS_PACKETS | HAS_EXEMPT),
            KernelLimit { apart: together, ..limit(2, 8, SHADOW) },
            KernelLimit { apart: together, ..limit(3, 30, BY_IDENTITY | COUNTS_PACKETS) },
        ];
        host.insert(end(many, 6), &all);
        host.insert(end(many, 17), &all[1..2]);
        host.insert(end(one, 6), &[limit(4, 9, 0)]);
        for source in [0, 1] {
            host.named.insert(policy_address(address(SOURCES[family][source])), 77);
        }
        host.exempt(address(SOURCES[family][3]));
    }
    host
}

/// The limit that refuses a frame.
fn says(host: &LimitHost, frame: &[u8]) -> Option<u32> {
    let read = read(frame)?;
    let PolicyAddress { family, address } = read.destination;
    let end = LimitEnd { address, port_be: read.destination_port, family, protocol: read.protocol };
    judge(host.ends.get(&end)?, &read.source, read.kind == PacketKind::Opening, host)
}

/// The program, on maps that hold what the host's do.
struct Kernel {
    ebpf: Ebpf,
    counts: KernelCounts,
}

impl Kernel {
    fn load(host: &LimitHost) -> Result<Self> {
        let config = CaptureConfig { deliver_mark: 0x1510, own_mark: OWN_MARK, workers: 0, padding: 0 };
        let mut loader = EbpfLoader::new();
        loader.override_global("CONFIG", &config, true).map_max_entries("LIMIT_BUCKETS", ROOM);
        let mut ebpf = loader.load(OBJECT)?;
        let program: &mut SchedClassifier =
            ebpf.program_mut("limit_pod").context("no program")?.try_into()?;
        program.load().context("loading limit_pod")?;
        host.write(&mut ebpf, "LIMIT_ENDS")?;
        let mut named: KernelMap<_, PolicyAddress, u64> =
            KernelMap::try_from(ebpf.map_mut("LIMIT_NAMED").context("no names")?)?;
        host.named.iter().try_for_each(|(pod, identity)| named.insert(pod, identity, 0))?;
        let counts = KernelCounts::take(&mut ebpf)?;
        Ok(Self { ebpf, counts })
    }

    /// What the program answers to a frame; `None` where the test run itself refuses it. `by`: the interface by which it comes.
    fn run(&self, frame: &[u8], mark: u32) -> Result<Option<u32>> {
        // `struct __sk_buff`: the mark is its third word, the index of the interface its tenth.
        let mut context = [0_u8; 48];
        context[8..12].copy_from_slice(&mark.to_ne_bytes());
        context[36..40].copy_from_slice(&2_u32.to_ne_bytes());
        let options =
            TestRunOptions { data_in: Some(frame), ctx_in: Some(&context), ..TestRunOptions::default() };
        let program: &SchedClassifier = self.ebpf.program("limit_pod").context("no program")?.try_into()?;
        Ok(unless_refused(program.test_run(options))?.map(|ran| ran.return_value))
    }

    fn agrees(&self, host: &LimitHost, frame: &[u8]) -> Result<bool> {
        let Some(verdict) = self.run(frame, 0)? else { return Ok(false) };
        let expected = says(host, frame);
        let wanted = if expected.is_some() { DROP } else { NEXT };
        ensure!(verdict == wanted, "the program says {verdict:#x}, the function {expected:?}: {frame:02x?}");
        Ok(true)
    }

    fn buckets(&self) -> Result<Vec<LimitKey>> {
        let map: KernelMap<_, LimitKey, u64> =
            KernelMap::try_from(self.ebpf.map("LIMIT_BUCKETS").context("no buckets")?)?;
        Ok(map.keys().collect::<Result<_, _>>()?)
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for family in 0..2 {
        for source in SOURCES[family] {
            for pod in PODS[family] {
                let ends = (address(source), address(pod));
                let syn = tcp(ends, SYN);
                let port = ETHERNET_LEN + if family == 0 { 20 } else { 40 } + 2;
                seeds.extend([SYN, 18, 16].map(|flags| tcp(ends, flags)));
                seeds.push(patched(&syn, &[(port + 1, 80)]));
                seeds.push(udp(ends, b"hello"));
                seeds.push(tagged(&syn, &[0x8100]));
            }
        }
    }
    seeds
}

#[test]
fn the_limits_say_what_the_function_says() -> Result<()> {
    if unprivileged("the_limits_say_what_the_function_says") {
        return Ok(());
    }
    let host = host();
    let kernel = Kernel::load(&host)?;
    let (mut judged, mut unjudged) = (0, 0);
    for round in 0..4_u64 {
        for (index, seed) in seeds().iter().enumerate() {
            ensure!(kernel.agrees(&host, seed)?, "the test run refuses seed {index}");
            for mutation in 1..=MUTATIONS {
                let mut random = Random(
                    (mutation + 1000 * u64::try_from(index)? + round * 1_000_000)
                        .wrapping_mul(0x9e37_79b9_7f4a_7c15),
                );
                let mut frame = seed.clone();
                random.disturb(&mut frame)?;
                let agreed = kernel.agrees(&host, &frame);
                let agreed = agreed.with_context(|| format!("seed {index}, mutation {mutation}"))?;
                if agreed { judged += 1 } else { unjudged += 1 }
            }
        }
    }
    ensure!(judged > unjudged * 20, "{judged} judged, {unjudged} refused by the test run");
    host.agrees(&kernel.counts, 5)?;
    let made: u64 = (0..5).map(|slot| kernel.counts.of(slot).map_or(0, |counts| counts.made)).sum();
    ensure!(made == u64::try_from(host.buckets.borrow().len())?, "{made} buckets were made");
    // The agent's own packets are nobody's.
    let refused = tcp((address(SOURCES[0][2]), address(PODS[0][1])), SYN);
    let spend = (0..10).map(|_| kernel.run(&refused, 0)).collect::<Result<Vec<_>>>()?;
    ensure!(spend.last() == Some(&Some(DROP)), "{spend:?}");
    ensure!(kernel.run(&refused, OWN_MARK)? == Some(NEXT), "the agent is held to a limit");
    println!("{judged} frames judged, {unjudged} refused by the test run");
    Ok(())
}

/// Ten times as many sources as there is room for: each is let through, whoever goes on sending stays known, and those that were
/// silent longest begin anew.
#[test]
fn a_full_map_forgets_who_was_silent_longest() -> Result<()> {
    if unprivileged("a_full_map_forgets_who_was_silent_longest") {
        return Ok(());
    }
    let mut host = host();
    let single = KernelLimit { apart: Apart::by_prefix(32, 64), ..limit(4, 1, 0) };
    host.ends.values_mut().for_each(|set| set.limits[0] = single);
    let kernel = Kernel::load(&host)?;
    let pod = address(PODS[0][1]);
    let syn = |source: Ipv4Addr| tcp((source.into(), pod), SYN);
    let (busy, first) = (Ipv4Addr::new(10, 1, 0, 1), Ipv4Addr::new(172, 16, 0, 0));
    ensure!(kernel.run(&syn(busy), 0)? == Some(NEXT), "the first of a source");
    let (mut refused, mut asked) = (0, 0);
    for number in 0..ROOM * 10 {
        let source = Ipv4Addr::from(u32::from(first) + number);
        ensure!(kernel.run(&syn(source), 0)? == Some(NEXT), "{source} is new");
        if number % 8 == 0 {
            asked += 1;
            refused += usize::from(kernel.run(&syn(busy), 0)? == Some(DROP));
        }
    }
    let kept = kernel.buckets()?.len();
    println!("{kept} of {} sources kept, {refused} of {asked} of the busy one refused", ROOM * 10);
    ensure!(kept <= ROOM as usize && kept > ROOM as usize / 4, "{kept} of {ROOM} kept");
    ensure!(refused * 10 >= asked * 9, "whoever goes on sending is forgotten: {refused} of {asked}");
    ensure!(kernel.run(&syn(first), 0)? == Some(NEXT), "the first was silent longest");
    let counts = kernel.counts.of(4)?;
    ensure!(counts.by_outcome[Outcome::Uncounted as usize] == 0, "{counts:?}");
    ensure!(counts.made > u64::from(ROOM) * 10, "{counts:?}");
    Ok(())
}
