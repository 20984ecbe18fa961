//! Reads, conditions, transactions, limits and scans.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use aquifer_model::limits::{
    METADATA_OPERATIONS_MAX, METADATA_PAGE_KEYS_MAX, METADATA_REQUEST_BYTES_MAX,
};
use aquifer_model::topic::{NamespaceName, TopicName};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Notify;

use crate::contract::fixture::{
    StoreFactory, commit, delete, get, ledger, namespace, partition, put, soon, text, topic,
    transaction, value, write,
};
use crate::error::{MetadataError, MetadataResult};
use crate::intercept::Intercept;
use crate::keys::{self, BundleRange};
use crate::scan;
use crate::store::{
    Expect, Guard, MetadataStore, Operation, PageToken, Revision, ScanPage, Transaction, Versioned,
};

fn conflict(key: &str, current: Option<Revision>) -> Result<Revision, MetadataError> {
    Err(MetadataError::Conflict {
        key: key.to_owned(),
        current,
    })
}

/// Create if absent, compare and set, delete if unchanged: the heart of I6.
pub async fn conditions(factory: &dyn StoreFactory) {
    let store = factory.create().await;
    let store = store.as_ref();
    let key = topic("a");
    let one = |operation: Operation| commit(store, vec![operation]);
    assert_eq!(get(store, &key).await, None);

    let created = one(put(&key, "1", Expect::Absent)).await.expect("created");
    assert_eq!(
        one(put(&key, "2", Expect::Absent)).await,
        conflict(&key, Some(created))
    );
    let found = get(store, &key).await.expect("it was created");
    assert_eq!(
        (text(&found.value).as_str(), found.revision),
        ("1", created)
    );

    let changed = one(put(&key, "2", Expect::Revision(created))).await;
    let changed = changed.expect("the revision is current");
    assert!(changed > created);
    assert_eq!(
        one(put(&key, "3", Expect::Revision(created))).await,
        conflict(&key, Some(changed))
    );
    assert_eq!(
        one(delete(&key, Expect::Revision(created))).await,
        conflict(&key, Some(changed))
    );
    assert_eq!(value(store, &key).await.as_deref(), Some("2"));

    let deleted = one(delete(&key, Expect::Revision(changed))).await;
    let deleted = deleted.expect("the revision is current");
    assert!(deleted > changed);
    assert_eq!(get(store, &key).await, None);
    assert_eq!(
        one(put(&key, "4", Expect::Revision(changed))).await,
        conflict(&key, None)
    );
    // A key that comes back does not come back at an old revision (ABA).
    let again = one(put(&key, "1", Expect::Absent)).await.expect("created");
    assert!(again > deleted);
    let unconditional = one(delete(&topic("none"), Expect::Any)).await;
    assert!(unconditional.is_ok(), "removing nothing is not an error");
}

/// A transaction happens as a whole, at one revision, or leaves no trace.
pub async fn all_or_nothing(factory: &dyn StoreFactory) {
    let store = factory.create().await;
    let store = store.as_ref();
    let (a, b, record) = (ledger(1), ledger(2), topic("t"));
    let first = commit(
        store,
        vec![
            put(&a, "open", Expect::Absent),
            put(&record, "1", Expect::Absent),
        ],
    );
    let first = first.await.expect("nothing was there");
    for key in [&a, &record] {
        assert_eq!(
            get(store, key).await.map(|found| found.revision),
            Some(first)
        );
    }
    let refused = commit(
        store,
        vec![
            put(&a, "closed", Expect::Revision(first)),
            put(&b, "open", Expect::Absent),
            delete(&record, Expect::Absent),
        ],
    );
    assert_eq!(refused.await, conflict(&record, Some(first)));
    assert_eq!(value(store, &a).await.as_deref(), Some("open"));
    assert_eq!(get(store, &b).await, None);
    let sealed = commit(
        store,
        vec![
            put(&a, "closed", Expect::Revision(first)),
            put(&b, "open", Expect::Absent),
            delete(&record, Expect::Revision(first)),
        ],
    );
    let sealed = sealed.await.expect("everything is as expected");
    assert_eq!(
        get(store, &b).await.map(|found| found.revision),
        Some(sealed)
    );
    assert_eq!(get(store, &record).await, None);
}

