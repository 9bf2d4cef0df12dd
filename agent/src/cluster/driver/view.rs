//! What an agent knows of its cluster, for whoever asks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crate::cluster::documents::sealed::Seal;
use crate::cluster::registry::{Node, RefusedSeal};
use crate::cluster::seal::Position;
use crate::cluster::store::{Lease, StoreError};
use crate::compile::TableVersion;
use crate::compile::wire::Counts;

/// What is known of the cluster.
#[derive(Debug, Clone, Default)]
pub struct ClusterView {
    /// The members, as they were read last.
    pub nodes: Vec<Node>,
    /// Who led when it was read last, and until when the lease was good then.
    pub leader: Option<(Lease, Instant)>,
    /// The term in which this agent leads.
    pub leads: Option<Lease>,
    /// Why this agent last stopped leading.
    pub yielded: Option<&'static str>,
    /// The highest table that was ever in force here.
    pub highest: TableVersion,
    /// What the table in force holds.
    pub counts: Counts,
    /// The table in force, and since when.
    pub in_force: Option<(Position, SystemTime)>,
    /// The last table that was refused: which, the reason's name, and the whole reason. A later one that is applied clears it.
    pub refused: Option<(Option<Position>, &'static str, String)>,
    /// Refusals by reason.
    pub refusals: BTreeMap<&'static str, u64>,
    /// Why what the documents say is not published.
    pub unpublished: Option<String>,
    /// Why this agent does not stand for election.
    pub cannot_lead: Option<String>,
    /// Publications that the store or others refused because this agent leads no more.
    pub fenced: u64,
    /// Tables that this agent has published.
    pub publications: u64,
    /// How often the store came back.
    pub reconnects: u64,
    /// The fault by which the tasks of the cluster ended last.
    pub fault: Option<String>,
    /// How often they did.
    pub faults: u64,
    /// The documents: the store's name, its revision, how many.
    pub documents: (Arc<str>, u64, usize),
    /// The seal of the documents that this node has.
    pub seal: Option<Seal>,
    /// Why the documents of the store are not taken over: the reason's name, and the whole reason.
    pub documents_refused: Option<(&'static str, String)>,
    /// The seal that was refused last, whatever the store holds now.
    pub seal_refused: Option<RefusedSeal>,
    /// The documents about which the store contradicts itself, where this agent leads.
    pub at_odds: Option<String>,
    /// How often it found some.
    pub odds: u64,
    /// Documents that were refused, by reason.
    pub document_refusals: BTreeMap<&'static str, u64>,
    /// What is wrong with the store; `None`: nothing.
    pub store_error: Option<StoreError>,
    /// What is wrong with the state directory, by what could not be kept or read.
    pub disk_errors: BTreeMap<&'static str, String>,
}
