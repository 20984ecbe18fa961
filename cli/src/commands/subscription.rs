//! `aquifer subscription`: creates, lists, looks into, moves, clears and deletes subscriptions.

mod show;

use std::time::Duration;

use aquifer_client::admin::{Admin, ClearOptions, SubscriptionStats};
use aquifer_client::{ClientError, ErrorCode, ErrorKind, SubscriptionType};
use aquifer_model::id::Index;
use aquifer_model::subscription::Properties;
use serde_json::{Value, json};

use crate::args::{ClearArgs, OnDamageArg, PeekArgs, SubscriptionArgs, SubscriptionCommand};
use crate::commands::message::{self, Damage};
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
            properties,
        } => {
            let (topic, subscription) = (topic.to_string(), subscription.to_string());
            let properties = properties.into_iter().collect();
            let created = admin.create_subscription_with(&topic, &subscription, from, &properties);
            let index = created
                .await
                .map_err(|error| exists(error, &topic, &subscription))?;
            let text = format!("{topic} has the subscription {subscription}");
            placed(&topic, &subscription, index, text, out)
        }
        SubscriptionCommand::List { topic } => {
            let stats = admin.topic_stats(&topic.to_string()).await?;
            if out.is_json() {
                let mut all = stats.subscriptions.iter();
                return all.try_for_each(|subscription| out.object(&object(subscription)));
            }
            out.table(&table(&stats.subscriptions))
        }
        SubscriptionCommand::Show(args) => show::run(&client, &args, out).await,
        SubscriptionCommand::Seek {
            topic,
            subscription,
            place,
        } => {
            let (topic, subscription) = (topic.to_string(), subscription.to_string());
            let index = admin
                .seek_subscription(&topic, &subscription, place)
                .await
                .map_err(misplaced)?;
            let text = format!("{subscription} continues at index {index}");
            placed(&topic, &subscription, index, text, out)
        }
        SubscriptionCommand::Skip {
            topic,
            subscription,
            first,
            last,
        } => {
            let (topic, subscription) = (topic.to_string(), subscription.to_string());
            skip(&admin, &topic, &subscription, first.zip(last), out).await
        }
        SubscriptionCommand::Peek(args) => peek(&admin, &args, out).await,
        SubscriptionCommand::Clear(args) => clear(&admin, &args, None, out).await,
        SubscriptionCommand::Expire(args) => {
            clear(&admin, &args.clear, Some(args.older_than), out).await
        }
        SubscriptionCommand::Reset { topic } => reset(&admin, &topic.to_string(), out).await,
        SubscriptionCommand::Delete {
            topic,
            subscription,
            force,
        } => {
            let (topic, subscription) = (topic.to_string(), subscription.to_string());
            let deleted = admin.delete_subscription(&topic, &subscription, force);
            deleted.await?;
            gone(&topic, &subscription, out)
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
        _ => misplaced(error),
    }
}

/// The failure of a request that names a place: one that means nothing for the topic, as an index
/// in several partitions, is an error of the command line.
fn misplaced(error: ClientError) -> CliError {
    match error.code() {
        Some(ErrorCode::InvalidArgument) => CliError::usage(error.to_string()),
        _ => CliError::from(error),
    }
}

fn gone(topic: &str, subscription: &str, out: &Output) -> Result<(), CliError> {
    match out.is_json() {
        true => out.object(&json!({
            "topic": topic,
            "subscription": subscription,
            "deleted": true,
        })),
        false => out.line(format!("deleted {subscription} of {topic}")),
    }
}

/// Where a subscription stands now.
fn placed(
    topic: &str,
    subscription: &str,
    index: Index,
    text: String,
    out: &Output,
) -> Result<(), CliError> {
    match out.is_json() {
        true => out.object(&json!({
            "topic": topic,
            "subscription": subscription,
            "mark_delete_index": index.0,
        })),
        false => out.line(text),
    }
}

async fn skip(
    admin: &Admin,
    topic: &str,
    subscription: &str,
    range: Option<(u64, u64)>,
    out: &Output,
) -> Result<(), CliError> {
    let range = range.map(|(first, last)| (Index(first), Index(last)));
    let skipped = admin.skip_messages(topic, subscription, range).await?;
    if out.is_json() {
        let ranges: Vec<Value> = skipped
            .iter()
            .map(|(first, last)| json!({"first_index": first.0, "last_index": last.0}))
            .collect();
        return out.object(&json!({
            "topic": topic,
            "subscription": subscription,
            "skipped": ranges,
        }));
    }
    if skipped.is_empty() {
        return out.line(format!(
            "{subscription} skips nothing: it waits for no damaged message that was found so far"
        ));
    }
    for (first, last) in skipped {
        out.line(format!("{subscription} skips indexes {first} to {last}"))?;
    }
    Ok(())
}

