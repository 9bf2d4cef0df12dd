//! One agent of the simulation: the real machines, and between them and the store what the least of drivers has to do.
//!
//! It asks questions by [`Agent::out`], and is told of each what became of it, in any order and at any time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::documents::{self, Kept};
use crate::cluster::election::{Action, Election, Event, Millis};
use crate::cluster::follower::{Follower, Step};
use crate::cluster::publisher::{Contents, Draft, Publisher};
use crate::cluster::registry::{self, Health, Node, NodeRecord, NodeState, Sealing};
use crate::cluster::sample::{self, ByName};
use crate::cluster::seal::{Digest, Position, Sealed};
use crate::cluster::store::{
    self, Acquired, Candidate, Deltas, DocumentWrite, Documents, Lease, Member, Published, StoreError,
};
use crate::compile::TableVersion;
use crate::compile::wire::Change;
use crate::model::Model;

/// What is asked of the store.
#[derive(Debug, Clone)]
pub(super) enum Question {
    Acquire(Candidate),
    Renew(Lease),
    Release(Lease),
    Beat { node: Arc<str>, record: Vec<u8>, changed: bool },
    Members,
    Documents { store: Arc<str>, after: u64 },
    Import(Vec<DocumentWrite>),
    Publish(Lease, Draft),
    Snapshot,
    Deltas(String),
}

/// What it answers.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    Acquired(Acquired),
    Renewed(bool),
    Members(Vec<Member>),
    Documents(Documents),
    Published(Published),
    Snapshot(Option<(Vec<u8>, String)>),
    Deltas(Deltas),
    Done,
}

/// What outlives a process.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    pub(super) highest: TableVersion,
    pub(super) table: Option<(Position, Arc<Model>)>,
    pub(super) documents: Kept,
    /// Nothing but the highest token finds room.
    pub(super) full: bool,
}

/// What the agent did that is to be checked.
#[derive(Debug)]
pub(super) enum Deed {
    Drafted(TableVersion, Digest, Arc<Model>),
    WentOn(TableVersion, Digest, Arc<Model>),
    Applied(Position),
    Refused(&'static str),
    Led,
    CameBack(Step),
}

/// A process.
#[derive(Debug)]
pub(super) struct Agent {
    name: Arc<str>,
    nonce: u64,
    ttl: Duration,
    pub(super) election: Election,
    pub(super) follower: Follower,
    pub(super) publisher: Option<Publisher>,
    pub(super) disk: Disk,
    pub(super) out: Vec<Question>,
    pub(super) deeds: Vec<Deed>,
    nodes: Vec<Node>,
    /// Its record as it was said last.
    said: Vec<u8>,
    /// The draft whose answer is awaited.
    publishing: Option<TableVersion>,
    /// The store has not got what a delta would follow.
    whole: bool,
    /// The documents were read in this term.
    fresh: bool,
    /// What was out when the reading of the table began, and the end of the chain as far as it is read.
    reading: Option<(Option<TableVersion>, Option<Digest>)>,
}

/// When it is, and a number to spread by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) now: Millis,
    pub(super) random: u64,
}

impl Agent {
    pub(super) fn new(name: Arc<str>, nonce: u64, ttl: Duration, disk: Disk, now: Millis) -> Self {
        let mut follower = Follower::new("c".into(), disk.highest);
        if let Some((at, model)) = &disk.table {
            follower.restore(*at, &Change::whole(model)).expect("a model's change makes the model");
        }
        Self {
            election: Election::new(Arc::clone(&name), nonce, ttl, disk.highest.token, now),
            name,
            nonce,
            ttl,
            follower,
            publisher: None,
            disk,
            out: Vec::new(),
            deeds: Vec::new(),
            nodes: Vec::new(),
            said: Vec::new(),
            publishing: None,
            whole: false,
            fresh: false,
            reading: None,
        }
    }

    /// Tells the election what happened, and does what it says.
    pub(super) fn elect(&mut self, event: Event, at: Moment) {
        for action in self.election.on(event, at.now, at.random) {
            match action {
                Action::Acquire(candidate) => self.out.push(Question::Acquire(candidate)),
                Action::Renew(lease) => self.out.push(Question::Renew(lease)),
                Action::Release(lease) => self.out.push(Question::Release(lease)),
                Action::Lead(lease) => {
                    self.publisher = Some(Publisher::new("c".into(), lease));
                    (self.publishing, self.whole, self.fresh) = (None, false, false);
                    self.deeds.push(Deed::Led);
                    self.go_on();
                    // What is known may be of before the store was restored.
                    self.read_documents(true);
                }
                Action::Yield(_) => (self.publisher, self.publishing) = (None, None),
            }
        }
    }

