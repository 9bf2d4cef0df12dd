//! The guard at the edge, in a node whose uplink is a veth (native XDP) and a bridge (generic XDP): raw frames and real
//! clients from outside, a document that changes, and what is left after it.

mod common;
mod edge;

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use common::{LIMIT, Mesh, TIMEOUT};
use edge::{OPEN, PORT, gateway};
use lab::address::WORLD;
use lab::agent::METRICS;
use lab::documents::replace_file;
use lab::ethernet::{Wire, datagram, frame, patched, tagged, tcp, udp};
use lab::http::get;
use lab::promtext::Exposition;
use lab::witness::Witness;
use lab::{AgentOptions, Footprint, Lab, Topology, exec, unprivileged, wait_for};

const NODE: &str = "node1";
const SYN: u8 = 2;
/// The port of a server in the node.
const SERVER: u16 = 7777;
/// How long a client waits that is expected to get nothing.
const BRIEF: Duration = Duration::from_millis(500);

/// A node with one guarded agent, and both ends of a link into it.
struct Edge {
    mesh: Mesh,
    outside: Wire,
    inside: Wire,
}

/// Which link frames take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    /// The uplink, a veth: its driver runs the program.
    Veth,
    /// A bridge: no driver, the kernel runs the program.
    Bridge,
}

impl Link {
    fn interface(self) -> &'static str {
        match self {
            Self::Veth => "eth0",
            Self::Bridge => "edge0",
        }
    }

    fn outside(self) -> &'static str {
        match self {
            Self::Veth => "node-1",
            Self::Bridge => "edge-out",
        }
    }

    fn mode(self) -> &'static str {
        match self {
            Self::Veth => "native",
            Self::Bridge => "generic",
        }
    }
}

fn guard(spec: &str) -> String {
    format!("apiVersion: sluice.dev/v1alpha1\nkind: EdgeGuard\nmetadata: {{name: edge}}\nspec: {spec}\n")
}

impl Edge {
    /// Starts an agent with a guard on one link, EdgeGuard `edge` of this `spec`, and further arguments.
    fn up(name: &str, link: Link, spec: &str, arguments: &[&str]) -> Result<Self> {
        let lab = Lab::for_test(name, Topology::with_nodes(1))?;
        let config = lab.directory().join("config");
        lab.write_documents(&config)?;
        replace_file(&config.join("guard.yaml"), &guard(spec))?;
        if link == Link::Bridge {
            let node = lab.node(NODE)?.netns();
            lab.underlay().ip_batch(&format!(
                "link add edge-out type veth peer name edge-in netns {}\nlink set edge-out up\n",
                node.name()
            ))?;
            node.ip_batch(
                "link add edge0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set edge-in master edge0\n\
                 link set edge-in up\nlink set edge0 up\n",
            )?;
            // A bridge whose frames netfilter sees drops malformed ones itself.
            node.enter(|| -> Result<()> {
                for table in ["iptables", "ip6tables"] {
                    let switch = format!("/proc/sys/net/bridge/bridge-nf-call-{table}");
                    if std::path::Path::new(&switch).exists() {
                        std::fs::write(&switch, "0").context(switch)?;
                    }
                }
                Ok(())
            })??;
            // A bridge's port forwards once the kernel has noticed its carrier.
            let state =
                || exec::stdout(&mut exec::command("ip", ["-n", node.name(), "link", "show", "edge0"]));
            wait_for("the bridge to be up", LIMIT, || state().is_ok_and(|text| text.contains("state UP")))?;
        }
        let outside = lab.underlay().enter(|| Wire::open(link.outside()))??;
        let inside = lab.node(NODE)?.in_netns(|| Wire::open(link.interface()))??;
        let mut mesh = Mesh { agents: Vec::new(), lab, config };
        let options = AgentOptions::new(&mesh.config)?.with(["--guard", link.interface()]);
        mesh.agents.push(mesh.lab.node(NODE)?.start_agent(&options.with(arguments.iter().copied()))?);
        Ok(Self { mesh, outside, inside })
    }

    fn scrape(&self) -> Result<Exposition> {
        let node = self.mesh.lab.node(NODE)?;
        Exposition::parse(&node.in_netns(|| get(METRICS, "localhost", "/metrics", TIMEOUT))??.text())
    }

    fn counted(&self, reason: &str) -> Result<f64> {
        Ok(self.scrape()?.sum("sluice_guard_packets_total", &[("reason", reason)]))
    }

