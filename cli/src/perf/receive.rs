//! Receiving: a backlog, or what is being published.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use aquifer_client::{Client, ClientError, Consumer, Place, ReceivedMessage, SubscriptionType};
use aquifer_runtime::clock::{Clock, SystemClock};
use aquifer_runtime::rng::{Rng, SystemRng};
use aquifer_runtime::task::{TaskGroup, TaskHandle};

use crate::exit::CliError;
use crate::perf::Counted;
use crate::perf::latency::Latencies;
use crate::perf::stamp::Payload;

/// Messages that are received and acknowledged together.
const BATCH_MESSAGES: usize = 10_000;
/// How often a consumer that receives nothing looks whether it should end.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A group of consumers that run until told to stop.
#[derive(Debug, Clone)]
pub struct ReceiveLoad {
    /// What is consumed.
    pub topic: String,
    /// Tells messages of this run from others and says when they were due; without it every
    /// message counts, and a latency is the wait for the next batch.
    pub payload: Option<Payload>,
}

/// Consumers at work.
pub struct Receiving {
    tasks: Vec<TaskHandle<Result<Received, CliError>>>,
    control: Arc<Control>,
    client: Client,
    topic: String,
    subscriptions: Vec<String>,
}

#[derive(Debug, Default)]
struct Control {
    /// Messages that all consumers together have received.
    total: AtomicU64,
    /// When that many are there, all end.
    enough: AtomicU64,
    stop: AtomicBool,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Received {
    /// Messages received, from the start to the last one.
    pub counted: Counted,
    /// See [`ReceiveLoad::payload`].
    pub latencies: Latencies,
    /// Payload bytes.
    pub bytes: u64,
}

impl ReceiveLoad {
    /// Opens `consumers` consumers of one subscription, or of one each, and lets them run.
    ///
    /// # Errors
    /// When a consumer cannot be opened.
    pub async fn start(
        &self,
        client: &Client,
        consumers: usize,
        together: bool,
        start: Place,
        on_received: impl Fn(u64) + Send + Sync + Clone + 'static,
    ) -> Result<Receiving, CliError> {
        let group = format!("perf-{:016x}", SystemRng.next_u64());
        let kind = if together && consumers > 1 {
            SubscriptionType::Shared
        } else {
            SubscriptionType::Exclusive
        };
        let control = Arc::new(Control {
            enough: AtomicU64::new(u64::MAX),
            ..Control::default()
        });
        let runner = TaskGroup::new("perf-receive");
        let mut tasks = Vec::with_capacity(consumers);
        let mut opened = Vec::with_capacity(consumers);
        let mut subscriptions = Vec::new();
        for number in 0..consumers {
            let subscription = if together {
                group.clone()
            } else {
                format!("{group}-{number}")
            };
            let builder = client
                .consumer(&self.topic, &subscription)
                .kind(kind)
                .start(start);
            opened.push(builder.open().await?);
            if !subscriptions.contains(&subscription) {
                subscriptions.push(subscription);
            }
        }
        for consumer in opened {
            let receiver = Receiver {
                consumer,
                cumulative: kind == SubscriptionType::Exclusive,
                payload: self.payload.clone(),
                control: Arc::clone(&control),
                received: Received {
                    counted: Counted::default(),
                    latencies: Latencies::new(),
                    bytes: 0,
                },
            };
            tasks.push(runner.spawn("receiver", receiver.run(on_received.clone())));
        }
        Ok(Receiving {
            tasks,
            control,
            client: client.clone(),
            topic: self.topic.clone(),
            subscriptions,
        })
    }
}

impl Receiving {
    /// How many messages all consumers together have received so far.
    pub fn total(&self) -> u64 {
        self.control.total.load(Ordering::Relaxed)
    }

    /// All end once that many messages have come, in total.
    pub fn end_after(&self, messages: u64) {
        self.control.enough.store(messages, Ordering::Relaxed);
    }

    /// All end now.
    pub fn stop(&self) {
        self.control.stop.store(true, Ordering::Relaxed);
    }

