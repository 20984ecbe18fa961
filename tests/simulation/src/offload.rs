//! The offload of one ledger as a model: two processes that may crash or go on late, the reaper,
//! which gives attempts up or takes their objects, the owner that drops copies and trims, a backup,
//! a place that is not the right one for a while, and a build that knows nothing of objects. Every
//! order of their steps is a path through it.
//!
//! What a step makes of the ledger's record is decided by `aquifer_ledger::offload` itself. What
//! goes with it in the same transaction (`aquifer_ledger::objects`) is written down here again: a
//! ledger has a record, a task of deletion, copies at bookies, and objects by attempts.

mod record;
mod world;

use stateright::{Checker, HasDiscoveries, Model, Property};

use crate::defect::OffloadDefect;
pub use crate::offload::world::{Step, World};

/// A check of every schedule.
#[derive(Debug, Clone, Copy, Default)]
pub struct Offloads {
    /// A defect that is put back.
    pub defect: Option<OffloadDefect>,
}

/// Whether something holds in a state.
type Condition = fn(&Offloads, &World) -> bool;

/// What holds in every state.
const ALWAYS: [(&str, Condition); 4] = [
    (
        "I10: it is read from copies or from a whole object",
        |_, world| world.is_readable(),
    ),
    ("every object is written down", |_, world| {
        world.objects_are_recorded()
    }),
    (
        "H22: the object of a ledger is not to be deleted",
        |_, world| world.live_object_stays(),
    ),
    ("I10: what a backup names is there", |_, world| {
        world.backup_is_whole()
    }),
];

/// What some schedule reaches, or the model shows nothing.
const REACHED: [(&str, Condition); 3] = [
    ("copies gone", |_, world| world.is_offloaded()),
    ("a second attempt stored", |_, world| world.has_second()),
    ("ledger and objects gone", |_, world| world.is_all_gone()),
];

impl Model for Offloads {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::start()]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        steps.extend(world.steps(self.defect));
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        Some(world.after(step, self.defect))
    }

    fn properties(&self) -> Vec<Property<Offloads>> {
        let always = ALWAYS.into_iter();
        let mut properties: Vec<_> = always
            .map(|(name, holds)| Property::always(name, holds))
            .collect();
        if self.defect.is_none() {
            let reached = REACHED.into_iter();
            properties.extend(reached.map(|(name, reached)| Property::sometimes(name, reached)));
        }
        properties
    }
}

impl Offloads {
    /// Visits every state; answers how many there are.
    ///
    /// # Errors
    /// The first violation, with the steps that lead to it.
    pub fn visit_all(self) -> Result<usize, String> {
        let checker = self
            .checker()
            .threads(2)
            .finish_when(HasDiscoveries::AnyFailures);
        let checker = checker.spawn_bfs().join();
        let found = checker.discoveries();
        for (name, path) in &found {
            if ALWAYS.iter().any(|(property, _)| property == name) {
                let steps = path.clone().into_actions();
                let steps: Vec<String> = steps.iter().map(|step| format!("{step:?}")).collect();
                return Err(format!("{name} does not hold after {}", steps.join(", ")));
            }
        }
        let missed = REACHED.iter().find(|(name, _)| !found.contains_key(name));
        match (self.defect, missed) {
            (None, Some((name, _))) => Err(format!("no schedule reaches: {name}")),
            _ => Ok(checker.unique_state_count()),
        }
    }
}
