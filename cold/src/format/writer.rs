//! Writing an object: entries go in, bytes come out, in parts of the size that the caller wants.

use std::collections::BTreeSet;

use aquifer_model::checksum::crc32c;
use aquifer_model::entry::EntryHead;
use aquifer_model::id::{AttemptId, EntryId, LocationId};
use aquifer_model::storage::StoredEntry;
use aquifer_proto::v1;
use bytes::Bytes;
use prost::Message;

use crate::format::block::OpenBlock;
use crate::format::parts::{Header, Trailer};
use crate::format::tail::{IndexRow, encode_index};
use crate::format::{
    BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, Compression, Crc64, FOOTER_BYTES_MAX, FormatError,
    INDEX_BYTES_MAX, INDEX_ROW_BYTES, RAW_BYTES_MAX, ROW_BYTES, TRAILER_BYTES, short,
};

/// With compression by trial, every block whose number is a multiple of this is tried.
const TRIAL_EVERY: u32 = 16;

/// What an object is to be.
#[derive(Debug, Clone)]
pub struct ObjectSpec {
    /// The attempt.
    pub attempt: AttemptId,
    /// The location.
    pub location: LocationId,
    /// The cluster.
    pub cluster: String,
    /// When the attempt began, in milliseconds since 1970.
    pub created_ms: u64,
    /// The program that writes, and its version.
    pub writer: String,
    /// The ledger: id, token, home, topic, quorum. The writer fills in the figures.
    pub section: v1::ObjectSection,
    /// Raw bytes of a block.
    pub block_bytes: usize,
    /// Whether blocks are compressed.
    pub compression: Compression,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// The length of the object.
    pub bytes: u64,
    /// Where its index begins.
    pub index_offset: u64,
    /// CRC-64/NVME of everything before the trailer.
    pub body_crc64: u64,
}

/// An object that is being written.
pub struct ObjectWriter {
    spec: ObjectSpec,
    /// What was not taken yet.
    out: Vec<u8>,
    /// Bytes of the object up to the end of `out`.
    offset: u64,
    body: Crc64,
    chain: Crc64,
    block: OpenBlock,
    /// The row of the block that is being filled, as far as it is known.
    begun: Option<IndexRow>,
    length_before: u64,
    blocks: Vec<IndexRow>,
    next_entry: u64,
    formats: BTreeSet<u16>,
    compresses: bool,
}

impl ObjectWriter {
    /// Begins an object.
    #[must_use]
    pub fn new(spec: ObjectSpec) -> ObjectWriter {
        let header = Header {
            attempt: spec.attempt,
            location: spec.location,
            created_ms: spec.created_ms,
        };
        let mut writer = ObjectWriter {
            out: Vec::new(),
            offset: 0,
            body: Crc64::new(),
            chain: Crc64::new(),
            block: OpenBlock::default(),
            begun: None,
            length_before: 0,
            blocks: Vec::new(),
            next_entry: 0,
            formats: BTreeSet::new(),
            compresses: false,
            spec,
        };
        writer.out.extend(header.encode());
        writer.note(0);
        writer
    }

    /// Counts what was written into `out` from there on.
    fn note(&mut self, from: usize) {
        self.body.update(&self.out[from..]);
        self.offset += (self.out.len() - from) as u64;
    }

    /// Adds the next entry of the ledger.
    ///
    /// # Errors
    /// When it is not the next, not as its writer wrote it (I5), or no entry of a topic.
    pub fn add(&mut self, entry: &StoredEntry) -> Result<(), FormatError> {
        let wrong = |what: &str| FormatError::invalid(format!("entry {}: {what}", entry.entry));
        if entry.entry.0 != self.next_entry {
            return Err(wrong("it is not the next of its ledger"));
        }
        let ledger = aquifer_model::id::LedgerId(self.spec.section.ledger_id);
        if !entry.is_intact(ledger) {
            return Err(wrong("it does not match its digest"));
        }
        let length = self.spec.section.length_bytes + entry.data.len() as u64;
        if entry.ledger_length != length {
            return Err(wrong("the ledger has another length before it"));
        }
        let lac = match entry.last_add_confirmed {
            None => Some(0),
            Some(lac) => entry.entry.0.checked_sub(lac.0).filter(|lac| *lac > 0),
        };
        let lac = lac.and_then(|lac| u32::try_from(lac).ok());
        let lac = lac.ok_or_else(|| wrong("it carries a LAC that it cannot"))?;
        let raw = ROW_BYTES + entry.data.len();
        if raw > RAW_BYTES_MAX {
            return Err(wrong("it is larger than an entry is"));
        }
        let (head, _) = EntryHead::decode(&entry.data).map_err(|e| wrong(&e.to_string()))?;
        let block_bytes = self
            .spec
            .block_bytes
            .clamp(BLOCK_BYTES_MIN, BLOCK_BYTES_MAX);
        if self.block.raw_bytes() + raw > block_bytes {
            self.close_block()?;
        }
        self.begun.get_or_insert(IndexRow {
            offset: self.offset,
            stored_len: 0,
            raw_len: 0,
            entries: 0,
            crc: 0,
            first_entry: entry.entry,
            first_index: head.base_index,
            first_time_ms: head.broker_time_ms,
        });
        self.block.add(entry, lac);
        self.chain.update(&entry.entry.0.to_le_bytes());
        self.chain.update(&short(entry.data.len()).to_le_bytes());
        self.chain.update(&entry.digest.to_le_bytes());
        self.formats.insert(head.format);
        let section = &mut self.spec.section;
        if self.next_entry == 0 {
            section.first_index = head.base_index.0;
            section.first_time_ms = head.broker_time_ms;
        }
        section.length_bytes = length;
        section.last_entry_id = entry.entry.0;
        section.messages += u64::from(head.message_count);
        section.end_index = head.end_index().0;
        section.last_time_ms = head.broker_time_ms;
        self.next_entry += 1;
        Ok(())
    }

