//! Which partition a key belongs to.

use aquifer_model::policy::PolicyScope;
use aquifer_model::topic::{NamespaceName, TopicName};

use crate::error::{MetadataError, MetadataResult};
use crate::keys::{Key, Partition, escape};
use crate::store::{Operation, Transaction};

/// The partition of everything in a namespace.
#[must_use]
pub fn partition_of_namespace(namespace: &NamespaceName) -> String {
    format!(
        "{}/{}",
        escape(namespace.tenant()),
        escape(namespace.namespace())
    )
}

/// The partition of everything that belongs to a topic: its record, ledgers and intents.
#[must_use]
pub fn partition_of_topic(topic: &TopicName) -> String {
    partition_of_namespace(topic.namespace())
}

/// The partition of the policies of a scope: that of what they belong to.
#[must_use]
pub fn partition_of_policies(scope: &PolicyScope) -> String {
    match scope {
        PolicyScope::Tenant(_) => CLUSTER_PARTITION.to_owned(),
        PolicyScope::Namespace(name) => partition_of_namespace(name),
        PolicyScope::Topic(name) => partition_of_topic(name),
    }
}

/// The partition of what belongs to the whole cluster.
pub const CLUSTER_PARTITION: &str = "";

/// The partition of a key.
///
/// # Errors
/// `Invalid` when no key looks like this.
pub fn partition_of(key: &str) -> MetadataResult<Partition<'_>> {
    let parsed: Key = key
        .parse()
        .map_err(|_| MetadataError::Invalid(format!("{key:?} is not a key of this store")))?;
    Ok(match parsed {
        Key::Namespace(namespace) | Key::BundleOwner(namespace, _) => {
            Partition::Named(partition_of_namespace(&namespace).into())
        }
        Key::Policies(scope) | Key::RateShares(scope) => {
            Partition::Named(partition_of_policies(&scope).into())
        }
        Key::Topic(topic)
        | Key::SegmentPage(topic, ..)
        | Key::Schema(topic, _)
        | Key::Restoring(topic) => Partition::Named(partition_of_topic(&topic).into()),
        Key::Ledger(_)
        | Key::UnderReplicated(_)
        | Key::Deletion(_)
        | Key::Upload(_)
        | Key::DyingObject(_)
        | Key::OffloadTask(_) => Partition::OfOwner,
        Key::Tenant(_)
        | Key::Broker(_)
        | Key::Bookie(_)
        | Key::Cookie(_)
        | Key::RepairLock(_)
        | Key::RepairWorker(_)
        | Key::IdRange(_)
        | Key::Cluster(_)
        | Key::Leader(_)
        | Key::Token(_)
        | Key::Grant(..)
        | Key::Role(..)
        | Key::Revocation(_)
        | Key::ClusterKey(_)
        | Key::Forgotten(_)
        | Key::AuditEnds
        | Key::Location(_)
        | Key::Offloader(_)
        | Key::Backup(_) => Partition::Named(CLUSTER_PARTITION.into()),
    })
}

/// Checks that all keys of a transaction belong to the partition that it names.
///
/// # Errors
/// `Invalid` when one does not.
pub fn check_partition(transaction: &Transaction) -> MetadataResult<()> {
    let guarded = transaction.guards.iter().map(|guard| guard.key.as_str());
    let changed = transaction.operations.iter().map(Operation::key);
    for key in guarded.chain(changed) {
        if let Partition::Named(partition) = partition_of(key)?
            && partition != transaction.partition
        {
            return Err(MetadataError::Invalid(format!(
                "{key} belongs to partition {partition:?}, the transaction to {:?}",
                transaction.partition
            )));
        }
    }
    Ok(())
}
