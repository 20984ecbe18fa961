//! The native batch: what a producer sends and what is stored behind the broker's head.
//!
//! `prefix || fields || message table || payload block`. The broker reads prefix, fields and
//! table, never the payload block, which is compressed (and later encrypted) as a whole. Layout,
//! little-endian:
//!
//! ```text
//!  0  4  magic "AQB1"
//!  4  4  CRC32C of bytes 8..total_len
//!  8  4  total_len: the whole batch
//! 12  4  fields_len
//! 16  4  table_len: message count × the length of a row, which is at least 24
//! 20  4  message count
//! 24     fields: (tag u16, length u32, bytes)*; unknown tags survive a round trip
//!        table: one row per message; bytes behind the first 24 are a later version's
//!        payload block: the messages' records, one after the other, maybe compressed
//! ```
//!
//! A record is `varint key length, key, varint property count, (varint length, bytes)×2 each,
//! value to the end`; its length is in its row.

mod builder;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;

pub use builder::BatchBuilder;

use crate::bytes_at::{u32_at, u64_at};
use crate::checksum;
use crate::id::ProducerInstance;
use crate::limits::{
    BATCH_BYTES_MAX, BATCH_HEADER_BYTES_MAX, BATCH_MESSAGES_MAX, BATCH_UNCOMPRESSED_BYTES_MAX,
    KEY_BYTES_MAX, PROPERTIES_MAX,
};
use crate::trace::TraceContext;

/// Bytes before the fields.
pub const PREFIX_BYTES: usize = 24;
/// Bytes of one row of the message table, as this version writes it. Later versions may append
/// fields to rows.
pub const ROW_BYTES: usize = 24;
/// Largest row that is accepted from a later version.
pub const ROW_BYTES_MAX: usize = 256;
const MAGIC: &[u8; 4] = b"AQB1";

/// How the payload block is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Compression {
    /// Stored as it is.
    #[default]
    None,
    /// LZ4 block format.
    Lz4,
    /// Zstandard frame.
    Zstd,
}

impl Compression {
    fn code(self) -> u8 {
        match self {
            Compression::None => 0,
            Compression::Lz4 => 1,
            Compression::Zstd => 2,
        }
    }

    fn from_code(code: u8) -> Result<Compression, BatchError> {
        match code {
            0 => Ok(Compression::None),
            1 => Ok(Compression::Lz4),
            2 => Ok(Compression::Zstd),
            other => Err(BatchError::Compression(other)),
        }
    }
}

/// What holds for all messages of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BatchFields {
    /// Name of the producer; empty only in batches that no producer stream carried.
    pub producer_name: Bytes,
    /// The producer object that sent it: where the broker's memory of a name's last instance comes
    /// from when the topic is loaded again (H20). Absent like the name.
    pub producer_instance: Option<ProducerInstance>,
    /// Sequence id of the first message.
    pub lowest_sequence_id: u64,
    /// Sequence id of the last message.
    pub highest_sequence_id: u64,
    /// When the producer sent it, ms since the Unix epoch.
    pub publish_time_ms: u64,
    /// Not to be delivered before this, ms since the Unix epoch.
    pub deliver_at_ms: Option<u64>,
    /// Ordering key, where it differs from the messages' own keys.
    pub ordering_key: Option<Bytes>,
    /// How the payload block is compressed.
    pub compression: Compression,
    /// Bytes of the payload block before compression.
    pub uncompressed_bytes: u32,
    /// Version of the schema that the messages follow.
    pub schema_version: Option<Bytes>,
    /// Where a geo-replicated batch came from: cluster and position there.
    pub replication_origin: Option<Bytes>,
    /// Transaction that the batch belongs to.
    pub transaction_id: Option<Bytes>,
    /// What a consumer needs to decrypt the payload block.
    pub encryption: Option<Bytes>,
    /// The trace of its first message that is sampled; absent in all batches without one.
    pub trace: Option<TraceContext>,
    /// Fields of a later version, kept as they came, in order.
    pub unknown: Vec<(u16, Bytes)>,
}

/// One row of the message table: what the broker may know of a message without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MessageRow {
    /// [`crate::hash::key_hash`] of the key; 0 without [`FLAG_HAS_KEY`].
    pub key_hash: u32,
    /// Bytes of the message's record in the uncompressed payload block.
    pub size_bytes: u32,
    /// Sequence id minus the batch's lowest.
    pub sequence_delta: u32,
    /// [`FLAG_HAS_KEY`], [`FLAG_HAS_EVENT_TIME`]; others are kept.
    pub flags: u32,
    /// When the event happened, ms since the Unix epoch; 0 without [`FLAG_HAS_EVENT_TIME`].
    pub event_time_ms: u64,
}

