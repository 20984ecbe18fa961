//! The ledger store: RocksDB behind the journal. Keep what is asked of it narrow, so that another
//! layout (journal segments as storage, indexed here) can take its place.
//!
//! The database can be closed and opened again under its users after a background error: they
//! wait meanwhile, because a store without what was in its memtables must not answer.

pub mod check;
pub mod db;
pub mod entries;
pub mod keys;
mod layout;
mod options;
pub mod presence;
mod records;
pub mod removal;
pub mod space;

use parking_lot::RwLock;

use crate::config::BookieConfig;

pub use db::{Batch, Db, StoreError};
use removal::PacedRemoval;

/// Paced removal of the files of a bookie's database.
#[must_use]
pub fn removal(config: &BookieConfig) -> PacedRemoval {
    PacedRemoval::new(db::directory(config), config.ledger_dir.join("removed"))
}

/// The database and its users.
pub struct Store {
    config: BookieConfig,
    db: RwLock<Option<Db>>,
}

impl Store {
    /// Wraps an open database.
    #[must_use]
    pub fn new(config: BookieConfig, db: Db) -> Store {
        Store {
            config,
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
        let db = Db::open(&self.config, false)?;
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
