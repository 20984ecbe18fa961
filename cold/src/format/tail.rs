//! The end of an object: index, footer, trailer. With it a reader finds every entry.

use aquifer_model::checksum::crc32c;
use aquifer_model::id::{AttemptId, EntryId, Index, LedgerId, LocationId};
use aquifer_proto::v1;
use bytes::Bytes;
use prost::Message;

use crate::format::block::{block_bytes, compressed, decoded};
use crate::format::parts::{Trailer, check_crc};
use crate::format::{
    Codec, Expected, Fields, FormatError, HEADER_BYTES, INDEX_ROW_BYTES, RAW_BYTES_MAX,
    TRAILER_BYTES, count, short,
};

/// Rows from which on an index is compressed.
const COMPRESSED_ROWS_MIN: usize = 64;

/// A block, as the index has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexRow {
    /// Where it begins in the object.
    pub offset: u64,
    /// Its stored bytes.
    pub stored_len: u32,
    /// Its raw bytes.
    pub raw_len: u32,
    /// Its entries.
    pub entries: u32,
    /// Its checksum.
    pub crc: u32,
    /// Its first entry.
    pub first_entry: EntryId,
    /// The index of its first message.
    pub first_index: Index,
    /// The broker time of its first entry.
    pub first_time_ms: u64,
}

impl IndexRow {
    /// Where the block ends, padding included.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset + block_bytes(self.stored_len) as u64
    }
}

/// The end of an object, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Tail {
    /// Where index and footer are.
    pub trailer: Trailer,
    /// What the object is.
    pub footer: v1::ObjectFooter,
    /// The ledger that it holds.
    pub section: v1::ObjectSection,
    /// The attempt that wrote it.
    pub attempt: AttemptId,
    /// Its blocks, in order; at least one.
    pub blocks: Vec<IndexRow>,
}

/// The index as it is stored: columns, compressed where that saves something.
pub(crate) fn encode_index(rows: &[IndexRow]) -> (Codec, Vec<u8>, u32) {
    let mut raw = Vec::with_capacity(rows.len() * INDEX_ROW_BYTES);
    let wide = |column: fn(&IndexRow) -> u64, raw: &mut Vec<u8>| {
        for row in rows {
            raw.extend(column(row).to_le_bytes());
        }
    };
    let narrow = |column: fn(&IndexRow) -> u32, raw: &mut Vec<u8>| {
        for row in rows {
            raw.extend(column(row).to_le_bytes());
        }
    };
    wide(|row| row.offset, &mut raw);
    narrow(|row| row.stored_len, &mut raw);
    narrow(|row| row.raw_len, &mut raw);
    narrow(|row| row.entries, &mut raw);
    narrow(|row| row.crc, &mut raw);
    wide(|row| row.first_entry.0, &mut raw);
    wide(|row| row.first_index.0, &mut raw);
    wide(|row| row.first_time_ms, &mut raw);
    let raw_len = short(raw.len());
    // A few rows gain nothing.
    let packed = (rows.len() >= COMPRESSED_ROWS_MIN).then(|| compressed(&raw));
    match packed.flatten() {
        Some(packed) => (Codec::Zstd, packed, raw_len),
        None => (Codec::Raw, raw, raw_len),
    }
}

fn parse_index(raw: &[u8]) -> Result<Vec<IndexRow>, FormatError> {
    if raw.is_empty() || !raw.len().is_multiple_of(INDEX_ROW_BYTES) {
        return Err(FormatError::invalid("the index has half a row, or none"));
    }
    let rows = raw.len() / INDEX_ROW_BYTES;
    let mut rest = raw;
    let mut column = |width: usize| {
        let (column, behind) = rest.split_at(rows * width);
        rest = behind;
        column
    };
    let columns = [8, 4, 4, 4, 4, 8, 8, 8].map(&mut column);
    let wide = |which: usize, at: usize| Fields::new("the index", &columns[which][at * 8..]).u64();
    let narrow =
        |which: usize, at: usize| Fields::new("the index", &columns[which][at * 4..]).u32();
    let row = |at: usize| {
        Ok(IndexRow {
            offset: wide(0, at)?,
            stored_len: narrow(1, at)?,
            raw_len: narrow(2, at)?,
            entries: narrow(3, at)?,
            crc: narrow(4, at)?,
            first_entry: EntryId(wide(5, at)?),
            first_index: Index(wide(6, at)?),
            first_time_ms: wide(7, at)?,
        })
    };
    (0..rows).map(row).collect()
}

impl Tail {
    /// Where the bytes begin that [`Tail::parse`] wants, by some last bytes of the object.
    ///
    /// # Errors
    /// When these do not end in a trailer.
    pub fn begins_at(last: &[u8], object_len: u64) -> Result<u64, FormatError> {
        Ok(Trailer::parse(last, object_len)?.index_offset)
    }

