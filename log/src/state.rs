//! The state of a topic log, behind one lock that is never held across an await or a call out.
//!
//! Lock order: this state, then a ledger writer's. A writer calls its owner with no lock held.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use aquifer_ledger::ledger_metadata::LedgerInfo;
use aquifer_ledger::writer::driver::LedgerWriter;
use aquifer_model::entry::EntryHead;
use aquifer_model::id::{EntryId, Index, LedgerId};
use aquifer_model::policy::{EffectivePolicies, Rollover};
use aquifer_model::quorum::Quorum;
use aquifer_model::trace::TraceContext;
use aquifer_proto::v1;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot, watch};

use crate::cache::LogTail;
use crate::context::LogContext;
use crate::error::LogError;
use crate::offload::SharedOffloadState;
use crate::ranges::RangeIndex;
use crate::record::TopicRecordCell;
use crate::types::{AppendSink, LogKind, LogOptions};

/// Everything of one log. The handles that users hold, the owner task while there is work, and
/// the current ledger's writer (weakly) refer to it.
pub(crate) struct LogInner {
    pub(crate) me: Weak<LogInner>,
    pub(crate) ctx: Arc<LogContext>,
    pub(crate) cell: Arc<TopicRecordCell>,
    pub(crate) kind: LogKind,
    pub(crate) options: LogOptions,
    /// Has the current policies, once the log follows them.
    pub(crate) policies: OnceLock<watch::Receiver<EffectivePolicies>>,
    /// The last ledger was open when the log was opened.
    pub(crate) taken_over: bool,
    pub(crate) runtime: Handle,
    pub(crate) state: Mutex<State>,
    /// Index after the last acknowledged message; set after its entry is in the tail.
    pub(crate) end: watch::Sender<Index>,
    pub(crate) tail: LogTail,
    /// What readers behind the tail have fetched.
    pub(crate) ranges: Arc<RangeIndex>,
    /// Wakes the owner task when the current ledger has nothing pending any more, or has stopped.
    pub(crate) drained: Notify,
    /// Records of ledgers that were read lately.
    pub(crate) infos: Mutex<BTreeMap<LedgerId, Arc<LedgerInfo>>>,
    /// Where the bytes of its sealed segments are, as far as known.
    pub(crate) offload: SharedOffloadState,
}

/// What the log is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No open ledger; the next append asks for one.
    Idle,
    /// Appends go to the current ledger.
    Ready,
    /// The owner task seals the current ledger, if there is one, and opens the next, if appends
    /// wait for it. Meanwhile they queue.
    RollingOver,
    /// The current ledger's writer has stopped; the owner task finds out where the ledger ends.
    Recovering,
    /// An append has failed, and `resume` was not called since.
    Suspended,
    /// For good.
    Closed(LogError),
}

pub(crate) struct State {
    pub(crate) phase: Phase,
    /// Oldest first; the last may be open.
    pub(crate) segments: VecDeque<Segment>,
    pub(crate) first: Index,
    /// Index and time after the last acknowledged entry.
    pub(crate) acked: LogTip,
    /// The same after the last appended one.
    pub(crate) next: LogTip,
    /// Appends without an outcome, in order; the first `sent` are with the current ledger.
    pub(crate) pending: VecDeque<Pending>,
    pub(crate) sent: usize,
    /// An acknowledged append whose sink has not been told yet.
    pub(crate) telling: bool,
    pub(crate) pending_bytes: usize,
    pub(crate) current: Option<Current>,
    /// Why appends are refused, or were last.
    pub(crate) failure: Option<LogError>,
    /// No new ledger before this, after the last one failed.
    pub(crate) reopen_at: Option<Duration>,
    pub(crate) reopen_backoff: Duration,
    /// No rollover before this, after one failed for want of metadata (H8).
    pub(crate) roll_at: Option<Duration>,
    /// Ledgers in a row that were given up for want of bookies.
    pub(crate) widened: u32,
    pub(crate) closing: bool,
    /// The owner task runs.
    pub(crate) owned: bool,
    /// How the last attempt to seal a ledger ended.
    pub(crate) sealed: Result<(), LogError>,
    /// Told that when the owner task next comes to rest.
    pub(crate) waiting_for_seal: Vec<oneshot::Sender<Result<(), LogError>>>,
}

