//! `NAME=VALUE`: a policy, or a part of one, with its value.

mod offload;

use std::str::FromStr;

use aquifer_model::limits::TENANT_WEIGHT_MAX;
use aquifer_model::policy::bounds::{BacklogAction, SubscriptionTypes};
use aquifer_model::quorum::Quorum;
use aquifer_model::subscription::SubscriptionType;

pub use self::offload::OffloadPart;
use crate::args::roles::quorum;

/// A policy, or a part of one, with its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyValue {
    /// Copies of new ledgers.
    Persistence(Quorum),
    /// Milliseconds; none: for ever.
    RetentionTime(Option<u64>),
    /// Bytes; none: everything.
    RetentionSize(Option<u64>),
    /// Bytes.
    RolloverSize(u64),
    /// Milliseconds.
    RolloverAge(u64),
    /// Entries.
    RolloverEntries(u64),
    /// A part of when ledgers go into objects.
    Offload(OffloadPart),
    /// On or off.
    Deduplication(bool),
    /// On or off.
    AutoCreateTopics(bool),
    /// On or off.
    AutoCreateSubscriptions(bool),
    /// The types that consumers may ask for.
    SubscriptionTypes(SubscriptionTypes),
    /// Milliseconds; none: off.
    Ttl(Option<u64>),
    /// A part of the backlog quota.
    Backlog(BacklogPart),
    /// A part of a rate.
    Rate(RateName, RatePart),
    /// Bytes.
    MessageBytesMax(u64),
    /// Shares of a tenant.
    Weight(u32),
    /// Messages of one consumer.
    UnackedConsumer(u64),
    /// Messages of one subscription.
    UnackedSubscription(u64),
    /// How many there may be of something; none: unlimited.
    Count(CountName, Option<u64>),
}

/// A part of the backlog quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BacklogPart {
    /// No quota.
    Unlimited,
    /// Bytes; none: unlimited.
    Bytes(Option<u64>),
    /// Milliseconds; none: unlimited.
    AgeMs(Option<u64>),
    /// What happens at the quota.
    Action(BacklogAction),
}

/// A rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateName {
    /// What a topic takes in.
    Publish,
    /// What a topic takes in from one producer.
    Producer,
    /// What a topic gives.
    Dispatch,
    /// What a topic gives to one subscription.
    Subscription,
    /// What a tenant or namespace takes in.
    AggregatePublish,
    /// What a tenant or namespace gives.
    AggregateDispatch,
}

/// A part of a rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RatePart {
    /// All of it: no limit.
    Unlimited,
    /// Messages in a second; none: unlimited.
    Messages(Option<u64>),
    /// Bytes in a second; none: unlimited.
    Bytes(Option<u64>),
    /// Milliseconds.
    BurstMs(u64),
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CountName {
    /// Topics of a namespace.
    Topics,
    /// Producers of a topic.
    Producers,
    /// Subscriptions of a topic.
    Subscriptions,
    /// Consumers of a topic.
    Consumers,
}

impl PolicyValue {
    /// Whether it is a part of a policy, which is replaced whole.
    pub fn is_part(&self) -> bool {
        match self {
            PolicyValue::RetentionTime(_)
            | PolicyValue::RetentionSize(_)
            | PolicyValue::RolloverSize(_)
            | PolicyValue::RolloverAge(_)
            | PolicyValue::RolloverEntries(_)
            | PolicyValue::Offload(_)
            | PolicyValue::Backlog(_)
            | PolicyValue::Rate(..)
            | PolicyValue::UnackedConsumer(_)
            | PolicyValue::UnackedSubscription(_)
            | PolicyValue::Count(..) => true,
            PolicyValue::Persistence(_)
            | PolicyValue::Deduplication(_)
            | PolicyValue::AutoCreateTopics(_)
            | PolicyValue::AutoCreateSubscriptions(_)
            | PolicyValue::SubscriptionTypes(_)
            | PolicyValue::Ttl(_)
            | PolicyValue::MessageBytesMax(_)
            | PolicyValue::Weight(_) => false,
        }
    }
}

impl FromStr for PolicyValue {
    type Err = String;

    fn from_str(text: &str) -> Result<PolicyValue, String> {
        let (name, value) = text
            .split_once('=')
            .ok_or_else(|| "it is NAME=VALUE, such as retention.time=7days".to_owned())?;
        let parsed = parse(name, value);
        parsed.map_err(|error| format!("{name}: {error}"))
    }
}

