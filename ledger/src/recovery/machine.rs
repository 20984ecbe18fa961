//! The recovery of one ledger as a state machine: fence, find the end, make it durable.
//! No I/O, threads or clocks.
//!
//! It begins after metadata says IN_RECOVERY with this recoverer's epoch, and ends by asking the
//! driver for the CLOSED record. Invariants:
//! - Reading begins only when no ack quorum of any write set is left without a fence (I4).
//! - An entry that any replica has is recovered; an entry counts as absent only after Qw−Qa+1
//!   explicit negatives; anything else aborts. A guess would lose acknowledged entries (I2).
//! - An entry that was stored, and that every replica that has it has damaged, stays part of the
//!   ledger: readers are told of it, and nothing before or behind it is lost with it.
//! - Recovered entries are on Qa bookies before the ledger is closed, without gaps (I3).
//! - Reads go to the members that the last fragment had at the start, whatever happens to writes. A
//!   bookie that fails a write-back is replaced for writes only, and metadata learns of it with the
//!   close: a later recovery must not read from bookies that got only a part.

use std::collections::BTreeMap;

use aquifer_model::id::{BookieId, EntryId, LedgerId};
use aquifer_model::quorum::Quorum;
use aquifer_model::storage::{BookieError, BookieResult, OrderedReply};

use crate::slots::SlotSet;

#[cfg(test)]
mod tests;

/// Where damage hides the end of the ledger, this many entries are taken to have been there: more
/// than a damaged block of a bookie's store can hide (16 KiB, of entries with heads of some 50
/// bytes). An entry that some bookie has behind these shows that they were.
pub const HIDDEN_ENTRIES_MAX: u64 = 1_024;

/// What happens to a recovery.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RecoveryEvent {
    /// A bookie answered a fence.
    Fence {
        /// Its position.
        position: usize,
        /// Its answer.
        reply: FenceReply,
    },
    /// A bookie answered a recovery read.
    Read {
        /// Its position.
        position: usize,
        /// The entry.
        entry: EntryId,
        /// Its answer.
        reply: RecoveryReadReply,
    },
    /// A bookie answered a write-back.
    Write {
        /// Its position.
        position: usize,
        /// The bookie that was there.
        bookie: BookieId,
        /// The entry.
        entry: EntryId,
        /// Whether it has the entry durably.
        stored: bool,
    },
    /// Others were found for the positions of [`RecoveryAction::Replace`].
    Replaced {
        /// All members, by position.
        members: Vec<BookieId>,
    },
    /// There are no others.
    ReplaceFailed,
}

/// How a bookie answered a fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FenceReply {
    /// Fenced, durably; the highest LAC it knows.
    Fenced(Option<EntryId>),
    /// Anything else.
    Unknown,
}

impl FenceReply {
    /// What a bookie's answer to a fence means to a recovery.
    #[must_use]
    pub fn of(result: &BookieResult<OrderedReply>) -> FenceReply {
        match result {
            Ok(OrderedReply::Done { last_add_confirmed }) => {
                FenceReply::Fenced(*last_add_confirmed)
            }
            // Another ledger has this id there (H14): our entries never were there, nor will be,
            // because it refuses our token.
            Err(BookieError::Token) => FenceReply::Fenced(None),
            Ok(OrderedReply::Entry(_)) | Err(_) => FenceReply::Unknown,
        }
    }
}

/// How a bookie answered a recovery read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecoveryReadReply {
    /// It has the entry durably, with a valid digest; the ledger's length with it.
    Found {
        /// Bytes of the ledger up to and including the entry.
        ledger_length: u64,
    },
    /// Its index proves that it has not, and by its fence never will from the old writer.
    Absent,
    /// It was stored there, and cannot be read any more.
    Damaged,
    /// Damage hides whether it was stored there, and whether any behind it was.
    EndHidden,
    /// Anything else. Never a negative.
    Unknown,
}

impl RecoveryReadReply {
    /// What a bookie's answer to a recovery read means: only proofs are negatives, and only what
    /// was asked for, undamaged, is found.
    #[must_use]
    pub fn of(
        ledger: LedgerId,
        entry: EntryId,
        result: &BookieResult<OrderedReply>,
    ) -> RecoveryReadReply {
        match result {
            Ok(OrderedReply::Entry(stored))
                if stored.entry == entry && stored.is_intact(ledger) =>
            {
                RecoveryReadReply::Found {
                    ledger_length: stored.ledger_length,
                }
            }
            Err(BookieError::NoSuchEntry | BookieError::NoSuchLedger | BookieError::Token) => {
                RecoveryReadReply::Absent
            }
            Err(BookieError::Digest(_)) => RecoveryReadReply::Damaged,
            Err(BookieError::EndHidden(_)) => RecoveryReadReply::EndHidden,
            Ok(_) | Err(_) => RecoveryReadReply::Unknown,
        }
    }
}

