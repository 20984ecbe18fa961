//! The protocol as a model: one ledger, its writer, recoverers, bookies, and the record in
//! metadata. Every order of events that the setting allows is a path through it.
//!
//! Messages of one client and bookie keep their order; those of different pairs do not. A link
//! that breaks loses what is on it, and its client learns that it does not know. A bookie that
//! crashes breaks its links and starts again at once.

mod moves;
mod part;
mod search;
mod settings;
mod steps;
mod world;

use std::collections::BTreeSet;

use aquifer_model::id::{BookieId, EntryId};
use stateright::{Checker, HasDiscoveries, Model, Property};

pub use search::Schedules;
pub use settings::Setting;
pub use steps::Step;
pub use world::World;

impl Model for Setting {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::start(self)]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        steps.extend(world.steps(self));
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        world.after(self, step)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let always = PROPERTIES.into_iter();
        let mut properties: Vec<_> = always
            .map(|(name, holds)| Property::always(name, holds))
            .collect();
        if self.defect.is_none() {
            let reached = self.must_be_reached().into_iter();
            properties.extend(reached.map(|(name, reached)| Property::sometimes(name, reached)));
        }
        properties
    }
}

/// Whether something holds in a state.
type Condition = fn(&Setting, &World) -> bool;

/// What holds in every state.
const PROPERTIES: [(&str, Condition); 5] = [
    ("I1", |setting, world| {
        world.acknowledged_is_durable(setting)
    }),
    ("I2-I4", |setting, world| {
        world.closed_has_everything(setting)
    }),
    ("H16", |setting, world| world.incomplete_is_marked(setting)),
    ("bound of kept bytes", |setting, world| {
        world.bound_holds(setting)
    }),
    ("recovery decides", |setting, world| {
        world.recovery_decides(setting)
    }),
];

impl World {
    /// The property that does not hold here.
    fn violated(&self, setting: &Setting) -> Option<&'static str> {
        let mut properties = PROPERTIES.iter();
        let broken = properties.find(|(_, holds)| !holds(setting, self));
        broken.map(|(name, _)| *name)
    }
}

impl Setting {
    /// What some schedule must reach, or the setting shows nothing.
    fn must_be_reached(&self) -> Vec<(&'static str, Condition)> {
        let mut reached: Vec<(&'static str, Condition)> = vec![
            ("closed with all", |setting, world| {
                world.closed_entries() == Some(u64::from(setting.adds))
            }),
            ("closed empty", |_, world| world.closed_entries() == Some(0)),
            ("closed above the acknowledged", |_, world| {
                let closed = world.closed_entries();
                closed.is_some_and(|entries| entries > world.acknowledged())
            }),
        ];
        if self.changes > 0 && self.adds > 1 {
            reached.push(("ensemble changed", |_, world| {
                world.fragments() > 1 && world.closed_entries() > Some(1)
            }));
        }
        reached
    }

    /// Visits every state with Stateright, which knows nothing of reductions and fingerprints.
    ///
    /// # Errors
    /// The first violation, with the steps that lead to it.
    pub fn visit_all(self) -> Result<Visited, String> {
        let checker = self
            .checker()
            .threads(2)
            .finish_when(HasDiscoveries::AnyFailures);
        judge(&checker.spawn_bfs().join())
    }
}

fn judge(checker: &impl Checker<Setting>) -> Result<Visited, String> {
    let found = checker.discoveries();
    for (name, path) in &found {
        if PROPERTIES.iter().any(|(property, _)| property == name) {
            return Err(describe(name, &path.clone().into_actions()));
        }
    }
    for (name, _) in checker.model().must_be_reached() {
        if checker.model().defect.is_none() && !found.contains_key(name) {
            return Err(format!("no schedule reaches: {name}"));
        }
    }
    Ok(Visited {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        outcomes: BTreeSet::new(),
    })
}

fn describe(name: &str, steps: &[Step]) -> String {
    let steps: Vec<String> = steps.iter().map(|step| format!("{step:?}")).collect();
    format!("{name} does not hold after {}", steps.join(", "))
}

/// How a ledger can end: entries acknowledged, entries in the closed ledger, and its fragments.
pub type Outcome = (u64, u64, Vec<(EntryId, Vec<BookieId>)>);

/// What a visit of every state saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visited {
    /// Different states.
    pub states: usize,
    /// Steps of the longest path to a new one.
    pub depth: usize,
    /// Of all closed ledgers; only [`Setting::search`] notes them.
    pub outcomes: BTreeSet<Outcome>,
}
