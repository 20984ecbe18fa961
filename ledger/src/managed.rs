//! The topic log: an endless log of messages over a list of ledgers (design.md section 8).
//!
//! Owns: the order of appends and their dense indexes, the current ledger and its rollover, what
//! becomes of appends when a ledger fails (H10), reads across ledgers, trimming. Invariants:
//! - Outcomes reach sinks exactly once each, in the order of the appends.
//! - No entry goes to a ledger before the end of the former is fixed in metadata.
//! - The next index comes from the head of the last entry, never from counting (H10).
//! - Only what is acknowledged is readable here.
//!
//! It knows nothing of producers, subscriptions or deduplication.

pub mod cache;
mod record;
mod types;

pub use record::TopicRecordCell;
pub use types::{
    Append, AppendSink, Appended, LedgerStat, LogEntry, LogKind, LogOptions, LogStats, ReadLimits,
    ReadPoint,
};

use std::sync::Arc;

use aquifer_model::id::Index;
use aquifer_model::place::Place;
use aquifer_model::policy::Retention;
use tokio::sync::watch;

use crate::context::LogContext;
use crate::error::LogError;

/// A log of one topic: its messages, or its cursors. Clones share it.
#[derive(Clone)]
pub struct TopicLog {
    end: watch::Receiver<Index>,
}

const UNFINISHED: &str = "the topic log is not finished";

impl TopicLog {
    /// Opens a log. Recovers its last ledger if that is open; writes nothing for an idle topic.
    ///
    /// # Errors
    /// [`LogError::Limbo`] when the last ledger cannot be recovered because its bookies may have
    /// lost data; [`LogError::Unavailable`] when they do not answer; [`LogError::Fenced`].
    pub async fn open(
        _ctx: Arc<LogContext>,
        _cell: Arc<TopicRecordCell>,
        _kind: LogKind,
        _options: LogOptions,
    ) -> Result<TopicLog, LogError> {
        Err(LogError::Unavailable(UNFINISHED.to_owned()))
    }

    /// Appends an entry: assigns its base index, writes the broker's head with a broker time of at
    /// least the last entry's (H13), and queues it. Never blocks. The outcome reaches `sink`
    /// exactly once, in the order of appends, never from inside this call.
    ///
    /// # Errors
    /// Nothing is queued and no outcome will come: [`LogError::Overloaded`] when too many bytes
    /// are pending; after any append failed, the same error until [`TopicLog::resume`].
    pub fn append(&self, _append: Append, _sink: &Arc<dyn AppendSink>) -> Result<Index, LogError> {
        Err(LogError::Unavailable(UNFINISHED.to_owned()))
    }

    /// Accepts appends again after a failed one. The caller has by then told its producers and
    /// reset what it derived from the failed appends (H7).
    pub fn resume(&self) {}

    /// Index of the first message that is kept.
    #[must_use]
    pub fn first(&self) -> Index {
        Index(0)
    }

    /// Index after the last acknowledged message.
    #[must_use]
    pub fn end(&self) -> Index {
        *self.end.borrow()
    }

    /// Reports every change of [`TopicLog::end`].
    #[must_use]
    pub fn watch_end(&self) -> watch::Receiver<Index> {
        self.end.clone()
    }

    /// What [`TopicLog::read`] would return, if that needs no waiting: `None` when it is not in
    /// memory; an empty vector at the end.
    pub fn read_cached(&self, _at: &mut ReadPoint, _limits: ReadLimits) -> Option<Vec<LogEntry>> {
        None
    }

    /// Reads whole entries from the one that contains `at.index` on, and advances `at` behind
    /// them. Empty only at the end. A point below [`TopicLog::first`] moves up to it. At least
    /// one entry is returned whatever the limits.
    ///
    /// # Errors
    /// [`LogError::Damaged`] when no replica has an entry as it was written.
    pub async fn read(
        &self,
        _at: &mut ReadPoint,
        _limits: ReadLimits,
    ) -> Result<Vec<LogEntry>, LogError> {
        Err(LogError::Unavailable(UNFINISHED.to_owned()))
    }

    /// The index of a place, between [`TopicLog::first`] and [`TopicLog::end`].
    ///
    /// # Errors
    /// [`LogError::Invalid`] for a position that is not of this log.
    pub async fn locate(&self, _place: Place) -> Result<Index, LogError> {
        Err(LogError::Unavailable(UNFINISHED.to_owned()))
    }

    /// Deletes whole sealed segments that end at or below `below` and are beyond both bounds of
    /// `retention`; seals a current ledger that is over its age. Returns the new first index.
    ///
    /// # Errors
    /// When metadata cannot be changed; nothing is deleted then.
    pub async fn trim(&self, _below: Index, _retention: Retention) -> Result<Index, LogError> {
        Err(LogError::Unavailable(UNFINISHED.to_owned()))
    }

    /// Seals the current ledger; the next append opens another.
    ///
    /// # Errors
    /// When the ledger or its record could not be closed.
    pub async fn roll(&self) -> Result<(), LogError> {
        Err(LogError::Unavailable(UNFINISHED.to_owned()))
    }

    /// Waits for pending appends, seals the current ledger and refuses appends for good.
    ///
    /// # Errors
    /// When the ledger could not be sealed: whoever opens the log next will recover it.
    pub async fn close(&self) -> Result<(), LogError> {
        Err(LogError::Unavailable(UNFINISHED.to_owned()))
    }

    /// Figures of the log.
    #[must_use]
    pub fn stats(&self) -> LogStats {
        LogStats::default()
    }
}

/// Finishes deletions that a crash interrupted: bookies, then intents and ledger records. Returns
/// how many ledgers are gone for good; what a bookie did not confirm stays for the next sweep.
///
/// # Errors
/// When intents cannot be listed.
pub async fn sweep_intents(_ctx: &Arc<LogContext>) -> Result<usize, LogError> {
    Err(LogError::Unavailable(UNFINISHED.to_owned()))
}
