//! Reads of entries: range scans over RocksDB, merged with what is to be applied to it.
//!
//! Invariant (I5): an entry is returned only if its digest matches, and its absence is reported
//! only when the iteration ended without an error.

use std::collections::BTreeMap;

use aquifer_model::id::EntryId;
use aquifer_model::storage::{AddEntry, ReadRange, StoredEntry};
use rocksdb::{DBPinnableSlice, ReadOptions};

use crate::journal::record::{VALUE_HEAD_BYTES, ValueHead};
use crate::store::StoreError;
use crate::store::rocks::db::Db;
use crate::store::rocks::keys;
use crate::store::value::{EntryError, from_pending, verified};

/// How far ahead RocksDB reads in a long scan: as much at once in every file that the ledger lies
/// in.
const READAHEAD_BYTES: usize = 1024 * 1024;
/// What a long scan is, in entries. In a shorter one most of what is read ahead would belong to
/// other ledgers; RocksDB then reads ahead little by little.
const READAHEAD_ENTRIES_MIN: u64 = 1024;
/// What one read of several entries takes from the disk; up to twice as much where entries get
/// larger. Beside the answer a scan holds this, and one entry more.
const BATCH_BYTES: usize = 1024 * 1024;
/// What one read takes from the disk for an answer that has only the beginnings of entries: the
/// rest of them counts for no other read, and all the same others wait for it.
const STORED_BYTES_MAX: usize = 4 * 1024 * 1024;
/// RocksDB reads at most 32 together.
const BATCH_ENTRIES_MAX: usize = 32;

/// Consecutive entries from `range.first` on, from RocksDB and from `pending`, which must have
/// been copied before this is called: an entry leaves it only after RocksDB has it. Empty when
/// the first is proven to be absent. An error behind the first entry ends the answer before it.
pub fn read_range(
    db: &Db,
    range: &ReadRange,
    pending: &BTreeMap<EntryId, AddEntry>,
) -> Result<Vec<StoredEntry>, EntryError> {
    if range.first > range.last || range.entries_max == 0 {
        return Ok(Vec::new());
    }
    let mut scan = Scan {
        db,
        range,
        pending,
        found: Vec::new(),
        bytes: 0,
        stored_bytes: 0,
        next: range.first,
        reach: None,
    };
    match scan.one_by_one()? {
        Ended::HereAreLarge => scan.by_number(BATCH_ENTRIES_MAX)?,
        Ended::DamageIsNear => scan.by_number(1)?,
        Ended::Done => {}
    }
    Ok(scan.found)
}

/// Why entries are not looked at one by one any more.
enum Ended {
    /// There is no more to read.
    Done,
    /// They are so large that each costs a read of the disk.
    HereAreLarge,
    /// The iterator cannot go on. Where a block is damaged, an entry that repair has rewritten is
    /// found by its number only.
    DamageIsNear,
}

/// A range that is being read.
struct Scan<'a> {
    db: &'a Db,
    range: &'a ReadRange,
    pending: &'a BTreeMap<EntryId, AddEntry>,
    found: Vec<StoredEntry>,
    bytes: usize,
    /// Bytes of whole entries, whatever is kept of them.
    stored_bytes: usize,
    next: EntryId,
    /// An entry ahead, and the bytes of the ledger up to it.
    reach: Option<(EntryId, u64)>,
}

impl<'a> Scan<'a> {
    /// Follows an iterator: the way for small entries, which share blocks, and the one that proves
    /// an absence.
    fn one_by_one(&mut self) -> Result<Ended, EntryError> {
        let mut read = ReadOptions::default();
        read.set_iterate_upper_bound(keys::ledger_end(self.range.ledger));
        let wanted = (self.range.last.0 - self.range.first.0)
            .saturating_add(1)
            .min(self.range.entries_max as u64);
        let is_long = wanted >= READAHEAD_ENTRIES_MIN && self.range.prefix_bytes.is_none();
        if is_long && self.range.bytes_max > READAHEAD_BYTES / 4 {
            read.set_readahead_size(READAHEAD_BYTES.min(self.range.bytes_max));
            read.fill_cache(false);
        }
        let family = self.db.family(keys::ENTRIES)?;
        let mut iterator = self.db.rocks.raw_iterator_cf_opt(family, read);
        iterator.seek(keys::entry_key(self.range.ledger, self.next));
        loop {
            let stored = match iterator.item() {
                Some((key, value)) if keys::entry_of(key) == Some(self.next) => Some(value),
                _ => None,
            };
            let is_stored = stored.is_some();
            let stored_bytes = stored.map_or(0, <[u8]>::len);
            let entry = self.merged(stored);
            let status = iterator.status().map_err(StoreError::from);
            let (more, bytes) = match (entry, status) {
                (Some(Ok(entry)), _) => {
                    let bytes = entry.data.len();
                    (self.take(entry, stored_bytes), bytes)
                }
                (None, Ok(())) => return Ok(Ended::Done),
                (Some(Err(error)), _) => return self.fail(error),
                (None, Err(StoreError::Damaged(_))) => return Ok(Ended::DamageIsNear),
                (None, Err(error)) => return self.fail(error.into()),
            };
            if !more {
                return Ok(Ended::Done);
            }
            // Of whole entries several are read at once; of beginnings each is let go of before the
            // next.
            if bytes + VALUE_HEAD_BYTES >= self.db.blob_bytes_min
                && self.range.prefix_bytes.is_none()
            {
                return Ok(Ended::HereAreLarge);
            }
            if is_stored {
                iterator.next();
            }
        }
    }

