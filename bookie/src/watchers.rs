//! Readers that wait for news of ledgers' ends.
//!
//! Where nothing waits, news cost one look at a number, on the applier's thread.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aquifer_model::id::LedgerId;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Most readers that wait at once.
const WAITING_MAX: usize = 65_536;

/// All that wait.
#[derive(Debug, Default)]
pub struct Watchers {
    waiting: AtomicUsize,
    ledgers: Mutex<HashMap<LedgerId, Arc<Notify>>>,
}

/// One that waits; leaves when it is dropped.
#[derive(Debug)]
pub struct Watcher<'a> {
    watchers: &'a Watchers,
    ledger: LedgerId,
    /// Woken by news of the ledger.
    pub news: Arc<Notify>,
}

impl Watchers {
    /// Begins to wait; `None` when too many do.
    pub fn watch(&self, ledger: LedgerId) -> Option<Watcher<'_>> {
        if self.waiting.fetch_add(1, Ordering::AcqRel) >= WAITING_MAX {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        let news = Arc::clone(self.ledgers.lock().entry(ledger).or_default());
        Some(Watcher {
            watchers: self,
            ledger,
            news,
        })
    }

    /// There is news of these ledgers.
    pub fn wake(&self, ledgers: impl Iterator<Item = LedgerId>) {
        if self.waiting.load(Ordering::Acquire) == 0 {
            return;
        }
        let waiting = self.ledgers.lock();
        for ledger in ledgers {
            if let Some(news) = waiting.get(&ledger) {
                news.notify_waiters();
            }
        }
    }
}

impl Drop for Watcher<'_> {
    fn drop(&mut self) {
        let mut ledgers = self.watchers.ledgers.lock();
        // The table and this one hold it: nothing else waits.
        if Arc::strong_count(&self.news) <= 2 {
            ledgers.remove(&self.ledger);
        }
        drop(ledgers);
        self.watchers.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn news_wake_those_who_wait_for_them_and_nobody_is_left_behind() {
        let watchers = Watchers::default();
        let (one, other) = (LedgerId(1), LedgerId(2));
        watchers.wake([one].into_iter());
        let (first, second) = (watchers.watch(one).unwrap(), watchers.watch(one).unwrap());
        let third = watchers.watch(other).unwrap();
        let mut waits = [&first, &second, &third].map(|w| Box::pin(w.news.notified()));
        watchers.wake([one].into_iter());
        let woken = waits
            .each_mut()
            .map(|wait| wait.as_mut().now_or_never().is_some());
        assert_eq!(woken, [true, true, false]);
        drop(waits);
        drop((first, third));
        assert_eq!(watchers.ledgers.lock().len(), 1);
        drop(second);
        assert!(watchers.ledgers.lock().is_empty());
        assert_eq!(watchers.waiting.load(Ordering::Acquire), 0);
    }
}
