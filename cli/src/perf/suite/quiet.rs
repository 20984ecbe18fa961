//! Rows of a quiet server: how fast it starts, how large it is, how quickly it answers.

use std::fs;

use crate::exit::CliError;
use crate::perf::{Until, e2e};

use super::{Bound, Row, Suite};

impl Suite {
    /// Start to ready with a new data directory, and the size of the binary.
    pub(super) fn start_and_size(&mut self) -> Result<(), CliError> {
        self.rows.push(Row::new(
            "start to ready, new data directory",
            self.server.start_ms,
            "ms",
            Bound::AtMost,
            100.0,
        ));
        let program = std::env::current_exe().and_then(fs::metadata);
        let bytes = program
            .map_err(|error| CliError::failed(format!("cannot see this program: {error}")))?
            .len();
        let size = Row::new("binary", bytes as f64 / 1e6, "MB", Bound::AtMost, 40.0);
        self.rows.push(size);
        Ok(())
    }

    /// End to end at 1,000 messages a second.
    pub(super) async fn latency(&mut self) -> Result<(), CliError> {
        let client = self.client()?;
        let topic = self.topic();
        let mut load = self.load(&topic, Until::Elapsed(self.seconds(15)), 1_000);
        load.rate = Some(1_000.0);
        load.stamped = true;
        let done = e2e::run(&client, &load, &topic, 1, |_| ()).await?;
        self.remove(&client, &[topic]).await?;
        let latency = done.all.latencies.summary();
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
            done.published.latencies.summary().p50 / 1e3,
            done.all.counted.errors
        );
        self.rows.push(row.note(note));
        Ok(())
    }
}
