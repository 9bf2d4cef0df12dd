//! The world that is explored: nodes, the store, and what is under way between them.
//!
//! A step answers `None` where it can't be made.

use std::sync::Arc;
use std::time::Duration;

use super::Flaw;
use super::store::{Shared, Table};
use crate::cluster::election::{Action, Election, Event, Millis};
use crate::cluster::seal::{Form, Position, first_digest};
use crate::cluster::standing::{Place, Standing};
use crate::cluster::store::{Acquired, Candidate, Lease, StoreError};
use crate::compile::{TableVersion, Token};

/// How many nodes there are.
pub(super) const NODES: usize = 3;
/// Time goes on by this much.
pub(super) const UNIT: u64 = 10;
pub(super) const TTL: Duration = Duration::from_millis(3 * UNIT);
const DRAFTS_MAX: u64 = 4;
/// What has come to pass before: a term that is over.
const BEFORE: TableVersion = TableVersion { token: Token { epoch: 100, nonce: 1 }, version: 1 };

/// What becomes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It arrives at once, and its answer as well.
    Good,
    /// It has not arrived yet, and may never.
    QuestionLate,
    /// It has arrived, and its answer has not.
    AnswerLate,
    /// All arrive at once but what gives a lease back, which may never.
    ReleaseLate,
    /// All arrive at once, and what others have applied has not been heard of.
    Deaf,
}

/// A question of the election.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Question {
    Acquire { node: Arc<str>, nonce: u64, above: u64 },
    Renew(Lease),
}

/// Its answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Answer {
    Granted(Lease),
    Held(Lease),
    Renewed(bool),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Call {
    Asked(Question),
    Answered(Answer),
}

/// Something on its way to the store of which nobody awaits anything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Message {
    Question(Question),
    Release(Lease),
    Publish(Lease, Table),
}

/// What a leader has published.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Term {
    lease: Lease,
    drafted: u64,
    /// The last table that came out; before that, the one that was in force when the term began.
    last: Option<Position>,
}

/// An agent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Node {
    election: Election,
    standing: Standing,
    term: Option<Term>,
    call: Option<Call>,
    /// Read, and not yet applied.
    late: Option<Table>,
    pub(super) paused: bool,
    boots: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) now: Millis,
    pub(super) nodes: [Node; NODES],
    store: Shared,
    saved: Option<Box<Shared>>,
    stray: Vec<Message>,
    /// How often documents changed; what a table holds is the number.
    pub(super) written: u64,
    /// How many drafts a term may have: more of them are more of the same.
    drafts_max: u64,
    /// How many faults may come still.
    pub(super) faults: u8,
    /// The store was emptied or restored.
    pub(super) lost_data: bool,
    /// What must not happen, and did.
    pub(super) broken: Option<&'static str>,
}

fn name(node: usize) -> Arc<str> {
    ["a", "b", "c"][node].into()
}

/// Higher and lower ones than before and than those of others.
fn nonce(node: usize, boots: usize) -> u64 {
    [[22, 21, 23, 24], [32, 31, 33, 34], [42, 41, 43, 44]][node][boots]
}

impl World {
    pub(super) fn new(faults: u8) -> Self {
        let node = |number| Node {
            election: Election::new(name(number), nonce(number, 0), TTL, BEFORE.token, Millis(0)),
            standing: Standing::new(BEFORE),
            term: None,
            call: None,
            late: None,
            paused: false,
            boots: 0,
        };
        Self {
            now: Millis(0),
            nodes: [node(0), node(1), node(2)],
            store: Shared::new(BEFORE.token.epoch),
            saved: None,
            stray: Vec::new(),
            written: 0,
            drafts_max: DRAFTS_MAX,
            faults,
            lost_data: false,
            broken: None,
        }
    }

