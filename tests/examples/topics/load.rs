//! A producer and a consumer for each active topic.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use aquifer_client::{Client, Consumer, Message, Producer};
use aquifer_model::id::Index;
use aquifer_model::place::Place;
use aquifer_runtime::clock::{Clock, SystemClock, sleep};
use aquifer_runtime::task::{TaskGroup, TaskHandle};
use futures::future::try_join_all;

use crate::topic;

const PAYLOAD: [u8; 100] = [b'x'; 100];
/// Topics that are opened at once.
const OPENING_AT_ONCE: usize = 32;
const BATCH: usize = 100;
const WAIT: Duration = Duration::from_millis(500);
/// How long every topic may take to go on.
const LIMIT: Duration = Duration::from_secs(120);

/// What was done.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Messages that brokers have acknowledged.
    pub published: u64,
    /// Messages whose acknowledgement brokers have confirmed.
    pub acknowledged: u64,
}

impl Counts {
    /// What was done after these.
    pub fn since(self, before: Counts) -> Counts {
        Counts {
            published: self.published - before.published,
            acknowledged: self.acknowledged - before.acknowledged,
        }
    }
}

#[derive(Debug, Default)]
struct Topic {
    published: AtomicU64,
    acknowledged: AtomicU64,
}

/// Load that goes on.
pub struct Load {
    stop: Arc<AtomicBool>,
    topics: Vec<Arc<Topic>>,
    tasks: Vec<TaskHandle<Result<()>>>,
}

impl Load {
    /// Opens topics, and begins to publish and to consume, this many messages a second together.
    pub async fn start(client: &Client, topics: usize, rate: f64) -> Result<Load> {
        let (stop, group) = (Arc::new(AtomicBool::new(false)), TaskGroup::new("load"));
        let per_topic = rate / f64::from(u32::try_from(topics.max(1))?);
        let pace = Duration::from_secs_f64(1.0 / per_topic.max(0.001));
        let mut load = Load {
            stop: Arc::clone(&stop),
            topics: Vec::new(),
            tasks: Vec::new(),
        };
        let numbers: Vec<usize> = (0..topics).collect();
        for some in numbers.chunks(OPENING_AT_ONCE) {
            for (producer, consumer) in try_join_all(some.iter().map(|n| open(client, *n))).await? {
                let counts = Arc::<Topic>::default();
                load.topics.push(Arc::clone(&counts));
                let (stop, counts_of) = (Arc::clone(&stop), Arc::clone(&counts));
                load.tasks.push(group.spawn("publish", async move {
                    publish(&producer, pace, &stop, &counts_of.published).await
                }));
                let stop = Arc::clone(&load.stop);
                load.tasks.push(group.spawn("consume", async move {
                    consume(&consumer, &stop, &counts.acknowledged).await
                }));
            }
        }
        Ok(load)
    }

    /// What was done so far.
    pub fn counts(&self) -> Counts {
        let sum = |count: fn(&Topic) -> &AtomicU64| {
            let counts = self.topics.iter();
            counts.map(|t| count(t).load(Ordering::Relaxed)).sum()
        };
        Counts {
            published: sum(|topic| &topic.published),
            acknowledged: sum(|topic| &topic.acknowledged),
        }
    }

    /// Waits until every topic has published and consumed something more.
    pub async fn wait_for_progress(&self) -> Result<()> {
        let now = |topic: &Arc<Topic>| {
            let published = topic.published.load(Ordering::Relaxed);
            (published, topic.acknowledged.load(Ordering::Relaxed))
        };
        let before: Vec<(u64, u64)> = self.topics.iter().map(now).collect();
        let began = SystemClock.monotonic();
        loop {
            let both = self.topics.iter().map(now).zip(&before);
            let waiting = both.filter(|(now, before)| now.0 <= before.0 || now.1 <= before.1);
            let waiting = waiting.count();
            if waiting == 0 {
                return Ok(());
            }
            let waited = SystemClock.monotonic() - began;
            ensure!(waited < LIMIT, "{waiting} topics do not go on");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Stops.
    pub async fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await??;
        }
        Ok(())
    }
}

async fn open(client: &Client, number: usize) -> Result<(Producer, Consumer)> {
    let name = topic(number);
    let producer = client.producer(&name).name("load").send_timeout(None);
    let consumer = client.consumer(&name, "load").start(Place::Index(Index(0)));
    Ok((producer.open().await?, consumer.open().await?))
}

async fn publish(
    producer: &Producer,
    pace: Duration,
    stop: &AtomicBool,
    count: &AtomicU64,
) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        producer.send(Message::new(&PAYLOAD[..])).await?;
        count.fetch_add(1, Ordering::Relaxed);
        sleep(pace).await;
    }
    Ok(())
}

async fn consume(consumer: &Consumer, stop: &AtomicBool, count: &AtomicU64) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let batch = consumer.receive_batch(BATCH, WAIT).await?;
        if batch.is_empty() {
            continue;
        }
        // What was not confirmed comes again.
        if consumer.ack_all(&batch).await.is_ok() {
            count.fetch_add(batch.len() as u64, Ordering::Relaxed);
        }
    }
    Ok(())
}
