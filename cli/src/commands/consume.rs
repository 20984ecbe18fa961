//! `aquifer consume`: receives the messages of a subscription, prints them, and acknowledges each
//! only after it was written to standard output. A message that was printed and not acknowledged,
//! because the command was stopped in between, comes again.

use std::time::Duration;

use aquifer_client::{Client, SubscriptionType};

use crate::args::{ConsumeArgs, SubscriptionTypeArg};
use crate::commands::message;
use crate::connect::Connect;
use crate::exit::CliError;
use crate::output::Output;

/// Messages that are printed and acknowledged together.
const BATCH_MESSAGES: usize = 1_000;
/// How long nothing must arrive before the end of the topic is looked for.
const QUIET: Duration = Duration::from_millis(200);

/// Runs the command.
///
/// # Errors
/// When the subscription cannot be used or standard output be written.
pub async fn run(args: ConsumeArgs, connect: &Connect, out: &Output) -> Result<(), CliError> {
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
    let consumer = builder.open().await?;

    let progress = out.progress("messages", args.count);
    let mut end = EndOfTopic::new(client, topic, subscription);
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let max = usize::try_from(left).unwrap_or(usize::MAX);
        let batch = consumer
            .receive_batch(max.min(BATCH_MESSAGES), QUIET)
            .await?;
        if batch.is_empty() {
            if !args.follow && end.is_reached().await? {
                break;
            }
            continue;
        }
        end.progressed();
        for received in &batch {
            message::print(out, received)?;
        }
        out.flush()?;
        consumer.ack_all(&batch).await?;
        let count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        progress.add(count);
        left = left.saturating_sub(count);
    }
    drop(progress);
    consumer.close().await?;
    Ok(())
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
    /// so a moment ago: then it is theirs, and not on its way to this one.
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
                mark += subscription.mark_delete_index.0;
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
