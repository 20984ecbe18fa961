//! Publishing: order, duplicates, and what becomes of a stream after a failed frame.

use aquifer_ledger::testing::Mode;
use aquifer_model::format::FORMAT_NATIVE;
use aquifer_model::place::Place;
use aquifer_protocol_api::error::ErrorKind;
use aquifer_protocol_api::producer::{OpenProducer, PublishFrame};

use crate::support::{Harness, batch, open, soon};

#[tokio::test]
async fn batches_are_stored_in_order_with_dense_indexes_i7() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    assert_eq!(producer.opened.last_sequence_id, None);
    producer.send(&["a", "b"]).await;
    producer.send(&["c"]).await;
    producer.send(&["d", "e", "f"]).await;
    for (frame, index) in [(1, 0), (2, 2), (3, 3)] {
        let receipt = producer.receipt().await.unwrap();
        assert_eq!(receipt.frame_number, frame);
        assert_eq!(receipt.stored.unwrap().base_index.0, index);
        assert!(!receipt.duplicate);
    }
    let mut reader = harness.reader("orders", Place::Earliest).await;
    let read = reader.take(6).await;
    let expected: Vec<(u64, String)> = (0..)
        .zip(["a", "b", "c", "d", "e", "f"].map(str::to_owned))
        .collect();
    assert_eq!(read, expected);
    let stats = harness.stats("orders").await;
    assert_eq!(stats.end_index.0, 6);
    assert_eq!(stats.messages_in, 6);
}

#[tokio::test]
async fn a_duplicate_gets_the_position_of_the_original_i8() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    let original = producer.publish(&["a", "b"]).await;
    producer.publish(&["c"]).await;
    producer
        .send_batch(batch("p", 0, &["a", "b"]))
        .await
        .unwrap();
    let repeated = producer.receipt().await.unwrap();
    assert!(repeated.duplicate);
    assert_eq!(repeated.stored, original.stored);
    assert_eq!(harness.stats("orders").await.end_index.0, 3);
}

#[tokio::test]
async fn duplicates_are_known_after_a_restart_i8() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    let original = producer.publish(&["a"]).await;
    producer.publish(&["b"]).await;
    let harness = harness.restart().await;
    let mut producer = harness.producer("orders", "p").await;
    assert_eq!(producer.opened.last_sequence_id, Some(1));
    producer.send_batch(batch("p", 0, &["a"])).await.unwrap();
    let repeated = producer.receipt().await.unwrap();
    assert!(repeated.duplicate);
    assert_eq!(repeated.stored, original.stored);
    assert_eq!(harness.stats("orders").await.end_index.0, 2);
}

#[tokio::test]
async fn a_repetition_behind_its_original_in_flight_is_answered_after_it_i8() {
    let harness = Harness::start().await;
    let bookie = harness.world.bookies.ids()[0];
    let mut producer = harness.producer("orders", "p").await;
    producer.publish(&["a"]).await;
    harness.world.bookies.hold(bookie);
    producer.send_batch(batch("p", 1, &["b"])).await.unwrap();
    producer.send_batch(batch("p", 1, &["b"])).await.unwrap();
    harness.world.bookies.release(bookie);
    let first = producer.receipt().await.unwrap();
    let second = producer.receipt().await.unwrap();
    assert!(!first.duplicate);
    assert!(second.duplicate);
    assert_eq!(first.stored, second.stored);
    assert_eq!((first.frame_number, second.frame_number), (2, 3));
}

/// H7: frame 1 fails, frame 2 must not be stored, and nothing re-sent is swallowed.
#[tokio::test]
async fn after_a_failed_append_the_stream_fails_and_the_client_rewinds_h7() {
    let harness = Harness::start().await;
    let mut producer = harness.producer("orders", "p").await;
    producer.publish(&["a"]).await;
    harness.world.bookies.set_all(Mode::ReadOnly);
    producer.send(&["b"]).await;
    // The session may have ended already when the later frame comes.
    let _ = producer.send_batch(batch("p", 2, &["c"])).await;
    let error = producer.error().await;
    assert_eq!(error.kind, ErrorKind::StorageFull);
    assert!(error.kind.is_retryable());
    harness.world.bookies.set_all(Mode::Up);
    let again = OpenProducer {
        epoch: 1,
        ..open("orders", "p")
    };
    let reopened = harness.try_producer(again).await.unwrap();
    assert_eq!(reopened.opened.last_sequence_id, Some(0));
    let mut producer = harness.publish_at_last("orders", "p", &["b"]).await;
    assert!(!producer.publish(&["c"]).await.duplicate);
    let mut reader = harness.reader("orders", Place::Earliest).await;
    assert_eq!(reader.take_payloads(3).await, ["a", "b", "c"]);
    assert_eq!(harness.stats("orders").await.end_index.0, 3);
}

