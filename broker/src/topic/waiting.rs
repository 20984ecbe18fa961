//! A queue of what waits for the cursor log, bounded in bytes for a topic and for the broker.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that wait for one topic's log at most.
const TOPIC_BYTES_MAX: usize = 16 << 20;
/// Bytes that wait in a broker at most, beyond which a topic may have [`SHARE_BYTES`] only.
const BROKER_BYTES_MAX: usize = 64 << 20;
/// What a topic may have however much others have.
const SHARE_BYTES: usize = 64 << 10;

/// What waits for the cursor logs of all topics of a broker, in bytes.
#[derive(Debug, Clone, Default)]
pub(crate) struct WaitingBytes(Arc<AtomicUsize>);

/// A queue whose items are counted.
#[derive(Debug)]
pub(crate) struct Waiting<T> {
    items: VecDeque<T>,
    bytes: usize,
    bytes_of: fn(&T) -> usize,
    all: WaitingBytes,
}

impl<T> Waiting<T> {
    /// An empty queue; `bytes_of` says what an item costs, always the same for the same item.
    pub(crate) fn new(bytes_of: fn(&T) -> usize, all: &WaitingBytes) -> Waiting<T> {
        Waiting {
            items: VecDeque::new(),
            bytes: 0,
            bytes_of,
            all: all.clone(),
        }
    }

    /// Whether as much waits as may: peers that send more must wait, and come back later.
    pub(crate) fn is_full(&self) -> bool {
        let all = self.all.0.load(Ordering::Relaxed);
        self.bytes >= TOPIC_BYTES_MAX || (self.bytes >= SHARE_BYTES && all >= BROKER_BYTES_MAX)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(crate) fn push(&mut self, item: T) {
        self.count(&item);
        self.items.push_back(item);
    }

    /// The oldest items, `count` at most.
    pub(crate) fn take(&mut self, count: usize) -> Vec<T> {
        let count = count.min(self.items.len());
        let taken: Vec<T> = self.items.drain(..count).collect();
        let bytes = taken.iter().map(self.bytes_of).sum();
        self.forget(bytes);
        taken
    }

    /// Puts items that were taken back in front.
    pub(crate) fn put_back(&mut self, items: Vec<T>) {
        for item in items.into_iter().rev() {
            self.count(&item);
            self.items.push_front(item);
        }
    }

    pub(crate) fn clear(&mut self) {
        self.items.clear();
        self.forget(self.bytes);
    }

    fn count(&mut self, item: &T) {
        let bytes = (self.bytes_of)(item);
        self.bytes += bytes;
        self.all.0.fetch_add(bytes, Ordering::Relaxed);
    }

    fn forget(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.all.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl<T> Drop for Waiting<T> {
    fn drop(&mut self) {
        self.forget(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(all: &WaitingBytes) -> Waiting<usize> {
        Waiting::new(|bytes| *bytes, all)
    }

    /// Few large items fill a queue as many small ones do.
    #[test]
    fn a_queue_is_full_of_bytes_and_takes_more_when_they_are_taken() {
        let all = WaitingBytes::default();
        let mut queue = queue(&all);
        queue.push(TOPIC_BYTES_MAX - 1);
        assert!(!queue.is_full());
        queue.push(1);
        assert!(queue.is_full());
        let taken = queue.take(1);
        assert!(!queue.is_full());
        queue.put_back(taken);
        assert!(queue.is_full());
        assert_eq!(queue.take(9), [TOPIC_BYTES_MAX - 1, 1]);
        assert!(queue.is_empty());
        assert_eq!(all.0.load(Ordering::Relaxed), 0);
    }

    /// I13: topics that wait together are bounded together, and one that has little goes on.
    #[test]
    fn a_broker_that_is_full_leaves_each_topic_a_share() {
        let all = WaitingBytes::default();
        let mut full: Vec<_> = (0..8).map(|_| queue(&all)).collect();
        for queue in &mut full {
            queue.push(BROKER_BYTES_MAX / 8);
            assert!(!queue.is_empty());
        }
        assert!(full.iter().all(Waiting::is_full));
        let mut other = queue(&all);
        other.push(SHARE_BYTES - 1);
        assert!(!other.is_full());
        other.push(1);
        assert!(other.is_full());
        // What a topic had is free when it is gone.
        drop(full.pop());
        assert!(!other.is_full());
        full[0].clear();
        assert!(!full[0].is_full());
    }
}