/// The message has a key.
pub const FLAG_HAS_KEY: u32 = 1;
/// The message has an event time.
pub const FLAG_HAS_EVENT_TIME: u32 = 2;

/// Bytes that are not a batch, or break a bound.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BatchError {
    /// Fewer bytes than the prefix or its lengths need.
    #[error("batch has {available} bytes where {needed} are needed")]
    Short {
        /// Bytes that are needed.
        needed: usize,
        /// Bytes that are there.
        available: usize,
    },
    /// Another magic number.
    #[error("not a batch: magic {0:02x?}")]
    Magic([u8; 4]),
    /// The checksum does not match.
    #[error("batch checksum is {stored:08x}, bytes say {computed:08x}: damaged on the way")]
    Checksum {
        /// The stored checksum.
        stored: u32,
        /// The checksum of what arrived.
        computed: u32,
    },
    /// A length or count beyond its bound, or one that contradicts another.
    #[error("{what} is {got}, at most {max} is allowed")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// What was said.
        got: usize,
        /// The bound.
        max: usize,
    },
    /// Lengths that contradict each other.
    #[error("batch lengths contradict each other: {0}")]
    Inconsistent(&'static str),
    /// A field has the wrong length.
    #[error("batch field {0} has the wrong length")]
    Field(u16),
    /// An unknown compression.
    #[error("unknown compression code {0}: 0 none, 1 lz4, 2 zstd")]
    Compression(u8),
}

mod tag {
    pub const PRODUCER_NAME: u16 = 1;
    pub const LOWEST_SEQUENCE: u16 = 2;
    pub const HIGHEST_SEQUENCE: u16 = 3;
    pub const PUBLISH_TIME: u16 = 4;
    pub const DELIVER_AT: u16 = 5;
    pub const ORDERING_KEY: u16 = 6;
    pub const COMPRESSION: u16 = 7;
    pub const UNCOMPRESSED_BYTES: u16 = 8;
    pub const SCHEMA_VERSION: u16 = 9;
    pub const REPLICATION_ORIGIN: u16 = 10;
    pub const TRANSACTION_ID: u16 = 11;
    pub const ENCRYPTION: u16 = 12;
    pub const PRODUCER_INSTANCE: u16 = 13;
    pub const TRACE: u16 = 14;
}

impl BatchFields {
    fn encode(&self, out: &mut BytesMut) {
        let mut put = |tag: u16, value: &[u8]| {
            out.put_u16_le(tag);
            out.put_u32_le(u32::try_from(value.len()).unwrap_or(u32::MAX));
            out.put_slice(value);
        };
        put(tag::PRODUCER_NAME, &self.producer_name);
        if let Some(instance) = &self.producer_instance {
            put(tag::PRODUCER_INSTANCE, &instance.0);
        }
        put(tag::LOWEST_SEQUENCE, &self.lowest_sequence_id.to_le_bytes());
        put(
            tag::HIGHEST_SEQUENCE,
            &self.highest_sequence_id.to_le_bytes(),
        );
        put(tag::PUBLISH_TIME, &self.publish_time_ms.to_le_bytes());
        if let Some(ms) = self.deliver_at_ms {
            put(tag::DELIVER_AT, &ms.to_le_bytes());
        }
        put(tag::COMPRESSION, &[self.compression.code()]);
        put(
            tag::UNCOMPRESSED_BYTES,
            &self.uncompressed_bytes.to_le_bytes(),
        );
        let optional = [
            (tag::ORDERING_KEY, &self.ordering_key),
            (tag::SCHEMA_VERSION, &self.schema_version),
            (tag::REPLICATION_ORIGIN, &self.replication_origin),
            (tag::TRANSACTION_ID, &self.transaction_id),
            (tag::ENCRYPTION, &self.encryption),
        ];
        for (tag, value) in optional {
            if let Some(value) = value {
                put(tag, value);
            }
        }
        if let Some(trace) = self.trace {
            put(tag::TRACE, &trace.to_bytes());
        }
        for (tag, value) in &self.unknown {
            put(*tag, value);
        }
    }

