//! The thread of housekeeping: prepares journal segments, syncs the mark, looks at free space.

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aquifer_runtime::disk::{Disk, DiskSpace, RealDisk, SharedDisk};

use crate::reserve::Reserve;
use crate::shared::Shared;

/// The thread.
pub struct Housekeeper {
    shared: Arc<Shared>,
    reserve: Reserve,
}

impl Housekeeper {
    /// A thread that does not run yet.
    #[must_use]
    pub fn new(shared: &Arc<Shared>) -> Housekeeper {
        Housekeeper {
            reserve: Reserve::new(&shared.config),
            shared: Arc::clone(shared),
        }
    }

    /// What the thread runs.
    pub fn run(&self) {
        let every = Duration::from_millis(self.shared.config.space_check_ms.min(1_000));
        let mut synced_before = 0;
        while !self.shared.ends.is_begun() {
            self.look_at_space();
            if !self.prepare_segment(every) || !self.sync_mark() {
                return;
            }
            let synced = self.shared.progress.synced.get();
            if synced == synced_before {
                self.shared.pool.clear();
                self.make_reserve();
            }
            synced_before = synced;
            self.shared.housekeeper.wait(every);
        }
        self.sync_mark();
    }

    fn sync_mark(&self) -> bool {
        match self.shared.mark.sync() {
            Ok(()) => true,
            Err(error) => {
                let why = format!("the mark of the journal could not be synced: {error}");
                self.shared.mode.fail(&why);
                false
            }
        }
    }

    /// Prepares a journal segment if one is needed. That takes seconds, and the rest goes on
    /// meanwhile: a mark that lags behind for as long would not show what a journal has lost (H4).
    /// Answers whether the mark could be synced.
    fn prepare_segment(&self, every: Duration) -> bool {
        if !self.shared.segments.needs_spare() {
            return true;
        }
        let clock = &self.shared.clock;
        let (last, is_synced) = (Cell::new(clock.monotonic()), Cell::new(true));
        let meanwhile = || {
            let now = clock.monotonic();
            if is_synced.get() && now.saturating_sub(last.get()) >= every {
                last.set(now);
                self.look_at_space();
                is_synced.set(self.sync_mark());
            }
        };
        let disk_is_full = self.shared.mode.is_full();
        match self.shared.segments.prepare(disk_is_full, &meanwhile) {
            Ok(true) => {}
            // All are in use: a flush frees some.
            Ok(false) => self.shared.checkpointer.wake(),
            Err(error) => {
                tracing::debug!(%error, "no further journal segment");
                self.shared.checkpointer.wake();
            }
        }
        is_synced.get()
    }

    /// Uses the reserve when the disk is full.
    fn look_at_reserve(&self) {
        if self.shared.mode.is_full() && self.reserve.give_up_if_needed() {
            // That is room for what waits.
            self.shared.apply_queue.probe();
        }
    }

    /// Makes the reserve when there is room for everything and nothing to do.
    fn make_reserve(&self) {
        let bytes = u64::try_from(self.shared.config.reserve_bytes).unwrap_or(u64::MAX);
        let enough = self
            .shared
            .config
            .writable_above_free_bytes
            .saturating_add(bytes);
        if self
            .room()
            .is_some_and(|room| room.available_bytes >= enough)
            && let Err(error) = self.reserve.make()
        {
            tracing::debug!(%error, "no space is reserved for a full disk");
        }
    }

    /// The room of the fuller of the two disks.
    fn room(&self) -> Option<DiskSpace> {
        [
            (&self.shared.disk, &self.shared.config.journal_dir),
            (&RealDisk::shared(), &self.shared.config.ledger_dir),
        ]
        .into_iter()
        .filter_map(|(disk, path): (&SharedDisk, &PathBuf)| Disk::space(&**disk, path).ok())
        .min_by_key(|space| space.available_bytes)
    }

    /// Compares free space with the two marks.
    pub fn look_at_space(&self) {
        let Some(room) = self.room() else { return };
        let free = room.available_bytes;
        if free < self.shared.config.read_only_below_free_bytes {
            self.shared.mode.set_full(true);
        } else if free >= self.shared.config.writable_above_free_bytes && self.shared.mode.is_full()
        {
            self.shared.mode.set_full(false);
            // Whatever a full disk stopped may go on.
            self.shared.apply_queue.probe();
        }
        self.look_at_reserve();
        let (live, _) = self.shared.segments.bytes();
        let in_flight = self.shared.bytes_in_flight();
        self.shared.metrics.in_flight_bytes.record(in_flight, &[]);
        self.shared.metrics.free_bytes.record(free, &[]);
        self.shared.metrics.disk_bytes.record(room.total_bytes, &[]);
        self.shared.metrics.journal_live_bytes.record(live, &[]);
        let writable = self.shared.mode.check().is_ok() && self.shared.mode.check_add().is_ok();
        self.shared
            .metrics
            .writable
            .record(u64::from(writable), &[]);
    }
}