    /// Reads the end of an object of a length: its bytes from the index on.
    ///
    /// # Errors
    /// When they are not the end of an object that this build can read.
    pub fn parse(bytes: &Bytes, object_len: u64) -> Result<Tail, FormatError> {
        let trailer = Trailer::parse(bytes, object_len)?;
        let (index_len, footer_len) = (count(trailer.index_len), count(trailer.footer_len));
        let needed = index_len + footer_len + TRAILER_BYTES;
        if bytes.len() != needed {
            return Err(FormatError::Short {
                what: "the end of an object",
                needed: needed as u64,
                available: bytes.len() as u64,
            });
        }
        let index = bytes.slice(..index_len);
        let footer = &bytes[index_len..index_len + footer_len];
        check_crc("the index", trailer.index_crc, crc32c(&index))?;
        check_crc("the footer", trailer.footer_crc, crc32c(footer))?;
        let footer = v1::ObjectFooter::decode(footer);
        let footer =
            footer.map_err(|error| FormatError::invalid(format!("the footer: {error}")))?;
        if footer.required_features != 0 {
            let bits = footer.required_features;
            return Err(FormatError::Newer(format!("features {bits:#x}")));
        }
        let attempt = AttemptId::try_from(footer.attempt.as_ref());
        let attempt = attempt.map_err(|error| FormatError::invalid(error.to_string()))?;
        Trailer::check_attempt(bytes, attempt)?;
        let [section] = footer.sections.as_slice() else {
            return Err(FormatError::Newer(format!(
                "an object of {} ledgers",
                footer.sections.len()
            )));
        };
        let raw_len = count(trailer.index_raw);
        let raw = decoded(Codec::of(trailer.codec)?, index, raw_len, "the index")?;
        let blocks = parse_index(&raw)?;
        let tail = Tail {
            section: section.clone(),
            trailer,
            attempt,
            blocks,
            footer,
        };
        tail.check_blocks()?;
        Ok(tail)
    }

    /// Blocks fill the object between header and index, and have the entries of the section.
    fn check_blocks(&self) -> Result<(), FormatError> {
        let wrong = |at: usize, what: &str| {
            Err(FormatError::invalid(format!(
                "the index: block {at} {what}"
            )))
        };
        let section = &self.section;
        let (mut offset, mut entry) = (HEADER_BYTES as u64, 0_u64);
        let (mut index, mut time) = (section.first_index, section.first_time_ms);
        for (at, row) in self.blocks.iter().enumerate() {
            match () {
                () if row.offset != offset => return wrong(at, "begins elsewhere"),
                () if count(row.raw_len) > RAW_BYTES_MAX => return wrong(at, "is too large"),
                () if row.stored_len > row.raw_len => return wrong(at, "has grown"),
                () if row.first_entry.0 != entry => return wrong(at, "has other entries"),
                () if row.entries == 0 => return wrong(at, "has no entries"),
                () if row.first_index.0 < index => return wrong(at, "goes back in index"),
                () if row.first_time_ms < time => return wrong(at, "goes back in time"),
                () => {}
            }
            offset = row.end();
            entry = entry.saturating_add(row.entries.into());
            (index, time) = (row.first_index.0, row.first_time_ms);
        }
        if offset != self.trailer.index_offset {
            return wrong(self.blocks.len() - 1, "does not end where the index begins");
        }
        if Some(entry) != section.last_entry_id.checked_add(1)
            || count(section.blocks) != self.blocks.len()
            || section.first_block != 0
            || index > section.end_index
        {
            return wrong(self.blocks.len() - 1, "is not the last of its ledger");
        }
        Ok(())
    }

    /// The ledger that it holds.
    #[must_use]
    pub fn ledger(&self) -> LedgerId {
        LedgerId(self.section.ledger_id)
    }

    /// The location for which it was written, if the footer has one.
    #[must_use]
    pub fn location(&self) -> Option<LocationId> {
        LocationId::try_from(self.footer.location_id.as_ref()).ok()
    }

    /// Whether it is what a ledger's record says (H14, H22).
    ///
    /// # Errors
    /// When it is another attempt's, another ledger's, or another part of it.
    pub fn check_expected(&self, expected: &Expected) -> Result<(), FormatError> {
        let section = &self.section;
        let what = match () {
            () if self.attempt != expected.attempt => "it is of another attempt",
            () if section.ledger_id != expected.ledger.0 => "it holds another ledger",
            () if section.creation_token.as_ref() != expected.token.0 => {
                "it holds another ledger with the same id"
            }
            () if section.last_entry_id != expected.last_entry.0 => "it ends at another entry",
            () if section.length_bytes != expected.length => "it has another length",
            () => return Ok(()),
        };
        Err(FormatError::invalid(what))
    }

    /// The block that has an entry.
    #[must_use]
    pub fn block_of(&self, entry: EntryId) -> Option<usize> {
        if entry.0 > self.section.last_entry_id {
            return None;
        }
        let behind = self.blocks.partition_point(|row| row.first_entry <= entry);
        behind.checked_sub(1)
    }

    /// The entries among which the last one is whose index is at most `index`, for a caller that
    /// knows that there is one: those of one block.
    #[must_use]
    pub fn entries_at_index(&self, index: Index) -> std::ops::Range<u64> {
        self.entries_where(|row| row.first_index <= index)
    }

    /// The same for the last one whose time is before `ms`.
    #[must_use]
    pub fn entries_before_time(&self, ms: u64) -> std::ops::Range<u64> {
        self.entries_where(|row| row.first_time_ms < ms)
    }

    fn entries_where(&self, before: impl Fn(&IndexRow) -> bool) -> std::ops::Range<u64> {
        let behind = self.blocks.partition_point(before);
        let row = &self.blocks[behind.saturating_sub(1)];
        row.first_entry.0..row.first_entry.0 + u64::from(row.entries)
    }

    /// Bytes that it takes in memory.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.blocks.len() * size_of::<IndexRow>() + count(self.trailer.footer_len) * 2 + 512
    }
}
