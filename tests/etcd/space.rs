//! etcd with a small quota: its usage is seen before it is full, an error says what it is, outcomes
//! are told all the same, and compaction and defragmentation bring it back without the deletion of
//! anything.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use aquifer_harness::etcd::{Etcd, EtcdOptions};
use aquifer_harness::proxy::{Flow, Proxy};
use aquifer_harness::wait::until;
use aquifer_metadata::error::MetadataError;
use aquifer_metadata::keys;
use aquifer_metadata::store::{Expect, FreeSpace, MetadataStore, Operation, Transaction, Until};
use aquifer_runtime::clock;
use aquifer_runtime::task::TaskGroup;
use bytes::Bytes;

use crate::support::{config, connect, key, put, soon};

const QUOTA: u64 = 16 << 20;
const VALUE: usize = 256 << 10;

fn free_space(store: &dyn MetadataStore) -> FreeSpace {
    store
        .usage()
        .map_or(FreeSpace::Enough, |usage| usage.free_space())
}

async fn small_etcd() -> Result<Etcd> {
    let mut options = EtcdOptions::members(1);
    options.arguments = vec![format!("--quota-backend-bytes={QUOTA}")];
    Etcd::start(options).await
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
    let etcd = small_etcd().await?;
    let tasks = TaskGroup::new("test");
    let mut config = config(etcd.urls());
    config.quota_bytes = QUOTA;
    let store = connect(&config, &tasks).await?;
    assert_eq!(free_space(&*store), FreeSpace::Enough);
    let mut number = 0;
    // Slowly enough to be seen, whatever else the machine does.
    while free_space(&*store) == FreeSpace::Enough {
        write(&*store, number).await?;
        number += 1;
        let fresh = connect(&config, &tasks).await?;
        if free_space(&*fresh) != FreeSpace::Enough {
            fresh.close().await;
            break;
        }
        fresh.close().await;
        assert!(number < 200, "it fills up unnoticed");
    }
    soon("the store to see it too", async {
        while free_space(&*store) == FreeSpace::Enough {
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
    assert!(matches!(free_space(&*store), FreeSpace::Full(_)));
    // Nothing is deleted: the history goes, and the space in the file with it.
    let newest = store
        .get(&key(1))
        .await?
        .map_or(0, |found| found.revision.0);
    etcd.ctl(&["compact", &newest.to_string()])?;
    etcd.ctl(&["defrag"])?;
    etcd.ctl(&["alarm", "disarm"])?;
    soon("space", async {
        while free_space(&*store) != FreeSpace::Enough {
            clock::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    write(&*store, number).await?;
    store.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_outcome_of_a_commit_is_told_though_etcd_became_full_meanwhile() -> Result<()> {
    let etcd = small_etcd().await?;
    let door = Proxy::start(etcd.address(0)).await?;
    let tasks = TaskGroup::new("test");
    let mut short = config(vec![door.url()]);
    short.request_timeout_ms = 1_000;
    let store = connect(&short, &tasks).await?;
    let before = put(store.as_ref(), &key(2), "before").await?;
    let applied = etcd.applied(0).await?;
    door.answers(Flow::Hold);
    let waiting = {
        let store = Arc::clone(&store);
        tasks.spawn("writer", async move {
            let change = Transaction {
                operations: vec![Operation::Put {
                    key: key(2),
                    value: Bytes::from("made"),
                    expect: Expect::Revision(before),
                }],
                ..Transaction::default()
            };
            store.commit_until(change, Until::Known).await
        })
    };
    until("etcd to apply the commit", || async {
        Ok((etcd.applied(0).await? > applied).then_some(()))
    })
    .await?;
    let other = connect(&config(etcd.urls()), &tasks).await?;
    for number in 0.. {
        match write(&*other, number).await {
            Ok(()) => assert!(number < 400, "the quota has no effect"),
            Err(MetadataError::Full(_)) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(!waiting.is_finished(), "the outcome is not known yet");
    door.answers(Flow::Pass);
    door.cut();
    let made = soon("the writer", waiting).await??;
    let found = store.get(&key(2)).await?.expect("it was made");
    assert_eq!((found.revision, found.value), (made, Bytes::from("made")));
    Ok(())
}

/// etcd also answers that it has no space to the transaction that uses up its quota, which it has
/// applied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_is_refused_for_lack_of_space_was_not_made() -> Result<()> {
    const WRITERS: usize = 32;
    let etcd = small_etcd().await?;
    let tasks = TaskGroup::new("test");
    let store = connect(&config(etcd.urls()), &tasks).await?;
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = Arc::clone(&store);
            tasks.spawn("writer", async move {
                let mut last = None;
                for number in 0..400u32 {
                    let mut value = vec![0; VALUE / 4];
                    value[..4].copy_from_slice(&number.to_be_bytes());
                    let expect = last.map_or(Expect::Absent, |(_, at)| Expect::Revision(at));
                    let (key, value) = (key(writer), Bytes::from(value));
                    match store
                        .put(keys::CLUSTER_PARTITION, &key, value, expect)
                        .await
                    {
                        Ok(at) => last = Some((number, at)),
                        Err(MetadataError::Full(_)) => return last,
                        Err(error) => panic!("{error}"),
                    }
                }
                unreachable!("the quota has no effect")
            })
        })
        .collect();
    for (writer, handle) in writers.into_iter().enumerate() {
        let last = soon("a writer", handle).await?;
        let found = store.get(&key(writer)).await?;
        let found = found.map(|found| {
            let number = found.value[..4].try_into().map_or(0, u32::from_be_bytes);
            (number, found.revision)
        });
        assert_eq!(found, last, "writer {writer}");
    }
    Ok(())
}
