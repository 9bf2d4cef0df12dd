//! The guard's program on crafted frames through the kernel's test run: for each it must say what the shared function says
//! of the same bytes on the host.

use agent::capture::{Guard, GuardOptions, OBJECT};
use agent_common::guard::{Reason, inspect};
use agent_common::packet::Family;
use anyhow::{Context, Result, ensure};
use aya::programs::{TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use lab::ethernet::{ETHERNET_LEN, datagram, frame, patched, tagged, tcp, udp};
use lab::limit_host::unless_refused;
use lab::random::Random;
use lab::unprivileged;

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
/// Frames that are made of each seed.
const MUTATIONS: u64 = 400;

struct Program {
    ebpf: Ebpf,
    guard: Guard,
}

impl Program {
    fn load() -> Result<Self> {
        let options = GuardOptions { interfaces: Vec::new(), entries: 16, sources: 16 };
        let mut loader = EbpfLoader::new();
        Guard::size_maps(&mut loader, Some(&options));
        let mut ebpf = loader.load(OBJECT).context("loading the object")?;
        let guard = Guard::load(&mut ebpf, options).context("loading the guard")?;
        Ok(Self { ebpf, guard })
    }

    /// The verdict on a frame, and the reason that was counted; `None` where the test run itself refuses the frame.
    fn judge(&self, frame: &[u8]) -> Result<Option<(u32, Reason)>> {
        let program: &Xdp = self.ebpf.program("xdp_guard").context("no program")?.try_into()?;
        let before = self.guard.counters().by_reason();
        let options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::default() };
        let Some(ran) = unless_refused(program.test_run(options))? else { return Ok(None) };
        let verdict = ran.return_value;
        let after = self.guard.counters().by_reason();
        let grown = before.iter().zip(&after).filter(|((_, was), (_, is))| is > was);
        let reasons: Vec<Reason> = grown.map(|((reason, _), _)| *reason).collect();
        ensure!(reasons.len() == 1, "counted as {reasons:?}");
        Ok(Some((verdict, reasons[0])))
    }

    /// The program says what the function says. False where the test run refuses the frame.
    fn agrees(&self, frame: &[u8]) -> Result<bool> {
        let expected = inspect(frame).err().unwrap_or(Reason::Passed);
        let Some((verdict, reason)) = self.judge(frame)? else { return Ok(false) };
        ensure!(reason == expected, "the program says {reason:?}, the function {expected:?}: {frame:02x?}");
        let action = if expected.drops() { XDP_DROP } else { XDP_PASS };
        ensure!(verdict == action, "{expected:?} ended in {verdict}");
        Ok(true)
    }
}

/// Good frames of every kind that the guard reads.
fn seeds() -> Result<Vec<Vec<u8>>> {
    let v4 = ("192.0.2.1".parse()?, "198.51.100.2".parse()?);
    let v6 = ("2001:db8::1".parse()?, "2001:db8::2".parse()?);
    let extension = |next: u8, rest: &[u8]| [&[next, 0, 0, 0, 0, 0, 0, 0], rest].concat();
    let segment = &tcp(v6, 2)[ETHERNET_LEN + 40..];
    let later = [17, 0, 0, 8, 0, 0, 0, 1, 1, 2, 3];
    let options = {
        let plain = patched(&tcp(v4, 2), &[(14, 0x47), (17, 48)]);
        [&plain[..34], &[1; 8], &plain[34..]].concat()
    };
    Ok(vec![
        tcp(v4, 2),
        tcp(v6, 18),
        udp(v4, b"hello"),
        udp(v6, b"hello"),
        options,
        tagged(&tcp(v4, 2), &[0x8100]),
        tagged(&tcp(v6, 2), &[0x88a8, 0x8100]),
        tagged(&tcp(v6, 2), &[0x88a8, 0x8100, 0x8100]),
        patched(&udp(v4, &[0; 8]), &[(20, 0x20)]),
        patched(&udp(v4, &[0; 8]), &[(21, 0x20)]),
        datagram(v6, 0, &extension(60, &extension(43, &extension(6, segment)))),
        datagram(v6, 60, &(0..7).fold(segment.to_vec(), |inner, _| extension(60, &inner))),
        datagram(v6, 44, &later),
        datagram(v6, 51, &[&[6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], segment].concat()),
        datagram(v4, 1, &[8, 0, 0, 0]),
        frame(0x0806, &[0; 28]),
    ])
}

#[test]
fn the_program_says_what_the_function_says() -> Result<()> {
    if unprivileged("the_program_says_what_the_function_says") {
        return Ok(());
    }
    let program = Program::load()?;
    let (mut judged, mut refused) = (0, 0);
    for (index, seed) in seeds()?.iter().enumerate() {
        ensure!(program.agrees(seed)?, "the test run refuses seed {index}");
        for len in ETHERNET_LEN..seed.len() {
            if program.agrees(&seed[..len])? { judged += 1 } else { refused += 1 }
        }
        for mutation in 1..=MUTATIONS {
            let mut random = Random(mutation.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let mut frame = seed.clone();
            for _ in 0..=random.below(3)? {
                // Addresses are left alone more often than lengths, types and flags.
                random.disturb(&mut frame)?;
            }
            let agreed =
                program.agrees(&frame).with_context(|| format!("seed {index}, mutation {mutation}"))?;
            if agreed { judged += 1 } else { refused += 1 }
        }
    }
    ensure!(judged > refused * 20, "{judged} judged, {refused} refused by the test run");
    println!("{judged} frames judged, {refused} refused by the test run");
    Ok(())
}

#[test]
fn every_reason_to_drop_is_met() -> Result<()> {
    if unprivileged("every_reason_to_drop_is_met") {
        return Ok(());
    }
    let program = Program::load()?;
    let (source, destination) = ("192.0.2.1".parse()?, "198.51.100.2".parse()?);
    let syn = tcp((source, destination), 2);
    let v6 = ("2001:db8::1".parse()?, "2001:db8::2".parse()?);
    for (reason, frame) in [
        (Reason::Truncated, syn[..40].to_vec()),
        (Reason::BadHeader, patched(&syn, &[(14, 0x35)])),
        (Reason::BadLength, patched(&syn, &[(17, 5)])),
        (Reason::BadSource, tcp((source, source), 2)),
        (Reason::BadFragment, patched(&syn, &[(21, 1)])),
        (Reason::BadExtension, datagram(v6, 60, &[6, 9, 0, 0, 0, 0, 0, 0])),
        (Reason::BadTransport, patched(&syn, &[(46, 0)])),
        (Reason::BadFlags, patched(&syn, &[(47, 3)])),
        (Reason::PortZero, patched(&syn, &[(34, 0), (35, 0)])),
    ] {
        let judged = program.judge(&frame)?;
        ensure!(judged == Some((XDP_DROP, reason)), "{reason:?}: {judged:?}");
    }
    ensure!(
        inspect(&syn[..]).is_ok_and(|seen| seen.family == Family::V4 && seen.sent.opens),
        "the host's reading"
    );
    Ok(())
}
