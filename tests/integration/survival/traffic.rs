//! Producers and consumers that go on through every fault, and write down what they saw.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use aquifer_client::{Admin, Client, Message, PendingSend, SubscriptionType};
use aquifer_harness::checker::Acknowledged;
use aquifer_harness::data::Flight;
use aquifer_harness::server::Server;
use aquifer_harness::wait::until;
use aquifer_model::hash::key_hash;
use aquifer_model::place::Place;
use aquifer_runtime::clock::sleep;
use aquifer_runtime::rng::{Rng, SeededRng};
use aquifer_runtime::task::TaskGroup;
use tokio::sync::{mpsc, watch};

/// The topic.
pub const TOPIC: &str = "public/default/flights";
/// The Shared subscription.
pub const SUBSCRIPTION: &str = "audit";
const PRODUCERS: u32 = 4;
const CONSUMERS: u64 = 3;
/// Sends of one producer that wait for their receipts.
const WINDOW: usize = 2_000;

/// What happened, for the checkers.
#[derive(Debug, Default)]
pub struct History {
    /// Every receipt.
    pub acknowledged: Vec<Acknowledged>,
    /// Indexes that the subscription delivered.
    pub received: HashSet<u64>,
    /// Indexes whose acknowledgement was confirmed.
    pub confirmed: HashSet<u64>,
    /// Indexes that were delivered after their acknowledgement had been confirmed.
    pub delivered_again: Vec<u64>,
}

#[derive(Debug, Default)]
struct Shared {
    /// How many lines may be sent by now: the pace.
    gate: watch::Sender<u64>,
    turns: AtomicU64,
    sent: AtomicU64,
    acknowledged: AtomicU64,
    producers_done: AtomicU64,
    stop: AtomicBool,
    history: Mutex<History>,
    failures: Mutex<Vec<String>>,
}

impl Shared {
    fn in_flight(&self) -> u64 {
        // Acknowledged is read first: the difference never exceeds what really is in flight.
        let acknowledged = self.acknowledged.load(Ordering::SeqCst);
        self.sent
            .load(Ordering::SeqCst)
            .saturating_sub(acknowledged)
    }

    /// Waits until one more line may be sent.
    async fn take_turn(&self) -> Result<()> {
        let turn = self.turns.fetch_add(1, Ordering::SeqCst);
        let mut gate = self.gate.subscribe();
        gate.wait_for(|gate| turn < *gate)
            .await
            .context("the gate stays")?;
        Ok(())
    }

    fn with<T>(&self, change: impl FnOnce(&mut History) -> T) -> T {
        change(&mut self.history.lock().expect("no holder panics"))
    }

    fn check(&self) -> Result<()> {
        let failures = self.failures.lock().expect("no holder panics");
        ensure!(failures.is_empty(), "{failures:?}");
        Ok(())
    }

    fn fail(&self, error: &anyhow::Error) {
        self.failures
            .lock()
            .expect("no holder panics")
            .push(format!("{error:#}"));
    }
}

/// Running producers and consumers.
pub struct Traffic {
    shared: Arc<Shared>,
    tasks: TaskGroup,
    admin: Admin,
    lines: u64,
}

impl Traffic {
    /// Begins to publish and to consume.
    pub async fn start(server: &Server, flights: Vec<Flight>, rng: &SeededRng) -> Result<Traffic> {
        let shared = Arc::new(Shared::default());
        let tasks = TaskGroup::new("traffic");
        let lines = flights.len() as u64;
        // The subscription exists before the first line, so that it must see all of them.
        let client = server.client()?;
        let first = client
            .consumer(TOPIC, SUBSCRIPTION)
            .kind(SubscriptionType::Shared);
        first.start(Place::Earliest).open().await?.close().await?;
        for number in 0..PRODUCERS {
            let mine =
                |flight: &&Flight| key_hash(flight.aircraft.as_bytes()) % PRODUCERS == number;
            let flights: Vec<Flight> = flights.iter().filter(mine).cloned().collect();
            let (client, shared) = (server.client()?, Arc::clone(&shared));
            tasks.spawn("producer", async move {
                if let Err(error) = produce(client, number, flights, &shared).await {
                    shared.fail(&error.context(format!("producer {number}")));
                }
                shared.producers_done.fetch_add(1, Ordering::SeqCst);
            });
        }
        for number in 0..CONSUMERS {
            let (client, shared) = (server.client()?, Arc::clone(&shared));
            let rng = SeededRng::new(rng.next_u64());
            tasks.spawn("consumer", async move {
                if let Err(error) = consume(client, &shared, &rng).await {
                    shared.fail(&error.context(format!("consumer {number}")));
                }
            });
        }
        Ok(Traffic {
            shared,
            tasks,
            admin: client.admin(),
            lines,
        })
    }

