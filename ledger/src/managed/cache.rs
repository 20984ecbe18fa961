//! Recent entries of all logs, and the budget of read-ahead.

use aquifer_runtime::budget::ByteBudget;

/// One per process: the newest acknowledged entries of all logs within one budget, and a separate
/// budget for read-ahead, so that catching up never evicts the tail. Clones share it.
#[derive(Debug, Clone)]
pub struct EntryCache {
    tail_bytes_max: usize,
    read_ahead: ByteBudget,
}

impl EntryCache {
    /// A cache with these budgets.
    #[must_use]
    pub fn new(tail_bytes_max: usize, read_ahead_bytes_max: usize) -> EntryCache {
        EntryCache {
            tail_bytes_max,
            read_ahead: ByteBudget::new(read_ahead_bytes_max),
        }
    }

    /// Bytes that the tail may take.
    #[must_use]
    pub fn tail_bytes_max(&self) -> usize {
        self.tail_bytes_max
    }

    /// The budget of read-ahead.
    #[must_use]
    pub fn read_ahead(&self) -> &ByteBudget {
        &self.read_ahead
    }
}
