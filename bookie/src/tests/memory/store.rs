//! A store in memory, which shows that the seam is one: it shares nothing with RocksDB. What is not
//! flushed goes with a crash, and a test can make it refuse.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aquifer_model::id::{EntryId, LedgerId};
use aquifer_model::storage::{AddEntry, Presence, PresenceRange, ReadRange, StoredEntry};
use parking_lot::Mutex;

use super::*;
use crate::journal::commit::{CommitPlace, Committed};
use crate::journal::record::{RecordKind, ValueHead};
use crate::journal::replay::Loss;
use crate::ledger_state::{LedgerMeta, Stored};
use crate::report::DamageReport;
use crate::store::value::{EntryError, compare, from_pending, verified};
use crate::store::{
    ApplyTarget, CheckPlace, Checked, Collected, LastEntry, LedgersPage, Merged, Pressure,
    SpaceLimits, StoreError, ValueFiles,
};

/// A store; clones share it, as a process shares its disk with the one after it.
#[derive(Clone, Default)]
pub struct MemoryStore(Arc<Mutex<State>>);

/// A value and where the journal has it.
pub type Placed = (CommitPlace, usize, Vec<u8>);

#[derive(Default)]
struct State {
    live: Contents,
    durable: Contents,
    refuses: u32,
    reopened: u32,
    placed: Vec<Placed>,
    /// Its list of ledgers is tombstones without end.
    tombstones: bool,
    listed: u64,
    pressure: Pressure,
}

#[derive(Clone, Default)]
struct Contents {
    applied: u64,
    ledgers: BTreeMap<LedgerId, LedgerMeta>,
    entries: BTreeMap<(LedgerId, EntryId), Vec<u8>>,
    loss: Option<Loss>,
    scrubbed: Option<(LedgerId, EntryId)>,
}

impl MemoryStore {
    /// What is not durable is gone.
    pub fn crash(&self) {
        let state = &mut *self.0.lock();
        state.live = state.durable.clone();
    }

    /// Refuses the next writes.
    pub fn refuse(&self, writes: u32) {
        self.0.lock().refuses = writes;
    }

    /// From now on it says that it holds writes up this far.
    pub fn hold_up(&self, pressure: Pressure) {
        self.0.lock().pressure = pressure;
    }

    /// From now on it lists tombstones without end.
    pub fn list_tombstones(&self) {
        self.0.lock().tombstones = true;
    }

    /// How many pages of tombstones it has listed.
    pub fn listed(&self) -> u64 {
        self.0.lock().listed
    }

    /// How often it was opened again.
    pub fn reopened(&self) -> u32 {
        self.0.lock().reopened
    }

    /// Every value that was applied, with its place.
    pub fn placed(&self) -> Vec<Placed> {
        self.0.lock().placed.clone()
    }

    fn value(&self, ledger: LedgerId, entry: EntryId) -> Option<Vec<u8>> {
        self.0.lock().live.entries.get(&(ledger, entry)).cloned()
    }
}

impl ApplyTarget for MemoryStore {
    fn applied(&self) -> Result<u64, StoreError> {
        Ok(self.0.lock().live.applied)
    }

    fn ledger(&self, ledger: LedgerId) -> Result<Option<LedgerMeta>, StoreError> {
        Ok(self.0.lock().live.ledgers.get(&ledger).copied())
    }

    fn apply(&self, commits: &[Committed], applied: u64) -> Result<(), StoreError> {
        let state = &mut *self.0.lock();
        if state.refuses > 0 {
            state.refuses -= 1;
            return Err(StoreError::Failed("the test says so".to_owned()));
        }
        for commit in commits {
            for record in &commit.records {
                let ledger = record.ledger;
                match record.kind {
                    RecordKind::Add(entry) | RecordKind::RecoveryAdd(entry) => {
                        let value = commit.value(record).to_vec();
                        let placed = (commit.place, record.value.start, value.clone());
                        state.placed.push(placed);
                        state.live.entries.insert((ledger, entry), value);
                    }
                    RecordKind::Delete => state.live.entries.retain(|(of, _), _| *of != ledger),
                    RecordKind::Fence | RecordKind::Lac(_) => {}
                }
                if let Some(meta) = record.meta {
                    state.live.ledgers.insert(ledger, meta);
                }
            }
        }
        state.live.applied = applied;
        Ok(())
    }
}

impl EntryStore for MemoryStore {
    fn read(
        &self,
        range: &ReadRange,
        pending: &BTreeMap<EntryId, AddEntry>,
    ) -> Result<Vec<StoredEntry>, EntryError> {
        let mut found: Vec<StoredEntry> = Vec::new();
        let mut bytes = 0;
        let mut next = range.first;
        while next <= range.last && found.len() < range.entries_max {
            let (ledger, prefix) = (range.ledger, range.prefix_bytes);
            let entry = match (self.value(ledger, next), pending.get(&next)) {
                (Some(value), _) => verified(ledger, next, &value, prefix),
                (None, Some(add)) => from_pending(ledger, add, prefix),
                (None, None) => break,
            };
            match entry {
                Ok(entry) if found.is_empty() || bytes + entry.data.len() <= range.bytes_max => {
                    bytes += entry.data.len();
                    found.push(entry);
                }
                Err(error) if found.is_empty() => return Err(error),
                Ok(_) | Err(_) => break,
            }
            next = next.next();
        }
        Ok(found)
    }