fn parse(name: &str, value: &str) -> Result<PolicyValue, String> {
    use PolicyValue as Value;
    match name {
        "persistence" => quorum(value).map(Value::Persistence),
        "retention.time" => or("forever", value, time).map(Value::RetentionTime),
        "retention.size" => or("everything", value, size).map(Value::RetentionSize),
        "rollover.size" => size(value).and_then(positive).map(Value::RolloverSize),
        "rollover.age" => time(value).and_then(positive).map(Value::RolloverAge),
        "rollover.entries" => number(value).and_then(positive).map(Value::RolloverEntries),
        "offload" => offload::parse("", value).map(Value::Offload),
        "deduplication" => switch(value).map(Value::Deduplication),
        "autoCreateTopics" => switch(value).map(Value::AutoCreateTopics),
        "autoCreateSubscriptions" => switch(value).map(Value::AutoCreateSubscriptions),
        "subscriptionTypes" => types(value).map(Value::SubscriptionTypes),
        "ttl" => or("off", value, time).map(Value::Ttl),
        "backlogQuota" => unlimited(value).map(|()| Value::Backlog(BacklogPart::Unlimited)),
        "backlogQuota.bytes" => or("unlimited", value, size)
            .map(BacklogPart::Bytes)
            .map(Value::Backlog),
        "backlogQuota.age" => or("unlimited", value, time)
            .map(BacklogPart::AgeMs)
            .map(Value::Backlog),
        "backlogQuota.action" => action(value).map(BacklogPart::Action).map(Value::Backlog),
        "messageBytesMax" => size(value).map(Value::MessageBytesMax),
        "weight" => number(value).and_then(weight).map(Value::Weight),
        "unacked.consumer" => number(value).map(Value::UnackedConsumer),
        "unacked.subscription" => number(value).map(Value::UnackedSubscription),
        _ => match name.strip_prefix("offload.") {
            Some(part) => offload::parse(part, value).map(Value::Offload),
            None => bound(name, value),
        },
    }
}

fn weight(number: u64) -> Result<u32, String> {
    let weight = u32::try_from(number).ok();
    let weight = weight.filter(|weight| (1..=TENANT_WEIGHT_MAX).contains(weight));
    weight.ok_or_else(|| format!("it is a number from 1 to {TENANT_WEIGHT_MAX}"))
}

/// A count, or a part of a rate.
fn bound(name: &str, value: &str) -> Result<PolicyValue, String> {
    use PolicyValue as Value;
    match (count_name(name), rate_name(name)) {
        (Some(name @ (CountName::Topics | CountName::Consumers)), _) => {
            or("unlimited", value, number).map(|count| Value::Count(name, count))
        }
        (Some(name), _) => number(value).map(|count| Value::Count(name, Some(count))),
        (None, Some((rate, part))) => rate_part(part, value).map(|part| Value::Rate(rate, part)),
        (None, None) => Err("`policy set --help` lists the policies".to_owned()),
    }
}

fn count_name(name: &str) -> Option<CountName> {
    match name.strip_prefix("counts.")? {
        "topics" => Some(CountName::Topics),
        "producers" => Some(CountName::Producers),
        "subscriptions" => Some(CountName::Subscriptions),
        "consumers" => Some(CountName::Consumers),
        _ => None,
    }
}

/// A rate, and the name of a part of it; without one it is the whole.
fn rate_name(name: &str) -> Option<(RateName, &str)> {
    const RATES: [(&str, RateName); 6] = [
        ("publishRate", RateName::Publish),
        ("producerRate", RateName::Producer),
        ("dispatchRate", RateName::Dispatch),
        ("subscriptionRate", RateName::Subscription),
        ("aggregateRate.publish", RateName::AggregatePublish),
        ("aggregateRate.dispatch", RateName::AggregateDispatch),
    ];
    RATES.iter().find_map(|(prefix, rate)| {
        let part = name.strip_prefix(prefix)?;
        match part.strip_prefix('.') {
            Some(part) => Some((*rate, part)),
            None => part.is_empty().then_some((*rate, "")),
        }
    })
}

fn rate_part(part: &str, value: &str) -> Result<RatePart, String> {
    match part {
        "" => unlimited(value).map(|()| RatePart::Unlimited),
        "messages" => or("unlimited", value, number).map(RatePart::Messages),
        "bytes" => or("unlimited", value, size).map(RatePart::Bytes),
        "burst" => time(value).map(RatePart::BurstMs),
        _ => Err("a rate has the parts messages, bytes and burst".to_owned()),
    }
}

/// A value, or the word for none.
fn or<T>(
    word: &str,
    value: &str,
    parse: fn(&str) -> Result<T, String>,
) -> Result<Option<T>, String> {
    if value == word {
        return Ok(None);
    }
    let parsed = parse(value).map(Some);
    parsed.map_err(|error| format!("{error}, or {word}"))
}

fn unlimited(value: &str) -> Result<(), String> {
    match value {
        "unlimited" => Ok(()),
        _ => Err("give its parts, or unlimited".to_owned()),
    }
}