/// What the driver does next.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RecoveryAction {
    /// Fence the ledger there.
    Fence {
        /// The position.
        position: usize,
        /// The bookie that is there.
        bookie: BookieId,
    },
    /// Read an entry there, with the fence.
    Read {
        /// The position.
        position: usize,
        /// The bookie that is there.
        bookie: BookieId,
        /// The entry.
        entry: EntryId,
    },
    /// Write the entry there that a read found, with the recovery flag.
    Write {
        /// The position.
        position: usize,
        /// The bookie that is there.
        bookie: BookieId,
        /// The entry.
        entry: EntryId,
    },
    /// Find other bookies for these positions, without telling metadata.
    Replace {
        /// Positions that failed write-backs.
        failed: Vec<usize>,
    },
    /// Close the ledger in metadata, if this recoverer's epoch is still the newest.
    Close {
        /// Fragments that replacements made, to be added to those that are known.
        fragments: BTreeMap<EntryId, Vec<BookieId>>,
        /// The last entry, if there is any.
        last_entry: Option<EntryId>,
        /// Bytes of the ledger up to the last entry that was read; `None` when this recovery read
        /// none, so the driver has to look.
        length: Option<u64>,
        /// Entries among those that were read which no replica can give any more.
        damaged: u64,
    },
    /// Too few clear answers: give up without changing anything, and try again later.
    Abort,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct EntryRecovery {
    /// Positions where a read found it.
    found: SlotSet,
    absent: SlotSet,
    damaged: SlotSet,
    hidden: SlotSet,
    unknown: SlotSet,
    /// Positions of the ensemble that is written to which have it durably.
    held: SlotSet,
    /// It is part of the ledger, and there is nothing to be written of it.
    is_lost: bool,
    ledger_length: Option<u64>,
    decided_absent: bool,
}

/// Where write-backs go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Writing {
    members: Vec<BookieId>,
    /// Positions whose member is not the one that is read.
    replaced: SlotSet,
    /// Positions that failed and are not replaced.
    failed: SlotSet,
    /// Positions for which others are being looked for.
    replacing: SlotSet,
    fragments: BTreeMap<EntryId, Vec<BookieId>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Phase {
    Fencing {
        fenced: SlotSet,
        unknown: SlotSet,
        last_add_confirmed: Option<EntryId>,
    },
    Reading {
        /// Entries from the first that is not yet on Qa bookies.
        entries: BTreeMap<EntryId, EntryRecovery>,
        /// Everything below is found; the first whose fate is open.
        frontier: EntryId,
        /// First entry that was not asked for.
        unasked: EntryId,
        length: Option<u64>,
        /// Entries below the frontier that cannot be read.
        lost: u64,
        /// How many of them are the last ones, and may never have been.
        hidden: u64,
        ended: bool,
    },
    Finished,
}

/// The state machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Recovery {
    quorum: Quorum,
    /// Members of the last fragment: all reads go there.
    members: Vec<BookieId>,
    writing: Writing,
    /// First entry of the last fragment: the ledger ends at or behind the one before it.
    floor: EntryId,
    window_entries: u64,
    phase: Phase,
}

impl Recovery {
    /// A recovery over the last fragment, which begins at `floor`, and the fences to send.
    #[must_use]
    pub fn start(
        quorum: Quorum,
        members: Vec<BookieId>,
        floor: EntryId,
        window_entries: u32,
    ) -> (Recovery, Vec<RecoveryAction>) {
        assert_eq!(
            members.len(),
            quorum.ensemble(),
            "an ensemble has E members"
        );
        let fences = members
            .iter()
            .enumerate()
            .map(|(position, &bookie)| RecoveryAction::Fence { position, bookie })
            .collect();
        let recovery = Recovery {
            quorum,
            writing: Writing {
                members: members.clone(),
                replaced: SlotSet::EMPTY,
                failed: SlotSet::EMPTY,
                replacing: SlotSet::EMPTY,
                fragments: BTreeMap::new(),
            },
            members,
            floor,
            window_entries: u64::from(window_entries.max(1)),
            phase: Phase::Fencing {
                fenced: SlotSet::EMPTY,
                unknown: SlotSet::EMPTY,
                last_add_confirmed: None,
            },
        };
        (recovery, fences)
    }

