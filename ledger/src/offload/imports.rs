//! Copies that are brought back to bookies from the object of a ledger, as its record says.
//!
//! ```text
//! copies gone --begin--> coming into C --end--> imported in C
//!      ^                      |                       |
//!      +-------forget---------+-----------------------+
//! ```
//! A bookie that has deleted a ledger takes nothing of it any more (H15), so the copies are those
//! of another ledger, C, which has the same entries and belongs to this one.
//!
//! Invariants:
//! - The object stays the copy that counts (I10): nothing of it changes, and without C the ledger
//!   is what it was. While it is marked as damaged, a C that is complete stays.
//! - C is named here before its first entry is written, and until the intent to delete it is.
//! - Every transition compares attempt and C: what a re-import that was given up does later changes
//!   nothing (H22).

use aquifer_model::id::{AttemptId, LedgerId};

use crate::ledger_metadata::LedgerInfo;
use crate::offload::{Copies, Offload, OffloadError};

/// A step of a re-import.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImportStep {
    /// A ledger is there for the copies, without an entry.
    Begin {
        /// That ledger.
        into: LedgerId,
    },
    /// It is complete, and was compared with the object.
    End {
        /// That ledger.
        into: LedgerId,
        /// When, in milliseconds since 1970.
        since_ms: u64,
    },
    /// It is to be deleted.
    Forget {
        /// That ledger.
        from: LedgerId,
    },
}

impl ImportStep {
    fn name(self) -> &'static str {
        match self {
            ImportStep::Begin { .. } => "begin the re-import of",
            ImportStep::End { .. } => "end the re-import of",
            ImportStep::Forget { .. } => "forget the re-import of",
        }
    }
}

impl LedgerInfo {
    /// The record after a step of a re-import; `None` when it says so already.
    ///
    /// # Errors
    /// When the record is not at the step before, or the ledger is in the object of another
    /// attempt.
    pub fn imported(
        &self,
        attempt: AttemptId,
        step: ImportStep,
    ) -> Result<Option<LedgerInfo>, OffloadError> {
        let refused = || self.superseded(attempt, step.name());
        let Some(Offload::Stored {
            attempt: writer,
            object,
            copies,
        }) = &self.offload
        else {
            return Err(refused());
        };
        if *writer != attempt {
            return Err(refused());
        }
        let next = match (step, *copies) {
            (ImportStep::Begin { into }, Copies::Gone) if !object.is_damaged => {
                Copies::Coming { into }
            }
            (ImportStep::Begin { into }, Copies::Coming { into: now }) if into == now => {
                return Ok(None);
            }
            (ImportStep::End { into, since_ms }, Copies::Coming { into: now }) if into == now => {
                Copies::Imported { into, since_ms }
            }
            (ImportStep::End { into, .. }, Copies::Imported { into: now, .. }) if into == now => {
                return Ok(None);
            }
            // They may be all that is left of the ledger.
            (ImportStep::Forget { from }, Copies::Imported { into, .. })
                if into == from && object.is_damaged =>
            {
                return Err(refused());
            }
            (ImportStep::Forget { from }, copies) => match copies.other_ledger() {
                Some(now) if now == from => Copies::Gone,
                _ => return Ok(None),
            },
            (ImportStep::Begin { .. } | ImportStep::End { .. }, _) => return Err(refused()),
        };
        Ok(Some(LedgerInfo {
            offload: Some(Offload::Stored {
                attempt,
                object: object.clone(),
                copies: next,
            }),
            ..self.clone()
        }))
    }
}
