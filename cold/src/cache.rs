//! What was read of objects lately, for all readers of a process: indexes and blocks, each within
//! a budget of bytes, and reads of several blocks at once.
//!
//! Invariants:
//! - The memory of a read is taken from a budget before the store is asked.
//! - What is damaged is read once more before it is called so, and is never kept.
//! - An object never changes, so what is kept never becomes wrong.
//! - What is kept has memory of its own: no block keeps what was read with it.
//! - Blocks that are not in memory may be on a local disk (`disk`), and are checked like those of
//!   an object: what is damaged there is fetched from the object.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aquifer_model::id::{AttemptId, EntryId};
use aquifer_model::storage::StoredEntry;
use aquifer_runtime::budget::ByteBudget;
use aquifer_runtime::clock::SharedClock;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use crate::disk::{BlockKey, DiskCache, DiskFigures};
use crate::error::{ColdError, ColdResult};
use crate::format::block::Block;
use crate::format::tail::{IndexRow, Tail};
use crate::format::{Expected, FormatError, count};
use crate::hedge::Hedges;
use crate::object::{part_of, read_tail};
use crate::store::ColdStore;

/// Bytes of one request, at most: a range of 8 MiB that ends with a block, heads included.
const RUN_BYTES: u64 = 9 << 20;
/// Of a read of up to this number of blocks all are kept. Larger ones are those of readers that
/// read on, which have what they want of them: only the ends are kept, which the reads beside may
/// want.
const KEPT_BLOCKS_MAX: usize = 4;
/// Blocks that are decoded before other tasks have a turn.
const DECODED_AT_ONCE: usize = 8;

/// An object, as a ledger's record names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectRef {
    /// Its name.
    pub name: String,
    /// Its length.
    pub size_bytes: u64,
    /// Where its index begins.
    pub index_offset: u64,
    /// What it is to hold.
    pub expected: Expected,
}

/// What to read.
#[derive(Debug, Clone, Copy)]
pub struct WantedEntries {
    /// The first entry.
    pub first: EntryId,
    /// The last one.
    pub last: EntryId,
    /// Most bytes, beyond the first entry.
    pub bytes_max: usize,
    /// Most entries, at least 1.
    pub entries_max: usize,
}

/// See the module.
pub struct ObjectCache {
    tails: Mutex<Lru<AttemptId, Arc<OnceCell<Arc<Tail>>>>>,
    blocks: Mutex<Lru<BlockKey, Arc<Block>>>,
    reads: ByteBudget,
    disk: Option<Arc<DiskCache>>,
    hedges: Hedges,
    begun: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
}

/// Bytes that it may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheBytes {
    /// Indexes.
    pub indexes: usize,
    /// Blocks.
    pub blocks: usize,
    /// Reads that are under way.
    pub reads: usize,
}

impl Default for CacheBytes {
    fn default() -> CacheBytes {
        CacheBytes {
            indexes: 16 << 20,
            blocks: 32 << 20,
            reads: 32 << 20,
        }
    }
}