    /// Sends frames that are all judged for one reason, and waits until they are.
    fn judged(&self, reason: &str, frames: &[Vec<u8>]) -> Result<()> {
        let before = self.counted(reason)?;
        for frame in frames {
            self.outside.send(frame)?;
        }
        let more = before + f64::from(u32::try_from(frames.len())?);
        wait_for(&format!("{} frames to be `{reason}`", frames.len()), TIMEOUT, || {
            self.counted(reason).is_ok_and(|now| now > more - 0.5)
        })
        .with_context(|| format!("the first: {:02x?}", frames.first()))
    }

    /// Sends datagrams with a payload that get through.
    fn passes(&self, reason: &str, ends: (IpAddr, IpAddr), payload: &[u8]) -> Result<()> {
        self.judged(reason, &[udp(ends, payload)])?;
        let mut arrived = 0;
        wait_for("a frame that may pass", TIMEOUT, || {
            arrived += self.inside.arrived(payload).unwrap_or_default();
            arrived == 1
        })
        .with_context(|| format!("from {}", ends.0))
    }

    /// Replaces the EdgeGuard and waits until its table is in force.
    fn edit(&self, spec: &str) -> Result<()> {
        let version = self.mesh.version(NODE)?;
        self.mesh.write("guard.yaml", &guard(spec))?;
        self.mesh.wait_version_above(NODE, version)
    }
}

fn ends(source: &str) -> Result<(IpAddr, IpAddr)> {
    let source: IpAddr = source.parse()?;
    let own = lab::address::node(0);
    Ok((source, if source.is_ipv4() { own.v4.into() } else { own.v6.into() }))
}

fn both_links(name: &str, spec: &str, check: impl Fn(&Edge, Link) -> Result<()>) -> Result<()> {
    if unprivileged(name) {
        return Ok(());
    }
    // Tests may run as threads of one process, each with labs of its own.
    let word = name.split('_').next().unwrap_or(name);
    for link in [Link::Veth, Link::Bridge] {
        let edge = Edge::up(&format!("guard_{word}_{}", link.mode()), link, spec, &[])?;
        let guarded = edge.mesh.verb(NODE, "status")?["guard"]["interfaces"][0].clone();
        ensure!(guarded["name"] == link.interface() && guarded["mode"] == link.mode(), "{guarded}");
        check(&edge, link).with_context(|| format!("{link:?}"))?;
    }
    Ok(())
}

#[test]
fn denied_sources_get_nothing_through() -> Result<()> {
    let spec = "{deny: [192.0.2.0/24, 'fd00:bad::/32'], allow: [192.0.2.7, 'fd00:bad:7::/48']}";
    both_links("denied_sources_get_nothing_through", spec, |edge, link| {
        const LOST: &[u8] = b"denied sources send this";
        let mut frames = Vec::new();
        for source in ["192.0.2.1", "192.0.2.255", "fd00:bad::1", "fd00:bad:8::1"] {
            frames.extend((0..20).map(|_| Ok(udp(ends(source)?, LOST))).collect::<Result<Vec<_>>>()?);
            frames.push(tcp(ends(source)?, SYN));
            frames.push(datagram(ends(source)?, 1, LOST));
        }
        if link == Link::Veth {
            // What a bridge takes the tags off is seen without them.
            let whole = frames.clone();
            frames.extend(whole.iter().map(|frame| tagged(frame, &[0x8100])));
            frames.extend(whole.iter().map(|frame| tagged(frame, &[0x88a8, 0x8100])));
        }
        edge.judged("denied", &frames)?;
        let hits = edge.scrape()?.sum("sluice_guard_rule_hits_total", &[("rule", "edge")]);
        ensure!(hits > f64::from(u32::try_from(frames.len())?) - 0.5, "{hits} hits of {}", frames.len());
        for (reason, source) in [
            ("allowed", "192.0.2.7"),
            ("allowed", "fd00:bad:7::9"),
            ("passed", "192.0.3.1"),
            ("passed", "fd00:bae::1"),
        ] {
            edge.passes(reason, ends(source)?, format!("from {source}").as_bytes())?;
        }
        let lost = edge.inside.arrived(LOST)?;
        ensure!(lost == 0, "{lost} frames of denied sources came through");
        Ok(())
    })
}

