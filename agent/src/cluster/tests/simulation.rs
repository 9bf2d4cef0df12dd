//! Whole clusters in made-up time: the real election, publisher, follower, registry and store in memory, with everything between
//! them that can go wrong going wrong by a seed.
//!
//! At every step it is checked that no node goes back to a lower table, that no two tables have one name, and, where neither
//! clocks nor the store's data are touched, that one leads; and at the end that all have the same table of the last documents.
//! A schedule that fails prints its seed; `SLUICE_CLUSTER_SEED` runs that one alone, and prints what happens in it.

mod agent;
mod documents;
mod faults;
mod host;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;

use self::agent::{Answer, Deed, Moment, Question};
use self::documents::Kept;
use self::host::Host;
use super::super::follower::Step;
use super::super::seal::Digest;
use super::super::store::{self, DocumentWrite, StoreError};
use super::super::{LocalState, LocalStore, Store as _};
use crate::compile::TableVersion;
use crate::model::Model;
use crate::proxy::random::Random;

const TTL: Duration = Duration::from_secs(3);
const TTL_MS: u64 = 3000;
/// How long an agent waits for an answer.
const PATIENCE: u64 = TTL_MS / 6;
/// When faults end.
const HEAL: u64 = 5 * TTL_MS;
/// When the last document is written.
const LAST_WRITE: u64 = HEAL + 5 * TTL_MS;
/// When all must have it.
const END: u64 = LAST_WRITE + 2 * TTL_MS;
/// A schedule that takes more steps than this goes round in circles.
const STEPS_MAX: u32 = 200_000;

/// What comes to pass at a time.
#[derive(Debug)]
enum Happening {
    /// A question reaches the store, whether or not who asked still lives.
    Asked { host: usize, boot: u64, id: u64, question: Question },
    /// Something reaches a process.
    Told { host: usize, boot: u64, what: Told },
    /// A machine starts its agent.
    Start(usize),
    /// A link is as it should be again.
    LinkUp(usize),
    /// The store works again for a node.
    StoreUp(usize),
    /// A disk has room again.
    DiskFree(usize),
    /// Something goes wrong.
    Fault,
    /// A document is written.
    Write,
    /// Nothing goes wrong any more.
    Heal,
}

/// What reaches a process.
#[derive(Debug)]
enum Told {
    Answer(u64, Result<Answer, StoreError>),
    /// It has waited long enough.
    NoAnswer(u64),
    Notice(store::Event),
    Wake,
    Beat,
    Poll,
}

/// How often things happened.
#[derive(Debug, Clone, Default)]
struct Tally {
    faults: BTreeMap<&'static str, u64>,
    refused: BTreeMap<&'static str, u64>,
    terms: u64,
    drafted: u64,
    /// Terms that began with the table in force, as the leader knew it.
    went_on: u64,
    applied: u64,
    behind: u64,
    gaps: u64,
    /// Messages that reached the store when nobody waited for them any more.
    strays: u64,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        for (sum, part) in [(&mut self.faults, &other.faults), (&mut self.refused, &other.refused)] {
            for (name, count) in part {
                *sum.entry(name).or_default() += count;
            }
        }
        self.terms += other.terms;
        self.drafted += other.drafted;
        self.went_on += other.went_on;
        self.applied += other.applied;
        self.behind += other.behind;
        self.gaps += other.gaps;
        self.strays += other.strays;
    }
}

struct Simulation {
    now: u64,
    order: u64,
    queue: BTreeMap<(u64, u64), Happening>,
    random: Random,
    server_clock: Arc<AtomicU64>,
    /// How far the store's clock is ahead.
    server_ahead: u64,
    store: LocalStore,
    saved: Option<LocalState>,
    hosts: Vec<Host>,
    /// All tables that were ever drafted.
    tables: HashMap<TableVersion, (Digest, Arc<Model>)>,
    tally: Tally,
    /// Neither clocks nor the store's data are touched.
    steady: bool,
    healed: bool,
    written: u64,
    trace: bool,
}

impl Simulation {
    fn new(seed: u64, trace: bool) -> Self {
        let server_clock = Arc::new(AtomicU64::new(0));
        let clock = Arc::clone(&server_clock);
        let store = LocalStore::new(Arc::new(move || Duration::from_millis(clock.load(Ordering::Relaxed))));
        let random = Random::new(seed);
        let hosts = (0..3 + random.next() % 3).map(|number| Host::new(number, &store)).collect();
        let mut simulation = Self {
            now: 0,
            order: 0,
            queue: BTreeMap::new(),
            steady: random.next().is_multiple_of(3),
            random,
            server_clock,
            server_ahead: 10 * TTL_MS,
            store,
            saved: None,
            hosts,
            tables: HashMap::new(),
            tally: Tally::default(),
            healed: false,
            written: 0,
            trace,
        };
        for host in 0..simulation.hosts.len() {
            let at = simulation.below(TTL_MS);
            simulation.at(at, Happening::Start(host));
        }
        simulation.at(0, Happening::Write);
        simulation.at(TTL_MS / 2, Happening::Fault);
        simulation.at(HEAL, Happening::Heal);
        simulation
    }

