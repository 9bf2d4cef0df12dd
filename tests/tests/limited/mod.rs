//! A site whose service is limited, and a client that counts what is let through.
#![allow(dead_code, reason = "every test binary uses its own part of this")]

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use lab::loopback::{LoopbackAgent, Site};
use serde_json::Value;

use crate::edge::{OPEN, gateway, route, send, services};

pub const HOST: &str = "shop.test";
pub const RULES: &str =
    "  - matches: [{path: {value: /}}]\n    name: all\n    backendRefs: [{name: web, port: 80}]\n";
pub const ON_SERVICE: &str = "{kind: Service, name: web}";

/// A RateLimit of the namespace `default`; `limits` is a YAML list in one line.
pub fn rate_limit(target: &str, limits: &str, rest: &str) -> String {
    format!(
        "apiVersion: sluice.dev/v1alpha1\nkind: RateLimit\nmetadata: {{name: calm, namespace: default}}\nspec:\n\
         \x20 targetRefs: [{target}]\n  limits: {limits}\n{rest}"
    )
}

/// A Gateway that leads to the service `web`, and a limit.
pub fn site(limit: &str) -> Result<Site> {
    Site::new(&[
        ("gateway.yaml", &gateway(OPEN)),
        ("services.yaml", &services(&["web"])?),
        ("routes.yaml", &route("shop", "", RULES)),
        ("limit.yaml", limit),
    ])
}

/// How many of so many requests the backend answers; all others must get the limit's answer.
pub fn admitted(to: SocketAddr, times: usize, headers: &[(&str, &str)]) -> Result<usize> {
    let mut count = 0;
    for _ in 0..times {
        let seen = send(to, HOST, "/x", headers)?;
        match seen.who().as_str() {
            "web" => count += 1,
            "429" => {}
            _ => anyhow::bail!("{headers:?}: {seen:?}"),
        }
    }
    Ok(count)
}

/// What `sluice limits` shows, in JSON.
pub fn limits(agent: &LoopbackAgent<'_>, arguments: &[&str]) -> Result<Value> {
    let output = agent.verb(&[&["limits", "-o", "json"], arguments].concat())?;
    ensure!(output.status.success(), "limits: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice::<Value>(&output.stdout)?["limits"].clone())
}
