//! Blocks: some entries with their rows, under one checksum.
//!
//! ```text
//! block = head 48 · stored bytes · zeros up to a multiple of 8
//! head  = "AQB1" · crc32c u32 · section u32 · number u32 · codec u8 · flags u8 · 0 u16
//!         · entries u32 · stored_len u32 · raw_len u32 · first_entry u64 · length_before u64
//! raw   = entries × {len u32, digest u32, lac u32} · the bytes of the entries
//! ```
//!
//! `lac` is entry − LAC, or 0 without a LAC. The checksum covers the attempt, the head
//! behind it, and the stored bytes.

use aquifer_model::checksum::{crc32c, crc32c_append};
use aquifer_model::id::{AttemptId, EntryId, LedgerId};
use aquifer_model::storage::StoredEntry;
use bytes::Bytes;

use crate::format::parts::check_crc;
use crate::format::{
    BLOCK_HEAD_BYTES, Codec, Fields, FormatError, RAW_BYTES_MAX, ROW_BYTES, count, short,
};

const MAGIC: &[u8; 4] = b"AQB1";
/// Blocks begin at multiples of this.
const ALIGNMENT: usize = 8;
/// Level of compression: more gains nothing at this size of blocks.
const LEVEL: i32 = 1;

/// The head of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockHead {
    /// Its checksum.
    pub crc: u32,
    /// Which section of the object it is of.
    pub section: u32,
    /// Its number in the object.
    pub number: u32,
    /// How its bytes are stored.
    pub codec: Codec,
    /// Its entries.
    pub entries: u32,
    /// Its stored bytes.
    pub stored_len: u32,
    /// Its raw bytes.
    pub raw_len: u32,
    /// Its first entry.
    pub first_entry: EntryId,
    /// Bytes of the ledger before its first entry.
    pub length_before: u64,
}

impl BlockHead {
    /// Reads the head of a block.
    ///
    /// # Errors
    /// When the bytes are not one, or its lengths are beyond their bounds.
    pub fn parse(bytes: &[u8]) -> Result<BlockHead, FormatError> {
        let mut fields = Fields::new("the head of a block", bytes);
        if fields.take::<4>()? != *MAGIC {
            return Err(FormatError::Magic("a block"));
        }
        let (crc, section, number) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let (codec, flags, zero) = (fields.u8()?, fields.u8()?, fields.u16()?);
        let head = BlockHead {
            crc,
            section,
            number,
            codec: Codec::of(codec)?,
            entries: fields.u32()?,
            stored_len: fields.u32()?,
            raw_len: fields.u32()?,
            first_entry: EntryId(fields.u64()?),
            length_before: fields.u64()?,
        };
        if flags != 0 || zero != 0 {
            return Err(FormatError::Newer(format!("flags {flags} of a block")));
        }
        let wrong = match () {
            () if count(head.raw_len) > RAW_BYTES_MAX => "it is larger than any is",
            () if head.stored_len > head.raw_len => "it grew when it was compressed",
            () if head.entries == 0 => "it has no entries",
            () if u64::from(head.entries) * ROW_BYTES as u64 > u64::from(head.raw_len) => {
                "it is too small for its rows"
            }
            () if head
                .first_entry
                .0
                .checked_add(head.entries.into())
                .is_none() =>
            {
                "its entries have no numbers"
            }
            () => return Ok(head),
        };
        Err(FormatError::invalid(format!("block {number}: {wrong}")))
    }

    fn fields(&self) -> [u8; BLOCK_HEAD_BYTES - 8] {
        let mut out = Vec::with_capacity(BLOCK_HEAD_BYTES - 8);
        out.extend(self.section.to_le_bytes());
        out.extend(self.number.to_le_bytes());
        out.extend([self.codec.number(), 0, 0, 0]);
        out.extend(self.entries.to_le_bytes());
        out.extend(self.stored_len.to_le_bytes());
        out.extend(self.raw_len.to_le_bytes());
        out.extend(self.first_entry.0.to_le_bytes());
        out.extend(self.length_before.to_le_bytes());
        out.try_into().expect("the fields of a head have 40 bytes")
    }

