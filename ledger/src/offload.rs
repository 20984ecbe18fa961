//! How far the offload of a closed ledger into an object store is, as its record says it.
//!
//! ```text
//! (none) --claim--> Claimed --store--> Stored, copies kept
//!    ^                 |                       |
//!    +---- give up ----+                      drop
//!                                             v
//!                                       copies going --end--> copies gone
//! ```
//! A ledger that is not offloaded may also take an object that is there and that no record names.
//! While copies are kept, an object that is damaged is marked, which keeps them, and is replaced by
//! that of another attempt. Copies that are gone may be brought back, into another ledger
//! (`imports`).
//!
//! Invariants:
//! - Every attempt has an id that is never used again, and every transition compares it (H22): what
//!   an attempt that was given up does later changes nothing.
//! - A transition is a compare-and-swap of the ledger's record (I6), so a deletion or a repair that
//!   changes the record at the same time is seen before anything is written.
//! - Bookies owe the ledger as long as copies are kept, and nothing from then on
//!   ([`LedgerInfo::duties`]); copies go only after the object is written down (I10).
//! - A record that carries any of this has a format version that builds without it refuse to
//!   rewrite: the pointer may be to the only copy.

pub mod imports;

use std::collections::BTreeMap;

use aquifer_metadata::keys;
use aquifer_metadata::store::{Guard, MetadataStore, Operation, Revision, Versioned};
use aquifer_metadata::update::{Change, UpdateError, Updated};
use aquifer_model::id::{AttemptId, LedgerId};
use aquifer_proto::v1;
use bytes::Bytes;
use thiserror::Error;

use crate::error::LedgerError;
use crate::ledger_metadata::{LedgerInfo, LedgerState};

/// Where the bytes of a ledger are in an object store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredObject {
    /// The number of the location, a bucket or a directory.
    pub location: u32,
    /// The name of the object there.
    pub name: String,
    /// Which of its sections is the ledger.
    pub section: u32,
    /// The length of the object.
    pub size_bytes: u64,
    /// The checksum of the whole object, as it was read back.
    pub checksum: u64,
    /// When it was verified, in milliseconds since 1970.
    pub stored_ms: u64,
    /// Where its index begins.
    pub index_offset: u64,
    /// A revision of metadata when its attempt had begun and was not committed: no backup that
    /// ended before names it.
    pub claimed: Revision,
    /// A scrub found it damaged or missing: copies at bookies stay until it is replaced, or was
    /// read whole.
    pub is_damaged: bool,
}

impl StoredObject {
    /// As records have it.
    #[must_use]
    pub fn to_record(&self) -> v1::StoredObject {
        v1::StoredObject {
            location: self.location,
            name: self.name.clone(),
            section: self.section,
            size_bytes: self.size_bytes,
            checksum: self.checksum,
            stored_ms: self.stored_ms,
            index_offset: self.index_offset,
            claimed_revision: self.claimed.0,
            damaged: self.is_damaged,
        }
    }
}

/// What becomes of the copies at bookies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copies {
    /// They are kept, and repaired.
    Kept,
    /// They are being deleted: the record still says where they are.
    Going,
    /// No bookie has any; the record names none.
    Gone,
    /// Those under the ledger's own id are gone, and a re-import writes others into another ledger.
    Coming {
        /// That ledger. Nothing else names it.
        into: LedgerId,
    },
    /// The same, and the other ledger is complete and was compared with the object.
    Imported {
        /// That ledger.
        into: LedgerId,
        /// When it was compared, in milliseconds since 1970.
        since_ms: u64,
    },
}

impl Copies {
    /// The ledger that a re-import has written, or writes.
    #[must_use]
    pub fn other_ledger(self) -> Option<LedgerId> {
        match self {
            Copies::Coming { into } | Copies::Imported { into, .. } => Some(into),
            Copies::Kept | Copies::Going | Copies::Gone => None,
        }
    }

    /// Whether bookies serve reads of the ledger.
    #[must_use]
    pub fn serve(self) -> bool {
        matches!(self, Copies::Kept | Copies::Imported { .. })
    }

    fn to_record(self) -> (v1::BookieCopies, LedgerId, u64) {
        let none = LedgerId(0);
        match self {
            Copies::Kept => (v1::BookieCopies::Kept, none, 0),
            Copies::Going => (v1::BookieCopies::Going, none, 0),
            Copies::Gone => (v1::BookieCopies::Gone, none, 0),
            Copies::Coming { into } => (v1::BookieCopies::Coming, into, 0),
            Copies::Imported { into, since_ms } => (v1::BookieCopies::Imported, into, since_ms),
        }
    }

