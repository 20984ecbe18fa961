//! The broker's head of an entry, written in front of the batch that a producer sent.
//!
//! An entry is `head || batch`. The broker adds the head and never touches the batch, so both
//! travel as shared [`Bytes`] from socket to journal (design.md section 5). Layout, little-endian:
//!
//! ```text
//!  0  4  magic "AQE1"
//!  4  4  CRC32C of bytes 8..head_len
//!  8  2  head_len, 48 in this version; longer heads keep their unknown tail
//! 10  2  payload format of the body (1 = native batch)
//! 12  4  message count
//! 16  8  base index: the index of the first message
//! 24  8  broker time, ms since the Unix epoch; never less than the entry before (H13)
//! 32  8  owner epoch of the broker that appended it
//! 40  8  reserved, 0
//! ```

use bytes::{BufMut, Bytes, BytesMut};
use thiserror::Error;

use crate::checksum;
use crate::id::{Index, OwnerEpoch};

/// Bytes of a head of this version.
pub const HEAD_BYTES: usize = 48;
/// Largest head that is accepted from a later version.
pub const HEAD_BYTES_MAX: usize = 4096;
const MAGIC: &[u8; 4] = b"AQE1";

/// Payload format of a native batch.
pub const FORMAT_NATIVE: u16 = 1;
/// Payload format of a record of the cursor log.
pub const FORMAT_CURSOR: u16 = 2;

/// What the broker says about an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryHead {
    /// Format of the body: [`FORMAT_NATIVE`], or one that a later version knows.
    pub format: u16,
    /// Messages in the entry, at least 1.
    pub message_count: u32,
    /// Index of the first message.
    pub base_index: Index,
    /// When the broker accepted it, ms since the Unix epoch, monotonic within a topic.
    pub broker_time_ms: u64,
    /// Epoch of the owner that appended it.
    pub owner_epoch: OwnerEpoch,
    /// Bytes that a later version added; kept as they came.
    pub unknown: Bytes,
}

/// An entry on its way: both parts shared, never joined on the hot path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct EntryData {
    /// The broker's head, or empty where the whole entry is in `body`.
    pub head: Bytes,
    /// The producer's batch, or the whole entry as it was read from storage.
    pub body: Bytes,
}

impl EntryData {
    /// Bytes of the whole entry.
    #[must_use]
    pub fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }

    /// Whether there are no bytes at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Parses the head and returns it with the body that follows it.
    ///
    /// # Errors
    /// When the bytes are not an entry of a known layout.
    pub fn split(&self) -> Result<(EntryHead, Bytes), EntryError> {
        if self.head.is_empty() {
            let (head, head_len) = EntryHead::decode(&self.body)?;
            return Ok((head, self.body.slice(head_len..)));
        }
        let (head, head_len) = EntryHead::decode(&self.head)?;
        if head_len != self.head.len() {
            return Err(EntryError::Length {
                head_len,
                available: self.head.len(),
            });
        }
        Ok((head, self.body.clone()))
    }
}

/// Bytes that are not an entry.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EntryError {
    /// Fewer bytes than a head has.
    #[error("an entry needs {HEAD_BYTES} bytes of head, got {0}")]
    Short(usize),
    /// Another magic number.
    #[error("not an entry: magic {0:02x?}")]
    Magic([u8; 4]),
    /// A head length that does not fit.
    #[error("entry head says {head_len} bytes, {available} are there")]
    Length {
        /// What the head says.
        head_len: usize,
        /// What there is.
        available: usize,
    },
    /// The checksum does not match.
    #[error("entry head checksum is {stored:08x}, bytes say {computed:08x}")]
    Checksum {
        /// The stored checksum.
        stored: u32,
        /// The checksum of what was read.
        computed: u32,
    },
    /// No messages.
    #[error("entry has no messages")]
    Empty,
}

impl EntryHead {
    /// The stored bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let head_len = HEAD_BYTES + self.unknown.len().min(HEAD_BYTES_MAX - HEAD_BYTES);
        let mut out = BytesMut::with_capacity(head_len);
        out.put_slice(MAGIC);
        out.put_u32_le(0);
        out.put_u16_le(u16::try_from(head_len).unwrap_or(u16::MAX));
        out.put_u16_le(self.format);
        out.put_u32_le(self.message_count);
        out.put_u64_le(self.base_index.0);
        out.put_u64_le(self.broker_time_ms);
        out.put_u64_le(self.owner_epoch.0);
        out.put_u64_le(0);
        out.put_slice(&self.unknown[..head_len - HEAD_BYTES]);
        let checksum = checksum::crc32c(&out[8..]);
        out[4..8].copy_from_slice(&checksum.to_le_bytes());
        out.freeze()
    }

    /// Reads a head from the beginning of `bytes`; returns it and its length.
    ///
    /// # Errors
    /// When the bytes are not an entry's head.
    pub fn decode(bytes: &[u8]) -> Result<(EntryHead, usize), EntryError> {
        if bytes.len() < HEAD_BYTES {
            return Err(EntryError::Short(bytes.len()));
        }
        if &bytes[..4] != MAGIC {
            return Err(EntryError::Magic([bytes[0], bytes[1], bytes[2], bytes[3]]));
        }
        let head_len = usize::from(u16_at(bytes, 8));
        if !(HEAD_BYTES..=HEAD_BYTES_MAX).contains(&head_len) || head_len > bytes.len() {
            return Err(EntryError::Length {
                head_len,
                available: bytes.len(),
            });
        }
        let (stored, computed) = (u32_at(bytes, 4), checksum::crc32c(&bytes[8..head_len]));
        if stored != computed {
            return Err(EntryError::Checksum { stored, computed });
        }
        let message_count = u32_at(bytes, 12);
        if message_count == 0 {
            return Err(EntryError::Empty);
        }
        let head = EntryHead {
            format: u16_at(bytes, 10),
            message_count,
            base_index: Index(u64_at(bytes, 16)),
            broker_time_ms: u64_at(bytes, 24),
            owner_epoch: OwnerEpoch(u64_at(bytes, 32)),
            unknown: Bytes::copy_from_slice(&bytes[HEAD_BYTES..head_len]),
        };
        Ok((head, head_len))
    }

    /// The index after the last message of the entry.
    #[must_use]
    pub fn end_index(&self) -> Index {
        self.base_index.plus(u64::from(self.message_count))
    }
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head(unknown: &'static [u8]) -> EntryHead {
        EntryHead {
            format: FORMAT_NATIVE,
            message_count: 3,
            base_index: Index(1 << 40),
            broker_time_ms: 1_700_000_000_000,
            owner_epoch: OwnerEpoch(9),
            unknown: Bytes::from_static(unknown),
        }
    }

    #[test]
    fn round_trips_with_fields_of_a_later_version() {
        for unknown in [&b""[..], b"later field"] {
            let head = head(unknown);
            let bytes = head.encode();
            assert_eq!(EntryHead::decode(&bytes), Ok((head.clone(), bytes.len())));
            let split = EntryData {
                head: bytes.clone(),
                body: Bytes::from_static(b"body"),
            };
            let joined = EntryData {
                head: Bytes::new(),
                body: [&bytes[..], b"body"].concat().into(),
            };
            assert_eq!(split.split(), joined.split());
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = head(b"x").encode();
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(EntryHead::decode(&bad).is_err(), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = EntryHead::decode(&bytes);
        }
    }
}
