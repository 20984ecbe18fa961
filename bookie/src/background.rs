//! The two background threads: checkpoints (flush RocksDB, trim the journal) and housekeeping
//! (prepare segments, sync the mark, look at free space).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use aquifer_runtime::budget::ByteBudget;
use aquifer_runtime::clock::SharedClock;
use aquifer_runtime::disk::{Disk, RealDisk, SharedDisk};

use crate::apply::ApplyQueue;
use crate::bell::Bell;
use crate::config::BookieConfig;
use crate::journal::commit::BlockPool;
use crate::journal::mark::Mark;
use crate::journal::segments::Segments;
use crate::metrics::BookieMetrics;
use crate::mode::Mode;
use crate::positions::Positions;
use crate::reclaim::Reclaimer;
use crate::reserve::Reserve;
use crate::store::EntryStore;

/// Quiet times that deletions wait for a flush that comes by itself.
const DELETIONS_PATIENCE: u32 = 5;

/// What both threads share.
pub struct Background {
    pub(crate) config: BookieConfig,
    pub(crate) disk: SharedDisk,
    pub(crate) clock: SharedClock,
    pub(crate) store: Arc<dyn EntryStore>,
    pub(crate) segments: Arc<Segments>,
    pub(crate) mark: Arc<Mark>,
    pub(crate) pool: Arc<BlockPool>,
    pub(crate) positions: Arc<Positions>,
    pub(crate) mode: Arc<Mode>,
    pub(crate) metrics: Arc<BookieMetrics>,
    pub(crate) reclaimer: Arc<Reclaimer>,
    pub(crate) reserve: Reserve,
    pub(crate) apply_queue: Arc<ApplyQueue>,
    pub(crate) budgets: [ByteBudget; 2],
    /// Bytes applied since the last look at what is flushed.
    pub(crate) unflushed_bytes: Arc<AtomicUsize>,
    pub(crate) checkpointer: Arc<Bell>,
    pub(crate) housekeeper: Arc<Bell>,
    pub(crate) stopping: AtomicBool,
    pub(crate) flush_at_end: AtomicBool,
}

