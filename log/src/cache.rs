//! Recent entries of all logs, and the budget of read-ahead.
//!
//! The tail is one queue in the order of insertion over all logs: the entry that was appended first
//! goes first. Read-ahead has its own budget and never enters the tail, so that catching up cannot
//! evict it. A part of that budget may be taken by ranges that a reader has left for others close
//! behind it; they go, oldest first, when a fetch that a reader waits for needs the bytes.
//!
//! Lock order: the queue, then one log's entries. What is kept comes before the budget.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use aquifer_model::id::{EntryId, Index, LedgerId};
use aquifer_runtime::budget::{ByteBudget, BytePermit};
use parking_lot::Mutex;

use crate::ranges::Range;
use crate::types::{LogEntry, ReadLimits};

/// What an entry costs besides its bytes: queue slots, handles, head.
const OVERHEAD_BYTES: usize = 256;
/// Most ranges that are kept for readers behind, and the part of the read-ahead budget for them.
const KEPT_RANGES_MAX: usize = 64;
const KEPT_SHARE: usize = 2;

/// One per process: the newest acknowledged entries of all logs within one budget, and a separate
/// budget for read-ahead, so that catching up never evicts the tail. Clones share it.
#[derive(Debug, Clone)]
pub struct EntryCache {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    tail_bytes_max: usize,
    queue: Mutex<Queue>,
    read_ahead: ByteBudget,
    /// Ranges that readers have left for others, oldest first.
    kept: Mutex<VecDeque<Arc<Range>>>,
}

#[derive(Debug, Default)]
struct Queue {
    /// One element for every entry inserted, oldest first: the log that has it in front.
    order: VecDeque<(Weak<Entries>, usize)>,
    bytes: usize,
    /// Entries ever inserted.
    inserted: u64,
}

type Entries = Mutex<VecDeque<LogEntry>>;

/// The newest entries of one log, contiguous in index. What it held is forgotten with it.
#[derive(Debug)]
pub(crate) struct LogTail {
    cache: EntryCache,
    entries: Arc<Entries>,
}

impl EntryCache {
    /// A cache with these budgets.
    #[must_use]
    pub fn new(tail_bytes_max: usize, read_ahead_bytes_max: usize) -> EntryCache {
        EntryCache {
            shared: Arc::new(Shared {
                tail_bytes_max,
                queue: Mutex::default(),
                read_ahead: ByteBudget::new(read_ahead_bytes_max),
                kept: Mutex::default(),
            }),
        }
    }

    /// Bytes that the tail may take.
    #[must_use]
    pub fn tail_bytes_max(&self) -> usize {
        self.shared.tail_bytes_max
    }

    /// Bytes that the tail takes now.
    #[must_use]
    pub fn tail_bytes(&self) -> usize {
        self.shared.queue.lock().bytes
    }

    /// Entries that the tail has ever taken: what does not rise says that it is quiet.
    #[must_use]
    pub fn inserted(&self) -> u64 {
        self.shared.queue.lock().inserted
    }

    /// The budget of read-ahead.
    #[must_use]
    pub fn read_ahead(&self) -> &ByteBudget {
        &self.shared.read_ahead
    }

    /// Evicts the oldest entries until the tail takes at most `bytes`: how a process that went
    /// idle gives memory back. What is kept for readers behind goes too.
    pub fn shrink_tail(&self, bytes: usize) {
        self.shared.queue.lock().shrink(bytes);
        self.shared.kept.lock().clear();
    }

    /// Takes bytes for a fetch ahead, if there is room.
    pub(crate) fn try_read_ahead(&self, bytes: usize) -> Option<BytePermit> {
        // A budget of nothing grants every request, since it cuts it to nothing.
        let read_ahead = Some(&self.shared.read_ahead).filter(|b| b.capacity_bytes() > 0);
        read_ahead?.try_acquire(bytes)
    }

    /// Takes bytes for a fetch that a reader waits for, in place of the oldest kept ranges if need
    /// be.
    pub(crate) fn take_read_ahead(&self, bytes: usize) -> Option<BytePermit> {
        loop {
            if let Some(permit) = self.try_read_ahead(bytes) {
                return Some(permit);
            }
            let mut kept = self.shared.kept.lock();
            // One that a reader holds too gives nothing back.
            let oldest = kept
                .iter()
                .position(|range| Arc::strong_count(range) == 1)?;
            kept.remove(oldest);
        }
    }

    /// Bytes that kept ranges may take, and how far ahead of a reader they are of use to it.
    pub(crate) fn kept_bytes_max(&self) -> usize {
        self.shared.read_ahead.capacity_bytes() / KEPT_SHARE
    }

    /// Keeps a range, in place of the oldest ones if there are too many.
    pub(crate) fn keep(&self, range: Arc<Range>) {
        let mut kept = self.shared.kept.lock();
        if kept.iter().any(|other| Arc::ptr_eq(other, &range)) {
            return;
        }
        kept.push_back(range);
        let mut bytes: usize = kept.iter().map(|range| range.counted_bytes()).sum();
        while kept.len() > KEPT_RANGES_MAX || bytes > self.kept_bytes_max() {
            let Some(oldest) = kept.pop_front() else {
                return;
            };
            bytes -= oldest.counted_bytes();
        }
    }

