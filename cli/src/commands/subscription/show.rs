//! `aquifer subscription show`: one subscription, with where it stands in each partition.

use aquifer_client::admin::SubscriptionStats;
use aquifer_client::{Client, ErrorKind};
use aquifer_model::place::{Place, rfc3339_ms};
use aquifer_model::topic::{SubscriptionName, TopicName};
use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};

use crate::args::ShowArgs;
use crate::commands::subscription::{object, properties_text, type_name};
use crate::exit::CliError;
use crate::output::{Output, Table};

/// Partitions that are asked at once.
const ASKED_MAX: usize = 16;

/// Where a subscription stands in a topic that is not partitioned, or in one partition.
struct Part {
    topic: TopicName,
    stats: SubscriptionStats,
    /// The oldest message that is not acknowledged, where there is one.
    oldest: Option<Oldest>,
}

/// A message; `None`: storage cannot give it.
struct Oldest {
    index: u64,
    position: Option<String>,
    broker_time_ms: Option<u64>,
}

impl Oldest {
    fn object(&self) -> Value {
        json!({
            "index": self.index,
            "position": self.position,
            "broker_time": self.broker_time_ms,
        })
    }

    fn text(&self) -> String {
        match (&self.position, self.broker_time_ms) {
            (Some(position), Some(time)) => {
                format!("{} at {position}, of {}", self.index, rfc3339_ms(time))
            }
            _ => format!("{}, which cannot be read", self.index),
        }
    }
}

pub(super) async fn run(client: &Client, args: &ShowArgs, out: &Output) -> Result<(), CliError> {
    let (topic, name) = (&args.topic, &args.subscription);
    let stats = client.admin().topic_stats(&topic.to_string()).await?;
    let mut all = stats.subscriptions.into_iter();
    let Some(whole) = all.find(|found| found.name == name.as_str()) else {
        return Err(absent(topic, name, stats.shortened));
    };
    let parts: Vec<TopicName> = match stats.partitions {
        0 => vec![topic.clone()],
        count => (0..count).map(|at| topic.partition_name(at)).collect(),
    };
    let asked = parts.into_iter().map(|part| part_of(client, part, name));
    let parts: Vec<Option<Part>> = futures::stream::iter(asked)
        .buffered(ASKED_MAX)
        .try_collect()
        .await?;
    let parts: Vec<Part> = parts.into_iter().flatten().collect();
    match out.is_json() {
        true => out.object(&object_of(topic, &whole, &parts)),
        false => print(topic, &whole, &parts, out),
    }
}

fn absent(topic: &TopicName, name: &SubscriptionName, shortened: bool) -> CliError {
    let error = CliError::failed(format!("{topic} has no subscription {name}"));
    match shortened {
        true => error.advise("it may be among those that statistics leave out: there are too many"),
        false => error.advise("`aquifer subscription list` shows those that it has"),
    }
}

/// Nothing where a partition was not used yet.
async fn part_of(
    client: &Client,
    topic: TopicName,
    name: &SubscriptionName,
) -> Result<Option<Part>, CliError> {
    let stats = match client.admin().topic_stats(&topic.to_string()).await {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        stats => stats?,
    };
    let mut found = stats.subscriptions.into_iter();
    let Some(stats) = found.find(|found| found.name == name.as_str()) else {
        return Ok(None);
    };
    let oldest = match stats.backlog_messages {
        0 => None,
        _ => {
            let place = Place::Index(stats.mark_delete);
            let found = client.topic(&topic.to_string())?.locate(place).await?;
            Some(Oldest {
                index: found.index.0,
                position: found.position.map(|position| position.to_string()),
                broker_time_ms: found.broker_time_ms,
            })
        }
    };
    Ok(Some(Part {
        topic,
        stats,
        oldest,
    }))
}

/// The oldest of all partitions, by the brokers' time.
fn oldest(parts: &[Part]) -> Option<&Oldest> {
    let all = parts.iter().filter_map(|part| part.oldest.as_ref());
    all.min_by_key(|oldest| oldest.broker_time_ms.unwrap_or_default())
}

fn object_of(topic: &TopicName, whole: &SubscriptionStats, parts: &[Part]) -> Value {
    let mut shown = object(whole);
    shown["topic"] = json!(topic.to_string());
    shown["oldest_unacknowledged"] = json!(oldest(parts).map(Oldest::object));
    let partitions = parts.iter().filter(|part| part.topic.partition().is_some());
    let partitions = partitions.map(|part| {
        let mut shown = object(&part.stats);
        shown["topic"] = json!(part.topic.to_string());
        shown["partition"] = json!(part.topic.partition());
        shown["oldest_unacknowledged"] = json!(part.oldest.as_ref().map(Oldest::object));
        shown
    });
    shown["partitions"] = Value::Array(partitions.collect());
    shown
}

fn print(
    topic: &TopicName,
    whole: &SubscriptionStats,
    parts: &[Part],
    out: &Output,
) -> Result<(), CliError> {
    let lasts = match whole.durable {
        true => "durable",
        false => "goes with its consumers",
    };
    let (backlog, waiting) = (whole.backlog_messages, whole.unacknowledged_messages);
    let none = || "none".to_owned();
    let mut lines = vec![
        ("subscription", format!("{} of {topic}", whole.name)),
        ("type", format!("{}, {lasts}", type_name(whole.kind))),
        ("mark-delete", whole.mark_delete.to_string()),
        (
            "backlog",
            format!("{backlog} messages, {waiting} of them delivered"),
        ),
        ("oldest", oldest(parts).map_or_else(none, Oldest::text)),
    ];
    if whole.damaged_messages > 0 {
        let text = format!("{} messages cannot be read", whole.damaged_messages);
        lines.push(("damaged", text));
    }
    if let Some(limit) = &whole.held_back_by {
        lines.push(("waits for", limit.clone()));
    }
    lines.push(match whole.consumers.is_empty() {
        true => ("consumers", none()),
        false => ("consumers", whole.consumers.join(", ")),
    });
    if !whole.properties.is_empty() {
        lines.push(("properties", properties_text(&whole.properties)));
    }
    for (what, text) in lines {
        out.line(format!("{what:<13}{text}"))?;
    }
    let mut table = Table::new([
        "partition",
        "mark-delete",
        "backlog",
        "delivered",
        "consumers",
        "oldest",
    ]);
    let partitions = parts
        .iter()
        .filter_map(|part| Some((part.topic.partition()?, part)));
    let mut rows = 0;
    for (number, part) in partitions {
        rows += 1;
        table.row([
            number.to_string(),
            part.stats.mark_delete.to_string(),
            part.stats.backlog_messages.to_string(),
            part.stats.unacknowledged_messages.to_string(),
            part.stats.consumers.len().to_string(),
            part.oldest.as_ref().map_or_else(none, Oldest::text),
        ]);
    }
    match rows {
        0 => Ok(()),
        _ => out.table(&table),
    }
}