/// A guard must hold, and is not changed: how an owner pins its epoch (I4).
pub async fn guards_pin_without_changing(factory: &dyn StoreFactory) {
    let store = factory.create().await;
    let store = store.as_ref();
    let whole = BundleRange {
        first: 0,
        last: u32::MAX,
    };
    let owner = keys::bundle_owner(&namespace(), whole);
    let epoch = write(store, &owner, "broker 1").await;
    let guarded = |expect, value: &str| Transaction {
        guards: vec![Guard {
            key: owner.clone(),
            expect,
        }],
        ..transaction(vec![put(&topic("t"), value, Expect::Any)])
    };
    store
        .commit(guarded(Expect::Revision(epoch), "by 1"))
        .await
        .expect("broker 1 is the owner");
    assert_eq!(
        get(store, &owner).await.map(|found| found.revision),
        Some(epoch)
    );
    let taken = write(store, &owner, "broker 2").await;
    assert_eq!(
        store.commit(guarded(Expect::Revision(epoch), "late")).await,
        conflict(&owner, Some(taken))
    );
    assert_eq!(
        store.commit(guarded(Expect::Absent, "late")).await,
        conflict(&owner, Some(taken))
    );
    assert_eq!(value(store, &topic("t")).await.as_deref(), Some("by 1"));
}

/// Many callers that count in one key by compare and set count everything once.
pub async fn concurrent_updates_lose_nothing(factory: &dyn StoreFactory) {
    const CALLERS: usize = 8;
    const EACH: usize = 10;
    let store = factory.create().await;
    let key = keys::id_range(keys::IDS_LEDGER);
    let count = |store: Arc<dyn MetadataStore>| async {
        let (store, key) = (store, keys::id_range(keys::IDS_LEDGER));
        let mut done = 0;
        while done < EACH {
            let found = get(store.as_ref(), &key).await;
            let (next, expect) = match &found {
                None => (1, Expect::Absent),
                Some(found) => {
                    let number: usize = text(&found.value).parse().expect("it is a number");
                    (number + 1, Expect::Revision(found.revision))
                }
            };
            let value = Bytes::from(next.to_string());
            match store
                .put(keys::CLUSTER_PARTITION, &key, value, expect)
                .await
            {
                Ok(_) => done += 1,
                Err(MetadataError::Conflict { .. }) => {}
                Err(other) => unreachable!("{other}"),
            }
        }
    };
    let callers = (0..CALLERS).map(|_| count(Arc::clone(&store)));
    soon("the callers", futures::future::join_all(callers)).await;
    let total = (CALLERS * EACH).to_string();
    assert_eq!(value(store.as_ref(), &key).await, Some(total));
}

/// A transaction touches the partition that it names, and what belongs to a topic goes with it.
pub async fn partitions_are_kept_apart(factory: &dyn StoreFactory) {
    let store = factory.create().await;
    let store = store.as_ref();
    let foreign = "t/tenant/other/t/x";
    let together = vec![
        put(&topic("t"), "1", Expect::Any),
        put(&ledger(7), "1", Expect::Any),
    ];
    let mut torn = together.clone();
    torn.push(put(foreign, "1", Expect::Any));
    let refused = commit(store, torn).await;
    assert!(
        matches!(refused, Err(MetadataError::Invalid(_))),
        "{refused:?}"
    );
    assert_eq!(get(store, &topic("t")).await, None);
    assert!(commit(store, together).await.is_ok());
    let unnamed = store.put("", &topic("t"), Bytes::new(), Expect::Any).await;
    assert!(
        matches!(unnamed, Err(MetadataError::Invalid(_))),
        "{unnamed:?}"
    );
    let nonsense = store
        .put(&partition(), "no/such/key", Bytes::new(), Expect::Any)
        .await;
    assert!(
        matches!(nonsense, Err(MetadataError::Invalid(_))),
        "{nonsense:?}"
    );
}

