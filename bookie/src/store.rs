//! The seam between a bookie and the place where its ledgers lie behind the journal.
//!
//! What is outside this module knows [`EntryStore`] and plain data; which store there is, [`open`]
//! decides. Today it is RocksDB (`rocks`, private). Commits arrive with their place in the journal,
//! so that a store may leave large entries there and keep an index.
//!
//! What every store promises:
//! - What [`ApplyTarget::apply`] has taken is found by reads at once, all of it or none.
//! - [`EntryStore::persisted`] names a commit before which everything is durable, ledger records
//!   and entries alike: the journal is trimmed to it (H1).
//! - An entry is returned only if its digest matches; one that is damaged is an error, never absent
//!   and never an error of another ledger (I5).
//! - While it opens again, callers wait: a store without what it had in memory must not answer.

mod error;
pub mod open;
mod rocks;
pub mod value;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use aquifer_model::id::{EntryId, LedgerId};
use aquifer_model::storage::{AddEntry, Presence, PresenceRange, ReadRange, StoredEntry};

use crate::journal::commit::Committed;
use crate::journal::replay::Loss;
use crate::ledger_state::{LedgerMeta, Stored};
use crate::report::{DamageReport, SetAsideReport};
use crate::store::value::EntryError;

pub use error::StoreError;

/// What commits are applied to: by the applier, by a start, and by a store that opens again.
pub trait ApplyTarget {
    /// The last commit that the store has, durable or not.
    fn applied(&self) -> Result<u64, StoreError>;

    /// A ledger's record.
    fn ledger(&self, ledger: LedgerId) -> Result<Option<LedgerMeta>, StoreError>;

    /// Takes commits, in the order of the journal and as one change, and notes that it has
    /// everything up to `applied`. Without commits it writes only that, which shows whether it
    /// takes writes.
    fn apply(&self, commits: &[Committed], applied: u64) -> Result<(), StoreError>;
}

/// Where entries and ledger records lie behind the journal. Calls block and come from any thread;
/// commits come from one.
pub trait EntryStore: ApplyTarget + Send + Sync {
    // Entries.

    /// Consecutive entries from `range.first` on, stored ones and those of `pending`, which must
    /// have been copied before this is called: an entry leaves it only after the store has it.
    /// Empty when the first is proven to be absent. An error behind the first ends the answer.
    fn read(
        &self,
        range: &ReadRange,
        pending: &BTreeMap<EntryId, AddEntry>,
    ) -> Result<Vec<StoredEntry>, EntryError>;

    /// Which entries are there, for little more than the price of their keys; `pending` as in
    /// [`EntryStore::read`].
    fn has(
        &self,
        range: &PresenceRange,
        pending: &BTreeSet<EntryId>,
    ) -> Result<Presence, StoreError>;

    /// What is stored in the place of an add whose digest was checked.
    fn compare(&self, ledger: LedgerId, add: &AddEntry) -> Result<Stored, StoreError>;

    /// Checks the digests of about `bytes_max` of a ledger from a place on, past everything that
    /// cannot be read.
    fn check(
        &self,
        ledger: LedgerId,
        from: CheckPlace,
        bytes_max: usize,
    ) -> Result<Checked, StoreError>;

    /// Whether nothing tells if an entry whose read says `Damaged` was ever stored, nor too many
    /// behind it: where the ledger ends is hidden.
    fn hides_end(&self, ledger: LedgerId, entry: EntryId) -> Result<bool, StoreError>;

    // Ledgers; the record of one is [`ApplyTarget::ledger`].

    /// The last entry of a ledger.
    fn last_entry(&self, ledger: LedgerId) -> Result<Option<LastEntry>, StoreError>;

    /// Ledgers after one that are not deleted, `max` at most, of a bounded number of records:
    /// deleted ones are many, and the caller may keep others waiting. Records that cannot be read
    /// are left out.
    fn ledgers_after(&self, after: Option<LedgerId>, max: usize)
    -> Result<LedgersPage, StoreError>;

    // Durability.

    /// The last commit up to which everything is durable.
    fn persisted(&self) -> Result<u64, StoreError>;

    /// Makes everything durable that was applied before the call.
    fn flush(&self) -> Result<(), StoreError>;

    // Space. One thread at a time reclaims it.

    /// Gives back the space of ledgers whose deletion is durable: a step, of the first of these
    /// ledgers, which are in order. Returns of how many.
    fn reclaim(&self, deleted: &[LedgerId], limits: SpaceLimits) -> Result<usize, StoreError>;

    /// Gives back what deleted ledgers have left in files that they shared with others: a step.
    fn collect(&self, limits: SpaceLimits) -> Result<Collected, StoreError>;

    /// Merges small files of values into larger ones, so that their number stays in proportion to
    /// their bytes: a step.
    fn merge(&self, limits: SpaceLimits) -> Result<Merged, StoreError>;

    /// Gives what all three have freed back to the file system, a little, or everything `at_once`.
    /// Returns the pause before the next call; `None` when nothing is left.
    fn release(&self, at_once: bool) -> Result<Option<Duration>, StoreError>;

