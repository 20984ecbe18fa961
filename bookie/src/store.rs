//! The ledger store: RocksDB behind the journal. Keep what is asked of it narrow, so that another
//! layout (journal segments as storage, indexed here) can take its place.
//!
//! The database can be closed and opened again under its users after a background error: they
//! wait meanwhile, because a store without what was in its memtables must not answer.

pub mod check;
pub mod db;
pub mod entries;
pub mod files;
pub mod keys;
mod layout;
mod manifest;
mod options;
pub mod presence;
mod records;
pub mod removal;
pub mod set_aside;
pub mod space;

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use crate::config::BookieConfig;

pub use db::{Batch, Db, StoreError, directory};
use removal::PacedRemoval;

/// Paced removal of the files of a bookie's database.
#[must_use]
pub fn removal(config: &BookieConfig) -> PacedRemoval {
    PacedRemoval::new(db::directory(config), config.ledger_dir.join("removed"))
}

/// The database and its users.
pub struct Store {
    config: BookieConfig,
    /// Files of the database are damaged: it is opened so that it serves what is whole.
    damaged: AtomicBool,
    db: RwLock<Option<Db>>,
}

impl Store {
    /// Wraps an open database.
    #[must_use]
    pub fn new(config: BookieConfig, db: Db) -> Store {
        Store {
            config,
            damaged: AtomicBool::new(db.is_damaged()),
            db: RwLock::new(Some(db)),
        }
    }

    /// Uses the database.
    pub fn with<T, E: From<StoreError>>(
        &self,
        operation: impl FnOnce(&Db) -> Result<T, E>,
    ) -> Result<T, E> {
        match &*self.db.read() {
            Some(db) => operation(db),
            None => Err(StoreError::Closed("after an error".to_owned()).into()),
        }
    }

    /// From now on the database is opened so that damaged files do not stop it. Until it is opened
    /// again, they do.
    pub fn set_damaged(&self) {
        self.damaged.store(true, Ordering::Release);
    }

    /// Whether it is opened so.
    pub fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Acquire)
    }

    /// Closes the database, opens it again and lets `reapply` bring back what was not flushed,
    /// before anybody else uses it.
    pub fn reopen(
        &self,
        reapply: impl FnOnce(&Db) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        // A compaction that runs has the database until it ends.
        self.cancel();
        let mut slot = self.db.write();
        drop(slot.take());
        let db = if self.is_damaged() {
            Db::open_damaged(&self.config)?
        } else {
            Db::open(&self.config, false)?
        };
        reapply(&db)?;
        *slot = Some(db);
        Ok(())
    }

    /// Ends compactions that run and lets no other begin: what follows is the end of the database.
    pub fn cancel(&self) {
        if let Some(db) = &*self.db.read() {
            db.cancel();
        }
    }

    /// Closes the database for good.
    pub fn close(&self) {
        drop(self.db.write().take());
    }
}
