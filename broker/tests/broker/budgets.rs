//! I13: what is shared has a bound, and a user that keeps its part leaves one to the others.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use aquifer_broker::BrokerConfig;
use aquifer_ledger::context::LedgerSettings;
use aquifer_ledger::testing::TestWorld;
use aquifer_log::context::LogSettings;
use aquifer_model::id::BookieId;
use aquifer_model::policy::Policies;
use aquifer_model::topic::NamespaceName;
use aquifer_protocol_api::admin::Admin;
use aquifer_protocol_api::consumer::{ConsumerEvent, Delivery};

use crate::support::{Consumer, Harness, Producer, config, ctx, soon};

/// A broker over two bookies that may be silent for long.
async fn patient(config: BrokerConfig, pending_bytes_per_log_max: usize) -> Harness {
    let mut world = TestWorld::new(2);
    world.clock = None;
    let settings = LedgerSettings {
        request_timeout: Duration::from_secs(600),
        ..TestWorld::settings()
    };
    let (store, transport) = (world.store.clone(), world.bookies.clone());
    let ledgers = world.process_with(Arc::new(store), Arc::new(transport), settings);
    let logs = LogSettings {
        pending_bytes_per_log_max,
        ..LogSettings::default()
    };
    Harness::over(world, config, aquifer_log::testing::over(ledgers, logs)).await
}

/// A producer that has published, and the bookie that stores its topic.
async fn stored(harness: &Harness, topic: &str) -> (Producer, BookieId) {
    let bookies = &harness.world.bookies;
    let ids = bookies.ids();
    let counts = || ids.iter().map(|id| bookies.ledgers(*id).len());
    let before: Vec<usize> = counts().collect();
    let mut producer = harness.producer(topic, "p").await;
    producer.publish(&["first"]).await;
    let grown = counts().zip(before).position(|(now, then)| now > then);
    (producer, ids[grown.expect("it has a ledger")])
}

/// Polls a future until everything that can happen without it has happened.
async fn until_held_back<F: Future>(mut future: std::pin::Pin<&mut F>) {
    for _ in 0..5_000 {
        let polled = std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context)));
        assert!(polled.await.is_pending(), "it was to be held back");
        tokio::task::yield_now().await;
    }
}

/// One topic whose storage gives no answer stopped publishing to all.
#[tokio::test]
async fn a_topic_whose_storage_stalls_does_not_stop_the_others() {
    let config = BrokerConfig {
        publish_bytes_in_flight_max: 1 << 20,
        ..config()
    };
    let harness = patient(config, 32 << 20).await;
    let (mut stalled, bookie) = stored(&harness, "stalled").await;
    let mut moving = None;
    for attempt in 0..100 {
        let (producer, other) = stored(&harness, &format!("moving-{attempt}")).await;
        if other != bookie {
            moving = Some(producer);
            break;
        }
    }
    let mut moving = moving.expect("the other bookie gets a ledger");
    harness.world.bookies.hold(bookie);
    let payload = "x".repeat(64 * 1024);
    let filling = async {
        for _ in 0..64 {
            stalled.send(&[&payload]).await;
        }
        stalled
    };
    let mut filling = Box::pin(filling);
    until_held_back(filling.as_mut()).await;
    assert!(harness.world.bookies.held(bookie) > 0);
    for _ in 0..20 {
        moving.publish(&["on"]).await;
        moving.publish(&[&payload]).await;
    }
    harness.world.bookies.release(bookie);
    let mut stalled = soon("the rest", filling).await;
    for _ in 0..64 {
        stalled.receipt().await.unwrap();
    }
}

