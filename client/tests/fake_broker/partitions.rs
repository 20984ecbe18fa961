//! Producers of partitioned topics: where messages go, and how they come together.

use std::sync::atomic::Ordering;
use std::time::Duration;

use aquifer_client::{Batching, ClientError, Message, Producer, SubscriptionType};
use aquifer_model::hash::key_hash;
use aquifer_model::ranges::{TopicRange, TopicRanges};
use aquifer_proto::v1;

use crate::fake::{Fake, Produce};

/// A producer of a topic of three partitions, and their streams as they were opened.
async fn open_three(
    fake: &Fake,
    batching: Batching,
) -> (Producer, Vec<(v1::OpenProducer, Produce)>) {
    fake.settings.set_ranges(&TopicRanges::even(3));
    let client = fake.client();
    let accept = async {
        let mut streams = Vec::new();
        for _ in 0..3 {
            let mut stream = fake.produce().await;
            let open = stream.open().await;
            stream.opened(None).await;
            streams.push((open, stream));
        }
        streams
    };
    let opening = client.producer("t").batching(batching).open();
    let (producer, streams) = futures::join!(opening, accept);
    (producer.unwrap(), streams)
}

#[tokio::test]
async fn a_partitioned_topic_gets_each_key_on_one_partition() {
    let fake = Fake::start().await;
    let (producer, mut streams) = open_three(&fake, Batching::default()).await;
    streams.sort_by_key(|(open, _)| open.topic.clone());
    let topics: Vec<_> = streams
        .iter()
        .map(|(open, _)| open.topic.as_str())
        .collect();
    let name = |n| format!("persistent://public/default/t-partition-{n}");
    assert_eq!(topics, [name(0), name(1), name(2)]);
    let names: Vec<_> = streams
        .iter()
        .map(|(open, _)| open.producer_name.as_str())
        .collect();
    assert_eq!(names, ["", "drawn", "drawn"], "one name for all");
    let partition = number_of(&TopicRanges::even(3), b"key");
    let pending = producer
        .enqueue(Message::new("x").key("key"))
        .await
        .unwrap();
    let (_, stream) = &mut streams[partition as usize];
    stream.frames(1).await;
    stream.receipt(1, 0, false).await;
    assert_eq!(pending.await.unwrap().partition, Some(partition));
}

/// The partition that a key belongs to.
fn number_of(ranges: &TopicRanges, key: &[u8]) -> u32 {
    let hash = key_hash(key);
    let mut open = ranges.in_use();
    let found = open.find(|range| (range.first..=range.last).contains(&hash));
    found.unwrap().number
}

/// Range 0 was split into 1 and 2: messages go to these two, by key.
fn divided() -> TopicRanges {
    let range = |number, first, last, parents, sealed| TopicRange {
        number,
        first,
        last,
        parents,
        sealed,
    };
    let half = u32::MAX / 2;
    let all = vec![
        range(0, 0, u32::MAX, vec![], true),
        range(1, half + 1, u32::MAX, vec![0], false),
        range(2, 0, half, vec![0], false),
    ];
    TopicRanges::new(2, all).unwrap()
}

#[tokio::test]
async fn a_sealed_range_gets_no_message_and_its_keys_go_to_its_children() {
    let fake = Fake::start().await;
    fake.settings.set_ranges(&divided());
    let client = fake.client();
    let accept = async {
        let mut streams = Vec::new();
        for _ in 0..2 {
            let mut stream = fake.produce().await;
            let open = stream.open().await;
            stream.opened(None).await;
            streams.push((open.topic, stream));
        }
        streams
    };
    let (producer, mut streams) = futures::join!(client.producer("t").open(), accept);
    let producer = producer.unwrap();
    streams.sort_by(|(a, _), (b, _)| a.cmp(b));
    let name = |n| format!("persistent://public/default/t-partition-{n}");
    let topics: Vec<_> = streams.iter().map(|(topic, _)| topic.clone()).collect();
    assert_eq!(topics, [name(1), name(2)]);
    for key in ["a", "b", "c", "d", "e", "f"] {
        let number = number_of(&divided(), key.as_bytes());
        let pending = producer.enqueue(Message::new("x").key(key)).await.unwrap();
        let (_, stream) = &mut streams[number as usize - 1];
        let frames = stream.frames(1).await;
        stream.receipt(frames[0].0, 0, false).await;
        assert_eq!(pending.await.unwrap().partition, Some(number), "{key}");
    }
}

/// A child may not be read before the end of its parents is acknowledged, which is not built yet.
#[tokio::test]
async fn consumers_that_keep_order_refuse_a_topic_that_was_split() {
    let fake = Fake::start().await;
    fake.settings.set_ranges(&divided());
    let client = fake.client();
    for kind in [SubscriptionType::Exclusive, SubscriptionType::Failover] {
        let refused = client.consumer("t", "s").kind(kind).open().await;
        let error = refused.map(|_| ()).unwrap_err();
        assert!(
            matches!(&error, ClientError::Invalid(text) if text.contains("Shared")),
            "{error}"
        );
    }
    let read = client.reader("t").open().await;
    assert!(matches!(read.map(|_| ()), Err(ClientError::Invalid(_))));
}

#[tokio::test]
async fn an_unknown_key_hash_and_ranges_with_a_gap_are_errors() {
    let fake = Fake::start().await;
    fake.settings.set_ranges(&TopicRanges::even(3));
    fake.settings.key_hash.store(99, Ordering::SeqCst);
    let open = fake.client().producer("t").open().await;
    let error = open.map(|_| ()).unwrap_err();
    assert!(
        matches!(&error, ClientError::Protocol(text) if text.contains("hashes keys")),
        "{error}"
    );
    fake.settings.key_hash.store(1, Ordering::SeqCst);
    fake.settings.ranges.lock().unwrap().remove(1);
    let error = fake
        .client()
        .producer("t")
        .open()
        .await
        .map(|_| ())
        .unwrap_err();
    assert!(
        matches!(&error, ClientError::Protocol(text) if text.contains("exactly once")),
        "{error}"
    );
}

/// Idle partitions send at once, and get full batches all the same: the sticky partition changes
/// by the batch.
#[tokio::test]
async fn the_sticky_partition_changes_by_the_batch() {
    let fake = Fake::start().await;
    // A partition stays sticky as long as a batch may wait.
    let batching = Batching {
        messages_max: 10,
        delay_max: Duration::from_secs(3600),
        ..Batching::default()
    };
    let (producer, mut streams) = open_three(&fake, batching).await;
    let mut pending = Vec::new();
    for number in 0..60 {
        let message = Message::new(format!("{number}"));
        pending.push(producer.enqueue(message).await.unwrap());
        // An idle partition may send what is there before the next message comes.
        tokio::task::yield_now().await;
    }
    for (_, stream) in &mut streams {
        let mut messages = 0;
        while messages < 20 {
            for (number, batch) in stream.frames(1).await {
                messages += batch.message_count();
                stream.receipt(number, u64::from(messages), false).await;
            }
        }
        assert_eq!(messages, 20, "two batches of ten");
    }
    let mut last = None;
    for (number, pending) in pending.into_iter().enumerate() {
        let partition = pending.await.unwrap().partition;
        assert_eq!(partition == last, number % 10 != 0, "message {number}");
        last = partition;
    }
}
