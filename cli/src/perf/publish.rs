//! Publishing: as fast as a window of unacknowledged messages allows, or at a rate.

use std::collections::VecDeque;
use std::time::Duration;

use aquifer_client::{Client, Compression, Message, PendingSend, Producer};
use aquifer_runtime::clock::{Clock, SystemClock};
use aquifer_runtime::task::TaskGroup;
use bytes::Bytes;

use crate::exit::CliError;
use crate::perf::latency::Latencies;
use crate::perf::pacer::{Pacer, Schedule};
use crate::perf::stamp::Payload;
use crate::perf::{Counted, Until};

/// Messages sent in a row before acknowledgements are looked at.
const BURST: usize = 32;

/// A publishing load.
#[derive(Debug, Clone)]
pub struct PublishLoad {
    /// One producer each; a topic may occur several times.
    pub topics: Vec<String>,
    /// When it ends, for all producers together.
    pub until: Until,
    /// Unacknowledged messages of one producer.
    pub window: usize,
    /// Messages a second of all producers together.
    pub rate: Option<f64>,
    /// How batches are compressed.
    pub compression: Compression,
    /// What is sent.
    pub payload: Payload,
    /// Whether payloads say when they were due.
    pub stamped: bool,
    /// A trace is begun for one of this many messages; 0: for no message.
    pub trace_one_in: u64,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Published {
    /// Acknowledged and failed messages.
    pub counted: Counted,
    /// From when a message was due, or handed over, to its acknowledgement.
    pub latencies: Latencies,
}

impl PublishLoad {
    /// Runs the load: opens every producer first, then starts them together.
    ///
    /// # Errors
    /// When a producer cannot be opened. Failed messages are counted, not returned.
    pub async fn run(
        &self,
        client: &Client,
        on_acknowledged: impl Fn(u64) + Send + Sync + Clone + 'static,
    ) -> Result<Published, CliError> {
        let producers = self.open(client).await?;
        let count = u64::try_from(producers.len()).unwrap_or(1).max(1);
        let tasks = TaskGroup::new("perf-publish");
        let start = SystemClock.monotonic();
        let mut running = Vec::with_capacity(producers.len());
        for (number, producer) in (0_u64..).zip(producers) {
            let pacer = match self.rate {
                None => None,
                Some(rate) => Some(Pacer::start(Schedule::new(rate / count as f64)?)?),
            };
            let (messages, deadline) = match self.until {
                // The first ones take what does not divide evenly.
                Until::Count(all) => (all / count + u64::from(number < all % count), None),
                Until::Elapsed(time) => (u64::MAX, Some(start + time)),
            };
            let sender = Sender {
                load: self.clone(),
                producer,
                left: messages,
                deadline,
                pacer,
                waiting: VecDeque::with_capacity(self.window),
                published: Published {
                    counted: Counted::default(),
                    latencies: Latencies::new(),
                },
            };
            running.push(tasks.spawn("sender", sender.run(start, on_acknowledged.clone())));
        }
        let mut all = Published {
            counted: Counted::default(),
            latencies: Latencies::new(),
        };
        for task in running {
            let part = task
                .await
                .map_err(|error| CliError::failed(error.to_string()))?;
            all.counted.join(&part.counted);
            all.latencies.add(&part.latencies);
        }
        Ok(all)
    }

    async fn open(&self, client: &Client) -> Result<Vec<Producer>, CliError> {
        let mut producers = Vec::with_capacity(self.topics.len());
        for topic in &self.topics {
            let builder = client
                .producer(topic)
                .compression(self.compression)
                .trace_one_in(self.trace_one_in)
                .messages_in_flight_max(self.window);
            producers.push(builder.open().await?);
        }
        Ok(producers)
    }
}

/// One producer of a load.
struct Sender {
    load: PublishLoad,
    producer: Producer,
    left: u64,
    deadline: Option<Duration>,
    pacer: Option<Pacer>,
    /// When each message was due, and its acknowledgement, oldest first.
    waiting: VecDeque<(Duration, PendingSend)>,
    published: Published,
}

impl Sender {
    async fn run(mut self, start: Duration, on_acknowledged: impl Fn(u64)) -> Published {
        let mut reported = 0;
        while self.wants_more() {
            if self.waiting.len() >= self.load.window {
                self.complete_oldest().await;
            } else if !self.send_next().await {
                break;
            }
            self.complete_ready().await;
            on_acknowledged(self.published.counted.messages - reported);
            reported = self.published.counted.messages;
        }
        while !self.waiting.is_empty() {
            self.complete_oldest().await;
        }
        on_acknowledged(self.published.counted.messages - reported);
        self.published.counted.elapsed = SystemClock.monotonic().saturating_sub(start);
        if self.producer.close().await.is_err() {
            tracing::debug!("producer closed with an error; every message had its outcome before");
        }
        self.published
    }

    fn wants_more(&self) -> bool {
        self.left > 0
            && self
                .deadline
                .is_none_or(|deadline| SystemClock.monotonic() < deadline)
    }

    /// Sends a burst, or what is due. False when the producer takes nothing any more.
    async fn send_next(&mut self) -> bool {
        let Some(pacer) = &mut self.pacer else {
            let free = self.load.window - self.waiting.len();
            for _ in 0..free.min(BURST) {
                if self.left == 0 {
                    break;
                }
                if !self.send(SystemClock.monotonic()).await {
                    return false;
                }
            }
            return true;
        };
        if let Some(due) = pacer.try_next() {
            return self.send(due).await;
        }
        let waiting = &mut self.waiting;
        let oldest = async {
            match waiting.front_mut() {
                Some((_, pending)) => pending.await.is_ok(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            // Acknowledgements are looked at as they come, not when the next message is due.
            stored = oldest => {
                if let Some((due, _)) = self.waiting.pop_front() {
                    self.complete(due, stored);
                }
                true
            }
            due = pacer.next() => self.send(due).await,
        }
    }

    async fn send(&mut self, due: Duration) -> bool {
        let payload: Bytes = if self.load.stamped {
            self.load.payload.stamped(due)
        } else {
            self.load.payload.plain()
        };
        self.left -= 1;
        match self.producer.enqueue(Message::new(payload)).await {
            Ok(pending) => {
                self.waiting.push_back((due, pending));
                true
            }
            Err(error) => {
                tracing::debug!(%error, "message not taken");
                self.published.counted.errors += 1;
                false
            }
        }
    }

    async fn complete_oldest(&mut self) {
        if let Some((due, pending)) = self.waiting.pop_front() {
            let result = pending.await;
            self.complete(due, result.is_ok());
        }
    }

    /// Takes the acknowledgements that are there already.
    async fn complete_ready(&mut self) {
        while let Some((due, pending)) = self.waiting.front_mut() {
            let due = *due;
            let std::task::Poll::Ready(result) = futures::poll!(pending) else {
                return;
            };
            self.waiting.pop_front();
            self.complete(due, result.is_ok());
        }
    }

    fn complete(&mut self, due: Duration, stored: bool) {
        if stored {
            let latency = SystemClock.monotonic().saturating_sub(due);
            self.published.latencies.record(latency);
            self.published.counted.messages += 1;
        } else {
            self.published.counted.errors += 1;
        }
    }
}
