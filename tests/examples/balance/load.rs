//! Producers of one client, each with its own topic and its own part of the whole rate.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use aquifer_client::{Client, Message, PendingSend, Producer};
use aquifer_runtime::clock::{Clock, SystemClock, sleep};
use aquifer_runtime::task::{TaskGroup, TaskHandle};

/// Topics that are opened at once.
const OPENING_AT_ONCE: usize = 32;
const PAYLOAD: [u8; 100] = [b'x'; 100];
/// A topic sends at most so often.
const TICK: Duration = Duration::from_millis(100);
/// What a topic may send at once after it was away, in seconds of its rate.
const CATCH_UP_SECONDS: f64 = 2.0;

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    acknowledged: AtomicU64,
    failed: AtomicU64,
}

/// Load that goes on.
pub struct Load {
    shared: Arc<Shared>,
    rates: Vec<(String, f64)>,
    producers: Vec<TaskHandle<()>>,
}

impl Load {
    /// Opens the topics, and begins to publish: the Nth has 1/N of the load of the first.
    pub async fn start(client: &Client, topics: usize, rate: f64) -> Result<Load> {
        let (shared, tasks) = (Arc::new(Shared::default()), TaskGroup::new("load"));
        let rates = zipf(topics, rate);
        let mut producers = Vec::new();
        for some in rates.chunks(OPENING_AT_ONCE) {
            let mut opening = Vec::new();
            for (topic, _) in some {
                let producer = client.producer(topic).name("load").send_timeout(None);
                opening.push(tasks.spawn("open", producer.open()));
            }
            for (opened, (_, rate)) in opening.into_iter().zip(some) {
                let (producer, shared, rate) = (opened.await??, Arc::clone(&shared), *rate);
                let work = async move { publish(&producer, rate, &shared).await };
                producers.push(tasks.spawn("publish", work));
            }
        }
        Ok(Load {
            shared,
            rates,
            producers,
        })
    }

    /// Each topic with its messages per second.
    pub fn rates(&self) -> Vec<(String, f64)> {
        self.rates.clone()
    }

    /// Receipts so far.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Ends it; answers how many messages were acknowledged, and how many failed.
    pub async fn stop(self) -> (u64, u64) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for producer in self.producers {
            // One that panicked has said so.
            let _ = producer.await;
        }
        let failed = self.shared.failed.load(Ordering::Relaxed);
        (self.shared.acknowledged.load(Ordering::Relaxed), failed)
    }
}

#[allow(clippy::cast_precision_loss, reason = "there are few topics")]
fn zipf(topics: usize, rate: f64) -> Vec<(String, f64)> {
    let shares = (1..=topics).map(|rank| 1.0 / rank as f64);
    let sum: f64 = shares.clone().sum();
    shares
        .enumerate()
        .map(|(number, share)| {
            let topic = format!("public/default/balance-{number}");
            (topic, rate * share / sum)
        })
        .collect()
}

/// Publishes at a rate; what is due while the topic moves is sent later, within bounds.
async fn publish(producer: &Producer, rate: f64, shared: &Shared) {
    let mut pending: VecDeque<PendingSend> = VecDeque::new();
    let mut last = SystemClock.monotonic();
    // Not all at the same time.
    let mut due = 0.5;
    while !shared.stop.load(Ordering::Relaxed) {
        sleep(TICK.max(Duration::from_secs_f64(0.2 / rate)).min(TICK * 20)).await;
        let now = SystemClock.monotonic();
        due += (now - last).as_secs_f64() * rate;
        due = due.min(rate * CATCH_UP_SECONDS + 1.0);
        last = now;
        while due >= 1.0 {
            due -= 1.0;
            match producer.enqueue(Message::new(PAYLOAD.to_vec())).await {
                Ok(send) => pending.push_back(send),
                Err(_) => drop(shared.failed.fetch_add(1, Ordering::Relaxed)),
            }
        }
        count_outcomes(&mut pending, shared).await;
    }
}

async fn count_outcomes(pending: &mut VecDeque<PendingSend>, shared: &Shared) {
    while let Some(send) = pending.pop_front() {
        let counter = match send.await {
            Ok(_) => &shared.acknowledged,
            Err(_) => &shared.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