/// The limits are those of etcd, whatever the implementation could bear.
pub async fn limits(factory: &dyn StoreFactory) {
    let store = factory.create().await;
    let store = store.as_ref();
    let many = |count: usize| {
        let operations = (0..count).map(|id| {
            let id = u64::try_from(id).unwrap_or(u64::MAX);
            put(&ledger(id), "x", Expect::Absent)
        });
        operations.collect::<Vec<_>>()
    };
    let refused = commit(store, many(METADATA_OPERATIONS_MAX + 1)).await;
    assert!(
        matches!(refused, Err(MetadataError::Invalid(_))),
        "{refused:?}"
    );
    assert_eq!(get(store, &ledger(0)).await, None);
    assert!(commit(store, many(METADATA_OPERATIONS_MAX)).await.is_ok());

    let large = "x".repeat(METADATA_REQUEST_BYTES_MAX);
    let refused = commit(store, vec![put(&topic("t"), &large, Expect::Any)]).await;
    assert!(
        matches!(refused, Err(MetadataError::Invalid(_))),
        "{refused:?}"
    );
    let fits = "x".repeat(1 << 20);
    assert!(
        commit(store, vec![put(&topic("t"), &fits, Expect::Any)])
            .await
            .is_ok()
    );
    assert_eq!(value(store, &topic("t")).await, Some(fits));

    let twice = vec![
        put(&topic("t"), "1", Expect::Any),
        delete(&topic("t"), Expect::Any),
    ];
    let refused = commit(store, twice).await;
    assert!(
        matches!(refused, Err(MetadataError::Invalid(_))),
        "{refused:?}"
    );
}

/// A scan returns the keys below its prefix, in order, and no neighbour's.
pub async fn prefixes_are_exact(factory: &dyn StoreFactory) {
    let store = factory.create().await;
    let store = store.as_ref();
    for name in ["b", "a", "c"] {
        write(store, &topic(name), name).await;
    }
    let put = |key: &'static str, partition: &'static str| {
        store.put(partition, key, Bytes::new(), Expect::Any)
    };
    for (key, partition) in [
        ("t/tenant/space-2/t/a", "tenant/space-2"),
        ("t/tenant/spac/t/a", "tenant/spac"),
        ("t/tenant/space/p", "tenant/space"),
        ("t/tenant", ""),
    ] {
        put(key, partition).await.expect("the key is valid");
    }
    let prefix = keys::topics_prefix(&namespace());
    let page = store.scan(&prefix, None, 100).await.expect("scanned");
    let found: Vec<&str> = page.items.iter().map(|item| item.key.as_str()).collect();
    assert_eq!(found, [topic("a"), topic("b"), topic("c")]);
    assert_eq!(page.next, None);
    let empty = store.scan("t/absent/", None, 100).await.expect("scanned");
    assert!(empty.items.is_empty() && empty.next.is_none());
}

/// Whole scans read every page, and listings of names skip what is below the names.
pub async fn names_and_whole_scans(factory: &dyn StoreFactory) {
    let store = factory.create().await;
    let store = store.as_ref();
    let mut expected = Vec::new();
    for tenant in ["a", "a-b", "a.b", "b"] {
        let key = keys::tenant(tenant);
        let created = store.put("", &key, Bytes::new(), Expect::Any);
        created.await.expect("created");
        for number in 0..3 {
            let namespace = NamespaceName::new(tenant, "n").expect("the name is valid");
            let topic = TopicName::new(namespace, &number.to_string());
            let topic = topic.expect("the name is valid");
            let (partition, key) = (keys::partition_of_topic(&topic), keys::topic(&topic));
            let written = store.put(&partition, &key, Bytes::new(), Expect::Any);
            written.await.expect("written");
            expected.push(key);
        }
        expected.push(keys::tenant(tenant));
    }
    expected.sort();
    let (found, _) = scan::all(store, keys::TENANTS_PREFIX, 100)
        .await
        .expect("few keys");
    let found: Vec<String> = found.into_iter().map(|item| item.key).collect();
    assert_eq!(found, expected);
    let refused = scan::all(store, keys::TENANTS_PREFIX, 15).await;
    assert!(
        matches!(refused, Err(MetadataError::Invalid(_))),
        "{refused:?}"
    );
    let names = scan::children(store, keys::TENANTS_PREFIX, 100)
        .await
        .expect("listed");
    assert_eq!(
        names.into_iter().collect::<Vec<_>>(),
        ["a", "a-b", "a.b", "b"]
    );
    let names = scan::children(store, &keys::tenant_prefix("a"), 100)
        .await
        .expect("listed");
    assert_eq!(names.into_iter().collect::<Vec<_>>(), ["n"]);
}

