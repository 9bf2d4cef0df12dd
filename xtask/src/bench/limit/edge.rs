//! A node whose edge is guarded, with a Gateway to a server of its own; a second node as another client; and a source outside that
//! sends packets at a rate whatever becomes of them.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use lab::address::WORLD;
use lab::ethernet::{Wire, datagram};
use lab::{Agent, AgentOptions, Lab, PodSpec, Program, ServiceSpec, Topology, exec, wait_for};

use super::super::process;
use super::super::track::PROXY_CORE;
use super::site::{ARGUMENTS, Listener, answers, documents, metrics};

/// The node whose edge is guarded, and where it is joined to the world.
const GUARDED: &str = "node1";
const OUTSIDE: &str = "node-1";
/// The node that another client is on.
pub const OTHER: &str = "node2";
/// The other client's address, which no limit holds for.
const EXEMPT: &str = "10.88.0.2";
/// Packets of the flood in a second, and how many go at once.
const PACKETS: u32 = 50_000;
const BATCH: u32 = 50;
/// How long it takes at most until the Gateway answers.
const LIMIT: Duration = Duration::from_mins(1);

/// Whoever floods this one is cut off; its refusals are [`AFTER`](super::flood::AFTER).
pub const CUT: Listener = Listener {
    name: "cut",
    port: 8710,
    limit: Some(
        "key: [{type: SourceAddress, prefixLengthV6: 64}], rate: {requests: 50, per: 1s}, exempt: [EXEMPT], \
         pushDown: {after: AFTER, within: 10s, for: 10m}",
    ),
};
/// Whoever floods this one is refused by the agent for as long as it goes on.
pub const REACHED: Listener = Listener {
    name: "reached",
    port: 8711,
    limit: Some("key: [{type: SourceAddress, prefixLengthV6: 64}], rate: {requests: 50, per: 1s}"),
};

/// Everything in it ends with it.
pub struct Edge {
    agent: Agent,
    /// The threads that receive on the node's uplink.
    receivers: Vec<u32>,
    /// Where it is.
    pub lab: Lab,
}

fn written() -> String {
    documents(&[CUT, REACHED])
        .replace("EXEMPT", EXEMPT)
        .replace("after: AFTER", &format!("after: {}", super::flood::AFTER))
}

impl Edge {
    /// Everything running.
    pub fn up(binary: &Path) -> Result<Self> {
        let web = PodSpec::new("web-a", GUARDED).label("app", "web").runs(Program::Http { port: 8080 });
        let topology =
            Topology::with_nodes(2).pod(web).service(ServiceSpec::new("web").port("http", 80, 8080));
        let lab = Lab::for_test("bench_flood", topology)?;
        let config = lab.directory().join("config");
        lab.write_documents(&config)?;
        fs::write(config.join("edge.yaml"), written()).context("writing documents")?;
        let options = AgentOptions { binary: binary.to_owned(), ..AgentOptions::new(config)? }
            .with(["--guard", "eth0"])
            .with(ARGUMENTS);
        let agent = lab.node(GUARDED)?.start_agent(&options)?;
        process::bind_threads(agent.pid(), PROXY_CORE)?;
        let receivers = receive_apart(&lab)?;
        let edge = Self { agent, receivers, lab };
        let (other, to) = (edge.lab.node(OTHER)?, edge.address(CUT.port)?);
        ensure!(other.address().v4.to_string() == EXEMPT, "the other client is exempt");
        wait_for("the Gateway", LIMIT, || other.in_netns(|| answers(to)).unwrap_or_default())?;
        Ok(edge)
    }

