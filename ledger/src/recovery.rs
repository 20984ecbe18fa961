//! The recovery of one ledger as a state machine: fence, find the end, make it durable
//! (reference.md A4 and A5). No I/O, threads or clocks.
//!
//! It begins after metadata says IN_RECOVERY with this recoverer's epoch, and ends by asking the
//! driver for the CLOSED record. Invariants:
//! - Reading begins only when no ack quorum of any write set is left without a fence (I4).
//! - An entry that any replica has is recovered; an entry counts as absent only after Qw−Qa+1
//!   explicit negatives; anything else aborts. A guess would lose acknowledged entries (I2).
//! - Recovered entries are on Qa bookies before the ledger is closed, without gaps (I3).

use std::collections::BTreeMap;

use aquifer_model::id::{BookieId, EntryId};
use aquifer_model::quorum::Quorum;

#[cfg(test)]
mod tests;

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
        /// The entry.
        entry: EntryId,
        /// Whether it has the entry durably.
        stored: bool,
    },
}

/// How a bookie answered a fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FenceReply {
    /// Fenced, durably; the highest LAC it knows.
    Fenced(Option<EntryId>),
    /// Anything else.
    Unknown,
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
    /// Anything else. Never a negative.
    Unknown,
}

/// What the driver does next.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RecoveryAction {
    /// Fence the ledger there.
    Fence {
        /// The position.
        position: usize,
        /// Who is there.
        bookie: BookieId,
    },
    /// Read an entry there, with the fence.
    Read {
        /// The position.
        position: usize,
        /// Who is there.
        bookie: BookieId,
        /// The entry.
        entry: EntryId,
    },
    /// Write the entry there that a read found, with the recovery flag.
    Write {
        /// The position.
        position: usize,
        /// Who is there.
        bookie: BookieId,
        /// The entry.
        entry: EntryId,
    },
    /// Close the ledger in metadata, if this recoverer's epoch is still the newest.
    Close {
        /// The last entry, if there is any.
        last_entry: Option<EntryId>,
        /// Bytes of the ledger; `None` when the last entry was not read by this recovery, so the
        /// driver has to look.
        length: Option<u64>,
    },
    /// Too few clear answers: give up without changing anything, and try again later.
    Abort,
}

type Positions = u16;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct EntryRecovery {
    /// Positions that have it durably, found or written back.
    held: Positions,
    absent: Positions,
    unknown: Positions,
    write_failed: Positions,
    ledger_length: Option<u64>,
    decided_absent: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Phase {
    Fencing {
        fenced: Positions,
        unknown: Positions,
        last_add_confirmed: Option<EntryId>,
    },
    Reading {
        /// Entries that are read, or found and not yet on Qa bookies.
        entries: BTreeMap<EntryId, EntryRecovery>,
        /// Everything below is found; the first whose fate is open.
        frontier: EntryId,
        /// First entry that was not asked for.
        unasked: EntryId,
        length: Option<u64>,
        ended: bool,
    },
    Finished,
}

/// The state machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Recovery {
    quorum: Quorum,
    /// Members of the last fragment: all reads and writes go there.
    members: Vec<BookieId>,
    /// First entry of the last fragment: the ledger ends at or behind the one before it.
    floor: EntryId,
    window_entries: u64,
    phase: Phase,
}

fn bit(position: usize) -> Positions {
    1 << position
}

