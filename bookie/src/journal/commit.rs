//! A commit: the records that one write and one sync make durable, padded to whole blocks.
//!
//! Invariant (H5): the checksum covers the salt and generation of the segment and the sequence of
//! the commit, so that what an earlier use of a recycled segment left behind never passes for a
//! commit of this one, and neither does a payload that imitates one: the salt is random.

use std::ops::Range;
use std::sync::Arc;

use aquifer_model::bytes_at::{u32_at, u64_at};
use aquifer_model::checksum;
use aquifer_model::id::LedgerId;
use aquifer_runtime::budget::BytePermit;
use aquifer_runtime::disk::{AlignedBuffer, BLOCK_BYTES};
use parking_lot::Mutex;

use crate::journal::record::{Record, RecordKind, RecordRef};
use crate::ledger_state::LedgerMeta;

/// Bytes of a commit's head.
pub const COMMIT_HEAD_BYTES: usize = 48;
const MAGIC: [u8; 4] = *b"AQC1";
/// Buffers that wait for their next use, in bytes: as many as may wait for the store at full load,
/// because a fresh one is zeroed and costs a page fault every 4 KiB.
const POOLED_BYTES_MAX: usize = 12 * 1024 * 1024;

/// Which use of which segment a commit belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentUse {
    /// Counts the uses of all segments of a journal.
    pub generation: u64,
    /// Random per use.
    pub salt: u64,
}

/// The head of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitHead {
    /// The use of the segment that it was written in.
    pub segment: SegmentUse,
    /// Counts the commits of a journal from 1, without gaps.
    pub sequence: u64,
    /// Bytes of its records.
    pub records_bytes: usize,
    /// Its records.
    pub record_count: u32,
    checksum: u32,
}

impl CommitHead {
    /// Reads a head; `None` when the bytes are none. The checksum is checked by
    /// [`CommitHead::is_intact`].
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<CommitHead> {
        if bytes.len() < COMMIT_HEAD_BYTES || bytes[..4] != MAGIC || bytes[40..48] != [0; 8] {
            return None;
        }
        Some(CommitHead {
            checksum: u32_at(bytes, 4),
            segment: SegmentUse {
                salt: u64_at(bytes, 8),
                generation: u64_at(bytes, 16),
            },
            sequence: u64_at(bytes, 24),
            records_bytes: usize::try_from(u32_at(bytes, 32)).ok()?,
            record_count: u32_at(bytes, 36),
        })
    }

    /// Bytes of the head and the records.
    #[must_use]
    pub fn content_bytes(&self) -> usize {
        COMMIT_HEAD_BYTES.saturating_add(self.records_bytes)
    }

    /// Bytes of the whole commit with its padding.
    #[must_use]
    pub fn padded_bytes(&self) -> usize {
        padded(self.content_bytes())
    }

    /// Whether `bytes`, which start with the head, hold the whole commit undamaged.
    #[must_use]
    pub fn is_intact(&self, bytes: &[u8]) -> bool {
        bytes.len() >= self.content_bytes()
            && checksum::crc32c(&bytes[8..self.content_bytes()]) == self.checksum
    }
}

/// Bytes rounded up to whole blocks.
#[must_use]
pub fn padded(bytes: usize) -> usize {
    bytes.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES)
}

/// Assembles a commit.
#[derive(Debug)]
pub struct CommitBuilder {
    buffer: AlignedBuffer,
    record_count: u32,
}

impl CommitBuilder {
    /// An empty commit in `buffer`, whose old content is forgotten.
    #[must_use]
    pub fn new(mut buffer: AlignedBuffer) -> CommitBuilder {
        buffer.clear();
        buffer.resize(COMMIT_HEAD_BYTES);
        CommitBuilder {
            buffer,
            record_count: 0,
        }
    }

    /// Adds a record; returns where its bytes are.
    pub fn push(&mut self, record: &Record) -> Range<usize> {
        let start = self.buffer.len();
        record.encode(&mut self.buffer);
        self.record_count += 1;
        start..self.buffer.len()
    }

