//! What a head says of an entry beyond its fixed fields: `(tag u16, length u16, value)*`,
//! little-endian, tags below 64 at most once. Tags that this version does not know are kept.
//!
//! ```text
//! tag  value
//!   1  producer: lowest sequence id (8), highest sequence id (8), name (the rest)
//!   2  producer instance (16): the producer object that sent it (H20)
//!   3  origin: the cluster that it was replicated from, and where it was there
//!   4  transaction
//!   5  earliest and latest time of delivery, ms since the Unix epoch (8 each)
//!   6  largest event time of its messages, ms since the Unix epoch (8)
//!   7  schema version of its messages
//! ```

use bytes::{BufMut, Bytes, BytesMut};
use thiserror::Error;

use crate::bytes_at::{u16_at, u64_at};
use crate::entry::{HEAD_BYTES, HEAD_BYTES_MAX};
use crate::id::ProducerInstance;

/// Most bytes of all extensions of an entry.
pub const EXTENSIONS_BYTES_MAX: usize = HEAD_BYTES_MAX - HEAD_BYTES;
/// Bytes of tag and length.
const PREFIX_BYTES: usize = 4;
/// What most entries need: a producer with an ordinary name, its instance, and a time.
const USUAL_BYTES: usize = 128;

mod tag {
    pub const PRODUCER: u16 = 1;
    pub const PRODUCER_INSTANCE: u16 = 2;
    pub const ORIGIN: u16 = 3;
    pub const TRANSACTION: u16 = 4;
    pub const DELIVER_AT: u16 = 5;
    pub const EVENT_TIME: u16 = 6;
    pub const SCHEMA: u16 = 7;
}

/// The producer that sent an entry, and the place of the entry in what the producer sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducerStamp {
    /// The producer's name.
    pub name: Bytes,
    /// Sequence id of the first message.
    pub lowest_sequence_id: u64,
    /// Sequence id of the last message, not below the lowest.
    pub highest_sequence_id: u64,
}

/// The extensions of a head, verified: lengths add up and known tags have values of their form.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Extensions(Bytes);

/// Bytes that are not extensions.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ExtensionError {
    /// A length goes beyond the end.
    #[error("it goes beyond the head")]
    Length,
    /// A value that its tag does not allow.
    #[error("tag {0} has another value than it may have")]
    Value(u16),
    /// A tag twice.
    #[error("tag {0} occurs twice")]
    Repeated(u16),
    /// More than a head may hold.
    #[error("all together have {0} bytes, at most {EXTENSIONS_BYTES_MAX} are allowed")]
    TooLarge(usize),
}

impl Extensions {
    /// Verifies stored extensions.
    ///
    /// # Errors
    /// When they are not extensions.
    pub fn parse(bytes: Bytes) -> Result<Extensions, ExtensionError> {
        if bytes.len() > EXTENSIONS_BYTES_MAX {
            return Err(ExtensionError::TooLarge(bytes.len()));
        }
        // Known tags are below 64; others may repeat without harm.
        let (mut seen, mut at) = (0_u64, 0);
        while at < bytes.len() {
            let (tag, value) = item(&bytes, at).ok_or(ExtensionError::Length)?;
            check(tag, value)?;
            if tag < 64 {
                if seen & 1 << tag != 0 {
                    return Err(ExtensionError::Repeated(tag));
                }
                seen |= 1 << tag;
            }
            at += PREFIX_BYTES + value.len();
        }
        Ok(Extensions(bytes))
    }

    /// Their bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// How many bytes they have.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The producer that sent the entry; `None` when no producer stream carried it.
    #[must_use]
    pub fn producer(&self) -> Option<ProducerStamp> {
        let value = self.get(tag::PRODUCER)?;
        Some(ProducerStamp {
            lowest_sequence_id: u64_at(&value, 0),
            highest_sequence_id: u64_at(&value, 8),
            name: value.slice(16..),
        })
    }

    /// The producer object that sent it.
    #[must_use]
    pub fn producer_instance(&self) -> Option<ProducerInstance> {
        ProducerInstance::try_from(self.get(tag::PRODUCER_INSTANCE)?.as_ref()).ok()
    }

    /// The cluster that it was replicated from, and where it was there.
    #[must_use]
    pub fn origin(&self) -> Option<Bytes> {
        self.get(tag::ORIGIN)
    }

    /// The transaction that it belongs to.
    #[must_use]
    pub fn transaction(&self) -> Option<Bytes> {
        self.get(tag::TRANSACTION)
    }

    /// Earliest and latest time of delivery of its messages, ms since the Unix epoch.
    #[must_use]
    pub fn deliver_at_ms(&self) -> Option<(u64, u64)> {
        let value = self.get(tag::DELIVER_AT)?;
        Some((u64_at(&value, 0), u64_at(&value, 8)))
    }

    /// The largest event time of its messages, ms since the Unix epoch.
    #[must_use]
    pub fn event_time_ms(&self) -> Option<u64> {
        Some(u64_at(&self.get(tag::EVENT_TIME)?, 0))
    }

    /// The schema version of its messages.
    #[must_use]
    pub fn schema(&self) -> Option<Bytes> {
        self.get(tag::SCHEMA)
    }

