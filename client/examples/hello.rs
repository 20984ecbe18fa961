//! The first message: send one, receive it, acknowledge it.
//!
//! Start a broker with `aquifer standalone`, then `cargo run -p aquifer-client --example hello`.

use aquifer_client::{Client, Message};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let client = Client::builder().url("http://127.0.0.1:7650").build()?;

    let producer = client.producer("hello").open().await?;
    let receipt = producer.send(Message::new("Hello, Aquifer!")).await?;
    println!("stored, durably: {receipt:?}");

    let consumer = client.consumer("hello", "example").open().await?;
    let message = consumer.receive().await?;
    println!("received: {}", String::from_utf8_lossy(&message.payload));
    consumer.ack(&message).await?;

    producer.close().await?;
    consumer.close().await?;
    Ok(())
}
