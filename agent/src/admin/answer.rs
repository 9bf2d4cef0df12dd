//! Which answer a request gets: a function of the request and of the agent's state.

use std::fmt::Write;

use regex_automata::meta::Regex;
use serde::Serialize;
use serde_json::json;

use super::config_dump::config_dump;
use super::stats::{StatsFilter, clusters, stats};
use super::why::{Asked, Transport, add_seen, why};
use super::{Role, Source, dump};
use crate::compile::RoutingTable;
use crate::telemetry::log::LogError;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What each admin path is for, as `/help` shows it.
const HELP: [(&str, &str); 19] = [
    ("/cluster", "who leads, the nodes with their tables, and the documents"),
    ("/clusters", "endpoints by cluster, in Envoy's text form"),
    ("/config_dump", "workloads, services, policies and certificates, in ztunnel's form"),
    ("/connections", "the connections that are open, with their tier and why"),
    ("/endpoints", "endpoints of all clusters, with their load"),
    (
        "/flows",
        "the last flow events: verdicts, drops, opened and closed connections; ?since=NUMBER gives later ones",
    ),
    ("/help", "this list"),
    ("/limits", "the rate limits, with what they let through and refused; ?top=NUMBER shows keys of each"),
    ("/logging", "the log filter; POST ?level=LEVEL, ?MODULE:LEVEL or ?access=on|off changes it"),
    ("/metrics", "metrics in Prometheus' text format"),
    ("/ready", "200 when ready, else 503"),
    ("/routes", "virtual hosts with their rules"),
    ("/server_info", "version, state and uptime"),
    ("/stats", "metrics as name: value; ?filter=REGEX, ?usedonly"),
    ("/stats/prometheus", "the same as /metrics"),
    ("/status", "the state of capture, table, listeners, configuration and workers"),
    (
        "/why",
        "what becomes of a connection; ?source=IP|POD[:PORT]&destination=IP:PORT|SERVICE:PORT[&protocol=tcp|udp]",
    ),
    ("/healthz", "200 while the agent runs"),
    ("/readyz", "the same as /ready"),
];

/// A request, as far as it matters here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question<'a> {
    pub(super) post: bool,
    pub(super) path: &'a str,
    pub(super) query: Option<&'a str>,
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) content_type: &'static str,
    pub(super) body: String,
}

impl Answer {
    fn text(status: u16, body: impl Into<String>) -> Self {
        Self { status, content_type: TEXT, body: body.into() }
    }

    fn json(value: &impl Serialize) -> Self {
        match serde_json::to_string_pretty(value) {
            Ok(body) => Self { status: 200, content_type: JSON, body: body + "\n" },
            Err(error) => Self::text(500, format!("cannot be written as JSON: {error}\n")),
        }
    }
}

/// Answers a request on a listener of this role. Only what changes something needs a POST, and there only a POST will do.
pub(super) fn answer(role: Role, question: Question<'_>, source: &Source) -> Answer {
    let known = match role {
        Role::Admin => admin(question, source),
        Role::Metrics => metrics(question.path, source),
        Role::Health => health(question.path, source),
    };
    known.unwrap_or_else(|| Answer::text(404, format!("no such path: {}; see /help\n", question.path)))
}

fn admin(question: Question<'_>, source: &Source) -> Option<Answer> {
    let table = source.tables.load();
    Some(match question.path {
        "/" | "/help" => Answer::text(200, help()),
        "/cluster" => Answer::json(&(source.cluster)()),
        "/clusters" => Answer::text(200, clusters(&table)),
        "/config_dump" => Answer::json(&config_dump(&table, &(source.certificates)())),
        "/connections" => Answer::json(&(source.connections)()),
        "/endpoints" => Answer::json(&(source.endpoints)()),
        "/limits" => limits_answer(question.query, source),
        "/routes" => Answer::json(&dump::routes(&table)),
        "/status" => Answer::json(&(source.status)()),
        "/server_info" => server_info(source),
        "/logging" => logging(question, source),
        "/stats" => stats_answer(question.query, source),
        "/flows" => flows_answer(question.query, source),
        "/why" => why_answer(question.query, &table, source),
        path => return metrics(path, source).or_else(|| health(path, source)),
    })
}

fn metrics(path: &str, source: &Source) -> Option<Answer> {
    matches!(path, "/metrics" | "/stats/prometheus").then(|| match source.metrics.render() {
        Ok(body) => Answer { status: 200, content_type: PROMETHEUS, body },
        Err(error) => Answer::text(500, format!("{error}\n")),
    })
}

fn health(path: &str, source: &Source) -> Option<Answer> {
    match path {
        "/healthz" | "/livez" => Some(Answer::text(200, "ok\n")),
        "/healthz/ready" | "/readyz" | "/ready" if *source.ready.borrow() => {
            Some(Answer::text(200, "LIVE\n"))
        }
        "/healthz/ready" | "/readyz" | "/ready" => Some(Answer::text(503, "not ready\n")),
        _ => None,
    }
}

