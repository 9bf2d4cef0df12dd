//! Requests beside a stream of tables: each is answered by one of them as a whole, whatever changes meanwhile.

mod common;

#[path = "cluster/site.rs"]
mod site;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::http::{Connection, Response};
use lab::netns::Netns;
use lab::{unprivileged, wait_for};
use site::{HOST, NODES, Site};

const LIMIT: Duration = Duration::from_mins(1);
const TIMEOUT: Duration = Duration::from_secs(10);
/// Tables, each with another route and other endpoints than the one before.
const VERSIONS: u32 = 60;
/// Clients on each node: half of them keep their connections.
const CLIENTS: u32 = 4;
/// Answers in all: fewer would prove little.
const ANSWERS: usize = 4000;

/// Two documents that change together: a route that names the version to the backend and to the client, and the endpoints of the
/// service that it leads to: those of one pod in even versions, of another one in odd ones.
fn version(number: u32, pod: &str, address: IpAddr) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: mixed, namespace: default}}\nspec:\n  \
         parentRefs: [{{kind: Service, group: \"\", name: web}}]\n  rules:\n  - filters:\n    \
         - {{type: URLRewrite, urlRewrite: {{path: {{type: ReplaceFullPath, replaceFullPath: /table/{number}}}}}}}\n    \
         - {{type: ResponseHeaderModifier, responseHeaderModifier: {{set: [{{name: x-table, value: \"{number}\"}}]}}}}\n    \
         backendRefs: [{{name: web, port: 80}}]\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web-v4\n  namespace: default\n  \
         labels: {{kubernetes.io/service-name: web}}\naddressType: IPv4\nports: [{{name: http-80, protocol: TCP, port: 8080}}]\n\
         endpoints:\n- addresses: [\"{address}\"]\n  conditions: {{ready: true}}\n  \
         targetRef: {{kind: Pod, name: {pod}, namespace: default}}\n"
    )
}

/// The pod whose endpoints a version has.
fn pod_of(number: u32) -> &'static str {
    if number.is_multiple_of(2) { "web-a" } else { "web-b" }
}

/// The version that an answer is of; an error: parts of it are of different ones.
fn version_of(response: &Response) -> Result<u32> {
    let text = response.text();
    ensure!(response.status == 200, "{}: {text}", response.status);
    let said = response.header("x-table").context("no table is named")?;
    let number: u32 = said.parse().with_context(|| said.to_owned())?;
    let mut words = text.split_whitespace();
    let (pod, path) = (words.nth(1).unwrap_or_default(), words.next_back().unwrap_or_default());
    ensure!(
        path == format!("/table/{number}") && pod == pod_of(number),
        "a mix of versions: the answer names table {said}, and what answered said: {text}"
    );
    Ok(number)
}

/// Asks again and again until it is told to stop; the versions of all answers. Versions never go back.
fn ask(address: SocketAddr, keeps: bool, stop: &AtomicBool) -> Result<Vec<u32>> {
    let mut connection: Option<Connection> = None;
    let mut seen = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let mut open = match connection.take() {
            Some(open) => open,
            None => Connection::open(address, TIMEOUT).context("connecting")?,
        };
        let response = open.get(HOST, "/", &[]).context("asking")?;
        let number = version_of(&response)?;
        ensure!(
            seen.last().is_none_or(|last| *last <= number),
            "after table {:?} came {number}",
            seen.last()
        );
        seen.push(number);
        connection = Some(open).filter(|open| keeps && open.is_reusable());
    }
    Ok(seen)
}

/// A client in a pod's namespace.
fn client(netns: &Netns, address: SocketAddr, keeps: bool, stop: &AtomicBool) -> Result<Vec<u32>> {
    let asked = netns.enter(|| ask(address, keeps, stop))?;
    if asked.is_err() {
        // Nothing more is proved by the others.
        stop.store(true, Ordering::Relaxed);
    }
    asked
}

#[test]
fn no_answer_mixes_two_versions() -> Result<()> {
    if unprivileged("no_answer_mixes_two_versions") {
        return Ok(());
    }
    let mut site = Site::up("cluster_versions")?;
    site.start_all()?;
    let address: SocketAddr = (IpAddr::from(site.lab.cluster_ip(HOST)?.v4), 80).into();
    let publish = |number: u32| -> Result<()> {
        let pod = pod_of(number);
        let to = site.lab.pod(pod)?.address().v4.into();
        site.sluice_with("node1", &["apply", "-f", "-"], version(number, pod, to)).map(drop)
    };
    // The versions are about addresses of one family.
    site.sluice("node1", &["delete", "EndpointSlice/web-v6"])?;
    publish(0)?;
    for node in NODES {
        let pod = site.lab.pod(&format!("client-{node}"))?;
        let answered = || version_of(&pod.in_netns(|| lab::http::get(address, HOST, "/", TIMEOUT))??);
        wait_for("the first version", LIMIT, || answered().is_ok())
            .with_context(|| format!("{node}: {:?}, {:?}", answered(), site.ready_endpoints(node, HOST)))?;
    }
    let clients: Vec<(Netns, bool)> = NODES
        .iter()
        .flat_map(|node| (0..CLIENTS).map(move |number| (node, number.is_multiple_of(2))))
        .map(|(node, keeps)| Ok((site.lab.pod(&format!("client-{node}"))?.netns(), keeps)))
        .collect::<Result<_>>()?;
    let stop = AtomicBool::new(false);
    let seen: Vec<Vec<u32>> = std::thread::scope(|scope| {
        let stop = &stop;
        let asking: Vec<_> = clients
            .iter()
            .map(|(netns, keeps)| scope.spawn(move || client(netns, address, *keeps, stop)))
            .collect();
        let published = (1..=VERSIONS).take_while(|_| !stop.load(Ordering::Relaxed)).try_for_each(publish);
        let last = published.and_then(|()| {
            wait_for("all nodes to have the last version", LIMIT, || {
                let has =
                    |node: &&str| site.answered_table(node).is_ok_and(|table| table == VERSIONS.to_string());
                stop.load(Ordering::Relaxed) || NODES.iter().all(has)
            })
        });
        stop.store(true, Ordering::Relaxed);
        let answers = asking.into_iter().map(|client| client.join().expect("a client does not panic"));
        let answers = answers.collect::<Result<Vec<_>>>()?;
        last.map(|()| answers)
    })?;
    let answers: usize = seen.iter().map(Vec::len).sum();
    ensure!(answers >= ANSWERS, "only {answers} answers");
    for versions in &seen {
        let mut different = versions.clone();
        different.dedup();
        ensure!(
            different.len() > 5,
            "a client saw {different:?}: too few tables changed beside its requests"
        );
    }
    Ok(())
}
