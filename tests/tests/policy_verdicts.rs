//! The guard of pods on crafted frames through the kernel's test run: for each it must say what the shared functions say of
//! the same bytes on the host, and remember the same conversations.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use agent::capture::OBJECT;
use agent_common::capture::CaptureConfig;
use agent_common::policy::{
    Access, BEGUN_BY_PEER, BEGUN_BY_POD, BEGUN_UNSEEN, CLOSED, HIDDEN_SLOT, PROVEN, PacketKind,
    PolicyAddress, PolicyFlow, PolicyMaps, PolicyPacket, PolicyPod, PolicyRuleKey, PolicyRuleValue,
    PolicySourceKey, SOURCE_HEAD_BITS, TENTHS, UNSEEN_FOR, noted, noted_refused, policy_address, read,
    refuses,
};
use anyhow::{Context, Result, ensure};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap as KernelMap, PerCpuArray};
use aya::programs::{ProgramError, SchedClassifier, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use lab::ethernet::{ETHERNET_LEN, datagram, frame, patched, tagged, tcp, udp};
use lab::random::Random;
use lab::{unprivileged, wait_for};
use nix::time::{ClockId, clock_gettime};

/// `TCX_NEXT` and `TC_ACT_SHOT`.
const NEXT: u32 = u32::MAX;
const DROP: u32 = 2;
const OWN_MARK: u32 = 0x1520;
/// The interface at whose hook test runs take place.
const LO: u32 = 1;
/// Where what the rules below refuse is counted.
const SLOTS: [u32; 5] = [0, 1, 2, 3, HIDDEN_SLOT];
/// Frames that are made of each seed.
const MUTATIONS: u64 = 30;
const FLAGS_SYN: u8 = 2;
const FLAGS_SYN_ACK: u8 = 18;
const FLAGS_ACK: u8 = 16;

/// Who sends, and the pods: one that lets friends at port 9 alone, one that refuses one foe, one without room,
/// one of which the agent counts what enters it.
const FRIEND: [&str; 2] = ["10.1.0.1", "fd00::1:1"];
const FOE: [&str; 2] = ["10.2.0.1", "fd00::2:1"];
const STRICT: [&str; 2] = ["10.9.0.1", "fd00::9:1"];
const OPEN: [&str; 2] = ["10.9.0.2", "fd00::9:2"];
const SHUT: [&str; 2] = ["10.9.0.3", "fd00::9:3"];
const COUNTED: [&str; 2] = ["10.9.0.5", "fd00::9:5"];
const FREE: [&str; 2] = ["10.9.0.4", "fd00::9:4"];
const SIDE: u8 = 7;

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address of the table above")
}

/// What the maps hold, on the host.
#[derive(Default)]
struct Host {
    pods: HashMap<PolicyAddress, PolicyPod>,
    classes: HashMap<PolicyAddress, u32>,
    rules: HashMap<PolicyRuleKey, PolicyRuleValue>,
    flows: HashMap<PolicyFlow, u32>,
}

impl PolicyMaps for Host {
    fn pod(&self, address: &PolicyAddress) -> Option<PolicyPod> {
        self.pods.get(address).copied()
    }

    fn class(&self, key: &PolicySourceKey) -> u32 {
        // Another generation holds other classes.
        if key.side == SIDE { self.classes.get(&key.source).copied().unwrap_or(0) } else { 9 }
    }

    fn rule(&self, key: &PolicyRuleKey) -> Option<PolicyRuleValue> {
        self.rules.get(key).copied()
    }

    fn began(&self, flow: &PolicyFlow) -> bool {
        self.flows.get(flow) == Some(&BEGUN_BY_POD)
    }

    fn proves(&self, _: &PolicyAddress, _: &PolicyAddress) -> bool {
        false
    }
}

/// The time as the programs count it.
fn now() -> u32 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("the clock runs");
    let now = u64::try_from(Duration::from(now).as_nanos()).expect("the machine has not run for centuries");
    u32::try_from(now / TENTHS).expect("nor for a decade")
}

