//! A copy of the keys below a prefix, kept current by a watch. It is how the data plane reads
//! metadata: without waiting, and on with what it knows while the store is away.
//!
//! Invariants:
//! - What the cache shows is a state that the store had, except that the keys of one transaction
//!   may appear one after the other; it never goes back to an earlier one.
//! - After a resync, keys that were removed in the gap are gone from the cache too.
//! - It holds at most the keys it was told to; more is an error in the log, and a cache that
//!   stays as it was.
//!
//! It must not be used to decide what a transaction expects: conditions are checked by the store.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aquifer_runtime::clock;
use aquifer_runtime::rng::SharedRng;
use aquifer_runtime::task::{ShutdownToken, TaskGroup};
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::error::{MetadataError, MetadataResult};
use crate::scan;
use crate::store::{MetadataStore, Revision, Versioned, WatchEvent};

/// First and longest wait before the store is asked again.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// A cached prefix. Clones share it.
#[derive(Debug, Clone)]
pub struct PrefixCache {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    prefix: String,
    keys_max: usize,
    items: RwLock<BTreeMap<String, Versioned>>,
    /// Up to where the items are current; `None` until they were read for the first time.
    current: watch::Sender<Option<Revision>>,
}

impl PrefixCache {
    /// Starts to follow a prefix with at most `keys_max` keys. The cache is empty until
    /// [`Self::ready`].
    #[must_use]
    pub fn start(
        store: Arc<dyn MetadataStore>,
        prefix: impl Into<String>,
        keys_max: usize,
        rng: SharedRng,
        tasks: &TaskGroup,
    ) -> PrefixCache {
        let shared = Arc::new(Shared {
            prefix: prefix.into(),
            keys_max,
            items: RwLock::new(BTreeMap::new()),
            current: watch::Sender::new(None),
        });
        let shutdown = tasks.shutdown_token();
        // The task ends with the store or the group; its handle is not needed.
        drop(tasks.spawn(
            "metadata-cache",
            follow(Arc::clone(&shared), store, rng, shutdown),
        ));
        PrefixCache { shared }
    }

    /// Waits until the prefix was read for the first time.
    pub async fn ready(&self) {
        self.reached(Revision(0)).await;
    }

    /// Waits until the cache shows everything up to a revision of a key below its prefix, for
    /// readers of their own writes.
    pub async fn reached(&self, revision: Revision) {
        let mut current = self.shared.current.subscribe();
        // The sender lives as long as this cache, so the wait ends only by the condition.
        let _ = current
            .wait_for(|current| current.is_some_and(|current| current >= revision))
            .await;
    }

    /// A key, as far as it is known here.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Versioned> {
        self.shared.items.read().get(key).cloned()
    }

    /// All keys, in order.
    #[must_use]
    pub fn items(&self) -> Vec<Versioned> {
        self.shared.items.read().values().cloned().collect()
    }

    /// Changes whenever the items do.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Option<Revision>> {
        self.shared.current.subscribe()
    }
}

/// Keeps a cache current until the store is closed or the group shuts down.
async fn follow(
    shared: Arc<Shared>,
    store: Arc<dyn MetadataStore>,
    rng: SharedRng,
    shutdown: ShutdownToken,
) {
    let mut retry = RETRY_FIRST;
    loop {
        let ended = tokio::select! {
            ended = shared.follow_once(store.as_ref()) => ended,
            () = shutdown.wait() => return,
        };
        match ended {
            Ok(Ended::Resync) => {
                retry = RETRY_FIRST;
                continue;
            }
            Ok(Ended::Closed) => return,
            Err(error @ MetadataError::Unavailable(_)) => {
                tracing::debug!(prefix = shared.prefix, %error, "metadata is away");
            }
            Err(error) => {
                tracing::error!(prefix = shared.prefix, %error, "metadata cannot be followed");
            }
        }
        tokio::select! {
            () = clock::sleep(rng.jitter(retry)) => retry = (retry * 2).min(RETRY_MAX),
            () = shutdown.wait() => return,
        }
    }
}

/// Why a watch is over.
enum Ended {
    Resync,
    Closed,
}

impl Shared {
    /// Reads the prefix and follows it as long as the watch lasts.
    async fn follow_once(&self, store: &dyn MetadataStore) -> MetadataResult<Ended> {
        let (items, revision) = scan::all(store, &self.prefix, self.keys_max).await?;
        let items = items.into_iter().map(|item| (item.key.clone(), item));
        *self.items.write() = items.collect();
        self.current.send_replace(Some(revision));
        let mut watch = store.watch(&self.prefix, revision).await?;
        while let Some(event) = watch.next().await {
            let revision = match event {
                WatchEvent::Resync => return Ok(Ended::Resync),
                WatchEvent::Put(item) => self.put(item)?,
                WatchEvent::Delete { key, revision } => {
                    self.items.write().remove(&key);
                    revision
                }
            };
            self.current.send_replace(Some(revision));
        }
        Ok(Ended::Closed)
    }

    fn put(&self, item: Versioned) -> MetadataResult<Revision> {
        let revision = item.revision;
        let mut items = self.items.write();
        if items.len() >= self.keys_max && !items.contains_key(&item.key) {
            return Err(MetadataError::Invalid(format!(
                "there are more than {} keys below {:?}",
                self.keys_max, self.prefix
            )));
        }
        items.insert(item.key.clone(), item);
        Ok(revision)
    }
}
