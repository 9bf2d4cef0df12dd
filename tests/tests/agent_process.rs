//! How the lab runs an agent: where it is put, what it is given, how it is seen to be ready and to end.
//!
//! The agent here is a script that ends in nginx answering the health address, so that these tests tell faults of
//! the lab from faults of the agent.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use lab::agent::HEALTH;
use lab::{AgentOptions, Footprint, Lab, Topology, unprivileged};

const NGINX: &str = "daemon off; master_process off; pid nginx.pid; error_log stderr warn;
events {}
http { access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  server { listen 127.0.0.1:15021; location = /healthz/ready { return 200 ready; } } }
";

fn options(lab: &Lab, script: &str) -> Result<AgentOptions> {
    let directory = lab.directory().join("fake");
    fs::create_dir_all(&directory)?;
    let binary: PathBuf = directory.join("sluice");
    fs::write(directory.join("nginx.conf"), NGINX)?;
    let nginx = format!("exec nginx -e stderr -c {0}/nginx.conf -p {0}", directory.display());
    fs::write(&binary, format!("#!/bin/sh\n{script}\n{nginx}\n"))?;
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755))?;
    let config = directory.join("config");
    Ok(AgentOptions {
        binary,
        config: Some(config),
        uplink: Some("eth0".to_owned()),
        pod_interfaces: "pod-*".to_owned(),
        arguments: vec!["--workers=1".to_owned()],
    })
}

#[test]
fn an_agent_gets_its_node_and_ends_as_asked() -> Result<()> {
    if unprivileged("an_agent_gets_its_node_and_ends_as_asked") {
        return Ok(());
    }
    let lab = Lab::for_test("agent", Topology::with_nodes(2))?;
    let (first, second) = (lab.node("node1")?, lab.node("node2")?);
    let before = Footprint::of(&first)?;
    let options = options(&lab, "echo \"arguments: $*\"; cat /proc/self/cgroup")?;
    // The fixed ports of two nodes do not meet.
    let agent = first.start_agent(&options)?;
    let other = second.start_agent(&options)?;
    let log = agent.log();
    let _directory = lab.directory();
    for wanted in [
        "arguments: agent --node node1 --uplink eth0 --pod-interfaces pod-* ".to_owned(),
        format!("--config {} --workers=1\n", options.config.as_deref().unwrap_or(Path::new("")).display()),
        format!("/sluice-lab-{}/node1/agent\n", lab.id()),
    ] {
        ensure!(log.contains(&wanted), "no {wanted:?} in\n{log}");
    }
    let status = agent.terminate()?;
    ensure!(status.success(), "after SIGTERM: {status}");
    let now = Footprint::of(&first)?;
    ensure!(now.since(&before).is_empty(), "a script that hooks nothing leaves {:?}", now.since(&before));
    let pid = other.pid();
    other.kill9()?;
    ensure!(!PathBuf::from(format!("/proc/{pid}")).exists(), "the killed agent is still there");
    let gone = second.in_netns(|| std::net::TcpStream::connect(HEALTH))?;
    ensure!(gone.is_err(), "something still answers on the health address");
    // A second start finds the mounts and directories of the first.
    drop(second.start_agent(&options)?);
    Ok(())
}

#[test]
fn an_agent_that_ends_at_once_is_reported_with_what_it_said() -> Result<()> {
    if unprivileged("an_agent_that_ends_at_once_is_reported_with_what_it_said") {
        return Ok(());
    }
    let lab = Lab::for_test("agent_fails", Topology::with_nodes(1))?;
    let options = options(&lab, "echo 'error: port 15001 is in use' >&2; exit 1")?;
    let error = lab.node("node1")?.start_agent(&options).expect_err("it ends at once");
    let text = format!("{error:#}");
    ensure!(text.contains("exit status: 1") && text.contains("port 15001 is in use"), "{text}");
    Ok(())
}
