//! The writer of one ledger as a state machine: events in, actions out, no I/O, threads or clocks.
//!
//! Owns the rules of quorum adds. Invariants:
//! - An entry is acknowledged when Qa distinct positions of its write set have it durably and
//!   every earlier entry is acknowledged (I1).
//! - `Fenced` is terminal, and leaves the outcome of pending adds unknown (I4).
//! - A position that failed counts for nothing until it is replaced. Entries that the other
//!   positions complete are acknowledged all the same, whether its replacement is put off, in
//!   progress, or impossible for now (H8).
//! - A refused add is sent again as the same entry with the same bytes, in order of entries.
//! - What is acknowledged and lacks a bookie that has not failed is bounded: beyond the bound
//!   acknowledgements wait for that bookie, so that one that is slower for a moment slows the
//!   ledger down instead of being replaced. How long they wait is for the driver to say.
//!
//! The payload stays with the driver: nothing here depends on it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use aquifer_model::id::{BookieId, EntryId};
use aquifer_model::quorum::Quorum;

use crate::slots::SlotSet;

mod events;
mod incomplete;
#[cfg(test)]
mod tests;

pub use events::{
    AddReply, LedgerEnd, PlannedAdd, StopReason, WriterAction, WriterEvent, WriterOptions,
};
pub use incomplete::Unconfirmed;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Add {
    ledger_length: u64,
    acked: SlotSet,
    /// Positions whose send waits for an overloaded bookie.
    held: SlotSet,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    Open,
    Changing {
        failed: SlotSet,
        first_entry: EntryId,
    },
    Finished,
}

/// The state machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Writer {
    quorum: Quorum,
    options: WriterOptions,
    fragments: BTreeMap<EntryId, Vec<BookieId>>,
    /// Adds that are not on their whole write set: first those that are acknowledged, which stay
    /// for the slower bookies, then those that are not.
    adds: VecDeque<Add>,
    /// How many of them are acknowledged.
    kept: usize,
    /// Bytes of the ledger before them.
    released_length: u64,
    confirmed: LedgerEnd,
    length: u64,
    state: State,
    /// Positions that failed and are not replaced.
    failed: SlotSet,
    change_scheduled: bool,
    /// Overloaded positions: adds to them wait for the retry.
    holding: SlotSet,
    retry_scheduled: bool,
    rounds_without_progress: Vec<u32>,
    /// Bookies that may lack acknowledged entries which are no longer sent to them (H16).
    incomplete: BTreeSet<BookieId>,
    /// Positions whose next bookie will lack some.
    incomplete_next: SlotSet,
}

/// The first entry after the confirmed ones.
fn after(last: Option<EntryId>) -> EntryId {
    last.map_or(EntryId::FIRST, EntryId::next)
}

impl Writer {
    /// The writer of a new, empty ledger whose only fragment has these members.
    #[must_use]
    pub fn new(quorum: Quorum, members: Vec<BookieId>, options: WriterOptions) -> Writer {
        assert_eq!(
            members.len(),
            quorum.ensemble(),
            "an ensemble has E members"
        );
        Writer {
            quorum,
            options,
            rounds_without_progress: vec![0; members.len()],
            fragments: BTreeMap::from([(EntryId::FIRST, members)]),
            adds: VecDeque::new(),
            kept: 0,
            released_length: 0,
            confirmed: LedgerEnd::default(),
            length: 0,
            state: State::Open,
            failed: SlotSet::EMPTY,
            change_scheduled: false,
            holding: SlotSet::EMPTY,
            retry_scheduled: false,
            incomplete: BTreeSet::new(),
            incomplete_next: SlotSet::EMPTY,
        }
    }

    /// The acknowledged end.
    #[must_use]
    pub fn confirmed(&self) -> LedgerEnd {
        self.confirmed
    }

