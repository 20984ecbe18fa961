//! Appends and their outcomes.

use std::sync::{Arc, Weak};
use std::time::Duration;

use aquifer_ledger::error::LedgerError;
use aquifer_ledger::ledger_metadata::LedgerInfo;
use aquifer_ledger::writer::driver::{LedgerWriter, WriterOwner};
use aquifer_model::entry::{EntryData, EntryHead, HEAD_BYTES};
use aquifer_model::id::{EntryId, Index, LedgerId};
use aquifer_model::limits::ENTRY_BYTES_MAX;

use crate::error::LogError;
use crate::state::{LogInner, LogTip, Pending, Phase, SegmentStatus, State};
use crate::topic_log::TopicLog;
use crate::types::{Append, AppendSink, Appended, LogEntry};

/// An outcome that its sink has not been told yet.
struct Outcome {
    pending: Pending,
    result: Result<Appended, LogError>,
}

impl TopicLog {
    /// Appends an entry: assigns its base index, writes the broker's head with a broker time of at
    /// least the last entry's (H13), and queues it. Never blocks. The outcome reaches `sink`
    /// exactly once, in the order of appends, never from inside this call.
    ///
    /// # Errors
    /// Nothing is queued and no outcome will come: [`LogError::Overloaded`] when too many bytes
    /// are pending; after any append failed, the same error until [`TopicLog::resume`].
    pub fn append(&self, append: Append, sink: &Arc<dyn AppendSink>) -> Result<Index, LogError> {
        let wall_ms = self.inner.ctx.ledgers.clock.wall_ms();
        self.append_at(append, wall_ms, sink)
    }

    /// Appends as [`TopicLog::append`] does, with a broker time of at least the given one: for an
    /// entry that had it elsewhere.
    pub(crate) fn append_at(
        &self,
        append: Append,
        wall_ms: u64,
        sink: &Arc<dyn AppendSink>,
    ) -> Result<Index, LogError> {
        let log = &*self.inner;
        let bytes = HEAD_BYTES + append.extensions.len() + append.body.len();
        if append.message_count == 0 || bytes > ENTRY_BYTES_MAX {
            return Err(LogError::Invalid(format!(
                "an entry has at least one message and at most {ENTRY_BYTES_MAX} bytes, \
                 got {} and {bytes}",
                append.message_count
            )));
        }
        let now = log.ctx.ledgers.clock.monotonic();
        let mut guard = log.state.lock();
        let state = &mut *guard;
        log.admit(state, bytes, now)?;
        let head = EntryHead {
            format: append.format,
            message_count: append.message_count,
            base_index: state.next.index,
            // Time never goes back in a log, whatever clocks its owners have (H13).
            broker_time_ms: wall_ms.max(state.next.time_ms),
            owner_epoch: log.options.owner_epoch,
            flags: append.flags,
            extensions: append.extensions,
        };
        let base_index = head.base_index;
        state.next = LogTip {
            index: head.end_index(),
            time_ms: head.broker_time_ms,
        };
        state.pending_bytes += bytes;
        state.pending.push_back(Pending {
            encoded: head.encode(),
            head,
            body: append.body,
            tag: append.tag,
            trace: append.trace,
            sink: Arc::clone(sink),
            since: now,
            entry: None,
        });
        if state.phase == Phase::Ready && log.is_over(state, now) {
            log.begin_rollover(state, now);
        }
        let mut writer = None;
        match state.phase {
            Phase::Ready => {
                state.send_next();
                writer = state.current.as_ref().map(|current| current.writer.clone());
            }
            Phase::Idle => {
                state.phase = Phase::RollingOver;
                log.own(state);
            }
            Phase::RollingOver => log.own(state),
            // `admit` has refused these.
            Phase::Recovering | Phase::Suspended | Phase::Closed(_) => {}
        }
        drop(guard);
        if let Some(writer) = writer {
            writer.flush();
        }
        Ok(base_index)
    }

    /// Accepts appends again after a failed one. The caller has by then told its producers and
    /// reset what it derived from the failed appends (H7).
    pub fn resume(&self) {
        let mut state = self.inner.state.lock();
        if state.phase == Phase::Suspended {
            state.phase = Phase::Idle;
        }
    }
}

