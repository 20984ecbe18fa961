//! The format of an object that holds a ledger, as plain code over bytes (docs/formats.md,
//! "Objects"). All integers are little-endian.
//!
//! ```text
//! object = header 64 · block* · index · footer · trailer 64
//! ```
//!
//! Invariants:
//! - A reader trusts no length: each is compared with a bound, and with what is there, before
//!   anything is allocated or cut.
//! - Every byte is under a checksum. That of a block and of the trailer covers the attempt, so a
//!   part of another object at the same place is found.
//! - An entry keeps the digest of its writer, which every reader checks again (I5).

pub mod block;
pub mod check;
pub mod parts;
pub mod tail;
pub mod writer;

use aquifer_model::limits::ENTRY_BYTES_MAX;
use crc_fast::{CrcAlgorithm, Digest};
use thiserror::Error;

/// The version of the format.
pub const VERSION: u16 = 1;
/// Bytes of the header.
pub const HEADER_BYTES: usize = 64;
/// Bytes of the trailer.
pub const TRAILER_BYTES: usize = 64;
/// Bytes of the head of a block.
pub const BLOCK_HEAD_BYTES: usize = 48;
/// Bytes of a row of a block: length, digest and LAC of an entry.
pub const ROW_BYTES: usize = 12;
/// Bytes of a block in the index.
pub const INDEX_ROW_BYTES: usize = 48;

/// Raw bytes of a block, at least and at most, as a setting.
pub const BLOCK_BYTES_MIN: usize = 64 << 10;
/// See [`BLOCK_BYTES_MIN`].
pub const BLOCK_BYTES_MAX: usize = 4 << 20;
/// Raw bytes of any block: an entry larger than the setting is a block of its own.
pub const RAW_BYTES_MAX: usize = if BLOCK_BYTES_MAX > ENTRY_BYTES_MAX + ROW_BYTES {
    BLOCK_BYTES_MAX
} else {
    ENTRY_BYTES_MAX + ROW_BYTES
};
/// Bytes of an index, before compression.
pub const INDEX_BYTES_MAX: usize = 64 << 20;
/// Bytes of a footer.
pub const FOOTER_BYTES_MAX: usize = 4 << 20;
/// Bytes of an object.
pub const OBJECT_BYTES_MAX: u64 = 5 << 40;

const _: () = assert!(RAW_BYTES_MAX < u32::MAX as usize);
const _: () = assert!(INDEX_BYTES_MAX < u32::MAX as usize);

/// How stored bytes are made of raw ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// They are the same.
    Raw,
    /// Zstandard.
    Zstd,
}

impl Codec {
    pub(crate) fn number(self) -> u8 {
        match self {
            Codec::Raw => 0,
            Codec::Zstd => 1,
        }
    }

    pub(crate) fn of(number: u8) -> Result<Codec, FormatError> {
        match number {
            0 => Ok(Codec::Raw),
            1 => Ok(Codec::Zstd),
            other => Err(FormatError::Newer(format!("codec {other}"))),
        }
    }
}

/// Whether blocks are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// None is.
    #[default]
    None,
    /// Where it saves a tenth: some blocks are tried, the others follow.
    Auto,
}

/// Bytes that are not an object of this format.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FormatError {
    /// Fewer bytes than there must be.
    #[error("{what} needs {needed} bytes, {available} are there")]
    Short {
        /// What was read.
        what: &'static str,
        /// Bytes that it needs.
        needed: u64,
        /// Bytes that there are.
        available: u64,
    },
    /// A magic number is not there.
    #[error("{0} does not begin or end as one")]
    Magic(&'static str),
    /// A checksum does not match.
    #[error("the checksum of {what} is {stored:x}, its bytes say {computed:x}")]
    Checksum {
        /// Of what.
        what: String,
        /// The stored one.
        stored: u64,
        /// That of the bytes.
        computed: u64,
    },
    /// A newer build has written it, or it is encrypted: this one cannot read it.
    #[error("it needs a newer version of aquifer: {0}")]
    Newer(String),
    /// Its parts contradict each other, or go beyond a bound.
    #[error("{0}")]
    Invalid(String),
}

impl FormatError {
    pub(crate) fn invalid(what: impl Into<String>) -> FormatError {
        FormatError::Invalid(what.into())
    }
}

/// What a ledger is to be for an object to be its copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// The attempt that wrote the object.
    pub attempt: aquifer_model::id::AttemptId,
    /// The ledger.
    pub ledger: aquifer_model::id::LedgerId,
    /// Its creation token (H14).
    pub token: aquifer_model::id::CreationToken,
    /// Its last entry.
    pub last_entry: aquifer_model::id::EntryId,
    /// Its bytes.
    pub length: u64,
}

/// CRC-64/NVME of bytes that come little by little.
pub(crate) struct Crc64(Digest);

impl Crc64 {
    pub(crate) fn new() -> Crc64 {
        Crc64(Digest::new(CrcAlgorithm::Crc64Nvme))
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0.finalize()
    }
}

/// A stored length in bytes as the machine counts them.
pub(crate) fn count(bytes: u32) -> usize {
    // At least 32 bits everywhere this is built for.
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// A length that a bound keeps below 2^32.
pub(crate) fn short(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("lengths in blocks, indexes and footers are bounded far below 2^32")
}

/// Reads fields one after the other; every read is checked.
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(what: &'static str, bytes: &'a [u8]) -> Fields<'a> {
        Fields { rest: bytes, what }
    }

    pub(crate) fn take<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let short = FormatError::Short {
            what: self.what,
            needed: N as u64,
            available: self.rest.len() as u64,
        };
        let (first, rest) = self.rest.split_first_chunk::<N>().ok_or(short)?;
        self.rest = rest;
        Ok(*first)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, FormatError> {
        self.take::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, FormatError> {
        self.take().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, FormatError> {
        self.take().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, FormatError> {
        self.take().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
pub(crate) mod tests;
