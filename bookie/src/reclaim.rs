//! Gives the space of deleted ledgers back, in the background and a few ledgers at a time.
//!
//! A ledger's turn comes when the commit of its deletion is durable in the store, however much else
//! is written meanwhile. On a full disk it is done within the room that is left. The same thread
//! merges small files of values.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use aquifer_model::id::LedgerId;
use aquifer_runtime::disk::{Disk, RealDisk};
use aquifer_runtime::task::spawn_vital_thread;
use parking_lot::Mutex;

use crate::shared::Shared;
use crate::store::{Collected, Merged, SpaceLimits};
use crate::wakeup::Wakeup;

/// The pause after the file system has refused.
const AFTER_ERROR: Duration = Duration::from_secs(1);
/// The pause after there was no room for rewriting.
const AFTER_NO_SPACE: Duration = Duration::from_secs(5);
/// The pause after a step that merged nothing.
const AFTER_NO_MERGE: Duration = Duration::from_secs(10);
/// The ledgers that are looked at together.
const LEDGERS_MAX: usize = 1_024;
/// The share of free space that rewriting may take at a time.
const SPACE_SHARE: u64 = 4;

/// The thread that reclaims space; it exists only while there is something to do.
pub struct Reclaimer {
    shared: Arc<Shared>,
    /// There may be garbage in shared files; also in those that a process before this one left.
    collect: AtomicBool,
    /// Not before this time are small files merged again.
    merge_after: Mutex<Duration>,
    running: AtomicBool,
    stopping: AtomicBool,
    stop: Wakeup,
    /// The last thread that ran.
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Reclaimer {
    /// A reclaimer that does not run.
    #[must_use]
    pub fn new(shared: &Arc<Shared>) -> Reclaimer {
        Reclaimer {
            shared: Arc::clone(shared),
            collect: AtomicBool::new(true),
            merge_after: Mutex::default(),
            running: AtomicBool::default(),
            stopping: AtomicBool::default(),
            stop: Wakeup::default(),
            thread: Mutex::default(),
        }
    }

    /// Starts no further compaction.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.stop.wake();
    }

