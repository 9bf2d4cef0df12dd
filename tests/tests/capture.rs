//! Capture on real traffic: who is captured, who is not, what the backend sees, and what a dead agent means.

mod common;

use std::time::Duration;

use anyhow::{Result, ensure};
use common::{LIMIT, Mesh, TIMEOUT, leftovers};
use lab::http::get;
use lab::load::{Load, Plan};
use lab::{PodSpec, Program, ServiceSpec, Topology, exec, unprivileged, wait_for};

fn web() -> Topology {
    let backend = |name: &str, node: &str| {
        PodSpec::new(name, node).label("app", "web").label("version", "v1").runs(Program::Http { port: 8080 })
    };
    Topology::with_nodes(2)
        .pod(PodSpec::new("client", "node1"))
        .pod(backend("near", "node1"))
        .pod(backend("far", "node2"))
        .service(
            ServiceSpec::new("web").port("http", 80, 8080).port("tcp", 81, 8080).undeclared_port(82, 8080),
        )
}

const CAPTURED: &str = "sluice_capture_packets_total{reason=\"captured\"}";

#[test]
fn the_backend_sees_the_pods_own_address_on_every_kind_of_port() -> Result<()> {
    if unprivileged("the_backend_sees_the_pods_own_address_on_every_kind_of_port") {
        return Ok(());
    }
    let mesh = Mesh::up("source_ip", web(), &[])?;
    let before = mesh.metric("node1", CAPTURED)?;
    let mut sent = 0;
    for port in [80, 81, 82] {
        for family in 0..2 {
            let mut seen = std::collections::BTreeSet::new();
            for _ in 0..16 {
                let text = mesh.get("client", mesh.service("web", family, port)?, "web", "/x")?.text();
                let words: Vec<&str> = text.split_whitespace().collect();
                ensure!(
                    words[2] == mesh.pod_ip("client", family)?.to_string(),
                    "port {port}: the peer was {}",
                    words[2]
                );
                seen.insert(words[1].to_owned());
                sent += 1;
            }
            ensure!(seen.len() == 2, "port {port}, family {family}: only {seen:?} answered");
        }
    }
    let captured = mesh.metric("node1", CAPTURED)? - before;
    ensure!(captured >= f64::from(sent), "{captured} of {sent} connections were captured");
    Ok(())
}

#[test]
fn a_pod_that_dials_itself_through_its_service_gets_through() -> Result<()> {
    if unprivileged("a_pod_that_dials_itself_through_its_service_gets_through") {
        return Ok(());
    }
    let mesh = Mesh::up("hairpin", web(), &[])?;
    for family in 0..2 {
        let mut own = 0;
        for _ in 0..16 {
            let response = mesh.get("near", mesh.service("web", family, 80)?, "web", "/")?;
            own += usize::from(response.text().contains(" near "));
        }
        ensure!(own > 0, "family {family}: the pod never reached itself");
    }
    Ok(())
}

#[test]
fn what_no_service_names_goes_direct() -> Result<()> {
    if unprivileged("what_no_service_names_goes_direct") {
        return Ok(());
    }
    let mesh = Mesh::up("direct", web(), &[])?;
    let before = mesh.metric("node1", CAPTURED)?;
    for family in 0..2 {
        let far = std::net::SocketAddr::new(mesh.pod_ip("far", family)?, 8080);
        let text = mesh.get("client", far, "far", "/")?.text();
        ensure!(text.contains(&mesh.pod_ip("client", family)?.to_string()), "{text}");
    }
    ensure!((mesh.metric("node1", CAPTURED)? - before).abs() < 0.5, "a pod's own address was captured");
    ensure!(mesh.metric("node1", "sluice_capture_packets_total{reason=\"no_route\"}")? >= 2.0);
    Ok(())
}

#[test]
fn a_pod_that_appears_later_is_captured() -> Result<()> {
    if unprivileged("a_pod_that_appears_later_is_captured") {
        return Ok(());
    }
    let mesh = Mesh::up("late", web(), &[])?;
    let hooked = |name: &str| {
        let status = mesh.verb("node1", "status")?;
        let interfaces = status["capture"]["interfaces"].as_array().cloned().unwrap_or_default();
        Ok::<_, anyhow::Error>(interfaces.iter().any(|interface| interface["name"] == name))
    };
    let node = mesh.lab.node("node1")?.netns();
    node.ip_batch("link add pod-late type veth peer name pod-peer\nlink set pod-late up\n")?;
    wait_for("the new interface to be hooked", LIMIT, || hooked("pod-late").unwrap_or(false))?;
    node.ip_batch("link del pod-late\n")?;
    wait_for("the interface to be forgotten", LIMIT, || !hooked("pod-late").unwrap_or(true))
}