    fn decode(mut bytes: Bytes) -> Result<BatchFields, BatchError> {
        let mut fields = BatchFields::default();
        while !bytes.is_empty() {
            if bytes.len() < 6 {
                return Err(BatchError::Short {
                    needed: 6,
                    available: bytes.len(),
                });
            }
            let tag = bytes.get_u16_le();
            let len = bytes.get_u32_le() as usize;
            if len > bytes.len() {
                return Err(BatchError::Short {
                    needed: len,
                    available: bytes.len(),
                });
            }
            fields.set(tag, bytes.split_to(len))?;
        }
        Ok(fields)
    }

    fn set(&mut self, tag: u16, value: Bytes) -> Result<(), BatchError> {
        let u64_of = |value: &[u8]| match value.len() {
            8 => Ok(u64_at(value, 0)),
            _ => Err(BatchError::Field(tag)),
        };
        match tag {
            tag::PRODUCER_NAME => self.producer_name = value,
            tag::PRODUCER_INSTANCE => match ProducerInstance::try_from(value.as_ref()) {
                Ok(instance) => self.producer_instance = Some(instance),
                Err(_) => return Err(BatchError::Field(tag)),
            },
            tag::LOWEST_SEQUENCE => self.lowest_sequence_id = u64_of(&value)?,
            tag::HIGHEST_SEQUENCE => self.highest_sequence_id = u64_of(&value)?,
            tag::PUBLISH_TIME => self.publish_time_ms = u64_of(&value)?,
            tag::DELIVER_AT => self.deliver_at_ms = Some(u64_of(&value)?),
            tag::ORDERING_KEY => self.ordering_key = Some(value),
            tag::COMPRESSION => match value.as_ref() {
                [code] => self.compression = Compression::from_code(*code)?,
                _ => return Err(BatchError::Field(tag)),
            },
            tag::UNCOMPRESSED_BYTES => match value.len() {
                4 => self.uncompressed_bytes = u32_at(&value, 0),
                _ => return Err(BatchError::Field(tag)),
            },
            tag::SCHEMA_VERSION => self.schema_version = Some(value),
            tag::REPLICATION_ORIGIN => self.replication_origin = Some(value),
            tag::TRANSACTION_ID => self.transaction_id = Some(value),
            tag::ENCRYPTION => self.encryption = Some(value),
            tag::TRACE => match TraceContext::from_bytes(&value) {
                Some(trace) => self.trace = Some(trace),
                None => return Err(BatchError::Field(tag)),
            },
            _ => self.unknown.push((tag, value)),
        }
        Ok(())
    }
}

/// A batch whose prefix, bounds, checksum and fields were verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    bytes: Bytes,
    fields: BatchFields,
    table_at: usize,
    payload_at: usize,
    row_bytes: usize,
    message_count: u32,
}

impl Batch {
    /// Verifies everything that can be verified without opening the payload block.
    ///
    /// # Errors
    /// When a length, bound, checksum or field is wrong. Nothing is allocated from a length that
    /// the bytes merely claim.
    pub fn parse(bytes: Bytes) -> Result<Batch, BatchError> {
        let [fields_len, table_len, count] = check_prefix(&bytes)?;
        let (stored, computed) = (u32_at(&bytes, 4), checksum::crc32c(&bytes[8..]));
        if stored != computed {
            return Err(BatchError::Checksum { stored, computed });
        }
        let table_at = PREFIX_BYTES + fields_len;
        let payload_at = table_at + table_len;
        let fields = BatchFields::decode(bytes.slice(PREFIX_BYTES..table_at))?;
        let uncompressed = fields.uncompressed_bytes as usize;
        if uncompressed > BATCH_UNCOMPRESSED_BYTES_MAX {
            return Err(too_large(
                "uncompressed payload",
                uncompressed,
                BATCH_UNCOMPRESSED_BYTES_MAX,
            ));
        }
        if fields.highest_sequence_id < fields.lowest_sequence_id {
            return Err(BatchError::Inconsistent(
                "highest sequence id below the lowest",
            ));
        }
        let message_count = u32::try_from(count).unwrap_or(u32::MAX);
        Ok(Batch {
            bytes,
            fields,
            table_at,
            payload_at,
            row_bytes: table_len / count,
            message_count,
        })
    }

    /// The whole batch as it came.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// What holds for all messages.
    #[must_use]
    pub fn fields(&self) -> &BatchFields {
        &self.fields
    }