    fn below(&self, most: u64) -> u64 {
        self.random.next() % most
    }

    fn one_in(&self, many: u64) -> bool {
        self.below(many) == 0
    }

    fn at(&mut self, when: u64, happening: Happening) {
        self.order += 1;
        self.queue.insert((when.max(self.now), self.order), happening);
    }

    fn run(mut self) -> Result<Tally, String> {
        for _ in 0..STEPS_MAX {
            let Some(((when, _), happening)) = self.queue.pop_first() else { break };
            if when > END {
                self.check_end()?;
                return Ok(self.tally);
            }
            self.now = when;
            self.server_clock.store(when + self.server_ahead, Ordering::Relaxed);
            if self.trace {
                let shown: String = format!("{happening:?}").chars().take(200).collect();
                println!("{when:6} {shown}");
            }
            self.happen(happening)?;
            self.check_leaders()?;
        }
        Err("it goes round in circles".to_owned())
    }

    fn happen(&mut self, happening: Happening) -> Result<(), String> {
        match happening {
            Happening::Asked { host, boot, id, question } => self.asked(host, boot, id, &question),
            Happening::Told { host, boot, what } => return self.told(host, boot, what),
            Happening::Start(host) => return self.start(host),
            Happening::LinkUp(host) => self.link_up(host),
            Happening::StoreUp(host) => {
                self.hosts[host].client.fail(None);
                self.tell_all();
            }
            Happening::DiskFree(host) => self.hosts[host].disk_mut().full = false,
            Happening::Fault => self.fault(),
            Happening::Write => self.write(),
            Happening::Heal => self.heal(),
        }
        Ok(())
    }

    /// A process begins.
    fn start(&mut self, host: usize) -> Result<(), String> {
        let nonce = self.random.next();
        if !self.hosts[host].start(nonce, self.now) {
            return Ok(());
        }
        let boot = self.hosts[host].boot;
        for what in [Told::Beat, Told::Poll, Told::Notice(store::Event::Connected)] {
            let at = self.now + self.below(50);
            self.at(at, Happening::Told { host, boot, what });
        }
        self.settle(host)
    }

    fn asked(&mut self, host: usize, boot: u64, id: u64, question: &Question) {
        let sender = &self.hosts[host];
        if sender.link.cut {
            return;
        }
        self.tally.strays += u64::from(!sender.awaits(boot, id));
        let answer = ask(&sender.client, question);
        if !self.lost(host) {
            let at = self.now + self.delay(host);
            self.at(at, Happening::Told { host, boot, what: Told::Answer(id, answer) });
        }
        self.tell_all();
    }

    /// Whether a message of this node comes to nothing.
    fn lost(&self, host: usize) -> bool {
        let link = &self.hosts[host].link;
        link.cut || self.below(100) < link.loss_percent
    }

    fn delay(&self, host: usize) -> u64 {
        1 + self.below(self.hosts[host].link.delay_max)
    }

    /// What the store tells goes on its way.
    fn tell_all(&mut self) {
        for host in 0..self.hosts.len() {
            while let Ok(event) = self.hosts[host].events.try_recv() {
                // Of a new connection who has it knows by itself.
                let lost = event != store::Event::Connected && self.lost(host);
                if !lost {
                    let (at, boot) = (self.now + self.delay(host), self.hosts[host].boot);
                    self.at(at, Happening::Told { host, boot, what: Told::Notice(event) });
                }
            }
        }
    }

    fn told(&mut self, host: usize, boot: u64, what: Told) -> Result<(), String> {
        let random = self.random.next();
        let until = self.hosts[host].paused_until;
        if until > self.now {
            // Whatever came meanwhile is met in any order.
            let at = until + self.below(3);
            self.at(at, Happening::Told { host, boot, what });
            return Ok(());
        }
        let at = Moment { now: self.hosts[host].local(self.now), random };
        let target = &mut self.hosts[host];
        if target.boot != boot {
            return Ok(());
        }
        let Some(agent) = &mut target.agent else { return Ok(()) };
        let again = self.now + u64::try_from(agent.pause_between().as_millis()).expect("is short");
        match what {
            Told::Answer(id, answer) => {
                if let Some(question) = target.pending.remove(&id) {
                    agent.answer(question, answer, at);
                }
            }
            Told::NoAnswer(id) => {
                if let Some(question) = target.pending.remove(&id) {
                    agent.answer(question, Err(StoreError::Unreachable("no answer".to_owned())), at);
                }
            }
            Told::Notice(event) => agent.notice(event, at),
            Told::Wake => {
                target.wake = None;
                agent.elect(super::super::election::Event::Tick, at);
            }
            Told::Beat => {
                agent.beat();
                self.at(again, Happening::Told { host, boot, what });
            }
            Told::Poll => {
                agent.poll(at);
                self.at(again, Happening::Told { host, boot, what });
            }
        }
        self.settle(host)
    }