#[test]
fn what_contradicts_itself_is_dropped_and_what_is_unknown_passes() -> Result<()> {
    both_links(
        "what_contradicts_itself_is_dropped_and_what_is_unknown_passes",
        "{allow: [198.51.100.1]}",
        |edge, link| {
            let (v4, v6) = (ends("198.51.100.1")?, ends("2001:db8::1")?);
            let syn4 = tcp(v4, SYN);
            let syn6 = tcp(v6, SYN);
            let mut cases = vec![
                ("bad_header", patched(&syn4, &[(14, 0x44)])),
                ("bad_header", patched(&syn6, &[(14, 0x40)])),
                ("bad_length", patched(&syn4, &[(17, 19)])),
                ("truncated", patched(&syn4, &[(17, 80)])),
                ("truncated", syn6[..60].to_vec()),
                ("bad_source", tcp(ends("224.0.0.1")?, SYN)),
                ("bad_source", tcp((v4.1, v4.1), SYN)),
                ("bad_source", tcp((v6.1, v6.1), SYN)),
                ("bad_fragment", patched(&syn4, &[(21, 1)])),
                ("bad_fragment", patched(&udp(v4, &[0; 5]), &[(20, 0x20)])),
                ("bad_extension", datagram(v6, 60, &[0, 0, 0, 0, 0, 0, 0, 0, 59, 0, 0, 0, 0, 0, 0, 0])),
                ("bad_transport", datagram(v4, 6, &[0x9c, 0x40, 0, 80, 0, 0])),
                ("bad_transport", patched(&syn4, &[(46, 0x40)])),
                ("bad_transport", patched(&udp(v6, b"x"), &[(59, 99)])),
                ("port_zero", patched(&syn4, &[(37, 0)])),
                ("not_ip", frame(0x88b5, &[7; 50])),
                ("passed", datagram(v6, 60, &[59, 0, 0, 0, 0, 0, 0, 0])),
                ("allowed", patched(&syn4, &[(47, SYN | 0xc0)])),
                ("allowed", udp(v4, b"fine")),
            ];
            cases.extend([0, 1, 3, 6, 0x29, 0xff].map(|flags| ("bad_flags", patched(&syn4, &[(47, flags)]))));
            if link == Link::Veth {
                cases.push(("bad_flags", tagged(&patched(&syn4, &[(47, 0)]), &[0x88a8, 0x8100])));
                cases.push(("not_ip", tagged(&syn4, &[0x88a8, 0x8100, 0x8100])));
            }
            for (reason, frame) in cases {
                edge.judged(reason, &[frame])?;
            }
            Ok(())
        },
    )
}

#[test]
fn limits_act_on_one_source_and_let_go() -> Result<()> {
    const RATE: f64 = 50.0;
    const BURST: f64 = 20.0;
    let spec = "{perSource: {packetsPerSecond: 50, packetsBurst: 20, synsPerSecond: 50, synsBurst: 5}}";
    both_links("limits_act_on_one_source_and_let_go", spec, |edge, _| {
        for (greedy, other) in [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8:0:1::1")] {
            let payload = format!("from {greedy}");
            let flood = vec![udp(ends(greedy)?, payload.as_bytes()); 300];
            let (limited, since) = (edge.counted("packet_rate")?, Instant::now());
            for frame in &flood {
                edge.outside.send(frame)?;
            }
            let mut through = 0;
            wait_for("all to be let in or dropped", TIMEOUT, || {
                through += edge.inside.arrived(payload.as_bytes()).unwrap_or_default();
                let dropped = edge.counted("packet_rate").unwrap_or_default() - limited;
                f64::from(u32::try_from(through).unwrap_or_default()) + dropped > 299.5
            })?;
            let (through, most) = (u32::try_from(through)?, BURST + RATE * since.elapsed().as_secs_f64());
            let fair = f64::from(through) >= BURST && f64::from(through) <= most + 1.0;
            ensure!(fair, "{through} of 300 came through, {most} may");
            edge.passes("passed", ends(other)?, b"somebody else's")?;

            let syns = edge.counted("syn_rate")?;
            for _ in 0..50 {
                edge.outside.send(&tcp(ends(other)?, SYN))?;
            }
            wait_for("SYNs to be limited", TIMEOUT, || {
                edge.counted("syn_rate").is_ok_and(|now| now > syns + 5.0)
            })?;
            // A new address of the same /64 is no new source.
            let neighbour = if greedy.contains(':') { "2001:db8::ffff" } else { greedy };
            edge.inside.arrived(b"")?;
            wait_for("the greedy one to be let in again", TIMEOUT, || {
                let sent = ends(neighbour).map(|ends| edge.outside.send(&udp(ends, b"again")));
                sent.is_ok() && edge.inside.arrived(b"again").is_ok_and(|arrived| arrived > 0)
            })?;
        }
        edge.edit("{}")?;
        let free = vec![udp(ends("192.0.2.1")?, b"free"); 300];
        edge.judged("passed", &free)
    })
}