    /// How many messages there are; at least 1.
    #[must_use]
    pub fn message_count(&self) -> u32 {
        self.message_count
    }

    /// The message table, in order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = MessageRow> + '_ {
        self.bytes[self.table_at..self.payload_at]
            .chunks_exact(self.row_bytes)
            .map(MessageRow::decode)
    }

    /// One row of the message table; `None` behind its end.
    #[must_use]
    pub fn row(&self, number: u32) -> Option<MessageRow> {
        let at = usize::try_from(number).ok()?.checked_mul(self.row_bytes)?;
        let table = &self.bytes[self.table_at..self.payload_at];
        table.get(at..at + self.row_bytes).map(MessageRow::decode)
    }

    /// The payload block, still compressed.
    #[must_use]
    pub fn payload(&self) -> Bytes {
        self.bytes.slice(self.payload_at..)
    }
}

/// Bytes of the fields of what may be a batch, as it says.
pub(crate) fn fields_bytes(bytes: &Bytes) -> usize {
    match bytes.len() >= PREFIX_BYTES {
        true => u32_at(bytes, 12) as usize,
        false => 0,
    }
}

fn check_prefix(bytes: &Bytes) -> Result<[usize; 3], BatchError> {
    let available = bytes.len();
    if available < PREFIX_BYTES {
        return Err(BatchError::Short {
            needed: PREFIX_BYTES,
            available,
        });
    }
    if &bytes[..4] != MAGIC {
        return Err(BatchError::Magic([bytes[0], bytes[1], bytes[2], bytes[3]]));
    }
    let [total, fields_len, table_len, count] =
        [8, 12, 16, 20].map(|at| u32_at(bytes, at) as usize);
    if total > BATCH_BYTES_MAX {
        return Err(too_large("batch", total, BATCH_BYTES_MAX));
    }
    if total != available {
        return Err(BatchError::Short {
            needed: total,
            available,
        });
    }
    if fields_len > BATCH_HEADER_BYTES_MAX {
        return Err(too_large(
            "batch header",
            fields_len,
            BATCH_HEADER_BYTES_MAX,
        ));
    }
    if count == 0 {
        return Err(BatchError::Inconsistent("no messages"));
    }
    if count > BATCH_MESSAGES_MAX as usize {
        return Err(too_large(
            "message count",
            count,
            BATCH_MESSAGES_MAX as usize,
        ));
    }
    // `count` is not 0, and bounded.
    if table_len % count != 0 || table_len / count < ROW_BYTES {
        return Err(BatchError::Inconsistent(
            "table length is no multiple of the message count, or rows are below 24 bytes",
        ));
    }
    if table_len / count > ROW_BYTES_MAX {
        return Err(too_large("message row", table_len / count, ROW_BYTES_MAX));
    }
    if PREFIX_BYTES + fields_len + table_len > total {
        return Err(BatchError::Inconsistent(
            "fields and table exceed the batch",
        ));
    }
    Ok([fields_len, table_len, count])
}

fn too_large(what: &'static str, got: usize, max: usize) -> BatchError {
    BatchError::TooLarge { what, got, max }
}

impl MessageRow {
    fn decode(row: &[u8]) -> MessageRow {
        MessageRow {
            key_hash: u32_at(row, 0),
            size_bytes: u32_at(row, 4),
            sequence_delta: u32_at(row, 8),
            flags: u32_at(row, 12),
            event_time_ms: u64_at(row, 16),
        }
    }

    fn encode(self, out: &mut BytesMut) {
        out.put_u32_le(self.key_hash);
        out.put_u32_le(self.size_bytes);
        out.put_u32_le(self.sequence_delta);
        out.put_u32_le(self.flags);
        out.put_u64_le(self.event_time_ms);
    }
}

/// Puts a batch together. `payload` is the block as it is to be stored, compressed or not.
///
/// # Errors
/// When a bound is exceeded or there are no rows.
pub fn encode(
    fields: &BatchFields,
    rows: &[MessageRow],
    payload: &[u8],
) -> Result<Bytes, BatchError> {
    let mut out = encode_head(fields, rows, payload.len())?;
    out.put_slice(payload);
    seal(&mut out);
    Ok(out.freeze())
}