    /// Where the node listens.
    pub fn address(&self, port: u16) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.lab.node(GUARDED)?.address().v4.into(), port))
    }

    /// From now on the world asks the node from this round's own address.
    pub fn source(&self, round: u32) -> Result<Source> {
        let own = Ipv4Addr::from_bits(Ipv4Addr::new(10, 88, 0, 100).to_bits() + round % 100);
        self.ask_from(own, &format!("addr add {own}/24 dev br0\n"))?;
        let IpAddr::V4(node) = self.address(CUT.port)?.ip() else { return Err(anyhow!("an IPv4 address")) };
        let frame = datagram((own.into(), node.into()), 6, &segment(CUT.port));
        Ok(Source { frames: vec![frame; BATCH as usize], lab: self.lab.underlay() })
    }

    /// From now on the world asks it from the address that it always has.
    pub fn as_world(&self) -> Result<()> {
        self.ask_from(WORLD.v4, "")
    }

    fn ask_from(&self, own: Ipv4Addr, before: &str) -> Result<()> {
        let node = self.lab.node(GUARDED)?.address().v4;
        self.lab.underlay().ip_batch(&format!("{before}route replace {node}/32 dev br0 src {own}\n"))
    }

    /// Processor time of the agent and of what receives packets.
    pub fn cpu(&self) -> Result<Duration> {
        self.receivers.iter().chain([&self.agent.pid()]).map(|pid| process::cpu_time(*pid)).sum()
    }

    /// Packets that the guard has dropped for a limit.
    pub fn dropped(&self) -> Result<f64> {
        Ok(metrics(&self.lab, GUARDED)?.sum("sluice_guard_packets_total", &[("reason", "pushed_down")]))
    }

    /// Packets that the node has received.
    pub fn packets(&self) -> Result<f64> {
        let read = || fs::read_to_string("/proc/thread-self/net/dev");
        let text = self.lab.node(GUARDED)?.in_netns(read)?.context("the node's interfaces")?;
        received(&text).context("the node has no uplink")
    }
}

/// Gives the node's uplink threads of its own to receive, on the agent's core and before it, as a network card's interrupts would be.
fn receive_apart(lab: &Lab) -> Result<Vec<u32>> {
    let before = receivers();
    // The one command that needs this namespace's own /sys.
    let netns = lab.node(GUARDED)?.netns();
    let words = ["netns", "exec", netns.name(), "sh", "-c", "echo 1 > /sys/class/net/eth0/threaded"];
    exec::run(&mut exec::command("ip", words))
        .context("receiving by threads, which Linux can from 5.12 on")?;
    let own: Vec<u32> = receivers().difference(&before).copied().collect();
    ensure!(!own.is_empty(), "the uplink receives by no thread: the guard's program is not attached to it");
    for pid in &own {
        process::bind(i32::try_from(*pid).context("a process number")?, PROXY_CORE)?;
        exec::run(&mut exec::command("chrt", ["--fifo", "--pid", "1", &pid.to_string()]))?;
    }
    Ok(own)
}

/// The threads by which uplinks receive.
fn receivers() -> BTreeSet<u32> {
    let named = |entry: fs::DirEntry| {
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        name.starts_with("napi/eth0").then(|| entry.file_name().to_str()?.parse().ok())?
    };
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(named).collect()
}

/// The packets in /proc/net/dev.
fn received(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix("eth0:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// A segment of a connection that asks for something, as a flood goes on with it.
fn segment(port: u16) -> Vec<u8> {
    let to = port.to_be_bytes();
    let head = [0x9c, 0x40, to[0], to[1], 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0];
    [&head[..], b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"].concat()
}

/// A source outside.
pub struct Source {
    frames: Vec<Vec<u8>>,
    lab: lab::netns::Netns,
}

/// Packets that are being sent.
pub struct Packets {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u32>>,
}

impl Source {
    /// Sends from now on.
    pub fn start(&self) -> Result<Packets> {
        let stop = Arc::new(AtomicBool::new(false));
        let (told, frames) = (Arc::clone(&stop), self.frames.clone());
        let wire = self.lab.enter(|| Wire::sender(OUTSIDE))??;
        let thread = std::thread::spawn(move || {
            let pause = Duration::from_secs(1) * BATCH / PACKETS;
            let mut sent = 0;
            while !told.load(Ordering::Relaxed) {
                wire.send_all(&frames).context("sending a flood")?;
                sent += BATCH;
                std::thread::sleep(pause);
            }
            Ok(sent)
        });
        Ok(Packets { stop, thread })
    }
}

impl Packets {
    /// How many have been sent.
    pub fn stop(self) -> Result<u32> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the flood panicked"))?
    }
}

#[cfg(test)]
mod tests {
    use super::super::checked::limits_of;
    use super::*;

    #[test]
    fn the_documents_are_good() {
        assert_eq!(limits_of(written()), 2);
    }

    #[test]
    fn packets_are_those_of_the_uplink() {
        let text = "Inter-|   Receive\n face |bytes    packets errs\n    lo: 5 6 0\n  eth0: 700 8 0 0\n";
        assert_eq!(received(text), Some(8.0));
        assert_eq!(received("  lo: 5 6 0\n"), None);
    }
}
