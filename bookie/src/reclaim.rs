//! Gives the space of deleted ledgers back, in the background and a few ledgers at a time.
//!
//! A ledger's turn comes when the commit of its deletion is durable in the store, however much else
//! is written meanwhile. On a full disk it is done within the room that is left.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use aquifer_model::id::LedgerId;
use aquifer_runtime::disk::{Disk, RealDisk};
use aquifer_runtime::task::spawn_vital_thread;
use parking_lot::Mutex;

use crate::bell::Bell;
use crate::metrics::BookieMetrics;
use crate::mode::Mode;
use crate::store::{Collected, EntryStore, Room};

/// The pause after the file system has refused.
const AFTER_ERROR: Duration = Duration::from_secs(1);
/// The pause after there was no room for rewriting.
const AFTER_NO_ROOM: Duration = Duration::from_secs(5);
/// The ledgers that are looked at together.
const LEDGERS_MAX: usize = 1_024;
/// The share of free space that rewriting may take at a time.
const ROOM_SHARE: u64 = 4;

/// Deleted ledgers whose space is to be reclaimed. Forgetting one at a restart costs space until
/// compaction comes by, nothing else.
#[derive(Debug)]
pub struct Reclaimer {
    /// With the commit of each one's deletion.
    waiting: Mutex<BTreeMap<LedgerId, u64>>,
    /// The last commit that is durable in the store.
    flushed: AtomicU64,
    /// There may be garbage in shared files; also in those that a process before this one left.
    collect: AtomicBool,
    /// The file system whose room counts.
    directory: PathBuf,
    running: AtomicBool,
    stopping: AtomicBool,
    stop: Bell,
    /// The last thread that ran.
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Reclaimer {
    /// A reclaimer of files in `directory`.
    #[must_use]
    pub fn new(directory: PathBuf) -> Reclaimer {
        Reclaimer {
            waiting: Mutex::default(),
            flushed: AtomicU64::new(0),
            collect: AtomicBool::new(true),
            directory,
            running: AtomicBool::default(),
            stopping: AtomicBool::default(),
            stop: Bell::default(),
            thread: Mutex::default(),
        }
    }

    /// A ledger was deleted with this commit.
    pub fn add(&self, ledger: LedgerId, commit: u64) {
        self.waiting.lock().insert(ledger, commit);
    }

    /// Whether a deletion waits for a flush.
    pub fn needs_flush(&self) -> bool {
        let flushed = self.flushed.load(Ordering::Acquire);
        self.waiting.lock().values().any(|commit| *commit > flushed)
    }

    /// Starts no further compaction.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.stop.ring();
    }

    /// The store has everything up to this commit durably: reclaims on a thread of its own, unless
    /// there is nothing to reclaim.
    pub fn start(
        self: &Arc<Self>,
        flushed: u64,
        store: &Arc<dyn EntryStore>,
        mode: &Arc<Mode>,
        metrics: &Arc<BookieMetrics>,
    ) {
        self.flushed.fetch_max(flushed, Ordering::AcqRel);
        if self.running.swap(true, Ordering::AcqRel) {
            return;
        }
        // The thread ends only when nothing is left to be released, and the first one collects.
        if !self.is_due() && !self.collect.load(Ordering::Acquire) {
            self.running.store(false, Ordering::Release);
            return;
        }
        let reclaimer = Arc::clone(self);
        let (store, mode, metrics) = (Arc::clone(store), Arc::clone(mode), Arc::clone(metrics));
        let failing = Arc::clone(&mode);
        let on_panic = move |why: &str| failing.fail(why);
        let body = move || {
            loop {
                reclaimer.run(&*store, &mode, &metrics);
                reclaimer.running.store(false, Ordering::Release);
                // Who saw it running a moment ago left the work to this thread.
                let is_due = reclaimer.is_due() && !reclaimer.is_stopping();
                if !is_due || reclaimer.running.swap(true, Ordering::AcqRel) {
                    return;
                }
            }
        };
        // One thread at a time runs, so the one before has nothing left to do but to end.
        let before = self.take_thread();
        if before.is_some_and(|thread| thread.join().is_err()) {
            tracing::warn!("the thread that reclaims space had panicked");
        }
        match spawn_vital_thread("bookie-reclaim", body, on_panic) {
            Ok(thread) => *self.thread.lock() = Some(thread),
            Err(error) => {
                tracing::warn!(%error, "space of deleted ledgers is not reclaimed now");
                self.running.store(false, Ordering::Release);
            }
        }
    }

