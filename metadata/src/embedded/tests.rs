//! The contract on the embedded store, and what only it has: crashes, damage, failing disks.

mod crashes;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aquifer_runtime::clock::ManualClock;
use aquifer_runtime::disk::SimDisk;
use async_trait::async_trait;
use bytes::Bytes;

use super::*;
use crate::contract::StoreFactory;
use crate::keys;
use crate::store::{Expect, WatchEvent};

const PATH: &str = "/data/metadata.redb";

/// A machine with a disk and a clock, on which a store lives.
struct Machine {
    disk: SimDisk,
    clock: Arc<ManualClock>,
    tasks: TaskGroup,
    options: EmbeddedOptions,
}

impl Machine {
    fn new() -> Machine {
        let disk = SimDisk::new();
        let created = aquifer_runtime::disk::Disk::create_dir_all(&disk, Path::new("/data"));
        created.unwrap();
        Machine {
            disk,
            clock: ManualClock::new(0),
            tasks: TaskGroup::new("test"),
            options: EmbeddedOptions {
                history_events: 100,
                ..EmbeddedOptions::default()
            },
        }
    }

    async fn open(&self) -> MetadataResult<EmbeddedStore> {
        EmbeddedStore::open(
            PATH.into(),
            self.options.clone(),
            self.disk.shared(),
            Arc::clone(&self.clock) as SharedClock,
            &self.tasks,
        )
        .await
    }
}

#[async_trait]
impl StoreFactory for Machine {
    async fn create(&self) -> Arc<dyn MetadataStore> {
        Arc::new(self.open().await.unwrap())
    }

    async fn restart(&self, store: Arc<dyn MetadataStore>) -> Arc<dyn MetadataStore> {
        drop(store);
        // Power is lost: nothing of the old process reaches the disk any more.
        self.disk.crash(&aquifer_runtime::rng::SeededRng::new(1));
        Arc::new(self.open().await.unwrap())
    }

    async fn pause(&self, time: Duration) {
        self.clock.advance(time);
    }

    async fn compact(&self, store: &dyn MetadataStore) {
        for number in 0..=self.options.history_events {
            put(store, "clusters/noise", &number.to_string())
                .await
                .unwrap();
        }
    }

    async fn forget_snapshots(&self, store: &dyn MetadataStore) {
        self.clock.advance(Duration::from_secs(60));
        // The state of the snapshot would do, were it the newest still.
        put(store, "clusters/noise", "later").await.unwrap();
    }
}

async fn put(store: &dyn MetadataStore, key: &str, value: &str) -> MetadataResult<Revision> {
    let value = Bytes::copy_from_slice(value.as_bytes());
    store.put("", key, value, Expect::Any).await
}

async fn read(store: &dyn MetadataStore, key: &str) -> MetadataResult<Option<String>> {
    let found = store.get(key).await?;
    Ok(found.map(|found| String::from_utf8_lossy(&found.value).into_owned()))
}

mod contract {
    use crate::embedded::tests::Machine;

    crate::metadata_contract!(Machine::new());
}

#[tokio::test]
async fn a_closed_store_refuses_and_ends_its_watches_and_sessions() {
    let machine = Machine::new();
    let store = machine.open().await.unwrap();
    put(&store, "clusters/a", "1").await.unwrap();
    let session = store.open_session(Duration::from_secs(9)).await.unwrap();
    let mut watch = store.watch("", Revision(1)).await.unwrap();
    store.close().await;
    store.close().await;
    assert_eq!(watch.next().await, None);
    session.lost().await;
    let unavailable = |result: MetadataError| matches!(result, MetadataError::Unavailable(_));
    assert!(unavailable(read(&store, "clusters/a").await.unwrap_err()));
    assert!(unavailable(
        put(&store, "clusters/a", "2").await.unwrap_err()
    ));
    assert_eq!(machine.tasks.drain(Duration::from_secs(10)).await, 0);
    let store = machine.open().await.unwrap();
    assert_eq!(
        read(&store, "clusters/a").await.unwrap().as_deref(),
        Some("1")
    );
}

#[tokio::test]
async fn an_abandoned_session_expires_while_a_held_one_is_renewed() {
    let machine = Machine::new();
    let store = machine.open().await.unwrap();
    let ttl = Duration::from_millis(40);
    let held = store.open_session(ttl).await.unwrap();
    let dropped = store.open_session(ttl).await.unwrap();
    let key = |number: u8| keys::broker(aquifer_model::id::BrokerId([number; 16]));
    let written = held.put(&key(1), Bytes::new(), Expect::Any).await.unwrap();
    dropped
        .put(&key(2), Bytes::new(), Expect::Any)
        .await
        .unwrap();
    drop(dropped);
    let mut watch = store.watch(keys::BROKERS_PREFIX, written).await.unwrap();
    assert!(matches!(watch.next().await, Some(WatchEvent::Put(_))));
    // Less than the time to live passes at once, and each time until the held one is renewed.
    for _ in 0..3 {
        machine.clock.advance(ttl / 2);
        while held.remaining() < ttl {
            tokio::task::yield_now().await;
        }
    }
    let event = watch.next().await;
    assert!(matches!(event, Some(WatchEvent::Delete { key: gone, .. }) if gone == key(2)));
    assert!(read(&store, &key(1)).await.unwrap().is_some());
}

