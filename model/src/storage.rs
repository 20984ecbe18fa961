//! What a bookie is asked and what it answers, in plain types: the bookie, its gRPC edge and the
//! ledger client share them without knowing each other.

use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;

use crate::checksum;
use crate::entry::EntryData;
use crate::id::{CreationToken, EntryId, LedgerId, TenantKey};
use crate::trace::TraceContext;

/// A request of the ordered stream of one client to one bookie: requests for a ledger take effect
/// in the order in which they were submitted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OrderedRequest {
    /// The ledger.
    pub ledger: LedgerId,
    /// Its creation token; the bookie stores the first and refuses another (H14).
    pub token: CreationToken,
    /// Whose share of the bookie it takes. Requests for a ledger name the same, so that they keep
    /// their order.
    pub tenant: TenantKey,
    /// What to do.
    pub operation: OrderedOperation,
}

/// What an ordered request asks for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum OrderedOperation {
    /// Store an entry durably; idempotent for the same bytes.
    Add(AddEntry),
    /// Refuse normal adds from now on, durably, and say the highest LAC (I4).
    Fence,
    /// Fence, then read one entry after every earlier add is synced and applied (H3).
    RecoveryRead(EntryId),
    /// Remember a LAC that no add carried (explicit LAC).
    WriteLac(EntryId),
    /// Delete the ledger and leave a tombstone (H15).
    Delete,
}

/// One entry to store.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AddEntry {
    /// Its number.
    pub entry: EntryId,
    /// The LAC when it was sent; `None` before the first acknowledgement.
    pub last_add_confirmed: Option<EntryId>,
    /// Bytes of the ledger up to and including this entry.
    pub ledger_length: u64,
    /// [`digest`] over everything here.
    pub digest: u32,
    /// Accepted although the ledger is fenced: written by recovery or repair.
    pub recovery: bool,
    /// May use the room that a full disk keeps back: an entry of a cursor log.
    pub reserve: bool,
    /// Head and body.
    pub data: EntryData,
    /// The trace that it is done for, if that is sampled. It is not stored.
    pub trace: Option<TraceContext>,
}

/// An entry as a bookie holds it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StoredEntry {
    /// Its number.
    pub entry: EntryId,
    /// The LAC that it carried.
    pub last_add_confirmed: Option<EntryId>,
    /// Bytes of the ledger up to and including it.
    pub ledger_length: u64,
    /// [`digest`] over everything, of the whole entry even in a prefix read.
    pub digest: u32,
    /// Head and body joined, or the prefix that was asked for.
    pub data: Bytes,
}

impl StoredEntry {
    /// The add by which recovery or repair writes it again, with the digest that it has.
    #[must_use]
    pub fn into_recovery_add(self) -> AddEntry {
        AddEntry {
            entry: self.entry,
            last_add_confirmed: self.last_add_confirmed,
            ledger_length: self.ledger_length,
            digest: self.digest,
            recovery: true,
            reserve: false,
            data: EntryData {
                head: Bytes::new(),
                body: self.data,
            },
            trace: None,
        }
    }
}

/// A successful answer to an ordered request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum OrderedReply {
    /// The entry, fence, LAC or deletion is durable. For a fence: the highest LAC known here.
    Done {
        /// Highest LAC that this bookie knows for the ledger.
        last_add_confirmed: Option<EntryId>,
    },
    /// Answer to a recovery read.
    Entry(StoredEntry),
}

/// Entries `first..=last`, up to the bounds; at least one if `first` exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadRange {
    /// The ledger.
    pub ledger: LedgerId,
    /// Its creation token: a bookie that has another ledger of that id answers
    /// [`BookieError::Token`]. `None` takes any, for a caller that has compared it.
    pub token: Option<CreationToken>,
    /// First entry wanted.
    pub first: EntryId,
    /// Last entry wanted.
    pub last: EntryId,
    /// Most bytes of entry data, beyond the first entry.
    pub bytes_max: usize,
    /// Most entries.
    pub entries_max: usize,
    /// Number of leading bytes of each entry to return, for reads of headers.
    pub prefix_bytes: Option<usize>,
}

