//! Many topics at once, each with a slow producer and a consumer that acknowledges and waits for
//! the confirmation, while other consumers come and go: when brokers hand hundreds of topics over,
//! each waits until it is loaded, and what was confirmed must not come again (I9, H21).

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aquifer_client::{Client, Consumer, ErrorKind, Message, SubscriptionType};
use aquifer_harness::deliveries::{Event, What, check, ranges};
use aquifer_runtime::clock::{Clock, SystemClock, sleep, timeout};
use aquifer_runtime::rng::SystemRng;
use aquifer_runtime::task::{TaskGroup, TaskHandle};
use serde_json::json;

use crate::cluster::Cluster;
use crate::consuming::open;

const KIND: SubscriptionType = SubscriptionType::Shared;
/// Between two messages of a topic.
const PACE: Duration = Duration::from_secs(4);
const BATCH: usize = 100;
const WAIT: Duration = Duration::from_millis(500);
/// Consumers that come and go at once, and how long one stays.
const VISITORS: usize = 8;
const VISIT: Duration = Duration::from_secs(1);
/// How long a message may take to be sent, through any fault: the long outage of etcd, which a
/// topic that was moved right before it sits out, and the faults before and behind it.
const SEND: Duration = Duration::from_secs(300);

/// What the crowd counted.
#[derive(Debug, Default, Clone, Copy)]
pub struct CrowdCounts {
    topics: u64,
    acknowledged: u64,
    deliveries: u64,
    late: u64,
    consumers: u64,
    refused: u64,
}

impl CrowdCounts {
    /// For the report.
    pub fn to_json(self) -> serde_json::Value {
        json!({
            "topics": self.topics,
            "acknowledged": self.acknowledged,
            "deliveries": self.deliveries,
            "late_deliveries": self.late,
            "consumers": self.consumers,
            "acknowledgements_refused": self.refused,
        })
    }
}

/// A topic of the crowd.
#[derive(Debug, Default)]
struct Topic {
    name: String,
    events: Mutex<Vec<Event>>,
    /// Indexes that receipts have told.
    sent: Mutex<Vec<u64>>,
}

#[derive(Debug, Default)]
struct State {
    topics: Vec<Topic>,
    stop: AtomicBool,
    over: AtomicBool,
    /// Consumers that were opened.
    opened: AtomicU64,
    /// Acknowledgements that failed: their messages may come again.
    refused: AtomicU64,
    failures: Mutex<Vec<String>>,
}

/// The crowd.
pub struct Crowd {
    state: Arc<State>,
    tasks: TaskGroup,
    producers: Vec<TaskHandle<()>>,
}

/// A consumer of the crowd.
struct Member<'a> {
    topic: &'a Topic,
    state: &'a State,
    consumer: Consumer,
    number: u32,
    opened_ms: u64,
}

impl Crowd {
    /// Begins.
    ///
    /// # Errors
    /// When a client cannot be made.
    pub fn start(cluster: &Cluster, topics: usize) -> Result<Crowd> {
        let name = |number: usize| format!("public/default/crowd-{number}");
        let topics = (0..topics).map(|number| Topic {
            name: name(number),
            ..Topic::default()
        });
        let state = Arc::new(State {
            topics: topics.collect(),
            ..State::default()
        });
        let mut crowd = Crowd {
            state: Arc::clone(&state),
            tasks: TaskGroup::new("crowd"),
            producers: Vec::new(),
        };
        let (producing, consuming) = (cluster.client()?, cluster.client()?);
        for at in 0..state.topics.len() {
            let (own, client) = (Arc::clone(&state), producing.clone());
            let producer = crowd.tasks.spawn("crowd-producer", async move {
                let produced = produce(&client, &own, &own.topics[at]).await;
                own.note(produced.with_context(|| own.topics[at].name.clone()));
            });
            crowd.producers.push(producer);
            let (own, client) = (Arc::clone(&state), consuming.clone());
            crowd.tasks.spawn("crowd-consumer", async move {
                while !own.over.load(Ordering::SeqCst) {
                    let consumed = consume(&client, &own, at, Duration::MAX).await;
                    own.note(consumed.with_context(|| own.topics[at].name.clone()));
                }
            });
        }
        for _ in 0..VISITORS {
            let (own, client) = (Arc::clone(&state), cluster.client()?);
            crowd.tasks.spawn("visitor", async move {
                let rng = SystemRng::shared();
                while !own.stop.load(Ordering::SeqCst) {
                    let at = rng.below(own.topics.len() as u64);
                    let at = usize::try_from(at).unwrap_or_default();
                    let consumed = consume(&client, &own, at, VISIT).await;
                    own.note(consumed.with_context(|| own.topics[at].name.clone()));
                }
            });
        }
        Ok(crowd)
    }

    /// That nothing has failed so far.
    ///
    /// # Errors
    /// Says what has.
    pub fn check(&self) -> Result<()> {
        let failures = self.state.failures.lock().expect("no holder panics");
        ensure!(failures.is_empty(), "crowd: {}", failures.join("\n"));
        Ok(())
    }