    /// More is durable now: reclaims on a thread of its own, unless there is nothing to reclaim.
    pub fn start(self: &Arc<Self>) {
        if self.running.swap(true, Ordering::AcqRel) {
            return;
        }
        // The thread ends only when nothing is left to be released, and the first one collects.
        let is_due = self.is_due() || self.collect.load(Ordering::Acquire);
        if !is_due && !self.is_merge_due() {
            self.running.store(false, Ordering::Release);
            return;
        }
        let reclaimer = Arc::clone(self);
        let failing = Arc::clone(&self.shared);
        let on_panic = move |why: &str| failing.mode.fail(why);
        let body = move || {
            loop {
                reclaimer.run();
                reclaimer.running.store(false, Ordering::Release);
                // A caller that saw it running a moment ago left the work to this thread.
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
        let flushed = self.shared.progress.flushed.get();
        self.shared.deletions.is_due(flushed)
    }

    /// Whether there are too many files of values, and the last step is paid for.
    fn is_merge_due(&self) -> bool {
        let shared = &self.shared;
        if shared.config.merge_bytes_per_second == 0
            || shared.mode.is_full()
            || shared.clock.monotonic() < *self.merge_after.lock()
        {
            return false;
        }
        let files = shared.store.value_files();
        files.is_ok_and(|files| files.count > shared.config.blob_files_left(files.bytes))
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn run(&self) {
        while !self.is_stopping() {
            if self.is_due() {
                self.reclaim();
                self.collect.store(true, Ordering::Release);
            }
            let mut pause = self.release();
            // Rewriting needs space before it gives some back, so what is free comes back first.
            if self.collect.load(Ordering::Acquire) && self.shared.store.leaving_bytes() == 0 {
                if self.collect() {
                    continue;
                }
                // A step that changed nothing has given names to the files all the same, and a
                // file with a second name does not give its space back.
                pause = self.release();
            }
            if self.shared.store.leaving_bytes() == 0 && self.is_merge_due() {
                self.merge();
                continue;
            }
            match pause {
                None if self.is_due() => {}
                None => return,
                Some(pause) => _ = self.stop.wait(pause),
            }
        }
    }

    fn reclaim(&self) {
        loop {
            let ledgers = self.next();
            if ledgers.is_empty() {
                return;
            }
            let count = match self.shared.store.reclaim(&ledgers, self.space_limits()) {
                Ok(count) => count.max(1),
                Err(error) => {
                    let ledger = ledgers[0];
                    tracing::warn!(%ledger, %error, "space of a deleted ledger is not reclaimed");
                    1
                }
            };
            let done = ledgers.get(..count).unwrap_or(&ledgers);
            self.shared.deletions.done(done);
            self.count_leaving();
        }
    }

    /// Collects a little of the garbage in shared files. Whether there may be more at once.
    fn collect(&self) -> bool {
        match self.shared.store.collect(self.space_limits()) {
            Ok(Collected::Some) => true,
            Ok(Collected::Nothing) => {
                self.collect.store(false, Ordering::Release);
                false
            }
            // It stays due: the next start of this thread tries again.
            Ok(Collected::NoSpace) => {
                self.stop.wait(AFTER_NO_SPACE);
                false
            }
            Err(error) => {
                tracing::warn!(%error, "garbage in shared files is not collected now");
                self.stop.wait(AFTER_NO_SPACE);
                false
            }
        }
    }

    /// Merges a few small files, and lets as much time pass as the rate says.
    fn merge(&self) {
        let rate = self.shared.config.merge_bytes_per_second.max(1);
        let paid_for = |bytes: u64| Duration::from_millis(bytes.saturating_mul(1_000) / rate);
        let pause = match self.shared.store.merge(self.space_limits()) {
            Ok(Merged::Some { files, bytes }) => {
                self.shared.metrics.merged(files, bytes);
                // What a file keeps that could not go may be worth a rewrite; of a merge that is
                // not at its end the next step takes it.
                if files > 0 {
                    self.collect.store(true, Ordering::Release);
                }
                paid_for(bytes)
            }
            Ok(Merged::Checked { bytes }) => paid_for(bytes),
            Ok(Merged::Nothing) => AFTER_NO_MERGE,
            // The steps before may have left garbage in files that now stay.
            Ok(Merged::NoSpace) => {
                self.collect.store(true, Ordering::Release);
                AFTER_NO_MERGE
            }
            Err(error) => {
                tracing::warn!(%error, "small files of the ledger store are not merged now");
                AFTER_NO_MERGE
            }
        };
        let now = self.shared.clock.monotonic();
        *self.merge_after.lock() = now.saturating_add(pause);
    }

    /// What a rewrite may take: what is free must last for everything else, too.
    fn space_limits(&self) -> SpaceLimits {
        let space = Disk::space(&RealDisk, &self.shared.config.ledger_dir);
        SpaceLimits {
            is_full: self.shared.mode.is_full(),
            bytes: space.map_or(0, |space| space.available_bytes / SPACE_SHARE),
        }
    }

    /// Ledgers whose turn it is, in order.
    fn next(&self) -> Vec<LedgerId> {
        if self.is_stopping() {
            return Vec::new();
        }
        let flushed = self.shared.progress.flushed.get();
        self.shared.deletions.due(flushed, LEDGERS_MAX)
    }

    /// Frees a little of what was removed. Returns how long to wait before the next time, `None`
    /// when nothing is left.
    fn release(&self) -> Option<Duration> {
        let released = self.shared.store.release(self.shared.mode.is_full());
        let pause = released.unwrap_or_else(|error| {
            tracing::warn!(%error, "files of deleted ledgers are not removed now");
            Some(AFTER_ERROR)
        });
        self.count_leaving();
        pause
    }

    fn count_leaving(&self) {
        let bytes = self.shared.store.leaving_bytes();
        self.shared.metrics.removing_bytes.record(bytes, &[]);
    }
}
