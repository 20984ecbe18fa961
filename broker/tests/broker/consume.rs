//! Delivery: who gets what, how fast, and from where.

use aquifer_model::id::{ConsumerInstance, Index};
use aquifer_model::place::Place;
use aquifer_model::subscription::SubscriptionType;
use aquifer_protocol_api::admin::Admin;
use aquifer_protocol_api::consumer::{ConsumerEvent, IndexRange, NegativeAcknowledge, Subscribe};
use aquifer_protocol_api::error::ErrorKind;

use crate::support::{Harness, ctx, eventually, kind, name, subscribe, until};

#[tokio::test]
async fn credit_bounds_what_is_delivered() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    for payload in ["a", "b", "c", "d"] {
        producer.publish(&[payload]).await;
    }
    let mut consumer = harness.consumer("orders", "s").await;
    consumer.grant(2).await;
    assert_eq!(consumer.take_payloads(2).await, ["a", "b"]);
    // A round trip through the topic: if more were delivered, it would be there by now.
    harness.stats("orders").await;
    assert!(consumer.events.is_empty());
    assert_eq!(consumer.take_payloads(2).await, ["c", "d"]);
}

#[tokio::test]
async fn new_messages_reach_every_subscription_from_memory() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    let mut consumers = Vec::new();
    for number in 0..10 {
        let mut consumer = harness.consumer("orders", &format!("s{number}")).await;
        consumer.grant(100).await;
        consumers.push(consumer);
    }
    let before = harness.world.bookies.reads();
    for number in 0..20 {
        producer.publish(&[&format!("m{number}")]).await;
    }
    for consumer in &mut consumers {
        let expected: Vec<String> = (0..20).map(|n| format!("m{n}")).collect();
        assert_eq!(consumer.take_payloads(20).await, expected);
    }
    assert_eq!(harness.world.bookies.reads(), before, "no bookie was read");
}

#[tokio::test]
async fn a_backlog_is_read_in_order_after_a_restart() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    for number in 0..200 {
        producer.send(&[&format!("m{number}")]).await;
    }
    for _ in 0..200 {
        producer.receipt().await.unwrap();
    }
    let harness = harness.restart().await;
    let mut consumer = harness.consumer("orders", "s").await;
    let expected: Vec<String> = (0..200).map(|n| format!("m{n}")).collect();
    assert_eq!(consumer.take_payloads(200).await, expected);
    assert!(harness.world.bookies.reads().entries >= 200);
}

/// I13, and no other consumer waits for the one that does not read.
#[tokio::test]
async fn a_consumer_that_reads_nothing_holds_a_bounded_amount_and_delays_no_other_i13() {
    let mut config = crate::support::config();
    config.consumer_queue_bytes_max = 32 * 1024;
    let harness = Harness::start_with(config).await;
    let mut producer = harness.producer("orders", "p").await;
    let mut lazy = harness.consumer("orders", "lazy").await;
    lazy.port.credit(u64::MAX, u64::MAX).await.unwrap();
    let mut busy = harness.consumer("orders", "busy").await;
    let payload = "x".repeat(1024);
    for number in 0..300_u64 {
        producer.publish(&[&payload]).await;
        assert_eq!(busy.take(1).await[0].0, number);
    }
    let stats = harness.stats("orders").await;
    let pending = |wanted: &str| {
        let found = stats.subscriptions.iter().find(|s| s.name == wanted);
        found.unwrap().unacknowledged_messages
    };
    assert_eq!(pending("busy"), 300);
    assert!(pending("lazy") <= 40, "{} were handed out", pending("lazy"));
    // It has lost nothing by being late.
    let mut taken = 0;
    while taken < 300 {
        if let ConsumerEvent::Deliveries { deliveries, .. } = lazy.event().await {
            for delivery in deliveries {
                assert_eq!(delivery.at.base_index, Index(taken));
                taken += 1;
            }
        }
    }
}

#[tokio::test]
async fn an_exclusive_subscription_has_one_consumer_and_redelivers_when_it_leaves() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    producer.publish(&["a", "b"]).await;
    let mut first = harness.consumer("orders", "s").await;
    assert_eq!(first.take_payloads(2).await, ["a", "b"]);
    let second = harness.try_subscribe(subscribe("orders", "s")).await;
    assert_eq!(kind(&second), Some(ErrorKind::FailedPrecondition));
    drop(first);
    let mut second = eventually("the subscription to be free", || async {
        harness.try_subscribe(subscribe("orders", "s")).await.ok()
    })
    .await;
    assert_eq!(second.take_payloads(2).await, ["a", "b"]);
}

