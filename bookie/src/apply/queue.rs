//! What waits for the store, in the order of the journal.

use std::collections::VecDeque;

use parking_lot::{Condvar, Mutex};

use crate::journal::commit::Committed;

/// Commits that one write to the store takes, in bytes.
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Commits that wait in the buffers that they were written from, which may be much larger.
const BUFFERS_MAX: usize = 16;

/// The queue in front of the applier; the permits of its records bound it.
#[derive(Default)]
pub struct ApplyQueue {
    state: Mutex<QueueState>,
    wake: Condvar,
}

#[derive(Default)]
struct QueueState {
    commits: VecDeque<Committed>,
    /// It is asked whether the store still takes writes.
    probe: bool,
    closed: bool,
}

impl ApplyQueue {
    /// Adds a commit. While the store takes nothing, commits wait here in no more than twice the
    /// memory that their permits account for: what is mostly padding is copied out of its buffer.
    pub fn push(&self, mut commit: Committed) {
        if self.state.lock().commits.len() >= BUFFERS_MAX {
            let ends = commit.records.iter().map(|record| record.value.end);
            let len = ends.max().unwrap_or(0);
            if commit.block.is_mostly_padding(len) {
                commit.block.compact(len);
            }
        }
        self.state.lock().commits.push_back(commit);
        self.wake.notify_one();
    }

    /// The memory of the commits that wait.
    #[cfg(test)]
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        let state = self.state.lock();
        state
            .commits
            .iter()
            .map(|commit| commit.block.held_bytes())
            .sum()
    }

    /// Makes the applier write something, to notice errors and to recover from them.
    pub fn probe(&self) {
        self.state.lock().probe = true;
        self.wake.notify_one();
    }

    /// Ends the applier after what is queued.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.wake.notify_all();
    }

    /// Waits for commits and takes those of one write; none after a probe. `None` when the queue is
    /// closed and empty.
    pub fn take(&self) -> Option<Vec<Committed>> {
        let mut state = self.state.lock();
        while state.commits.is_empty() && !state.probe {
            if state.closed {
                return None;
            }
            self.wake.wait(&mut state);
        }
        state.probe = false;
        let mut bytes = 0;
        let mut count = 0;
        for commit in &state.commits {
            bytes += commit.block.bytes().len();
            if count > 0 && bytes > BATCH_BYTES_MAX {
                break;
            }
            count += 1;
        }
        Some(state.commits.drain(..count).collect())
    }
}
