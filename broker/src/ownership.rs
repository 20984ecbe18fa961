//! Ownership of bundles. For now one bundle covers a namespace, and whoever is asked for a topic
//! takes it: a broker acquires the next epoch by compare-and-swap when it first needs a namespace.
//! Every metadata change of the write path then carries the epoch as a guard (design.md section
//! 9), so a former owner can change nothing, whatever it believes (I4).
//!
//! A broker's id is random per start, so a restart never inherits an epoch.

use std::collections::HashMap;
use std::sync::Arc;

use aquifer_metadata::error::MetadataError;
use aquifer_metadata::keys::{self, BundleRange};
use aquifer_metadata::record;
use aquifer_metadata::store::{Expect, Guard, MetadataStore};
use aquifer_model::id::{BrokerId, OwnerEpoch};
use aquifer_model::topic::NamespaceName;
use aquifer_proto::v1::BundleOwnerRecord;
use parking_lot::Mutex;

use crate::error::BrokerError;

/// The one bundle of a namespace.
const WHOLE: BundleRange = BundleRange {
    first: 0,
    last: u32::MAX,
};

/// How often an acquisition is tried again when others change the record at the same time.
const ATTEMPTS_MAX: u32 = 10;

/// What owning a bundle gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owned {
    /// The owner's epoch.
    pub(crate) epoch: OwnerEpoch,
    /// Holds as long as nobody has taken over.
    pub(crate) guard: Guard,
}

/// The bundles that this broker owns.
pub(crate) struct Ownership {
    store: Arc<dyn MetadataStore>,
    broker: BrokerId,
    /// One cell per namespace: single-flight without a lock across namespaces.
    owned: Mutex<HashMap<NamespaceName, Arc<tokio::sync::Mutex<Option<Owned>>>>>,
}

impl Ownership {
    pub(crate) fn new(store: Arc<dyn MetadataStore>, broker: BrokerId) -> Ownership {
        Ownership {
            store,
            broker,
            owned: Mutex::new(HashMap::new()),
        }
    }

    /// The epoch of the namespace's bundle; acquires it on first use.
    pub(crate) async fn ensure(&self, namespace: &NamespaceName) -> Result<Owned, BrokerError> {
        let cell = self.cell(namespace);
        let mut owned = cell.lock().await;
        if let Some(owned) = owned.as_ref() {
            return Ok(owned.clone());
        }
        let acquired = self.acquire(namespace).await?;
        tracing::info!(%namespace, epoch = acquired.epoch.0, "bundle acquired");
        *owned = Some(acquired.clone());
        Ok(acquired)
    }

    /// Forgets an ownership that turned out to be lost; the next use acquires it anew.
    pub(crate) async fn lost(&self, namespace: &NamespaceName, epoch: OwnerEpoch) {
        let cell = self.cell(namespace);
        let mut owned = cell.lock().await;
        if owned.as_ref().is_some_and(|owned| owned.epoch == epoch) {
            tracing::warn!(%namespace, epoch = epoch.0, "bundle ownership lost");
            *owned = None;
        }
    }

    fn cell(&self, namespace: &NamespaceName) -> Arc<tokio::sync::Mutex<Option<Owned>>> {
        Arc::clone(self.owned.lock().entry(namespace.clone()).or_default())
    }

    async fn acquire(&self, namespace: &NamespaceName) -> Result<Owned, BrokerError> {
        let key = keys::bundle_owner(namespace, WHOLE);
        let partition = keys::partition_of_namespace(namespace);
        let mut last = MetadataError::Unavailable("the bundle's owner keeps changing".to_owned());
        for _ in 0..ATTEMPTS_MAX {
            let current = self.store.get(&key).await?;
            let (epoch, expect) = match &current {
                None => (1, Expect::Absent),
                Some(versioned) => {
                    let record: BundleOwnerRecord = record::decode(versioned)?;
                    if let Some(revision) = self.mine(&record, versioned.revision) {
                        return Ok(owned(key, record.epoch, revision));
                    }
                    (record.epoch + 1, Expect::Revision(versioned.revision))
                }
            };
            let value = record::encode(BundleOwnerRecord {
                broker_id: self.broker.0.to_vec().into(),
                epoch,
                state: "owned".to_owned(),
            });
            match self.store.put(&partition, &key, value, expect).await {
                Ok(revision) => return Ok(owned(key, epoch, revision)),
                // Either somebody else was first, or our own write was made after all: read back.
                Err(
                    error @ (MetadataError::Conflict { .. } | MetadataError::UnknownOutcome(_)),
                ) => {
                    last = error;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(last.into())
    }

    /// A record that this process wrote is still its own, with the epoch that it wrote.
    fn mine<R>(&self, record: &BundleOwnerRecord, revision: R) -> Option<R> {
        (record.broker_id.as_ref() == self.broker.0).then_some(revision)
    }
}

fn owned(key: String, epoch: u64, revision: aquifer_metadata::store::Revision) -> Owned {
    Owned {
        epoch: OwnerEpoch(epoch),
        guard: Guard {
            key,
            expect: Expect::Revision(revision),
        },
    }
}
