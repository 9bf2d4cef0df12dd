//! The agent killed, restarted and stopped: traffic flows on, and nothing is left behind.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use lab::{Agent, AgentOptions, Footprint, Lab};

use super::canary;
use super::ledger::{Ledger, headline};
use super::traffic::{curl, of_version};

const REQUESTS: usize = 300;

/// The agents of a lab, and what their nodes looked like before.
#[derive(Debug)]
pub struct Agents {
    options: BTreeMap<String, AgentOptions>,
    running: BTreeMap<String, Agent>,
    before: BTreeMap<String, Footprint>,
}

impl Agents {
    /// Starts one on each of these nodes.
    pub fn start(lab: &Lab, options: BTreeMap<String, AgentOptions>) -> Result<Self> {
        let mut before = BTreeMap::new();
        for node in options.keys() {
            before.insert(node.clone(), Footprint::of(&lab.node(node)?)?);
        }
        let mut agents = Self { options, running: BTreeMap::new(), before };
        agents.start_missing(lab)?;
        Ok(agents)
    }

    /// Starts one on every node that has lost its own.
    pub fn start_missing(&mut self, lab: &Lab) -> Result<()> {
        for (node, options) in &self.options {
            if !self.running.contains_key(node) {
                self.running.insert(node.clone(), lab.node(node)?.start_agent(options)?);
            }
        }
        Ok(())
    }

    /// Kills one: it cannot clean up.
    pub fn kill(&mut self, node: &str) -> Result<()> {
        self.running.remove(node).with_context(|| format!("no agent runs on {node}"))?.kill9()
    }

    /// The running agents by node.
    pub fn running(&self) -> impl Iterator<Item = (&str, &Agent)> {
        self.running.iter().map(|(node, agent)| (node.as_str(), agent))
    }

    /// Kills the client's agent: connections go directly. A new one captures again.
    pub fn show_kill(&mut self, lab: &Lab, ledger: &mut Ledger) -> Result<()> {
        headline("kill -9 of the agent on the client's node");
        self.kill("node1")?;
        // No beta header can be honoured now; what counts is that every request is answered.
        let options = ["-H", "Connection: close", "-H", "x-user-group: beta"];
        let seen = match curl(lab, "http://order-service/", REQUESTS, &options) {
            Ok(answers) => format!("{} answered, {} by v1", answers.len(), of_version(&answers, "v1")),
            Err(error) => format!("{error:#}"),
        };
        let expected = format!("{REQUESTS} answered");
        let holds = seen.starts_with(&expected);
        ledger.check(&format!("{REQUESTS} new connections, directly"), expected, seen, holds);

        headline("The agent is started again");
        self.start_missing(lab)?;
        canary::show_beta(lab, ledger)
    }

    /// Stops every agent with SIGTERM: nothing of them is left, and the node behaves as before.
    pub fn show_stop(&mut self, lab: &Lab, ledger: &mut Ledger) -> Result<()> {
        headline("SIGTERM to every agent");
        for (node, agent) in std::mem::take(&mut self.running) {
            let status = agent.terminate()?;
            ledger.check(
                &format!("the agent of {node} ends"),
                "exit status: 0",
                status.to_string(),
                status.success(),
            );
        }
        for (node, before) in &self.before {
            let now = Footprint::of(&lab.node(node)?)?;
            let left = now.since(before);
            let seen = if left.is_empty() { "nothing".to_owned() } else { left.join("; ") };
            let what = format!("left on {node}: rules, routes, nft, programs");
            ledger.check(&what, "nothing", seen, left.is_empty());
        }
        let answers = curl(lab, "http://order-service/", REQUESTS, &["-H", "Connection: close"])?;
        ledger.equal("answers without an agent", &REQUESTS, &answers.len());
        Ok(())
    }
}
