//! Wakes a thread that otherwise sleeps: rung bells are remembered until the next wait.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// A bell for one thread.
#[derive(Debug, Default)]
pub struct Bell {
    rung: Mutex<bool>,
    wake: Condvar,
}

impl Bell {
    /// Wakes the thread.
    pub fn ring(&self) {
        *self.rung.lock() = true;
        self.wake.notify_all();
    }

    /// Waits for a ring, at most `limit`. Returns whether it rang.
    pub fn wait(&self, limit: Duration) -> bool {
        let mut rung = self.rung.lock();
        if !*rung {
            self.wake.wait_for(&mut rung, limit);
        }
        std::mem::take(&mut rung)
    }
}
