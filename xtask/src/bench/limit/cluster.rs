//! Limits that the nodes of a cluster count together in a real Redis: what they cost one node with a limit for every request, and
//! whether leases keep to their bound where more comes to three nodes than they may let through.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::exec::{command, stdout};

use super::super::load::read_wrk;
use super::super::open_loop::{self, Schedule};
use super::super::track::CLIENT_CORE;
use super::fleet::CONNECTIONS;
use super::site::{Listener, NODES, Site};
use crate::bench::cluster::row::Row;

/// What comes to all nodes together in a second, and what they may let through of it in a second and at once.
const OFFERED: u32 = 20_000;
const ALLOWED: f64 = 10_000.0;
/// Of that, leases may let through a tenth more, and may ask Redis for so many of a hundred requests.
const BEYOND_MAX: f64 = 1.1;
const ASKED_MAX: f64 = 5.0;

/// All but the last refuse nobody. By `x-user` there are 10,000 keys.
const LISTENERS: [Listener; 5] = [
    Listener { name: "off", port: 8700, limit: None },
    Listener {
        name: "exact",
        port: 8701,
        limit: Some(
            "key: [{type: SourceAddress}], rate: {requests: 1000000, per: 1s}, cluster: {mode: Exact}",
        ),
    },
    Listener {
        name: "exact-users",
        port: 8702,
        limit: Some(
            "key: [{type: Header, name: x-user}], rate: {requests: 1000000, per: 1s}, cluster: {mode: Exact}",
        ),
    },
    Listener {
        name: "leased",
        port: 8703,
        limit: Some(
            "key: [{type: SourceAddress}], rate: {requests: 200000, per: 1s}, cluster: {mode: Leased}",
        ),
    },
    PACED,
];
const PACED: Listener = Listener {
    name: "leased-paced",
    port: 8704,
    limit: Some("key: [{type: SourceAddress}], rate: {requests: 10000, per: 1s}, cluster: {mode: Leased}"),
};

/// The load: every request is another user's than the one before.
const SCRIPT: &str = "local n = 0
request = function()
  n = n + 1
  return \"GET / HTTP/1.1\\r\\nHost: bench\\r\\nx-user: u\" .. n % 10000 .. \"\\r\\n\\r\\n\"
end
";

/// What a listener was measured at, by round.
#[derive(Debug, Default)]
struct Measured {
    per_second: Vec<f64>,
    /// Microseconds of the agents' processor for a request.
    cpu: Vec<f64>,
    /// Scripts that Redis ran for 1,000 requests.
    calls: Vec<f64>,
    /// Of 100 requests, those that asked Redis: several go with one call.
    asked: Vec<f64>,
    /// Of 100 requests, those that were decided without Redis, as it was late.
    away: Vec<f64>,
    /// What was let through by what the limit says.
    admitted: Vec<f64>,
}

/// What is counted before and after.
struct Counts {
    cpu: Duration,
    calls: f64,
    asked: f64,
    away: f64,
}

/// Runs it.
pub fn run(binary: &Path, rounds: u32, seconds: u32) -> Result<Vec<Row>> {
    let site = Site::up(binary, &LISTENERS)?;
    let script = site.lab.directory().join("users.lua");
    fs::write(&script, SCRIPT).context("writing a script for wrk")?;
    let mut measured: [Measured; LISTENERS.len()] = Default::default();
    for round in 0..rounds as usize {
        // The last one finds its limit unused, as what comes to the others takes longer than a second.
        let closed = LISTENERS.len() - 1;
        for place in (0..closed).map(|place| (place + round) % closed).chain([closed]) {
            let (listener, measured) = (LISTENERS[place], &mut measured[place]);
            let before = Counts::of(&site, listener.name)?;
            let (requests, per_second) = if place == closed {
                paced(&site, seconds, measured)?
            } else {
                closed_loop(&site, listener, &script, seconds)?
            };
            let after = Counts::of(&site, listener.name)?;
            measured.note(&before, &after, (requests, per_second));
        }
        println!("round {} of {rounds}", round + 1);
    }
    rows(&measured)
}

