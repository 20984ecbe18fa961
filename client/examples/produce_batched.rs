//! Throughput: accept many messages without waiting for each, then wait for all of them.
//!
//! Nothing needs tuning: batches form while earlier ones are under way. `enqueue` waits only when
//! too much is in flight, so memory stays bounded however fast this loop is.

use aquifer_client::{Client, Compression, Message};

const MESSAGES: u64 = 100_000;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let client = Client::builder().url("http://127.0.0.1:7650").build()?;
    let producer = client
        .producer("readings")
        .name("meter-1")
        .compression(Compression::Lz4)
        .open()
        .await?;

    let mut pending = Vec::new();
    for n in 0..MESSAGES {
        let reading = format!("{{\"sensor\":{},\"value\":{n}}}", n % 100);
        let message = Message::new(reading).key(format!("sensor-{}", n % 100));
        pending.push(producer.enqueue(message).await?);
    }
    let mut last = None;
    for receipt in pending {
        last = Some(receipt.await?);
    }
    println!("{MESSAGES} messages stored, the last: {last:?}");
    producer.close().await?;
    Ok(())
}