/// Asks a server in the node from an address of the world.
fn reaches(edge: &Edge, from: &str, within: &str) -> Result<bool> {
    let net = format!("--net={}", edge.mesh.lab.underlay().path().display());
    let node = edge.mesh.lab.node(NODE)?.address();
    let to = if from.contains(':') { format!("[{}]", node.v6) } else { node.v4.to_string() };
    let url = format!("http://{to}:{SERVER}/");
    let words = [&net, "curl", "-s", "-o", "/dev/null", "--max-time", within, "--interface", from, &url];
    Ok(exec::command("nsenter", words).status().context("starting curl")?.success())
}

#[test]
fn edits_apply_to_real_clients_and_a_stop_leaves_nothing() -> Result<()> {
    if unprivileged("edits_apply_to_real_clients_and_a_stop_leaves_nothing") {
        return Ok(());
    }
    let mut edge = Edge::up("guard_live", Link::Veth, "{deny: [10.88.0.66, 'fd00:88::66']}", &[])?;
    edge.mesh
        .lab
        .underlay()
        .ip_batch("addr add 10.88.0.66/24 dev br0\naddr add fd00:88::66/64 dev br0 nodad\n")?;
    let server = edge.mesh.lab.node(NODE)?.in_netns(|| TcpListener::bind(("::", SERVER)))??;
    Witness::serve("node", server, "unseen")?;
    for from in ["10.88.0.66", "fd00:88::66"] {
        ensure!(!reaches(&edge, from, "0.5")?, "{from} is denied and came in");
    }
    for from in [WORLD.v4.to_string(), WORLD.v6.to_string()] {
        // Its first try may be lost with those of its denied neighbour: a host asks for a link address once for all of its addresses,
        // with the one that sent first, and what is denied gets no answer.
        wait_for(&format!("{from}, which is not denied, to come in"), LIMIT, || {
            reaches(&edge, &from, "5").unwrap_or(false)
        })?;
    }
    edge.edit("{deny: ['fd00:88::66']}")?;
    wait_for("the first to come in", LIMIT, || reaches(&edge, "10.88.0.66", "5").unwrap_or(false))?;
    ensure!(!reaches(&edge, "fd00:88::66", "0.5")?, "the other one came in, too");
    // A wrong edit changes nothing.
    edge.mesh.write("guard.yaml", &guard("{deny: [nonsense]}"))?;
    wait_for("the wrong edit to be reported", LIMIT, || {
        let status = edge.mesh.verb(NODE, "status").unwrap_or_default();
        status["config"]["objects"].as_array().is_some_and(|objects| {
            objects.iter().any(|object| object["kind"] == "EdgeGuard" && object["state"] == "rejected")
        })
    })?;
    ensure!(!reaches(&edge, "fd00:88::66", "0.5")?, "a wrong edit let it in");

    let footprint = |edge: &Edge| Footprint::of(&edge.mesh.lab.node(NODE)?);
    let attached = |footprint: &Footprint| footprint.lines().any(|line| line.contains("driver id"));
    ensure!(attached(&footprint(&edge)?), "the look is blind: {:?}", footprint(&edge)?);
    ensure!(edge.mesh.agents.remove(0).terminate()?.success(), "the agent failed at its stop");
    ensure!(!attached(&footprint(&edge)?), "left behind: {:?}", footprint(&edge)?);
    ensure!(reaches(&edge, "fd00:88::66", "5")?, "without an agent it does not come in");
    Ok(())
}

