//! Statistics of topics, in answers to clients.

use aquifer_model::id::{Index, LedgerId};
use aquifer_model::stats::{
    LedgerPlace, LedgerStats, ProducerStats, SubscriptionStats, TopicEnd, TopicStats,
};
use aquifer_model::subscription::SubscriptionType;
use aquifer_model::topic::{NameError, ProducerName, TopicName};

use crate::convert::subscription::{properties, wire_properties};
use crate::v1;

/// Statistics as they are answered.
#[must_use]
pub fn wire_stats(topic: String, stats: TopicStats) -> v1::TopicStatsResponse {
    let terminated = stats.is_terminated();
    let ledgers = stats.ledgers.into_iter().map(|ledger| v1::LedgerStats {
        ledger_id: ledger.ledger.0,
        first_index: ledger.first_index.0,
        entries: ledger.entries,
        bytes: ledger.bytes,
        state: ledger.state.name().to_owned(),
        local: ledger.local,
        object: ledger.object.unwrap_or_default(),
    });
    let producers = stats
        .producers
        .into_iter()
        .map(|producer| v1::ProducerStats {
            name: producer.name.as_str().to_owned(),
            last_sequence_id: producer.last_sequence_id,
        });
    let subscriptions = stats.subscriptions.into_iter().map(wire_subscription);
    v1::TopicStatsResponse {
        topic,
        partitions: stats.partitions,
        first_index: stats.first_index.0,
        end_index: stats.end_index.0,
        stored_bytes: stats.stored_bytes,
        entries: stats.entries,
        ledgers: ledgers.collect(),
        producers: producers.collect(),
        subscriptions: subscriptions.collect(),
        messages_in: stats.messages_in,
        bytes_in: stats.bytes_in,
        messages_out: stats.messages_out,
        bytes_out: stats.bytes_out,
        held_back_by: stats.held_back_by.unwrap_or_default(),
        shortened: stats.shortened,
        terminated,
        ends: stats.ends.into_iter().map(wire_end).collect(),
    }
}

/// Where a topic ends.
#[must_use]
pub fn wire_end(end: TopicEnd) -> v1::TopicEnd {
    v1::TopicEnd {
        topic: end.topic.to_string(),
        last_index: end.last_index().map(|last| last.0),
    }
}

fn wire_subscription(subscription: SubscriptionStats) -> v1::SubscriptionStats {
    v1::SubscriptionStats {
        name: subscription.name,
        r#type: v1::SubscriptionType::from(subscription.kind).into(),
        mark_delete_index: subscription.mark_delete.0,
        backlog_messages: subscription.backlog_messages,
        unacknowledged_messages: subscription.unacknowledged_messages,
        consumers: subscription.consumers,
        durable: subscription.durable,
        acknowledged_ranges: subscription.acknowledged_ranges,
        properties: wire_properties(&subscription.properties),
        damaged_messages: subscription.damaged_messages,
        held_back_by: subscription.held_back_by.unwrap_or_default(),
    }
}

/// Statistics that were answered.
///
/// # Errors
/// When a producer or a topic has a name that is not allowed.
pub fn stats(stats: v1::TopicStatsResponse) -> Result<TopicStats, NameError> {
    let ledger = |ledger: v1::LedgerStats| LedgerStats {
        ledger: LedgerId(ledger.ledger_id),
        first_index: Index(ledger.first_index),
        entries: ledger.entries,
        bytes: ledger.bytes,
        state: LedgerPlace::named(&ledger.state),
        local: ledger.local,
        object: given(ledger.object),
    };
    let producer = |producer: v1::ProducerStats| -> Result<ProducerStats, NameError> {
        Ok(ProducerStats {
            name: ProducerName::new(&producer.name)?,
            last_sequence_id: producer.last_sequence_id,
        })
    };
    let producers: Result<Vec<ProducerStats>, NameError> =
        stats.producers.into_iter().map(producer).collect();
    Ok(TopicStats {
        partitions: stats.partitions,
        first_index: Index(stats.first_index),
        end_index: Index(stats.end_index),
        stored_bytes: stats.stored_bytes,
        entries: stats.entries,
        ledgers: stats.ledgers.into_iter().map(ledger).collect(),
        producers: producers?,
        subscriptions: stats.subscriptions.into_iter().map(subscription).collect(),
        held_back_by: given(stats.held_back_by),
        messages_in: stats.messages_in,
        bytes_in: stats.bytes_in,
        messages_out: stats.messages_out,
        bytes_out: stats.bytes_out,
        shortened: stats.shortened,
        ends: stats.ends.into_iter().map(end).collect::<Result<_, _>>()?,
    })
}

