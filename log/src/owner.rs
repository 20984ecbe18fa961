//! The owner task of a log: it runs while a ledger is to be opened, sealed or recovered, finishes
//! what a cancelled caller began, and ends when the log rests. An idle log has no task.

use std::sync::Arc;

use aquifer_ledger::error::LedgerError;
use aquifer_ledger::ledger_metadata::{self, LedgerInfo, LedgerState};
use aquifer_ledger::recovery::driver::close_by_recovery;
use aquifer_ledger::writer::driver::LedgerWriter;
use aquifer_ledger::writer::machine::LedgerEnd;
use aquifer_metadata::error::MetadataError;
use aquifer_metadata::keys;
use aquifer_metadata::store::{Expect, Operation};
use aquifer_model::id::{CreationToken, EntryId, Index, LedgerId};
use aquifer_model::quorum::Quorum;
use aquifer_runtime::clock;
use tokio::sync::oneshot;

use crate::deletion;
use crate::error::LogError;
use crate::state::{Current, LogInner, Phase, Segment, SegmentStatus, State};
use crate::types::LogKind;

/// What the owner task does next.
pub(super) enum Step {
    Drain,
    Turn,
    Recover,
    Rest(
        Vec<oneshot::Sender<Result<(), LogError>>>,
        Result<(), LogError>,
    ),
}

/// A ledger to seal and a ledger to open, in one transaction.
struct Turn {
    /// The last segment, if the record does not yet say that it is sealed.
    ending: Option<Segment>,
    /// Its writer, if it is still open.
    writer: Option<LedgerWriter>,
    open_next: bool,
    /// The current ledger can go on as well.
    may_wait: bool,
    first_index: Index,
    /// Of the ledger to open.
    quorum: Quorum,
    /// Ledgers of the log as this process knows them.
    known: Vec<u64>,
}

/// What a turn changed.
struct Turned {
    ending_removed: bool,
    opened: Option<LedgerInfo>,
}

enum TurnError {
    /// A recovery has begun on the current ledger.
    Superseded,
    Log(LogError),
}

impl<E: Into<LogError>> From<E> for TurnError {
    fn from(error: E) -> TurnError {
        TurnError::Log(error.into())
    }
}

impl LogInner {
    /// Starts the owner task unless it runs.
    pub(crate) fn own(&self, state: &mut State) {
        if !state.owned
            && let Some(me) = self.me.upgrade()
        {
            state.owned = true;
            self.spawn("topic-log-owner", async move { me.run_owner().await });
        }
    }

    async fn run_owner(self: Arc<Self>) {
        loop {
            match self.next_step() {
                Step::Drain => self.drained.notified().await,
                Step::Turn => self.turn().await,
                Step::Recover => self.recover().await,
                Step::Rest(waiters, result) => {
                    for waiter in waiters {
                        // Whoever has gone away needs no answer.
                        let _ = waiter.send(result.clone());
                    }
                    return;
                }
            }
        }
    }

    pub(super) fn next_step(&self) -> Step {
        let mut state = self.state.lock();
        match &state.phase {
            // Outcomes of the next ledger may not overtake the last one of this.
            Phase::Turning if state.sent > 0 || state.telling => Step::Drain,
            Phase::Turning => Step::Turn,
            Phase::Recovering => Step::Recover,
            Phase::Idle | Phase::Ready | Phase::Suspended | Phase::Closed(_) => {
                let result = match &state.phase {
                    Phase::Closed(error) if *error != LogError::Closed => Err(error.clone()),
                    _ => state.sealed.clone(),
                };
                state.owned = false;
                Step::Rest(std::mem::take(&mut state.waiting_for_seal), result)
            }
        }
    }

