//! Rows of a server under load.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aquifer_client::{Client, Place};
use aquifer_runtime::clock::{Clock, SystemClock, sleep};

use crate::exit::CliError;
use crate::perf::receive::{ReceiveLoad, Received};
use crate::perf::{Until, e2e};

use super::{Bound, MESSAGE_BYTES, Row, Suite, complete, per_second};

/// How long consuming may go on without a message.
const SILENCE_MAX: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(5);
const TOPICS: usize = 1_000;
/// Bytes that the bookie read for somebody; consumers at the tail should cause none.
const STORAGE_READS: &str = "aquifer_bookie_read_bytes_total";

impl Suite {
    /// One producer, the SDK's defaults, 1,000 outstanding.
    pub(super) async fn publish_window(&mut self) -> Result<(), CliError> {
        let client = self.client()?;
        let topic = self.topic();
        let warm_up = self.load(&topic, Until::Count(self.count(200_000)), 1_000);
        complete(warm_up.run(&client, |_| ()).await?)?;
        let load = self.load(&topic, self.messages(3_000_000), 1_000);
        let published = complete(load.run(&client, |_| ()).await?)?;
        self.remove(&client, &[topic]).await?;
        let disk = self.disk_bytes_per_second() * 0.25 / MESSAGE_BYTES as f64;
        let row = Row::new(
            "publish, 1,000 outstanding",
            per_second(&published),
            "msg/s",
            Bound::AtLeast,
            disk.min(500_000.0),
        );
        let latency = published.latencies.summary();
        let note = format!(
            "p50 {:.1} ms, p99 {:.1} ms",
            latency.p50 / 1e3,
            latency.p99 / 1e3
        );
        self.rows.push(row.note(note));
        Ok(())
    }

    /// 10,000 outstanding; the memory and CPU that it takes; and consuming what it wrote.
    pub(super) async fn publish_batched(&mut self) -> Result<(), CliError> {
        let client = self.client()?;
        let topic = self.topic();
        self.server.forget_peak();
        let before = self.server.usage()?;
        let load = self.load(&topic, self.messages(4_000_000), 10_000);
        let published = complete(load.run(&client, |_| ()).await?)?;
        let peak = self.server.usage()?.peak_bytes;
        self.alone = Some(per_second(&published));
        let count = published.counted.messages;
        let received = self.consume_all(&client, &topic, count).await?;
        let after = self.server.usage()?;
        self.remove(&client, &[topic]).await?;

        let disk = self.disk_bytes_per_second() * 0.4;
        self.rows.push(Row::new(
            "publish, batched, 10,000 outstanding",
            per_second(&published) * MESSAGE_BYTES as f64 / 1e6,
            "MB/s",
            Bound::AtLeast,
            disk.min(800e6) / 1e6,
        ));
        self.rows.push(Row::new(
            "consume a backlog just written",
            received.counted.messages as f64 / received.counted.elapsed.as_secs_f64(),
            "msg/s",
            Bound::AtLeast,
            1_000_000.0,
        ));
        let cpu = after.cpu_seconds - before.cpu_seconds;
        self.rows.push(Row::new(
            "server CPU, publish and consume a million",
            cpu / (count as f64 / 1e6),
            "s",
            Bound::AtMost,
            2.0,
        ));
        self.rows.push(Row::new(
            "resident memory under full publish load",
            peak / 1e6,
            "MB",
            Bound::AtMost,
            256.0,
        ));
        Ok(())
    }

    /// Publishing while a consumer follows.
    pub(super) async fn publish_and_tail(&mut self) -> Result<(), CliError> {
        let alone = self.alone().await?;
        let client = self.client()?;
        let topic = self.topic();
        let mut load = self.load(&topic, self.messages(3_000_000), 10_000);
        load.stamped = true;
        let done = e2e::run(&client, &load, &topic, 1, |_| ()).await?;
        complete(done.published)?;
        self.remove(&client, &[topic]).await?;
        let both = done.all.counted.messages as f64 / done.all.counted.elapsed.as_secs_f64();
        let row = Row::new(
            "publish and tail consume together",
            100.0 * both / alone,
            "% of publish alone",
            Bound::AtLeast,
            60.0,
        );
        let missing = done.all.counted.errors;
        self.rows
            .push(row.note(format!("{both:.0} msg/s; {missing} missing")));
        Ok(())
    }

    /// One publisher at 100,000 messages a second, ten subscriptions.
    pub(super) async fn fan_out(&mut self) -> Result<(), CliError> {
        let client = self.client()?;
        let topic = self.topic();
        let mut load = self.load(&topic, Until::Elapsed(self.seconds(10)), 100_000);
        load.rate = Some(100_000.0);
        load.stamped = true;
        let read_before = self.server.metric(STORAGE_READS).await?;
        let done = e2e::run(&client, &load, &topic, 10, |_| ()).await?;
        let read = self.server.metric(STORAGE_READS).await? - read_before;
        self.remove(&client, &[topic]).await?;
        let elapsed = done.published.counted.elapsed.as_secs_f64();
        let kept_up = done.all.counted.messages.saturating_sub(done.lag_at_end);
        let row = Row::new(
            "deliveries to 10 subscriptions of 100,000 msg/s",
            kept_up as f64 / elapsed,
            "msg/s",
            Bound::AtLeast,
            990_000.0,
        );
        let note = format!(
            "published {:.0} msg/s; behind at the end {}; p99 {:.1} ms",
            per_second(&done.published),
            done.lag_at_end,
            done.all.latencies.summary().p99 / 1e3
        );
        self.rows.push(row.note(note));
        self.rows.push(Row::new(
            "storage read for these deliveries",
            read / 1e6,
            "MB",
            Bound::AtMost,
            0.0,
        ));
        Ok(())
    }