    /// Bytes of the whole block, padding included.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        block_bytes(self.stored_len)
    }
}

/// Bytes of a block with a number of stored bytes, head and padding included.
#[must_use]
pub fn block_bytes(stored_len: u32) -> usize {
    (BLOCK_HEAD_BYTES + count(stored_len)).next_multiple_of(ALIGNMENT)
}

/// A block whose checksum was right, as raw bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Its head.
    pub head: BlockHead,
    raw: Bytes,
    /// Where each entry begins in `raw`; one more than there are entries.
    starts: Vec<u32>,
}

impl Block {
    /// Reads a block of an attempt from bytes that begin with its head; what is behind is not
    /// looked at.
    ///
    /// # Errors
    /// When it is not a block of that attempt as it was written.
    pub fn decode(attempt: AttemptId, bytes: &Bytes) -> Result<Block, FormatError> {
        let head = BlockHead::parse(bytes)?;
        let end = BLOCK_HEAD_BYTES + count(head.stored_len);
        if bytes.len() < end {
            return Err(FormatError::Short {
                what: "a block",
                needed: end as u64,
                available: bytes.len() as u64,
            });
        }
        let crc = checksum(attempt, &bytes[8..end]);
        check_crc(&format!("block {}", head.number), head.crc, crc)?;
        let stored = bytes.slice(BLOCK_HEAD_BYTES..end);
        let raw = decoded(head.codec, stored, count(head.raw_len), "a block")?;
        Block::of_raw(head, raw)
    }

    fn of_raw(head: BlockHead, raw: Bytes) -> Result<Block, FormatError> {
        let wrong = |what: &str| FormatError::invalid(format!("block {}: {what}", head.number));
        let rows = count(head.entries) * ROW_BYTES;
        let mut starts = Vec::with_capacity(count(head.entries) + 1);
        let mut at = short(rows);
        starts.push(at);
        for row in raw[..rows].chunks_exact(ROW_BYTES) {
            let len = Fields::new("a row", row).u32()?;
            let next = at.checked_add(len).filter(|next| *next <= head.raw_len);
            at = next.ok_or_else(|| wrong("its entries go beyond its end"))?;
            starts.push(at);
        }
        if at != head.raw_len {
            return Err(wrong("its entries end before its end"));
        }
        Ok(Block { head, raw, starts })
    }

    /// Bytes that it takes in memory.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.raw.len() + self.starts.len() * 4 + size_of::<Block>()
    }

    /// The same with memory of its own, where it shares what it was read with.
    #[must_use]
    pub fn alone(&self) -> Block {
        Block {
            head: self.head,
            raw: match self.head.codec {
                Codec::Raw => Bytes::copy_from_slice(&self.raw),
                Codec::Zstd => self.raw.clone(),
            },
            starts: self.starts.clone(),
        }
    }

    /// Its first entry and the one behind its last.
    #[must_use]
    pub fn span(&self) -> (EntryId, EntryId) {
        let first = self.head.first_entry;
        (first, EntryId(first.0 + u64::from(self.head.entries)))
    }

    /// The bytes of an entry, by its place in the block.
    fn data(&self, at: usize) -> Bytes {
        self.raw
            .slice(count(self.starts[at])..count(self.starts[at + 1]))
    }

    /// Its entries from one on, as the bookies had them: with digests that the caller checks.
    pub fn entries_from(&self, from: EntryId) -> impl Iterator<Item = StoredEntry> + '_ {
        let skipped = from.0.saturating_sub(self.head.first_entry.0);
        let first = usize::try_from(skipped).unwrap_or(usize::MAX);
        let rows = self.raw[..count(self.starts[0])].chunks_exact(ROW_BYTES);
        let begin = self.starts[0];
        let rows = rows.enumerate().skip(first.min(self.starts.len()));
        rows.map(move |(at, row)| {
            let field = |from: usize| {
                let bytes: [u8; 4] = row[from..from + 4].try_into().expect("a row has 12 bytes");
                u32::from_le_bytes(bytes)
            };
            let entry = EntryId(self.head.first_entry.0 + at as u64);
            let behind = u64::from(self.starts[at + 1] - begin);
            StoredEntry {
                entry,
                last_add_confirmed: match field(8) {
                    0 => None,
                    lac => Some(EntryId(entry.0.wrapping_sub(lac.into()))),
                },
                ledger_length: self.head.length_before.wrapping_add(behind),
                digest: field(4),
                data: self.data(at),
            }
        })
    }

    /// Checks the digest of every entry as that of a ledger (I5).
    ///
    /// # Errors
    /// When the writer of one did not write it so.
    pub fn check_digests(&self, ledger: LedgerId) -> Result<(), FormatError> {
        let bad = self
            .entries_from(EntryId::FIRST)
            .find(|entry| !entry.is_intact(ledger));
        match bad {
            None => Ok(()),
            Some(entry) => Err(FormatError::invalid(format!(
                "entry {} of ledger {ledger} does not match its digest",
                entry.entry
            ))),
        }
    }
}