    async fn turn(&self) {
        let plan = {
            let state = self.state.lock();
            let last = state.segments.back();
            Turn {
                ending: last
                    .filter(|segment| segment.status != SegmentStatus::Sealed)
                    .cloned(),
                writer: state.current.as_ref().map(|c| c.writer.clone()),
                open_next: !state.pending.is_empty(),
                may_wait: !state.closing && state.waiting_for_seal.is_empty(),
                first_index: state.acked.index,
                quorum: self.quorum(),
                known: state.segments.iter().map(|s| s.ledger.0).collect(),
            }
        };
        if plan.ending.is_none() && !plan.open_next {
            let mut state = self.state.lock();
            state.sealed = Ok(());
            rest(&mut state);
            return;
        }
        if plan.writer.is_some()
            && plan.may_wait
            && let Err(error) = self.reach_metadata().await
        {
            return self.turn_failed(error);
        }
        let goes_on = plan.writer.is_some() && plan.may_wait;
        if (plan.open_next || goes_on)
            && let Err(error) = self.find_room(goes_on)
        {
            return self.turn_failed(error);
        }
        if let Some(writer) = &plan.writer {
            writer.settle(self.ctx.ledgers.settings.close_wait).await;
        }
        let mut doubt = false;
        match self.change_metadata(&plan, &mut doubt).await {
            Ok(turned) => self.turned(&plan, turned),
            Err(TurnError::Log(LogError::Fenced)) => self.turn_failed(LogError::Fenced),
            // The ledger may be closed, and another owner may go on behind its end without a fence:
            // from here on nothing is acknowledged before that is known (I4).
            Err(TurnError::Log(error)) if doubt && plan.writer.is_some() => {
                tracing::warn!(%error, "whether the ledger was closed is not known");
                self.find_end(error);
            }
            Err(TurnError::Superseded) => {
                let closed = "a recovery has closed the ledger".to_owned();
                self.find_end(LogError::Unavailable(closed));
            }
            Err(TurnError::Log(LogError::Metadata(MetadataError::Full(why)))) => {
                self.turn_failed(LogError::StorageFull(format!("metadata is full: {why}")));
            }
            Err(TurnError::Log(error)) => self.turn_failed(error),
        }
    }

    /// The current ledger takes no more entries; a recovery says where it ends.
    fn find_end(&self, because: LogError) {
        let mut state = self.state.lock();
        state.failure = Some(because);
        state.phase = Phase::Recovering;
    }

    fn turned(&self, plan: &Turn, turned: Turned) {
        if let Some(writer) = &plan.writer {
            writer.finish();
        }
        let opened = turned.opened.map(|info| self.writer_of(info));
        let now = self.ctx.ledgers.clock.monotonic();
        {
            let mut guard = self.state.lock();
            let state = &mut *guard;
            state.sealed = Ok(());
            state.current = None;
            state.roll_at = None;
            if turned.ending_removed {
                state.segments.pop_back();
                state.first = first_of(state);
            } else if plan.ending.is_some()
                && let Some(last) = state.segments.back_mut()
            {
                last.status = SegmentStatus::Sealed;
            }
            if let Some(writer) = &opened {
                let segment = Segment::new(writer.ledger(), plan.first_index);
                state.segments.push_back(segment);
                state.first = first_of(state);
                state.current = Some(Current {
                    writer: writer.clone(),
                    wanted: plan.quorum,
                    opened: now,
                    entries_sent: 0,
                    bytes_sent: 0,
                    look_at: self.first_look(state, now),
                    lacked: false,
                });
                // What waits may be more than one ledger takes.
                while !self.is_over(state, now) && state.send_next() {}
            }
            rest(state);
        }
        if let Some(writer) = opened {
            writer.flush();
        }
    }

    fn turn_failed(&self, error: LogError) {
        let now = self.ctx.ledgers.clock.monotonic();
        let (closing, current) = {
            let mut guard = self.state.lock();
            let state = &mut *guard;
            state.sealed = Err(error.clone());
            (
                state.closing,
                state.current.as_ref().map(|c| c.writer.clone()),
            )
        };
        if error == LogError::Fenced {
            self.fail_pending(&error, Phase::Closed(error.clone()));
        } else if closing {
            self.fail_pending(&error, Phase::Closed(LogError::Closed));
        } else if let Some(writer) = current {
            tracing::warn!(%error, ledger = writer.ledger().0, "rollover put off, the current ledger goes on");
            {
                let mut guard = self.state.lock();
                let state = &mut *guard;
                self.put_off_rollover(state, now);
                if state.phase == Phase::Turning {
                    while state.send_next() {}
                    state.phase = Phase::Ready;
                }
            }
            writer.flush();
        } else {
            let phase = {
                let mut guard = self.state.lock();
                self.delay_reopen(&mut guard, &error, now);
                if guard.pending.is_empty() {
                    Phase::Idle
                } else {
                    Phase::Suspended
                }
            };
            self.fail_pending(&error, phase);
        }
    }

