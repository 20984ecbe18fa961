//! What a bookie decides about one ledger: token, fence, LAC, tombstone, what is in flight.
//!
//! Pure state, no I/O. The owner calls it under the ledger's lock and queues what it decides in
//! the same critical section, so that there is one admission order per ledger (H3).
//!
//! Invariants:
//! - After a fence was admitted no normal add is (I4).
//! - A token other than the first is refused (H14); a tombstone refuses everything (H15).
//! - An entry is admitted twice only with the same bytes (H14), unless repair replaces one whose
//!   digest is wrong.

use std::collections::BTreeMap;

use aquifer_model::bytes_at::u64_at;
use aquifer_model::id::{CreationToken, EntryId};
use aquifer_model::storage::{AddEntry, BookieError, OrderedOperation, OrderedRequest};
use thiserror::Error;

use crate::journal::record::RecordKind;

/// Bytes of a stored [`LedgerMeta`].
pub const META_BYTES: usize = 32;
const META_VERSION: u8 = 1;
/// In the place of a token that was lost with its record: the ledger is whichever is meant.
pub const TOKEN_LOST: CreationToken = CreationToken([0xff; 16]);
const FLAG_FENCED: u8 = 1;
const FLAG_DELETED: u8 = 2;
const FLAG_LAC: u8 = 4;

/// What is stored about a ledger besides its entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LedgerMeta {
    /// The first token that was seen.
    pub token: CreationToken,
    /// Whether normal adds are refused.
    pub fenced: bool,
    /// Whether it is a tombstone.
    pub deleted: bool,
    /// The highest explicit LAC; entries carry theirs.
    pub lac: Option<EntryId>,
}

/// A stored ledger record that this version cannot read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("not a ledger record of a known version")]
pub struct MetaError;

impl LedgerMeta {
    /// A ledger of which nothing is known but its token.
    #[must_use]
    pub fn new(token: CreationToken) -> LedgerMeta {
        LedgerMeta {
            token,
            fenced: false,
            deleted: false,
            lac: None,
        }
    }

    /// Whether this is the ledger that a request means, whose token it is if given, and lives.
    ///
    /// # Errors
    /// `Token` for another ledger of that id, `Deleted`.
    pub fn check(&self, token: Option<CreationToken>) -> Result<(), BookieError> {
        match token {
            Some(token) if self.token != token && self.token != TOKEN_LOST => {
                Err(BookieError::Token)
            }
            _ if self.deleted => Err(BookieError::Deleted),
            _ => Ok(()),
        }
    }

    /// A ledger whose record is lost: it may have been fenced.
    #[must_use]
    pub fn lost() -> LedgerMeta {
        LedgerMeta {
            fenced: true,
            ..LedgerMeta::new(TOKEN_LOST)
        }
    }

    /// The same, of the ledger that a request means whose token was checked.
    #[must_use]
    pub fn of(self, token: CreationToken) -> LedgerMeta {
        if self.token == TOKEN_LOST {
            LedgerMeta { token, ..self }
        } else {
            self
        }
    }

    /// What a record of the journal makes of it.
    pub fn apply(&mut self, kind: RecordKind) {
        match kind {
            RecordKind::Add(_) | RecordKind::RecoveryAdd(_) => {}
            RecordKind::Fence => self.fenced = true,
            RecordKind::Lac(lac) => self.lac = self.lac.max(Some(lac)),
            RecordKind::Delete => self.deleted = true,
        }
    }

    /// The stored bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; META_BYTES] {
        let mut bytes = [0; META_BYTES];
        let flag = |on: bool, flag: u8| if on { flag } else { 0 };
        bytes[0] = META_VERSION;
        bytes[1] = flag(self.fenced, FLAG_FENCED)
            | flag(self.deleted, FLAG_DELETED)
            | flag(self.lac.is_some(), FLAG_LAC);
        let lac = self.lac.map_or(0, |lac| lac.0);
        bytes[8..16].copy_from_slice(&lac.to_le_bytes());
        bytes[16..].copy_from_slice(&self.token.0);
        bytes
    }

    /// Reads stored bytes.
    ///
    /// # Errors
    /// When they are not of this version.
    pub fn decode(bytes: &[u8]) -> Result<LedgerMeta, MetaError> {
        let known = FLAG_FENCED | FLAG_DELETED | FLAG_LAC;
        if bytes.len() != META_BYTES || bytes[0] != META_VERSION || bytes[1] & !known != 0 {
            return Err(MetaError);
        }
        let token = CreationToken::try_from(&bytes[16..]).map_err(|_| MetaError)?;
        Ok(LedgerMeta {
            token,
            fenced: bytes[1] & FLAG_FENCED != 0,
            deleted: bytes[1] & FLAG_DELETED != 0,
            lac: (bytes[1] & FLAG_LAC != 0).then(|| EntryId(u64_at(bytes, 8))),
        })
    }
}

