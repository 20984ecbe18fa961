//! The first token of a cluster, by which all others are made.

use aquifer_metadata::error::MetadataError;
use aquifer_metadata::keys;
use aquifer_metadata::record;
use aquifer_metadata::store::{Expect, MetadataStore};
use aquifer_proto::v1::TokenRecord;
use aquifer_runtime::secret::{NoEntropy, Secret};
use thiserror::Error;

use crate::security::token;

/// Its name; the super-users of the default configuration are the principal `token:admin`.
const NAME: &str = "admin";
/// Its id is always the same, so that only one can be made however many processes try.
const ID_BYTES: [u8; 16] = [0; 16];
/// The principal that makes it.
const CREATED_BY: &str = "internal:first-start";

/// The id of the first token.
pub(crate) fn id() -> String {
    token::id_of(ID_BYTES)
}

/// Why there is no first token.
#[derive(Debug, Error)]
pub enum FirstToken {
    /// The metadata store did not take it.
    #[error("metadata: {0}")]
    Metadata(#[from] MetadataError),
    /// It could not be kept.
    #[error("the token cannot be saved: {0}")]
    Save(#[from] std::io::Error),
    /// None could be drawn.
    #[error(transparent)]
    Entropy(#[from] NoEntropy),
}

/// Makes the first token of a cluster, `token:admin`, unless there was one before, even a revoked
/// one. `save` keeps what a caller shows; it is called before the token counts, so that no crash
/// leaves a token that is kept nowhere. Answers whether it was made.
///
/// # Errors
/// When it was not made, or when the store cannot tell.
pub async fn create_first_token(
    store: &dyn MetadataStore,
    now_ms: u64,
    save: impl FnOnce(&Secret) -> std::io::Result<()>,
) -> Result<bool, FirstToken> {
    let id = id();
    let key = keys::token(&id);
    if store.get(&key).await?.is_some() {
        return Ok(false);
    }
    let drawn = token::draw(&id)?;
    save(&drawn.secret)?;
    let record = record::encode(TokenRecord {
        name: NAME.to_owned(),
        secret_sha256: drawn.digest.to_vec().into(),
        created_ms: now_ms,
        created_by: CREATED_BY.to_owned(),
        ..TokenRecord::default()
    });
    let partition = keys::CLUSTER_PARTITION;
    // Where another process was first, the saved token is void, and the error says so.
    store.put(partition, &key, record, Expect::Absent).await?;
    Ok(true)
}