impl State {
    /// Hands the oldest waiting append to the current ledger; false when no append waits or the
    /// ledger takes no more.
    pub(crate) fn send_next(&mut self) -> bool {
        let (Some(pending), Some(current)) =
            (self.pending.get_mut(self.sent), self.current.as_mut())
        else {
            return false;
        };
        let data = EntryData {
            head: pending.encoded.clone(),
            body: pending.body.clone(),
        };
        // A writer that has stopped says so to the owner task, which then decides about this append
        // too.
        let Some(entry) = current.writer.enqueue(data, pending.trace) else {
            return false;
        };
        pending.entry = Some(entry);
        current.entries_sent += 1;
        current.bytes_sent += pending.bytes() as u64;
        self.sent += 1;
        true
    }
}

impl LogInner {
    /// Refuses what cannot be queued now, and counts the bytes of what can.
    fn admit(&self, state: &State, bytes: usize, now: Duration) -> Result<(), LogError> {
        let failure = || {
            let unknown = || LogError::Unavailable("the ledger is being recovered".to_owned());
            state.failure.clone().unwrap_or_else(unknown)
        };
        match &state.phase {
            Phase::Closed(error) => return Err(error.clone()),
            _ if state.closing => return Err(LogError::Closed),
            Phase::Recovering | Phase::Suspended => return Err(failure()),
            Phase::Idle if state.reopen_at.is_some_and(|at| now < at) => return Err(failure()),
            Phase::Idle | Phase::Ready | Phase::RollingOver => {}
        }
        let settings = &self.ctx.settings;
        let full = state.pending_bytes > 0
            && state.pending_bytes + bytes > settings.pending_bytes_per_log_max;
        if full
            || !self
                .ctx
                .shared
                .reserve_pending(bytes, settings.pending_bytes_max)
        {
            return Err(LogError::Overloaded);
        }
        Ok(())
    }

    /// Takes the oldest append out of the state as acknowledged in `ledger`.
    fn take_acknowledged(state: &mut State, ledger: LedgerId, entry: EntryId) -> Outcome {
        let pending = state
            .pending
            .pop_front()
            .expect("the writer acknowledges only what was sent to it");
        assert_eq!(
            pending.entry,
            Some(entry),
            "acknowledgements come in the order of appends"
        );
        state.sent -= 1;
        state.pending_bytes -= pending.bytes();
        if let Some(segment) = state.segments.back_mut() {
            segment.count(&pending.head, pending.bytes());
        }
        state.acked = LogTip {
            index: pending.head.end_index(),
            time_ms: pending.head.broker_time_ms,
        };
        let result = Ok(Appended {
            ledger,
            entry,
            base_index: pending.head.base_index,
            broker_time_ms: pending.head.broker_time_ms,
        });
        Outcome { pending, result }
    }

    /// Makes an outcome known: to readers first, then to the sink of the append. No
    /// lock is held.
    fn tell(&self, outcome: Outcome) {
        let Outcome { pending, result } = outcome;
        let bytes = pending.bytes();
        self.ctx.shared.release_pending(bytes);
        match &result {
            Ok(appended) => {
                self.ctx.metrics.appended_entries.add(1, &[]);
                self.ctx.metrics.appended_bytes.add(bytes as u64, &[]);
                let took = self
                    .ctx
                    .ledgers
                    .clock
                    .monotonic()
                    .saturating_sub(pending.since);
                self.ctx
                    .metrics
                    .append_seconds
                    .record(took.as_secs_f64(), &[]);
                let end = pending.head.end_index();
                self.tail.push(LogEntry {
                    ledger: appended.ledger,
                    entry: appended.entry,
                    head: pending.head,
                    body: pending.body,
                });
                self.end.send_replace(end);
            }
            Err(_) => self.ctx.metrics.append_failures.add(1, &[]),
        }
        pending.sink.appended(pending.tag, result);
    }

