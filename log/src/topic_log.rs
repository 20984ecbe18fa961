//! The handle of one topic log: what brokers call.

use std::ops::Range;
use std::sync::Arc;

use aquifer_model::id::Index;
use aquifer_model::place::Place;
use aquifer_model::policy::{EffectivePolicies, Retention};
use tokio::sync::watch;

use crate::context::LogContext;
use crate::error::LogError;
use crate::offload::Offloading;
use crate::open;
use crate::probe::Fence;
use crate::read::ReadPoint;
use crate::record::TopicRecordCell;
use crate::sizes;
use crate::state::{LogInner, SegmentStatus};
use crate::trim::TrimDue;
use crate::types::{
    Found, LedgerStat, LogEntry, LogHead, LogKind, LogOptions, LogStats, ReadLimits,
};

/// A log of one topic: its messages, or its cursors. Clones share it.
#[derive(Clone)]
pub struct TopicLog {
    pub(crate) inner: Arc<LogInner>,
}

impl TopicLog {
    /// Opens a log. Recovers its last ledger if that is open; writes nothing for an idle topic.
    ///
    /// # Errors
    /// [`LogError::Limbo`] when the last ledger cannot be recovered because its bookies may have
    /// lost data; [`LogError::Unavailable`] when they do not answer; [`LogError::Fenced`].
    pub async fn open(
        ctx: Arc<LogContext>,
        cell: Arc<TopicRecordCell>,
        kind: LogKind,
        options: LogOptions,
    ) -> Result<TopicLog, LogError> {
        let inner = open::open(ctx, cell, kind, options).await?;
        Ok(TopicLog { inner })
    }

    /// Takes quorum and rollover from here from now on, as they are whenever they are needed: a
    /// changed quorum ends the current ledger with the next append.
    pub fn follow(&self, policies: watch::Receiver<EffectivePolicies>) {
        self.inner.follow(policies);
    }

    /// Asks bookies whether another owner has taken over the ledger that this log writes to (H9).
    pub async fn probe_fence(&self) -> Fence {
        self.inner.probe_fence().await
    }

