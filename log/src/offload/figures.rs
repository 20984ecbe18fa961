//! What of a process is behind its policies of offload, and what of objects is under way: sums,
//! whatever the number of topics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::offload::tier::ColdTier;

/// Ledgers that policy wants to have in objects, and are not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Behind {
    /// How many.
    pub ledgers: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those that are due for very long: four times what the policy says.
    pub late: u64,
    /// Since when the first of them is due by its age, in ms since 1970; 0: none is.
    pub since_ms: u64,
}

impl Behind {
    /// One more ledger, which is due by its age since `since_ms`, or not by its age.
    pub fn add(&mut self, bytes: u64, since_ms: Option<u64>, is_late: bool) {
        *self = self.and(Behind {
            ledgers: 1,
            bytes,
            late: u64::from(is_late),
            since_ms: since_ms.unwrap_or(0),
        });
    }

    /// Both together.
    #[must_use]
    pub fn and(self, other: Behind) -> Behind {
        let since_ms = match (self.since_ms, other.since_ms) {
            (0, ms) | (ms, 0) => ms,
            (one, two) => one.min(two),
        };
        Behind {
            ledgers: self.ledgers.saturating_add(other.ledgers),
            bytes: self.bytes.saturating_add(other.bytes),
            late: self.late.saturating_add(other.late),
            since_ms,
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Figures {
    /// Of each log that is open and behind.
    logs: Mutex<BTreeMap<u64, Behind>>,
    /// Of topics that are not loaded, as of the last walk over them.
    unloaded: Mutex<Behind>,
    next: AtomicU64,
    planned: AtomicU64,
    dying: AtomicU64,
    /// Ledgers that are left to offloaders, and since when the oldest of them is, in ms since 1970.
    tasks: AtomicU64,
    tasks_since_ms: AtomicU64,
}

impl Figures {
    /// What is due, of all topics.
    #[must_use]
    pub fn behind(&self) -> Behind {
        let unloaded = *self.unloaded.lock();
        let logs = self.logs.lock();
        logs.values().fold(unloaded, |all, one| all.and(*one))
    }

    /// What was found to be due of topics that are not loaded.
    pub fn set_unloaded(&self, behind: Behind) {
        *self.unloaded.lock() = behind;
    }

    /// Objects of the cluster that are being written, and those that are to be deleted, at the last
    /// look.
    #[must_use]
    pub fn under_way(&self) -> (u64, u64) {
        let [planned, dying] = [&self.planned, &self.dying].map(|n| n.load(Ordering::Relaxed));
        (planned, dying)
    }

    /// Ledgers that are left to offloaders, as an offloader saw them last, and since when the
    /// oldest is, in ms since 1970; 0: none is.
    #[must_use]
    pub fn tasks(&self) -> (u64, u64) {
        let all = [&self.tasks, &self.tasks_since_ms];
        let [tasks, since_ms] = all.map(|n| n.load(Ordering::Relaxed));
        (tasks, since_ms)
    }

    /// What a look has found so far. It may last long, and until its end what the last one found
    /// is nearer to what there is.
    pub(crate) fn found_tasks(&self, tasks: usize, since_ms: u64) {
        let order = Ordering::Relaxed;
        self.tasks.fetch_max(tasks as u64, order);
        // A set time stays: no other thread writes it, so the outcome says nothing.
        let _ = self
            .tasks_since_ms
            .compare_exchange(0, since_ms, order, order);
    }

    pub(crate) fn set_tasks(&self, tasks: usize, since_ms: u64) {
        self.tasks.store(tasks as u64, Ordering::Relaxed);
        self.tasks_since_ms.store(since_ms, Ordering::Relaxed);
    }

    pub(crate) fn set_under_way(&self, planned: usize, dying: usize) {
        self.planned.store(planned as u64, Ordering::Relaxed);
        self.dying.store(dying as u64, Ordering::Relaxed);
    }
}

/// What one log is behind; nothing any more when it is dropped.
pub(crate) struct BehindOfLog {
    tier: Weak<ColdTier>,
    number: u64,
}

impl BehindOfLog {
    pub(crate) fn new(tier: &Arc<ColdTier>) -> BehindOfLog {
        BehindOfLog {
            tier: Arc::downgrade(tier),
            number: tier.figures.next.fetch_add(1, Ordering::Relaxed),
        }
    }

    pub(crate) fn set(&self, behind: Behind) {
        let Some(tier) = self.tier.upgrade() else {
            return;
        };
        let mut logs = tier.figures.logs.lock();
        match behind == Behind::default() {
            true => logs.remove(&self.number),
            false => logs.insert(self.number, behind),
        };
    }
}

impl Drop for BehindOfLog {
    fn drop(&mut self) {
        self.set(Behind::default());
    }
}
