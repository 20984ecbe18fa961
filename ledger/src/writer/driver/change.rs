//! Ensemble changes: other bookies for those that failed, and the record with them (I6).

use aquifer_metadata::error::MetadataError;
use aquifer_model::id::{BookieId, EntryId};
use aquifer_runtime::clock;

use crate::deletion;
use crate::error::LedgerError;
use crate::ledger_metadata::{self, LedgerInfo, LedgerState};
use crate::writer::driver::Inner;
use crate::writer::machine::WriterEvent;

impl Inner {
    /// The last fragment's bookies with others in the places of those that failed.
    async fn replacements(
        &self,
        info: &LedgerInfo,
        failed: &[usize],
    ) -> Result<Vec<BookieId>, LedgerError> {
        let (_, members) = info.last_fragment();
        let (bookies, settings) = (&self.ctx.bookies, &self.ctx.settings);
        for &position in failed {
            bookies.quarantine(members[position], settings.quarantine);
        }
        let choose = |without: &[BookieId]| {
            bookies.replacements_without(
                info.quorum,
                settings.zones_min,
                &members,
                failed,
                without,
                &*self.ctx.rng,
            )
        };
        // Where no bookie can take the place, no metadata is asked (H8).
        choose(&[])?;
        choose(&deletion::named(&*self.ctx.store, self.ledger).await?)
    }

    /// The record with other bookies in the places of those that failed.
    async fn changed_record(
        &self,
        first_entry: EntryId,
        failed: &[usize],
    ) -> Result<LedgerInfo, LedgerError> {
        let mut info = self.state.lock().info.clone();
        let (last_first, _) = info.last_fragment();
        let members = self.replacements(&info, failed).await?;
        info.fragments.insert(first_entry.max(last_first), members);
        Ok(info)
    }

    /// Changes the record until that is done, of no use, or impossible.
    ///
    /// This is not `store.update`: the outcome must be known however long the store is away (H8),
    /// and each attempt has the guards of its moment. So attempts are not counted. They end when
    /// the process shuts down or the writer has lost its right.
    pub(super) async fn change_ensemble(
        &self,
        first_entry: EntryId,
        failed: &[usize],
    ) -> WriterEvent {
        // A record that may have been written, when the store itself could not tell. The same is
        // written again until one attempt is known to have succeeded, or none can any more: they
        // replace the same revision, so that at most one of them can. Another choice of bookies
        // could not be told apart from a foreign change.
        let mut in_doubt: Option<LedgerInfo> = None;
        loop {
            let mut info = match &in_doubt {
                Some(attempted) => attempted.clone(),
                None => match self.changed_record(first_entry, failed).await {
                    Ok(info) => info,
                    // Whether a deletion names a bookie is not known: nothing is placed on a guess.
                    Err(LedgerError::Metadata(MetadataError::Unavailable(_))) => {
                        if self.pause_ends_with_shutdown().await {
                            return WriterEvent::EnsembleChangeFailed;
                        }
                        continue;
                    }
                    Err(error) => {
                        tracing::warn!(ledger = self.ledger.0, %error, "a bookie that failed is not replaced");
                        return WriterEvent::EnsembleChangeFailed;
                    }
                },
            };
            let store = &*self.ctx.store;
            let guards = self.guards.now();
            match ledger_metadata::replace(store, &mut info, &guards).await {
                Ok(()) => {
                    let (_, members) = info.last_fragment();
                    self.state.lock().info = info;
                    return WriterEvent::EnsembleChanged { members };
                }
                Err(LedgerError::Metadata(
                    error @ (MetadataError::Conflict { .. } | MetadataError::UnknownOutcome(_)),
                )) => {
                    if matches!(error, MetadataError::UnknownOutcome(_)) {
                        in_doubt = Some(info);
                    }
                    if let Some(event) = self.look_again(&mut in_doubt).await {
                        return event;
                    }
                }
                // Without metadata no change can be made; entries that need none go on (H8).
                Err(LedgerError::Metadata(
                    MetadataError::Unavailable(_) | MetadataError::Full(_),
                )) => {}
                // The owner is the same still, only its guards were rewritten meanwhile.
                Err(LedgerError::Fenced) if guards != self.guards.now() => {}
                Err(LedgerError::Fenced) => return WriterEvent::Superseded,
                Err(_) if in_doubt.is_none() => return WriterEvent::EnsembleChangeFailed,
                Err(error) => {
                    tracing::debug!(ledger = self.ledger.0, %error, "whether bookies were replaced is not known");
                }
            }
            if self.pause_ends_with_shutdown().await {
                return WriterEvent::EnsembleChangeFailed;
            }
        }
    }

    /// Waits before another attempt; says at once when the process shuts down.
    async fn pause_ends_with_shutdown(&self) -> bool {
        if self.ctx.tasks.shutdown_token().is_shutdown() {
            return true;
        }
        let pause = self.ctx.settings.retry_backoff_min;
        clock::sleep(self.ctx.rng.jitter(pause)).await;
        false
    }

    /// Reads the record after a change that others have made impossible, or whose outcome is not
    /// known; the event if nothing is left to do. The doubt ends when the record has changed: no
    /// attempt can succeed any more.
    ///
    /// Then the last fragment that was attempted is compared with that of the record. This is the
    /// only place where a value tells an outcome. It is exact here: nothing but its writer changes
    /// the last fragment of an open ledger. If the record has another one, the change is made again
    /// from that record.
    async fn look_again(&self, in_doubt: &mut Option<LedgerInfo>) -> Option<WriterEvent> {
        match ledger_metadata::load_existing(&*self.ctx.store, self.ledger).await {
            Ok(current) if current.state == LedgerState::Open => {
                let attempted = in_doubt.take_if(|info| info.revision != current.revision);
                let (_, members) = current.last_fragment();
                let is_made = |info: LedgerInfo| info.last_fragment() == current.last_fragment();
                let was_made = attempted.is_some_and(is_made);
                self.state.lock().info = current;
                was_made.then_some(WriterEvent::EnsembleChanged { members })
            }
            Ok(_) | Err(LedgerError::BadRecord(..)) => Some(WriterEvent::Superseded),
            Err(_) => None,
        }
    }
}
