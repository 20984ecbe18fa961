//! Storage that fails, owners that were replaced.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aquifer_ledger::testing::{Mode, TestBookies, TestWorld};
use aquifer_ledger::transport::BookieTransport;
use aquifer_log::testing::TestLogs;
use aquifer_model::id::{BookieId, Index};
use aquifer_model::place::Place;
use aquifer_model::policy::{EffectivePolicies, Retention, Rollover};
use aquifer_model::storage::{
    BookieResult, OrderedRequest, Presence, PresenceRange, ReadBatch, ReadRange, ReplyCallback,
    TailState, TailWait,
};
use aquifer_model::subscription::SubscriptionType;
use aquifer_protocol_api::admin::Admin;
use aquifer_protocol_api::consumer::Subscribe;
use aquifer_protocol_api::error::ErrorKind;
use aquifer_protocol_api::producer::OpenProducer;
use async_trait::async_trait;
use tokio::sync::watch;

use crate::support::{Harness, config, ctx, kind, name, open, open_log, subscribe, until};

#[tokio::test]
async fn a_full_store_refuses_to_publish_and_goes_on_when_there_is_space() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    producer.publish(&["a"]).await;
    harness.world.bookies.set_all(Mode::ReadOnly);
    for epoch in 1..4 {
        let again = OpenProducer {
            epoch,
            ..open("orders", "p")
        };
        let mut producer = harness.try_producer(again).await.unwrap();
        producer.send(&["b"]).await;
        let error = producer.error().await;
        assert_eq!(error.kind, ErrorKind::StorageFull);
        assert!(error.advice.contains("disk space"), "{}", error.advice);
    }
    // What is stored can be read all the while.
    let mut reader = harness.reader("orders", Place::Earliest).await;
    assert_eq!(reader.take_payloads(1).await, ["a"]);
    harness.world.bookies.set_all(Mode::Up);
    harness.publish_at_last("orders", "p", &["b"]).await;
    assert_eq!(reader.take_payloads(1).await, ["b"]);
}

/// I4: a former owner acknowledges nothing any more, and its clients are told to come back.
#[tokio::test]
async fn a_replaced_owner_acknowledges_nothing_i4() {
    let old = Harness::start().await;
    let mut before = old.producer("orders", "p").await;
    before.publish(&["a"]).await;
    let new = old.rival().await;
    let mut after = new
        .try_producer(OpenProducer {
            epoch: 1,
            ..open("orders", "p")
        })
        .await
        .unwrap();
    assert_eq!(after.opened.last_sequence_id, Some(0));
    assert!(after.opened.owner_epoch > before.opened.owner_epoch);
    let _ = before
        .send_batch(crate::support::batch("p", 1, &["ghost"]))
        .await;
    let error = before.error().await;
    assert!(error.kind.is_retryable(), "{error:?}");
    after.publish(&["b"]).await;
    let mut reader = new.reader("orders", Place::Earliest).await;
    assert_eq!(reader.take_payloads(2).await, ["a", "b"]);
}

#[tokio::test]
async fn metadata_that_is_away_stops_changes_and_not_traffic() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    producer.publish(&["a"]).await;
    harness.world.store.set_unavailable(true);
    producer.publish(&["b"]).await;
    // Clients of a topic that is served may come and go.
    let described = harness
        .broker
        .describe_topic(&ctx(), name("orders"), false)
        .await;
    assert!(described.unwrap().ranges.is_empty());
    assert!(
        harness
            .try_producer(open("orders", "another"))
            .await
            .is_ok()
    );
    let mut reader = harness.reader("orders", Place::Earliest).await;
    assert_eq!(reader.take_payloads(2).await, ["a", "b"]);
    let unknown = harness.try_producer(open("elsewhere", "p")).await;
    assert_eq!(kind(&unknown), Some(ErrorKind::Unavailable));
    harness.world.store.set_unavailable(false);
    until("the topic to be created", || async {
        harness.try_producer(open("elsewhere", "p")).await.is_ok()
    })
    .await;
}

/// What became of the batch is known only when the bookie is back; until then no client
/// is told anything (I8).
#[tokio::test]
async fn a_batch_that_a_lost_bookie_may_have_is_stored_once_i8() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    producer.publish(&["a"]).await;
    harness.world.bookies.set_all(Mode::Unreachable);
    producer.send(&["b"]).await;
    harness.world.bookies.set_all(Mode::Up);
    let known = match producer.receipt().await {
        Ok(_) => Some(1),
        Err(error) => {
            assert!(error.kind.is_retryable());
            Some(0)
        }
    };
    drop(producer);
    let again = OpenProducer {
        epoch: 1,
        ..open("orders", "p")
    };
    let reopened = harness.try_producer(again).await.unwrap();
    assert_eq!(reopened.opened.last_sequence_id, known);
    if known == Some(0) {
        harness.publish_at_last("orders", "p", &["b"]).await;
    }
    harness.publish_at_last("orders", "p", &["c"]).await;
    let mut reader = harness.reader("orders", Place::Earliest).await;
    assert_eq!(reader.take_payloads(3).await, ["a", "b", "c"]);
}

/// Bookies whose reads wait while they are held.
struct HeldReads {
    inner: TestBookies,
    held: watch::Sender<bool>,
    waiting: AtomicUsize,
}

#[async_trait]
impl BookieTransport for HeldReads {
    fn submit(&self, bookie: BookieId, request: OrderedRequest, reply: ReplyCallback) {
        self.inner.submit(bookie, request, reply);
    }

