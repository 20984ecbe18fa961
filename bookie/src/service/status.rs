//! Failures of a bookie as codes on the wire: the one place where they are mapped.

use aquifer_model::storage::BookieError;
use aquifer_proto::v1::BookieStatus;

/// The code of a failure.
pub(super) fn code(error: &BookieError) -> BookieStatus {
    match error {
        BookieError::NoSuchLedger => BookieStatus::NoSuchLedger,
        BookieError::NoSuchEntry => BookieStatus::NoSuchEntry,
        BookieError::Fenced => BookieStatus::Fenced,
        BookieError::Limbo => BookieStatus::Limbo,
        BookieError::Overloaded => BookieStatus::Overloaded,
        BookieError::ReadOnly(_) => BookieStatus::ReadOnly,
        // A bookie does not call others; were these to happen, its answer is as good as none.
        BookieError::Io(_) | BookieError::Unreachable(_) | BookieError::Timeout => {
            BookieStatus::IoError
        }
        BookieError::Digest(_) => BookieStatus::Digest,
        BookieError::EndHidden(_) => BookieStatus::EndHidden,
        BookieError::Token => BookieStatus::Token,
        BookieError::Conflict => BookieStatus::Conflict,
        BookieError::Deleted => BookieStatus::Deleted,
        BookieError::Invalid(_) => BookieStatus::Invalid,
        BookieError::ShuttingDown => BookieStatus::ShuttingDown,
    }
}

/// What a code leaves out.
pub(super) fn detail(error: &BookieError) -> String {
    match error {
        BookieError::ReadOnly(detail)
        | BookieError::Io(detail)
        | BookieError::Digest(detail)
        | BookieError::EndHidden(detail)
        | BookieError::Invalid(detail)
        | BookieError::Unreachable(detail) => detail.clone(),
        BookieError::NoSuchLedger
        | BookieError::NoSuchEntry
        | BookieError::Fenced
        | BookieError::Limbo
        | BookieError::Overloaded
        | BookieError::Token
        | BookieError::Conflict
        | BookieError::Deleted
        | BookieError::ShuttingDown
        | BookieError::Timeout => String::new(),
    }
}
