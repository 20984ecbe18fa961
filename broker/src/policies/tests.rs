//! What is in force follows metadata, whatever the order in which changes, reads and watches come.

use std::sync::atomic::{AtomicUsize, Ordering};

use aquifer_metadata::embedded::{EmbeddedOptions, EmbeddedStore};
use aquifer_metadata::error::MetadataResult;
use aquifer_metadata::intercept::Intercept;
use aquifer_metadata::store::{Operation, PageToken, ScanPage, Transaction};
use aquifer_model::limits::METADATA_PAGE_KEYS_MAX;
use aquifer_model::policy::Rollover;
use aquifer_protocol_api::error::ErrorKind;
use aquifer_runtime::clock::{self, SystemClock};
use aquifer_runtime::disk::{Disk, SimDisk};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Barrier;

mod changes;

use super::*;

/// A store that remembers this many events for watches that begin late.
async fn store(tasks: &TaskGroup, history_events: usize) -> Arc<dyn MetadataStore> {
    let disk = SimDisk::new();
    disk.create_dir_all("/data".as_ref()).unwrap();
    let options = EmbeddedOptions {
        history_events,
        ..EmbeddedOptions::default()
    };
    let path = "/data/metadata.redb".into();
    let store = EmbeddedStore::open(path, options, disk.shared(), SystemClock::shared(), tasks);
    Arc::new(store.await.unwrap())
}

fn entries(entries: u64) -> Policies {
    Policies {
        rollover: Some(Rollover {
            entries,
            ..Rollover::default()
        }),
        ..Policies::default()
    }
}

async fn say(store: &dyn MetadataStore, scope: &PolicyScope, policies: Policies) {
    let (key, partition) = (keys::policies(scope), keys::partition_of_policies(scope));
    let put = store.put(&partition, &key, record_of(policies), Expect::Any);
    put.await.unwrap();
}

async fn shows(receiver: &mut watch::Receiver<EffectivePolicies>, entries: u64) {
    let seen = receiver.wait_for(|now| now.rollover.entries == entries);
    let seen = clock::timeout(Duration::from_secs(30), seen).await;
    seen.expect("the watch brings it").unwrap();
}

fn topic(name: &str) -> TopicName {
    format!("acme/shop/{name}").parse().unwrap()
}

#[tokio::test]
async fn every_level_reaches_what_is_in_use() {
    let tasks = TaskGroup::new("test");
    for history_events in [1, 1_000] {
        let store = store(&tasks, history_events).await;
        let defaults = EffectivePolicies::default();
        let table = PolicyTable::start(Arc::clone(&store), defaults, &tasks);
        let part: TopicName = "acme/shop/orders-partition-1".parse().unwrap();
        let mut orders = table.of_topic(&part).await.unwrap();
        let mut other = table.of_topic(&topic("other")).await.unwrap();
        let scopes = PolicyScope::Topic(topic("orders")).path();
        for (round, scope) in (1..).zip(&scopes) {
            say(&*store, scope, entries(round)).await;
            shows(&mut orders, round).await;
        }
        shows(&mut other, 2).await;
        // Taken back, and damaged: the first is inherited again, the second changes nothing.
        let key = keys::policies(&scopes[2]);
        let home = keys::partition_of_policies(&scopes[2]);
        let gone = Transaction {
            partition: home.clone(),
            operations: vec![Operation::Delete {
                key: key.clone(),
                expect: Expect::Any,
            }],
            ..Transaction::default()
        };
        store.commit(gone).await.unwrap();
        shows(&mut orders, 2).await;
        let rubbish = Bytes::from_static(b"rubbish");
        store.put(&home, &key, rubbish, Expect::Any).await.unwrap();
        say(&*store, &scopes[1], entries(7)).await;
        shows(&mut other, 7).await;
        shows(&mut orders, 7).await;
    }
}

