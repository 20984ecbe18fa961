//! The ledgers of one log on their way back to bookies, by command: which are asked for, and when
//! their copies go again. One ledger is brought back at a time, by the task that offloads (`care`).

use std::ops::Range;
use std::sync::Arc;

use aquifer_ledger::deletion;
use aquifer_ledger::ledger_metadata::LedgerInfo;
use aquifer_ledger::objects::imports;
use aquifer_ledger::offload::{Copies, Offload};
use aquifer_model::id::{Index, LedgerId};

use crate::error::LogError;
use crate::offload::care::Offloading;
use crate::offload::import::{Begun, forget, forget_any, import_ledger};
use crate::offload::known::Known;
use crate::offload::tier::ColdTier;
use crate::state::{LogInner, Segment};
use crate::types::LogKind;

impl LogInner {
    /// Has the ledgers of some messages re-imported that bookies have no copies of, in the
    /// background, and says how many are left.
    pub(crate) async fn request_import(&self, range: Range<Index>) -> Result<Offloading, LogError> {
        let takes_objects = self.takes_objects();
        if self.kind != LogKind::Messages || !takes_objects {
            return Err(LogError::Invalid(
                "this cluster keeps no objects: start brokers with --cold-store URL".to_owned(),
            ));
        }
        // What was done with before is looked at again.
        self.learn(range.start, usize::MAX).await?;
        let mut found = Offloading::default();
        {
            let mut state = self.offload.lock();
            found.failure = state.failure.take();
        }
        for segment in self.to_import(&range) {
            found.ledgers += 1;
            found.bytes += segment.bytes;
        }
        if found.ledgers > 0 && found.failure.is_none() {
            {
                let mut state = self.offload.lock();
                let asked = match &state.import {
                    Some(now) => now.start.min(range.start)..now.end.max(range.end),
                    None => range,
                };
                state.import = Some(asked);
            }
            self.begin_offload(Index(0));
        }
        Ok(found)
    }

    /// Ends the re-import that was asked for: the ledger that is being written is given up, and
    /// those that are back stay as long as they would have.
    pub(crate) fn cancel_import(&self) {
        let mut state = self.offload.lock();
        if state.import.take().is_some() {
            state.import_cancelled.notify_one();
        }
    }

    /// Whether ledgers wait to be re-imported.
    pub(super) fn awaits_import(&self) -> bool {
        self.offload.lock().import.is_some()
    }

    fn takes_objects(&self) -> bool {
        let tier = self.ctx.cold.as_ref();
        tier.is_some_and(|tier| tier.locations.takes_objects())
    }

    /// The segments with messages of a range whose copies are gone or on their way, oldest first.
    fn to_import(&self, range: &Range<Index>) -> Vec<Segment> {
        let mut sealed = self.sealed();
        let state = self.offload.lock();
        sealed.retain(|segment| {
            let copies = state.known.get(&segment.ledger).and_then(Known::copies);
            let is_away = matches!(copies, Some(Copies::Gone | Copies::Coming { .. }));
            is_away && segment.first_index < range.end && segment.end_index > range.start
        });
        sealed
    }

    /// Gives up what an earlier owner, or a run that ended early, has left in the middle.
    pub(super) async fn give_up_imports(&self) -> Result<(), LogError> {
        let coming: Vec<LedgerId> = {
            let state = self.offload.lock();
            let is_coming = |known: &Known| matches!(known.copies(), Some(Copies::Coming { .. }));
            let found = state.known.iter().filter(|(_, known)| is_coming(known));
            found.map(|(ledger, _)| *ledger).collect()
        };
        for ledger in coming {
            forget_any(&self.ctx, ledger).await?;
            self.look_again(ledger).await?;
        }
        Ok(())
    }

    async fn look_again(&self, ledger: LedgerId) -> Result<(), LogError> {
        self.infos.lock().remove(&ledger);
        Ok(self.look(ledger).await?)
    }

    /// Brings back what was asked for, one ledger after the other, until it is cancelled.
    pub(super) async fn import_due(&self, tier: &ColdTier) -> Result<(), LogError> {
        let cancelled = Arc::clone(&self.offload.lock().import_cancelled);
        loop {
            let asked = self.offload.lock().import.clone();
            let Some(asked) = asked else {
                return Ok(());
            };
            self.give_up_imports().await?;
            let Some(next) = self.to_import(&asked).into_iter().next() else {
                let mut state = self.offload.lock();
                // More may have been asked for meanwhile.
                if state.import.as_ref() == Some(&asked) {
                    state.import = None;
                }
                continue;
            };
            self.reopen_mark(next.first_index).await?;
            // Never closed.
            let turn = tier.workers.acquire().await.ok();
            let (work, begun) = ((next.ledger, self.quorum()), Begun::new());
            let done = tokio::select! {
                done = import_ledger(&self.ctx, tier, work, &begun) => done,
                () = cancelled.notified() => Ok(false),
            };
            drop(turn);
            let cleaned = forget(&self.ctx, next.ledger, &begun).await;
            self.look_again(next.ledger).await?;
            match done {
                Ok(true) => self.ctx.metrics.imported_bytes.add(next.bytes, &[]),
                Ok(false) => {}
                // It was trimmed meanwhile.
                Err(_) if !self.sealed().iter().any(|s| s.ledger == next.ledger) => {}
                Err(error) => return Err(error),
            }
            cleaned?;
        }
    }

    /// Has the record of the topic say that there is something to look after from an index on: a
    /// later owner finds what this one may leave in the middle.
    async fn reopen_mark(&self, first: Index) -> Result<(), LogError> {
        let mut mark = self.cell.offload_mark();
        if mark.dropped_end <= first.0 {
            return Ok(());
        }
        mark.dropped_end = first.0;
        mark.copies_since_ms = 1;
        let noted = self.cell.update(Vec::new(), |record| {
            record.offloaded = Some(mark);
            Ok(())
        });
        noted.await.map(drop)
    }

    /// Lets re-imported copies go whose lag is over, while the object of their ledger is there.
    pub(super) async fn drop_imported(
        &self,
        tier: &ColdTier,
        info: &LedgerInfo,
    ) -> Result<(), LogError> {
        let Some(Offload::Stored {
            attempt,
            object,
            copies: Copies::Imported { into, since_ms },
        }) = &info.offload
        else {
            return Ok(());
        };
        let now_ms = self.ctx.ledgers.clock.wall_ms();
        if !self.offload_policy(tier).lag_is_over(*since_ms, now_ms) {
            return Ok(());
        }
        self.check_object(tier, object).await?;
        let store = &*self.ctx.ledgers.store;
        if imports::forget(store, info.id, *attempt, *into).await? {
            self.infos.lock().remove(&info.id);
            self.ctx.metrics.dropped_ledgers.add(1, &[]);
            let carried = deletion::carry_out(&self.ctx.ledgers, *into).await;
            if let Err(error) = carried {
                tracing::debug!(ledger = %info.id, %into, %error, "copies are not deleted yet");
            }
        }
        Ok(())
    }
}
