//! Checking every byte of an object, in order, with little of it in memory.

use bytes::Bytes;

use crate::format::block::Block;
use crate::format::parts::Header;
use crate::format::tail::{IndexRow, Tail};
use crate::format::{BLOCK_HEAD_BYTES, Crc64, FormatError, count};

/// A check that is under way: the header, then every block, then what is behind.
pub struct Checker<'a> {
    tail: &'a Tail,
    body: Crc64,
    chain: Crc64,
    next: usize,
    length: u64,
}

impl<'a> Checker<'a> {
    /// Begins with the header.
    ///
    /// # Errors
    /// When it is not the header of this object.
    pub fn new(tail: &'a Tail, header: &[u8]) -> Result<Checker<'a>, FormatError> {
        let found = Header::parse(header)?;
        if found.attempt != tail.attempt || Some(found.location) != tail.location() {
            return Err(FormatError::invalid("header and footer are of two objects"));
        }
        let mut body = Crc64::new();
        body.update(header);
        Ok(Checker {
            tail,
            body,
            chain: Crc64::new(),
            next: 0,
            length: 0,
        })
    }

    /// The block that is to come next; nothing behind the last.
    #[must_use]
    pub fn wants(&self) -> Option<&'a IndexRow> {
        self.tail.blocks.get(self.next)
    }

    /// Takes the next block, padding included, and answers it.
    ///
    /// # Errors
    /// When it is not what was written, or not what the index says.
    pub fn block(&mut self, bytes: &Bytes) -> Result<Block, FormatError> {
        let row = self.wants();
        let row = row.ok_or_else(|| FormatError::invalid("a block behind the last"))?;
        let number = self.next;
        let block = Block::decode(self.tail.attempt, bytes)?;
        let head = &block.head;
        let as_indexed = count(head.number) == number
            && head.section == 0
            && head.crc == row.crc
            && head.stored_len == row.stored_len
            && head.raw_len == row.raw_len
            && head.entries == row.entries
            && head.first_entry == row.first_entry
            && head.length_before == self.length;
        let padding = bytes.get(BLOCK_HEAD_BYTES + count(head.stored_len)..);
        let is_padded = padding.is_some_and(|padding| padding.iter().all(|byte| *byte == 0));
        if !as_indexed || !is_padded || bytes.len() != head.block_bytes() {
            return Err(FormatError::invalid(format!(
                "block {number} is not what the index says"
            )));
        }
        block.check_digests(self.tail.ledger())?;
        for entry in block.entries_from(head.first_entry) {
            self.length = entry.ledger_length;
            self.chain.update(&entry.entry.0.to_le_bytes());
            self.chain
                .update(&crate::format::short(entry.data.len()).to_le_bytes());
            self.chain.update(&entry.digest.to_le_bytes());
        }
        self.body.update(bytes);
        self.next += 1;
        Ok(block)
    }

    /// Ends with the bytes from the index on, those of [`Tail::parse`].
    ///
    /// # Errors
    /// When blocks are missing, or anything before does not match the whole.
    pub fn end(mut self, tail_bytes: &[u8]) -> Result<(), FormatError> {
        if self.wants().is_some() {
            return Err(FormatError::invalid("blocks are missing"));
        }
        let before_trailer = tail_bytes
            .len()
            .saturating_sub(crate::format::TRAILER_BYTES);
        self.body.update(&tail_bytes[..before_trailer]);
        let section = &self.tail.section;
        if self.length != section.length_bytes {
            return Err(FormatError::invalid(
                "the entries have another length together",
            ));
        }
        let sums = [
            ("the entries", section.chain, self.chain.value()),
            (
                "the object",
                self.tail.trailer.body_crc64,
                self.body.value(),
            ),
        ];
        for (what, stored, computed) in sums {
            if stored != computed {
                return Err(FormatError::Checksum {
                    what: what.to_owned(),
                    stored,
                    computed,
                });
            }
        }
        Ok(())
    }
}

/// Checks a whole object that is in memory: for small ones, and for tests.
///
/// # Errors
/// When any byte of it is not as it was written.
pub fn check_whole(object: &Bytes) -> Result<Tail, FormatError> {
    let bytes = object.len() as u64;
    let begin = Tail::begins_at(object, bytes)?;
    let begin = usize::try_from(begin)
        .unwrap_or(usize::MAX)
        .min(object.len());
    let end = object.slice(begin..);
    let tail = Tail::parse(&end, bytes)?;
    let header = object.get(..crate::format::HEADER_BYTES);
    let mut check = Checker::new(&tail, header.unwrap_or_default())?;
    while let Some(row) = check.wants() {
        let range = usize::try_from(row.offset)
            .ok()
            .zip(usize::try_from(row.end()).ok());
        // The index was checked: its blocks lie before it.
        let (from, to) = range.unwrap_or_default();
        check.block(&object.slice(from.min(begin)..to.min(begin)))?;
    }
    check.end(&end)?;
    Ok(tail)
}