#[tokio::test]
async fn failover_serves_one_and_tells_who() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    producer.publish(&["a"]).await;
    let failover = |priority| Subscribe {
        kind: SubscriptionType::Failover,
        priority,
        ..subscribe("orders", "s")
    };
    let mut first = harness.try_subscribe(failover(0)).await.unwrap();
    let mut second = harness.try_subscribe(failover(1)).await.unwrap();
    assert_eq!(first.event().await, ConsumerEvent::Active(true));
    assert_eq!(second.event().await, ConsumerEvent::Active(false));
    second.grant(10).await;
    assert_eq!(first.take_payloads(1).await, ["a"]);
    drop(first);
    assert_eq!(second.event().await, ConsumerEvent::Active(true));
    assert_eq!(second.take_payloads(1).await, ["a"]);
}

#[tokio::test]
async fn shared_consumers_split_messages_and_negative_acks_come_again() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    let shared = || Subscribe {
        kind: SubscriptionType::Shared,
        ..subscribe("orders", "s")
    };
    let mut one = harness.try_subscribe(shared()).await.unwrap();
    let mut two = harness.try_subscribe(shared()).await.unwrap();
    one.grant(1).await;
    two.grant(1).await;
    producer.publish(&["a"]).await;
    producer.publish(&["b"]).await;
    let mut taken = one.take(1).await;
    taken.extend(two.take(1).await);
    taken.sort();
    assert_eq!(taken, [(0, "a".to_owned()), (1, "b".to_owned())]);
    let index = Index(0);
    for consumer in [&mut one, &mut two] {
        let negative = NegativeAcknowledge {
            owner_epoch: consumer.opened.owner_epoch,
            seek_epoch: consumer.seek_epoch,
            ranges: vec![IndexRange {
                first: index,
                last: index,
            }],
        };
        consumer.port.negative_acknowledge(negative).await.unwrap();
    }
    one.grant(1).await;
    let ConsumerEvent::Deliveries { deliveries, .. } = one.event().await else {
        panic!("expected the message again");
    };
    assert_eq!(deliveries[0].at.base_index, index);
    assert_eq!(deliveries[0].redelivered[0].count, 1);
}

#[tokio::test]
async fn a_reader_begins_where_it_says_and_leaves_nothing_behind() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    for payload in ["a", "b", "c"] {
        producer.publish(&[payload]).await;
    }
    let position = producer.publish(&["d", "e"]).await.stored.unwrap();
    let mut at_index = harness.reader("orders", Place::Index(Index(1))).await;
    assert_eq!(at_index.take_payloads(4).await, ["b", "c", "d", "e"]);
    let place = format!("{}:{}", position.ledger, position.entry);
    let mut at_position = harness.reader("orders", place.parse().unwrap()).await;
    assert_eq!(at_position.take_payloads(2).await, ["d", "e"]);
    let mut within = harness.reader("orders", Place::Index(Index(4))).await;
    assert_eq!(within.take(1).await, [(4, "e".to_owned())]);
    let mut latest = harness.reader("orders", Place::Latest).await;
    producer.publish(&["f"]).await;
    assert_eq!(latest.take_payloads(1).await, ["f"]);
    drop((at_index, at_position, within, latest));
    until("the readers to be gone", || async {
        harness.stats("orders").await.subscriptions.is_empty()
    })
    .await;
}

#[tokio::test]
async fn deleting_a_subscription_ends_it_for_good() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    producer.publish(&["a"]).await;
    let mut consumer = harness.consumer("orders", "s").await;
    let s = || "s".parse().unwrap();
    let delete = |force| {
        let broker = &harness.broker;
        async move {
            broker
                .delete_subscription(&ctx(), name("orders"), s(), force)
                .await
        }
    };
    assert_eq!(
        kind(&delete(false).await),
        Some(ErrorKind::FailedPrecondition)
    );
    delete(true).await.unwrap();
    assert_eq!(consumer.error().await.kind, ErrorKind::NotFound);
    assert_eq!(kind(&delete(true).await), Some(ErrorKind::NotFound));
    let harness = harness.restart().await;
    assert!(harness.stats("orders").await.subscriptions.is_empty());
}

