//! `aquifer consume`: receives the messages of a subscription, prints them, and acknowledges each
//! only after it was written to standard output. A message that was printed and not acknowledged,
//! because the command was stopped in between, comes again. One whose acknowledgement came back, at
//! a restart of the server for instance, comes again as well, but is not printed again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aquifer_client::{Client, ClientError, Consumer, ReceivedMessage, SubscriptionType};
use aquifer_runtime::clock::{self, Clock, SystemClock};
use tracing::Span;

use crate::args::{ConsumeArgs, SubscriptionTypeArg};
use crate::commands::message::{self, Damage};
use crate::connect::Connect;
use crate::exit::CliError;
use crate::output::Output;
use crate::traced::traced;

/// Messages that are printed and acknowledged together.
const BATCH_MESSAGES: usize = 1_000;
/// Messages of a partition that were printed and may come again, as far as that is remembered.
const PRINTED_MAX: usize = 100_000;
/// How long nothing must arrive before the end of the topic is looked for.
const QUIET: Duration = Duration::from_millis(200);

/// Runs the command.
///
/// # Errors
/// When the subscription cannot be used, standard output be written, or messages not be read.
pub async fn run(args: ConsumeArgs, connect: &Connect, out: &Output) -> Result<(), CliError> {
    let to = args.trace.clone();
    traced(to, "aquifer-consume", consume(args, connect, out)).await
}

async fn consume(args: ConsumeArgs, connect: &Connect, out: &Output) -> Result<(), CliError> {
    let client = connect.client()?;
    client.connect().await?;
    let topic = args.topic.to_string();
    let subscription = args.subscription.to_string();
    let mut builder = client
        .consumer(&topic, &subscription)
        .kind(subscription_type(args.kind))
        .start(args.from);
    if let Some(name) = &args.consumer_name {
        builder = builder.name(name.as_str());
    }
    if let Some(count) = args.count {
        // What is fetched and not wanted would only have to be delivered again.
        let queue = usize::try_from(count).unwrap_or(usize::MAX);
        builder = builder.queue_messages(queue.clamp(1, BATCH_MESSAGES));
    }
    let consuming = Consuming {
        consumer: builder.open().await?,
        out,
        damage: Damage::new(out, args.on_damage),
        printed: Printed::new(args.kind),
        end: (!args.follow).then(|| EndOfTopic::new(client, topic, subscription)),
        is_over: false,
        patience: connect.timeout(),
    };
    consuming.run(args.count).await
}

/// The command at work.
struct Consuming<'a> {
    consumer: Consumer,
    out: &'a Output,
    damage: Damage<'a>,
    printed: Printed,
    /// Where it ends; nowhere with `--follow`.
    end: Option<EndOfTopic>,
    /// The topic is terminated, and has no more.
    is_over: bool,
    /// How long acknowledgements that came back may take after the last message was printed.
    patience: Duration,
}

