//! The thread of checkpoints: makes the store flush and trims the journal to what is durable.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::reclaim::Reclaimer;
use crate::shared::Shared;

/// Quiet times that deletions wait for a flush that comes by itself.
const DELETIONS_PATIENCE: u32 = 5;

/// The thread.
pub struct Checkpointer {
    shared: Arc<Shared>,
    reclaimer: Arc<Reclaimer>,
}

impl Checkpointer {
    /// A thread that does not run yet.
    #[must_use]
    pub fn new(shared: &Arc<Shared>, reclaimer: &Arc<Reclaimer>) -> Checkpointer {
        Checkpointer {
            shared: Arc::clone(shared),
            reclaimer: Arc::clone(reclaimer),
        }
    }

    /// The thread that flushes.
    pub fn run(&self) {
        let quiet = Duration::from_millis(self.shared.config.quiet_flush_ms);
        let mut applied_before = 0;
        let mut deletions_since = None;
        loop {
            let rang = self.shared.checkpointer.wait(quiet);
            if self.shared.ends.is_begun() {
                break;
            }
            self.look_at_flushed();
            let applied = self.shared.progress.applied.get();
            // The store flushes by itself what is full. What it has applied so far is forced out
            // where the journal has no other room, once nothing has come since the last look, and
            // when deletions have waited and too little comes to fill a memtable.
            let is_quiet = !rang && applied == applied_before;
            let overdue = self.deletions_wait(quiet, &mut deletions_since);
            if is_quiet || overdue || self.shared.segments.is_exhausted() {
                self.checkpoint();
            }
            applied_before = applied;
        }
        if self.shared.ends.with_flush() {
            self.checkpoint();
        }
    }

    /// Whether deletions have waited for a flush for long enough.
    fn deletions_wait(&self, quiet: Duration, since: &mut Option<Duration>) -> bool {
        let flushed = self.shared.progress.flushed.get();
        if !self.shared.deletions.needs_flush(flushed) {
            *since = None;
            return false;
        }
        let now = self.shared.clock.monotonic();
        let patience = if self.shared.mode.is_full() {
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

    /// Trims the journal to what the store has flushed by itself.
    fn look_at_flushed(&self) {
        self.shared.unflushed_bytes.store(0, Ordering::Release);
        if let Ok(bytes) = self.shared.store.bytes() {
            self.shared.metrics.store_bytes.record(bytes, &[]);
        }
        if let Ok(files) = self.shared.store.value_files() {
            self.shared.metrics.blob_files(files.count, files.bytes);
        }
        match self.shared.store.pressure() {
            Ok(pressure) => self.shared.metrics.pressure(pressure),
            Err(error) => tracing::debug!(%error, "how far the store holds writes up is unknown"),
        }
        match self.shared.store.persisted() {
            Ok(persisted) => {
                self.flushed(persisted);
                self.reclaim();
            }
            Err(error) => tracing::debug!(%error, "how far the store has flushed is not known"),
        }
    }

    /// The store has flushed everything up to a commit.
    fn flushed(&self, commit: u64) {
        if commit > self.shared.progress.flushed.get() {
            self.shared.progress.flushed.advance(commit);
            self.shared.segments.trim(commit);
        }
    }

    /// Flushes the store, trims the journal, and begins to reclaim space.
    pub fn checkpoint(&self) {
        // Read before the flush begins: everything up to here is in the memtables it takes (H1).
        let applied = self.shared.progress.applied.get();
        if applied <= self.shared.progress.flushed.get() {
            // A process before this one may have left something.
            self.reclaim();
            return;
        }
        self.shared.unflushed_bytes.store(0, Ordering::Release);
        let started = self.shared.clock.monotonic();
        match self.shared.store.flush() {
            Ok(()) => {
                self.flushed(applied);
                let took = self.shared.clock.monotonic().saturating_sub(started);
                self.shared.metrics.flushed(took);
            }
            Err(error) => {
                self.shared.mode.storage_failed(&error.to_string());
                // The applier is the one that recovers.
                self.shared.apply_queue.probe();
            }
        }
        self.reclaim();
    }

    fn reclaim(&self) {
        if !self.shared.ends.is_begun() {
            self.reclaimer.start();
        }
    }
}
