//! Requests that stand alone: appends, reads, lookups and commits without a session.

use std::time::Duration;

use aquifer_ledger::testing::Mode;
use aquifer_model::format::FORMAT_NATIVE;
use aquifer_model::id::{Index, TopicIncarnation};
use aquifer_model::place::Place;
use aquifer_model::topic::SubscriptionName;
use aquifer_protocol_api::admin::Admin;
use aquifer_protocol_api::conformance::pull::{Direct, check_pull};
use aquifer_protocol_api::consumer::Held;
use aquifer_protocol_api::data_plane::DataPlane;
use aquifer_protocol_api::error::{ApiResult, ErrorKind};
use aquifer_protocol_api::producer::OpenProducer;
use aquifer_protocol_api::pull::{Append, Appended, Commit, Read, ReadBatches, ReadLimits};
use bytes::Bytes;

use crate::support::{Harness, batch, ctx, eventually, kind, name, open, soon};

const LONG: Duration = Duration::from_secs(20);

fn nameless(payloads: &[&str]) -> Bytes {
    batch("", 0, payloads)
}

async fn append(harness: &Harness, topic: &str, body: Bytes) -> ApiResult<Appended> {
    let (context, request) = (
        ctx(),
        Append {
            topic: name(topic),
            incarnation: None,
            format: FORMAT_NATIVE,
            body,
            held: Held::default(),
        },
    );
    let appended = harness.broker.append(&context, request);
    soon("an append", appended).await
}

fn read_from(topic: &str, from: u64, bytes_min: usize, wait: Duration) -> Read {
    Read {
        topic: name(topic),
        incarnation: None,
        from: Index(from),
        limits: ReadLimits {
            bytes_max: 1 << 20,
            batches_max: 100,
            bytes_min,
        },
        wait,
    }
}

async fn read(harness: &Harness, request: Read) -> ApiResult<ReadBatches> {
    let context = ctx();
    soon("a read", harness.broker.read(&context, request)).await
}

fn commit(topic: &str, index: u64, create: bool) -> Commit {
    Commit {
        topic: name(topic),
        incarnation: None,
        subscription: SubscriptionName::new("s").unwrap(),
        index: Index(index),
        create,
    }
}

#[tokio::test]
async fn the_broker_passes_the_conformance_checks() {
    let harness = Harness::start().await;
    let body = |number: u64| nameless(&[&number.to_string()]);
    soon("the checks", check_pull(&Direct(&*harness.broker), &body)).await;
    assert_eq!(harness.tasks.failed(), None);
}

#[tokio::test]
async fn a_named_batch_is_stored_once_i8() {
    let harness = Harness::start().await;
    let first = append(&harness, "orders", batch("p", 5, &["a", "b"])).await;
    let first = first.unwrap();
    assert_eq!((first.message_count, first.duplicate), (2, false));
    let again = append(&harness, "orders", batch("p", 5, &["a", "b"])).await;
    let again = again.unwrap();
    assert_eq!((again.stored, again.duplicate), (first.stored, true));
    let cut = append(&harness, "orders", batch("p", 6, &["b", "c"])).await;
    assert_eq!(kind(&cut), Some(ErrorKind::InvalidArgument));
    // A session goes on where it ended, and keeps the name to itself while it is open.
    let mut producer = harness.producer("orders", "p").await;
    assert_eq!(producer.opened.last_sequence_id, Some(6));
    let busy = append(&harness, "orders", batch("p", 7, &["c"])).await;
    assert_eq!(kind(&busy), Some(ErrorKind::ProducerBusy));
    let receipt = producer.publish(&["c"]).await;
    assert_eq!(receipt.stored.unwrap().base_index, Index(2));
    drop(producer);
    let harness = harness.restart().await;
    let again = eventually("the name to be free", || async {
        append(&harness, "orders", batch("p", 5, &["a", "b"]))
            .await
            .ok()
    })
    .await;
    assert!(again.duplicate);
    // Without a name it is stored each time.
    for index in [3, 4] {
        let appended = append(&harness, "orders", nameless(&["x"])).await.unwrap();
        assert_eq!(appended.stored.unwrap().base_index, Index(index));
    }
}