fn action(value: &str) -> Result<BacklogAction, String> {
    let found = BacklogAction::ALL
        .into_iter()
        .find(|action| action.as_str() == value);
    found.ok_or_else(|| "it is hold, refuse or evict".to_owned())
}

fn types(value: &str) -> Result<SubscriptionTypes, String> {
    if value == "all" {
        return Ok(SubscriptionTypes::ALL);
    }
    let mut types = SubscriptionTypes::NONE;
    for name in value.split(',') {
        types = types.with(match name {
            "exclusive" => SubscriptionType::Exclusive,
            "failover" => SubscriptionType::Failover,
            "shared" => SubscriptionType::Shared,
            "key-shared" => SubscriptionType::KeyShared,
            _ => {
                let advice = "it is all, or some of exclusive,failover,shared,key-shared";
                return Err(advice.to_owned());
            }
        });
    }
    Ok(types)
}

fn number(value: &str) -> Result<u64, String> {
    value.parse().map_err(|_| "it is a number".to_owned())
}

fn positive(number: u64) -> Result<u64, String> {
    match number {
        0 => Err("it is at least 1".to_owned()),
        number => Ok(number),
    }
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err("it is on or off".to_owned()),
    }
}

/// Milliseconds of a duration.
fn time(text: &str) -> Result<u64, String> {
    let time = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; it is a duration such as 7days or 12h"))?;
    u64::try_from(time.as_millis()).map_err(|_| "that is too long".to_owned())
}

/// A number of bytes, with a binary unit or without one.
pub(in crate::args) fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err("units are KiB, MiB, GiB and TiB".to_owned()),
    };
    let number = digits.trim_end().parse::<u64>().ok();
    number
        .and_then(|number| number.checked_mul(unit))
        .ok_or_else(|| "it is a number of bytes such as 1048576, 500MiB or 10GiB".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_with_their_units() {
        use PolicyValue as Value;
        for (text, expected) in [
            ("retention.time=forever", Value::RetentionTime(None)),
            (
                "retention.time=12h",
                Value::RetentionTime(Some(12 * 3_600_000)),
            ),
            ("retention.size=everything", Value::RetentionSize(None)),
            ("retention.size=0", Value::RetentionSize(Some(0))),
            (
                "retention.size=500 MiB",
                Value::RetentionSize(Some(500 << 20)),
            ),
            ("rollover.size=10GiB", Value::RolloverSize(10 << 30)),
            ("rollover.entries=7", Value::RolloverEntries(7)),
            ("deduplication=off", Value::Deduplication(false)),
            ("autoCreateTopics=on", Value::AutoCreateTopics(true)),
            ("ttl=off", Value::Ttl(None)),
            ("ttl=1h", Value::Ttl(Some(3_600_000))),
            (
                "backlogQuota=unlimited",
                Value::Backlog(BacklogPart::Unlimited),
            ),
            (
                "backlogQuota.action=evict",
                Value::Backlog(BacklogPart::Action(BacklogAction::Evict)),
            ),
            (
                "publishRate.messages=10000",
                Value::Rate(RateName::Publish, RatePart::Messages(Some(10_000))),
            ),
            (
                "subscriptionRate=unlimited",
                Value::Rate(RateName::Subscription, RatePart::Unlimited),
            ),
            (
                "aggregateRate.dispatch.bytes=1MiB",
                Value::Rate(RateName::AggregateDispatch, RatePart::Bytes(Some(1 << 20))),
            ),
            (
                "producerRate.burst=2s",
                Value::Rate(RateName::Producer, RatePart::BurstMs(2_000)),
            ),
            (
                "counts.topics=unlimited",
                Value::Count(CountName::Topics, None),
            ),
            (
                "counts.producers=0",
                Value::Count(CountName::Producers, Some(0)),
            ),
            (
                "subscriptionTypes=shared,failover",
                Value::SubscriptionTypes(
                    SubscriptionTypes::NONE
                        .with(SubscriptionType::Shared)
                        .with(SubscriptionType::Failover),
                ),
            ),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_value_is_refused() {
        for wrong in [
            "retention",
            "retention=1h",
            "retention.time=soon",
            "retention.size=1GB",
            "retention.size=99999999TiB",
            "rollover.size=0",
            "rollover.age=0s",
            "rollover.entries=-1",
            "persistence=3",
            "persistence=2,3,2",
            "deduplication=maybe",
            "quotas=1",
            "offload=1h",
            "offload.lag=never",
            "offload.compression=zip",
            "offload.speed=1",
            "publishRate=5",
            "publishRates.messages=5",
            "publishRate.burst=unlimited",
            "aggregateRate.messages=5",
            "backlogQuota.action=drop",
            "counts.producers=unlimited",
            "counts.brokers=1",
            "subscriptionTypes=",
        ] {
            assert!(wrong.parse::<PolicyValue>().is_err(), "{wrong}");
        }
    }
}
