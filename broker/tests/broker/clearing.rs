//! What a subscription has not acknowledged, shown and given up.

use aquifer_model::subscription::SubscriptionType;
use aquifer_protocol_api::admin::{Admin, Clear, Peeked};
use aquifer_protocol_api::consumer::{IndexRange, Subscribe};
use aquifer_protocol_api::error::{ApiResult, ErrorKind};

use crate::support::{Harness, ctx, kind, name, subscribe};

const ALL: Clear = Clear {
    older_than_ms: None,
    dry_run: false,
};

async fn clear(harness: &Harness, topic: &str, clear: Clear) -> ApiResult<u64> {
    let (broker, context) = (&harness.broker, ctx());
    let subscription = "s".parse().unwrap();
    broker
        .clear_subscription(&context, name(topic), subscription, clear)
        .await
}

async fn peek(harness: &Harness, topic: &str, limit: usize) -> ApiResult<Peeked> {
    let (broker, context) = (&harness.broker, ctx());
    let subscription = "s".parse().unwrap();
    broker
        .peek_messages(&context, name(topic), subscription, limit)
        .await
}

fn shared() -> Subscribe {
    Subscribe {
        kind: SubscriptionType::Shared,
        ..subscribe("orders", "s")
    }
}

fn ranges(peeked: &Peeked) -> Vec<(u64, u64)> {
    let range = |range: &IndexRange| (range.first.0, range.last.0);
    peeked.unacknowledged.iter().map(range).collect()
}

#[tokio::test]
async fn a_look_shows_what_is_next_and_changes_nothing() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    for batch in [["a", "b"], ["c", "d"], ["e", "f"]] {
        producer.publish(&batch).await;
    }
    let mut consumer = harness.try_subscribe(shared()).await.unwrap();
    consumer.take(4).await;
    consumer.acknowledge(&[0, 2, 3], None).await;
    let before = harness.stats("orders").await.subscriptions;
    let peeked = peek(&harness, "orders", 2).await.unwrap();
    assert_eq!(ranges(&peeked), [(1, 1), (4, 4)]);
    let bases: Vec<u64> = peeked.batches.iter().map(|b| b.at.base_index.0).collect();
    assert_eq!(bases, [0, 4], "the entry between them has nothing of it");
    let peeked = peek(&harness, "orders", 1_000_000).await.unwrap();
    assert_eq!(ranges(&peeked), [(1, 1), (4, 5)]);
    assert!(peeked.gaps.is_empty());
    assert_eq!(harness.stats("orders").await.subscriptions, before);
    let absent = peek(&harness, "stock", 1).await;
    assert_eq!(kind(&absent), Some(ErrorKind::NotFound));
}

#[tokio::test]
async fn a_backlog_is_given_up_durably_i9() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    producer.publish(&["a", "b", "c", "d"]).await;
    let mut consumer = harness.try_subscribe(shared()).await.unwrap();
    consumer.take(4).await;
    consumer.acknowledge(&[1], None).await;
    let dry_run = Clear {
        dry_run: true,
        ..ALL
    };
    assert_eq!(clear(&harness, "orders", dry_run).await, Ok(3));
    assert_eq!(clear(&harness, "orders", ALL).await, Ok(3));
    assert_eq!(
        clear(&harness, "orders", ALL).await,
        Ok(0),
        "there is nothing"
    );
    // What consumers have is theirs no more, and what comes is delivered.
    producer.publish(&["e"]).await;
    assert_eq!(consumer.take(1).await, [(4, "e".to_owned())]);
    drop(consumer);
    let harness = harness.rival().await;
    let stats = harness.stats("orders").await;
    assert_eq!(stats.subscriptions[0].backlog_messages, 1);
    assert_eq!(stats.subscriptions[0].mark_delete.0, 4);
}

#[tokio::test]
async fn only_what_is_old_is_given_up() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    drop(harness.consumer("orders", "s").await);
    producer.publish(&["a", "b"]).await;
    let older = |ms| Clear {
        older_than_ms: Some(ms),
        dry_run: false,
    };
    assert_eq!(clear(&harness, "orders", older(3_600_000)).await, Ok(0));
    assert_eq!(clear(&harness, "orders", older(u64::MAX)).await, Ok(0));
    // Later than the messages by the clock that has stamped them.
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    assert_eq!(clear(&harness, "orders", older(5)).await, Ok(2));
    let absent = clear(&harness, "stock", older(5)).await;
    assert_eq!(kind(&absent), Some(ErrorKind::NotFound));
}

#[tokio::test]
async fn every_partition_is_cleared() {
    let harness = Harness::start().await;
    let broker = &harness.broker;
    broker
        .create_topic(&ctx(), name("orders"), 3)
        .await
        .unwrap();
    for part in 0..3 {
        let part = format!("orders-partition-{part}");
        drop(harness.consumer(&part, "s").await);
        harness
            .producer(&part, "p")
            .await
            .publish(&["a", "b"])
            .await;
    }
    assert_eq!(clear(&harness, "orders", ALL).await, Ok(6));
    let stats = harness.stats("orders").await;
    assert_eq!(stats.subscriptions[0].backlog_messages, 0);
    let whole = peek(&harness, "orders", 1).await;
    assert_eq!(kind(&whole), Some(ErrorKind::InvalidArgument));
    let part = peek(&harness, "orders-partition-0", 1).await.unwrap();
    assert!(part.unacknowledged.is_empty() && part.batches.is_empty());
}