/// A client that lost its connection, which the broker has not noticed yet, comes back: it does not
/// wait for itself, and what it held comes to it again.
#[tokio::test]
async fn a_consumer_that_comes_back_replaces_its_own_session_at_once() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    producer.publish(&["a"]).await;
    for (own, kind_of) in [
        (1, SubscriptionType::Exclusive),
        (3, SubscriptionType::Failover),
        (5, SubscriptionType::Shared),
    ] {
        // An instance has one session on a topic, whatever it is subscribed to.
        let session = |number, epoch| Subscribe {
            kind: kind_of,
            instance: Some(ConsumerInstance([number; 16])),
            epoch,
            ..subscribe("orders", &format!("{kind_of:?}"))
        };
        let mut cut_off = harness.try_subscribe(session(own, 1)).await.unwrap();
        assert_eq!(cut_off.take_payloads(1).await, ["a"]);
        let mut back = harness.try_subscribe(session(own, 2)).await.unwrap();
        assert_eq!(cut_off.error().await.kind, ErrorKind::Fenced);
        assert_eq!(back.take_payloads(1).await, ["a"], "{kind_of:?}");
        // What it asked for before it came back arrives late.
        let late = harness.try_subscribe(session(own, 1)).await;
        assert_eq!(kind(&late), Some(ErrorKind::Fenced));
        let rival = harness.try_subscribe(session(own + 1, 9)).await;
        let refused =
            (kind_of == SubscriptionType::Exclusive).then_some(ErrorKind::FailedPrecondition);
        assert_eq!(kind(&rival), refused);
        back.acknowledge(&[0], None).await;
    }
}

/// A reader's sessions are subscriptions of their own: the one before must not stay behind.
#[tokio::test]
async fn a_reader_that_comes_back_replaces_its_own_session_at_once() {
    let harness = Harness::start().await;
    let session = |epoch| Subscribe {
        subscription: None,
        instance: Some(ConsumerInstance([1; 16])),
        epoch,
        ..subscribe("orders", "unused")
    };
    let mut cut_off = harness.try_subscribe(session(1)).await.unwrap();
    let _back = harness.try_subscribe(session(2)).await.unwrap();
    assert_eq!(cut_off.error().await.kind, ErrorKind::Fenced);
    assert_eq!(harness.stats("orders").await.subscriptions.len(), 1);
}

/// What is wrong with one request is its own answer: the session, its other requests and what it
/// holds stay as they are.
#[tokio::test]
async fn a_refused_request_does_not_end_its_session() {
    let harness = Harness::start().await;
    for (topic, subscription) in [("one", Some("s".parse().unwrap())), ("two", None)] {
        let mut producer = harness.producer(topic, "p").await;
        producer.publish(&["a"]).await;
        let request = Subscribe {
            subscription,
            ..subscribe(topic, "unused")
        };
        let mut consumer = harness.try_subscribe(request).await.unwrap();
        assert_eq!(consumer.take_payloads(1).await, ["a"]);
        let never_delivered = consumer.ack(&[7], None);
        let sent = never_delivered.request_id;
        consumer.port.acknowledge(never_delivered).await.unwrap();
        match consumer.event().await {
            ConsumerEvent::AcknowledgeRefused { request_id, error } => {
                assert_eq!((request_id, error.kind), (sent, ErrorKind::InvalidArgument));
            }
            other => panic!("{other:?}"),
        }
        consumer
            .port
            .seek(9, "77:3".parse().unwrap())
            .await
            .unwrap();
        match consumer.event().await {
            ConsumerEvent::SeekRefused { request_id, error } => {
                assert_eq!((request_id, error.kind), (9, ErrorKind::InvalidArgument));
            }
            other => panic!("{other:?}"),
        }
        producer.publish(&["b"]).await;
        assert_eq!(consumer.take_payloads(1).await, ["b"]);
        consumer.acknowledge(&[0, 1], None).await;
        assert_eq!(consumer.seek(Place::Earliest).await, Index(0));
        producer.publish(&["c"]).await;
        assert_eq!(consumer.take_payloads(3).await, ["a", "b", "c"]);
    }
}

/// A client that closes and opens again does not meet itself: its end takes effect before what it
/// asks for next, though not before what it asked for until then.
#[tokio::test]
async fn a_subscription_is_free_when_its_consumer_has_closed() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    for payload in ["a", "b"] {
        producer.publish(&[payload]).await;
    }
    let mut consumer = harness.consumer("orders", "s").await;
    assert_eq!(consumer.take_payloads(2).await, ["a", "b"]);
    let ack = consumer.ack(&[0], None);
    consumer.port.acknowledge(ack).await.unwrap();
    drop(consumer);
    let mut consumer = harness.consumer("orders", "s").await;
    assert_eq!(consumer.take_payloads(1).await, ["b"]);
}