fn count(positions: Positions) -> usize {
    usize::try_from(positions.count_ones()).unwrap_or(0)
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
            members,
            floor,
            window_entries: u64::from(window_entries.max(1)),
            phase: Phase::Fencing {
                fenced: 0,
                unknown: 0,
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

    /// Whether the data of a found entry may still have to be written back.
    #[must_use]
    pub fn needs(&self, entry: EntryId) -> bool {
        matches!(&self.phase, Phase::Reading { entries, .. } if entries.contains_key(&entry))
    }

    fn write_set(&self, entry: EntryId) -> Positions {
        self.quorum
            .write_set(entry.0)
            .fold(0, |set, p| set | bit(p))
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
                entry,
                stored,
            } => self.written(position, entry, stored, actions),
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
                *fenced |= bit(position);
                *last_add_confirmed = (*last_add_confirmed).max(lac);
            }
            FenceReply::Unknown => *unknown |= bit(position),
        }
        let (fenced, unknown, lac) = (*fenced, *unknown, *last_add_confirmed);
        let ensemble = self.quorum.ensemble() as u64;
        // In no write set may Qa members be without a fence (A4, the exact rule).
        let covered =
            (0..ensemble).all(|e| count(self.write_set(EntryId(e)) & !fenced) < self.quorum.ack());
        if covered {
            let first = lac.map_or(EntryId::FIRST, EntryId::next).max(self.floor);
            self.phase = Phase::Reading {
                entries: BTreeMap::new(),
                frontier: first,
                unasked: first,
                length: None,
                ended: false,
            };
            self.advance(actions);
        } else if count(fenced | unknown) == self.quorum.ensemble() {
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
        let Phase::Reading { entries, .. } = &mut self.phase else {
            return;
        };
        let Some(state) = entries.get_mut(&entry) else {
            return;
        };
        match reply {
            RecoveryReadReply::Found { ledger_length } => {
                state.held |= bit(position);
                state.ledger_length = Some(ledger_length);
            }
            RecoveryReadReply::Absent => state.absent |= bit(position),
            RecoveryReadReply::Unknown => state.unknown |= bit(position),
        }
        if state.held == 0 && count(state.absent) >= negatives_needed {
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
            state.held |= bit(position);
        } else {
            state.write_failed |= bit(position);
        }
        if self.quorum.write() - count(state.write_failed & !state.held) < self.quorum.ack() {
            return self.abort(actions);
        }
        self.advance(actions);
    }

    /// Moves the frontier over what is found, asks for more, and closes when all is durable.
    fn advance(&mut self, actions: &mut Vec<RecoveryAction>) {
        let (quorum, window) = (self.quorum, self.window_entries);
        let members = &self.members;
        let Phase::Reading {
            entries,
            frontier,
            unasked,
            length,
            ended,
        } = &mut self.phase
        else {
            return;
        };
        while !*ended && let Some(state) = entries.get(frontier) {
            if state.decided_absent {
                *ended = true;
                entries.retain(|entry, _| *entry < *frontier);
                break;
            }
            if state.held == 0 {
                // All have answered, and neither found nor proved absent: never guess.
                if count(state.absent | state.unknown) == quorum.write() {
                    return self.abort(actions);
                }
                break;
            }
            *length = state.ledger_length;
            for position in quorum.write_set(frontier.0) {
                if state.held & bit(position) == 0 {
                    actions.push(RecoveryAction::Write {
                        position,
                        bookie: members[position],
                        entry: *frontier,
                    });
                }
            }
            *frontier = frontier.next();
        }
        let done = *frontier;
        entries.retain(|entry, state| *entry >= done || count(state.held) < quorum.ack());
        // Two windows bound what is read and what waits for its write-back together.
        let room = usize::try_from(window.saturating_mul(2)).unwrap_or(usize::MAX);
        while !*ended && unasked.0 < frontier.0 + window && entries.len() < room {
            entries.insert(*unasked, EntryRecovery::default());
            for position in quorum.write_set(unasked.0) {
                actions.push(RecoveryAction::Read {
                    position,
                    bookie: members[position],
                    entry: *unasked,
                });
            }
            *unasked = unasked.next();
        }
        if *ended && entries.is_empty() {
            let (last_entry, length) = (frontier.0.checked_sub(1).map(EntryId), *length);
            self.phase = Phase::Finished;
            actions.push(RecoveryAction::Close { last_entry, length });
        }
    }
}