    pub(crate) fn get(&self, wanted: u16) -> Option<Bytes> {
        let (_, value) = items(&self.0).find(|(tag, _)| *tag == wanted)?;
        Some(self.0.slice_ref(value))
    }
}

/// Tags and values in order, up to one that does not fit.
fn items(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let (tag, value) = item(bytes, at)?;
        at += PREFIX_BYTES + value.len();
        Some((tag, value))
    })
}

/// Tag and value of the extension at `at`; `None` when it does not fit.
fn item(bytes: &[u8], at: usize) -> Option<(u16, &[u8])> {
    let prefix = bytes.get(at..at + PREFIX_BYTES)?;
    let (tag, len) = (u16_at(prefix, 0), usize::from(u16_at(prefix, 2)));
    let begins = at + PREFIX_BYTES;
    Some((tag, bytes.get(begins..begins + len)?))
}

fn check(tag: u16, value: &[u8]) -> Result<(), ExtensionError> {
    let is_right = match tag {
        tag::PRODUCER => value.len() > 16 && u64_at(value, 0) <= u64_at(value, 8),
        tag::PRODUCER_INSTANCE => ProducerInstance::try_from(value).is_ok(),
        tag::DELIVER_AT => value.len() == 16 && u64_at(value, 0) <= u64_at(value, 8),
        tag::EVENT_TIME => value.len() == 8,
        _ => true,
    };
    is_right.then_some(()).ok_or(ExtensionError::Value(tag))
}

/// Puts extensions together.
#[derive(Debug)]
pub struct ExtensionsBuilder(BytesMut);

impl Default for ExtensionsBuilder {
    fn default() -> ExtensionsBuilder {
        ExtensionsBuilder(BytesMut::with_capacity(USUAL_BYTES))
    }
}

impl ExtensionsBuilder {
    /// Adds one by its tag.
    ///
    /// # Errors
    /// When the value is not one of its tag, the tag is there, or the head gets too long; nothing
    /// is added then.
    pub fn put(&mut self, tag: u16, value: &[u8]) -> Result<(), ExtensionError> {
        self.put_parts(tag, &[value])
    }

    /// Adds a value that comes in parts.
    fn put_parts(&mut self, tag: u16, parts: &[&[u8]]) -> Result<(), ExtensionError> {
        if items(&self.0).any(|(there, _)| there == tag) {
            return Err(ExtensionError::Repeated(tag));
        }
        let before = self.0.len();
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let all = before + PREFIX_BYTES + len;
        let len = u16::try_from(len)
            .ok()
            .filter(|_| all <= EXTENSIONS_BYTES_MAX)
            .ok_or(ExtensionError::TooLarge(all))?;
        self.0.put_u16_le(tag);
        self.0.put_u16_le(len);
        parts.iter().for_each(|part| self.0.put_slice(part));
        let checked = check(tag, &self.0[before + PREFIX_BYTES..]);
        if checked.is_err() {
            self.0.truncate(before);
        }
        checked
    }

    /// Sets the producer that sent the entry.
    ///
    /// # Errors
    /// When the name is empty or too long, or the sequence ids are not in order.
    pub fn producer(&mut self, stamp: &ProducerStamp) -> Result<(), ExtensionError> {
        let lowest = stamp.lowest_sequence_id.to_le_bytes();
        let highest = stamp.highest_sequence_id.to_le_bytes();
        self.put_parts(tag::PRODUCER, &[&lowest, &highest, &stamp.name])
    }

    /// Says which producer object sent it.
    ///
    /// # Errors
    /// When the head gets too long.
    pub fn producer_instance(&mut self, instance: ProducerInstance) -> Result<(), ExtensionError> {
        self.put(tag::PRODUCER_INSTANCE, &instance.0)
    }

    /// Says where it was replicated from.
    ///
    /// # Errors
    /// When the head gets too long.
    pub fn origin(&mut self, origin: &[u8]) -> Result<(), ExtensionError> {
        self.put(tag::ORIGIN, origin)
    }

    /// Says which transaction it belongs to.
    ///
    /// # Errors
    /// When the head gets too long.
    pub fn transaction(&mut self, transaction: &[u8]) -> Result<(), ExtensionError> {
        self.put(tag::TRANSACTION, transaction)
    }

    /// Says when its messages are to be delivered.
    ///
    /// # Errors
    /// When the times are not in order, or the head gets too long.
    pub fn deliver_at_ms(&mut self, earliest: u64, latest: u64) -> Result<(), ExtensionError> {
        let times = [earliest.to_le_bytes(), latest.to_le_bytes()];
        self.put_parts(tag::DELIVER_AT, &[&times[0], &times[1]])
    }

    /// Says the largest event time of its messages.
    ///
    /// # Errors
    /// When the head gets too long.
    pub fn event_time_ms(&mut self, largest: u64) -> Result<(), ExtensionError> {
        self.put(tag::EVENT_TIME, &largest.to_le_bytes())
    }

    /// Says which schema version its messages follow.
    ///
    /// # Errors
    /// When the head gets too long.
    pub fn schema(&mut self, version: &[u8]) -> Result<(), ExtensionError> {
        self.put(tag::SCHEMA, version)
    }

    /// The extensions.
    #[must_use]
    pub fn build(self) -> Extensions {
        Extensions(self.0.freeze())
    }
}

#[cfg(test)]
mod tests;