    /// Whether all have ended.
    pub fn is_finished(&self) -> bool {
        self.tasks.iter().all(TaskHandle::is_finished)
    }

    /// Waits until all have ended, and deletes their subscriptions, which no consumer will use
    /// again.
    ///
    /// # Errors
    /// What made a consumer fail.
    pub async fn finish(self) -> Result<Vec<Received>, CliError> {
        let mut parts = Vec::with_capacity(self.tasks.len());
        for task in self.tasks {
            let part = task
                .await
                .map_err(|error| CliError::failed(error.to_string()))?;
            parts.push(part?);
        }
        for subscription in &self.subscriptions {
            let admin = self.client.admin();
            admin
                .delete_subscription(&self.topic, subscription, true)
                .await?;
        }
        Ok(parts)
    }
}

impl Received {
    /// Parts that ran at the same time, as one.
    pub fn all(parts: &[Received]) -> Received {
        let mut all = Received {
            counted: Counted::default(),
            latencies: Latencies::new(),
            bytes: 0,
        };
        for part in parts {
            all.counted.join(&part.counted);
            all.latencies.add(&part.latencies);
            all.bytes += part.bytes;
        }
        all
    }
}

/// A measurement goes on through what passes: a server that restarts delivers again what it had not
/// made durable, and that counts as received again.
fn ride_out(outcome: Result<(), ClientError>) -> Result<(), CliError> {
    match outcome {
        Err(error) if !error.is_retryable() && error != ClientError::Stale => Err(error.into()),
        _ => Ok(()),
    }
}

/// One consumer.
struct Receiver {
    consumer: Consumer,
    cumulative: bool,
    payload: Option<Payload>,
    control: Arc<Control>,
    received: Received,
}

impl Receiver {
    async fn run(mut self, on_received: impl Fn(u64)) -> Result<Received, CliError> {
        let start = SystemClock.monotonic();
        let mut acknowledging = None;
        while !self.is_over() {
            let asked = SystemClock.monotonic();
            let batch = match self
                .consumer
                .receive_batch(BATCH_MESSAGES, POLL_INTERVAL)
                .await
            {
                Ok(batch) => batch,
                Err(ClientError::Damaged(damaged)) => {
                    self.received.counted.errors += damaged.messages();
                    ride_out(self.consumer.ack_damaged(&damaged).await)?;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let Some(last) = batch.last() else {
                continue;
            };
            let arrived = SystemClock.monotonic();
            let count = self.count(&batch, asked, arrived);
            self.received.counted.elapsed = arrived.saturating_sub(start);
            self.control.total.fetch_add(count, Ordering::Relaxed);
            on_received(count);
            if self.cumulative {
                // One acknowledgement is in flight while the next batch is received.
                let next = self.consumer.ack_cumulative(last);
                if let Some(previous) = acknowledging.replace(next) {
                    ride_out(previous.await)?;
                }
            } else {
                for outcome in self.consumer.ack_each(&batch).await {
                    ride_out(outcome)?;
                }
            }
        }
        if let Some(last) = acknowledging {
            ride_out(last.await)?;
        }
        ride_out(self.consumer.close().await)?;
        Ok(self.received)
    }

    fn is_over(&self) -> bool {
        self.control.stop.load(Ordering::Relaxed)
            || self.control.total.load(Ordering::Relaxed)
                >= self.control.enough.load(Ordering::Relaxed)
    }

    /// Counts what belongs to this run.
    fn count(&mut self, batch: &[ReceivedMessage], asked: Duration, arrived: Duration) -> u64 {
        let mut count = 0;
        for message in batch {
            match &self.payload {
                None => {}
                Some(payload) => match payload.due(&message.payload) {
                    Some(due) => self.received.latencies.record(arrived.saturating_sub(due)),
                    None => continue,
                },
            }
            count += 1;
            self.received.bytes += u64::try_from(message.payload.len()).unwrap_or(u64::MAX);
        }
        if self.payload.is_none() {
            let waited = arrived.saturating_sub(asked);
            self.received.latencies.record(waited);
        }
        self.received.counted.messages += count;
        count
    }
}
