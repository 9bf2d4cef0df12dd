//! A lab that is up: its nodes and pods, and what can be done in them.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::address::{self, Dual, Place};
use crate::agent::{self, Agent, AgentOptions};
use crate::cgroup::Cgroup;
use crate::netns::{self, Netns};
use crate::sandbox::{Lifetime, Sandbox};
use crate::state::{Names, Owner, Record};
use crate::teardown;
use crate::topology::{self, Program, Topology, UNDERLAY};
use crate::wait::{PATIENCE, wait_for};
use crate::{documents, hosts, kube_proxy, program, wiring};

/// How long one attempt to connect to a starting server may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A lab that is up. Dropping one that a test owns takes it down.
#[derive(Debug)]
pub struct Lab {
    names: Names,
    topology: Topology,
    cgroup: Cgroup,
    lifetime: Lifetime,
}

/// A node of a lab.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    lab: &'a Lab,
    index: usize,
}

/// A pod of a lab.
#[derive(Debug, Clone, Copy)]
pub struct Pod<'a> {
    lab: &'a Lab,
    spec: &'a topology::Pod,
    place: Place,
}

impl Lab {
    /// Brings up a lab that stays until [`Lab::down`], its programs running.
    pub fn up(id: &str, topology: Topology) -> Result<Self> {
        Self::bring_up(id, topology, Lifetime::Detached)
    }

    /// Brings up a lab that goes when the value is dropped or the process ends. Its id is `name` and the number of
    /// the process, so that tests run side by side.
    pub fn for_test(name: &str, topology: Topology) -> Result<Self> {
        Self::owned(&format!("{name}_{}", std::process::id()), topology)
    }

    /// Brings up a lab of a given id that goes when the value is dropped or the process ends.
    pub fn owned(id: &str, topology: Topology) -> Result<Self> {
        Self::bring_up(id, topology, Lifetime::Owned)
    }

    /// Opens a lab that is up.
    pub fn open(id: &str) -> Result<Self> {
        let names = Names::of(id)?;
        let record = names.read()?;
        let cgroup = Cgroup::of_lab(id)?;
        Ok(Self { names, topology: record.topology, cgroup, lifetime: Lifetime::Detached })
    }

    /// Removes every trace of the lab `id`; one that is not there, or half there, is no error.
    pub fn down(id: &str) -> Result<()> {
        teardown::clear(&Names::of(id)?)
    }

    fn bring_up(id: &str, topology: Topology, lifetime: Lifetime) -> Result<Self> {
        topology.check()?;
        let names = Names::of(id)?;
        teardown::clear(&names).with_context(|| format!("clearing what an earlier lab '{id}' left"))?;
        let owner = match lifetime {
            Lifetime::Owned => Some(Owner::this_process()?),
            Lifetime::Detached => None,
        };
        names.write(&Record { topology: topology.clone(), owner })?;
        let cgroup = Cgroup::of_lab(id)?;
        let lab = Self { names, topology, cgroup, lifetime };
        if let Err(error) = lab.make() {
            // Whoever asked for a detached lab would have to clear a broken one by hand.
            return Err(match Self::down(id) {
                Ok(()) => error,
                Err(second) => error.context(format!("and clearing it failed too: {second:#}")),
            });
        }
        Ok(lab)
    }

    fn make(&self) -> Result<()> {
        netns::allow_cubic()?;
        fs::write(self.hosts_path(), hosts::hosts_file(&self.topology)).context("writing the hosts file")?;
        self.make_namespaces()?;
        self.names.netns(UNDERLAY).ip_batch(&wiring::underlay(&self.topology))?;
        for node in self.nodes() {
            let netns = node.netns();
            self.names.netns(UNDERLAY).ip_batch(&wiring::uplink(node.index, netns.name()))?;
            netns.ip_batch(&wiring::node(&self.topology, node.index))?;
            node.cgroup().child("agent").create()?;
        }
        for pod in self.pods() {
            let netns = pod.netns();
            pod.node().netns().ip_batch(&wiring::pod_link(pod.place, netns.name()))?;
            netns.ip_batch(&wiring::pod(pod.place))?;
            pod.cgroup().create()?;
        }
        self.load_kube_proxy()?;
        for pod in self.pods() {
            pod.start_programs()?;
        }
        self.pods().try_for_each(|pod| pod.wait_programs())
    }