/// What a range read found: consecutive entries from `first` on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReadBatch {
    /// The entries, in order, without gaps. Empty never stands for success.
    pub entries: Vec<StoredEntry>,
    /// The highest LAC that these entries carry, or a higher one that the bookie knows of.
    pub last_add_confirmed: Option<EntryId>,
}

/// Asks which of the entries `first..=last` a bookie holds, by its index: their bytes are not
/// verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PresenceRange {
    /// The ledger.
    pub ledger: LedgerId,
    /// Its creation token, as in a [`ReadRange`].
    pub token: Option<CreationToken>,
    /// First entry that is looked for.
    pub first: EntryId,
    /// Last entry that is looked for.
    pub last: EntryId,
}

/// Which entries a bookie holds. What is not named proves nothing: the bookie may be in limbo.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Presence {
    /// Ranges of entries that are stored durably, in order, both ends included.
    pub runs: Vec<(EntryId, EntryId)>,
    /// The last entry that was looked for: the bookie ends where it has done enough for one
    /// request.
    pub until: EntryId,
    /// About how many bytes it read for that.
    pub bytes: u64,
}

impl Presence {
    /// Nothing was found up to an entry.
    #[must_use]
    pub fn nothing_until(until: EntryId) -> Presence {
        Presence {
            runs: Vec::new(),
            until,
            bytes: 0,
        }
    }

    /// Ranges from an entry up to [`Presence::until`] that are not named.
    pub fn gaps_from(&self, first: EntryId) -> impl Iterator<Item = (EntryId, EntryId)> + '_ {
        let behind = self.until.next();
        let ends = self.runs.iter().map(|run| run.1.next());
        let begins = self.runs.iter().map(|run| run.0).chain([behind]);
        let between = [first].into_iter().chain(ends).zip(begins);
        let some = between.filter(|(from, to)| from < to);
        some.map(|(from, to)| (from, EntryId(to.0 - 1)))
    }

    /// Takes note of an entry that is there, behind those that were noted before.
    pub fn add(&mut self, entry: EntryId) {
        match self.runs.last_mut() {
            Some(last) if last.1.next() == entry => last.1 = entry,
            _ => self.runs.push((entry, entry)),
        }
    }
}

/// What a reader that does not own a ledger waits for at a bookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TailWait {
    /// The ledger.
    pub ledger: LedgerId,
    /// Its creation token, as in a [`ReadRange`].
    pub token: Option<CreationToken>,
    /// A higher LAC than this is news, or any at all; so is a fence.
    pub above: Option<EntryId>,
    /// The bookie answers after so long even without news.
    pub limit: Duration,
}

/// What a bookie knows of the end of a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TailState {
    /// Highest LAC that it knows.
    pub last_add_confirmed: Option<EntryId>,
    /// Whether a recovery has begun.
    pub fenced: bool,
}