    /// Begins the term with the table in force.
    fn go_on(&mut self) {
        let Some((publisher, with)) = self.publisher.as_mut().zip(self.follower.continued()) else { return };
        let draft = publisher.go_on(with, |_| sample::sign(&self.name)).expect("nothing is out yet");
        let model = Arc::new(self.follower.parts().model());
        self.publishing = Some(draft.version());
        self.deeds.push(Deed::WentOn(draft.version(), draft.chain(), model));
        self.out.push(Question::Publish(publisher.lease().clone(), draft));
    }

    /// The store tells something.
    pub(super) fn notice(&mut self, event: store::Event, at: Moment) {
        match event {
            store::Event::Leader => self.elect(Event::Changed, at),
            store::Event::Table => self.read_table(),
            store::Event::Documents => self.read_documents(false),
            store::Event::Nodes => self.out.push(Question::Members),
            store::Event::Connected => {
                self.elect(Event::Changed, at);
                self.read_documents(true);
                self.read_table();
            }
        }
    }

    /// What is done now and then, whatever is told.
    pub(super) fn poll(&mut self, at: Moment) {
        self.read_documents(false);
        self.read_table();
        self.publish(at);
    }

    /// Says what it is.
    pub(super) fn beat(&mut self) {
        let (in_force, highest) = (self.follower.in_force(), self.follower.highest().token);
        let version = in_force.map(|at| at.version).unwrap_or_default();
        let record = NodeRecord {
            store: Arc::from(""),
            nonce: self.nonce,
            version: "0".to_owned(),
            schema: 1,
            state: NodeState::Serving,
            ttl: 0,
            started: 0,
            epoch: version.token.epoch,
            token_nonce: version.token.nonce,
            table: version.version,
            highest_epoch: highest.epoch,
            highest_nonce: highest.nonce,
            applied_at: 0,
            revision: self.disk.documents.revision,
            workloads: 0,
            unhealthy: std::collections::BTreeSet::default(),
            failing: Vec::new(),
            refused: None,
            sealing: Sealing::default(),
            outcome: None,
        };
        let record = serde_json::to_vec(&record).expect("is JSON");
        let changed = record != self.said;
        self.said.clone_from(&record);
        self.out.push(Question::Beat { node: Arc::clone(&self.name), record, changed });
        self.out.push(Question::Members);
    }

    fn read_table(&mut self) {
        if self.reading.is_none() {
            self.reading = Some((self.publisher.as_ref().and_then(Publisher::version), None));
            self.out.push(Question::Snapshot);
        }
    }

    fn read_documents(&mut self, all: bool) {
        let Kept { store, revision, .. } = &self.disk.documents;
        let (store, after) = if all { ("".into(), 0) } else { (Arc::clone(store), *revision) };
        self.out.push(Question::Documents { store, after });
    }

    /// What became of a question. An error: it was lost, or the store does not work.
    pub(super) fn answer(&mut self, question: Question, answer: Result<Answer, StoreError>, at: Moment) {
        match (question, answer) {
            (Question::Acquire(_), Ok(Answer::Acquired(got))) => self.elect(Event::Acquired(Ok(got)), at),
            (Question::Acquire(_), Err(error)) => self.elect(Event::Acquired(Err(error)), at),
            (Question::Renew(_), Ok(Answer::Renewed(held))) => self.elect(Event::Renewed(Ok(held)), at),
            (Question::Renew(_), Err(error)) => self.elect(Event::Renewed(Err(error)), at),
            (Question::Members, Ok(Answer::Members(members))) => self.members(members, at),
            (Question::Documents { store, after }, Ok(Answer::Documents(documents))) => {
                self.documents(&store, after, documents, at);
            }
            (Question::Import(_), _) => self.read_documents(true),
            (Question::Publish(_, draft), answer) => self.published(draft, answer, at),
            (Question::Snapshot, Ok(Answer::Snapshot(Some((sealed, position))))) => {
                self.receive(&sealed, at);
                self.out.push(Question::Deltas(position));
            }
            (Question::Snapshot, Ok(_)) => self.has_read(at),
            (Question::Deltas(_), Ok(Answer::Deltas(deltas))) => {
                for sealed in &deltas.sealed {
                    self.receive(sealed, at);
                }
                self.has_read(at);
            }
            (Question::Snapshot | Question::Deltas(_), _) => self.reading = None,
            _ => {}
        }
    }

    fn members(&mut self, members: Vec<Member>, at: Moment) {
        self.nodes = registry::read(members);
        let records = self.nodes.iter().filter_map(|node| node.record.as_ref().ok());
        for token in records.map(NodeRecord::highest).collect::<Vec<_>>() {
            self.elect(Event::Saw(token), at);
        }
        self.publish(at);
    }