    fn make_namespaces(&self) -> Result<()> {
        let forwarding = [UNDERLAY].into_iter().chain(self.topology.nodes.iter().map(String::as_str));
        let pods = self.topology.pods.iter().map(|pod| pod.name.as_str());
        for (name, forwards) in forwarding.map(|n| (n, true)).chain(pods.map(|n| (n, false))) {
            let netns = self.names.netns(name);
            netns.create()?;
            netns.sysctls(wiring::SYSCTLS_ALL)?;
            if forwards {
                netns.sysctls(wiring::SYSCTLS_FORWARDING)?;
            }
            let etc = teardown::etc_directory(&netns);
            fs::create_dir_all(&etc).with_context(|| format!("creating {}", etc.display()))?;
            fs::copy(self.hosts_path(), etc.join("hosts"))
                .with_context(|| format!("writing {}", etc.display()))?;
        }
        Ok(())
    }

    fn load_kube_proxy(&self) -> Result<()> {
        let rules = kube_proxy::ruleset(&self.topology);
        self.nodes().try_for_each(|node| node.netns().nft(&rules))
    }

    /// Changes whether services give a pod new work, on every node, as an endpoint update does. Documents are
    /// written by [`Lab::write_documents`].
    pub fn set_ready(&mut self, pod_name: &str, ready: bool) -> Result<()> {
        let pod = self.topology.pods.iter_mut().find(|pod| pod.name == pod_name);
        pod.with_context(|| format!("no pod {pod_name}"))?.ready = ready;
        self.load_kube_proxy()
    }

    /// Writes the lab's Services, EndpointSlices and Pods as documents into a directory.
    pub fn write_documents(&self, directory: &Path) -> Result<()> {
        documents::write_all(&self.topology, directory)
    }

    /// The id.
    pub fn id(&self) -> &str {
        self.names.id()
    }

    /// What the lab consists of.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The lab's directory, which goes with it.
    pub fn directory(&self) -> PathBuf {
        self.names.directory()
    }

    /// What becomes of its processes when whoever started them ends.
    pub fn lifetime(&self) -> Lifetime {
        self.lifetime
    }

    /// The nodes.
    pub fn nodes(&self) -> impl Iterator<Item = Node<'_>> {
        (0..self.topology.nodes.len()).map(|index| Node { lab: self, index })
    }

    /// The pods.
    pub fn pods(&self) -> impl Iterator<Item = Pod<'_>> {
        self.topology.pods.iter().map(|spec| {
            let place =
                address::place(&self.topology, &spec.name).expect("a checked topology places its pods");
            Pod { lab: self, spec, place }
        })
    }

    /// The node of that name.
    pub fn node(&self, name: &str) -> Result<Node<'_>> {
        self.nodes()
            .find(|node| node.name() == name)
            .with_context(|| format!("no node {name} in lab {}", self.id()))
    }

    /// The pod of that name.
    pub fn pod(&self, name: &str) -> Result<Pod<'_>> {
        self.pods()
            .find(|pod| pod.name() == name)
            .with_context(|| format!("no pod {name} in lab {}", self.id()))
    }

    /// The ClusterIPs of the service of that name.
    pub fn cluster_ip(&self, service: &str) -> Result<Dual> {
        let index = self.topology.services.iter().position(|s| s.name == service);
        index.map(address::cluster_ip).with_context(|| format!("no service {service} in lab {}", self.id()))
    }

    /// The namespace of the underlay, from where the nodes are seen as from outside the cluster.
    pub fn underlay(&self) -> Netns {
        self.names.netns(UNDERLAY)
    }

    /// The file that processes in the lab see as `/etc/hosts`.
    pub fn hosts_path(&self) -> PathBuf {
        self.directory().join("hosts")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.lifetime == Lifetime::Owned
            && let Err(error) = teardown::clear(&self.names)
        {
            eprintln!("lab {} was not cleared: {error:#}", self.id());
        }
    }
}