/// Where a log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct LogTip {
    pub(crate) index: Index,
    pub(crate) time_ms: u64,
}

/// One ledger of the log: 64 bytes, and all of them are in memory. The record of the ledger takes
/// five times as much in metadata, so what all topics of a cluster have here is bounded by a fifth
/// of what metadata may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) ledger: LedgerId,
    pub(crate) first_index: Index,
    /// Acknowledged entries.
    pub(crate) entries: u64,
    pub(crate) end_index: Index,
    pub(crate) bytes: u64,
    pub(crate) first_time_ms: u64,
    pub(crate) last_time_ms: u64,
    pub(crate) status: SegmentStatus,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SegmentStatus {
    /// Takes entries.
    Open,
    /// Closed, but the topic record does not say so yet.
    Closed,
    /// The topic record has its figures.
    Sealed,
}

/// The open ledger.
pub(crate) struct Current {
    pub(crate) writer: LedgerWriter,
    /// The quorum that was to be had when it was opened.
    pub(crate) wanted: Quorum,
    pub(crate) opened: Duration,
    pub(crate) entries_sent: u64,
    pub(crate) bytes_sent: u64,
    /// When to look next whether it lacks bookies, and whether it did at the last look.
    pub(crate) look_at: Duration,
    pub(crate) lacked: bool,
}

/// An append without an outcome.
pub(crate) struct Pending {
    pub(crate) head: EntryHead,
    pub(crate) encoded: Bytes,
    pub(crate) body: Bytes,
    pub(crate) tag: u64,
    pub(crate) trace: Option<TraceContext>,
    pub(crate) sink: Arc<dyn AppendSink>,
    /// When it was appended, on the monotonic clock.
    pub(crate) since: Duration,
    /// Set when it is with the current ledger.
    pub(crate) entry: Option<EntryId>,
}

impl Pending {
    pub(crate) fn bytes(&self) -> usize {
        self.encoded.len() + self.body.len()
    }
}

impl Segment {
    pub(crate) fn new(ledger: LedgerId, first_index: Index) -> Segment {
        Segment {
            ledger,
            first_index,
            entries: 0,
            end_index: first_index,
            bytes: 0,
            first_time_ms: 0,
            last_time_ms: 0,
            status: SegmentStatus::Open,
        }
    }

    pub(crate) fn from_record(record: &v1::SegmentRecord) -> Segment {
        let first_index = Index(record.first_index);
        Segment {
            entries: record.entries,
            end_index: if record.sealed {
                Index(record.end_index)
            } else {
                first_index
            },
            bytes: record.bytes,
            first_time_ms: record.first_time_ms,
            last_time_ms: record.last_time_ms,
            status: if record.sealed {
                SegmentStatus::Sealed
            } else {
                SegmentStatus::Open
            },
            ..Segment::new(LedgerId(record.ledger_id), first_index)
        }
    }

    /// The record of a segment that ends here.
    pub(crate) fn sealed_record(&self) -> v1::SegmentRecord {
        v1::SegmentRecord {
            ledger_id: self.ledger.0,
            first_index: self.first_index.0,
            sealed: true,
            entries: self.entries,
            end_index: self.end_index.0,
            bytes: self.bytes,
            first_time_ms: self.first_time_ms,
            last_time_ms: self.last_time_ms,
        }
    }

    /// Counts an acknowledged entry.
    pub(crate) fn count(&mut self, head: &EntryHead, bytes: usize) {
        if self.entries == 0 {
            self.first_time_ms = head.broker_time_ms;
        }
        self.entries += 1;
        self.end_index = head.end_index();
        self.bytes += bytes as u64;
        self.last_time_ms = head.broker_time_ms;
    }

    /// The last acknowledged entry.
    pub(crate) fn last_entry(&self) -> Option<EntryId> {
        self.entries.checked_sub(1).map(EntryId)
    }
}

/// How often the pause between such ledgers is doubled.
const WIDEN_DOUBLINGS_MAX: u32 = 8;