    /// How many adds are not acknowledged.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.adds.len() - self.kept
    }

    /// How many acknowledged entries are kept for bookies that lack them.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.kept
    }

    /// Bytes of acknowledged entries that some bookie still lacks.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        match self.kept {
            0 => 0,
            _ => self.confirmed.length - self.released_length,
        }
    }

    /// The first entry whose data may still have to be sent.
    #[must_use]
    pub fn first_kept(&self) -> EntryId {
        EntryId(self.first_pending().0 - self.kept as u64)
    }

    /// Whether it takes no more adds.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.state == State::Finished
    }

    /// Fragments: first entry and members by position.
    #[must_use]
    pub fn fragments(&self) -> &BTreeMap<EntryId, Vec<BookieId>> {
        &self.fragments
    }

    /// Positions that have not stored the oldest add, with their bookies: those to blame when it
    /// takes too long.
    #[must_use]
    pub fn laggards(&self) -> Vec<(usize, BookieId)> {
        let Some(oldest) = self.adds.front() else {
            return Vec::new();
        };
        let lacking = self.write_set(self.first_kept()) - oldest.acked - oldest.held;
        (lacking - self.failed)
            .iter()
            .map(|p| (p, self.members()[p]))
            .collect()
    }

    /// Positions for which acknowledgements wait, with their bookies: too much that is acknowledged
    /// lacks them.
    #[must_use]
    pub fn holding_back(&self) -> Vec<(usize, BookieId)> {
        match self.adds.get(self.kept) {
            Some(next) if self.is_complete(next) && self.must_wait(next) => self
                .lagging()
                .iter()
                .map(|position| (position, self.members()[position]))
                .collect(),
            Some(_) | None => Vec::new(),
        }
    }

    /// Positions that have not failed and lack the oldest acknowledged entry.
    fn lagging(&self) -> SlotSet {
        match self.adds.front() {
            Some(oldest) if self.kept > 0 => {
                self.write_set(self.first_kept()) - oldest.acked - self.failed
            }
            Some(_) | None => SlotSet::EMPTY,
        }
    }

    /// Whether the next add to be acknowledged has its ack quorum.
    fn is_complete(&self, next: &Add) -> bool {
        let reliable = self.write_set(self.first_pending()) - self.failed;
        (next.acked & reliable).len() >= self.quorum.ack()
    }

    /// Whether acknowledging it would leave too much that a bookie lacks which still can get it.
    fn must_wait(&self, next: &Add) -> bool {
        next.ledger_length - self.released_length > self.options.kept_bytes_max
            && !self.lagging().is_empty()
    }

    /// Members of the last fragment.
    #[must_use]
    pub fn members(&self) -> &[BookieId] {
        self.fragments
            .last_key_value()
            .map(|(_, members)| members.as_slice())
            .unwrap_or_default()
    }

    fn first_pending(&self) -> EntryId {
        after(self.confirmed.last_entry)
    }

    fn write_set(&self, entry: EntryId) -> SlotSet {
        self.quorum.write_set(entry.0).collect()
    }

    /// Whether a position failed and is not known to be replaced.
    #[must_use]
    pub fn has_failed(&self, position: usize) -> bool {
        self.failed.contains(position)
    }

    /// Whether positions failed and are not replaced.
    #[must_use]
    pub fn lacks_bookies(&self) -> bool {
        !self.failed.is_empty()
    }

    /// Whether every write set has an ack quorum without the failed positions.
    fn has_quorum(&self) -> bool {
        (0..self.quorum.ensemble() as u64)
            .all(|entry| (self.write_set(EntryId(entry)) - self.failed).len() >= self.quorum.ack())
    }

    /// Takes the next entry of `bytes` bytes; `None` once the writer is finished.
    pub fn add(&mut self, bytes: u64, actions: &mut Vec<WriterAction>) -> Option<PlannedAdd> {
        if self.state == State::Finished {
            return None;
        }
        let entry = EntryId(self.first_kept().0 + self.adds.len() as u64);
        self.length += bytes;
        let set = self.write_set(entry) - self.failed;
        let held = set & self.holding;
        self.adds.push_back(Add {
            ledger_length: self.length,
            acked: SlotSet::EMPTY,
            held,
        });
        for position in (set - held).iter() {
            actions.push(self.send(position, entry));
        }
        Some(PlannedAdd {
            entry,
            last_add_confirmed: self.confirmed.last_entry,
            ledger_length: self.length,
        })
    }

    fn send(&self, position: usize, entry: EntryId) -> WriterAction {
        WriterAction::Send {
            position,
            bookie: self.members()[position],
            entry,
        }
    }

    /// Stops taking adds. Pending ones are forgotten: their outcome is up to a recovery.
    pub fn finish(&mut self) -> LedgerEnd {
        self.state = State::Finished;
        self.adds.clear();
        self.kept = 0;
        self.confirmed
    }

    /// Takes an event.
    pub fn on(&mut self, event: WriterEvent, actions: &mut Vec<WriterAction>) {
        if self.state == State::Finished {
            return;
        }
        match event {
            WriterEvent::Reply {
                position,
                bookie,
                entry,
                reply,
            } => {
                // A replaced bookie no longer has a say about entries, but a fence is a fence.
                if reply == AddReply::Fenced {
                    self.stop(StopReason::Fenced, actions);
                } else if self.members().get(position) == Some(&bookie)
                    && !self.failed.contains(position)
                {
                    self.replied(position, entry, reply, actions);
                }
            }
            WriterEvent::RetryDue => self.retry(actions),
            WriterEvent::ChangeDue => {
                self.change_scheduled = false;
                if self.state == State::Open && !self.failed.is_empty() {
                    self.change(actions);
                }
            }
            WriterEvent::EnsembleChanged { members } => self.changed(members, actions),
            WriterEvent::EnsembleChangeFailed => self.change_failed(actions),
            WriterEvent::Shed => self.shed(actions),
            WriterEvent::Superseded => self.stop(StopReason::Fenced, actions),
        }
    }

    fn stop(&mut self, reason: StopReason, actions: &mut Vec<WriterAction>) {
        self.finish();
        actions.push(WriterAction::Stop { reason });
    }

    fn replied(
        &mut self,
        position: usize,
        entry: EntryId,
        reply: AddReply,
        actions: &mut Vec<WriterAction>,
    ) {
        let first = self.first_kept();
        let add = entry
            .0
            .checked_sub(first.0)
            .and_then(|offset| usize::try_from(offset).ok())
            .and_then(|offset| self.adds.get_mut(offset));
        match (reply, add) {
            (AddReply::Stored, add) => {
                self.rounds_without_progress[position] = 0;
                if let Some(add) = add {
                    add.acked.insert(position);
                    self.acknowledge(actions);
                }
            }
            (AddReply::Overloaded, Some(add)) => {
                add.held.insert(position);
                self.holding.insert(position);
                if !std::mem::replace(&mut self.retry_scheduled, true) {
                    actions.push(WriterAction::ScheduleRetry);
                }
            }
            // Too late: its data is no longer there.
            (AddReply::Overloaded, None) => self.fail(position, false, actions),
            (AddReply::Refused, _) => self.fail(position, true, actions),
            (AddReply::Failed | AddReply::Fenced, _) => self.fail(position, false, actions),
        }
    }

    /// Acknowledges what can be, and lets go of what every bookie has that will get it; in turns,
    /// since each may make room for the other.
    fn acknowledge(&mut self, actions: &mut Vec<WriterAction>) {
        self.release();
        loop {
            while let Some(next) = self.adds.get(self.kept)
                && self.is_complete(next)
                && !self.must_wait(next)
            {
                let entry = self.first_pending();
                self.confirmed = LedgerEnd {
                    last_entry: Some(entry),
                    length: next.ledger_length,
                };
                self.kept += 1;
                actions.push(WriterAction::Acknowledge { entry });
            }
            if !self.release() {
                return;
            }
        }
    }

    /// Lets go of the oldest kept entries that no bookie will get any more, and beyond the bound of
    /// those that only a replacement would get; says whether there were any.
    fn release(&mut self) -> bool {
        let before = self.kept;
        while self.kept > 0 && self.lagging().is_empty() {
            let over = self.kept_bytes() > self.options.kept_bytes_max;
            let entry = self.first_kept();
            if !(self.coming(entry) & self.write_set(entry)).is_empty() && !over {
                break;
            }
            self.let_go();
        }
        self.kept < before
    }

    fn let_go(&mut self) {
        let entry = self.first_kept();
        if let Some(oldest) = self.adds.pop_front() {
            self.released_length = oldest.ledger_length;
            self.kept -= 1;
            self.leave_incomplete(entry, oldest.acked);
        }
    }

    /// Lets go of everything acknowledged, and of the bookies that lack any of it.
    fn shed(&mut self, actions: &mut Vec<WriterAction>) {
        while self.kept > 0 {
            let lagging = self.lagging();
            self.let_go();
            for position in lagging.iter() {
                self.fail(position, false, actions);
            }
        }
        self.acknowledge(actions);
    }

    fn retry(&mut self, actions: &mut Vec<WriterAction>) {
        self.retry_scheduled = false;
        let holding = std::mem::take(&mut self.holding);
        let mut exhausted = SlotSet::EMPTY;
        for position in holding.iter() {
            let rounds = &mut self.rounds_without_progress[position];
            *rounds += 1;
            if *rounds > self.options.overload_retries_max {
                exhausted.insert(position);
            }
        }
        let first = self.first_kept();
        let (mut resend, unusable) = (Vec::new(), self.failed | exhausted);
        for (offset, add) in self.adds.iter_mut().enumerate() {
            let held = std::mem::take(&mut add.held);
            let entry = EntryId(first.0 + offset as u64);
            resend.extend((held - unusable).iter().map(|position| (position, entry)));
        }
        for (position, entry) in resend {
            actions.push(self.send(position, entry));
        }
        for position in (exhausted - self.failed).iter() {
            self.fail(position, false, actions);
        }
    }

    fn fail(&mut self, position: usize, forced: bool, actions: &mut Vec<WriterAction>) {
        if self.failed.contains(position) {
            return;
        }
        self.failed.insert(position);
        self.holding.remove(position);
        // A change that is in progress leaves this one to the next.
        if self.state == State::Open {
            self.decide(forced, actions);
        }
        self.acknowledge(actions);
    }

    /// Changes the ensemble now, or later where that is asked for and harms nothing.
    fn decide(&mut self, forced: bool, actions: &mut Vec<WriterAction>) {
        if self.options.delay_changes && !forced && self.has_quorum() {
            self.schedule_change(false, actions);
        } else {
            self.change(actions);
        }
    }

    fn schedule_change(&mut self, again: bool, actions: &mut Vec<WriterAction>) {
        if !std::mem::replace(&mut self.change_scheduled, true) {
            actions.push(WriterAction::ScheduleChange { again });
        }
    }

    fn change(&mut self, actions: &mut Vec<WriterAction>) {
        let first_entry = self.first_to_move();
        self.state = State::Changing {
            failed: self.failed,
            first_entry,
        };
        actions.push(WriterAction::ChangeEnsemble {
            first_entry,
            failed: self.failed.iter().collect(),
        });
    }

    /// Where a new fragment begins: after the LAC, or at earlier entries that are still kept and
    /// that an ack quorum of the other positions has. Those the replacements get as well.
    fn first_to_move(&self) -> EntryId {
        let last = self.fragments.last_key_value();
        let floor = last.map_or(EntryId::FIRST, |(first, _)| *first);
        let (mut first, kept) = (self.first_pending(), self.first_kept());
        for (offset, add) in self.adds.iter().enumerate().take(self.kept).rev() {
            let entry = EntryId(kept.0 + offset as u64);
            let others = (add.acked & self.write_set(entry)) - self.failed;
            if entry < floor || others.len() < self.quorum.ack() {
                break;
            }
            first = entry;
        }
        first
    }

    /// There is no replacement now: goes on without one while an ack quorum is left.
    fn change_failed(&mut self, actions: &mut Vec<WriterAction>) {
        if !matches!(self.state, State::Changing { .. }) {
            return;
        }
        if self.has_quorum() {
            self.state = State::Open;
            self.schedule_change(true, actions);
            self.acknowledge(actions);
        } else {
            let position = self.failed.iter().next().unwrap_or(0);
            self.stop(StopReason::Failed { position }, actions);
        }
    }

    fn changed(&mut self, members: Vec<BookieId>, actions: &mut Vec<WriterAction>) {
        let State::Changing {
            failed,
            first_entry,
        } = self.state
        else {
            return;
        };
        assert_eq!(
            members.len(),
            self.quorum.ensemble(),
            "an ensemble has E members"
        );
        // Entries that unchanged positions completed meanwhile lie in the new fragment too, with
        // the same members there (H8). Where their data is still here, the others get them now.
        self.leave_replaced(failed, first_entry, &members);
        self.fragments.insert(first_entry, members);
        self.state = State::Open;
        self.failed -= failed;
        let first = self.first_kept();
        for offset in 0..self.adds.len() {
            let entry = EntryId(first.0 + offset as u64);
            if entry < first_entry {
                // They are not waited for any more.
                self.adds[offset].acked |= failed;
                continue;
            }
            self.adds[offset].acked -= failed;
            self.adds[offset].held -= failed;
            for position in (failed & self.write_set(entry)).iter() {
                actions.push(self.send(position, entry));
            }
        }
        for position in failed.iter() {
            self.rounds_without_progress[position] = 0;
        }
        self.acknowledge(actions);
        if !self.failed.is_empty() && self.state == State::Open {
            self.decide(false, actions);
        }
    }
}