    /// Seals and opens in one transaction.
    async fn change_metadata(&self, plan: &Turn, doubt: &mut bool) -> Result<Turned, TurnError> {
        let mut ending_info = match (&plan.ending, &plan.writer) {
            (Some(_), Some(writer)) => Some(writer.info()),
            (Some(segment), None) => Some(
                ledger_metadata::load_existing(&*self.ctx.ledgers.store, segment.ledger).await?,
            ),
            (None, _) => None,
        };
        // A ledger without entries leaves no segment, so that a store which refuses everything
        // does not fill the record. The cursor log keeps its last, which says where it ends.
        let ending_removed = plan.ending.as_ref().is_some_and(|segment| {
            segment.entries == 0 && (self.kind == LogKind::Messages || plan.known.len() > 1)
        });
        loop {
            let mut opened = match plan.open_next {
                true => Some(self.new_ledger(&plan.known, plan.quorum).await?),
                false => None,
            };
            let mut operations = Vec::new();
            if let (Some(segment), Some(info)) = (&plan.ending, &mut ending_info) {
                if let Some(writer) = &plan.writer {
                    info.state = LedgerState::Closed(LedgerEnd {
                        last_entry: segment.last_entry(),
                        length: segment.bytes,
                    });
                    operations.push(info.put(Expect::Revision(info.revision)));
                    operations.extend(self.mark_thin(writer, info, segment).await?);
                }
                if ending_removed {
                    match &plan.writer {
                        Some(_) => operations.push(deletion::intent(info)),
                        None => operations.extend(deletion::intent_for(info)),
                    }
                }
            }
            operations.extend(opened.iter().map(|info| info.put(Expect::Absent)));
            let new = opened.as_ref().map(|info| info.id);
            match self
                .change_record(plan, operations, ending_removed, new, doubt)
                .await
            {
                Ok(revision) => {
                    if let Some(info) = &mut opened {
                        info.revision = revision;
                    }
                    if ending_removed && let Some(info) = ending_info {
                        deletion::delete_in_background(&self.ctx, vec![info.id]);
                    }
                    return Ok(Turned {
                        ending_removed,
                        opened,
                    });
                }
                Err(LogError::Metadata(conflict @ MetadataError::Conflict { .. })) => {
                    let ending = ending_info.as_mut();
                    self.after_conflict(plan, conflict, new, ending).await?;
                }
                Err(error) => return Err(TurnError::Log(error)),
            }
        }
    }

    /// Learns what is different now, for another attempt.
    async fn after_conflict(
        &self,
        plan: &Turn,
        conflict: MetadataError,
        new: Option<LedgerId>,
        ending: Option<&mut LedgerInfo>,
    ) -> Result<(), TurnError> {
        let is_about = |wanted: String| match &conflict {
            MetadataError::Conflict { key, .. } => *key == wanted,
            _ => false,
        };
        if let Some(id) = new.filter(|id| is_about(keys::ledger(*id))) {
            // Somebody used an id of ours: metadata has lost its tail (H14).
            tracing::warn!(ledger = id.0, "ledger id was in use, taking another");
            return Ok(());
        }
        match ending {
            Some(info) if is_about(keys::under_replicated(info.id)) => Ok(()),
            Some(info) if is_about(keys::ledger(info.id)) => {
                *info = ledger_metadata::load_existing(&*self.ctx.ledgers.store, info.id).await?;
                // An ensemble change of our own writer, or somebody else's recovery.
                match plan.writer.is_some() && info.state != LedgerState::Open {
                    true => Err(TurnError::Superseded),
                    false => Ok(()),
                }
            }
            _ => Err(TurnError::Log(conflict.into())),
        }
    }