#[test]
fn killed_restarted_stopped() -> Result<()> {
    if unprivileged("killed_restarted_stopped") {
        return Ok(());
    }
    let mut mesh = Mesh::up("killed", web(), &[])?;
    let to = mesh.service("web", 0, 80)?;
    let via =
        |mesh: &Mesh| Ok::<_, anyhow::Error>(mesh.get("client", to, "web", "/")?.header("via").is_some());
    ensure!(via(&mesh)?, "the first request did not pass the agent");
    let second = mesh.agents.pop();
    let first = mesh.agents.pop();
    if let Some(agent) = first {
        agent.kill9()?;
    }
    for _ in 0..8 {
        ensure!(!via(&mesh)?, "an agent that is dead answered");
    }
    let agent = mesh.start_agent("node1")?;
    ensure!(via(&mesh)?, "the restarted agent does not capture");
    ensure!(!leftovers(&mesh.lab, "node1")?.is_empty(), "the running agent left no trace: the look is blind");
    ensure!(agent.terminate()?.success(), "the agent failed at its stop");
    let left = leftovers(&mesh.lab, "node1")?;
    ensure!(left.is_empty(), "left behind:\n{left}");
    ensure!(!via(&mesh)?, "an agent that has stopped answered");
    drop(second);
    Ok(())
}

#[test]
fn stopping_and_starting_under_load_loses_nothing() -> Result<()> {
    if unprivileged("stopping_and_starting_under_load_loses_nothing") {
        return Ok(());
    }
    let mut mesh = Mesh::up("drain", web(), &[])?;
    let plan = Plan {
        address: mesh.service("web", 0, 80)?,
        host: "web".to_owned(),
        paths: vec!["/".to_owned()],
        rate: 200,
    };
    let load = Load::start(&mesh.lab.pod("client")?.netns(), &plan)?;
    load.wait_requests(100, LIMIT)?;
    for _ in 0..2 {
        ensure!(mesh.agents.remove(0).terminate()?.success(), "the agent failed at its stop");
        load.wait_requests(50, LIMIT)?;
        let agent = mesh.start_agent("node1")?;
        mesh.agents.insert(0, agent);
        load.wait_requests(50, LIMIT)?;
    }
    let report = load.stop()?;
    ensure!(report.failures().next().is_none(), "failed: {:?}", report.failure_kinds());
    Ok(())
}

/// Sends frames from the client pod's interface and returns how much a reason's counter grew.
fn send_frames(mesh: &Mesh, frames: &[Vec<u8>]) -> Result<()> {
    let hex: Vec<String> =
        frames.iter().map(|f| f.iter().fold(String::new(), |t, b| format!("{t}{b:02x}"))).collect();
    let script = "import socket,sys\n\
                  s=socket.socket(socket.AF_PACKET,socket.SOCK_RAW)\n\
                  s.bind(('eth0',0))\n\
                  [s.send(bytes.fromhex(f)) for f in sys.argv[1:]]";
    exec::run(mesh.lab.pod("client")?.command("python3")?.args(["-c", script]).args(hex)).map(drop)
}

#[test]
fn frames_that_are_not_plain_tcp_are_passed_by_their_reason() -> Result<()> {
    if unprivileged("frames_that_are_not_plain_tcp_are_passed_by_their_reason") {
        return Ok(());
    }
    let mesh = Mesh::up("frames", web(), &[])?;
    let (v4, v6) = (syn_v4(&mesh)?, syn_v6(&mesh)?);
    let patched = |frame: &[u8], patches: &[(usize, u8)]| {
        let mut frame = frame.to_vec();
        for (at, byte) in patches {
            frame[*at] = *byte;
        }
        frame
    };
    let tagged = [&v4[..12], &[0x81, 0x00, 0x00, 0x07], &v4[12..]].concat();
    let options = [&patched(&v4, &[(14, 0x46), (17, 44)])[..34], &[1, 1, 1, 0], &v4[34..]].concat();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("captured", v4.clone()),
        ("captured", v6.clone()),
        ("ip_options", options),
        ("ip_options", patched(&v6, &[(20, 60)])),
        ("fragment", patched(&v4, &[(20, 0x20)])),
        ("fragment", patched(&v4, &[(21, 0x10)])),
        ("fragment", patched(&v6, &[(20, 44)])),
        ("not_ip", tagged),
        ("truncated", v4[..50].to_vec()),
        ("truncated", v6[..70].to_vec()),
        ("malformed", patched(&v4, &[(46, 0x40)])),
    ];
    for (reason, frame) in cases {
        let series = format!("sluice_capture_packets_total{{reason=\"{reason}\"}}");
        let before = mesh.metric("node1", &series)?;
        send_frames(&mesh, &[frame])?;
        let counted = || mesh.metric("node1", &series).is_ok_and(|now| now > before);
        wait_for(&format!("a frame to be counted as {reason}"), LIMIT, counted)?;
    }
    // And traffic goes on.
    ensure!(mesh.get("client", mesh.service("web", 0, 80)?, "web", "/")?.status == 200);
    Ok(())
}

