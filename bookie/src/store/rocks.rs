//! RocksDB as the store.
//!
//! The database can be closed and opened again under its users after a background error: they
//! wait meanwhile, because a store without what was in its memtables must not answer.

mod check;
mod db;
mod entries;
mod files;
mod keys;
mod layout;
mod manifest;
mod merge;
mod notes;
mod options;
mod presence;
mod records;
mod removal;
pub mod set_aside;
mod space;
mod start;
mod verify;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aquifer_model::id::{EntryId, LedgerId};
use aquifer_model::storage::{AddEntry, Presence, PresenceRange, ReadRange, StoredEntry};
use parking_lot::{Mutex, RwLock};

use crate::config::BookieConfig;
use crate::journal::commit::Committed;
use crate::journal::replay::Loss;
use crate::ledger_state::{LedgerMeta, Stored};
use crate::report::DamageReport;
use crate::store::value::EntryError;
use crate::store::{
    ApplyTarget, CheckPlace, Checked, Collected, EntryStore, LastEntry, LedgersPage, Merged,
    Pressure, SpaceLimits, StoreError, ValueFiles, value,
};

pub use db::Db;
use merge::Merging;
use removal::PacedRemoval;
pub use start::open;

/// The database and its users.
pub struct RocksStore {
    config: BookieConfig,
    db: RwLock<Option<Db>>,
    /// Of the thread that reclaims space.
    space: Mutex<Removing>,
    leaving_bytes: AtomicU64,
}

/// Files that the database removes.
struct Removing {
    files: PacedRemoval,
    /// They have second names since ledgers are reclaimed; later ones go without.
    is_kept: bool,
    /// What merging has learned of files.
    merging: Merging,
}

impl RocksStore {
    /// Wraps an open database.
    fn new(config: &BookieConfig, db: Db) -> RocksStore {
        let removed = config.ledger_dir.join("removed");
        RocksStore {
            config: config.clone(),
            db: RwLock::new(Some(db)),
            space: Mutex::new(Removing {
                files: PacedRemoval::new(db::directory(config), removed),
                is_kept: false,
                merging: Merging::default(),
            }),
            leaving_bytes: AtomicU64::new(0),
        }
    }

    /// Uses the database.
    pub fn with<T, E: From<StoreError>>(
        &self,
        operation: impl FnOnce(&Db) -> Result<T, E>,
    ) -> Result<T, E> {
        match &*self.db.read() {
            Some(db) => operation(db),
            None => Err(StoreError::Closed("after an error".to_owned()).into()),
        }
    }

    /// Closes the database, opens it again and lets `replay` bring back what was not flushed,
    /// before anything else uses it.
    pub fn reopen_with(
        &self,
        around_damage: bool,
        replay: impl FnOnce(&Db) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        // A compaction that runs has the database until it ends.
        self.cancel();
        let mut slot = self.db.write();
        drop(slot.take());
        let db = if around_damage {
            Db::open_damaged(&self.config)?
        } else {
            Db::open(&self.config, false)?
        };
        replay(&db)?;
        *slot = Some(db);
        Ok(())
    }

    /// Frees a little of what was removed, or everything.
    fn free(&self, removing: &mut Removing, at_once: bool) -> Result<Option<Duration>, StoreError> {
        let pause = removing.files.step(at_once);
        let bytes = removing.files.bytes();
        self.leaving_bytes.store(bytes, Ordering::Release);
        pause.map_err(|error| StoreError::Failed(error.to_string()))
    }
}

impl Removing {
    /// Gives files up to a number second names, so that they go little by little. A full disk needs
    /// the space at once.
    fn keep(&mut self, youngest: u64, room: SpaceLimits) {
        if !room.is_full
            && let Err(error) = self.files.keep(youngest)
        {
            tracing::debug!(%error, "files of deleted ledgers are removed at once");
        }
    }
}

impl ApplyTarget for RocksStore {
    fn applied(&self) -> Result<u64, StoreError> {
        self.with(Db::applied)
    }

    fn ledger(&self, ledger: LedgerId) -> Result<Option<LedgerMeta>, StoreError> {
        self.with(|db| db.ledger(ledger))
    }

    fn apply(&self, commits: &[Committed], applied: u64) -> Result<(), StoreError> {
        self.with(|db| db.apply(commits, applied))
    }
}

impl EntryStore for RocksStore {
    fn read(
        &self,
        range: &ReadRange,
        pending: &BTreeMap<EntryId, AddEntry>,
    ) -> Result<Vec<StoredEntry>, EntryError> {
        self.with(|db| entries::read_range(db, range, pending))
    }

    fn has(
        &self,
        range: &PresenceRange,
        pending: &BTreeSet<EntryId>,
    ) -> Result<Presence, StoreError> {
        self.with(|db| presence::find(db, range, pending))
    }

