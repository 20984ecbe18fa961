//! Ways to visit fewer states without hiding anything (docs/specs/ledger-protocol.md).

use std::collections::VecDeque;

use aquifer_ledger::writer::machine::Writer;
use aquifer_model::storage::BookieError;

use crate::model::part::{Fingerprint, Part};
use crate::model::settings::Setting;
use crate::model::steps::Step;
use crate::model::world::{Answer, Heard, LEDGER, Link, RecordState, WRITER, World};

impl World {
    /// An answer that means nothing to a machine now never will: it is taken at once, so that
    /// states do not differ by when it is.
    pub(super) fn forget_what_changes_nothing(&mut self, setting: &Setting) {
        let links: Vec<Link> = self.answers.keys().copied().collect();
        for link in links {
            while let Some(answer) = self.answers.get(&link).and_then(|queue| queue.front())
                && !self.matters(setting, link.1, answer)
            {
                self.answers.entry(link).or_default().change().pop_front();
            }
        }
    }

    fn matters(&self, setting: &Setting, bookie: u8, (tag, result): &Answer) -> bool {
        if !self.listens(tag) {
            return false;
        }
        match self.event_of(setting, bookie, tag, result) {
            Heard::Writer(event) => {
                let (mut machine, mut actions) = (Writer::clone(&self.writer), Vec::new());
                machine.on(event, &mut actions);
                !actions.is_empty() || machine != *self.writer
            }
            Heard::Recoverer(event) => {
                let slot = usize::from(tag.client - 1);
                let Some(recoverer) = &*self.recoverers[slot] else {
                    return false;
                };
                let (mut machine, mut actions) = (recoverer.machine.clone(), Vec::new());
                machine.on(event, &mut actions);
                !actions.is_empty() || machine != recoverer.machine
            }
        }
    }
}

/// For searches that take the moves of `model/moves.rs`.
impl World {
    /// Nothing that may still happen can break a property.
    pub(in crate::model) fn is_over(&self) -> bool {
        self.closed_entries().is_some() && self.writer.is_finished() && self.none_recovers()
    }

    fn none_recovers(&self) -> bool {
        let mut recoverers = self.recoverers.iter();
        recoverers.all(|r| r.as_ref().is_none_or(|r| r.machine.is_finished()))
    }

    /// Forgets what only helps, or only stops the writer: it never arrives.
    ///
    /// Once the ledger is closed and not being recovered, requests of recoverers only add copies
    /// and fences. What the writer sends to a bookie with a fence is refused, whenever it arrives;
    /// only where acknowledgements may wait for that bookie is losing it another thing.
    pub(in crate::model) fn forget_leftovers(&mut self, setting: &Setting) {
        let bookies = &self.bookies;
        let is_fenced =
            |bookie: u8| !setting.holds_back() && bookies[usize::from(bookie)].is_fenced(LEDGER);
        self.requests
            .retain(|(client, bookie), _| *client != WRITER || !is_fenced(*bookie));
        for ((client, _), queue) in &mut self.answers {
            let is_fence = |(_, result): &Answer| matches!(result, Err(BookieError::Fenced));
            let is_vain = *client == WRITER && !setting.holds_back();
            if is_vain && queue.iter().any(is_fence) {
                queue.change().retain(|answer| !is_fence(answer));
            }
        }
        self.answers.retain(|_, queue| !queue.is_empty());
        if self.closed_entries().is_some() && self.none_recovers() {
            self.requests.retain(|(client, _), _| *client == WRITER);
            self.answers.retain(|(client, _), _| *client == WRITER);
            for recoverer in &mut self.recoverers {
                *recoverer = Part::default();
            }
        }
    }

    /// Whether a change of the writer's may still be taken.
    pub(in crate::model) fn is_open(&self) -> bool {
        self.record.state == RecordState::Open
    }

    /// The world after a request has arrived twice, without a second answer that says the same.
    pub(in crate::model) fn served_twice(
        &self,
        setting: &Setting,
        client: u8,
        bookie: u8,
    ) -> Option<World> {
        if self.duplicates_left == 0 {
            return None;
        }
        let twice = self.after(setting, Step::ServeTwice(client, bookie))?;
        let mut twice = twice.after(setting, Step::Serve(client, bookie))?;
        let answers = twice.answers.get_mut(&(client, bookie));
        if let Some(answers) = answers
            && let [.., first, second] = Vec::from(VecDeque::clone(answers)).as_slice()
            && (first.0.about, &first.1) == (second.0.about, &second.1)
        {
            answers.change().pop_back();
        }
        Some(twice)
    }

    pub(in crate::model) fn answers_on(&self, client: u8, bookie: u8) -> usize {
        let queue = self.answers.get(&(client, bookie));
        queue.map_or(0, |queue| queue.len())
    }

    pub(in crate::model) fn has_request(&self, client: u8, bookie: u8) -> bool {
        self.requests.contains_key(&(client, bookie))
    }

    pub(in crate::model) fn is_in_use(&self, client: u8, bookie: u8) -> bool {
        self.answers_on(client, bookie) > 0 || self.has_request(client, bookie)
    }

    /// Whether requests of two clients at a bookie have the same effect in either order: the
    /// writer's are refused by a fence, for which all that others do is the same.
    pub(in crate::model) fn commute(&self, bookie: u8, one: u8, other: u8) -> bool {
        (one == WRITER || other == WRITER) && self.is_fenced(bookie)
    }

    pub(in crate::model) fn is_fenced(&self, bookie: u8) -> bool {
        self.bookies[usize::from(bookie)].is_fenced(LEDGER)
    }

    /// Everything but what may still go wrong.
    pub(in crate::model) fn core(&self) -> Fingerprint {
        let World {
            writer,
            adds_left,
            sent,
            acked,
            version,
            change,
            change_due,
            bookies,
            requests,
            answers,
            recoverers,
            record,
            losses_left: _,
            duplicates_left: _,
            crashes_left: _,
            sheds_left,
            rots_left,
            changes_left,
            lost,
            aborts,
        } = self;
        Fingerprint::of(&(
            (writer, adds_left, sent, acked, version, change, change_due),
            (bookies, requests, answers, recoverers, record),
            (sheds_left, rots_left, changes_left, lost, aborts),
        ))
    }

    /// How often what may still go wrong.
    pub(in crate::model) fn faults_left(&self) -> [u8; 3] {
        [self.losses_left, self.duplicates_left, self.crashes_left]
    }
}
