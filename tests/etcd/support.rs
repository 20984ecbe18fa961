//! Stores for these tests.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use aquifer_metadata::etcd::{EtcdConfig, EtcdStore};
use aquifer_metadata::store::{Expect, MetadataStore, Revision, Watch, WatchEvent};
use aquifer_metadata::{error::MetadataResult, keys};
use aquifer_runtime::clock::{self, SystemClock};
use aquifer_runtime::rng::{Rng, SharedRng};
use aquifer_runtime::task::TaskGroup;
use bytes::Bytes;

/// How long these tests wait for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// No chance: the first endpoint is asked first.
struct First;

impl Rng for First {
    fn next_u64(&self) -> u64 {
        0
    }
}

/// Settings that move on to another member quickly.
pub fn config(endpoints: Vec<String>) -> EtcdConfig {
    EtcdConfig {
        attempt_timeout_ms: 700,
        request_timeout_ms: 20_000,
        ..EtcdConfig::new(endpoints, "test")
    }
}

/// A store on these endpoints, of which the first is asked first.
pub async fn connect(config: &EtcdConfig, tasks: &TaskGroup) -> MetadataResult<Arc<EtcdStore>> {
    let rng: SharedRng = Arc::new(First);
    let store = EtcdStore::connect(config, SystemClock::shared(), rng, tasks).await?;
    Ok(Arc::new(store))
}

/// The key that belongs to a number.
pub fn key(number: usize) -> String {
    keys::cluster(&number.to_string())
}

/// What begins all of them.
pub const PREFIX: &str = keys::CLUSTERS_PREFIX;

/// Writes a key, whatever it was.
pub async fn put(store: &dyn MetadataStore, key: &str, value: &str) -> MetadataResult<Revision> {
    let value = Bytes::copy_from_slice(value.as_bytes());
    store
        .put(keys::CLUSTER_PARTITION, key, value, Expect::Any)
        .await
}

/// The value of a key.
pub async fn value(store: &dyn MetadataStore, key: &str) -> MetadataResult<Option<String>> {
    let found = store.get(key).await?;
    Ok(found.map(|found| text(&found.value)))
}

/// Bytes as text.
pub fn text(value: &Bytes) -> String {
    String::from_utf8_lossy(value).into_owned()
}

/// Waits for what must come.
pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match clock::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => unreachable!("waited {PATIENCE:?} for {what}"),
    }
}

/// An event in short: key, value or none, revision.
pub type Brief = (String, Option<String>, Revision);

/// The next event of a watch, in short.
pub async fn next(watch: &mut dyn Watch) -> Brief {
    match soon("an event", watch.next()).await {
        Some(WatchEvent::Put(item)) => (item.key, Some(text(&item.value)), item.revision),
        Some(WatchEvent::Delete { key, revision }) => (key, None, revision),
        other => unreachable!("an event was expected, not {other:?}"),
    }
}

/// A watch of all keys that belong to numbers, from the beginning.
pub async fn watch(store: &dyn MetadataStore, after: Revision) -> Result<Box<dyn Watch>> {
    Ok(store.watch(PREFIX, after).await?)
}
