//! Producers of partitioned topics: where messages go, and how they come together.

use std::sync::atomic::Ordering;
use std::time::Duration;

use aquifer_client::{Batching, Message, Producer};
use aquifer_proto::v1;

use crate::fake::{Fake, Produce};

/// A producer of a topic of three partitions, and their streams as they were opened.
async fn open_three(
    fake: &Fake,
    batching: Batching,
) -> (Producer, Vec<(v1::OpenProducer, Produce)>) {
    fake.settings.partitions.store(3, Ordering::SeqCst);
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
    let partition = aquifer_model::hash::partition_of(b"key", 3);
    let pending = producer
        .enqueue(Message::new("x").key("key"))
        .await
        .unwrap();
    let (_, stream) = &mut streams[partition as usize];
    stream.frames(1).await;
    stream.receipt(1, 0, false).await;
    assert_eq!(pending.await.unwrap().partition, Some(partition));
}

/// Idle partitions send at once, and get full batches all the same: each has its turn.
#[tokio::test]
async fn partitions_take_turns_by_the_batch() {
    let fake = Fake::start().await;
    // A turn is as long as a batch may wait.
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
        assert_eq!(messages, 20, "two turns of ten");
    }
    let mut last = None;
    for (number, pending) in pending.into_iter().enumerate() {
        let partition = pending.await.unwrap().partition;
        assert_eq!(partition == last, number % 10 != 0, "message {number}");
        last = partition;
    }
}
