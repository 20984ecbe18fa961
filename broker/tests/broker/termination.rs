//! Topics that are unloaded on command, and those that take no more messages.

use aquifer_model::id::Index;
use aquifer_model::place::Place;
use aquifer_model::stats::TopicEnd;
use aquifer_model::subscription::SubscriptionType;
use aquifer_protocol_api::admin::Admin;
use aquifer_protocol_api::consumer::{ConsumerEvent, Subscribe};
use aquifer_protocol_api::error::{ApiResult, ErrorKind};

use crate::support::{Consumer, Harness, ctx, kind, name, open, soon, subscribe};

async fn terminate(harness: &Harness, topic: &str) -> ApiResult<Vec<TopicEnd>> {
    let (context, broker) = (ctx(), &harness.broker);
    soon("the end", broker.terminate_topic(&context, name(topic))).await
}

async fn unload(harness: &Harness, topic: &str) -> ApiResult<u32> {
    let (context, broker) = (ctx(), &harness.broker);
    soon(
        "the topic to end",
        broker.unload_topic(&context, name(topic)),
    )
    .await
}

fn ends(topic: &str, end: u64) -> Vec<TopicEnd> {
    let (topic, end) = (name(topic), Index(end));
    vec![TopicEnd { topic, end }]
}

/// The end that a consumer is told.
async fn told_end(consumer: &mut Consumer) -> u64 {
    loop {
        match consumer.event().await {
            ConsumerEvent::EndOfTopic { end } => return end.0,
            ConsumerEvent::Active(_) | ConsumerEvent::Confirmed { .. } => {}
            other => panic!("expected the end, got {other:?}"),
        }
    }
}

#[tokio::test]
async fn an_unloaded_topic_keeps_everything_and_comes_back() {
    let harness = Harness::start().await;
    assert_eq!(
        kind(&unload(&harness, "orders").await),
        Some(ErrorKind::NotFound)
    );
    let mut producer = harness.producer("orders", "p").await;
    producer.publish(&["a", "b"]).await;
    let mut consumer = harness.consumer("orders", "s").await;
    consumer.take(2).await;
    consumer.acknowledge(&[0], None).await;
    producer.publish(&["c"]).await;
    assert_eq!(unload(&harness, "orders").await, Ok(1));
    // The session ends for now.
    assert!(producer.error().await.kind.is_retryable());
    assert_eq!(unload(&harness, "orders").await, Ok(0), "nothing is loaded");
    let mut consumer = harness.consumer("orders", "s").await;
    assert_eq!(consumer.take_payloads(2).await, ["b", "c"]);
}

#[tokio::test]
async fn all_partitions_are_unloaded() {
    let harness = Harness::start().await;
    let broker = &harness.broker;
    broker
        .create_topic(&ctx(), name("orders"), 3)
        .await
        .unwrap();
    for part in 0..2 {
        harness
            .producer(&format!("orders-partition-{part}"), "p")
            .await;
    }
    assert_eq!(unload(&harness, "orders").await, Ok(2));
}

#[tokio::test]
async fn a_terminated_topic_takes_no_more_and_is_read_to_its_end() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    producer.publish(&["a", "b"]).await;
    let shared = || Subscribe {
        kind: SubscriptionType::Shared,
        ..subscribe("orders", "s")
    };
    let mut consumer = harness.try_subscribe(shared()).await.unwrap();
    producer.send(&["c"]).await;
    assert_eq!(terminate(&harness, "orders").await, Ok(ends("orders", 3)));
    assert!(producer.receipt().await.is_ok(), "it was in flight");
    let last = producer.error().await;
    assert_eq!(last.kind, ErrorKind::Terminated);
    assert!(!last.kind.is_retryable() && !last.advice.is_empty());
    let again = harness.try_producer(open("orders", "q")).await;
    assert_eq!(kind(&again), Some(ErrorKind::Terminated));

    assert_eq!(consumer.take_payloads(3).await, ["a", "b", "c"]);
    consumer.grant(10).await;
    consumer.acknowledge(&[0, 2], None).await;
    // What is not acknowledged may come again: this is not the end yet.
    assert!(consumer.events.is_empty());
    let ack = consumer.ack(&[1], None);
    consumer.port.acknowledge(ack).await.unwrap();
    assert_eq!(told_end(&mut consumer).await, 3);
    let mut reader = harness.reader("orders", Place::Index(Index(2))).await;
    assert_eq!(reader.take_payloads(1).await, ["c"]);
    reader.grant(10).await;
    assert_eq!(told_end(&mut reader).await, 3);
}

#[tokio::test]
async fn an_end_is_for_good() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    producer.publish(&["a"]).await;
    assert_eq!(terminate(&harness, "orders").await, Ok(ends("orders", 1)));
    assert_eq!(unload(&harness, "orders").await, Ok(1));
    let refused = harness.try_producer(open("orders", "p")).await;
    assert_eq!(kind(&refused), Some(ErrorKind::Terminated));
    let harness = harness.restart().await;
    let refused = harness.try_producer(open("orders", "p")).await;
    assert_eq!(kind(&refused), Some(ErrorKind::Terminated));
    // A broker that takes over without being told anything.
    let harness = harness.rival().await;
    let refused = harness.try_producer(open("orders", "p")).await;
    assert_eq!(kind(&refused), Some(ErrorKind::Terminated));
    assert_eq!(terminate(&harness, "orders").await, Ok(ends("orders", 1)));
    let mut consumer = harness.consumer("orders", "late").await;
    assert_eq!(consumer.take_payloads(1).await, ["a"]);
    consumer.grant(10).await;
    let ack = consumer.ack(&[], Some(0));
    consumer.port.acknowledge(ack).await.unwrap();
    assert_eq!(told_end(&mut consumer).await, 1);
}

#[tokio::test]
async fn partitions_end_each_for_itself() {
    let harness = Harness::start().await;
    let broker = &harness.broker;
    broker
        .create_topic(&ctx(), name("orders"), 2)
        .await
        .unwrap();
    let part = |number: u32| format!("orders-partition-{number}");
    harness.producer(&part(1), "p").await.publish(&["a"]).await;
    let all = terminate(&harness, "orders").await.unwrap();
    assert_eq!(all, [ends(&part(0), 0), ends(&part(1), 1)].concat());
    for number in 0..2 {
        let refused = harness.try_producer(open(&part(number), "p")).await;
        assert_eq!(kind(&refused), Some(ErrorKind::Terminated));
    }
}

#[tokio::test]
async fn growth_is_refused_with_what_to_do_instead() {
    let harness = Harness::start().await;
    let broker = &harness.broker;
    broker
        .create_topic(&ctx(), name("orders"), 2)
        .await
        .unwrap();
    let grow = async |partitions| broker.grow_topic(&ctx(), name("orders"), partitions).await;
    assert_eq!(kind(&grow(2).await), Some(ErrorKind::InvalidArgument));
    let refused = grow(3).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unimplemented);
    assert!(refused.advice.contains("terminate"), "{}", refused.advice);
    let absent = broker.grow_topic(&ctx(), name("none"), 3).await;
    assert_eq!(kind(&absent), Some(ErrorKind::NotFound));
}
