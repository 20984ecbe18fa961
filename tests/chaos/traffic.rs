//! Producers and readers that go on through every fault, and write down what they saw.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use aquifer_client::{Client, Message, PendingSend};
use aquifer_harness::checker::{Acknowledged, Append};
use aquifer_model::id::Index;
use aquifer_model::place::Place;
use aquifer_runtime::clock::{SharedClock, SystemClock, sleep};
use aquifer_runtime::task::{TaskGroup, TaskHandle};
use tokio::sync::mpsc;

use crate::cluster::Cluster;
use crate::consumers::Subscription;
use crate::crowd::{Crowd, CrowdCounts};
use crate::workload::{KINDS, TOPICS, topic};

const PRODUCERS: usize = 2;
/// Sends of a producer that wait for their receipts.
const WINDOW: usize = 40;

/// What a producer sends as its message of this number: a reader can tell whether it is unchanged.
pub fn payload(producer: &str, number: u64) -> Vec<u8> {
    let mut seed = number ^ u64::from(crc(producer.as_bytes()));
    let length = 40 + usize::try_from(seed % 200).unwrap_or_default();
    let mut payload = format!("{producer}:{number}:").into_bytes();
    while payload.len() < length {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        payload.push(u8::try_from(seed >> 56).unwrap_or_default());
    }
    payload
}

/// A digest of what was sent.
pub fn crc(bytes: &[u8]) -> u32 {
    aquifer_model::checksum::crc32c(bytes)
}

/// What one producer knows.
#[derive(Debug, Default)]
pub struct Produced {
    /// Its name.
    pub name: String,
    /// Messages that it has handed to the SDK.
    pub sent: u64,
    /// Every receipt.
    pub acknowledged: Vec<Acknowledged>,
    /// When each of them was sent and acknowledged.
    pub appends: Vec<Append>,
}

/// Something that ought to go on: a producer or a reader.
#[derive(Debug, Default)]
pub struct Pulse {
    name: String,
    count: AtomicU64,
    last_us: AtomicU64,
    longest_gap_us: AtomicU64,
}

impl Pulse {
    fn new(name: String, now: Duration) -> Arc<Pulse> {
        let pulse = Pulse {
            name,
            ..Pulse::default()
        };
        pulse.last_us.store(micros(now), Ordering::SeqCst);
        Arc::new(pulse)
    }

