//! What bookies must hold of a ledger. Reads, repair, inspection, the end of a limbo, decommission
//! and every audit ask here, so that no bookie that is named in a record is taken for one that must
//! hold something: the bookies of a ledger whose copies are being dropped, or are gone, owe
//! nothing.

use std::collections::{BTreeMap, BTreeSet};

use aquifer_model::id::{BookieId, EntryId};
use aquifer_model::quorum::Quorum;

use crate::ledger_metadata::{LedgerInfo, LedgerState};

/// A range of entries, both ends included.
pub type EntryRange = (EntryId, EntryId);

/// What bookies must hold of one ledger.
#[derive(Debug, Clone, Copy)]
pub struct Duties<'a> {
    fragments: Option<&'a BTreeMap<EntryId, Vec<BookieId>>>,
    quorum: Quorum,
    /// Of a closed ledger: its last entry, if it has any.
    end: Option<Option<EntryId>>,
}

/// What the members of one fragment must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FragmentDuty<'a> {
    /// Its first entry.
    pub first: EntryId,
    /// Its last entry; `None` when it has none, or its writer has not reached the end.
    pub last: Option<EntryId>,
    /// Whether `last` is final.
    pub fixed: bool,
    /// The bookie at each position.
    pub members: &'a [BookieId],
    quorum: Quorum,
}

impl LedgerInfo {
    /// What bookies must hold of it.
    #[must_use]
    pub fn duties(&self) -> Duties<'_> {
        let local = self.offload.as_ref().is_none_or(|o| o.keeps_copies());
        Duties {
            fragments: local.then_some(&self.fragments),
            quorum: self.quorum,
            end: match self.state {
                LedgerState::Closed(end) => Some(end.last_entry),
                LedgerState::Open | LedgerState::InRecovery => None,
            },
        }
    }
}

impl<'a> Duties<'a> {
    /// The fragments that bookies must hold, in order.
    pub fn fragments(self) -> impl Iterator<Item = FragmentDuty<'a>> {
        let fragments = self.fragments.into_iter().flatten();
        let firsts = self.fragments.into_iter().flat_map(BTreeMap::keys);
        let nexts = firsts.skip(1).map(|next| Some(*next)).chain([None]);
        fragments
            .zip(nexts)
            .map(move |((first, members), next)| self.fragment(*first, next, members))
    }

    /// Those whose extent is final.
    pub fn fixed(self) -> impl Iterator<Item = FragmentDuty<'a>> {
        self.fragments().filter(|fragment| fragment.fixed)
    }

    fn fragment(
        self,
        first: EntryId,
        next: Option<EntryId>,
        members: &'a [BookieId],
    ) -> FragmentDuty<'a> {
        let before_next = next.map(|next| EntryId(next.0 - 1));
        // A closed ledger may end before its last fragments begin.
        let last = match (before_next, self.end) {
            (Some(before), Some(end)) => end.map(|end| end.min(before)),
            (Some(before), None) => Some(before),
            (None, end) => end.flatten(),
        };
        FragmentDuty {
            first,
            last: last.filter(|last| *last >= first),
            fixed: self.end.is_some() || before_next.is_some(),
            members,
            quorum: self.quorum,
        }
    }

    /// The bookies that must hold an entry: the members of its fragment by position, and the entry
    /// before the next fragment. `None` where bookies owe nothing of the ledger.
    #[must_use]
    pub fn at(self, entry: EntryId) -> Option<(&'a [BookieId], Option<EntryId>)> {
        let fragments = self.fragments?;
        let (_, members) = fragments.range(..=entry).next_back()?;
        let next = fragments.range(entry.next()..).next();
        Some((members, next.map(|(first, _)| EntryId(first.0 - 1))))
    }

    /// The members of the fragment that begins at an entry, if bookies owe it.
    #[must_use]
    pub fn members_from(self, first: EntryId) -> Option<&'a [BookieId]> {
        self.fragments?.get(&first).map(Vec::as_slice)
    }

    /// The bookies that must hold something, or have a place for what is still to come.
    #[must_use]
    pub fn bookies(self) -> BTreeSet<BookieId> {
        let fragments = self.fragments.into_iter().flat_map(BTreeMap::values);
        fragments.flatten().copied().collect()
    }

    /// Whether a bookie is one of these.
    #[must_use]
    pub fn binds(self, bookie: BookieId) -> bool {
        let mut fragments = self.fragments.into_iter().flat_map(BTreeMap::values);
        fragments.any(|members| members.contains(&bookie))
    }

    /// The entries that a bookie must hold of the fragments whose extent is final, in order.
    pub fn of(self, bookie: BookieId) -> impl Iterator<Item = EntryRange> {
        self.fixed().flat_map(move |fragment| {
            let position = fragment.members.iter().position(|member| *member == bookie);
            position.into_iter().flat_map(move |p| fragment.of(p))
        })
    }
}

impl FragmentDuty<'_> {
    /// The entries that a position must hold, in order.
    pub fn of(self, position: usize) -> impl Iterator<Item = EntryRange> + use<> {
        self.from(position, EntryId::FIRST)
    }

    /// Those of them from an entry on.
    pub fn from(self, position: usize, from: EntryId) -> impl Iterator<Item = EntryRange> + use<> {
        let (quorum, first) = (self.quorum, self.first.max(from));
        let last = self.last.filter(|last| first <= *last);
        let ranges = last.map(|last| ranges(quorum, position, first, last));
        ranges.into_iter().flatten()
    }
}

/// Ranges of consecutive entries, in order, that a position of a fragment stores: everything in
/// one range without striping, at most Qw at a time with it.
pub fn ranges(
    quorum: Quorum,
    position: usize,
    first: EntryId,
    last: EntryId,
) -> impl Iterator<Item = EntryRange> {
    let striped = quorum.ensemble() > quorum.write();
    let holds = move |entry: u64| quorum.write_set(entry).any(|p| p == position);
    let mut next = Some(first.0);
    std::iter::from_fn(move || {
        let from = next?;
        if !striped {
            next = None;
            return Some((EntryId(from), last));
        }
        let begin = (from..=last.0).find(|entry| holds(*entry));
        let Some(begin) = begin else {
            next = None;
            return None;
        };
        let end = (begin..last.0).find(|entry| !holds(entry + 1));
        let end = end.unwrap_or(last.0);
        next = end.checked_add(1).filter(|next| *next <= last.0);
        Some((EntryId(begin), EntryId(end)))
    })
}

#[cfg(test)]
mod tests;
