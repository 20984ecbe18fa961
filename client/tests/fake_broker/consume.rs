//! Consumers: credit, acknowledgements, epochs (H9, H12), reconnects (I9).

use std::time::Duration;

use aquifer_client::{ClientError, Consumer, ErrorKind, Index, Place, SubscriptionType};
use aquifer_model::ranges::TopicRanges;
use aquifer_proto::v1;
use aquifer_proto::v1::ErrorCode;
use aquifer_proto::v1::consume_request::Request;
use aquifer_proto::v1::consume_response::Response;

use crate::fake::{Consume, Fake, delivery, subscribed};

async fn open(fake: &Fake) -> (Consumer, Consume) {
    let client = fake.client();
    let accept = async {
        let mut stream = fake.consume().await;
        stream.subscribed(subscribed(1, 0, 0)).await;
        stream
    };
    let builder = client.consumer("t", "s").queue_messages(10);
    let (consumer, stream) = futures::join!(builder.open(), accept);
    (consumer.unwrap(), stream)
}

fn credit(request: Request) -> Option<v1::Credit> {
    match request {
        Request::Credit(credit) => Some(credit),
        _ => None,
    }
}

fn acknowledge(request: Request) -> Option<v1::Acknowledge> {
    match request {
        Request::Acknowledge(ack) => Some(ack),
        _ => None,
    }
}

fn ranges(ack: &v1::Acknowledge) -> Vec<(u64, u64)> {
    ack.individual
        .iter()
        .map(|range| (range.first, range.last))
        .collect()
}

async fn texts(consumer: &Consumer, count: usize) -> Vec<String> {
    let mut texts = Vec::new();
    for _ in 0..count {
        let message = consumer.receive().await.unwrap();
        texts.push(String::from_utf8(message.payload.to_vec()).unwrap());
    }
    texts
}

async fn confirm(stream: &Consume, request_id: u64) {
    stream
        .answer(Response::Confirmed(v1::Confirmed {
            request_id,
            error: None,
        }))
        .await;
}

#[tokio::test]
async fn credit_is_granted_in_totals_and_again_at_half() {
    let fake = Fake::start().await;
    let (consumer, mut stream) = open(&fake).await;
    assert_eq!(stream.until(credit).await.messages_total, 10);
    stream.deliver(1, 0, vec![delivery(0, 6)]).await;
    texts(&consumer, 5).await;
    assert_eq!(stream.until(credit).await.messages_total, 15);
}

#[tokio::test]
async fn skipped_messages_are_not_handed_out() {
    let fake = Fake::start().await;
    let (consumer, stream) = open(&fake).await;
    let skip = |first, last| v1::IndexRange { first, last };
    let mut entry = delivery(0, 6);
    entry.skip = vec![skip(4, 4), skip(0, 1)];
    stream.deliver(1, 0, vec![entry, delivery(6, 1)]).await;
    assert_eq!(texts(&consumer, 4).await, ["2", "3", "5", "6"]);
}

#[tokio::test]
async fn acknowledgements_made_meanwhile_travel_together() {
    let fake = Fake::start().await;
    let (consumer, mut stream) = open(&fake).await;
    stream.deliver(1, 0, vec![delivery(0, 5)]).await;
    let mut messages = Vec::new();
    for _ in 0..5 {
        messages.push(consumer.receive().await.unwrap());
    }
    let first = consumer.ack(&messages[0]);
    let request = stream.until(acknowledge).await;
    assert_eq!(ranges(&request), [(0, 0)]);
    let rest = [1, 2, 4].map(|at: usize| consumer.ack(&messages[at]));
    confirm(&stream, request.request_id).await;
    first.await.unwrap();
    let request = stream.until(acknowledge).await;
    assert_eq!(ranges(&request), [(1, 2), (4, 4)]);
    confirm(&stream, request.request_id).await;
    futures::future::try_join_all(rest).await.unwrap();
    let last = consumer.ack_cumulative(&messages[4]);
    let request = stream.until(acknowledge).await;
    assert_eq!(request.cumulative, Some(4));
    confirm(&stream, request.request_id).await;
    last.await.unwrap();
}