    fn documents(&mut self, store: &Arc<str>, after: u64, read: Documents, at: Moment) {
        if read.store.is_empty() {
            return self.documents_are_gone(at);
        }
        let known = &self.disk.documents;
        let follows = *store == known.store && after == known.revision && read.revision >= after;
        if after > 0 && (*store != read.store || !follows) {
            // It is another store than it was, or the same as it was before.
            return self.read_documents(true);
        }
        let mut known = if after == 0 { Kept::default() } else { known.clone() };
        known.take(read);
        self.disk.documents = known;
        self.fresh |= after == 0;
        self.publish(at);
    }

    /// The store has no documents. A leader that has some gives it those; another one lets those lead who have.
    fn documents_are_gone(&mut self, at: Moment) {
        if self.election.leads(at.now).is_none() {
            return;
        }
        let kept = &self.disk.documents;
        let known = |node: &Node| node.record.as_ref().is_ok_and(|record| record.revision > 0);
        if !kept.texts.is_empty() {
            self.out.push(Question::Import(kept.writes()));
        } else if self.nodes.iter().any(known) {
            self.elect(Event::Unfit, at);
        }
    }

    fn receive(&mut self, sealed: &[u8], at: Moment) {
        if let Some((_, head)) = &mut self.reading {
            *head = Sealed::open(sealed).ok().map(|sealed| sealed.digest());
        }
        match self.follower.receive(sealed, &ByName) {
            Ok(Step::Applied) => {
                let now = self.follower.in_force().expect("it was applied");
                self.disk.highest = now.version;
                if !self.disk.full {
                    self.disk.table = Some((now, Arc::new(self.follower.parts().model())));
                }
                self.deeds.push(Deed::Applied(now));
                self.elect(Event::Saw(now.version.token), at);
            }
            Ok(Step::Known) => {}
            Ok(step @ (Step::Behind | Step::Gap)) => self.deeds.push(Deed::CameBack(step)),
            Err(refusal) => self.deeds.push(Deed::Refused(refusal.as_str())),
        }
    }

    /// The table was read to its end: whether it is the one that this leader gave the store last.
    fn has_read(&mut self, at: Moment) {
        let Some((version, head)) = self.reading.take() else { return };
        let Some(publisher) = &self.publisher else { return };
        let current = self.publishing.is_none() && publisher.version() == version;
        if current && version.is_some() && head != publisher.chain() {
            self.whole = true;
            self.publish(at);
        }
    }

    fn publish(&mut self, at: Moment) {
        let Some(publisher) = &mut self.publisher else { return };
        let leads = self.election.leads(at.now) == Some(publisher.lease());
        if !leads || !self.fresh || self.publishing.is_some() {
            return;
        }
        // Who is not there yet writes the table whole.
        let here = self.follower.in_force().map(|at| at.chain);
        if here.is_some() && publisher.lacks_model() == here {
            publisher.knows(Arc::new(self.follower.parts().model()));
        }
        let mut model = documents::model(&self.disk.documents.texts);
        Health::of(&self.nodes).overlay(&mut model);
        let model = Arc::new(model);
        // Documents are so few that all endpoints may go: what holds that back is not what is simulated.
        let contents =
            Contents { allow_shrink: true, ..Contents::of(Arc::clone(&model), self.disk.documents.revision) };
        let Some(draft) = publisher.draft(&contents, self.whole, |_| sample::sign(&self.name)) else {
            return;
        };
        self.publishing = Some(draft.version());
        self.deeds.push(Deed::Drafted(draft.version(), draft.chain(), model));
        self.out.push(Question::Publish(publisher.lease().clone(), draft));
    }

    fn published(&mut self, draft: Draft, answer: Result<Answer, StoreError>, at: Moment) {
        let Some(publisher) = self.publisher.as_mut().filter(|_| self.publishing == Some(draft.version()))
        else {
            return;
        };
        self.publishing = None;
        match answer {
            Ok(Answer::Published(Published::Yes)) => {
                publisher.committed(draft);
                self.whole = false;
                self.publish(at);
            }
            Ok(Answer::Published(Published::NeedsSnapshot)) => {
                self.whole = true;
                self.publish(at);
            }
            Ok(Answer::Published(Published::NotLeader(Some(other)))) => {
                self.elect(Event::Saw(other.token), at);
            }
            _ => {}
        }
    }

    /// The time of the next poll and of the next heartbeat.
    pub(super) fn pause_between(&self) -> Duration {
        self.ttl / 3
    }
}

/// The texts of documents by their ids.
pub(super) type Texts = BTreeMap<Arc<str>, Arc<str>>;