    /// Whether it has asked to close or given up.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.phase == Phase::Finished
    }

    /// Fragments that replacements made so far.
    #[must_use]
    pub fn fragments(&self) -> &BTreeMap<EntryId, Vec<BookieId>> {
        &self.writing.fragments
    }

    /// Whether the data of a found entry may still have to be written back.
    #[must_use]
    pub fn needs(&self, entry: EntryId) -> bool {
        matches!(&self.phase, Phase::Reading { entries, .. } if entries.contains_key(&entry))
    }

    fn write_set(&self, entry: EntryId) -> SlotSet {
        self.quorum.write_set(entry.0).collect()
    }

    /// Takes an event. Late answers to what is decided are ignored.
    pub fn on(&mut self, event: RecoveryEvent, actions: &mut Vec<RecoveryAction>) {
        match event {
            RecoveryEvent::Fence { position, reply } => self.fenced(position, reply, actions),
            RecoveryEvent::Read {
                position,
                entry,
                reply,
            } => self.read(position, entry, reply, actions),
            RecoveryEvent::Write {
                position,
                bookie,
                entry,
                stored,
            } => {
                // A replaced bookie has no say any more.
                if self.writing.members.get(position) == Some(&bookie) {
                    self.written(position, entry, stored, actions);
                }
            }
            RecoveryEvent::Replaced { members } => self.replaced(members, actions),
            RecoveryEvent::ReplaceFailed => {
                if !self.writing.replacing.is_empty() && !self.is_finished() {
                    self.abort(actions);
                }
            }
        }
    }

    fn fenced(&mut self, position: usize, reply: FenceReply, actions: &mut Vec<RecoveryAction>) {
        let Phase::Fencing {
            fenced,
            unknown,
            last_add_confirmed,
        } = &mut self.phase
        else {
            return;
        };
        match reply {
            FenceReply::Fenced(lac) => {
                fenced.insert(position);
                *last_add_confirmed = (*last_add_confirmed).max(lac);
            }
            FenceReply::Unknown => unknown.insert(position),
        }
        let (fenced, unknown, lac) = (*fenced, *unknown, *last_add_confirmed);
        let ensemble = self.quorum.ensemble() as u64;
        // No write set may have Qa members without a fence: they could acknowledge an add.
        let covered =
            (0..ensemble).all(|e| (self.write_set(EntryId(e)) - fenced).len() < self.quorum.ack());
        if covered {
            let first = lac.map_or(EntryId::FIRST, EntryId::next).max(self.floor);
            self.phase = Phase::Reading {
                entries: BTreeMap::new(),
                frontier: first,
                unasked: first,
                length: None,
                lost: 0,
                hidden: 0,
                ended: false,
            };
            self.advance(actions);
        } else if (fenced | unknown).len() == self.quorum.ensemble() {
            self.abort(actions);
        }
    }

    fn abort(&mut self, actions: &mut Vec<RecoveryAction>) {
        self.phase = Phase::Finished;
        actions.push(RecoveryAction::Abort);
    }

    fn read(
        &mut self,
        position: usize,
        entry: EntryId,
        reply: RecoveryReadReply,
        actions: &mut Vec<RecoveryAction>,
    ) {
        let negatives_needed = self.quorum.write() - self.quorum.ack() + 1;
        let replaced = self.writing.replaced;
        let Phase::Reading {
            entries, frontier, ..
        } = &mut self.phase
        else {
            return;
        };
        let Some(state) = entries.get_mut(&entry) else {
            return;
        };
        match reply {
            RecoveryReadReply::Found { ledger_length } => {
                state.found.insert(position);
                if entry < *frontier && !replaced.contains(position) {
                    state.held.insert(position);
                }
                state.ledger_length = Some(ledger_length);
            }
            RecoveryReadReply::Absent => state.absent.insert(position),
            RecoveryReadReply::Damaged => state.damaged.insert(position),
            RecoveryReadReply::EndHidden => state.hidden.insert(position),
            RecoveryReadReply::Unknown => state.unknown.insert(position),
        }
        if state.found.is_empty() && state.absent.len() >= negatives_needed {
            state.decided_absent = true;
        }
        self.advance(actions);
    }

    fn written(
        &mut self,
        position: usize,
        entry: EntryId,
        stored: bool,
        actions: &mut Vec<RecoveryAction>,
    ) {
        let Phase::Reading { entries, .. } = &mut self.phase else {
            return;
        };
        let Some(state) = entries.get_mut(&entry) else {
            return;
        };
        if stored {
            state.held.insert(position);
        } else {
            self.writing.failed.insert(position);
        }
        self.advance(actions);
    }

    fn replaced(&mut self, members: Vec<BookieId>, actions: &mut Vec<RecoveryAction>) {
        assert_eq!(
            members.len(),
            self.quorum.ensemble(),
            "an ensemble has E members"
        );
        let Phase::Reading {
            entries, frontier, ..
        } = &mut self.phase
        else {
            return;
        };
        let replacing = std::mem::take(&mut self.writing.replacing);
        self.writing.failed -= replacing;
        self.writing.replaced |= replacing;
        // Nothing left the front while others were looked for, so everything that was found and
        // is not finished lies in the new fragment.
        let first = entries.keys().next().copied().unwrap_or(*frontier);
        for (&entry, state) in entries.range_mut(..*frontier) {
            state.held -= replacing;
            for position in self.quorum.write_set(entry.0) {
                if replacing.contains(position) && !state.is_lost {
                    actions.push(RecoveryAction::Write {
                        position,
                        bookie: members[position],
                        entry,
                    });
                }
            }
        }
        self.writing.fragments.insert(first, members.clone());
        self.writing.members = members;
        self.advance(actions);
    }

    /// Asks for other bookies when an entry cannot reach Qa where it is written.
    fn replace_failed(&mut self, actions: &mut Vec<RecoveryAction>) {
        let Phase::Reading {
            entries, frontier, ..
        } = &self.phase
        else {
            return;
        };
        let failed = self.writing.failed;
        let is_stuck = entries.range(..*frontier).any(|(entry, state)| {
            let may_hold = state.held | (self.write_set(*entry) - failed);
            may_hold.len() < self.quorum.ack() && !state.is_lost
        });
        if is_stuck && self.writing.replacing.is_empty() {
            self.writing.replacing = failed;
            actions.push(RecoveryAction::Replace {
                failed: failed.iter().collect(),
            });
        }
    }

    /// Moves the frontier over what is found, asks for more, and closes when all is durable.
    fn advance(&mut self, actions: &mut Vec<RecoveryAction>) {
        if self.advance_frontier(actions) {
            return self.abort(actions);
        }
        self.replace_failed(actions);
        let (quorum, window) = (self.quorum, self.window_entries);
        let is_replacing = !self.writing.replacing.is_empty();
        let Phase::Reading {
            entries,
            frontier,
            unasked,
            length,
            lost,
            ended,
            ..
        } = &mut self.phase
        else {
            return;
        };
        while !is_replacing
            && let Some(first) = entries.first_entry()
            && first.key() < frontier
            && (first.get().held.len() >= quorum.ack() || first.get().is_lost)
        {
            first.remove();
        }
        // Two windows bound what is read and what waits for its write-back together.
        let room = usize::try_from(window.saturating_mul(2)).unwrap_or(usize::MAX);
        while !*ended && unasked.0 < frontier.0 + window && entries.len() < room {
            entries.insert(*unasked, EntryRecovery::default());
            for position in quorum.write_set(unasked.0) {
                actions.push(RecoveryAction::Read {
                    position,
                    bookie: self.members[position],
                    entry: *unasked,
                });
            }
            *unasked = unasked.next();
        }
        if *ended && entries.is_empty() {
            let (last_entry, length) = (frontier.0.checked_sub(1).map(EntryId), *length);
            let damaged = *lost;
            self.phase = Phase::Finished;
            actions.push(RecoveryAction::Close {
                fragments: std::mem::take(&mut self.writing.fragments),
                last_entry,
                length,
                damaged,
            });
        }
    }

    /// Writes back what the frontier passes. Returns whether the fate of an entry cannot be told.
    fn advance_frontier(&mut self, actions: &mut Vec<RecoveryAction>) -> bool {
        let Phase::Reading {
            entries,
            frontier,
            length,
            lost,
            hidden,
            ended,
            ..
        } = &mut self.phase
        else {
            return false;
        };
        let quorum = self.quorum;
        while !*ended && let Some(state) = entries.get_mut(frontier) {
            if state.decided_absent {
                *ended = true;
                entries.retain(|entry, _| *entry < *frontier);
                break;
            }
            if state.found.is_empty() {
                let answered = state.absent | state.damaged | state.hidden | state.unknown;
                if answered.len() < quorum.write() {
                    return false;
                }
                // All have answered, and neither found nor proved absent: never guess.
                if !state.unknown.is_empty() {
                    return true;
                }
                // Each bookie that had it has it damaged: it may have been acknowledged.
                state.is_lost = true;
                *lost += 1;
                *hidden = match state.damaged.is_empty() {
                    true => *hidden + 1,
                    false => 0,
                };
                *frontier = frontier.next();
                if *hidden == HIDDEN_ENTRIES_MAX {
                    *ended = true;
                    entries.retain(|entry, _| *entry < *frontier);
                }
                continue;
            }
            *hidden = 0;
            *length = state.ledger_length;
            state.held = state.found - self.writing.replaced;
            for position in quorum.write_set(frontier.0) {
                if !(state.held | self.writing.failed).contains(position) {
                    actions.push(RecoveryAction::Write {
                        position,
                        bookie: self.writing.members[position],
                        entry: *frontier,
                    });
                }
            }
            *frontier = frontier.next();
        }
        false
    }
}