    fn from_record(
        copies: v1::BookieCopies,
        into: u64,
        since_ms: u64,
    ) -> Result<Copies, &'static str> {
        let into = LedgerId(into);
        match copies {
            v1::BookieCopies::Kept => Ok(Copies::Kept),
            v1::BookieCopies::Going => Ok(Copies::Going),
            v1::BookieCopies::Gone => Ok(Copies::Gone),
            v1::BookieCopies::Coming if into.0 > 0 => Ok(Copies::Coming { into }),
            v1::BookieCopies::Imported if into.0 > 0 => Ok(Copies::Imported { into, since_ms }),
            v1::BookieCopies::Coming | v1::BookieCopies::Imported => {
                Err("its copies are in no ledger")
            }
            v1::BookieCopies::Unspecified => Err("its copies are in no state"),
        }
    }
}

/// How far the offload of a ledger is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Offload {
    /// An attempt is under way. Its object may be there, in parts or whole.
    Claimed {
        /// The attempt.
        attempt: AttemptId,
    },
    /// The object is complete and verified.
    Stored {
        /// The attempt that wrote it.
        attempt: AttemptId,
        /// The object.
        object: StoredObject,
        /// What becomes of the copies at bookies.
        copies: Copies,
    },
}

/// A transition that the record does not allow, or a read that needs another place.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OffloadError {
    /// Bookies owe nothing of the ledger any more: it is to be read from its object.
    #[error(
        "ledger {ledger} is offloaded by attempt {attempt}: read it from its object, bookies are not asked"
    )]
    Offloaded {
        /// The ledger.
        ledger: u64,
        /// The attempt whose object has it.
        attempt: AttemptId,
    },
    /// Only closed ledgers are offloaded.
    #[error("ledger {0} is not closed, and cannot be offloaded")]
    NotClosed(u64),
    /// The record is not at the step that this one follows, or not by this attempt.
    #[error("attempt {attempt} cannot {step} ledger {ledger}: {found}")]
    Superseded {
        /// The ledger.
        ledger: u64,
        /// The attempt.
        attempt: AttemptId,
        /// What it wanted.
        step: &'static str,
        /// What the record says.
        found: String,
    },
}

/// A step of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OffloadStep {
    /// The ledger is taken for the attempt, before the first byte is written.
    Claim,
    /// The object is complete and verified.
    Store(StoredObject),
    /// The copies at bookies are to go.
    DropCopies,
    /// No bookie has a copy any more.
    CopiesGone,
    /// The attempt is given up.
    GiveUp,
    /// The object was there, complete and verified, and no record named it.
    Adopt(StoredObject),
    /// Every byte of the object was read: it is damaged or missing, or it is whole.
    Mark {
        /// It is damaged.
        is_damaged: bool,
    },
    /// The object of another attempt is damaged; that of this one is complete and verified.
    Replace {
        /// The other attempt.
        damaged: AttemptId,
        /// The object.
        object: StoredObject,
    },
}

impl OffloadStep {
    fn name(&self) -> &'static str {
        match self {
            OffloadStep::Claim => "claim",
            OffloadStep::Store(_) => "store",
            OffloadStep::DropCopies => "drop the copies of",
            OffloadStep::CopiesGone => "end the copies of",
            OffloadStep::GiveUp => "give up",
            OffloadStep::Adopt(_) => "give its object to",
            OffloadStep::Mark { .. } => "mark the object of",
            OffloadStep::Replace { .. } => "replace the object of",
        }
    }
}

impl Offload {
    /// The attempt that it is about.
    #[must_use]
    pub fn attempt(&self) -> AttemptId {
        match self {
            Offload::Claimed { attempt } | Offload::Stored { attempt, .. } => *attempt,
        }
    }

    /// Whether bookies owe the ledger as if it were not offloaded.
    #[must_use]
    pub fn keeps_copies(&self) -> bool {
        match self {
            Offload::Claimed { .. } => true,
            Offload::Stored { copies, .. } => *copies == Copies::Kept,
        }
    }

