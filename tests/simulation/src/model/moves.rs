//! The steps that a reduced search takes: fewer schedules, of which one stands for many that end
//! in the same state (docs/specs/ledger-protocol.md has the argument).
//!
//! - A bookie serves a request, and metadata takes a change, only right before something for which
//!   it makes a difference that it has. Until then serving later leads to the same.
//! - Where more may still go wrong, everything can happen that can where less may.
//! - When the ledger is closed, what its finished recoverers left on the way can only help.

use crate::bookie::Crash;
use crate::model::settings::Setting;
use crate::model::steps::Step;
use crate::model::world::World;

/// Steps that are taken together, and where they lead.
pub type Move = (Vec<Step>, World);

/// Collects moves from one world.
struct Moves<'a> {
    setting: &'a Setting,
    found: Vec<Move>,
}

impl World {
    /// Every step by itself.
    #[must_use]
    pub fn single_steps(&self, setting: &Setting) -> Vec<Move> {
        let steps = self.steps(setting).into_iter();
        let moves = steps.filter_map(|step| Some((vec![step], self.after(setting, step)?)));
        moves.collect()
    }

    /// Moves that stand for all others, where every request is durable when it is served.
    #[must_use]
    pub fn moves(&self, setting: &Setting) -> Vec<Move> {
        let mut moves = Moves {
            setting,
            found: Vec::new(),
        };
        if self.is_over() {
            return moves.found;
        }
        for step in self.steps_of_clients(setting) {
            moves.take(self, &[], step);
        }
        if let Some(changed) = self.with_change(setting) {
            let first = [Step::Change];
            moves.take(&changed, &first, Step::HearOfChange);
            for step in changed.recoveries(setting) {
                moves.take(&changed, &first, step);
            }
            // Whether a bookie is gone decides who replaces another.
            if self.crashes_left > 0 && setting.kinds.contains(&Crash::Wipe) {
                moves.found.push((first.to_vec(), changed));
            }
        }
        for number in 0..setting.bookies {
            moves.at(self, number, &mut Vec::new());
        }
        // The last is taken first: what is reached without a fault need not be visited with one.
        let left = |world: &World| world.faults_left().into_iter().sum::<u8>();
        moves.found.sort_by_key(|(_, world)| left(world));
        moves.found
    }

    /// The world when metadata has taken the change that it was asked for.
    fn with_change(&self, setting: &Setting) -> Option<World> {
        let waits = self.change.as_ref().is_some_and(|c| c.made.is_none());
        waits.then(|| self.after(setting, Step::Change)).flatten()
    }
}

impl Moves<'_> {
    fn take(&mut self, world: &World, before: &[Step], step: Step) -> Option<()> {
        let mut next = world.after(self.setting, step)?;
        next.forget_leftovers();
        let mut steps = before.to_vec();
        steps.push(step);
        self.found.push((steps, next));
        Some(())
    }

    /// What can happen at a bookie after it has served some requests, the last one of them of the
    /// last step's client.
    fn at(&mut self, world: &World, bookie: u8, served: &mut Vec<Step>) {
        let setting = self.setting;
        let last = match served.last() {
            Some(Step::Serve(client, _) | Step::ServeTwice(client, _)) => Some(*client),
            _ => None,
        };
        for client in 0..=setting.recoverers {
            let concerns = last.is_none_or(|last| last == client);
            // Older answers come first, whatever was served now.
            let answers = world.answers_on(client, bookie);
            if concerns && answers > 0 && (last.is_none() || answers == 1) {
                self.take(world, served, Step::Hear(client, bookie));
            }
            if concerns && world.losses_left > 0 && world.is_in_use(client, bookie) {
                self.take(world, served, Step::Break(client, bookie));
            }
        }
        if world.crashes_left > 0 && !world.bookies[usize::from(bookie)].is_gone() {
            for kind in &setting.kinds {
                self.take(world, served, Step::Crash(bookie, *kind));
            }
        }
        for client in 0..=setting.recoverers {
            if !world.has_request(client, bookie)
                || last.is_some_and(|last| last != client && world.commute(bookie, last, client))
            {
                continue;
            }
            let mut steps = vec![Step::Serve(client, bookie)];
            // Where a fence is, a second time shows and changes nothing that the first has not.
            let shows_twice = setting.recoverers > 1 || !world.is_fenced(bookie);
            if world.duplicates_left > 0 && shows_twice {
                steps.push(Step::ServeTwice(client, bookie));
            }
            for step in steps {
                if let Some(next) = world.after(setting, step) {
                    served.push(step);
                    self.at(&next, bookie, served);
                    served.pop();
                }
            }
        }
    }
}
