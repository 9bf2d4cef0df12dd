//! The real election and the real rule of what is applied, explored: three nodes on one store, every order of their steps, and
//! every place for a few faults.
//!
//! Time goes on when all that is due has been done, unless a fault holds it up: a node is paused, or a message is late, is lost,
//! or comes when nobody waits for it any more. So each fault is counted, and what takes several of them over more than two lives
//! of a lease is found.

mod store;
mod world;

use std::collections::HashSet;
use std::hash::BuildHasher;
use std::sync::Mutex;

use foldhash::fast::FixedState;
use stateright::{Checker, CheckerBuilder, HasDiscoveries, Model, Property};

use self::world::{Fate, NODES, UNIT, World};
use super::super::election::Millis;

/// What is left out or done wrong, to see that the check finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    /// The store takes a release from somebody who does not hold the lease.
    ReleasesWithoutComparing,
    /// The store counts epochs, and does not heed which ones the candidate knows of.
    ForgetsWhatIsKnown,
    /// Nodes apply tables of lower tokens.
    AppliesLower,
    /// A draft whose answer was lost has the same number as the next one.
    UsesNumbersAgain,
    /// A change follows the last table that came out, although a later one may have.
    FollowsWhatMayBeOut,
    /// Leaders do not look at which tokens others have applied.
    HeedsNobody,
    /// The leader does not look at whether the store still has its table.
    TrustsTheStore,
}

/// How far is explored.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    faults: u8,
    writes: u64,
    horizon: Millis,
}

/// One step of the world.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// Nothing is due any more, and time goes on.
    Time,
    /// A node hears what others have applied, and does what is due.
    Due(usize, Fate),
    /// A question that was late reaches the store.
    Reach(usize),
    /// The store's answer arrives.
    Arrive(usize),
    /// A node waits no longer for an answer. The question may reach the store all the same.
    GiveUp(usize),
    /// A message of which nobody awaits anything any more reaches the store.
    Stray(usize),
    /// A leader publishes.
    Publish(usize, Fate),
    /// A node reads the store's next table, and applies it now or later.
    Read(usize, Fate),
    /// A node applies what it read before.
    Apply(usize),
    /// Documents change.
    Write,
    /// A process stands still.
    Pause(usize),
    /// It goes on.
    Resume(usize),
    /// A process is killed, and comes back with its disk or without.
    Restart(usize, bool),
    /// The store loses everything.
    Empty,
    /// The store is what it was before the documents changed last.
    Restore,
}

struct Exploration {
    flaw: Flaw,
    bounds: Bounds,
    /// Worlds of which is known that they come to rest.
    settling: Mutex<HashSet<u64>>,
}

impl Exploration {
    fn new(flaw: Flaw, bounds: Bounds) -> Self {
        Self { flaw, bounds, settling: Mutex::default() }
    }

    /// Whether the world comes to rest when there are no more faults: one leads, and all that run have its table of the last
    /// documents in force. Those that are paused stay so.
    fn settles(&self, world: &World) -> bool {
        /// Longer than a lease lives, and each node's turn to ask.
        const UNITS_MAX: usize = 12;
        let mut world = world.clone();
        world.end_faults();
        let mut seen = Vec::new();
        for _ in 0..UNITS_MAX {
            let hash = FixedState::default().hash_one(&world);
            let mut settling = self.settling.lock().expect("nobody panics with it");
            seen.push(hash);
            if settling.contains(&hash) || world.is_at_rest() {
                settling.extend(seen);
                return true;
            }
            drop(settling);
            world.run(self.flaw);
            if !world.is_at_rest() {
                world.now.0 += UNIT;
            }
        }
        world.is_at_rest()
    }
}

impl Model for Exploration {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.bounds.faults)]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        let may_fail = world.faults > 0;
        for (number, node) in world.nodes.iter().enumerate() {
            if node.paused {
                steps.push(Step::Resume(number));
            }
            steps.push(Step::Reach(number));
            if !node.paused {
                steps.extend([Step::Arrive(number), Step::GiveUp(number), Step::Apply(number)]);
                let faults = [Fate::QuestionLate, Fate::AnswerLate, Fate::ReleaseLate, Fate::Deaf];
                let faults = faults.into_iter().filter(|_| may_fail);
                for fate in std::iter::once(Fate::Good).chain(faults) {
                    steps.push(Step::Due(number, fate));
                    steps.extend([Step::Publish(number, fate), Step::Read(number, fate)]);
                }
            }
            if may_fail {
                steps.extend([Step::Restart(number, true), Step::Restart(number, false)]);
                if !node.paused {
                    steps.push(Step::Pause(number));
                }
            }
        }
        steps.extend((0..world.strays()).map(Step::Stray));
        if may_fail {
            steps.extend([Step::Empty, Step::Restore]);
        }
        if world.written < self.bounds.writes {
            steps.push(Step::Write);
        }
        if world.now < self.bounds.horizon {
            steps.push(Step::Time);
        }
    }

    fn next_state(&self, before: &World, step: Step) -> Option<World> {
        let mut world = before.clone();
        let done = match step {
            Step::Time => world.time(),
            Step::Due(node, fate) => world.due(node, fate, self.flaw),
            Step::Reach(node) => world.reach(node, self.flaw),
            Step::Arrive(node) => world.arrive(node, self.flaw),
            Step::GiveUp(node) => world.give_up(node, self.flaw),
            Step::Stray(message) => {
                world.stray(message, self.flaw);
                Some(())
            }
            Step::Publish(node, fate) => world.publish(node, fate, self.flaw),
            Step::Read(node, fate) => world.read(node, fate, self.flaw),
            Step::Apply(node) => world.apply_late(node, self.flaw),
            Step::Write => {
                world.write();
                Some(())
            }
            Step::Pause(node) => world.pause(node),
            Step::Resume(node) => {
                world.resume(node);
                Some(())
            }
            Step::Restart(node, disk) => world.restart(node, disk),
            Step::Empty => world.empty(),
            Step::Restore => world.restore(),
        };
        (done.is_some() && world != *before).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no node goes back", |_, world: &World| world.broken.is_none()),
            Property::always("tables of one name are one", |_, world: &World| world.has_one_table_per_name()),
            Property::always("one leads", |_, world: &World| world.lost_data || world.leaders() <= 1),
            Property::always("it comes to rest", Self::settles),
            Property::sometimes("all have what was written", |_, world: &World| {
                world.written > 0 && world.is_at_rest()
            }),
            Property::sometimes("two lead where the store lost its lease", |_, world: &World| {
                world.leaders() > 1
            }),
        ]
    }
}

