//! What was promised and what was seen, and the invariants over both.

use std::collections::BTreeMap;

use aquifer_log::{Appended, LogEntry};
use aquifer_metadata::store::{Operation, Revision, Transaction, Versioned};
use aquifer_metadata::{keys, record};
use aquifer_model::id::{EntryId, Index, LedgerId};
use aquifer_model::quorum::Quorum;
use aquifer_proto::v1;
use parking_lot::Mutex;

use crate::cluster::report::Report;

/// Violations that are kept; one is enough to fail.
const VIOLATIONS_MAX: usize = 20;

/// The history of a run.
pub(super) struct History {
    quorum: Quorum,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    report: Report,
    topics: BTreeMap<u8, Topic>,
    ledgers: BTreeMap<u64, v1::LedgerRecord>,
    /// The highest acknowledged entry of each ledger.
    acked: BTreeMap<u64, u64>,
    /// Replicas that are gone or incomplete for good.
    lost: usize,
    /// Whether a bookie is gone for good whose places others take.
    moves: bool,
}

#[derive(Default)]
struct Topic {
    acked: BTreeMap<u64, Appended>,
    /// Appends that failed with the promise that they are not stored.
    refused: BTreeMap<u64, String>,
    /// What the last owner saw, in order.
    seen: Vec<Seen>,
    /// What was read below this may be gone.
    spared: Index,
    /// The highest epoch of an owner that has opened it.
    opened: u64,
}

/// An entry that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    tag: u64,
    ledger: LedgerId,
    entry: EntryId,
    index: Index,
}

/// The body of an append.
pub(super) fn body(topic: u8, tag: u64) -> Vec<u8> {
    let mut bytes = vec![topic];
    bytes.extend_from_slice(&tag.to_le_bytes());
    let padding = usize::try_from(tag % 7 * 40).unwrap_or(0);
    bytes.resize(9 + padding, u8::try_from(tag % 251).unwrap_or(0));
    bytes
}

fn tag_of(topic: u8, bytes: &[u8]) -> Option<u64> {
    let tag = u64::from_le_bytes(bytes.get(1..9)?.try_into().ok()?);
    (bytes == body(topic, tag)).then_some(tag)
}

impl State {
    fn violation(&mut self, what: String) {
        if self.report.violations.len() < VIOLATIONS_MAX {
            self.report.violations.push(what);
        }
    }
}

impl History {
    pub(super) fn new(quorum: Quorum) -> History {
        History {
            quorum,
            state: Mutex::default(),
        }
    }

    pub(super) fn violation(&self, what: String) {
        self.state.lock().violation(what);
    }

    pub(super) fn fault(&self) {
        self.state.lock().report.faults += 1;
    }

    pub(super) fn repaired(&self, ledgers: usize) {
        self.state.lock().report.repaired += ledgers as u64;
    }

    pub(super) fn has_lost_replicas(&self) -> bool {
        self.state.lock().lost > 0
    }

    /// Whether one more replica may be lost for good, which is then counted (I2).
    pub(super) fn may_lose_replica(&self) -> bool {
        let mut state = self.state.lock();
        let may = state.lost + 1 < self.quorum.ack();
        state.lost += usize::from(may);
        may
    }

    /// From now on repair moves the copies of closed ledgers.
    pub(super) fn copies_move(&self) {
        self.state.lock().moves = true;
    }

    pub(super) fn report(&self, events: u64, trace: u64) -> Report {
        Report {
            events,
            trace,
            ..self.state.lock().report.clone()
        }
    }

