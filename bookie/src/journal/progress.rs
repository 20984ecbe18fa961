//! How far the journal and what follows it are: shared by the threads of a bookie.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Sequence(AtomicU64);

impl Sequence {
    /// Its value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Moves it forward.
    pub fn advance(&self, to: u64) {
        self.0.fetch_max(to, Ordering::AcqRel);
    }
}

/// How far the journal and what follows it are.
#[derive(Debug, Default)]
pub struct Progress {
    /// Last item of the journal's queue that is synced; items are numbered from 1.
    pub synced_item: Sequence,
    /// Last commit that is synced.
    pub synced: Sequence,
    /// Last commit that the store has.
    pub applied: Sequence,
    /// Last commit that the store has durably. At most `applied`, which is at most `synced` (H1).
    pub flushed: Sequence,
}