impl Host {
    fn new() -> Self {
        use Access::{Allowed, Counted, Denied, DeniedEverywhere, Watched};
        let mut host = Self::default();
        for family in 0..2 {
            for (pod, set, captured) in [(STRICT, 4, 0), (OPEN, 5, 0), (SHUT, CLOSED, 0), (COUNTED, 6, 1)] {
                // Proof is asked for, and a test run's frames come by no way that leads anywhere.
                let value = PolicyPod { set, side: SIDE, captured, proofs: 1, padding: 0, since: 0 };
                host.pods.insert(policy_address(address(pod[family])), value);
            }
            host.classes.insert(policy_address(address(FRIEND[family])), 1);
            host.classes.insert(policy_address(address(FOE[family])), 2);
            let foe = policy_address(address(FOE[family]));
            host.classes.insert(PolicyAddress { family: foe.family | PROVEN, ..foe }, 1);
        }
        for (set, class, port, access, slot) in [
            (4, 0, 0, DeniedEverywhere, 1),
            (4, 1, 9, Allowed, 0),
            (4, 1, 0, Denied, 2),
            (5, 0, 0, Allowed, 0),
            (5, 2, 0, DeniedEverywhere, 3),
            (6, 0, 0, Counted, 2),
            (6, 1, 0, Watched, 0),
        ] {
            let value = PolicyRuleValue { access: access as u32, slot };
            host.rules.insert(PolicyRuleKey { set, class, port }, value);
        }
        host
    }

    fn note(&mut self, pod: &PolicyAddress, flow: PolicyFlow) {
        if self.pods.contains_key(pod) {
            self.flows.entry(flow).or_insert(BEGUN_BY_PEER);
        }
    }

    /// What the guard says of a frame: the slot in which it is counted as refused.
    fn guard(&mut self, frame: &[u8]) -> Option<u32> {
        let packet: PolicyPacket = read(frame)?;
        let refused = refuses(&packet, LO, self);
        if refused.is_some()
            && let Some(pod) = self.pods.get(&packet.destination)
        {
            let flow = packet.flow_of_receiver(LO);
            let who = noted_refused(self.flows.get(&flow).copied(), &packet, pod, now);
            who.map(|who| self.flows.insert(flow, who));
        }
        if refused.is_none() && packet.kind == PacketKind::Datagram {
            self.note(&packet.destination, packet.flow_of_receiver(LO));
        }
        refused
    }

    fn watch(&mut self, frame: &[u8]) {
        if let Some(packet) = read(frame)
            && let Some(flow) = packet.flow_of_sender(LO)
        {
            let Some(pod) = self.pods.get(&packet.source) else { return };
            let who = noted(self.flows.get(&flow).copied(), &packet, pod, now);
            who.map(|who| self.flows.insert(flow, who));
        }
    }
}

/// The programs, on maps that hold what the host's do.
struct Kernel {
    ebpf: Ebpf,
    drops: PerCpuArray<aya::maps::MapData, u64>,
}

