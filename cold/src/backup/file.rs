//! The form of a file of a backup: a head, and a compressed message.
//!
//! ```text
//! "AQBACK\1\n" 8 · version u16 · kind u8 · codec u8 · raw_len u32 · stored_len u32 · 0 u32
//! · backup id 16 · crc64 u64 (of the 40 bytes before it and the stored ones) · stored bytes
//! ```

use aquifer_model::id::BackupId;
use aquifer_proto::shape::{self, Shaped};
use prost::Message;

use crate::format::{Crc64, Fields, FormatError, count, short};

const MAGIC: &[u8; 8] = b"AQBACK\x01\n";
const VERSION: u16 = 1;
const HEAD_BYTES: usize = 48;
const ZSTD: u8 = 1;
/// Cheap, and small enough: the files are metadata.
const LEVEL: i32 = 3;
/// Bytes of a message, at most.
const RAW_BYTES_MAX: usize = 16 << 20;
/// Bytes of a file, at most.
pub const FILE_BYTES_MAX: usize = RAW_BYTES_MAX + (1 << 20);

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What a backup begins with.
    Root,
    /// Items.
    Part,
    /// A note of an object that took the place of another; the id is the other's.
    Replaced,
}

impl Kind {
    fn number(self) -> u8 {
        match self {
            Kind::Root => 1,
            Kind::Part => 2,
            Kind::Replaced => 3,
        }
    }
}

fn checksum(head: &[u8], stored: &[u8]) -> u64 {
    let mut crc = Crc64::new();
    crc.update(head);
    crc.update(stored);
    crc.value()
}

/// The bytes of a file.
///
/// # Errors
/// `Invalid` when the message is larger than any may be.
pub fn encode(kind: Kind, backup: BackupId, raw: &[u8]) -> Result<Vec<u8>, FormatError> {
    if raw.len() > RAW_BYTES_MAX {
        return Err(FormatError::Invalid(format!(
            "a file of a backup has {RAW_BYTES_MAX} bytes at most, not {}",
            raw.len()
        )));
    }
    let stored = zstd::bulk::compress(raw, LEVEL);
    let stored = stored.map_err(|error| FormatError::Invalid(format!("zstd: {error}")))?;
    let mut out = Vec::with_capacity(HEAD_BYTES + stored.len());
    out.extend(MAGIC);
    out.extend(VERSION.to_le_bytes());
    out.extend([kind.number(), ZSTD]);
    out.extend(short(raw.len()).to_le_bytes());
    out.extend(short(stored.len()).to_le_bytes());
    out.extend(0_u32.to_le_bytes());
    out.extend(backup.0);
    out.extend(checksum(&out, &stored).to_le_bytes());
    out.extend(stored);
    Ok(out)
}

/// The message in a file of a backup.
///
/// # Errors
/// When the bytes are not such a file, or one that this build cannot read.
pub fn decode<M: Message + Default + Shaped>(
    kind: Kind,
    backup: BackupId,
    bytes: &[u8],
) -> Result<M, FormatError> {
    let mut fields = Fields::new("a file of a backup", bytes);
    if fields.take::<8>()? != *MAGIC {
        return Err(FormatError::Magic("a file of a backup"));
    }
    let (version, found, codec) = (fields.u16()?, fields.u8()?, fields.u8()?);
    let (raw_len, stored_len, _) = (count(fields.u32()?), count(fields.u32()?), fields.u32()?);
    let (id, crc) = (fields.take::<16>()?, fields.u64()?);
    let wrong = FormatError::Invalid;
    let (head, stored) = bytes.split_at(HEAD_BYTES);
    let computed = checksum(&head[..HEAD_BYTES - 8], stored);
    if crc != computed {
        return Err(FormatError::Checksum {
            what: "a file of a backup".to_owned(),
            stored: crc,
            computed,
        });
    }
    if version != VERSION || codec != ZSTD {
        let newer = format!("version {version}, codec {codec} of a file of a backup");
        return Err(FormatError::Newer(newer));
    }
    if found != kind.number() || id != backup.0 {
        return Err(wrong("it is another file of a backup".to_owned()));
    }
    if stored_len != stored.len() || raw_len > RAW_BYTES_MAX {
        return Err(wrong("its length is not what it says".to_owned()));
    }
    let raw = zstd::bulk::decompress(stored, raw_len)
        .map_err(|error| wrong(format!("it cannot be decompressed: {error}")))?;
    if raw.len() != raw_len {
        return Err(wrong("its content is not as long as it says".to_owned()));
    }
    shape::check::<M>(&raw).map_err(|error| wrong(error.to_string()))?;
    M::decode(&*raw).map_err(|error| wrong(format!("its content is no message: {error}")))
}