#[tokio::test]
async fn concurrent_appends_are_each_stored_once() {
    let harness = Harness::start().await;
    let bodies = (0..50).map(|number: u64| nameless(&[&number.to_string()]));
    let appends = bodies.map(|body| append(&harness, "orders", body));
    let appended = futures::future::join_all(appends).await;
    let mut bases: Vec<u64> = appended
        .into_iter()
        .map(|appended| appended.unwrap().stored.unwrap().base_index.0)
        .collect();
    bases.sort_unstable();
    assert_eq!(bases, (0..50).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_failed_append_fails_alone_and_the_topic_goes_on() {
    let harness = Harness::start().await;
    append(&harness, "orders", nameless(&["a"])).await.unwrap();
    let mut producer = harness.producer("orders", "p").await;
    harness.world.bookies.set_all(Mode::ReadOnly);
    for _ in 0..3 {
        let full = append(&harness, "orders", nameless(&["b"]))
            .await
            .unwrap_err();
        assert_eq!(full.kind, ErrorKind::StorageFull, "{full}");
    }
    // The sessions are failed with it (H7).
    assert_eq!(producer.error().await.kind, ErrorKind::StorageFull);
    harness.world.bookies.set_all(Mode::Up);
    eventually("storage to take appends again", || async {
        append(&harness, "orders", nameless(&["b"])).await.ok()
    })
    .await;
    harness.publish_at_last("orders", "p", &["c"]).await;
    let mut reader = harness.reader("orders", Place::Earliest).await;
    assert_eq!(reader.take_payloads(3).await, ["a", "b", "c"]);
}

#[tokio::test]
async fn a_batch_that_is_damaged_or_too_old_a_life_is_refused() {
    let harness = Harness::start().await;
    let mut damaged = nameless(&["a"]).to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    let refused = append(&harness, "orders", damaged.into()).await;
    assert_eq!(kind(&refused), Some(ErrorKind::Checksum));
    append(&harness, "orders", nameless(&["a"])).await.unwrap();
    let other = Read {
        incarnation: Some(TopicIncarnation([1; 16])),
        ..read_from("orders", 0, 0, Duration::ZERO)
    };
    let refused = read(&harness, other).await;
    assert_eq!(kind(&refused), Some(ErrorKind::Incarnation));
    let absent = read(&harness, read_from("nowhere", 0, 0, Duration::ZERO)).await;
    assert_eq!(
        kind(&absent),
        Some(ErrorKind::NotFound),
        "a look creates nothing"
    );
    let mut producer = harness.producer("orders", "p").await;
    producer.publish(&["b"]).await;
    let base = read(&harness, read_from("orders", 1, 1, LONG))
        .await
        .unwrap();
    assert_eq!(base.next, Index(2));
}

#[tokio::test]
async fn a_read_waits_for_sessions_and_ends_with_its_topic() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    producer.publish(&["a"]).await;
    let waits = read(&harness, read_from("orders", 1, 1, LONG));
    let publishes = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        producer.publish(&["b"]).await;
    };
    let (found, ()) = tokio::join!(waits, publishes);
    assert_eq!(found.unwrap().next, Index(2));
    // One that goes away leaves nothing behind; one that stays is told when the topic goes.
    let dropped = read(&harness, read_from("orders", 2, 1, LONG));
    let given_up = tokio::time::timeout(Duration::from_millis(50), dropped).await;
    assert!(given_up.is_err());
    let waits = read(&harness, read_from("orders", 2, 1, LONG));
    let deletes = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        harness.broker.shutdown().await;
    };
    let (told, ()) = tokio::join!(waits, deletes);
    assert_eq!(kind(&told), Some(ErrorKind::Unavailable));
}

#[tokio::test]
async fn a_read_begins_behind_what_was_passed_and_inside_a_batch() {
    let harness = Harness::start().await;
    append(&harness, "orders", nameless(&["a", "b", "c"]))
        .await
        .unwrap();
    append(&harness, "orders", nameless(&["d"])).await.unwrap();
    let found = read(&harness, read_from("orders", 2, 0, Duration::ZERO))
        .await
        .unwrap();
    let bases: Vec<u64> = found.batches.iter().map(|b| b.at.base_index.0).collect();
    assert_eq!((bases, found.next), (vec![0, 3], Index(4)));
    let partition = harness.broker.create_topic(&ctx(), name("parts"), 2).await;
    partition.unwrap();
    let bounds = harness
        .broker
        .bounds(&ctx(), name("parts-partition-1"))
        .await;
    assert_eq!(bounds.unwrap().end, Index(0), "it was never used");
    let base = harness.broker.bounds(&ctx(), name("parts")).await;
    assert_eq!(kind(&base), Some(ErrorKind::InvalidArgument));
}

#[tokio::test]
async fn a_commit_back_is_delivered_again_and_one_forward_is_not() {
    let harness = Harness::start().await;
    for payload in ["a", "b", "c", "d"] {
        append(&harness, "orders", nameless(&[payload]))
            .await
            .unwrap();
    }
    let mut consumer = harness.consumer("orders", "s").await;
    assert_eq!(consumer.take_payloads(4).await, ["a", "b", "c", "d"]);
    consumer.acknowledge(&[], Some(3)).await;
    let stands = harness
        .broker
        .commit(&ctx(), commit("orders", 1, false))
        .await;
    assert_eq!(stands.unwrap(), Index(1));
    drop(consumer);
    let mut consumer = eventually("the subscription to be free", || async {
        let request = crate::support::subscribe("orders", "s");
        harness.try_subscribe(request).await.ok()
    })
    .await;
    assert_eq!(consumer.take_payloads(3).await, ["b", "c", "d"]);
    drop(consumer);
    let stands = harness
        .broker
        .commit(&ctx(), commit("orders", 3, false))
        .await;
    assert_eq!(stands.unwrap(), Index(3));
    let harness = harness.restart().await;
    let (context, s) = (ctx(), SubscriptionName::new("s").unwrap());
    let stands = harness.broker.committed(&context, name("orders"), s).await;
    assert_eq!(stands.unwrap(), Some(Index(3)), "it is durable");
    let mut consumer = harness.consumer("orders", "s").await;
    assert_eq!(consumer.take_payloads(1).await, ["d"]);
}

#[tokio::test]
async fn what_waits_and_reads_is_bounded_i13() {
    let harness = Harness::start().await;
    let large = "x".repeat(1 << 20);
    for _ in 0..8 {
        append(&harness, "orders", nameless(&[&large]))
            .await
            .unwrap();
    }
    // More than the budget has are served one after the other, each as soon as others are done.
    let reads = (0..200).map(|_| async {
        let request = Read {
            limits: ReadLimits {
                bytes_max: 4 << 20,
                batches_max: 100,
                bytes_min: 0,
            },
            ..read_from("orders", 0, 0, Duration::ZERO)
        };
        let found = read(&harness, request).await.unwrap();
        assert!(!found.batches.is_empty());
        let bytes: usize = found.batches.iter().map(|found| found.body.len()).sum();
        assert!(bytes <= 4 << 20);
    });
    futures::future::join_all(reads).await;
    let session = harness.try_producer(OpenProducer {
        take_over: true,
        ..open("orders", "p")
    });
    assert!(session.await.is_ok());
}
