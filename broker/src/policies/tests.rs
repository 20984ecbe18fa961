//! What is in force follows metadata, whatever the order in which changes, reads and watches come.

use aquifer_metadata::embedded::{EmbeddedOptions, EmbeddedStore};
use aquifer_model::policy::Rollover;
use aquifer_runtime::clock::SystemClock;
use aquifer_runtime::disk::{Disk, SimDisk};
use bytes::Bytes;

use super::*;

/// A store that remembers so many events for watches that begin late.
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
