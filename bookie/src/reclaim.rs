//! Gives the space of deleted ledgers back, in the background and a few ledgers at a time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aquifer_model::id::LedgerId;
use aquifer_runtime::task::spawn_thread;
use parking_lot::Mutex;

use crate::store::Store;

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
    pub fn start(self: &Arc<Self>, store: &Arc<Store>) {
        if self.waiting.lock().is_empty() || self.running.swap(true, Ordering::AcqRel) {
            return;
        }
        let (reclaimer, store) = (Arc::clone(self), Arc::clone(store));
        let started = spawn_thread("bookie-reclaim", move || {
            reclaimer.run(&store);
            reclaimer.running.store(false, Ordering::Release);
        });
        if let Err(error) = started {
            tracing::warn!(%error, "space of deleted ledgers is not reclaimed now");
            self.running.store(false, Ordering::Release);
        }
    }

    fn run(&self, store: &Store) {
        while !self.stopping.load(Ordering::Acquire) {
            let Some(ledger) = self.waiting.lock().pop_first() else {
                return;
            };
            if let Err(error) = store.with(|db| db.reclaim(ledger)) {
                tracing::warn!(%ledger, %error, "space of a deleted ledger is not reclaimed");
            }
        }
    }
}
