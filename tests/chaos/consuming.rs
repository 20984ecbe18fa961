//! A process that consumes: one subscription of every topic, with one consumer after the other. It
//! is killed, paused and cut off like any other process, so it writes down at once what it is given
//! and what is confirmed to it ([`aquifer_harness::deliveries`]).

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use aquifer_client::{
    Client, ClientError, ClientTlsConfig, Consumer, ErrorKind, ReceivedMessage, SubscriptionType,
};
use aquifer_harness::deliveries::{What, line, opened, ranges};
use aquifer_model::id::Index;
use aquifer_model::place::Place;
use aquifer_runtime::clock::{Clock, SystemClock, sleep};
use aquifer_runtime::rng::{Rng, SystemRng};
use clap::Args;

use crate::workload::{Kind, TOPICS, name_of, topic};

const BATCH: usize = 200;
const WAIT: Duration = Duration::from_millis(200);
/// Messages after which a consumer that is not alone ends, and another one is opened.
const LIFE_MIN: u64 = 2_000;
const LIFE_SPREAD: u64 = 10_000;

/// What the process is told.
#[derive(Debug, Args)]
pub struct Consuming {
    /// The brokers, separated by commas.
    #[arg(long, value_delimiter = ',')]
    urls: Vec<String>,
    /// How the subscriptions are consumed.
    #[arg(long)]
    kind: Kind,
    /// The process, in the names of its files.
    #[arg(long)]
    name: String,
    /// Where they are.
    #[arg(long)]
    folder: PathBuf,
    /// The authority of the brokers' certificates.
    #[arg(long)]
    ca_file: Option<PathBuf>,
    /// The token that is shown.
    #[arg(long)]
    token_file: Option<PathBuf>,
}

/// Where a process writes down what it was given of a topic.
pub fn file(folder: &Path, process: &str, number: usize) -> PathBuf {
    folder.join(format!("{process}-{number}.events"))
}

/// Consumes until the process is killed.
///
/// # Errors
/// When something happened that must not.
pub async fn run(consuming: &Consuming) -> Result<()> {
    let mut builder = Client::builder()
        .urls(&consuming.urls)
        .tls(ClientTlsConfig {
            ca_file: consuming.ca_file.clone(),
            ..ClientTlsConfig::default()
        });
    if let Some(token) = &consuming.token_file {
        builder = builder.token_file(token);
    }
    let client = builder.build()?;
    let mut all = Vec::new();
    for number in 0..TOPICS {
        let path = file(&consuming.folder, &consuming.name, number);
        all.push(One {
            topic: topic(number),
            kind: consuming.kind.into(),
            events: File::options().create(true).append(true).open(path)?,
            client: client.clone(),
        });
    }
    // The first error ends the process.
    futures::future::try_join_all(all.into_iter().map(One::consume)).await?;
    Ok(())
}

/// A subscription of one topic.
struct One {
    topic: String,
    kind: SubscriptionType,
    events: File,
    client: Client,
}

impl One {
    async fn consume(mut self) -> Result<()> {
        let rng = SystemRng::shared();
        loop {
            let asked_ms = SystemClock.wall_ms();
            let Some(consumer) = open(&self.client, &self.topic, self.kind).await? else {
                sleep(Duration::from_millis(100)).await;
                continue;
            };
            self.events.write_all(opened(asked_ms).as_bytes())?;
            let life = match self.kind {
                SubscriptionType::Exclusive => u64::MAX,
                _ => LIFE_MIN + rng.below(LIFE_SPREAD),
            };
            let mut received = 0;
            while received < life {
                match self.some(&consumer, &*rng).await? {
                    Some(count) => received += count,
                    None => break,
                }
            }
        }
    }

    /// Receives and acknowledges some messages; `None` when another consumer is needed.
    async fn some(&mut self, consumer: &Consumer, rng: &dyn Rng) -> Result<Option<u64>> {
        let batch = match consumer.receive_batch(BATCH, WAIT).await {
            Ok(batch) => batch,
            // One that is served alone keeps its place through every silence of the network.
            Err(error) if error.kind() == ErrorKind::Busy => {
                bail!("a consumer has lost its subscription to itself: {error}")
            }
            Err(error) if error.is_retryable() => return Ok(None),
            Err(error) => return Err(error).context("receiving"),
        };
        if batch.is_empty() {
            return Ok(Some(0));
        }
        self.write(What::Received, &batch)?;
        if self.kind == SubscriptionType::Shared && rng.below(50) == 0 {
            batch.iter().for_each(|message| consumer.nack(message));
            return Ok(Some(0));
        }
        match self.acknowledge(consumer, &batch).await {
            Ok(()) => self.write(What::Confirmed, &batch)?,
            Err(error) if error.is_retryable() => {}
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

    fn write(&mut self, what: What, batch: &[ReceivedMessage]) -> Result<()> {
        let ranges = ranges(batch.iter().map(|message| message.index.0));
        let line = line(what, SystemClock.wall_ms(), &ranges);
        // In one piece, so that a process that is killed leaves whole lines.
        Ok(self.events.write_all(line.as_bytes())?)
    }
}

/// Opens a consumer of a subscription that begins with the first message; `None` when it has to be
/// tried again.
///
/// # Errors
/// When trying again does not help.
pub async fn open(
    client: &Client,
    topic: &str,
    kind: SubscriptionType,
) -> Result<Option<Consumer>> {
    let builder = client
        .consumer(topic, &name_of(kind))
        .kind(kind)
        .start(Place::Index(Index(0)));
    match builder.open().await {
        Ok(consumer) => Ok(Some(consumer)),
        // The former session of a consumer that was killed may be there still.
        Err(error) if error.is_retryable() || error.kind() == ErrorKind::Busy => Ok(None),
        Err(error) => Err(error).context("opening a consumer"),
    }
}
