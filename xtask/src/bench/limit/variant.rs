//! Proxies with and without a limit that refuses nobody: their configurations are those of `bench http` with some lines more.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result};
use lab::http;
use lab::wait::{PATIENCE, wait_until};

use super::super::contender::Contender;
use super::super::track::{BACKEND, PROXY, Place, Server, Track};

/// The backend's port.
const BACKEND_PORT: u16 = 8000;
const FIRST_PORT: u16 = 8600;
/// What finds the limit's place in a configuration.
const HAPROXY_AT: &str = "frontend plain\n";
const NGINX_HTTP: &str = "http {\n";
const NGINX_LOCATION: &str = "    location / {\n";
const ENVOY_AT: &str = "          http_filters:\n";

/// Another route of the agent's, with a limit or without: looking it up is no cost of a limit.
const OTHER_ROUTE: &str = "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: other, namespace: default}
spec:
  parentRefs: [{name: edge}]
  hostnames: [other.test]
  rules:
  - backendRefs: [{name: backend, port: 80}]
";

/// A proxy, and its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limited {
    pub contender: Contender,
    /// What the table calls it.
    pub name: &'static str,
    /// The agent's limit, in one line of YAML, and the route that it is about.
    limit: Option<(&'static str, &'static str)>,
}

const fn peer(contender: Contender, name: &'static str) -> Limited {
    Limited { contender, name, limit: None }
}

const fn sluice(name: &'static str, limit: &'static str, route: &'static str) -> Limited {
    Limited { contender: Contender::Sluice, name, limit: Some((limit, route)) }
}

/// What a proxy without a limit is called, and a second one that tells how far two equal processes lie apart.
const OFF: &str = "off";
const AGAIN: &str = "off again";

/// All of them, in the order of the table.
pub const VARIANTS: &[Limited] = &[
    peer(Contender::Nginx, OFF),
    peer(Contender::Nginx, "limit_req"),
    peer(Contender::Haproxy, OFF),
    peer(Contender::Haproxy, "stick"),
    peer(Contender::Envoy, OFF),
    peer(Contender::Envoy, "local"),
    peer(Contender::Sluice, OFF),
    peer(Contender::Sluice, AGAIN),
    sluice("rate", "{name: a, key: [{type: SourceAddress}], rate: {requests: 4000000000, per: 1s}}", "all"),
    sluice("window", "{name: a, key: [{type: SourceAddress}], window: {requests: 10000, per: 10ms}}", "all"),
    sluice("in flight", "{name: a, key: [{type: SourceAddress}], inFlight: 10000}", "all"),
    sluice(
        "elsewhere",
        "{name: a, key: [{type: SourceAddress}], rate: {requests: 4000000000, per: 1s}}",
        "other",
    ),
];

impl Limited {
    /// Whether it has no limit.
    pub fn is_off(&self) -> bool {
        self.name == OFF
    }

    /// Whether it tells how far equal processes lie apart.
    pub fn is_control(&self) -> bool {
        self.name == AGAIN
    }

    fn is_bare(&self) -> bool {
        self.is_off() || self.is_control()
    }

    /// As rows call it.
    pub fn label(&self) -> String {
        format!("{} {}", self.contender.name(), self.name)
    }