/// More steps than this are not made.
const STEPS_MAX: usize = 20_000_000;

fn units(number: u64) -> Millis {
    Millis(number * UNIT)
}

/// What is explored: one fault more takes a hundred times as long. `SLUICE_CLUSTER_BOUNDS=FAULTS,WRITES,UNITS` explores those.
fn bounds() -> Bounds {
    let given = std::env::var("SLUICE_CLUSTER_BOUNDS").unwrap_or_else(|_| "1,1,4".to_owned());
    let numbers: Vec<u64> = given.split(',').filter_map(|number| number.parse().ok()).collect();
    let [faults, writes, horizon] = numbers[..] else { panic!("SLUICE_CLUSTER_BOUNDS is three numbers") };
    Bounds { faults: u8::try_from(faults).expect("is small"), writes, horizon: units(horizon) }
}

#[test]
fn no_order_of_steps_and_faults_breaks_what_is_promised() {
    let bounds = bounds();
    let began = std::time::SystemTime::now();
    // Depth first: what is still to be visited is never much.
    let checker = Exploration::new(Flaw::None, bounds)
        .checker()
        .threads(1)
        .finish_when(HasDiscoveries::AnyFailures)
        .target_state_count(STEPS_MAX)
        .spawn_dfs()
        .join();
    println!(
        "{NODES} nodes, {bounds:?}: {} distinct states, {} steps, depth {}, {:?}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        began.elapsed().unwrap_or_default(),
    );
    for (property, path) in checker.discoveries() {
        println!("{property}: {:?}", path.into_actions());
    }
    checker.assert_properties();
    assert!(checker.unique_state_count() >= 100_000, "{} states", checker.unique_state_count());
    assert!(checker.state_count() < STEPS_MAX, "not all was explored");
}

#[test]
fn what_is_left_out_is_found() {
    let cases = [
        (Flaw::AppliesLower, 3, "no node goes back"),
        (Flaw::UsesNumbersAgain, 1, "tables of one name are one"),
        (Flaw::ForgetsWhatIsKnown, 1, "it comes to rest"),
        (Flaw::FollowsWhatMayBeOut, 2, "it comes to rest"),
        (Flaw::HeedsNobody, 2, "it comes to rest"),
        (Flaw::TrustsTheStore, 1, "it comes to rest"),
    ];
    for (flaw, faults, property) in cases {
        let bounds = Bounds { faults, writes: 1, horizon: units(4) };
        let found = explore_until(flaw, bounds, property).spawn_bfs().join().discovery(property);
        let path = found.unwrap_or_else(|| panic!("{flaw:?}: not found: {property}"));
        println!("{flaw:?}: {:?}", path.into_actions());
    }
}

/// The way to two leaders is too long to be looked for here: a grant is lost, so the lease is given back, which comes late; it is
/// given back again, and the first of these arrives when somebody else has it.
#[test]
fn a_release_that_comes_late_takes_the_lease_from_nobody() {
    let steps = || {
        [
            Step::Due(0, Fate::AnswerLate),
            Step::GiveUp(0),
            Step::Due(1, Fate::Good),
            Step::Due(2, Fate::Good),
            Step::Time,
            Step::Due(0, Fate::ReleaseLate),
            Step::Due(1, Fate::Good),
            Step::Due(2, Fate::Good),
            Step::Time,
            Step::Due(0, Fate::Good),
            Step::Due(1, Fate::Good),
            Step::Stray(0),
            Step::Due(2, Fate::Good),
        ]
    };
    for (flaw, leaders) in [(Flaw::None, 1), (Flaw::ReleasesWithoutComparing, 2)] {
        let exploration = Exploration::new(flaw, Bounds { faults: 2, writes: 0, horizon: units(7) });
        let mut world = World::new(2);
        for step in steps() {
            let next = exploration.next_state(&world, step.clone());
            world = next.unwrap_or_else(|| panic!("{flaw:?}: {step:?} can't be made: {world:#?}"));
        }
        assert_eq!(world.leaders(), leaders, "{flaw:?}");
    }
}

fn explore_until(flaw: Flaw, bounds: Bounds, property: &'static str) -> CheckerBuilder<Exploration> {
    Exploration::new(flaw, bounds)
        .checker()
        .threads(1)
        .finish_when(HasDiscoveries::AllOf([property].into()))
        .target_state_count(STEPS_MAX / 10)
}