/// Partitions of one topic are loaded at once, as after a start: a change reaches each.
#[tokio::test]
async fn all_that_begin_to_follow_at_once_are_shown_changes() {
    let tasks = TaskGroup::new("test");
    let store = store(&tasks, 1_000).await;
    let defaults = EffectivePolicies::default();
    let table = PolicyTable::start(Arc::clone(&store), defaults, &tasks);
    let parts = (0..8).map(|number| topic("orders").partition_name(number));
    let parts: Vec<TopicName> = parts.collect();
    let followed = parts.iter().map(|part| table.of_topic(part));
    let followed = futures::future::try_join_all(followed).await.unwrap();
    let scope = PolicyScope::Topic(topic("orders"));
    say(&*store, &scope, entries(5)).await;
    for mut receiver in followed {
        shows(&mut receiver, 5).await;
    }
}

/// A store that counts pages, and answers none of the first before all of them are asked for.
struct Together {
    inner: Arc<dyn MetadataStore>,
    first: Barrier,
    left: AtomicUsize,
    pages: AtomicUsize,
}

#[async_trait]
impl Intercept for Together {
    fn inner(&self) -> &dyn MetadataStore {
        &*self.inner
    }

    async fn on_scan(
        &self,
        prefix: &str,
        page: Option<PageToken>,
        limit: usize,
    ) -> MetadataResult<ScanPage> {
        let order = Ordering::Relaxed;
        self.pages.fetch_add(1, order);
        let is_first = self
            .left
            .try_update(order, order, |left| left.checked_sub(1));
        if is_first.is_ok() {
            self.first.wait().await;
        }
        self.inner.scan(prefix, page, limit).await
    }
}

/// After a start, many more topics are loaded at once than scopes are kept that are not in use:
/// each scope is read once by each request at most, and none drops what another reads.
#[tokio::test]
async fn topics_that_are_loaded_at_once_read_each_scope_once() {
    const TOPICS: usize = 4 * PRUNE_ABOVE;
    let tasks = TaskGroup::new("test");
    let store = Arc::new(Together {
        inner: store(&tasks, 1_000).await,
        first: Barrier::new(TOPICS),
        left: AtomicUsize::new(TOPICS),
        pages: AtomicUsize::new(0),
    });
    let inner = Inner {
        store: Arc::clone(&store) as Arc<dyn MetadataStore>,
        defaults: EffectivePolicies::default(),
        state: Mutex::default(),
    };
    let scopes = (0..TOPICS).map(|number| PolicyScope::Topic(topic(&format!("t-{number}"))));
    let scopes: Vec<PolicyScope> = scopes.collect();
    let followed = scopes.iter().map(|scope| inner.follow(scope));
    let followed = futures::future::try_join_all(followed).await.unwrap();
    assert_eq!(followed.len(), TOPICS);
    let pages = store.pages.load(Ordering::Relaxed);
    assert!(pages <= 3 * TOPICS, "{pages} pages for {TOPICS} topics");
    // What no request reads or uses any more goes as before.
    drop(followed);
    let mut state = inner.state.lock();
    state.said_after_prune = 0;
    state.live_after_prune = 0;
    state.prune();
    assert_eq!((state.said.len(), state.live.len()), (0, 0));
}

/// The watch begins again whenever the store has forgotten what it asks for; a record that cannot
/// be decoded, in use and not, keeps no other scope from seeing changes then.
#[tokio::test]
async fn a_damaged_record_stops_no_other() {
    let tasks = TaskGroup::new("test");
    let store = store(&tasks, 1).await;
    let defaults = EffectivePolicies::default();
    let (damaged, whole) = (topic("damaged"), topic("whole"));
    let table = PolicyTable::start(Arc::clone(&store), defaults, &tasks);
    let scope = |topic: &TopicName| PolicyScope::Topic(topic.clone());
    say(&*store, &scope(&damaged), entries(3)).await;
    let mut of_damaged = table.of_topic(&damaged).await.unwrap();
    let mut of_whole = table.of_topic(&whole).await.unwrap();
    shows(&mut of_damaged, 3).await;
    let home = keys::partition_of_policies(&scope(&damaged));
    for number in 0..40 {
        for name in [&damaged, &topic("unused")] {
            let key = keys::policies(&scope(name));
            let rubbish = Bytes::from_static(b"rubbish");
            store.put(&home, &key, rubbish, Expect::Any).await.unwrap();
        }
        say(&*store, &scope(&whole), entries(100 + number)).await;
        shows(&mut of_whole, 100 + number).await;
        assert_eq!(of_damaged.borrow().rollover.entries, 3, "what was in force");
    }
    // A table that starts now meets the damage first.
    let table = PolicyTable::start(Arc::clone(&store), defaults, &tasks);
    assert!(
        table.of_topic(&damaged).await.is_err(),
        "an unknown retention deletes nothing"
    );
    let mut of_whole = table.of_topic(&whole).await.unwrap();
    say(&*store, &scope(&whole), entries(7)).await;
    shows(&mut of_whole, 7).await;
}

