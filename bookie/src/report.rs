//! What a bookie says about itself: its mode, its limbo, its journal.

use aquifer_model::id::{EntryId, LedgerId};

/// Whether normal adds are accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BookieMode {
    /// Everything is served.
    Writable,
    /// Normal adds are refused; reads, fences and recovery are served.
    ReadOnly(String),
    /// A sync failed or the bookie is stopping: nothing is acknowledged any more.
    Failed(String),
}

/// A ledger that a loss may have touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerLoss {
    /// The ledger.
    pub ledger: LedgerId,
    /// The last entry that is still here.
    pub last_entry: Option<EntryId>,
    /// Whether it is fenced as far as is still known.
    pub fenced: bool,
}

/// Journal commits that are gone although they were, or may have been, acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LossReport {
    /// First commit that is missing.
    pub first_commit: u64,
    /// Last commit that is known to be missing.
    pub last_commit: u64,
    /// What was found.
    pub reason: String,
    /// Ledgers that may have lost entries or fences; ledgers of which nothing is left are not
    /// known here.
    pub ledgers: Vec<LedgerLoss>,
    /// Ledgers in danger beyond those listed.
    pub ledgers_not_listed: u64,
}

/// What the scrubber has seen since the start of the bookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScrubReport {
    /// Passes over everything that came to their end.
    pub passes: u64,
    /// Entries whose digests were checked.
    pub entries: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Entries that were damaged, whether or not they were repaired since.
    pub damaged: u64,
    /// The ledger at which it is.
    pub ledger: Option<LedgerId>,
}

/// A snapshot of a bookie's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BookieStatusReport {
    /// Whether normal adds are accepted.
    pub mode: BookieMode,
    /// The loss that keeps ledgers in limbo, when there is one.
    pub limbo: Option<LossReport>,
    /// Bytes of journal segments that are not trimmed yet.
    pub journal_live_bytes: u64,
    /// Bytes of all journal segments.
    pub journal_bytes: u64,
    /// Last commit that is synced.
    pub synced_commit: u64,
    /// Last commit that is in RocksDB.
    pub applied_commit: u64,
    /// Last commit that RocksDB has flushed, up to which the journal may be trimmed.
    pub flushed_commit: u64,
    /// Bytes of adds between their arrival and RocksDB.
    pub bytes_in_flight: u64,
    /// Bytes of RocksDB's files.
    pub store_bytes: u64,
    /// What the scrubber has seen since the start.
    pub scrub: ScrubReport,
}
