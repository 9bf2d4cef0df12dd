//! An agent's part in a cluster: documents are read as files are, and what the cluster agrees on is applied as documents are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;

use super::follow::Follower;
use super::status::Observed;
use super::tables::Tables;
use super::{DocumentSource, Settings};
use crate::admin::{
    ClusterDump, DocumentsDump, InForceDump, LeaderDump, NodeDump, OutReasons, RefusedDocumentsDump,
    RefusedDump, SealDump,
};
use crate::cluster::disk::KeptDocuments;
use crate::cluster::registry::{Node, NodeRecord, NodeState};
use crate::cluster::seal::Position;
use crate::cluster::{
    self, Agent, ClusterSettings, ClusterView, RedisCounters, RedisOptions, RedisStore, StoreError, Trust,
};
use crate::compile::wire::{Parts, Touched};
use crate::compile::{TableVersion, compile_parts, recompile};
use crate::config::{self, InputFile, State, load, stored_files};
use crate::health::PodHealth;
use crate::model::ObjectName;
use crate::telemetry::{ClusterReading, rfc3339};

/// How an agent is part of a cluster.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// Where the store is.
    pub redis: RedisOptions,
    /// The life of the lease, and of a node's heartbeat.
    pub ttl: Duration,
    /// Where the table and the documents are kept.
    pub state: Option<PathBuf>,
    /// The node's certificates; `None`: tables are not signed, which somebody asked for.
    pub ca: Option<PathBuf>,
}

/// Reads documents and applies tables.
struct Member {
    observed: Arc<Observed>,
    follower: Arc<Mutex<Follower>>,
    documents: Mutex<Documents>,
}

/// The documents as they were read last.
#[derive(Default)]
struct Documents {
    state: State,
    /// What the state was made of.
    read: Option<Arc<KeptDocuments>>,
}

impl Agent for Member {
    fn read(&self, documents: &Arc<KeptDocuments>) -> cluster::Read {
        self.documents.lock().unwrap_or_else(PoisonError::into_inner).take_in(documents, &self.observed)
    }

    fn apply(&self, parts: &Parts, touched: Option<&Touched>, at: Position) {
        let mut follower = self.follower.lock().unwrap_or_else(PoisonError::into_inner);
        follower.table(|previous| match touched {
            Some(touched) => recompile(parts, touched, previous, at.version),
            None => compile_parts(parts, previous, at.version),
        });
    }
}

impl Documents {
    fn take_in(&mut self, documents: &Arc<KeptDocuments>, observed: &Observed) -> cluster::Read {
        let touched = self.update(documents);
        if touched.is_none() {
            self.state = load(&self.state, files(documents.texts.iter()));
            observed.reported(&self.state.report);
        }
        self.read = Some(Arc::clone(documents));
        cluster::Read { model: Arc::clone(&self.state.model), touched }
    }

    /// Takes in what changed, where no more follows from it than endpoints of these services.
    fn update(&mut self, documents: &KeptDocuments) -> Option<BTreeSet<ObjectName>> {
        let before = self.read.as_ref().filter(|before| before.store == documents.store)?;
        let (mut changed, mut same_ids) = (Vec::new(), true);
        before.texts.differences(&documents.texts, PartialEq::eq, |id, was, is| {
            same_ids &= was.is_some() && is.is_some();
            changed.extend(is.map(|text| (id, text)));
        });
        if same_ids { self.state.update(&files(changed.into_iter())) } else { None }
    }
}

fn files<'a>(texts: impl Iterator<Item = (&'a Arc<str>, &'a (u64, Arc<str>))>) -> Vec<InputFile> {
    let about_traffic = texts.filter(|(id, _)| !id.starts_with(cluster::documents::RESERVED));
    stored_files(about_traffic.map(|(id, (_, text))| (id, text)))
}

/// Takes part in the cluster. What the disk holds is in force when this returns.
pub(super) fn join(
    settings: &Settings,
    options: &ClusterOptions,
    observed: &Arc<Observed>,
    follower: &Arc<Mutex<Follower>>,
) -> anyhow::Result<cluster::Handle> {
    let trust = match &options.ca {
        Some(dir) => Trust::Signed(Arc::new(super::mesh::node_directory(dir, &settings.node)?)),
        None => Trust::Unsigned,
    };
    let signed = matches!(trust, Trust::Signed(_));
    let store = RedisStore::connect(options.redis.clone()).context("--redis")?;
    let member = Member {
        observed: Arc::clone(observed),
        follower: Arc::clone(follower),
        documents: Mutex::default(),
    };
    let taking_part = ClusterSettings {
        node: settings.node.as_str().into(),
        cluster: settings.cluster.as_str().into(),
        ttl: options.ttl,
        state: options.state.clone(),
        version: env!("CARGO_PKG_VERSION"),
    };
    let handle = cluster::start(store, taking_part, trust, member).context("--state")?;
    observed.set_cluster(handle.view(), signed);
    Ok(handle)
}