    pub(super) fn time(&mut self) -> Option<()> {
        let due = |node: &Node| !node.paused && node.election.wake_at().is_some_and(|at| at <= self.now);
        if self.nodes.iter().any(due) || self.reader().is_some() || self.has_draft() {
            return None;
        }
        self.now.0 += UNIT;
        Some(())
    }

    /// Whether one that runs has something to be published.
    fn has_draft(&self) -> bool {
        let head = self.store.head();
        self.nodes.iter().any(|node| {
            let term = node.term.as_ref().filter(|term| {
                !node.paused
                    && node.election.leads(self.now) == Some(&term.lease)
                    && term.drafted < self.drafts_max
            });
            term.is_some_and(|term| term.clone().draft(self.written, head, Flaw::None).is_some())
        })
    }

    /// A node hears what others have applied, and does what is due.
    pub(super) fn due(&mut self, node: usize, fate: Fate, flaw: Flaw) -> Option<()> {
        self.nodes[node].election.wake_at().filter(|at| *at <= self.now)?;
        self.fault(fate)?;
        let mut hit = false;
        if fate == Fate::Deaf {
            hit = self.seen() > self.nodes[node].standing.highest().token;
        } else if flaw != Flaw::HeedsNobody {
            hit = self.event(node, Event::Saw(self.seen()), fate, flaw);
        }
        if self.nodes[node].election.wake_at().is_some_and(|at| at <= self.now) {
            // A fault is one message.
            let fate = if hit { Fate::Good } else { fate };
            hit |= self.event(node, Event::Tick, fate, flaw);
        }
        (hit || fate == Fate::Good).then_some(())
    }

    /// The highest token that those which run have applied, or which the store's table has.
    fn seen(&self) -> Token {
        let running = self.nodes.iter().filter(|node| !node.paused);
        let applied = running.map(|node| node.standing.highest().token);
        applied.chain(self.store.tables().map(|table| table.at.version.token)).max().unwrap_or_default()
    }

    pub(super) fn reach(&mut self, node: usize, flaw: Flaw) -> Option<()> {
        let Some(Call::Asked(question)) = self.nodes[node].call.take() else { return None };
        let answer = self.ask(&question, flaw);
        self.nodes[node].call = Some(Call::Answered(answer));
        Some(())
    }

    pub(super) fn arrive(&mut self, node: usize, flaw: Flaw) -> Option<()> {
        let Some(Call::Answered(answer)) = self.nodes[node].call.take() else { return None };
        self.event(node, answered(answer), Fate::Good, flaw);
        Some(())
    }

    pub(super) fn give_up(&mut self, node: usize, flaw: Flaw) -> Option<()> {
        let call = self.nodes[node].call.take()?;
        let lost = || StoreError::Unreachable("no answer".to_owned());
        let (renewal, question) = match call {
            Call::Asked(question) => (matches!(question, Question::Renew(_)), Some(question)),
            Call::Answered(answer) => (matches!(answer, Answer::Renewed(_)), None),
        };
        self.stray.extend(question.map(Message::Question));
        let event = if renewal { Event::Renewed(Err(lost())) } else { Event::Acquired(Err(lost())) };
        self.event(node, event, Fate::Good, flaw);
        Some(())
    }

    pub(super) fn stray(&mut self, message: usize, flaw: Flaw) {
        match self.stray.remove(message) {
            Message::Question(question) => {
                self.ask(&question, flaw);
            }
            Message::Release(lease) => self.store.release(&lease, self.now, flaw),
            Message::Publish(lease, table) => {
                self.store.publish(&lease, &table, self.now);
            }
        }
    }

    /// How many messages are under way of which nobody awaits anything.
    pub(super) fn strays(&self) -> usize {
        self.stray.len()
    }

