//! What deletions write: marks, and keys that go.

use aquifer_metadata::error::MetadataError;
use aquifer_metadata::keys;
use aquifer_metadata::store::{Expect, Operation, Revision, Transaction, Versioned};
use aquifer_metadata::{record, scan};
use aquifer_model::topic::NamespaceName;
use aquifer_proto::v1::GrantRecord;
use bytes::Bytes;

use crate::error::BrokerError;
use crate::topics::Topics;

/// Keys that are deleted in one change.
const KEYS_AT_ONCE: usize = 64;

impl Topics {
    /// Deletes the grants of a namespace and of topics in it. Patterns stay: they say nothing of
    /// one namespace.
    pub(super) async fn delete_grants(&self, namespace: &NamespaceName) -> Result<(), BrokerError> {
        let prefix = keys::grants_prefix(Some(namespace.tenant()));
        self.delete_found(&prefix, |found| {
            let record = record::decode::<GrantRecord>(found);
            record.is_ok_and(|record| record.namespace == namespace.namespace())
        })
        .await
    }

    /// Deletes keys of the whole cluster that are found below a prefix.
    pub(super) async fn delete_found(
        &self,
        prefix: &str,
        is_wanted: impl Fn(&Versioned) -> bool + Send + Sync,
    ) -> Result<(), BrokerError> {
        let store = self.shared.namespaces.store().as_ref();
        let look = |all: &mut Vec<String>, found: &Versioned| -> Result<(), BrokerError> {
            if is_wanted(found) {
                all.push(found.key.clone());
            }
            Ok(())
        };
        let (all, _) = scan::each(store, prefix, Vec::new, look).await?;
        for some in all.chunks(KEYS_AT_ONCE) {
            let keys = some.iter().map(|key| (key.clone(), Expect::Any));
            self.delete_keys(keys::CLUSTER_PARTITION, keys.collect())
                .await?;
        }
        Ok(())
    }

    /// Deletes all keys below a prefix.
    pub(super) async fn delete_below(
        &self,
        partition: &str,
        prefix: &str,
    ) -> Result<(), BrokerError> {
        let store = self.shared.namespaces.store();
        loop {
            let found = store.scan(prefix, None, KEYS_AT_ONCE).await?.items;
            if found.is_empty() {
                return Ok(());
            }
            let keys = found.into_iter().map(|found| (found.key, Expect::Any));
            self.delete_keys(partition, keys.collect()).await?;
        }
    }

    /// Deletes keys together. False: one is not as expected.
    pub(super) async fn delete_keys(
        &self,
        partition: &str,
        keys: Vec<(String, Expect)>,
    ) -> Result<bool, BrokerError> {
        let operations = keys.into_iter();
        let operations = operations.map(|(key, expect)| Operation::Delete { key, expect });
        let operations = operations.collect();
        self.commit(partition.to_owned(), operations).await
    }

    /// Writes a record again. False: it was changed meanwhile.
    pub(super) async fn replace(
        &self,
        partition: String,
        key: String,
        value: Bytes,
        revision: Revision,
    ) -> Result<bool, BrokerError> {
        let expect = Expect::Revision(revision);
        self.commit(partition, vec![Operation::Put { key, value, expect }])
            .await
    }

    async fn commit(
        &self,
        partition: String,
        operations: Vec<Operation>,
    ) -> Result<bool, BrokerError> {
        let transaction = Transaction {
            partition,
            guards: Vec::new(),
            operations,
        };
        match self.shared.namespaces.store().commit(transaction).await {
            Ok(_) => Ok(true),
            Err(MetadataError::Conflict { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
