//! The topic log: an endless log of messages over a list of ledgers.
//!
//! Owns: the order of appends and their dense indexes, the current ledger and its rollover, what
//! becomes of appends when a ledger fails (H10), reads across ledgers, trimming. Invariants:
//! - Outcomes reach sinks exactly once each, in the order of the appends.
//! - No entry goes to a ledger before the end of the former is fixed in metadata.
//! - The next index comes from the head of the last entry, never from counting (H10).
//! - Only what is acknowledged is readable here.
//! - Where the bytes of a closed ledger are, at bookies or in an object, changes nothing that a
//!   reader sees.
//!
//! It knows nothing of producers, subscriptions or deduplication.
#![deny(missing_docs)]

mod append;
pub mod backup;
pub mod cache;
pub mod context;
mod deletion;
pub mod error;
mod heads;
mod info;
pub mod inventory;
mod locate;
pub mod metrics;
pub mod offload;
mod open;
mod owner;
pub mod pages;
mod probe;
mod ranges;
mod read;
mod readiness;
mod record;
mod rollover;
mod search;
mod sizes;
mod source;
mod state;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod topic_log;
mod trim;
mod types;
mod window;

pub use probe::Fence;
pub use read::ReadPoint;
pub use record::TopicRecordCell;
pub use record::given_up::delete_given_up;
pub use record::restoring::{RestoredLedger, RestoringTopic};
pub use topic_log::TopicLog;
pub use trim::{TrimDue, first_due_on_record};
pub use types::{
    Append, AppendSink, Appended, Damage, Found, LedgerStat, LogEntry, LogHead, LogKind,
    LogOptions, LogStats, ReadLimits, SegmentState,
};
