//! The errors of the topic log, few enough that each asks for another reaction.

use aquifer_ledger::error::LedgerError;
use aquifer_metadata::error::MetadataError;
use aquifer_model::storage::BookieError;
use thiserror::Error;

/// Why a topic log did not do what was asked. Each variant says whether to retry.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LogError {
    /// Too much is in flight; nothing was changed. Retry after a while.
    #[error("too many bytes are in flight to storage: retry later")]
    Overloaded,
    /// No bookie takes new entries. Retry when space is back; reading goes on.
    #[error("storage takes no new entries: {0}")]
    StorageFull(String),
    /// Storage did not do it in time. Retry; an append that reports this is not stored.
    #[error("storage is unavailable: {0}")]
    Unavailable(String),
    /// Another owner has taken over. Never retry here; what was pending may be stored.
    #[error("another owner has taken over this topic")]
    Fenced,
    /// Another owner is to take over, and no ledger is opened here any more. Nothing was stored;
    /// ask the new owner.
    #[error("another owner is taking over this topic")]
    HandedOver,
    /// The log was closed.
    #[error("the topic log is closed")]
    Closed,
    /// The topic exists already.
    #[error("the topic exists already")]
    AlreadyExists,
    /// Stored data is missing or wrong on every replica.
    #[error("stored data is damaged: {0}")]
    Damaged(String),
    /// Every replica that could tell may have lost data in an unclean stop (H6).
    #[error("ledger is in limbo: {0}")]
    Limbo(String),
    /// The metadata store did not do it.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The request makes no sense.
    #[error("bad request: {0}")]
    Invalid(String),
}

impl LogError {
    /// Whether the same request may succeed later against the same log.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            LogError::Overloaded | LogError::StorageFull(_) | LogError::Unavailable(_) => true,
            LogError::Metadata(error) => matches!(
                error,
                MetadataError::Unavailable(_)
                    | MetadataError::UnknownOutcome(_)
                    | MetadataError::Full(_)
            ),
            LogError::Fenced
            | LogError::HandedOver
            | LogError::Closed
            | LogError::AlreadyExists
            | LogError::Damaged(_)
            | LogError::Limbo(_)
            | LogError::Invalid(_) => false,
        }
    }
}

impl From<LedgerError> for LogError {
    fn from(error: LedgerError) -> LogError {
        match error {
            LedgerError::Fenced => LogError::Fenced,
            LedgerError::NoReplacement(cause) | LedgerError::Undecided(cause) => match cause {
                BookieError::ReadOnly(reason) => LogError::StorageFull(reason),
                BookieError::Limbo => LogError::Limbo(
                    "a bookie may have lost entries in an unclean stop, and no other has them"
                        .to_owned(),
                ),
                other => LogError::Unavailable(other.to_string()),
            },
            LedgerError::TooFewBookies { .. } | LedgerError::TooFewZones { .. } => {
                LogError::StorageFull(error.to_string())
            }
            error if error.is_damage() => LogError::Damaged(error.to_string()),
            LedgerError::Unreadable { ref last, .. } => match last {
                BookieError::Limbo => LogError::Limbo(error.to_string()),
                // It was trimmed a moment ago: a read that is repeated begins at the first index
                // left.
                BookieError::Deleted => LogError::Unavailable(error.to_string()),
                _ => LogError::Unavailable(error.to_string()),
            },
            // Another place is to be read.
            LedgerError::Offload(_) => LogError::Unavailable(error.to_string()),
            LedgerError::BadRecord(..) => LogError::Damaged(error.to_string()),
            LedgerError::Metadata(error) => LogError::Metadata(error),
        }
    }
}
