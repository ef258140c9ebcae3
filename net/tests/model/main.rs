//! Model checking of the move on the product's own machines. What is modelled and what is not: `world.rs`.
//!
//! `cargo xtask model` runs it with larger bounds.
#![allow(clippy::unwrap_used)]

mod source;
mod steps;
mod target;
mod world;

use std::hash::{DefaultHasher, Hash, Hasher};

use stateright::{Checker, HasDiscoveries, Model, Property};

use steps::Step;
use world::{Budget, Mutant, World};

struct Moving {
    budget: Budget,
    mutant: Mutant,
    /// One state in so many is followed to its end.
    ends_sampled: u64,
}

impl Model for Moving {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.budget)]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if world.broken.is_none() {
            steps.extend(world.steps(self.mutant));
        }
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        next.take(&step, self.mutant);
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("W1 W2 R1 S1 hold", |_, world: &World| world.broken.is_none()),
            Property::always("L1 every attempt ends once failures stop", |model: &Moving, world: &World| {
                let mut hasher = DefaultHasher::new();
                world.hash(&mut hasher);
                !hasher.finish().is_multiple_of(model.ends_sampled) || ends(world, model.mutant)
            }),
            Property::sometimes("a move completes", |_, world: &World| {
                world.owner() == 1 && world.hosts[1].serves_writes()
            }),
            Property::sometimes("an attempt is aborted", |_, world: &World| {
                world.record().epoch > 1 && world.owner() == 0
            }),
        ]
    }
}