    /// Whether no bookie has a copy under the ledger's own id any more.
    #[must_use]
    pub fn copies_are_gone(&self) -> bool {
        matches!(
            self,
            Offload::Stored {
                copies: Copies::Gone | Copies::Coming { .. } | Copies::Imported { .. },
                ..
            }
        )
    }

    /// What becomes of the copies of a ledger that is in an object.
    #[must_use]
    pub fn copies(&self) -> Option<Copies> {
        match self {
            Offload::Claimed { .. } => None,
            Offload::Stored { copies, .. } => Some(*copies),
        }
    }

    /// Whether an object may have the only copy.
    #[must_use]
    pub fn is_stored(&self) -> bool {
        matches!(self, Offload::Stored { .. })
    }

    pub(crate) fn to_record(&self) -> v1::OffloadRecord {
        let attempt = Bytes::copy_from_slice(&self.attempt().0);
        let Offload::Stored { object, copies, .. } = self else {
            return v1::OffloadRecord {
                attempt,
                ..v1::OffloadRecord::default()
            };
        };
        let (copies, other, imported_ms) = copies.to_record();
        v1::OffloadRecord {
            attempt,
            object: Some(object.to_record()),
            copies: copies.into(),
            copy_ledger_id: other.0,
            imported_ms,
        }
    }

    /// Reads the part of a record; says what is wrong with it.
    pub(crate) fn from_record(record: v1::OffloadRecord) -> Result<Offload, &'static str> {
        let copies = record.copies();
        let attempt = AttemptId::try_from(record.attempt.as_ref())
            .map_err(|_| "its offload attempt is malformed")?;
        let Some(object) = record.object else {
            return match copies {
                v1::BookieCopies::Unspecified => Ok(Offload::Claimed { attempt }),
                _ => Err("it is offloaded without an object"),
            };
        };
        if object.name.is_empty() {
            return Err("its object has no name");
        }
        Ok(Offload::Stored {
            attempt,
            object: StoredObject {
                location: object.location,
                name: object.name,
                section: object.section,
                size_bytes: object.size_bytes,
                checksum: object.checksum,
                stored_ms: object.stored_ms,
                index_offset: object.index_offset,
                claimed: Revision(object.claimed_revision),
                is_damaged: object.damaged,
            },
            copies: Copies::from_record(copies, record.copy_ledger_id, record.imported_ms)?,
        })
    }
}

impl LedgerInfo {
    /// The record after a step of an attempt; `None` when it says so already.
    ///
    /// # Errors
    /// When the record is not at the step before, or is another attempt's (H22).
    pub fn offloaded(
        &self,
        attempt: AttemptId,
        step: &OffloadStep,
    ) -> Result<Option<LedgerInfo>, OffloadError> {
        if !matches!(self.state, LedgerState::Closed(_)) {
            return Err(OffloadError::NotClosed(self.id.0));
        }
        let mine = self.offload.as_ref().filter(|o| o.attempt() == attempt);
        let stored = |object: &StoredObject, copies| {
            Some(Offload::Stored {
                attempt,
                object: object.clone(),
                copies,
            })
        };
        let next = match (step, mine) {
            (OffloadStep::Claim, None) if self.offload.is_none() => {
                Some(Offload::Claimed { attempt })
            }
            (OffloadStep::Store(object), Some(Offload::Claimed { .. })) => {
                stored(object, Copies::Kept)
            }
            (OffloadStep::Adopt(object), None) if self.offload.is_none() => {
                stored(object, Copies::Kept)
            }
            (OffloadStep::GiveUp, Some(Offload::Claimed { .. })) => None,
            (OffloadStep::Replace { damaged, object }, None) if self.is_kept_by(*damaged) => {
                stored(object, Copies::Kept)
            }
            (
                OffloadStep::DropCopies,
                Some(Offload::Stored {
                    object,
                    copies: Copies::Kept,
                    ..
                }),
            ) if !object.is_damaged => stored(object, Copies::Going),
            (OffloadStep::Mark { is_damaged }, Some(Offload::Stored { object, copies, .. }))
                if object.is_damaged != *is_damaged =>
            {
                let mut marked = object.clone();
                marked.is_damaged = *is_damaged;
                stored(&marked, *copies)
            }
            (
                OffloadStep::CopiesGone,
                Some(Offload::Stored {
                    object,
                    copies: Copies::Going,
                    ..
                }),
            ) => stored(object, Copies::Gone),
            _ if self.is_behind(mine, step) => return Ok(None),
            _ => return Err(self.superseded(attempt, step.name())),
        };
        let fragments = match step {
            OffloadStep::CopiesGone => BTreeMap::new(),
            _ => self.fragments.clone(),
        };
        Ok(Some(LedgerInfo {
            offload: next,
            fragments,
            ..self.clone()
        }))
    }