    async fn change_record(
        &self,
        plan: &Turn,
        operations: Vec<Operation>,
        ending_removed: bool,
        new: Option<LedgerId>,
        doubt: &mut bool,
    ) -> Result<aquifer_metadata::store::Revision, LogError> {
        let change = |record: &mut aquifer_proto::v1::TopicRecord| {
            let segments = self.segments_of(record);
            // Only the owner changes the list: another list means another owner. A trim of our
            // own may have shortened it at the front meanwhile.
            let ids: Vec<u64> = segments.iter().map(|s| s.ledger_id).collect();
            let ending_is_gone = plan.ending.is_some() && ids.is_empty();
            if !plan.known.ends_with(&ids) || ending_is_gone {
                return Err(LogError::Fenced);
            }
            if ending_removed && self.kind == LogKind::Cursors && ids.len() < 2 {
                let trimmed = "the cursor log is being trimmed".to_owned();
                return Err(LogError::Unavailable(trimmed));
            }
            if let (Some(ending), Some(last)) = (&plan.ending, segments.last_mut()) {
                *last = ending.sealed_record();
            }
            let removed = ending_removed.then(|| segments.pop()).flatten();
            if let Some(id) = new {
                segments.push(aquifer_proto::v1::SegmentRecord {
                    ledger_id: id.0,
                    first_index: plan.first_index.0,
                    ..Default::default()
                });
            }
            if self.kind == LogKind::Messages {
                note_removed(record, removed);
            }
            // With no segment left, this is all that says where the log ends.
            if self.kind == LogKind::Messages && record.segments.is_empty() {
                record.trimmed_index = record.trimmed_index.max(plan.first_index.0);
            }
            Ok(())
        };
        let opens = new.is_some();
        self.cell
            .update_in_doubt(operations, change, opens, doubt)
            .await
    }

    async fn new_ledger(&self, known: &[u64], wanted: Quorum) -> Result<LedgerInfo, LedgerError> {
        // Positions rise along a topic, those included that were trimmed (I5).
        let removed = match self.kind {
            LogKind::Messages => self.cell.record().last_ledger_id,
            LogKind::Cursors => 0, // its last segment stays
        };
        let above = LedgerId(known.iter().copied().max().unwrap_or_default().max(removed));
        let rng = &*self.ctx.ledgers.rng;
        let settings = &self.ctx.ledgers.settings;
        let (quorum, members) = self.ctx.ledgers.bookies.ensemble(
            wanted,
            settings.zones_min,
            settings.shrink_ensembles,
            rng,
        )?;
        if quorum != wanted {
            tracing::warn!(%quorum, %wanted, "too few bookies: the new ledger has a smaller ensemble");
        }
        Ok(LedgerInfo {
            id: self
                .ctx
                .ledgers
                .shared
                .ledger_ids
                .next(&*self.ctx.ledgers.store, above)
                .await?,
            token: CreationToken(rng.id16()),
            quorum,
            state: LedgerState::Open,
            offload: None,
            fragments: [(EntryId::FIRST, members)].into(),
            home: self.cell.partition().to_owned(),
            recovery_epoch: 0,
            created_ms: self.ctx.ledgers.clock.wall_ms(),
            revision: aquifer_metadata::store::Revision(0),
        })
    }