    fn has(
        &self,
        range: &PresenceRange,
        pending: &BTreeSet<EntryId>,
    ) -> Result<Presence, StoreError> {
        let mut found = Presence::nothing_until(range.last);
        let state = self.0.lock();
        let keys = (range.ledger, range.first)..=(range.ledger, range.last);
        let stored = state.live.entries.range(keys).map(|((_, entry), _)| *entry);
        let all: BTreeSet<EntryId> = stored.chain(pending.iter().copied()).collect();
        all.into_iter().for_each(|entry| found.add(entry));
        Ok(found)
    }

    fn compare(&self, ledger: LedgerId, add: &AddEntry) -> Result<Stored, StoreError> {
        let value = self.value(ledger, add.entry);
        Ok(compare(ledger, value.as_deref(), add))
    }

    fn check(
        &self,
        ledger: LedgerId,
        from: CheckPlace,
        _bytes_max: usize,
    ) -> Result<Checked, StoreError> {
        let mut checked = Checked::default();
        let keys = (ledger, from.entry)..=(ledger, EntryId(u64::MAX));
        for ((_, entry), value) in self.0.lock().live.entries.range(keys) {
            checked.bytes += value.len();
            match verified(ledger, *entry, value, Some(0)) {
                Ok(_) => checked.entries += 1,
                Err(_) => checked.damaged.push(*entry),
            }
        }
        Ok(checked)
    }

    fn hides_end(&self, _ledger: LedgerId, _entry: EntryId) -> Result<bool, StoreError> {
        Ok(false)
    }

    fn last_entry(&self, ledger: LedgerId) -> Result<Option<LastEntry>, StoreError> {
        let state = self.0.lock();
        let keys = (ledger, EntryId::FIRST)..=(ledger, EntryId(u64::MAX));
        let last = state.live.entries.range(keys).next_back();
        Ok(last.map(|((_, entry), value)| LastEntry {
            entry: *entry,
            last_add_confirmed: ValueHead::split(value)
                .and_then(|(head, _)| head.last_add_confirmed),
        }))
    }

    fn ledgers_after(
        &self,
        after: Option<LedgerId>,
        max: usize,
    ) -> Result<LedgersPage, StoreError> {
        let mut state = self.0.lock();
        if state.tombstones {
            state.listed += 1;
            return Ok(LedgersPage {
                ledgers: Vec::new(),
                looked: Some(LedgerId(state.listed)),
            });
        }
        let live = state.live.ledgers.iter().filter(|(_, meta)| !meta.deleted);
        let behind = live.filter(|(ledger, _)| Some(**ledger) > after);
        let mut ledgers: Vec<_> = behind.map(|(ledger, meta)| (*ledger, *meta)).collect();
        let more = ledgers.len() > max;
        ledgers.truncate(max);
        let looked = ledgers.last().map(|(ledger, _)| *ledger);
        Ok(LedgersPage {
            ledgers,
            looked: looked.filter(|_| more),
        })
    }

    fn persisted(&self) -> Result<u64, StoreError> {
        Ok(self.0.lock().durable.applied)
    }

    fn flush(&self) -> Result<(), StoreError> {
        let state = &mut *self.0.lock();
        state.durable = state.live.clone();
        Ok(())
    }

    fn reclaim(&self, deleted: &[LedgerId], _room: SpaceLimits) -> Result<usize, StoreError> {
        Ok(deleted.len())
    }

    fn collect(&self, _room: SpaceLimits) -> Result<Collected, StoreError> {
        Ok(Collected::Nothing)
    }

    fn merge(&self, _room: SpaceLimits) -> Result<Merged, StoreError> {
        Ok(Merged::Nothing)
    }

    fn value_files(&self) -> Result<ValueFiles, StoreError> {
        Ok(ValueFiles::default())
    }

    fn pressure(&self) -> Result<Pressure, StoreError> {
        Ok(self.0.lock().pressure)
    }

    fn release(&self, _at_once: bool) -> Result<Option<Duration>, StoreError> {
        Ok(None)
    }

    fn leaving_bytes(&self) -> u64 {
        0
    }

    fn bytes(&self) -> Result<u64, StoreError> {
        let state = self.0.lock();
        let values = state.live.entries.values();
        Ok(values.map(|value| value.len() as u64).sum())
    }

    fn loss(&self) -> Result<Option<Loss>, StoreError> {
        Ok(self.0.lock().live.loss.clone())
    }

    fn set_loss(&self, loss: Option<&Loss>, applied: Option<u64>) -> Result<(), StoreError> {
        {
            let live = &mut self.0.lock().live;
            live.loss = loss.cloned();
            live.applied = applied.unwrap_or(live.applied);
        }
        self.flush()
    }

    fn scrubbed(&self) -> Result<Option<(LedgerId, EntryId)>, StoreError> {
        Ok(self.0.lock().live.scrubbed)
    }

    fn set_scrubbed(&self, at: (LedgerId, EntryId)) -> Result<(), StoreError> {
        self.0.lock().live.scrubbed = Some(at);
        Ok(())
    }

    fn find_damage(
        &self,
        known: Option<DamageReport>,
        _error: &str,
    ) -> Result<DamageReport, StoreError> {
        Ok(known.unwrap_or_default())
    }

    fn reopen(
        &self,
        _around_damage: bool,
        replay: &mut dyn FnMut(&dyn ApplyTarget) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.crash();
        self.0.lock().reopened += 1;
        replay(self)
    }

    fn cancel(&self) {}

    fn close(&self) {}

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