    /// Whether the attempt has made this step already: its answer was lost.
    fn is_behind(&self, mine: Option<&Offload>, step: &OffloadStep) -> bool {
        match (step, mine) {
            (OffloadStep::Claim, Some(Offload::Claimed { .. })) => true,
            (
                OffloadStep::Store(wanted)
                | OffloadStep::Adopt(wanted)
                | OffloadStep::Replace { object: wanted, .. },
                Some(Offload::Stored { object, .. }),
            ) => object == wanted,
            (OffloadStep::DropCopies, Some(Offload::Stored { copies, .. })) => {
                *copies != Copies::Kept
            }
            (OffloadStep::CopiesGone, Some(Offload::Stored { copies, .. })) => {
                *copies == Copies::Gone
            }
            (OffloadStep::Mark { is_damaged }, Some(Offload::Stored { object, .. })) => {
                object.is_damaged == *is_damaged
            }
            // Given up, and perhaps claimed by another.
            (OffloadStep::GiveUp, None) => true,
            _ => false,
        }
    }

    /// Why no bookie is asked for an entry.
    pub(crate) fn not_at_bookies(&self) -> LedgerError {
        match &self.offload {
            Some(offload) => LedgerError::Offload(OffloadError::Offloaded {
                ledger: self.id.0,
                attempt: offload.attempt(),
            }),
            None => LedgerError::BadRecord(self.id.0, "no fragment has the entry".to_owned()),
        }
    }

    /// Whether it is in the object of an attempt, and bookies have copies too.
    #[must_use]
    pub fn is_kept_by(&self, other: AttemptId) -> bool {
        let is_kept = |offload: &Offload| offload.is_stored() && offload.keeps_copies();
        let offload = self.offload.as_ref().filter(|offload| is_kept(offload));
        offload.is_some_and(|offload| offload.attempt() == other)
    }

    pub(crate) fn superseded(&self, attempt: AttemptId, step: &'static str) -> OffloadError {
        let found = match &self.offload {
            None => "it is not claimed".to_owned(),
            Some(Offload::Claimed { attempt }) => format!("it is claimed by attempt {attempt}"),
            Some(Offload::Stored {
                attempt,
                copies,
                object,
            }) => {
                let is = match object.is_damaged {
                    true => "its object is damaged, ",
                    false => "",
                };
                format!("it is stored by attempt {attempt}, {is}its copies are {copies:?}")
            }
        };
        OffloadError::Superseded {
            ledger: self.id.0,
            attempt,
            step,
            found,
        }
    }
}

/// Makes a step of an attempt in the ledger's record, with whatever belongs to it in the same
/// transaction. Answers the record as it is then.
///
/// # Errors
/// [`LedgerError::Offload`] when the record does not allow the step; `BadRecord` when the ledger is
/// gone; [`LedgerError::Fenced`] when a guard does not hold.
pub async fn advance(
    store: &dyn MetadataStore,
    ledger: LedgerId,
    attempt: AttemptId,
    step: &OffloadStep,
    guards: &[Guard],
    others: &[Operation],
) -> Result<LedgerInfo, LedgerError> {
    let decide = |stored: Option<Versioned>| {
        let missing = || LedgerError::BadRecord(ledger.0, "the record is missing".to_owned());
        let info = LedgerInfo::decode(ledger, &stored.ok_or_else(missing)?)?;
        let Some(next) = info.offloaded(attempt, step)? else {
            return Ok(Change::none(info));
        };
        let home = next.home.clone();
        Ok(Change::put(&home, next.value(), next).with(others.iter().cloned()))
    };
    let key = keys::ledger(ledger);
    let made = store.update(&key, guards, |stored| std::future::ready(decide(stored)));
    let Updated { answer, applied } = made.await.map_err(|error| match error {
        UpdateError::Guard { .. } => LedgerError::Fenced,
        error => error.flatten(),
    })?;
    Ok(LedgerInfo {
        revision: applied.unwrap_or(answer.revision),
        ..answer
    })
}

#[cfg(test)]
pub(crate) mod tests;
