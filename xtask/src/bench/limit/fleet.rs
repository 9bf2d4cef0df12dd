//! All proxies with and without limits, beside each other: rounds of some seconds, and pairs of short turns.
//!
//! A core that is shared with others gives more or less from one second to the next, by more than a limit costs. So
//! a proxy with a limit and the same without take turns of [`TURN`], the one or the other first, and the median of many ratios counts.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::super::contender::{Binaries, Contender};
use super::super::figure::Spread;
use super::super::load::{self, Counted, Loop};
use super::super::process;
use super::super::track::{Server, Track};
use super::paired;
use super::variant::{Limited, VARIANTS};
use crate::bench::cluster::row::Row;

/// Connections of the load.
pub const CONNECTIONS: u32 = 32;
/// How long a short turn is about to last.
const TURN: Duration = Duration::from_millis(120);
/// Requests of the turn that tells how many are so long; no turn has fewer.
const FIRST: u32 = 500;
/// No turn has more.
const MOST: u32 = 50_000;

/// What a limit on every request may cost, and one that is about other requests.
const COST_MAX: f64 = 0.04;
const ELSEWHERE_MAX: f64 = 0.01;

/// A proxy that takes requests, and what it was measured at, by round.
struct Proxy {
    variant: &'static Limited,
    server: Server,
    per_second: Vec<f64>,
    /// Processor seconds for 100,000 requests.
    cpu: Vec<f64>,
}

/// All of them.
pub struct Fleet<'a> {
    track: &'a Track,
    proxies: Vec<Proxy>,
}

/// One turn.
#[derive(Debug, Clone, Copy)]
struct Turn {
    per_second: f64,
    /// Seconds of the processor for one request.
    cpu: f64,
}

/// A proxy with a limit by the same without, turn by turn.
#[derive(Debug, Clone, Default)]
struct Ratios {
    per_second: Vec<f64>,
    cpu: Vec<f64>,
}

/// A limit that every request meets, if it's the agent's: what it may cost is written down.
fn most(variant: &Limited) -> Option<f64> {
    match (variant.contender, variant.name) {
        (Contender::Sluice, "rate" | "window" | "in flight") => Some(COST_MAX),
        (Contender::Sluice, "elsewhere") => Some(ELSEWHERE_MAX),
        _ => None,
    }
}

impl<'a> Fleet<'a> {
    /// Starts all that are there.
    pub fn start(track: &'a Track, binaries: &Binaries) -> Result<Self> {
        let mut proxies = Vec::new();
        for variant in VARIANTS {
            match variant.contender.program(binaries) {
                Ok(program) => {
                    let server = variant.start(track, &program)?;
                    proxies.push(Proxy { variant, server, per_second: Vec::new(), cpu: Vec::new() });
                }
                Err(hint) => println!("skipped: {}: {hint}", variant.label()),
            }
        }
        ensure!(!proxies.is_empty(), "nobody to compare");
        Ok(Self { track, proxies })
    }

    /// Rounds in which all take turns of some seconds.
    pub fn rounds(&mut self, rounds: u32, seconds: u32) -> Result<Vec<Row>> {
        let count = self.proxies.len();
        for round in 0..rounds as usize {
            for place in 0..count {
                let proxy = &mut self.proxies[(place + round) % count];
                if proxy.variant.is_control() {
                    continue;
                }
                let load = load_on(proxy.variant, seconds);
                let turn = proxy.turn(|| load::wrk(self.track, &load))?;
                proxy.per_second.push(turn.per_second);
                proxy.cpu.push(turn.cpu * 100_000.0);
            }
            println!("round {} of {rounds}", round + 1);
        }
        let mut rows = Vec::new();
        for proxy in self.proxies.iter().filter(|proxy| !proxy.variant.is_control()) {
            let label = proxy.variant.label();
            rows.push(Row::new(&format!("{label}: requests/s"), "1/s", proxy.per_second.clone())?);
            rows.push(Row::new(&format!("{label}: CPU of 100,000"), "s", proxy.cpu.clone())?);
            let off = self.off(proxy.variant).map(|at| &self.proxies[at].per_second);
            if let Some(off) = off {
                let ratios = proxy.per_second.iter().zip(off).map(|(with, without)| with / without).collect();
                rows.push(Row::new(&format!("{label}: requests/s by off"), "", ratios)?);
            }
        }
        Ok(rows)
    }

    /// Pairs of short turns.
    pub fn turns(&mut self, turns: u32) -> Result<Vec<Row>> {
        let pairs: Vec<(usize, usize)> = (0..self.proxies.len())
            .filter_map(|place| Some((place, self.off(self.proxies[place].variant)?)))
            .collect();
        let counts: Vec<u32> = pairs.iter().map(|(place, _)| self.requests(*place)).collect::<Result<_>>()?;
        let mut ratios = vec![Ratios::default(); pairs.len()];
        for turn in 0..turns {
            for (pair, (with, without)) in pairs.iter().enumerate() {
                let mut one = |place: usize| self.short(place, counts[pair]);
                let (with, without) = if turn % 2 == 0 {
                    let with = one(*with)?;
                    (with, one(*without)?)
                } else {
                    let without = one(*without)?;
                    (one(*with)?, without)
                };
                ratios[pair].per_second.push(with.per_second / without.per_second);
                ratios[pair].cpu.push(with.cpu / without.cpu);
            }
        }
        let variants = pairs.iter().map(|(place, _)| self.proxies[*place].variant);
        rows_of_turns(&variants.zip(ratios).collect::<Vec<_>>())
    }

