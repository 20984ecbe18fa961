//! Reading back: everything of the last hour, without a subscription and without leaving anything
//! behind on the broker.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aquifer_client::{Client, Place};

const BACK: Duration = Duration::from_secs(3600);

#[tokio::main]
#[allow(
    clippy::disallowed_methods,
    reason = "an application's own clock; only the platform itself must not ask for the time"
)]
async fn main() -> anyhow::Result<()> {
    let client = Client::builder().url("http://127.0.0.1:7650").build()?;
    let start = SystemTime::now().duration_since(UNIX_EPOCH)? - BACK;
    let start = Place::TimeMs(u64::try_from(start.as_millis())?);

    let reader = client.reader("readings").start(start).open().await?;
    let mut count = 0_u64;
    while let Some(message) = reader.next_available().await? {
        count += 1;
        println!(
            "{} {:?} {}",
            message.index,
            message.key,
            String::from_utf8_lossy(&message.payload)
        );
    }
    println!("{count} messages in the last hour");
    reader.close().await?;
    Ok(())
}