    pub(super) fn publish(&mut self, node: usize, fate: Fate, flaw: Flaw) -> Option<()> {
        let (now, written, drafts_max) = (self.now, self.written, self.drafts_max);
        let head = self.store.head();
        let Node { election, term, .. } = &mut self.nodes[node];
        let lease = election.leads(now)?.clone();
        let term = term.as_mut().filter(|term| term.lease == lease && term.drafted < drafts_max)?;
        let table = term.draft(written, head, flaw)?;
        match fate {
            Fate::Good => {
                if self.store.publish(&lease, &table, now) {
                    self.commit(node, &table);
                }
            }
            Fate::QuestionLate => {
                self.fault(fate)?;
                self.stray.push(Message::Publish(lease, table));
            }
            Fate::AnswerLate => {
                self.fault(fate)?;
                self.store.publish(&lease, &table, now);
            }
            Fate::ReleaseLate | Fate::Deaf => return None,
        }
        Some(())
    }

    fn commit(&mut self, node: usize, table: &Table) {
        if let Some(term) = &mut self.nodes[node].term {
            term.last = Some(table.at);
            term.drafted = term.drafted.max(table.at.version.version);
        }
    }

    /// The first node that runs and has something to read. Nodes do not read in any order: who reads before others do is found
    /// where those are paused, or where what they read is late.
    fn reader(&self) -> Option<usize> {
        let reads = |node: &Node| {
            let next = self.store.after(node.standing.at());
            let taken = next.map(|table| node.standing.judge(&table.at, table.form));
            !node.paused && node.late.is_none() && taken == Some(Ok(Place::Next))
        };
        self.nodes.iter().position(reads)
    }

    pub(super) fn read(&mut self, node: usize, fate: Fate, flaw: Flaw) -> Option<()> {
        if flaw != Flaw::AppliesLower && self.reader() != Some(node) {
            return None;
        }
        let table = self.store.after(self.nodes[node].standing.at())?.clone();
        match fate {
            Fate::Good => return self.apply(node, &table, flaw).then_some(()),
            Fate::AnswerLate if self.nodes[node].late.is_none() => {
                self.fault(fate)?;
                self.nodes[node].late = Some(table);
            }
            _ => return None,
        }
        Some(())
    }

    pub(super) fn apply_late(&mut self, node: usize, flaw: Flaw) -> Option<()> {
        let table = self.nodes[node].late.take()?;
        self.apply(node, &table, flaw);
        Some(())
    }

    /// Answers whether anything changed.
    fn apply(&mut self, node: usize, table: &Table, flaw: Flaw) -> bool {
        let standing = &mut self.nodes[node].standing;
        let before = standing.clone();
        match standing.judge(&table.at, table.form) {
            Ok(Place::Next) => {
                standing.take(table.at);
            }
            Err(_) if flaw == Flaw::AppliesLower => *standing = Standing::new(table.at.version),
            Ok(Place::Known | Place::Gap) | Err(_) => {}
        }
        let after = &self.nodes[node].standing;
        let version = |at: Option<Position>| at.map(|at| at.version);
        if after.highest() < before.highest() || version(after.at()) < version(before.at()) {
            self.broken = Some("a lower table after a higher one");
        }
        *after != before || self.broken.is_some()
    }

    /// A copy of the store is made before.
    pub(super) fn write(&mut self) {
        self.saved = Some(Box::new(self.store.clone()));
        self.written += 1;
    }

    pub(super) fn pause(&mut self, node: usize) -> Option<()> {
        self.faults = self.faults.checked_sub(1)?;
        self.nodes[node].paused = true;
        Some(())
    }

    pub(super) fn resume(&mut self, node: usize) {
        self.nodes[node].paused = false;
    }

    pub(super) fn restart(&mut self, node: usize, disk: bool) -> Option<()> {
        self.faults = self.faults.checked_sub(1)?;
        let Node { standing, call, boots, .. } = self.nodes[node].clone();
        if let Some(Call::Asked(question)) = call {
            self.stray.push(Message::Question(question));
        }
        let (standing, boots) = (if disk { standing } else { Standing::default() }, boots + 1);
        let highest = standing.highest().token;
        let election = Election::new(name(node), nonce(node, boots), TTL, highest, self.now);
        self.nodes[node] =
            Node { election, standing, term: None, call: None, late: None, paused: false, boots };
        Some(())
    }

