//! `cargo xtask lab`: brings labs up by hand, looks into them, takes them down.

use std::fmt::Display;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;
use lab::state::{Names, all_ids};
use lab::{AgentOptions, Lab, is_root};

use crate::demo;

/// What to do with a lab.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Bring up the shop of the demonstration: a client, a monolith, its successors
    Up {
        /// The id, by which several labs are told apart
        #[arg(long, default_value = "dev")]
        id: String,
        /// How many nodes
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=50))]
        nodes: u8,
        /// Start an agent on every node
        #[arg(long)]
        agents: bool,
    },
    /// Take labs down, with everything that is in them
    Down {
        /// The id
        #[arg(long, default_value = "dev")]
        id: String,
        /// Take down every lab of this machine
        #[arg(long, conflicts_with_all = ["id", "stale"])]
        all: bool,
        /// Take down the labs whose owner has ended
        #[arg(long, conflicts_with = "id")]
        stale: bool,
    },
    /// Run a command in a node or a pod
    Exec {
        /// The id
        #[arg(long, default_value = "dev")]
        id: String,
        /// A node or a pod
        name: String,
        /// The command
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// List the labs and what is in them
    Status,
}

/// Does it.
pub fn run(verb: Verb) -> Result<ExitCode> {
    ensure!(is_root(), "labs are made of network namespaces and cgroups: run this as root");
    match verb {
        Verb::Up { id, nodes, agents } => up(&id, nodes.into(), agents),
        Verb::Down { id, all, stale } => down(&id, all, stale),
        Verb::Exec { id, name, command } => exec(&id, &name, &command),
        Verb::Status => status(),
    }
}

fn up(id: &str, nodes: usize, agents: bool) -> Result<ExitCode> {
    if Names::of(id)?.read().is_ok() {
        bail!("lab '{id}' is up: take it down first, or choose another --id");
    }
    let lab = Lab::up(id, demo::shop::topology(nodes))?;
    let config = lab.directory().join("config");
    lab.write_documents(&config)?;
    if agents {
        let options = AgentOptions::new(&config)?;
        for node in lab.nodes() {
            let agent = node.start_agent(&options)?;
            say(format_args!(
                "agent of {}: pid {}, log {}",
                node.name(),
                agent.pid(),
                agent.log_path().display()
            ))?;
        }
    }
    say(describe(&lab))?;
    say(format_args!("documents: {}", config.display()))?;
    say(format_args!(
        "try: cargo xtask lab exec --id {id} client -- curl -s http://order-service/api/orders/1"
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn down(id: &str, all: bool, stale: bool) -> Result<ExitCode> {
    let ids = match (all, stale) {
        (false, false) => vec![id.to_owned()],
        (true, _) => all_ids()?,
        (false, true) => stale_ids()?,
    };
    for id in ids {
        Lab::down(&id).with_context(|| format!("taking down lab '{id}'"))?;
        say(format_args!("lab {id}: down"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn stale_ids() -> Result<Vec<String>> {
    let mut ids = all_ids()?;
    ids.retain(|id| {
        let record = Names::of(id).and_then(|names| names.read());
        record.is_ok_and(|record| record.owner.is_some_and(|owner| !owner.is_alive()))
    });
    Ok(ids)
}

fn exec(id: &str, name: &str, words: &[String]) -> Result<ExitCode> {
    let lab = Lab::open(id)?;
    let (program, arguments) = words.split_first().context("a command has a first word")?;
    let program = Path::new(program);
    let mut command = match lab.node(name) {
        Ok(node) => node.command(program)?,
        Err(_) => lab.pod(name).context("the name is neither a node's nor a pod's")?.command(program)?,
    };
    Err(command.args(arguments).exec()).with_context(|| format!("running {}", program.display()))
}

fn status() -> Result<ExitCode> {
    let ids = all_ids()?;
    if ids.is_empty() {
        say("no lab is up")?;
    }
    for id in ids {
        match Lab::open(&id) {
            Ok(lab) => say(describe(&lab))?,
            Err(_) => say(format_args!("lab {id}: broken; clear it with: cargo xtask lab down --id {id}"))?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints a line. A reader that has gone away (`| head`) is no error.
fn say(line: impl Display) -> Result<()> {
    say_to(&mut io::stdout().lock(), line)
}

fn say_to(out: &mut impl Write, line: impl Display) -> Result<()> {
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn describe(lab: &Lab) -> String {
    let mut lines = vec![format!("lab {}", lab.id())];
    for node in lab.nodes() {
        let address = node.address();
        lines.push(format!("  node {:<20} {:<14} {}", node.name(), address.v4, address.v6));
        for pod in lab.pods().filter(|pod| pod.node().name() == node.name()) {
            let address = pod.address();
            let programs: Vec<String> = pod.spec().programs.iter().map(lab::Program::name).collect();
            lines.push(format!(
                "    pod {:<19} {:<14} {:<16} {}",
                pod.name(),
                address.v4,
                address.v6,
                programs.join(" ")
            ));
        }
    }
    for service in &lab.topology().services {
        let Ok(address) = lab.cluster_ip(&service.name) else { continue };
        let ports: Vec<String> = service.ports.iter().map(|port| port.port.to_string()).collect();
        let (name, ports) = (&service.name, ports.join(" "));
        lines.push(format!("  service {name:<17} {:<14} {:<18} {ports}", address.v4, address.v6));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails as it is told.
    struct Broken(io::ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_has_gone_away_is_no_error() {
        assert!(say_to(&mut Broken(io::ErrorKind::BrokenPipe), "x").is_ok());
        assert!(say_to(&mut Broken(io::ErrorKind::StorageFull), "x").is_err());
        let mut said = Vec::new();
        say_to(&mut said, "x").expect("it can be written");
        assert_eq!(said, b"x\n");
    }
}
