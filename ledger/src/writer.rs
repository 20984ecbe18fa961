//! The writer of one ledger as a state machine: events in, actions out, no I/O, threads or clocks
//! (reference.md A2).
//!
//! Owns the rules of quorum adds. Invariants:
//! - An entry is acknowledged when Qa distinct positions of its write set have it durably and
//!   every earlier entry is acknowledged (I1).
//! - `Fenced` is terminal, and leaves the outcome of pending adds unknown (I4).
//! - While an ensemble change is on its way, only positions that it leaves alone count (H8).
//! - A refused add is sent again as the same entry with the same bytes, in order of entries.
//!
//! The payload stays with the driver: nothing here depends on it.

use std::collections::{BTreeMap, VecDeque};

use aquifer_model::id::{BookieId, EntryId};
use aquifer_model::quorum::Quorum;

#[cfg(test)]
mod tests;

/// What happens to a writer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum WriterEvent {
    /// A bookie answered an add.
    Reply {
        /// Its position in the ensemble when the add was sent.
        position: usize,
        /// The bookie that was there.
        bookie: BookieId,
        /// The entry.
        entry: EntryId,
        /// The answer.
        reply: AddReply,
    },
    /// The pause that [`WriterAction::ScheduleRetry`] asked for is over.
    RetryDue,
    /// Metadata has the new last fragment.
    EnsembleChanged {
        /// Its members, by position.
        members: Vec<BookieId>,
    },
    /// No replacement, or metadata refused for another reason than a recovery.
    EnsembleChangeFailed,
    /// Metadata shows that a recovery has begun, or that the ledger is closed.
    Superseded,
}

/// How a bookie answered an add.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AddReply {
    /// It has the entry durably.
    Stored,
    /// It refuses normal adds because of a fence, or the ledger is deleted.
    Fenced,
    /// It has too much to do; the entry is not stored.
    Overloaded,
    /// Anything else: whether it has the entry is unknown, and it cannot be relied on.
    Failed,
}

/// What the driver does next, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum WriterAction {
    /// Send the add of `entry` to `bookie`.
    Send {
        /// Position in the ensemble.
        position: usize,
        /// Who is there.
        bookie: BookieId,
        /// The entry.
        entry: EntryId,
    },
    /// The entry is durable and is the new last-add-confirmed.
    Acknowledge {
        /// The entry.
        entry: EntryId,
    },
    /// Send [`WriterEvent::RetryDue`] after a pause.
    ScheduleRetry,
    /// Find other bookies for these positions and change metadata: the fragment that begins at
    /// `first_entry` replaces the last if that begins there too, else it is appended.
    ChangeEnsemble {
        /// Where the new fragment begins.
        first_entry: EntryId,
        /// Positions to replace.
        failed: Vec<usize>,
    },
    /// The writer is finished: no more entries will be acknowledged.
    Stop {
        /// Why.
        reason: StopReason,
    },
}

/// Why a writer is finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StopReason {
    /// A recovery has taken over (I4).
    Fenced,
    /// The bookie at this position failed and could not be replaced.
    Failed {
        /// The position.
        position: usize,
    },
}

/// What an add carries besides its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PlannedAdd {
    /// Its number.
    pub entry: EntryId,
    /// The LAC to send along.
    pub last_add_confirmed: Option<EntryId>,
    /// Bytes of the ledger with it.
    pub ledger_length: u64,
}

/// Where a ledger ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct LedgerEnd {
    /// The last entry, if there is any.
    pub last_entry: Option<EntryId>,
    /// Bytes up to and including it.
    pub length: u64,
}

/// Positions of an ensemble as bits; E is at most 16.
type Positions = u16;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct PendingAdd {
    ledger_length: u64,
    acked: Positions,
    /// Positions whose send waits for an overloaded bookie.
    held: Positions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    Open,
    Changing {
        failed: Positions,
        first_entry: EntryId,
    },
    Finished,
}