/// An entry between admission and the store.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pending {
    /// Its place in the journal's queue.
    pub item: u64,
    /// The entry.
    pub add: AddEntry,
}

/// What to do with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Journal this, and with it the ledger's record, when it changes.
    Journal(RecordKind, Option<LedgerMeta>),
    /// It is so, stored or in flight: answer when everything before is synced.
    Known,
    /// Only the store knows what lies in the place of this add: look, then decide again with that.
    Look(AddEntry),
    /// The add would begin the ledger here: ask whether it may, then decide again.
    Ask,
    /// No.
    Refuse(BookieError),
}

/// What a decision needs beside the state of the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// What the store has in the place of the add.
    pub stored: Stored,
    /// This bookie may have lost a fence of the ledger.
    pub limbo: bool,
    /// A ledger begins here only when that was asked for, and this one was not.
    pub must_ask: bool,
}

/// What a look into the store said about the entry of an add.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It was not looked up.
    NotLooked,
    /// It is not there.
    Absent,
    /// It is there with the same bytes.
    Same,
    /// It is there with other bytes.
    Other,
    /// Something is there that is not what was written (I5).
    Damaged,
}

/// How far a ledger goes on this bookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// Entries above it, or all, are certainly not stored.
    Known(Option<EntryId>),
    /// What is stored last cannot be read: any entry may be there.
    Unknown,
}

impl Default for End {
    fn default() -> End {
        End::Known(None)
    }
}

impl End {
    fn may_have(self, entry: EntryId) -> bool {
        match self {
            End::Known(highest) => Some(entry) <= highest,
            End::Unknown => true,
        }
    }

    fn with(self, entry: EntryId) -> End {
        match self {
            End::Known(highest) => End::Known(highest.max(Some(entry))),
            End::Unknown => End::Unknown,
        }
    }
}

/// Everything known about a ledger in memory.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct LedgerState {
    /// `None`: never seen here.
    meta: Option<LedgerMeta>,
    /// Whether `meta` is stored, or in flight.
    meta_queued: bool,
    /// The stored record cannot be read: token, fence and tombstone are not known until one is
    /// rewritten.
    record_lost: bool,
    end: End,
    /// The highest LAC that anything carried.
    lac: Option<EntryId>,
    pending: BTreeMap<EntryId, Pending>,
    /// Records that are not applied yet; the state must not be forgotten while there are any.
    unapplied: u64,
}

impl LedgerState {
    /// A ledger as the store knows it.
    #[must_use]
    pub fn stored(meta: Option<LedgerMeta>, end: End, lac: Option<EntryId>) -> LedgerState {
        LedgerState {
            meta_queued: meta.is_some(),
            lac: lac.max(meta.and_then(|meta| meta.lac)),
            meta,
            end,
            ..LedgerState::default()
        }
    }

    /// A ledger whose record is damaged. It may have been fenced, so it takes no normal add, and
    /// the record that the next change writes says that it is fenced (I4, I5).
    #[must_use]
    pub fn without_record() -> LedgerState {
        LedgerState {
            record_lost: true,
            end: End::Unknown,
            ..LedgerState::default()
        }
    }

    /// Whether its record is damaged: then nothing is said to be absent.
    #[must_use]
    pub fn is_record_lost(&self) -> bool {
        self.record_lost && self.meta.is_none()
    }

    /// The ledger's record.
    #[must_use]
    pub fn meta(&self) -> Option<&LedgerMeta> {
        self.meta.as_ref()
    }

    /// The highest LAC known.
    #[must_use]
    pub fn lac(&self) -> Option<EntryId> {
        self.lac
    }

    /// Entries between admission and the store.
    #[must_use]
    pub fn pending(&self) -> &BTreeMap<EntryId, Pending> {
        &self.pending
    }

    /// Whether an entry of it was certainly let in here.
    #[must_use]
    pub fn has_entries(&self) -> bool {
        matches!(self.end, End::Known(Some(_)))
    }

