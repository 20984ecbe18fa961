//! Gives the space of deleted ledgers back, in the background and a few ledgers at a time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aquifer_model::id::LedgerId;
use aquifer_runtime::task::spawn_thread;
use parking_lot::Mutex;

use crate::mode::Mode;
use crate::store::{Db, Store};

/// Deleted ledgers whose space is to be reclaimed. Forgetting one at a restart costs space until
/// compaction comes by, nothing else.
#[derive(Debug, Default)]
pub struct Reclaimer {
    waiting: Mutex<BTreeSet<LedgerId>>,
    running: AtomicBool,
    stopping: AtomicBool,
}

impl Reclaimer {
    /// A ledger was deleted.
    pub fn add(&self, ledger: LedgerId) {
        self.waiting.lock().insert(ledger);
    }

    /// Starts no further compaction.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Reclaims on a thread of its own, unless there is nothing or one runs already.
    pub fn start(self: &Arc<Self>, store: &Arc<Store>, mode: &Arc<Mode>) {
        if self.waiting.lock().is_empty() || self.running.swap(true, Ordering::AcqRel) {
            return;
        }
        let (reclaimer, store, mode) = (Arc::clone(self), Arc::clone(store), Arc::clone(mode));
        let started = spawn_thread("bookie-reclaim", move || {
            reclaimer.run(&store, &mode);
            reclaimer.running.store(false, Ordering::Release);
        });
        if let Err(error) = started {
            tracing::warn!(%error, "space of deleted ledgers is not reclaimed now");
            self.running.store(false, Ordering::Release);
        }
    }

    fn run(&self, store: &Store, mode: &Mode) {
        while let Some(ledger) = self.next() {
            if let Err(error) = store.with(|db| db.reclaim(ledger)) {
                tracing::warn!(%ledger, %error, "space of a deleted ledger is not reclaimed");
            }
        }
        // Rewriting needs space before it gives some back.
        if !self.stopping.load(Ordering::Acquire)
            && !mode.is_full()
            && let Err(error) = store.with(Db::collect_blobs)
        {
            tracing::warn!(%error, "garbage in blob files is not collected");
        }
    }

    fn next(&self) -> Option<LedgerId> {
        if self.stopping.load(Ordering::Acquire) {
            return None;
        }
        self.waiting.lock().pop_first()
    }
}
