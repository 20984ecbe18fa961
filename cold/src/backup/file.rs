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

#[cfg(test)]
mod tests {
    use aquifer_proto::v1;
    use bytes::Bytes;

    use super::*;

    const TIME_MS: u64 = 1_700_000_000_000;

    /// Bytes that count, so that each place of a value differs.
    fn counting(from: u8) -> [u8; 16] {
        std::array::from_fn(|at| from + u8::try_from(at).unwrap())
    }

    fn bytes(from: u8) -> Bytes {
        Bytes::copy_from_slice(&counting(from))
    }

    fn digest(of: u8) -> Bytes {
        Bytes::copy_from_slice(&aquifer_runtime::secret::sha256(&[of]))
    }

    fn root() -> v1::BackupRoot {
        v1::BackupRoot {
            required_features: 0,
            writer: "aquifer 1.0".to_owned(),
            backup_id: bytes(1),
            cluster: "north".to_owned(),
            tenant: "acme".to_owned(),
            topic: String::new(),
            created_ms: TIME_MS,
            finished_ms: TIME_MS + 9,
            start_revision: 5,
            end_revision: 8,
            last_ledger_id: 42,
            topics: 2,
            entries: 300,
            bytes: 4_567,
            object_bytes: 890,
            objects_sha256: digest(2),
            lists: vec![v1::BackupFile {
                name: "part-x".to_owned(),
                bytes: 77,
                checksum: 0x0102_0304_0506_0708,
                sha256: digest(1),
            }],
        }
    }

    fn part() -> v1::BackupItems {
        use v1::backup_item::Item;
        let location = v1::BackupLocation {
            number: 3,
            location_id: bytes(0x21),
            url: "s3://b/p".to_owned(),
            cluster: "north".to_owned(),
        };
        let items = [
            Item::Location(location),
            Item::Cursors(Bytes::from_static(b"cursor")),
        ];
        v1::BackupItems {
            items: items
                .map(|item| v1::BackupItem { item: Some(item) })
                .to_vec(),
        }
    }

    fn note() -> v1::OffloadRecord {
        v1::OffloadRecord {
            attempt: bytes(1),
            object: Some(v1::StoredObject {
                location: 1,
                name: "north/data/a".to_owned(),
                section: 2,
                size_bytes: 4_096,
                checksum: 0x0102_0304_0506_0708,
                stored_ms: TIME_MS + 1,
                index_offset: 4_000,
                claimed_revision: 12,
                damaged: false,
            }),
            copies: v1::BookieCopies::Kept.into(),
            copy_ledger_id: 0,
            imported_ms: 0,
        }
    }

    /// Compares a message with the bytes of its file, both ways.
    fn check<M>(kind: Kind, message: &M, golden: Option<&str>)
    where
        M: Message + Default + Shaped + PartialEq + std::fmt::Debug,
    {
        let golden = golden.expect("a line for each kind");
        let backup = BackupId(counting(1));
        let written = encode(kind, backup, &message.encode_to_vec()).unwrap();
        let hex: String = written.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, golden);
        let byte = |pair: &[u8]| {
            let pair = std::str::from_utf8(pair).unwrap();
            u8::from_str_radix(pair, 16).unwrap()
        };
        let stored: Vec<u8> = golden.as_bytes().chunks(2).map(byte).collect();
        assert_eq!(decode::<M>(kind, backup, &stored).unwrap(), *message);
    }

    /// The stored bytes of a file of each kind: they may never change while there are such backups.
    /// These messages are too short to be compressed, so that they do not depend on how zstd does
    /// it.
    #[test]
    fn golden_bytes_stay() {
        let mut lines = include_str!("file/golden_v1.hex").lines();
        check(Kind::Root, &root(), lines.next());
        check(Kind::Part, &part(), lines.next());
        check(Kind::Replaced, &note(), lines.next());
        assert_eq!(lines.next(), None);
    }
}
