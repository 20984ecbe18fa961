//! Scans whose snapshot is lost in the middle.

use std::sync::Arc;

use aquifer_runtime::task::TaskGroup;
use bytes::Bytes;

use super::*;
use crate::keys;
use crate::scripted::{ScriptedStore, Turn};
use crate::store::{Expect, Operation, Transaction};

const KEYS: usize = 2 * METADATA_PAGE_KEYS_MAX + 10;

fn key(number: usize) -> String {
    keys::cluster(&format!("{number:05}"))
}

async fn filled() -> Arc<ScriptedStore> {
    let store = ScriptedStore::new(&TaskGroup::new("test")).await;
    let numbers: Vec<usize> = (0..KEYS).collect();
    for some in numbers.chunks(100) {
        let puts = some.iter().map(|number| Operation::Put {
            key: key(*number),
            value: Bytes::from_static(b"old"),
            expect: Expect::Any,
        });
        let change = Transaction {
            operations: puts.collect(),
            ..Transaction::default()
        };
        store.commit(change).await.unwrap();
    }
    store
}

fn note(seen: &mut Vec<(String, Bytes)>, item: &Versioned) -> MetadataResult<()> {
    seen.push((item.key.clone(), item.value.clone()));
    Ok(())
}

#[tokio::test]
async fn it_begins_anew_and_shows_one_state() {
    let store = filled().await;
    // The second page is refused, after the first was changed.
    store.write(&key(1), "new").await;
    store.pages([
        Turn::Fine,
        Turn::Away(0),
        Turn::Rival(key(2), "newer"),
        Turn::Rival(key(3), "too late"),
    ]);
    let scanned = each(&*store, keys::CLUSTERS_PREFIX, Vec::new, note).await;
    let (seen, _) = scanned.unwrap();
    assert_eq!(seen.len(), KEYS, "each key once");
    let texts = [1, 2, 3].map(|at| String::from_utf8_lossy(&seen[at].1).into_owned());
    assert_eq!(texts, ["new", "newer", "old"]);
}

#[tokio::test]
async fn a_store_that_is_away_and_a_snapshot_that_is_always_lost_end_it() {
    let store = filled().await;
    store.pages([Turn::Away(0)]);
    let first = each(&*store, keys::CLUSTERS_PREFIX, Vec::new, note).await;
    assert!(matches!(first, Err(MetadataError::Unavailable(_))));
    // Not asked again.
    assert_eq!(
        all(&*store, keys::CLUSTERS_PREFIX, KEYS)
            .await
            .unwrap()
            .0
            .len(),
        KEYS
    );
    store.pages((0..=RESTARTS_MAX).flat_map(|_| [Turn::Fine, Turn::Away(0)]));
    let lost = each(&*store, keys::CLUSTERS_PREFIX, Vec::new, note).await;
    assert!(matches!(lost, Err(MetadataError::Unavailable(_))));
    let many = all(&*store, keys::CLUSTERS_PREFIX, KEYS - 1).await;
    assert!(matches!(many, Err(MetadataError::Invalid(_))));
}

#[tokio::test]
async fn pages_go_on_behind_the_last_key() {
    let store = filled().await;
    let mut pages = Pages::new(&*store, keys::CLUSTERS_PREFIX);
    let mut seen = Vec::new();
    while let Some(items) = pages.next().await.unwrap() {
        seen.extend(items.into_iter().map(|item| item.key));
        // Every later page loses its snapshot, and once the one behind it too.
        store.write(&key(0), "new").await;
        store.pages([Turn::Away(0), Turn::Fine, Turn::Away(0)]);
    }
    assert!(pages.is_at_end());
    assert_eq!(seen, (0..KEYS).map(key).collect::<Vec<_>>());
    assert_eq!(pages.next().await.unwrap(), None);
}

#[tokio::test]
async fn a_page_that_fails_is_the_next_one_still() {
    let store = filled().await;
    let mut pages = Pages::new(&*store, keys::CLUSTERS_PREFIX);
    assert_eq!(
        pages.next().await.unwrap().unwrap().len(),
        METADATA_PAGE_KEYS_MAX
    );
    store.pages([Turn::Away(0), Turn::Away(0)]);
    assert!(pages.next().await.is_err());
    let second = pages.next().await.unwrap().unwrap();
    assert_eq!(
        second.first().map(|item| item.key.clone()),
        Some(key(METADATA_PAGE_KEYS_MAX))
    );
}

#[tokio::test]
async fn a_page_behind_a_place_is_of_the_newest_state() {
    let store = filled().await;
    let behind = |after: Option<String>| {
        let store = Arc::clone(&store);
        async move { page_behind(&*store, keys::CLUSTERS_PREFIX, after.as_deref(), 2).await }
    };
    let keys = |page: &ScanPage| -> Vec<String> {
        page.items.iter().map(|item| item.key.clone()).collect()
    };
    let first = behind(None).await.unwrap();
    assert_eq!(keys(&first), [key(0), key(1)]);
    // Between two keys, and the snapshot is lost once.
    let place = format!("{}-", key(1));
    store.write(&key(2), "new").await;
    store.pages([Turn::Fine, Turn::Away(0)]);
    let second = behind(Some(place)).await.unwrap();
    assert_eq!(keys(&second), [key(2), key(3)]);
    assert_eq!(second.items[0].value, "new");
    assert!(second.revision > first.revision);
    store.pages((0..=RESTARTS_MAX).flat_map(|_| [Turn::Fine, Turn::Away(0)]));
    assert!(behind(Some(key(1))).await.is_err());
}
