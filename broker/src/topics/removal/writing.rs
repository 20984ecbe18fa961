//! What deletions delete: keys, while the record is as it was marked.

use aquifer_metadata::error::MetadataError;
use aquifer_metadata::keys;
use aquifer_metadata::store::{Expect, Guard, Operation, Transaction, Versioned};
use aquifer_metadata::{record, scan};
use aquifer_model::topic::NamespaceName;
use aquifer_proto::v1::GrantRecord;

use crate::error::BrokerError;
use crate::topics::Topics;
use crate::topics::removal::{ATTEMPTS_MAX, changing};

/// Keys that are deleted in one change.
const KEYS_AT_ONCE: usize = 64;

impl Topics {
    /// Whether a key is as expected now.
    pub(super) async fn holds(&self, record: &Guard) -> Result<bool, BrokerError> {
        let found = self.shared.namespaces.store().get(&record.key).await?;
        Ok(found.is_some_and(|found| Expect::Revision(found.revision) == record.expect))
    }

    /// Deletes the grants of a namespace and of topics in it. Patterns stay: they say nothing of
    /// one namespace. False: the namespace's record is not as expected any more.
    ///
    /// This is not `store.update`, which changes one key: many keys go together, and when one of
    /// them was changed, all are looked for again.
    pub(super) async fn delete_grants(
        &self,
        namespace: &NamespaceName,
        record: &Guard,
    ) -> Result<bool, BrokerError> {
        let prefix = keys::grants_prefix(Some(namespace.tenant()));
        for _ in 0..ATTEMPTS_MAX {
            let found = self.found(&prefix, |found| {
                let grant = record::decode::<GrantRecord>(found);
                grant.is_ok_and(|grant| grant.namespace == namespace.namespace())
            });
            let found = found.await?;
            // No change can compare it: it belongs to another partition. What was found before is
            // of the namespace that goes, and none of one that is created later.
            if !self.holds(record).await? {
                return Ok(false);
            }
            if self.delete_all(None, found).await? {
                return Ok(true);
            }
        }
        Err(changing())
    }

    /// The keys of wanted values below a prefix, each as it is now.
    pub(super) async fn found(
        &self,
        prefix: &str,
        is_wanted: impl Fn(&Versioned) -> bool + Send + Sync,
    ) -> Result<Vec<(String, Expect)>, BrokerError> {
        let store = self.shared.namespaces.store().as_ref();
        let look =
            |all: &mut Vec<(String, Expect)>, found: &Versioned| -> Result<(), BrokerError> {
                if is_wanted(found) {
                    all.push((found.key.clone(), Expect::Revision(found.revision)));
                }
                Ok(())
            };
        Ok(scan::each(store, prefix, Vec::new, look).await?.0)
    }

    /// Deletes keys of the whole cluster. False: the record, or one of them, is not as expected.
    pub(super) async fn delete_all(
        &self,
        record: Option<&Guard>,
        found: Vec<(String, Expect)>,
    ) -> Result<bool, BrokerError> {
        for some in found.chunks(KEYS_AT_ONCE) {
            let partition = keys::CLUSTER_PARTITION;
            if !self.delete_keys(partition, record, some.to_vec()).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Deletes all keys below a prefix. False: the record is not as expected.
    pub(super) async fn delete_below(
        &self,
        partition: &str,
        prefix: &str,
        record: &Guard,
    ) -> Result<bool, BrokerError> {
        let store = self.shared.namespaces.store();
        loop {
            // No `scan::each`: this takes one page of the newest state at a time, as large as one
            // transaction may be. Once it is deleted, the first page has what is left.
            let found = store.scan(prefix, None, KEYS_AT_ONCE).await?.items;
            if found.is_empty() {
                return Ok(true);
            }
            let keys = found.into_iter().map(|found| (found.key, Expect::Any));
            let keys = keys.collect();
            if !self.delete_keys(partition, Some(record), keys).await? {
                return Ok(false);
            }
        }
    }

    /// Deletes keys together. False: the record, or one of them, is not as expected.
    pub(super) async fn delete_keys(
        &self,
        partition: &str,
        record: Option<&Guard>,
        keys: Vec<(String, Expect)>,
    ) -> Result<bool, BrokerError> {
        let operations = keys.into_iter();
        let operations = operations.map(|(key, expect)| Operation::Delete { key, expect });
        let transaction = Transaction {
            partition: partition.to_owned(),
            guards: record.cloned().into_iter().collect(),
            operations: operations.collect(),
        };
        match self.shared.namespaces.store().commit(transaction).await {
            Ok(_) => Ok(true),
            Err(MetadataError::Conflict { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
