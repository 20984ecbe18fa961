//! Taking a delivered batch apart. Everything in it came over a wire: nothing is trusted.

use std::sync::Arc;

use aquifer_model::batch::{
    Batch, BatchFields, FLAG_HAS_EVENT_TIME, FLAG_HAS_KEY, MessageRecord, MessageRow,
};
use aquifer_model::id::{EntryId, Index, LedgerId};
use aquifer_model::position::Position;
use aquifer_model::topic::TopicName;
use aquifer_proto::v1;
use bytes::Bytes;

use crate::compression::decompress;
use crate::error::ClientError;
use crate::message::{Origin, ReceivedMessage};

/// One delivered entry whose checksum is right, not yet decompressed.
#[derive(Debug)]
pub(crate) struct Delivered {
    batch: Batch,
    ledger: LedgerId,
    entry: EntryId,
    base_index: u64,
    broker_time_ms: u64,
    redelivery_count: u32,
    /// In order, not overlapping.
    skip: Vec<v1::IndexRange>,
    /// What it costs of the credit.
    wanted: u64,
}

impl Delivered {
    /// Verifies an entry without decompressing it.
    pub(crate) fn parse(delivery: v1::Delivery) -> Result<Delivered, ClientError> {
        let damaged = |reason: String| ClientError::Damaged {
            ledger: delivery.ledger_id,
            entry: delivery.entry_id,
            reason,
        };
        let batch =
            Batch::parse(delivery.batch.clone()).map_err(|error| damaged(error.to_string()))?;
        let count = u64::from(batch.message_count());
        if delivery.base_index.checked_add(count).is_none() {
            return Err(damaged(format!("its index is {}", delivery.base_index)));
        }
        let mut skip = delivery.skip;
        skip.sort_unstable_by_key(|range| range.first);
        let mut delivered = Delivered {
            batch,
            ledger: LedgerId(delivery.ledger_id),
            entry: EntryId(delivery.entry_id),
            base_index: delivery.base_index,
            broker_time_ms: delivery.broker_time_ms,
            redelivery_count: delivery.redelivery_count,
            skip,
            wanted: 0,
        };
        delivered.count_wanted();
        Ok(delivered)
    }

    fn count_wanted(&mut self) {
        let mut at = self.base_index;
        let mut skipped = 0;
        for range in &self.skip {
            let first = range.first.max(at);
            // Exclusive, so that a range up to the largest number does not overflow.
            let end = range.last.saturating_add(1).min(self.end());
            if first < end {
                skipped += end - first;
                at = end;
            }
        }
        self.wanted = u64::from(self.batch.message_count()) - skipped;
    }

    /// Index after the last message.
    pub(crate) fn end(&self) -> u64 {
        self.base_index + u64::from(self.batch.message_count())
    }

    /// Index of the first message that is not skipped.
    pub(crate) fn first_wanted(&self) -> u64 {
        let mut first = self.base_index;
        for range in &self.skip {
            if range.first > first {
                break;
            }
            first = first.max(range.last.saturating_add(1));
        }
        first
    }

    /// Leaves out what lies below an index.
    pub(crate) fn skip_below(&mut self, index: u64) {
        if let Some(last) = index.checked_sub(1).filter(|last| *last >= self.base_index) {
            self.skip.insert(0, v1::IndexRange { first: 0, last });
            self.count_wanted();
        }
    }

    /// Messages that are not skipped.
    pub(crate) fn wanted(&self) -> u64 {
        self.wanted
    }

    fn damaged(&self, reason: impl Into<String>) -> ClientError {
        ClientError::Damaged {
            ledger: self.ledger.0,
            entry: self.entry.0,
            reason: reason.into(),
        }
    }

    /// Decompresses it, ready to hand out messages.
    pub(crate) fn open(
        self,
        topic: &Arc<TopicName>,
        origin: Origin,
    ) -> Result<Messages, ClientError> {
        let fields = self.batch.fields();
        let size = fields.uncompressed_bytes as usize;
        let block = decompress(fields.compression, self.batch.payload(), size)
            .map_err(|reason| self.damaged(reason))?;
        // Saturating is exact enough: a sum that saturates cannot match a block of memory.
        let rows = self.batch.rows();
        let total = rows.fold(0usize, |sum, row| {
            sum.saturating_add(row.size_bytes as usize)
        });
        if total != block.len() {
            return Err(self.damaged(format!(
                "its rows add up to {total} bytes, its block has {}",
                block.len()
            )));
        }
        let producer_name = String::from_utf8_lossy(&fields.producer_name).into();
        Ok(Messages {
            block,
            producer_name,
            topic: Arc::clone(topic),
            origin,
            next_row: 0,
            skip_at: 0,
            left: self.wanted,
            delivered: self,
        })
    }
}

/// The messages of one entry, taken one by one.
#[derive(Debug)]
pub(crate) struct Messages {
    delivered: Delivered,
    /// What is left of the uncompressed block.
    block: Bytes,
    producer_name: Arc<str>,
    topic: Arc<TopicName>,
    origin: Origin,
    next_row: u32,
    /// The first skipped range that does not end before the next row.
    skip_at: usize,
    /// Messages still to hand out.
    left: u64,
}

impl Messages {
    /// The next message that is not skipped; `None` at the end. After an error nothing follows.
    pub(crate) fn next(&mut self) -> Option<Result<ReceivedMessage, ClientError>> {
        while self.left > 0 {
            let number = self.next_row;
            let row = self.delivered.batch.row(number)?;
            self.next_row += 1;
            // The rows add up to the block, so this never cuts beyond its end.
            let record = self.block.split_to(row.size_bytes as usize);
            let index = self.delivered.base_index + u64::from(number);
            if self.is_skipped(index) {
                continue;
            }
            let message = self.message(number, index, row, record);
            self.left = if message.is_ok() { self.left - 1 } else { 0 };
            return Some(message);
        }
        None
    }

    /// Messages still to hand out.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// Indexes are asked for in order, so that the ranges are walked once.
    fn is_skipped(&mut self, index: u64) -> bool {
        let skip = &self.delivered.skip;
        while skip
            .get(self.skip_at)
            .is_some_and(|range| range.last < index)
        {
            self.skip_at += 1;
        }
        skip.get(self.skip_at)
            .is_some_and(|range| range.first <= index)
    }

    fn message(
        &self,
        number: u32,
        index: u64,
        row: MessageRow,
        record: Bytes,
    ) -> Result<ReceivedMessage, ClientError> {
        let delivered = &self.delivered;
        let record = MessageRecord::decode(record)
            .map_err(|error| delivered.damaged(format!("message {number}: {error}")))?;
        let fields: &BatchFields = delivered.batch.fields();
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        let properties = record.properties.iter();
        Ok(ReceivedMessage {
            position: Position {
                ledger: delivered.ledger,
                entry: delivered.entry,
                batch_index: number,
            },
            index: Index(index),
            key: (row.flags & FLAG_HAS_KEY != 0).then_some(record.key),
            payload: record.value,
            properties: properties
                .map(|(name, value)| (text(name), text(value)))
                .collect(),
            producer_name: Arc::clone(&self.producer_name),
            sequence_id: fields
                .lowest_sequence_id
                .saturating_add(u64::from(row.sequence_delta)),
            publish_time_ms: fields.publish_time_ms,
            event_time_ms: (row.flags & FLAG_HAS_EVENT_TIME != 0).then_some(row.event_time_ms),
            broker_time_ms: delivered.broker_time_ms,
            redelivery_count: delivered.redelivery_count,
            topic: Arc::clone(&self.topic),
            origin: self.origin,
        })
    }
}