    fn close_block(&mut self) -> Result<(), FormatError> {
        let Some(row) = self.begun.take().filter(|_| !self.block.is_empty()) else {
            return Ok(());
        };
        if (self.blocks.len() + 1) * INDEX_ROW_BYTES > INDEX_BYTES_MAX {
            return Err(FormatError::invalid(
                "the ledger has more blocks than an index takes: give larger blocks",
            ));
        }
        let number = short(self.blocks.len());
        let is_trial = number.is_multiple_of(TRIAL_EVERY);
        let tries = self.spec.compression == Compression::Auto && (is_trial || self.compresses);
        let place = (number, row.first_entry, self.length_before);
        let from = self.out.len();
        let attempt = self.spec.attempt;
        let head = self.block.close(attempt, place, tries, &mut self.out);
        if is_trial {
            self.compresses = head.codec == crate::format::Codec::Zstd;
        }
        self.note(from);
        self.length_before = self.spec.section.length_bytes;
        self.spec.section.raw_bytes += u64::from(head.raw_len);
        self.spec.section.stored_bytes += u64::from(head.stored_len);
        self.blocks.push(IndexRow {
            stored_len: head.stored_len,
            raw_len: head.raw_len,
            entries: head.entries,
            crc: head.crc,
            ..row
        });
        Ok(())
    }

    /// Takes the next `bytes` bytes of the object, if they are there.
    pub fn take(&mut self, bytes: usize) -> Option<Bytes> {
        if bytes == 0 || self.out.len() < bytes {
            return None;
        }
        // As large as the next part will be: growing into it would copy it once more.
        let mut next = Vec::with_capacity(self.out.len());
        next.extend_from_slice(&self.out[bytes..]);
        self.out.truncate(bytes);
        Some(std::mem::replace(&mut self.out, next).into())
    }

    /// Bytes of the object that were not taken yet.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.out.len()
    }

    /// Ends the object behind its last entry: the bytes that were not taken, and what it is.
    ///
    /// # Errors
    /// When it has no entries, or more blocks than an index takes.
    pub fn finish(mut self) -> Result<(Bytes, Written), FormatError> {
        if self.next_entry == 0 {
            return Err(FormatError::invalid(
                "a ledger without entries has no object",
            ));
        }
        self.close_block()?;
        let index_offset = self.offset;
        let from = self.out.len();
        let (codec, index, index_raw) = encode_index(&self.blocks);
        self.out.extend(&index);
        let footer = self.footer().encode_to_vec();
        if footer.len() > FOOTER_BYTES_MAX {
            return Err(FormatError::invalid("the footer is larger than any is"));
        }
        self.out.extend(&footer);
        self.note(from);
        let body_crc64 = self.body.value();
        let bytes = self.offset + TRAILER_BYTES as u64;
        let trailer = Trailer {
            index_offset,
            index_len: short(index.len()),
            index_raw,
            index_crc: crc32c(&index),
            footer_len: short(footer.len()),
            footer_crc: crc32c(&footer),
            object_len: bytes,
            body_crc64,
            codec: codec.number(),
        };
        self.out.extend(trailer.encode(self.spec.attempt));
        let written = Written {
            bytes,
            index_offset,
            body_crc64,
        };
        Ok((self.out.into(), written))
    }

    fn footer(&mut self) -> v1::ObjectFooter {
        let mut section = std::mem::take(&mut self.spec.section);
        section.body_formats = self.formats.iter().copied().map(u32::from).collect();
        section.chain = self.chain.value();
        section.blocks = short(self.blocks.len());
        v1::ObjectFooter {
            required_features: 0,
            writer: std::mem::take(&mut self.spec.writer),
            cluster: std::mem::take(&mut self.spec.cluster),
            location_id: Bytes::copy_from_slice(&self.spec.location.0),
            attempt: Bytes::copy_from_slice(&self.spec.attempt.0),
            created_ms: self.spec.created_ms,
            sections: vec![section],
        }
    }

    /// The entry that comes next.
    #[must_use]
    pub fn next_entry(&self) -> EntryId {
        EntryId(self.next_entry)
    }
}
