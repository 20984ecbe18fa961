//! What another broker answers, in the terms of this one.

use std::fmt::Display;

use aquifer_client::admin;
use aquifer_model::id::{EntryId, Index, LedgerId};
use aquifer_model::topic::TopicName;
use aquifer_proto::v1;
use aquifer_protocol_api::admin::{Peeked, SubscriptionReset};
use aquifer_protocol_api::consumer::{Gap, Held, IndexRange};
use aquifer_protocol_api::error::{ApiError, ApiResult, ErrorKind};
use aquifer_protocol_api::producer::StoredAt;
use aquifer_protocol_api::pull::StoredBatch;

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
        at_most: gap.at_most,
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
