//! A rollover: the current ledger is sealed and the next one opened, in one transaction. Either
//! half may be missing: a log that closes opens no ledger, and an idle log has none to seal.
//!
//! Invariants:
//! - The record lists a ledger from the transaction that creates it to the one that writes its
//!   deletion intent.
//! - A record that is full gives its oldest segments to a page in the same transaction
//!   ([`crate::pages`]), so the bytes of a rollover are bounded.
//! - The list is changed by its owner only: a list that this process did not write means another
//!   owner.
//! - When it is not known whether the transaction was made, nothing is acknowledged before a
//!   recovery has found the end of the ledger (I4).

use aquifer_ledger::context::LedgerContext;
use aquifer_ledger::error::LedgerError;
use aquifer_ledger::ledger_metadata::{self, LedgerInfo, LedgerState};
use aquifer_ledger::marks::{self, Mark};
use aquifer_ledger::writer::driver::LedgerWriter;
use aquifer_ledger::writer::machine::LedgerEnd;
use aquifer_metadata::error::MetadataError;
use aquifer_metadata::keys;
use aquifer_metadata::store::{Expect, Operation, Revision};
use aquifer_model::id::{CreationToken, EntryId, Index, LedgerId};
use aquifer_model::quorum::Quorum;
use aquifer_proto::v1;

use crate::deletion;
use crate::error::LogError;
use crate::pages::{has_pages, move_oldest, page_in_use};
use crate::record::{RecordChange, note_removed};
use crate::state::{Current, LogInner, Phase, Segment, SegmentStatus, State};
use crate::types::LogKind;

/// Attempts of a rollover whose keys others change at the same time.
const ATTEMPTS_MAX: usize = 64;

/// One rollover, as it was decided from the state of the log.
struct Rollover {
    seal: Option<Seal>,
    /// The quorum of the ledger to open.
    open: Option<Quorum>,
    /// The current ledger can go on as well.
    may_wait: bool,
    /// Where the log ends, and the ledger to open begins.
    end: Index,
    /// Ledgers of the log as this process knows them.
    known: Vec<u64>,
}

/// The last ledger, if the record does not yet say that it is sealed.
struct Seal {
    segment: Segment,
    /// Its writer, if it is still open.
    writer: Option<LedgerWriter>,
    /// It has no entries and leaves no segment.
    removes: bool,
}

/// Why a rollover did not come to its end.
enum RolloverError {
    /// A recovery has begun on the current ledger.
    Superseded,
    /// Nothing was changed.
    Refused(LogError),
    /// It may have been made.
    Unknown(LogError),
}

impl<E: Into<LogError>> From<E> for RolloverError {
    fn from(error: E) -> RolloverError {
        RolloverError::Refused(error.into())
    }
}

impl Rollover {
    fn writer(&self) -> Option<&LedgerWriter> {
        self.seal.as_ref()?.writer.as_ref()
    }

    fn removes(&self) -> bool {
        self.seal.as_ref().is_some_and(|seal| seal.removes)
    }
}

impl LogInner {
    fn plan_rollover(&self) -> Rollover {
        let state = self.state.lock();
        let last = state.segments.back();
        let unsealed = last.filter(|segment| segment.status != SegmentStatus::Sealed);
        let seal = unsealed.map(|segment| Seal {
            segment: segment.clone(),
            writer: state.current.as_ref().map(|c| c.writer.clone()),
            // So a store that refuses everything does not fill the record. The cursor log keeps its
            // last segment, which says where it ends.
            removes: segment.entries == 0
                && (self.kind == LogKind::Messages || state.segments.len() > 1),
        });
        Rollover {
            seal,
            open: (!state.pending.is_empty()).then(|| self.quorum()),
            may_wait: !state.closing && state.waiting_for_seal.is_empty(),
            end: state.acked.index,
            known: state.segments.iter().map(|s| s.ledger.0).collect(),
        }
    }