    async fn read(&self, bookie: BookieId, range: ReadRange) -> BookieResult<ReadBatch> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut held = self.held.subscribe();
        held.wait_for(|held| !held).await.unwrap();
        self.inner.read(bookie, range).await
    }

    async fn has(&self, bookie: BookieId, range: PresenceRange) -> BookieResult<Presence> {
        self.inner.has(bookie, range).await
    }

    async fn wait(&self, bookie: BookieId, wait: TailWait) -> BookieResult<TailState> {
        self.inner.wait(bookie, wait).await
    }
}

/// The record that a load began with names ledgers that go before it reads them: the load goes on
/// with the newer record, and nothing is told to be damaged.
#[tokio::test]
async fn a_record_that_changes_while_the_topic_is_loaded_is_read_again() {
    let harness = Harness::start().await;
    harness
        .set_policies(EffectivePolicies {
            rollover: Rollover {
                entries: 1,
                ..Rollover::default()
            },
            ..EffectivePolicies::default()
        })
        .await;
    let mut producer = harness.producer("orders", "p").await;
    for payload in ["a", "b", "c", "d", "e"] {
        producer.publish(&[payload]).await;
    }
    // That owner is gone without a snapshot: the next one reads all messages again.
    // It seals its log in its turn, and may trim it then (H21).
    let former = open_log(&harness.world, "orders").await;
    let reads = Arc::new(HeldReads {
        inner: harness.world.bookies.clone(),
        held: watch::Sender::new(true),
        waiting: AtomicUsize::new(0),
    });
    let world = harness.world.clone();
    let store = Arc::new(world.store.clone());
    let log = world.logs_with(store, reads.clone(), TestWorld::settings());
    let next = Harness::over(world, config(), log).await;
    let loads = next.try_producer(OpenProducer {
        epoch: 1,
        ..open("orders", "p")
    });
    let trims = async {
        until("the load to read", || async {
            reads.waiting.load(Ordering::SeqCst) > 0
        })
        .await;
        let nothing = Retention {
            time_ms: Some(0),
            size_bytes: Some(0),
        };
        assert_eq!(former.trim(Index(3), nothing).await, Ok(Index(3)));
        reads.held.send_replace(false);
    };
    let (loaded, ()) = tokio::join!(loads, trims);
    let mut producer = loaded.unwrap();
    assert_eq!(producer.opened.last_sequence_id, Some(4));
    assert_eq!(next.stats("orders").await.first_index, Index(3));
    // It goes on with what it loaded: it writes, and is not taken for replaced.
    let receipt = producer.publish(&["f"]).await;
    assert_eq!(receipt.stored.unwrap().base_index, Index(5));
    let mut reader = next.reader("orders", Place::Earliest).await;
    assert_eq!(reader.take_payloads(3).await, ["d", "e", "f"]);
}

/// What storage does not answer now it may answer soon; no consumer can do more about it.
#[tokio::test]
async fn a_read_that_fails_is_tried_again_and_no_client_is_disconnected() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    producer.publish(&["a", "b"]).await;
    drop(producer);
    // Nothing is in memory after this.
    let harness = harness.restart().await;
    let shared = Subscribe {
        kind: SubscriptionType::Shared,
        ..subscribe("orders", "s")
    };
    let mut one = harness.try_subscribe(shared.clone()).await.unwrap();
    let mut two = harness.try_subscribe(shared).await.unwrap();
    let mut reader = harness.reader("orders", Place::Earliest).await;
    harness.world.bookies.set_all(Mode::Unreachable);
    let before = harness.world.bookies.reads().failed;
    one.grant(1).await;
    reader.grant(2).await;
    until("some reads to fail", || async {
        harness.world.bookies.reads().failed >= before + 4
    })
    .await;
    harness.world.bookies.set_all(Mode::Up);
    assert_eq!(one.take_payloads(2).await, ["a", "b"]);
    assert_eq!(reader.take_payloads(2).await, ["a", "b"]);
    // It was not delivered before, and the other consumer is there still.
    drop(one);
    two.grant(10).await;
    assert_eq!(two.take_payloads(2).await, ["a", "b"]);
}

/// The owner is the same, its epoch too: what it had delivered is known to the client.
#[tokio::test]
async fn what_was_delivered_before_a_topic_was_loaded_again_can_be_acknowledged() {
    let mut config = crate::support::config();
    config.topic_idle_ms = 1;
    let harness = Harness::start_with(config).await;
    let mut producer = harness.producer("orders", "p").await;
    producer.publish(&["a", "b", "c"]).await;
    let mut consumer = harness.consumer("orders", "s").await;
    consumer.take(3).await;
    let late = consumer.ack(&[], Some(1));
    drop((producer, consumer));
    until("the topic to be unloaded", || async {
        tokio::time::sleep(std::time::Duration::from_millis(120)).await;
        harness.stats("orders").await.messages_in == 0
    })
    .await;
    let mut consumer = harness.consumer("orders", "s").await;
    assert_eq!(late.owner_epoch, consumer.opened.owner_epoch);
    consumer.port.acknowledge(late.clone()).await.unwrap();
    consumer.confirmed(late.request_id).await;
    let stats = harness.stats("orders").await;
    assert_eq!(stats.subscriptions[0].mark_delete, Index(2));
    assert_eq!(consumer.take_payloads(1).await, ["c"]);
}
