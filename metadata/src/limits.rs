//! What a request may be, whichever store it goes to: the limits of etcd and the partition rule.
//! Every implementation checks here, so that what one takes the others take too.

use std::collections::HashSet;

use aquifer_model::limits::{METADATA_OPERATIONS_MAX, METADATA_REQUEST_BYTES_MAX};

use crate::error::{MetadataError, MetadataResult};
use crate::keys;
use crate::store::{Expect, Operation, Transaction};

/// Longest name of a cluster, in bytes; it begins every key in etcd.
pub const CLUSTER_NAME_BYTES_MAX: usize = 64;
/// What each mention of a key costs on the wire besides the key itself, in bytes: the root of the
/// cluster in front of it (13 bytes and the name) and the fields around it.
const MENTION_BYTES: usize = CLUSTER_NAME_BYTES_MAX + 56;
/// What a transaction costs besides its keys and values, in bytes: the store's own slot in it, and
/// the envelope in which etcd replicates it.
const ENVELOPE_BYTES: usize = 1_024;

/// Checks a transaction before it is sent anywhere.
///
/// # Errors
/// `Invalid` when it is too large, changes a key twice, or leaves its partition.
pub(crate) fn check(transaction: &Transaction) -> MetadataResult<()> {
    check_size(transaction)?;
    keys::check_partition(transaction)
}

/// Checks one change that goes with a session, which belongs to any partition.
///
/// # Errors
/// As [`check`].
pub(crate) fn check_one(operation: &Operation) -> MetadataResult<()> {
    keys::partition_of(operation.key())?;
    check_size(&Transaction {
        operations: vec![operation.clone()],
        ..Transaction::default()
    })
}

fn check_size(transaction: &Transaction) -> MetadataResult<()> {
    let operations = transaction.operations.len();
    let conditions = conditions(transaction);
    if operations.max(conditions) > METADATA_OPERATIONS_MAX {
        return Err(MetadataError::Invalid(format!(
            "{operations} operations under {conditions} conditions: {METADATA_OPERATIONS_MAX} of each are allowed"
        )));
    }
    let mut bytes = ENVELOPE_BYTES;
    for guard in &transaction.guards {
        bytes += condition_bytes(&guard.key);
    }
    let mut changed = HashSet::with_capacity(operations);
    for operation in &transaction.operations {
        let key = operation.key();
        if !changed.insert(key) {
            return Err(MetadataError::Invalid(format!("{key} is changed twice")));
        }
        bytes += key.len() + MENTION_BYTES;
        if operation.expect() != Expect::Any {
            bytes += condition_bytes(key);
        }
        if let Operation::Put { value, .. } = operation {
            bytes += value.len();
        }
    }
    if bytes > METADATA_REQUEST_BYTES_MAX {
        return Err(MetadataError::Invalid(format!(
            "{bytes} bytes: at most {METADATA_REQUEST_BYTES_MAX} are allowed in a transaction"
        )));
    }
    Ok(())
}

/// How many conditions a transaction has.
pub(crate) fn conditions(transaction: &Transaction) -> usize {
    let conditional = transaction
        .operations
        .iter()
        .filter(|operation| operation.expect() != Expect::Any);
    transaction.guards.len() + conditional.count()
}

/// A condition names its key twice: to compare, and to read what is there when it fails.
fn condition_bytes(key: &str) -> usize {
    2 * (key.len() + MENTION_BYTES)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::keys;

    #[test]
    fn the_largest_root_fits_into_what_a_mention_costs() {
        let root = keys::root(&"x".repeat(CLUSTER_NAME_BYTES_MAX));
        // Tags and lengths of the message, its oneof and the key, and a compared number.
        assert!(root.len() + 40 <= MENTION_BYTES, "{}", root.len());
    }

    #[test]
    fn guards_count_as_conditions() {
        let guards = (0..=METADATA_OPERATIONS_MAX).map(|id| crate::store::Guard {
            key: keys::id_range(&id.to_string()),
            expect: Expect::Absent,
        });
        let transaction = Transaction {
            guards: guards.collect(),
            ..Transaction::default()
        };
        assert!(matches!(
            check(&transaction),
            Err(MetadataError::Invalid(_))
        ));
        let one = Operation::Put {
            key: "no/key".to_owned(),
            value: Bytes::new(),
            expect: Expect::Any,
        };
        assert!(matches!(check_one(&one), Err(MetadataError::Invalid(_))));
    }
}
