//! Topics come and go: loading, unloading, deletion, the end of the broker.

use std::sync::Arc;

use aquifer_metadata::keys;
use aquifer_metadata::store::MetadataStore;
use aquifer_model::id::Index;
use aquifer_model::place::Place;
use aquifer_model::stats::LedgerPlace;
use aquifer_protocol_api::admin::{Admin, Deletion};
use aquifer_protocol_api::error::ErrorKind;
use aquifer_protocol_api::producer::OpenProducer;

use crate::support::{Harness, ctx, eventually, instance, kind, known, name, open, soon, until};

#[tokio::test]
async fn an_idle_topic_is_unloaded_and_comes_back_as_it_was() {
    let mut config = crate::support::config();
    config.topic_idle_ms = 1;
    let harness = Harness::start_with(config).await;
    let mut producer = harness.producer("orders", "p").await;
    producer.publish(&["a", "b"]).await;
    let mut consumer = harness.consumer("orders", "s").await;
    consumer.take(2).await;
    consumer.acknowledge(&[], Some(0)).await;
    drop((producer, consumer));
    // Counters begin at zero with the object, so they tell that it was replaced.
    until("the topic to be unloaded", || async {
        tokio::time::sleep(std::time::Duration::from_millis(120)).await;
        harness.stats("orders").await.messages_in == 0
    })
    .await;
    let mut consumer = harness.consumer("orders", "s").await;
    assert_eq!(consumer.take_payloads(1).await, ["b"]);
    let producer = harness.producer("orders", "p").await;
    assert_eq!(producer.opened.last_sequence_id, Some(1));
}

/// Statistics of a topic without clients need it loaded, and leave everything as it was.
#[tokio::test]
async fn statistics_of_an_unloaded_topic_write_nothing_and_do_not_keep_it() {
    let mut config = crate::support::config();
    config.topic_idle_ms = 100;
    let harness = Harness::start_with(config).await;
    let mut producer = harness.producer("orders", "p").await;
    producer.publish(&["a", "b", "c"]).await;
    let mut consumer = harness.consumer("orders", "s").await;
    consumer.take(3).await;
    consumer.acknowledge(&[], Some(0)).await;
    drop((producer, consumer));
    let harness = harness.restart().await;
    let world = &harness.world;
    let (bookie, key) = (world.bookies.ids()[0], keys::topic(&name("orders")));
    let record = || async { world.store.get(&key).await.unwrap() };
    let (before, ledgers) = (record().await, world.bookies.ledgers(bookie));
    let reads = || world.bookies.reads().requests;
    for _ in 0..3 {
        let before = reads();
        // Each load reads the cursor log: the one before did not keep the topic.
        let stats = eventually("statistics of a topic loaded again", || async {
            let stats = harness.stats("orders").await;
            (reads() > before).then_some(stats)
        })
        .await;
        let subscription = &stats.subscriptions[0];
        assert_eq!((stats.first_index, stats.end_index), (Index(0), Index(3)));
        assert_eq!(subscription.mark_delete, Index(1));
        assert_eq!(subscription.backlog_messages, 2);
        assert!(
            stats
                .ledgers
                .iter()
                .all(|ledger| ledger.state == LedgerPlace::Closed)
        );
    }
    assert_eq!(record().await, before);
    assert_eq!(world.bookies.ledgers(bookie), ledgers);
    let unknown = harness.broker.topic_stats(&ctx(), name("unknown")).await;
    assert_eq!(kind(&unknown), Some(ErrorKind::NotFound));
    let unknown = keys::topic(&name("unknown"));
    assert_eq!(world.store.get(&unknown).await.unwrap(), None);
}

#[tokio::test]
async fn many_requests_at_once_load_a_topic_once() {
    let harness = Arc::new(Harness::start().await);
    let opening = (0..20).map(|n| {
        let harness = Arc::clone(&harness);
        async move { harness.producer("orders", &format!("p{n}")).await }
    });
    let mut lives = Vec::new();
    for producer in futures_join(opening).await {
        lives.push(producer.opened.incarnation);
    }
    lives.dedup();
    assert_eq!(lives.len(), 1);
}

