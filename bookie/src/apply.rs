//! The applier: one thread that brings commits into the store, in journal order (H1).
//!
//! Every write carries the sequence of the last commit in it, so that what the store has durably
//! says which commits the journal may drop. When the store refuses, the applier stays where it is:
//! nothing is lost, because the journal keeps what is not durable; adds are refused meanwhile.

pub mod queue;
pub mod replay;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::journal::commit::Committed;
use crate::journal::record::RecordKind;
use crate::journal::replay::{self as journal, Continuity, FoundMark};
use crate::shared::Shared;
use crate::store::{ApplyTarget, StoreError};
use replay::{ReplayError, Replayer};

const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// A store that works after it was opened again, and then fails again, is believed so often; after
/// that a person has to look.
const REOPENED_MAX: u32 = 5;

/// The thread.
pub struct Applier {
    shared: Arc<Shared>,
    /// Whether the store is opened so that damaged files do not stop it.
    around_damage: bool,
    /// How often it was opened again and worked.
    reopened: u32,
}

impl Applier {
    /// A thread that does not run yet.
    #[must_use]
    pub fn new(shared: &Arc<Shared>) -> Applier {
        Applier {
            around_damage: shared.damage.report().is_some(),
            reopened: 0,
            shared: Arc::clone(shared),
        }
    }

    /// Runs until the queue is closed and empty.
    pub fn run(mut self) {
        while let Some(commits) = self.shared.apply_queue.take() {
            if !self.apply_until_done(&commits) {
                return;
            }
            let bytes: usize = commits.iter().map(|c| c.block.bytes().len()).sum();
            if let Some(last) = commits.last() {
                self.shared.progress.applied.advance(last.sequence);
            }
            for commit in commits {
                for record in &commit.records {
                    if record.kind == RecordKind::Delete {
                        self.shared.deletions.add(record.ledger, commit.sequence);
                    }
                }
                self.shared.ledgers.applied(&commit.records);
                let changed = commit.records.iter().map(|record| record.ledger);
                self.shared.watchers.wake(changed);
            }
            let unflushed = self
                .shared
                .unflushed_bytes
                .fetch_add(bytes, Ordering::AcqRel)
                + bytes;
            // About when the store has flushed by itself once more.
            if unflushed >= self.shared.config.memtable_bytes {
                self.shared.checkpointer.wake();
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
        let sequence = last.unwrap_or_else(|| self.shared.progress.applied.get());
        loop {
            match self.shared.store.apply(commits, sequence) {
                Ok(()) => {
                    self.reopened += u32::from(reopened && !was_full);
                    if self.reopened > REOPENED_MAX {
                        self.shared
                            .mode
                            .storage_damaged("the store failed again and again");
                    }
                    self.shared.mode.storage_recovered();
                    return true;
                }
                Err(StoreError::Damaged(what)) => {
                    self.shared.mode.storage_failed(&what);
                    // Compactions have met it, and would again: from now on there are none.
                    if !self.around_damage {
                        self.shared.mode.storage_damaged(&what);
                        self.around_damage = true;
                        attempts += 1;
                    }
                    damaged = Some(what);
                }
                Err(error) => {
                    was_full |= matches!(error, StoreError::Full(_));
                    self.shared.mode.storage_failed(&error.to_string());
                }
            }
            if self.shared.stop.wait(wait) {
                return false;
            }
            wait = (wait * 2).min(RETRY_MAX);
            attempts += 1;
            // A store may recover by itself from some errors. Opening it again recovers from the
            // others, and is of no use while the disk is full.
            if attempts > 1 && !self.shared.mode.is_full() {
                match self.open_again(damaged.as_deref()) {
                    Ok(()) => reopened = true,
                    Err(error) => self.shared.mode.storage_failed(&error.to_string()),
                }
            }
        }
    }

    /// Opens the store again. When files of it are damaged it finds out which these are.
    fn open_again(&self, damaged: Option<&str>) -> Result<(), StoreError> {
        let replay = &mut |target: &dyn ApplyTarget| self.reapply(target);
        self.shared.store.reopen(self.around_damage, replay)?;
        let Some(what) = damaged else {
            return Ok(());
        };
        let known = self.shared.damage.report();
        let report = self.shared.store.find_damage(known, what)?;
        self.shared.mode.storage_damaged(&report.to_string());
        self.shared.damage.found(report);
        Ok(())
    }

    /// Brings what the store did not have durably back from the journal.
    fn reapply(&self, target: &dyn ApplyTarget) -> Result<(), StoreError> {
        let until = self.shared.progress.applied.get();
        let mut continuity = Continuity::new(target.applied()?);
        let mut replayer = Replayer::default();
        let found = journal::inventory_of(&*self.shared.disk, &self.shared.segments.live())
            .map_err(|error| StoreError::Failed(error.to_string()))?;
        for used in found {
            journal::scan_segment::<ReplayError>(
                &*self.shared.disk,
                used,
                until,
                &mut continuity,
                &mut |found| replayer.apply(target, found).map_err(ReplayError::Store),
            )
            .map_err(|error| StoreError::Failed(error.to_string()))?;
        }
        match continuity.finish(FoundMark::Synced(until)) {
            (_, None) => Ok(()),
            (_, Some(loss)) => Err(StoreError::Damaged(loss.reason)),
        }
    }
}