    /// Whether the store knows everything that this knows.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.unapplied == 0
    }

    fn check(&self, token: CreationToken) -> Result<(), BookieError> {
        self.meta.map_or(Ok(()), |meta| meta.check(Some(token)))
    }

    /// Decides about a request. A caller that queues what is to be journaled says so with
    /// [`LedgerState::added`] or [`LedgerState::changed`].
    #[must_use]
    pub fn decide(&self, request: &OrderedRequest, facts: Facts) -> Decision {
        let token = request.token;
        match &request.operation {
            OrderedOperation::Add(add) => self.decide_add(token, add, facts),
            // The read follows when the fence is synced.
            OrderedOperation::Fence | OrderedOperation::RecoveryRead(_) => {
                self.decide_change(token, RecordKind::Fence)
            }
            OrderedOperation::WriteLac(lac) => self.decide_change(token, RecordKind::Lac(*lac)),
            OrderedOperation::Delete => self.decide_change(token, RecordKind::Delete),
        }
    }

    fn decide_add(&self, token: CreationToken, add: &AddEntry, facts: Facts) -> Decision {
        if let Err(error) = self.check(token) {
            return Decision::Refuse(error);
        }
        if !add.recovery {
            if self.meta.is_some_and(|meta| meta.fenced) {
                return Decision::Refuse(BookieError::Fenced);
            }
            if facts.limbo || self.is_record_lost() {
                return Decision::Refuse(BookieError::Limbo);
            }
        }
        if let Some(pending) = self.pending.get(&add.entry) {
            return if is_same(&pending.add, add) {
                Decision::Known
            } else {
                Decision::Refuse(BookieError::Conflict)
            };
        }
        match facts.stored {
            Stored::Same => Decision::Known,
            // Only repair overwrites, and only what is no entry any more: nothing is lost by that.
            Stored::Damaged if add.recovery => self.journal_add(token, add),
            Stored::Other | Stored::Damaged => Decision::Refuse(BookieError::Conflict),
            Stored::NotLooked if self.end.may_have(add.entry) => Decision::Look(add.clone()),
            Stored::NotLooked | Stored::Absent => {
                let begins = facts.must_ask && !self.has_entries();
                if begins && !add.recovery {
                    Decision::Ask
                } else {
                    self.journal_add(token, add)
                }
            }
        }
    }

    fn journal_add(&self, token: CreationToken, add: &AddEntry) -> Decision {
        let kind = if add.recovery {
            RecordKind::RecoveryAdd(add.entry)
        } else {
            RecordKind::Add(add.entry)
        };
        let meta = (!self.meta_queued).then(|| self.meta_or_new(token));
        Decision::Journal(kind, meta)
    }

    /// The add was queued as `item`.
    pub fn added(&mut self, token: CreationToken, add: AddEntry, item: u64) {
        self.meta = Some(self.meta_or_new(token));
        self.meta_queued = true;
        self.end = self.end.with(add.entry);
        self.lac = self.lac.max(add.last_add_confirmed);
        self.unapplied += 1;
        self.pending.insert(add.entry, Pending { item, add });
    }

    /// Decides about a fence, an explicit LAC or a deletion.
    fn decide_change(&self, token: CreationToken, kind: RecordKind) -> Decision {
        match self.check(token) {
            Ok(()) => {}
            Err(BookieError::Deleted) if kind == RecordKind::Delete => {}
            Err(error) => return Decision::Refuse(error),
        }
        let mut changed = self.meta_or_new(token);
        changed.apply(kind);
        if self.meta == Some(changed) && self.meta_queued {
            Decision::Known
        } else {
            Decision::Journal(kind, Some(changed))
        }
    }

    /// The change was queued.
    pub fn changed(&mut self, meta: LedgerMeta) {
        self.lac = self.lac.max(meta.lac);
        self.meta = Some(meta);
        self.meta_queued = true;
        self.unapplied += 1;
    }

    /// A record reached the store.
    pub fn applied(&mut self, entry: Option<EntryId>, item: u64) {
        self.unapplied = self.unapplied.saturating_sub(1);
        self.forget(entry, item);
    }

    /// A record was not journaled after all. The ledger record that it carried goes with the next.
    pub fn aborted(&mut self, entry: Option<EntryId>, item: u64) {
        self.unapplied = self.unapplied.saturating_sub(1);
        self.meta_queued = false;
        self.forget(entry, item);
    }

    fn forget(&mut self, entry: Option<EntryId>, item: u64) {
        if let Some(entry) = entry
            && self.pending.get(&entry).is_some_and(|p| p.item == item)
        {
            self.pending.remove(&entry);
        }
    }

    fn meta_or_new(&self, token: CreationToken) -> LedgerMeta {
        let unknown = if self.record_lost {
            LedgerMeta::lost()
        } else {
            LedgerMeta::new(token)
        };
        self.meta.unwrap_or(unknown).of(token)
    }
}

/// Whether two adds would store the same bytes.
fn is_same(one: &AddEntry, other: &AddEntry) -> bool {
    let bytes = |add: &AddEntry| [add.data.head.clone(), add.data.body.clone()].concat();
    one.digest == other.digest
        && one.last_add_confirmed == other.last_add_confirmed
        && one.ledger_length == other.ledger_length
        && one.data.len() == other.data.len()
        && (one.data == other.data || bytes(one) == bytes(other))
}

#[cfg(test)]
mod tests;