async fn futures_join<F>(futures: impl Iterator<Item = F>) -> Vec<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    let group = aquifer_runtime::task::TaskGroup::new("test");
    let handles: Vec<_> = futures.map(|future| group.spawn("open", future)).collect();
    let mut outcomes = Vec::new();
    for handle in handles {
        outcomes.push(handle.await.unwrap());
    }
    outcomes
}

#[tokio::test]
async fn deletion_needs_force_while_clients_are_there_and_begins_another_life() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    let mut consumer = harness.consumer("orders", "s").await;
    producer.publish(&["a"]).await;
    let life = producer.opened.incarnation;
    let delete = |force| {
        let broker = &harness.broker;
        let how = if force {
            Deletion::Force
        } else {
            Deletion::IfUnused
        };
        async move { broker.delete_topic(&ctx(), name("orders"), how).await }
    };
    assert_eq!(
        kind(&delete(false).await),
        Some(ErrorKind::FailedPrecondition)
    );
    producer.publish(&["b"]).await;
    soon("deletion", delete(true)).await.unwrap();
    assert_eq!(producer.error().await.kind, ErrorKind::NotFound);
    assert_eq!(consumer.error().await.kind, ErrorKind::NotFound);
    let bookie = harness.world.bookies.ids()[0];
    until("the ledgers to be deleted", || async {
        harness.world.bookies.ledgers(bookie).is_empty()
    })
    .await;
    // A producer that knew the former life is not let into a new one.
    let back = known(life, open("orders", "p"));
    assert!(harness.try_producer(back.clone()).await.is_err());
    let mut fresh = harness.producer("orders", "q").await;
    assert_ne!(fresh.opened.incarnation, life);
    assert_eq!(
        kind(&harness.try_producer(back).await),
        Some(ErrorKind::Incarnation)
    );
    assert_eq!(
        fresh.publish(&["c"]).await.stored.unwrap().base_index,
        Index(0)
    );
    assert!(harness.stats("orders").await.subscriptions.is_empty());
}

#[tokio::test]
async fn a_shutdown_answers_what_is_in_flight_and_sends_clients_away() {
    let harness = Harness::start().await;
    let bookie = harness.world.bookies.ids()[0];
    let mut producer = harness.producer("orders", "p").await;
    let mut consumer = harness.consumer("orders", "s").await;
    producer.publish(&["a"]).await;
    harness.world.bookies.hold(bookie);
    producer.send(&["b"]).await;
    until("the add to be in flight", || async {
        harness.world.bookies.held(bookie) > 0
    })
    .await;
    let broker = Arc::clone(&harness.broker);
    let stopping = harness
        .tasks
        .spawn("stop", async move { broker.shutdown().await });
    until("the broker to refuse", || async {
        kind(&harness.try_producer(open("orders", "q")).await) == Some(ErrorKind::Unavailable)
    })
    .await;
    harness.world.bookies.release(bookie);
    assert!(producer.receipt().await.is_ok());
    assert_eq!(producer.error().await.kind, ErrorKind::Unavailable);
    assert_eq!(consumer.error().await.kind, ErrorKind::Unavailable);
    soon("the end", stopping).await.unwrap();
    let again = Harness::in_world(harness.world.clone(), crate::support::config()).await;
    let mut reader = again.reader("orders", Place::Earliest).await;
    assert_eq!(reader.take_payloads(2).await, ["a", "b"]);
    assert!(
        again
            .stats("orders")
            .await
            .ledgers
            .iter()
            .all(|ledger| ledger.state == LedgerPlace::Closed),
        "the ledger was sealed"
    );
}

#[tokio::test]
async fn epochs_grow_with_every_start() {
    let harness = Harness::start().await;
    let first = harness.producer("orders", "p").await.opened.owner_epoch;
    let harness = harness.restart().await;
    let again = OpenProducer {
        instance: instance(2),
        ..open("orders", "p")
    };
    let second = harness.try_producer(again).await.unwrap();
    assert!(second.opened.owner_epoch > first);
}
