//! Rows of a server that has nothing else to do: how soon it starts, how large it is, how quickly
//! it answers.

use std::fs;

use anyhow::{Context, Result};
use aquifer_harness::server::binary;

use crate::Suite;
use crate::row::{Bound, Row};

impl Suite {
    /// Start to ready with a new data directory, and the size of the binary.
    pub(crate) fn start_and_size(&mut self) -> Result<()> {
        self.rows.push(Row::new(
            "start to ready, new data directory",
            self.server.start_ms,
            "ms",
            Bound::AtMost,
            100.0,
        ));
        let program = fs::metadata(binary()).context("cannot see the binary")?;
        let bytes = program.len();
        let size = Row::new("binary", bytes as f64 / 1e6, "MB", Bound::AtMost, 40.0);
        self.rows.push(size);
        Ok(())
    }

    /// End to end at 1,000 messages a second.
    pub(crate) async fn latency(&mut self) -> Result<()> {
        let load = self.load(self.seconds(15), 1_000).rate(1_000.0);
        let done = load.end_to_end().await?;
        self.removed().await;
        let latency = done.received.latency_us;
        let sync_ms = self.disk_sync_ms();
        let row = Row::new(
            "end-to-end latency at 1,000 msg/s, p50",
            latency.p50 / 1e3,
            "ms",
            Bound::AtMost,
            sync_ms + 0.25,
        );
        let note = format!("4 KiB sync {sync_ms:.2} ms + 0.25 ms");
        self.rows.push(row.note(note));
        let row = Row::new(
            "end-to-end latency at 1,000 msg/s, p99",
            latency.p99 / 1e3,
            "ms",
            Bound::AtMost,
            3.0,
        );
        let note = format!(
            "p99.9 {:.2} ms; publishing alone p50 {:.2} ms; {} missing",
            latency.p999 / 1e3,
            done.published.latency_us.p50 / 1e3,
            done.received.errors
        );
        self.rows.push(row.note(note));
        Ok(())
    }
}