    /// The slowest thousandth at 300,000 messages a second, and at half of what is possible.
    pub(super) async fn steady_rates(&mut self) -> Result<(), CliError> {
        let half = self.alone().await? / 2.0;
        for (name, rate, target) in [
            (
                "publish p99.9 at 300,000 msg/s, median of 3",
                300_000.0,
                15.0,
            ),
            ("publish p99.9 at half the maximum, median of 3", half, 30.0),
        ] {
            let client = self.client()?;
            let mut runs = Vec::new();
            let mut reached = 0.0;
            for _ in 0..3 {
                let topic = self.topic();
                let mut load = self.load(&topic, Until::Elapsed(self.seconds(8)), 200_000);
                load.rate = Some(rate);
                let published = complete(load.run(&client, |_| ()).await?)?;
                self.remove(&client, &[topic]).await?;
                runs.push(published.latencies.percentile_us(99.9) / 1e3);
                reached = per_second(&published);
            }
            runs.sort_by(f64::total_cmp);
            let row = Row::new(name, runs[1], "ms", Bound::AtMost, target);
            let note = format!("{reached:.0} msg/s reached; runs {runs:.1?}");
            self.rows.push(row.note(note));
        }
        Ok(())
    }

    /// A thousand topics at once, with the totals of one.
    pub(super) async fn thousand_topics(&mut self) -> Result<(), CliError> {
        let alone = self.alone().await?;
        let client = self.client()?;
        let base = self.topic();
        let topics: Vec<String> = (0..TOPICS).map(|n| format!("{base}-{n}")).collect();
        let mut load = self.load(&base, self.messages(3_000_000), 10);
        load.topics.clone_from(&topics);
        let published = complete(load.run(&client, |_| ()).await?)?;
        self.remove(&client, &topics).await?;
        let rate = per_second(&published);
        let row = Row::new(
            "1,000 topics written at once",
            100.0 * rate / alone,
            "% of one topic",
            Bound::AtLeast,
            60.0,
        );
        self.rows.push(row.note(format!("{rate:.0} msg/s")));
        Ok(())
    }

    /// Publishing while another topic's backlog is read over and over.
    pub(super) async fn catch_up_while_publishing(&mut self) -> Result<(), CliError> {
        let alone = self.alone().await?;
        let client = self.client()?;
        let old = self.topic();
        let backlog = self.load(&old, self.messages(2_000_000), 10_000);
        let written = complete(backlog.run(&client, |_| ()).await?)?;
        let new = self.topic();
        let load = self.load(&new, self.messages(3_000_000), 10_000);
        let over = Arc::clone(&load.stop);
        let publishing = async {
            let published = load.run(&client, |_| ()).await;
            over.store(true, Ordering::Relaxed);
            published
        };
        let reading = async {
            let mut read = 0;
            while !over.load(Ordering::Relaxed) {
                let count = written.counted.messages;
                read += self
                    .consume_all(&client, &old, count)
                    .await?
                    .counted
                    .messages;
            }
            Ok::<u64, CliError>(read)
        };
        let (published, read) = futures::join!(publishing, reading);
        let published = complete(published?)?;
        let read = read?;
        self.remove(&client, &[old, new]).await?;
        let rate = per_second(&published);
        let row = Row::new(
            "publish while catching up",
            100.0 * rate / alone,
            "% of publish alone",
            Bound::AtLeast,
            80.0,
        );
        self.rows
            .push(row.note(format!("{rate:.0} msg/s; {read} messages read beside")));
        Ok(())
    }

    /// One consumer reads a topic from its start.
    pub(super) async fn consume_all(
        &self,
        client: &Client,
        topic: &str,
        messages: u64,
    ) -> Result<Received, CliError> {
        let load = ReceiveLoad {
            topic: topic.to_owned(),
            payload: None,
            queue: None,
        };
        let receiving = load.start(client, 1, true, Place::Earliest, |_| ()).await?;
        receiving.end_after(messages);
        let mut last = (SystemClock.monotonic(), 0);
        while !receiving.is_finished() {
            let now = SystemClock.monotonic();
            if receiving.total() > last.1 {
                last = (now, receiving.total());
            }
            if now.saturating_sub(last.0) > SILENCE_MAX {
                receiving.stop();
            }
            sleep(LOOK).await;
        }
        let received = Received::all(&receiving.finish().await?);
        if received.counted.messages < messages {
            let missing = messages - received.counted.messages;
            return Err(CliError::failed(format!(
                "{missing} messages did not arrive"
            )));
        }
        Ok(received)
    }
}