    /// How many lines are published in all.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// How many receipts have arrived.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::SeqCst)
    }

    /// Lets the producers send up to this many lines in all.
    pub fn let_send(&self, lines: u64) {
        self.shared.gate.send_replace(lines);
    }

    /// Waits until this many receipts have arrived.
    pub async fn wait_acknowledged(&self, count: u64) -> Result<()> {
        let shared = &self.shared;
        until("receipts", || async {
            shared.check()?;
            Ok((shared.acknowledged.load(Ordering::SeqCst) >= count).then_some(()))
        })
        .await
    }

    /// Waits until messages are in flight; says how many.
    pub async fn wait_in_flight(&self) -> Result<u64> {
        let shared = &self.shared;
        until("messages in flight", || async {
            // What was let through may be acknowledged before the check: there is always more.
            let more = self.acknowledged() + 20_000;
            shared.gate.send_if_modified(|gate| {
                let raise = more > *gate;
                *gate = more.max(*gate);
                raise
            });
            ensure!(
                shared.producers_done.load(Ordering::SeqCst) < u64::from(PRODUCERS),
                "the lines ran out too soon"
            );
            Ok(Some(shared.in_flight()).filter(|count| *count > 0))
        })
        .await
    }

    /// With the server gone: lets receipts in flight arrive, then says how many sends
    /// are certainly without one.
    pub async fn still_in_flight(&self) -> Result<u64> {
        until("receipts for every message", || async {
            let before = self.acknowledged();
            sleep(Duration::from_millis(30)).await;
            Ok((self.acknowledged() == before).then(|| self.shared.in_flight()))
        })
        .await
    }

    /// Waits until every line has its receipt and is acknowledged by the subscription. The server
    /// is asked for that: an acknowledgement whose confirmation a fault took has an unknown
    /// outcome.
    pub async fn finish(self) -> Result<History> {
        self.let_send(self.lines);
        self.wait_acknowledged(self.lines).await?;
        let shared = &self.shared;
        let lines = self.lines;
        let all = until("the subscription to drain", || async {
            shared.check()?;
            let stats = self.admin.topic_stats(TOPIC).await?;
            let audit = stats
                .subscriptions
                .iter()
                .find(|found| found.name == SUBSCRIPTION);
            Ok(audit.and_then(|found| (found.mark_delete.0 == lines).then_some(())))
        });
        if let Err(error) = all.await {
            let (received, confirmed) =
                shared.with(|history| (history.received.len(), history.confirmed.len()));
            bail!("{error}: {received} received, {confirmed} confirmed of {lines}");
        }
        shared.stop.store(true, Ordering::SeqCst);
        self.tasks.drain(Duration::from_secs(10)).await;
        shared.check()?;
        Ok(shared.with(std::mem::take))
    }
}

async fn produce(
    client: Client,
    number: u32,
    flights: Vec<Flight>,
    shared: &Arc<Shared>,
) -> Result<()> {
    let name = format!("flights-{number}");
    let producer = client
        .producer(TOPIC)
        .name(&name)
        .send_timeout(None)
        .open()
        .await?;
    let (sender, receiver) = mpsc::channel(WINDOW);
    let publish = async {
        for (sequence_id, flight) in flights.into_iter().enumerate() {
            let message = Message::new(flight.line.clone()).key(flight.aircraft);
            let message = message.sequence_id(sequence_id as u64);
            shared.take_turn().await?;
            let pending = producer.enqueue(message).await?;
            shared.sent.fetch_add(1, Ordering::SeqCst);
            sender
                .send((flight.line, pending))
                .await
                .context("receipts are awaited")?;
        }
        drop(sender);
        anyhow::Ok(())
    };
    let (published, collected) = tokio::join!(publish, collect(receiver, &name, shared));
    published.and(collected)
}

async fn collect(
    mut sends: mpsc::Receiver<(String, PendingSend)>,
    name: &str,
    shared: &Shared,
) -> Result<()> {
    let mut expected = 0;
    while let Some((line, pending)) = sends.recv().await {
        let receipt = pending.await?;
        ensure!(
            receipt.sequence_id == expected,
            "receipt {} for {expected}",
            receipt.sequence_id
        );
        expected += 1;
        let (Some(position), Some(index)) = (receipt.position, receipt.index) else {
            bail!("a receipt without a place: {receipt:?}");
        };
        let acknowledged = Acknowledged {
            producer: name.to_owned(),
            sequence_id: receipt.sequence_id,
            payload: line.into_bytes(),
            position,
            index: index.0,
        };
        shared.with(|history| history.acknowledged.push(acknowledged));
        shared.acknowledged.fetch_add(1, Ordering::SeqCst);
    }
    Ok(())
}

/// Consumes with one consumer after the other, each of which dies after some messages, with what
/// it has not acknowledged in its hands.
async fn consume(client: Client, shared: &Shared, rng: &SeededRng) -> Result<()> {
    while !shared.stop.load(Ordering::SeqCst) {
        let builder = client
            .consumer(TOPIC, SUBSCRIPTION)
            .kind(SubscriptionType::Shared);
        let consumer = match builder.open().await {
            Ok(consumer) => consumer,
            Err(error) if error.is_retryable() => continue,
            Err(error) => return Err(error.into()),
        };
        let life = 5_000 + rng.below(20_000);
        let (mut seen, mut holding) = (0, false);
        while seen < life && !shared.stop.load(Ordering::SeqCst) {
            let batch = match consumer
                .receive_batch(500, Duration::from_millis(200))
                .await
            {
                Ok(batch) => batch,
                Err(error) if error.is_retryable() => break,
                Err(error) => return Err(error.into()),
            };
            seen += batch.len() as u64;
            note_received(shared, batch.iter().map(|message| message.index.0));
            if batch.is_empty() && holding {
                break; // what it holds is not delivered before it dies
            }
            if batch.is_empty() || rng.below(50) == 0 {
                holding |= !batch.is_empty();
                continue; // these stay unacknowledged: they must come again
            }
            match consumer.ack_all(&batch).await {
                Ok(()) => shared.with(|history| {
                    history
                        .confirmed
                        .extend(batch.iter().map(|message| message.index.0));
                }),
                Err(error) if error.is_retryable() => holding = true,
                Err(error) => return Err(error.into()),
            }
        }
        drop(consumer);
    }
    Ok(())
}

fn note_received(shared: &Shared, indexes: impl Iterator<Item = u64>) {
    shared.with(|history| {
        for index in indexes {
            history.received.insert(index);
            if history.confirmed.contains(&index) {
                history.delivered_again.push(index);
            }
        }
    });
}