/// What a watch that was away missed is read again: changes, and records that were deleted.
#[tokio::test]
async fn what_is_said_is_read_again_whole() {
    let tasks = TaskGroup::new("test");
    let store = store(&tasks, 1_000).await;
    let defaults = EffectivePolicies::default();
    let scope = |name: &str| PolicyScope::Topic(topic(name));
    say(&*store, &scope("changed"), entries(1)).await;
    say(&*store, &scope("deleted"), entries(1)).await;
    let inner = Arc::new(Inner {
        store: Arc::clone(&store),
        defaults,
        state: Mutex::default(),
    });
    // Followed, and no watch runs.
    let changed = inner.follow(&scope("changed")).await.unwrap();
    let deleted = inner.follow(&scope("deleted")).await.unwrap();
    let created = inner.follow(&scope("created")).await.unwrap();
    // More than a page of records of others stand between them.
    for number in 0..=METADATA_PAGE_KEYS_MAX {
        say(&*store, &scope(&format!("created-{number}")), entries(9)).await;
    }
    say(&*store, &scope("changed"), entries(2)).await;
    say(&*store, &scope("created"), entries(3)).await;
    let transaction = Transaction {
        partition: keys::partition_of_policies(&scope("deleted")),
        operations: vec![Operation::Delete {
            key: keys::policies(&scope("deleted")),
            expect: Expect::Any,
        }],
        ..Transaction::default()
    };
    let last = store.commit(transaction).await.unwrap();
    let as_of = inner.catch_up().await.unwrap();
    assert!(as_of >= last);
    let entries = |of: &watch::Receiver<EffectivePolicies>| of.borrow().rollover.entries;
    assert_eq!((entries(&changed), entries(&created)), (2, 3));
    assert_eq!(entries(&deleted), defaults.rollover.entries);
}

/// What was read for a scope that was dropped meanwhile says nothing of what it missed.
#[tokio::test]
async fn a_read_for_an_earlier_registration_counts_for_nothing() {
    let tasks = TaskGroup::new("test");
    let store = store(&tasks, 1_000).await;
    let inner = Inner {
        store,
        defaults: EffectivePolicies::default(),
        state: Mutex::default(),
    };
    let scope = PolicyScope::Topic(topic("t"));
    let first = inner.state.lock().register(&scope);
    inner.state.lock().said.clear();
    let second = inner.state.lock().register(&scope);
    inner.learn(&scope, Said::at(entries(1), Revision(10)), Some(first));
    assert!(inner.state.lock().said[&scope].said.as_of.is_none());
    inner.learn(&scope, Said::at(entries(2), Revision(11)), Some(second));
    assert_eq!(inner.state.lock().said[&scope].said.policies, entries(2));
}

