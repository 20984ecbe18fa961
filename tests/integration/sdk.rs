//! The client library against a real server: what its documentation promises, end to end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use aquifer_client::{
    Batching, Client, ClientError, Compression, Consumer, ErrorKind, Index, Message, Outcome,
    Reader, ReceivedMessage, SubscriptionType,
};
use aquifer_harness::server::{Server, ServerOptions};
use aquifer_harness::wait::{until, within};
use aquifer_model::place::Place;
use bytes::Bytes;
use futures::future::join_all;

async fn server() -> Result<(tempfile::TempDir, Server)> {
    let folder = tempfile::tempdir()?;
    let server = Server::start(&folder.path().join("data"), ServerOptions::default()).await?;
    Ok((folder, server))
}

fn end(mut server: Server) -> Result<()> {
    server.stop()?;
    server.check_logs()
}

async fn publish(client: &Client, topic: &str, numbers: std::ops::Range<u64>) -> Result<()> {
    let producer = client.producer(topic).open().await?;
    let mut pending = Vec::new();
    for number in numbers {
        let message = Message::new(number.to_string());
        pending.push(producer.enqueue(message).await?);
    }
    for sent in pending {
        sent.await?;
    }
    producer.close().await?;
    Ok(())
}

async fn receive(consumer: &Consumer) -> Result<ReceivedMessage> {
    within("a message", async { Ok(consumer.receive().await?) }).await
}

fn number(message: &ReceivedMessage) -> Result<u64> {
    Ok(std::str::from_utf8(&message.payload)?.parse()?)
}

/// What a reader still has to give.
async fn rest(reader: &Reader) -> Result<Vec<ReceivedMessage>> {
    let mut messages = Vec::new();
    within("reading to the end", async {
        while let Some(message) = reader.next_available().await? {
            messages.push(message);
        }
        Ok(())
    })
    .await?;
    Ok(messages)
}

async fn read_all(client: &Client, topic: &str) -> Result<Vec<ReceivedMessage>> {
    rest(&client.reader(topic).open().await?).await
}

/// Random bytes between runs of equal ones, so that compression has something to do and something
/// to keep.
fn block(seed: u64, size: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut block = Vec::with_capacity(size);
    while block.len() < size {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        block.extend_from_slice(&state.to_le_bytes());
        block.extend_from_slice(&[seed.to_le_bytes()[0]; 24]);
    }
    block.truncate(size);
    block.into()
}

#[tokio::test]
async fn every_compression_gives_back_what_was_published() -> Result<()> {
    let (_folder, server) = server().await?;
    let client = server.client()?;
    for (name, compression) in [
        ("none", Compression::None),
        ("lz4", Compression::Lz4),
        ("zstd", Compression::Zstd),
    ] {
        let producer = client.producer(name).compression(compression);
        let producer = producer.open().await?;
        let sizes = [0, 1, 1_000, 100_000, 2_000_000];
        let mut pending = Vec::new();
        for (seed, size) in (0u64..).zip(sizes) {
            let message = Message::new(block(seed, size))
                .key(seed.to_string())
                .property("compression", name)
                .event_time_ms(seed);
            pending.push(producer.enqueue(message).await?);
        }
        for sent in pending {
            sent.await?;
        }
        producer.close().await?;
        let messages = read_all(&client, name).await?;
        ensure!(messages.len() == sizes.len(), "{name}: {}", messages.len());
        for ((seed, size), message) in (0u64..).zip(sizes).zip(&messages) {
            ensure!(message.payload == block(seed, size), "{name}: {seed}");
            ensure!(message.key == Some(seed.to_string().into()), "{name}");
            ensure!(message.event_time_ms == Some(seed), "{name}");
            ensure!(
                message.properties == [("compression".to_owned(), name.to_owned())],
                "{name}"
            );
        }
    }
    let bytes = |topic: &'static str| {
        let admin = client.admin();
        async move {
            admin
                .topic_stats(topic)
                .await
                .map(|stats| stats.stored_bytes)
        }
    };
    let (none, lz4, zstd) = (
        bytes("none").await?,
        bytes("lz4").await?,
        bytes("zstd").await?,
    );
    ensure!(lz4 < none && zstd < none, "{none} {lz4} {zstd}");
    end(server)
}

