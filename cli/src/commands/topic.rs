//! `aquifer topic`: creates, lists, inspects and deletes topics.

use std::time::Duration;

use aquifer_client::ClientError;
use aquifer_client::admin::{Admin, TopicEnd, TopicStats};
use aquifer_model::place::Place;
use aquifer_model::topic::TopicName;
use aquifer_runtime::clock::{self, Clock, SystemClock};
use serde_json::{Value, json};

use crate::args::{ReimportArgs, TopicArgs, TopicCommand};
use crate::commands::{policy, subscription};
use crate::connect::Connect;
use crate::exit::CliError;
use crate::output::{Output, Table};

/// How often it is asked how far an offload or a re-import is.
const POLL_PAUSE: Duration = Duration::from_millis(200);

/// Runs the command.
///
/// # Errors
/// When the broker refuses it or cannot be reached.
pub async fn run(args: TopicArgs, connect: &Connect, out: &Output) -> Result<(), CliError> {
    let client = connect.client()?;
    client.connect().await?;
    let admin = client.admin();
    match args.command {
        TopicCommand::Create { topic, partitions } => {
            admin.create_topic(&topic.to_string(), partitions).await?;
            if out.is_json() {
                out.object(&json!({"topic": topic.to_string(), "partitions": partitions}))
            } else if partitions == 0 {
                out.line(format!("created {topic}"))
            } else {
                out.line(format!("created {topic} with {partitions} partitions"))
            }
        }
        TopicCommand::List { namespace } => {
            let topics = admin.list_topics(&namespace.to_string()).await?;
            let mut table = Table::new(["topic", "partitions"]);
            for found in topics {
                if out.is_json() {
                    let object = json!({"topic": found.topic, "partitions": found.partitions});
                    out.object(&object)?;
                } else {
                    table.row([found.topic, found.partitions.to_string()]);
                }
            }
            if out.is_json() {
                Ok(())
            } else {
                out.table(&table)
            }
        }
        TopicCommand::Stats { topic } => {
            let stats = admin.topic_stats(&topic.to_string()).await?;
            if out.is_json() {
                out.object(&stats_object(&topic, &stats))
            } else {
                print_stats(out, &topic, &stats)
            }
        }
        TopicCommand::Offload {
            topic,
            before,
            wait,
        } => offload(&topic, before, wait, &admin, out).await,
        TopicCommand::Reimport(args) => reimport(args, &admin, out).await,
        TopicCommand::Grow { topic, partitions } => {
            let topic = topic.to_string();
            admin.grow_topic(&topic, partitions).await?;
            out.line(format!("{topic} has {partitions} partitions"))
        }
        TopicCommand::Unload { topic } => unload(&topic.to_string(), &admin, out).await,
        TopicCommand::Terminate { topic } => terminate(&topic.to_string(), &admin, out).await,
        TopicCommand::Policy(command) => policy::run(command, policy::topic, &admin, out).await,
        TopicCommand::Delete {
            topic,
            dry_run: true,
            ..
        } => would_delete(&topic.to_string(), &admin, out).await,
        TopicCommand::Delete { topic, force, .. } => {
            delete(&topic.to_string(), force, &admin, out).await
        }
    }
}

async fn delete(topic: &str, force: bool, admin: &Admin, out: &Output) -> Result<(), CliError> {
    admin.delete_topic(topic, force).await?;
    match out.is_json() {
        true => out.object(&json!({"topic": topic, "deleted": true})),
        false => out.line(format!("deleted {topic}")),
    }
}

/// Closes a topic where it is served.
async fn unload(topic: &str, admin: &Admin, out: &Output) -> Result<(), CliError> {
    let unloaded = admin.unload_topic(topic).await?;
    if out.is_json() {
        return out.object(&json!({"topic": topic, "unloaded": unloaded}));
    }
    out.line(match unloaded {
        0 => format!("{topic} was not loaded"),
        _ => format!("unloaded {topic}"),
    })
}