/// Damage is replaced by a change that names its version, and by no other; policies that this build
/// does not know are never replaced.
#[tokio::test]
async fn what_cannot_be_read_whole_is_not_changed_unseen() {
    let tasks = TaskGroup::new("test");
    let store = store(&tasks, 1_000).await;
    let table = PolicyTable::start(Arc::clone(&store), EffectivePolicies::default(), &tasks);
    let scope = PolicyScope::Tenant("acme".to_owned());
    let tenant = record::encode(aquifer_proto::v1::TenantRecord::default());
    let (key, home) = (keys::policies(&scope), keys::partition_of_policies(&scope));
    store
        .put(&home, &keys::tenant("acme"), tenant, Expect::Any)
        .await
        .unwrap();
    let off = |version| PolicyUpdate {
        set: Policies {
            deduplication: Some(false),
            ..Policies::default()
        },
        version,
        ..PolicyUpdate::default()
    };
    // A message of a newer build: field 30 of the policies.
    let mut policies = vec![0xf0, 0x01, 0x01];
    let mut record = vec![0x0a, 3];
    record.append(&mut policies);
    let mut value = vec![0x08, 0x01, 0xb2, 0x01, 5];
    value.append(&mut record);
    let newer = store
        .put(&home, &key, value.into(), Expect::Any)
        .await
        .unwrap();
    for version in [None, Some(newer.0)] {
        let refused = ApiError::from(table.update(&scope, &off(version)).await.unwrap_err());
        assert!(refused.message.contains("does not know"), "{refused}");
    }
    let rubbish = Bytes::from_static(b"rubbish");
    let damaged = store.put(&home, &key, rubbish, Expect::Any).await.unwrap();
    for version in [None, Some(newer.0)] {
        let refused = ApiError::from(table.update(&scope, &off(version)).await.unwrap_err());
        assert!(
            refused.advice.contains(&damaged.0.to_string()),
            "{refused:?}"
        );
    }
    let view = table.update(&scope, &off(Some(damaged.0))).await.unwrap();
    assert_eq!(view.own, off(None).set);
    assert_eq!(table.view(&scope).await.unwrap(), view);
}

#[tokio::test]
async fn a_policy_is_set_only_where_it_has_an_effect() {
    let tasks = TaskGroup::new("test");
    let store = store(&tasks, 1_000).await;
    let table = PolicyTable::start(store, EffectivePolicies::default(), &tasks);
    let auto_create = Policies {
        auto_create_topics: Some(false),
        ..Policies::default()
    };
    let update = PolicyUpdate {
        set: auto_create,
        ..PolicyUpdate::default()
    };
    let scope = PolicyScope::Topic(topic("t"));
    let error = ApiError::from(table.update(&scope, &update).await.unwrap_err());
    assert_eq!(error.kind, ErrorKind::InvalidArgument, "{error}");
    assert!(error.message.contains("autoCreateTopics"), "{error}");
    assert!(error.advice.contains("tenant or a namespace"), "{error:?}");
}

#[tokio::test]
async fn names_that_cannot_be_read_take_no_memory() {
    let tasks = TaskGroup::new("test");
    let store = store(&tasks, 1_000).await;
    let scope = PolicyScope::Namespace("acme/shop".parse().unwrap());
    let home = keys::partition_of_policies(&scope);
    let rubbish = Bytes::from_static(b"rubbish");
    store
        .put(&home, &keys::policies(&scope), rubbish, Expect::Any)
        .await
        .unwrap();
    let table = PolicyTable::start(store, EffectivePolicies::default(), &tasks);
    for number in 0..1_000 {
        let name = topic(&number.to_string());
        assert!(table.of_topic(&name).await.is_err());
    }
    let said = table.inner.state.lock().said.len();
    assert!(said <= PRUNE_ABOVE + 3, "{said}");
}

#[tokio::test]
async fn what_nobody_uses_takes_no_memory() {
    let tasks = TaskGroup::new("test");
    let store = store(&tasks, 1_000).await;
    let defaults = EffectivePolicies::default();
    let table = PolicyTable::start(Arc::clone(&store), defaults, &tasks);
    let mut kept = table.of_topic(&topic("kept")).await.unwrap();
    for number in 0..1_000 {
        table.of_topic(&topic(&number.to_string())).await.unwrap();
    }
    let sizes = |state: &State| (state.live.len(), state.said.len());
    let (live, said) = sizes(&table.inner.state.lock());
    assert!(live <= PRUNE_ABOVE + 3 && said <= live + 2, "{live} {said}");
    let scope = PolicyScope::Topic(topic("kept"));
    say(&*store, &scope, entries(5)).await;
    shows(&mut kept, 5).await;
}