/// Receives and acknowledges this many different messages.
async fn receive_all(consumers: &[Consumer], count: u64) -> Result<()> {
    let mut received = BTreeSet::new();
    within("every message at the consumers", async {
        while (received.len() as u64) < count {
            let wait = Duration::from_millis(50);
            for batch in join_all(consumers.iter().map(|one| one.receive_batch(500, wait)))
                .await
                .into_iter()
                .zip(consumers)
                .map(|(batch, consumer)| batch.map(|batch| (batch, consumer)))
            {
                let (batch, consumer) = batch?;
                consumer.ack_all(&batch).await?;
                for message in batch {
                    received.insert((message.topic.to_string(), message.index));
                }
            }
        }
        Ok(())
    })
    .await
}

/// I7 of every partition, with two Shared consumers and a `kill -9` in the middle: nothing
/// acknowledged is lost, and a key's messages stay on one partition in order.
#[tokio::test]
async fn a_partitioned_topic_survives_a_kill_with_its_order() -> Result<()> {
    const KEYS: u64 = 20;
    const EACH: u64 = 100;
    let (_folder, mut server) = server().await?;
    let client = server.client()?;
    client.admin().create_topic("orders", 4).await?;
    let open = || {
        let consumer = client.consumer("orders", "workers");
        consumer.kind(SubscriptionType::Shared).open()
    };
    let consumers = [open().await?, open().await?];
    let lz4 = client.producer("orders").compression(Compression::Lz4);
    let zstd = client.producer("orders").compression(Compression::Zstd);
    let producers = [lz4.open().await?, zstd.open().await?];
    let mut pending = Vec::new();
    for count in 0..EACH {
        for key in 0..KEYS {
            let message = Message::new(count.to_string()).key(key.to_string());
            let producer = &producers[usize::try_from(key % 2)?];
            pending.push(producer.enqueue(message).await?);
        }
        if count == EACH / 2 {
            server.kill()?;
            server.restart()?;
        }
    }
    let mut used = BTreeSet::new();
    for sent in pending {
        used.extend(
            within("a receipt", async { Ok(sent.await?) })
                .await?
                .partition,
        );
    }
    ensure!(used.len() == 4, "all partitions are used: {used:?}");

    // In order within a key, each once: the producers' names deduplicate over the kill (I8).
    let mut by_key: BTreeMap<Bytes, Vec<u64>> = BTreeMap::new();
    let mut topics: BTreeMap<Bytes, BTreeSet<String>> = BTreeMap::new();
    for message in read_all(&client, "orders").await? {
        let key = message.key.clone().context("a key")?;
        by_key
            .entry(key.clone())
            .or_default()
            .push(number(&message)?);
        topics
            .entry(key)
            .or_default()
            .insert(message.topic.to_string());
    }
    ensure!(by_key.len() as u64 == KEYS, "{} keys", by_key.len());
    for (key, numbers) in &by_key {
        ensure!(numbers.iter().copied().eq(0..EACH), "{key:?}: {numbers:?}");
        ensure!(topics[key].len() == 1, "{key:?} is on {:?}", topics[key]);
    }

    receive_all(&consumers, KEYS * EACH).await?;
    end(server)
}

#[tokio::test]
async fn a_subscription_seeks_to_every_kind_of_place() -> Result<()> {
    let (_folder, server) = server().await?;
    let client = server.client()?;
    let producer = client.producer("t").batching(Batching::disabled());
    let producer = producer.open().await?;
    for number in 0..20u64 {
        producer.send(Message::new(number.to_string())).await?;
    }
    let consumer = client.consumer("t", "s").open().await?;
    let mut seen = Vec::new();
    for _ in 0..20 {
        seen.push(receive(&consumer).await?);
    }
    let time = seen[10].broker_time_ms;
    let at_time = seen
        .iter()
        .position(|message| message.broker_time_ms >= time)
        .context("message 10 has it")? as u64;
    for (place, expected) in [
        (Place::Index(seen[5].index), 5),
        (Place::Position(seen[7].position), 7),
        (Place::TimeMs(time), at_time),
        (Place::Earliest, 0),
    ] {
        let index = consumer.seek(place).await?;
        ensure!(index.0 == expected, "{place}: {index}");
        let message = receive(&consumer).await?;
        ensure!(number(&message)? == expected, "{place}: {message:?}");
    }
    // H12: what was received before the seek can no longer be acknowledged.
    let stale = consumer.ack_cumulative(&seen[19]).await;
    ensure!(stale == Err(ClientError::Stale), "{stale:?}");
    ensure!(consumer.seek(Place::Latest).await?.0 == 20, "the end");
    producer.send(Message::new("20")).await?;
    let message = receive(&consumer).await?;
    ensure!(number(&message)? == 20, "{message:?}");
    consumer.ack_cumulative(&message).await?;
    consumer.close().await?;

    let stats = client.admin().topic_stats("t").await?;
    let subscription = stats.subscriptions.first().context("it is durable")?;
    ensure!(subscription.backlog_messages == 0, "{subscription:?}");
    end(server)
}

