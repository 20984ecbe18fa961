//! The cache on a store that answers, forgets and goes away as the tests want.

use std::sync::atomic::{AtomicU32, Ordering};

use aquifer_runtime::clock::SystemClock;
use aquifer_runtime::disk::{Disk, SimDisk};
use aquifer_runtime::rng::SeededRng;
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Semaphore;

use super::*;
use crate::embedded::{EmbeddedOptions, EmbeddedStore};
use crate::intercept::Intercept;
use crate::keys;
use crate::store::{Expect, PageToken, ScanPage, Transaction, Watch};

/// An embedded store whose scans can fail, and whose watches can be held and lose events.
struct Unsteady {
    store: EmbeddedStore,
    failing_scans: AtomicU32,
    /// Each permit lets a watch look once; closed, watches end with a resync.
    looks: Arc<Semaphore>,
    resyncs: AtomicU32,
}

struct HeldWatch {
    inner: Box<dyn Watch>,
    looks: Arc<Semaphore>,
    resync: bool,
}

impl Unsteady {
    async fn open(tasks: &TaskGroup) -> Arc<Unsteady> {
        let disk = SimDisk::new();
        disk.create_dir_all("/data".as_ref()).unwrap();
        let store = EmbeddedStore::open(
            "/data/metadata.redb".into(),
            EmbeddedOptions::default(),
            disk.shared(),
            SystemClock::shared(),
            tasks,
        );
        Arc::new(Unsteady {
            store: store.await.unwrap(),
            failing_scans: AtomicU32::new(0),
            looks: Arc::new(Semaphore::new(1_000)),
            resyncs: AtomicU32::new(0),
        })
    }

    async fn put(&self, name: &str, value: &str) -> Revision {
        let value = Bytes::copy_from_slice(value.as_bytes());
        let key = keys::cluster(name);
        self.store.put("", &key, value, Expect::Any).await.unwrap()
    }
}

#[async_trait]
impl Intercept for Unsteady {
    fn inner(&self) -> &dyn MetadataStore {
        &self.store
    }

    async fn on_scan(
        &self,
        prefix: &str,
        page: Option<PageToken>,
        limit: usize,
    ) -> MetadataResult<ScanPage> {
        let left = self.failing_scans.load(Ordering::SeqCst);
        if left > 0 {
            self.failing_scans.store(left - 1, Ordering::SeqCst);
            return Err(MetadataError::Unavailable("away".to_owned()));
        }
        self.store.scan(prefix, page, limit).await
    }

    async fn on_watch(&self, prefix: &str, after: Revision) -> MetadataResult<Box<dyn Watch>> {
        let left = self.resyncs.load(Ordering::SeqCst);
        self.resyncs.store(left.saturating_sub(1), Ordering::SeqCst);
        Ok(Box::new(HeldWatch {
            inner: self.store.watch(prefix, after).await?,
            looks: Arc::clone(&self.looks),
            resync: left > 0,
        }))
    }
}

#[async_trait]
impl Watch for HeldWatch {
    async fn next(&mut self) -> Option<WatchEvent> {
        self.looks.acquire().await.ok()?.forget();
        if self.resync {
            return Some(WatchEvent::Resync);
        }
        self.inner.next().await
    }
}

fn start(store: &Arc<Unsteady>, keys_max: usize, tasks: &TaskGroup) -> PrefixCache {
    let store = Arc::clone(store) as Arc<dyn MetadataStore>;
    let rng = Arc::new(SeededRng::new(1));
    PrefixCache::start(store, keys::CLUSTERS_PREFIX, keys_max, rng, tasks)
}

fn shown(cache: &PrefixCache) -> Vec<String> {
    let show = |item: Versioned| {
        let value = String::from_utf8_lossy(&item.value).into_owned();
        format!("{}={value}", item.key.trim_start_matches("clusters/"))
    };
    cache.items().into_iter().map(show).collect()
}

#[tokio::test]
async fn it_reads_the_prefix_and_follows_its_changes() {
    let tasks = TaskGroup::new("test");
    let store = Unsteady::open(&tasks).await;
    store.put("a", "1").await;
    let cache = start(&store, 10, &tasks);
    cache.ready().await;
    assert_eq!(shown(&cache), ["a=1"]);
    store.put("b", "2").await;
    let revision = store.put("a", "3").await;
    cache.reached(revision).await;
    assert_eq!(shown(&cache), ["a=3", "b=2"]);
    let found = cache.get(&keys::cluster("a")).unwrap();
    assert_eq!(found.revision, revision);
    assert_eq!(cache.get(&keys::cluster("none")), None);
}

#[tokio::test]
async fn a_resync_shows_what_was_removed_in_the_gap() {
    let tasks = TaskGroup::new("test");
    let store = Unsteady::open(&tasks).await;
    store.put("a", "1").await;
    store.put("gone", "1").await;
    store.resyncs.store(1, Ordering::SeqCst);
    // The watch is held until the changes are made, and then it has lost them.
    store.looks.forget_permits(1_000);
    let cache = start(&store, 10, &tasks);
    cache.ready().await;
    assert_eq!(shown(&cache), ["a=1", "gone=1"]);
    store.put("b", "2").await;
    let delete = crate::store::Operation::Delete {
        key: keys::cluster("gone"),
        expect: Expect::Any,
    };
    let removed = store.commit(Transaction {
        operations: vec![delete],
        ..Transaction::default()
    });
    let removed = removed.await.unwrap();
    store.looks.add_permits(1_000);
    cache.reached(removed).await;
    assert_eq!(shown(&cache), ["a=1", "b=2"]);
    let revision = store.put("c", "3").await;
    cache.reached(revision).await;
    assert_eq!(shown(&cache), ["a=1", "b=2", "c=3"]);
}

#[tokio::test]
async fn it_keeps_what_it_knows_and_tries_again_while_the_store_is_away() {
    let tasks = TaskGroup::new("test");
    let store = Unsteady::open(&tasks).await;
    store.put("a", "1").await;
    // More than a whole scan tries by itself.
    store.failing_scans.store(9, Ordering::SeqCst);
    let cache = start(&store, 10, &tasks);
    cache.ready().await;
    assert_eq!(store.failing_scans.load(Ordering::SeqCst), 0);
    assert_eq!(shown(&cache), ["a=1"]);
}

#[tokio::test]
async fn it_never_holds_more_keys_than_it_may_and_ends_with_its_group() {
    let tasks = TaskGroup::new("test");
    let store = Unsteady::open(&tasks).await;
    let cache = start(&store, 2, &tasks);
    cache.ready().await;
    store.put("a", "1").await;
    let full = store.put("b", "1").await;
    cache.reached(full).await;
    let over = store.put("c", "1").await;
    let changed = store.put("a", "2").await;
    assert!(changed > over);
    assert_eq!(shown(&cache).len(), 2);
    // With room again it catches up.
    let delete = crate::store::Operation::Delete {
        key: keys::cluster("b"),
        expect: Expect::Any,
    };
    let room = store.commit(Transaction {
        operations: vec![delete],
        ..Transaction::default()
    });
    cache.reached(room.await.unwrap()).await;
    assert_eq!(shown(&cache), ["a=2", "c=1"]);
    store.store.close().await;
    assert_eq!(tasks.drain(Duration::from_secs(10)).await, 0);
    assert_eq!(shown(&cache), ["a=2", "c=1"]);
}
