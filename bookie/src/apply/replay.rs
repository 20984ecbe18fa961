//! Commits that are read back from the journal to be applied to the store: at a start, and when the
//! store has opened again.

use std::collections::HashMap;

use aquifer_model::id::LedgerId;

use crate::journal::commit::CommittedRecord;
use crate::journal::record::{RecordKind, RecordRef};
use crate::journal::replay::FoundCommit;
use crate::ledger_state::LedgerMeta;
use crate::store::{ApplyTarget, StoreError};

/// Ledger records that replay remembers.
const REPLAY_LEDGERS_MAX: usize = 65_536;

/// What can go wrong while the journal is replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The journal could not be read.
    #[error("journal: {0}")]
    Journal(#[from] std::io::Error),
    /// The store refused.
    #[error(transparent)]
    Store(StoreError),
}

/// Applies commits that are read from the journal, one write each.
#[derive(Debug, Default)]
pub struct Replayer {
    metas: HashMap<LedgerId, Option<LedgerMeta>>,
    /// Ledgers that were deleted.
    pub deleted: Vec<LedgerId>,
    /// Records that were applied.
    pub records: usize,
}

impl Replayer {
    /// Applies one commit.
    pub fn apply(
        &mut self,
        target: &dyn ApplyTarget,
        found: FoundCommit,
    ) -> Result<(), StoreError> {
        if self.metas.len() > REPLAY_LEDGERS_MAX {
            self.metas.clear();
        }
        let mut records = Vec::new();
        let mut rest = found.records();
        while let Some(record) = rest.next() {
            let (stored, mut meta) = match self.metas.get(&record.ledger) {
                Some(meta) => (*meta, meta.unwrap_or(LedgerMeta::new(record.token))),
                None => stored_meta(target, &record)?,
            };
            meta.apply(record.kind);
            let value_end = rest.offset();
            records.push(CommittedRecord {
                ledger: record.ledger,
                kind: record.kind,
                number: 0,
                value: value_end - record.value.len()..value_end,
                meta: (stored != Some(meta)).then_some(meta),
                _permit: None,
            });
            if record.kind == RecordKind::Delete {
                self.deleted.push(record.ledger);
            }
            self.metas.insert(record.ledger, Some(meta));
        }
        self.records += records.len();
        let commit = found.with(records);
        let sequence = commit.sequence;
        target.apply(&[commit], sequence)
    }
}

/// The stored record of a ledger, and what is known of it when a record of the journal comes: one
/// that is damaged may have said that the ledger is fenced.
fn stored_meta(
    target: &dyn ApplyTarget,
    record: &RecordRef<'_>,
) -> Result<(Option<LedgerMeta>, LedgerMeta), StoreError> {
    match target.ledger(record.ledger) {
        Ok(stored) => {
            let known = stored.unwrap_or(LedgerMeta::new(record.token));
            Ok((stored, known.of(record.token)))
        }
        Err(error @ StoreError::Damaged(_)) => {
            let ledger = record.ledger;
            tracing::error!(%ledger, %error, "the record of a ledger cannot be read");
            Ok((None, LedgerMeta::lost().of(record.token)))
        }
        Err(error) => Err(error),
    }
}