/// I9: the one that takes over gets what was not acknowledged, in order, and nothing else.
#[tokio::test]
async fn failover_hands_over_what_is_not_acknowledged() -> Result<()> {
    let (_folder, server) = server().await?;
    let client = server.client()?;
    let open = |priority| {
        let consumer = client.consumer("t", "s").kind(SubscriptionType::Failover);
        consumer.priority(priority).open()
    };
    let first = open(0).await?;
    let second = open(1).await?;
    publish(&client, "t", 0..100).await?;
    let mut last = None;
    for expected in 0..40 {
        let message = receive(&first).await?;
        ensure!(number(&message)? == expected, "{message:?}");
        last = Some(message);
    }
    first.ack_cumulative(&last.context("forty")?).await?;
    ensure!(
        first.is_active() && !second.is_active(),
        "the lowest priority number is served"
    );
    first.close().await?;
    for expected in 40..100 {
        let message = receive(&second).await?;
        ensure!(
            number(&message)? == expected,
            "{message:?} is not {expected}"
        );
    }
    ensure!(second.is_active(), "it is served now");
    end(server)
}

#[tokio::test]
async fn a_nack_brings_the_message_and_all_behind_it_again_in_order() -> Result<()> {
    let (_folder, server) = server().await?;
    let client = server.client()?;
    publish(&client, "t", 0..500).await?;
    for kind in [SubscriptionType::Exclusive, SubscriptionType::Failover] {
        let consumer = client.consumer("t", &format!("{kind:?}")).kind(kind);
        let consumer = consumer.queue_messages(50).open().await?;
        let mut nacked = BTreeSet::new();
        let mut next = 0;
        while next < 500 {
            let message = receive(&consumer).await?;
            ensure!(
                number(&message)? == next,
                "{kind:?}: {} where {next} is due",
                number(&message)?
            );
            if next % 7 == 3 && nacked.insert(next) {
                consumer.nack(&message);
                continue;
            }
            if next % 11 == 0 {
                consumer.ack_cumulative(&message).await?;
            }
            next += 1;
        }
        consumer.close().await?;
    }
    end(server)
}

/// I8: a producer that starts again under its name and sends again is told where it is stored.
#[tokio::test]
async fn a_restarted_producer_stores_nothing_twice() -> Result<()> {
    let (_folder, mut server) = server().await?;
    let client = server.client()?;
    let mut stored = Vec::new();
    let producer = client.producer("t").name("till").open().await?;
    for id in [0u64, 1, 5, 9] {
        let message = Message::new(id.to_string()).sequence_id(id);
        stored.push(producer.send(message).await?);
    }
    drop(producer);
    server.kill()?;
    server.restart()?;
    let producer = within("the name to be free", async {
        loop {
            match client.producer("t").name("till").open().await {
                Ok(producer) => return Ok(producer),
                Err(error) if error.kind() == ErrorKind::Busy => {}
                Err(error) => return Err(error.into()),
            }
        }
    })
    .await?;
    ensure!(producer.last_sequence_id() == Some(9), "it continues there");
    for receipt in &stored {
        let id = receipt.sequence_id;
        let message = Message::new(id.to_string()).sequence_id(id);
        let again = producer.send(message).await?;
        ensure!(again.duplicate, "{again:?}");
        ensure!(
            again.index.is_none() || again.index == receipt.index,
            "{again:?} is not {receipt:?}"
        );
    }
    let fresh = producer.send(Message::new("10")).await?;
    ensure!(!fresh.duplicate && fresh.sequence_id == 10, "{fresh:?}");
    let messages = read_all(&client, "t").await?;
    let numbers = messages.iter().map(number).collect::<Result<Vec<_>>>()?;
    ensure!(numbers == [0, 1, 5, 9, 10], "{numbers:?}");
    end(server)
}

#[tokio::test]
async fn a_producer_name_is_busy_until_it_is_taken_over() -> Result<()> {
    let (_folder, server) = server().await?;
    let client = server.client()?;
    let first = client.producer("t").name("p").open().await?;
    first.send(Message::new("0")).await?;
    let other = server.client()?;
    match other.producer("t").name("p").open().await {
        Ok(_) => bail!("two producers of one name"),
        Err(error) => ensure!(error.kind() == ErrorKind::Busy, "{error:?}"),
    }
    let second = other.producer("t").name("p").take_over(true).open().await?;
    ensure!(second.last_sequence_id() == Some(0), "it continues");
    second.send(Message::new("1")).await?;
    match first.send(Message::new("2")).await {
        Ok(receipt) => bail!("the fenced one stored at {receipt:?}"),
        Err(error) => ensure!(error.kind() == ErrorKind::Fenced, "{error:?}"),
    }
    ensure!(read_all(&client, "t").await?.len() == 2, "0 and 1");
    end(server)
}