impl Kernel {
    fn load(host: &Host) -> Result<Self> {
        let config = CaptureConfig { deliver_mark: 0x1510, own_mark: OWN_MARK, workers: 0, padding: 0 };
        let mut ebpf = EbpfLoader::new().override_global("CONFIG", &config, true).load(OBJECT)?;
        for name in ["guard_pod", "watch_pod"] {
            let program: &mut SchedClassifier = ebpf.program_mut(name).context(name)?.try_into()?;
            program.load().with_context(|| format!("loading {name}"))?;
        }
        let mut pods: KernelMap<_, PolicyAddress, PolicyPod> =
            KernelMap::try_from(ebpf.map_mut("POLICY_PODS").context("no pods")?)?;
        host.pods.iter().try_for_each(|(pod, value)| pods.insert(pod, value, 0))?;
        let mut sources: LpmTrie<_, PolicySourceKey, u32> =
            LpmTrie::try_from(ebpf.map_mut("POLICY_SOURCES").context("no sources")?)?;
        for (source, class) in &host.classes {
            let bits = SOURCE_HEAD_BITS + if source.family & !PROVEN == 4 { 32 } else { 128 };
            let key = |side| Key::new(bits, PolicySourceKey { side, source: *source });
            sources.insert(&key(SIDE), class, 0)?;
            sources.insert(&key(SIDE + 1), 9, 0)?;
        }
        let mut rules: KernelMap<_, PolicyRuleKey, PolicyRuleValue> =
            KernelMap::try_from(ebpf.map_mut("POLICY_RULES").context("no rules")?)?;
        host.rules.iter().try_for_each(|(key, value)| rules.insert(key, value, 0))?;
        let drops = PerCpuArray::try_from(ebpf.take_map("POLICY_DROPS").context("no counts")?)?;
        Ok(Self { ebpf, drops })
    }

    /// What a program answers to a frame; `None` where the test run itself refuses it. Frames come by an interface, unless
    /// `by` is 0: then the node's own socket sends them.
    fn run(&self, name: &str, frame: &[u8], (by, mark): (u32, u32)) -> Result<Option<u32>> {
        // `struct __sk_buff`: the mark is its third word, the index of the interface its tenth.
        let mut context = [0_u8; 48];
        context[8..12].copy_from_slice(&mark.to_ne_bytes());
        context[36..40].copy_from_slice(&by.to_ne_bytes());
        let options =
            TestRunOptions { data_in: Some(frame), ctx_in: Some(&context), ..TestRunOptions::default() };
        let program: &SchedClassifier = self.ebpf.program(name).context("no program")?.try_into()?;
        match program.test_run(options) {
            Err(ProgramError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EINVAL) => {
                Ok(None)
            }
            result => Ok(Some(result?.return_value)),
        }
    }

    fn counted(&self, slot: u32) -> Result<u64> {
        Ok(self.drops.get(&slot, 0)?.iter().sum())
    }

    /// The guard says what the host says, and counts it where the host would. False where the test run refuses the frame.
    fn agrees(&self, host: &mut Host, frame: &[u8]) -> Result<bool> {
        let counts =
            |kernel: &Self| SLOTS.into_iter().map(|slot| kernel.counted(slot)).collect::<Result<Vec<_>>>();
        let before = counts(self)?;
        let Some(verdict) = self.run("guard_pod", frame, (2, 0))? else { return Ok(false) };
        let grown: Vec<u32> = SLOTS
            .into_iter()
            .zip(before.iter().zip(counts(self)?))
            .filter(|(_, (was, is))| *is > **was)
            .map(|(at, _)| at)
            .collect();
        let expected = host.guard(frame);
        let wanted = if expected.is_some() { DROP } else { NEXT };
        ensure!(verdict == wanted, "the program says {verdict:#x}, the function {expected:?}: {frame:02x?}");
        ensure!(grown == expected.into_iter().collect::<Vec<_>>(), "counted at {grown:?}, not {expected:?}");
        Ok(true)
    }
}