    /// The same proxy without a limit, for one with a limit.
    fn off(&self, variant: &Limited) -> Option<usize> {
        let same = |other: &Proxy| other.variant.contender == variant.contender && other.variant.is_off();
        self.proxies.iter().position(same).filter(|_| !variant.is_off())
    }

    fn short(&mut self, place: usize, requests: u32) -> Result<Turn> {
        let load = load_on(self.proxies[place].variant, 0);
        self.proxies[place].turn(|| load::burst(self.track, &load, requests))
    }

    /// How many requests last about a turn.
    fn requests(&mut self, place: usize) -> Result<u32> {
        let first = self.short(place, FIRST)?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within both")]
        let count = (first.per_second * TURN.as_secs_f64()).clamp(FIRST.into(), MOST.into()) as u32;
        Ok(count)
    }
}

impl Proxy {
    fn turn(&mut self, load: impl FnOnce() -> Result<Counted>) -> Result<Turn> {
        self.server.check()?;
        let before = process::cpu_time(self.server.pid())?;
        let counted = load().with_context(|| self.variant.label())?;
        let used = process::cpu_time(self.server.pid())?.saturating_sub(before);
        Ok(Turn { per_second: counted.per_second, cpu: used.as_secs_f64() / counted.requests.max(1.0) })
    }
}

fn load_on(variant: &Limited, seconds: u32) -> Loop {
    Loop { address: variant.address(), path: "/100", connections: CONNECTIONS, closes: false, seconds }
}

/// Both ratios of each pair, judged, and the agent's costs by HAProxy's of the same turns.
fn rows_of_turns(pairs: &[(&Limited, Ratios)]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let ratio = |name: String, values: Vec<f64>| {
        let count = values.len();
        let spread: Spread =
            paired::middle(values).with_context(|| format!("nothing was measured: {name}"))?;
        Ok::<_, anyhow::Error>(Row::spread(&name, "", spread, count))
    };
    let stick = pairs.iter().find(|(variant, _)| variant.contender == Contender::Haproxy);
    for (variant, ratios) in pairs {
        let label = variant.label();
        let rate = ratio(format!("{label}: requests/s by off, paired"), ratios.per_second.clone())?;
        rows.push(match most(variant) {
            Some(most) => rate.at_least_typically(1.0 - most),
            None => rate,
        });
        let cpu = ratio(format!("{label}: CPU by off, paired"), ratios.cpu.clone())?;
        rows.push(match most(variant) {
            Some(most) => cpu.at_most_typically(1.0 + most),
            None => cpu,
        });
        if let Some((_, stick)) = stick.filter(|_| most(variant) == Some(COST_MAX)) {
            let pairs = ratios.cpu.iter().zip(&stick.cpu).map(|(own, other)| own / other).collect();
            let row = ratio(format!("{label}: that by HAProxy's"), pairs)?;
            rows.push(row.at_most_typically(1.0));
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_judged_by_what_they_are_about() {
        let ratios = |cpu: f64| Ratios { per_second: vec![1.0 / cpu; 3], cpu: vec![cpu; 3] };
        let check = |own: f64, stick: f64, expected: &[(&str, bool)]| {
            let costs = |variant: &Limited| match (variant.contender, most(variant)) {
                (Contender::Haproxy, _) => stick,
                (_, Some(_)) => own,
                _ => 2.0,
            };
            let pairs: Vec<_> =
                VARIANTS.iter().filter(|one| !one.is_off()).map(|one| (one, ratios(costs(one)))).collect();
            let rows = rows_of_turns(&pairs).expect("there are values");
            for (name, held) in expected {
                let row = rows.iter().find(|row| row.what == *name).expect(name);
                assert_eq!(row.is_held(), *held, "{own} {stick}: {}", row.line());
            }
        };
        let [rate, cpu, peer, other] = [
            "sluice rate: requests/s by off, paired",
            "sluice window: CPU by off, paired",
            "sluice in flight: that by HAProxy's",
            "sluice elsewhere: CPU by off, paired",
        ];
        check(1.005, 1.01, &[(rate, true), (cpu, true), (peer, true), (other, true)]);
        check(1.02, 1.01, &[(rate, true), (cpu, true), (peer, false), (other, false)]);
        check(1.06, 1.10, &[(rate, false), (cpu, false), (peer, true), (other, false)]);
        check(1.0, 1.0, &[("sluice off again: CPU by off, paired", true)]);
    }
}