#[tokio::test]
async fn a_shared_subscription_refuses_cumulative_acknowledgements() {
    let fake = Fake::start().await;
    let client = fake.client();
    let accept = async {
        let mut stream = fake.consume().await;
        let request = stream.subscribed(subscribed(1, 0, 0)).await;
        assert_eq!(request.r#type(), v1::SubscriptionType::Shared);
        stream.deliver(1, 0, vec![delivery(0, 1)]).await;
        stream
    };
    let builder = client.consumer("t", "s").kind(SubscriptionType::Shared);
    let (consumer, _stream) = futures::join!(builder.open(), accept);
    let consumer = consumer.unwrap();
    let message = consumer.receive().await.unwrap();
    let error = consumer.ack_cumulative(&message).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

/// I9: after a reconnect an unconfirmed acknowledgement is sent again, and what had arrived but
/// was not received comes from the new stream only.
#[tokio::test]
async fn a_reconnect_repeats_acknowledgements_and_drops_what_is_delivered_again() {
    let fake = Fake::start().await;
    let (consumer, mut stream) = open(&fake).await;
    stream.deliver(1, 0, vec![delivery(0, 3)]).await;
    let first = consumer.receive().await.unwrap();
    let pending = consumer.ack(&first);
    stream.until(acknowledge).await;
    stream.fail(ErrorCode::Unavailable, true).await;

    let mut stream = fake.consume().await;
    let request = stream.subscribed(subscribed(1, 0, 3)).await;
    assert_eq!(request.topic_incarnation.as_deref(), Some(&[7; 16][..]));
    let request = stream.until(acknowledge).await;
    assert_eq!(ranges(&request), [(0, 0)]);
    confirm(&stream, request.request_id).await;
    pending.await.unwrap();
    stream.deliver(1, 0, vec![delivery(1, 2)]).await;
    assert_eq!(texts(&consumer, 2).await, ["1", "2"]);
}

/// H9: a replaced owner's deliveries are dropped, whatever it still sends.
#[tokio::test]
async fn deliveries_of_older_owner_epochs_are_dropped() {
    let fake = Fake::start().await;
    let (consumer, stream) = open(&fake).await;
    stream.deliver(5, 0, vec![delivery(10, 1)]).await;
    stream.deliver(4, 0, vec![delivery(20, 1)]).await;
    stream.deliver(5, 0, vec![delivery(30, 1)]).await;
    assert_eq!(texts(&consumer, 2).await, ["10", "30"]);
    drop(stream);
    // A broker that does not know yet that it was replaced is not believed.
    let mut stream = fake.consume().await;
    stream.subscribed(subscribed(4, 0, 0)).await;
    let mut stream = fake.consume().await;
    stream.subscribed(subscribed(6, 0, 0)).await;
    stream.deliver(6, 0, vec![delivery(40, 1)]).await;
    assert_eq!(texts(&consumer, 1).await, ["40"]);
}

/// Another owner has not delivered these messages yet: it would refuse the acknowledgement.
#[tokio::test]
async fn acknowledgements_across_owners_fail_as_unknown() {
    let fake = Fake::start().await;
    let (consumer, mut stream) = open(&fake).await;
    stream.deliver(1, 0, vec![delivery(0, 1)]).await;
    let message = consumer.receive().await.unwrap();
    let pending = consumer.ack(&message);
    stream.until(acknowledge).await;
    drop(stream);
    let mut stream = fake.consume().await;
    stream.subscribed(subscribed(2, 0, 1)).await;
    assert_eq!(pending.await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(
        consumer.ack(&message).await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
}

/// H12: a seek voids what was delivered before it, on both sides.
#[tokio::test]
async fn a_seek_drops_older_deliveries_and_acknowledgements() {
    let fake = Fake::start().await;
    let (consumer, mut stream) = open(&fake).await;
    stream.deliver(1, 0, vec![delivery(100, 3)]).await;
    let before = consumer.receive().await.unwrap();
    let seek = async {
        let request = stream
            .until(|request| match request {
                Request::Seek(seek) => Some(seek),
                _ => None,
            })
            .await;
        assert_eq!(request.place, "0");
        let done = v1::SeekDone {
            request_id: request.request_id,
            seek_epoch: 1,
            index: 0,
            error: None,
        };
        stream.answer(Response::SeekDone(done)).await;
        stream.deliver(1, 0, vec![delivery(103, 1)]).await;
        stream.deliver(1, 1, vec![delivery(0, 1)]).await;
    };
    let (index, ()) = futures::join!(consumer.seek(Place::Index(Index(0))), seek);
    assert_eq!(index.unwrap(), Index(0));
    assert_eq!(texts(&consumer, 1).await, ["0"]);
    assert_eq!(consumer.ack(&before).await, Err(ClientError::Stale));
}

#[tokio::test]
async fn negative_acknowledgements_name_the_messages() {
    let fake = Fake::start().await;
    let (consumer, mut stream) = open(&fake).await;
    stream.deliver(1, 0, vec![delivery(0, 2)]).await;
    consumer.receive().await.unwrap();
    let second = consumer.receive().await.unwrap();
    consumer.nack(&second);
    let nack = stream
        .until(|request| match request {
            Request::NegativeAcknowledge(nack) => Some(nack),
            _ => None,
        })
        .await;
    assert_eq!((nack.ranges[0].first, nack.ranges[0].last), (1, 1));
    // Its neighbours in the batch come for the first time.
    let mut again = delivery(1, 3);
    again.redelivered = vec![v1::RedeliveredRange {
        first: 2,
        last: 2,
        count: 4,
    }];
    stream.deliver(1, 0, vec![again]).await;
    for expected in [0, 4, 0] {
        let message = consumer.receive().await.unwrap();
        assert_eq!(message.redelivery_count, expected);
    }
}

/// Bytes of a broken or hostile broker are an error, never a panic, and what follows is served.
#[tokio::test]
async fn a_malformed_batch_is_a_typed_error() {
    let fake = Fake::start().await;
    let (consumer, mut stream) = open(&fake).await;
    let mut flipped = delivery(0, 2);
    let mut bytes = flipped.body.to_vec();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    flipped.body = bytes.into();
    let mut short = delivery(2, 1);
    short.body = short.body.slice(..10);
    let mut absurd = delivery(3, 1);
    absurd.base_index = u64::MAX;
    stream
        .deliver(1, 0, vec![flipped, short, absurd, delivery(4, 1)])
        .await;
    let mut damaged = Vec::new();
    for _ in 0..3 {
        match consumer.receive().await.unwrap_err() {
            ClientError::Damaged(told) => damaged.push(told),
            other => panic!("{other}"),
        }
    }
    assert_eq!(texts(&consumer, 1).await, ["4"]);
    let pending = consumer.ack_damaged(&damaged[0]);
    let request = stream.until(acknowledge).await;
    assert_eq!(ranges(&request), [(0, 1)]);
    confirm(&stream, request.request_id).await;
    pending.await.unwrap();
}

#[tokio::test]
async fn receive_batch_takes_what_is_there_and_keeps_an_error_for_later() {
    let fake = Fake::start().await;
    let (consumer, stream) = open(&fake).await;
    let nothing = consumer.receive_batch(10, Duration::from_millis(1)).await;
    assert!(nothing.unwrap().is_empty());
    let mut bad = delivery(3, 1);
    bad.body = bad.body.slice(1..);
    stream
        .deliver(1, 0, vec![delivery(0, 3), bad, delivery(4, 1)])
        .await;
    let wait = Duration::from_secs(3600);
    assert_eq!(consumer.receive_batch(2, wait).await.unwrap().len(), 2);
    assert_eq!(consumer.receive_batch(9, wait).await.unwrap().len(), 1);
    assert!(consumer.receive_batch(9, wait).await.is_err());
    assert_eq!(consumer.receive_batch(9, wait).await.unwrap().len(), 1);
}

/// I13: however well batches are packed, what is given at once is bounded as it is unpacked.
#[tokio::test]
async fn receive_batch_counts_what_messages_hold() {
    let fake = Fake::start().await;
    let client = fake.client();
    let accept = async {
        let mut stream = fake.consume().await;
        stream.subscribed(subscribed(1, 0, 0)).await;
        stream
    };
    let builder = client.consumer("t", "s").queue_bytes(1_000);
    let (consumer, stream) = futures::join!(builder.open(), accept);
    let consumer = consumer.unwrap();
    let deliveries = (0..50).map(|at| delivery(at * 10, 10));
    let one = delivery(0, 10);
    let unpacked = aquifer_model::batch::Batch::parse(one.body).unwrap();
    let unpacked = u64::from(unpacked.fields().uncompressed_bytes);
    stream.deliver(1, 0, deliveries.collect()).await;
    let (mut total, wait) = (0, Duration::from_secs(3600));
    while total < 500 {
        let batch = consumer.receive_batch(1_000, wait).await.unwrap();
        let batches: std::collections::BTreeSet<_> =
            batch.iter().map(|message| message.position.entry).collect();
        assert!(batches.len() as u64 * unpacked < 1_000 + unpacked * 2);
        total += batch.len();
    }
}

/// What became of each is told: some acknowledgements come back, others are durable.
#[tokio::test]
async fn ack_each_says_which_came_back() {
    let fake = Fake::start().await;
    fake.settings.set_ranges(&TopicRanges::even(2));
    let client = fake.client();
    let accept = async {
        let mut streams = Vec::new();
        for _ in 0..2 {
            let mut stream = fake.consume().await;
            let request = stream.subscribed(subscribed(1, 0, 0)).await;
            streams.push((request.topic, stream));
        }
        streams.sort_by(|a, b| a.0.cmp(&b.0));
        streams
    };
    let (consumer, mut streams) = futures::join!(client.consumer("t", "s").open(), accept);
    let consumer = consumer.unwrap();
    for (_, stream) in &streams {
        stream.deliver(1, 0, vec![delivery(0, 1)]).await;
    }
    let messages = [
        consumer.receive().await.unwrap(),
        consumer.receive().await.unwrap(),
    ];
    let serve = async {
        let request = streams[1].1.until(acknowledge).await;
        confirm(&streams[1].1, request.request_id).await;
        let (_, lost) = streams.remove(0);
        drop(lost);
        // Another owner: it will deliver the message again.
        let mut stream = fake.consume().await;
        stream.subscribed(subscribed(2, 0, 1)).await;
        stream
    };
    let (outcomes, _stream) = futures::join!(consumer.ack_each(&messages), serve);
    for (message, outcome) in messages.iter().zip(outcomes) {
        match message.topic.partition() {
            Some(1) => assert_eq!(outcome, Ok(())),
            _ => assert!(outcome.unwrap_err().is_retryable()),
        }
    }
}

#[tokio::test]
async fn a_deleted_topic_ends_the_consumer_with_its_reason() {
    let fake = Fake::start().await;
    let (consumer, stream) = open(&fake).await;
    stream.fail(ErrorCode::Incarnation, false).await;
    assert_eq!(
        consumer.receive().await.unwrap_err().kind(),
        ErrorKind::Fenced
    );
    assert_eq!(
        consumer.receive().await.unwrap_err().kind(),
        ErrorKind::Fenced
    );
}

/// A partition that fails for good ends the consumer, so that no other may keep the subscription.
#[tokio::test]
async fn a_partition_that_fails_for_good_ends_the_others() {
    let fake = Fake::start().await;
    fake.settings.set_ranges(&TopicRanges::even(3));
    let client = fake.client();
    let accept = async {
        let mut streams = Vec::new();
        for _ in 0..3 {
            let mut stream = fake.consume().await;
            stream.subscribed(subscribed(1, 0, 0)).await;
            streams.push(stream);
        }
        streams
    };
    let (consumer, streams) = futures::join!(client.consumer("t", "s").open(), accept);
    let consumer = consumer.unwrap();
    let Ok([deleted, away, mut served]) = <[Consume; 3]>::try_from(streams) else {
        panic!("three streams");
    };
    // One is about to reconnect, another is subscribed.
    away.fail(ErrorCode::Unavailable, true).await;
    deleted.fail(ErrorCode::Incarnation, false).await;
    let error = consumer.receive().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced);
    let ended = async { while served.requests.message().await.unwrap().is_some() {} };
    let patience = Duration::from_secs(5);
    tokio::time::timeout(patience, ended).await.unwrap();
    drop(served);
    // It may have reconnected before the other failed.
    drop(tokio::time::timeout(Duration::from_millis(200), fake.consume()).await);
    let again = tokio::time::timeout(Duration::from_millis(500), fake.consume());
    assert!(again.await.is_err(), "a partition was subscribed again");
}

#[tokio::test]
async fn failover_says_who_is_served() {
    let fake = Fake::start().await;
    let (consumer, stream) = open(&fake).await;
    assert!(consumer.is_active());
    stream
        .answer(Response::Active(v1::Active { active: false }))
        .await;
    stream.deliver(1, 0, vec![delivery(0, 1)]).await;
    texts(&consumer, 1).await;
    assert!(!consumer.is_active());
}

#[tokio::test]
async fn partitions_take_turns_and_get_their_own_acknowledgements() {
    let fake = Fake::start().await;
    fake.settings.set_ranges(&TopicRanges::even(2));
    let client = fake.client();
    let accept = async {
        let mut streams = Vec::new();
        for _ in 0..2 {
            let mut stream = fake.consume().await;
            let request = stream.subscribed(subscribed(1, 0, 0)).await;
            streams.push((request.topic, stream));
        }
        streams.sort_by(|a, b| a.0.cmp(&b.0));
        streams
    };
    let (consumer, mut streams) = futures::join!(client.consumer("t", "s").open(), accept);
    let consumer = consumer.unwrap();
    streams[1].1.deliver(1, 0, vec![delivery(50, 1)]).await;
    let message = consumer.receive().await.unwrap();
    assert_eq!(message.topic.partition(), Some(1));
    let pending = consumer.ack(&message);
    let request = streams[1].1.until(acknowledge).await;
    assert_eq!(ranges(&request), [(50, 50)]);
    confirm(&streams[1].1, request.request_id).await;
    pending.await.unwrap();
}

#[tokio::test]
async fn close_waits_for_acknowledgements() {
    let fake = Fake::start().await;
    let (consumer, mut stream) = open(&fake).await;
    stream.deliver(1, 0, vec![delivery(0, 1)]).await;
    let message = consumer.receive().await.unwrap();
    let pending = consumer.ack(&message);
    let serve = async {
        let request = stream.until(acknowledge).await;
        confirm(&stream, request.request_id).await;
        while stream.requests.message().await.unwrap().is_some() {}
        drop(stream);
    };
    let (closed, ()) = futures::join!(consumer.close(), serve);
    closed.unwrap();
    pending.await.unwrap();
    assert_eq!(
        consumer.receive().await.unwrap_err().kind(),
        ErrorKind::Closed
    );
}

/// The broker learns that a session is the successor of an older one.
#[tokio::test]
async fn sessions_of_a_consumer_share_an_instance_and_count_up() {
    let fake = Fake::start().await;
    let client = fake.client();
    let accept = async {
        let mut stream = fake.consume().await;
        let first = stream.subscribed(subscribed(1, 0, 0)).await;
        drop(stream);
        let mut stream = fake.consume().await;
        (first, stream.subscribed(subscribed(1, 0, 0)).await)
    };
    let (_consumer, (first, second)) = futures::join!(client.consumer("t", "s").open(), accept);
    assert_eq!(first.instance.len(), 16);
    assert_eq!(second.instance, first.instance);
    assert!(second.epoch > first.epoch);
}

/// A refused request is told to the call that made it, and the session goes on.
#[tokio::test]
async fn refusals_concern_their_own_request_only() {
    let fake = Fake::start().await;
    let (consumer, mut stream) = open(&fake).await;
    stream.deliver(1, 0, vec![delivery(0, 2)]).await;
    let (first, second) = (
        consumer.receive().await.unwrap(),
        consumer.receive().await.unwrap(),
    );
    let error = || Some(crate::fake::detail(ErrorCode::InvalidArgument, false));

    let pending = consumer.ack(&first);
    let request = stream.until(acknowledge).await;
    let seek = async {
        let seek = stream.until(|request| match request {
            Request::Seek(seek) => Some(seek.request_id),
            _ => None,
        });
        let refused = v1::SeekDone {
            request_id: seek.await,
            error: error(),
            ..v1::SeekDone::default()
        };
        stream.answer(Response::SeekDone(refused)).await;
    };
    let place = "7:3".parse().unwrap();
    let (sought, ()) = futures::join!(consumer.seek(place), seek);
    assert_eq!(sought.unwrap_err().kind(), ErrorKind::Invalid);
    confirm(&stream, request.request_id).await;
    pending.await.unwrap();

    let pending = consumer.ack(&second);
    let request_id = stream.until(acknowledge).await.request_id;
    let refused = v1::Confirmed {
        request_id,
        error: error(),
    };
    stream.answer(Response::Confirmed(refused)).await;
    assert_eq!(pending.await.unwrap_err().kind(), ErrorKind::Invalid);
    let pending = consumer.ack(&second);
    let again = stream.until(acknowledge).await.request_id;
    confirm(&stream, again).await;
    pending.await.unwrap();
}