    /// Closes the commit: head, checksum, padding.
    #[must_use]
    pub fn finish(mut self, segment: SegmentUse, sequence: u64) -> AlignedBuffer {
        let content = self.buffer.len();
        let records = u32::try_from(content - COMMIT_HEAD_BYTES)
            .expect("a commit is bounded by commit_bytes_max or by its only entry");
        let head = &mut self.buffer.as_mut_slice()[..COMMIT_HEAD_BYTES];
        head[..4].copy_from_slice(&MAGIC);
        head[8..16].copy_from_slice(&segment.salt.to_le_bytes());
        head[16..24].copy_from_slice(&segment.generation.to_le_bytes());
        head[24..32].copy_from_slice(&sequence.to_le_bytes());
        head[32..36].copy_from_slice(&records.to_le_bytes());
        head[36..40].copy_from_slice(&self.record_count.to_le_bytes());
        head[40..48].fill(0);
        let checksum = checksum::crc32c(&self.buffer.as_slice()[8..content]);
        self.buffer.as_mut_slice()[4..8].copy_from_slice(&checksum.to_le_bytes());
        self.buffer.pad_to_block();
        self.buffer
    }
}

/// The records of an intact commit, in order. Yields nothing more after bytes that are no record.
#[derive(Debug)]
pub struct Records<'a> {
    rest: &'a [u8],
    left: u32,
    end: usize,
}

impl<'a> Records<'a> {
    /// The records of the commit with this head, whose bytes start at the head.
    #[must_use]
    pub fn of(head: &CommitHead, bytes: &'a [u8]) -> Records<'a> {
        Records {
            rest: bytes
                .get(COMMIT_HEAD_BYTES..head.content_bytes())
                .unwrap_or(&[]),
            left: head.record_count,
            end: head.content_bytes(),
        }
    }

    /// Where the record that was read last ends in the commit.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.end - self.rest.len()
    }

    /// Whether every record was read and nothing is left over.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.left == 0 && self.rest.is_empty()
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = RecordRef<'a>;

    fn next(&mut self) -> Option<RecordRef<'a>> {
        if self.left == 0 {
            return None;
        }
        let (record, rest) = RecordRef::decode(self.rest).ok()?;
        self.rest = rest;
        self.left -= 1;
        Some(record)
    }
}

/// Buffers of past commits, for the next ones.
#[derive(Debug, Default)]
pub struct BlockPool {
    free: Mutex<Free>,
}

#[derive(Debug, Default)]
struct Free {
    buffers: Vec<AlignedBuffer>,
    bytes: usize,
}

/// The bytes of a commit; a buffer goes back to its pool when it is not needed any more.
#[derive(Debug)]
pub struct Block(BlockBytes);

#[derive(Debug)]
enum BlockBytes {
    /// The buffer that it was written from.
    Pooled(AlignedBuffer, Arc<BlockPool>),
    /// A copy of its own: of a commit that waits for long, or that was read back.
    Own(Vec<u8>),
}

/// Where a commit lies in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitPlace {
    /// The number of the segment's file.
    pub segment: u64,
    /// The use of the segment: in another one, something else lies there.
    pub generation: u64,
    /// Where its head begins in the segment.
    pub offset: u64,
}

/// A synced commit that is to be applied to the store.
#[derive(Debug)]
pub struct Committed {
    /// Its sequence.
    pub sequence: u64,
    /// Where the journal has it, until it is trimmed.
    pub place: CommitPlace,
    /// Its bytes, from its head on.
    pub block: Block,
    /// Its records.
    pub records: Vec<CommittedRecord>,
}

/// A record of a synced commit.
#[derive(Debug)]
pub struct CommittedRecord {
    /// The ledger.
    pub ledger: LedgerId,
    /// What happens.
    pub kind: RecordKind,
    /// Its number in the journal's queue; 0 of one that was read back.
    pub number: u64,
    /// Where its value is in the block, and so, behind the offset of the commit, in the segment.
    pub value: Range<usize>,
    /// The ledger's record, when it changes.
    pub meta: Option<LedgerMeta>,
    /// Its share of the bytes in flight, given back when the store has it.
    pub _permit: Option<BytePermit>,
}

