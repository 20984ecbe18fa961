//! Producers that publish until they are told to stop, and remember every receipt.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use aquifer_client::{Client, Message};
use aquifer_harness::checker::Acknowledged;
use aquifer_harness::cluster::Cluster;
use aquifer_harness::wait::{until, within};
use aquifer_runtime::clock::sleep;
use aquifer_runtime::task::{TaskGroup, TaskHandle};

/// Where they publish.
pub const TOPIC: &str = "public/default/load";
const PRODUCERS: usize = 3;
/// Sends of a producer that wait for their receipts.
const WINDOW: usize = 100;
/// Between two windows, so that a long fault does not fill the disk.
const PAUSE: Duration = Duration::from_millis(5);

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    acknowledged: AtomicU64,
}

/// Running producers.
pub struct Load {
    shared: Arc<Shared>,
    producers: Vec<TaskHandle<Result<Vec<Acknowledged>>>>,
}

impl Load {
    /// Begins to publish.
    pub fn start(cluster: &Cluster) -> Result<Load> {
        Load::on(cluster, &vec![TOPIC.to_owned(); PRODUCERS])
    }

    /// Begins to publish with one producer for each of these; `load-N` is the one of the Nth.
    pub fn on(cluster: &Cluster, topics: &[String]) -> Result<Load> {
        let (shared, tasks) = (Arc::new(Shared::default()), TaskGroup::new("load"));
        let mut producers = Vec::new();
        for (number, topic) in topics.iter().enumerate() {
            let (client, shared) = (cluster.client()?, Arc::clone(&shared));
            let (name, topic) = (format!("load-{number}"), topic.clone());
            producers.push(tasks.spawn("producer", async move {
                produce(client, &topic, &name, &shared).await.context(name)
            }));
        }
        Ok(Load { shared, producers })
    }

    /// How many receipts have arrived.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::SeqCst)
    }

    /// Waits until this many receipts have arrived.
    pub async fn wait_acknowledged(&self, count: u64) -> Result<()> {
        until("receipts", || async {
            let ended = self.producers.iter().any(TaskHandle::is_finished);
            anyhow::ensure!(!ended, "a producer has ended");
            Ok((self.acknowledged() >= count).then_some(()))
        })
        .await
    }

    /// Stops publishing, waits for every receipt, and returns them.
    pub async fn finish(self) -> Result<Vec<Acknowledged>> {
        self.shared.stop.store(true, Ordering::SeqCst);
        let mut all = Vec::new();
        for producer in self.producers {
            let receipts = within("the last receipts", async { producer.await? });
            all.extend(receipts.await?);
        }
        Ok(all)
    }
}

async fn produce(
    client: Client,
    topic: &str,
    name: &str,
    shared: &Shared,
) -> Result<Vec<Acknowledged>> {
    let producer = client.producer(topic).name(name).send_timeout(None);
    let producer = producer.open().await?;
    let (mut pending, mut acknowledged) = (VecDeque::new(), Vec::new());
    for number in 0.. {
        if shared.stop.load(Ordering::SeqCst) {
            break;
        }
        let payload = format!("{name} says {number}");
        let send = producer.enqueue(Message::new(payload.clone())).await?;
        pending.push_back((payload, send));
        if pending.len() >= WINDOW {
            sleep(PAUSE).await;
            collect(name, &mut pending, WINDOW / 2, shared, &mut acknowledged).await?;
        }
    }
    collect(name, &mut pending, 0, shared, &mut acknowledged).await?;
    Ok(acknowledged)
}

/// Waits for receipts until only `left` are missing.
async fn collect(
    name: &str,
    pending: &mut VecDeque<(String, aquifer_client::PendingSend)>,
    left: usize,
    shared: &Shared,
    acknowledged: &mut Vec<Acknowledged>,
) -> Result<()> {
    while pending.len() > left {
        let Some((payload, send)) = pending.pop_front() else {
            break;
        };
        let receipt = send.await?;
        acknowledged.push(Acknowledged {
            producer: name.to_owned(),
            sequence_id: receipt.sequence_id,
            payload: payload.into_bytes(),
            position: receipt.position.context("a receipt without a position")?,
            index: receipt.index.context("a receipt without an index")?.0,
        });
        shared.acknowledged.fetch_add(1, Ordering::SeqCst);
    }
    Ok(())
}