#[tokio::test]
async fn a_slow_watch_is_told_to_resync_and_holds_nobody_up() {
    let machine = Machine::new();
    let store = machine.open().await.unwrap();
    let mut watch = store.watch("clusters/", Revision(0)).await.unwrap();
    for number in 0..300 {
        put(&store, "clusters/a", &number.to_string())
            .await
            .unwrap();
    }
    assert!(store.history_len() <= 100, "the history is bounded");
    assert_eq!(watch.next().await, Some(WatchEvent::Resync));
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
async fn a_scan_that_pauses_too_long_is_refused_and_begins_anew() {
    let machine = Machine::new();
    let store = machine.open().await.unwrap();
    for name in ["a", "b", "c"] {
        put(&store, &keys::cluster(name), "old").await.unwrap();
    }
    let page = store.scan("clusters/", None, 2).await.unwrap();
    machine.clock.advance(Duration::from_secs(60));
    put(&store, "clusters/c", "new").await.unwrap();
    let late = store.scan("clusters/", page.next, 2).await;
    assert!(
        matches!(late, Err(MetadataError::Unavailable(_))),
        "{late:?}"
    );
}

/// A scan for one key, or of one page, keeps no state of the file for long.
#[tokio::test]
async fn a_scan_that_is_not_continued_lets_its_state_go_soon() {
    let machine = Machine::new();
    let store = machine.open().await.unwrap();
    for name in ["a", "b", "c"] {
        put(&store, &keys::cluster(name), "old").await.unwrap();
    }
    let first = store.scan("clusters/", None, 1).await.unwrap();
    machine.clock.advance(Duration::from_secs(4));
    put(&store, "clusters/c", "new").await.unwrap();
    let second = store.scan("clusters/", first.next, 1).await.unwrap();
    assert_eq!(second.revision, first.revision);
    store.scan("clusters/", None, 1).await.unwrap();
    assert_eq!(store.shared.snapshots.lock().len(), 2);
    machine.clock.advance(Duration::from_secs(6));
    // States are looked at behind the answer to a commit: the second comes after that of the first.
    for value in ["newer", "newest"] {
        put(&store, "clusters/c", value).await.unwrap();
    }
    assert_eq!(store.shared.snapshots.lock().len(), 1);
}

/// A scan that takes very long does not keep its state for that long.
#[tokio::test]
async fn the_state_of_a_scan_is_not_kept_without_limit() {
    let machine = Machine::new();
    let store = machine.open().await.unwrap();
    for name in ["a", "b", "c"] {
        put(&store, &keys::cluster(name), "old").await.unwrap();
    }
    let first = store.scan("clusters/", None, 1).await.unwrap();
    let mut pages = 0;
    let late = loop {
        machine.clock.advance(Duration::from_secs(4));
        put(&store, "clusters/c", "new").await.unwrap();
        let page = store.scan("clusters/", first.next.clone(), 1).await;
        if page.is_err() {
            break page;
        }
        pages += 1;
        assert!(pages < 100, "the state is kept");
    };
    assert!(matches!(late, Err(MetadataError::Unavailable(_))));
    assert!(pages > 10, "{pages} pages");
    assert_eq!(store.shared.snapshots.lock().len(), 0);
}

#[tokio::test]
async fn transactions_that_share_a_commit_keep_revisions_of_their_own() {
    let machine = Machine::new();
    let store = machine.open().await.unwrap();
    let names: Vec<String> = (0..200).map(|id| keys::cluster(&id.to_string())).collect();
    let puts = names.iter().map(|key| put(&store, key, "x"));
    let mut revisions: Vec<Revision> = futures::future::join_all(puts)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    revisions.sort();
    revisions.dedup();
    assert_eq!(revisions.len(), names.len());
}

/// A scan holds the file for as long as it reads; commits go on beside it.
#[tokio::test]
async fn commits_do_not_wait_for_scans() {
    let machine = Machine::new();
    let store = machine.open().await.unwrap();
    let (hold, held) = std::sync::mpsc::sync_channel::<()>(0);
    let (release, released) = std::sync::mpsc::sync_channel::<()>(0);
    let shared = Arc::clone(&store.shared);
    let scan = aquifer_runtime::task::spawn_thread("scan", move || {
        let _reads = shared.database.read();
        hold.send(()).unwrap();
        // Dropped: the test has failed.
        let _ = released.recv();
    })
    .unwrap();
    held.recv().unwrap();
    let key = keys::cluster("1");
    let committed = put(&store, &key, "x");
    let committed = aquifer_runtime::clock::timeout(Duration::from_secs(30), committed).await;
    drop(release);
    scan.join().unwrap();
    committed.expect("the commit waits for the scan").unwrap();
}

#[tokio::test]
async fn a_store_in_a_real_file_opens_again() {
    let directory = tempfile::tempdir().unwrap();
    let tasks = TaskGroup::new("test");
    let open = || {
        EmbeddedStore::open(
            directory.path().join("metadata.redb"),
            EmbeddedOptions::default(),
            aquifer_runtime::disk::RealDisk::shared(),
            aquifer_runtime::clock::SystemClock::shared(),
            &tasks,
        )
    };
    let store = open().await.unwrap();
    let revision = put(&store, "clusters/a", "1").await.unwrap();
    let second = open().await.unwrap_err();
    assert!(second.to_string().contains("open already"), "{second}");
    store.close().await;
    let store = open().await.unwrap();
    let found = store.get("clusters/a").await.unwrap().unwrap();
    assert_eq!(found.revision, revision);
}