fn help() -> String {
    let mut text = "admin commands are:\n".to_owned();
    for (path, purpose) in HELP {
        // Writing into a String cannot fail.
        let _ = writeln!(text, "  {path}: {purpose}");
    }
    text
}

fn server_info(source: &Source) -> Answer {
    let status = (source.status)();
    let state = match (status.drain.draining, status.ready) {
        (true, _) => "DRAINING",
        (false, true) => "LIVE",
        (false, false) => "INITIALIZING",
    };
    let uptime = format!("{}s", status.uptime_seconds);
    Answer::json(&json!({
        "version": status.version,
        "state": state,
        "node": { "id": status.node },
        "uptime_current_epoch": uptime,
        "uptime_all_epochs": uptime,
    }))
}

fn stats_answer(query: Option<&str>, source: &Source) -> Answer {
    let mut filter = StatsFilter::default();
    for (name, value) in parameters(query) {
        match (name, value) {
            ("usedonly", _) => filter.used_only = true,
            ("filter", Some(text)) => match Regex::new(text) {
                Ok(regex) => filter.name = Some(regex),
                Err(error) => return Answer::text(400, format!("filter `{text}`: {error}\n")),
            },
            _ => {
                return Answer::text(
                    400,
                    format!("unknown parameter `{name}`; use filter=REGEX or usedonly\n"),
                );
            }
        }
    }
    match source.metrics.render() {
        Ok(text) => Answer::text(200, stats(&text, &filter)),
        Err(error) => Answer::text(500, format!("{error}\n")),
    }
}

fn flows_answer(query: Option<&str>, source: &Source) -> Answer {
    let since = parameters(query).find(|(name, _)| *name == "since").and_then(|(_, value)| value);
    match since.unwrap_or("0").parse() {
        Ok(since) => Answer::json(&(source.flows)(since)),
        Err(_) => Answer::text(400, "since: a number, as `next` of an earlier answer\n"),
    }
}

fn limits_answer(query: Option<&str>, source: &Source) -> Answer {
    let top = parameters(query).find(|(name, _)| *name == "top").and_then(|(_, value)| value);
    match top.unwrap_or("0").parse() {
        Ok(top) => Answer::json(&(source.limits)(top)),
        Err(_) => Answer::text(400, "top: a number of keys\n"),
    }
}

fn why_answer(query: Option<&str>, table: &RoutingTable, source: &Source) -> Answer {
    let value = |wanted| parameters(query).find(|(name, _)| *name == wanted).and_then(|(_, value)| value);
    let (Some(from), Some(to)) = (value("source"), value("destination")) else {
        return Answer::text(400, "say who dials what: ?source=IP|POD&destination=IP:PORT|SERVICE:PORT\n");
    };
    let protocol = value("protocol").map(Transport::read).transpose();
    match protocol.and_then(|protocol| Asked::read(from, to, protocol, table)) {
        Ok(asked) => {
            let held = (source.held)(asked.source, asked.destination);
            let mut said = why(asked, table, &(source.status)(), held);
            if asked.unserved {
                to.clone_into(&mut said.destination);
            }
            add_seen(&mut said, asked, table, ((source.connections)().connections, (source.flows)(0).flows));
            Answer::json(&said)
        }
        Err(error) => Answer::text(400, format!("{error}\n")),
    }
}

/// `?level=debug` and `?level=a:debug,b:info` set all levels, `?a:debug` (ztunnel) and `?a=debug` (Envoy) one module's.
fn logging(question: Question<'_>, source: &Source) -> Answer {
    let mut changes = parameters(question.query).peekable();
    if changes.peek().is_some() && !question.post {
        return Answer::text(405, "changing the log needs a POST\n");
    }
    for (name, value) in changes {
        let (name, value) = match value {
            Some(value) => (name, value),
            None => match module_level(name) {
                Some(pair) => pair,
                None => return Answer::text(400, format!("`{name}` names no level; use MODULE:LEVEL\n")),
            },
        };
        if let Err(error) = change_log(name, value, source) {
            return Answer::text(400, format!("{error}\n"));
        }
    }
    Answer::text(200, format!("current log level is {}\n", source.log.filter()))
}

fn change_log(name: &str, value: &str, source: &Source) -> Result<(), LogError> {
    match (name, value) {
        ("access", "on" | "off") => {
            source.access.set_enabled(value == "on");
            Ok(())
        }
        ("level", filter) => {
            let directive = |part: &str| match module_level(part) {
                Some((module, level)) => format!("{module}={level}"),
                None => part.to_owned(),
            };
            source.log.set_filter(&filter.split(',').map(directive).collect::<Vec<_>>().join(","))
        }
        (module, level) => source.log.set_level_of(module, level),
    }
}

/// `agent::config:debug` is a module and its level, `agent::config` is neither.
fn module_level(text: &str) -> Option<(&str, &str)> {
    text.rsplit_once(':').filter(|(module, _)| !module.ends_with(':'))
}

fn parameters(query: Option<&str>) -> impl Iterator<Item = (&str, Option<&str>)> {
    let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').map_or((pair, None), |(name, value)| (name, Some(value))))
}