    /// Stops publishing, waits until everything was received, and checks all of it.
    ///
    /// # Errors
    /// P9 when messages do not come, I9 when confirmed ones come again.
    pub async fn finish(self, limit: Duration) -> Result<CrowdCounts> {
        self.state.stop.store(true, Ordering::SeqCst);
        let end = SystemClock.monotonic() + limit;
        for producer in self.producers {
            timeout(SEND, producer)
                .await
                .context("P16: a producer of the crowd does not end")??;
        }
        loop {
            let missing = self.state.topics.iter().find_map(Topic::missing);
            let Some(missing) = missing else { break };
            ensure!(
                SystemClock.monotonic() < end,
                "P9: the crowd's consumers miss {missing}"
            );
            sleep(Duration::from_millis(200)).await;
        }
        self.state.over.store(true, Ordering::SeqCst);
        self.tasks.drain(Duration::from_secs(20)).await;
        let failures = std::mem::take(&mut *self.state.failures.lock().expect("no holder panics"));
        ensure!(failures.is_empty(), "crowd: {}", failures.join("\n"));
        let mut counts = CrowdCounts {
            topics: self.state.topics.len() as u64,
            refused: self.state.refused.load(Ordering::SeqCst),
            ..CrowdCounts::default()
        };
        for topic in &self.state.topics {
            let events = std::mem::take(&mut *topic.events.lock().expect("no holder panics"));
            let found = check(events, false).with_context(|| topic.name.clone())?;
            counts.acknowledged += topic.sent.lock().expect("no holder panics").len() as u64;
            counts.deliveries += found.deliveries;
            counts.late += found.late;
            counts.consumers += found.consumers;
        }
        Ok(counts)
    }
}

impl State {
    fn note(&self, result: Result<()>) {
        if let Err(error) = result {
            let mut failures = self.failures.lock().expect("no holder panics");
            failures.push(format!("{error:#}"));
        }
    }
}

impl Topic {
    /// What was acknowledged to the producer and not received by a consumer.
    fn missing(&self) -> Option<String> {
        let events = self.events.lock().expect("no holder panics");
        let received = events.iter().filter(|event| event.what == What::Received);
        let ranges = received.flat_map(|event| event.ranges.iter());
        let received: HashSet<u64> = ranges.flat_map(|(first, last)| *first..=*last).collect();
        let sent = self.sent.lock().expect("no holder panics");
        let index = sent.iter().find(|index| !received.contains(index))?;
        Some(format!("index {index} of {}", self.name))
    }
}

async fn produce(client: &Client, state: &State, topic: &Topic) -> Result<()> {
    // Not all at once.
    let rng = SystemRng::shared();
    sleep(Duration::from_millis(rng.below(4_000))).await;
    let producer = loop {
        let builder = client.producer(&topic.name).send_timeout(Some(SEND));
        match builder.open().await {
            Ok(producer) => break producer,
            Err(error) if error.is_retryable() => sleep(Duration::from_millis(100)).await,
            Err(error) => return Err(error).context("opening a producer"),
        }
    };
    while !state.stop.load(Ordering::SeqCst) {
        let receipt = producer.send(Message::new("one of many")).await;
        let receipt = receipt.context("publishing")?;
        let index = receipt.index.context("a receipt without an index")?;
        topic.sent.lock().expect("no holder panics").push(index.0);
        sleep(PACE).await;
    }
    Ok(())
}

/// Consumes with one consumer, for this time or until it has to be opened again.
async fn consume(client: &Client, state: &State, at: usize, length: Duration) -> Result<()> {
    let topic = &state.topics[at];
    let opened_ms = SystemClock.wall_ms();
    let Some(consumer) = open(client, &topic.name, KIND).await? else {
        sleep(Duration::from_millis(100)).await;
        return Ok(());
    };
    let number = state.opened.fetch_add(1, Ordering::SeqCst);
    let member = Member {
        topic,
        state,
        consumer,
        number: u32::try_from(number)?,
        opened_ms,
    };
    let began = SystemClock.monotonic();
    while SystemClock.monotonic() - began < length && !state.over.load(Ordering::SeqCst) {
        if !member.some().await? {
            break;
        }
    }
    Ok(())
}

impl Member<'_> {
    /// Receives and acknowledges some messages. False when another consumer is needed.
    async fn some(&self) -> Result<bool> {
        let batch = match self.consumer.receive_batch(BATCH, WAIT).await {
            Ok(batch) => batch,
            Err(error) if error.is_retryable() || error.kind() == ErrorKind::Busy => {
                return Ok(false);
            }
            Err(error) => return Err(error).context("receiving"),
        };
        if batch.is_empty() {
            return Ok(true);
        }
        let ranges = ranges(batch.iter().map(|message| message.index.0));
        self.note(What::Received, ranges.clone());
        match self.consumer.ack_all(&batch).await {
            Ok(()) => self.note(What::Confirmed, ranges),
            Err(error) if error.is_retryable() => {
                self.state.refused.fetch_add(1, Ordering::SeqCst);
            }
            Err(error) => return Err(error).context("acknowledging"),
        }
        Ok(true)
    }

    fn note(&self, what: What, ranges: Vec<(u64, u64)>) {
        let event = Event {
            at_ms: SystemClock.wall_ms(),
            consumer: self.number,
            opened_ms: self.opened_ms,
            what,
            ranges,
        };
        let mut events = self.topic.events.lock().expect("no holder panics");
        events.push(event);
    }
}
