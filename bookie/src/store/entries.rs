//! Reads of entries: range scans over RocksDB, merged with what is on its way there.
//!
//! Invariant (I5): an entry is returned only if its digest matches, and its absence is reported
//! only when the iteration ended without an error.

use std::collections::BTreeMap;

use aquifer_model::id::{EntryId, LedgerId};
use aquifer_model::storage::{AddEntry, ReadRange, StoredEntry};
use bytes::{BufMut, Bytes, BytesMut};
use rocksdb::ReadOptions;

use crate::journal::record::ValueHead;
use crate::store::db::{Db, StoreError};
use crate::store::keys;

/// How far ahead RocksDB reads in a scan that is longer than a few entries.
const READAHEAD_BYTES: usize = 1024 * 1024;

/// Why an entry could not be returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryError {
    /// RocksDB failed, for example at a damaged block.
    Store(StoreError),
    /// The bytes do not match their digest.
    Digest(String),
}

impl From<StoreError> for EntryError {
    fn from(error: StoreError) -> EntryError {
        EntryError::Store(error)
    }
}

/// A stored value as an entry, verified; `prefix_bytes` cuts the data after that.
pub fn verified(
    ledger: LedgerId,
    entry: EntryId,
    value: &[u8],
    prefix_bytes: Option<usize>,
) -> Result<StoredEntry, EntryError> {
    let damaged = || EntryError::Digest(format!("entry {ledger}:{entry} on this bookie"));
    let (head, data) = ValueHead::split(value).ok_or_else(damaged)?;
    let parts: [&[u8]; 1] = [data];
    let digest = aquifer_model::storage::digest(
        ledger,
        entry,
        head.last_add_confirmed,
        head.ledger_length,
        &parts,
    );
    if digest != head.digest {
        return Err(damaged());
    }
    let kept = prefix_bytes.unwrap_or(data.len()).min(data.len());
    Ok(StoredEntry {
        entry,
        last_add_confirmed: head.last_add_confirmed,
        ledger_length: head.ledger_length,
        digest,
        data: Bytes::copy_from_slice(&data[..kept]),
    })
}

/// An entry that is on its way, as it will be stored.
pub fn from_pending(
    ledger: LedgerId,
    add: &AddEntry,
    prefix_bytes: Option<usize>,
) -> Result<StoredEntry, EntryError> {
    if !add.is_intact(ledger) {
        let message = format!("entry {ledger}:{} in memory", add.entry);
        return Err(EntryError::Digest(message));
    }
    let kept = prefix_bytes.unwrap_or(usize::MAX).min(add.data.len());
    let head = &add.data.head[..add.data.head.len().min(kept)];
    let mut data = BytesMut::with_capacity(kept);
    data.put_slice(head);
    data.put_slice(&add.data.body[..kept - head.len()]);
    Ok(StoredEntry {
        entry: add.entry,
        last_add_confirmed: add.last_add_confirmed,
        ledger_length: add.ledger_length,
        digest: add.digest,
        data: data.freeze(),
    })
}

/// Consecutive entries from `range.first` on, from RocksDB and from `pending`, which must have
/// been copied before this is called: an entry leaves it only after RocksDB has it. Empty when
/// the first is proven to be absent. An error behind the first entry ends the answer before it.
pub fn read_range(
    db: &Db,
    range: &ReadRange,
    pending: &BTreeMap<EntryId, AddEntry>,
) -> Result<Vec<StoredEntry>, EntryError> {
    let mut found: Vec<StoredEntry> = Vec::new();
    if range.first > range.last || range.entries_max == 0 {
        return Ok(found);
    }
    let mut read = ReadOptions::default();
    read.set_iterate_upper_bound(keys::ledger_end(range.ledger));
    if range.bytes_max > READAHEAD_BYTES / 4 && range.prefix_bytes.is_none() {
        read.set_readahead_size(READAHEAD_BYTES.min(range.bytes_max));
        read.fill_cache(false);
    }
    let family = db.family(keys::ENTRIES)?;
    let mut iterator = db.rocks.raw_iterator_cf_opt(family, read);
    iterator.seek(keys::entry_key(range.ledger, range.first));
    let mut next = range.first;
    let mut bytes = 0;
    loop {
        let stored = match iterator.item() {
            Some((key, value)) if keys::entry_of(key) == Some(next) => {
                let mut entry = verified(range.ledger, next, value, range.prefix_bytes);
                iterator.next();
                // Repair is on its way to replace what is damaged.
                if entry.is_err()
                    && let Some(add) = pending.get(&next)
                {
                    entry = from_pending(range.ledger, add, range.prefix_bytes);
                }
                Some(entry)
            }
            _ => pending
                .get(&next)
                .map(|add| from_pending(range.ledger, add, range.prefix_bytes)),
        };
        let status = iterator.status().map_err(StoreError::from);
        let entry = match (stored, status) {
            (Some(Ok(entry)), _) => entry,
            (None, Ok(())) => break,
            // What is wrong here is the answer to a later read that begins at this entry.
            (Some(Err(_)), _) | (None, Err(_)) if !found.is_empty() => break,
            (Some(Err(error)), _) => return Err(error),
            (None, Err(error)) => return Err(error.into()),
        };
        bytes += entry.data.len();
        if !found.is_empty() && bytes > range.bytes_max {
            break;
        }
        found.push(entry);
        if next == range.last || found.len() >= range.entries_max {
            break;
        }
        next = next.next();
    }
    Ok(found)
}

/// What a look at stored entries found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Checked {
    /// Entries that are intact.
    pub entries: u64,
    /// Bytes of everything that was read.
    pub bytes: usize,
    /// Entries that are not, or that cannot be read.
    pub damaged: Vec<EntryId>,
    /// Where to go on; `None` at the end of the ledger.
    pub next: Option<EntryId>,
}

/// Checks the digests of stored entries from `first` on, about `bytes_max` of them. Ends at an
/// entry that cannot be read: which entries a damaged block holds is not known, so the one that
/// would be next is named.
pub fn check(
    db: &Db,
    ledger: LedgerId,
    first: EntryId,
    bytes_max: usize,
) -> Result<Checked, StoreError> {
    let mut read = ReadOptions::default();
    read.set_iterate_upper_bound(keys::ledger_end(ledger));
    read.fill_cache(false);
    let family = db.family(keys::ENTRIES)?;
    let mut iterator = db.rocks.raw_iterator_cf_opt(family, read);
    iterator.seek(keys::entry_key(ledger, first));
    let mut checked = Checked::default();
    let mut next = first;
    while let Some((key, value)) = iterator.item() {
        let entry = keys::entry_of(key)
            .ok_or_else(|| StoreError::Damaged("the key of an entry".to_owned()))?;
        checked.bytes += value.len();
        match verified(ledger, entry, value, Some(0)) {
            Ok(_) => checked.entries += 1,
            Err(_) => checked.damaged.push(entry),
        }
        next = entry.next();
        if checked.bytes >= bytes_max {
            checked.next = Some(next);
            return Ok(checked);
        }
        iterator.next();
    }
    match iterator.status().map_err(StoreError::from) {
        Ok(()) => {}
        Err(StoreError::Damaged(_)) => {
            checked.damaged.push(next);
            checked.next = Some(next.next());
        }
        Err(error) => return Err(error),
    }
    Ok(checked)
}
