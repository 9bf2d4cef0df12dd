//! `sluice status`.

use std::net::IpAddr;
use std::process::ExitCode;

use serde_json::Value;

use super::{ClientArgs, Format, ask, output};
use crate::admin::{
    CertificateStatus, ConnectStatus, ForeignProgram, GuardStatus, InterfaceStatus, PolicyStatus, Status,
};

/// Refused tunnels that are told of.
const TUNNELS_SHOWN: usize = 16;

pub(super) fn run(args: &ClientArgs) -> anyhow::Result<ExitCode> {
    let status: Status = ask(args, "/status")?;
    match args.output.output {
        Format::Json => output::json(&status)?,
        Format::Table => output::text(&render(&status))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn render(status: &Status) -> String {
    let readiness = match (status.drain.draining, status.ready) {
        (true, _) => "draining",
        (false, true) => "ready",
        (false, false) => "not ready",
    };
    let connections: u64 = status.workers.iter().map(|worker| worker.connections).sum();
    let table = &status.table;
    let counts = table.counts;
    let mut lines = vec![
        format!(
            "node         {} ({readiness}, version {}, up {} s)",
            status.node, status.version, status.uptime_seconds
        ),
        format!(
            "table        version {}.{}, in force since {}",
            table.epoch,
            table.version,
            table.applied_at.as_deref().unwrap_or("-")
        ),
        format!(
            "             {} services, {} routes, {} clusters, {} ready endpoints",
            counts.services, counts.routes, counts.clusters, counts.endpoints
        ),
        format!("connections  {connections} on {} workers", status.workers.len()),
    ];
    lines.extend(super::leader::cluster_lines(&status.cluster));
    lines.extend(capture(status));
    lines.extend(status.guard.as_ref().map(guard).unwrap_or_default());
    let certificate =
        |held: &CertificateStatus| format!("certificate  {} until {}", held.identity, held.not_after);
    lines.extend(status.certificates.iter().map(certificate));
    lines.extend(status.alerts.iter().map(|text| format!("ALERT        {text}")));
    let refused = status.refused_tunnels.iter().map(|refused| format!("NO TUNNEL    {refused}"));
    lines.extend(refused.take(TUNNELS_SHOWN));
    if let Some(more) = status.refused_tunnels.len().checked_sub(TUNNELS_SHOWN).filter(|more| *more > 0) {
        lines.push(format!("NO TUNNEL    and {more} more, which -o json shows"));
    }
    for listener in &status.listeners {
        let state =
            listener.error.as_ref().map_or(listener.address.clone(), |error| format!("NOT OPEN: {error}"));
        lines.push(format!("listener     {} {state}", listener.name));
    }
    let report = &status.config;
    // Whoever leads reads them; the others get what follows.
    let read = report["objects"].as_array().is_some_and(|objects| !objects.is_empty());
    let read_here = read || status.cluster.role != "follower" || status.cluster.documents.count == 0;
    if read_here {
        lines.extend(documents(report));
    } else {
        lines.push(
            "documents    are read by whoever leads: `sluice status` there says what became of each"
                .to_owned(),
        );
    }
    lines.extend(status.unhealthy.iter().map(|pod| format!("UNHEALTHY    {pod}")));
    lines.extend(status.unmet.iter().map(|text| format!("NOT ENFORCED {text}")));
    lines.join("\n")
}

fn past_the_agent(directions: u64) -> Option<String> {
    (directions > 0)
        .then(|| format!("             past the agent: {directions} directions of opaque connections"))
}

fn capture(status: &Status) -> Vec<String> {
    let capture = &status.capture;
    if capture.is_off() {
        return vec![format!("capture      {}", capture.mode)];
    }
    let hooked = |interfaces: &[InterfaceStatus]| {
        let names: Vec<_> =
            interfaces.iter().filter(|i| i.not_captured.is_none()).map(|i| i.name.as_str()).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    };
    let mut lines = vec![
        format!("capture      {} ({}), {} destinations", capture.mode, capture.attach, capture.destinations),
        format!("             pods: {}", hooked(&capture.interfaces)),
        format!("             uplinks: {}", hooked(&capture.uplinks)),
        format!("             pins: {}", capture.pins),
    ];
    let acceleration = &capture.acceleration;
    lines.push(match &acceleration.reason {
        None if acceleration.active => format!(
            "             same-node acceleration: on for {} pod addresses ({} opted out or under a policy, {} not found, {} withdrawn)",
            acceleration.pods, acceleration.opted_out, acceleration.not_found, acceleration.withdrawn
        ),
        reason => format!(
            "             same-node acceleration: off, TCP is used: {}",
            reason.as_deref().unwrap_or("nothing is captured")
        ),
    });
    lines.extend(past_the_agent(acceleration.bridged));
    lines.extend(acceleration.unwatched.as_ref().map(|why| format!("             not watched: {why}")));
    let sockets =
        capture.socket_events_off.as_ref().map_or_else(|| "on".to_owned(), |why| format!("off: {why}"));
    lines.push(format!("             flow events of sockets: {sockets}"));
    if let Some(reason) = &capture.paused {
        lines.push(format!("             PAUSED, everything goes direct: {reason}"));
    }
    for interface in capture.interfaces.iter().chain(&capture.uplinks) {
        if let Some(reason) = &interface.not_captured {
            lines.push(format!("             NOT CAPTURED {}: {reason}", interface.name));
        }
    }
    for ForeignProgram { hook, place, id, name, before_ours } in &capture.foreign {
        let name = if name.is_empty() { "without a name" } else { name };
        lines.push(format!("             others' program on {hook} {place}: {name} (id {id})"));
        if *before_ours {
            lines.push(
                "             it COMES BEFORE OURS there: it can let through or take what policy would refuse".to_owned(),
            );
        }
    }
    lines.extend(balancing(&capture.connect));
    lines.extend(policy(&capture.policy));
    lines.extend(inbound(&capture.inbound));
    if capture.destinations_over_capacity > 0 {
        lines.push(format!(
            "             {} destinations over capacity go direct",
            capture.destinations_over_capacity
        ));
    }
    lines
}

/// The pods under policy.
fn policy(policy: &PolicyStatus) -> Vec<String> {
    let PolicyStatus { pods, closed, left_out, strict, plaintext_refused, outlives_agent } = policy;
    let mut lines = Vec::new();
    if *pods == 0 {
        return lines;
    }
    let then = if *outlives_agent {
        "stays in force when the agent is gone"
    } else {
        "ENDS WITH THE AGENT, as nothing is pinned"
    };
    lines.push(format!("             {pods} addresses of pods under policy, which {then}"));
    if *strict > 0 {
        lines.push(format!(
            "             {strict} of them STRICT (mutual TLS): {plaintext_refused} packets of plaintext refused"
        ));
    }
    if closed + left_out > 0 {
        lines.push(format!(
            "             {closed} CLOSED and {left_out} NOT ENFORCED in the kernel for lack of room"
        ));
    }
    lines
}

/// The pods of this node whose requests the agent judges; of many only the first.
fn inbound(pods: &[IpAddr]) -> Option<String> {
    const SHOWN: usize = 8;
    if pods.is_empty() {
        return None;
    }
    let mut names: Vec<String> = pods.iter().take(SHOWN).map(ToString::to_string).collect();
    if pods.len() > SHOWN {
        names.push(format!("and {} more", pods.len() - SHOWN));
    }
    Some(format!("             inbound: the agent judges the requests to {}", names.join(", ")))
}

fn guard(guard: &GuardStatus) -> Vec<String> {
    let mut lines = Vec::new();
    for interface in &guard.interfaces {
        lines.push(match &interface.not_guarded {
            None => format!("guard        {} ({})", interface.name, interface.mode),
            Some(reason) => format!("guard        NOT GUARDED {}: {reason}", interface.name),
        });
    }
    for map in &guard.maps {
        let left_out = match map.left_out {
            0 => String::new(),
            n => format!(", {n} FOUND NO ROOM and pass"),
        };
        lines.push(format!("             {} {}/{}{left_out}", map.name, map.entries, map.capacity));
    }
    let limits = guard.per_source;
    for (what, rate, burst) in [
        ("packets", limits.packets_per_second, limits.packets_burst),
        ("SYNs", limits.syns_per_second, limits.syns_burst),
    ] {
        if let (Some(rate), Some(burst)) = (rate, burst) {
            lines.push(format!("             each source: {rate} {what}/s, {burst} at once"));
        }
    }
    lines
}

fn balancing(connect: &ConnectStatus) -> Vec<String> {
    let state = match (&connect.cgroup, &connect.unavailable) {
        (Some(cgroup), _) => format!("at connect() below {cgroup}"),
        (None, Some(reason)) => format!("NOT AT CONNECT, the packet programs take its place: {reason}"),
        (None, None) => "not at connect() (no --cgroup)".to_owned(),
    };
    let mut lines = vec![format!("balancing    {state}")];
    for tier in &connect.tiers {
        lines.push(format!("             {} frontends: {} ({})", tier.frontends, tier.tier, tier.reason));
    }
    lines
}

/// A summary of the documents, and a line for each message about one.
fn documents(report: &Value) -> Vec<String> {
    let list = |name: &str| report[name].as_array().map_or(&[][..], Vec::as_slice);
    let objects = list("objects");
    let in_state = |state: &str| objects.iter().filter(|object| object["state"] == state).count();
    let mut lines = vec![format!(
        "documents    {} objects: {} applied, {} not or partly enforced, {} rejected{}",
        objects.len(),
        in_state("applied"),
        in_state("notEnforced"),
        in_state("rejected"),
        wrong(list("files"), objects)
    )];
    for object in objects.iter().filter(|object| object["state"] == "notEnforced") {
        lines.push(format!("             {}", not_enforced(object)));
    }
    for owner in list("files").iter().chain(objects) {
        for message in owner["messages"].as_array().into_iter().flatten() {
            lines.push(format!("             {}", describe(owner, message)));
        }
    }
    lines.extend(objects.iter().filter(|object| object["state"] == "rejected").map(rejected));
    lines
}

/// What else is wrong: files of which nobody knows what they hold, and objects in force that answer with errors.
fn wrong(files: &[Value], objects: &[Value]) -> String {
    let has_errors = |owner: &&Value| {
        owner["messages"].as_array().into_iter().flatten().any(|message| message["severity"] == "error")
    };
    let files = files.iter().filter(has_errors).count();
    let objects = objects.iter().filter(|object| object["state"] != "rejected").filter(has_errors).count();
    let part = |count, what| if count > 0 { format!(", {count} {what}") } else { String::new() };
    part(objects, "in force WITH ERRORS") + &part(files, "FILES NOT READ as a whole")
}

/// An object of which a part, or all, waits for a later version.
fn not_enforced(object: &Value) -> String {
    let fields: Vec<&str> =
        object["fields"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let what = if fields.is_empty() { "all of it".to_owned() } else { fields.join(", ") };
    let text = |name: &str| object[name].as_str().unwrap_or_default();
    format!(
        "{}:{}: not yet enforced: {} {}/{}: {what}",
        text("file"),
        object["line"],
        text("kind"),
        text("namespace"),
        text("name")
    )
}

/// What of a refused object is in force.
fn rejected(object: &Value) -> String {
    let text = |name: &str| object[name].as_str().unwrap_or_default();
    let in_force = if object["lastGood"] == true { "its last good version is" } else { "it is not" };
    format!(
        "             {}:{}: REJECTED, {in_force} in force: {} {}/{}",
        text("file"),
        object["line"],
        text("kind"),
        text("namespace"),
        text("name")
    )
}

fn describe(owner: &Value, message: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let object = match owner["kind"].as_str() {
        Some(kind) => format!(" {kind} {}/{}:", text(&owner["namespace"]), text(&owner["name"])),
        None => String::new(),
    };
    let field = message["field"]
        .as_str()
        .filter(|field| !field.is_empty())
        .map_or(String::new(), |f| format!(" {f}:"));
    let line =
        message["line"].as_u64().filter(|line| *line > 0).map_or(String::new(), |line| format!("{line}:"));
    format!(
        "{}:{line} {}:{object}{field} {} [{}]",
        text(&owner["file"]),
        text(&message["severity"]),
        text(&message["text"]),
        text(&message["code"])
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::CaptureStatus;
    use serde_json::json;

    #[test]
    fn many_pods_are_counted() {
        assert_eq!(inbound(&[]), None);
        let pods: Vec<IpAddr> = (1..=10).map(|last| IpAddr::from([10, 0, 0, last])).collect();
        let line = inbound(&pods[..1]).expect("a line");
        assert!(line.ends_with(" 10.0.0.1"), "{line}");
        let line = inbound(&pods).expect("a line");
        assert!(line.ends_with(", 10.0.0.8, and 2 more"), "{line}");
    }

    #[test]
    fn what_is_still_to_come_is_not_called_off() {
        for (mode, expected) in
            [(CaptureStatus::OFF, "capture      off"), (CaptureStatus::STARTING, "capture      starting")]
        {
            let capture = CaptureStatus { mode: mode.to_owned(), ..CaptureStatus::default() };
            assert!(capture.is_off());
            assert_eq!(super::capture(&Status { capture, ..Status::default() }), [expected]);
        }
    }

    #[test]
    fn wrong_documents_are_named_with_their_place() {
        let report = json!({
            "files": [{"file": "a.yaml", "objects": 1, "messages": []}],
            "objects": [{
                "kind": "VirtualService", "namespace": "default", "name": "web", "file": "a.yaml", "line": 1,
                "state": "rejected", "lastGood": true,
                "messages": [{"severity": "error", "code": "IST0106", "line": 9, "field": "spec.http[0].rout", "text": "unknown field"}]
            }]
        });
        let lines = documents(&report);
        assert_eq!(lines[0], "documents    1 objects: 0 applied, 0 not or partly enforced, 1 rejected");
        let kept = "a.yaml:1: REJECTED, its last good version is in force: VirtualService default/web";
        assert_eq!(lines[2].trim(), kept);
        assert_eq!(
            lines[1].trim(),
            "a.yaml:9: error: VirtualService default/web: spec.http[0].rout: unknown field [IST0106]"
        );
    }

    #[test]
    fn what_is_wrong_is_counted_although_nothing_is_rejected() {
        let message = |severity| json!([{"severity": severity, "code": "X", "line": 1, "text": "bad"}]);
        for (file, object, expected) in [
            ("warning", "warning", "0 rejected"),
            ("error", "info", "0 rejected, 1 FILES NOT READ as a whole"),
            ("info", "error", "0 rejected, 1 in force WITH ERRORS"),
        ] {
            let report = json!({
                "files": [{"file": "a.yaml", "objects": 1, "messages": message(file)}],
                "objects": [{"kind": "Gateway", "namespace": "default", "name": "web", "file": "a.yaml", "line": 1,
                             "state": "applied", "messages": message(object)}]
            });
            let lines = documents(&report);
            assert!(lines[0].ends_with(expected), "{file} {object}: {lines:?}");
        }
    }
}