    /// Whether a ledger is open that another owner would have to fence.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.inner.is_open()
    }

    /// Whether a former owner had left the last ledger open when this was opened: it may not know
    /// yet that it is not the owner any more.
    #[must_use]
    pub fn was_taken_over(&self) -> bool {
        self.inner.taken_over
    }

    /// Index of the first message that is kept.
    #[must_use]
    pub fn first(&self) -> Index {
        self.inner.first()
    }

    /// Index after the last acknowledged message.
    #[must_use]
    pub fn end(&self) -> Index {
        self.inner.end()
    }

    /// Reports every change of [`TopicLog::end`].
    #[must_use]
    pub fn watch_end(&self) -> watch::Receiver<Index> {
        self.inner.end.subscribe()
    }

    /// What [`TopicLog::read`] would return, if that needs no waiting: `None` when it is not in
    /// memory; an empty vector at the end.
    pub fn read_cached(&self, at: &mut ReadPoint, limits: ReadLimits) -> Option<Vec<LogEntry>> {
        self.inner.read_cached(at, limits)
    }

    /// Reads whole entries from the one that contains `at.index` on, and advances `at` behind
    /// them. Empty only at the end. A point below [`TopicLog::first`] moves up to it. At least
    /// one entry is returned whatever the limits.
    ///
    /// # Errors
    /// [`LogError::Damaged`] when no replica has an entry as it was written.
    pub async fn read(
        &self,
        at: &mut ReadPoint,
        limits: ReadLimits,
    ) -> Result<Vec<LogEntry>, LogError> {
        self.inner.read(at, limits).await
    }

    /// Reads like [`TopicLog::read`]. Where no copy has what was written, says how far that goes
    /// and moves the point behind it: for a caller that goes on and tells what is left out.
    ///
    /// # Errors
    /// When the log cannot be read for other reasons than damage.
    pub async fn read_or_skip(
        &self,
        at: &mut ReadPoint,
        limits: ReadLimits,
    ) -> Result<Found, LogError> {
        self.inner.read_or_skip(at, limits).await
    }

    /// Reads heads like [`TopicLog::read_or_skip`] reads entries, `entries_max` at most: for a
    /// caller that needs no bodies.
    ///
    /// # Errors
    /// When the log cannot be read for other reasons than damage.
    pub async fn read_heads_or_skip(
        &self,
        at: &mut ReadPoint,
        entries_max: usize,
    ) -> Result<Found<LogHead>, LogError> {
        self.inner.read_heads_or_skip(at, entries_max).await
    }

    /// The index of a place, between [`TopicLog::first`] and [`TopicLog::end`].
    ///
    /// # Errors
    /// [`LogError::Invalid`] for a position that is not of this log.
    pub async fn locate(&self, place: Place) -> Result<Index, LogError> {
        self.inner.locate(place).await
    }

    /// What [`TopicLog::trim`] would delete; nothing when it would delete nothing.
    #[must_use]
    pub fn trim_due(&self, below: Index, retention: Retention) -> Option<TrimDue> {
        self.inner.trim_due(below, retention)
    }

    /// Whether [`TopicLog::trim`] would seal the current ledger.
    #[must_use]
    pub fn wants_seal(&self, below: Index, retention: Retention) -> bool {
        self.inner.wants_seal(below, retention)
    }

    /// Deletes whole segments that end at or below `below` and are beyond both bounds of
    /// `retention`; seals a current ledger that is over its age, or that is in the way of that.
    /// Returns the new first index.
    ///
    /// # Errors
    /// When metadata cannot be changed; nothing is deleted then.
    pub async fn trim(&self, below: Index, retention: Retention) -> Result<Index, LogError> {
        self.inner.trim(below, retention).await
    }

    /// Seals the current ledger; the next append opens another.
    ///
    /// # Errors
    /// When the ledger or its record could not be closed.
    pub async fn roll(&self) -> Result<(), LogError> {
        self.inner.seal(false).await
    }

    /// Waits for pending appends, seals the current ledger and refuses appends for good.
    ///
    /// # Errors
    /// When the ledger could not be sealed: the next owner that opens the log will recover it.
    pub async fn close(&self) -> Result<(), LogError> {
        self.inner.seal(true).await
    }

    /// Stored bytes of what lies from `index` on: of the ledger that has it, the part that its
    /// messages are of all messages.
    #[must_use]
    pub fn bytes_from(&self, index: Index) -> u64 {
        sizes::bytes_from(&self.inner.state.lock().segments, index)
    }

    /// The first index from which on there are at most `bytes`, counted like
    /// [`TopicLog::bytes_from`].
    #[must_use]
    pub fn place_of_newest(&self, bytes: u64) -> Index {
        let state = self.inner.state.lock();
        sizes::place_of_newest(&state.segments, bytes).unwrap_or(state.acked.index)
    }

    /// About when the message of an index was stored, by the figures of its ledger: as if messages
    /// had come evenly. `None` behind the end.
    #[must_use]
    pub fn time_about(&self, index: Index) -> Option<u64> {
        sizes::time_about(&self.inner.state.lock().segments, index)
    }

    /// Has every ledger offloaded, in the background, that is sealed and ends at or below an index,
    /// and says how far that is. Repeat the call to follow it.
    ///
    /// # Errors
    /// [`LogError::Invalid`] when no place for objects is set; when metadata cannot be read.
    pub async fn request_offload(&self, below: Index) -> Result<Offloading, LogError> {
        self.inner.request_offload(below).await
    }

    /// Has the ledgers with messages of a range brought back to bookies, in the background, that
    /// only objects have, and says how many are left. Repeat the call to follow it. The copies go
    /// again like those of a ledger that was just offloaded.
    ///
    /// # Errors
    /// [`LogError::Invalid`] when no place for objects is set; when metadata cannot be read.
    pub async fn request_import(&self, range: Range<Index>) -> Result<Offloading, LogError> {
        self.inner.request_import(range).await
    }

    /// Ends the re-import that was asked for, in the middle of a ledger too.
    pub fn cancel_import(&self) {
        self.inner.cancel_import();
    }

    /// Offloads in the background what is due by policy or on command, and drops copies at bookies
    /// whose lag is over, of ledgers that end at or below `droppable`: what lies above is read when
    /// the topic is loaded. Subscriptions need nothing below `unneeded`: what retention is about to
    /// delete there is not offloaded. Never waits.
    pub fn care_for_offload(&self, droppable: Index, unneeded: Index) {
        self.inner.care_for_offload(droppable, unneeded);
    }

    /// Whether ledgers are being offloaded, or are due, or copies of ledgers that end at or below
    /// `droppable` may go. What becomes due later is found on the topic's record.
    #[must_use]
    pub fn awaits_offload(&self, droppable: Index) -> bool {
        self.inner.awaits_offload(droppable)
    }

    /// Whether copies at bookies could go if a load read nothing below a later index than
    /// `droppable`.
    #[must_use]
    pub fn awaits_snapshot(&self, droppable: Index) -> bool {
        self.inner.awaits_snapshot(droppable)
    }

    /// Looks where the bytes of its newest ledgers are, for [`TopicLog::stats`].
    ///
    /// # Errors
    /// When metadata cannot be read.
    pub async fn learn_offload(&self) -> Result<(), LogError> {
        self.inner.learn_for_stats().await
    }

    /// Figures of the log.
    #[must_use]
    pub fn stats(&self) -> LogStats {
        let state = self.inner.state.lock();
        let ledgers: Vec<LedgerStat> = state
            .segments
            .iter()
            .map(|segment| LedgerStat {
                ledger: segment.ledger,
                first_index: segment.first_index,
                entries: segment.entries,
                bytes: segment.bytes,
                open: segment.status == SegmentStatus::Open,
                state: self.inner.segment_state(segment.ledger),
            })
            .collect();
        LogStats {
            first: state.first,
            end: state.acked.index,
            entries: ledgers.iter().map(|ledger| ledger.entries).sum(),
            bytes: ledgers.iter().map(|ledger| ledger.bytes).sum(),
            ledgers,
        }
    }
}