/// What the deletion of a topic would delete.
async fn would_delete(topic: &str, admin: &Admin, out: &Output) -> Result<(), CliError> {
    let content = admin.delete_topic_dry_run(topic).await?;
    let (messages, bytes) = (content.messages, content.stored_bytes);
    let subscriptions = content.subscriptions;
    if out.is_json() {
        return out.object(&json!({
            "topic": topic,
            "deleted": false,
            "partitions": content.partitions,
            "messages": messages,
            "stored_bytes": bytes,
            "subscriptions": subscriptions,
            "in_use": content.in_use,
        }));
    }
    let used = match content.in_use {
        true => "it has connected clients, and goes with --force only",
        false => "no client is connected",
    };
    out.line(format!(
        "{topic} has {messages} messages, {bytes} bytes, {subscriptions} subscriptions; {used}; nothing is deleted"
    ))
}

/// Lets a topic take no more messages, and says where it ends.
async fn terminate(topic: &str, admin: &Admin, out: &Output) -> Result<(), CliError> {
    for end in admin.terminate_topic(topic).await? {
        match out.is_json() {
            true => out.object(&end_object(&end))?,
            false => out.line(format!("{} {}", end.topic, ends(&end)))?,
        }
    }
    Ok(())
}

fn end_object(end: &TopicEnd) -> Value {
    json!({"topic": end.topic.to_string(), "last_index": end.last_index().map(|last| last.0)})
}

fn ends(end: &TopicEnd) -> String {
    match end.last_index() {
        Some(last) => format!("ends with index {last}"),
        None => "ends without a message".to_owned(),
    }
}

/// Has ledgers offloaded; with `wait` until all of them are.
async fn offload(
    topic: &TopicName,
    before: Place,
    wait: bool,
    admin: &Admin,
    out: &Output,
) -> Result<(), CliError> {
    let name = topic.to_string();
    let words = ["offload", "offloaded", "offloading"];
    follow(|| admin.offload_topic(&name, before), wait, words, out).await
}

/// Has ledgers brought back to bookies, with `wait` until all of them are, or ends that.
async fn reimport(args: ReimportArgs, admin: &Admin, out: &Output) -> Result<(), CliError> {
    let (name, from, to) = (args.topic.to_string(), args.from, args.to);
    if args.cancel {
        admin.cancel_reimport(&name).await?;
        return match out.is_json() {
            true => out.object(&json!({"topic": name, "cancelled": true})),
            false => out.line("the re-import is ended"),
        };
    }
    let words = ["re-import", "re-imported", "re-importing"];
    let ask = || admin.reimport_topic(&name, from, to);
    follow(ask, args.wait, words, out).await
}

/// Asks for something to be done to ledgers and tells how many they are; with `wait` it asks until
/// none is left. The words: to do it, done, being done.
async fn follow<F>(
    ask: impl Fn() -> F,
    wait: bool,
    [verb, done, doing]: [&str; 3],
    out: &Output,
) -> Result<(), CliError>
where
    F: Future<Output = Result<(u64, u64), ClientError>>,
{
    let began = SystemClock.monotonic();
    let (ledgers, bytes) = ask().await?;
    let mut left = ledgers;
    while wait && left > 0 {
        clock::sleep(POLL_PAUSE).await;
        (left, _) = ask().await?;
    }
    let seconds = SystemClock.monotonic().saturating_sub(began).as_secs_f64();
    if out.is_json() {
        let object = json!({"ledgers": ledgers, "bytes": bytes, "seconds": seconds});
        return out.object(&object);
    }
    out.line(match (ledgers, wait) {
        (0, _) => format!("nothing to {verb}"),
        (_, true) => format!("{done} {ledgers} ledgers, {bytes} bytes, in {seconds:.1} s"),
        (_, false) => format!("{doing} {ledgers} ledgers, {bytes} bytes"),
    })
}

