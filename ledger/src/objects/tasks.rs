//! Ledgers that brokers leave to offloaders: a record `offloads/ID` for each, and one of each
//! offloader that lives, `offloaders/ID`.
//!
//! Invariant: neither decides anything. Several offloaders may take one task, one may take a task
//! that is done, and none may look for one at all: what an attempt changes compares the record of
//! its ledger (H22).

use std::collections::BTreeSet;

use aquifer_metadata::error::MetadataError;
use aquifer_metadata::keys::{self, Key};
use aquifer_metadata::record;
use aquifer_metadata::scan::{self, Pages};
use aquifer_metadata::store::{Expect, MetadataStore, Operation, Transaction, Versioned};
use aquifer_metadata::update::{Change, UpdateError};
use aquifer_model::id::{BrokerId, LedgerId};
use aquifer_model::policy::offload::OffloadCompression;
use aquifer_proto::v1;
use bytes::Bytes;

use crate::error::LedgerError;
use crate::objects::damaged;

/// Offloaders, and brokers, that a cluster may have.
const PROCESSES_MAX: usize = 10_000;

/// A closed ledger that is to be offloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffloadTask {
    /// The ledger.
    pub ledger: LedgerId,
    /// The metadata partition of that.
    pub home: String,
    /// The topic, as the object will name it.
    pub topic: String,
    /// The incarnation of that.
    pub incarnation: Bytes,
    /// Whether blocks of the object are compressed.
    pub compression: OffloadCompression,
    /// When it was left, in milliseconds since 1970.
    pub asked_ms: u64,
}

impl OffloadTask {
    fn value(&self) -> Bytes {
        let compression = match self.compression {
            OffloadCompression::None => v1::OffloadCompression::None,
            OffloadCompression::Auto => v1::OffloadCompression::Auto,
        };
        record::encode(v1::OffloadTaskRecord {
            home: self.home.clone(),
            topic: self.topic.clone(),
            incarnation: self.incarnation.clone(),
            compression: compression.into(),
            asked_ms: self.asked_ms,
        })
    }

    fn decode(stored: &Versioned) -> Result<OffloadTask, LedgerError> {
        let Ok(Key::OffloadTask(ledger)) = stored.key.parse() else {
            return Err(damaged(stored, "it is no key of a task").into());
        };
        let record: v1::OffloadTaskRecord = record::decode(stored)?;
        let compression = match record.compression() {
            v1::OffloadCompression::None => OffloadCompression::None,
            // What a newer build may add is no reason to leave a ledger at bookies.
            v1::OffloadCompression::Auto | v1::OffloadCompression::Unspecified => {
                OffloadCompression::Auto
            }
        };
        Ok(OffloadTask {
            ledger,
            home: record.home,
            topic: record.topic,
            incarnation: record.incarnation,
            compression,
            asked_ms: record.asked_ms,
        })
    }
}

/// Leaves a ledger to offloaders, if it is not left to them yet.
///
/// # Errors
/// When metadata cannot be changed.
pub async fn leave(store: &dyn MetadataStore, task: &OffloadTask) -> Result<(), LedgerError> {
    let decide = |stored: Option<Versioned>| {
        let change = match stored {
            Some(_) => Change::none(()),
            None => Change::put(&task.home, task.value(), ()),
        };
        std::future::ready(Ok(change))
    };
    let key = keys::offload_task(task.ledger);
    let left = store.update(&key, &[], decide);
    let left: Result<_, UpdateError<LedgerError>> = left.await;
    left.map(drop).map_err(UpdateError::flatten)
}

/// Ends a task.
///
/// # Errors
/// When metadata cannot be changed.
pub async fn end(store: &dyn MetadataStore, task: &OffloadTask) -> Result<(), LedgerError> {
    let transaction = Transaction {
        partition: task.home.clone(),
        guards: Vec::new(),
        operations: vec![Operation::Delete {
            key: keys::offload_task(task.ledger),
            expect: Expect::Any,
        }],
    };
    store.commit(transaction).await?;
    Ok(())
}

/// The tasks, oldest ledgers first, page by page: they may be many.
pub struct Tasks<'a>(Pages<'a>);

impl<'a> Tasks<'a> {
    /// Begins before the first.
    #[must_use]
    pub fn new(store: &'a dyn MetadataStore) -> Tasks<'a> {
        Tasks(Pages::new(store, keys::OFFLOAD_TASKS_PREFIX))
    }

    /// The next page; `None` behind the last. A record that cannot be read is told and left as it
    /// is.
    ///
    /// # Errors
    /// When the page cannot be read.
    pub async fn next(&mut self) -> Result<Option<Vec<OffloadTask>>, LedgerError> {
        let Some(page) = self.0.next().await? else {
            return Ok(None);
        };
        let decode = |stored: &Versioned| match OffloadTask::decode(stored) {
            Ok(task) => Some(task),
            Err(error) => {
                tracing::warn!(key = stored.key, %error, "task of offload cannot be read");
                None
            }
        };
        Ok(Some(page.iter().filter_map(decode).collect()))
    }
}

/// What an offloader says of itself under the lease of its process.
#[must_use]
pub fn announcement(version: &str) -> Bytes {
    record::encode(v1::OffloaderRecord {
        version: version.to_owned(),
    })
}

/// The offloaders that live.
///
/// # Errors
/// When they cannot be read.
pub async fn offloaders(store: &dyn MetadataStore) -> Result<BTreeSet<BrokerId>, MetadataError> {
    living(store, keys::OFFLOADERS_PREFIX).await
}

/// The brokers that live.
///
/// # Errors
/// When they cannot be read.
pub async fn brokers(store: &dyn MetadataStore) -> Result<BTreeSet<BrokerId>, MetadataError> {
    living(store, keys::BROKERS_PREFIX).await
}

async fn living(
    store: &dyn MetadataStore,
    prefix: &str,
) -> Result<BTreeSet<BrokerId>, MetadataError> {
    let (found, _) = scan::all(store, prefix, PROCESSES_MAX).await?;
    let id = |stored: &Versioned| match stored.key.parse() {
        Ok(Key::Offloader(id) | Key::Broker(id)) => Some(id),
        _ => None,
    };
    Ok(found.iter().filter_map(id).collect())
}
