//! Consumers of a shared subscription of every topic, which wait for the confirmation of every
//! acknowledgement, and others that come while something happens.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use aquifer_client::{Client, ClientError, Consumer, ErrorKind, Place, SubscriptionType};
use aquifer_runtime::clock::{Clock, SystemClock, sleep, timeout};
use aquifer_runtime::task::{TaskGroup, TaskHandle};
use serde_json::{Value, json};

use crate::load::topic;

/// What may lie in the queue of a consumer when another's acknowledgement is confirmed is received
/// within this time: it was delivered before.
const LATE: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(200);
/// Messages that a consumer has at hand.
const QUEUE: usize = 8;

/// What the consumers of all topics have seen.
#[derive(Debug, Default)]
struct Seen {
    /// Of each topic: when an acknowledgement was confirmed, by index.
    confirmed: Vec<Mutex<HashMap<u64, Duration>>>,
    confirmations: AtomicU64,
    /// Acknowledgements that were not confirmed.
    refused: AtomicU64,
    /// Messages that came again after their acknowledgement was confirmed.
    again: AtomicU64,
    opened: AtomicU64,
}

/// Running consumers.
pub struct Consumers {
    stop: Arc<AtomicBool>,
    seen: Arc<Seen>,
    tasks: TaskGroup,
    running: Vec<TaskHandle<Result<()>>>,
}

/// Consumers that come one after the other, until it is dropped.
pub struct Newcomers {
    stop: Arc<AtomicBool>,
}

impl Drop for Newcomers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

impl Consumers {
    /// One for each topic.
    pub fn start(client: &Client, topics: usize) -> Consumers {
        let mut seen = Seen::default();
        seen.confirmed.resize_with(topics, Mutex::default);
        let mut consumers = Consumers {
            stop: Arc::default(),
            seen: Arc::new(seen),
            tasks: TaskGroup::new("consumers"),
            running: Vec::new(),
        };
        for number in 0..topics {
            let stop = Arc::clone(&consumers.stop);
            let (client, seen) = (client.clone(), Arc::clone(&consumers.seen));
            let consume = async move { consume(&client, number, &seen, &stop).await };
            let running = consumers.tasks.spawn("consumer", consume);
            consumers.running.push(running);
        }
        consumers
    }

    /// Another consumer every `pace`, of one topic after the other, which stays.
    pub fn newcomers(&self, client: Client, pace: Duration) -> Newcomers {
        let stop = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&stop);
        let (seen, tasks) = (Arc::clone(&self.seen), self.tasks.clone());
        let topics = seen.confirmed.len();
        drop(self.tasks.spawn("newcomers", async move {
            let mut number = 0;
            while !stop.load(Ordering::SeqCst) {
                let (client, seen) = (client.clone(), Arc::clone(&seen));
                let (topic, stop) = (number % topics, Arc::clone(&stop));
                drop(tasks.spawn("newcomer", async move {
                    if let Err(error) = consume(&client, topic, &seen, &stop).await {
                        eprintln!("a consumer that came later: {error:#}");
                    }
                }));
                // Not in the order in which topics are handed over.
                number += 7;
                sleep(pace).await;
            }
        }));
        Newcomers { stop: ends }
    }

    /// What was seen so far.
    pub fn figures(&self) -> Value {
        let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        json!({
            "consumers_opened": count(&self.seen.opened),
            "acknowledgements_confirmed": count(&self.seen.confirmations),
            "acknowledgements_refused": count(&self.seen.refused),
            "delivered_again_after_confirmation": count(&self.seen.again),
        })
    }

    /// Stops, and says how many messages came again after their acknowledgement was confirmed.
    pub async fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::SeqCst);
        for running in self.running {
            running.await??;
        }
        Ok(self.seen.again.load(Ordering::SeqCst))
    }
}

async fn consume(client: &Client, number: usize, seen: &Seen, stop: &AtomicBool) -> Result<()> {
    let name = topic(number);
    while !stop.load(Ordering::SeqCst) {
        let builder = client
            .consumer(&name, "load")
            .kind(SubscriptionType::Shared);
        let builder = builder.start(Place::Earliest).queue_messages(QUEUE);
        let ended = match builder.open().await {
            Ok(consumer) => {
                seen.opened.fetch_add(1, Ordering::SeqCst);
                receive(&consumer, &seen.confirmed[number], seen, stop).await
            }
            Err(error) => Err(error),
        };
        match ended {
            Ok(()) => return Ok(()),
            Err(error) if passes(&error) => sleep(TICK).await,
            Err(error) => return Err(error).context(name),
        }
    }
    Ok(())
}

async fn receive(
    consumer: &Consumer,
    confirmed: &Mutex<HashMap<u64, Duration>>,
    seen: &Seen,
    stop: &AtomicBool,
) -> Result<(), ClientError> {
    while !stop.load(Ordering::SeqCst) {
        let Ok(message) = timeout(TICK, consumer.receive()).await else {
            continue;
        };
        let message = message?;
        let (index, now) = (message.index.0, SystemClock.monotonic());
        let known = confirmed
            .lock()
            .expect("no holder panics")
            .get(&index)
            .copied();
        if let Some(at) = known.filter(|at| now.saturating_sub(*at) > LATE) {
            seen.again.fetch_add(1, Ordering::SeqCst);
            let ago = now.saturating_sub(at);
            eprintln!(
                "index {index} of {} comes again, confirmed {ago:?} ago",
                message.topic
            );
        }
        match consumer.ack(&message).await {
            Ok(()) => {
                seen.confirmations.fetch_add(1, Ordering::SeqCst);
                let mut confirmed = confirmed.lock().expect("no holder panics");
                confirmed
                    .entry(index)
                    .or_insert_with(|| SystemClock.monotonic());
            }
            Err(error) if passes(&error) => {
                seen.refused.fetch_add(1, Ordering::SeqCst);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether another attempt may do.
fn passes(error: &ClientError) -> bool {
    error.is_retryable() || error.kind() == ErrorKind::Busy
}
