//! What a limit of the kernel costs a packet that it lets through: the program at a pod's interface on a segment that asks for a
//! connection, as the kernel's test run calls it, for a pod without a limit, with one and with as many as may be.

use agent::capture::OBJECT;
use agent_common::capture::CaptureConfig;
use agent_common::limit::{KernelLimit, LimitEnd};
use agent_common::policy::{PolicyAddress, policy_address};
use anyhow::{Context, Result, ensure};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use lab::ethernet::tcp;
use lab::limit_host::{LimitHost, address, limit};

use crate::bench::cluster::row::Row;

/// Calls of one measurement.
const CALLS: u32 = 1_000_000;
const SYN: u8 = 2;
/// `TCX_NEXT`: nothing is dropped.
const NEXT: u32 = u32::MAX;
const CLIENT: &str = "10.1.0.1";
/// Pods with so many limits.
const PODS: [(&str, u32); 3] = [("10.9.0.1", 0), ("10.9.0.2", 1), ("10.9.0.3", 4)];

/// Measures all of them by turns.
pub fn run(rounds: u32) -> Result<Vec<Row>> {
    let ebpf = load()?;
    let mut values: [Vec<f64>; PODS.len()] = Default::default();
    for _ in 0..rounds {
        for ((pod, _), values) in PODS.iter().zip(&mut values) {
            values.push(call(&ebpf, pod)?);
        }
    }
    let own = |with: usize| values[with].iter().zip(&values[0]).map(|(with, off)| with - off).collect();
    let (one, four) = (own(1), own(2));
    let [off, with_one, with_four] = values;
    Ok(vec![
        Row::new("kernel: a SYN to a pod without a limit", "ns", off)?,
        Row::new("kernel: to one with a limit that lets it through", "ns", with_one)?,
        Row::new("kernel: what that limit costs", "ns", one)?,
        Row::new("kernel: to one with four", "ns", with_four)?,
        Row::new("kernel: what those cost", "ns", four)?,
    ])
}

fn load() -> Result<Ebpf> {
    let mut host = LimitHost::default();
    let mut slot = 0;
    for (pod, count) in PODS.into_iter().filter(|(_, count)| *count > 0) {
        let PolicyAddress { family, address } = policy_address(address(pod));
        let end = LimitEnd { address, port_be: [0, 9], family, protocol: 6 };
        let limits: Vec<_> = (slot..slot + count).map(without_end).collect();
        host.insert(end, &limits);
        slot += count;
    }
    let config = CaptureConfig { deliver_mark: 0x1510, own_mark: 0x1520, workers: 0, padding: 0 };
    let mut loader = EbpfLoader::new();
    loader.override_global("CONFIG", &config, true).map_max_entries("LIMIT_BUCKETS", 4096);
    let mut ebpf = loader.load(OBJECT).context("loading the kernel programs")?;
    let program: &mut SchedClassifier = ebpf.program_mut("limit_pod").context("no program")?.try_into()?;
    program.load().context("loading limit_pod")?;
    host.write(&mut ebpf, "LIMIT_ENDS")?;
    Ok(ebpf)
}

/// A limit that is never used up.
fn without_end(slot: u32) -> KernelLimit {
    KernelLimit { interval_ns: 1, whole_ns: 1 << 40, ..limit(slot, 1, 0) }
}

/// Nanoseconds of a call.
fn call(ebpf: &Ebpf, pod: &str) -> Result<f64> {
    let frame = tcp((address(CLIENT), address(pod)), SYN);
    // `struct __sk_buff`: the index of the interface is its tenth word.
    let mut context = [0_u8; 48];
    context[36..40].copy_from_slice(&2_u32.to_ne_bytes());
    let options = TestRunOptions {
        data_in: Some(&frame),
        ctx_in: Some(&context),
        repeat: CALLS,
        ..TestRunOptions::default()
    };
    let program: &SchedClassifier = ebpf.program("limit_pod").context("no program")?.try_into()?;
    let ran = program.test_run(options)?;
    ensure!(ran.return_value == NEXT, "to {pod}: {:#x}, and not let through", ran.return_value);
    // The kernel tells the time of one call in whole nanoseconds.
    Ok(ran.duration.as_secs_f64() * 1e9)
}