    /// Finds out where the current ledger ends, however long that takes: until then the outcome
    /// of pending appends is unknown, and telling anything about them could be wrong (I8).
    async fn recover(&self) {
        let (ledger, error) = {
            let mut state = self.state.lock();
            if let Some(current) = state.current.take() {
                current.writer.finish();
            }
            let unknown = || LogError::Unavailable("the ledger was recovered".to_owned());
            let ledger = state.segments.back().map(|segment| segment.ledger);
            (ledger, state.failure.clone().unwrap_or_else(unknown))
        };
        let Some(ledger) = ledger else {
            return self.fail_pending(&error, Phase::Suspended);
        };
        let mut backoff = self.ctx.ledgers.settings.retry_backoff_min;
        loop {
            let trouble = match self.try_recover(ledger).await {
                Ok(last_entry) => return self.settle_recovered(last_entry, &error),
                Err(trouble) => trouble,
            };
            let closing = self.state.lock().closing;
            let over = closing || self.ctx.ledgers.tasks.shutdown_token().is_shutdown();
            if !trouble.is_retryable() || over {
                tracing::warn!(ledger = ledger.0, error = %trouble, "ledger cannot be recovered, the log is closed");
                // What became of pending appends is not known: no error may promise that they are
                // not stored.
                let told = match trouble.is_retryable() {
                    true => LogError::Closed,
                    false => trouble,
                };
                return self.fail_pending(&told, Phase::Closed(told.clone()));
            }
            tracing::warn!(ledger = ledger.0, error = %trouble, "ledger recovery failed, trying again");
            clock::sleep(self.ctx.ledgers.rng.jitter(backoff)).await;
            backoff = (backoff * 2).min(self.ctx.ledgers.settings.retry_backoff_max);
        }
    }

    async fn try_recover(&self, ledger: LedgerId) -> Result<Option<EntryId>, LogError> {
        // Fenced by a recovery, or by another owner? The epoch says (H10).
        self.cell.check_owner().await?;
        // Handed over, the recovery is the new owner's, whose guard is the same (H21).
        if self.cell.is_handed_over() {
            let info = ledger_metadata::load_existing(&*self.ctx.ledgers.store, ledger).await?;
            if info.state == LedgerState::InRecovery {
                return Err(LogError::Fenced);
            }
        }
        let (_, end) = close_by_recovery(&self.ctx.ledgers, ledger, &self.cell.guards()).await?;
        let state = self.state.lock();
        let acked = state.segments.back().and_then(Segment::last_entry);
        let sent = state.pending.iter().filter_map(|p| p.entry).next_back();
        if end.last_entry < acked || end.last_entry > sent.max(acked) {
            return Err(LogError::Damaged(format!(
                "ledger {ledger} was closed at {:?}, but entries up to {acked:?} were \
                 acknowledged and up to {sent:?} sent",
                end.last_entry
            )));
        }
        Ok(end.last_entry)
    }

    /// Asks the owner task for a seal and waits for it.
    pub(crate) async fn seal(&self, closing: bool) -> Result<(), LogError> {
        let answer = {
            let mut guard = self.state.lock();
            let state = &mut *guard;
            state.closing |= closing;
            match &state.phase {
                Phase::Closed(LogError::Closed) if closing => return Ok(()),
                Phase::Closed(error) => return Err(error.clone()),
                Phase::Suspended if !closing => return Ok(()),
                Phase::Idle | Phase::Ready | Phase::Suspended => state.phase = Phase::Turning,
                Phase::Turning | Phase::Recovering => {}
            }
            let (tell, answer) = oneshot::channel();
            state.waiting_for_seal.push(tell);
            self.own(state);
            let writer = state.current.as_ref().map(|current| current.writer.clone());
            drop(guard);
            if let Some(writer) = writer {
                writer.hurry();
            }
            answer
        };
        let gone = || LogError::Unavailable("the process is shutting down".to_owned());
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}

/// Keeps the highest id of ledgers that the record does not list any more.
pub(super) fn note_removed(
    record: &mut aquifer_proto::v1::TopicRecord,
    removed: impl IntoIterator<Item = aquifer_proto::v1::SegmentRecord>,
) {
    for segment in removed {
        record.last_ledger_id = record.last_ledger_id.max(segment.ledger_id);
    }
}

/// Where a log goes after a turn.
fn rest(state: &mut State) {
    state.phase = match (&state.current, state.closing) {
        (Some(_), closing) if closing || state.pending.len() > state.sent => Phase::Turning,
        (Some(_), _) => Phase::Ready,
        (None, _) if !state.pending.is_empty() => Phase::Turning,
        (None, true) => Phase::Closed(LogError::Closed),
        (None, false) => Phase::Idle,
    };
}

fn first_of(state: &State) -> Index {
    let front = state.segments.front();
    front.map_or(state.acked.index, |segment| segment.first_index)
}
