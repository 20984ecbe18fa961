//! etcd with a small quota: who looks knows before it is full, an error says what it is, and
//! compaction and defragmentation bring it back without the deletion of anything.

use std::time::Duration;

use anyhow::Result;
use aquifer_harness::etcd::{Etcd, EtcdOptions};
use aquifer_metadata::error::MetadataError;
use aquifer_metadata::keys;
use aquifer_metadata::store::{Expect, MetadataStore, Room};
use aquifer_runtime::clock;
use aquifer_runtime::task::TaskGroup;
use bytes::Bytes;

use crate::support::{config, connect, key, soon};

const QUOTA: u64 = 16 << 20;
const VALUE: usize = 256 << 10;

fn room(store: &dyn MetadataStore) -> Room {
    store.usage().map_or(Room::Enough, |usage| usage.room())
}

/// Writes one key again and again, each time as a new version: a history that is not compacted.
async fn write(store: &dyn MetadataStore, number: usize) -> Result<(), MetadataError> {
    let value = Bytes::from(vec![u8::try_from(number % 251).unwrap_or(0); VALUE]);
    let key = key(1);
    let put = store.put(keys::CLUSTER_PARTITION, &key, value, Expect::Any);
    put.await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_quota_is_seen_before_it_is_used_up_and_given_back_by_compaction() -> Result<()> {
    let mut options = EtcdOptions::members(1);
    options.arguments = vec![format!("--quota-backend-bytes={QUOTA}")];
    let etcd = Etcd::start(options).await?;
    let tasks = TaskGroup::new("test");
    let mut config = config(etcd.urls());
    config.quota_bytes = QUOTA;
    let store = connect(&config, &tasks).await?;
    assert_eq!(room(&*store), Room::Enough);
    let mut number = 0;
    // Slowly enough to be seen, whatever else the machine does.
    while room(&*store) == Room::Enough {
        write(&*store, number).await?;
        number += 1;
        let fresh = connect(&config, &tasks).await?;
        if room(&*fresh) != Room::Enough {
            fresh.close().await;
            break;
        }
        fresh.close().await;
        assert!(number < 200, "it fills up unnoticed");
    }
    soon("the store to see it too", async {
        while room(&*store) == Room::Enough {
            clock::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    // It still takes what it must, until it takes nothing.
    let full = loop {
        match write(&*store, number).await {
            Ok(()) => number += 1,
            Err(error) => break error,
        }
        assert!(number < 400, "the quota has no effect");
    };
    assert!(matches!(full, MetadataError::Full(_)), "{full:?}");
    assert!(full.to_string().contains("metadata is full"), "{full}");
    assert!(matches!(room(&*store), Room::Full(_)));
    // Nothing is deleted: the history goes, and the room in the file with it.
    let newest = store
        .get(&key(1))
        .await?
        .map_or(0, |found| found.revision.0);
    etcd.ctl(&["compact", &newest.to_string()])?;
    etcd.ctl(&["defrag"])?;
    etcd.ctl(&["alarm", "disarm"])?;
    soon("room", async {
        while room(&*store) != Room::Enough {
            clock::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    write(&*store, number).await?;
    store.close().await;
    Ok(())
}