impl ObjectCache {
    /// Empty.
    #[must_use]
    pub fn new(bytes: CacheBytes, clock: SharedClock) -> ObjectCache {
        ObjectCache {
            tails: Mutex::new(Lru::new(bytes.indexes)),
            blocks: Mutex::new(Lru::new(bytes.blocks)),
            reads: ByteBudget::new(bytes.reads),
            disk: None,
            hedges: Hedges::new(clock),
            begun: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    /// The same with more blocks on a local disk.
    #[must_use]
    pub fn with_disk(mut self, disk: Arc<DiskCache>) -> ObjectCache {
        self.disk = Some(disk);
        self
    }

    /// What is on the local disk; nothing without one.
    #[must_use]
    pub fn disk_figures(&self) -> DiskFigures {
        let figures = self.disk.as_ref().map(|disk| disk.figures());
        figures.unwrap_or_default()
    }

    /// Forgets what is in memory: how a process that went idle gives memory back.
    pub fn clear(&self) {
        self.tails.lock().clear();
        self.blocks.lock().clear();
    }

    /// Reads that have ever begun: what does not rise says that it is quiet.
    #[must_use]
    pub fn reads_begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Blocks that were wanted and kept, and those that had to be read.
    #[must_use]
    pub fn lookups(&self) -> (u64, u64) {
        let [hits, misses] = [&self.hits, &self.misses].map(|n| n.load(Ordering::Relaxed));
        (hits, misses)
    }

    /// Reads that were sent a second time, since the first took long.
    #[must_use]
    pub fn hedged(&self) -> u64 {
        self.hedges.sent()
    }

    /// Bytes of the blocks that are kept.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        self.blocks.lock().bytes
    }

    /// The index of an object. Readers that want it at once share one request.
    ///
    /// # Errors
    /// Those of the store; `Damaged` when it is not what its ledger's record says.
    pub async fn tail(&self, store: &dyn ColdStore, object: &ObjectRef) -> ColdResult<Arc<Tail>> {
        let key = object.expected.attempt;
        let cell = {
            let mut tails = self.tails.lock();
            match tails.get(&key) {
                Some(cell) => cell,
                None => {
                    let cell = Arc::new(OnceCell::new());
                    // Its size is known later.
                    tails.put(key, Arc::clone(&cell), size_of::<Tail>());
                    cell
                }
            }
        };
        let read = || async {
            let (size, offset) = (object.size_bytes, Some(object.index_offset));
            let tail = match read_tail(store, &object.name, size, offset).await {
                Err(ColdError::Damaged { .. }) => {
                    read_tail(store, &object.name, size, offset).await?.0
                }
                read => read?.0,
            };
            let checked = tail.check_expected(&object.expected);
            checked.map_err(|error| ColdError::damaged(&object.name, &error))?;
            Ok::<_, ColdError>(Arc::new(tail))
        };
        let mut fresh = false;
        let init = || {
            fresh = true;
            read()
        };
        let tail = Arc::clone(cell.get_or_try_init(init).await?);
        if fresh {
            self.tails.lock().put(key, cell, tail.memory());
        }
        Ok(tail)
    }

    /// How many entries there are from one on up to the end of a block, as many as some bytes hold
    /// and at least those of one block; `None` when the index of the object is not in memory.
    #[must_use]
    pub fn entries_within(
        &self,
        attempt: AttemptId,
        first: EntryId,
        bytes_max: usize,
    ) -> Option<u64> {
        let cell = self.tails.lock().get(&attempt)?;
        let tail = cell.get()?;
        let rows = &tail.blocks[tail.block_of(first)?..];
        let mut left = bytes_max as u64;
        let fits = rows.iter().take_while(|row| {
            let fits = u64::from(row.raw_len) <= left;
            left = left.saturating_sub(row.raw_len.into());
            fits
        });
        let last = rows.get(fits.count().saturating_sub(1))?;
        Some(last.first_entry.0 + u64::from(last.entries) - first.0)
    }

    /// Reads consecutive entries of an object from `wanted.first` on, at least one.
    ///
    /// # Errors
    /// Those of the store; `Damaged`.
    pub async fn read(
        &self,
        store: &dyn ColdStore,
        object: &ObjectRef,
        wanted: WantedEntries,
    ) -> ColdResult<Vec<StoredEntry>> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        let tail = self.tail(store, object).await?;
        let damaged = |error: FormatError| ColdError::damaged(&object.name, &error);
        let first = tail.block_of(wanted.first);
        let first = first.ok_or_else(|| damaged(FormatError::invalid("it has no such entry")))?;
        let rows = &tail.blocks[first..];
        let mut left = wanted.bytes_max as u64;
        let mut until = 0;
        for row in rows {
            let is_wanted = until == 0 || row.first_entry <= wanted.last && left > 0;
            if !is_wanted || row.end() - rows[0].offset > RUN_BYTES && until > 0 {
                break;
            }
            left = left.saturating_sub(row.raw_len.into());
            until += 1;
        }
        let blocks = self.blocks(store, object, first, &rows[..until]).await?;
        let mut entries = Vec::new();
        let mut bytes = 0;
        for block in &blocks {
            for entry in block.entries_from(wanted.first) {
                let is_full = entries.len() >= wanted.entries_max.max(1)
                    || bytes + entry.data.len() > wanted.bytes_max;
                if entry.entry > wanted.last || is_full && !entries.is_empty() {
                    return Ok(entries);
                }
                if !entry.is_intact(tail.ledger()) {
                    return Err(damaged(FormatError::invalid(format!(
                        "entry {} does not match its digest",
                        entry.entry
                    ))));
                }
                bytes += entry.data.len();
                entries.push(entry);
            }
        }
        Ok(entries)
    }

