//! Clients that lose their connections without the server noticing: nothing more passes, and
//! nothing says so.

use anyhow::{Context, Result, ensure};
use aquifer_client::{Client, Consumer, Message, SubscriptionType};
use aquifer_harness::proxy::{Flow, Proxy};
use aquifer_harness::server::{Server, ServerOptions};
use aquifer_harness::wait::within;

/// The server keeps the dead connection for 40 s, and with it a subscription that one consumer
/// holds. The client is back after some ten seconds, as the same consumer, and goes on at once.
#[tokio::test]
async fn a_consumer_that_was_cut_off_goes_on_by_another_way() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut server = Server::start(&folder.path().join("data"), ServerOptions::default()).await?;
    let direct = server.client()?;
    let address = server.url().replace("http://", "");
    let (dead, alive) = (Proxy::start(&address).await?, Proxy::start(&address).await?);
    let mut consumers = Vec::new();
    for kind in [
        SubscriptionType::Exclusive,
        SubscriptionType::Failover,
        SubscriptionType::Shared,
    ] {
        let client = Client::builder().urls([dead.url(), alive.url()]).build()?;
        let consumer = client.consumer("t", &format!("{kind:?}")).kind(kind);
        consumers.push((kind, consumer.open().await?));
    }
    let producer = direct.producer("t").open().await?;
    producer.send(Message::new("before")).await?;
    for (kind, consumer) in &consumers {
        ensure!(receive(consumer).await? == "before", "{kind:?}");
    }

    dead.requests(Flow::Hold);
    dead.answers(Flow::Hold);
    producer.send(Message::new("after")).await?;
    for (kind, consumer) in &consumers {
        let again = receive(consumer)
            .await
            .with_context(|| format!("{kind:?}"))?;
        ensure!(again == "before", "what it held comes to it again: {again}");
        ensure!(receive(consumer).await? == "after", "{kind:?}");
    }
    server.stop()?;
    server.check_logs()
}

async fn receive(consumer: &Consumer) -> Result<String> {
    let message = within("a message", async { Ok(consumer.receive().await?) }).await?;
    Ok(String::from_utf8(message.payload.to_vec())?)
}