/// One node, as fast as it answers; the requests and how many in a second.
fn closed_loop(site: &Site, listener: Listener, script: &Path, seconds: u32) -> Result<(f64, f64)> {
    let net = format!("--net={}", site.lab.underlay().path().display());
    let (connections, time) = (format!("-c{CONNECTIONS}"), format!("-d{seconds}s"));
    let (script, url) =
        (script.display().to_string(), format!("http://{}/", site.address(NODES[0], listener.port)?));
    let words = [&net, "wrk", "-t1", &connections, &time, "--timeout", "10s", "-s", &script, &url];
    let counted = read_wrk(&stdout(&mut command("nsenter", words))?).context(listener.name)?;
    Ok((counted.requests, counted.per_second))
}

/// All nodes, at a rate.
fn paced(site: &Site, seconds: u32, measured: &mut Measured) -> Result<(f64, f64)> {
    let addresses: Vec<_> = NODES.iter().map(|node| site.address(node, PACED.port)).collect::<Result<_>>()?;
    let time = Duration::from_secs(seconds.into());
    let schedule = Schedule { address: addresses[0], rate: OFFERED, time, core: CLIENT_CORE };
    let sent = site.lab.underlay().enter(|| open_loop::spread(&schedule, &addresses))??;
    let requests = f64::from(sent.admitted + sent.refused);
    let allowed = ALLOWED * (1.0 + sent.took.as_secs_f64());
    measured.admitted.push(f64::from(sent.admitted) / allowed);
    Ok((requests, requests / sent.took.as_secs_f64()))
}

impl Counts {
    fn of(site: &Site, limit: &str) -> Result<Self> {
        Ok(Self {
            cpu: site.cpu()?,
            calls: site.calls()?,
            asked: site.count("sluice_rate_limit_asked_total", limit)?,
            away: site.count("sluice_rate_limit_away_total", limit)?,
        })
    }
}

impl Measured {
    fn note(&mut self, before: &Counts, after: &Counts, (requests, per_second): (f64, f64)) {
        let each = |count: f64| count / requests.max(1.0);
        self.per_second.push(per_second);
        self.cpu.push(each(after.cpu.saturating_sub(before.cpu).as_secs_f64() * 1e6));
        self.calls.push(each(after.calls - before.calls) * 1000.0);
        self.asked.push(each(after.asked - before.asked) * 100.0);
        self.away.push(each(after.away - before.away) * 100.0);
    }
}

fn rows(measured: &[Measured]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let off = measured.first().context("the listener without a limit")?;
    for (listener, own) in LISTENERS.iter().zip(measured) {
        let mut add = |what: &str, unit, values: &[f64], judge: &dyn Fn(Row) -> Row| {
            Row::new(&format!("cluster {}: {what}", listener.name), unit, values.to_vec())
                .map(|row| rows.push(judge(row)))
        };
        let by =
            |own: &[f64], off: &[f64]| own.iter().zip(off).map(|(own, off)| own / off).collect::<Vec<_>>();
        let paced = listener.name == PACED.name;
        add("requests/s", "1/s", &own.per_second, &|row| row)?;
        add("CPU of a request", "us", &own.cpu, &|row| row)?;
        if listener.limit.is_none() {
            continue;
        }
        if paced {
            add("let through by the limit", "", &own.admitted, &|row| row.at_most(BEYOND_MAX))?;
            add("asked Redis", "%", &own.asked, &|row| row.at_most_typically(ASKED_MAX))?;
        } else {
            add("requests/s by off", "", &by(&own.per_second, &off.per_second), &|row| row)?;
            add("CPU by off", "", &by(&own.cpu, &off.cpu), &|row| row)?;
            add("asked Redis", "%", &own.asked, &|row| row)?;
        }
        add("Redis calls for 1,000 requests", "", &own.calls, &|row| row)?;
        add("decided without Redis", "%", &own.away, &|row| row)?;
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::super::checked::limits_of;
    use super::super::site::documents;
    use super::*;

    #[test]
    fn the_documents_are_good() {
        assert_eq!(limits_of(documents(&LISTENERS)), LISTENERS.len() - 1);
    }
}
