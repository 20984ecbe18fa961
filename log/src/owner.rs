//! The owner task of a log: it runs while a ledger is to be opened, sealed or recovered, finishes
//! what a cancelled caller began, and ends when the log rests. An idle log has no task.

use std::sync::Arc;

use aquifer_ledger::ledger_metadata::{self, LedgerState};
use aquifer_ledger::recovery::driver::close_by_recovery;
use aquifer_model::id::{EntryId, LedgerId};
use aquifer_runtime::clock;
use tokio::sync::oneshot;

use crate::error::LogError;
use crate::state::{LogInner, Phase, Segment, State};

/// What the owner task does next.
pub(super) enum Step {
    Drain,
    RollOver,
    Recover,
    Rest(
        Vec<oneshot::Sender<Result<(), LogError>>>,
        Result<(), LogError>,
    ),
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
                Step::RollOver => self.roll_over().await,
                Step::Recover => self.recover().await,
                Step::Rest(waiters, result) => {
                    for waiter in waiters {
                        // A caller that has gone away needs no answer.
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
            Phase::RollingOver if state.sent > 0 || state.telling => Step::Drain,
            Phase::RollingOver => Step::RollOver,
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

    /// The current ledger takes no more entries; a recovery says where it ends.
    pub(super) fn find_end(&self, because: LogError) {
        let mut state = self.state.lock();
        state.failure = Some(because);
        state.phase = Phase::Recovering;
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
                Ok(last_entry) => return self.decide_recovered(last_entry, &error),
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
                Phase::Idle | Phase::Ready | Phase::Suspended => state.phase = Phase::RollingOver,
                Phase::RollingOver | Phase::Recovering => {}
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
