//! The broker's head of an entry, written in front of the body that a client sent.
//!
//! An entry is `head || body`. The broker adds the head and never touches the body, so both
//! travel as shared [`Bytes`] from socket to journal. The head alone is enough for everything that
//! the broker does later: recovery and deduplication never read a body. Layout, little-endian:
//!
//! ```text
//!  0  4  magic "AQE1"
//!  4  4  CRC32C of bytes 8..head_len
//!  8  2  head_len: 48 and the extensions
//! 10  2  format of the body (`format.rs`)
//! 12  4  message count
//! 16  8  base index: the index of the first message
//! 24  8  broker time, ms since the Unix epoch; never less than the entry before (H13)
//! 32  8  owner epoch of the broker that appended it
//! 40  8  flags (`EntryFlags`)
//! 48     extensions (`extensions.rs`): (tag u16, length u16, value)*; unknown ones are kept
//! ```

use bytes::{BufMut, Bytes, BytesMut};
use thiserror::Error;

use crate::bytes_at::{u16_at, u32_at, u64_at};
use crate::checksum;
use crate::extensions::Extensions;
use crate::id::{Index, OwnerEpoch};

/// Bytes of a head without extensions.
pub const HEAD_BYTES: usize = 48;
/// Largest head, extensions included.
pub const HEAD_BYTES_MAX: usize = 4096;
const MAGIC: &[u8; 4] = b"AQE1";

/// What is special about an entry. Bits that this version does not know are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct EntryFlags(pub u64);

impl EntryFlags {
    /// The entry takes its indexes and is never delivered.
    pub const CONTROL: EntryFlags = EntryFlags(1);
    /// The indexes of its messages are listed and have gaps: a compacted log.
    pub const SPARSE: EntryFlags = EntryFlags(2);
    /// Only some messages of the body are meant, which an extension lists.
    pub const PARTS: EntryFlags = EntryFlags(4);

    /// Whether the entry is for no client, whatever else is said of it.
    #[must_use]
    pub const fn is_control(self) -> bool {
        self.has(EntryFlags::CONTROL)
    }

    /// Whether all bits of `flags` are set.
    #[must_use]
    pub const fn has(self, flags: EntryFlags) -> bool {
        self.0 & flags.0 == flags.0
    }
}

/// What the broker says about an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryHead {
    /// Format of the body, as [`crate::format`] lists them; later versions know more.
    pub format: u16,
    /// Messages in the entry, at least 1.
    pub message_count: u32,
    /// Index of the first message.
    pub base_index: Index,
    /// When the broker accepted it, ms since the Unix epoch, monotonic within a topic.
    pub broker_time_ms: u64,
    /// Epoch of the owner that appended it.
    pub owner_epoch: OwnerEpoch,
    /// What is special about it.
    pub flags: EntryFlags,
    /// What else is known of it without its body.
    pub extensions: Extensions,
}

/// An entry in memory: both parts shared, never joined on the hot path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct EntryData {
    /// The broker's head, or empty where the whole entry is in `body`.
    pub head: Bytes,
    /// What the client sent, or the whole entry as it was read from storage.
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
    /// Extensions that contradict themselves.
    #[error("entry head has a damaged extension: {0}")]
    Extension(#[from] crate::extensions::ExtensionError),
}

