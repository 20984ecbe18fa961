//! A producer for each topic, which sends one message after the other.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use aquifer_client::{Client, Message};
pub use aquifer_harness::checker::Acknowledged;
use aquifer_harness::checker::{dense, nothing_lost, nothing_twice, producers_in_order};
use aquifer_harness::log;
use aquifer_runtime::clock::{Clock, SystemClock, sleep};
use aquifer_runtime::task::{TaskGroup, TaskHandle};

/// The name of a topic.
pub fn topic(number: usize) -> String {
    format!("public/default/failover-{number}")
}

#[derive(Debug, Default)]
struct Topic {
    acknowledged: AtomicU64,
    /// How long its sends took, in microseconds, since that was last forgotten.
    latencies: Mutex<Vec<Duration>>,
}

/// Running producers.
pub struct Load {
    stop: Arc<AtomicBool>,
    topics: Vec<Arc<Topic>>,
    producers: Vec<TaskHandle<Result<Vec<Acknowledged>>>>,
}

impl Load {
    /// Begins.
    pub fn start(client: &Client, topics: usize, pace: Duration) -> Load {
        let (stop, tasks) = (Arc::new(AtomicBool::new(false)), TaskGroup::new("load"));
        let mut load = Load {
            stop: Arc::clone(&stop),
            topics: Vec::new(),
            producers: Vec::new(),
        };
        for number in 0..topics {
            let (client, stop, seen) = (client.clone(), Arc::clone(&stop), Arc::<Topic>::default());
            load.topics.push(Arc::clone(&seen));
            load.producers.push(tasks.spawn("producer", async move {
                let name = topic(number);
                produce(&client, &name, pace, &stop, &seen)
                    .await
                    .context(name)
            }));
        }
        load
    }

    /// Receipts so far.
    pub fn acknowledged(&self) -> u64 {
        let counts = self.topics.iter();
        counts.map(|t| t.acknowledged.load(Ordering::SeqCst)).sum()
    }

    /// Waits until every topic has another receipt.
    pub async fn wait_for_progress(&self, limit: Duration) -> Result<()> {
        let count = |topic: &Arc<Topic>| topic.acknowledged.load(Ordering::SeqCst);
        let before: Vec<u64> = self.topics.iter().map(count).collect();
        let began = SystemClock.monotonic();
        loop {
            if let Some(at) = self.producers.iter().position(TaskHandle::is_finished) {
                bail!("the producer of {} has ended", topic(at));
            }
            let now = self.topics.iter().map(count);
            let waiting = now.zip(&before).filter(|(now, before)| now <= before);
            match waiting.count() {
                0 => return Ok(()),
                some if SystemClock.monotonic() - began > limit => {
                    bail!("{some} topics do not go on within {limit:?}")
                }
                _ => sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Begins to note how long sends take.
    pub fn forget(&self) {
        for topic in &self.topics {
            topic.latencies.lock().expect("no holder panics").clear();
        }
    }

    /// The longest send of every topic, and all sends.
    pub fn latencies(&self) -> (Vec<Duration>, Vec<Duration>) {
        let (mut longest, mut all) = (Vec::new(), Vec::new());
        for topic in &self.topics {
            let latencies = topic.latencies.lock().expect("no holder panics");
            longest.push(latencies.iter().copied().max().unwrap_or_default());
            all.extend_from_slice(&latencies);
        }
        (longest, all)
    }

    /// Stops, and returns every receipt by topic.
    pub async fn stop(self) -> Result<Vec<Vec<Acknowledged>>> {
        self.stop.store(true, Ordering::SeqCst);
        let mut all = Vec::new();
        for producer in self.producers {
            all.push(producer.await??);
        }
        Ok(all)
    }
}

async fn produce(
    client: &Client,
    topic: &str,
    pace: Duration,
    stop: &AtomicBool,
    seen: &Topic,
) -> Result<Vec<Acknowledged>> {
    let producer = loop {
        let builder = client.producer(topic).name("load").send_timeout(None);
        match builder.open().await {
            Ok(producer) => break producer,
            Err(error) if error.is_retryable() => sleep(Duration::from_millis(100)).await,
            Err(error) => return Err(error.into()),
        }
    };
    let mut acknowledged = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        let number = acknowledged.len() as u64;
        let payload = format!("message {number} of {topic}").into_bytes();
        let message = Message::new(payload.clone()).sequence_id(number);
        let began = SystemClock.monotonic();
        let receipt = producer.send(message).await?;
        let took = SystemClock.monotonic() - began;
        seen.latencies.lock().expect("no holder panics").push(took);
        seen.acknowledged.fetch_add(1, Ordering::SeqCst);
        acknowledged.push(Acknowledged {
            producer: "load".to_owned(),
            sequence_id: receipt.sequence_id,
            payload,
            position: receipt.position.context("a receipt without a position")?,
            index: receipt.index.context("a receipt without an index")?.0,
        });
        sleep(pace).await;
    }
    Ok(acknowledged)
}

/// P1, P5, P6 and P7 of every topic.
pub async fn check(client: &Client, histories: &[Vec<Acknowledged>]) -> Result<()> {
    for (number, acknowledged) in histories.iter().enumerate() {
        let topic = topic(number);
        let read = log::read(client, &topic).await;
        let read = read.with_context(|| topic.clone())?;
        let checked = nothing_lost(acknowledged, &read)
            .and_then(|()| nothing_twice(&read))
            .and_then(|()| producers_in_order(&read))
            .and_then(|()| dense(&read));
        checked.with_context(|| topic.clone())?;
        ensure!(
            read.len() == acknowledged.len(),
            "{topic}: {} stored, {} acknowledged",
            read.len(),
            acknowledged.len()
        );
    }
    Ok(())
}
