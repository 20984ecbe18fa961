//! Watches: in order, without gaps, or a resync.

use crate::contract::fixture::{
    StoreFactory, commit, delete, ledger, namespace, put, soon, text, topic, transaction, write,
};
use crate::keys;
use crate::store::{Expect, MetadataStore, Revision, Watch, WatchEvent};

/// The next event of a watch that is open.
async fn next(watch: &mut dyn Watch) -> WatchEvent {
    soon("an event", watch.next())
        .await
        .expect("the store is open")
}

async fn watch(store: &dyn MetadataStore, prefix: &str, after: Revision) -> Box<dyn Watch> {
    store.watch(prefix, after).await.expect("a watch begins")
}

/// What an event says, in short.
fn brief(event: &WatchEvent) -> (String, Option<String>, Revision) {
    match event {
        WatchEvent::Put(found) => (found.key.clone(), Some(text(&found.value)), found.revision),
        WatchEvent::Delete { key, revision } => (key.clone(), None, *revision),
        WatchEvent::Resync => ("resync".to_owned(), None, Revision(0)),
    }
}

/// The revision of a scan is where a watch goes on: nothing is missed, nothing is told twice.
pub async fn a_watch_from_a_scan_misses_nothing(factory: &dyn StoreFactory) {
    let store = factory.create().await;
    let store = store.as_ref();
    write(store, &ledger(1), "before").await;
    let page = store
        .scan(keys::LEDGERS_PREFIX, None, 10)
        .await
        .expect("page");
    let created = write(store, &ledger(2), "1").await;
    let mut events = watch(store, keys::LEDGERS_PREFIX, page.revision).await;
    let changed = write(store, &ledger(1), "after").await;
    let deleted = commit(store, vec![delete(&ledger(2), Expect::Any)]);
    let deleted = deleted.await.expect("deleted");
    let expected = [
        (ledger(2), Some("1".to_owned()), created),
        (ledger(1), Some("after".to_owned()), changed),
        (ledger(2), None, deleted),
    ];
    for expected in expected {
        assert_eq!(brief(&next(events.as_mut()).await), expected);
    }
}

/// A watch that ended goes on with another from the last revision it saw; the changes of one
/// transaction have one revision and arrive together.
pub async fn a_watch_resumes_without_gaps(factory: &dyn StoreFactory) {
    let store = factory.create().await;
    let store = store.as_ref();
    let start = write(store, &ledger(0), "start").await;
    let mut expected = Vec::new();
    for id in 0..20_u64 {
        let (a, b) = (ledger(id + 1), ledger(id + 101));
        let both = vec![put(&a, "a", Expect::Any), put(&b, "b", Expect::Any)];
        let revision = store.commit(transaction(both)).await.expect("committed");
        expected.push((a, revision));
        expected.push((b, revision));
    }
    let mut after = start;
    let mut seen = Vec::new();
    while seen.len() < expected.len() {
        let mut events = watch(store, keys::LEDGERS_PREFIX, after).await;
        // Four events are two whole transactions; then the connection breaks.
        for _ in 0..4 {
            let (key, _, revision) = brief(&next(events.as_mut()).await);
            assert!(revision >= after);
            after = revision;
            seen.push((key, revision));
        }
    }
    // Within a transaction the order is the implementation's.
    seen.sort_by_key(|(key, revision)| (*revision, key.clone()));
    expected.sort_by_key(|(key, revision)| (*revision, key.clone()));
    assert_eq!(seen, expected);
}

/// A watch reports what is below its prefix, and a key that was not changed is not reported.
pub async fn watches_see_their_prefix_only(factory: &dyn StoreFactory) {
    let store = factory.create().await;
    let store = store.as_ref();
    let start = write(store, &topic("first"), "1").await;
    let mut events = watch(store, &keys::topics_prefix(&namespace()), start).await;
    write(store, &ledger(1), "other prefix").await;
    commit(store, vec![delete(&topic("none"), Expect::Any)])
        .await
        .expect("removing nothing succeeds");
    let refused = commit(store, vec![put(&topic("first"), "2", Expect::Absent)]).await;
    assert!(refused.is_err());
    let revision = write(store, &topic("second"), "3").await;
    let event = brief(&next(events.as_mut()).await);
    assert_eq!(event, (topic("second"), Some("3".to_owned()), revision));
}

/// A watch from a revision whose successors are forgotten gets a resync and ends; a scan and a
/// watch from there see everything.
pub async fn a_watch_that_lost_history_says_so(factory: &dyn StoreFactory) {
    let store = factory.create().await;
    let store = store.as_ref();
    let old = write(store, &ledger(1), "1").await;
    write(store, &ledger(1), "2").await;
    factory.compact(store).await;
    let mut events = watch(store, keys::LEDGERS_PREFIX, old).await;
    assert_eq!(next(events.as_mut()).await, WatchEvent::Resync);
    assert_eq!(soon("the end", events.next()).await, None);
    let page = store
        .scan(keys::LEDGERS_PREFIX, None, 1)
        .await
        .expect("page");
    assert_eq!(
        page.items.first().map(|item| text(&item.value)).as_deref(),
        Some("2")
    );
    let mut events = watch(store, keys::LEDGERS_PREFIX, page.revision).await;
    let revision = write(store, &ledger(1), "3").await;
    let event = brief(&next(events.as_mut()).await);
    assert_eq!(event, (ledger(1), Some("3".to_owned()), revision));
}