    /// An append was acknowledged, and this many bookies have it durably now.
    pub(super) fn acknowledged(
        &self,
        topic: u8,
        epoch: u64,
        tag: u64,
        at: Appended,
        copies: usize,
    ) {
        let mut state = self.state.lock();
        let history = state.topics.entry(topic).or_default();
        // What the next owner has read and trimmed may be told late.
        let may_be_gone = at.base_index < history.spared;
        // An owner that has opened the topic knows everything that former owners have acknowledged,
        // and will.
        let acknowledged = Seen {
            tag,
            ledger: at.ledger,
            entry: at.entry,
            index: at.base_index,
        };
        if epoch < history.opened && !may_be_gone && !history.seen.contains(&acknowledged) {
            let opened = history.opened;
            state.violation(format!(
                "H21: topic {topic}, {tag} was acknowledged as {}:{} by owner {epoch}, owner {opened} does not know it",
                at.ledger, at.entry
            ));
        }
        state.report.acknowledged += 1;
        let needed = state.ledgers.get(&at.ledger.0).map_or(0, |ledger| {
            usize::try_from(ledger.ack_quorum).unwrap_or(usize::MAX)
        });
        if copies + state.lost < needed && !may_be_gone {
            state.violation(format!(
                "I1: topic {topic}, {tag} was acknowledged as {}:{} and is on {copies} bookies, not {needed}",
                at.ledger, at.entry
            ));
        }
        if let Some(ledger) = state.ledgers.get(&at.ledger.0)
            && ledger.state() == v1::LedgerState::Closed
            && ledger.last_entry_id.is_none_or(|last| at.entry.0 > last)
        {
            let last = ledger.last_entry_id;
            state.violation(format!(
                "I4: topic {topic}, {tag} was acknowledged as {}:{} of a ledger closed at {last:?}",
                at.ledger, at.entry
            ));
        }
        let highest = state.acked.entry(at.ledger.0).or_default();
        *highest = (*highest).max(at.entry.0);
        let former = state.topics.entry(topic).or_default().acked.insert(tag, at);
        if former.is_some() {
            state.violation(format!("topic {topic}, {tag} was acknowledged twice"));
        }
    }

    /// An append failed with the promise that it is not stored and never will be.
    pub(super) fn refused(&self, topic: u8, tag: u64, why: String) {
        let mut state = self.state.lock();
        state
            .topics
            .entry(topic)
            .or_default()
            .refused
            .insert(tag, why);
    }

    /// A transaction is in metadata: checks ledger records against their former versions (I3, I6).
    pub(super) fn committed(&self, transaction: &Transaction) {
        let mut state = self.state.lock();
        for operation in &transaction.operations {
            let Operation::Put { key, value, .. } = operation else {
                continue;
            };
            let Some(id) = key.strip_prefix(keys::LEDGERS_PREFIX) else {
                continue;
            };
            let stored = Versioned {
                key: key.clone(),
                value: value.clone(),
                revision: Revision(0),
            };
            let Ok(ledger) = record::decode::<v1::LedgerRecord>(&stored) else {
                state.violation(format!("ledger record {id} cannot be read"));
                continue;
            };
            state.ledger_changed(id, ledger);
        }
    }

    /// Entries below this may be trimmed from now on.
    pub(super) fn spares(&self, topic: u8, below: Index) {
        let mut state = self.state.lock();
        let history = state.topics.entry(topic).or_default();
        history.spared = history.spared.max(below);
        state.report.trims += 1;
    }

    /// A reader has gone on behind what was trimmed.
    pub(super) fn followed(&self, entries: usize) {
        self.state.lock().report.followed += entries as u64;
    }

    /// An owner has read a topic from its first entry to its end.
    pub(super) fn seen(&self, topic: u8, epoch: u64, first: Index, entries: &[LogEntry]) {
        let mut state = self.state.lock();
        let mut problems = Vec::new();
        let history = state.topics.entry(topic).or_default();
        if first > history.spared {
            let spared = history.spared;
            problems.push(format!(
                "I2: topic {topic} begins at {first}, only what is below {spared} may be gone"
            ));
        }
        let seen = history.judge(topic, first, entries, &mut problems);
        let former = history.seen.iter().filter(|seen| seen.index >= first);
        let former: Vec<Seen> = former.copied().collect();
        if !seen.starts_with(&former) {
            problems.push(format!(
                "I3: topic {topic} is not what its former owner saw"
            ));
        }
        history.seen = seen;
        history.opened = history.opened.max(epoch);
        for problem in problems {
            state.violation(problem);
        }
    }
}