    /// The thread that ran last, to be joined.
    pub fn take_thread(&self) -> Option<JoinHandle<()>> {
        self.thread.lock().take()
    }

    /// Whether a flush has made a deletion durable.
    fn is_due(&self) -> bool {
        let flushed = self.flushed.load(Ordering::Acquire);
        self.waiting
            .lock()
            .values()
            .any(|commit| *commit <= flushed)
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn run(&self, store: &dyn EntryStore, mode: &Mode, metrics: &BookieMetrics) {
        while !self.is_stopping() {
            if self.is_due() {
                self.reclaim(store, mode, metrics);
                self.collect.store(true, Ordering::Release);
            }
            let pause = release(store, mode, metrics);
            // Rewriting needs space before it gives some back, so what is free comes back first.
            if self.collect.load(Ordering::Acquire)
                && store.leaving_bytes() == 0
                && self.collect(store, mode)
            {
                continue;
            }
            match pause {
                None if self.is_due() => {}
                None => return,
                Some(pause) => _ = self.stop.wait(pause),
            }
        }
    }

    fn reclaim(&self, store: &dyn EntryStore, mode: &Mode, metrics: &BookieMetrics) {
        loop {
            let ledgers = self.next();
            if ledgers.is_empty() {
                return;
            }
            let count = match store.reclaim(&ledgers, self.room(mode)) {
                Ok(count) => count.max(1),
                Err(error) => {
                    let ledger = ledgers[0];
                    tracing::warn!(%ledger, %error, "space of a deleted ledger is not reclaimed");
                    1
                }
            };
            let mut waiting = self.waiting.lock();
            ledgers
                .iter()
                .take(count)
                .for_each(|ledger| _ = waiting.remove(ledger));
            drop(waiting);
            metrics.removing_bytes.record(store.leaving_bytes(), &[]);
        }
    }

    /// Collects a little of the garbage in shared files. Whether there may be more at once.
    fn collect(&self, store: &dyn EntryStore, mode: &Mode) -> bool {
        match store.collect(self.room(mode)) {
            Ok(Collected::Some) => true,
            Ok(Collected::Nothing) => {
                self.collect.store(false, Ordering::Release);
                false
            }
            // It stays due: the next start of this thread tries again.
            Ok(Collected::NoRoom) => {
                self.stop.wait(AFTER_NO_ROOM);
                false
            }
            Err(error) => {
                tracing::warn!(%error, "garbage in shared files is not collected now");
                self.stop.wait(AFTER_NO_ROOM);
                false
            }
        }
    }

    /// What a rewrite may take: what is free must last for everything else, too.
    fn room(&self, mode: &Mode) -> Room {
        let space = Disk::space(&RealDisk, &self.directory);
        Room {
            is_full: mode.is_full(),
            bytes: space.map_or(0, |space| space.available_bytes / ROOM_SHARE),
        }
    }

    /// Ledgers whose turn it is, in order.
    fn next(&self) -> Vec<LedgerId> {
        if self.is_stopping() {
            return Vec::new();
        }
        let flushed = self.flushed.load(Ordering::Acquire);
        let waiting = self.waiting.lock();
        let due = waiting.iter().filter(|(_, commit)| **commit <= flushed);
        due.map(|(ledger, _)| *ledger).take(LEDGERS_MAX).collect()
    }
}

/// Frees a little of what was removed. Returns how long to wait before the next time, `None` when
/// nothing is left.
fn release(store: &dyn EntryStore, mode: &Mode, metrics: &BookieMetrics) -> Option<Duration> {
    let pause = store.release(mode.is_full()).unwrap_or_else(|error| {
        tracing::warn!(%error, "files of deleted ledgers are not removed now");
        Some(AFTER_ERROR)
    });
    metrics.removing_bytes.record(store.leaving_bytes(), &[]);
    pause
}
