//! Subscriptions that are consumed through every fault: one exclusive, one with a stand-by, and one
//! that three consumers share. Consumers of the last two die now and then.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aquifer_client::{
    Client, ClientError, Consumer, ErrorKind, Message, ReceivedMessage, SubscriptionType,
};
use aquifer_model::id::Index;
use aquifer_model::place::Place;
use aquifer_runtime::clock::sleep;
use aquifer_runtime::rng::{Rng, SystemRng};

use crate::traffic::{Pulse, Shared};

/// How a subscription is consumed.
pub const KINDS: [(SubscriptionType, usize); 3] = [
    (SubscriptionType::Exclusive, 1),
    (SubscriptionType::Failover, 2),
    (SubscriptionType::Shared, 3),
];
const BATCH: usize = 200;
const WAIT: Duration = Duration::from_millis(200);
/// Messages after which a consumer that is not alone may die.
const LIFE_MIN: u64 = 2_000;
const LIFE_SPREAD: u64 = 10_000;

/// What a subscription was given, by its consumers together.
#[derive(Debug, Default)]
pub struct Received {
    /// By index.
    seen: Vec<bool>,
    /// Distinct messages.
    pub count: u64,
    /// Deliveries.
    pub deliveries: u64,
    /// Messages whose acknowledgement was confirmed.
    confirmed: HashSet<u64>,
    /// Deliveries of such messages to another consumer, which may have had them in its queue.
    pub late: u64,
}

impl Received {
    /// Messages from the first on that were all received.
    pub fn all_below(&self) -> u64 {
        let gap = self.seen.iter().position(|seen| !seen);
        gap.unwrap_or(self.seen.len()) as u64
    }

    fn note(&mut self, index: u64, in_order: bool) -> Result<()> {
        self.deliveries += 1;
        self.late += u64::from(self.confirmed.contains(&index));
        let at = usize::try_from(index)?;
        if self.seen.get(at) == Some(&true) {
            return Ok(());
        }
        // P10: who is served in order skips nothing: what is new is the next.
        ensure!(
            !in_order || at == self.seen.len(),
            "P10: index {index} after {} messages",
            self.seen.len()
        );
        if self.seen.len() <= at {
            self.seen.resize(at + 1, false);
        }
        self.seen[at] = true;
        self.count += 1;
        Ok(())
    }
}

/// A subscription of a topic.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// The topic.
    pub topic: String,
    /// How it is consumed.
    pub kind: SubscriptionType,
    /// What it was given.
    pub received: Arc<Mutex<Received>>,
}

impl Subscription {
    /// Its name.
    pub fn name(&self) -> String {
        format!("{:?}", self.kind).to_lowercase()
    }

    fn with<T>(&self, change: impl FnOnce(&mut Received) -> T) -> T {
        change(&mut self.received.lock().expect("no holder panics"))
    }

    async fn open(&self, client: &Client) -> Result<Option<Consumer>> {
        let builder = client
            .consumer(&self.topic, &self.name())
            .kind(self.kind)
            .start(Place::Index(Index(0)));
        match builder.open().await {
            Ok(consumer) => Ok(Some(consumer)),
            Err(error) if passes(&error) => Ok(None),
            Err(error) => Err(error).context("opening a consumer"),
        }
    }

    /// Consumes with one consumer after the other, until the run ends.
    pub async fn consume(&self, client: Client, shared: &Shared, pulse: &Pulse) -> Result<()> {
        let rng = SystemRng::shared();
        while !shared.is_over() {
            let Some(consumer) = self.open(&client).await? else {
                sleep(Duration::from_millis(100)).await;
                continue;
            };
            let life = match self.kind {
                SubscriptionType::Exclusive => u64::MAX,
                _ => LIFE_MIN + rng.below(LIFE_SPREAD),
            };
            let mut own = HashSet::new();
            let mut received = 0;
            while received < life && !shared.is_over() {
                match self.some(&consumer, &mut own, &*rng).await? {
                    Some(count) => received += count,
                    None => break,
                }
                pulse.beat(shared.now());
            }
        }
        Ok(())
    }

    /// Receives and acknowledges some messages; `None` when another consumer is needed.
    async fn some(
        &self,
        consumer: &Consumer,
        own: &mut HashSet<u64>,
        rng: &dyn Rng,
    ) -> Result<Option<u64>> {
        let batch = match consumer.receive_batch(BATCH, WAIT).await {
            Ok(batch) => batch,
            Err(error) if passes(&error) => return Ok(None),
            Err(error) => return Err(error).context("receiving"),
        };
        if batch.is_empty() {
            return Ok(Some(0));
        }
        for message in &batch {
            let index = message.index.0;
            // I9: what was confirmed to a consumer does not come to it again.
            ensure!(
                !own.contains(&index),
                "I9: index {index} came to the {} consumer whose acknowledgement of it was confirmed",
                self.name()
            );
            self.with(|received| received.note(index, self.kind != SubscriptionType::Shared))?;
        }
        if self.kind == SubscriptionType::Shared && rng.below(50) == 0 {
            batch.iter().for_each(|message| consumer.nack(message));
            return Ok(Some(0));
        }
        match self.acknowledge(consumer, &batch).await {
            Ok(()) => {
                let indexes = || batch.iter().map(|message| message.index.0);
                own.extend(indexes());
                self.with(|received| received.confirmed.extend(indexes()));
            }
            Err(error) if passes(&error) => {}
            Err(error) => return Err(error).context("acknowledging"),
        }
        Ok(Some(batch.len() as u64))
    }

    async fn acknowledge(
        &self,
        consumer: &Consumer,
        batch: &[ReceivedMessage],
    ) -> Result<(), ClientError> {
        match (self.kind, batch.last()) {
            (SubscriptionType::Exclusive, Some(last)) => consumer.ack_cumulative(last).await,
            _ => consumer.ack_all(batch).await,
        }
    }

    /// After everything was consumed, and the brokers were replaced: the message that is published
    /// now is the only one that comes. P9: nothing that was acknowledged does.
    ///
    /// # Errors
    /// Says what came instead.
    pub async fn is_drained(&self, client: &Client, end: u64) -> Result<()> {
        let consumer = loop {
            match self.open(client).await? {
                Some(consumer) => break consumer,
                None => sleep(Duration::from_millis(100)).await,
            }
        };
        let message = consumer.receive().await?;
        ensure!(
            message.index.0 >= end,
            "P9: index {} comes again, although everything below {end} was acknowledged",
            message.index.0
        );
        Ok(())
    }
}

/// Publishes one message behind everything; brokers may be starting.
pub async fn publish_last(client: &Client, topic: &str) -> Result<()> {
    let producer = loop {
        match client.producer(topic).send_timeout(None).open().await {
            Ok(producer) => break producer,
            Err(error) if error.is_retryable() => sleep(Duration::from_millis(100)).await,
            Err(error) => return Err(error.into()),
        }
    };
    producer.send(Message::new("the last one")).await?;
    Ok(())
}

/// Whether another attempt may do: the former session of a consumer may be there still.
fn passes(error: &ClientError) -> bool {
    error.is_retryable() || error.kind() == ErrorKind::Busy
}
