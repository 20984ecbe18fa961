//! What a bookie decides without I/O, for the simulation of the ledger protocol, which runs the
//! same code over a model of disks.

pub use crate::journal::record::RecordKind;
pub use crate::journal::replay::{Continuity, FoundMark, Loss, Verdict};
pub use crate::ledger_state::{Admission, End, LedgerMeta, LedgerState, Pending, Stored};