/// What limits of the cluster are counted by; none for an agent that runs alone.
pub(super) fn counters(
    settings: &Settings,
    observed: &Observed,
    tables: &Tables,
) -> anyhow::Result<Option<Arc<RedisCounters>>> {
    let DocumentSource::Cluster(options) = &settings.documents else { return Ok(None) };
    let counters = Arc::new(RedisCounters::start(options.redis.clone()).context("--redis")?);
    observed.set_counters(Arc::clone(&counters));
    let current = Arc::clone(&tables.current);
    counters.tell(&settings.node, move || super::limits::holdings(&current.load()));
    let (opened, mut tables) = (Arc::clone(&counters), tables.subscribe());
    tokio::spawn(async move {
        // Connected as soon as a table has such a limit, before the first request meets it.
        if tables.wait_for(|table| table.limits.are_shared()).await.is_ok() {
            opened.open();
        }
    });
    Ok(Some(counters))
}

/// The cluster of an agent that runs alone.
pub(super) fn alone(node: &str, cluster: &str, config: &config::Report) -> ClusterDump {
    ClusterDump {
        role: "standalone".to_owned(),
        cluster: cluster.to_owned(),
        node: node.to_owned(),
        documents: DocumentsDump { count: config.objects.len(), revision: 0 },
        ..ClusterDump::default()
    }
}

/// What is known of the cluster, for those who ask.
pub(super) fn dump(view: &Mutex<ClusterView>, (node, cluster, signed): (&str, &str, bool)) -> ClusterDump {
    let view = view.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let good = view.leader.filter(|(_, until)| *until > Instant::now());
    let leader = good.map(|(lease, until)| LeaderDump {
        node: lease.node.to_string(),
        epoch: lease.token.epoch,
        nonce: format!("{:016x}", lease.token.nonce),
        expires_in_ms: u64::try_from(until.saturating_duration_since(Instant::now()).as_millis())
            .unwrap_or(u64::MAX),
    });
    let refused = view.refused.map(|(at, reason, detail)| RefusedDump {
        table: at.map(|at| version(at.version)).unwrap_or_default(),
        reason: reason.to_owned(),
        detail,
    });
    let seal = view.seal.map(|seal| SealDump {
        generation: seal.head.generation,
        operator: seal.operator.to_string(),
        sealed_at: rfc3339(seal.at()).to_string(),
    });
    let documents_refused = view
        .documents_refused
        .map(|(reason, detail)| RefusedDocumentsDump { reason: reason.to_owned(), detail });
    let by_name = |counts: BTreeMap<&'static str, u64>| {
        counts.into_iter().map(|(reason, count)| (reason.to_owned(), count)).collect()
    };
    let in_force = view.in_force.map(|(at, _)| InForceDump {
        epoch: at.version.token.epoch,
        version: at.version.version,
        revision: at.revision,
    });
    let (_, revision, count) = view.documents;
    let heard = is_heard(view.store_error.as_ref());
    let mut nodes: Vec<_> = view.nodes.iter().map(member).collect();
    for there in &mut nodes {
        if there.node == node {
            there.table = view.in_force.map(|(at, _)| version(at.version)).unwrap_or_default();
            there.applied_at = view.in_force.map(|(_, since)| rfc3339(since).to_string());
        } else if !heard {
            there.state = format!("unknown, as the store does not answer; last heard of as {}", there.state);
            (there.refused, there.documents_refused) = (None, None);
        }
    }
    ClusterDump {
        role: if view.leads.is_some() { "leader" } else { "follower" }.to_owned(),
        cluster: cluster.to_owned(),
        node: node.to_owned(),
        leader,
        nodes,
        documents: DocumentsDump { count, revision },
        in_force,
        signed,
        refused,
        at_odds: view.at_odds,
        unpublished: view.unpublished,
        cannot_lead: view.cannot_lead,
        fenced: view.fenced,
        yielded: view.yielded.map(str::to_owned),
        refusals: by_name(view.refusals),
        seal,
        documents_refused,
        document_refusals: by_name(view.document_refusals),
        fault: view.fault,
        store_error: view.store_error.map(|error| error.to_string()),
        disk_error: (!view.disk_errors.is_empty())
            .then(|| view.disk_errors.into_values().collect::<Vec<_>>().join("; ")),
    }
}

fn by_reason(counts: &BTreeMap<&'static str, u64>) -> Vec<(&'static str, u64)> {
    counts.iter().map(|(reason, count)| (*reason, *count)).collect()
}

/// Whether the store answers: what others said before it went away may hold no more.
fn is_heard(error: Option<&StoreError>) -> bool {
    !matches!(error, Some(StoreError::Unreachable(_) | StoreError::Denied(_) | StoreError::Unfit(_)))
}