    pub(super) fn empty(&mut self) -> Option<()> {
        self.faults = self.faults.checked_sub(1)?;
        self.store = Shared::new(0);
        self.lost_data = true;
        Some(())
    }

    pub(super) fn restore(&mut self) -> Option<()> {
        self.faults = self.faults.checked_sub(1)?;
        self.store = *self.saved.take()?;
        self.lost_data = true;
        Some(())
    }

    fn fault(&mut self, fate: Fate) -> Option<()> {
        if fate != Fate::Good {
            self.faults = self.faults.checked_sub(1)?;
        }
        Some(())
    }

    /// Tells a node what happened, and does what it says. Answers whether the fate befell anything.
    fn event(&mut self, node: usize, event: Event, fate: Fate, flaw: Flaw) -> bool {
        let (mut events, mut hit) = (vec![event], false);
        while let Some(event) = events.pop() {
            for action in self.nodes[node].election.on(event, self.now, 0) {
                let question = match action {
                    Action::Lead(lease) => {
                        let last = self.nodes[node].standing.in_force();
                        self.nodes[node].term = Some(Term { lease, drafted: 0, last });
                        continue;
                    }
                    Action::Yield(_) => {
                        self.nodes[node].term = None;
                        continue;
                    }
                    Action::Release(lease) if fate == Fate::ReleaseLate && !hit => {
                        hit = true;
                        self.stray.push(Message::Release(lease));
                        continue;
                    }
                    Action::Release(lease) => {
                        self.store.release(&lease, self.now, flaw);
                        continue;
                    }
                    Action::Acquire(Candidate { node, nonce, above }) => {
                        Question::Acquire { node, nonce, above }
                    }
                    Action::Renew(lease) => Question::Renew(lease),
                };
                if self.nodes[node].call.is_some() {
                    self.broken = Some("a question before the answer to the one before");
                }
                // Only the first question is late: one fault is one message.
                let late = !hit && matches!(fate, Fate::QuestionLate | Fate::AnswerLate);
                hit |= late;
                if late && fate == Fate::QuestionLate {
                    self.nodes[node].call = Some(Call::Asked(question));
                    continue;
                }
                let answer = self.ask(&question, flaw);
                if late {
                    self.nodes[node].call = Some(Call::Answered(answer));
                } else {
                    events.push(answered(answer));
                }
            }
        }
        hit
    }

    fn ask(&mut self, question: &Question, flaw: Flaw) -> Answer {
        match question {
            Question::Acquire { node, nonce, above } => {
                let above = if flaw == Flaw::ForgetsWhatIsKnown { 0 } else { *above };
                match self.store.acquire(node, *nonce, above, self.now) {
                    Ok(lease) => Answer::Granted(lease),
                    Err(holder) => Answer::Held(holder),
                }
            }
            Question::Renew(lease) => Answer::Renewed(self.store.renew(lease, self.now)),
        }
    }

    /// How many lead at this moment.
    pub(super) fn leaders(&self) -> usize {
        self.nodes.iter().filter(|node| node.election.leads(self.now).is_some()).count()
    }

    /// Whether all tables that are anywhere and have the same name are the same.
    pub(super) fn has_one_table_per_name(&self) -> bool {
        let in_store = self.store.tables().chain(self.saved.iter().flat_map(|saved| saved.tables()));
        let under_way = self.stray.iter().filter_map(|message| match message {
            Message::Publish(_, table) => Some(table),
            _ => None,
        });
        let read = self.nodes.iter().filter_map(|node| node.late.as_ref());
        let here = self.nodes.iter().filter_map(|node| node.standing.at());
        let mut all: Vec<Position> =
            in_store.chain(under_way).chain(read).map(|table| table.at).chain(here).collect();
        all.sort_by_key(|at| at.version);
        all.windows(2).all(|pair| pair[0].version != pair[1].version || pair[0].chain == pair[1].chain)
    }

