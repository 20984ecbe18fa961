//! What a store refuses.

use thiserror::Error;

/// What a store, or what it holds, refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StoreError {
    /// What it stands on said so.
    #[error("{0}")]
    Failed(String),
    /// Bytes that are not what should be there, or that the disk does not give back.
    #[error("ledger store is damaged: {0}")]
    Damaged(String),
    /// The disk has no room.
    #[error("the disk is full: {0}")]
    Full(String),
    /// It is closed, or could not be opened again after an error.
    #[error("ledger store is closed: {0}")]
    Closed(String),
}
