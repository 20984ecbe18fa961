//! What a subscription remembers: acknowledgements, seeks, and what trimming makes of them.

use aquifer_ledger::testing::Mode;
use aquifer_model::id::Index;
use aquifer_model::limits::SUBSCRIPTION_PROPERTIES_BYTES_MAX;
use aquifer_model::place::Place;
use aquifer_model::policy::{EffectivePolicies, Retention, Rollover};
use aquifer_model::subscription::{Properties, SubscriptionType};
use aquifer_protocol_api::admin::Admin;
use aquifer_protocol_api::consumer::{
    Acknowledge, ConsumerEvent, IndexRange, NegativeAcknowledge, Subscribe,
};
use aquifer_protocol_api::error::ErrorKind;

use crate::support::{Consumer, Harness, ctx, kind, name, soon, subscribe, until};

#[tokio::test]
async fn what_was_confirmed_is_not_delivered_again_i9() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    producer.publish(&["a", "b", "c", "d", "e", "f"]).await;
    let shared = || Subscribe {
        kind: SubscriptionType::Shared,
        ..subscribe("orders", "s")
    };
    let mut consumer = harness.try_subscribe(shared()).await.unwrap();
    consumer.take(6).await;
    consumer.acknowledge(&[1, 4], None).await;
    // Not stopped in order: the rival takes over while the first still believes to own it.
    let rival = harness.rival().await;
    let mut consumer = rival.try_subscribe(shared()).await.unwrap();
    assert_eq!(consumer.take_payloads(4).await, ["a", "c", "d", "f"]);
    consumer.acknowledge(&[0, 2, 3, 5], None).await;
    let harness = rival.restart().await;
    let stats = harness.stats("orders").await;
    assert_eq!(stats.subscriptions[0].mark_delete, Index(6));
    assert_eq!(stats.subscriptions[0].backlog_messages, 0);
}

#[tokio::test]
async fn cumulative_acks_survive_a_restart_i9() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    for payload in ["a", "b", "c"] {
        producer.publish(&[payload]).await;
    }
    let mut consumer = harness.consumer("orders", "s").await;
    consumer.take(3).await;
    consumer.acknowledge(&[], Some(1)).await;
    let harness = harness.restart().await;
    let mut consumer = harness.consumer("orders", "s").await;
    assert_eq!(consumer.opened.start, Index(2));
    assert_eq!(consumer.take_payloads(1).await, ["c"]);
}

#[tokio::test]
async fn a_subscription_exists_before_its_first_message_and_keeps_its_place_i9() {
    let harness = Harness::start().await;
    let latest = Subscribe {
        start: Place::Latest,
        ..subscribe("orders", "s")
    };
    drop(harness.try_subscribe(latest).await.unwrap());
    let harness = harness.restart().await;
    let mut producer = harness.producer("orders", "p").await;
    producer.publish(&["a"]).await;
    let mut consumer = harness.consumer("orders", "s").await;
    assert_eq!(consumer.take_payloads(1).await, ["a"]);
}

/// I9: what a seek makes void is confirmed when the seek is durable, not before: until then a
/// crash would undo the seek and deliver what was confirmed.
#[tokio::test]
async fn an_acknowledgement_that_a_seek_voids_is_confirmed_behind_it_i9() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    producer.publish(&["a", "b", "c"]).await;
    let mut consumer = harness.consumer("orders", "s").await;
    consumer.take(3).await;
    let bookie = harness.world.bookies.ids()[0];
    harness.world.bookies.hold(bookie);
    let old = consumer.ack(&[], Some(2));
    consumer
        .port
        .seek(100, Place::Index(Index(1)))
        .await
        .unwrap();
    consumer.port.acknowledge(old.clone()).await.unwrap();
    // The topic answers in order, so it has seen both.
    harness.stats("orders").await;
    harness.world.bookies.release(bookie);
    let mut is_moved = false;
    loop {
        match consumer.event().await {
            ConsumerEvent::SeekDone { .. } => is_moved = true,
            ConsumerEvent::Confirmed { request_id } => {
                assert_eq!((request_id, is_moved), (old.request_id, true));
                return;
            }
            _ => {}
        }
    }
}