    /// Decides pending appends once the end of their ledger is known: those up to `last_entry`
    /// are stored, the rest never will be (H10). The log rests before any sink hears of it.
    pub(crate) fn decide_recovered(&self, last_entry: Option<EntryId>, error: &LogError) {
        let now = self.ctx.ledgers.clock.monotonic();
        let outcomes = {
            let mut guard = self.state.lock();
            let state = &mut *guard;
            let ledger = state.segments.back().map(|segment| segment.ledger);
            let mut outcomes = Vec::new();
            while let (Some(ledger), Some(entry)) =
                (ledger, state.pending.front().and_then(|p| p.entry))
                && Some(entry) <= last_entry
            {
                outcomes.push(LogInner::take_acknowledged(state, ledger, entry));
            }
            let failed = take_failed(state, error);
            if let Some(segment) = state.segments.back_mut() {
                segment.status = SegmentStatus::Closed;
            }
            state.phase = match (state.closing, failed.is_empty()) {
                (true, _) => Phase::RollingOver,
                (false, true) => Phase::Idle,
                (false, false) => Phase::Suspended,
            };
            self.delay_reopen(state, error, now);
            outcomes.extend(failed);
            outcomes
        };
        for outcome in outcomes {
            self.tell(outcome);
        }
    }

    /// Refuses appends for a while, so that a broken store is not asked for ledger after ledger.
    pub(crate) fn delay_reopen(&self, state: &mut State, error: &LogError, now: Duration) {
        state.failure = Some(error.clone());
        state.reopen_at = Some(now + self.ctx.ledgers.rng.jitter(state.reopen_backoff));
        state.reopen_backoff =
            (state.reopen_backoff * 2).min(self.ctx.ledgers.settings.retry_backoff_max);
    }

    /// Fails every append without an outcome, and rests in `phase` before any sink hears of it.
    pub(crate) fn fail_pending(&self, error: &LogError, phase: Phase) {
        let outcomes = {
            let mut state = self.state.lock();
            state.phase = phase;
            take_failed(&mut state, error)
        };
        for outcome in outcomes {
            self.tell(outcome);
        }
    }
}

fn take_failed(state: &mut State, error: &LogError) -> Vec<Outcome> {
    let failed: Vec<Outcome> = state
        .pending
        .drain(..)
        .map(|pending| Outcome {
            pending,
            result: Err(error.clone()),
        })
        .collect();
    state.sent = 0;
    state.pending_bytes = 0;
    state.next = state.acked;
    failed
}

impl LogInner {
    /// The writer of a ledger that was just created for the log.
    pub(crate) fn writer_of(&self, info: LedgerInfo) -> LedgerWriter {
        let owner: Weak<dyn WriterOwner> = self.me.clone();
        let (ledgers, guards) = (Arc::clone(&self.ctx.ledgers), self.cell.shared_guards());
        ledgers.metrics.ledgers_created.add(1, &[]);
        LedgerWriter::new(ledgers, info, guards, owner, self.kind.uses_reserve())
    }
}

impl WriterOwner for LogInner {
    fn added(&self, ledger: LedgerId, entry: EntryId) {
        let outcome = {
            let mut guard = self.state.lock();
            let state = &mut *guard;
            let current = state.current.as_ref().map(|c| c.writer.ledger());
            if current != Some(ledger) {
                return;
            }
            // The ledger works: the next failure starts with a short pause again.
            state.reopen_backoff = self.ctx.ledgers.settings.retry_backoff_min;
            state.reopen_at = None;
            state.telling = true;
            LogInner::take_acknowledged(state, ledger, entry)
        };
        self.tell(outcome);
        let mut state = self.state.lock();
        state.telling = false;
        if state.sent == 0 && state.phase == Phase::RollingOver {
            self.drained.notify_one();
        }
    }

    fn stopped(&self, ledger: LedgerId, error: LedgerError) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let current = state.current.as_ref().map(|c| c.writer.ledger());
        if current != Some(ledger) || matches!(state.phase, Phase::Closed(_)) {
            return;
        }
        tracing::warn!(ledger = ledger.0, %error, "ledger writer stopped, recovering its ledger");
        state.failure = Some(match LogError::from(error) {
            // Whether the topic has another owner is for metadata to say; until then the ledger
            // was merely closed by a recovery.
            LogError::Fenced => {
                LogError::Unavailable("a recovery has closed the ledger".to_owned())
            }
            error => error,
        });
        state.phase = Phase::Recovering;
        self.drained.notify_one();
        self.own(state);
    }
}

impl Drop for LogInner {
    fn drop(&mut self) {
        // The writer reports to no log any more: the outcome of what is pending stays unknown.
        let outcomes = take_failed(self.state.get_mut(), &LogError::Closed);
        for outcome in outcomes {
            self.tell(outcome);
        }
    }
}
