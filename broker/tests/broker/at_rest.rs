//! How far behind subscriptions are whose topics are not loaded.

use aquifer_model::policy::{EffectivePolicies, Retention};

use crate::support::{Harness, until};

const MESSAGES: &str = "aquifer_broker_unloaded_backlog_messages";
const MESSAGES_MAX: &str = "aquifer_broker_unloaded_backlog_messages_max";
const UNKNOWN: &str = "aquifer_broker_unloaded_backlog_unknown_topics";

/// A broker that has no reason of its own to load a topic.
async fn start() -> Harness {
    let harness = Harness::start().await;
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
    let harness = start().await;
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
    let crashed = start().await;
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