    /// Checks what an agent did, sends what it asks, and sees to it that it wakes up.
    fn settle(&mut self, host: usize) -> Result<(), String> {
        let Some(agent) = &mut self.hosts[host].agent else { return Ok(()) };
        let (deeds, out) = (std::mem::take(&mut agent.deeds), std::mem::take(&mut agent.out));
        for deed in deeds {
            self.check(host, deed)?;
        }
        for question in out {
            self.send(host, &question)?;
        }
        let boot = self.hosts[host].boot;
        if let Some(wake) = self.hosts[host].wakes(self.now) {
            self.at(wake, Happening::Told { host, boot, what: Told::Wake });
        }
        Ok(())
    }

    fn send(&mut self, host: usize, question: &Question) -> Result<(), String> {
        let of_election = |question: &Question| matches!(question, Question::Acquire(_) | Question::Renew(_));
        if of_election(question) && self.hosts[host].pending.values().any(of_election) {
            return Err(format!("node{host} asks before it has the answer to what it asked before"));
        }
        self.order += 1;
        let (id, boot, patience) = (self.order, self.hosts[host].boot, self.now + PATIENCE);
        self.hosts[host].pending.insert(id, question.clone());
        self.at(patience, Happening::Told { host, boot, what: Told::NoAnswer(id) });
        // Now and then a message comes twice.
        let times = if !self.healed && self.one_in(40) { 2 } else { 1 };
        for _ in 0..times {
            if !self.lost(host) {
                let at = self.now + self.delay(host);
                self.at(at, Happening::Asked { host, boot, id, question: question.clone() });
            }
        }
        Ok(())
    }

    fn check(&mut self, host: usize, deed: Deed) -> Result<(), String> {
        let name = &self.hosts[host].name;
        match deed {
            Deed::Led => self.tally.terms += 1,
            Deed::Refused("forked") => return Err(format!("{name} met two tables of one name")),
            Deed::Refused(why) => *self.tally.refused.entry(why).or_default() += 1,
            Deed::CameBack(Step::Gap) => self.tally.gaps += 1,
            Deed::CameBack(_) => self.tally.behind += 1,
            Deed::WentOn(version, chain, model) => {
                self.tally.went_on += 1;
                return self.check(host, Deed::Drafted(version, chain, model));
            }
            Deed::Drafted(version, chain, model) => {
                self.tally.drafted += 1;
                if self.tables.insert(version, (chain, model)).is_some() {
                    return Err(format!("{name} drafted {version} twice"));
                }
            }
            Deed::Applied(at) => {
                self.tally.applied += 1;
                let (chain, model) = self.tables.get(&at.version).ok_or("a table that nobody drafted")?;
                let follower = &self.hosts[host].agent.as_ref().expect("it applied").follower;
                // One that was followed in the same step is not there any more.
                let differs = follower.in_force() == Some(at) && **model != follower.parts().model();
                if *chain != at.chain || differs {
                    return Err(format!("{name} has another {} than was drafted", at.version));
                }
                let before = std::mem::replace(&mut self.hosts[host].applied, at.version);
                if before > at.version {
                    return Err(format!("node{host} applied {} after {before}", at.version));
                }
            }
        }
        Ok(())
    }

    fn check_leaders(&self) -> Result<(), String> {
        let leads = |host: &&Host| host.leads(self.now);
        let leaders: Vec<_> = self.hosts.iter().filter(leads).map(|host| &host.name).collect();
        if self.steady && leaders.len() > 1 {
            return Err(format!("at {} lead {leaders:?}", self.now));
        }
        Ok(())
    }

    /// All have the same table, and it is what the documents in the store say.
    fn check_end(&self) -> Result<(), String> {
        let read = self.store.documents("", 0).now_or_never().expect("memory answers at once");
        let mut kept = Kept::default();
        kept.take(read.map_err(|error| error.to_string())?);
        if kept.texts.get(&documents::id(0)).map(|text| &**text) != Some(&self.written.to_string()) {
            return Err(format!("the last document is lost: {:?}", kept.texts));
        }
        let expected = documents::model(&kept.texts);
        let leaders: Vec<_> = self.hosts.iter().filter(|host| host.leads(self.now)).collect();
        let [leader] = leaders[..] else { return Err(format!("{} lead at the end", leaders.len())) };
        let version = leader.agent.as_ref().and_then(|agent| agent.publisher.as_ref()?.version());
        for host in &self.hosts {
            let agent = host.agent.as_ref().ok_or("one does not run at the end")?;
            let at = agent.follower.in_force().map(|at| at.version);
            if at.is_none() || at != version || agent.follower.highest() != host.applied {
                return Err(format!(
                    "{} has {at:?} at the end, {} published {version:?}",
                    host.name, leader.name
                ));
            }
            if agent.follower.parts().model() != expected {
                return Err(format!("{} has another table than the documents say", host.name));
            }
        }
        Ok(())
    }

