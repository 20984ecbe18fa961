//! Which store a bookie has: the one place that names it.

use crate::config::BookieConfig;
use crate::store::{Opened, StoreError, rocks};

#[cfg(test)]
pub use crate::store::rocks::{RocksStore, set_aside};

/// Opens the store of a bookie, or creates that of a new one.
pub fn open(config: &BookieConfig, is_new: bool) -> Result<Opened, StoreError> {
    rocks::open(config, is_new)
}
