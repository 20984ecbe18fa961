//! How far behind subscriptions are whose topics are not loaded.

use aquifer_broker::BrokerConfig;
use aquifer_metadata::store::{Expect, MetadataStore, Operation, Transaction, Versioned};
use aquifer_metadata::{keys, record};
use aquifer_model::policy::{EffectivePolicies, Retention};
use aquifer_proto::v1::TopicRecord;

use crate::support::{Harness, config, name, until};

const MESSAGES: &str = "aquifer_broker_unloaded_backlog_messages";
const MESSAGES_MAX: &str = "aquifer_broker_unloaded_backlog_messages_max";
const UNKNOWN: &str = "aquifer_broker_unloaded_backlog_unknown_topics";

/// A broker that has no reason of its own to load a topic.
async fn start_with(config: BrokerConfig) -> Harness {
    let harness = Harness::start_with(config).await;
    let everything = Retention {
        time_ms: None,
        size_bytes: None,
    };
    let policies = EffectivePolicies {
        retention: everything,
        ..EffectivePolicies::default()
    };
    harness.set_policies(policies).await;
    harness
}

/// Stores three messages, and acknowledges some of them.
async fn fill(harness: &Harness, topic: &str, acknowledged: Option<u64>) {
    let mut producer = harness.producer(topic, "p").await;
    let mut consumer = harness.consumer(topic, "s").await;
    producer.publish(&["a", "b", "c"]).await;
    consumer.take(3).await;
    if let Some(index) = acknowledged {
        consumer.acknowledge(&[], Some(index)).await;
    }
}

#[tokio::test]
async fn a_backlog_is_known_from_records_and_its_topic_is_not_loaded() {
    let harness = start_with(config()).await;
    fill(&harness, "orders", Some(0)).await;
    fill(&harness, "late", None).await;
    fill(&harness, "done", Some(2)).await;
    assert_eq!(harness.metric(MESSAGES), 0, "it is there from the start");
    let harness = harness.restart().await;
    let reads = harness.world.bookies.reads().requests;
    until("the backlog to be known", || async {
        harness.metric(MESSAGES) == 5
    })
    .await;
    assert_eq!(harness.metric(MESSAGES_MAX), 3);
    assert_eq!(harness.metric(UNKNOWN), 0);
    assert_eq!(harness.metric("aquifer_broker_topics_loaded"), 0);
    assert_eq!(harness.world.bookies.reads().requests, reads);
    // One that is loaded counts where loaded ones do.
    let mut consumer = harness.consumer("late", "s").await;
    consumer.take(3).await;
    until("a loaded topic to be left out", || async {
        harness.metric(MESSAGES) == 2
    })
    .await;
    // And what is acknowledged is gone when it is unloaded again.
    consumer.acknowledge(&[], Some(1)).await;
    drop(consumer);
    let harness = harness.restart().await;
    until("the rest to be known", || async {
        harness.metric(MESSAGES) == 3
    })
    .await;
    assert_eq!(harness.metric(MESSAGES_MAX), 2);
}

#[tokio::test]
async fn after_a_crash_a_backlog_is_unknown_until_the_topic_was_loaded() {
    let crashed = start_with(config()).await;
    fill(&crashed, "orders", Some(0)).await;
    let harness = crashed.rival().await;
    until("a topic of which nothing is known", || async {
        harness.metric(UNKNOWN) == 1
    })
    .await;
    assert_eq!(harness.metric(MESSAGES), 0);
    assert_eq!(harness.stats("orders").await.subscriptions.len(), 1);
    let harness = harness.restart().await;
    until("its backlog to be known", || async {
        harness.metric(MESSAGES) == 2
    })
    .await;
    assert_eq!(harness.metric(UNKNOWN), 0);
}

/// The record of a topic that is not loaded.
async fn record_of(harness: &Harness, topic: &str) -> Versioned {
    let found = harness.world.store.get(&keys::topic(&name(topic))).await;
    found.unwrap().unwrap()
}

/// Takes the note out of the record of a topic, as a build that does not know it leaves the record.
async fn forget(harness: &Harness, topic: &str) {
    let stored = record_of(harness, topic).await;
    let record: TopicRecord = record::decode(&stored).unwrap();
    let without = TopicRecord {
        at_rest: None,
        ..record
    };
    let put = Operation::Put {
        key: stored.key,
        value: record::encode(without),
        expect: Expect::Revision(stored.revision),
    };
    let transaction = Transaction {
        partition: keys::partition_of_topic(&name(topic)),
        guards: Vec::new(),
        operations: vec![put],
    };
    harness.world.store.commit(transaction).await.unwrap();
}

#[tokio::test]
async fn a_topic_with_nothing_to_seal_is_noted_once() {
    let harness = start_with(config()).await;
    fill(&harness, "orders", Some(0)).await;
    let harness = harness.restart().await;
    until("the backlog to be known", || async {
        harness.metric(MESSAGES) == 2
    })
    .await;
    forget(&harness, "orders").await;
    until("a topic of which nothing is known", || async {
        harness.metric(UNKNOWN) == 1
    })
    .await;
    assert_eq!(harness.stats("orders").await.subscriptions.len(), 1);
    let harness = harness.restart().await;
    until("its backlog to be known", || async {
        harness.metric(MESSAGES) == 2
    })
    .await;
    assert_eq!(harness.metric(UNKNOWN), 0);
    let written = record_of(&harness, "orders").await.revision;
    assert_eq!(harness.stats("orders").await.subscriptions.len(), 1);
    let harness = harness.restart().await;
    assert_eq!(record_of(&harness, "orders").await.revision, written);
}

/// The backlog of the subscription of a topic, if that has a line of its own.
fn line_of(harness: &Harness, topic: &str) -> Option<u64> {
    let text = harness.metrics();
    let (name, topic) = (
        "aquifer_broker_subscription_backlog_messages{",
        format!("topic=\"{topic}\""),
    );
    let mut lines = text.lines();
    let found = lines.find(|line| line.starts_with(name) && line.contains(&topic))?;
    found.rsplit(' ').next()?.parse().ok()
}

#[tokio::test]
async fn subscriptions_furthest_behind_have_lines_where_that_is_asked_for() {
    let mut config = config();
    config.subscriptions_shown = 2;
    config.balance.period_ms = 100;
    config.balance.window_ms = 1_000;
    let harness = start_with(config).await;
    fill(&harness, "orders", Some(0)).await;
    fill(&harness, "late", None).await;
    fill(&harness, "least", Some(1)).await;
    let shown =
        |harness: &Harness| ["orders", "late", "least"].map(|topic| line_of(harness, topic));
    let furthest = [Some(2), Some(3), None];
    until("loaded topics to have lines", || async {
        shown(&harness) == furthest
    })
    .await;
    let harness = harness.restart().await;
    until("topics that are not loaded to have them, too", || async {
        shown(&harness) == furthest
    })
    .await;
    assert_eq!(harness.metric("aquifer_broker_topics_loaded"), 0);
    // The line of a topic that is loaded again is that of the topic, not of its record.
    let mut consumer = harness.consumer("late", "s").await;
    consumer.take(3).await;
    consumer.acknowledge(&[], Some(2)).await;
    until("the next one to have a line", || async {
        shown(&harness) == [Some(2), None, Some(1)]
    })
    .await;
}
