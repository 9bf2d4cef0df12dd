//! Envoy-style text: `/clusters` and `/stats`.

use std::fmt::Write;

use regex_automata::meta::Regex;

use crate::compile::{Cluster, RoutingTable, Upstream};

/// One line for each value, `cluster::address::name::value`.
pub(super) fn clusters(table: &RoutingTable) -> String {
    let mut text = String::new();
    for cluster in table.clusters.values() {
        let name = name(cluster);
        // Writing into a String cannot fail.
        let _ = writeln!(text, "{name}::observability_name::{name}");
        let hosts = cluster.endpoints.iter().map(|upstream| (upstream, "healthy"));
        let hosts = hosts.chain(cluster.unready.iter().map(|upstream| (upstream, "/failed_eds_health")));
        for (upstream, health) in hosts {
            host(&mut text, &name, upstream, health);
        }
    }
    text
}

fn name(cluster: &Cluster) -> String {
    let key = &cluster.key;
    format!("outbound|{}|{}|{}", key.port, key.subset.as_deref().unwrap_or(""), key.service.fqdn())
}

fn host(text: &mut String, cluster: &str, upstream: &Upstream, health: &str) {
    let hostname =
        upstream.workload.as_ref().map(|workload| workload.name.name.to_string()).unwrap_or_default();
    for (name, value) in [
        ("rq_active", upstream.active().to_string()),
        ("hostname", hostname),
        ("health_flags", health.to_owned()),
    ] {
        let _ = writeln!(text, "{cluster}::{}::{name}::{value}", upstream.address);
    }
}

/// Which statistics are asked for.
#[derive(Debug, Default)]
pub(super) struct StatsFilter {
    /// Names that fit anywhere.
    pub(super) name: Option<Regex>,
    /// Leaves out those that are zero.
    pub(super) used_only: bool,
}

/// `name: value`, from Prometheus' text; histogram buckets are left out, as their sums and counts say enough here.
pub(super) fn stats(prometheus: &str, filter: &StatsFilter) -> String {
    let wanted = |name: &str, value: &str| {
        filter.name.as_ref().is_none_or(|regex| regex.is_match(name)) && !(filter.used_only && value == "0")
    };
    let mut text = String::new();
    for (name, value) in prometheus.lines().filter_map(|line| line.rsplit_once(' ')) {
        let family = name.split('{').next().unwrap_or_default();
        if !name.starts_with('#') && !family.ends_with("_bucket") && wanted(name, value) {
            let _ = writeln!(text, "{name}: {value}");
        }
    }
    text
}