fn syn_v4(mesh: &Mesh) -> Result<Vec<u8>> {
    let (source, destination) = (mesh.pod_ip("client", 0)?, mesh.service("web", 0, 80)?.ip());
    let mut frame = ethernet(mesh, [0x08, 0x00])?;
    frame.extend([0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0]);
    for address in [source, destination] {
        if let std::net::IpAddr::V4(v4) = address {
            frame.extend(v4.octets());
        }
    }
    let sum = checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame.extend(TCP_SYN);
    Ok(frame)
}

fn syn_v6(mesh: &Mesh) -> Result<Vec<u8>> {
    let (source, destination) = (mesh.pod_ip("client", 1)?, mesh.service("web", 1, 80)?.ip());
    let mut frame = ethernet(mesh, [0x86, 0xdd])?;
    frame.extend([0x60, 0, 0, 0, 0, 20, 6, 64]);
    for address in [source, destination] {
        if let std::net::IpAddr::V6(v6) = address {
            frame.extend(v6.octets());
        }
    }
    frame.extend(TCP_SYN);
    Ok(frame)
}

/// Port 40,000 to port 80; the checksum is left out, for the kernel programs do not need it.
const TCP_SYN: [u8; 20] = [0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0];

/// The header of a frame to the pod's gateway.
fn ethernet(mesh: &Mesh, ethertype: [u8; 2]) -> Result<Vec<u8>> {
    let mac = |text: String| -> Result<Vec<u8>> {
        let bytes = text.trim().split(':').map(|byte| u8::from_str_radix(byte, 16));
        Ok(bytes.collect::<Result<_, _>>()?)
    };
    let pod = mesh.lab.pod("client")?;
    let host = format!("/sys/class/net/{}/address", pod.host_interface());
    let read = |netns: &lab::netns::Netns, path: &str| {
        exec::stdout(std::process::Command::new("ip").args(["netns", "exec", netns.name(), "cat", path]))
    };
    let mut frame = mac(read(&pod.node().netns(), &host)?)?;
    frame.extend(mac(read(&pod.netns(), "/sys/class/net/eth0/address")?)?);
    frame.extend(ethertype);
    Ok(frame)
}

fn checksum(header: &[u8]) -> u16 {
    let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(0)
}

#[test]
fn a_dead_endpoint_is_reset_and_recorded() -> Result<()> {
    if unprivileged("a_dead_endpoint_is_reset_and_recorded") {
        return Ok(());
    }
    let topology = Topology::with_nodes(1)
        .pod(PodSpec::new("client", "node1"))
        .pod(PodSpec::new("deaf", "node1").label("app", "web"))
        .service(ServiceSpec::new("web").port("http", 80, 8080).port("tcp", 81, 8080));
    let mesh = Mesh::up("deaf", topology, &[])?;
    let http = mesh.get("client", mesh.service("web", 0, 80)?, "web", "/")?;
    ensure!(http.status == 503, "HTTP to a dead endpoint answered {}", http.status);
    let tcp = mesh
        .lab
        .pod("client")?
        .in_netns(|| get(mesh.service("web", 0, 81)?, "web", "/", TIMEOUT).map_err(anyhow::Error::from))?;
    ensure!(tcp.is_err(), "TCP to a dead endpoint answered");
    let log = || mesh.agents[0].log();
    wait_for("both in the access log", Duration::from_secs(5), || {
        log().matches("\"response_flags\":\"UF\"").count() >= 2
    })
}

/// The agent closes first after `connection: close`, and so remembers the connection when the client takes its port again. The
/// client's own kernel does so as well until its last segment is acknowledged, and does not even ask then (`EADDRNOTAVAIL`).
#[test]
fn a_client_may_reuse_its_port_at_once() -> Result<()> {
    if unprivileged("a_client_may_reuse_its_port_at_once") {
        return Ok(());
    }
    let mesh = Mesh::up("reuse", web(), &[])?;
    let script = "import errno,socket,sys,time\n\
                  for i in range(3):\n \
                  s=socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET)\n \
                  s.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1)\n \
                  s.bind(('',40000)); s.settimeout(10); end=time.time()+10\n \
                  while (e:=s.connect_ex((sys.argv[1],80)))==errno.EADDRNOTAVAIL and time.time()<end: time.sleep(0.001)\n \
                  assert e==0, e\n \
                  s.sendall(b'GET / HTTP/1.1\\r\\nHost: web\\r\\nConnection: close\\r\\n\\r\\n')\n \
                  d=b''.join(iter(lambda: s.recv(4096), b''))\n \
                  s.close(); print(d[:12].decode())\n";
    for family in 0..2 {
        let to = mesh.service("web", family, 80)?.ip().to_string();
        let said = exec::stdout(mesh.lab.pod("client")?.command("python3")?.args(["-c", script, &to]))?;
        ensure!(said.lines().collect::<Vec<_>>() == ["HTTP/1.1 200"; 3], "family {family}: {said}");
    }
    Ok(())
}
