//! A topic without streams, end to end: single appends and reads, waiting for what others publish,
//! lookups, and positions that are committed by name.

use std::time::Duration;

use anyhow::{Result, ensure};
use aquifer_client::topic::Fetched;
use aquifer_client::{ErrorKind, Index, Message, ReadOptions};
use aquifer_harness::server::{Server, ServerOptions};
use aquifer_harness::wait::within;
use aquifer_model::place::Place;

const WAITING: ReadOptions = ReadOptions {
    bytes_max: 1 << 20,
    batches_max: 1024,
    bytes_min: 1,
    wait: Duration::from_secs(20),
};

fn texts(found: Fetched) -> Result<Vec<String>> {
    let text = |message: Result<aquifer_client::ReceivedMessage, _>| {
        Ok(String::from_utf8(message?.payload.to_vec())?)
    };
    found.map(text).collect()
}

#[tokio::test]
async fn a_topic_is_used_without_streams() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let mut server = Server::start(&data, ServerOptions::default()).await?;
    let client = server.client()?;
    let topic = client.topic("orders")?;

    let first = topic
        .append(&[Message::new("0"), Message::new("1")])
        .await?;
    ensure!(first.indexes == Some((Index(0), Index(1))) && first.broker_time_ms.is_some());
    let named = topic.append_as("p", 7, &[Message::new("2")]).await?;
    ensure!(named.indexes == Some((Index(2), Index(2))) && !named.duplicate);
    let again = topic.append_as("p", 7, &[Message::new("2")]).await?;
    ensure!(again.indexes == named.indexes && again.duplicate);
    let empty = topic.append(&[]).await.map_err(|error| error.kind());
    ensure!(empty == Err(ErrorKind::Invalid));

    // A read from inside a batch begins there; one at the end waits for what another publishes.
    let found = topic.read(Index(1), ReadOptions::default()).await?;
    ensure!(found.next == Index(3) && found.bounds.visible_end == Index(3));
    ensure!(texts(found)? == ["1", "2"]);
    let producer = client.producer("orders").open().await?;
    let publish = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok::<_, anyhow::Error>(producer.send(Message::new("3")).await?)
    };
    let waits = async { Ok(topic.read(Index(3), WAITING).await?) };
    let both = within("a message", async { tokio::try_join!(waits, publish) });
    let (found, receipt) = both.await?;
    ensure!(texts(found)? == ["3"] && receipt.index == Some(Index(3)));
    let behind = topic.read(Index(9), WAITING).await.map(|_| ());
    ensure!(behind.map_err(|error| error.kind()) == Err(ErrorKind::Invalid));

    let at = topic.locate(Place::Index(Index(1))).await?;
    let position = at.position.ok_or_else(|| anyhow::anyhow!("a position"))?;
    ensure!(position.batch_index == 1, "{position}");
    ensure!(topic.locate(Place::Position(position)).await? == at);
    let by_time = topic
        .locate(Place::TimeMs(receipt_time(&topic, 3).await?))
        .await?;
    ensure!(by_time.index <= Index(3) && by_time.broker_time_ms.is_some());
    let end = topic.locate(Place::Latest).await?;
    ensure!((end.index, end.position) == (Index(4), None));
    ensure!(topic.bounds().await?.first == Index(0));

    // A consumer and commits go on from each other.
    let consumer = client.consumer("orders", "desk").open().await?;
    for expected in 0..4_u64 {
        let message = within("a message", async { Ok(consumer.receive().await?) }).await?;
        ensure!(message.index == Index(expected));
        consumer.ack(&message).await?;
    }
    ensure!(topic.committed("desk").await? == Some(Index(4)));
    ensure!(topic.commit("desk", Index(2), false).await? == Index(2));
    for expected in 2..4_u64 {
        let message = within("a redelivery", async { Ok(consumer.receive().await?) }).await?;
        ensure!(message.index == Index(expected), "{}", message.index);
    }
    ensure!(topic.committed("other").await?.is_none());
    let absent = topic.commit("other", Index(1), false).await;
    ensure!(absent.map_err(|error| error.kind()) == Err(ErrorKind::NotFound));
    ensure!(topic.commit("other", Index(1), true).await? == Index(1));
    ensure!(topic.commit("other", Index(3), false).await? == Index(3));
    consumer.close().await?;
    producer.close().await?;
    server.stop()?;
    server.check_logs()
}

async fn receipt_time(topic: &aquifer_client::Topic, index: u64) -> Result<u64> {
    let found = topic.locate(Place::Index(Index(index))).await?;
    found
        .broker_time_ms
        .ok_or_else(|| anyhow::anyhow!("no message at {index}"))
}
