//! Values of policies, in the form in which `policy set` takes them.

use std::time::Duration;

use aquifer_model::policy::bounds::SubscriptionTypes;
use aquifer_model::policy::rate::Rate;
use aquifer_model::policy::{EffectivePolicies, PolicyName};
use aquifer_model::subscription::SubscriptionType;
use serde_json::{Value, json};

/// A value, with its parts.
pub fn value(name: PolicyName, policies: &EffectivePolicies) -> Value {
    match name {
        PolicyName::Persistence => json!({
            "ensemble": policies.persistence.ensemble(),
            "writeQuorum": policies.persistence.write(),
            "ackQuorum": policies.persistence.ack(),
        }),
        PolicyName::Retention => json!({
            "time": policies.retention.time_ms.map_or_else(|| "forever".to_owned(), time),
            "size": or("everything", policies.retention.size_bytes),
        }),
        PolicyName::Rollover => json!({
            "size": policies.rollover.size_bytes.to_string(),
            "age": time(policies.rollover.age_ms),
            "entries": policies.rollover.entries.to_string(),
        }),
        PolicyName::Offload => {
            let offload = policies.offload;
            json!({
                "enabled": offload.enabled,
                "age": offload.age_ms.map_or_else(|| "never".to_owned(), time),
                "bytes": or("unlimited", offload.bytes),
                "lag": time(offload.lag_ms),
                "compression": offload.compression.as_str(),
            })
        }
        PolicyName::Deduplication => json!(policies.deduplication),
        PolicyName::AutoCreateTopics => json!(policies.auto_create_topics),
        PolicyName::AutoCreateSubscriptions => json!(policies.auto_create_subscriptions),
        PolicyName::SubscriptionTypes => json!(types(policies.subscription_types)),
        PolicyName::Ttl => {
            let after_ms = policies.ttl.after_ms;
            json!(after_ms.map_or_else(|| "off".to_owned(), time))
        }
        PolicyName::BacklogQuota => {
            let quota = policies.backlog_quota;
            json!({
                "bytes": or("unlimited", quota.bytes),
                "age": quota.age_ms.map_or_else(|| "unlimited".to_owned(), time),
                "action": quota.action.as_str(),
            })
        }
        PolicyName::PublishRate => rate(policies.publish_rate),
        PolicyName::ProducerRate => rate(policies.producer_rate),
        PolicyName::DispatchRate => rate(policies.dispatch_rate),
        PolicyName::SubscriptionRate => rate(policies.subscription_rate),
        PolicyName::AggregateRate => json!({
            "publish": rate(policies.aggregate_rate.publish),
            "dispatch": rate(policies.aggregate_rate.dispatch),
        }),
        PolicyName::MessageBytesMax => json!(policies.message_bytes_max.to_string()),
        PolicyName::Weight => json!(policies.weight.to_string()),
        PolicyName::Unacked => json!({
            "consumer": policies.unacked.consumer.to_string(),
            "subscription": policies.unacked.subscription.to_string(),
        }),
        PolicyName::Counts => json!({
            "topics": or("unlimited", policies.counts.topics),
            "producers": policies.counts.producers.to_string(),
            "subscriptions": policies.counts.subscriptions.to_string(),
            "consumers": or("unlimited", policies.counts.consumers),
        }),
    }
}

fn time(ms: u64) -> String {
    humantime::format_duration(Duration::from_millis(ms)).to_string()
}

fn or(word: &str, number: Option<u64>) -> String {
    number.map_or_else(|| word.to_owned(), |number| number.to_string())
}

fn rate(rate: Rate) -> Value {
    match rate.is_unlimited() {
        true => json!("unlimited"),
        false => json!({
            "messages": or("unlimited", rate.messages),
            "bytes": or("unlimited", rate.bytes),
            "burst": time(rate.burst_ms),
        }),
    }
}

fn types(types: SubscriptionTypes) -> String {
    if types == SubscriptionTypes::ALL {
        return "all".to_owned();
    }
    let name = |kind: SubscriptionType| match kind {
        SubscriptionType::Exclusive => "exclusive",
        SubscriptionType::Failover => "failover",
        SubscriptionType::Shared => "shared",
        SubscriptionType::KeyShared => "key-shared",
    };
    types.iter().map(name).collect::<Vec<_>>().join(",")
}

/// A value in a line of text.
pub fn text(value: &Value) -> String {
    match value {
        Value::Object(parts) => {
            let parts = parts.iter().map(|(name, part)| match part {
                Value::String(part) => format!("{name}={part}"),
                Value::Object(_) => format!("{name}=({})", text(part)),
                part => format!("{name}={part}"),
            });
            parts.collect::<Vec<_>>().join(" ")
        }
        Value::Bool(on) => if *on { "on" } else { "off" }.to_owned(),
        Value::String(word) => word.clone(),
        other => other.to_string(),
    }
}