#[test]
fn a_full_map_leaves_out_the_narrowest_and_says_so() -> Result<()> {
    if unprivileged("a_full_map_leaves_out_the_narrowest_and_says_so") {
        return Ok(());
    }
    let spec = "{deny: [192.0.2.1, 192.0.2.2, 203.0.113.0/24, 198.51.100.0/25], allow: [203.0.113.5]}";
    let edge = Edge::up("guard_full", Link::Veth, spec, &["--guard-entries", "3"])?;
    let status = edge.mesh.verb(NODE, "status")?;
    let v4 = &status["guard"]["maps"][0];
    ensure!(v4["entries"] == 3 && v4["capacity"] == 3 && v4["left_out"] == 2, "{v4}");
    let left_out =
        edge.scrape()?.sum("sluice_guard_map_entries", &[("map", "GUARD_V4"), ("state", "left_out")]);
    ensure!((left_out - 2.0).abs() < 0.5, "the metric says {left_out}");
    ensure!(edge.mesh.agents[0].log().contains("--guard-entries"), "the log does not say it");
    for source in ["203.0.113.1", "198.51.100.1"] {
        edge.judged("denied", &[udp(ends(source)?, b"wide")])?;
    }
    edge.passes("allowed", ends("203.0.113.5")?, b"allowed before all")?;
    edge.passes("passed", ends("192.0.2.1")?, b"left out")?;
    // Entries of a full map change in place and make room for others.
    edge.edit("{deny: [192.0.2.1, 192.0.2.2, 203.0.113.5]}")?;
    for source in ["192.0.2.1", "192.0.2.2", "203.0.113.5"] {
        wait_for("the new list to act", LIMIT, || {
            ends(source).is_ok_and(|ends| edge.judged("denied", &[udp(ends, b"now")]).is_ok())
        })?;
    }
    edge.passes("passed", ends("198.51.100.1")?, b"no longer denied")
}

#[test]
fn a_source_that_keeps_being_refused_is_pushed_down() -> Result<()> {
    if unprivileged("a_source_that_keeps_being_refused_is_pushed_down") {
        return Ok(());
    }
    let set = "gateway.http.connections-per-source=1,guard.push-down.after=3,guard.push-down.for=2s";
    let edge = Edge::up("guard_push", Link::Veth, "{}", &["--set", set])?;
    let node = edge.mesh.lab.node(NODE)?.address();
    edge.mesh.write("gateway.yaml", &gateway(OPEN).replace("GATEWAY_IP", &node.v4.to_string()))?;
    let to = SocketAddr::new(node.v4.into(), PORT);
    let connect = |limit| {
        edge.mesh.lab.underlay().enter(|| TcpStream::connect_timeout(&to, limit).map_err(anyhow::Error::from))
    };
    let mut held = None;
    wait_for("the listener", LIMIT, || {
        held = connect(TIMEOUT).ok().and_then(Result::ok);
        held.is_some()
    })?;
    // Further ones come in and are refused, until none comes in any more.
    wait_for("connections to be dropped before they are made", LIMIT, || {
        connect(BRIEF).is_ok_and(|connected| connected.is_err())
    })?;
    ensure!(edge.counted("pushed_down")? > 0.5, "it is not the guard that dropped them");
    ensure!(edge.mesh.agents[0].log().contains("pushed down to the guard"), "the log does not say it");
    drop(held);
    wait_for("its time to be over", LIMIT, || connect(BRIEF).is_ok_and(|connected| connected.is_ok()))?;
    wait_for("the entry to be forgotten", LIMIT, || {
        let used = edge
            .scrape()
            .map(|seen| seen.sum("sluice_guard_map_entries", &[("map", "GUARD_PUSHED"), ("state", "used")]));
        used.is_ok_and(|used| used < 0.5)
    })
}

#[test]
fn what_cannot_be_guarded_is_said_at_the_start() -> Result<()> {
    if unprivileged("what_cannot_be_guarded_is_said_at_the_start") {
        return Ok(());
    }
    let lab = Lab::for_test("guard_start", Topology::with_nodes(1))?;
    let config = lab.directory().join("config");
    lab.write_documents(&config)?;
    let node = lab.node(NODE)?;
    node.netns().ip_batch("tuntap add tun0 mode tun\n")?;
    let binary = AgentOptions::new(&config)?.binary;
    let before = Footprint::of(&node)?;
    for (interface, says) in [("nowhere", "there is no such interface"), ("tun0", "no Ethernet header")] {
        let mut command = node.command(&binary)?;
        command.args([
            "agent",
            "--node",
            NODE,
            "--pod-interfaces",
            "pod-*",
            "--guard",
            interface,
            "--config",
        ]);
        let output = command.arg(&config).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(1) && said.contains(says), "--guard {interface}: {said}");
        ensure!(said.contains(interface), "the interface is not named: {said}");
        let left = Footprint::of(&node)?;
        ensure!(left.since(&before).is_empty(), "left behind: {:?}", left.since(&before));
    }
    let mut check = node.command(&binary)?;
    check.args(["check", "-o", "json", "--pod-interfaces", "pod-*", "--guard", "nowhere"]);
    let said = String::from_utf8_lossy(&check.output()?.stdout).into_owned();
    ensure!(said.contains("there is no such interface"), "check says nothing: {said}");
    Ok(())
}

