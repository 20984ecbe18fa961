//! Limbo (I5, H6): the bookie knows that it lost synced data, so it gives no negative answer,
//! for any ledger, until the loss is repaired or accepted.
//!
//! Every ledger is affected, listed or not, because what was lost may have been the only trace
//! of one, or its fence. A tombstone stands: it is positive proof.

use std::sync::atomic::{AtomicBool, Ordering};

use aquifer_model::id::LedgerId;
use parking_lot::Mutex;

use crate::bytes_at::u64_at;
use crate::journal::replay::Loss;
use crate::report::{LedgerLoss, LossReport};
use crate::store::{Db, StoreError};

const VERSION: u8 = 1;
const HEAD_BYTES: usize = 17;
/// Ledgers that a report lists.
const LISTED_MAX: usize = 1_000;
/// Longest reason that is stored.
const REASON_BYTES_MAX: usize = 4096;

/// Whether a bookie is in limbo, and why.
pub struct Limbo {
    on: AtomicBool,
    report: Mutex<Option<LossReport>>,
}

impl Limbo {
    /// Limbo because of a loss, or none.
    #[must_use]
    pub fn new(report: Option<LossReport>) -> Limbo {
        Limbo {
            on: AtomicBool::new(report.is_some()),
            report: Mutex::new(report),
        }
    }

    /// Whether it lasts.
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    /// The loss.
    pub fn report(&self) -> Option<LossReport> {
        self.report.lock().clone()
    }

    /// It is over; that is stored.
    pub fn end(&self) {
        self.report.lock().take();
        self.on.store(false, Ordering::Release);
    }
}

/// The stored bytes of a loss.
#[must_use]
pub fn encode(loss: &Loss) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    bytes.extend_from_slice(&loss.first.to_le_bytes());
    bytes.extend_from_slice(&loss.last.to_le_bytes());
    let reason = loss.reason.as_bytes();
    bytes.extend_from_slice(&reason[..reason.len().min(REASON_BYTES_MAX)]);
    bytes
}

/// Reads stored bytes. Damaged ones still mean a loss.
#[must_use]
pub fn decode(bytes: &[u8]) -> Loss {
    if bytes.len() < HEAD_BYTES || bytes[0] != VERSION {
        return Loss {
            first: 0,
            last: u64::MAX,
            reason: "the record of a loss is itself damaged".to_owned(),
        };
    }
    Loss {
        first: u64_at(bytes, 1),
        last: u64_at(bytes, 9),
        reason: String::from_utf8_lossy(&bytes[HEAD_BYTES..]).into_owned(),
    }
}

/// Two losses as one.
#[must_use]
pub fn merge(one: Option<Loss>, other: Option<Loss>) -> Option<Loss> {
    match (one, other) {
        (Some(one), Some(other)) => Some(Loss {
            first: one.first.min(other.first),
            last: one.last.max(other.last),
            reason: format!("{}; {}", one.reason, other.reason),
        }),
        (one, other) => one.or(other),
    }
}

/// Lists what a loss may have touched.
pub fn report(db: &Db, loss: &Loss) -> Result<LossReport, StoreError> {
    let mut ledgers: Vec<(LedgerId, bool)> = Vec::new();
    let mut ledgers_not_listed = 0;
    db.for_each_ledger(&mut |ledger, meta| {
        if meta.deleted {
            return;
        }
        if ledgers.len() < LISTED_MAX {
            ledgers.push((ledger, meta.fenced));
        } else {
            ledgers_not_listed += 1;
        }
    })?;
    let ledgers = ledgers
        .into_iter()
        .map(|(ledger, fenced)| {
            // An entry that cannot be read is not a reason to hide the rest of the report.
            let last_entry = db.last_entry(ledger).map_or(None, |(entry, _)| entry);
            LedgerLoss {
                ledger,
                last_entry,
                fenced,
            }
        })
        .collect();
    Ok(LossReport {
        first_commit: loss.first,
        last_commit: loss.last,
        reason: loss.reason.clone(),
        ledgers,
        ledgers_not_listed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn losses_round_trip(first in any::<u64>(), last in any::<u64>(), reason in ".{0,100}") {
            let loss = Loss { first, last, reason };
            prop_assert_eq!(decode(&encode(&loss)), loss);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = decode(&bytes);
        }
    }
}