    /// Some blocks, the number of the first of which is `first`; those that are not kept are read,
    /// neighbours together.
    async fn blocks(
        &self,
        store: &dyn ColdStore,
        object: &ObjectRef,
        first: usize,
        rows: &[IndexRow],
    ) -> ColdResult<Vec<Arc<Block>>> {
        let attempt = object.expected.attempt;
        let mut found: Vec<Option<Arc<Block>>> = {
            let mut kept = self.blocks.lock();
            let numbers = first..first + rows.len();
            numbers.map(|at| kept.get(&(attempt, at))).collect()
        };
        let hits = found.iter().flatten().count();
        self.hits.fetch_add(hits as u64, Ordering::Relaxed);
        let misses = found.len() - hits;
        self.misses.fetch_add(misses as u64, Ordering::Relaxed);
        if let Some(disk) = self.disk.as_ref().filter(|_| misses > 0) {
            self.fill_from_disk(disk, object, (first, rows), &mut found)
                .await;
        }
        let mut at = 0;
        while at < found.len() {
            if found[at].is_some() {
                at += 1;
                continue;
            }
            let gap = found[at..].iter().take_while(|block| block.is_none());
            let end = at + gap.count();
            let wanted = (first + at, &rows[at..end]);
            let read = match self.fetch(store, object, wanted).await {
                Err(ColdError::Damaged { .. }) => self.fetch(store, object, wanted).await?,
                read => read?,
            };
            let is_small = read.len() <= KEPT_BLOCKS_MAX;
            for (number, block) in (at..end).zip(read) {
                if is_small || number == at || number + 1 == end {
                    self.keep((attempt, first + number), &block);
                }
                found[number] = Some(block);
            }
            at = end;
        }
        Ok(found.into_iter().flatten().collect())
    }

    fn keep(&self, key: BlockKey, block: &Block) {
        let alone = Arc::new(block.alone());
        let bytes = alone.memory();
        self.blocks.lock().put(key, alone, bytes);
    }

    /// Fills in blocks that are on the local disk, the number of the first of which is `first`. Few
    /// of them are kept in memory, as of those that are fetched.
    async fn fill_from_disk(
        &self,
        disk: &Arc<DiskCache>,
        object: &ObjectRef,
        (first, rows): (usize, &[IndexRow]),
        found: &mut [Option<Arc<Block>>],
    ) {
        let attempt = object.expected.attempt;
        let missing: Vec<usize> = (0..rows.len()).filter(|at| found[*at].is_none()).collect();
        let keys: Vec<BlockKey> = missing.iter().map(|at| (attempt, first + at)).collect();
        let bytes_of = |row: &IndexRow| row.end() - row.offset + u64::from(row.raw_len);
        let bytes: u64 = missing.iter().map(|at| bytes_of(&rows[*at])).sum();
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let _held = self.reads.acquire(bytes).await;
        let blocks = disk.read(&keys).await;
        let is_small = missing.len() <= KEPT_BLOCKS_MAX;
        for (number, (at, bytes)) in missing.into_iter().zip(blocks).enumerate() {
            if number > 0 && number.is_multiple_of(DECODED_AT_ONCE) {
                tokio::task::yield_now().await;
            }
            let Some(bytes) = bytes else {
                continue;
            };
            let key = (attempt, first + at);
            match decode(attempt, &rows[at], &bytes) {
                Ok(block) => {
                    if is_small {
                        self.keep(key, &block);
                    }
                    found[at] = Some(Arc::new(block));
                }
                Err(error) => {
                    tracing::warn!(object = object.name, %error, "a block on the local disk is damaged, and fetched again");
                    disk.forget(&key);
                }
            }
        }
    }