/// Every combination of a sender, a pod and a kind of packet.
fn seeds() -> Vec<Vec<u8>> {
    let extension = |next: u8, rest: &[u8]| [&[next, 0, 0, 0, 0, 0, 0, 0], rest].concat();
    let mut seeds = vec![frame(0x0806, &[0; 28])];
    for family in 0..2 {
        for source in [FRIEND, FOE, FREE] {
            for pod in [STRICT, OPEN, SHUT, COUNTED, FREE] {
                let ends = (address(source[family]), address(pod[family]));
                let syn = tcp(ends, FLAGS_SYN);
                let port = ETHERNET_LEN + if family == 0 { 20 } else { 40 } + 2;
                seeds.extend([FLAGS_SYN, FLAGS_SYN_ACK, FLAGS_ACK].map(|flags| tcp(ends, flags)));
                // Another port, and one that a pod's kernel would take for itself.
                seeds.push(patched(&syn, &[(port, 0), (port + 1, 80)]));
                seeds.push(patched(&tcp(ends, FLAGS_ACK), &[(port, 0x9c)]));
                seeds.push(udp(ends, b"hello"));
                seeds.push(tagged(&syn, &[0x8100]));
                let (echo, segment) = (if family == 0 { 1 } else { 58 }, &syn[port - 2..]);
                seeds.push(datagram(ends, echo, &[if family == 0 { 8 } else { 128 }, 0, 0, 0]));
                seeds.push(datagram(ends, 132, &[0; 12]));
                if family == 0 {
                    let options = patched(&syn, &[(14, 0x47), (17, 48)]);
                    seeds.push([&options[..34], &[1; 8], &options[34..]].concat());
                    seeds.push(patched(&syn, &[(20, 0x20)]));
                    seeds.push(patched(&udp(ends, &[0; 8]), &[(21, 0x20)]));
                } else {
                    seeds.push(datagram(ends, 0, &extension(60, &extension(43, &extension(6, segment)))));
                    seeds.push(datagram(
                        ends,
                        60,
                        &(0..7).fold(segment.to_vec(), |inner, _| extension(60, &inner)),
                    ));
                    seeds.push(datagram(ends, 44, &[17, 0, 0, 8, 0, 0, 0, 1, 1, 2, 3]));
                    seeds.push(datagram(ends, 44, &[&[6, 0, 0, 1, 0, 0, 0, 1], segment].concat()));
                    seeds.push(datagram(
                        ends,
                        51,
                        &[&[6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], segment].concat(),
                    ));
                }
            }
        }
    }
    seeds
}

