//! Gives the space of deleted ledgers back, in the background and a few ledgers at a time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aquifer_model::id::LedgerId;
use aquifer_runtime::task::spawn_thread;
use parking_lot::Mutex;

use crate::bell::Bell;
use crate::metrics::BookieMetrics;
use crate::mode::Mode;
use crate::store::removal::PacedRemoval;
use crate::store::{Db, Store};

/// The pause after the file system has refused.
const AFTER_ERROR: Duration = Duration::from_secs(1);

/// Deleted ledgers whose space is to be reclaimed. Forgetting one at a restart costs space until
/// compaction comes by, nothing else.
#[derive(Debug)]
pub struct Reclaimer {
    waiting: Mutex<BTreeSet<LedgerId>>,
    /// A flush has taken their deletions to RocksDB's files.
    due: AtomicBool,
    /// Of the thread that runs; nobody else uses it.
    removal: Mutex<PacedRemoval>,
    running: AtomicBool,
    stopping: AtomicBool,
    stop: Bell,
}

impl Reclaimer {
    /// A reclaimer of files that are removed as `removal` has it.
    #[must_use]
    pub fn new(removal: PacedRemoval) -> Reclaimer {
        Reclaimer {
            waiting: Mutex::default(),
            due: AtomicBool::default(),
            removal: Mutex::new(removal),
            running: AtomicBool::default(),
            stopping: AtomicBool::default(),
            stop: Bell::default(),
        }
    }

    /// A ledger was deleted.
    pub fn add(&self, ledger: LedgerId) {
        self.waiting.lock().insert(ledger);
    }

    /// Starts no further compaction.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.stop.ring();
    }

    /// RocksDB was flushed, or nothing is there to flush: reclaims on a thread of its own, unless
    /// there is nothing to reclaim.
    pub fn start(
        self: &Arc<Self>,
        store: &Arc<Store>,
        mode: &Arc<Mode>,
        metrics: &Arc<BookieMetrics>,
    ) {
        let is_due = !self.waiting.lock().is_empty();
        if is_due {
            self.due.store(true, Ordering::Release);
        }
        if self.running.swap(true, Ordering::AcqRel) {
            return;
        }
        if !is_due && self.removal.lock().is_empty() {
            self.running.store(false, Ordering::Release);
            return;
        }
        let reclaimer = Arc::clone(self);
        let (store, mode, metrics) = (Arc::clone(store), Arc::clone(mode), Arc::clone(metrics));
        let started = spawn_thread("bookie-reclaim", move || {
            loop {
                reclaimer.run(&store, &mode, &metrics);
                reclaimer.running.store(false, Ordering::Release);
                // Who saw it running a moment ago left the work to this thread.
                let is_due = reclaimer.due.load(Ordering::Acquire) && !reclaimer.is_stopping();
                if !is_due || reclaimer.running.swap(true, Ordering::AcqRel) {
                    return;
                }
            }
        });
        if let Err(error) = started {
            tracing::warn!(%error, "space of deleted ledgers is not reclaimed now");
            self.running.store(false, Ordering::Release);
        }
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn run(&self, store: &Store, mode: &Mode, metrics: &BookieMetrics) {
        let mut removal = self.removal.lock();
        let mut collect = false;
        while !self.is_stopping() {
            if self.due.swap(false, Ordering::AcqRel) {
                self.reclaim(store, mode, metrics, &mut removal);
                collect = true;
            }
            let pause = step(&mut removal, mode, metrics);
            // Rewriting needs space before it gives some back, so what is free comes back first.
            if collect && removal.bytes() == 0 {
                collect = false;
                self.collect(store, mode);
                continue;
            }
            match pause {
                None if self.due.load(Ordering::Acquire) => {}
                None => return,
                Some(pause) => _ = self.stop.wait(pause),
            }
        }
    }

    fn reclaim(
        &self,
        store: &Store,
        mode: &Mode,
        metrics: &BookieMetrics,
        removal: &mut PacedRemoval,
    ) {
        // A full disk needs the space at once.
        if !mode.is_full()
            && let Err(error) = removal.keep()
        {
            tracing::debug!(%error, "files of deleted ledgers are removed at once");
        }
        while let Some(ledger) = self.next() {
            if let Err(error) = store.with(|db| db.reclaim(ledger)) {
                tracing::warn!(%ledger, %error, "space of a deleted ledger is not reclaimed");
            }
            // Each compaction takes its time; what it freed need not wait for the others.
            removal.look_on();
            step(removal, mode, metrics);
        }
    }

    fn collect(&self, store: &Store, mode: &Mode) {
        if !self.is_stopping()
            && !mode.is_full()
            && let Err(error) = store.with(Db::collect_blobs)
        {
            tracing::warn!(%error, "garbage in blob files is not collected");
        }
    }

    fn next(&self) -> Option<LedgerId> {
        if self.is_stopping() {
            return None;
        }
        self.waiting.lock().pop_first()
    }
}

/// Frees a little of what was removed. Returns how long to wait before the next time, `None` when
/// nothing is left.
fn step(removal: &mut PacedRemoval, mode: &Mode, metrics: &BookieMetrics) -> Option<Duration> {
    let pause = removal.step(mode.is_full()).unwrap_or_else(|error| {
        tracing::warn!(%error, "files of deleted ledgers are not removed now");
        Some(AFTER_ERROR)
    });
    metrics.removing_bytes.record(removal.bytes(), &[]);
    pause
}
