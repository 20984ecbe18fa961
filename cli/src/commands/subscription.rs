//! `aquifer subscription`: creates, lists, moves and deletes subscriptions.

use aquifer_client::admin::{SubscriptionStats, TopicStats};
use aquifer_client::{Client, ErrorKind, SubscriptionType};
use aquifer_model::place::Place;
use aquifer_model::topic::TopicName;
use serde_json::{Value, json};

use crate::args::{SubscriptionArgs, SubscriptionCommand};
use crate::connect::Connect;
use crate::exit::CliError;
use crate::output::{Output, Table};

/// Runs the command.
///
/// # Errors
/// When the broker refuses it or cannot be reached.
pub async fn run(args: SubscriptionArgs, connect: &Connect, out: &Output) -> Result<(), CliError> {
    let client = connect.client()?;
    client.connect().await?;
    let admin = client.admin();
    match args.command {
        SubscriptionCommand::Create {
            topic,
            subscription,
            from,
        } => {
            let subscription = subscription.to_string();
            create(&client, &topic, &subscription, from).await?;
            let topic = topic.to_string();
            match out.is_json() {
                true => out.object(&json!({"topic": topic, "subscription": subscription})),
                false => out.line(format!("{topic} has the subscription {subscription}")),
            }
        }
        SubscriptionCommand::List { topic } => {
            let stats = admin.topic_stats(&topic.to_string()).await?;
            if out.is_json() {
                let mut all = stats.subscriptions.iter();
                return all.try_for_each(|subscription| out.object(&object(subscription)));
            }
            out.table(&table(&stats.subscriptions))
        }
        SubscriptionCommand::Seek {
            topic,
            subscription,
            place,
        } => {
            let (topic, subscription) = (topic.to_string(), subscription.to_string());
            let index = admin
                .seek_subscription(&topic, &subscription, place)
                .await?;
            match out.is_json() {
                true => out.object(&json!({
                    "topic": topic,
                    "subscription": subscription,
                    "mark_delete_index": index.0,
                })),
                false => out.line(format!("{subscription} continues at index {index}")),
            }
        }
        SubscriptionCommand::Delete {
            topic,
            subscription,
            force,
        } => {
            let (topic, subscription) = (topic.to_string(), subscription.to_string());
            let deleted = admin.delete_subscription(&topic, &subscription, force);
            deleted.await?;
            match out.is_json() {
                true => out.object(&json!({
                    "topic": topic,
                    "subscription": subscription,
                    "deleted": true,
                })),
                false => out.line(format!("deleted {subscription} of {topic}")),
            }
        }
    }
}

/// Creates a subscription, unless there is one of that name: in every partition of a partitioned topic,
/// so that what was created in part is completed.
async fn create(
    client: &Client,
    topic: &TopicName,
    subscription: &str,
    from: Place,
) -> Result<(), CliError> {
    let admin = client.admin();
    let parts = match admin.parts_of(topic).await {
        Ok(parts) => parts,
        Err(error) if error.kind() == ErrorKind::NotFound => vec![topic.clone()],
        Err(error) => return Err(error.into()),
    };
    if parts.len() > 1 && matches!(from, Place::Index(_) | Place::Position(_)) {
        let text = format!("{from} is a place in one partition: give a time, earliest or latest");
        return Err(CliError::usage(text));
    }
    let mut missing = 0;
    for part in &parts {
        match admin.topic_stats(&part.to_string()).await {
            Ok(stats) => missing += usize::from(!has(&stats, subscription)),
            Err(error) if error.kind() == ErrorKind::NotFound => missing += 1,
            Err(error) => return Err(error.into()),
        }
    }
    if missing == 0 {
        let text = format!("{topic} has a subscription {subscription} already");
        let advice = "move it with: aquifer subscription seek";
        return Err(CliError::failed(text).advise(advice));
    }
    // A consumer that closes at once: what it was sent meanwhile is given to the next one.
    let consumer = client.consumer(&topic.to_string(), subscription);
    let consumer = consumer.kind(SubscriptionType::Shared).start(from);
    Ok(consumer.open().await?.close().await?)
}

fn has(stats: &TopicStats, subscription: &str) -> bool {
    let mut all = stats.subscriptions.iter();
    all.any(|known| known.durable && known.name == subscription)
}

/// A subscription as one JSON object.
pub(super) fn object(subscription: &SubscriptionStats) -> Value {
    json!({
        "name": subscription.name,
        "type": type_name(subscription.kind),
        "durable": subscription.durable,
        "mark_delete_index": subscription.mark_delete_index.0,
        "backlog_messages": subscription.backlog_messages,
        "unacknowledged_messages": subscription.unacknowledged_messages,
        "acknowledged_ranges": subscription.acknowledged_ranges,
        "consumers": subscription.consumers,
    })
}

/// Subscriptions for people, a row each.
pub(super) fn table(subscriptions: &[SubscriptionStats]) -> Table {
    let mut table = Table::new([
        "subscription",
        "type",
        "mark-delete",
        "backlog",
        "unacknowledged",
        "consumers",
    ]);
    for subscription in subscriptions {
        table.row([
            subscription.name.clone(),
            type_name(subscription.kind).to_owned(),
            subscription.mark_delete_index.to_string(),
            subscription.backlog_messages.to_string(),
            subscription.unacknowledged_messages.to_string(),
            subscription.consumers.len().to_string(),
        ]);
    }
    table
}

fn type_name(kind: SubscriptionType) -> &'static str {
    match kind {
        SubscriptionType::Exclusive => "exclusive",
        SubscriptionType::Shared => "shared",
        SubscriptionType::Failover => "failover",
        SubscriptionType::KeyShared => "key-shared",
    }
}
