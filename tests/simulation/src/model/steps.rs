//! What can happen in a world, and what cannot.

use crate::bookie::Crash;
use crate::model::settings::Setting;
use crate::model::world::{LEDGER, World};

/// One thing that happens. Clients and bookies are numbered from 0; client 0 is the writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// The writer takes an entry.
    Add,
    /// A bookie takes the oldest request of a client.
    Serve(u8, u8),
    /// The same, and the request stays: it will arrive once more.
    ServeTwice(u8, u8),
    /// A client takes the oldest answer of a bookie.
    Hear(u8, u8),
    /// The link between them breaks.
    Break(u8, u8),
    /// The writer gives a position up, whose request is still in flight.
    GiveUp(u8),
    /// Memory is short: the writer keeps nothing for slower bookies.
    Shed,
    /// A bookie writes what waits for its journal.
    Write(u8),
    /// A bookie syncs what it has written.
    Sync(u8),
    /// A bookie flushes its store and trims its journal.
    Flush(u8),
    /// A bookie crashes and starts again.
    Crash(u8, Crash),
    /// The newest entry that a bookie has is damaged.
    Rot(u8),
    /// Metadata takes the writer's change of the ensemble, or refuses it.
    Change,
    /// The writer hears what metadata made of it.
    HearOfChange,
    /// The writer's pause before a change is over.
    ChangeDue,
    /// The writer closes the ledger.
    Close,
    /// A recoverer begins, or begins again.
    Recover(u8),
}

impl World {
    /// Everything that may happen next.
    #[must_use]
    pub fn steps(&self, setting: &Setting) -> Vec<Step> {
        let mut steps = Vec::new();
        for (client, bookie) in self.links_with_requests() {
            steps.push(Step::Serve(client, bookie));
            if self.duplicates_left > 0 {
                steps.push(Step::ServeTwice(client, bookie));
            }
        }
        for (client, bookie) in self.links_with_answers() {
            steps.push(Step::Hear(client, bookie));
        }
        if self.losses_left > 0 {
            let links = self.links_in_use();
            steps.extend(links.into_iter().map(|(c, b)| Step::Break(c, b)));
        }
        for (number, bookie) in (0..).zip(&self.bookies) {
            if setting.journal {
                if bookie.is_writing() {
                    steps.push(Step::Sync(number));
                } else if bookie.is_busy() {
                    steps.push(Step::Write(number));
                }
                if bookie.is_dirty() && setting.crashes > 0 {
                    steps.push(Step::Flush(number));
                }
            }
            if self.crashes_left > 0 && !bookie.is_gone() {
                let kinds = setting.kinds.iter();
                steps.extend(kinds.map(|kind| Step::Crash(number, *kind)));
            }
            if self.rots_left > 0 && bookie.may_rot(LEDGER) {
                steps.push(Step::Rot(number));
            }
        }
        if self.change.as_ref().is_some_and(|c| c.made.is_none()) {
            steps.push(Step::Change);
        }
        steps.extend(self.steps_of_clients(setting));
        steps
    }

    /// What clients may do by themselves.
    pub(super) fn steps_of_clients(&self, setting: &Setting) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.adds_left > 0 && !self.writer.is_finished() {
            steps.push(Step::Add);
        }
        if self.losses_left > 0 {
            let late = self.writer.laggards();
            steps.extend(late.into_iter().map(|(_, id)| Step::GiveUp(id.0[0] - 1)));
        }
        if self.sheds_left > 0 && self.writer.kept() > 0 && !self.writer.is_finished() {
            steps.push(Step::Shed);
        }
        if self.change.as_ref().is_some_and(|c| c.made.is_some()) {
            steps.push(Step::HearOfChange);
        }
        if self.change_due {
            steps.push(Step::ChangeDue);
        }
        if setting.closes && !self.writer.is_finished() && self.change.is_none() {
            steps.push(Step::Close);
        }
        steps.extend(self.recoveries(setting));
        steps
    }

    /// Recoveries that may begin.
    pub(super) fn recoveries(&self, setting: &Setting) -> Vec<Step> {
        if self.closed_entries().is_some() {
            return Vec::new();
        }
        let clients = (1..=setting.recoverers).filter(|client| self.may_recover(*client));
        clients.map(Step::Recover).collect()
    }
}
