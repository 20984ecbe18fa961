//! What policy lets go goes, whatever else happens or does not happen to its topic, and a trim that
//! fails disturbs no client.

use aquifer_ledger::testing::TestWorld;
use aquifer_metadata::keys;
use aquifer_metadata::store::{Expect, MetadataStore, Operation, Transaction};
use aquifer_model::id::Index;
use aquifer_model::place::Place;
use aquifer_model::policy::{EffectivePolicies, Retention, Rollover};
use aquifer_protocol_api::admin::{Admin, PageRequest};

use crate::support::{Harness, ctx, default_namespace, name, until};

fn policies(retention_ms: u64, entries: u64) -> EffectivePolicies {
    EffectivePolicies {
        retention: Retention {
            time_ms: Some(retention_ms),
            size_bytes: Some(0),
        },
        rollover: Rollover {
            entries,
            age_ms: 100,
            ..Rollover::default()
        },
        ..EffectivePolicies::default()
    }
}

/// The ledgers of a topic's messages, by its record: asking the topic would load it.
async fn ledgers(world: &TestWorld, topic: &str) -> usize {
    let stored = world.store.get(&keys::topic(&name(topic))).await.unwrap();
    let record: aquifer_proto::v1::TopicRecord =
        aquifer_metadata::record::decode(&stored.unwrap()).unwrap();
    record.segments.len()
}

#[tokio::test]
async fn the_last_messages_of_a_quiet_topic_go_when_policy_says_so() {
    let harness = Harness::start().await;
    harness.set_policies(policies(0, 5)).await;
    let mut producer = harness.producer("orders", "p").await;
    let mut consumer = harness.consumer("orders", "s").await;
    for number in 0..7 {
        producer.publish(&[&format!("m{number}")]).await;
    }
    consumer.take(7).await;
    consumer.acknowledge(&[], Some(6)).await;
    // Nothing more is published, and far fewer entries were than a snapshot by count needs.
    until("everything to be trimmed", || async {
        ledgers(&harness.world, "orders").await == 0
    })
    .await;
    assert_eq!(harness.stats("orders").await.first_index, Index(7));
    assert_eq!(
        producer.publish(&["next"]).await.stored.unwrap().base_index,
        Index(7)
    );
    assert_eq!(consumer.take(1).await, [(7, "next".to_owned())]);
    let harness = harness.restart().await;
    let producer = harness.producer("orders", "p").await;
    assert_eq!(
        producer.opened.last_sequence_id,
        Some(7),
        "duplicates are known still"
    );
}

#[tokio::test]
async fn what_is_not_acknowledged_stays_in_a_quiet_topic_h11() {
    let harness = Harness::start().await;
    harness.set_policies(policies(0, 5)).await;
    let mut producer = harness.producer("orders", "p").await;
    let mut other = harness.producer("others", "p").await;
    let consumer = harness.consumer("orders", "s").await;
    for number in 0..7 {
        producer.publish(&[&format!("m{number}")]).await;
        other.publish(&["gone"]).await;
    }
    until("the topic without a subscription to be trimmed", || async {
        ledgers(&harness.world, "others").await == 0
    })
    .await;
    drop((producer, other, consumer));
    // Neither loaded nor after it was visited.
    let harness = harness.restart().await;
    let mut third = harness.producer("third", "p").await;
    third.publish(&["gone"]).await;
    drop(third);
    until("another topic to be trimmed", || async {
        ledgers(&harness.world, "third").await == 0
    })
    .await;
    let mut consumer = harness.consumer("orders", "s").await;
    assert_eq!(consumer.take(7).await[0], (0, "m0".to_owned()));
}

#[tokio::test]
async fn a_topic_that_is_not_loaded_is_trimmed_and_others_are_left_alone() {
    let harness = Harness::start().await;
    for topic in ["orders", "held"] {
        let mut producer = harness.producer(topic, "p").await;
        let mut consumer = harness.consumer(topic, "s").await;
        producer.publish(&["a", "b"]).await;
        consumer.take(2).await;
        if topic == "orders" {
            consumer.acknowledge(&[], Some(1)).await;
        }
    }
    // Nothing is loaded after this, and no client asks for either topic.
    let harness = harness.restart().await;
    harness.set_policies(policies(0, 5)).await;
    until("the topic to be trimmed", || async {
        ledgers(&harness.world, "orders").await == 0
    })
    .await;
    assert_eq!(ledgers(&harness.world, "held").await, 1);
    let mut reader = harness.reader("held", Place::Earliest).await;
    assert_eq!(reader.take_payloads(2).await, ["a", "b"]);
    assert_eq!(harness.stats("orders").await.first_index, Index(2));
}

/// A topic with more ledgers than its record has room for is trimmed to its end all the same.
#[tokio::test]
async fn a_topic_with_pages_of_ledgers_is_listed_once_and_trimmed_without_being_loaded() {
    let harness = Harness::start().await;
    harness.set_policies(policies(3_600_000, 1)).await;
    let mut producer = harness.producer("orders", "p").await;
    for _ in 0..12 {
        producer.publish(&["m"]).await;
    }
    harness.producer("orders-2", "p").await;
    drop(producer);
    let prefix = keys::segment_pages_prefix(&name("orders"));
    assert!(harness.world.store.keys(&prefix).len() > 2);
    let page = PageRequest {
        after: None,
        limit: 10,
    };
    let asked = ctx();
    let listed = harness
        .broker
        .list_topics(&asked, default_namespace(), page);
    let listed = listed.await.unwrap().items;
    let listed: Vec<&str> = listed.iter().map(|listed| listed.topic.name()).collect();
    assert_eq!(listed, ["orders", "orders-2"]);
    let harness = harness.restart().await;
    harness.set_policies(policies(0, 5)).await;
    until("the topic to be trimmed", || async {
        ledgers(&harness.world, "orders").await == 0
    })
    .await;
    assert_eq!(harness.world.store.keys(&prefix), Vec::<String>::new());
    assert_eq!(harness.stats("orders").await.first_index, Index(12));
}

/// One record that is lost is no reason to disconnect clients, and no reason to keep what lies
/// behind it.
#[tokio::test]
async fn a_trim_that_meets_a_lost_ledger_record_disturbs_no_client() {
    let harness = Harness::start().await;
    harness.set_policies(policies(3_600_000, 2)).await;
    let mut producer = harness.producer("orders", "p").await;
    let mut consumer = harness.consumer("orders", "s").await;
    for number in 0..6 {
        producer.publish(&[&format!("m{number}")]).await;
    }
    consumer.take(6).await;
    consumer.acknowledge(&[], Some(5)).await;
    let first = harness.stats("orders").await.ledgers[0].ledger;
    let forget = Transaction {
        partition: keys::partition_of_namespace(&default_namespace()),
        guards: Vec::new(),
        operations: vec![Operation::Delete {
            key: keys::ledger(first),
            expect: Expect::Any,
        }],
    };
    harness.world.store.commit(forget).await.unwrap();
    harness.set_policies(policies(0, 2)).await;
    until("the topic to be trimmed", || async {
        harness.stats("orders").await.first_index >= Index(4)
    })
    .await;
    // The same sessions go on.
    producer.publish(&["next"]).await;
    assert_eq!(consumer.take_payloads(1).await, ["next"]);
}