impl Consuming<'_> {
    async fn run(mut self, count: Option<u64>) -> Result<(), CliError> {
        let progress = self.out.progress("messages", count);
        let mut left = count.unwrap_or(u64::MAX);
        while left > 0 {
            let max = usize::try_from(left).unwrap_or(usize::MAX);
            let Some(batch) = self.receive(max.min(BATCH_MESSAGES)).await? else {
                continue;
            };
            if batch.is_empty() {
                if self.is_over || self.is_at_end().await? {
                    break;
                }
                continue;
            }
            if let Some(end) = &mut self.end {
                end.progressed();
            }
            // They last until the messages are acknowledged.
            let spans = batch.iter().map(ReceivedMessage::span);
            let spans: Vec<Span> = spans.filter(|span| !span.is_disabled()).collect();
            let mut printed = 0;
            for received in &batch {
                if self.printed.is_new(received) {
                    message::print(self.out, received)?;
                    printed += 1;
                }
            }
            self.out.flush()?;
            self.acknowledge(&batch).await?;
            drop(spans);
            progress.add(printed);
            left = left.saturating_sub(printed);
        }
        self.acknowledge_rest().await?;
        drop(progress);
        close(self.consumer.close().await)?;
        self.damage.end()
    }

    /// Messages that came; `None` when some came that cannot be read.
    async fn receive(&mut self, max: usize) -> Result<Option<Vec<ReceivedMessage>>, CliError> {
        match self.consumer.receive_batch(max, QUIET).await {
            Ok(batch) => Ok(Some(batch)),
            Err(ClientError::Damaged(damaged)) => {
                self.damage.met(&damaged)?;
                // What comes back comes again, and is told again.
                ride_out(self.out, self.consumer.ack_damaged(&damaged).await)?;
                Ok(None)
            }
            Err(ClientError::EndOfTopic) => {
                self.is_over = true;
                // What is waited for still must not be asked for all the time.
                clock::sleep(QUIET).await;
                Ok(Some(Vec::new()))
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn is_at_end(&mut self) -> Result<bool, CliError> {
        match &mut self.end {
            None => Ok(false),
            Some(end) => end.is_reached().await,
        }
    }

    /// Acknowledges what was printed. What comes back is delivered again, and then acknowledged
    /// again without being printed.
    async fn acknowledge(&mut self, batch: &[ReceivedMessage]) -> Result<(), CliError> {
        let outcomes = self.consumer.ack_each(batch).await;
        let mut came_back = None;
        for (received, outcome) in batch.iter().zip(outcomes) {
            match outcome {
                // After a seek everything from there on is wanted once more.
                Ok(()) | Err(ClientError::Stale) => self.printed.forget(received),
                Err(error) if error.is_retryable() => {
                    self.printed.remember(received);
                    came_back = Some(error);
                }
                Err(error) => return Err(error.into()),
            }
        }
        ride_out(self.out, came_back.map_or(Ok(()), Err))
    }

    /// Acknowledges what was printed and came back, when nothing more is to be printed.
    async fn acknowledge_rest(&mut self) -> Result<(), CliError> {
        let deadline = SystemClock.monotonic().saturating_add(self.patience);
        while !self.printed.is_empty() {
            let batch = self.receive(BATCH_MESSAGES).await?.unwrap_or_default();
            let ours = |received: &ReceivedMessage| !self.printed.is_new(received);
            let again: Vec<_> = batch.into_iter().filter(ours).collect();
            self.acknowledge(&again).await?;
            if self.printed.is_empty() || self.is_at_end().await? {
                return Ok(());
            }
            if SystemClock.monotonic() >= deadline {
                let count = self.printed.len();
                let text = format!("{count} messages were printed and are not acknowledged");
                return Err(CliError::timed_out(text).advise("they are delivered again"));
            }
        }
        Ok(())
    }
}

/// Messages that were printed and whose acknowledgement came back, by partition.
struct Printed {
    indexes: BTreeMap<Option<u32>, BTreeSet<u64>>,
    /// Whether a partition's messages come in order, so that what comes later proves that what was
    /// before it is acknowledged.
    in_order: bool,
}

impl Printed {
    fn new(kind: SubscriptionTypeArg) -> Printed {
        Printed {
            indexes: BTreeMap::new(),
            in_order: matches!(
                kind,
                SubscriptionTypeArg::Exclusive | SubscriptionTypeArg::Failover
            ),
        }
    }

    fn is_empty(&self) -> bool {
        self.indexes.values().all(BTreeSet::is_empty)
    }

    fn len(&self) -> usize {
        self.indexes.values().map(BTreeSet::len).sum()
    }

    /// Whether a message that came has not been printed.
    fn is_new(&mut self, received: &ReceivedMessage) -> bool {
        let index = received.index.0;
        let Some(indexes) = self.indexes.get_mut(&received.topic.partition()) else {
            return true;
        };
        if self.in_order {
            *indexes = indexes.split_off(&index);
        }
        !indexes.contains(&index)
    }

    fn remember(&mut self, received: &ReceivedMessage) {
        let indexes = self.indexes.entry(received.topic.partition()).or_default();
        indexes.insert(received.index.0);
        if indexes.len() > PRINTED_MAX {
            // The oldest may be printed twice.
            indexes.pop_first();
        }
    }

    fn forget(&mut self, received: &ReceivedMessage) {
        if let Some(indexes) = self.indexes.get_mut(&received.topic.partition()) {
            indexes.remove(&received.index.0);
        }
    }
}

/// Says that an acknowledgement came back where that is no reason to end.
fn ride_out(out: &Output, outcome: Result<(), ClientError>) -> Result<(), CliError> {
    match outcome {
        Err(error) if error.is_retryable() => {
            out.note(&format!("going on: {error}"));
            Ok(())
        }
        Ok(()) | Err(ClientError::Stale) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Everything is acknowledged: whether the broker lets go in time is no matter.
pub(super) fn close(closed: Result<(), ClientError>) -> Result<(), CliError> {
    match closed {
        Err(error) if !error.is_retryable() => Err(error.into()),
        _ => Ok(()),
    }
}

fn subscription_type(given: SubscriptionTypeArg) -> SubscriptionType {
    match given {
        SubscriptionTypeArg::Exclusive => SubscriptionType::Exclusive,
        SubscriptionTypeArg::Shared => SubscriptionType::Shared,
        SubscriptionTypeArg::Failover => SubscriptionType::Failover,
        SubscriptionTypeArg::KeyShared => SubscriptionType::KeyShared,
    }
}

/// Whether the subscription has nothing more for this consumer.
struct EndOfTopic {
    client: Client,
    topic: String,
    subscription: String,
    /// The mark-delete index when everything left was last seen in the hands of others.
    others_at: Option<u64>,
}

impl EndOfTopic {
    fn new(client: Client, topic: String, subscription: String) -> EndOfTopic {
        EndOfTopic {
            client,
            topic,
            subscription,
            others_at: None,
        }
    }

    fn progressed(&mut self) {
        self.others_at = None;
    }

    /// Everything is acknowledged; or what is not has been delivered to other consumers, and was
    /// so a moment ago: then it is theirs, and will not come to this one.
    async fn is_reached(&mut self) -> Result<bool, CliError> {
        let stats = self.client.admin().topic_stats(&self.topic).await?;
        // One entry, or one for each partition.
        let (mut found, mut backlog, mut unacknowledged, mut mark) = (false, 0_u64, 0_u64, 0_u64);
        let mut shared_with_others = false;
        for subscription in stats.subscriptions {
            if subscription.name == self.subscription {
                found = true;
                backlog += subscription.backlog_messages;
                unacknowledged += subscription.unacknowledged_messages;
                mark += subscription.mark_delete.0;
                shared_with_others |= subscription.consumers.len() > 1;
            }
        }
        if !found || backlog == 0 {
            return Ok(found);
        }
        let with_others = shared_with_others && unacknowledged >= backlog;
        let seen_before = self.others_at == Some(mark);
        self.others_at = with_others.then_some(mark);
        Ok(with_others && seen_before)
    }
}