#[tokio::test]
async fn a_second_exclusive_consumer_is_refused_at_once() -> Result<()> {
    let (_folder, server) = server().await?;
    let client = server.client()?;
    let first = client.consumer("t", "s").open().await?;
    match server.client()?.consumer("t", "s").open().await {
        Ok(_) => bail!("two exclusive consumers"),
        Err(error) => {
            ensure!(error.kind() == ErrorKind::Busy, "{error:?}");
            ensure!(error.outcome() == Outcome::NotApplied, "{error:?}");
        }
    }
    first.close().await?;
    // Closing has waited for the broker to let go.
    client.consumer("t", "s").open().await?;
    end(server)
}

/// A topic of the same name is another topic: what was open on the old one is told.
#[tokio::test]
async fn a_topic_made_anew_has_nothing_of_the_old_one() -> Result<()> {
    let (_folder, server) = server().await?;
    let client = server.client()?;
    let producer = client.producer("t").name("p").open().await?;
    producer.send(Message::new("old")).await?;
    let consumer = client.consumer("t", "s").open().await?;
    ensure!(receive(&consumer).await?.payload == "old", "the old one");
    client.admin().delete_topic("t", true).await?;
    client.admin().create_topic("t", 0).await?;
    for error in [
        within("the old producer's end", async {
            Ok(producer.send(Message::new("late")).await.err())
        })
        .await?,
        within("the old consumer's end", async {
            Ok(consumer.receive().await.err())
        })
        .await?,
    ] {
        let kind = error.as_ref().map(ClientError::kind);
        ensure!(
            matches!(kind, Some(ErrorKind::Fenced | ErrorKind::NotFound)),
            "{error:?}"
        );
    }
    ensure!(read_all(&client, "t").await?.is_empty(), "it is empty");
    let producer = client.producer("t").name("p").open().await?;
    ensure!(producer.last_sequence_id().is_none(), "ids start again");
    let receipt = producer.send(Message::new("new")).await?;
    ensure!(receipt.index.map(|index| index.0) == Some(0), "{receipt:?}");
    end(server)
}

/// I13: a consumer that does not receive bounds its own memory and not the speed of others.
#[tokio::test]
async fn a_consumer_that_stands_still_stops_nobody() -> Result<()> {
    let (_folder, server) = server().await?;
    let client = server.client()?;
    let still = client
        .consumer("t", "still")
        .queue_messages(10)
        .open()
        .await?;
    let busy = client.consumer("t", "busy").open().await?;
    let producer = client.producer("t").open().await?;
    let payload = Bytes::from(vec![b'x'; 10_000]);
    let publishing = async {
        let mut pending = Vec::new();
        for _ in 0..2_000 {
            pending.push(producer.enqueue(Message::new(payload.clone())).await?);
        }
        for sent in pending {
            sent.await?;
        }
        Ok(())
    };
    let receiving = async {
        for _ in 0..2_000 {
            let message = busy.receive().await?;
            drop(busy.ack(&message));
        }
        Ok(())
    };
    within("20 MB beside a consumer that stands still", async {
        futures::try_join!(publishing, receiving)
    })
    .await?;
    for expected in 0..2_000 {
        let message = receive(&still).await?;
        ensure!(message.index.0 == expected, "{} {expected}", message.index);
    }
    end(server)
}

#[tokio::test]
async fn a_reader_leaves_nothing_behind() -> Result<()> {
    let (_folder, server) = server().await?;
    let client = server.client()?;
    publish(&client, "t", 0..100).await?;
    let reader = client
        .reader("t")
        .start(Place::Index(Index(90)))
        .open()
        .await?;
    let numbers = rest(&reader).await?;
    ensure!(numbers.len() == 10, "{}", numbers.len());
    ensure!(reader.end_index().await?.0 == 100, "the end");
    reader.close().await?;
    // One that is just dropped leaves nothing either.
    drop(client.reader("t").open().await?);
    until("the readers to be gone", || async {
        let stats = client.admin().topic_stats("t").await?;
        Ok(stats.subscriptions.is_empty().then_some(()))
    })
    .await?;
    end(server)
}
