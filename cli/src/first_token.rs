//! The token of a cluster's administrator, made in its metadata before its brokers demand tokens.

use std::io;

use aquifer_broker::create_first_token;
use aquifer_runtime::task::TaskGroup;

use crate::exit::CliError;
use crate::roles::membership;
use crate::roles::settings::ClusterSection;
use crate::roles::storage::Seams;

/// Makes it, unless the cluster has one, and says whether it did. `save` keeps its text, before it
/// counts.
///
/// # Errors
/// When metadata cannot be reached, or the text cannot be kept.
pub async fn make(
    cluster: &ClusterSection,
    save: impl FnOnce(&str) -> io::Result<()>,
) -> Result<bool, CliError> {
    let (seams, tasks) = (Seams::real(), TaskGroup::new("first token"));
    let store = membership::connect(cluster, &seams, &tasks).await?;
    let now_ms = seams.clock.wall_ms();
    let made = create_first_token(&*store, now_ms, |token| save(token.expose())).await;
    store.close().await;
    tasks.shutdown();
    made.map_err(|error| CliError::failed(error.to_string()))
}