/// Topics of one tenant that stall took, together, what the topics of all others needed.
#[tokio::test]
async fn a_tenant_whose_topics_all_stall_leaves_room_to_another() {
    const STALLED: usize = 20;
    const BATCHES: usize = 64;
    let config = BrokerConfig {
        publish_bytes_in_flight_max: 1 << 20,
        ..config()
    };
    let harness = patient(config, 32 << 20).await;
    let context = ctx();
    let created = harness.broker.create_tenant(&context, "acme".to_owned());
    created.await.unwrap();
    let name = NamespaceName::new("acme", "shop").unwrap();
    let created = harness
        .broker
        .create_namespace(&context, name, Policies::default());
    created.await.unwrap();
    let (mut moving, kept) = stored(&harness, "acme/shop/moving").await;
    let (mut stalled, mut bookie) = (Vec::new(), None);
    for attempt in 0..500 {
        let (producer, of) = stored(&harness, &format!("stalled-{attempt}")).await;
        if of != kept {
            stalled.push(producer);
            bookie = Some(of);
        }
        if stalled.len() == STALLED {
            break;
        }
    }
    let bookie = bookie.expect("the other bookie gets ledgers");
    harness.world.bookies.hold(bookie);
    let payload = "x".repeat(16 * 1024);
    let filling = |mut producer: Producer| {
        let payload = payload.clone();
        Box::pin(async move {
            for _ in 0..BATCHES {
                producer.send(&[&payload]).await;
            }
            producer
        })
    };
    let mut filling: Vec<_> = stalled.into_iter().map(filling).collect();
    for filling in &mut filling {
        until_held_back(filling.as_mut()).await;
    }
    for _ in 0..20 {
        moving.publish(&["on"]).await;
        moving.publish(&[&payload, &payload]).await;
    }
    harness.world.bookies.release(bookie);
    let all = futures::future::join_all(filling);
    for mut producer in soon("the rest", all).await {
        for _ in 0..BATCHES {
            producer.receipt().await.unwrap();
        }
    }
}

/// The heads of small batches counted only where the log refuses, which ended the session.
#[tokio::test]
async fn a_busy_topic_of_small_batches_is_slowed_and_not_refused() {
    let harness = patient(config(), 64 * 1024).await;
    let (mut producer, bookie) = stored(&harness, "busy").await;
    harness.world.bookies.hold(bookie);
    const BATCHES: usize = 900;
    let sending = async {
        for _ in 0..BATCHES {
            producer.send(&["x"]).await;
        }
        producer
    };
    let mut sending = Box::pin(sending);
    until_held_back(sending.as_mut()).await;
    harness.world.bookies.release(bookie);
    let mut producer = soon("the rest", sending).await;
    for _ in 0..BATCHES {
        producer.receipt().await.unwrap();
    }
}

fn take_ready(consumer: &mut Consumer, into: &mut Vec<Delivery>) {
    while let Ok(event) = consumer.events.try_recv() {
        if let ConsumerEvent::Deliveries { deliveries, .. } = event {
            into.extend(deliveries);
        }
    }
}

/// H5: each consumer that read nothing held its own eight megabytes.
#[tokio::test]
async fn consumers_that_read_nothing_share_a_budget_and_leave_room_to_one_that_reads() {
    const BUDGET: usize = 512 * 1024;
    const MESSAGES: u64 = 400;
    let config = BrokerConfig {
        read_bytes_in_flight_max: BUDGET,
        ..config()
    };
    let harness = Harness::start_with(config).await;
    let mut producer = harness.producer("orders", "p").await;
    let payload = "x".repeat(1024);
    let mut lazy = Vec::new();
    for number in 0..40 {
        let mut consumer = harness.consumer("orders", &format!("lazy-{number}")).await;
        consumer.port.credit(u64::MAX, u64::MAX).await.unwrap();
        lazy.push(consumer);
    }
    let mut busy = harness.consumer("orders", "busy").await;
    for number in 0..MESSAGES {
        producer.publish(&[&payload]).await;
        assert_eq!(busy.take(1).await[0].0, number, "one that reads goes on");
    }
    let mut held = Vec::new();
    for consumer in &mut lazy {
        take_ready(consumer, &mut held);
    }
    let bytes: usize = held.iter().map(|delivery| delivery.body.len()).sum();
    assert!(
        !held.is_empty() && bytes <= BUDGET,
        "{bytes} bytes are held"
    );
    // What they take makes room for more, to the last message of the last one.
    let mut taken = held.len();
    drop(held);
    let all = usize::try_from(MESSAGES).unwrap() * lazy.len();
    soon("everything", async {
        while taken < all {
            let mut more = Vec::new();
            for consumer in &mut lazy {
                take_ready(consumer, &mut more);
            }
            taken += more.len();
            drop(more);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}