impl Background {
    /// Ends both threads, with a last checkpoint or without.
    pub fn stop(&self, flush: bool) {
        self.flush_at_end.fetch_or(flush, Ordering::AcqRel);
        self.stopping.store(true, Ordering::Release);
        self.checkpointer.ring();
        self.housekeeper.ring();
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// The thread that flushes.
    pub fn run_checkpoints(&self) {
        let quiet = Duration::from_millis(self.config.quiet_flush_ms);
        let mut applied_before = 0;
        let mut deletions_since = None;
        loop {
            let rang = self.checkpointer.wait(quiet);
            if self.is_stopping() {
                break;
            }
            self.look_at_flushed();
            let applied = self.positions.applied.get();
            // RocksDB flushes full memtables by itself. What it has flushed so far is forced out
            // where the journal has no other room, once nothing has come since the last look, and
            // when deletions have waited for so long that too little comes to fill a memtable.
            let is_quiet = !rang && applied == applied_before;
            let overdue = self.deletions_wait(quiet, &mut deletions_since);
            if is_quiet || overdue || self.segments.is_exhausted() {
                self.checkpoint();
            }
            applied_before = applied;
        }
        if self.flush_at_end.load(Ordering::Acquire) {
            self.checkpoint();
        }
    }

    /// Whether deletions have waited for a flush for long enough.
    fn deletions_wait(&self, quiet: Duration, since: &mut Option<Duration>) -> bool {
        if !self.reclaimer.needs_flush() {
            *since = None;
            return false;
        }
        let now = self.clock.monotonic();
        let patience = if self.mode.is_full() {
            quiet
        } else {
            quiet * DELETIONS_PATIENCE
        };
        let overdue = now.saturating_sub(*since.get_or_insert(now)) >= patience;
        if overdue {
            *since = None;
        }
        overdue
    }

    /// Trims the journal to what RocksDB has flushed by itself.
    fn look_at_flushed(&self) {
        self.unflushed_bytes.store(0, Ordering::Release);
        if let Ok(bytes) = self.store.bytes() {
            self.metrics.store_bytes.record(bytes, &[]);
        }
        match self.store.persisted() {
            Ok(persisted) => {
                self.flushed(persisted);
                self.reclaim();
            }
            Err(error) => tracing::debug!(%error, "how far RocksDB has flushed is not known"),
        }
    }

    /// RocksDB has flushed everything up to a commit.
    fn flushed(&self, commit: u64) {
        if commit > self.positions.flushed.get() {
            self.positions.flushed.advance(commit);
            self.segments.trim(commit);
        }
    }

    pub(crate) fn checkpoint(&self) {
        // Read before the flush begins: everything up to here is in the memtables it takes (H1).
        let applied = self.positions.applied.get();
        if applied <= self.positions.flushed.get() {
            // A process before this one may have left something.
            self.reclaim();
            return;
        }
        self.unflushed_bytes.store(0, Ordering::Release);
        let started = self.clock.monotonic();
        match self.store.flush() {
            Ok(()) => {
                self.flushed(applied);
                let took = self.clock.monotonic().saturating_sub(started);
                self.metrics.flushed(took);
            }
            Err(error) => {
                self.mode.storage_failed(&error.to_string());
                // The applier is the one that recovers.
                self.apply_queue.probe();
            }
        }
        self.reclaim();
    }

    fn reclaim(&self) {
        if !self.is_stopping() {
            let flushed = self.positions.flushed.get();
            self.reclaimer
                .start(flushed, &self.store, &self.mode, &self.metrics);
        }
    }

    /// The thread that keeps house.
    pub fn run_housekeeping(&self) {
        let every = Duration::from_millis(self.config.space_check_ms.min(1_000));
        let mut synced_before = 0;
        while !self.is_stopping() {
            self.look_at_space();
            self.prepare_segment();
            if !self.sync_mark() {
                return;
            }
            let synced = self.positions.synced.get();
            if synced == synced_before {
                self.pool.clear();
                self.make_reserve();
            }
            synced_before = synced;
            self.housekeeper.wait(every);
        }
        self.sync_mark();
    }

    fn sync_mark(&self) -> bool {
        match self.mark.sync() {
            Ok(()) => true,
            Err(error) => {
                let why = format!("the mark of the journal could not be synced: {error}");
                self.mode.fail(&why);
                false
            }
        }
    }

    fn prepare_segment(&self) {
        if !self.segments.needs_spare() {
            return;
        }
        match self.segments.prepare(self.mode.is_full()) {
            Ok(true) => {}
            // All are in use: a flush frees some.
            Ok(false) => self.checkpointer.ring(),
            Err(error) => {
                tracing::debug!(%error, "no further journal segment");
                self.checkpointer.ring();
            }
        }
    }

    /// Uses the reserve when the disk is full.
    fn look_at_reserve(&self) {
        if self.mode.is_full() && self.reserve.give_up_if_needed() {
            // That is room for what waits.
            self.apply_queue.probe();
        }
    }

    /// Makes the reserve when there is room for everything and nothing to do.
    fn make_reserve(&self) {
        let bytes = u64::try_from(self.config.reserve_bytes).unwrap_or(u64::MAX);
        let enough = self.config.writable_above_free_bytes.saturating_add(bytes);
        if self.free().is_some_and(|free| free >= enough)
            && let Err(error) = self.reserve.make()
        {
            tracing::debug!(%error, "no reserve is kept for a full disk");
        }
    }

    /// What is free on the fuller of the two disks.
    fn free(&self) -> Option<u64> {
        [
            (&self.disk, &self.config.journal_dir),
            (&RealDisk::shared(), &self.config.ledger_dir),
        ]
        .into_iter()
        .filter_map(|(disk, path): (&SharedDisk, &PathBuf)| {
            let space = Disk::space(&**disk, path);
            space.ok().map(|space| space.available_bytes)
        })
        .min()
    }

    /// Compares free space with the two marks.
    pub fn look_at_space(&self) {
        let Some(free) = self.free() else { return };
        if free < self.config.read_only_below_free_bytes {
            self.mode.set_full(true);
        } else if free >= self.config.writable_above_free_bytes && self.mode.is_full() {
            self.mode.set_full(false);
            // Whatever a full disk stopped may go on.
            self.apply_queue.probe();
        }
        self.look_at_reserve();
        let (live, _) = self.segments.bytes();
        let in_flight: usize = self.budgets.iter().map(ByteBudget::used_bytes).sum();
        self.metrics
            .in_flight_bytes
            .record(u64::try_from(in_flight).unwrap_or(u64::MAX), &[]);
        self.metrics.free_bytes.record(free, &[]);
        self.metrics.journal_live_bytes.record(live, &[]);
        let writable = self.mode.check().is_ok() && self.mode.check_add().is_ok();
        self.metrics.writable.record(u64::from(writable), &[]);
    }
}
