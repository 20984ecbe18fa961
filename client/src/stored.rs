//! Messages of entries that a tool has read from storage itself, without a broker.

use std::sync::Arc;

use aquifer_model::entry::EntryHead;
use aquifer_model::id::{EntryId, LedgerId};
use aquifer_model::topic::TopicName;
use aquifer_proto::v1;
use bytes::Bytes;

use crate::batch::Delivered;
use crate::error::Result;
use crate::message::{Origin, ReceivedMessage};

/// The messages of an entry, by the broker's head and the body behind it.
///
/// # Errors
/// `Damaged`, where the body cannot be read, and for each message that cannot.
pub fn messages_of(
    topic: &Arc<TopicName>,
    (ledger, entry): (LedgerId, EntryId),
    head: &EntryHead,
    body: Bytes,
) -> Result<Vec<Result<ReceivedMessage>>> {
    let delivered = Delivered::parse(v1::Delivery {
        ledger_id: ledger.0,
        entry_id: entry.0,
        base_index: head.base_index.0,
        broker_time_ms: head.broker_time_ms,
        body,
        message_count: head.message_count,
        format: head.format.into(),
        ..v1::Delivery::default()
    });
    let mut messages = delivered.open(topic, Origin::default())?;
    let next = || messages.next().map(|(_, message)| message);
    Ok(std::iter::from_fn(next).collect())
}