/// Why a bookie, or the way to it, did not do what was asked. Only [`BookieError::NoSuchEntry`],
/// [`BookieError::NoSuchLedger`] and [`BookieError::Deleted`] say that something is not there;
/// every other error leaves that unknown.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Error)]
pub enum BookieError {
    /// The index proves that the ledger was never here.
    #[error("no such ledger on this bookie")]
    NoSuchLedger,
    /// The index proves that the entry is not here.
    #[error("no such entry on this bookie")]
    NoSuchEntry,
    /// A recovery has begun; normal adds are refused for good.
    #[error("ledger is fenced: another writer has taken over")]
    Fenced,
    /// The bookie may have lost data of this ledger: neither yes nor no (H6).
    #[error("ledger is in limbo on this bookie: it may have lost data in an unclean stop")]
    Limbo,
    /// Too many bytes in flight; retry.
    #[error("bookie is overloaded: retry later")]
    Overloaded,
    /// No space for normal adds; fences, recovery writes and reads still work.
    #[error("bookie is read-only: {0}")]
    ReadOnly(String),
    /// The disk failed.
    #[error("bookie storage failed: {0}")]
    Io(String),
    /// What is stored is damaged: the bytes do not match their digest, or cannot be read.
    #[error("entry does not match its digest: {0}")]
    Digest(String),
    /// The same so near the end of the ledger that nothing tells whether the entry was ever here,
    /// nor any behind it. Only recovery reads say so.
    #[error("damage hides where the ledger ends: {0}")]
    EndHidden(String),
    /// The ledger id belongs to a ledger with another creation token (H14).
    #[error("another ledger with this id is stored here")]
    Token,
    /// The entry is stored with other bytes (H14).
    #[error("the entry is stored here with other bytes")]
    Conflict,
    /// The ledger was deleted; its id is never used again.
    #[error("ledger is deleted")]
    Deleted,
    /// The request makes no sense.
    #[error("bad request: {0}")]
    Invalid(String),
    /// The bookie is stopping.
    #[error("bookie is shutting down")]
    ShuttingDown,
    /// No connection, or it broke: the outcome is unknown.
    #[error("bookie is unreachable: {0}")]
    Unreachable(String),
    /// No answer in time: the outcome is unknown.
    #[error("bookie did not answer in time")]
    Timeout,
}

/// What happened to a request.
pub type BookieResult<T> = Result<T, BookieError>;

/// Called exactly once with the answer, from any thread; must not block.
pub type ReplyCallback = Box<dyn FnOnce(BookieResult<OrderedReply>) + Send>;

/// CRC32C over ledger, entry, LAC, ledger length and the entry's bytes: computed by the writer,
/// verified at the bookie's door, on every read, and in the reader.
#[must_use]
pub fn digest(
    ledger: LedgerId,
    entry: EntryId,
    last_add_confirmed: Option<EntryId>,
    ledger_length: u64,
    parts: &[&[u8]],
) -> u32 {
    let mut prefix = [0u8; 32];
    prefix[..8].copy_from_slice(&ledger.0.to_le_bytes());
    prefix[8..16].copy_from_slice(&entry.0.to_le_bytes());
    let lac = last_add_confirmed.map_or(u64::MAX, |lac| lac.0);
    prefix[16..24].copy_from_slice(&lac.to_le_bytes());
    prefix[24..].copy_from_slice(&ledger_length.to_le_bytes());
    parts.iter().fold(checksum::crc32c(&prefix), |crc, part| {
        checksum::crc32c_append(crc, part)
    })
}

impl AddEntry {
    /// An add with its digest computed.
    #[must_use]
    pub fn new(
        ledger: LedgerId,
        entry: EntryId,
        last_add_confirmed: Option<EntryId>,
        ledger_length: u64,
        data: EntryData,
    ) -> AddEntry {
        let parts: [&[u8]; 2] = [&data.head, &data.body];
        let digest = digest(ledger, entry, last_add_confirmed, ledger_length, &parts);
        AddEntry {
            entry,
            last_add_confirmed,
            ledger_length,
            digest,
            recovery: false,
            reserve: false,
            data,
            trace: None,
        }
    }

    /// Whether the digest matches the bytes.
    #[must_use]
    pub fn is_intact(&self, ledger: LedgerId) -> bool {
        let parts: [&[u8]; 2] = [&self.data.head, &self.data.body];
        self.digest
            == digest(
                ledger,
                self.entry,
                self.last_add_confirmed,
                self.ledger_length,
                &parts,
            )
    }
}

impl StoredEntry {
    /// Whether the digest matches the bytes; meaningless for a prefix read.
    #[must_use]
    pub fn is_intact(&self, ledger: LedgerId) -> bool {
        let lac = self.last_add_confirmed;
        self.digest == digest(ledger, self.entry, lac, self.ledger_length, &[&self.data])
    }
}
