//! Limbo (I5, H6): the bookie knows that it lost synced data, so it gives no negative answer,
//! for any ledger, until the loss is repaired or accepted.
//!
//! Every ledger is affected, listed or not, because what was lost may have been the only trace
//! of one, or its fence. A tombstone stands: it is positive proof.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::journal::replay::Loss;
use crate::report::{LedgerLoss, LossReport};
use crate::store::{EntryStore, StoreError};

/// Ledgers that a report lists.
const LISTED_MAX: usize = 1_000;

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
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    /// The loss.
    #[must_use]
    pub fn report(&self) -> Option<LossReport> {
        self.report.lock().clone()
    }

    /// It is over; that is stored.
    pub fn end(&self) {
        self.report.lock().take();
        self.on.store(false, Ordering::Release);
    }
}

/// Lists what a loss may have touched.
pub fn report(store: &dyn EntryStore, loss: &Loss) -> Result<LossReport, StoreError> {
    let mut ledgers = Vec::new();
    let mut ledgers_not_listed = 0;
    let mut after = None;
    loop {
        let page = store.ledgers_after(after, LISTED_MAX)?;
        for (ledger, meta) in page.ledgers {
            if ledgers.len() >= LISTED_MAX {
                ledgers_not_listed += 1;
                continue;
            }
            // An entry that cannot be read is not a reason to hide the rest of the report.
            let last = store.last_entry(ledger).unwrap_or(None);
            ledgers.push(LedgerLoss {
                ledger,
                last_entry: last.map(|last| last.entry),
                fenced: meta.fenced,
            });
        }
        match page.looked {
            Some(looked) => after = Some(looked),
            None => break,
        }
    }
    Ok(LossReport {
        first_commit: loss.first,
        last_commit: loss.last,
        reason: loss.reason.clone(),
        ledgers,
        ledgers_not_listed,
    })
}