impl State {
    /// Whether the current ledger has had enough.
    fn is_due(&self, rollover: Rollover, quorum: Quorum, now: Duration) -> bool {
        let Some(current) = self.current_that_may_end(now) else {
            return false;
        };
        current.wanted != quorum
            || current.bytes_sent >= rollover.size_bytes
            || current.entries_sent >= rollover.entries
            || now.saturating_sub(current.opened) >= Duration::from_millis(rollover.age_ms)
    }

    /// The open ledger, if it has entries and no rollover is being put off.
    fn current_that_may_end(&self, now: Duration) -> Option<&Current> {
        let put_off = self.roll_at.is_some_and(|at| now < at);
        let current = self.current.as_ref();
        current.filter(|current| current.entries_sent > 0 && !put_off)
    }
}

impl LogInner {
    pub(crate) fn follow(&self, policies: watch::Receiver<EffectivePolicies>) {
        // A log has one namespace, for good.
        let _ = self.policies.set(policies);
    }

    /// The quorum of new ledgers, as the policies say now.
    pub(crate) fn quorum(&self) -> Quorum {
        let now = self
            .policies
            .get()
            .map(|policies| policies.borrow().persistence);
        now.unwrap_or(self.options.quorum)
    }

    /// When the current ledger has had enough, as the policies say now.
    pub(crate) fn rollover(&self) -> Rollover {
        let now = self
            .policies
            .get()
            .map(|policies| policies.borrow().rollover);
        now.unwrap_or(self.options.rollover)
    }

    /// Whether the current ledger is to make room for another: it has had enough, or it lacks
    /// bookies that are there again.
    pub(crate) fn is_over(&self, state: &mut State, now: Duration) -> bool {
        state.is_due(self.rollover(), self.quorum(), now)
            || (state
                .current_that_may_end(now)
                .is_some_and(|current| now >= current.look_at)
                && self.may_be_whole(state, now))
    }

    /// Whether another ledger would get the bookies that this one lacks, because its ensemble was
    /// made smaller or because one failed and could not be replaced. Until then it bears the loss
    /// of one bookie less. Looked at now and then, less often after each ledger that was given up
    /// for that: a bookie may be announced and yet out of reach.
    fn may_be_whole(&self, state: &mut State, now: Duration) -> bool {
        let pause = self.widen_pause(state);
        let Some(current) = &mut state.current else {
            return false;
        };
        let wanted = self.quorum();
        let lacks = current.writer.quorum() != wanted || current.writer.lacks_bookies();
        current.look_at = now + self.ctx.ledgers.rng.jitter(pause);
        let lacked = std::mem::replace(&mut current.lacked, lacks);
        match (lacks, lacked) {
            (false, _) => state.widened = 0,
            (true, false) => {} // a replacement may be in progress
            (true, true) if self.ctx.ledgers.bookies.writable() >= wanted.ensemble() => {
                state.widened += 1;
                return true;
            }
            (true, true) => {}
        }
        false
    }

    fn widen_pause(&self, state: &State) -> Duration {
        let delay = self.ctx.ledgers.settings.ensemble_change_delay;
        let first = self.ctx.settings.widen_pause.max(delay);
        first.saturating_mul(1 << state.widened.min(WIDEN_DOUBLINGS_MAX))
    }

    /// When to look first whether a new ledger lacks bookies.
    pub(crate) fn first_look(&self, state: &State, now: Duration) -> Duration {
        now + self.ctx.ledgers.rng.jitter(self.widen_pause(state))
    }

    /// Starts a task that outlives the caller, from any thread.
    pub(crate) fn spawn(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let _entered = self.runtime.enter();
        drop(self.ctx.ledgers.tasks.spawn(name, task));
    }

    /// The segments of this log in a topic record.
    pub(crate) fn segments_of<'a>(
        &self,
        record: &'a mut v1::TopicRecord,
    ) -> &'a mut Vec<v1::SegmentRecord> {
        match self.kind {
            LogKind::Messages => &mut record.segments,
            LogKind::Cursors => &mut record.cursor_segments,
        }
    }
}