    /// Bytes that are freed and not given back yet.
    fn leaving_bytes(&self) -> u64;

    /// The files that hold nothing but values of entries.
    fn value_files(&self) -> Result<ValueFiles, StoreError>;

    /// How far writes are held up, and what the work behind them amounts to.
    fn pressure(&self) -> Result<Pressure, StoreError>;

    /// Bytes of its files.
    fn bytes(&self) -> Result<u64, StoreError>;

    // What the bookie keeps here about itself.

    /// The loss that keeps ledgers in limbo. One that cannot be read is still a loss.
    fn loss(&self) -> Result<Option<Loss>, StoreError>;

    /// Stores or clears the loss durably, with `applied` together with everything that was applied
    /// up to that commit: what is missing before it does not come any more.
    fn set_loss(&self, loss: Option<&Loss>, applied: Option<u64>) -> Result<(), StoreError>;

    /// Up to where the scrubber had come: everything of smaller ledgers, and smaller entries of
    /// this one, was checked.
    fn scrubbed(&self) -> Result<Option<(LedgerId, EntryId)>, StoreError>;

    /// Notes up to where the scrubber has come. It becomes durable with a later flush.
    fn set_scrubbed(&self, at: (LedgerId, EntryId)) -> Result<(), StoreError>;

    // Errors, and the end.

    /// Finds out which files an error is about that says `Damaged`, and stores that durably
    /// together with what was known.
    fn find_damage(
        &self,
        known: Option<DamageReport>,
        error: &str,
    ) -> Result<DamageReport, StoreError>;

    /// Closes the store after an error, opens it again and lets `replay` bring back what was not
    /// durable, before anything else uses it. `around_damage`: so that damaged files do not stop
    /// it.
    fn reopen(
        &self,
        around_damage: bool,
        replay: &mut dyn FnMut(&dyn ApplyTarget) -> Result<(), StoreError>,
    ) -> Result<(), StoreError>;

    /// Ends what runs in the background and begins nothing more: the end of the store is near.
    fn cancel(&self);

    /// Closes it for good.
    fn close(&self);

    /// For tests that look into one kind of store.
    #[cfg(test)]
    fn as_any(&self) -> &dyn std::any::Any;
}

/// The last entry of a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastEntry {
    /// Its number.
    pub entry: EntryId,
    /// The LAC that it carried.
    pub last_add_confirmed: Option<EntryId>,
}

/// Some ledgers with their records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgersPage {
    /// The ledgers, in order.
    pub ledgers: Vec<(LedgerId, LedgerMeta)>,
    /// Up to where was looked; `None` when there are no more.
    pub looked: Option<LedgerId>,
}

/// What a check of stored entries found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Checked {
    /// Entries that are intact.
    pub entries: u64,
    /// Bytes of everything that was read.
    pub bytes: usize,
    /// Entries that are not, or that cannot be read.
    pub damaged: Vec<EntryId>,
    /// A number that cannot be looked up, with enough others that most are no entries.
    pub hidden: Option<EntryId>,
    /// Where to go on; `None` at the end of the ledger.
    pub next: Option<CheckPlace>,
}

/// A place in a ledger from which a check goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckPlace {
    /// The entry.
    pub entry: EntryId,
    /// Numbers before it at which nothing could be read, in a row.
    unreadable: u64,
    /// Whether these and more are hidden, when that is known.
    hides: Option<bool>,
}

impl CheckPlace {
    /// The beginning of a check.
    #[must_use]
    pub fn at(entry: EntryId) -> CheckPlace {
        CheckPlace {
            entry,
            unreadable: 0,
            hides: None,
        }
    }
}

/// What reclaiming space may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpaceLimits {
    /// The disk is full: space is needed at once.
    pub is_full: bool,
    /// Bytes that a rewrite may take.
    pub bytes: u64,
}

/// How collecting went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Collected {
    /// There is no garbage that is worth it.
    Nothing,
    /// A step was made; there may be more.
    Some,
    /// There is garbage, and no space for a step.
    NoSpace,
}

/// How merging went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merged {
    /// There are no small files that could be merged.
    Nothing,
    /// A step was made; there may be more.
    Some {
        /// Small files that went.
        files: usize,
        /// Bytes that it wrote.
        bytes: u64,
    },
    /// Files were checked that are to be merged, or were found to be damaged.
    Checked {
        /// Bytes that were read.
        bytes: u64,
    },
    /// There are small files, and no space for a step.
    NoSpace,
}

/// Files that hold nothing but values of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ValueFiles {
    /// How many there are.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// How far writes to a store are held up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pressure {
    /// Whether it takes none at all.
    pub is_stopped: bool,
    /// The bytes a second that it slows them down to; 0 while it does not.
    pub slowed_to: u64,
    /// The bytes that are to be rewritten before its files are in order.
    pub debt_bytes: u64,
}

/// A store as a start finds it.
pub struct Opened {
    /// The store.
    pub store: Arc<dyn EntryStore>,
    /// Files that are damaged; what can be read of them is served.
    pub damage: Option<DamageReport>,
    /// Damaged files that are not part of it any more.
    pub set_aside: Option<SetAsideReport>,
}