/// All pages show the state of the first, however much is changed in between.
pub async fn pages_of_a_scan_show_one_state(factory: &dyn StoreFactory) {
    let store = factory.create().await;
    let store = store.as_ref();
    for id in 0..25 {
        write(store, &ledger(id), "old").await;
    }
    let mut page = store
        .scan(keys::LEDGERS_PREFIX, None, 10)
        .await
        .expect("page");
    let revision = page.revision;
    let mut seen = page.items.clone();
    let mut pages = 1;
    while let Some(next) = page.next.take() {
        let id = 5 + 10 * pages;
        write(store, &ledger(id), "new").await;
        commit(store, vec![delete(&ledger(id + 1), Expect::Any)])
            .await
            .expect("deleted");
        write(store, &ledger(100 + pages), "new").await;
        page = store
            .scan(keys::LEDGERS_PREFIX, Some(next), 10)
            .await
            .expect("the snapshot is recent");
        assert_eq!(page.revision, revision);
        seen.extend(page.items.iter().cloned());
        pages += 1;
    }
    assert_eq!(pages, 3);
    let keys_seen: Vec<String> = seen.iter().map(|item| item.key.clone()).collect();
    assert_eq!(keys_seen, (0..25).map(ledger).collect::<Vec<_>>());
    assert!(seen.iter().all(|item| text(&item.value) == "old"));
}

/// A store whose second page of all is held back.
struct Held {
    inner: Arc<dyn MetadataStore>,
    pages: AtomicU32,
    reached: Notify,
    free: Notify,
}

#[async_trait]
impl Intercept for Held {
    fn inner(&self) -> &dyn MetadataStore {
        &*self.inner
    }

    async fn on_scan(
        &self,
        prefix: &str,
        page: Option<PageToken>,
        limit: usize,
    ) -> MetadataResult<ScanPage> {
        if self.pages.fetch_add(1, Ordering::SeqCst) == 1 {
            self.reached.notify_one();
            self.free.notified().await;
        }
        self.inner.scan(prefix, page, limit).await
    }
}

/// A scan whose snapshot is lost in the middle begins again, and shows one state; work page by page
/// goes on where it was.
pub async fn a_scan_survives_a_snapshot_that_is_lost(factory: &dyn StoreFactory) {
    let shared = factory.create().await;
    let store = shared.as_ref();
    let count = METADATA_PAGE_KEYS_MAX as u64 * 2 + 10;
    let numbers: Vec<u64> = (0..count).collect();
    for some in numbers.chunks(100) {
        let puts = some.iter().map(|id| put(&ledger(*id), "old", Expect::Any));
        commit(store, puts.collect()).await.expect("written");
    }
    let all: Vec<String> = (0..count).map(ledger).collect();
    let mut pages = scan::Pages::new(store, keys::LEDGERS_PREFIX);
    let mut seen = Vec::new();
    while let Some(items) = pages.next().await.expect("it goes on") {
        seen.extend(items.into_iter().map(|item| item.key));
        write(store, &ledger(1), "new").await;
        factory.forget_snapshots(store).await;
    }
    assert_eq!(seen, all);
    let first_new = |seen: &mut Vec<(String, bool)>, item: &Versioned| {
        seen.push((item.key.clone(), text(&item.value) == "new"));
        Ok::<(), MetadataError>(())
    };
    let held = Held {
        inner: Arc::clone(&shared),
        pages: AtomicU32::new(0),
        reached: Notify::new(),
        free: Notify::new(),
    };
    let forget = async {
        held.reached.notified().await;
        write(store, &ledger(0), "new").await;
        factory.forget_snapshots(store).await;
        held.free.notify_one();
    };
    let scanned = scan::each(&held, keys::LEDGERS_PREFIX, Vec::new, first_new);
    let (scanned, ()) = tokio::join!(scanned, forget);
    let (seen, _) = scanned.expect("it begins again");
    assert!(seen[0].1, "the state is that of the second attempt");
    let seen: Vec<String> = seen.into_iter().map(|(key, _)| key).collect();
    assert_eq!(seen, all);
}

/// What was acknowledged is there after a restart, and revisions go on from where they were.
pub async fn acknowledged_changes_survive(factory: &dyn StoreFactory) {
    let store = factory.create().await;
    write(store.as_ref(), &topic("gone"), "1").await;
    let kept = write(store.as_ref(), &topic("kept"), "1").await;
    let deleted = commit(store.as_ref(), vec![delete(&topic("gone"), Expect::Any)]);
    let last = deleted.await.expect("deleted");
    let store = factory.restart(store).await;
    let found = get(store.as_ref(), &topic("kept"))
        .await
        .expect("it was acknowledged");
    assert_eq!((text(&found.value).as_str(), found.revision), ("1", kept));
    assert_eq!(get(store.as_ref(), &topic("gone")).await, None);
    assert!(write(store.as_ref(), &topic("new"), "1").await > last);
}
