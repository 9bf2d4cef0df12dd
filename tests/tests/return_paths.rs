//! Replies to the agent's connections, by whatever interface they come back: without a word about uplinks it gets them.

mod common;

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};
use common::Mesh;
use lab::address::{node, pod_cidrs};
use lab::{AgentOptions, Lab, PodSpec, Program, ServiceSpec, Topology, unprivileged};

fn backend(name: &str, node: &str) -> PodSpec {
    PodSpec::new(name, node).label("app", "web").runs(Program::Http { port: 8080 })
}

/// A lab with an agent on the first node that is told of no uplink; `wire` comes before it.
fn mesh(name: &str, topology: Topology, wire: impl Fn(&Lab) -> Result<()>) -> Result<Mesh> {
    let topology = topology.service(ServiceSpec::new("web").port("http", 80, 8080).port("tcp", 81, 8080));
    let lab = Lab::for_test(name, topology)?;
    wire(&lab)?;
    let config = lab.directory().join("config");
    lab.write_documents(&config)?;
    let options = AgentOptions { uplink: None, ..AgentOptions::new(&config)? };
    let agent = lab.node("node1")?.start_agent(&options)?;
    Ok(Mesh { agents: vec![agent], lab, config })
}

/// Every port answers in both families, through the agent, which speaks as the pod.
fn is_captured(mesh: &Mesh) -> Result<()> {
    let captured = || mesh.metric("node1", "sluice_capture_packets_total{reason=\"captured\"}");
    for port in [80, 81] {
        for family in 0..2 {
            let before = captured()?;
            let response = mesh.get("client", mesh.service("web", family, port)?, "web", "/")?;
            let own = mesh.pod_ip("client", family)?.to_string();
            ensure!(response.text().contains(&own), "port {port}: {response:?} without {own}");
            ensure!(captured()? > before, "port {port}, family {family}: not captured");
        }
    }
    Ok(())
}

/// One end of a tunnel: an interface without Ethernet headers, and what the kernel sends by it.
fn tunnel_end(name: &str) -> Result<File> {
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    const IFF_TUN_NO_PI: u16 = 0x1001;
    let file =
        OpenOptions::new().read(true).write(true).open("/dev/net/tun").context("opening /dev/net/tun")?;
    let mut request = [0u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..18].copy_from_slice(&IFF_TUN_NO_PI.to_ne_bytes());
    #[expect(unsafe_code, reason = "making a tun interface has no safe wrapper")]
    // SAFETY: the request is as long as the kernel's and outlives the call.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
    ensure!(made == 0, "making {name}: {}", std::io::Error::last_os_error());
    Ok(file)
}

/// Carries packets one way until an end is gone.
fn carry(mut from: File, mut to: File) {
    std::thread::spawn(move || {
        let mut packet = vec![0; 1 << 16];
        while let Ok(len) = from.read(&mut packet) {
            // An end that is down loses packets, as a wire would.
            let _ = to.write(&packet[..len]);
        }
    });
}

#[test]
fn a_tunnel_without_ethernet_headers() -> Result<()> {
    if unprivileged("a_tunnel_without_ethernet_headers") {
        return Ok(());
    }
    let topology = Topology::with_nodes(2).pod(PodSpec::new("client", "node1")).pod(backend("far", "node2"));
    let mesh = mesh("tunnel", topology, |lab| {
        let mut ends = Vec::new();
        for (own, other) in [(0, 1), (1, 0)] {
            let netns = lab.node(&format!("node{}", own + 1))?.netns();
            ends.push(netns.enter(|| tunnel_end("tun0"))??);
            let ((v4, v6), from) = (pod_cidrs(other), node(own));
            netns.ip_batch(&format!(
                "link set tun0 up\nroute replace {v4} dev tun0 src {}\nroute del {v6}\nroute add {v6} dev tun0 src {}\n",
                from.v4, from.v6
            ))?;
        }
        let (second, first) = (ends.pop().context("two ends")?, ends.pop().context("two ends")?);
        carry(first.try_clone()?, second.try_clone()?);
        carry(second, first);
        Ok(())
    })?;
    is_captured(&mesh)
}