impl<'a> Node<'a> {
    /// Its name.
    pub fn name(&self) -> &'a str {
        &self.lab.topology.nodes[self.index]
    }

    /// The lab it is in.
    pub fn lab(&self) -> &'a Lab {
        self.lab
    }

    /// Its addresses on the underlay.
    pub fn address(&self) -> Dual {
        address::node(self.index)
    }

    /// Its network namespace.
    pub fn netns(&self) -> Netns {
        self.lab.names.netns(self.name())
    }

    /// Its cgroup, with those of its pods and of its agent below.
    pub fn cgroup(&self) -> Cgroup {
        self.lab.cgroup.child(self.name())
    }

    /// Runs `work` on a thread inside the node's network namespace.
    pub fn in_netns<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.netns().enter(work)
    }

    /// A command that runs in the node, beside the agent.
    pub fn command(&self, program: impl AsRef<Path>) -> Result<Command> {
        self.agent_command(program.as_ref())
    }

    /// Starts an agent here and waits until it is ready.
    pub fn start_agent(&self, options: &AgentOptions) -> Result<Agent> {
        agent::start(self, options)
    }

    pub(crate) fn agent_command(&self, program: &Path) -> Result<Command> {
        let (netns, cgroup, hosts) = (self.netns(), self.cgroup().child("agent"), self.lab.hosts_path());
        let sandbox = Sandbox { netns: &netns, cgroup: &cgroup, hosts: &hosts, lifetime: self.lab.lifetime };
        let mut command = sandbox.command(program)?;
        // Machines differ in whether they have a BPF file system; tests that pin bring their own and name it.
        command.env("SLUICE_BPFFS", "off");
        Ok(command)
    }

    /// Mounts a BPF file system for the node's agent, in the lab's directory, and says where.
    pub fn mount_bpffs(&self) -> Result<PathBuf> {
        let directory = self.lab.directory().join("agents").join(self.name()).join("bpf");
        fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
        let none: Option<&str> = None;
        nix::mount::mount(Some("bpf"), &directory, Some("bpf"), nix::mount::MsFlags::empty(), none)
            .with_context(|| format!("mounting a BPF file system at {}", directory.display()))?;
        Ok(directory)
    }
}

impl<'a> Pod<'a> {
    /// Its name.
    pub fn name(&self) -> &'a str {
        &self.spec.name
    }

    /// What it consists of.
    pub fn spec(&self) -> &'a topology::Pod {
        self.spec
    }

    /// Its addresses.
    pub fn address(&self) -> Dual {
        self.place.address()
    }

    /// The node it runs on.
    pub fn node(&self) -> Node<'a> {
        Node { lab: self.lab, index: self.place.node }
    }

    /// Its interface in its node.
    pub fn host_interface(&self) -> String {
        self.place.interface()
    }

    /// Its network namespace.
    pub fn netns(&self) -> Netns {
        self.lab.names.netns(self.name())
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> Cgroup {
        self.node().cgroup().child(&format!("pod-{}", self.name()))
    }

    /// Its directory; nginx serves `www/static/` of it at `/static/` and `/chunked/`.
    pub fn directory(&self) -> PathBuf {
        program::directory(&self.lab.directory(), self.spec)
    }

    /// Runs `work` on a thread inside the pod's network namespace (the thread keeps its own cgroup).
    pub fn in_netns<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.netns().enter(work)
    }

    /// A command that runs in the pod: its network, its cgroup, its names.
    pub fn command(&self, program: impl AsRef<Path>) -> Result<Command> {
        let (netns, cgroup, hosts) = (self.netns(), self.cgroup(), self.lab.hosts_path());
        Sandbox { netns: &netns, cgroup: &cgroup, hosts: &hosts, lifetime: self.lab.lifetime }
            .command(program.as_ref())
    }

    /// Starts one of the pod's programs; the pod's directory holds its log.
    pub fn start(&self, program: &Program) -> Result<std::process::Child> {
        let directory = self.directory();
        let launch = program::prepare(program, self.spec, self.address(), &directory)?;
        let log = self.log_path(program);
        let output = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let (name, arguments) = launch.argv.split_first().context("a program has a name")?;
        self.command(name)?
            .args(arguments)
            .current_dir(&directory)
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("sharing a program's log")?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting {name} in pod {}", self.name()))
    }

    /// Waits until a program of the pod takes connections on every family that it serves.
    pub fn wait_listening(&self, program: &Program) -> Result<()> {
        let families = match program {
            Program::Server { .. } => 1,
            _ => 2,
        };
        for ip in self.address().both().into_iter().take(families) {
            let address = SocketAddr::new(ip, program.port());
            let what = format!("{} of pod {} at {address}", program.name(), self.name());
            wait_for(&what, PATIENCE, || {
                let connected =
                    self.node().in_netns(|| std::net::TcpStream::connect_timeout(&address, CONNECT_TIMEOUT));
                matches!(connected, Ok(Ok(_)))
            })
            .with_context(|| {
                format!("its log: {}", fs::read_to_string(self.log_path(program)).unwrap_or_default())
            })?;
        }
        Ok(())
    }

    fn log_path(&self, program: &Program) -> PathBuf {
        self.directory().join(format!("{}.log", program.name()))
    }

    fn start_programs(&self) -> Result<()> {
        for program in &self.spec.programs {
            // The cgroup remembers the process; it is reaped when this process ends or by the next `wait`.
            drop(self.start(program)?);
        }
        Ok(())
    }

    fn wait_programs(&self) -> Result<()> {
        self.spec.programs.iter().try_for_each(|program| self.wait_listening(program))
    }
}
