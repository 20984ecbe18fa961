//! The applier: one thread that brings commits into the store, in journal order (H1).
//!
//! Every write carries the sequence of the last commit in it, so that what the store has durably
//! says which commits the journal may drop. When the store refuses, the applier stays where it is:
//! nothing is lost, because the journal keeps what is not durable; adds are refused meanwhile.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aquifer_model::id::LedgerId;
use aquifer_runtime::disk::SharedDisk;
use parking_lot::{Condvar, Mutex};

use crate::bell::Bell;
use crate::damage::Damage;
use crate::journal::commit::{Committed, CommittedRecord};
use crate::journal::record::{RecordKind, RecordRef};
use crate::journal::replay::{self, Continuity, FoundCommit};
use crate::journal::segments::Segments;
use crate::ledger_state::LedgerMeta;
use crate::ledgers::LedgerTable;
use crate::mode::Mode;
use crate::positions::Positions;
use crate::reclaim::Reclaimer;
use crate::store::{ApplyTarget, EntryStore, StoreError};
use crate::watchers::Watchers;

/// Commits that one write to the store takes, in bytes.
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Commits that wait in the buffers that they were written from, which may be much larger.
const BUFFERS_MAX: usize = 16;
/// Ledger records that replay remembers.
const REPLAY_LEDGERS_MAX: usize = 65_536;
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// A store that works after it was opened again, and then fails again, is believed so often; after
/// that a person has to look.
const REOPENED_MAX: u32 = 5;

/// The queue in front of the applier; the permits of its records bound it.
#[derive(Default)]
pub struct ApplyQueue {
    state: Mutex<QueueState>,
    wake: Condvar,
}

#[derive(Default)]
struct QueueState {
    commits: VecDeque<Committed>,
    /// Somebody wants to know whether the store still takes writes.
    probe: bool,
    closed: bool,
}

impl ApplyQueue {
    /// Adds a commit. While the store takes nothing, commits wait here in no more memory than their
    /// permits account for.
    pub fn push(&self, mut commit: Committed) {
        if self.state.lock().commits.len() >= BUFFERS_MAX {
            let ends = commit.records.iter().map(|record| record.value.end);
            let len = ends.max().unwrap_or(0);
            commit.block.compact(len);
        }
        self.state.lock().commits.push_back(commit);
        self.wake.notify_one();
    }

    /// The memory of the commits that wait.
    #[cfg(test)]
    pub fn held_bytes(&self) -> usize {
        let state = self.state.lock();
        state
            .commits
            .iter()
            .map(|commit| commit.block.held_bytes())
            .sum()
    }

    /// Makes the applier write something, to notice errors and to recover from them.
    pub fn probe(&self) {
        self.state.lock().probe = true;
        self.wake.notify_one();
    }

    /// Ends the applier after what is queued.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.wake.notify_all();
    }

    fn take(&self) -> Option<Vec<Committed>> {
        let mut state = self.state.lock();
        while state.commits.is_empty() && !state.probe {
            if state.closed {
                return None;
            }
            self.wake.wait(&mut state);
        }
        state.probe = false;
        let mut bytes = 0;
        let mut count = 0;
        for commit in &state.commits {
            bytes += commit.block.bytes().len();
            if count > 0 && bytes > BATCH_BYTES_MAX {
                break;
            }
            count += 1;
        }
        Some(state.commits.drain(..count).collect())
    }
}

/// What the applier works with.
pub struct Applier {
    /// Where commits come from.
    pub queue: Arc<ApplyQueue>,
    /// Where they go.
    pub store: Arc<dyn EntryStore>,
    /// To say that records arrived.
    pub ledgers: Arc<LedgerTable>,
    /// To wake who waits for them.
    pub watchers: Arc<Watchers>,
    /// How far things are.
    pub positions: Arc<Positions>,
    /// To report errors of the store.
    pub mode: Arc<Mode>,
    /// To report damaged files of it.
    pub damage: Arc<Damage>,
    /// Whether the store is opened so that damaged files do not stop it.
    pub around_damage: bool,
    /// How often it was opened again and worked.
    pub reopened: u32,
    /// To read the journal again after the store was opened again.
    pub segments: Arc<Segments>,
    /// The disk of the journal.
    pub disk: SharedDisk,
    /// Ledgers whose space comes back.
    pub reclaimer: Arc<Reclaimer>,
    /// Bytes applied since the last look at what is durable.
    pub unflushed_bytes: Arc<AtomicUsize>,
    /// After so many, it is time to look.
    pub look_bytes: usize,
    /// Wakes the thread that flushes.
    pub checkpointer: Arc<Bell>,
    /// Rung when the bookie stops without finishing.
    pub stop: Arc<Bell>,
}

impl Applier {
    /// Runs until the queue is closed and empty.
    pub fn run(mut self) {
        while let Some(commits) = self.queue.take() {
            if !self.apply_until_done(&commits) {
                return;
            }
            let bytes: usize = commits.iter().map(|c| c.block.bytes().len()).sum();
            if let Some(last) = commits.last() {
                self.positions.applied.advance(last.sequence);
            }
            for commit in commits {
                for record in &commit.records {
                    if record.kind == RecordKind::Delete {
                        self.reclaimer.add(record.ledger, commit.sequence);
                    }
                }
                self.ledgers.applied(&commit.records);
                let changed = commit.records.iter().map(|record| record.ledger);
                self.watchers.wake(changed);
            }
            let unflushed = self.unflushed_bytes.fetch_add(bytes, Ordering::AcqRel) + bytes;
            if unflushed >= self.look_bytes {
                self.checkpointer.ring();
            }
        }
    }

