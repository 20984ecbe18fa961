//! What a bookie says about itself: its mode, its limbo, its journal.

use std::fmt;
use std::path::PathBuf;

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

/// A damaged file of the ledger store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedFile {
    /// Its name; empty where that is not known.
    pub name: String,
    /// The first ledger of which it may have something.
    pub first: LedgerId,
    /// The last one.
    pub last: LedgerId,
    /// What was found.
    pub what: String,
}

/// Damaged files of the ledger store, which keep the bookie from taking normal adds until a start
/// sets them aside. What can be read of them is served.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DamageReport {
    /// The files.
    pub files: Vec<DamagedFile>,
}

/// Entries that were lost with a file of the ledger store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostEntries {
    /// The ledger.
    pub ledger: LedgerId,
    /// The first one.
    pub first: EntryId,
    /// The last one.
    pub last: EntryId,
}

/// Damaged files that are not part of the ledger store any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAsideReport {
    /// The files.
    pub files: Vec<DamagedFile>,
    /// Where they are kept.
    pub directory: PathBuf,
    /// What could not be read of them, as ranges of numbers, not all of which need exist.
    pub lost: Vec<LostEntries>,
    /// Ranges beyond those listed.
    pub lost_not_listed: u64,
}

impl fmt::Display for DamageReport {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.files.is_empty() {
            return out.write_str("which ones is not known");
        }
        for (at, file) in self.files.iter().enumerate() {
            let (between, first, last) = (if at > 0 { "; " } else { "" }, file.first, file.last);
            let name = if file.name.is_empty() {
                "a file"
            } else {
                &file.name
            };
            write!(
                out,
                "{between}{name} (ledgers {first} to {last}): {}",
                file.what
            )?;
        }
        Ok(())
    }
}

impl DamageReport {
    /// Whether one of the files may have something of a ledger.
    #[must_use]
    pub fn touches(&self, ledger: LedgerId) -> bool {
        let mut files = self.files.iter();
        self.files.is_empty() || files.any(|file| (file.first..=file.last).contains(&ledger))
    }
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
    /// Damaged files of the ledger store, when there are any.
    pub damage: Option<DamageReport>,
    /// Bytes of journal segments that are not trimmed yet.
    pub journal_live_bytes: u64,
    /// Bytes of all journal segments.
    pub journal_bytes: u64,
    /// Last commit that is synced.
    pub synced_commit: u64,
    /// Last commit that is in the store.
    pub applied_commit: u64,
    /// Last commit that the store has flushed, up to which the journal may be trimmed.
    pub flushed_commit: u64,
    /// Bytes of adds between their arrival and the store.
    pub bytes_in_flight: u64,
    /// Bytes of the store's files.
    pub store_bytes: u64,
    /// What the scrubber has seen since the start.
    pub scrub: ScrubReport,
}