    fn write(&mut self) {
        self.written += 1;
        // The first is the one that is looked at in the end; others may go as well.
        let number = if self.healed { 0 } else { self.below(documents::COUNT) };
        let text = (number == 0 || !self.one_in(4)).then(|| self.written.to_string().into());
        let write = DocumentWrite { id: documents::id(number), text, expected: None };
        self.store.write(&[write]).now_or_never().expect("memory answers at once").expect("it is in order");
        self.tell_all();
        let next = self.now + 1 + self.below(2 * TTL_MS / 3);
        if next < HEAL {
            self.at(next, Happening::Write);
        }
    }
}

/// Asks the store as a client of it.
fn ask(client: &LocalStore, question: &Question) -> Result<Answer, StoreError> {
    let answer = async {
        Ok(match question {
            Question::Acquire(candidate) => Answer::Acquired(client.acquire(candidate, TTL).await?),
            Question::Renew(lease) => Answer::Renewed(client.renew(lease, TTL).await?),
            Question::Release(lease) => {
                client.release(lease).await?;
                Answer::Done
            }
            Question::Beat { node, record, changed } => {
                client.beat(node, record, TTL, *changed).await?;
                Answer::Done
            }
            Question::Members => Answer::Members(client.members().await?),
            Question::Documents { store, after } => Answer::Documents(client.documents(store, *after).await?),
            Question::Import(writes) => {
                client.write(writes).await?;
                Answer::Done
            }
            Question::Publish(lease, draft) => Answer::Published(match &draft.form {
                super::super::publisher::DraftForm::Whole(snapshot) => {
                    client.publish(lease, snapshot).await?
                }
                super::super::publisher::DraftForm::Change(delta) => client.append(lease, delta).await?,
            }),
            Question::Snapshot => Answer::Snapshot(client.snapshot().await?),
            Question::Deltas(position) => Answer::Deltas(client.deltas(position).await?),
        })
    };
    answer.now_or_never().expect("memory answers at once")
}

/// Runs schedules of which the seeds begin at one, on all processors; the failures of each.
fn run_all(seeds: std::ops::Range<u64>) -> (Tally, Vec<(u64, String)>) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4) as u64;
    let part = |first: u64| {
        let (mut tally, mut failures) = (Tally::default(), Vec::new());
        for seed in seeds.clone().filter(|seed| seed % threads == first) {
            match std::panic::catch_unwind(|| Simulation::new(seed, false).run()) {
                Ok(Ok(one)) => tally.add(&one),
                Ok(Err(failure)) => failures.push((seed, failure)),
                Err(_) => failures.push((seed, "it panicked".to_owned())),
            }
        }
        (tally, failures)
    };
    let (mut tally, mut failures) = (Tally::default(), Vec::new());
    std::thread::scope(|scope| {
        let part = &part;
        let parts: Vec<_> = (0..threads).map(|first| scope.spawn(move || part(first))).collect();
        for one in parts {
            let (counted, failed) = one.join().expect("a schedule panicked");
            tally.add(&counted);
            failures.extend(failed);
        }
    });
    (tally, failures)
}

#[test]
fn a_thousand_schedules_of_faults_end_with_one_table_everywhere() {
    if let Ok(seed) = std::env::var("SLUICE_CLUSTER_SEED") {
        let seed = seed.parse().expect("SLUICE_CLUSTER_SEED is a number");
        let tally =
            Simulation::new(seed, true).run().unwrap_or_else(|failure| panic!("seed {seed}: {failure}"));
        println!("{tally:#?}");
        return;
    }
    let began = std::time::SystemTime::now();
    let (tally, failures) = run_all(1..1001);
    println!("{tally:#?}\n1000 schedules in {:?}", began.elapsed().unwrap_or_default());
    for (seed, failure) in &failures {
        println!("SLUICE_CLUSTER_SEED={seed}: {failure}");
    }
    assert!(failures.is_empty(), "{} of 1000 schedules failed", failures.len());
    // What was to be met was met.
    assert!(tally.refused.contains_key("outdated") && tally.gaps > 0 && tally.behind > 0 && tally.strays > 0);
    assert!(tally.went_on > 500, "{tally:?}");
    assert!(tally.terms > 1500 && tally.applied > tally.drafted, "{tally:?}");
    assert_eq!(tally.faults.len(), faults::KINDS, "each kind of fault came");
}
