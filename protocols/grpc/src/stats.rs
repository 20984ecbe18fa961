//! Statistics of topics as they are answered, within what an answer may have.

use aquifer_proto::v1;
use prost::Message as _;

/// Bytes of an answer with statistics; what a client can receive is more.
const STATS_BYTES_MAX: usize = 4 << 20;

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
