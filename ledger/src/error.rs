//! The errors of ledgers.

use aquifer_metadata::error::MetadataError;
use aquifer_model::storage::BookieError;
use thiserror::Error;

use crate::offload::OffloadError;

/// Why an operation on a single ledger failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LedgerError {
    /// A recovery has begun, or the ledger is closed: the writer is finished, and what became of
    /// pending adds is unknown to it.
    #[error("ledger is fenced or closed by a recovery")]
    Fenced,
    /// A bookie stopped answering well and no other can replace it.
    #[error("a bookie of the ensemble failed and no other can replace it: {0}")]
    NoReplacement(BookieError),
    /// Too few bookies for a new ensemble.
    #[error("needs {needed} writable bookies, {available} are known{hint}")]
    TooFewBookies {
        /// How many are needed.
        needed: usize,
        /// How many there are.
        available: usize,
        /// More about it.
        hint: &'static str,
    },
    /// Too few zones for a new ensemble whose write sets must span several.
    #[error("every write set must span {needed} zones, writable bookies are in: {zones}")]
    TooFewZones {
        /// How many zones are needed.
        needed: usize,
        /// Zones with writable bookies, and how many each has.
        zones: String,
    },
    /// Too few bookies answered to decide.
    #[error("too few bookies answered: {0}")]
    Undecided(BookieError),
    /// No replica has the entry as it was written.
    #[error("no replica has entry {entry} of ledger {ledger}: {last}")]
    Unreadable {
        /// The ledger.
        ledger: u64,
        /// The entry.
        entry: u64,
        /// What the last replica said.
        last: BookieError,
    },
    /// The ledger is being offloaded into an object store, or there.
    #[error(transparent)]
    Offload(#[from] OffloadError),
    /// The record of the ledger is not what it must be.
    #[error("ledger {0} has a damaged or missing record: {1}")]
    BadRecord(u64, String),
    /// The metadata store did not do it.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
}

impl LedgerError {
    /// Whether it says that no replica has what was stored any more, and another read will not
    /// either. What was deleted is not damaged.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            LedgerError::Unreadable { last, .. } => {
                *last != BookieError::Deleted && lacks_entry(last)
            }
            _ => false,
        }
    }
}

/// Whether an answer to a read says that the replica has not the entry as it was written, and will
/// not by itself.
#[must_use]
pub fn lacks_entry(answer: &BookieError) -> bool {
    match answer {
        BookieError::NoSuchEntry
        | BookieError::NoSuchLedger
        | BookieError::Deleted
        | BookieError::Token
        | BookieError::Conflict
        | BookieError::Digest(_)
        | BookieError::EndHidden(_) => true,
        BookieError::Limbo
        | BookieError::Fenced
        | BookieError::Overloaded
        | BookieError::ReadOnly(_)
        | BookieError::Io(_)
        | BookieError::Invalid(_)
        | BookieError::ShuttingDown
        | BookieError::Unreachable(_)
        | BookieError::Timeout => false,
    }
}