/// Everything before the payload block, with the checksum still to be set.
fn encode_head(
    fields: &BatchFields,
    rows: &[MessageRow],
    payload_len: usize,
) -> Result<BytesMut, BatchError> {
    if rows.is_empty() {
        return Err(BatchError::Inconsistent("no messages"));
    }
    if rows.len() > BATCH_MESSAGES_MAX as usize {
        return Err(too_large(
            "message count",
            rows.len(),
            BATCH_MESSAGES_MAX as usize,
        ));
    }
    let mut out =
        BytesMut::with_capacity(PREFIX_BYTES + 256 + rows.len() * ROW_BYTES + payload_len);
    out.put_slice(MAGIC);
    out.put_bytes(0, PREFIX_BYTES - 4);
    fields.encode(&mut out);
    let fields_len = out.len() - PREFIX_BYTES;
    if fields_len > BATCH_HEADER_BYTES_MAX {
        return Err(too_large(
            "batch header",
            fields_len,
            BATCH_HEADER_BYTES_MAX,
        ));
    }
    rows.iter().for_each(|row| row.encode(&mut out));
    let total = out.len() + payload_len;
    if total > BATCH_BYTES_MAX {
        return Err(too_large("batch", total, BATCH_BYTES_MAX));
    }
    let lengths = [total, fields_len, rows.len() * ROW_BYTES, rows.len()];
    for (at, length) in [8, 12, 16, 20].into_iter().zip(lengths) {
        let length =
            u32::try_from(length).map_err(|_| too_large("batch", length, BATCH_BYTES_MAX))?;
        out[at..at + 4].copy_from_slice(&length.to_le_bytes());
    }
    Ok(out)
}

/// Sets the checksum of a batch that is complete otherwise.
fn seal(batch: &mut [u8]) {
    let checksum = checksum::crc32c(&batch[8..]);
    batch[4..8].copy_from_slice(&checksum.to_le_bytes());
}

/// The record of one message in the payload block.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MessageRecord {
    /// The key; meaningful with [`FLAG_HAS_KEY`].
    pub key: Bytes,
    /// Properties in the order given.
    pub properties: Vec<(Bytes, Bytes)>,
    /// The payload.
    pub value: Bytes,
}

impl MessageRecord {
    /// Appends the record to a payload block; returns its length.
    pub fn encode(&self, out: &mut BytesMut) -> usize {
        let start = out.len();
        put_sized(out, &self.key);
        put_varint(out, self.properties.len());
        for (name, value) in &self.properties {
            put_sized(out, name);
            put_sized(out, value);
        }
        out.put_slice(&self.value);
        out.len() - start
    }

    /// Reads a record that takes all of `bytes`; its parts share them.
    ///
    /// # Errors
    /// When lengths go beyond the record or a bound.
    pub fn decode(mut bytes: Bytes) -> Result<MessageRecord, BatchError> {
        let key = take_sized(&mut bytes)?;
        if key.len() > KEY_BYTES_MAX {
            return Err(too_large("key", key.len(), KEY_BYTES_MAX));
        }
        let count = take_varint(&mut bytes)?;
        if count > PROPERTIES_MAX {
            return Err(too_large("property count", count, PROPERTIES_MAX));
        }
        let mut properties = Vec::with_capacity(count);
        for _ in 0..count {
            properties.push((take_sized(&mut bytes)?, take_sized(&mut bytes)?));
        }
        Ok(MessageRecord {
            key,
            properties,
            value: bytes,
        })
    }
}

fn put_varint(out: &mut BytesMut, mut value: usize) {
    while value >= 0x80 {
        out.put_u8((value.to_le_bytes()[0] & 0x7f) | 0x80);
        value >>= 7;
    }
    out.put_u8(value.to_le_bytes()[0] & 0x7f);
}

fn put_sized(out: &mut BytesMut, bytes: &[u8]) {
    put_varint(out, bytes.len());
    out.put_slice(bytes);
}

fn take_varint(bytes: &mut Bytes) -> Result<usize, BatchError> {
    let mut value = 0usize;
    for shift in [0, 7, 14, 21, 28] {
        if bytes.is_empty() {
            return Err(BatchError::Short {
                needed: 1,
                available: 0,
            });
        }
        let byte = bytes.get_u8();
        value |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(BatchError::Inconsistent(
        "a varint has more than five bytes",
    ))
}

fn take_sized(bytes: &mut Bytes) -> Result<Bytes, BatchError> {
    let len = take_varint(bytes)?;
    if len > bytes.len() {
        return Err(BatchError::Short {
            needed: len,
            available: bytes.len(),
        });
    }
    Ok(bytes.split_to(len))
}

#[cfg(test)]
mod tests;