impl Committed {
    /// The value of one of its records: with an add what is stored, otherwise nothing.
    #[must_use]
    pub fn value(&self, record: &CommittedRecord) -> &[u8] {
        let value = self.block.bytes().get(record.value.clone());
        value.unwrap_or_default()
    }
}

impl BlockPool {
    /// A buffer with room for `bytes`. Sizes are rounded up to a few classes, so that a buffer
    /// fits later commits too: a fresh one costs a page fault every 4 KiB.
    #[must_use]
    pub fn take(&self, bytes: usize) -> AlignedBuffer {
        let mut free = self.free.lock();
        let capacity = |at: usize| free.buffers[at].capacity();
        let best = (0..free.buffers.len())
            .filter(|at| capacity(*at) >= bytes)
            .min_by_key(|at| capacity(*at));
        match best {
            Some(at) => {
                let buffer = free.buffers.swap_remove(at);
                free.bytes -= buffer.capacity();
                buffer
            }
            None => {
                drop(free);
                AlignedBuffer::with_capacity(size_class(bytes))
            }
        }
    }

    fn give_back(&self, buffer: AlignedBuffer) {
        let bytes = buffer.capacity();
        if bytes > POOLED_BYTES_MAX {
            return;
        }
        let mut free = self.free.lock();
        // Large ones are worth more: much smaller ones make room for one.
        while free.bytes + bytes > POOLED_BYTES_MAX {
            let buffers = free.buffers.iter().enumerate();
            let smallest = buffers.min_by_key(|(_, other)| other.capacity());
            let Some((at, smaller)) = smallest.map(|(at, other)| (at, other.capacity())) else {
                return;
            };
            if smaller > bytes / 2 {
                return;
            }
            drop(free.buffers.swap_remove(at));
            free.bytes -= smaller;
        }
        free.bytes += bytes;
        free.buffers.push(buffer);
    }

    /// Frees what waits.
    pub fn clear(&self) {
        *self.free.lock() = Free::default();
    }
}

impl Block {
    /// A finished commit that belongs to a pool.
    #[must_use]
    pub fn new(buffer: AlignedBuffer, pool: &Arc<BlockPool>) -> Block {
        Block(BlockBytes::Pooled(buffer, Arc::clone(pool)))
    }

    /// A commit that was read back.
    #[must_use]
    pub fn read_back(bytes: Vec<u8>) -> Block {
        Block(BlockBytes::Own(bytes))
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match &self.0 {
            BlockBytes::Pooled(buffer, _) => buffer.as_slice(),
            BlockBytes::Own(bytes) => bytes,
        }
    }

    /// What it takes in memory.
    #[cfg(test)]
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        match &self.0 {
            BlockBytes::Pooled(buffer, _) => buffer.capacity(),
            BlockBytes::Own(bytes) => bytes.len(),
        }
    }

    /// Whether more than half of the memory that it takes is not needed once the first `len` of its
    /// bytes are all that is needed still.
    pub fn is_mostly_padding(&self, len: usize) -> bool {
        matches!(&self.0, BlockBytes::Pooled(buffer, _) if buffer.capacity() / 2 > len)
    }

    /// Takes from now on no more memory than the first `len` of its bytes, which are all that is
    /// needed still.
    pub fn compact(&mut self, len: usize) {
        let bytes = self.bytes();
        let own = bytes[..len.min(bytes.len())].to_vec();
        self.put(own);
    }

    /// Takes other bytes and gives the buffer back.
    fn put(&mut self, bytes: Vec<u8>) {
        let before = std::mem::replace(&mut self.0, BlockBytes::Own(bytes));
        if let BlockBytes::Pooled(buffer, pool) = before {
            pool.give_back(buffer);
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.put(Vec::new());
    }
}

