//! Wakes a thread that otherwise sleeps: a wakeup is remembered until the next wait.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Wakes one thread.
#[derive(Debug, Default)]
pub struct Wakeup {
    pending: Mutex<bool>,
    changed: Condvar,
}

impl Wakeup {
    /// Wakes the thread.
    pub fn wake(&self) {
        *self.pending.lock() = true;
        self.changed.notify_all();
    }

    /// Waits to be woken, at most `limit`. Returns whether it was.
    pub fn wait(&self, limit: Duration) -> bool {
        let mut pending = self.pending.lock();
        if !*pending {
            self.changed.wait_for(&mut pending, limit);
        }
        std::mem::take(&mut pending)
    }
}