    /// Where clients find it.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(PROXY.into(), self.port())
    }

    fn port(&self) -> u16 {
        let place = VARIANTS.iter().position(|one| one == self).unwrap_or_default();
        FIRST_PORT + 10 * u16::try_from(place).unwrap_or_default()
    }

    /// Starts it and waits until it passes requests on.
    pub fn start(&self, track: &Track, program: &Path) -> Result<Server> {
        self.start_under(&[], track, program)
    }

    /// Likewise as an argument of another program's command line.
    pub fn start_under(&self, outer: &[String], track: &Track, program: &Path) -> Result<Server> {
        let name = format!("limit-{}", self.port());
        let argv = [outer, &self.argv(&name, track.directory(), program)?].concat();
        let mut server = track.start(Place::Proxy, &name, &argv)?;
        wait_until(&format!("{self:?} to answer"), PATIENCE, || {
            if let Err(error) = server.check() {
                return Some(Err(error));
            }
            let look = || http::get(self.address(), "bench", "/100", std::time::Duration::from_secs(1));
            matches!(track.client.enter(look), Ok(Ok(answer)) if answer.status == 200).then_some(Ok(()))
        })??;
        Ok(server)
    }

    fn argv(&self, name: &str, directory: &Path, program: &Path) -> Result<Vec<String>> {
        let own = directory.join(name);
        fs::create_dir_all(&own).context("creating a directory")?;
        let ending = if self.contender == Contender::Envoy { "yaml" } else { "conf" };
        let ending = if self.contender == Contender::Sluice { "yaml" } else { ending };
        let file = own.join(format!("limit.{ending}"));
        fs::write(&file, self.config(&own)).context("writing a configuration")?;
        let (program, file, own) =
            (program.display().to_string(), file.display().to_string(), own.display().to_string());
        let admin = |offset: u16| format!("127.0.0.1:{}", self.port() + offset);
        let line = match self.contender {
            Contender::Haproxy => format!("{program} -db -f {file}"),
            Contender::Envoy => format!(
                "{program} --concurrency 1 --config-path {file} --disable-hot-restart --log-level warn"
            ),
            Contender::Sluice => format!(
                "{program} agent --node bench --config {own} --capture off --workers 1 --access-log off --log warn \
                 --set gateway.http.connection.max-requests=off --admin {} --metrics {} --health {}",
                admin(2),
                admin(3),
                admin(4)
            ),
            _ => format!("{program} -e stderr -c {file} -p {own}"),
        };
        Ok(line.split_whitespace().map(str::to_owned).collect())
    }

    fn config(&self, directory: &Path) -> String {
        let text = match self.contender {
            Contender::Haproxy => include_str!("../peers/haproxy.conf").to_owned(),
            Contender::Envoy => include_str!("../peers/envoy.conf").to_owned(),
            Contender::Sluice => include_str!("../peers/sluice.conf").to_owned() + OTHER_ROUTE,
            _ => include_str!("../peers/nginx.conf").to_owned(),
        };
        let text = if self.is_bare() { text } else { self.with_limit(&text) };
        [
            ("{{DIR}}", directory.display().to_string()),
            ("{{ADDRESS}}", PROXY.to_string()),
            ("{{PORT}}", self.port().to_string()),
            ("{{H2_PORT}}", (self.port() + 1).to_string()),
            ("{{ADMIN_PORT}}", (self.port() + 2).to_string()),
            ("{{BACKEND}}", BACKEND.to_string()),
            ("{{BACKEND_PORT}}", BACKEND_PORT.to_string()),
        ]
        .iter()
        .fold(text, |text, (name, value)| text.replace(name, value))
    }

    fn with_limit(&self, text: &str) -> String {
        let after = |text: &str, place: &str, more: &str| text.replacen(place, &format!("{place}{more}"), 1);
        match self.contender {
            Contender::Haproxy => after(
                text,
                HAPROXY_AT,
                "  stick-table type ip size 1m expire 60s store http_req_rate(10s)\n  http-request track-sc0 src\n  \
                 http-request deny deny_status 429 if { sc_http_req_rate(0) gt 2000000000 }\n",
            ),
            Contender::Envoy => after(
                text,
                ENVOY_AT,
                "          - name: envoy.filters.http.local_ratelimit\n            typed_config:\n              \
                 \"@type\": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit\n              \
                 stat_prefix: limit\n              \
                 token_bucket: {max_tokens: 2000000000, tokens_per_fill: 2000000000, fill_interval: 1s}\n              \
                 filter_enabled: {default_value: {numerator: 100, denominator: HUNDRED}}\n              \
                 filter_enforced: {default_value: {numerator: 100, denominator: HUNDRED}}\n",
            ),
            Contender::Sluice => {
                let (limit, route) = self.limit.unwrap_or_default();
                format!(
                    "{text}---\napiVersion: sluice.dev/v1alpha1\nkind: RateLimit\nmetadata: {{name: bench, namespace: default}}\nspec:\n  \
                     targetRefs: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, name: {route}}}]\n  limits: [{limit}]\n"
                )
            }
            _ => {
                let zone = "  limit_req_zone $binary_remote_addr zone=all:10m rate=1000000r/s;\n";
                let text = after(text, NGINX_HTTP, zone);
                after(&text, NGINX_LOCATION, "      limit_req zone=all burst=1000000 nodelay;\n")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_limit_has_its_place_and_every_proxy_its_ports() {
        let mut ports = BTreeSet::new();
        for variant in VARIANTS {
            let text = variant.config(Path::new("/run/x"));
            assert!(!text.contains("{{"), "{variant:?}: {text}");
            let limits = ["limit_req", "stick-table", "local_ratelimit", "RateLimit"];
            let limited = limits.iter().any(|word| text.contains(word));
            assert_eq!(limited, !variant.is_bare(), "{variant:?}: {text}");
            assert!(ports.insert(variant.port()), "{variant:?}");
        }
    }
}
