//! Whether the bookie accepts adds: one machine, whose states may hold at the same time.
//!
//! | state | entered by | left by |
//! |---|---|---|
//! | `Full` | housekeeping, below a mark of free space | housekeeping, above a higher one |
//! | `Draining` | the bookie's cookie, which an operator changes | the same |
//! | `Failing` | a thread whose write or flush the store refuses | the applier, by a write |
//! | `Damaged` | a part that finds damaged files of the store | a start that sets them aside |
//! | failed | a failed sync, a panic of a thread, the end of the identity | nothing |
//! | stopping | the end of the process | nothing |
//!
//! In none of them the bookie is writable. Reads, fences, recovery adds and deletions are served in
//! the first four.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use aquifer_model::storage::BookieError;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::report::BookieMode;

/// Why normal adds are refused although requests are served, as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Full = 1,
    Draining = 2,
    Failing = 4,
    Damaged = 8,
}

impl Cause {
    /// The one to name first stands first.
    const ALL: [Cause; 4] = [Cause::Damaged, Cause::Full, Cause::Draining, Cause::Failing];
}

/// The mode of a bookie.
#[derive(Debug)]
pub struct Mode {
    causes: AtomicU8,
    failing: Mutex<String>,
    damaged: Mutex<String>,
    failed: OnceLock<String>,
    failure: watch::Sender<Option<String>>,
    stopping: AtomicBool,
}

impl Default for Mode {
    fn default() -> Mode {
        Mode {
            causes: AtomicU8::new(0),
            failing: Mutex::new(String::new()),
            damaged: Mutex::new(String::new()),
            failed: OnceLock::new(),
            failure: watch::Sender::new(None),
            stopping: AtomicBool::new(false),
        }
    }
}

impl Mode {
    /// Whether any request is taken.
    pub fn check(&self) -> Result<(), BookieError> {
        if let Some(why) = self.failed.get() {
            return Err(BookieError::Io(why.clone()));
        }
        if self.stopping.load(Ordering::Acquire) {
            return Err(BookieError::ShuttingDown);
        }
        Ok(())
    }

    /// Whether a normal add is taken.
    pub fn check_add(&self) -> Result<(), BookieError> {
        self.check_class(false)
    }

    /// The same; adds that may use the reserve of a full disk are taken until storage fails.
    pub fn check_class(&self, reserve: bool) -> Result<(), BookieError> {
        let passed = if reserve { Cause::Full as u8 } else { 0 };
        let causes = self.causes.load(Ordering::Acquire) & !passed;
        if causes == 0 {
            return Ok(());
        }
        let first = Cause::ALL.into_iter().find(|c| causes & *c as u8 != 0);
        Err(BookieError::ReadOnly(match first {
            Some(Cause::Damaged) => self.damaged.lock().clone(),
            Some(Cause::Draining) => "the bookie is draining".to_owned(),
            Some(Cause::Failing) => self.failing.lock().clone(),
            Some(Cause::Full) | None => "the disk is full".to_owned(),
        }))
    }

    /// Enters or leaves a state; whether it was in the other one.
    fn set(&self, cause: Cause, on: bool) -> bool {
        let bit = cause as u8;
        let before = if on {
            self.causes.fetch_or(bit, Ordering::AcqRel)
        } else {
            self.causes.fetch_and(!bit, Ordering::AcqRel)
        };
        (before & bit != 0) != on
    }

    fn is(&self, cause: Cause) -> bool {
        self.causes.load(Ordering::Acquire) & cause as u8 != 0
    }

    /// Free space fell below the lower mark or rose above the upper one.
    pub fn set_full(&self, full: bool) {
        if self.set(Cause::Full, full) {
            if full {
                tracing::warn!("bookie is read-only: the disk is full");
            } else {
                tracing::info!("the disk has free space again");
            }
        }
    }

    /// An operator wants the bookie empty, or no longer.
    pub fn set_draining(&self, draining: bool) {
        if self.set(Cause::Draining, draining) {
            tracing::info!(draining, "an operator has changed what this bookie takes");
        }
    }

    /// Whether free space is below the mark.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.is(Cause::Full)
    }

    /// The store refuses writes or flushes.
    pub fn storage_failed(&self, error: &str) {
        error.clone_into(&mut self.failing.lock());
        if self.set(Cause::Failing, true) {
            tracing::error!(error, "bookie is read-only: the ledger store failed");
        }
    }

    /// The store works again.
    pub fn storage_recovered(&self) {
        if self.is(Cause::Failing) && self.set(Cause::Failing, false) {
            tracing::info!("the ledger store works again");
        }
    }

    /// Files of the store are damaged: it takes no normal add any more until a start without them.
    pub fn storage_damaged(&self, what: &str) {
        let what = format!("files of the ledger store are damaged: {what}");
        self.damaged.lock().clone_from(&what);
        if self.set(Cause::Damaged, true) {
            tracing::error!(what, "bookie is read-only until it is started without them");
        }
    }

    /// Nothing is acknowledged any more.
    pub fn fail(&self, why: &str) {
        let why = self.failed.get_or_init(|| {
            tracing::error!(why, "bookie failed: nothing is acknowledged from now on");
            why.to_owned()
        });
        self.failure.send_replace(Some(why.clone()));
    }

    /// Waits for a failure.
    pub async fn failed(&self) -> String {
        let mut failure = self.failure.subscribe();
        // The guard ends with this statement: it may not live across the wait below.
        let why = failure
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|why| why.clone());
        match why {
            Some(why) => why,
            // The sender lives as long as self.
            None => std::future::pending().await,
        }
    }

    /// No request is taken from now on. Returns whether this was the first call.
    pub fn stop(&self) -> bool {
        !self.stopping.swap(true, Ordering::AcqRel)
    }

    /// For people.
    #[must_use]
    pub fn report(&self) -> BookieMode {
        if let Some(why) = self.failed.get() {
            return BookieMode::Failed(why.clone());
        }
        if self.stopping.load(Ordering::Acquire) {
            return BookieMode::Failed("shutting down".to_owned());
        }
        match self.check_add() {
            Err(BookieError::ReadOnly(why)) => BookieMode::ReadOnly(why),
            _ => BookieMode::Writable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_is_left_by_whoever_may_and_the_others_stay() {
        let mode = Mode::default();
        assert_eq!(mode.report(), BookieMode::Writable);
        mode.set_full(true);
        mode.storage_failed("no");
        mode.storage_damaged("000012.sst");
        mode.set_draining(true);
        mode.set_full(false);
        mode.storage_recovered();
        mode.set_draining(false);
        let why = match mode.report() {
            BookieMode::ReadOnly(why) => why,
            other => panic!("{other:?}"),
        };
        assert!(why.contains("000012.sst"), "{why}");
        assert!(mode.check().is_ok() && !mode.is_full());
    }
}