    /// Lets go of kept ranges that are wanted no more.
    pub(crate) fn keep_only(&self, is_wanted: impl Fn(&Range) -> bool) {
        self.shared.kept.lock().retain(|range| is_wanted(range));
    }

    pub(crate) fn tail(&self) -> LogTail {
        LogTail {
            cache: self.clone(),
            entries: Arc::default(),
        }
    }
}

impl Queue {
    fn shrink(&mut self, bytes: usize) {
        while self.bytes > bytes
            && let Some((log, cost)) = self.order.pop_front()
        {
            self.bytes -= cost;
            // A log that is gone took its entries along.
            if let Some(entries) = log.upgrade() {
                entries.lock().pop_front();
            }
        }
        // After a burst of small entries the queue itself would stay large.
        if self.order.capacity() > 1024 && self.order.len() < self.order.capacity() / 8 {
            self.order.shrink_to(self.order.len() * 2);
        }
    }
}

impl LogTail {
    /// Adds the entry that follows the last one.
    pub(crate) fn push(&self, entry: LogEntry) {
        let cost = entry.bytes() + OVERHEAD_BYTES;
        let mut queue = self.cache.shared.queue.lock();
        queue.order.push_back((Arc::downgrade(&self.entries), cost));
        queue.bytes += cost;
        queue.inserted += 1;
        self.entries.lock().push_back(entry);
        let max = self.cache.shared.tail_bytes_max;
        queue.shrink(max);
    }

    /// Whole entries from the one that contains `index` on; `None` if that one is not here.
    pub(crate) fn read(&self, index: Index, limits: ReadLimits) -> Option<Vec<LogEntry>> {
        let entries = self.entries.lock();
        if entries.front()?.head.base_index > index {
            return None;
        }
        let first = entries.partition_point(|entry| entry.head.end_index() <= index);
        let mut bytes = 0_usize;
        let found: Vec<LogEntry> = entries
            .range(first..)
            .take(limits.entries_max.max(1))
            .take_while(|entry| {
                let fits = bytes == 0 || bytes + entry.bytes() <= limits.bytes_max;
                bytes += entry.bytes();
                fits
            })
            .cloned()
            .collect();
        (!found.is_empty()).then_some(found)
    }

    /// The ledger and number of the oldest entry here.
    pub(crate) fn first_entry(&self) -> Option<(LedgerId, EntryId)> {
        let entries = self.entries.lock();
        entries.front().map(|entry| (entry.ledger, entry.entry))
    }

    /// Index of the oldest entry here.
    #[cfg(test)]
    fn first_index(&self) -> Option<Index> {
        self.entries
            .lock()
            .front()
            .map(|entry| entry.head.base_index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aquifer_model::entry::{EntryFlags, EntryHead, HEAD_BYTES};
    use aquifer_model::extensions::Extensions;
    use aquifer_model::format::FORMAT_NATIVE;
    use aquifer_model::id::OwnerEpoch;

    const LIMITS: ReadLimits = ReadLimits {
        bytes_max: 1 << 20,
        entries_max: 100,
    };

    fn entry(index: u64, bytes: usize) -> LogEntry {
        LogEntry {
            ledger: LedgerId(1),
            entry: EntryId(index),
            head: EntryHead {
                format: FORMAT_NATIVE,
                message_count: 1,
                base_index: Index(index),
                broker_time_ms: 0,
                owner_epoch: OwnerEpoch(0),
                flags: EntryFlags::default(),
                extensions: Extensions::default(),
            },
            body: vec![0; bytes].into(),
        }
    }

    #[test]
    fn the_oldest_of_all_logs_goes_first() {
        let cost = 1000 + HEAD_BYTES + OVERHEAD_BYTES;
        let cache = EntryCache::new(4 * cost, 0);
        let (a, b) = (cache.tail(), cache.tail());
        for index in 0..2 {
            a.push(entry(index, 1000));
            b.push(entry(index, 1000));
        }
        assert_eq!(cache.tail_bytes(), 4 * cost);
        b.push(entry(2, 1000));
        assert_eq!(a.first_index(), Some(Index(1)), "the oldest was in a");
        assert_eq!(b.first_index(), Some(Index(0)));
        assert_eq!(cache.tail_bytes(), 4 * cost);
        assert!(a.read(Index(0), LIMITS).is_none());
        assert_eq!(b.read(Index(1), LIMITS).map(|found| found.len()), Some(2));
        drop(b);
        for index in 2..6 {
            a.push(entry(index, 1000));
        }
        assert_eq!(a.first_index(), Some(Index(2)), "a dead log gives way");
        cache.shrink_tail(0);
        assert_eq!((cache.tail_bytes(), a.first_index()), (0, None));
    }

    #[test]
    fn reads_stop_at_the_limits_but_return_one() {
        let cache = EntryCache::new(1 << 20, 0);
        let tail = cache.tail();
        for index in 0..10 {
            tail.push(entry(index, 1000));
        }
        let read = |index, bytes_max, entries_max| {
            let limits = ReadLimits {
                bytes_max,
                entries_max,
            };
            tail.read(Index(index), limits).map(|found| found.len())
        };
        assert_eq!(read(0, 0, 100), Some(1));
        assert_eq!(read(0, 2100, 100), Some(2));
        assert_eq!(read(0, 1 << 20, 3), Some(3));
        assert_eq!(read(9, 1 << 20, 3), Some(1));
        assert_eq!(read(10, 1 << 20, 3), None);
    }
}