/// Small buffers are a multiple of 64 KiB, large ones of 1 MiB.
fn size_class(bytes: usize) -> usize {
    let step = if bytes <= 512 * 1024 {
        64 * 1024
    } else {
        1024 * 1024
    };
    bytes.div_ceil(step).saturating_mul(step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::record::tests::{any_record, assert_same, golden_records};
    use crate::tests::golden;
    use proptest::prelude::*;

    const USE: SegmentUse = SegmentUse {
        generation: 7,
        salt: 9,
    };

    fn commit(records: &[Record], segment: SegmentUse, sequence: u64) -> AlignedBuffer {
        let mut builder = CommitBuilder::new(AlignedBuffer::with_capacity(0));
        for record in records {
            builder.push(record);
        }
        builder.finish(segment, sequence)
    }

    /// A load of large commits after one of small ones, without a pause between them.
    #[test]
    fn a_full_pool_keeps_a_large_buffer_instead_of_small_ones() {
        let pool = Arc::new(BlockPool::default());
        let count = POOLED_BYTES_MAX / size_class(1) + 2;
        let small: Vec<Block> = (0..count)
            .map(|_| Block::new(pool.take(1), &pool))
            .collect();
        drop(small);
        let large = 4 * 1024 * 1024;
        drop(Block::new(pool.take(large), &pool));
        let free = pool.free.lock();
        let sizes: Vec<usize> = free.buffers.iter().map(AlignedBuffer::capacity).collect();
        assert!(sizes.iter().any(|bytes| *bytes >= large), "{sizes:?}");
        assert!(free.bytes <= POOLED_BYTES_MAX);
        assert_eq!(free.bytes, sizes.iter().sum::<usize>());
    }

    /// The stored bytes: they may never change while bookies have such journals.
    #[test]
    fn golden_bytes_stay() {
        let segment = SegmentUse {
            generation: 3,
            salt: 0x0102_0304_0506_0708,
        };
        let golden = golden(include_str!("commit/golden_v1.hex"));
        let records = golden_records();
        let commit = commit(&records, segment, 100);
        assert_eq!(commit.len(), BLOCK_BYTES);
        assert_eq!(commit.as_slice()[..golden[0].len()], golden[0]);
        let head = CommitHead::parse(&golden[0]).unwrap();
        assert!(head.is_intact(&golden[0]));
        assert_eq!((head.segment, head.sequence), (segment, 100));
        let mut read = Records::of(&head, &golden[0]);
        for record in &records {
            assert_same(read.next().unwrap(), record);
        }
        assert!(read.is_complete());
    }

    proptest! {
        #[test]
        fn commits_round_trip(records in prop::collection::vec(any_record(), 1..6)) {
            let buffer = commit(&records, USE, 5);
            let head = CommitHead::parse(buffer.as_slice()).unwrap();
            prop_assert_eq!(head.padded_bytes(), buffer.len());
            prop_assert!(head.is_intact(buffer.as_slice()));
            prop_assert_eq!((head.segment, head.sequence), (USE, 5));
            let mut read = Records::of(&head, buffer.as_slice());
            prop_assert_eq!(read.by_ref().count(), records.len());
            prop_assert!(read.is_complete());
        }

        #[test]
        fn every_flipped_bit_of_the_content_is_noticed(
            records in prop::collection::vec(any_record(), 1..3),
            at in any::<prop::sample::Index>(),
            bit in 0u8..8,
        ) {
            let mut buffer = commit(&records, USE, 5);
            let content = CommitHead::parse(buffer.as_slice()).unwrap().content_bytes();
            let at = at.index(content);
            buffer.as_mut_slice()[at] ^= 1 << bit;
            let bytes = buffer.as_slice();
            let passes = CommitHead::parse(bytes).is_some_and(|head| head.is_intact(bytes));
            prop_assert!(!passes);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut bytes = bytes;
            if bytes.len() > 4 {
                bytes[..4].copy_from_slice(&MAGIC);
            }
            if let Some(head) = CommitHead::parse(&bytes) {
                let _ = head.is_intact(&bytes);
                let _ = Records::of(&head, &bytes).count();
            }
        }
    }
}
