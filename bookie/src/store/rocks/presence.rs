//! Which entries are stored, for little more than the price of their keys.
//!
//! Large entries lie in blob files, and an iterator that stands on a key reads the value. A look-up
//! that may use nothing but the block cache does not: of an entry whose key it finds it says that
//! the blob cannot be read, which proves that the entry is there, and of a key whose block is not
//! in the cache it says something else. So one value is read for a block of keys, some hundreds of
//! entries. Whatever is not proven by that is looked up in full: nothing here is guessed.

use std::collections::BTreeSet;

use aquifer_model::id::EntryId;
use aquifer_model::storage::{Presence, PresenceRange};
use rocksdb::{ReadOptions, ReadTier};

use crate::store::StoreError;
use crate::store::rocks::db::Db;
use crate::store::rocks::keys;

/// What one look reads, but for the last value: other readers wait for it.
const BYTES_MAX: u64 = 4 << 20;
/// Entries of one look.
const ENTRIES_MAX: u64 = 16_384;
/// Ranges of one answer.
const RUNS_MAX: usize = 4_096;
/// What a key costs.
const KEY_BYTES: u64 = 64;
/// How RocksDB says that it has found a key, and may not read the blob.
const BLOB_NOT_READ: &str = "Cannot read blob";

/// Looks for entries in RocksDB and in `pending`, which must have been copied before this is
/// called. Damage behind the first entry ends the answer before it.
pub fn find(
    db: &Db,
    range: &PresenceRange,
    pending: &BTreeSet<EntryId>,
) -> Result<Presence, StoreError> {
    let mut look = Look {
        db,
        range,
        pending,
        found: Presence::nothing_until(range.first),
        next: range.first,
        left: ENTRIES_MAX,
        cached: ReadOptions::default(),
    };
    look.cached.set_read_tier(ReadTier::BlockCache);
    let mut large = false;
    while look.goes_on() {
        if large && look.is_in_cache(look.next)? {
            look.take(look.next, KEY_BYTES);
            continue;
        }
        large = look.follow(large)?;
    }
    look.found.until = EntryId(look.next.0.saturating_sub(1)).min(range.last);
    Ok(look.found)
}

struct Look<'a> {
    db: &'a Db,
    range: &'a PresenceRange,
    pending: &'a BTreeSet<EntryId>,
    found: Presence,
    next: EntryId,
    left: u64,
    cached: ReadOptions,
}

impl Look<'_> {
    fn goes_on(&self) -> bool {
        let within = self.found.bytes < BYTES_MAX && self.found.runs.len() < RUNS_MAX;
        self.next <= self.range.last && self.left > 0 && within
    }

    /// Notes an entry that is there.
    fn take(&mut self, entry: EntryId, bytes: u64) {
        self.found.add(entry);
        self.found.bytes += bytes;
        self.left = self.left.saturating_sub(1);
        self.next = entry.next();
    }

    /// Goes on behind entries that RocksDB has not: what is to be applied is there.
    fn skip_to(&mut self, entry: EntryId) {
        if self.next < entry {
            for pending in self.pending.range(self.next..entry) {
                self.found.add(*pending);
            }
            self.next = entry;
        }
    }

    /// Whether the block cache proves that an entry is there.
    fn is_in_cache(&self, entry: EntryId) -> Result<bool, StoreError> {
        let family = self.db.family(keys::ENTRIES)?;
        let key = keys::entry_key(self.range.ledger, entry);
        let rocks = &self.db.rocks;
        let looked_up = rocks.get_pinned_cf_opt(family, key, &self.cached);
        Ok(match looked_up {
            Ok(found) => found.is_some(),
            Err(error) => error.as_ref().contains(BLOB_NOT_READ),
        })
    }

    /// Looks the next entry up by its number: beside a damaged block only that finds what repair
    /// has rewritten. Whether it says anything.
    fn by_number(&mut self) -> Result<bool, StoreError> {
        match self.db.entry(self.range.ledger, self.next) {
            Ok(Some(value)) => self.take(self.next, value.len() as u64),
            Ok(None) => self.skip_to(self.next.next()),
            Err(StoreError::Damaged(_)) if self.pending.contains(&self.next) => {
                self.skip_to(self.next.next());
            }
            Err(StoreError::Damaged(_)) => return Ok(false),
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    /// Follows an iterator for as long as values are small; whether it came to a large one.
    fn follow(&mut self, fills_cache: bool) -> Result<bool, StoreError> {
        let mut read = ReadOptions::default();
        read.set_iterate_upper_bound(keys::ledger_end(self.range.ledger));
        read.fill_cache(fills_cache);
        let family = self.db.family(keys::ENTRIES)?;
        let mut iterator = self.db.rocks.raw_iterator_cf_opt(family, read);
        iterator.seek(keys::entry_key(self.range.ledger, self.next));
        while self.goes_on() {
            let item = iterator.item();
            let item = item.and_then(|(key, value)| Some((keys::entry_of(key)?, value.len())));
            let Some((entry, bytes)) = item else {
                match iterator.status().map_err(StoreError::from) {
                    Ok(()) => self.skip_to(self.range.last.next()),
                    Err(StoreError::Damaged(_)) if self.by_number()? => {}
                    Err(error) if self.next == self.range.first => return Err(error),
                    // A read that goes on from here is told of it.
                    Err(_) => self.left = 0,
                }
                return Ok(false);
            };
            if entry > self.range.last {
                self.skip_to(self.range.last.next());
                return Ok(false);
            }
            self.skip_to(entry);
            self.take(entry, bytes as u64);
            if bytes >= self.db.blob_bytes_min {
                return Ok(true);
            }
            iterator.next();
        }
        Ok(false)
    }
}