fn stats_object(topic: &TopicName, stats: &TopicStats) -> Value {
    let ledgers: Vec<Value> = stats
        .ledgers
        .iter()
        .map(|ledger| {
            json!({
                "ledger": ledger.ledger.0,
                "first_index": ledger.first_index.0,
                "entries": ledger.entries,
                "bytes": ledger.bytes,
                "state": ledger.state.name(),
                "local": ledger.local,
                "object": ledger.object,
            })
        })
        .collect();
    let producers: Vec<Value> = stats
        .producers
        .iter()
        .map(|producer| {
            json!({"name": producer.name.as_str(), "last_sequence_id": producer.last_sequence_id})
        })
        .collect();
    let subscriptions: Vec<Value> = stats
        .subscriptions
        .iter()
        .map(subscription::object)
        .collect();
    json!({
        "topic": topic.to_string(),
        "partitions": stats.partitions,
        "first_index": stats.first_index.0,
        "end_index": stats.end_index.0,
        "messages": stats.end_index.0.saturating_sub(stats.first_index.0),
        "stored_bytes": stats.stored_bytes,
        "entries": stats.entries,
        "messages_in": stats.messages_in,
        "bytes_in": stats.bytes_in,
        "messages_out": stats.messages_out,
        "bytes_out": stats.bytes_out,
        "held_back_by": stats.held_back_by,
        "shortened": stats.shortened,
        "terminated": stats.is_terminated(),
        "ends": stats.ends.iter().map(end_object).collect::<Vec<_>>(),
        "ledgers": ledgers,
        "producers": producers,
        "subscriptions": subscriptions,
    })
}

fn print_stats(out: &Output, topic: &TopicName, stats: &TopicStats) -> Result<(), CliError> {
    let messages = stats.end_index.0.saturating_sub(stats.first_index.0);
    out.line(format!("topic      {topic}"))?;
    if stats.partitions > 0 {
        out.line(format!("partitions {}", stats.partitions))?;
        out.line(format!("messages   {messages}"))?;
    } else {
        out.line(format!(
            "messages   {messages}, indexes {} to before {}",
            stats.first_index, stats.end_index
        ))?;
    }
    out.line(format!(
        "stored     {} bytes in {} entries",
        stats.stored_bytes, stats.entries
    ))?;
    out.line(format!(
        "since load {} messages in, {} out",
        stats.messages_in, stats.messages_out
    ))?;
    print_ends(out, stats)?;
    if let Some(limit) = &stats.held_back_by {
        out.line(format!("producers  wait for {limit}"))?;
    }
    if stats.shortened {
        out.line("the lists below are shortened")?;
    }
    print_ledgers(out, stats)?;
    print_producers(out, stats)?;
    print_subscriptions(out, stats)
}

fn print_ends(out: &Output, stats: &TopicStats) -> Result<(), CliError> {
    match (stats.ends.as_slice(), stats.partitions) {
        ([], _) => Ok(()),
        ([end], 0) => out.line(format!("terminated {}", ends(end))),
        (all, partitions) => out.line(format!(
            "terminated {} of {partitions} partitions",
            all.len()
        )),
    }
}

fn print_ledgers(out: &Output, stats: &TopicStats) -> Result<(), CliError> {
    if stats.ledgers.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(["ledger", "first index", "entries", "bytes", "state"]);
    for ledger in &stats.ledgers {
        table.row([
            ledger.ledger.to_string(),
            ledger.first_index.to_string(),
            ledger.entries.to_string(),
            ledger.bytes.to_string(),
            ledger.state.name().to_owned(),
        ]);
    }
    section(out, &table)
}

fn print_producers(out: &Output, stats: &TopicStats) -> Result<(), CliError> {
    if stats.producers.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(["producer", "last sequence id"]);
    for producer in &stats.producers {
        let last = producer.last_sequence_id;
        let last = last.map_or_else(|| "-".to_owned(), |id| id.to_string());
        table.row([producer.name.as_str().to_owned(), last]);
    }
    section(out, &table)
}

fn print_subscriptions(out: &Output, stats: &TopicStats) -> Result<(), CliError> {
    if stats.subscriptions.is_empty() {
        return Ok(());
    }
    section(out, &subscription::table(&stats.subscriptions))
}

fn section(out: &Output, table: &Table) -> Result<(), CliError> {
    out.line("")?;
    out.table(table)
}
