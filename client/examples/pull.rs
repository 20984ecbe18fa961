//! Reads a topic at its own pace, without a stream, and keeps its place under a name: run it again,
//! and it goes on where it ended.

use std::time::Duration;

use aquifer_client::{Client, Index, Message, ReadOptions};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let client = Client::builder().url("http://127.0.0.1:7650").build()?;
    let topic = client.topic("pulled")?;
    topic
        .append(&[Message::new("one"), Message::new("two")])
        .await?;

    let mut next = topic.committed("reporter").await?.unwrap_or(Index(0));
    let options = ReadOptions {
        wait: Duration::from_secs(1),
        ..ReadOptions::default()
    };
    loop {
        let found = topic.read(next, options).await?;
        let after = found.next;
        for message in found {
            let message = message?;
            println!("{} {:?}", message.index, message.payload);
        }
        if after == next {
            return Ok(());
        }
        next = topic.commit("reporter", after, true).await?;
    }
}