/// Shows what a subscription gets next.
async fn peek(admin: &Admin, args: &PeekArgs, out: &Output) -> Result<(), CliError> {
    let (topic, subscription) = (args.topic.to_string(), args.subscription.to_string());
    let count = usize::try_from(args.count).unwrap_or(usize::MAX);
    let messages = admin.peek_messages(&topic, &subscription, count).await?;
    let mut damage = Damage::new(out, OnDamageArg::Skip);
    for message in messages {
        match message {
            Ok(message) => message::print(out, &message)?,
            Err(ClientError::Damaged(damaged)) => damage.met(&damaged)?,
            Err(error) => return Err(error.into()),
        }
    }
    out.flush()?;
    damage.end()
}

/// Gives up what is not acknowledged, or says how much that is.
async fn clear(
    admin: &Admin,
    args: &ClearArgs,
    older_than: Option<Duration>,
    out: &Output,
) -> Result<(), CliError> {
    let (topic, subscription) = (args.topic.to_string(), args.subscription.to_string());
    let options = ClearOptions {
        older_than,
        dry_run: args.dry_run,
    };
    let cleared = admin.clear_subscription(&topic, &subscription, options);
    let messages = cleared.await?;
    if out.is_json() {
        return out.object(&json!({
            "topic": topic,
            "subscription": subscription,
            "messages": messages,
            "dry_run": args.dry_run,
        }));
    }
    out.line(match args.dry_run {
        true => format!("{subscription} would give up {messages} messages; nothing is changed"),
        false => format!("{subscription} gave up {messages} messages"),
    })
}

async fn reset(admin: &Admin, topic: &str, out: &Output) -> Result<(), CliError> {
    let reset = admin.reset_subscriptions(topic).await?;
    if reset.is_empty() && !out.is_json() {
        return out.line(format!(
            "no subscription of {topic} is reset: their record is intact"
        ));
    }
    for one in reset {
        let (name, index, count) = (&one.name, one.mark_delete_index, one.repeated_messages);
        if out.is_json() {
            out.object(&json!({
                "topic": one.topic,
                "subscription": name,
                "mark_delete_index": index.0,
                "repeated_messages": count,
                "name_only": one.name_only,
            }))?;
            continue;
        }
        let from = match one.name_only {
            true => "the first message that is kept, because its record is lost,",
            false => "its last known place,",
        };
        out.line(format!(
            "{name} of {} continues from {from} index {index}: {count} messages are delivered from there, some perhaps again",
            one.topic
        ))?;
    }
    Ok(())
}

/// A subscription as one JSON object.
pub(super) fn object(subscription: &SubscriptionStats) -> Value {
    json!({
        "name": subscription.name,
        "type": type_name(subscription.kind),
        "durable": subscription.durable,
        "mark_delete_index": subscription.mark_delete.0,
        "backlog_messages": subscription.backlog_messages,
        "unacknowledged_messages": subscription.unacknowledged_messages,
        "damaged_messages": subscription.damaged_messages,
        "held_back_by": subscription.held_back_by,
        "acknowledged_ranges": subscription.acknowledged_ranges,
        "consumers": subscription.consumers,
        "properties": subscription.properties,
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
        "properties",
    ]);
    for subscription in subscriptions {
        table.row([
            subscription.name.clone(),
            type_name(subscription.kind).to_owned(),
            subscription.mark_delete.to_string(),
            subscription.backlog_messages.to_string(),
            subscription.unacknowledged_messages.to_string(),
            subscription.consumers.len().to_string(),
            properties_text(&subscription.properties),
        ]);
    }
    table
}

fn properties_text(properties: &Properties) -> String {
    let pairs = properties.iter();
    let pairs: Vec<String> = pairs
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    pairs.join(",")
}

fn type_name(kind: SubscriptionType) -> &'static str {
    match kind {
        SubscriptionType::Exclusive => "exclusive",
        SubscriptionType::Shared => "shared",
        SubscriptionType::Failover => "failover",
        SubscriptionType::KeyShared => "key-shared",
    }
}
