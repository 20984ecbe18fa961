//! Statistics of topics as they are answered, within what an answer may have.

use aquifer_model::stats::{SubscriptionStats, TopicEnd, TopicStats};
use aquifer_proto::v1;
use prost::Message as _;

/// Bytes of an answer with statistics; what a client can receive is more.
const STATS_BYTES_MAX: usize = 4 << 20;

/// Statistics as they are answered.
pub(crate) fn wire_stats(topic: String, stats: TopicStats) -> v1::TopicStatsResponse {
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
        shortened: false,
        terminated,
        ends: stats.ends.into_iter().map(wire_end).collect(),
    }
}

/// Where a topic ends.
pub(crate) fn wire_end(end: TopicEnd) -> v1::TopicEnd {
    v1::TopicEnd {
        topic: end.topic.to_string(),
        last_index: end.end.0.checked_sub(1),
    }
}

/// The numbers alone.
pub(crate) fn without_lists(mut stats: v1::TopicStatsResponse) -> v1::TopicStatsResponse {
    stats.ledgers.clear();
    stats.producers.clear();
    stats.subscriptions.clear();
    stats
}

/// An answer that can be received, however many ledgers, producers and consumers there are.
pub(crate) fn fitting(mut stats: v1::TopicStatsResponse) -> v1::TopicStatsResponse {
    while stats.encoded_len() > STATS_BYTES_MAX {
        stats.shortened = true;
        // The newest ledgers tell most.
        let old = stats.ledgers.len().div_ceil(2);
        stats.ledgers.drain(..old);
        stats.producers.truncate(stats.producers.len() / 2);
        let all = stats.subscriptions.len();
        match stats
            .subscriptions
            .iter_mut()
            .find(|s| !s.consumers.is_empty())
        {
            Some(_) => stats
                .subscriptions
                .iter_mut()
                .for_each(|s| s.consumers.truncate(s.consumers.len() / 2)),
            None => stats.subscriptions.truncate(all / 2),
        }
    }
    stats
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
        damaged_messages: subscription.damaged_messages,
        held_back_by: subscription.held_back_by.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every request gets an answer.
    #[test]
    fn statistics_of_whatever_size_fit_into_an_answer() {
        let ledger = |ledger_id| v1::LedgerStats {
            ledger_id,
            state: "closed".to_owned(),
            ..v1::LedgerStats::default()
        };
        let subscription = |number: u64| v1::SubscriptionStats {
            name: format!("subscription {number}"),
            consumers: vec!["x".repeat(256); 100],
            ..v1::SubscriptionStats::default()
        };
        let stats = v1::TopicStatsResponse {
            end_index: 7,
            ledgers: (0..300_000).map(ledger).collect(),
            subscriptions: (0..1_000).map(subscription).collect(),
            ..v1::TopicStatsResponse::default()
        };
        let short = fitting(stats.clone());
        assert!(short.encoded_len() <= STATS_BYTES_MAX && short.shortened);
        assert_eq!(
            short.subscriptions.len(),
            1_000,
            "names say more than consumers"
        );
        assert_eq!(short.ledgers.last().map(|l| l.ledger_id), Some(299_999));
        assert_eq!(short.end_index, 7);
        let brief = without_lists(stats);
        assert!(brief.encoded_len() < 100 && brief.end_index == 7);
    }
}
