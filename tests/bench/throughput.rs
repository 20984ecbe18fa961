//! Rows of a server under load.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

use crate::row::{Bound, Row};
use crate::{MESSAGE_BYTES, Suite};

const TOPICS: usize = 1_000;
/// Bytes that the bookie read on request; consumers at the tail should cause none.
const STORAGE_READS: &str = "aquifer_bookie_read_bytes_total";

impl Suite {
    /// One producer, the SDK's defaults, 1,000 outstanding.
    pub(crate) async fn publish_window(&mut self) -> Result<()> {
        let topic = self.topic();
        let warm_up = self.load(self.messages(200_000), 1_000).topic(&topic);
        warm_up.produce().await?.complete()?;
        let load = self.load(self.messages(3_000_000), 1_000).topic(&topic);
        let published = load.produce().await?.complete()?;
        self.remove(&self.client()?, &[topic]).await?;
        let disk = self.disk_bytes_per_second() * 0.25 / f64::from(MESSAGE_BYTES);
        let row = Row::new(
            "publish, 1,000 outstanding",
            published.messages_per_second,
            "msg/s",
            Bound::AtLeast,
            disk.min(500_000.0),
        );
        let latency = published.latency_us;
        let note = format!(
            "p50 {:.1} ms, p99 {:.1} ms",
            latency.p50 / 1e3,
            latency.p99 / 1e3
        );
        self.rows.push(row.note(note));
        Ok(())
    }

    /// 10,000 outstanding; the memory and CPU that it takes; and consuming what it wrote.
    pub(crate) async fn publish_batched(&mut self) -> Result<()> {
        let topic = self.topic();
        self.server.forget_peak()?;
        let before = self.server.usage()?;
        let load = self.load(self.messages(4_000_000), 10_000).topic(&topic);
        let published = load.produce().await?.complete()?;
        let peak = self.server.usage()?.peak_bytes;
        self.alone = Some(published.messages_per_second);
        let received = load.consume().await?.complete()?;
        let after = self.server.usage()?;
        self.remove(&self.client()?, &[topic]).await?;

        let disk = self.disk_bytes_per_second() * 0.4;
        self.rows.push(Row::new(
            "publish, batched, 10,000 outstanding",
            published.bytes_per_second / 1e6,
            "MB/s",
            Bound::AtLeast,
            disk.min(800e6) / 1e6,
        ));
        self.rows.push(Row::new(
            "consume a backlog just written",
            received.messages_per_second,
            "msg/s",
            Bound::AtLeast,
            1_000_000.0,
        ));
        let cpu = after.cpu_seconds - before.cpu_seconds;
        self.rows.push(Row::new(
            "server CPU, publish and consume a million",
            cpu / (published.messages as f64 / 1e6),
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
    pub(crate) async fn publish_and_tail(&mut self) -> Result<()> {
        let alone = self.alone().await?;
        let load = self.load(self.messages(3_000_000), 10_000);
        let done = load.end_to_end().await?;
        done.published.complete()?;
        self.removed().await;
        let both = done.received.messages_per_second;
        let row = Row::new(
            "publish and tail consume together",
            100.0 * both / alone,
            "% of publish alone",
            Bound::AtLeast,
            60.0,
        );
        let missing = done.received.errors;
        self.rows
            .push(row.note(format!("{both:.0} msg/s; {missing} missing")));
        Ok(())
    }

    /// One publisher at 100,000 messages a second, ten subscriptions.
    pub(crate) async fn fan_out(&mut self) -> Result<()> {
        let load = self.load(self.seconds(10), 100_000);
        let load = load.rate(100_000.0).consumers(10);
        let read_before = self.server.metric(STORAGE_READS).await?;
        let done = load.end_to_end().await?;
        let read = self.server.metric(STORAGE_READS).await? - read_before;
        self.removed().await;
        let kept_up = done.received.messages.saturating_sub(done.behind_at_end);
        let row = Row::new(
            "deliveries to 10 subscriptions of 100,000 msg/s",
            kept_up as f64 / done.published.seconds,
            "msg/s",
            Bound::AtLeast,
            990_000.0,
        );
        let note = format!(
            "published {:.0} msg/s; behind at the end {}; p99 {:.1} ms",
            done.published.messages_per_second,
            done.behind_at_end,
            done.received.latency_us.p99 / 1e3
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
    pub(crate) async fn steady_rates(&mut self) -> Result<()> {
        let half = self.alone().await? / 2.0;
        for (name, rate, target) in [
            (
                "publish p99.9 at 300,000 msg/s, median of 3",
                300_000.0,
                15.0,
            ),
            ("publish p99.9 at half the maximum, median of 3", half, 30.0),
        ] {
            let mut runs = Vec::new();
            let mut reached = 0.0;
            for _ in 0..3 {
                let load = self.load(self.seconds(8), 200_000).rate(rate);
                let published = load.produce().await?.complete()?;
                self.removed().await;
                runs.push(published.latency_us.p999 / 1e3);
                reached = published.messages_per_second;
            }
            runs.sort_by(f64::total_cmp);
            let row = Row::new(name, runs[1], "ms", Bound::AtMost, target);
            let note = format!("{reached:.0} msg/s reached; runs {runs:.1?}");
            self.rows.push(row.note(note));
        }
        Ok(())
    }

    /// A thousand topics at once, with the totals of one.
    pub(crate) async fn thousand_topics(&mut self) -> Result<()> {
        let alone = self.alone().await?;
        let load = self.load(self.messages(3_000_000), 10).topics(TOPICS);
        let published = load.produce().await?.complete()?;
        self.removed().await;
        let rate = published.messages_per_second;
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
    pub(crate) async fn catch_up_while_publishing(&mut self) -> Result<()> {
        let alone = self.alone().await?;
        let old = self.topic();
        let backlog = self.load(self.messages(2_000_000), 10_000).topic(&old);
        backlog.produce().await?.complete()?;
        let new = self.topic();
        let load = self.load(self.messages(3_000_000), 10_000).topic(&new);
        let over = AtomicBool::new(false);
        let publishing = async {
            let published = load.produce().await;
            over.store(true, Ordering::Relaxed);
            published
        };
        let reading = async {
            let mut read = 0;
            while !over.load(Ordering::Relaxed) {
                read += backlog.consume().await?.complete()?.messages;
            }
            anyhow::Ok(read)
        };
        let (published, read) = futures::join!(publishing, reading);
        let published = published?.complete()?;
        let read = read?;
        self.remove(&self.client()?, &[old, new]).await?;
        let rate = published.messages_per_second;
        let row = Row::new(
            "publish while catching up",
            100.0 * rate / alone,
            "% of publish alone",
            Bound::AtLeast,
            85.0,
        );
        self.rows
            .push(row.note(format!("{rate:.0} msg/s; {read} messages read beside")));
        Ok(())
    }
}
