//! Gives the space of deleted ledgers back, in the background and a few ledgers at a time.
//!
//! A ledger's turn comes when the commit of its deletion is in RocksDB's files, however much else
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
use crate::store::Store;
use crate::store::removal::PacedRemoval;
use crate::store::space::Collected;

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
    /// The last commit that is in RocksDB's files.
    flushed: AtomicU64,
    /// There may be garbage in shared files; also in those that a process before this one left.
    collect: AtomicBool,
    /// The file system whose room counts.
    directory: PathBuf,
    /// Of the thread that runs; nobody else uses it.
    removal: Mutex<PacedRemoval>,
    running: AtomicBool,
    stopping: AtomicBool,
    stop: Bell,
    /// The last thread that ran.
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Reclaimer {
    /// A reclaimer of files in `directory` that are removed as `removal` has it.
    #[must_use]
    pub fn new(directory: PathBuf, removal: PacedRemoval) -> Reclaimer {
        Reclaimer {
            waiting: Mutex::default(),
            flushed: AtomicU64::new(0),
            collect: AtomicBool::new(true),
            directory,
            removal: Mutex::new(removal),
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

    /// RocksDB's files have everything up to this commit: reclaims on a thread of its own, unless
    /// there is nothing to reclaim.
    pub fn start(
        self: &Arc<Self>,
        flushed: u64,
        store: &Arc<Store>,
        mode: &Arc<Mode>,
        metrics: &Arc<BookieMetrics>,
    ) {
        self.flushed.fetch_max(flushed, Ordering::AcqRel);
        if self.running.swap(true, Ordering::AcqRel) {
            return;
        }
        let collect = self.collect.load(Ordering::Acquire);
        if !self.is_due() && !collect && self.removal.lock().is_empty() {
            self.running.store(false, Ordering::Release);
            return;
        }
        let reclaimer = Arc::clone(self);
        let (store, mode, metrics) = (Arc::clone(store), Arc::clone(mode), Arc::clone(metrics));
        let failing = Arc::clone(&mode);
        let on_panic = move |why: &str| failing.fail(why);
        let body = move || {
            loop {
                reclaimer.run(&store, &mode, &metrics);
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

    /// Whether a flush has taken a deletion to RocksDB's files.
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

    fn run(&self, store: &Store, mode: &Mode, metrics: &BookieMetrics) {
        let mut removal = self.removal.lock();
        while !self.is_stopping() {
            if self.is_due() {
                self.reclaim(store, mode, metrics, &mut removal);
                self.collect.store(true, Ordering::Release);
            }
            let pause = step(&mut removal, mode, metrics);
            // Rewriting needs space before it gives some back, so what is free comes back first.
            if self.collect.load(Ordering::Acquire)
                && removal.bytes() == 0
                && self.collect(store, mode, &mut removal)
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

    fn reclaim(
        &self,
        store: &Store,
        mode: &Mode,
        metrics: &BookieMetrics,
        removal: &mut PacedRemoval,
    ) {
        keep(removal, mode);
        loop {
            let ledgers = self.next();
            if ledgers.is_empty() {
                return;
            }
            let room = mode.is_full().then(|| self.room());
            let done = store.with(|db| db.reclaim(&ledgers, room));
            let count = match done {
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
            // Each compaction takes its time; what it freed need not wait for the others.
            removal.look_on();
            step(removal, mode, metrics);
        }
    }

    /// Collects a little of the garbage in shared files. Whether there may be more at once.
    fn collect(&self, store: &Store, mode: &Mode, removal: &mut PacedRemoval) -> bool {
        let collected = store.with(|db| db.collect_blobs(self.room(), || keep(removal, mode)));
        match collected {
            Ok(Collected::Some) => {
                removal.look_on();
                true
            }
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
                tracing::warn!(%error, "garbage in blob files is not collected now");
                self.stop.wait(AFTER_NO_ROOM);
                false
            }
        }
    }

    /// Bytes that a rewrite may take: what is free must last for everything else, too.
    fn room(&self) -> u64 {
        let space = Disk::space(&RealDisk, &self.directory);
        space.map_or(0, |space| space.available_bytes / ROOM_SHARE)
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

/// Gives files second names, so that they go little by little. A full disk needs the space at once.
fn keep(removal: &mut PacedRemoval, mode: &Mode) {
    if !mode.is_full()
        && let Err(error) = removal.keep()
    {
        tracing::debug!(%error, "files of deleted ledgers are removed at once");
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