/// The state machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Writer {
    quorum: Quorum,
    fragments: BTreeMap<EntryId, Vec<BookieId>>,
    /// Unacknowledged adds; the first is the entry after the LAC.
    pending: VecDeque<PendingAdd>,
    confirmed: LedgerEnd,
    length: u64,
    state: State,
    /// Failures that came while a change was on its way: the next change takes them.
    failed_later: Positions,
    /// Overloaded positions: adds to them wait for the retry.
    holding: Positions,
    retry_scheduled: bool,
    rounds_without_progress: Vec<u32>,
    overload_retries_max: u32,
}

fn bit(position: usize) -> Positions {
    1 << position
}

fn bits(positions: Positions) -> impl Iterator<Item = usize> {
    (0..16).filter(move |&p| positions & bit(p) != 0)
}

/// The first entry after the confirmed ones.
fn after(last: Option<EntryId>) -> EntryId {
    last.map_or(EntryId::FIRST, EntryId::next)
}

impl Writer {
    /// The writer of a new, empty ledger whose only fragment has these members.
    #[must_use]
    pub fn new(quorum: Quorum, members: Vec<BookieId>, overload_retries_max: u32) -> Writer {
        assert_eq!(
            members.len(),
            quorum.ensemble(),
            "an ensemble has E members"
        );
        Writer {
            quorum,
            rounds_without_progress: vec![0; members.len()],
            fragments: BTreeMap::from([(EntryId::FIRST, members)]),
            pending: VecDeque::new(),
            confirmed: LedgerEnd::default(),
            length: 0,
            state: State::Open,
            failed_later: 0,
            holding: 0,
            retry_scheduled: false,
            overload_retries_max,
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
        self.pending.len()
    }

    /// Fragments: first entry and members by position.
    #[must_use]
    pub fn fragments(&self) -> &BTreeMap<EntryId, Vec<BookieId>> {
        &self.fragments
    }

    /// Positions that have not stored the oldest pending add, with their bookies: who to blame
    /// when it takes too long.
    #[must_use]
    pub fn laggards(&self) -> Vec<(usize, BookieId)> {
        let Some(oldest) = self.pending.front() else {
            return Vec::new();
        };
        let missing = self.write_set(self.first_pending()) & !oldest.acked & !oldest.held;
        bits(missing).map(|p| (p, self.members()[p])).collect()
    }

    fn members(&self) -> &[BookieId] {
        self.fragments
            .last_key_value()
            .map(|(_, members)| members.as_slice())
            .unwrap_or_default()
    }

    fn first_pending(&self) -> EntryId {
        after(self.confirmed.last_entry)
    }

    fn write_set(&self, entry: EntryId) -> Positions {
        self.quorum
            .write_set(entry.0)
            .fold(0, |set, p| set | bit(p))
    }

    /// Takes the next entry of `bytes` bytes; `None` once the writer is finished.
    pub fn add(&mut self, bytes: u64, actions: &mut Vec<WriterAction>) -> Option<PlannedAdd> {
        if self.state == State::Finished {
            return None;
        }
        let entry = EntryId(self.first_pending().0 + self.pending.len() as u64);
        self.length += bytes;
        let set = self.write_set(entry);
        let held = set & self.holding;
        self.pending.push_back(PendingAdd {
            ledger_length: self.length,
            acked: 0,
            held,
        });
        for position in bits(set & !held & !self.failed()) {
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

    fn failed(&self) -> Positions {
        match self.state {
            State::Changing { failed, .. } => failed | self.failed_later,
            State::Open | State::Finished => 0,
        }
    }

    /// Stops taking adds. Pending ones are forgotten: their outcome is up to a recovery.
    pub fn finish(&mut self) -> LedgerEnd {
        self.state = State::Finished;
        self.pending.clear();
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
                // Whoever was replaced no longer has a say about entries, but a fence is a fence.
                if reply == AddReply::Fenced {
                    self.stop(StopReason::Fenced, actions);
                } else if self.members().get(position) == Some(&bookie)
                    && self.failed() & bit(position) == 0
                {
                    self.replied(position, entry, reply, actions);
                }
            }
            WriterEvent::RetryDue => self.retry(actions),
            WriterEvent::EnsembleChanged { members } => self.changed(members, actions),
            WriterEvent::EnsembleChangeFailed => {
                let position = bits(self.failed()).next().unwrap_or(0);
                self.stop(StopReason::Failed { position }, actions);
            }
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
        let first = self.first_pending();
        let add = entry
            .0
            .checked_sub(first.0)
            .and_then(|offset| usize::try_from(offset).ok())
            .and_then(|offset| self.pending.get_mut(offset));
        match (reply, add) {
            (AddReply::Stored, add) => {
                self.rounds_without_progress[position] = 0;
                if let Some(add) = add {
                    add.acked |= bit(position);
                    self.acknowledge(actions);
                }
            }
            (AddReply::Overloaded, Some(add)) => {
                add.held |= bit(position);
                self.holding |= bit(position);
                if !std::mem::replace(&mut self.retry_scheduled, true) {
                    actions.push(WriterAction::ScheduleRetry);
                }
            }
            // Acknowledged without it: repair's concern, not the writer's.
            (AddReply::Overloaded, None) => {}
            (AddReply::Failed | AddReply::Fenced, _) => self.fail(position, actions),
        }
    }

    fn acknowledge(&mut self, actions: &mut Vec<WriterAction>) {
        let unreliable = self.failed();
        while let Some(oldest) = self.pending.front() {
            let entry = self.first_pending();
            let acks = (oldest.acked & self.write_set(entry) & !unreliable).count_ones();
            if usize::try_from(acks).unwrap_or(0) < self.quorum.ack() {
                break;
            }
            self.confirmed = LedgerEnd {
                last_entry: Some(entry),
                length: oldest.ledger_length,
            };
            self.pending.pop_front();
            actions.push(WriterAction::Acknowledge { entry });
        }
    }

    fn retry(&mut self, actions: &mut Vec<WriterAction>) {
        self.retry_scheduled = false;
        let holding = std::mem::take(&mut self.holding);
        let mut exhausted = 0;
        for position in bits(holding) {
            let rounds = &mut self.rounds_without_progress[position];
            *rounds += 1;
            if *rounds > self.overload_retries_max {
                exhausted |= bit(position);
            }
        }
        let first = self.first_pending();
        let (mut resend, unusable) = (Vec::new(), self.failed() | exhausted);
        for (offset, add) in self.pending.iter_mut().enumerate() {
            let held = std::mem::take(&mut add.held);
            let entry = EntryId(first.0 + offset as u64);
            resend.extend(bits(held & !unusable).map(|position| (position, entry)));
        }
        for (position, entry) in resend {
            actions.push(self.send(position, entry));
        }
        for position in bits(exhausted & !self.failed()) {
            self.fail(position, actions);
        }
    }

    fn fail(&mut self, position: usize, actions: &mut Vec<WriterAction>) {
        match self.state {
            State::Open => self.change(bit(position), actions),
            State::Changing { .. } => self.failed_later |= bit(position),
            State::Finished => {}
        }
    }

    fn change(&mut self, failed: Positions, actions: &mut Vec<WriterAction>) {
        let first_entry = self.first_pending();
        self.state = State::Changing {
            failed,
            first_entry,
        };
        self.holding &= !failed;
        actions.push(WriterAction::ChangeEnsemble {
            first_entry,
            failed: bits(failed).collect(),
        });
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
        // the same members there (H8).
        self.fragments.insert(first_entry, members);
        self.state = State::Open;
        let first = self.first_pending();
        for offset in 0..self.pending.len() {
            let entry = EntryId(first.0 + offset as u64);
            let replaced = failed & self.write_set(entry);
            self.pending[offset].acked &= !failed;
            self.pending[offset].held &= !failed;
            for position in bits(replaced) {
                actions.push(self.send(position, entry));
            }
        }
        for position in bits(failed) {
            self.rounds_without_progress[position] = 0;
        }
        self.acknowledge(actions);
        let later = std::mem::take(&mut self.failed_later);
        if later != 0 {
            self.change(later, actions);
        }
    }
}