/// H12: seek to 0, then an older cumulative acknowledgement arrives.
#[tokio::test]
async fn acknowledgements_from_before_a_seek_change_nothing_h12() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    for payload in ["a", "b", "c"] {
        producer.publish(&[payload]).await;
    }
    let mut consumer = harness.consumer("orders", "s").await;
    consumer.take(3).await;
    let old = consumer.ack(&[], Some(2));
    assert_eq!(consumer.seek(Place::Earliest).await, Index(0));
    consumer.port.acknowledge(old.clone()).await.unwrap();
    consumer.confirmed(old.request_id).await;
    let stats = harness.stats("orders").await;
    assert_eq!(stats.subscriptions[0].mark_delete, Index(0));
    assert_eq!(consumer.take_payloads(3).await, ["a", "b", "c"]);
    consumer.acknowledge(&[], Some(0)).await;
    let harness = harness.restart().await;
    let mut consumer = harness.consumer("orders", "s").await;
    assert_eq!(consumer.take_payloads(2).await, ["b", "c"]);
}

#[tokio::test]
async fn an_administrator_moves_a_subscription_and_its_consumers_follow() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    for payload in ["a", "b", "c"] {
        producer.publish(&[payload]).await;
    }
    let mut consumer = harness.consumer("orders", "s").await;
    consumer.take(3).await;
    consumer.acknowledge(&[], Some(2)).await;
    let moved = harness
        .broker
        .seek_subscription(
            &ctx(),
            name("orders"),
            "s".parse().unwrap(),
            Place::Index(Index(1)),
        )
        .await
        .unwrap();
    assert_eq!(moved, Index(1));
    loop {
        if let ConsumerEvent::SeekDone {
            request_id,
            seek_epoch,
            index,
        } = consumer.event().await
        {
            assert_eq!((request_id, index), (0, Index(1)));
            consumer.seek_epoch = seek_epoch;
            break;
        }
    }
    assert_eq!(consumer.take_payloads(2).await, ["b", "c"]);
}

#[tokio::test]
async fn confirmations_wait_until_the_cursor_log_can_be_written_i9() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    producer.publish(&["a", "b"]).await;
    let mut consumer = harness.consumer("orders", "s").await;
    consumer.take(2).await;
    harness.world.bookies.set_all(Mode::ReadOnly);
    let ack = consumer.ack(&[], Some(0));
    consumer.port.acknowledge(ack.clone()).await.unwrap();
    // The topic has seen it, and it is not confirmed.
    let stats = harness.stats("orders").await;
    assert_eq!(stats.subscriptions[0].mark_delete, Index(1));
    harness.stats("orders").await;
    assert!(consumer.events.is_empty());
    harness.world.bookies.set_all(Mode::Up);
    consumer.confirmed(ack.request_id).await;
    let harness = harness.restart().await;
    let mut consumer = harness.consumer("orders", "s").await;
    assert_eq!(consumer.take_payloads(1).await, ["b"]);
}

/// I13: while the cursor log cannot be written, what waits for it has a bound. Requests beyond it
/// are refused one by one: the sessions of others go on, and succeed when it can be written.
#[tokio::test]
async fn what_waits_for_the_cursor_log_is_bounded() {
    // More than 16 MiB of them.
    const SEEKS: u64 = 300_000;
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    producer.publish(&["a", "b"]).await;
    let mut consumer = harness.consumer("orders", "s").await;
    assert_eq!(consumer.take_payloads(2).await, ["a", "b"]);
    let mut flood = harness.consumer("orders", "flood").await;
    let bookie = harness.world.bookies.ids()[0];
    harness.world.bookies.hold(bookie);
    let mut asked = 0;
    let refused = loop {
        if let Ok(ConsumerEvent::SeekRefused { error, .. }) = flood.events.try_recv() {
            break error;
        }
        assert!(asked < SEEKS, "all of them wait");
        asked += 1;
        let place = Place::Index(Index(asked % 3));
        flood.port.seek(asked, place).await.unwrap();
    };
    assert_eq!(refused.kind, ErrorKind::Overloaded);
    assert_eq!(
        acknowledged(&mut consumer).await,
        Err(ErrorKind::Overloaded)
    );
    harness.world.bookies.release(bookie);
    while let Err(kind) = acknowledged(&mut consumer).await {
        assert_eq!(kind, ErrorKind::Overloaded);
    }
    let harness = harness.restart().await;
    assert_eq!(harness.stats("orders").await.subscriptions.len(), 2);
    producer = harness.producer("orders", "p").await;
    producer.publish(&["c"]).await;
    let mut consumer = harness.consumer("orders", "s").await;
    assert_eq!(consumer.take_payloads(1).await, ["c"]);
}

/// Acknowledges two messages once more.
async fn acknowledged(consumer: &mut Consumer) -> Result<(), ErrorKind> {
    let ack = consumer.ack(&[], Some(1));
    let id = ack.request_id;
    consumer.port.acknowledge(ack).await.unwrap();
    loop {
        match consumer.event().await {
            ConsumerEvent::Confirmed { request_id } if request_id == id => return Ok(()),
            ConsumerEvent::AcknowledgeRefused { request_id, error } if request_id == id => {
                return Err(error.kind);
            }
            ConsumerEvent::Active(_) => {}
            other => panic!("expected an answer, got {other:?}"),
        }
    }
}