fn checksum(attempt: AttemptId, covered: &[u8]) -> u32 {
    crc32c_append(crc32c(&attempt.0), covered)
}

/// Raw bytes, exactly as many as there must be.
pub(crate) fn decoded(
    codec: Codec,
    stored: Bytes,
    raw_len: usize,
    what: &str,
) -> Result<Bytes, FormatError> {
    let wrong = |how: &str| FormatError::invalid(format!("{what} {how}"));
    let raw = match codec {
        Codec::Raw => stored,
        // The bound of what it may become was checked, and is the most that is allocated.
        Codec::Zstd => zstd::bulk::decompress(&stored, raw_len)
            .map_err(|error| wrong(&format!("cannot be decompressed: {error}")))?
            .into(),
    };
    match raw.len() == raw_len {
        true => Ok(raw),
        false => Err(wrong("has another length than its head says")),
    }
}

/// Compresses if that saves a tenth.
pub(crate) fn compressed(raw: &[u8]) -> Option<Vec<u8>> {
    let packed = zstd::bulk::compress(raw, LEVEL).ok()?;
    (packed.len() <= raw.len() - raw.len() / 10).then_some(packed)
}

/// A block that is being filled.
#[derive(Debug, Default)]
pub(crate) struct OpenBlock {
    rows: Vec<u8>,
    data: Vec<u8>,
    entries: u32,
}

impl OpenBlock {
    pub(crate) fn raw_bytes(&self) -> usize {
        self.rows.len() + self.data.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries == 0
    }

    pub(crate) fn add(&mut self, entry: &StoredEntry, lac: u32) {
        self.rows.extend(short(entry.data.len()).to_le_bytes());
        self.rows.extend(entry.digest.to_le_bytes());
        self.rows.extend(lac.to_le_bytes());
        self.data.extend(&entry.data);
        self.entries += 1;
    }

    /// Writes it behind `out`, and begins the next; answers its head. `compress` says whether that
    /// is tried.
    pub(crate) fn close(
        &mut self,
        attempt: AttemptId,
        (number, first_entry, length_before): (u32, EntryId, u64),
        compress: bool,
        out: &mut Vec<u8>,
    ) -> BlockHead {
        let mut raw = std::mem::take(&mut self.rows);
        raw.append(&mut self.data);
        let packed = compress.then(|| compressed(&raw)).flatten();
        let (codec, stored) = match &packed {
            Some(packed) => (Codec::Zstd, packed),
            None => (Codec::Raw, &raw),
        };
        let mut head = BlockHead {
            crc: 0,
            section: 0,
            number,
            codec,
            entries: std::mem::take(&mut self.entries),
            stored_len: short(stored.len()),
            raw_len: short(raw.len()),
            first_entry,
            length_before,
        };
        let fields = head.fields();
        head.crc = crc32c_append(checksum(attempt, &fields), stored);
        let begin = out.len();
        out.extend(MAGIC);
        out.extend(head.crc.to_le_bytes());
        out.extend(fields);
        out.extend(stored);
        out.resize(begin + head.block_bytes(), 0);
        // The larger of the two buffers serves the next block.
        raw.clear();
        self.data = raw;
        head
    }
}