#[tokio::test]
async fn a_failed_append_fails_every_producer_of_the_topic_h7() {
    let harness = Harness::start().await;
    let mut one = harness.producer("orders", "one").await;
    let mut two = harness.producer("orders", "two").await;
    let mut other = harness.producer("elsewhere", "one").await;
    one.publish(&["a"]).await;
    harness.world.bookies.set_all(Mode::ReadOnly);
    one.send(&["b"]).await;
    assert_eq!(one.error().await.kind, ErrorKind::StorageFull);
    assert_eq!(two.error().await.kind, ErrorKind::StorageFull);
    harness.world.bookies.set_all(Mode::Up);
    other.publish(&["untouched"]).await;
}

#[tokio::test]
async fn bad_frames_end_the_stream_after_the_good_ones() {
    let harness = Harness::start().await;
    let mut damaged = batch("p", 1, &["x"]).to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    let cases = [
        (2, damaged.into(), ErrorKind::Checksum),
        (3, batch("p", 1, &["x"]), ErrorKind::InvalidArgument),
        (2, batch("stranger", 1, &["x"]), ErrorKind::InvalidArgument),
        (2, batch("p", 0, &["a", "x"]), ErrorKind::InvalidArgument),
    ];
    for (case, (number, bytes, expected)) in cases.into_iter().enumerate() {
        let topic = format!("topic-{case}");
        let mut producer = harness.producer(&topic, "p").await;
        let frames = vec![
            PublishFrame {
                number: 1,
                format: FORMAT_NATIVE,
                body: batch("p", 0, &["a"]),
            },
            PublishFrame {
                number,
                format: FORMAT_NATIVE,
                body: bytes,
            },
            PublishFrame {
                number: number + 1,
                format: FORMAT_NATIVE,
                body: batch("p", 5, &["never"]),
            },
        ];
        soon("room", producer.port.publish(frames, None))
            .await
            .unwrap();
        // The partial overlap shows only when the first is stored; all others at once.
        let mut outcomes = Vec::new();
        loop {
            let outcome = producer.receipt().await;
            let failed = outcome.is_err();
            outcomes.push(outcome);
            if failed {
                break;
            }
        }
        assert_eq!(outcomes.len(), 2, "case {case}: {outcomes:?}");
        assert_eq!(outcomes[0].as_ref().unwrap().frame_number, 1);
        let error = outcomes[1].as_ref().unwrap_err();
        assert_eq!(error.kind, expected, "case {case}: {error}");
        assert!(!error.advice.is_empty());
        assert_eq!(harness.stats(&topic).await.end_index.0, 1, "case {case}");
    }
}

#[tokio::test]
async fn frames_beyond_the_bound_wait_and_lose_nothing_i13() {
    let mut config = crate::support::config();
    config.producer_frames_in_flight_max = 4;
    config.publish_bytes_in_flight_max = 4096;
    let harness = Harness::start_with(config).await;
    let bookie = harness.world.bookies.ids()[0];
    let mut producer = harness.producer("orders", "p").await;
    producer.publish(&["first"]).await;
    harness.world.bookies.hold(bookie);
    let frames: Vec<PublishFrame> = (1..=50)
        .map(|n| PublishFrame {
            number: n + 1,
            format: FORMAT_NATIVE,
            body: batch("p", n, &["x"]),
        })
        .collect();
    let mut port = producer.port;
    let mut receipts = producer.receipts;
    let sending = async { port.publish(frames, None).await.unwrap() };
    let receiving = async {
        harness.world.bookies.release(bookie);
        for n in 1..=50 {
            let receipt = receipts.recv().await.unwrap().unwrap();
            assert_eq!(receipt.frame_number, n + 1);
        }
    };
    soon("all frames", async { tokio::join!(sending, receiving) }).await;
}
