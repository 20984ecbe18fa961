//! Deleted ledgers whose space is to come back, until it is reclaimed. Forgetting one at a restart
//! costs space until the store comes by, nothing else.

use std::collections::BTreeMap;

use aquifer_model::id::LedgerId;
use parking_lot::Mutex;

/// Deleted ledgers, each with the commit of its deletion: its turn comes when that is durable.
#[derive(Debug, Default)]
pub struct Deletions(Mutex<BTreeMap<LedgerId, u64>>);

impl Deletions {
    /// A ledger was deleted with this commit.
    pub fn add(&self, ledger: LedgerId, commit: u64) {
        self.0.lock().insert(ledger, commit);
    }

    /// Whether one waits for more than this commit to be durable.
    #[must_use]
    pub fn needs_flush(&self, flushed: u64) -> bool {
        self.0.lock().values().any(|commit| *commit > flushed)
    }

    /// Whether the turn of one has come.
    #[must_use]
    pub fn is_due(&self, flushed: u64) -> bool {
        self.0.lock().values().any(|commit| *commit <= flushed)
    }

    /// Ledgers whose turn has come, in order.
    pub fn due(&self, flushed: u64, max: usize) -> Vec<LedgerId> {
        let waiting = self.0.lock();
        let due = waiting.iter().filter(|(_, commit)| **commit <= flushed);
        due.map(|(ledger, _)| *ledger).take(max).collect()
    }

    /// The space of these is reclaimed.
    pub fn done(&self, ledgers: &[LedgerId]) {
        let mut waiting = self.0.lock();
        ledgers.iter().for_each(|ledger| _ = waiting.remove(ledger));
    }
}
