//! What another broker answers, in the terms of this one.

use std::fmt::Display;

use aquifer_client::admin;
use aquifer_model::id::{EntryId, Index, LedgerId};
use aquifer_model::stats::{
    LedgerPlace, LedgerStats, ProducerStats, SubscriptionStats, TopicEnd, TopicStats,
};
use aquifer_model::topic::{ProducerName, TopicName};
use aquifer_proto::v1;
use aquifer_protocol_api::admin::{Peeked, SubscriptionReset};
use aquifer_protocol_api::consumer::{Gap, Held, IndexRange};
use aquifer_protocol_api::error::{ApiError, ApiResult, ErrorKind};
use aquifer_protocol_api::producer::StoredAt;
use aquifer_protocol_api::pull::StoredBatch;

/// The statistics as a broker has them.
pub(super) fn stats(stats: admin::TopicStats) -> ApiResult<TopicStats> {
    let ledgers = stats.ledgers.into_iter().map(|ledger| LedgerStats {
        ledger: ledger.ledger,
        first_index: ledger.first_index,
        entries: ledger.entries,
        bytes: ledger.bytes,
        state: LedgerPlace::named(&ledger.state),
        local: ledger.local,
        object: ledger.object,
    });
    let mut producers = Vec::with_capacity(stats.producers.len());
    for producer in stats.producers {
        producers.push(ProducerStats {
            name: ProducerName::new(&producer.name).map_err(misunderstood)?,
            last_sequence_id: producer.last_sequence_id,
        });
    }
    let mut subscriptions = Vec::with_capacity(stats.subscriptions.len());
    for subscription in stats.subscriptions {
        subscriptions.push(SubscriptionStats {
            name: subscription.name,
            kind: subscription.kind,
            mark_delete: subscription.mark_delete_index,
            backlog_messages: subscription.backlog_messages,
            unacknowledged_messages: subscription.unacknowledged_messages,
            consumers: subscription.consumers,
            durable: subscription.durable,
            acknowledged_ranges: subscription.acknowledged_ranges,
            damaged_messages: subscription.damaged_messages,
            held_back_by: subscription.held_back_by,
        });
    }
    let ends = stats.ends.into_iter().map(end);
    Ok(TopicStats {
        partitions: stats.partitions,
        first_index: stats.first_index,
        end_index: stats.end_index,
        stored_bytes: stats.stored_bytes,
        entries: stats.entries,
        ledgers: ledgers.collect(),
        producers,
        subscriptions,
        messages_in: stats.messages_in,
        bytes_in: stats.bytes_in,
        messages_out: stats.messages_out,
        bytes_out: stats.bytes_out,
        held_back_by: stats.held_back_by,
        ends: ends.collect::<ApiResult<_>>()?,
    })
}

/// Where a topic ends.
pub(super) fn end(end: admin::TopicEnd) -> ApiResult<TopicEnd> {
    let topic = end.topic.parse::<TopicName>().map_err(misunderstood)?;
    let end = end.last_index.map_or(Index(0), |last| last.plus(1));
    Ok(TopicEnd { topic, end })
}

/// From where a subscription goes on.
pub(super) fn reset(reset: admin::SubscriptionReset) -> ApiResult<SubscriptionReset> {
    Ok(SubscriptionReset {
        topic: reset.topic.parse::<TopicName>().map_err(misunderstood)?,
        name: reset.name,
        mark_delete: reset.mark_delete_index,
        repeated_messages: reset.repeated_messages,
        name_only: reset.name_only,
    })
}

/// The next messages of a subscription.
pub(super) fn peeked(answer: v1::PeekMessagesResponse) -> ApiResult<Peeked> {
    let range = |range: v1::IndexRange| IndexRange {
        first: Index(range.first),
        last: Index(range.last),
    };
    let mut batches = Vec::with_capacity(answer.batches.len());
    for batch in answer.batches {
        batches.push(StoredBatch {
            at: StoredAt {
                ledger: LedgerId(batch.ledger_id),
                entry: EntryId(batch.entry_id),
                base_index: Index(batch.base_index),
            },
            message_count: batch.message_count,
            broker_time_ms: batch.broker_time_ms,
            format: u16::try_from(batch.format).map_err(misunderstood)?,
            body: batch.body,
            // It holds nothing of a budget of this broker: answers are bounded.
            held: Held::default(),
        });
    }
    let gaps = answer.gaps.into_iter().map(|gap| Gap {
        range: range(gap.range.unwrap_or_default()),
        ledger: LedgerId(gap.ledger_id),
        entry: EntryId(gap.entry_id),
        reason: gap.reason,
    });
    Ok(Peeked {
        unacknowledged: answer.unacknowledged.into_iter().map(range).collect(),
        batches,
        gaps: gaps.collect(),
    })
}

fn misunderstood(error: impl Display) -> ApiError {
    ApiError::new(
        ErrorKind::Internal,
        format!("the answer of another broker: {error}"),
    )
}