    /// Writes, and on errors waits, and opens the store again. `false` when the bookie stops.
    fn apply_until_done(&mut self, commits: &[Committed]) -> bool {
        let mut wait = RETRY_FIRST;
        let mut attempts = 0;
        let mut reopened = false;
        let mut was_full = false;
        let mut damaged = None;
        let last = commits.last().map(|commit| commit.sequence);
        let sequence = last.unwrap_or_else(|| self.positions.applied.get());
        loop {
            match self.store.apply(commits, sequence) {
                Ok(()) => {
                    self.reopened += u32::from(reopened && !was_full);
                    if self.reopened > REOPENED_MAX {
                        self.mode
                            .storage_damaged("the store failed again and again");
                    }
                    self.mode.storage_recovered();
                    return true;
                }
                Err(StoreError::Damaged(what)) => {
                    self.mode.storage_failed(&what);
                    // Compactions have met it, and would again: from now on there are none.
                    if !self.around_damage {
                        self.mode.storage_damaged(&what);
                        self.around_damage = true;
                        attempts += 1;
                    }
                    damaged = Some(what);
                }
                Err(error) => {
                    was_full |= matches!(error, StoreError::Full(_));
                    self.mode.storage_failed(&error.to_string());
                }
            }
            if self.stop.wait(wait) {
                return false;
            }
            wait = (wait * 2).min(RETRY_MAX);
            attempts += 1;
            // A store may recover by itself from some errors. Opening it again recovers from the
            // others, and is of no use while the disk is full.
            if attempts > 1 && !self.mode.is_full() {
                match self.open_again(damaged.as_deref()) {
                    Ok(()) => reopened = true,
                    Err(error) => self.mode.storage_failed(&error.to_string()),
                }
            }
        }
    }

    /// Opens the store again. When files of it are damaged it finds out which these are.
    fn open_again(&self, damaged: Option<&str>) -> Result<(), StoreError> {
        let replay = &mut |target: &dyn ApplyTarget| self.reapply(target);
        self.store.reopen(self.around_damage, replay)?;
        let Some(what) = damaged else {
            return Ok(());
        };
        let known = self.damage.report();
        let report = self.store.find_damage(known, what)?;
        self.mode.storage_damaged(&report.to_string());
        self.damage.found(report);
        Ok(())
    }

    /// Brings what the store did not have durably back from the journal.
    fn reapply(&self, target: &dyn ApplyTarget) -> Result<(), StoreError> {
        let until = self.positions.applied.get();
        let mut continuity = Continuity::new(target.applied()?);
        let mut replayer = Replayer::default();
        let found = replay::inventory_of(&*self.disk, &self.segments.live())
            .map_err(|error| StoreError::Failed(error.to_string()))?;
        for used in found {
            replay::scan_segment::<ReplayError>(
                &*self.disk,
                used,
                until,
                &mut continuity,
                &mut |found| replayer.apply(target, found).map_err(ReplayError::Store),
            )
            .map_err(|error| StoreError::Failed(error.to_string()))?;
        }
        match continuity.finish(replay::FoundMark::Synced(until)) {
            (_, None) => Ok(()),
            (_, Some(loss)) => Err(StoreError::Damaged(loss.reason)),
        }
    }
}

/// What can go wrong while the journal is replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The journal could not be read.
    #[error("journal: {0}")]
    Journal(#[from] std::io::Error),
    /// The store refused.
    #[error(transparent)]
    Store(StoreError),
}

/// Applies commits that are read from the journal, one write each.
#[derive(Debug, Default)]
pub struct Replayer {
    metas: HashMap<LedgerId, Option<LedgerMeta>>,
    /// Ledgers that were deleted.
    pub deleted: Vec<LedgerId>,
    /// Records that were applied.
    pub records: usize,
}

impl Replayer {
    /// Applies one commit.
    pub fn apply(
        &mut self,
        target: &dyn ApplyTarget,
        found: FoundCommit,
    ) -> Result<(), StoreError> {
        if self.metas.len() > REPLAY_LEDGERS_MAX {
            self.metas.clear();
        }
        let mut records = Vec::new();
        let mut rest = found.records();
        while let Some(record) = rest.next() {
            let (stored, mut meta) = match self.metas.get(&record.ledger) {
                Some(meta) => (*meta, meta.unwrap_or(LedgerMeta::new(record.token))),
                None => stored_meta(target, &record)?,
            };
            meta.apply(record.kind);
            let value_end = rest.offset();
            records.push(CommittedRecord {
                ledger: record.ledger,
                kind: record.kind,
                number: 0,
                value: value_end - record.value.len()..value_end,
                meta: (stored != Some(meta)).then_some(meta),
                _permit: None,
            });
            if record.kind == RecordKind::Delete {
                self.deleted.push(record.ledger);
            }
            self.metas.insert(record.ledger, Some(meta));
        }
        self.records += records.len();
        let commit = found.with(records);
        let sequence = commit.sequence;
        target.apply(&[commit], sequence)
    }
}

/// The stored record of a ledger, and what is known of it when a record of the journal comes: one
/// that is damaged may have said that the ledger is fenced.
fn stored_meta(
    target: &dyn ApplyTarget,
    record: &RecordRef<'_>,
) -> Result<(Option<LedgerMeta>, LedgerMeta), StoreError> {
    match target.ledger(record.ledger) {
        Ok(stored) => {
            let known = stored.unwrap_or(LedgerMeta::new(record.token));
            Ok((stored, known.of(record.token)))
        }
        Err(error @ StoreError::Damaged(_)) => {
            let ledger = record.ledger;
            tracing::error!(%ledger, %error, "the record of a ledger cannot be read");
            Ok((None, LedgerMeta::lost().of(record.token)))
        }
        Err(error) => Err(error),
    }
}