impl EntryHead {
    /// The stored bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let head_len = HEAD_BYTES + self.extensions.len();
        let mut out = BytesMut::with_capacity(head_len);
        out.put_slice(MAGIC);
        out.put_u32_le(0);
        // Never cut: extensions are at most EXTENSIONS_BYTES_MAX long.
        out.put_u16_le(u16::try_from(head_len).unwrap_or(u16::MAX));
        out.put_u16_le(self.format);
        out.put_u32_le(self.message_count);
        out.put_u64_le(self.base_index.0);
        out.put_u64_le(self.broker_time_ms);
        out.put_u64_le(self.owner_epoch.0);
        out.put_u64_le(self.flags.0);
        out.put_slice(self.extensions.as_bytes());
        let checksum = checksum::crc32c(&out[8..]);
        out[4..8].copy_from_slice(&checksum.to_le_bytes());
        out.freeze()
    }

    /// Bytes of the stored head.
    #[must_use]
    pub fn len(&self) -> usize {
        HEAD_BYTES + self.extensions.len()
    }

    /// Never: a head has its fixed fields.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
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
            flags: EntryFlags(u64_at(bytes, 40)),
            // A copy of its own: what keeps a head keeps no body with it.
            extensions: Extensions::parse(Bytes::copy_from_slice(&bytes[HEAD_BYTES..head_len]))?,
        };
        Ok((head, head_len))
    }

    /// The index after the last message of the entry.
    #[must_use]
    pub fn end_index(&self) -> Index {
        self.base_index.plus(u64::from(self.message_count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extensions::ExtensionsBuilder;
    use crate::format::FORMAT_NATIVE;
    use proptest::prelude::*;

    fn head(extensions: Extensions) -> EntryHead {
        EntryHead {
            format: FORMAT_NATIVE,
            message_count: 3,
            base_index: Index(1 << 40),
            broker_time_ms: 1_700_000_000_000,
            owner_epoch: OwnerEpoch(9),
            flags: EntryFlags(EntryFlags::PARTS.0 | 1 << 50),
            extensions,
        }
    }

    fn later() -> Extensions {
        let mut some = ExtensionsBuilder::default();
        some.put(60_000, b"of a later version").unwrap();
        some.build()
    }

    #[test]
    fn round_trips_with_flags_and_extensions_of_a_later_version() {
        for extensions in [Extensions::default(), later()] {
            let head = head(extensions);
            let bytes = head.encode();
            assert_eq!(bytes.len(), head.len());
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

    /// The stored bytes: they may never change while topics hold them.
    #[test]
    fn golden_bytes_stay() {
        let mut some = ExtensionsBuilder::default();
        let stamp = crate::extensions::ProducerStamp {
            name: Bytes::from_static(b"p"),
            lowest_sequence_id: 7,
            highest_sequence_id: 9,
        };
        some.producer(&stamp).unwrap();
        let bytes = head(some.build()).encode();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("entry/golden_v1.hex").trim());
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = head(later()).encode();
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(EntryHead::decode(&bad).is_err(), "bit {bit}");
        }
    }

    proptest! {
        /// What this version does not know, flags and tags, comes out as it went in, and the body
        /// begins behind it.
        #[test]
        fn heads_of_later_versions_survive_a_round_trip(
            numbers in any::<[u64; 4]>(),
            format in any::<u16>(),
            message_count in 1u32..,
            unknown in proptest::collection::btree_map(
                8u16.., proptest::collection::vec(any::<u8>(), 0..40), 0..8),
            event_time in proptest::option::of(any::<u64>()),
            body in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            let mut some = ExtensionsBuilder::default();
            for (tag, value) in &unknown {
                some.put(*tag, value).unwrap();
            }
            if let Some(time) = event_time {
                some.event_time_ms(time).unwrap();
            }
            let [base_index, broker_time_ms, owner_epoch, flags] = numbers;
            let head = EntryHead {
                format,
                message_count,
                base_index: Index(base_index),
                broker_time_ms,
                owner_epoch: OwnerEpoch(owner_epoch),
                flags: EntryFlags(flags),
                extensions: some.build(),
            };
            let bytes = head.encode();
            prop_assert_eq!(bytes.len(), head.len());
            let entry = EntryData {
                head: Bytes::new(),
                body: [&bytes[..], &body].concat().into(),
            };
            let (decoded, rest) = entry.split().unwrap();
            prop_assert_eq!(&decoded, &head);
            prop_assert_eq!(&rest[..], &body[..]);
            prop_assert_eq!(decoded.encode(), bytes);
            for (tag, value) in unknown {
                prop_assert_eq!(decoded.extensions.get(tag), Some(Bytes::from(value)));
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = EntryHead::decode(&bytes);
        }
    }
}
