//! Work sharing: two consumers of one Shared subscription, each acknowledging what it has done.
//! What one of them fails to do is delivered again, to either.

use std::time::Duration;

use aquifer_client::{Client, ClientError, Consumer, SubscriptionType};

async fn work(name: &str, consumer: Consumer) -> Result<usize, ClientError> {
    let mut done = 0;
    loop {
        let messages = consumer.receive_batch(100, Duration::from_secs(2)).await?;
        if messages.is_empty() {
            consumer.close().await?;
            return Ok(done);
        }
        let (good, bad): (Vec<_>, Vec<_>) = messages
            .into_iter()
            .partition(|message| !message.payload.is_empty());
        for message in &bad {
            println!(
                "{name}: message {} is empty, try again later",
                message.index
            );
            consumer.nack(message);
        }
        done += good.len();
        consumer.ack_all(&good).await?;
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let client = Client::builder().url("http://127.0.0.1:7650").build()?;
    let open = |name: &'static str| {
        let consumer = client.consumer("readings", "workers");
        consumer.kind(SubscriptionType::Shared).name(name).open()
    };
    let (first, second) = (open("first").await?, open("second").await?);
    let (first, second) = tokio::try_join!(work("first", first), work("second", second))?;
    println!("first did {first}, second {second}");
    Ok(())
}