    /// Reads neighbouring blocks with one request.
    async fn fetch(
        &self,
        store: &dyn ColdStore,
        object: &ObjectRef,
        (number, rows): (usize, &[IndexRow]),
    ) -> ColdResult<Vec<Arc<Block>>> {
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else {
            return Ok(Vec::new());
        };
        let range = first.offset..last.end();
        let raw: usize = rows.iter().map(|row| count(row.raw_len)).sum();
        let stored = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let _held = self.reads.acquire(stored.saturating_add(raw)).await;
        let bytes = self.hedges.get(store, &object.name, range).await?;
        let damaged = |error: FormatError| ColdError::damaged(&object.name, &error);
        let mut blocks = Vec::with_capacity(rows.len());
        for (at, row) in rows.iter().enumerate() {
            if at > 0 && at.is_multiple_of(DECODED_AT_ONCE) {
                tokio::task::yield_now().await;
            }
            let (from, to) = (row.offset - first.offset, row.end() - first.offset);
            let part = part_of(&bytes, from, to);
            let attempt = object.expected.attempt;
            let block = decode(attempt, row, &part).map_err(damaged)?;
            if let Some(disk) = &self.disk {
                disk.offer((attempt, number + at), &part);
            }
            blocks.push(Arc::new(block));
        }
        Ok(blocks)
    }
}

/// A block, if it is as it was written and the one that the index says.
fn decode(attempt: AttemptId, row: &IndexRow, bytes: &Bytes) -> Result<Block, FormatError> {
    let block = Block::decode(attempt, bytes)?;
    if block.head.crc != row.crc || block.head.first_entry != row.first_entry {
        return Err(FormatError::invalid("a block is not what the index says"));
    }
    Ok(block)
}

/// The most recently used values within some bytes.
struct Lru<K, V> {
    values: HashMap<K, (V, usize, u64)>,
    order: BTreeMap<u64, K>,
    bytes: usize,
    bytes_max: usize,
    ticks: u64,
}

impl<K: Copy + Eq + Hash, V: Clone> Lru<K, V> {
    fn new(bytes_max: usize) -> Lru<K, V> {
        Lru {
            values: HashMap::new(),
            order: BTreeMap::new(),
            bytes: 0,
            bytes_max,
            ticks: 0,
        }
    }

    fn get(&mut self, key: &K) -> Option<V> {
        let (value, _, tick) = self.values.get_mut(key)?;
        self.ticks += 1;
        self.order.remove(tick);
        self.order.insert(self.ticks, *key);
        *tick = self.ticks;
        Some(value.clone())
    }

    fn put(&mut self, key: K, value: V, bytes: usize) {
        self.remove(&key);
        self.ticks += 1;
        self.order.insert(self.ticks, key);
        self.values.insert(key, (value, bytes, self.ticks));
        self.bytes += bytes;
        while self.bytes > self.bytes_max
            && let Some((_, oldest)) = self.order.first_key_value()
        {
            let oldest = *oldest;
            self.remove(&oldest);
        }
    }

    fn remove(&mut self, key: &K) {
        if let Some((_, bytes, tick)) = self.values.remove(key) {
            self.bytes -= bytes;
            self.order.remove(&tick);
        }
    }

    fn clear(&mut self) {
        self.values = HashMap::new();
        self.order.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut lru = Lru::new(10);
        for key in 0..3 {
            lru.put(key, key, 3);
        }
        assert_eq!(lru.get(&0), Some(0));
        lru.put(3, 3, 3);
        assert_eq!((lru.get(&1), lru.get(&0), lru.bytes), (None, Some(0), 9));
        lru.put(0, 7, 5);
        assert_eq!((lru.get(&0), lru.get(&2)), (Some(7), None));
        lru.put(9, 9, 11);
        assert_eq!((lru.get(&9), lru.bytes), (None, 0), "larger than all of it");
    }
}
