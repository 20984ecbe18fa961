//! Secrets that all brokers of a cluster share: the first one that needs a secret draws it.

use aquifer_metadata::error::{MetadataError, MetadataResult};
use aquifer_metadata::keys;
use aquifer_metadata::record;
use aquifer_metadata::store::{Expect, MetadataStore};
use aquifer_proto::v1::ClusterKeyRecord;
use aquifer_runtime::secret;

use crate::error::BrokerError;

/// Bytes of a secret.
const SECRET_BYTES: usize = 32;

/// The secret of a name.
///
/// # Errors
/// When the metadata store does not answer, or has something else there.
pub(crate) async fn shared(
    store: &dyn MetadataStore,
    name: &str,
    now_ms: u64,
) -> Result<[u8; SECRET_BYTES], BrokerError> {
    let key = keys::cluster_key(name);
    let mut found = stored(store, &key).await?;
    if found.is_none() {
        let drawn = secret::draw().map_err(|error| BrokerError::Internal(error.to_string()))?;
        let value = record::encode(ClusterKeyRecord {
            secret: drawn.to_vec().into(),
            created_ms: now_ms,
        });
        let put = store.put(keys::CLUSTER_PARTITION, &key, value, Expect::Absent);
        match put.await {
            // Also where the outcome is not known, the stored one counts.
            Ok(_) | Err(MetadataError::Conflict { .. } | MetadataError::UnknownOutcome(_)) => {}
            Err(error) => return Err(error.into()),
        }
        found = stored(store, &key).await?;
    }
    let damaged = || MetadataError::Damaged {
        key,
        reason: format!("it is no secret of {SECRET_BYTES} bytes"),
    };
    let found = found.and_then(|found| found.try_into().ok());
    Ok(found.ok_or_else(damaged)?)
}

async fn stored(store: &dyn MetadataStore, key: &str) -> MetadataResult<Option<Vec<u8>>> {
    let found = store.get(key).await?;
    let record = found.map(|found| record::decode::<ClusterKeyRecord>(&found));
    Ok(record.transpose()?.map(|record| record.secret.to_vec()))
}
