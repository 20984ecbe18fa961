//! Whether the bookie accepts adds: full disk, storage errors, draining, failure for good, shutdown.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use aquifer_model::storage::BookieError;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::report::BookieMode;

/// The mode of a bookie.
#[derive(Debug)]
pub struct Mode {
    full: AtomicBool,
    draining: AtomicBool,
    storage_failed: AtomicBool,
    storage_error: Mutex<String>,
    failed: OnceLock<String>,
    failure: watch::Sender<Option<String>>,
    stopping: AtomicBool,
}

impl Default for Mode {
    fn default() -> Self {
        Self {
            full: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            storage_failed: AtomicBool::new(false),
            storage_error: Mutex::new(String::new()),
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
        if !reserve && self.full.load(Ordering::Acquire) {
            return Err(BookieError::ReadOnly("the disk is full".to_owned()));
        }
        if self.draining.load(Ordering::Acquire) {
            return Err(BookieError::ReadOnly("the bookie is draining".to_owned()));
        }
        if self.storage_failed.load(Ordering::Acquire) {
            return Err(BookieError::ReadOnly(self.storage_error.lock().clone()));
        }
        Ok(())
    }

    /// Free space fell below the lower mark or rose above the upper one.
    pub fn set_full(&self, full: bool) {
        if self.full.swap(full, Ordering::AcqRel) != full {
            if full {
                tracing::warn!("bookie is read-only: the disk is full");
            } else {
                tracing::info!("bookie is writable again");
            }
        }
    }

    /// An operator wants the bookie empty, or no longer.
    pub fn set_draining(&self, draining: bool) {
        if self.draining.swap(draining, Ordering::AcqRel) != draining {
            tracing::info!(draining, "an operator has changed what this bookie takes");
        }
    }

    /// Whether free space is below the mark.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    /// RocksDB refuses writes or flushes.
    pub fn storage_failed(&self, error: &str) {
        let mut kept = self.storage_error.lock();
        error.clone_into(&mut kept);
        drop(kept);
        if !self.storage_failed.swap(true, Ordering::AcqRel) {
            tracing::error!(error, "bookie is read-only: the ledger store failed");
        }
    }

    /// RocksDB works again.
    pub fn storage_recovered(&self) {
        if self.storage_failed.swap(false, Ordering::AcqRel) {
            tracing::info!("the ledger store works again");
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