fn keep_nothing(entries: u64) -> EffectivePolicies {
    EffectivePolicies {
        retention: Retention {
            time_ms: Some(0),
            size_bytes: Some(0),
        },
        rollover: Rollover {
            entries,
            ..Rollover::default()
        },
        ..EffectivePolicies::default()
    }
}

#[tokio::test]
async fn trimming_follows_the_slowest_durable_acknowledgement_h11() {
    let harness = Harness::start().await;
    harness.set_policies(keep_nothing(5)).await;
    let mut producer = harness.producer("orders", "p").await;
    let mut fast = harness.consumer("orders", "fast").await;
    let mut slow = harness.consumer("orders", "slow").await;
    for number in 0..20 {
        producer.publish(&[&format!("m{number}")]).await;
    }
    fast.take(20).await;
    fast.acknowledge(&[], Some(19)).await;
    slow.take(20).await;
    slow.acknowledge(&[], Some(11)).await;
    until("two ledgers to be trimmed", || async {
        harness.stats("orders").await.first_index == Index(10)
    })
    .await;
    // After a restart nothing is trimmed that the slow one has not acknowledged.
    let harness = harness.restart().await;
    let mut slow = harness.consumer("orders", "slow").await;
    let taken = slow.take(8).await;
    assert_eq!(taken[0], (12, "m12".to_owned()));
    assert!(harness.stats("orders").await.first_index <= Index(12));
}

#[tokio::test]
async fn without_subscriptions_trimming_still_keeps_what_deduplication_needs_h11() {
    let harness = Harness::start().await;
    harness.set_policies(keep_nothing(5)).await;
    let mut producer = harness.producer("orders", "p").await;
    for number in 0..20 {
        producer.publish(&[&format!("m{number}")]).await;
    }
    until("old ledgers to be trimmed", || async {
        harness.stats("orders").await.first_index >= Index(15)
    })
    .await;
    let rival = harness.rival().await;
    let producer = rival.producer("orders", "p").await;
    assert_eq!(producer.opened.last_sequence_id, Some(19));
}

#[tokio::test]
async fn the_cursor_log_is_rolled_and_trimmed_and_still_adds_up_i9() {
    let mut config = crate::support::config();
    config.cursor_log_bytes_max = 2048;
    let harness = Harness::start_with(config).await;
    let mut producer = harness.producer("orders", "p").await;
    let messages: Vec<String> = (0..200).map(|n| format!("m{n}")).collect();
    let refs: Vec<&str> = messages.iter().map(String::as_str).collect();
    producer.publish(&refs).await;
    let shared = Subscribe {
        kind: SubscriptionType::Shared,
        ..subscribe("orders", "s")
    };
    let mut consumer = harness.try_subscribe(shared.clone()).await.unwrap();
    consumer.take(200).await;
    let bookie = harness.world.bookies.ids()[0];
    for index in (0..200).filter(|index| index % 3 != 0) {
        consumer.acknowledge(&[index], None).await;
    }
    until("old cursor ledgers to be deleted", || async {
        harness.world.bookies.ledgers(bookie).len() <= 4
    })
    .await;
    let rival = harness.rival().await;
    let mut consumer = rival.try_subscribe(shared).await.unwrap();
    let expected: Vec<String> = (0..200)
        .filter(|n| n % 3 == 0)
        .map(|n| format!("m{n}"))
        .collect();
    assert_eq!(consumer.take_payloads(67).await, expected);
}

/// A client may acknowledge and close at once: what it acknowledged counts, and the confirmations
/// that it asked for still come.
#[tokio::test]
async fn acknowledgements_right_before_an_orderly_close_count() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    let payloads: Vec<String> = (0..50).map(|number| number.to_string()).collect();
    for payload in &payloads {
        producer.publish(&[payload]).await;
    }
    let mut consumer = harness.consumer("orders", "s").await;
    consumer.take(50).await;
    for index in 0..49 {
        let ack = Acknowledge {
            request_id: 0,
            ..consumer.ack(&[index], None)
        };
        consumer.port.acknowledge(ack).await.unwrap();
    }
    let last = consumer.ack(&[49], None);
    let last_id = last.request_id;
    consumer.port.acknowledge(last).await.unwrap();
    drop(consumer.port);
    let mut told = Vec::new();
    while let Some(event) = soon("the rest", consumer.events.recv()).await {
        told.push(event);
    }
    let request_id = last_id;
    assert_eq!(told, [ConsumerEvent::Confirmed { request_id }]);
    let harness = harness.restart().await;
    let stats = harness.stats("orders").await;
    assert_eq!(stats.subscriptions[0].backlog_messages, 0);
}