impl Topic {
    /// Compares what was read from an index to the end with what was promised.
    fn judge(
        &self,
        topic: u8,
        first: Index,
        entries: &[LogEntry],
        problems: &mut Vec<String>,
    ) -> Vec<Seen> {
        let mut seen = Vec::new();
        let mut next_index = first;
        for entry in entries {
            let place = format!("{}:{}", entry.ledger, entry.entry);
            let Some(tag) = tag_of(topic, &entry.body) else {
                problems.push(format!(
                    "I5: topic {topic}, {place} has bytes that were never written"
                ));
                continue;
            };
            if next_index != entry.head.base_index {
                problems.push(format!("topic {topic}, {place} has an index out of place"));
            }
            next_index = entry.head.end_index();
            if let Some(why) = self.refused.get(&tag) {
                problems.push(format!(
                    "topic {topic}, {tag} is stored although it failed: {why}"
                ));
            }
            seen.push(Seen {
                tag,
                ledger: entry.ledger,
                entry: entry.entry,
                index: entry.head.base_index,
            });
        }
        let mut places = BTreeMap::new();
        for seen in &seen {
            if places.insert(seen.tag, (seen.ledger, seen.entry)).is_some() {
                let tag = seen.tag;
                problems.push(format!("topic {topic}, {tag} is stored twice"));
            }
        }
        for (tag, at) in self.acked.iter().filter(|(_, at)| at.base_index >= first) {
            if places.get(tag) != Some(&(at.ledger, at.entry)) {
                let found = places.get(tag);
                problems.push(format!(
                    "I2: topic {topic}, {tag} was acknowledged as {}:{} and is found at {found:?}",
                    at.ledger, at.entry
                ));
            }
        }
        seen
    }
}

impl State {
    fn ledger_changed(&mut self, id: &str, new: v1::LedgerRecord) {
        let Ok(number) = id.parse::<u64>() else {
            return self.violation(format!("ledger key {id} is not a number"));
        };
        let old = self.ledgers.insert(number, new.clone());
        let Some(old) = old else {
            return;
        };
        let is_moved = self.moves
            && v1::LedgerRecord {
                fragments: new.fragments.clone(),
                ..old.clone()
            } == new;
        if is_moved {
            return;
        }
        let problem = match (old.state(), new.state()) {
            (v1::LedgerState::Closed, _) if old != new => Some("a closed ledger changed (I3)"),
            (v1::LedgerState::InRecovery, v1::LedgerState::Open) => {
                Some("it was opened again (I4)")
            }
            _ if new.recovery_epoch < old.recovery_epoch => Some("its epoch went back (I6)"),
            _ => None,
        };
        if let Some(problem) = problem {
            self.violation(format!("ledger {id}: {problem}"));
        }
        // The last fragment may be replaced by one that begins where it does.
        let kept = old.fragments.iter().rev().skip(1);
        if kept
            .into_iter()
            .any(|fragment| !new.fragments.contains(fragment))
        {
            self.violation(format!("ledger {id}: a former fragment changed (I6)"));
        }
        let changed = new.fragments != old.fragments;
        self.report.changes += u64::from(changed && new.state() == v1::LedgerState::Open);
        self.report.recoveries += u64::from(new.recovery_epoch > old.recovery_epoch);
        if new.state() == v1::LedgerState::Closed && old.state() != v1::LedgerState::Closed {
            self.report.closed += 1;
            let acked = self.acked.get(&number).copied();
            if acked > new.last_entry_id {
                let last = new.last_entry_id;
                self.violation(format!(
                    "I2: ledger {id} is closed at {last:?}, {acked:?} was acknowledged"
                ));
            }
        }
    }
}