    /// Something went on.
    pub fn beat(&self, now: Duration) {
        let now = micros(now);
        let gap = now.saturating_sub(self.last_us.swap(now, Ordering::SeqCst));
        self.longest_gap_us.fetch_max(gap, Ordering::SeqCst);
        self.count.fetch_add(1, Ordering::SeqCst);
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How often it beat.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// The longest pause since this was last asked.
    pub fn take_longest_gap(&self, now: Duration) -> Duration {
        let gap = micros(now).saturating_sub(self.last_us.load(Ordering::SeqCst));
        Duration::from_micros(self.longest_gap_us.swap(0, Ordering::SeqCst).max(gap))
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// What all of them share.
#[derive(Debug)]
pub struct Shared {
    clock: SharedClock,
    /// Nothing more is published.
    stop: AtomicBool,
    /// Between two sends of a producer.
    pace: Duration,
    failures: Mutex<Vec<String>>,
}

/// Running producers, readers and consumers.
pub struct Traffic {
    shared: Arc<Shared>,
    producers: Vec<TaskHandle<Result<Produced>>>,
    readers: Vec<TaskHandle<Result<()>>>,
    client: Client,
    subscriptions: Vec<Arc<Subscription>>,
    followers: Vec<TaskHandle<Result<()>>>,
    crowd: Option<Crowd>,
    /// Digests that each topic's reader saw, by index.
    seen: Vec<Arc<Mutex<Vec<u32>>>>,
    /// Of every producer.
    pub producing: Vec<Arc<Pulse>>,
    /// Of every reader.
    pub reading: Vec<Arc<Pulse>>,
    /// Of every subscription.
    consuming: Vec<Arc<Pulse>>,
}

/// What happened, for the checkers.
#[derive(Debug)]
pub struct History {
    /// Producers of each topic.
    pub produced: Vec<Vec<Produced>>,
    /// Digests that each topic's tail reader saw, by index.
    pub seen: Vec<Vec<u32>>,
    /// What was consumed.
    pub subscriptions: Vec<Arc<Subscription>>,
    /// What the crowd saw, where there was one.
    pub crowd: Option<CrowdCounts>,
}

impl Traffic {
    /// Begins; starts the processes that consume. `crowd` topics more are written and consumed
    /// slowly.
    ///
    /// # Errors
    /// When a client cannot be made, or a process cannot be started.
    pub fn start(cluster: &mut Cluster, messages_per_second: u64, crowd: usize) -> Result<Traffic> {
        cluster.start_consumers()?;
        let per_producer = messages_per_second.max(1) / (TOPICS * PRODUCERS) as u64;
        let shared = Arc::new(Shared {
            clock: SystemClock::shared(),
            stop: AtomicBool::new(false),
            pace: Duration::from_micros(1_000_000 / per_producer.max(1)),
            failures: Mutex::default(),
        });
        let tasks = TaskGroup::new("traffic");
        let mut traffic = Traffic {
            shared: Arc::clone(&shared),
            producers: Vec::new(),
            readers: Vec::new(),
            client: cluster.client()?,
            subscriptions: Vec::new(),
            followers: Vec::new(),
            crowd: (crowd > 0)
                .then(|| Crowd::start(cluster, crowd))
                .transpose()?,
            seen: Vec::new(),
            producing: Vec::new(),
            reading: Vec::new(),
            consuming: Vec::new(),
        };
        for number in 0..TOPICS * PRODUCERS {
            let (client, shared) = (cluster.client()?, Arc::clone(&shared));
            let name = format!("producer-{number}");
            let pulse = Pulse::new(name.clone(), shared.clock.monotonic());
            traffic.producing.push(Arc::clone(&pulse));
            traffic.producers.push(tasks.spawn("producer", async move {
                let topic = topic(number % TOPICS);
                let produced = produce(client, &topic, &name, &shared, &pulse).await;
                noted(&shared, &name, produced)
            }));
        }
        for number in 0..TOPICS {
            let (client, shared) = (cluster.client()?, Arc::clone(&shared));
            let name = format!("reader-{number}");
            let pulse = Pulse::new(name.clone(), shared.clock.monotonic());
            traffic.reading.push(Arc::clone(&pulse));
            let seen = Arc::new(Mutex::new(Vec::new()));
            traffic.seen.push(Arc::clone(&seen));
            traffic.readers.push(tasks.spawn("reader", async move {
                let read = follow(client, &topic(number), &seen, &shared, &pulse).await;
                noted(&shared, &name, read)
            }));
        }
        for (number, (kind, _)) in (0..TOPICS).flat_map(|n| KINDS.map(|kind| (n, kind))) {
            let subscription = Subscription::new(number, kind, cluster.folder());
            let name = format!("{} subscription {number}", subscription.name());
            traffic.subscriptions.push(Arc::clone(&subscription));
            let pulse = Pulse::new(name.clone(), shared.clock.monotonic());
            traffic.consuming.push(Arc::clone(&pulse));
            let shared = Arc::clone(&shared);
            traffic.followers.push(tasks.spawn("follower", async move {
                loop {
                    match subscription.follow() {
                        Ok(true) => pulse.beat(shared.clock.monotonic()),
                        Ok(false) => {}
                        Err(error) => return noted(&shared, &name, Err(error)),
                    }
                    sleep(Duration::from_millis(50)).await;
                }
            }));
        }
        Ok(traffic)
    }

    /// The clock of the run.
    pub fn now(&self) -> Duration {
        self.shared.clock.monotonic()
    }

    /// Receipts so far.
    pub fn acknowledged(&self) -> u64 {
        self.producing.iter().map(|pulse| pulse.count()).sum()
    }

    /// That no client has seen what must not be.
    ///
    /// # Errors
    /// Says who has.
    pub fn check(&self) -> Result<()> {
        let failures = self.shared.failures.lock().expect("no holder panics");
        ensure!(failures.is_empty(), "{}", failures.join("\n"));
        self.crowd.as_ref().map_or(Ok(()), Crowd::check)
    }

    /// Waits until every producer, reader and subscription has gone on since now; says how long it
    /// took.
    ///
    /// # Errors
    /// P16: names those that have not within `limit`.
    pub async fn wait_for_progress(
        &self,
        limit: Duration,
        mut meanwhile: impl FnMut() -> Result<()>,
    ) -> Result<Duration> {
        let all = self.producing.iter().chain(&self.reading);
        let all: Vec<&Arc<Pulse>> = all.chain(&self.consuming).collect();
        let before: Vec<u64> = all.iter().map(|pulse| pulse.count()).collect();
        let started = self.now();
        loop {
            self.check()?;
            meanwhile()?;
            let stuck = || {
                all.iter()
                    .zip(&before)
                    .filter(|(pulse, before)| pulse.count() <= **before)
            };
            let took = self.now() - started;
            if stuck().next().is_none() {
                return Ok(took);
            }
            if took > limit {
                let names: Vec<&str> = stuck().map(|(pulse, _)| pulse.name()).collect();
                bail!("P16: no progress within {limit:?} of {}", names.join(", "));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Stops publishing, waits for every receipt and for readers and subscriptions to reach the
    /// end.
    ///
    /// # Errors
    /// What a producer or reader ran into, or that they do not end.
    pub async fn finish(self, limit: Duration) -> Result<History> {
        self.shared.stop.store(true, Ordering::SeqCst);
        let end = self.now() + limit;
        let mut produced: Vec<Vec<Produced>> = (0..TOPICS).map(|_| Vec::new()).collect();
        for (number, producer) in self.producers.into_iter().enumerate() {
            let left = end.saturating_sub(self.shared.clock.monotonic());
            let ended = aquifer_runtime::clock::timeout(left, producer).await;
            let ended = ended.context("P16: a producer's last receipts do not arrive")?;
            produced[number % TOPICS].push(ended??);
        }
        for (number, seen) in self.seen.iter().enumerate() {
            let highest = produced[number]
                .iter()
                .flat_map(|p| &p.acknowledged)
                .map(|a| a.index);
            let highest = highest.max().unwrap_or_default();
            let seen_so_far = || seen.lock().expect("no holder panics").len() as u64;
            while seen_so_far() <= highest {
                ensure!(
                    self.shared.clock.monotonic() < end,
                    "P16: reader {number} stays at {} of {highest}",
                    seen_so_far()
                );
                sleep(Duration::from_millis(50)).await;
            }
        }
        for reader in &self.readers {
            reader.abort();
        }
        for (at, subscription) in self.subscriptions.iter().enumerate() {
            let highest = produced[at / KINDS.len()]
                .iter()
                .flat_map(|p| &p.acknowledged)
                .map(|a| a.index);
            let end_index = highest.max().map_or(0, |highest| highest + 1);
            let in_time = || self.shared.clock.monotonic() < end;
            wait_drained(subscription, &self.client, end_index, in_time).await?;
        }
        for follower in &self.followers {
            follower.abort();
        }
        let crowd = match self.crowd {
            Some(crowd) => Some(crowd.finish(limit).await?),
            None => None,
        };
        let failures = self.shared.failures.lock().expect("no holder panics");
        ensure!(failures.is_empty(), "{}", failures.join("\n"));
        let seen = self.seen.iter();
        let seen = seen.map(|seen| seen.lock().expect("no holder panics").clone());
        Ok(History {
            produced,
            seen: seen.collect(),
            subscriptions: self.subscriptions,
            crowd,
        })
    }
}

/// P9: waits until a subscription was given everything, and its cursor says so.
async fn wait_drained(
    subscription: &Subscription,
    client: &Client,
    end_index: u64,
    in_time: impl Fn() -> bool,
) -> Result<()> {
    loop {
        let received = subscription.all_below();
        // The broker may be coming back.
        let stats = client.admin().topic_stats(&subscription.topic).await;
        let cursor = stats.ok().and_then(|stats| {
            let mut found = stats.subscriptions.into_iter();
            found.find(|found| found.name == subscription.name())
        });
        let acknowledged = cursor.map_or(0, |cursor| cursor.mark_delete.0);
        if received >= end_index && acknowledged >= end_index {
            return Ok(());
        }
        ensure!(
            in_time(),
            "P9: the {} subscription of {} has {received} of {end_index}, and acknowledged {acknowledged}",
            subscription.name(),
            subscription.topic
        );
        sleep(Duration::from_millis(50)).await;
    }
}

fn noted<T>(shared: &Shared, name: &str, result: Result<T>) -> Result<T> {
    if let Err(error) = &result {
        let mut failures = shared.failures.lock().expect("no holder panics");
        failures.push(format!("{name}: {error:#}"));
    }
    result
}

async fn produce(
    client: Client,
    topic: &str,
    name: &str,
    shared: &Shared,
    pulse: &Pulse,
) -> Result<Produced> {
    let producer = loop {
        match client
            .producer(topic)
            .name(name)
            .send_timeout(None)
            .open()
            .await
        {
            Ok(producer) => break producer,
            Err(error) if error.is_retryable() => sleep(Duration::from_millis(100)).await,
            Err(error) => return Err(error.into()),
        }
    };
    let (sender, receiver) = mpsc::channel(WINDOW);
    let publish = async {
        let mut number = 0;
        while !shared.stop.load(Ordering::SeqCst) {
            let message = Message::new(payload(name, number)).sequence_id(number);
            let invoked_us = micros(shared.clock.monotonic());
            let send = producer.enqueue(message).await?;
            sender
                .send((invoked_us, send))
                .await
                .context("receipts are awaited")?;
            number += 1;
            sleep(shared.pace).await;
        }
        drop(sender);
        anyhow::Ok(number)
    };
    let (sent, received) = tokio::join!(publish, collect(receiver, name, shared, pulse));
    let mut produced = received?;
    produced.sent = sent?;
    Ok(produced)
}

async fn collect(
    mut sends: mpsc::Receiver<(u64, PendingSend)>,
    name: &str,
    shared: &Shared,
    pulse: &Pulse,
) -> Result<Produced> {
    let mut produced = Produced {
        name: name.to_owned(),
        ..Produced::default()
    };
    while let Some((invoked_us, send)) = sends.recv().await {
        let receipt = send.await?;
        let now = shared.clock.monotonic();
        pulse.beat(now);
        let number = produced.acknowledged.len() as u64;
        ensure!(
            receipt.sequence_id == number,
            "receipt {} for {number}",
            receipt.sequence_id
        );
        let index = receipt.index.context("a receipt without an index")?.0;
        produced.appends.push(Append {
            invoked_us,
            acknowledged_us: micros(now),
            index,
        });
        produced.acknowledged.push(Acknowledged {
            producer: name.to_owned(),
            sequence_id: number,
            payload: payload(name, number),
            position: receipt.position.context("a receipt without a position")?,
            index,
        });
    }
    Ok(produced)
}

/// Reads a topic from its beginning for as long as the run lasts; opens again after an error that
/// passes. P7: what it gets is the next index, always.
async fn follow(
    client: Client,
    topic: &str,
    seen: &Mutex<Vec<u32>>,
    shared: &Shared,
    pulse: &Pulse,
) -> Result<()> {
    let next = || seen.lock().expect("no holder panics").len() as u64;
    loop {
        let start = Place::Index(Index(next()));
        let reader = match client.reader(topic).start(start).open().await {
            Ok(reader) => reader,
            Err(error) if error.is_retryable() => {
                sleep(Duration::from_millis(100)).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        loop {
            match reader.next().await {
                Ok(message) => {
                    ensure!(
                        message.index.0 == next(),
                        "P7: index {} after {} messages",
                        message.index.0,
                        next()
                    );
                    seen.lock()
                        .expect("no holder panics")
                        .push(crc(&message.payload));
                    pulse.beat(shared.clock.monotonic());
                }
                Err(error) if error.is_retryable() => break,
                Err(error) => return Err(error.into()),
            }
        }
        sleep(Duration::from_millis(100)).await;
    }
}