    /// Whether one that runs leads, and all that run have its table of the last documents in force.
    pub(super) fn is_at_rest(&self) -> bool {
        let mut running = self.nodes.iter().filter(|node| !node.paused).peekable();
        if running.peek().is_none() {
            return true;
        }
        let leads = |node: &&Node| node.election.leads(self.now).is_some();
        let leader = self.nodes.iter().filter(|node| !node.paused).find(leads);
        let term = leader.and_then(|leader| leader.term.as_ref());
        let table = term.and_then(|term| term.last.filter(|last| last.version.token == term.lease.token));
        table.is_some_and(|table| {
            table.revision == self.written && running.all(|node| node.standing.in_force() == Some(table))
        })
    }

    /// No faults come any more, and those that were are over; who is paused stays so.
    pub(super) fn end_faults(&mut self) {
        (self.faults, self.saved, self.lost_data) = (0, None, true);
        self.drafts_max = u64::MAX;
        for node in 0..NODES {
            self.nodes[node].late = None;
            if !self.nodes[node].paused {
                self.give_up(node, Flaw::None);
            }
        }
        self.stray.clear();
    }

    /// All that can be done now without faults.
    pub(super) fn run(&mut self, flaw: Flaw) {
        let running: Vec<usize> = (0..NODES).filter(|node| !self.nodes[*node].paused).collect();
        // Twice: what a node finds out, another acts on.
        for _ in 0..2 {
            for node in &running {
                self.due(*node, Fate::Good, flaw);
                // The second is whole where the store could not take the first.
                self.publish(*node, Fate::Good, flaw);
                self.publish(*node, Fate::Good, flaw);
            }
            while self.broken.is_none()
                && let Some(node) = self.reader()
            {
                self.read(node, Fate::Good, flaw);
            }
        }
    }
}

impl Term {
    /// The next table, where what is out is another one or the store does not have it.
    fn draft(&mut self, written: u64, head: Option<Position>, flaw: Flaw) -> Option<Table> {
        let own = self.last.is_some_and(|last| last.version.token == self.lease.token);
        let drafted = self.last.filter(|_| own).map_or(0, |last| last.version.version);
        let sure = self.last.is_some() && drafted == self.drafted;
        let kept = match flaw {
            Flaw::TrustsTheStore => sure,
            Flaw::FollowsWhatMayBeOut => head == self.last,
            _ => sure && head == self.last,
        };
        if self.last.is_some_and(|last| last.revision == written && kept && own) {
            return None;
        }
        // A term begins with what is in force, as it is.
        let written = self.last.filter(|_| kept && !own).map_or(written, |last| last.revision);
        let version = TableVersion { token: self.lease.token, version: self.drafted + 1 };
        if flaw != Flaw::UsesNumbersAgain {
            self.drafted += 1;
        }
        let previous = self.last.filter(|_| kept);
        let whole = u8::from(previous.is_none());
        let body = u8::try_from(written).expect("there are few");
        let at = Position {
            version,
            chain: first_digest(version, &[body, whole]),
            revision: written,
            shrinks_from: 0,
        };
        let form = match previous {
            Some(last) => Form::Delta { previous: last.chain },
            None => Form::Snapshot { chain: at.chain },
        };
        Some(Table { at, form })
    }
}

fn answered(answer: Answer) -> Event {
    match answer {
        Answer::Granted(lease) => Event::Acquired(Ok(Acquired::Yes(lease))),
        Answer::Held(lease) => Event::Acquired(Ok(Acquired::Held(Some(lease)))),
        Answer::Renewed(renewed) => Event::Renewed(Ok(renewed)),
    }
}
