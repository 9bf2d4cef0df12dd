//! Gateways and HTTPRoutes as documents, and a client that says what its request became.
#![allow(dead_code, reason = "every test binary uses its own part of this")]

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::backend;
use lab::http::{Connection, Response};
use lab::loopback::service;
use serde_json::Value;

/// How long one read or write may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The port that the tests' Gateway listeners have at their own address.
pub const PORT: u16 = 8080;

/// A Gateway `infra/edge` at the site's own address; `listeners` is a YAML list.
pub fn gateway(listeners: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: edge, namespace: infra}}\nspec:\n  \
         gatewayClassName: sluice\n  addresses: [{{type: IPAddress, value: GATEWAY_IP}}]\n  listeners:\n{listeners}"
    )
}

/// A listener on [`PORT`] that takes routes from everywhere.
pub const OPEN: &str =
    "  - {name: http, port: 8080, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}\n";

/// An HTTPRoute of the namespace `default` on the Gateway `infra/edge`; `rules` is a YAML list.
pub fn route(name: &str, rest: &str, rules: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: default}}\n\
         spec:\n  parentRefs: [{{name: edge, namespace: infra}}]\n{rest}  rules:\n{rules}"
    )
}

/// Services of the namespace `default` with an echoing server each, by name.
pub fn services(names: &[&str]) -> Result<String> {
    let one = |name: &&str| Ok(service("default", name, 80, &[backend::echo(name)?]));
    names.iter().map(one).collect()
}

/// What a request became.
#[derive(Debug)]
pub struct Seen {
    /// The answer.
    pub response: Response,
    /// What the backend saw; null where the answer is not a backend's.
    pub request: Value,
}

impl Seen {
    /// The backend that answered, or the status of another answer.
    pub fn who(&self) -> String {
        match self.request["backend"].as_str() {
            Some(backend) if self.response.status == 200 => backend.to_owned(),
            _ => self.response.status.to_string(),
        }
    }

    /// All values of a header that the backend saw.
    pub fn sent(&self, name: &str) -> Vec<&str> {
        let headers = self.request["headers"].as_array().map_or(&[][..], Vec::as_slice);
        headers.iter().filter(|pair| pair[0] == name).filter_map(|pair| pair[1].as_str()).collect()
    }

    /// All values of a header of the answer.
    pub fn got(&self, name: &str) -> Vec<&str> {
        let headers = self.response.headers.iter();
        headers.filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect()
    }
}

/// Sends `METHOD PATH` (`GET` where there is no method) on a connection of its own.
pub fn send(to: SocketAddr, host: &str, what: &str, headers: &[(&str, &str)]) -> Result<Seen> {
    let mut connection = Connection::open(to, TIMEOUT).with_context(|| format!("connecting to {to}"))?;
    send_on(&mut connection, host, what, headers)
}

/// Sends on a connection that is kept.
pub fn send_on(
    connection: &mut Connection,
    host: &str,
    what: &str,
    headers: &[(&str, &str)],
) -> Result<Seen> {
    let (method, path) = what.split_once(' ').unwrap_or(("GET", what));
    let response =
        connection.request(method, host, path, headers).with_context(|| format!("{what} of {host}"))?;
    let request = serde_json::from_slice(&response.body).unwrap_or_default();
    Ok(Seen { response, request })
}

/// Fails unless `METHOD PATH` with the headers is answered by that backend, or with that status.
pub fn check(to: SocketAddr, host: &str, what: &str, headers: &[(&str, &str)], expected: &str) -> Result<()> {
    let seen = send(to, host, what, headers)?;
    ensure!(seen.who() == expected, "{host} {what} {headers:?}: {} and not {expected}: {seen:?}", seen.who());
    Ok(())
}
