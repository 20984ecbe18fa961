//! The protocol as a model: one ledger, its writer, recoverers, bookies, and the record in
//! metadata. Every order of events that the setting allows is a path through it.
//!
//! Messages of one client and bookie keep their order; those of different pairs do not. A link
//! that breaks loses what is on it, and its client learns that it does not know. A bookie that
//! crashes breaks its links and starts again at once.

mod settings;
mod steps;
mod world;

use stateright::{Checker, HasDiscoveries, Model, Property};

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
        let mut properties = vec![
            Property::always("I1", |setting: &Setting, world: &World| {
                world.acknowledged_is_durable(setting)
            }),
            Property::always("I2-I4", |setting: &Setting, world: &World| {
                world.closed_has_everything(setting)
            }),
            Property::always("recovery decides", |setting: &Setting, world: &World| {
                world.recovery_decides(setting)
            }),
        ];
        if self.defect.is_none() {
            properties.extend(self.reached());
        }
        properties
    }
}

impl Setting {
    /// What some schedule must reach, or the setting shows nothing.
    fn reached(&self) -> Vec<Property<Self>> {
        let mut reached = vec![
            Property::sometimes("closed with all", |setting: &Setting, world: &World| {
                world.closed_entries() == Some(u64::from(setting.adds))
            }),
            Property::sometimes("closed empty", |_: &Setting, world: &World| {
                world.closed_entries() == Some(0)
            }),
            Property::sometimes("closed above the acknowledged", |_, world: &World| {
                world
                    .closed_entries()
                    .is_some_and(|n| n > world.acknowledged())
            }),
        ];
        if self.changes > 0 && self.adds > 1 {
            reached.push(Property::sometimes(
                "ensemble changed",
                |_, world: &World| world.fragments() > 1 && world.closed_entries() > Some(1),
            ));
        }
        reached
    }

    /// Visits every state.
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

    /// The same in another order, which takes less memory: the depth is that of the longest path.
    ///
    /// # Errors
    /// The first violation, with the steps that lead to it.
    pub fn visit_all_deep(self) -> Result<Visited, String> {
        let checker = self
            .checker()
            .threads(2)
            .finish_when(HasDiscoveries::AnyFailures);
        judge(&checker.spawn_dfs().join())
    }
}

fn judge(checker: &impl Checker<Setting>) -> Result<Visited, String> {
    let names: Vec<&'static str> = self_names(checker.model());
    let found = checker.discoveries();
    for (name, path) in &found {
        if names.contains(name) {
            return Err(describe(name, &path.clone().into_actions()));
        }
    }
    for property in checker.model().reached() {
        if checker.model().defect.is_none() && !found.contains_key(property.name) {
            return Err(format!("no schedule reaches: {}", property.name));
        }
    }
    Ok(Visited {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
    })
}

fn self_names(setting: &Setting) -> Vec<&'static str> {
    let always = setting.properties().into_iter();
    always
        .filter(|p| matches!(p.expectation, stateright::Expectation::Always))
        .map(|p| p.name)
        .collect()
}

fn describe(name: &str, steps: &[Step]) -> String {
    let steps: Vec<String> = steps.iter().map(|step| format!("{step:?}")).collect();
    format!("{name} does not hold after {}", steps.join(", "))
}

/// What a visit of every state saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Visited {
    /// Different states.
    pub states: usize,
    /// Steps of the longest path to a new one.
    pub depth: usize,
}
