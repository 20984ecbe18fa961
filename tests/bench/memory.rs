//! Rows about what stays when the load is gone: resident memory, and reading from a cold disk.

use std::time::Duration;

use anyhow::Result;
use aquifer_runtime::clock::sleep;

use crate::Suite;
use crate::row::{Bound, Row};

/// Consumers, and readers, that take nothing. Their number is not to count.
const STALLED: u32 = 10;

impl Suite {
    /// Waits until a server without load has flushed and given memory back. The same in a quick
    /// run: less would say nothing.
    pub(crate) async fn quiet_down(&self) {
        sleep(Duration::from_secs(15)).await;
    }

    /// Resident memory of an idle server, after load.
    pub(crate) async fn idle_memory(&mut self) -> Result<()> {
        self.quiet_down().await;
        let usage = self.server.usage()?;
        self.rows.push(Row::new(
            "resident memory, idle after load",
            usage.resident_bytes / 1e6,
            "MB",
            Bound::AtMost,
            32.0,
        ));
        Ok(())
    }

    /// Publishes at full speed for a minute while consumers, each of a subscription of its own, and
    /// readers are connected that take nothing (I13).
    pub(crate) async fn stalled_consumer(&mut self) -> Result<()> {
        let client = self.client()?;
        let topic = self.topic();
        let (mut consumers, mut readers) = (Vec::new(), Vec::new());
        for number in 0..STALLED {
            let subscription = format!("stalled-{number}");
            consumers.push(client.consumer(&topic, &subscription).open().await?);
            readers.push(client.reader(&topic).open().await?);
        }
        self.server.forget_peak()?;
        let load = self.load(self.seconds(60), 10_000).topic(&topic);
        let published = load.produce().await?.complete()?;
        let peak = self.server.usage()?.peak_bytes;
        // All are still there: what they asked for at first waits for them.
        for (consumer, reader) in consumers.iter().zip(&readers) {
            consumer.receive().await?;
            reader.next().await?;
        }
        drop((consumers, readers));
        self.remove(&client, &[topic]).await?;
        let row = Row::new(
            "resident memory, consumers and readers stalled under full publish load",
            peak / 1e6,
            "MB",
            Bound::AtMost,
            256.0,
        );
        let note = format!(
            "{STALLED} of each; {} messages in {:.0} s",
            published.messages, published.seconds
        );
        self.rows.push(row.note(note));
        Ok(())
    }

    /// Reads a backlog right after a restart, with nothing of it in memory.
    pub(crate) async fn cold_catch_up(&mut self) -> Result<()> {
        let topic = self.topic();
        let load = self.load(self.messages(3_000_000), 10_000).topic(&topic);
        load.produce().await?.complete()?;
        self.server.restart_cold()?;
        let received = load.consume().await?.complete()?;
        self.remove(&self.client()?, &[topic]).await?;
        let row = Row::new(
            "catch-up read, cold cache",
            received.bytes_per_second / 1e6,
            "MB/s",
            Bound::AtLeast,
            500.0,
        );
        let note = format!("restarted in {:.0} ms", self.server.start_ms);
        self.rows.push(row.note(note));
        Ok(())
    }
}
