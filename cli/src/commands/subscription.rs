//! `aquifer subscription`: creates, lists, moves and deletes subscriptions.

use aquifer_client::admin::SubscriptionStats;
use aquifer_client::{ClientError, ErrorKind, SubscriptionType};
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
            let (topic, subscription) = (topic.to_string(), subscription.to_string());
            let created = admin.create_subscription(&topic, &subscription, from);
            let index = created
                .await
                .map_err(|error| exists(error, &topic, &subscription))?;
            match out.is_json() {
                true => out.object(&json!({
                    "topic": topic,
                    "subscription": subscription,
                    "mark_delete_index": index.0,
                })),
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

/// The failure to create a subscription, with what to do about one that is there.
fn exists(error: ClientError, topic: &str, subscription: &str) -> CliError {
    match error.kind() {
        ErrorKind::AlreadyExists => {
            let text = format!("{topic} has a subscription {subscription} already");
            CliError::failed(text).advise("move it with: aquifer subscription seek")
        }
        _ => CliError::from(error),
    }
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
