//! The steps that a reduced search takes: fewer schedules, of which one stands for many that end
//! in the same state (docs/specs/ledger-protocol.md has the argument).
//!
//! - A bookie serves a request, and metadata takes a change, only right before something for which
//!   it makes a difference that it has. Until then serving later leads to the same.
//! - A request that arrives a second time, at once, and changes nothing leads nowhere else.
//! - A writer that is stopped, or that loses a bookie once its record is not open any more, can do
//!   nothing that one can not which never hears of it: it never hears of it.
//! - When the ledger is closed, what its finished recoverers left on the way can only help.
//! - Where more may still go wrong, everything can happen that can where less may.

use crate::bookie::Crash;
use crate::model::settings::Setting;
use crate::model::steps::Step;
use crate::model::world::{LEDGER, WRITER, World};

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
            let is_vain = match step {
                // Acknowledgements that wait for a bookie do not wait for one that is lost.
                Step::GiveUp(_) | Step::Shed => !setting.holds_back(),
                Step::Close | Step::ChangeDue => true,
                _ => false,
            };
            if self.is_open() || !is_vain {
                moves.take(self, &[], step);
            }
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
        (waits && self.is_open())
            .then(|| self.after(setting, Step::Change))
            .flatten()
    }
}

impl Moves<'_> {
    fn take(&mut self, world: &World, before: &[Step], step: Step) -> Option<()> {
        let mut next = world.after(self.setting, step)?;
        next.forget_leftovers(self.setting);
        let mut steps = before.to_vec();
        steps.push(step);
        self.found.push((steps, next));
        Some(())
    }

    /// What can happen at a bookie after it has served some requests, the last one of them of the
    /// last step's client.
    fn at(&mut self, world: &World, bookie: u8, served: &mut Vec<Step>) {
        let setting = self.setting;
        let (last, fresh) = match served.as_slice() {
            [.., Step::ServeTwice(..), Step::Serve(client, _)] => (Some(*client), 2),
            [.., Step::Serve(client, _)] => (Some(*client), 1),
            _ => (None, usize::MAX),
        };
        for client in 0..=setting.recoverers {
            let concerns = last.is_none_or(|last| last == client);
            // Older answers come first, whatever was served now.
            let answers = world.answers_on(client, bookie);
            if concerns && answers > 0 && answers <= fresh {
                self.take(world, served, Step::Hear(client, bookie));
            }
            let may_break = client != WRITER || world.is_open() || setting.holds_back();
            if concerns && may_break && world.losses_left > 0 && world.is_in_use(client, bookie) {
                self.take(world, served, Step::Break(client, bookie));
            }
        }
        if world.crashes_left > 0 && !world.bookies[usize::from(bookie)].is_gone() {
            for kind in &setting.kinds {
                self.take(world, served, Step::Crash(bookie, *kind));
            }
        }
        if world.rots_left > 0 && world.bookies[usize::from(bookie)].may_rot(LEDGER) {
            self.take(world, served, Step::Rot(bookie));
        }
        for client in 0..=setting.recoverers {
            if !world.has_request(client, bookie)
                || last.is_some_and(|last| last != client && world.commute(bookie, last, client))
            {
                continue;
            }
            let Some(once) = world.after(setting, Step::Serve(client, bookie)) else {
                continue;
            };
            if let Some(twice) = world.served_twice(setting, client, bookie)
                && twice.core() != once.core()
            {
                let steps = [
                    Step::ServeTwice(client, bookie),
                    Step::Serve(client, bookie),
                ];
                served.extend(steps);
                self.at(&twice, bookie, served);
                served.truncate(served.len() - steps.len());
            }
            served.push(Step::Serve(client, bookie));
            self.at(&once, bookie, served);
            served.pop();
        }
    }
}
