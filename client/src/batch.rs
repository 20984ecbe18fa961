//! Taking a delivered batch apart. Everything in it came over a wire: nothing is trusted.

use std::sync::Arc;

use aquifer_model::batch::{
    Batch, BatchFields, FLAG_HAS_EVENT_TIME, FLAG_HAS_KEY, MessageRecord, MessageRow,
};
use aquifer_model::format::FORMAT_NATIVE;
use aquifer_model::id::{EntryId, Index, LedgerId};
use aquifer_model::position::Position;
use aquifer_model::topic::TopicName;
use aquifer_proto::v1;
use bytes::Bytes;

use crate::compression::decompress;
use crate::error::ClientError;
use crate::message::{Damaged, Origin, ReceivedMessage};

/// One delivered entry, not yet decompressed.
#[derive(Debug)]
pub(crate) struct Delivered {
    /// Its bytes where their checksum is right, otherwise what is wrong.
    batch: Result<Batch, String>,
    ledger: LedgerId,
    entry: EntryId,
    base_index: u64,
    /// Index after the last message.
    end: u64,
    broker_time_ms: u64,
    /// Messages that were delivered before, in order.
    redelivered: Vec<v1::RedeliveredRange>,
    /// In order, not overlapping.
    skip: Vec<v1::IndexRange>,
    /// What it costs of the credit.
    wanted: u64,
    /// How many messages cannot be read is not known.
    at_most: bool,
}

impl Delivered {
    /// Verifies an entry without decompressing it.
    pub(crate) fn parse(delivery: v1::Delivery) -> Delivered {
        let batch = match u16::try_from(delivery.format) {
            Ok(FORMAT_NATIVE) => Batch::parse(delivery.body).map_err(|error| error.to_string()),
            _ => Err(format!(
                "it has body format {}, which this client does not know",
                delivery.format
            )),
        };
        let told = u64::from(delivery.message_count);
        // What cannot be read has the extent that the broker tells.
        let count = match &batch {
            Ok(batch) => u64::from(batch.message_count()),
            Err(_) => told.max(1),
        };
        let batch = match batch {
            Ok(_) if told != 0 && told != count => {
                Err(format!("it has {count} messages, its entry says {told}"))
            }
            Ok(_) if delivery.base_index.checked_add(count).is_none() => {
                Err(format!("its index is {}", delivery.base_index))
            }
            other => other,
        };
        // What has no place below the largest index is told at the last one.
        let extent = count.max(told);
        let base_index = delivery.base_index.min(u64::MAX - extent);
        let (mut skip, mut redelivered) = (delivery.skip, delivery.redelivered);
        skip.sort_unstable_by_key(|range| range.first);
        redelivered.sort_unstable_by_key(|range| range.first);
        let mut delivered = Delivered {
            batch,
            ledger: LedgerId(delivery.ledger_id),
            entry: EntryId(delivery.entry_id),
            base_index,
            end: base_index + extent,
            broker_time_ms: delivery.broker_time_ms,
            redelivered,
            skip,
            wanted: 0,
            at_most: false,
        };
        delivered.count_wanted();
        delivered
    }

    /// What storage cannot give.
    pub(crate) fn missing(gap: v1::Gap) -> Delivered {
        let mut missing = Delivered {
            batch: Err(gap.reason),
            ledger: LedgerId(gap.ledger_id),
            entry: EntryId(gap.entry_id),
            base_index: gap.first_index.min(u64::MAX - 1),
            end: gap.last_index.max(gap.first_index).saturating_add(1),
            broker_time_ms: 0,
            redelivered: Vec::new(),
            skip: Vec::new(),
            wanted: 0,
            at_most: gap.at_most,
        };
        missing.count_wanted();
        missing
    }

    fn count_wanted(&mut self) {
        self.wanted = self.wanted_ranges().map(|(first, end)| end - first).sum();
    }

