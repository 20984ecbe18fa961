//! Publishing while a backlog is offloaded, with the settings that brokers have.

use anyhow::Result;
use aquifer_client::Place;

use crate::Suite;
use crate::load::Load;
use crate::objects::store::Store;
use crate::objects::{MESSAGE_BYTES, TOPICS, namespace};
use crate::row::{Bound, Row};
use crate::server::Measured;

/// Messages a second: what a machine of two cores does without effort.
const RATE: f64 = 20_000.0;
const SECONDS: u64 = 8;
/// More than is offloaded meanwhile.
const BACKLOG_BYTES: u64 = 1 << 30;

impl Suite {
    /// The slowest hundredth of publishes, beside offload and without.
    pub(crate) async fn publish_beside_offload(&mut self) -> Result<()> {
        let directory = self.directory.join("objects-beside");
        let store = match Store::s3(&directory).await {
            Ok(store) => store,
            Err(_) => Store::directory(&directory)?,
        };
        let mut server = Measured::start_with(&directory.join("data"), store.options()?).await?;
        let client = server.client()?;
        namespace(&client, if self.quick { 8 << 20 } else { 64 << 20 }).await?;
        let backlog = self.messages(BACKLOG_BYTES / u64::from(MESSAGE_BYTES));
        let backlog = Load::new(server.url(), backlog, 1_000).size(MESSAGE_BYTES);
        backlog.topic(TOPICS[0]).produce().await?.complete()?;
        self.removed().await;
        let publish = Load::new(server.url(), self.seconds(SECONDS), 10_000).rate(RATE);
        let without = publish.produce().await?.complete()?.latency_us;
        self.removed().await;
        let admin = client.admin();
        let (_, due) = admin.offload_topic(TOPICS[0], Place::Latest).await?;
        let beside = publish.produce().await?.complete()?.latency_us;
        let (_, left) = admin.offload_topic(TOPICS[0], Place::Latest).await?;
        server.stop()?;
        let row = Row::new(
            &format!("{}: publish p99 while a backlog is offloaded", store.name),
            beside.p99 / without.p99,
            "× of without",
            Bound::AtMost,
            1.2,
        );
        let note = format!(
            "p99 {:.2} ms, without {:.2} ms; {} MB offloaded meanwhile{}",
            beside.p99 / 1e3,
            without.p99 / 1e3,
            due.saturating_sub(left) / 1_000_000,
            if left == 0 { ", and nothing left" } else { "" }
        );
        self.rows.push(row.note(note));
        Ok(())
    }
}
