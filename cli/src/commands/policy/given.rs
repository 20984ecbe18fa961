//! What `policy set` sets.

use aquifer_model::policy::bounds::{BacklogQuota, Counts};
use aquifer_model::policy::offload::OffloadPolicy;
use aquifer_model::policy::rate::{AggregateRate, Rate};
use aquifer_model::policy::{Policies, PolicyView};

use crate::args::{BacklogPart, CountName, OffloadPart, PolicyValue, RateName, RatePart};

/// What is said by these values; parts that are not given are as they are in force. Those of a
/// ceiling are as they are set here, or else as high as they may be: what is in force may come from
/// a level that is raised later.
pub fn said(values: &[PolicyValue], view: &PolicyView) -> Policies {
    let mut said = Policies::default();
    let now = view.effective;
    for value in values {
        match *value {
            PolicyValue::Persistence(quorum) => said.persistence = Some(quorum),
            PolicyValue::RetentionTime(time_ms) => {
                said.retention.get_or_insert(now.retention).time_ms = time_ms;
            }
            PolicyValue::RetentionSize(size_bytes) => {
                said.retention.get_or_insert(now.retention).size_bytes = size_bytes;
            }
            PolicyValue::RolloverSize(size_bytes) => {
                said.rollover.get_or_insert(now.rollover).size_bytes = size_bytes;
            }
            PolicyValue::RolloverAge(age_ms) => {
                said.rollover.get_or_insert(now.rollover).age_ms = age_ms;
            }
            PolicyValue::RolloverEntries(entries) => {
                said.rollover.get_or_insert(now.rollover).entries = entries;
            }
            PolicyValue::Offload(part) => {
                offload(said.offload.get_or_insert(now.offload), part);
            }
            PolicyValue::Deduplication(on) => said.deduplication = Some(on),
            PolicyValue::AutoCreateTopics(on) => said.auto_create_topics = Some(on),
            PolicyValue::AutoCreateSubscriptions(on) => said.auto_create_subscriptions = Some(on),
            PolicyValue::SubscriptionTypes(types) => said.subscription_types = Some(types),
            PolicyValue::Ttl(after_ms) => {
                said.ttl.get_or_insert(now.ttl).after_ms = after_ms;
            }
            PolicyValue::Backlog(part) => {
                backlog(said.backlog_quota.get_or_insert(now.backlog_quota), part);
            }
            PolicyValue::Rate(name, part) => rate(rate_of(&mut said, view, name), part),
            PolicyValue::MessageBytesMax(bytes) => said.message_bytes_max = Some(bytes),
            PolicyValue::Weight(weight) => said.weight = Some(weight),
            PolicyValue::UnackedConsumer(messages) => {
                let own = view.own.unacked.unwrap_or_default();
                said.unacked.get_or_insert(own).consumer = messages;
            }
            PolicyValue::UnackedSubscription(messages) => {
                let own = view.own.unacked.unwrap_or_default();
                said.unacked.get_or_insert(own).subscription = messages;
            }
            PolicyValue::Count(name, count) => {
                let own = view.own.counts.unwrap_or_default();
                counts(said.counts.get_or_insert(own), name, count);
            }
        }
    }
    said
}

fn offload(policy: &mut OffloadPolicy, part: OffloadPart) {
    match part {
        OffloadPart::Enabled(on) => policy.enabled = on,
        OffloadPart::AgeMs(age_ms) => policy.age_ms = age_ms,
        OffloadPart::Bytes(bytes) => policy.bytes = bytes,
        OffloadPart::LagMs(lag_ms) => policy.lag_ms = lag_ms,
        OffloadPart::Compression(compression) => policy.compression = compression,
    }
}

fn backlog(quota: &mut BacklogQuota, part: BacklogPart) {
    match part {
        BacklogPart::Unlimited => *quota = BacklogQuota::default(),
        BacklogPart::Bytes(bytes) => quota.bytes = bytes,
        BacklogPart::AgeMs(age_ms) => quota.age_ms = age_ms,
        BacklogPart::Action(action) => quota.action = action,
    }
}

fn rate_of<'a>(said: &'a mut Policies, view: &PolicyView, name: RateName) -> &'a mut Rate {
    let now = view.effective;
    let own: AggregateRate = view.own.aggregate_rate.unwrap_or_default();
    match name {
        RateName::Publish => said.publish_rate.get_or_insert(now.publish_rate),
        RateName::Producer => said.producer_rate.get_or_insert(now.producer_rate),
        RateName::Dispatch => said.dispatch_rate.get_or_insert(now.dispatch_rate),
        RateName::Subscription => said.subscription_rate.get_or_insert(now.subscription_rate),
        RateName::AggregatePublish => &mut said.aggregate_rate.get_or_insert(own).publish,
        RateName::AggregateDispatch => &mut said.aggregate_rate.get_or_insert(own).dispatch,
    }
}

fn rate(rate: &mut Rate, part: RatePart) {
    match part {
        RatePart::Unlimited => *rate = Rate::UNLIMITED,
        RatePart::Messages(messages) => rate.messages = messages,
        RatePart::Bytes(bytes) => rate.bytes = bytes,
        RatePart::BurstMs(burst_ms) => rate.burst_ms = burst_ms,
    }
}

fn counts(counts: &mut Counts, name: CountName, count: Option<u64>) {
    match name {
        CountName::Topics => counts.topics = count,
        CountName::Producers => counts.producers = count.unwrap_or(counts.producers),
        CountName::Subscriptions => counts.subscriptions = count.unwrap_or(counts.subscriptions),
        CountName::Consumers => counts.consumers = count,
    }
}