/// Creating a subscription records its place, and says nothing of consumers: the first consumer
/// decides how it is shared, and nothing was delivered before.
#[tokio::test]
async fn a_subscription_can_be_created_without_a_consumer() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    producer.publish(&["a", "b", "c"]).await;
    let create = |topic: &str, place: &str| {
        let (topic, place) = (name(topic), place.parse().unwrap());
        let broker = &harness.broker;
        async move {
            let name = "s".parse().unwrap();
            broker
                .create_subscription(&ctx(), topic, name, place, Default::default())
                .await
        }
    };
    assert_eq!(create("orders", "1").await, Ok(Index(1)));
    let again = create("orders", "latest").await;
    assert_eq!(kind(&again), Some(ErrorKind::AlreadyExists));
    let nowhere = create("other", "77:3").await;
    assert_eq!(kind(&nowhere), Some(ErrorKind::InvalidArgument));
    assert!(harness.stats("other").await.subscriptions.is_empty());

    let harness = harness.restart().await;
    let stats = harness.stats("orders").await;
    assert_eq!(stats.subscriptions[0].backlog_messages, 2);
    let failover = Subscribe {
        kind: SubscriptionType::Failover,
        ..subscribe("orders", "s")
    };
    let mut consumer = harness.try_subscribe(failover).await.unwrap();
    assert_eq!(consumer.event().await, ConsumerEvent::Active(true));
    consumer.grant(10).await;
    match consumer.event().await {
        ConsumerEvent::Deliveries { deliveries, .. } => {
            assert_eq!(deliveries[0].redelivered, []);
        }
        other => panic!("{other:?}"),
    }
}

/// What its creator says of a subscription stays with it, whichever broker serves it.
#[tokio::test]
async fn properties_of_a_subscription_survive_the_owner() {
    let harness = Harness::start().await;
    let of = |value: &str| Properties::from([("team".to_owned(), value.to_owned())]);
    let create = |properties| {
        let (broker, subscription) = (&harness.broker, "s".parse().unwrap());
        let topic = name("orders");
        async move {
            let place = Place::Earliest;
            broker
                .create_subscription(&ctx(), topic, subscription, place, properties)
                .await
        }
    };
    let large = create(of(&"x".repeat(SUBSCRIPTION_PROPERTIES_BYTES_MAX))).await;
    assert_eq!(kind(&large), Some(ErrorKind::InvalidArgument));
    assert_eq!(create(of("blue")).await, Ok(Index(0)));
    drop(harness.consumer("orders", "s").await);
    let stats = harness.stats("orders").await;
    assert_eq!(stats.subscriptions[0].properties, of("blue"));
    let harness = harness.restart().await;
    let stats = harness.stats("orders").await;
    assert_eq!(stats.subscriptions[0].properties, of("blue"));
}

/// The type that a subscription has got is recorded, and so is how often a message came that no
/// consumer acknowledges, when its owner ends in order.
#[tokio::test]
async fn type_and_redelivery_counts_survive_the_owner() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    producer.publish(&["a", "b"]).await;
    drop(harness.consumer("orders", "s").await);
    let shared = || Subscribe {
        kind: SubscriptionType::Shared,
        ..subscribe("orders", "s")
    };
    let mut consumer = harness.try_subscribe(shared()).await.unwrap();
    consumer.take(2).await;
    consumer.acknowledge(&[1], None).await;
    let negative = NegativeAcknowledge {
        owner_epoch: consumer.opened.owner_epoch,
        seek_epoch: consumer.seek_epoch,
        ranges: vec![IndexRange {
            first: Index(0),
            last: Index(0),
        }],
    };
    consumer.port.negative_acknowledge(negative).await.unwrap();
    consumer.take(1).await;

    let harness = harness.restart().await;
    let stats = harness.stats("orders").await;
    assert_eq!(stats.subscriptions[0].kind, SubscriptionType::Shared);
    let mut consumer = harness.try_subscribe(shared()).await.unwrap();
    consumer.grant(10).await;
    let ConsumerEvent::Deliveries { deliveries, .. } = consumer.event().await else {
        panic!("expected the message again");
    };
    assert_eq!(deliveries[0].at.base_index, Index(0));
    assert_eq!(deliveries[0].redelivered[0].count, 2);
}
