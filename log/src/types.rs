//! What goes in and out of a topic log, and plain data that its parts share.

use std::sync::Arc;

use aquifer_model::entry::{EntryFlags, EntryHead};
use aquifer_model::extensions::Extensions;
use aquifer_model::id::{EntryId, Index, LedgerId, OwnerEpoch};
use aquifer_model::policy::Rollover;
use aquifer_model::quorum::Quorum;
use aquifer_model::trace::TraceContext;
use bytes::Bytes;

use crate::error::LogError;

/// Which log of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LogKind {
    /// Its messages.
    Messages,
    /// The states of its subscriptions and producers.
    Cursors,
}

impl LogKind {
    /// Whether its entries may use the room that a full bookie keeps back: consuming goes on while
    /// publishing waits for space.
    #[must_use]
    pub fn uses_reserve(self) -> bool {
        self == LogKind::Cursors
    }
}

/// How a log writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogOptions {
    /// Replication of new ledgers.
    pub quorum: Quorum,
    /// When a ledger is sealed and the next begun.
    pub rollover: Rollover,
    /// Goes into the head of every entry.
    pub owner_epoch: OwnerEpoch,
}

/// One entry to append.
#[derive(Debug, Clone)]
pub struct Append {
    /// Format of the body.
    pub format: u16,
    /// Messages in it, at least 1.
    pub message_count: u32,
    /// What is special about it.
    pub flags: EntryFlags,
    /// What its head says of it.
    pub extensions: Extensions,
    /// The body, as it came.
    pub body: Bytes,
    /// Given back with the outcome.
    pub tag: u64,
    /// The trace that it is done for, if that is sampled.
    pub trace: Option<TraceContext>,
}

/// Where an entry was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// The ledger.
    pub ledger: LedgerId,
    /// The entry in it.
    pub entry: EntryId,
    /// Index of the entry's first message.
    pub base_index: Index,
    /// The time in its head.
    pub broker_time_ms: u64,
}

/// Learns what became of appends.
pub trait AppendSink: Send + Sync {
    /// Called once for every append, in order, from any thread but never from inside `append`;
    /// must not block. `Err` means that the entry is not stored and never will be, except for
    /// [`LogError::Fenced`], [`LogError::Limbo`], [`LogError::Damaged`] and
    /// [`LogError::Closed`], which end the log and leave that open.
    fn appended(&self, tag: u64, outcome: Result<Appended, LogError>);
}

/// An acknowledged entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Its ledger.
    pub ledger: LedgerId,
    /// Its number in the ledger.
    pub entry: EntryId,
    /// The broker's head.
    pub head: EntryHead,
    /// The body behind the head.
    pub body: Bytes,
}

impl LogEntry {
    /// Bytes of its body, and what its head takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.body.len() + self.head.len()
    }
}

/// The head of an acknowledged entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogHead {
    /// Its ledger.
    pub ledger: LedgerId,
    /// Its number in the ledger.
    pub entry: EntryId,
    /// The broker's head.
    pub head: EntryHead,
    /// Bytes of the ledger up to its end.
    pub ledger_bytes: u64,
}

/// Entries that no copy has as they were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damage {
    /// The message that was wanted.
    pub from: Index,
    /// Index of the next message that can be read, or the end of the ledger.
    pub end: Index,
    /// The ledger.
    pub ledger: LedgerId,
    /// The first entry of it that is damaged.
    pub entry: EntryId,
    /// How many messages they are is not known: the end is behind as many as the entries can have.
    pub at_most: bool,
}

/// What a read found: whole entries, or heads of them.
#[derive(Debug)]
pub enum Found<T = LogEntry> {
    /// Entries, in order.
    Entries(Vec<T>),
    /// Where it was to begin, no copy has what was written; and why.
    Damaged(Damage, String),
}

/// Bounds of one read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLimits {
    /// Most bytes, beyond the first entry.
    pub bytes_max: usize,
    /// Most entries, at least 1.
    pub entries_max: usize,
}

/// Figures of a log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogStats {
    /// First kept index.
    pub first: Index,
    /// Index after the last acknowledged message.
    pub end: Index,
    /// Entries of all ledgers.
    pub entries: u64,
    /// Bytes of all ledgers.
    pub bytes: u64,
    /// The ledgers, oldest first.
    pub ledgers: Vec<LedgerStat>,
}

/// Figures of one ledger of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerStat {
    /// The ledger.
    pub ledger: LedgerId,
    /// Index of its first message.
    pub first_index: Index,
    /// Its acknowledged entries.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Whether it still takes entries.
    pub open: bool,
    /// Where its bytes are, as far as that was looked at.
    pub state: SegmentState,
}

/// Where the bytes of a segment are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SegmentState {
    /// At bookies.
    Local,
    /// At bookies, and an attempt to write an object is under way.
    Offloading,
    /// In an object.
    Offloaded {
        /// Its name.
        object: Arc<str>,
        /// Whether bookies have copies too.
        local: bool,
    },
}

/// How the segments of a topic are divided. With the defaults a record has at most 80 segments,
/// some 4 KiB, and a page 48, which one transaction can trim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paging {
    /// Segments that stay in the record when others move into a page; at least two.
    pub kept: usize,
    /// Segments that move at once; at least one.
    pub page: usize,
}

impl Default for Paging {
    fn default() -> Paging {
        Paging { kept: 32, page: 48 }
    }
}

/// Where an entry begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) index: Index,
    pub(crate) ledger: LedgerId,
    pub(crate) entry: EntryId,
}
