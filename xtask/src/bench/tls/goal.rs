//! What the agent's figures shall be: its ratios to nginx of the same rounds, and its memory.

use std::fmt;

use super::super::contender::Contender;
use super::super::figure::Figure;
use super::super::row::Metric;

/// A figure that is judged.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    goal: &'static Goal,
    value: f64,
    /// Whether the goal is met.
    pub met: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Goal {
    row: &'static str,
    metric: Metric,
    bound: Bound,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Bound {
    /// Of nginx's, at least.
    RatioAtLeast(f64),
    /// Of nginx's, at most.
    RatioAtMost(f64),
    /// By itself, at most.
    AtMost(f64),
}

const GOALS: [Goal; 7] = [
    goal("memory", Metric::WithIdle, Bound::AtMost(90.0)),
    goal("100@32", Metric::Rate, Bound::RatioAtLeast(1.0)),
    goal("16k@32", Metric::Rate, Bound::RatioAtLeast(1.0)),
    goal("mutual", Metric::Cpu, Bound::RatioAtMost(0.45)),
    goal("pair-100@32", Metric::Rate, Bound::RatioAtLeast(1.4)),
    goal("pair-100@32", Metric::Cpu, Bound::RatioAtMost(0.72)),
    goal("pair-16k@32", Metric::Rate, Bound::RatioAtLeast(1.1)),
];

const fn goal(row: &'static str, metric: Metric, bound: Bound) -> Goal {
    Goal { row, metric, bound }
}

/// Judges what was measured; a goal without its figure is passed over.
pub fn judge(figures: &[Figure]) -> Vec<Judged> {
    let judged = GOALS.iter().filter_map(|goal| {
        let figure = figures.iter().find(|one| one.row == goal.row && one.metric == goal.metric)?;
        let value = match goal.bound {
            Bound::AtMost(_) => figure.of(Contender::Sluice)?.median,
            _ => figure.ratio(Contender::Sluice, Contender::Nginx)?.median,
        };
        let met = match goal.bound {
            Bound::RatioAtLeast(least) => value >= least,
            Bound::RatioAtMost(most) | Bound::AtMost(most) => value <= most,
        };
        Some(Judged { goal, value, met })
    });
    judged.collect()
}

impl fmt::Display for Judged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, bound, unit) = match self.goal.bound {
            Bound::RatioAtLeast(least) => (">=", least, " of nginx's"),
            Bound::RatioAtMost(most) => ("<=", most, " of nginx's"),
            Bound::AtMost(most) => ("<=", most, ""),
        };
        let met = if self.met { "met" } else { "MISSED" };
        let (row, label) = (self.goal.row, self.goal.metric.label());
        write!(f, "{row} {label}: {:.2}{unit}, {sign} {bound}: {met}", self.value)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn figures_are_judged_by_their_bounds() {
        let check = |row, metric, (nginx, sluice): (f64, f64), expected: &str| {
            let values = BTreeMap::from([
                (Contender::Nginx, vec![Some(nginx)]),
                (Contender::Sluice, vec![Some(sluice)]),
            ]);
            let judged = judge(&[Figure { row, metric, values }]);
            let said: Vec<_> = judged.iter().map(ToString::to_string).collect();
            assert_eq!(said.join("; "), expected, "{row}");
        };
        let rate = |ratio, end| format!("pair-100@32 req/s: {ratio} of nginx's, >= 1.4: {end}");
        check("pair-100@32", Metric::Rate, (100.0, 140.0), &rate("1.40", "met"));
        check("pair-100@32", Metric::Rate, (100.0, 139.0), &rate("1.39", "MISSED"));
        let cpu = |ratio, end| format!("mutual CPU s per 100k: {ratio} of nginx's, <= 0.45: {end}");
        check("mutual", Metric::Cpu, (100.0, 45.0), &cpu("0.45", "met"));
        check("mutual", Metric::Cpu, (100.0, 46.0), &cpu("0.46", "MISSED"));
        let idle = |mib, end| format!("memory RSS MiB, 5,000 idle: {mib}, <= 90: {end}");
        check("memory", Metric::WithIdle, (1.0, 90.0), &idle("90.00", "met"));
        check("memory", Metric::WithIdle, (200.0, 90.1), &idle("90.10", "MISSED"));
        check("full", Metric::Rate, (1.0, 1.0), "");
    }
}
