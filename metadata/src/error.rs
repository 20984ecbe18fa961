//! The errors of the metadata store.

use thiserror::Error;

use crate::store::Revision;

/// Why a metadata operation did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MetadataError {
    /// A key was not as expected; nothing was changed (I6).
    #[error("metadata conflict on {key}: it is at {current:?}")]
    Conflict {
        /// The key.
        key: String,
        /// Its revision, or `None` if it does not exist.
        current: Option<Revision>,
    },
    /// The request breaks a limit or a rule of the store; retrying is of no use.
    #[error("bad metadata request: {0}")]
    Invalid(String),
    /// The store does not let this process in, or not do this.
    #[error("metadata store refuses: {0}")]
    Denied(String),
    /// A stored value is not what its key promises.
    #[error("damaged metadata at {key}: {reason}")]
    Damaged {
        /// The key, or the file.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The record was written by a newer build, which may have put into it what this one would
    /// erase; nothing was changed.
    #[error(
        "{key} is a {kind} record of format version {found}, and this build knows {newest}: it is \
         left as it is; upgrade this process to the newest version that runs in the cluster"
    )]
    NewerFormat {
        /// The key.
        key: String,
        /// What kind of record it is.
        kind: &'static str,
        /// Its format version.
        found: u32,
        /// The newest version of this kind that this build knows.
        newest: u32,
    },
    /// The store cannot be reached or written; nothing was changed.
    #[error("metadata store is unavailable: {0}")]
    Unavailable(String),
    /// The store has no room for it; nothing was changed. Retry when there is room again.
    #[error("metadata is full: {0}")]
    Full(String),
    /// The store did not answer; the change may have been made.
    #[error("metadata store did not answer, the change may have been made: {0}")]
    UnknownOutcome(String),
    /// The session has expired or was closed.
    #[error("metadata session has expired")]
    SessionExpired,
}

/// Result of every metadata operation.
pub type MetadataResult<T> = Result<T, MetadataError>;
