//! Bookies and ledgers as their records show them to people.

use crate::id::{BookieId, EntryId, LedgerId};
use crate::quorum::Quorum;

/// A bookie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BookieView {
    /// Its identity.
    pub bookie: BookieId,
    /// `writable`, `read-only`, `limbo`, `draining`, `decommissioned`, `away`, or `away, draining`.
    pub state: &'static str,
    /// Where it is reached; empty when it is away.
    pub address: String,
    /// Its zone.
    pub zone: String,
    /// Bytes that it can still take.
    pub free_bytes: u64,
    /// Bytes of its storage.
    pub capacity_bytes: u64,
    /// An operator wants it empty.
    pub draining: bool,
    /// Since when it is gone for good; 0: it is not.
    pub decommissioned_ms: u64,
    /// Since when it lost synced data and is not restored; 0: it is whole.
    pub limbo_since_ms: u64,
    /// Directories of its storage.
    pub directories: Vec<String>,
    /// How many ledgers it must hold something of; `None`: they were not counted.
    pub ledgers: Option<u64>,
}

impl BookieView {
    /// The state of a bookie that is not registered.
    pub const AWAY: &'static str = "away";

    /// A bookie of which only ledgers tell.
    #[must_use]
    pub fn away(bookie: BookieId) -> BookieView {
        BookieView {
            bookie,
            state: BookieView::AWAY,
            address: String::new(),
            zone: String::new(),
            free_bytes: 0,
            capacity_bytes: 0,
            draining: false,
            decommissioned_ms: 0,
            limbo_since_ms: 0,
            directories: Vec::new(),
            ledgers: None,
        }
    }
}

/// A ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerView {
    /// The ledger.
    pub ledger: LedgerId,
    /// `open`, `in-recovery`, `closed`; of a closed ledger also `offloading` and `offloaded`.
    pub state: &'static str,
    /// Its quorums.
    pub quorum: Quorum,
    /// The last entry of a closed ledger that has any.
    pub last_entry: Option<EntryId>,
    /// Bytes of a closed ledger.
    pub length_bytes: u64,
    /// First entry and members of each fragment, in order.
    pub fragments: Vec<(EntryId, Vec<BookieId>)>,
    /// The metadata partition of its topic.
    pub home: String,
    /// When it was created.
    pub created_ms: u64,
    /// How many recoveries have begun.
    pub recovery_epoch: u64,
}

/// A ledger of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedLedger {
    /// The ledger.
    pub ledger: LedgerId,
    /// Its record, or why that cannot be read.
    pub record: Result<LedgerView, String>,
}