    pub(super) async fn roll_over(&self) {
        let rollover = self.plan_rollover();
        if rollover.seal.is_none() && rollover.open.is_none() {
            let mut state = self.state.lock();
            state.sealed = Ok(());
            rest(&mut state);
            return;
        }
        let goes_on = rollover.writer().is_some() && rollover.may_wait;
        if goes_on && let Err(error) = self.reach_metadata().await {
            return self.rollover_failed(error);
        }
        if (rollover.open.is_some() || goes_on)
            && let Err(error) = self.find_room(goes_on)
        {
            return self.rollover_failed(error);
        }
        if let Some(writer) = rollover.writer() {
            writer.drain(self.ctx.ledgers.settings.close_wait).await;
        }
        match self.change_metadata(&rollover).await {
            Ok(done) => self.rolled_over(&rollover, done),
            // The ledger may be closed, and another owner may go on behind its end without a fence:
            // from here on nothing is acknowledged before that is known (I4).
            Err(RolloverError::Unknown(error)) if rollover.writer().is_some() => {
                tracing::warn!(%error, "whether the ledger was closed is not known");
                self.find_end(error);
            }
            Err(RolloverError::Superseded) => {
                let closed = "a recovery has closed the ledger".to_owned();
                self.find_end(LogError::Unavailable(closed));
            }
            Err(RolloverError::Refused(LogError::Metadata(MetadataError::Full(why)))) => {
                self.rollover_failed(LogError::StorageFull(format!("metadata is full: {why}")));
            }
            Err(RolloverError::Refused(error) | RolloverError::Unknown(error)) => {
                self.rollover_failed(error);
            }
        }
    }