/// Whether a run without further failures and requests comes to rest with the attempt closed and one host serving.
fn ends(world: &World, mutant: Mutant) -> bool {
    const STEPS_MAX: usize = 400;
    let mut world = world.clone();
    world.budget = Budget {
        writes: 0,
        moves: 0,
        crashes: [0, 0],
        cuts: 0,
        hiccups: 0,
        lost_answers: 0,
        repeats: 0,
        timeouts: 1,
        early: 0,
        releases: 0,
        forces: 0,
    };
    for _ in 0..STEPS_MAX {
        let mut steps = world.steps(mutant);
        // What is under way arrives before anybody asks again, and time passes last.
        steps.sort_by_key(|step| match step {
            Step::Coordinate { .. } | Step::Deliver { .. } => 0,
            Step::Timeout(_) | Step::Thaw(_) => 2,
            _ => 1,
        });
        let progress = |step: &&Step| {
            let mut next = world.clone();
            next.take(step, mutant);
            next != world
        };
        let next = steps.iter().find(progress);
        let Some(step) = next.cloned() else {
            break;
        };
        world.take(&step, mutant);
        world.budget.timeouts = 1;
    }
    let rests = world.asks.is_empty() && world.wire.is_empty() && world.hosts.iter().all(world::Host::is_unclaimed);
    let served = world.hosts.iter().filter(|host| host.serves_writes()).count() == 1;
    if std::env::var_os("ANTUMBRA_MODEL_SHOW_REST").is_some() && !(rests && served) {
        eprintln!("{world:#?}\n{:?}", world.steps(mutant));
    }
    rests
        && served
        && world.record().diverged.is_none()
        && world.record().state == antumbra_net::coordinator::RecordState::Stable
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(format!("ANTUMBRA_MODEL_{name}")).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn check(budget: Budget, mutant: Mutant, states_max: usize) -> (usize, bool, Option<String>) {
    let model = Moving { budget, mutant, ends_sampled: number("ENDS_SAMPLED", 64) };
    let mut builder = model.checker().threads(2).target_state_count(states_max);
    if mutant != Mutant::None {
        builder = builder.finish_when(HasDiscoveries::AnyFailures);
    }
    let checker = builder.spawn_bfs().join();
    let broken = checker.discoveries().into_iter().find(|(name, _)| !name.starts_with('a')).map(|(name, path)| {
        let last = path.last_state().broken.unwrap_or("it does not end");
        let steps: Vec<String> = path.into_actions().iter().map(|step| format!("    {step:?}")).collect();
        format!("{name}: {last}, after\n{}", steps.join("\n"))
    });
    (checker.unique_state_count(), checker.state_count() < states_max, broken)
}

fn budget() -> Budget {
    let byte = |name, default| number(name, default) as u8;
    Budget {
        writes: byte("WRITES", 1),
        moves: byte("MOVES", 1),
        crashes: [byte("SOURCE_CRASHES", 1), byte("TARGET_CRASHES", 1)],
        cuts: byte("CUTS", 1),
        hiccups: byte("HICCUPS", 0),
        lost_answers: byte("LOST_ANSWERS", 1),
        repeats: byte("REPEATS", 0),
        timeouts: byte("TIMEOUTS", 0),
        early: byte("EARLY", 1),
        releases: byte("RELEASES", 0),
        forces: byte("FORCES", 0),
    }
}

fn check_sound(budget: Budget) {
    let states_max = number("STATES", 1_000_000) as usize;
    let began = std::time::Instant::now();
    let (states, done, broken) = check(budget, Mutant::None, states_max);
    println!("{budget:?}: {states} states in {:.1} s, all of them: {done}", began.elapsed().as_secs_f64());
    assert!(broken.is_none(), "{}", broken.unwrap_or_default());
}

#[test]
fn every_reachable_state_keeps_the_invariants() {
    check_sound(budget());
}

#[test]
fn copy_that_goes_on_over_another_link_keeps_the_invariants() {
    let rest = Budget { crashes: [0, 0], cuts: 0, lost_answers: 0, ..budget() };
    check_sound(Budget { writes: rest.writes.max(2), hiccups: rest.hiccups.max(2), ..rest });
}

/// There, a write, and back on the copy that stayed; it may be given up at any time.
#[test]
fn roll_back_keeps_the_invariants() {
    let rest = Budget { crashes: [0, 1], cuts: 0, lost_answers: 0, ..budget() };
    check_sound(Budget { writes: 2, moves: 2, releases: 1, ..rest });
}

/// A standby that is promoted by force while its source lives, is cut off, or is dead; the source returns.
#[test]
fn forced_promotion_loses_nothing_without_a_word() {
    let rest = Budget { crashes: [1, 1], cuts: 1, lost_answers: 0, early: 0, ..budget() };
    check_sound(Budget { writes: 2, forces: 1, ..rest });
}

#[test]
fn planted_bugs_are_found() {
    let base = Budget {
        writes: 1,
        moves: 1,
        crashes: [0, 0],
        cuts: 1,
        hiccups: 0,
        lost_answers: 1,
        repeats: 0,
        timeouts: 0,
        early: 0,
        releases: 0,
        forces: 0,
    };
    let early = Budget { cuts: 1, lost_answers: 0, early: 1, ..base };
    let hunts = [
        // The copy at the source stays for a roll-back, until it is given up.
        (Mutant::CompleteBeforeFilled, Budget { releases: 1, ..early }),
        (Mutant::ServeBase, Budget { moves: 2, cuts: 0, lost_answers: 0, ..base }),
        (Mutant::DropParted, Budget { writes: 1, forces: 1, cuts: 0, lost_answers: 0, ..base }),
        (Mutant::MirrorGoesOn, Budget { writes: 1, forces: 1, cuts: 0, lost_answers: 0, ..base }),
        (Mutant::WriteBeforeHandOver, base),
        (Mutant::FreezeLeftByTimer, base),
        (Mutant::StaleAttempt, Budget { writes: 1, moves: 2, cuts: 0, lost_answers: 0, timeouts: 1, ..base }),
    ];
    for (mutant, budget) in hunts {
        let (states, _, broken) = check(budget, mutant, 20_000_000);
        let broken = broken.unwrap_or_else(|| panic!("{mutant:?} was not found in {states} states"));
        println!("{mutant:?} found after {states} states: {broken}");
        assert!(!broken.starts_with("L1"), "found by what it breaks");
    }
}
