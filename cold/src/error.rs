//! The errors of object stores, few enough that each asks for another reaction.

use thiserror::Error;

use crate::format::FormatError;

/// Why an object was not read, written or deleted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ColdError {
    /// The store says that there is no such object. A missing bucket says the same: it counts only
    /// beside a marker that was read.
    #[error("there is no object {0}")]
    NotFound(String),
    /// There is an object of that name.
    #[error("object {0} exists already")]
    AlreadyExists(String),
    /// The store refuses: credentials or rights are missing.
    #[error("the object store refuses: {0}; check its credentials and rights")]
    Denied(String),
    /// It did not answer well in time. Retry; a change may have been made.
    #[error("the object store is unavailable: {0}")]
    Unavailable(String),
    /// The object is not what was written.
    #[error("object {name} is damaged: {reason}")]
    Damaged {
        /// Its name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// This is another place than the record says: nothing there is judged, written or deleted.
    #[error("{url} is not the place of this cluster's objects: {reason}")]
    WrongPlace {
        /// The place.
        url: String,
        /// What was found.
        reason: String,
    },
    /// A setting makes no sense, or is missing.
    #[error("cold.store: {0}")]
    Config(String),
    /// The metadata store did not answer.
    #[error(transparent)]
    Metadata(#[from] aquifer_metadata::error::MetadataError),
}

/// What became of a request to an object store.
pub type ColdResult<T> = Result<T, ColdError>;

impl ColdError {
    /// An object that is not what its format says.
    #[must_use]
    pub fn damaged(name: &str, reason: &FormatError) -> ColdError {
        ColdError::Damaged {
            name: name.to_owned(),
            reason: reason.to_string(),
        }
    }
}