#[test]
fn an_interface_that_comes_back_is_guarded_again_and_a_killed_agent_leaves_nothing() -> Result<()> {
    if unprivileged("an_interface_that_comes_back_is_guarded_again_and_a_killed_agent_leaves_nothing") {
        return Ok(());
    }
    let mut edge = Edge::up("guard_back", Link::Bridge, "{deny: [192.0.2.1]}", &[])?;
    let netns = edge.mesh.lab.node(NODE)?.netns();
    let guarded = |edge: &Edge| -> Result<serde_json::Value> {
        Ok(edge.mesh.verb(NODE, "status")?["guard"]["interfaces"][0].clone())
    };
    netns.ip_batch("link del edge0\n")?;
    wait_for("the loss to be told", LIMIT, || {
        let not_guarded = guarded(&edge).map(|interface| interface["not_guarded"].clone());
        not_guarded.is_ok_and(|reason| reason.as_str().is_some_and(|reason| reason.contains("not there")))
    })?;
    netns.ip_batch("link add edge0 type bridge\nlink set edge0 up\n")?;
    wait_for("the guard to be back", LIMIT, || {
        guarded(&edge).is_ok_and(|interface| interface["mode"] == "generic")
    })?;

    let attached = |edge: &Edge| -> Result<bool> {
        let footprint = Footprint::of(&edge.mesh.lab.node(NODE)?)?;
        Ok(footprint.lines().any(|line| line.contains("edge0") && line.contains("generic id")))
    };
    ensure!(attached(&edge)?, "the look is blind");
    edge.mesh.agents.remove(0).kill9()?;
    wait_for("the program to go with the agent", LIMIT, || attached(&edge).is_ok_and(|attached| !attached))
}

/// Whatever becomes of the agent: the last lists keep out whom they did, and the next agent takes the program's place.
#[test]
fn a_pinned_guard_outlives_its_agent() -> Result<()> {
    if unprivileged("a_pinned_guard_outlives_its_agent") {
        return Ok(());
    }
    for link in [Link::Veth, Link::Bridge] {
        let spec = "{deny: [192.0.2.1, 'fd00:bad::1']}";
        let mut edge = Edge::up(&format!("guard_pin_{}", link.mode()), link, spec, &[])?;
        ensure!(edge.mesh.agents.remove(0).terminate()?.success(), "the agent failed at its stop");
        let node = edge.mesh.lab.node(NODE)?;
        let bpffs = node.mount_bpffs()?.display().to_string();
        let start = |on_stop: &str| {
            let options = AgentOptions::new(&edge.mesh.config)?.with(["--guard", link.interface()]);
            node.start_agent(&options.with(["--bpffs", &bpffs, "--on-stop", on_stop]))
        };
        let other = node.in_netns(|| Wire::open(link.interface()))??;
        // How many frames of the denied arrived by the time that a later one did, which may pass.
        let through = |payload: &[u8]| -> Result<usize> {
            for source in ["192.0.2.1", "fd00:bad::1"] {
                (0..5)
                    .try_for_each(|_| edge.outside.send(&udp(ends(source)?, payload)).context("sending"))?;
            }
            edge.outside.send(&udp(ends("192.0.2.9")?, b"may pass"))?;
            wait_for("the frame that may pass", TIMEOUT, || other.arrived(b"may pass").is_ok_and(|n| n > 0))?;
            Ok(edge.inside.arrived(payload)?)
        };
        let closed = |when: &str| -> Result<()> {
            let through = through(when.as_bytes())?;
            ensure!(through == 0, "{link:?}, {when}: {through} denied frames passed");
            Ok(())
        };
        let agent = start("remove")?;
        closed("running")?;
        agent.kill9()?;
        closed("killed")?;
        let agent = start("keep")?;
        let guarded = edge.mesh.verb(NODE, "status")?["guard"]["interfaces"][0].clone();
        ensure!(guarded["mode"] == link.mode(), "taken over as {guarded}");
        closed("started again")?;
        ensure!(agent.terminate()?.success(), "the agent failed at its stop");
        closed("stopped with keep")?;
        let agent = start("remove")?;
        closed("started once more")?;
        ensure!(edge.counted("denied")? >= 10.0, "the new program counts nothing");
        ensure!(agent.terminate()?.success(), "the agent failed at its stop");
        let through = through(b"stopped with remove")?;
        ensure!(through == 10, "{link:?}: {through} of 10 frames passed after the stop");
    }
    Ok(())
}