#[test]
fn the_guard_says_what_the_functions_say() -> Result<()> {
    if unprivileged("the_guard_says_what_the_functions_say") {
        return Ok(());
    }
    let mut host = Host::new();
    let kernel = Kernel::load(&host)?;
    let (mut judged, mut refused, mut slots) = (0, 0, HashSet::new());
    for (index, seed) in seeds().iter().enumerate() {
        ensure!(kernel.agrees(&mut host, seed)?, "the test run refuses seed {index}");
        slots.extend(host.guard(seed));
        // The test run refuses frames whose IP header is cut off.
        let headers = ETHERNET_LEN + if seed[12] == 0x08 { 20 } else { 40 };
        for len in headers..seed.len() {
            if kernel.agrees(&mut host, &seed[..len])? { judged += 1 } else { refused += 1 }
        }
        for mutation in 1..=MUTATIONS {
            let mut random =
                Random((mutation + 1000 * u64::try_from(index)?).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let mut frame = seed.clone();
            for _ in 0..=random.below(3)? {
                // Addresses are left alone more often than lengths, types and flags.
                random.disturb(&mut frame)?;
            }
            let agreed = kernel.agrees(&mut host, &frame);
            let agreed = agreed.with_context(|| format!("seed {index}, mutation {mutation}"))?;
            if agreed { judged += 1 } else { refused += 1 }
        }
    }
    ensure!(judged > refused * 20, "{judged} judged, {refused} refused by the test run");
    ensure!(slots.len() == SLOTS.len(), "refused in the slots {slots:?} alone");
    println!("{judged} frames judged, {refused} refused by the test run");
    Ok(())
}

/// What a pod has begun is let in, from then on, and by nobody else.
#[test]
fn conversations_are_remembered_by_who_began_them() -> Result<()> {
    if unprivileged("conversations_are_remembered_by_who_began_them") {
        return Ok(());
    }
    let mut host = Host::new();
    let kernel = Kernel::load(&host)?;
    // The seeds' ports: 40000 to 9; a conversation's other direction has them the other way round.
    let turned =
        |frame: &[u8], at: usize| patched(frame, &[(at, 0), (at + 1, 9), (at + 2, 0x9c), (at + 3, 0x40)]);
    for family in 0..2 {
        let at = ETHERNET_LEN + if family == 0 { 20 } else { 40 };
        let (pod, foe) = (address(STRICT[family]), address(FOE[family]));
        for (question, answer) in [
            (udp((pod, foe), b"?"), turned(&udp((foe, pod), b"!"), at)),
            (turned(&tcp((pod, foe), FLAGS_SYN), at), tcp((foe, pod), FLAGS_ACK)),
        ] {
            ensure!(kernel.run("guard_pod", &answer, (2, 0))? == Some(DROP), "nobody asked: {answer:02x?}");
            ensure!(kernel.run("watch_pod", &question, (2, 0))? == Some(NEXT), "the watch decides");
            host.watch(&question);
            ensure!(kernel.agrees(&mut host, &answer)?, "the test run refuses the answer");
            ensure!(kernel.run("guard_pod", &answer, (2, 0))? == Some(NEXT), "asked for: {answer:02x?}");
            // From another port it answers nothing.
            let stranger = patched(&answer, &[(at + 1, answer[at + 1] ^ 2)]);
            ensure!(kernel.run("guard_pod", &stranger, (2, 0))? == Some(DROP), "a stranger: {stranger:02x?}");
        }
        // A peer that was let in does not become somebody whom the pod has asked.
        let (open, friend) = (address(OPEN[family]), address(FRIEND[family]));
        ensure!(kernel.agrees(&mut host, &udp((friend, open), b"hello"))?, "refused by the test run");
        kernel.run("watch_pod", &turned(&udp((open, friend), b"welcome"), at), (2, 0))?;
        host.watch(&turned(&udp((open, friend), b"welcome"), at));
        let flow = read(&udp((friend, open), b"hello")[..]).context("a datagram")?.flow_of_receiver(LO);
        ensure!(host.flows.get(&flow) == Some(&BEGUN_BY_PEER), "the host's own notes are wrong");
    }
    Ok(())
}

/// An hour, as the programs count.
const HOUR: u32 = 36_000;

/// What goes on between a pod that has just come under policy and a peer was there before: it is nobody's whom the pod has asked,
/// unless its port is one that kernels choose.
#[test]
fn what_goes_on_when_a_policy_comes_asks_nobody() -> Result<()> {
    if unprivileged("what_goes_on_when_a_policy_comes_asks_nobody") {
        return Ok(());
    }
    // Nothing is longer ago than the machine's start, and virtual ones have started just now.
    wait_for("the machine to be old enough", Duration::from_mins(1), || now() > 2 * UNSEEN_FOR)?;
    // How long ago the policy came, who speaks first then, what becomes of the peer's next datagram to a low port.
    for (ago, first, low_port) in [
        (0, "pod", DROP),
        (0, "peer", DROP),
        (UNSEEN_FOR / 2, "pod", NEXT),
        (UNSEEN_FOR / 2, "peer", DROP),
        (HOUR, "pod", NEXT),
        (HOUR, "peer", NEXT),
    ] {
        let mut host = Host::new();
        // What is yet to come came just now, however long the test takes.
        let since = if ago == 0 { now() + HOUR } else { now().saturating_sub(ago).max(1) };
        host.pods.values_mut().for_each(|pod| pod.since = since);
        let mut kernel = Kernel::load(&host)?;
        for family in 0..2 {
            let at = ETHERNET_LEN + if family == 0 { 20 } else { 40 };
            let (pod, foe) = (address(STRICT[family]), address(FOE[family]));
            // The pod's port, and the peer's.
            for ([here, there], expected) in [([[0, 53], [0, 9]], low_port), ([[0x9c, 0x40], [0, 9]], NEXT)] {
                let ports = |frame: &[u8], [a, b]: [u8; 2], [c, d]: [u8; 2]| {
                    patched(frame, &[(at, a), (at + 1, b), (at + 2, c), (at + 3, d)])
                };
                let answer = ports(&udp((pod, foe), b"!"), here, there);
                let question = ports(&udp((foe, pod), b"?"), there, here);
                if first == "peer" {
                    ensure!(kernel.run("guard_pod", &question, (2, 0))? == Some(DROP), "nobody asked");
                    host.guard(&question);
                }
                kernel.run("watch_pod", &answer, (2, 0))?;
                host.watch(&answer);
                let said = kernel.run("guard_pod", &question, (2, 0))?;
                let what = format!("{ago} ago, the {first} first, family {family}, from port {here:?}");
                ensure!(said == Some(expected), "{what}: {said:x?}");
                ensure!(kernel.agrees(&mut host, &question)?, "the test run refuses the question");
                if expected == NEXT {
                    continue;
                }
                // Once both have been silent for a while, what the pod sends is its own.
                let flow = read(&question[..]).context("a datagram")?.flow_of_receiver(LO);
                let mut flows: KernelMap<_, PolicyFlow, u32> =
                    KernelMap::try_from(kernel.ebpf.map_mut("POLICY_FLOWS").context("no conversations")?)?;
                let kept = flows.get(&flow, 0).context("it was not noted")?;
                ensure!(kept >= BEGUN_UNSEEN && kept - BEGUN_UNSEEN + HOUR >= now(), "{what}: {kept:#x}");
                flows.insert(flow, BEGUN_UNSEEN | now().saturating_sub(UNSEEN_FOR + 1), 0)?;
                kernel.run("watch_pod", &answer, (2, 0))?;
                ensure!(kernel.run("guard_pod", &question, (2, 0))? == Some(NEXT), "it is an answer now");
            }
        }
    }
    Ok(())
}

/// What was noted at another pod's interface, where anybody may claim to be anybody, opens nothing.
#[test]
fn a_conversation_is_known_at_the_interface_where_it_was_begun() -> Result<()> {
    if unprivileged("a_conversation_is_known_at_the_interface_where_it_was_begun") {
        return Ok(());
    }
    let mut kernel = Kernel::load(&Host::new())?;
    for family in 0..2 {
        let (pod, foe) = (address(STRICT[family]), address(FOE[family]));
        for answer in [udp((foe, pod), b"!"), tcp((foe, pod), FLAGS_ACK)] {
            let packet = read(&answer[..]).context("a packet")?;
            for (interface, verdict) in [(LO + 1, DROP), (LO, NEXT)] {
                let mut flows: KernelMap<_, PolicyFlow, u32> =
                    KernelMap::try_from(kernel.ebpf.map_mut("POLICY_FLOWS").context("no conversations")?)?;
                flows.insert(packet.flow_of_receiver(interface), BEGUN_BY_POD, 0)?;
                let said = kernel.run("guard_pod", &answer, (2, 0))?;
                ensure!(said == Some(verdict), "noted at {interface}, family {family}: {said:x?}");
            }
        }
    }
    Ok(())
}

/// The node's own sockets and the agent pass; a mark that is only alike does not.
#[test]
fn the_node_and_the_agent_pass() -> Result<()> {
    if unprivileged("the_node_and_the_agent_pass") {
        return Ok(());
    }
    let kernel = Kernel::load(&Host::new())?;
    for family in 0..2 {
        let frame = tcp((address(FOE[family]), address(STRICT[family])), FLAGS_SYN);
        for (how, (by, mark), verdict) in [
            ("forwarded", (2, 0), DROP),
            ("by a socket of the node", (0, 0), NEXT),
            ("by the agent", (2, OWN_MARK), NEXT),
            ("by the agent's socket", (0, OWN_MARK), NEXT),
            ("with the other mark", (2, 0x1510), DROP),
            ("with more bits than the mark has", (2, OWN_MARK | 0x1_0000), DROP),
        ] {
            let said = kernel.run("guard_pod", &frame, (by, mark))?;
            ensure!(said == Some(verdict), "{how}, family {family}: {said:x?}");
        }
    }
    Ok(())
}
