//! What a server takes with many offloads and many readers of objects at once, beside the bounds
//! that docs/operations/cold-storage.md has.

use anyhow::Result;
use aquifer_client::Place;

use crate::Suite;
use crate::load::{Load, Until};
use crate::objects::store::Store;
use crate::objects::{MESSAGE_BYTES, NAMESPACE, namespace, offload, until_dropped};
use crate::row::{Bound, Row};
use crate::server::Measured;

const TOPICS: usize = 100;
/// Messages of each topic that are in objects when readers begin, and as many that are offloaded
/// meanwhile.
const MESSAGES: u64 = 400;
/// Bytes: two workers of 64 MiB, and the defaults of `cold.index_cache_bytes_max`,
/// `cold.block_cache_bytes_max`, `cold.read_bytes_max` and of the read-ahead of all readers.
const BOUND_BYTES: f64 = ((2 * 64 + 16 + 32 + 32 + 32) << 20) as f64;

impl Suite {
    /// Resident memory above that of the same server before.
    pub(crate) async fn many_objects(&mut self) -> Result<()> {
        let directory = self.directory.join("objects-many");
        let store = match Store::s3(&directory).await {
            Ok(store) => store,
            Err(_) => Store::directory(&directory)?,
        };
        let mut server = Measured::start_with(&directory.join("data"), store.options()?).await?;
        let client = server.client()?;
        let messages = if self.quick { MESSAGES / 10 } else { MESSAGES };
        namespace(&client, messages * u64::from(MESSAGE_BYTES) / 4).await?;
        let topics: Vec<String> = (0..TOPICS)
            .map(|number| format!("{NAMESPACE}/many-{number}"))
            .collect();
        let count = Until::Count(messages * TOPICS as u64);
        let load = Load::new(server.url(), count, 100).size(MESSAGE_BYTES);
        let load = load.topic(&format!("{NAMESPACE}/many")).topics(TOPICS);
        load.produce().await?.complete()?;
        offload(&client, &topics).await?;
        let mut ends = Vec::new();
        for topic in &topics {
            ends.push(until_dropped(&client, topic).await?);
        }
        load.produce().await?.complete()?;
        server.forget_peak()?;
        let before = server.usage()?.resident_bytes;
        let read = topics.iter().zip(&ends).map(|(topic, end)| {
            let client = client.clone();
            async move {
                let reader = client.reader(topic).start(Place::Earliest).open().await?;
                for _ in 0..*end {
                    reader.next().await?;
                }
                anyhow::Ok(())
            }
        });
        let reading = futures::future::try_join_all(read);
        let (offloaded, read) = futures::join!(offload(&client, &topics), reading);
        offloaded?;
        read?;
        let peak = server.usage()?.peak_bytes;
        server.stop()?;
        let row = Row::new(
            &format!(
                "{}: memory of {TOPICS} offloads and {TOPICS} cold readers",
                store.name
            ),
            (peak - before) / 1e6,
            "MB",
            Bound::AtMost,
            BOUND_BYTES / 1e6,
        );
        let note = format!(
            "{:.0} MB before; {} messages read",
            before / 1e6,
            ends.iter().sum::<u64>()
        );
        self.rows.push(row.note(note));
        Ok(())
    }
}
