//! Which bookies may lack entries that are acknowledged: what repair must look at when the ledger
//! is closed (H16).

use std::collections::BTreeSet;

use aquifer_model::id::{BookieId, EntryId};

use crate::slots::SlotSet;
use crate::writer::machine::{State, Writer};

/// The bookies that may lack acknowledged entries.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Unconfirmed {
    /// Bookies.
    pub bookies: BTreeSet<BookieId>,
    /// Positions of the last fragment, whichever bookies are there: a change may be in progress.
    pub positions: Vec<usize>,
    /// Those of them that lack nothing before [`Unconfirmed::first`].
    pub recent: BTreeSet<BookieId>,
    /// The first entry that was not let go of yet.
    pub first: EntryId,
}

impl Writer {
    /// Bookies and positions for which it is not certain that they have everything acknowledged
    /// that they should. What a finished writer says here is too little.
    #[must_use]
    pub fn unconfirmed(&self) -> Unconfirmed {
        let mut positions = self.incomplete_next;
        let first = self.first_kept();
        for (offset, add) in self.adds.iter().enumerate().take(self.kept) {
            let entry = EntryId(first.0 + offset as u64);
            let set = self.write_set(entry);
            positions |= (set - add.acked) | (set & self.coming(entry));
        }
        let mut bookies = self.incomplete.clone();
        bookies.extend(positions.iter().map(|position| self.members()[position]));
        // A bookie that comes to a place that is being changed may lack what was let go of
        // meanwhile.
        let recent = bookies.iter().copied();
        let recent = recent
            .filter(|bookie| self.incomplete_next.is_empty() && !self.incomplete.contains(bookie));
        Unconfirmed {
            recent: recent.collect(),
            bookies,
            positions: positions.iter().collect(),
            first,
        }
    }

    /// Positions whose next bookie gets the entry, because it lies in its fragment.
    pub(super) fn coming(&self, entry: EntryId) -> SlotSet {
        match self.state {
            State::Changing {
                failed,
                first_entry,
            } if entry >= first_entry => failed,
            _ => SlotSet::EMPTY,
        }
    }

    /// An acknowledged entry is let go of: a bookie that lacks it will not get it from here.
    pub(super) fn leave_incomplete(&mut self, entry: EntryId, acked: SlotSet) {
        let (set, coming) = (self.write_set(entry), self.coming(entry));
        self.incomplete_next |= set & coming;
        let lacking = (set - acked - coming).iter();
        let lacking: Vec<BookieId> = lacking.map(|p| self.members()[p]).collect();
        self.incomplete.extend(lacking);
    }

    /// Bookies are replaced from an entry on: what they lack before it stays with them, and a
    /// bookie that comes lacks what was let go of meanwhile.
    pub(super) fn leave_replaced(
        &mut self,
        replaced: SlotSet,
        first_entry: EntryId,
        members: &[BookieId],
    ) {
        let first = self.first_kept();
        let mut stays = self.incomplete_next;
        for (offset, add) in self.adds.iter().enumerate().take(self.kept) {
            let entry = EntryId(first.0 + offset as u64);
            if entry < first_entry {
                stays |= (self.write_set(entry) & replaced) - add.acked;
            }
        }
        let old = stays.iter().map(|position| self.members()[position]);
        let old: Vec<BookieId> = old.collect();
        self.incomplete.extend(old);
        self.incomplete.extend(
            self.incomplete_next
                .iter()
                .map(|position| members[position]),
        );
        self.incomplete_next = SlotSet::EMPTY;
    }
}
