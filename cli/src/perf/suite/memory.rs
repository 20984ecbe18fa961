//! Rows about what stays when the load is gone: resident memory, and reading from a cold disk.

use std::time::Duration;

use aquifer_runtime::clock::sleep;

use crate::exit::CliError;

use crate::perf::Until;

use super::{Bound, MESSAGE_BYTES, Row, Suite, complete};

impl Suite {
    /// Waits until a server without load has flushed and given memory back. The same in a quick
    /// run: less would say nothing.
    pub(super) async fn quiet_down(&self) {
        sleep(Duration::from_secs(15)).await;
    }

    /// Resident memory of an idle server, after load.
    pub(super) async fn idle_memory(&mut self) -> Result<(), CliError> {
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

    /// Publishes at full speed for a minute while one consumer and one reader are connected that
    /// take nothing (I13).
    pub(super) async fn stalled_consumer(&mut self) -> Result<(), CliError> {
        let client = self.client()?;
        let topic = self.topic();
        let consumer = client.consumer(&topic, "stalled").open().await?;
        let reader = client.reader(&topic).open().await?;
        self.server.forget_peak();
        let load = self.load(&topic, Until::Elapsed(self.seconds(60)), 10_000);
        let published = complete(load.run(&client, |_| ()).await?)?;
        let peak = self.server.usage()?.peak_bytes;
        // Both are still there: what they asked for at first waits for them.
        consumer.receive().await?;
        reader.next().await?;
        drop((consumer, reader));
        self.remove(&client, &[topic]).await?;
        let row = Row::new(
            "resident memory, a consumer and a reader stalled under full publish load",
            peak / 1e6,
            "MB",
            Bound::AtMost,
            256.0,
        );
        let counted = &published.counted;
        let seconds = counted.elapsed.as_secs_f64();
        self.rows
            .push(row.note(format!("{} messages in {seconds:.0} s", counted.messages)));
        Ok(())
    }

    /// Reads a backlog right after a restart, with nothing of it in memory.
    pub(super) async fn cold_catch_up(&mut self) -> Result<(), CliError> {
        let client = self.client()?;
        let topic = self.topic();
        let load = self.load(&topic, self.messages(3_000_000), 10_000);
        let published = complete(load.run(&client, |_| ()).await?)?;
        drop(client);
        self.server.restart_cold().await?;
        let client = self.client()?;
        let received = self
            .consume_all(&client, &topic, published.counted.messages)
            .await?;
        self.remove(&client, &[topic]).await?;
        let bytes = received.counted.messages as f64 * MESSAGE_BYTES as f64;
        let row = Row::new(
            "catch-up read, cold cache",
            bytes / 1e6 / received.counted.elapsed.as_secs_f64(),
            "MB/s",
            Bound::AtLeast,
            500.0,
        );
        let note = format!("restarted in {:.0} ms", self.server.start_ms);
        self.rows.push(row.note(note));
        Ok(())
    }
}
