//! Records of a log's ledgers, remembered for reads.

use std::sync::Arc;

use aquifer_ledger::ledger_metadata::{self, LedgerInfo, LedgerState};
use aquifer_ledger::reader::Wanted;
use aquifer_model::entry::EntryHead;
use aquifer_model::id::{EntryId, LedgerId};
use aquifer_model::storage::StoredEntry;

use crate::error::LogError;
use crate::read;
use crate::source::read_stored;
use crate::state::LogInner;

/// Ledger records kept per log.
const INFOS_MAX: usize = 64;

impl LogInner {
    pub(crate) async fn head_at(
        &self,
        ledger: LedgerId,
        entry: EntryId,
    ) -> Result<EntryHead, LogError> {
        let mut info = self.info(ledger).await?;
        loop {
            match read::head_at(&self.ctx, &info, entry).await {
                Ok(head) => return Ok(head),
                Err(error) => info = self.newer(&info, error).await?,
            }
        }
    }

    /// Reads entries of one of the log's ledgers, by its record in memory and by newer ones for as
    /// long as there are; with the record by which they were read.
    pub(crate) async fn read_entries(
        &self,
        ledger: LedgerId,
        wanted: Wanted,
    ) -> Result<(Arc<LedgerInfo>, Vec<StoredEntry>), LogError> {
        let mut info = self.info(ledger).await?;
        loop {
            match read_stored(&self.ctx, &info, wanted).await {
                Ok(stored) => return Ok((info, stored)),
                Err(error) => info = self.newer(&info, error).await?,
            }
        }
    }

    /// A newer record than that with which a read failed, or the error: repair may have replaced
    /// every bookie that the one in memory names.
    pub(crate) async fn newer(
        &self,
        info: &LedgerInfo,
        error: LogError,
    ) -> Result<Arc<LedgerInfo>, LogError> {
        let may_help = matches!(error, LogError::Damaged(_) | LogError::Unavailable(_));
        let was_kept = self.infos.lock().remove(&info.id).is_some();
        // Another read that failed with the record of a closed ledger may have removed it before.
        if !may_help || !(was_kept || matches!(info.state, LedgerState::Closed(_))) {
            return Err(error); // it was read just now, or is the writer's
        }
        match self.info(info.id).await {
            Ok(now) if now.revision != info.revision => Ok(now),
            Ok(_) | Err(_) => Err(error),
        }
    }

    /// The record of one of the log's ledgers, from memory if it was used lately.
    pub(crate) async fn info(&self, ledger: LedgerId) -> Result<Arc<LedgerInfo>, LogError> {
        let open = {
            let state = self.state.lock();
            let current = state.current.as_ref();
            current
                .filter(|c| c.writer.ledger() == ledger)
                .map(|c| c.writer.clone())
        };
        // The writer knows of ensemble changes first.
        if let Some(writer) = open {
            return Ok(Arc::new(writer.info()));
        }
        if let Some(info) = self.infos.lock().get(&ledger) {
            return Ok(Arc::clone(info));
        }
        let info =
            Arc::new(ledger_metadata::load_existing(&*self.ctx.ledgers.store, ledger).await?);
        // What is still open in the record may get other fragments.
        if matches!(info.state, LedgerState::Closed(_)) {
            let mut infos = self.infos.lock();
            if infos.len() >= INFOS_MAX {
                infos.pop_first();
            }
            infos.insert(ledger, Arc::clone(&info));
        }
        Ok(info)
    }
}