/// Where a topic ends, as it was answered.
///
/// # Errors
/// When the topic has a name that is not allowed.
pub fn end(end: v1::TopicEnd) -> Result<TopicEnd, NameError> {
    let topic = end.topic.parse::<TopicName>()?;
    let end = end
        .last_index
        .map_or(Index(0), |last| Index(last.saturating_add(1)));
    Ok(TopicEnd { topic, end })
}

fn subscription(stats: v1::SubscriptionStats) -> SubscriptionStats {
    SubscriptionStats {
        kind: SubscriptionType::try_from(stats.r#type()).unwrap_or_default(),
        name: stats.name,
        mark_delete: Index(stats.mark_delete_index),
        backlog_messages: stats.backlog_messages,
        unacknowledged_messages: stats.unacknowledged_messages,
        damaged_messages: stats.damaged_messages,
        held_back_by: given(stats.held_back_by),
        consumers: stats.consumers,
        durable: stats.durable,
        acknowledged_ranges: stats.acknowledged_ranges,
        properties: properties(&stats.properties),
    }
}

/// A text, where it is not empty.
fn given(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_survive_the_wire() {
        let states = [
            LedgerPlace::Open,
            LedgerPlace::Closed,
            LedgerPlace::Offloading,
            LedgerPlace::Offloaded,
        ];
        let ledger = |(number, state): (u64, LedgerPlace)| LedgerStats {
            ledger: LedgerId(number),
            first_index: Index(10 * number),
            entries: 3,
            bytes: 4,
            state,
            local: number == 1,
            object: (number == 3).then(|| "object".to_owned()),
        };
        let said = TopicStats {
            partitions: 1,
            first_index: Index(2),
            end_index: Index(3),
            stored_bytes: 4,
            entries: 5,
            ledgers: (0..).zip(states).map(ledger).collect(),
            producers: vec![ProducerStats {
                name: ProducerName::new("p").unwrap(),
                last_sequence_id: Some(0),
            }],
            subscriptions: vec![SubscriptionStats {
                name: "s".to_owned(),
                kind: SubscriptionType::Failover,
                mark_delete: Index(6),
                backlog_messages: 7,
                unacknowledged_messages: 8,
                damaged_messages: 9,
                held_back_by: Some("a rate".to_owned()),
                consumers: vec!["c".to_owned()],
                durable: true,
                acknowledged_ranges: 10,
                properties: [("team".to_owned(), "blue".to_owned())].into(),
            }],
            held_back_by: Some("another".to_owned()),
            messages_in: 11,
            bytes_in: 12,
            messages_out: 13,
            bytes_out: 14,
            shortened: true,
            ends: vec![TopicEnd {
                topic: "a/b/c".parse().unwrap(),
                end: Index(3),
            }],
        };
        assert_eq!(stats(wire_stats("t".to_owned(), said.clone())), Ok(said));
        let nothing = TopicStats::default();
        let answered = stats(wire_stats("t".to_owned(), nothing.clone()));
        assert_eq!(answered, Ok(nothing));
        let nameless = v1::TopicStatsResponse {
            producers: vec![v1::ProducerStats::default()],
            ..v1::TopicStatsResponse::default()
        };
        assert!(stats(nameless).is_err());
    }
}