    fn compare(&self, ledger: LedgerId, add: &AddEntry) -> Result<Stored, StoreError> {
        match self.with(|db| db.entry(ledger, add.entry)) {
            Ok(stored) => Ok(value::compare(ledger, stored.as_deref(), add)),
            Err(StoreError::Damaged(_)) => Ok(Stored::Damaged),
            Err(error) => Err(error),
        }
    }

    fn check(
        &self,
        ledger: LedgerId,
        from: CheckPlace,
        bytes_max: usize,
    ) -> Result<Checked, StoreError> {
        self.with(|db| check::check(db, ledger, from, bytes_max))
    }

    fn hides_end(&self, ledger: LedgerId, entry: EntryId) -> Result<bool, StoreError> {
        self.with(|db| check::hides_end(db, ledger, entry))
    }

    fn last_entry(&self, ledger: LedgerId) -> Result<Option<LastEntry>, StoreError> {
        self.with(|db| db.last_entry(ledger))
    }

    fn ledgers_after(
        &self,
        after: Option<LedgerId>,
        max: usize,
    ) -> Result<LedgersPage, StoreError> {
        self.with(|db| db.ledgers_after(after, max))
    }

    fn persisted(&self) -> Result<u64, StoreError> {
        self.with(Db::persisted)
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.with(Db::flush)
    }

    fn reclaim(&self, deleted: &[LedgerId], room: SpaceLimits) -> Result<usize, StoreError> {
        let mut removing = self.space.lock();
        if !std::mem::replace(&mut removing.is_kept, true) {
            removing.keep(u64::MAX, room);
        }
        let rewrite = room.is_full.then_some(room.bytes);
        let done = self.with(|db| db.reclaim(deleted, rewrite));
        // Each compaction takes its time; what it freed need not wait for the others.
        removing.files.look_on();
        if let Err(error) = self.free(&mut removing, room.is_full) {
            tracing::warn!(%error, "files of deleted ledgers are not removed now");
        }
        done
    }

    fn collect(&self, room: SpaceLimits) -> Result<Collected, StoreError> {
        let mut removing = self.space.lock();
        let keep = |youngest: u64| removing.keep(youngest, room);
        let collected = self.with(|db| db.collect_blobs(room.bytes, keep))?;
        if collected == Collected::Some {
            removing.files.look_on();
        }
        Ok(collected)
    }

    fn merge(&self, room: SpaceLimits) -> Result<Merged, StoreError> {
        if room.is_full {
            return Ok(Merged::NoSpace);
        }
        let mut removing = self.space.lock();
        let mut merging = std::mem::take(&mut removing.merging);
        let keep = |youngest: u64| removing.keep(youngest, room);
        let merged = self.with(|db| db.merge_blobs(room.bytes, &mut merging, keep));
        removing.merging = merging;
        removing.files.look_on();
        merged
    }

    fn release(&self, at_once: bool) -> Result<Option<Duration>, StoreError> {
        let mut removing = self.space.lock();
        removing.is_kept = false;
        self.free(&mut removing, at_once)
    }

    fn leaving_bytes(&self) -> u64 {
        self.leaving_bytes.load(Ordering::Acquire)
    }

    fn value_files(&self) -> Result<ValueFiles, StoreError> {
        self.with(Db::value_files)
    }

    fn pressure(&self) -> Result<Pressure, StoreError> {
        self.with(Db::pressure)
    }

    fn bytes(&self) -> Result<u64, StoreError> {
        self.with(|db| Ok(db.bytes()))
    }

    fn loss(&self) -> Result<Option<Loss>, StoreError> {
        self.with(Db::loss)
    }

    fn set_loss(&self, loss: Option<&Loss>, applied: Option<u64>) -> Result<(), StoreError> {
        self.with(|db| db.set_loss(loss, applied))
    }

    fn scrubbed(&self) -> Result<Option<(LedgerId, EntryId)>, StoreError> {
        self.with(Db::scrubbed)
    }

    fn set_scrubbed(&self, at: (LedgerId, EntryId)) -> Result<(), StoreError> {
        self.with(|db| db.set_scrubbed(at))
    }

    fn find_damage(
        &self,
        known: Option<DamageReport>,
        error: &str,
    ) -> Result<DamageReport, StoreError> {
        self.with(|db| {
            let report = db.look_at_damage(known, Some(error))?;
            db.set_damage(Some(&report))?;
            Ok(report)
        })
    }

    fn reopen(
        &self,
        around_damage: bool,
        replay: &mut dyn FnMut(&dyn ApplyTarget) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.reopen_with(around_damage, |db| replay(db))
    }

    fn cancel(&self) {
        if let Some(db) = &*self.db.read() {
            db.cancel();
        }
    }

    fn close(&self) {
        drop(self.db.write().take());
    }

    #[cfg(test)]
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
