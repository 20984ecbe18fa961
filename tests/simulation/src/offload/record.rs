//! The record of the ledger in a form that states compare, and what the protocol makes of it.

use std::collections::BTreeMap;

use aquifer_ledger::ledger_metadata::{LedgerInfo, LedgerState};
use aquifer_ledger::offload::{Copies, Offload, OffloadStep, StoredObject};
use aquifer_ledger::writer::machine::LedgerEnd;
use aquifer_metadata::record::Record;
use aquifer_metadata::store::Revision;
use aquifer_model::id::{AttemptId, BookieId, CreationToken, EntryId, LedgerId};
use aquifer_model::quorum::Quorum;

/// The newest version of records that a build without objects writes over.
const VERSION_WITHOUT_OBJECTS: u32 = 1;

/// What the record says of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Pointer {
    /// Nothing.
    None,
    /// An attempt is under way.
    Claimed(u8),
    /// The object of an attempt is named.
    Stored(u8, Place),
}

/// What the record says of copies at bookies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Place {
    Kept,
    Going,
    Gone,
}

impl Pointer {
    /// What a step of an attempt makes of it; `None` when the protocol refuses the step.
    pub(super) fn after(self, attempt: u8, step: &OffloadStep) -> Option<Pointer> {
        match self.info().offloaded(id(attempt), step) {
            Ok(Some(next)) => Some(Pointer::of(next.offload.as_ref())),
            Ok(None) => Some(self),
            Err(_) => None,
        }
    }

    /// Whether a build that knows nothing of objects writes over the record.
    pub(super) fn old_builds_rewrite(self) -> bool {
        self.info().to_record().version() <= VERSION_WITHOUT_OBJECTS
    }

    fn of(offload: Option<&Offload>) -> Pointer {
        match offload {
            None => Pointer::None,
            Some(Offload::Claimed { attempt }) => Pointer::Claimed(attempt.0[0]),
            Some(Offload::Stored {
                attempt, copies, ..
            }) => Pointer::Stored(
                attempt.0[0],
                match copies {
                    Copies::Kept => Place::Kept,
                    Copies::Going => Place::Going,
                    // No step of these schedules brings a ledger back: that writes another one.
                    Copies::Gone | Copies::Coming { .. } | Copies::Imported { .. } => Place::Gone,
                },
            ),
        }
    }

    fn info(self) -> LedgerInfo {
        let offload = match self {
            Pointer::None => None,
            Pointer::Claimed(attempt) => Some(Offload::Claimed {
                attempt: id(attempt),
            }),
            Pointer::Stored(attempt, place) => Some(Offload::Stored {
                attempt: id(attempt),
                object: object(attempt),
                copies: match place {
                    Place::Kept => Copies::Kept,
                    Place::Going => Copies::Going,
                    Place::Gone => Copies::Gone,
                },
            }),
        };
        let fragments = match self {
            Pointer::Stored(_, Place::Gone) => BTreeMap::new(),
            _ => BTreeMap::from([(EntryId::FIRST, vec![BookieId([1; 16])])]),
        };
        LedgerInfo {
            id: LedgerId(1),
            token: CreationToken([1; 16]),
            quorum: Quorum::SINGLE,
            state: LedgerState::Closed(LedgerEnd {
                last_entry: Some(EntryId(9)),
                length: 100,
            }),
            offload,
            fragments,
            home: "public/default".to_owned(),
            recovery_epoch: 0,
            created_ms: 0,
            revision: Revision(1),
        }
    }
}

fn id(attempt: u8) -> AttemptId {
    AttemptId([attempt; 16])
}

/// The object of an attempt.
pub(super) fn object(attempt: u8) -> StoredObject {
    StoredObject {
        location: 1,
        name: format!("object-{attempt}"),
        section: 0,
        size_bytes: 100,
        checksum: 1,
        stored_ms: 1,
        index_offset: 64,
        claimed: Revision(1),
        is_damaged: false,
    }
}