    fn rolled_over(&self, rollover: &Rollover, opened: Option<LedgerInfo>) {
        if let Some(writer) = rollover.writer() {
            writer.finish();
        }
        let opened = opened.map(|info| self.writer_of(info));
        let now = self.ctx.ledgers.clock.monotonic();
        {
            let mut guard = self.state.lock();
            let state = &mut *guard;
            state.sealed = Ok(());
            state.current = None;
            state.roll_at = None;
            if rollover.removes() {
                state.segments.pop_back();
                state.first = first_of(state);
            } else if rollover.seal.is_some()
                && let Some(last) = state.segments.back_mut()
            {
                last.status = SegmentStatus::Sealed;
            }
            if let (Some(writer), Some(wanted)) = (&opened, rollover.open) {
                let segment = Segment::new(writer.ledger(), rollover.end);
                state.segments.push_back(segment);
                state.first = first_of(state);
                state.current = Some(Current {
                    writer: writer.clone(),
                    wanted,
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

    fn rollover_failed(&self, error: LogError) {
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
                if state.phase == Phase::RollingOver {
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

    /// Seals and opens in one transaction; answers the ledger that was opened.
    ///
    /// This is not `store.update`, which reads and decides one key again. Here the records of a
    /// topic and of two ledgers and a mark change together, and which of them was not as expected
    /// decides what is read again and whether the rollover still may be made.
    async fn change_metadata(
        &self,
        rollover: &Rollover,
    ) -> Result<Option<LedgerInfo>, RolloverError> {
        let mut sealing = match &rollover.seal {
            Some(Seal {
                writer: Some(writer),
                ..
            }) => Some(writer.info()),
            Some(Seal { segment, .. }) => Some(
                ledger_metadata::load_existing(&*self.ctx.ledgers.store, segment.ledger).await?,
            ),
            None => None,
        };
        for _ in 0..ATTEMPTS_MAX {
            let mut opened = match rollover.open {
                Some(quorum) => Some(self.new_ledger(&rollover.known, quorum).await?),
                None => None,
            };
            let mut operations = match (&rollover.seal, &mut sealing) {
                (Some(seal), Some(info)) => self.seal_operations(seal, info).await?,
                _ => Vec::new(),
            };
            operations.extend(opened.iter().map(|info| info.put(Expect::Absent)));
            let new = opened.as_ref().map(|info| info.id);
            match self.change_record(rollover, operations, new).await {
                RecordChange::Applied(revision) => {
                    if let Some(info) = &mut opened {
                        info.revision = revision;
                    }
                    if rollover.removes()
                        && let Some(info) = sealing
                    {
                        deletion::delete_in_background(&self.ctx, vec![info.id]);
                    }
                    return Ok(opened);
                }
                RecordChange::Refused(LogError::Metadata(
                    conflict @ MetadataError::Conflict { .. },
                )) => {
                    let sealing = sealing.as_mut();
                    self.after_conflict(rollover, conflict, new, sealing)
                        .await?;
                }
                RecordChange::Refused(error) => return Err(RolloverError::Refused(error)),
                RecordChange::Unknown(error) => return Err(RolloverError::Unknown(error)),
            }
        }
        let changing = "the records of its ledgers keep changing".to_owned();
        Err(RolloverError::Refused(LogError::Unavailable(changing)))
    }

    /// What a rollover does to the record of the ledger that it seals.
    async fn seal_operations(
        &self,
        seal: &Seal,
        info: &mut LedgerInfo,
    ) -> Result<Vec<Operation>, LedgerError> {
        let mut operations = Vec::new();
        if let Some(writer) = &seal.writer {
            info.state = LedgerState::Closed(LedgerEnd {
                last_entry: seal.segment.last_entry(),
                length: seal.segment.bytes,
            });
            operations.push(info.put(Expect::Revision(info.revision)));
            operations.extend(self.mark_incomplete(writer, info, &seal.segment).await?);
        }
        match (seal.removes, &seal.writer) {
            (true, Some(_)) => operations.push(deletion::intent(info)),
            (true, None) => operations.extend(deletion::intent_for(info)),
            (false, _) => {}
        }
        Ok(operations)
    }

    /// The mark of bookies that may lack entries of a ledger that its writer closes (H16).
    async fn mark_incomplete(
        &self,
        writer: &LedgerWriter,
        info: &LedgerInfo,
        segment: &Segment,
    ) -> Result<Option<Operation>, LedgerError> {
        let incomplete = writer.unconfirmed(info);
        if segment.entries == 0 || incomplete.is_empty() {
            return Ok(None);
        }
        let now_ms = self.ctx.ledgers.clock.wall_ms();
        let reason = "closed before every copy was confirmed";
        let mark = Mark::new(info.id, &info.home, reason, now_ms).incomplete(incomplete);
        let put = marks::put_merged(&*self.ctx.ledgers.store, &mark).await?;
        Ok(Some(put))
    }

    /// Learns what is different now, for another attempt.
    async fn after_conflict(
        &self,
        rollover: &Rollover,
        conflict: MetadataError,
        new: Option<LedgerId>,
        sealing: Option<&mut LedgerInfo>,
    ) -> Result<(), RolloverError> {
        let is_about = |wanted: String| match &conflict {
            MetadataError::Conflict { key, .. } => *key == wanted,
            _ => false,
        };
        if let Some(id) = new.filter(|id| is_about(keys::ledger(*id))) {
            // The id is in use already: metadata has lost its tail (H14).
            tracing::warn!(ledger = id.0, "ledger id was in use, taking another");
            return Ok(());
        }
        if let MetadataError::Conflict { key, .. } = &conflict
            && key.starts_with(&keys::segment_pages_prefix(self.cell.topic()))
        {
            return Err(RolloverError::Refused(page_in_use(key)));
        }
        match sealing {
            Some(info) if is_about(keys::under_replicated(info.id)) => Ok(()),
            Some(info) if is_about(keys::ledger(info.id)) => {
                *info = ledger_metadata::load_existing(&*self.ctx.ledgers.store, info.id).await?;
                // An ensemble change of this log's own writer, or a recovery by another process.
                match rollover.writer().is_some() && info.state != LedgerState::Open {
                    true => Err(RolloverError::Superseded),
                    false => Ok(()),
                }
            }
            _ => Err(RolloverError::Refused(conflict.into())),
        }
    }

    async fn change_record(
        &self,
        rollover: &Rollover,
        operations: Vec<Operation>,
        new: Option<LedgerId>,
    ) -> RecordChange {
        let change = |record: &mut v1::TopicRecord| {
            let segments = self.segments_of(record);
            // Only the owner changes the list: another list means another owner. A trim by this
            // process may have shortened it at the front meanwhile.
            let ids: Vec<u64> = segments.iter().map(|s| s.ledger_id).collect();
            let sealing_is_gone = rollover.seal.is_some() && ids.is_empty();
            if !rollover.known.ends_with(&ids) || sealing_is_gone {
                return Err(LogError::Fenced);
            }
            if rollover.removes() && self.kind == LogKind::Cursors && ids.len() < 2 {
                let trimmed = "the cursor log is being trimmed".to_owned();
                return Err(LogError::Unavailable(trimmed));
            }
            if let (Some(seal), Some(last)) = (&rollover.seal, segments.last_mut()) {
                *last = seal.segment.sealed_record();
            }
            let removed = rollover.removes().then(|| segments.pop()).flatten();
            if let Some(id) = new {
                segments.push(v1::SegmentRecord {
                    ledger_id: id.0,
                    first_index: rollover.end.0,
                    ..Default::default()
                });
            }
            if self.kind == LogKind::Cursors {
                return Ok(None);
            }
            note_removed(record, removed);
            // With no segment left, this is all that says where the log ends.
            if record.segments.is_empty() && !has_pages(record) {
                record.trimmed_index = record.trimmed_index.max(rollover.end.0);
            }
            move_oldest(self.cell.topic(), record, self.ctx.settings.paging)
        };
        self.cell.change(operations, new.is_some(), change).await
    }

    async fn new_ledger(&self, known: &[u64], wanted: Quorum) -> Result<LedgerInfo, LedgerError> {
        // Positions rise along a topic, those included that were trimmed (I5).
        let removed = match self.kind {
            LogKind::Messages => self.cell.record().last_ledger_id,
            LogKind::Cursors => 0, // its last segment stays
        };
        let above = LedgerId(known.iter().copied().max().unwrap_or_default().max(removed));
        unwritten_ledger(&self.ctx.ledgers, above, wanted, self.cell.partition()).await
    }
}

/// A ledger with an id above another one's, which is written nowhere yet.
pub(crate) async fn unwritten_ledger(
    ledgers: &LedgerContext,
    above: LedgerId,
    wanted: Quorum,
    home: &str,
) -> Result<LedgerInfo, LedgerError> {
    let (rng, settings) = (&*ledgers.rng, &ledgers.settings);
    let (quorum, members) =
        ledgers
            .bookies
            .ensemble(wanted, settings.zones_min, settings.shrink_ensembles, rng)?;
    if quorum != wanted {
        tracing::warn!(%quorum, %wanted, "too few bookies: the new ledger has a smaller ensemble");
    }
    let ids = &ledgers.shared.ledger_ids;
    Ok(LedgerInfo {
        id: ids.next(&*ledgers.store, above).await?,
        token: CreationToken(rng.id16()),
        quorum,
        state: LedgerState::Open,
        offload: None,
        fragments: [(EntryId::FIRST, members)].into(),
        home: home.to_owned(),
        recovery_epoch: 0,
        created_ms: ledgers.clock.wall_ms(),
        revision: Revision(0),
    })
}

/// Where a log goes after a rollover.
fn rest(state: &mut State) {
    state.phase = match (&state.current, state.closing) {
        (Some(_), closing) if closing || state.pending.len() > state.sent => Phase::RollingOver,
        (Some(_), _) => Phase::Ready,
        (None, _) if !state.pending.is_empty() => Phase::RollingOver,
        (None, true) => Phase::Closed(LogError::Closed),
        (None, false) => Phase::Idle,
    };
}

fn first_of(state: &State) -> Index {
    let front = state.segments.front();
    front.map_or(state.acked.index, |segment| segment.first_index)
}