/// What the metrics of a node show of it.
pub(super) fn reading(view: &Mutex<ClusterView>, own: &str) -> ClusterReading {
    let view = view.lock().unwrap_or_else(PoisonError::into_inner);
    let heard = is_heard(view.store_error.as_ref());
    let state = |node: &Node| if heard || *node.name == *own { state_of(node) } else { UNKNOWN };
    let count = |wanted: &str| view.nodes.iter().filter(|node| state(node) == wanted).count();
    let age = view.in_force.map(|(_, since)| SystemTime::now().duration_since(since).unwrap_or_default());
    ClusterReading {
        leads: view.leads.is_some(),
        nodes: NODE_STATES.map(|state| (state, count(state))),
        table_age: age,
        refused: by_reason(&view.refusals),
        held_back: view.unpublished.is_some(),
        documents_refused: view.documents_refused.is_some(),
        document_refusals: by_reason(&view.document_refusals),
        at_odds: view.at_odds.is_some(),
        odds: view.odds,
        publications: view.publications,
        fenced: view.fenced,
        faults: view.faults,
        store_up: view.store_error.is_none(),
        store_reconnects: view.reconnects,
    }
}

/// States of nodes, as the metrics have them.
const NODE_STATES: [&str; 4] = ["serving", "draining", "dead", UNKNOWN];
/// What was said last is not known, or may hold no more.
const UNKNOWN: &str = "unknown";

fn state_of(node: &Node) -> &'static str {
    match &node.record {
        _ if !node.alive => "dead",
        Ok(record) => match record.state {
            NodeState::Serving => "serving",
            NodeState::Draining => "draining",
            NodeState::Unknown => UNKNOWN,
        },
        Err(_) => UNKNOWN,
    }
}

/// A pod that fails, as it is shown.
pub(super) fn failing_text(pod: &str, why: &str, since: SystemTime) -> String {
    format!("{pod} ({})", failed(why, since))
}

fn failed(why: &str, since: SystemTime) -> String {
    format!("probe failed: {why}, since {}", rfc3339(since))
}

/// Why endpoints get no work, as far as this node knows. `health`: of its own pods.
pub(super) fn reasons(
    node: &str,
    health: Option<&PodHealth>,
    view: Option<&Mutex<ClusterView>>,
) -> OutReasons {
    let mut reasons = OutReasons::default();
    let nodes = view.map(|view| view.lock().unwrap_or_else(PoisonError::into_inner).nodes.clone());
    for other in nodes.into_iter().flatten() {
        if !other.alive {
            let why = format!("its node {} has no heartbeat", other.name);
            reasons.nodes.insert(other.name.to_string(), why);
        }
        if let Ok(record) = other.record
            && *other.name != *node
        {
            let told = record.failing.into_iter().map(|one| {
                let since = SystemTime::UNIX_EPOCH + Duration::from_millis(one.since);
                (one.pod, failed(&one.why, since))
            });
            reasons.pods.extend(told);
        }
    }
    let own = health.iter().flat_map(|health| health.failing.values());
    reasons.pods.extend(own.map(|one| (one.pod.to_string(), failed(&one.why, one.since))));
    reasons
}

/// Pods of a node that fail, with the reason where it is told.
fn unhealthy(record: &NodeRecord) -> Vec<String> {
    let reason = |uid: &Arc<str>| {
        let told = record.failing.iter().find(|one| one.uid == *uid);
        told.map_or_else(
            || uid.to_string(),
            |one| failing_text(&one.pod, &one.why, SystemTime::UNIX_EPOCH + Duration::from_millis(one.since)),
        )
    };
    record.unhealthy.iter().map(reason).collect()
}

fn version(version: TableVersion) -> String {
    format!("{}.{}", version.token.epoch, version.version)
}

fn member(node: &Node) -> NodeDump {
    let name = node.name.to_string();
    let record = match &node.record {
        Ok(record) => record,
        Err(why) => {
            return NodeDump { node: name, alive: node.alive, state: why.clone(), ..NodeDump::default() };
        }
    };
    let state = match record.state {
        NodeState::Serving => "serving",
        NodeState::Draining => "draining",
        NodeState::Unknown => "unknown to this version",
    };
    let since = (record.applied_at > 0)
        .then(|| rfc3339(SystemTime::UNIX_EPOCH + Duration::from_millis(record.applied_at)).to_string());
    NodeDump {
        node: name,
        alive: node.alive,
        state: state.to_owned(),
        version: record.version.clone(),
        table: record.in_force().map(version).unwrap_or_default(),
        applied_at: since,
        unhealthy: unhealthy(record),
        refused: record.refused.as_ref().map(|refused| format!("{}: {}", refused.reason, refused.detail)),
        documents_refused: record.sealing.refused.clone(),
    }
}