    /// What is not skipped, as first index and index after the last one.
    fn wanted_ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut at = self.base_index;
        let behind = v1::IndexRange {
            first: self.end,
            last: self.end,
        };
        let skip = self.skip.iter().copied().chain([behind]);
        skip.filter_map(move |range| {
            let wanted = (at, range.first.min(self.end));
            // Exclusive, so that a range up to the largest number does not overflow.
            at = at.max(range.last.saturating_add(1));
            (wanted.0 < wanted.1).then_some(wanted)
        })
    }

    /// How often a message was delivered before.
    fn redelivery_count(&self, index: u64) -> u32 {
        let behind = self.redelivered.partition_point(|r| r.first <= index);
        let range = behind.checked_sub(1).map(|at| self.redelivered[at]);
        range
            .filter(|range| index <= range.last)
            .map_or(0, |range| range.count)
    }

    /// Index after the last message.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Index of the first message that is not skipped.
    pub(crate) fn first_wanted(&self) -> u64 {
        let mut wanted = self.wanted_ranges();
        wanted.next().map_or(self.end, |(first, _)| first)
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

    /// The messages in some ranges cannot be read.
    fn damaged(
        &self,
        topic: &Arc<TopicName>,
        origin: Origin,
        ranges: impl IntoIterator<Item = (u64, u64)>,
        reason: impl Into<String>,
    ) -> ClientError {
        let inclusive = |(first, end): (u64, u64)| (Index(first), Index(end.saturating_sub(1)));
        let ranges: Vec<_> = ranges.into_iter().map(inclusive).collect();
        ClientError::Damaged(Box::new(Damaged {
            topic: Arc::clone(topic),
            ledger: self.ledger.0,
            entry: self.entry.0,
            first_index: ranges
                .first()
                .map_or(Index(self.base_index), |range| range.0),
            last_index: ranges
                .last()
                .map_or(Index(self.base_index), |range| range.1),
            at_most: self.at_most,
            reason: reason.into(),
            ranges,
            origin,
        }))
    }

    /// Decompresses it, ready to hand out messages.
    pub(crate) fn open(
        mut self,
        topic: &Arc<TopicName>,
        origin: Origin,
    ) -> Result<Messages, ClientError> {
        let opened = std::mem::replace(&mut self.batch, Err(String::new())).and_then(unpack);
        let (batch, block) =
            opened.map_err(|reason| self.damaged(topic, origin, self.wanted_ranges(), reason))?;
        let producer_name = String::from_utf8_lossy(&batch.fields().producer_name).into();
        Ok(Messages {
            block_bytes: block.len(),
            block,
            batch,
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

/// A batch with its uncompressed block, whose size its rows add up to.
fn unpack(batch: Batch) -> Result<(Batch, Bytes), String> {
    let fields = batch.fields();
    let size = fields.uncompressed_bytes as usize;
    let block = decompress(fields.compression, batch.payload(), size)?;
    // Saturating is exact enough: a sum that saturates cannot match a block of memory.
    let total = batch.rows().fold(0usize, |sum, row| {
        sum.saturating_add(row.size_bytes as usize)
    });
    if total != block.len() {
        return Err(format!(
            "its rows add up to {total} bytes, its block has {}",
            block.len()
        ));
    }
    Ok((batch, block))
}

/// The messages of one entry, taken one by one.
#[derive(Debug)]
pub(crate) struct Messages {
    delivered: Delivered,
    batch: Batch,
    /// What is left of the uncompressed block.
    block: Bytes,
    /// All of it, which every message keeps alive.
    block_bytes: usize,
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
    /// The next message that is not skipped, with its index; `None` at the end. Where one is
    /// malformed, the others follow.
    pub(crate) fn next(&mut self) -> Option<(u64, Result<ReceivedMessage, ClientError>)> {
        while self.left > 0 {
            let number = self.next_row;
            let row = self.batch.row(number)?;
            self.next_row += 1;
            // The rows add up to the block, so this never cuts beyond its end.
            let record = self.block.split_to(row.size_bytes as usize);
            let index = self.delivered.base_index + u64::from(number);
            if self.is_skipped(index) {
                continue;
            }
            self.left -= 1;
            return Some((index, self.message(number, index, row, record)));
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
        let record = MessageRecord::decode(record).map_err(|error| {
            let reason = format!("message {number}: {error}");
            delivered.damaged(&self.topic, self.origin, [(index, index + 1)], reason)
        })?;
        let fields: &BatchFields = self.batch.fields();
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
            redelivery_count: delivered.redelivery_count(index),
            topic: Arc::clone(&self.topic),
            origin: self.origin,
            block_bytes: self.block_bytes,
        })
    }
}