    /// Looks entries up by their numbers, several with one read of the disk: those of a ledger
    /// lie one behind the other in a blob file.
    fn by_number(&mut self, at_once: usize) -> Result<(), EntryError> {
        let db = self.db;
        let family = db.family(keys::ENTRIES)?;
        loop {
            let (count, last) = self.next_batch(at_once)?;
            let end = self.next.0.saturating_add(count);
            let wanted = (self.next.0..end).map(|entry| self.key(EntryId(entry)));
            // What the cache keeps of these are blocks of keys.
            let values = db
                .rocks
                .batched_multi_get_cf(family, &wanted.collect::<Vec<_>>(), true);
            for value in values.into_iter().chain(last.map(|value| Ok(Some(value)))) {
                let stored_bytes = value
                    .as_ref()
                    .map_or(0, |value| value.as_deref().map_or(0, <[u8]>::len));
                let entry = match value {
                    Ok(value) => self.merged(value.as_deref()),
                    Err(error) => self
                        .merged(None)
                        .or(Some(Err(StoreError::from(error).into()))),
                };
                match entry {
                    Some(Ok(entry)) => {
                        if !self.take(entry, stored_bytes) {
                            return Ok(());
                        }
                    }
                    Some(Err(error)) => return self.fail(error).map(drop),
                    None => return Ok(()),
                }
            }
        }
    }

    fn key(&self, entry: EntryId) -> [u8; 16] {
        keys::entry_key(self.range.ledger, entry)
    }

    /// How many entries the next read takes, one at least, and the one behind these when it was
    /// looked at: as many as most likely fit, and only after the last of them has said how many
    /// bytes that is. Small entries say nothing of the size of those behind them.
    fn next_batch(
        &mut self,
        at_once: usize,
    ) -> Result<(u64, Option<DBPinnableSlice<'a>>), StoreError> {
        let usual = (self.bytes / self.found.len().max(1)).max(1);
        let left = self.range.bytes_max.saturating_sub(self.bytes);
        let left = left.min(BATCH_BYTES);
        let mut count = (left / usual)
            .min(self.range.entries_max - self.found.len())
            .clamp(1, at_once) as u64;
        count = count.min((self.range.last.0 - self.next.0).saturating_add(1));
        let Some(before) = self.found.last().map(|entry| entry.ledger_length) else {
            return Ok((1, None));
        };
        let fits = |length: u64| {
            length
                .checked_sub(before)
                .is_some_and(|n| n <= 2 * left as u64)
        };
        if let Some((reach, length)) = self.reach.filter(|(reach, _)| *reach >= self.next) {
            let most = if fits(length) {
                reach.0 - self.next.0 + 1
            } else {
                1
            };
            return Ok((count.min(most), None));
        }
        while count > 1 {
            let last = EntryId(self.next.0 + count - 1);
            let (length, stored) = self.look_at(last)?;
            match length {
                Some(length) if fits(length) => {
                    return Ok((count - u64::from(stored.is_some()), stored));
                }
                Some(length) => {
                    self.reach = Some((last, length));
                    count = 1;
                }
                None => count /= 2,
            }
        }
        Ok((1, None))
    }

    /// The bytes of the ledger up to an entry, in flight or stored. What is wrong with one
    /// is told when its turn comes.
    fn look_at(
        &self,
        entry: EntryId,
    ) -> Result<(Option<u64>, Option<DBPinnableSlice<'a>>), StoreError> {
        if let Some(add) = self.pending.get(&entry) {
            return Ok((Some(add.ledger_length), None));
        }
        let family = self.db.family(keys::ENTRIES)?;
        let stored = self.db.rocks.get_pinned_cf(family, self.key(entry));
        let stored = stored.ok().flatten();
        let head = stored.as_deref().and_then(ValueHead::split);
        Ok((head.map(|(head, _)| head.ledger_length), stored))
    }

    /// The next entry: as it is stored, or in flight.
    fn merged(&self, stored: Option<&[u8]>) -> Option<Result<StoredEntry, EntryError>> {
        let (ledger, prefix) = (self.range.ledger, self.range.prefix_bytes);
        let pending = || {
            let add = self.pending.get(&self.next)?;
            Some(from_pending(ledger, add, prefix))
        };
        match stored.map(|value| verified(ledger, self.next, value, prefix)) {
            // Repair is to replace what is damaged.
            Some(Err(error)) => pending().or(Some(Err(error))),
            Some(entry) => Some(entry),
            None => pending(),
        }
    }

    /// Takes an entry if it fits. Whether another may.
    fn take(&mut self, entry: StoredEntry, stored_bytes: usize) -> bool {
        self.bytes += entry.data.len();
        self.stored_bytes += stored_bytes;
        if !self.found.is_empty() && self.bytes > self.range.bytes_max {
            return false;
        }
        self.found.push(entry);
        if self.next == self.range.last || self.found.len() >= self.range.entries_max {
            return false;
        }
        self.next = self.next.next();
        self.range.prefix_bytes.is_none() || self.stored_bytes < STORED_BYTES_MAX
    }

    /// What is wrong behind the first entry is the answer to a later read that begins there.
    fn fail(&self, error: EntryError) -> Result<Ended, EntryError> {
        if self.found.is_empty() {
            return Err(error);
        }
        Ok(Ended::Done)
    }
}

#[cfg(test)]
mod tests;
